//! Child processes that never outlive us: stopped and collected when dropped,
//! and by the kernel if we die without warning.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use linkspan_sys::signals::{Signal, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, kill_process, pidfd_open};

use super::Error;

/// How long a child may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// The longest time between two looks at the stop flag.
const TICK: Duration = Duration::from_millis(200);

/// A request to stop: by SIGINT, SIGTERM or SIGHUP, or by ourselves.
#[derive(Debug, Default)]
pub struct Stop {
    signals: Option<Signals>,
    requested: AtomicBool,
}

impl Stop {
    /// Takes over the three signals, which then end nothing by themselves.
    ///
    /// # Errors
    /// [`Error::System`] where a handler cannot be installed.
    pub fn on_signals() -> Result<Self, Error> {
        let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate, Signal::Hangup])
            .map_err(Error::system("install a signal handler"))?;
        Ok(Self {
            signals: Some(signals),
            requested: AtomicBool::new(false),
        })
    }

    /// Asks everything that watches this to stop.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// [`Error::Stopped`] once a stop was asked for.
    pub fn check(&self) -> Result<(), Error> {
        if let Some(signals) = &self.signals {
            let came = signals.take().map_err(Error::system("look for signals"))?;
            if !came.is_empty() {
                self.request();
            }
        }
        if self.requested.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        Ok(())
    }
}

/// A command whose process the kernel ends when this thread ends.
///
/// The parent-death signal has to be set between fork and exec, which Rust only
/// offers as unsafe code; `setpriv` of util-linux does it for us where it exists.
#[must_use]
pub fn supervised(program: &Path) -> Command {
    static WITH_SETPRIV: OnceLock<bool> = OnceLock::new();
    let options = ["--pdeathsig", "TERM", "--"];
    let works = WITH_SETPRIV.get_or_init(|| {
        let mut trial = Command::new("setpriv");
        trial
            .args(options)
            .arg("true")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        trial.status().is_ok_and(|status| status.success())
    });
    if *works {
        let mut command = Command::new("setpriv");
        command.args(options).arg(program);
        command
    } else {
        Command::new(program)
    }
}

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    pidfd: OwnedFd,
}

impl Process {
    /// Starts `command`; `name` is what messages call it.
    ///
    /// # Errors
    /// [`Error::System`] where it cannot be started.
    pub fn spawn(name: &'static str, command: &mut Command) -> Result<Self, Error> {
        let mut child = command
            .spawn()
            .map_err(Error::system("start a child process"))?;
        match pidfd_open(pid_of(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { name, child, pidfd }),
            Err(error) => {
                // Neither result matters: the child is ours and is being given up.
                let _ = child.kill();
                let _ = child.wait();
                Err(Error::system("watch a child process")(error))
            }
        }
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Takes the child's standard output, if it was a pipe and not taken before.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Takes the child's standard input, if it was a pipe and not taken before.
    pub fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// [`Error::System`] where the system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child
            .try_wait()
            .map_err(Error::system("ask for a child's state"))
    }

    /// Waits until the child ends or `deadline` passes.
    ///
    /// # Errors
    /// [`Error::Stopped`] where `stop` is requested meanwhile, [`Error::System`].
    pub fn wait_until(
        &mut self,
        deadline: Instant,
        stop: &Stop,
    ) -> Result<Option<ExitStatus>, Error> {
        loop {
            stop.check()?;
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            wait_readable(&[self.pidfd.as_fd()], deadline)?;
        }
    }

