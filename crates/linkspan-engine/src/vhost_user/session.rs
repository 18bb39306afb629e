//! One connection of a vhost-user front end: the protocol core, and the memory,
//! descriptors and rings that its effects act on.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use linkspan_mem::fault::Injected;
use linkspan_mem::{GuestMemory, SpaceError, WindowError};
use linkspan_sys::{EventFd, PeerEventFd, eventfd, mapping, reaper};
use linkspan_vhost::backend::{Answer, Backend, Effect, Failure, FdId, FdSlot, Offer, RingSetup};
use linkspan_vhost::{Disposition, ProtocolFeatures};
use linkspan_virtio::{Features, InflightError, StartError};

use super::inflight::{InflightArea, InflightAreaError};
use super::memory::{MemoryError, MemoryTable};
use super::place::place_queue;
use crate::counters::QueueCounters;
use crate::device::{ActiveRing, Device, OpenQueueError};
use crate::session::{Outgoing, Session};
use crate::worker::{EventSink, Ring, RingEvent, RingFault, RingKey, Workers};

/// The one descriptor that messages to the front end carry.
const INFLIGHT_FD: FdId = FdId(0);

/// Memory regions that a front end may have at once: what QEMU asks for with a
/// guest of many hot-plugged modules, and little enough to search and to map.
const MEMORY_SLOTS: u64 = 32;

/// A device offered to one front end.
pub struct BackendSession {
    core: Backend,
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    table: MemoryTable,
    memory: Arc<GuestMemory>,
    rings: Vec<RingSlot>,
    inflight: Option<InflightArea>,
    /// Descriptors of the message that is being handled, by position.
    fds: Vec<Option<OwnedFd>>,
    waiting: Option<Waiting>,
    outgoing: VecDeque<Outgoing>,
    sink: EventSink,
    events: Receiver<RingEvent>,
    wake: Arc<EventFd>,
    closing: bool,
}

/// What the session knows of a ring; the running ring itself is with its worker.
#[derive(Default)]
struct RingSlot {
    call: Option<Arc<PeerEventFd>>,
    err: Option<Arc<PeerEventFd>>,
    run: Option<Run>,
    counters: Arc<QueueCounters>,
}

#[derive(Clone, Copy)]
struct Run {
    key: RingKey,
    setup: RingSetup,
}

/// What the effect taken last waits for.
enum Waiting {
    /// The event that follows the command to a ring.
    Ring,
    /// Running rings come to rest so that memory can change under them.
    Pause {
        left: usize,
        paused: Vec<(Box<Ring>, RingSetup)>,
        change: MemoryTable,
    },
    /// They run again; then this is the answer, unless one was lost.
    Resume {
        left: usize,
        answer: Result<Answer, Reason>,
        lost: Option<SessionError>,
    },
}

/// Why a session with a front end ended, or a message of it was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The front end broke the protocol.
    #[error("{0}")]
    Protocol(linkspan_vhost::Error),
    /// The front end gave something that cannot be used, or a resource could
    /// not be had for it.
    #[error("{error}: {reason}")]
    Refused {
        /// What was refused.
        error: linkspan_vhost::Error,
        /// Why.
        reason: Reason,
    },
    /// The front end took back memory that it had shared.
    #[error("the front end took back memory that it had shared")]
    MemoryGone,
    /// A ring that was brought to rest could not go on, for want of a resource
    /// of ours. The next connection starts it anew.
    #[error("ring {ring} could not go on after a change of memory")]
    RingLost {
        /// The ring.
        ring: u16,
        /// What could not be had.
        #[source]
        reason: Reason,
    },
}

