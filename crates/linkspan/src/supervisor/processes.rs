//! The processes of links: started, told to end, and their ends heard of.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use linkspan_mem::fault::{self, Site};
use linkspan_sys::poll::Interest;
use linkspan_sys::{Epoll, Stream};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};

use super::activation::Sockets;
use super::core::End;
use super::line::{Heard, Line};
use super::notify::VARIABLES;
use crate::tether::Question;

/// The program that links are: this one, also once another is in its place.
const PROGRAM: &str = "/proc/self/exe";

/// How long a process may take to end that handed its link over.
const LEAVING: Duration = Duration::from_secs(30);

/// Processes of links, one each at most.
#[derive(Debug)]
pub struct Processes {
    /// Where relative paths of links begin.
    folder: PathBuf,
    running: BTreeMap<String, Process>,
    /// Those that are to take a link over from the one that runs, and that nobody hears of yet.
    successors: BTreeMap<String, Process>,
    /// Those that handed their link over, and when each has had long enough to end.
    leaving: Vec<(Instant, Process)>,
    /// Programs of links that another one than this has taken over.
    programs: BTreeMap<String, PathBuf>,
    /// What a service manager has listening for links.
    sockets: Sockets,
    /// The token of the next one, whose line has the one after it; none comes twice.
    next: u64,
}

#[derive(Debug)]
struct Process {
    child: Child,
    /// Readable once it has ended.
    end: OwnedFd,
    token: u64,
    /// `None` once it says what makes no sense, or nothing more.
    line: Option<Line>,
    /// Of a successor.
    program: Option<PathBuf>,
}

impl Processes {
    /// None yet; tokens from `first` on. Links with a socket here get it.
    pub fn new(folder: &Path, first: u64, sockets: Sockets) -> Self {
        Self {
            folder: folder.to_owned(),
            running: BTreeMap::new(),
            successors: BTreeMap::new(),
            leaving: Vec::new(),
            programs: BTreeMap::new(),
            sockets,
            next: first,
        }
    }

    /// Starts one for a link, which has none; its standard output is `out`, or nothing.
    ///
    /// # Errors
    /// The system refuses; nothing is left behind.
    pub fn start(
        &mut self,
        name: &str,
        arguments: &[OsString],
        out: Option<OwnedFd>,
        epoll: &Epoll,
    ) -> io::Result<u32> {
        let given = self.sockets.give(name, arguments);
        let (arguments, socket) = match &given {
            Some((arguments, socket)) => (arguments.as_slice(), Some(*socket)),
            None => (arguments, None),
        };
        // One that is gone meanwhile keeps no guest from its link.
        let program = self.programs.get(name).filter(|program| program.exists());
        let mut command = Command::new(program.map_or(Path::new(PROGRAM), PathBuf::as_path));
        command
            .arg(format!("--supervisor={}", std::process::id()))
            .arg(format!("--link-name={name}"))
            .args(arguments);
        let process = launch(
            &mut command,
            &self.folder,
            (socket, out),
            (&mut self.next, epoll),
        )?;
        let id = process.child.id();
        self.running.insert(name.to_owned(), process);
        Ok(id)
    }

    /// Starts a process of this program, or of the one that is now where this one was, that is
    /// to take a link over, and has the one that runs hand it over. It says how that went as
    /// the answer to [`Question::TakenOver`].
    ///
    /// # Errors
    /// The link has no process, or has another successor already; or the system refuses.
    pub(super) fn succeed(
        &mut self,
        name: &str,
        arguments: &[OsString],
        program: PathBuf,
        epoll: &Epoll,
    ) -> io::Result<()> {
        if self.successors.contains_key(name) {
            return Err(io::Error::other(
                "another process is taking it over already",
            ));
        }
        let (theirs, successors) = Stream::pair()?;
        let mut command = Command::new(&program);
        command
            .arg(format!("--supervisor={}", std::process::id()))
            .arg(format!("--link-name={name}"))
            .arg(format!("--take-over={}", successors.as_fd().as_raw_fd()))
            .args(arguments);
        let socket = Some(successors.as_fd());
        let watch = (&mut self.next, epoll);
        let mut process = launch(&mut command, &self.folder, (socket, None), watch)?;
        let old = self.running.get_mut(name).and_then(|it| it.line.as_mut());
        let asks = old.is_some_and(|line| line.ask_with(Question::HandOver, theirs.as_fd()));
        let new = process.line.as_mut();
        let asks = asks && new.is_some_and(|line| line.ask(Question::TakenOver));
        if !asks {
            let _ = process.child.kill();
            let _ = process.child.wait();
            process.forget(epoll);
            return Err(io::Error::other("its process cannot be asked"));
        }
        process.program = Some(program);
        self.successors.insert(name.to_owned(), process);
        Ok(())
    }

