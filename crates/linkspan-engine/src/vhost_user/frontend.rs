//! One connection of a front end: the protocol core with its descriptors, and
//! the commands that bring its rings up.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_mem::UserVa;
use linkspan_sys::{EventFd, PeerMemory, Stream, reaper};
use linkspan_vhost::frontend::{
    Command, Effect, Event, FdId, FdSlot, Frontend, Inflight, RingStart,
};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::VHOST_USER_MAX_CONFIG_SIZE;
use linkspan_vhost::{MemoryRegion, ProtocolFeatures};
use linkspan_virtio::{Features, QueueLayout};

use super::asked::Asked;
use super::link::LinkError;
use crate::config_space::ConfigSpace;
use crate::driver::{DriverMemory, Resumed};
use crate::limit::LogLimit;
use crate::queues::Queues;
use crate::session::{End, Outgoing, Session, run_until};

/// Descriptors of ours that messages carry.
const MEMORY_FD: FdId = FdId(0);
const INFLIGHT_FD: FdId = FdId(1);
const REQUESTS_FD: FdId = FdId(2);
const FIRST_EVENT_FD: u64 = 3;

fn kick_fd(ring: u16) -> FdId {
    FdId(FIRST_EVENT_FD + 2 * u64::from(ring))
}

fn call_fd(ring: u16) -> FdId {
    FdId(FIRST_EVENT_FD + 2 * u64::from(ring) + 1)
}

/// What outlives a connection.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) queues: Option<Queues>,
    pub(super) inflight: Option<(Inflight, PeerMemory)>,
    /// What the users of the link see of the device, once there are any.
    pub(super) config: Option<Arc<ConfigSpace>>,
    /// What is logged of requests of back ends.
    refusals: LogLimit,
    changes: LogLimit,
}

/// One connection of a front end: the protocol core with its descriptors, and
/// the commands that are still to be given.
pub(super) struct FrontendSession {
    pub(super) core: Frontend,
    pub(super) kept: Kept,
    /// What the back end asks of us, if that was negotiated.
    asked: Option<Asked>,
    /// Configuration space as it was last read, and what is being read of it.
    config: Vec<u8>,
    reading: Vec<u8>,
    /// It is to be read again.
    stale: bool,
    commands: VecDeque<Command>,
    /// Rings that the last command starts.
    starting: Vec<u16>,
    /// Whether rings start as their queues park.
    serving: bool,
    /// Whether a ring was started.
    runs: bool,
    /// How long the back end may take for one command.
    limit: Duration,
    /// When the command under way must have ended.
    due: Option<Instant>,
    /// Descriptors of the message that is being received, by position.
    fds: Vec<Option<OwnedFd>>,
    outgoing: VecDeque<Outgoing>,
}

impl FrontendSession {
    /// A session that gives the back end so long for each command.
    pub(super) fn new(core: Frontend, limit: Duration) -> Self {
        Self {
            core,
            kept: Kept::default(),
            asked: None,
            config: Vec::new(),
            reading: Vec::new(),
            stale: false,
            commands: VecDeque::new(),
            starting: Vec::new(),
            serving: false,
            runs: false,
            limit,
            due: None,
            fds: Vec::new(),
            outgoing: VecDeque::new(),
        }
    }

    /// Whether everything that was begun has been done.
    pub(super) fn is_idle(&self) -> bool {
        self.commands.is_empty() && self.outgoing.is_empty() && self.core.is_idle()
    }

    /// Whether a ring was started.
    pub(super) fn runs(&self) -> bool {
        self.runs
    }

    /// From now on each ring is started when its queue has parked.
    pub(super) fn serve(&mut self) -> Result<(), LinkError> {
        self.serving = true;
        self.publish();
        // Some have parked already.
        self.proceed()
    }

    /// The connection is lost: nothing comes from the back end any more.
    pub(super) fn lost(&mut self) {
        self.asked = None;
        if let Some(queues) = &mut self.kept.queues {
            queues.lost();
        }
    }

