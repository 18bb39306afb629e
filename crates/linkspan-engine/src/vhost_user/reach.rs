//! How a front end comes by a connection: it connects, or back ends connect to it.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::{EventFd, Listener, Stream};

use super::link::LinkError;

/// Pauses between attempts to reach a back end: they grow from the first to the
/// last, and go on for ever.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Which of the two ends listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The back end listens at this path.
    Connect(PathBuf),
    /// We listen at this path, and the back end connects: QEMU and DPDK call such
    /// a back end a client.
    Listen(PathBuf),
}

impl Reach {
    /// The socket.
    pub fn path(&self) -> &Path {
        match self {
            Self::Connect(path) | Self::Listen(path) => path,
        }
    }
}

/// Where connections come from, one after the other.
#[derive(Debug)]
pub(super) enum Source {
    Path(PathBuf),
    /// The path goes away with it.
    Listener(Listener),
}

impl Source {
    /// # Errors
    /// When we cannot listen at the path.
    pub(super) fn open(reach: &Reach) -> Result<Self, LinkError> {
        match reach {
            Reach::Connect(path) => Ok(Self::Path(path.clone())),
            Reach::Listen(path) => match Listener::bind(path) {
                Ok(listener) => Ok(Self::Listener(listener)),
                Err(source) => Err(LinkError::Listen {
                    path: path.clone(),
                    source,
                }),
            },
        }
    }

    /// The next connection; with a `deadline` it must be there by then.
    pub(super) fn next(
        &self,
        cancel: &EventFd,
        deadline: Option<Instant>,
    ) -> Result<Stream, LinkError> {
        let is_over = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let mut pause = PAUSE_MIN;
        loop {
            let (path, attempt) = match self {
                Self::Path(path) => (path.as_path(), Stream::connect(path)),
                Self::Listener(listener) => {
                    let path = listener.path().unwrap_or(Path::new(""));
                    (path, accept(listener, cancel, deadline)?)
                }
            };
            match attempt {
                Ok(stream) => return Ok(stream),
                Err(source) if is_over() => {
                    let path = path.to_owned();
                    return Err(LinkError::Unreachable { path, source });
                }
                Err(_) if wait_a_while(cancel, &mut pause) => {}
                Err(_) => return Err(LinkError::Cancelled),
            }
        }
    }
}

/// Waits for a back end until `deadline` and takes its connection.
fn accept(
    listener: &Listener,
    cancel: &EventFd,
    deadline: Option<Instant>,
) -> Result<io::Result<Stream>, LinkError> {
    let stop = Some(cancel.as_fd());
    Ok(
        match wait_for(listener.as_fd(), Direction::Read, stop, deadline) {
            Ok(Wake::Cancelled) => return Err(LinkError::Cancelled),
            Ok(Wake::Deadline) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => listener.accept(),
            Err(error) => Err(error),
        },
    )
}

/// Pauses, each time longer; false when we are to end.
pub(super) fn wait_a_while(cancel: &EventFd, pause: &mut Duration) -> bool {
    let deadline = Instant::now() + *pause;
    *pause = (*pause * 2).min(PAUSE_MAX);
    let woken = wait_for(cancel.as_fd(), Direction::Read, None, Some(deadline));
    matches!(woken, Ok(Wake::Deadline))
}
