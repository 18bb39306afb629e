//! A device driven over vhost-user: the front end's connection, and the link
//! that lives on when the back end dies and another one takes its place.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::thread::spawn;
use linkspan_sys::{EventFd, Stream};
use linkspan_vhost::frontend::{Frontend, Misfit, Negotiated, QueueUnit, Wish, WishError};
use linkspan_vhost::message::Request;
use linkspan_vhost::{ProtocolFeatures, frontend};
use linkspan_virtio::Features;

use super::frontend::FrontendSession;
use super::server::chain;
use crate::driver::{DriverMemory, QueueHandle, Resumed};
use crate::endpoint::{Endpoint, Phase};
use crate::limit::LogLimit;
use crate::session::{End, run_until};
use crate::worker::signal;

/// Pauses between attempts to reach a back end: they grow from the first to the
/// last, and go on for ever.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What is wanted of a back end.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// Its socket.
    pub path: PathBuf,
    /// How long the first back end may take to appear. Later ones may take as
    /// long as they like.
    pub connect_limit: Duration,
    /// Queues to use, at least 1.
    pub queues: u16,
    /// Features that the driver has: those of the device type and of its queues.
    pub features: Features,
    /// Features without which it does not work.
    pub required: Features,
    /// Bytes of configuration space to read.
    pub config_size: u32,
}

/// Why a device cannot be driven.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Nobody serves at the path.
    #[error("{path}: no back end answers", path = path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why the last attempt failed.
        source: io::Error,
    },
    /// The wish makes no sense.
    #[error(transparent)]
    Wish(#[from] WishError),
    /// The back end broke the protocol, or does not fit.
    #[error("the back end cannot be used")]
    Protocol(#[from] frontend::Error),
    /// The back end refused a step.
    #[error("the back end refused {request:?} with {code}")]
    Refused {
        /// The step.
        request: Request,
        /// What it said.
        code: u64,
    },
    /// The back end closed the connection before all was set up.
    #[error("the back end closed the connection")]
    Closed,
    /// The back end does not answer.
    #[error("the back end does not answer (waiting for {awaited:?})")]
    Silent {
        /// The message that it does not answer.
        awaited: Option<Request>,
    },
    /// We were asked to end.
    #[error("stopped")]
    Cancelled,
    /// A resource cannot be had.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl LinkError {
    /// Whether the back end is to blame, or unfit: it was reached.
    pub fn is_peer(&self) -> bool {
        matches!(self, Self::Protocol(_) | Self::Refused { .. })
    }

    /// What does not fit, if that is the reason.
    pub fn misfit(&self) -> Option<Misfit> {
        match self {
            Self::Protocol(frontend::Error::Misfit(misfit)) => Some(*misfit),
            _ => None,
        }
    }
}

/// A negotiated connection of which no ring runs yet.
pub struct Connection {
    options: LinkOptions,
    session: FrontendSession,
    stream: Stream,
    cancel: Arc<EventFd>,
}

impl Connection {
    /// Connects and negotiates. `cancel` ends the wait, and later the link.
    ///
    /// # Errors
    /// When no back end appears in time, or it does not fit.
    pub fn open(options: LinkOptions, cancel: Arc<EventFd>) -> Result<Self, LinkError> {
        let core = Frontend::new(wish(&options))?;
        let deadline = Instant::now() + options.connect_limit;
        let stream = connect(&options, &cancel, Some(deadline))?;
        let mut session = FrontendSession::new(core);
        session.advance_to(&stream, &cancel, FrontendSession::is_idle)?;
        Ok(Self {
            options,
            session,
            stream,
            cancel,
        })
    }

    /// What the negotiation came to.
    ///
    /// # Panics
    /// Never: a connection is negotiated.
    pub fn negotiated(&self) -> &Negotiated {
        let negotiated = self.session.core.negotiated();
        negotiated.expect("a connection is negotiated")
    }

    /// Shares the memory and starts one ring for each queue: all or none. From
    /// then on the link keeps them running, on whatever back end there is.
    ///
    /// # Errors
    /// When the back end refuses, or a thread cannot be had.
    pub fn start(
        mut self,
        memory: Arc<DriverMemory>,
        queues: Vec<QueueHandle>,
    ) -> Result<Link, LinkError> {
        self.session.memory = Some(Arc::clone(&memory));
        self.session.events = queues.iter().map(|queue| queue.events.clone()).collect();
        self.session.script(Resumed::Fresh);
        self.session
            .advance_to(&self.stream, &self.cancel, FrontendSession::is_idle)?;
        let endpoint = Arc::new(Endpoint::default());
        endpoint.begin();
        endpoint.enter(Phase::Running);
        let cancel = Arc::clone(&self.cancel);
        let thread = spawn("link", {
            let endpoint = Arc::clone(&endpoint);
            move || keep_alive(self, &memory, &queues, &endpoint)
        })
        .map_err(|source| LinkError::System {
            what: "the link's thread cannot be started",
            source,
        })?;
        Ok(Link {
            cancel,
            endpoint,
            thread: Some(thread),
        })
    }
}

/// A device that is driven over vhost-user. Dropping it ends the link.
#[derive(Debug)]
pub struct Link {
    cancel: Arc<EventFd>,
    endpoint: Arc<Endpoint>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// The endpoint, to look at.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        signal(&self.cancel);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the link's thread panicked");
        }
    }
}