/// Why an effect could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A ring's address is outside the memory.
    #[error("ring address: {0}")]
    Address(#[from] SpaceError),
    /// A ring does not fit where it is said to be.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// A ring does not start where it is said to.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Memory for a queue was refused.
    #[error(transparent)]
    Refused(#[from] Injected),
    /// A descriptor that is no eventfd.
    #[error(transparent)]
    EventFd(#[from] eventfd::Error),
    /// The device could not serve the queue.
    #[error(transparent)]
    Device(#[from] OpenQueueError),
    /// A worker could not take it.
    #[error("worker: {0}")]
    Worker(io::Error),
    /// A ring without kick descriptor would have to be polled.
    #[error("polling of a ring was asked for, which is not offered")]
    Polling,
    /// A thing that was not offered.
    #[error("this is not offered")]
    NotOffered,
    /// A descriptor of ours was refused.
    #[error("the system: {0}")]
    System(#[source] io::Error),
    /// The region of requests in flight.
    #[error(transparent)]
    InflightArea(#[from] InflightAreaError),
    /// What the region of requests in flight says.
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// The message came without the descriptor that it needs.
    #[error("no descriptor came with the region")]
    NoDescriptor,
    /// Configuration space.
    #[error(transparent)]
    Config(#[from] crate::device::ConfigRange),
}

impl Reason {
    fn failure(&self) -> Failure {
        match self {
            Self::Memory(MemoryError::Map(error))
            | Self::InflightArea(InflightAreaError::Map(error)) => match error {
                mapping::Error::System { .. } | mapping::Error::TooMany { .. } => Failure::System,
                _ => Failure::Rejected,
            },
            Self::Device(_) | Self::Worker(_) | Self::Refused(_) | Self::System(_) => {
                Failure::System
            }
            Self::InflightArea(InflightAreaError::System(_))
            | Self::Inflight(InflightError::Refused(_))
            | Self::Start(StartError::Refused(_)) => Failure::System,
            Self::Polling | Self::NotOffered => Failure::Unsupported,
            _ => Failure::Rejected,
        }
    }
}

impl BackendSession {
    /// A session before its first message.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub fn new(device: Arc<dyn Device>, workers: Arc<Workers>) -> io::Result<Self> {
        let (sink, events, wake) = EventSink::new()?;
        let queues = device.queues();
        let offer = Offer {
            features: (device.features() | Features::SPLIT_QUEUE).bits(),
            protocol_features: ProtocolFeatures::MQ
                | ProtocolFeatures::REPLY_ACK
                | ProtocolFeatures::CONFIG
                | ProtocolFeatures::CONFIGURE_MEM_SLOTS
                | ProtocolFeatures::INFLIGHT_SHMFD
                | ProtocolFeatures::RESET_DEVICE
                | ProtocolFeatures::STATUS,
            queues,
            queue_num: queues.into(),
            queue_size_max: device.queue_size_max(),
            config_size: device.config_size(),
            memory_slots: MEMORY_SLOTS,
        };
        let table = MemoryTable::default();
        let memory = table.resolve().map_err(io::Error::other)?;
        Ok(Self {
            core: Backend::new(offer).map_err(io::Error::other)?,
            device,
            workers,
            table,
            memory,
            rings: (0..queues).map(|_| RingSlot::default()).collect(),
            inflight: None,
            fds: Vec::new(),
            waiting: None,
            outgoing: VecDeque::new(),
            sink,
            events,
            wake,
            closing: false,
        })
    }

    /// Carries out effects until one has to wait or none is left.
    fn proceed(&mut self) -> Result<(), SessionError> {
        while self.waiting.is_none() {
            let Some(effect) = self.core.poll_effect() else {
                if !self.core.is_mid_message() {
                    // What the message left unclaimed goes.
                    self.fds.drain(..).flatten().for_each(reaper::dispose);
                }
                return Ok(());
            };
            let done = match self.carry_out(effect) {
                Ok(None) => continue,
                Ok(Some(answer)) => Ok(answer),
                Err(reason) => Err(reason),
            };
            self.answer(done)?;
        }
        Ok(())
    }

    fn answer(&mut self, done: Result<Answer, Reason>) -> Result<(), SessionError> {
        self.waiting = None;
        match done {
            Ok(answer) => self
                .core
                .answer(Ok(answer))
                .or_else(|error| self.judge(error, None)),
            Err(reason) => {
                let failure = reason.failure();
                self.core
                    .answer(Err(failure))
                    .or_else(|error| self.judge(error, Some(reason)))
            }
        }
    }

    /// A message that was refused ends the session, or the peer is told and the
    /// session goes on.
    fn judge(
        &mut self,
        error: linkspan_vhost::Error,
        reason: Option<Reason>,
    ) -> Result<(), SessionError> {
        let disposition = error.disposition();
        let error = match reason {
            Some(reason) => SessionError::Refused { error, reason },
            None => SessionError::Protocol(error),
        };
        if disposition == Disposition::Nack || self.closing {
            tracing::debug!("refused: {error}");
            return Ok(());
        }
        Err(error)
    }

    /// Begins an effect. `None`: it needs no answer, or its answer comes later.
    fn carry_out(&mut self, effect: Effect) -> Result<Option<Answer>, Reason> {
        match effect {
            Effect::Send { bytes, fds } => {
                let fds = fds.into_iter().map(|_| self.inflight_fd());
                let fds = fds.collect::<io::Result<_>>().map_err(Reason::System)?;
                self.outgoing.push_back(Outgoing { bytes, fds });
                return Ok(None);
            }
            // The rings are stopped by now, and no device has more to reset.
            Effect::SetFeatures(_) | Effect::SetStatus(_) => {}
            Effect::ResetDevice => self.inflight = None,
            Effect::CreateInflight {
                queues,
                queue_size,
                features,
            } => {
                let features = features.map(Features::from_bits_retain);
                let area = InflightArea::create(queues, queue_size, features)?;
                let (size, offset, fd) = (area.size(), 0, INFLIGHT_FD);
                self.inflight = Some(area);
                return Ok(Some(Answer::Inflight { size, offset, fd }));
            }
            Effect::AdoptInflight { inflight, fd } => {
                let fd = self.take_fd(fd).ok_or(Reason::NoDescriptor)?;
                self.inflight = Some(InflightArea::adopt(inflight, fd, &self.wake)?);
            }
            // Their protocol features are not offered.
            Effect::SetRingLog { .. }
            | Effect::SetLog { .. }
            | Effect::SetLogFd { .. }
            | Effect::SetRequestSocket { .. }
            | Effect::MoveState { .. }
            | Effect::CheckState => return Err(Reason::NotOffered),
            Effect::SetMemory(regions) => {
                let fds = self.fds.drain(..).flatten().collect();
                let table = MemoryTable::replaced(regions, fds, &self.wake)?;
                return self.change_memory(table);
            }
            Effect::AddRegion(region) => {
                let fd = self.take_fd(FdSlot(0)).ok_or(Reason::NoDescriptor)?;
                let table = self.table.with(region, fd, &self.wake)?;
                return self.change_memory(table);
            }
            Effect::RemoveRegion(region) => {
                let table = self.table.without(region);
                return self.change_memory(table);
            }
            Effect::StartRing { ring, setup, kick } => {
                let kick = self.take_event(kick)?.ok_or(Reason::Polling)?;
                self.start_ring(ring, setup, kick)?;
                self.waiting = Some(Waiting::Ring);
                return Ok(None);
            }
            Effect::StopRing { ring } => {
                return Ok(self.command(ring, |workers, key| workers.stop(key)));
            }
            Effect::SetKick { ring, kick } => {
                let kick = self.take_event(kick)?.ok_or(Reason::Polling)?;
                return Ok(self.command(ring, |workers, key| workers.set_kick(key, kick)));
            }
            Effect::SetCall { ring, call } => {
                let call = self.take_event(call)?.map(Arc::new);
                self.rings[usize::from(ring)].call.clone_from(&call);
                return Ok(self.command(ring, |workers, key| workers.set_call(key, call)));
            }
            Effect::SetErr { ring, err } => {
                let err = self.take_event(err)?.map(Arc::new);
                self.rings[usize::from(ring)].err.clone_from(&err);
                return Ok(self.command(ring, |workers, key| workers.set_err(key, err)));
            }
            Effect::EnableRing { ring, enabled } => {
                return Ok(self.command(ring, |workers, key| workers.enable(key, enabled)));
            }
            Effect::ReadConfig { offset, size } => {
                let mut bytes = vec![0; size as usize];
                self.device.read_config(offset, &mut bytes)?;
                return Ok(Some(Answer::Config(bytes)));
            }
            Effect::WriteConfig { offset, bytes, .. } => {
                self.device.write_config(offset, &bytes)?;
            }
        }
        Ok(Some(Answer::Done))
    }

    /// Sends a command to a running ring and waits for its event; on a ring that
    /// does not run there is nothing to wait for.
    fn command(&mut self, ring: u16, send: impl FnOnce(&Workers, RingKey)) -> Option<Answer> {
        match self.rings[usize::from(ring)].run {
            Some(run) => {
                send(&self.workers, run.key);
                self.waiting = Some(Waiting::Ring);
                None
            }
            None => Some(Answer::Done),
        }
    }

    fn start_ring(
        &mut self,
        index: u16,
        setup: RingSetup,
        kick: PeerEventFd,
    ) -> Result<(), Reason> {
        let features = Features::from_bits_retain(setup.features);
        let queue = place_queue(index, &setup, &self.memory, self.inflight.as_ref(), None)?;
        let handler = self.device.open_queue(index, features)?;
        let slot = &mut self.rings[usize::from(index)];
        let ring = Box::new(Ring {
            index,
            active: ActiveRing {
                queue,
                memory: Arc::clone(&self.memory),
            },
            handler,
            kick,
            call: slot.call.clone(),
            err: slot.err.clone(),
            enabled: setup.enabled,
            retired: false,
            counters: Arc::clone(&slot.counters),
        });
        let key = self.workers.start(ring, self.sink.clone());
        slot.run = Some(Run { key, setup });
        Ok(())
    }

    /// Installs another memory table. Rings that run are brought to rest first:
    /// until the last request that uses the old memory is done, it stays mapped
    /// and the front end gets no answer.
    fn change_memory(&mut self, change: MemoryTable) -> Result<Option<Answer>, Reason> {
        let running: Vec<RingKey> = self
            .rings
            .iter()
            .filter_map(|slot| Some(slot.run?.key))
            .collect();
        if running.is_empty() {
            self.memory = change.resolve()?;
            self.table = change;
            return Ok(Some(Answer::Done));
        }
        for key in &running {
            self.workers.stop(*key);
        }
        self.waiting = Some(Waiting::Pause {
            left: running.len(),
            paused: Vec::new(),
            change,
        });
        Ok(None)
    }

    /// All rings are at rest: swaps the memory and starts them again. A change
    /// that makes no sense leaves the old memory in place.
    fn resume(
        &mut self,
        paused: Vec<(Box<Ring>, RingSetup)>,
        change: MemoryTable,
    ) -> Result<(), SessionError> {
        let answer = match change.resolve() {
            Ok(memory) => {
                self.memory = memory;
                self.table = change;
                Ok(Answer::Done)
            }
            Err(error) => Err(error.into()),
        };
        let (mut left, mut lost) = (0, None);
        for (mut ring, setup) in paused {
            let state = Some(ring.active.queue.state());
            let inflight = self.inflight.as_ref();
            match place_queue(ring.index, &setup, &self.memory, inflight, state) {
                Ok(queue) => {
                    ring.active = ActiveRing {
                        queue,
                        memory: Arc::clone(&self.memory),
                    };
                }
                Err(reason) if reason.failure() == Failure::System => {
                    let ring = ring.index;
                    lost = Some(SessionError::RingLost { ring, reason });
                    continue;
                }
                // The front end removed memory under a ring that runs: that
                // ring is lost, the others are not.
                Err(reason) => {
                    tracing::warn!(ring = ring.index, "retired: {reason}");
                    ring.retire();
                }
            }
            let slot = &mut self.rings[usize::from(ring.index)];
            let key = self.workers.start(ring, self.sink.clone());
            slot.run = Some(Run { key, setup });
            left += 1;
        }
        self.resumed(left, answer, lost)
    }

    /// `left` rings do not run again yet.
    fn resumed(
        &mut self,
        left: usize,
        answer: Result<Answer, Reason>,
        lost: Option<SessionError>,
    ) -> Result<(), SessionError> {
        if left > 0 {
            self.waiting = Some(Waiting::Resume { left, answer, lost });
            return Ok(());
        }
        match lost {
            // Whatever the answer is, it cannot say that a ring is gone.
            Some(lost) if !self.closing => self.answer(answer).and(Err(lost)),
            _ => self.answer(answer),
        }
    }

    /// The descriptor that an answer named, to go with a message.
    fn inflight_fd(&self) -> io::Result<OwnedFd> {
        match self.inflight.as_ref().and_then(InflightArea::fd) {
            Some(fd) => fd.try_clone_to_owned(),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn take_fd(&mut self, slot: FdSlot) -> Option<OwnedFd> {
        self.fds.get_mut(slot.0)?.take()
    }

    fn take_event(&mut self, slot: Option<FdSlot>) -> Result<Option<PeerEventFd>, Reason> {
        let Some(fd) = slot.and_then(|slot| self.take_fd(slot)) else {
            return Ok(None);
        };
        Ok(Some(PeerEventFd::check(fd)?))
    }

    /// Takes in one event of a worker.
    fn ring_event(&mut self, event: RingEvent) -> Result<(), SessionError> {
        match event {
            RingEvent::Broken { ring, error } => {
                tracing::warn!(ring, "retired: {error}");
                if error == RingFault::MemoryGone && !self.closing {
                    return Err(SessionError::MemoryGone);
                }
                Ok(())
            }
            RingEvent::Done { .. } => self.ring_done(Ok(Answer::Done)),
            RingEvent::Refused { ring, error, lost } => {
                if lost {
                    self.rings[usize::from(ring)].run = None;
                }
                self.ring_done(Err((ring, Reason::Worker(error))))
            }
            RingEvent::Stopped { ring } => self.ring_stopped(ring),
        }
    }

    /// A command to a ring has ended: one of several, or the one waited for.
    fn ring_done(&mut self, result: Result<Answer, (u16, Reason)>) -> Result<(), SessionError> {
        match self.waiting.take() {
            Some(Waiting::Resume { left, answer, lost }) => {
                let refused = result.err();
                let refused = refused.map(|(ring, reason)| SessionError::RingLost { ring, reason });
                self.resumed(left - 1, answer, refused.or(lost))
            }
            _ => self.answer(result.map_err(|(_, reason)| reason)),
        }
    }

    fn ring_stopped(&mut self, ring: Box<Ring>) -> Result<(), SessionError> {
        let slot = &mut self.rings[usize::from(ring.index)];
        let run = slot.run.take();
        match (self.waiting.take(), run) {
            (
                Some(Waiting::Pause {
                    left,
                    mut paused,
                    change,
                }),
                Some(run),
            ) => {
                paused.push((ring, run.setup));
                if left > 1 {
                    self.waiting = Some(Waiting::Pause {
                        left: left - 1,
                        paused,
                        change,
                    });
                    return Ok(());
                }
                self.resume(paused, change)
            }
            _ => {
                slot.call = None;
                let base = ring.active.queue.base();
                self.answer(Ok(Answer::RingStopped { base }))
            }
        }
    }
}

impl Session for BackendSession {
    type Error = SessionError;

    fn wanted(&self) -> usize {
        if self.waiting.is_some() {
            0
        } else {
            self.core.wanted()
        }
    }

    fn receive(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), SessionError> {
        let count = fds.len();
        self.fds.extend(fds.into_iter().map(Some));
        self.core
            .receive(bytes, count)
            .or_else(|error| self.judge(error, None))?;
        self.proceed()
    }

    fn poll_send(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wake.as_fd())
    }

    fn wake(&mut self) -> Result<(), SessionError> {
        if let Err(error) = self.wake.drain() {
            panic!("our own eventfd cannot be read: {error}");
        }
        let poisoned =
            self.table.poisoned() || self.inflight.as_ref().is_some_and(InflightArea::poisoned);
        if poisoned && !self.closing {
            return Err(SessionError::MemoryGone);
        }
        while let Ok(event) = self.events.try_recv() {
            self.ring_event(event)?;
            self.proceed()?;
        }
        Ok(())
    }

    fn close(&mut self) {
        self.closing = true;
        // Those of a message that was refused or cut short are unchecked.
        self.fds.drain(..).flatten().for_each(reaper::dispose);
        self.core.disconnect();
        // Errors while ending are of no use to anybody; `is_quiet` tells.
        let _ = self.proceed();
    }

    fn is_quiet(&self) -> bool {
        self.waiting.is_none() && self.rings.iter().all(|slot| slot.run.is_none())
    }
}

impl fmt::Debug for BackendSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendSession")
            .field("core", &self.core)
            .finish_non_exhaustive()
    }
}
