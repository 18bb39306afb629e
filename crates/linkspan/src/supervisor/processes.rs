//! The processes of links: started, told to end, and their ends heard of.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use linkspan_mem::fault::{self, Site};
use linkspan_sys::Epoll;
use linkspan_sys::poll::Interest;
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

/// Processes of links, one each at most.
#[derive(Debug)]
pub struct Processes {
    /// Where relative paths of links begin.
    folder: PathBuf,
    running: BTreeMap<String, Process>,
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
}

impl Processes {
    /// None yet; tokens from `first` on. Links with a socket here get it.
    pub fn new(folder: &Path, first: u64, sockets: Sockets) -> Self {
        Self {
            folder: folder.to_owned(),
            running: BTreeMap::new(),
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
        fault::point(Site::Fd).map_err(io::Error::other)?;
        let (line, theirs) = Line::new()?;
        fault::point(Site::Fd).map_err(io::Error::other)?;
        let given = self.sockets.give(name, arguments);
        let (arguments, socket) = match &given {
            Some((arguments, socket)) => (arguments.as_slice(), Some(*socket)),
            None => (arguments, None),
        };
        let mut command = Command::new(PROGRAM);
        command
            .arg(format!("--supervisor={}", std::process::id()))
            .arg(format!("--link-name={name}"))
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::from(theirs))
            .stdout(out.map_or_else(Stdio::null, Stdio::from))
            // What a terminal sends is for the supervisor, which ends links in order.
            .process_group(0);
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        let mut child = spawn(&mut command, socket)?;
        let watched = fault::point(Site::Fd).map_err(io::Error::other);
        let watched = watched.and_then(|()| self.watch(&child, &line, epoll));
        match watched {
            Ok((end, token)) => {
                let id = child.id();
                let line = Some(line);
                let process = Process {
                    child,
                    end,
                    token,
                    line,
                };
                self.running.insert(name.to_owned(), process);
                Ok(id)
            }
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    fn watch(&mut self, child: &Child, line: &Line, epoll: &Epoll) -> io::Result<(OwnedFd, u64)> {
        let end = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let token = self.next;
        epoll.add(&end, token, Interest::READ)?;
        epoll.add(line, token + 1, Interest::READ)?;
        self.next += 2;
        Ok((end, token))
    }

    /// Sends a signal to a link's process.
    pub fn signal(&self, name: &str, signal: Signal) {
        if let Some(process) = self.running.get(name) {
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
        let process = self.running.remove(&name)?;
        // Its descriptor goes with it.
        let _ = epoll.delete(&process.end);
        if let Some(line) = process.line {
            let _ = epoll.delete(&line);
        }
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