    /// The commands that set up what all rings need.
    pub(super) fn set_up(&mut self) -> Result<(), LinkError> {
        let (Some(queues), Some(negotiated)) = (&self.kept.queues, self.core.negotiated()) else {
            return Ok(());
        };
        self.config.clone_from(&negotiated.config);
        let protocol = negotiated.protocol_features;
        if protocol.contains(ProtocolFeatures::BACKEND_REQ) {
            let asked = Asked::open(protocol, queues.bell());
            self.asked = Some(asked.map_err(|source| LinkError::System {
                what: "no socket for requests of the back end can be had",
                source,
            })?);
            self.commands
                .push_back(Command::SetBackendRequests(REQUESTS_FD));
            // What changed since it was read, nobody was told of.
            self.commands.extend(read_config(self.config.len()));
        }
        let memory = queues.memory();
        let table = MemoryRegion {
            guest_address: memory.guest_base(),
            size: memory.len(),
            user_address: memory.user_base(),
            mmap_offset: 0,
        };
        let inflight = protocol.contains(ProtocolFeatures::INFLIGHT_SHMFD);
        let rings = u16::try_from(memory.rings().len()).unwrap_or(u16::MAX);
        let queue_size = memory.rings().first().map_or(0, |place| place.size);
        let before = match &self.kept.inflight {
            Some((inflight, _)) => Some(Command::AdoptInflight {
                inflight: *inflight,
                fd: INFLIGHT_FD,
            }),
            None if inflight => Some(Command::CreateInflight {
                queues: rings,
                queue_size,
            }),
            None => None,
        };
        self.commands.extend(
            [
                Some(Command::SetFeatures(negotiated.features)),
                Some(Command::SetMemory(vec![(table, MEMORY_FD)])),
                before,
            ]
            .into_iter()
            .flatten(),
        );
        Ok(())
    }

    /// The command that starts these rings: all or none.
    pub(super) fn start(&mut self, rings: Vec<u16>) {
        let (Some(queues), Some(negotiated)) = (&self.kept.queues, self.core.negotiated()) else {
            return;
        };
        let layout = QueueLayout::of(Features::from_bits_retain(negotiated.features));
        let starts = rings
            .iter()
            .map(|ring| ring_start(queues.memory(), *ring, layout, queues.next(*ring)));
        self.commands
            .push_back(Command::StartRings(starts.collect()));
        self.starting = rings;
    }

    /// Runs until everything is done, within `limit`.
    pub(super) fn finish(
        &mut self,
        stream: &Stream,
        cancel: &EventFd,
        limit: Duration,
    ) -> Result<(), LinkError> {
        self.proceed()?;
        let deadline = Some(Instant::now() + limit);
        match run_until(self, stream, cancel, deadline, Self::is_idle) {
            End::Reached => Ok(()),
            other => Err(LinkError::of(other, self)),
        }
    }