/// Watches the connection, and gets another one whenever it is lost.
fn keep_alive(
    connection: Connection,
    memory: &Arc<DriverMemory>,
    queues: &[QueueHandle],
    endpoint: &Endpoint,
) {
    let Connection {
        options,
        mut session,
        mut stream,
        cancel,
    } = connection;
    let mut log = LogLimit::default();
    loop {
        let end = run_until(&mut session, &stream, &cancel, None, |_| false);
        let reason = match end {
            End::Cancelled => break,
            other => LinkError::of(other, &session),
        };
        if let Some(more) = log.allow() {
            tracing::warn!(
                more,
                "the back end is lost: {}; reconnecting",
                chain(&reason)
            );
        }
        drop(stream);
        endpoint.enter(Phase::Reconnecting);
        for queue in queues {
            queue.lost();
        }
        // A queue whose driver is done touches its ring no more either.
        let in_use = queues.iter().filter(|queue| queue.wait_parked()).count();
        if in_use == 0 {
            break;
        }
        match reconnect(&options, session, memory, &cancel, endpoint, &mut log) {
            Some((next_session, next_stream, resumed)) => {
                (session, stream) = (next_session, next_stream);
                endpoint.enter(Phase::Running);
                tracing::info!("the back end is back");
                for queue in queues {
                    queue.resumed(resumed);
                }
            }
            None => break,
        }
    }
    endpoint.enter(Phase::Stopped);
}

/// Tries until there is a back end that fits; `None` when we are to end.
fn reconnect(
    options: &LinkOptions,
    old: FrontendSession,
    memory: &Arc<DriverMemory>,
    cancel: &EventFd,
    endpoint: &Endpoint,
    log: &mut LogLimit,
) -> Option<(FrontendSession, Stream, Resumed)> {
    let saved = old.core.saved();
    let FrontendSession {
        mut inflight,
        events,
        ..
    } = old;
    let mut pause = PAUSE_MIN;
    loop {
        let stream = connect(options, cancel, None).ok()?;
        endpoint.begin();
        let core = match saved.clone() {
            Some(saved) => Frontend::resume(wish(options), saved),
            None => Frontend::new(wish(options)),
        };
        let mut session = FrontendSession::new(core.ok()?);
        session.memory = Some(Arc::clone(memory));
        session.events.clone_from(&events);
        session.inflight = inflight.take();
        let resumed = session.resumption();
        let tried = session
            .advance_to(&stream, cancel, FrontendSession::is_idle)
            .and_then(|()| {
                if resumed == Resumed::Fresh {
                    for ring in 0..options.queues {
                        memory.clear_ring(ring);
                    }
                }
                session.script(resumed);
                session.advance_to(&stream, cancel, FrontendSession::is_idle)
            });
        match tried {
            Ok(()) => return Some((session, stream, resumed)),
            Err(LinkError::Cancelled) => return None,
            Err(error) => {
                if let Some(more) = log.allow() {
                    tracing::warn!(more, "a back end that does not do: {}", chain(&error));
                }
                // Rings that were emptied without their queues knowing of it have
                // to begin anew: a region made for them would say that they go on.
                inflight = match resumed {
                    Resumed::Continued => session.inflight.take(),
                    Resumed::Fresh => None,
                };
                endpoint.enter(Phase::Reconnecting);
                if !wait_a_while(cancel, &mut pause) {
                    return None;
                }
            }
        }
    }
}

/// Connects, again and again with growing pauses until `deadline`.
fn connect(
    options: &LinkOptions,
    cancel: &EventFd,
    deadline: Option<Instant>,
) -> Result<Stream, LinkError> {
    let mut pause = PAUSE_MIN;
    loop {
        match Stream::connect(&options.path) {
            Ok(stream) => return Ok(stream),
            Err(source) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                let path = options.path.clone();
                return Err(LinkError::Unreachable { path, source });
            }
            Err(_) if wait_a_while(cancel, &mut pause) => {}
            Err(_) => return Err(LinkError::Cancelled),
        }
    }
}

/// Pauses, each time longer; false when we are to end.
fn wait_a_while(cancel: &EventFd, pause: &mut Duration) -> bool {
    let deadline = Instant::now() + *pause;
    *pause = (*pause * 2).min(PAUSE_MAX);
    let woken = wait_for(cancel.as_fd(), Direction::Read, None, Some(deadline));
    matches!(woken, Ok(Wake::Deadline))
}

fn wish(options: &LinkOptions) -> Wish {
    Wish {
        features: options.features.bits(),
        required_features: options.required.bits(),
        protocol_features: ProtocolFeatures::MQ
            | ProtocolFeatures::REPLY_ACK
            | ProtocolFeatures::CONFIG
            | ProtocolFeatures::INFLIGHT_SHMFD
            | ProtocolFeatures::CONFIGURE_MEM_SLOTS,
        required_protocol_features: ProtocolFeatures::empty(),
        queues: options.queues,
        queue_unit: QueueUnit::Rings,
        config_size: options.config_size,
        memory_slots: 1,
    }
}

impl LinkError {
    pub(super) fn of(end: End<Self>, session: &FrontendSession) -> Self {
        match end {
            End::Failed(error) => error,
            End::Cancelled => Self::Cancelled,
            End::PeerClosed | End::Reached => Self::Closed,
            End::Late => Self::Silent {
                awaited: session.core.awaited(),
            },
            End::Socket(source) => Self::System {
                what: "the socket failed",
                source,
            },
            End::TooManyFds { count } => Self::System {
                what: "the back end sent too many descriptors",
                source: io::Error::other(format!("{count} with one message")),
            },
        }
    }
}