    /// Asks it to end, waits a little, then kills it.
    ///
    /// # Errors
    /// [`Error::System`] where its end cannot be collected.
    pub fn stop(&mut self) -> Result<ExitStatus, Error> {
        self.terminate()?;
        match self.wait_until(Instant::now() + GRACE, &Stop::default())? {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// Ends it at once with SIGKILL.
    ///
    /// # Errors
    /// [`Error::System`] where its end cannot be collected.
    pub fn kill(&mut self) -> Result<ExitStatus, Error> {
        self.child
            .kill()
            .map_err(Error::system("kill a child process"))?;
        self.child
            .wait()
            .map_err(Error::system("collect a child process"))
    }

    fn terminate(&mut self) -> Result<(), Error> {
        // Until it is collected the id stays the child's, so this cannot hit another.
        if self.ended()?.is_none() {
            kill_process(pid_of(&self.child), rustix::process::Signal::TERM)
                .map_err(Error::system("signal a child process"))?;
        }
        Ok(())
    }
}

impl AsFd for Process {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // There is nobody left to tell; a child that cannot be collected is gone.
        let _ = self.stop();
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Waits until one of `fds` is readable, `deadline` passes, a signal comes, or a
/// short while is over; says which are readable.
///
/// # Errors
/// [`Error::System`] where waiting fails.
pub fn wait_readable(fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<Vec<bool>, Error> {
    let pause = deadline.saturating_duration_since(Instant::now()).min(TICK);
    let timeout = Timespec::try_from(pause).expect("a tick fits");
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(Error::system("wait for a child process")(error)),
    }
    Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect())
}

/// Waits until `server` listens on the Unix socket at `path`.
///
/// The kernel's list of sockets is read instead of connecting, because a
/// connection would already be the server's one session.
///
/// # Errors
/// [`Error::Ended`] where the server ends, [`Error::NoSocket`] after `limit`,
/// both with the end of `log`; [`Error::Stopped`].
pub fn await_socket(
    server: &mut Process,
    path: &Path,
    log: &Path,
    limit: Duration,
    stop: &Stop,
) -> Result<(), Error> {
    let deadline = Instant::now() + limit;
    while !listens(path) {
        let name = server.name();
        let look_again = Instant::now() + Duration::from_millis(10);
        if let Some(status) = server.wait_until(look_again, stop)? {
            return Err(Error::Ended {
                name,
                status,
                tail: tail(log),
            });
        }
        if Instant::now() >= deadline {
            return Err(Error::NoSocket {
                name,
                socket: path.to_owned(),
                limit,
                tail: tail(log),
            });
        }
    }
    Ok(())
}

/// Whether a process listens on the Unix socket at `path`.
fn listens(path: &Path) -> bool {
    // The flag __SO_ACCEPTCON of linux/net.h, as printed in /proc/net/unix.
    const ACCEPTING: &str = "00010000";
    if !path.exists() {
        return false;
    }
    // A listener of ours has its path once it listens, and is in the list by the name
    // beside it that it was bound to (`linkspan_sys::Listener::bind`).
    let beside = path.with_file_name(".socket.");
    let (own, beside) = (
        format!(" {}", path.display()),
        format!(" {}", beside.display()),
    );
    fs::read_to_string("/proc/net/unix").is_ok_and(|sockets| {
        sockets.lines().any(|line| {
            line.split_whitespace().nth(3) == Some(ACCEPTING)
                && (line.ends_with(&own) || line.contains(&beside))
        })
    })
}

/// The last lines of a log, for an error message.
#[must_use]
pub fn tail(log: &Path) -> String {
    const BYTES: u64 = 4096;
    const LINES: usize = 25;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(log)?;
        let start = file.metadata()?.len().saturating_sub(BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).replace('\r', "");
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// Where the shell would find `program`.
#[must_use]
pub fn find_program(program: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runnable = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 {
        return Some(program.to_owned()).filter(runnable);
    }
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(runnable)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn sleeper() -> Process {
        Process::spawn("sleep", supervised(Path::new("sleep")).arg("1000")).unwrap()
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let child = sleeper();
        let id = child.id();
        drop(child);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn a_stop_request_ends_the_wait_and_not_the_child() {
        let mut child = sleeper();
        let stop = Stop::default();
        stop.request();
        let far = Instant::now() + Duration::from_secs(1000);
        assert!(matches!(child.wait_until(far, &stop), Err(Error::Stopped)));
        assert_eq!(child.ended().unwrap(), None);
    }

    #[test]
    fn a_server_that_dies_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "first\n\nno such image\n").unwrap();
        let mut server = Process::spawn("server", &mut Command::new("false")).unwrap();
        let error = await_socket(
            &mut server,
            &dir.path().join("s"),
            &log,
            Duration::from_secs(60),
            &Stop::default(),
        );
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("server ended early (exit status: 1)"),
            "{text}"
        );
        assert!(text.contains("| no such image"), "{text}");
    }

    #[test]
    fn a_socket_counts_only_while_someone_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(!listens(&path));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(listens(&path));
        drop(listener);
        assert!(path.exists() && !listens(&path));
    }

    #[test]
    fn programs_are_found_as_by_the_shell() {
        assert!(find_program(Path::new("sh")).is_some());
        assert_eq!(find_program(Path::new("no-such-program-here")), None);
        assert_eq!(find_program(Path::new("/etc/passwd")), None);
    }
}
