//! Serves a device on a socket: one front end at a time, the next one after
//! each disconnect, until it is stopped.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::socket::Inherited;
use linkspan_sys::{EventFd, Listener, Stream};

use super::session::BackendSession;
use crate::device::Device;
use crate::endpoint::{Endpoint, Phase};
use crate::limit::chain;
use crate::serving::{Common, Server};
use crate::session::{self, End, NotQuiet, Session};
use crate::vdpa::BridgedDevice;
use crate::worker::Workers;

/// How long to wait when the system has no descriptor for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long to wait between attempts to connect, at first and at most.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
const CONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What happens to a served link, for whoever tells people or programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Front ends can connect from now on.
    Listening,
    /// A front end connected.
    Connected {
        /// How many there have been.
        generation: u32,
    },
    /// It is gone.
    Ended {
        /// Which one.
        generation: u32,
        /// Why.
        reason: String,
        /// Whether something was wrong.
        fault: bool,
    },
}

/// Begins to serve a device. `report` is called on the server's thread.
///
/// # Errors
/// When a thread or descriptor cannot be had; nothing is left behind.
pub fn serve(
    source: Inherited,
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    report: impl Fn(Event) + Send + 'static,
) -> io::Result<Server> {
    let changes = device.config_changes();
    begin(source.into(), changes, served(device, workers), report)
}

/// Begins to pass a vDPA device on, as [`serve`] does a device of this process.
///
/// # Errors
/// As [`serve`].
pub fn bridge(
    source: Inherited,
    device: Arc<BridgedDevice>,
    report: impl Fn(Event) + Send + 'static,
) -> io::Result<Server> {
    let session = move |changes| device.session(changes);
    begin(source.into(), None, session, report)
}

/// Begins to serve a front end that listens at `path`, whenever there is one: it
/// is connected to again and again.
///
/// # Errors
/// As [`serve`].
pub fn connect(
    path: PathBuf,
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    report: impl Fn(Event) + Send + 'static,
) -> io::Result<Server> {
    let changes = device.config_changes();
    let source = Source::Path(path);
    begin(source, changes, served(device, workers), report)
}

fn begin<S: Session>(
    source: Source,
    changes: Option<Arc<EventFd>>,
    session: impl Fn(Arc<EventFd>) -> io::Result<S> + Send + 'static,
    report: impl Fn(Event) + Send + 'static,
) -> io::Result<Server> {
    let common = Common::new(changes)?;
    Server::start("vhost-user", common.clone(), move || {
        let open = || session(Arc::clone(&common.changes));
        run(source, &open, &common.cancel, &common.endpoint, &report)
    })
}

/// Sessions of a device of this process.
fn served(
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
) -> impl Fn(Arc<EventFd>) -> io::Result<BackendSession> + Send + 'static {
    move |changes| BackendSession::new(Arc::clone(&device), Arc::clone(&workers), changes)
}

fn run<S: Session>(
    mut source: Source,
    open: &dyn Fn() -> io::Result<S>,
    cancel: &EventFd,
    endpoint: &Endpoint,
    report: &dyn Fn(Event),
) -> Result<(), NotQuiet> {
    report(Event::Listening);
    let mut next = || match &mut source {
        Source::Listener(listener) => next_connection(listener, cancel),
        Source::Stream(stream) => stream.take(),
        Source::Path(path) => connection_to(path, cancel),
    };
    while let Some(stream) = next() {
        let generation = endpoint.begin();
        report(Event::Connected { generation });
        let (reason, fault) = match open() {
            Ok(mut session) => describe(session::run(&mut session, &stream, cancel)?),
            Err(error) => (format!("no session could be set up: {error}"), true),
        };
        endpoint.enter(Phase::Reconnecting);
        report(Event::Ended {
            generation,
            reason,
            fault,
        });
    }
    endpoint.enter(Phase::Stopped);
    Ok(())
}

/// Where front ends come from.
enum Source {
    /// They connect.
    Listener(Listener),
    /// There is one, connected already.
    Stream(Option<Stream>),
    /// One listens here.
    Path(PathBuf),
}

impl From<Inherited> for Source {
    fn from(inherited: Inherited) -> Self {
        match inherited {
            Inherited::Listener(listener) => Self::Listener(listener),
            Inherited::Stream(stream) => Self::Stream(Some(stream)),
        }
    }
}

/// Tries to connect until there is a front end; `None` when the server is to stop.
fn connection_to(path: &Path, cancel: &EventFd) -> Option<Stream> {
    let mut pause = CONNECT_PAUSE;
    loop {
        // Before the first attempt too: one that closes at once is not asked at once.
        let deadline = Instant::now() + pause;
        match wait_for(cancel.as_fd(), Direction::Read, None, Some(deadline)) {
            Ok(Wake::Ready) => return None,
            Ok(_) => {}
            Err(error) => {
                tracing::error!("waiting for a front end failed: {error}");
                return None;
            }
        }
        match Stream::connect(path) {
            Ok(stream) => return Some(stream),
            Err(error) => tracing::debug!("nobody at {}: {error}", path.display()),
        }
        pause = (2 * pause).min(CONNECT_PAUSE_MAX);
    }
}

/// Waits for a front end; `None` when the server is to stop.
fn next_connection(listener: &Listener, cancel: &EventFd) -> Option<Stream> {
    loop {
        let deadline = None;
        match wait_for(
            listener.as_fd(),
            Direction::Read,
            Some(cancel.as_fd()),
            deadline,
        ) {
            Ok(Wake::Cancelled) => return None,
            Ok(_) => match listener.accept() {
                Ok(stream) => return Some(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Out of descriptors, most likely: others may give some back.
                    tracing::warn!("a front end could not be accepted: {error}");
                    let deadline = Instant::now() + ACCEPT_PAUSE;
                    let paused = wait_for(cancel.as_fd(), Direction::Read, None, Some(deadline));
                    if matches!(paused, Ok(Wake::Ready)) {
                        return None;
                    }
                }
            },
            Err(error) => {
                tracing::error!("waiting for a front end failed: {error}");
                return None;
            }
        }
    }
}

fn describe<E: std::error::Error>(end: End<E>) -> (String, bool) {
    match end {
        End::PeerClosed => ("the front end closed the connection".into(), false),
        End::Cancelled => ("stopped".into(), false),
        End::Reached | End::Late => unreachable!("nothing else was waited for"),
        End::Failed(error) => (chain(&error), true),
        End::Socket(error) => (format!("the socket failed: {error}"), true),
        End::TooManyFds { count } => (format!("{count} descriptors came with one message"), true),
    }
}