    /// The successor has the link: it is the link's process from now on. Its number.
    pub(super) fn swap(&mut self, name: &str, epoll: &Epoll, now: Instant) -> Option<u32> {
        let mut process = self.successors.remove(name)?;
        let id = process.child.id();
        if let Some(program) = process.program.take() {
            self.programs.insert(name.to_owned(), program);
        }
        if let Some(mut old) = self.running.insert(name.to_owned(), process) {
            // Nothing that it says counts any more.
            if let Some(line) = old.line.take() {
                let _ = epoll.delete(&line);
            }
            self.leaving.push((now + LEAVING, old));
        }
        Some(id)
    }

    /// Ends the process that is to take a link over, if there is one.
    pub(super) fn kill_successor(&self, name: &str) {
        if let Some(process) = self.successors.get(name) {
            let _ = pidfd_send_signal(&process.end, Signal::KILL);
        }
    }

    /// The link whose successor this token is of, and how it ended, if it has.
    pub(super) fn successor_ended(&mut self, token: u64, epoll: &Epoll) -> Option<(String, End)> {
        let found = self.successors.iter_mut().find(|(_, it)| it.token == token);
        let (name, process) = found?;
        let (name, status) = (name.clone(), process.child.try_wait().ok()??);
        self.successors.remove(&name)?.forget(epoll);
        Some((name, end(status)))
    }

    /// A process that handed its link over, and has this token, may have ended.
    pub(super) fn left(&mut self, token: u64, epoll: &Epoll) {
        let ended = |(_, it): &mut (Instant, Process)| {
            it.token == token && it.child.try_wait().is_ok_and(|status| status.is_some())
        };
        for (_, process) in self.leaving.extract_if(.., ended) {
            process.forget(epoll);
        }
    }

    /// When the next of those that handed their link over has had long enough.
    pub(super) fn leaving_due(&self) -> Option<Instant> {
        self.leaving.iter().map(|(due, _)| *due).min()
    }

    /// Ends those that handed their link over and had long enough to end by themselves.
    pub(super) fn end_late_leavers(&mut self, now: Instant) {
        for (due, process) in &mut self.leaving {
            if *due <= now {
                let _ = pidfd_send_signal(&process.end, Signal::KILL);
                *due = now + LEAVING;
            }
        }
    }

    /// What the successor says whose line or end has this token, if one has: its last words come
    /// before its end.
    pub(super) fn heard_of_successor(&mut self, token: u64) -> Option<(String, Vec<Heard>)> {
        let mut successors = self.successors.iter_mut();
        let found = successors.find(|(_, it)| it.token == token || it.token + 1 == token);
        let (name, process) = found?;
        match process.line.as_mut()?.hear() {
            Ok(heard) => Some((name.clone(), heard)),
            Err(_) => {
                // It ends, or is ended once it took too long.
                let _ = pidfd_send_signal(&process.end, Signal::KILL);
                None
            }
        }
    }

    /// Sends a signal to a link's process.
    pub fn signal(&self, name: &str, signal: Signal) {
        let all = [self.running.get(name), self.successors.get(name)];
        for process in all.into_iter().flatten() {
            // One that has ended meanwhile does not need it.
            let _ = pidfd_send_signal(&process.end, signal);
        }
    }

    /// The link whose process this token is of, and how it ended, if it has.
    pub fn ended(&mut self, token: u64, epoll: &Epoll) -> Option<(String, End)> {
        let found = self.running.iter().find(|(_, it)| it.token == token);
        let name = found?.0.clone();
        let process = self.running.get_mut(&name)?;
        let status = process.child.try_wait().ok()??;
        self.running.remove(&name)?.forget(epoll);
        Some((name, end(status)))
    }

