//! Who connects to what is served: one peer at a time, the next one after each
//! disconnect, until it is stopped.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::socket::Inherited;
use linkspan_sys::{EventFd, Listener, Stream};

use crate::endpoint::{Endpoint, Phase};
use crate::limit::chain;
use crate::session::{self, End, NotQuiet, Session};

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
    /// This process took the link over from another one, with its front end if one is there.
    TakenOver {
        /// How many front ends there have been.
        generation: u32,
        /// For how long its rings were stopped; none if no front end was there.
        pause: Option<Duration>,
    },
    /// Another process has the link now.
    HandedOver,
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

/// How a session ended: why, and whether something was wrong.
pub(crate) type Ending = (String, bool);

/// Runs a session with whoever is at the other end, and says how it ended.
pub(crate) fn run_one<S: Session>(
    session: io::Result<S>,
    stream: &Stream,
    cancel: &EventFd,
) -> Result<Ending, NotQuiet> {
    match session {
        Ok(mut session) => Ok(describe(session::run(&mut session, stream, cancel)?)),
        Err(error) => Ok((format!("no session could be set up: {error}"), true)),
    }
}

/// Serves each that connects, one after the other: `one` is its session.
pub(crate) fn run(
    mut source: Source,
    one: &mut dyn FnMut(&Stream) -> Result<Ending, NotQuiet>,
    cancel: &EventFd,
    endpoint: &Endpoint,
    report: &dyn Fn(Event),
) -> Result<(), NotQuiet> {
    report(Event::Listening);
    while let Came::Peer(stream) = source.next(cancel) {
        let generation = endpoint.begin();
        report(Event::Connected { generation });
        let (reason, fault) = one(&stream)?;
        endpoint.lose(fault.then_some(reason.as_str()));
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
pub(crate) enum Source {
    /// They connect.
    Listener(Listener),
    /// There is one, connected already.
    Stream(Option<Stream>),
    /// One listens here.
    Path(PathBuf),
}

/// What a wait for the next peer came to.
pub(crate) enum Came {
    /// It is connected.
    Peer(Stream),
    /// Somebody has a word with the server.
    Word,
    /// Nobody will come any more.
    Nobody,
}

impl Source {
    /// The next peer, once there is one.
    pub(crate) fn next(&mut self, cancel: &EventFd) -> Came {
        match self {
            Self::Listener(listener) => next_connection(listener, cancel),
            Self::Stream(stream) => stream.take().map_or(Came::Nobody, Came::Peer),
            Self::Path(path) => connection_to(path, cancel),
        }
    }

    /// What peers connect to, if they do.
    pub(crate) fn listener(&self) -> Option<&Listener> {
        match self {
            Self::Listener(listener) => Some(listener),
            Self::Stream(_) | Self::Path(_) => None,
        }
    }
}

impl From<Inherited> for Source {
    fn from(inherited: Inherited) -> Self {
        match inherited {
            Inherited::Listener(listener) => Self::Listener(listener),
            Inherited::Stream(stream) => Self::Stream(Some(stream)),
        }
    }
}

/// Tries to connect until there is a front end; or a word.
fn connection_to(path: &Path, cancel: &EventFd) -> Came {
    let mut pause = CONNECT_PAUSE;
    loop {
        // Before the first attempt too: one that closes at once is not asked at once.
        let deadline = Instant::now() + pause;
        match wait_for(cancel.as_fd(), Direction::Read, None, Some(deadline)) {
            Ok(Wake::Ready) => return Came::Word,
            Ok(_) => {}
            Err(error) => {
                tracing::error!("waiting for a front end failed: {error}");
                return Came::Nobody;
            }
        }
        match Stream::connect(path) {
            Ok(stream) => return Came::Peer(stream),
            Err(error) => tracing::debug!("nobody at {}: {error}", path.display()),
        }
        pause = (2 * pause).min(CONNECT_PAUSE_MAX);
    }
}

/// Waits for a front end; or a word.
fn next_connection(listener: &Listener, cancel: &EventFd) -> Came {
    loop {
        let deadline = None;
        match wait_for(
            listener.as_fd(),
            Direction::Read,
            Some(cancel.as_fd()),
            deadline,
        ) {
            Ok(Wake::Cancelled) => return Came::Word,
            Ok(_) => match listener.accept() {
                Ok(stream) => return Came::Peer(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Out of descriptors, most likely: others may give some back.
                    tracing::warn!("a front end could not be accepted: {error}");
                    let deadline = Instant::now() + ACCEPT_PAUSE;
                    let paused = wait_for(cancel.as_fd(), Direction::Read, None, Some(deadline));
                    if matches!(paused, Ok(Wake::Ready)) {
                        return Came::Word;
                    }
                }
            },
            Err(error) => {
                tracing::error!("waiting for a front end failed: {error}");
                return Came::Nobody;
            }
        }
    }
}

/// How a session ended, in words; whether something was wrong.
pub(crate) fn describe<E: std::error::Error>(end: End<E>) -> (String, bool) {
    match end {
        End::PeerClosed => ("the front end closed the connection".into(), false),
        End::Cancelled => ("stopped".into(), false),
        End::Reached | End::Late => unreachable!("nothing else was waited for"),
        End::Failed(error) => (chain(&error), true),
        End::Socket(error) => (format!("the socket failed: {error}"), true),
        End::TooManyFds { count } => (format!("{count} descriptors came with one message"), true),
    }
}