    /// The next command, if it is time for one.
    fn next_command(&mut self) -> Option<Command> {
        if self.serving
            && self.commands.is_empty()
            && let Some(rings) = self.kept.queues.as_ref().map(Queues::waiting)
            && !rings.is_empty()
        {
            self.start(rings);
        }
        if self.commands.is_empty() && std::mem::take(&mut self.stale) {
            self.commands.extend(read_config(self.config.len()));
        }
        self.commands.pop_front()
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
            match self.next_command() {
                Some(command) => {
                    self.due = Some(Instant::now() + self.limit);
                    if let Err(error) = self.core.command(command) {
                        panic!("a command that this link made up was refused: {error}");
                    }
                }
                None => {
                    self.due = None;
                    return Ok(());
                }
            }
        }
    }

    fn hear(&mut self, event: Event) -> Result<(), LinkError> {
        match event {
            Event::Config { offset, bytes } => {
                if offset == 0 {
                    self.reading.clear();
                }
                self.reading.extend(bytes);
                // It may be half of what it was and half of what it is if it
                // changed meanwhile, and then it is read again.
                if self.reading.len() == self.config.len() && !self.stale {
                    self.config.clone_from(&self.reading);
                    if self.runs || self.serving {
                        self.publish();
                    }
                }
                Ok(())
            }
            // It goes on being what it was.
            Event::Refused {
                request: Request::GetConfig,
                ..
            } => {
                self.commands
                    .retain(|command| !matches!(command, Command::ReadConfig { .. }));
                if let Some(more) = self.kept.refusals.allow() {
                    tracing::warn!(
                        more,
                        "the back end says that its configuration space changed, and does not let it be read"
                    );
                }
                Ok(())
            }
            Event::Refused { request, code } => Err(LinkError::Refused { request, code }),
            Event::Inflight(Some((inflight, FdSlot(slot)))) => {
                let fd = self.fds.get_mut(slot).and_then(Option::take);
                let fd = fd.map(PeerMemory::check);
                self.kept.inflight = fd.transpose()?.map(|fd| (inflight, fd));
                Ok(())
            }
            Event::Done if !self.starting.is_empty() && self.commands.is_empty() => {
                let rings = std::mem::take(&mut self.starting);
                self.runs = true;
                if let Some(queues) = &mut self.kept.queues {
                    queues.started(&rings);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The users of the link see what configuration space is now.
    fn publish(&mut self) {
        if let Some(config) = &self.kept.config
            && config.replace(&self.config)
            && let Some(more) = self.kept.changes.allow()
        {
            tracing::info!(more, "the configuration space of the device changed");
        }
    }

    /// Configuration space as it was last read.
    pub(super) fn config(&self) -> &[u8] {
        &self.config
    }

    /// A duplicate of a descriptor of ours, to go with a message.
    fn own_fd(&mut self, id: FdId) -> io::Result<OwnedFd> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        if let (REQUESTS_FD, Some(asked)) = (id, &mut self.asked) {
            return asked.take_theirs().ok_or_else(missing);
        }
        let queues = self.kept.queues.as_ref().ok_or_else(missing)?;
        let inflight = self.kept.inflight.as_ref();
        let fd = match (id, id.0.checked_sub(FIRST_EVENT_FD)) {
            (MEMORY_FD, _) => queues.memory().as_fd(),
            (INFLIGHT_FD, _) => inflight.ok_or_else(missing)?.1.as_fd(),
            (_, Some(number)) => {
                let ring = usize::try_from(number / 2).map_err(|_| missing())?;
                let events = queues.events(ring).ok_or_else(missing)?;
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

/// The commands that read so much configuration space.
fn read_config(len: usize) -> impl Iterator<Item = Command> {
    let part = move |offset: usize| {
        let size = (len - offset).min(VHOST_USER_MAX_CONFIG_SIZE);
        // It was read at the start: its size is in range.
        Some(Command::ReadConfig {
            offset: u32::try_from(offset).ok()?,
            size: u32::try_from(size).ok()?,
        })
    };
    (0..len)
        .step_by(VHOST_USER_MAX_CONFIG_SIZE)
        .filter_map(part)
}

fn ring_start(
    memory: &DriverMemory,
    ring: u16,
    layout: QueueLayout,
    resumed: Resumed,
) -> RingStart {
    let place = memory.rings()[usize::from(ring)];
    let address = |offset| UserVa(memory.user_base().0 + offset);
    RingStart {
        ring,
        size: place.size,
        base: match (resumed, layout) {
            // What the dead back end had taken and not answered is in the
            // in-flight region; for the rest the ring says where it goes on.
            (Resumed::Continued, QueueLayout::Split) => memory.ring(ring).used_index().into(),
            // A packed ring does not say; the region does.
            (Resumed::Continued, QueueLayout::Packed) | (Resumed::Fresh, _) => {
                layout.base(layout.start())
            }
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

impl Drop for FrontendSession {
    fn drop(&mut self) {
        // Those of a message that was refused or cut short are unchecked.
        self.fds.drain(..).flatten().for_each(reaper::dispose);
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
        match &self.asked {
            Some(asked) => Some(asked.watch()),
            None => self.kept.queues.as_ref().map(Queues::bell),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.due
    }

    fn wake(&mut self) -> Result<(), LinkError> {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            return Err(LinkError::of(End::Late, self));
        }
        // Also while a command is under way: the back end may wait for an answer
        // before it gives its own.
        if let Some(asked) = &mut self.asked {
            self.stale |= asked.pump(&mut self.kept.refusals);
        }
        if let Some(queues) = &mut self.kept.queues {
            queues.listen();
        }
        self.proceed()
    }

    fn close(&mut self) {
        self.core.disconnect();
    }

    fn is_quiet(&self) -> bool {
        true
    }
}