    /// Asks a link's process; whether an answer may come.
    pub(super) fn ask(&mut self, name: &str, question: Question) -> bool {
        let process = self.running.get_mut(name);
        let line = process.and_then(|process| process.line.as_mut());
        line.is_some_and(|line| line.ask(question))
    }

    /// What the link says whose line has this token, if one has. One that says what makes
    /// no sense is not heard any more, and its watchdog ends it.
    pub(super) fn heard(&mut self, token: u64, epoll: &Epoll) -> Option<(String, Vec<Heard>)> {
        let found = self
            .running
            .iter_mut()
            .find(|(_, it)| it.token + 1 == token);
        let (name, process) = found?;
        match process.line.as_mut()?.hear() {
            Ok(heard) => Some((name.clone(), heard)),
            Err(error) => {
                tracing::debug!("link {name}: nothing more is heard of it: {error}");
                if let Some(line) = process.line.take() {
                    let _ = epoll.delete(&line);
                }
                None
            }
        }
    }

    /// The number of a link's process.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.running.get(name).map(|process| process.child.id())
    }
}

impl Process {
    /// Its descriptors are not watched any more.
    fn forget(self, epoll: &Epoll) {
        let _ = epoll.delete(&self.end);
        if let Some(line) = self.line {
            let _ = epoll.delete(&line);
        }
    }
}

/// Starts a process of a link in this folder, with a socket that it inherits and where its
/// standard output goes; tokens of what is watched begin at `next`.
fn launch(
    command: &mut Command,
    folder: &Path,
    (socket, out): (Option<BorrowedFd>, Option<OwnedFd>),
    (next, epoll): (&mut u64, &Epoll),
) -> io::Result<Process> {
    fault::point(Site::Fd).map_err(io::Error::other)?;
    let (line, theirs) = Line::new()?;
    fault::point(Site::Fd).map_err(io::Error::other)?;
    command
        .current_dir(folder)
        .stdin(Stdio::from(theirs))
        .stdout(out.map_or_else(Stdio::null, Stdio::from))
        // What a terminal sends is for the supervisor, which ends links in order.
        .process_group(0);
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    let mut child = spawn(command, socket)?;
    let watched = fault::point(Site::Fd).map_err(io::Error::other);
    let watched = watched.and_then(|()| watch(&child, &line, next, epoll));
    match watched {
        Ok((end, token)) => Ok(Process {
            child,
            end,
            token,
            line: Some(line),
            program: None,
        }),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(error)
        }
    }
}

fn watch(child: &Child, line: &Line, next: &mut u64, epoll: &Epoll) -> io::Result<(OwnedFd, u64)> {
    let end = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let token = *next;
    epoll.add(&end, token, Interest::READ)?;
    epoll.add(line, token + 1, Interest::READ)?;
    *next += 2;
    Ok((end, token))
}

/// The program that is now where this process's was when it started.
pub(super) fn installed() -> PathBuf {
    let Ok(path) = std::env::current_exe() else {
        return PROGRAM.into();
    };
    // What the kernel says of a file that has another in its place.
    let bytes = path.as_os_str().as_bytes();
    match bytes.strip_suffix(b" (deleted)") {
        Some(name) => OsStr::from_bytes(name).into(),
        None => path,
    }
}

/// Starts a process that inherits this socket. Nobody else in this one starts processes.
fn spawn(command: &mut Command, socket: Option<BorrowedFd<'_>>) -> io::Result<Child> {
    let Some(socket) = socket else {
        return command.spawn();
    };
    fcntl_setfd(socket, FdFlags::empty())?;
    let child = command.spawn();
    fcntl_setfd(socket, FdFlags::CLOEXEC)?;
    child
}

fn end(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Status(code),
        (None, signal) => End::Signal(signal.unwrap_or(0)),
    }
}

/// In a link's process: it ends in order when its supervisor is gone, so that the next one
/// finds sockets and images free.
///
/// # Errors
/// The supervisor is gone already.
pub(crate) fn follow(supervisor: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have ended before that.
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if supervisor == parent {
        return Ok(());
    }
    Err(io::Error::other("the supervisor of this link is gone"))
}
