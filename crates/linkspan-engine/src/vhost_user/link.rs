//! A device driven over vhost-user: the front end's connection, and the link
//! that lives on when the back end dies and another one takes its place.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_sys::thread::spawn;
use linkspan_sys::{EventFd, Stream, mapping};
use linkspan_vhost::frontend::{Frontend, Misfit, Negotiated, QueueUnit, Wish, WishError};
use linkspan_vhost::message::Request;
use linkspan_vhost::{ProtocolFeatures, frontend};
use linkspan_virtio::Features;

use super::frontend::{FrontendSession, Kept};
use super::reach::{PAUSE_MIN, Reach, Source, wait_a_while};
use crate::config_space::ConfigSpace;
use crate::driver::{DriverMemory, QueueHandle};
use crate::endpoint::{Endpoint, Phase};
use crate::limit::{LogLimit, chain};
use crate::link::Link;
use crate::queues::Queues;
use crate::session::{End, run_until};

/// How long a back end may take for one command of bring-up. Draining a ring that
/// an earlier front end left takes the longest.
const STEP_LIMIT: Duration = Duration::from_secs(30);

/// The least that a back end gets to say what it can.
const NEGOTIATION_MIN: Duration = Duration::from_secs(1);

/// What is wanted of a back end.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// Its socket, and who listens there.
    pub reach: Reach,
    /// How long the first back end may take to appear, and once more to say what
    /// it can, for which it has a second at least. Later ones may take as long as
    /// they like to appear.
    pub connect_limit: Duration,
    /// Queues to use, at least 1.
    pub queues: u16,
    /// What the back end counts when it says how many it has.
    pub queue_unit: QueueUnit,
    /// Features that the driver has: those of the device type and of its queues.
    pub features: Features,
    /// Features without which it does not work.
    pub required: Features,
    /// Protocol features to use if they are offered, beside those that every link
    /// uses: queues, acknowledgements and memory slots.
    pub protocol_features: ProtocolFeatures,
    /// Protocol features without which it does not work.
    pub required_protocol_features: ProtocolFeatures,
    /// Bytes of configuration space to read, where
    /// `VHOST_USER_PROTOCOL_F_CONFIG` is used.
    pub config_size: u32,
}

