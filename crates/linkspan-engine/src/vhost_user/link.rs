//! A device driven over vhost-user: the front end's connection, and the link
//! that lives on when the back end dies and another one takes its place.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use linkspan_mem::UserVa;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::thread::spawn;
use linkspan_sys::{EventFd, Stream, reaper};
use linkspan_vhost::frontend::{
    Command, Effect, Event, FdId, FdSlot, Frontend, Inflight, Misfit, Negotiated, QueueUnit,
    RingStart, Wish, WishError,
};
use linkspan_vhost::message::Request;
use linkspan_vhost::{MemoryRegion, ProtocolFeatures, frontend};
use linkspan_virtio::Features;

use super::server::chain;
use crate::driver::{DriverMemory, QueueHandle, Resumed};
use crate::endpoint::{Endpoint, Phase};
use crate::limit::LogLimit;
use crate::session::{End, Outgoing, Session, run_until};
use crate::worker::signal;

/// How long a back end may take for one step of bring-up. Draining a ring that
/// an earlier front end left takes the longest.
const STEP_LIMIT: Duration = Duration::from_secs(30);

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
        if !queues.iter().all(QueueHandle::wait_parked) {
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
                inflight = session.inflight.take();
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

/// Descriptors of ours that messages carry.
const MEMORY_FD: FdId = FdId(0);
const INFLIGHT_FD: FdId = FdId(1);
const FIRST_EVENT_FD: u64 = 2;

fn kick_fd(ring: u16) -> FdId {
    FdId(FIRST_EVENT_FD + 2 * u64::from(ring))
}

fn call_fd(ring: u16) -> FdId {
    FdId(FIRST_EVENT_FD + 2 * u64::from(ring) + 1)
}

/// One connection of a front end: the protocol core with its descriptors, and
/// the commands that are still to be given.
struct FrontendSession {
    core: Frontend,
    commands: VecDeque<Command>,
    memory: Option<Arc<DriverMemory>>,
    events: Vec<crate::driver::QueueEvents>,
    inflight: Option<(Inflight, OwnedFd)>,
    /// Descriptors of the message that is being received, by position.
    fds: Vec<Option<OwnedFd>>,
    outgoing: VecDeque<Outgoing>,
}

impl FrontendSession {
    fn new(core: Frontend) -> Self {
        Self {
            core,
            commands: VecDeque::new(),
            memory: None,
            events: Vec::new(),
            inflight: None,
            fds: Vec::new(),
            outgoing: VecDeque::new(),
        }
    }

    /// Whether everything that was begun has been done.
    fn is_idle(&self) -> bool {
        self.commands.is_empty() && self.outgoing.is_empty() && self.core.is_idle()
    }

    /// How queues go on after a reconnect: with a region of requests in flight
    /// the new back end finishes what the old one had begun.
    fn resumption(&self) -> Resumed {
        if self.inflight.is_some() {
            Resumed::Continued
        } else {
            Resumed::Fresh
        }
    }

    /// The commands that bring all rings up.
    fn script(&mut self, resumed: Resumed) {
        let (Some(memory), Some(negotiated)) = (&self.memory, self.core.negotiated()) else {
            return;
        };
        let table = MemoryRegion {
            guest_address: memory.guest_base(),
            size: memory.len(),
            user_address: memory.user_base(),
            mmap_offset: 0,
        };
        let inflight = negotiated
            .protocol_features
            .contains(ProtocolFeatures::INFLIGHT_SHMFD);
        let queues = u16::try_from(memory.rings().len()).unwrap_or(u16::MAX);
        let queue_size = memory.rings().first().map_or(0, |place| place.size);
        let before = match &self.inflight {
            Some((inflight, _)) => Some(Command::AdoptInflight {
                inflight: *inflight,
                fd: INFLIGHT_FD,
            }),
            None if inflight => Some(Command::CreateInflight { queues, queue_size }),
            None => None,
        };
        let starts = (0..queues).map(|ring| ring_start(memory, ring, resumed));
        self.commands = [
            Some(Command::SetFeatures(negotiated.features)),
            Some(Command::SetMemory(vec![(table, MEMORY_FD)])),
            before,
            Some(Command::StartRings(starts.collect())),
        ]
        .into_iter()
        .flatten()
        .collect();
    }

    /// Runs until `reached`, within the limit of one step.
    fn advance_to(
        &mut self,
        stream: &Stream,
        cancel: &EventFd,
        reached: impl Fn(&Self) -> bool,
    ) -> Result<(), LinkError> {
        self.proceed()?;
        let deadline = Some(Instant::now() + STEP_LIMIT);
        match run_until(self, stream, cancel, deadline, reached) {
            End::Reached => Ok(()),
            other => Err(LinkError::of(other, self)),
        }
    }

    /// Takes effects and gives commands until something has to be waited for.
    fn proceed(&mut self) -> Result<(), LinkError> {
        loop {
            while let Some(effect) = self.core.poll_effect() {
                match effect {
                    Effect::Send { bytes, fds } => {
                        let fds = fds.into_iter().map(|id| self.own_fd(id));
                        let fds = fds.collect::<io::Result<_>>().map_err(descriptor)?;
                        self.outgoing.push_back(Outgoing { bytes, fds });
                    }
                    Effect::Report(event) => self.hear(event)?,
                }
            }
            if !self.core.is_mid_message() {
                self.fds.drain(..).flatten().for_each(reaper::dispose);
            }
            if !self.core.is_idle() {
                return Ok(());
            }
            match self.commands.pop_front() {
                Some(command) => {
                    if let Err(error) = self.core.command(command) {
                        panic!("a command that this link made up was refused: {error}");
                    }
                }
                None => return Ok(()),
            }
        }
    }

    fn hear(&mut self, event: Event) -> Result<(), LinkError> {
        match event {
            Event::Refused { request, code } => Err(LinkError::Refused { request, code }),
            Event::Inflight(Some((inflight, FdSlot(slot)))) => {
                let fd = self.fds.get_mut(slot).and_then(Option::take);
                self.inflight = fd.map(|fd| (inflight, fd));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A duplicate of a descriptor of ours, to go with a message.
    fn own_fd(&self, id: FdId) -> io::Result<OwnedFd> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let fd = match (id, id.0.checked_sub(FIRST_EVENT_FD)) {
            (MEMORY_FD, _) => self.memory.as_ref().ok_or_else(missing)?.as_fd(),
            (INFLIGHT_FD, _) => self.inflight.as_ref().ok_or_else(missing)?.1.as_fd(),
            (_, Some(number)) => {
                let ring = usize::try_from(number / 2).map_err(|_| missing())?;
                let events = self.events.get(ring).ok_or_else(missing)?;
                let event = if number % 2 == 0 {
                    &events.kick
                } else {
                    &events.call
                };
                event.as_fd()
            }
            (_, None) => return Err(missing()),
        };
        fd.try_clone_to_owned()
    }
}

fn ring_start(memory: &DriverMemory, ring: u16, resumed: Resumed) -> RingStart {
    let place = memory.rings()[usize::from(ring)];
    let address = |offset| UserVa(memory.user_base().0 + offset);
    RingStart {
        ring,
        size: place.size,
        base: match resumed {
            Resumed::Fresh => 0,
            // What the dead back end had taken and not answered is in the
            // in-flight region; for the rest the ring says where it goes on.
            Resumed::Continued => memory.ring(ring).used_index().into(),
        },
        descriptor: address(place.descriptor),
        driver: address(place.driver),
        device: address(place.device),
        log: None,
        kick: Some(kick_fd(ring)),
        call: Some(call_fd(ring)),
        err: None,
        enabled: true,
    }
}

fn descriptor(source: io::Error) -> LinkError {
    LinkError::System {
        what: "a descriptor cannot be duplicated",
        source,
    }
}

impl LinkError {
    fn of(end: End<Self>, session: &FrontendSession) -> Self {
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

impl Session for FrontendSession {
    type Error = LinkError;

    fn wanted(&self) -> usize {
        self.core.wanted()
    }

    fn receive(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), LinkError> {
        let count = fds.len();
        self.fds.extend(fds.into_iter().map(Some));
        self.core.receive(bytes, count)?;
        self.proceed()
    }

    fn poll_send(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wake(&mut self) -> Result<(), LinkError> {
        Ok(())
    }

    fn close(&mut self) {
        self.core.disconnect();
    }

    fn is_quiet(&self) -> bool {
        true
    }
}
