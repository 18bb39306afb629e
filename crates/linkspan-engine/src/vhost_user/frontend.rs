//! One connection of a front end: the protocol core with its descriptors, and
//! the commands that bring its rings up.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_mem::UserVa;
use linkspan_sys::{EventFd, Stream, reaper};
use linkspan_vhost::frontend::{
    Command, Effect, Event, FdId, FdSlot, Frontend, Inflight, RingStart,
};
use linkspan_vhost::{MemoryRegion, ProtocolFeatures};

use super::link::LinkError;
use crate::driver::{DriverMemory, QueueEvents, Resumed};
use crate::session::{End, Outgoing, Session, run_until};

/// How long a back end may take for one step of bring-up. Draining a ring that
/// an earlier front end left takes the longest.
const STEP_LIMIT: Duration = Duration::from_secs(30);

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
pub(super) struct FrontendSession {
    pub(super) core: Frontend,
    pub(super) commands: VecDeque<Command>,
    pub(super) memory: Option<Arc<DriverMemory>>,
    pub(super) events: Vec<QueueEvents>,
    pub(super) inflight: Option<(Inflight, OwnedFd)>,
    /// Descriptors of the message that is being received, by position.
    fds: Vec<Option<OwnedFd>>,
    outgoing: VecDeque<Outgoing>,
}

impl FrontendSession {
    pub(super) fn new(core: Frontend) -> Self {
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
    pub(super) fn is_idle(&self) -> bool {
        self.commands.is_empty() && self.outgoing.is_empty() && self.core.is_idle()
    }

    /// How queues go on after a reconnect: with a region of requests in flight
    /// the new back end finishes what the old one had begun.
    pub(super) fn resumption(&self) -> Resumed {
        if self.inflight.is_some() {
            Resumed::Continued
        } else {
            Resumed::Fresh
        }
    }

    /// The commands that bring all rings up.
    pub(super) fn script(&mut self, resumed: Resumed) {
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
    pub(super) fn advance_to(
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