/// Why a device cannot be driven.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Nobody serves at the path, or nobody connected to it.
    #[error("{path}: no back end answers", path = path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why the last attempt failed.
        source: io::Error,
    },
    /// Back ends cannot connect to us.
    #[error("{path}: cannot listen", path = path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The wish makes no sense.
    #[error(transparent)]
    Wish(#[from] WishError),
    /// The back end broke the protocol, or does not fit.
    #[error("the back end cannot be used")]
    Protocol(#[from] frontend::Error),
    /// The back end refused a step.
    #[error("the back end refused {} with {code}", .request.message().name)]
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
    #[error("the back end does not answer{}", to(*.awaited))]
    Silent {
        /// The message that it does not answer.
        awaited: Option<Request>,
    },
    /// We were asked to end.
    #[error("stopped")]
    Cancelled,
    /// More descriptors with a message than any message has.
    #[error("the back end sent {count} descriptors with one message")]
    TooManyFds {
        /// How many came, as far as the system told.
        count: usize,
    },
    /// What the back end gave for requests in flight is no memory.
    #[error("the in-flight region of the back end: {0}")]
    Inflight(#[from] mapping::Error),
    /// A resource cannot be had.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

fn to(awaited: Option<Request>) -> String {
    awaited.map_or_else(String::new, |request| {
        format!(" {}", request.message().name)
    })
}

impl LinkError {
    /// Whether the back end is to blame, or unfit: it was reached.
    pub fn is_peer(&self) -> bool {
        matches!(
            self,
            Self::Protocol(_) | Self::Refused { .. } | Self::TooManyFds { .. } | Self::Inflight(_)
        )
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
    source: Source,
    session: FrontendSession,
    stream: Stream,
    cancel: Arc<EventFd>,
    step_limit: Duration,
}

impl Connection {
    /// Connects, or lets the back end connect, and negotiates. `cancel` ends the wait, and later the link.
    ///
    /// # Errors
    /// When no back end appears in time, or it does not fit.
    pub fn open(options: LinkOptions, cancel: Arc<EventFd>) -> Result<Self, LinkError> {
        let core = Frontend::new(wish(&options))?;
        let deadline = Instant::now() + options.connect_limit;
        let source = Source::open(&options.reach)?;
        let stream = source.next(&cancel, Some(deadline))?;
        let mut session = FrontendSession::new(core, STEP_LIMIT);
        let limit = options.connect_limit.max(NEGOTIATION_MIN);
        session.finish(&stream, &cancel, limit)?;
        Ok(Self {
            options,
            source,
            session,
            stream,
            cancel,
            step_limit: STEP_LIMIT,
        })
    }

    /// How long a back end may take for one command of bring-up, from now on:
    /// half a minute unless this says something else.
    #[must_use]
    pub fn with_step_limit(mut self, limit: Duration) -> Self {
        self.step_limit = limit;
        self
    }

    /// What the negotiation came to.
    ///
    /// # Panics
    /// Never: a connection is negotiated.
    pub fn negotiated(&self) -> &Negotiated {
        let negotiated = self.session.core.negotiated();
        negotiated.expect("a connection is negotiated")
    }

    /// Wishes for so many queues instead, and gives up these features: what the
    /// configuration space of the device says may decide about both.
    ///
    /// # Errors
    /// When the back end has fewer queues.
    pub fn revise(&mut self, queues: u16, without: Features) -> Result<(), LinkError> {
        let revised = self.session.core.revise(queues, without.bits());
        revised.map_err(frontend::Error::Misfit)?;
        self.options.queues = queues;
        self.options.features.remove(without);
        Ok(())
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
        let no_descriptor = |source| LinkError::System {
            what: "no descriptor can be had",
            source,
        };
        let queues = Queues::new(memory, queues).map_err(no_descriptor)?;
        let rings = queues.all();
        self.session.kept.queues = Some(queues);
        self.session.set_up()?;
        self.session.start(rings);
        self.session
            .finish(&self.stream, &self.cancel, self.step_limit)?;
        let config = ConfigSpace::new(self.session.config().to_vec()).map_err(no_descriptor)?;
        let config = Arc::new(config);
        self.session.kept.config = Some(Arc::clone(&config));
        let endpoint = Arc::new(Endpoint::default());
        endpoint.begin();
        endpoint.enter(Phase::Running);
        let cancel = Arc::clone(&self.cancel);
        let thread = spawn("link", {
            let endpoint = Arc::clone(&endpoint);
            move || keep_alive(self, &endpoint)
        })
        .map_err(|source| LinkError::System {
            what: "the link's thread cannot be started",
            source,
        })?;
        Ok(Link {
            cancel,
            endpoint,
            config,
            thread: Some(thread),
        })
    }
}

/// Watches the connection, and gets another one whenever it is lost.
fn keep_alive(connection: Connection, endpoint: &Endpoint) {
    let Connection {
        options,
        source,
        mut session,
        mut stream,
        cancel,
        step_limit,
    } = connection;
    let again = Again {
        options,
        source,
        cancel,
        step_limit,
    };
    let (mut losses, mut unfit) = (LogLimit::default(), LogLimit::default());
    let mut pause = PAUSE_MIN;
    loop {
        let mut end = run_until(&mut session, &stream, &again.cancel, None, |session| {
            session.runs()
        });
        if matches!(end, End::Reached) {
            if endpoint.phase() != Phase::Running {
                endpoint.enter(Phase::Running);
                tracing::info!("the back end is back");
            }
            pause = PAUSE_MIN;
            end = run_until(&mut session, &stream, &again.cancel, None, |_| false);
        }
        let reason = match end {
            End::Cancelled => break,
            other => LinkError::of(other, &session),
        };
        if let Some(more) = losses.allow() {
            tracing::warn!(
                more,
                "the back end is lost: {}; reconnecting",
                chain(&reason)
            );
        }
        drop(stream);
        endpoint.enter(Phase::Reconnecting);
        session.lost();
        // A back end that leaves at once must not keep us busy.
        if !wait_a_while(&again.cancel, &mut pause) {
            break;
        }
        match again.reconnect(session, endpoint, &mut pause, &mut unfit) {
            Some(next) => (session, stream) = next,
            None => break,
        }
    }
    endpoint.enter(Phase::Stopped);
}

/// What every attempt at another connection needs.
struct Again {
    options: LinkOptions,
    source: Source,
    cancel: Arc<EventFd>,
    step_limit: Duration,
}

impl Again {
    /// Tries until there is a back end that fits; `None` when we are to end. Its
    /// rings are started as their queues park.
    fn reconnect(
        &self,
        mut old: FrontendSession,
        endpoint: &Endpoint,
        pause: &mut Duration,
        unfit: &mut LogLimit,
    ) -> Option<(FrontendSession, Stream)> {
        let saved = old.core.saved();
        let mut kept = std::mem::take(&mut old.kept);
        loop {
            let stream = self.source.next(&self.cancel, None).ok()?;
            endpoint.begin();
            let core = match saved.clone() {
                Some(saved) => Frontend::resume(wish(&self.options), saved),
                None => Frontend::new(wish(&self.options)),
            };
            let mut session = FrontendSession::new(core.ok()?, self.step_limit);
            session.kept = kept;
            match self.bring_up(&mut session, &stream) {
                Ok(()) => {
                    endpoint.enter(Phase::Ready);
                    return Some((session, stream));
                }
                Err(LinkError::Cancelled) => return None,
                Err(error) => {
                    if let Some(more) = unfit.allow() {
                        tracing::warn!(more, "a back end that does not do: {}", chain(&error));
                    }
                    kept = std::mem::take(&mut session.kept);
                    endpoint.enter(Phase::Reconnecting);
                    // It need not wait with us.
                    drop((session, stream));
                    if !wait_a_while(&self.cancel, pause) {
                        return None;
                    }
                }
            }
        }
    }

    /// Negotiates and sets up what all rings need.
    fn bring_up(&self, session: &mut FrontendSession, stream: &Stream) -> Result<(), LinkError> {
        let Kept {
            queues, inflight, ..
        } = &mut session.kept;
        if let Some(queues) = queues {
            // A region that no ring was started with says nothing.
            if queues.nothing_is_known() {
                *inflight = None;
            }
            if inflight.is_none() {
                queues.forget();
            }
        }
        session.finish(stream, &self.cancel, self.step_limit)?;
        session.set_up()?;
        session.finish(stream, &self.cancel, self.step_limit)?;
        session.serve()
    }
}

fn wish(options: &LinkOptions) -> Wish {
    Wish {
        features: options.features.bits(),
        required_features: options.required.bits(),
        protocol_features: ProtocolFeatures::MQ
            | ProtocolFeatures::REPLY_ACK
            | ProtocolFeatures::BACKEND_REQ
            | ProtocolFeatures::CONFIGURE_MEM_SLOTS
            | options.protocol_features,
        required_protocol_features: options.required_protocol_features,
        queues: options.queues,
        queue_unit: options.queue_unit,
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
            End::TooManyFds { count } => Self::TooManyFds { count },
        }
    }
}
