//! One connection of a vhost-user front end: the protocol core, and the memory,
//! descriptors and rings that its effects act on.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use linkspan_mem::GuestMemory;
use linkspan_sys::{EventFd, Stream};
use linkspan_vhost::backend::{Answer, Effect, FdId, FdSlot, Offer};
use linkspan_vhost::{Direction, Inflight, ProtocolFeatures, VHOST_F_LOG_ALL};
use linkspan_virtio::Features;

use super::error::{Reason, SessionError};
use super::log::{Logging, MappedLog};
use super::memory::MemoryTable;
use super::rings::Waiting;
use super::talk::Talk;
use super::transfer::{Transfer, TransferError};
use crate::device::{Device, GPU_DEVICE, NETWORK_DEVICE};
use crate::endpoint::Endpoint;
use crate::inflight::InflightArea;
use crate::rings::Rings;
use crate::session::{Outgoing, QUIET_LIMIT, Session};
use crate::worker::{RingEvent, Workers};

/// The one descriptor that messages to the front end carry.
const INFLIGHT_FD: FdId = FdId(0);

/// Memory regions that a front end may have at once: what QEMU asks for with a
/// guest of many hot-plugged modules, and little enough to search and to map.
const MEMORY_SLOTS: u64 = 32;

/// What is offered of the protocol for this device.
fn protocol_features(device: &dyn Device) -> ProtocolFeatures {
    let mut features = ProtocolFeatures::MQ
        | ProtocolFeatures::REPLY_ACK
        | ProtocolFeatures::CONFIG
        | ProtocolFeatures::CONFIGURE_MEM_SLOTS
        | ProtocolFeatures::LOG_SHMFD
        | ProtocolFeatures::BACKEND_REQ
        | ProtocolFeatures::INFLIGHT_SHMFD
        | ProtocolFeatures::RESET_DEVICE
        | ProtocolFeatures::STATUS
        | ProtocolFeatures::DEVICE_STATE;
    if device.device_id() == NETWORK_DEVICE {
        features |= ProtocolFeatures::NET_MTU | ProtocolFeatures::RARP;
    }
    features
}

/// A device offered to one front end.
pub struct BackendSession {
    pub(super) talk: Talk,
    pub(super) device: Arc<dyn Device>,
    pub(super) table: MemoryTable,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) rings: Rings,
    pub(super) inflight: Option<InflightArea>,
    pub(super) logging: Logging,
    pub(super) waiting: Option<Waiting>,
    /// When requests in flight that somebody waits for must have ended.
    pub(super) quiet_by: Option<Instant>,
    quiet_limit: Duration,
    pub(super) events: Receiver<RingEvent>,
    pub(super) wake: Arc<EventFd>,
    transfer: Option<Transfer>,
}

/// What is offered beside the bits of the device: either layout, and the reset of
/// one ring (virtio 1.3 2.6.1), which is its stop and a start from the beginning.
const RINGS: Features = Features::PACKED_QUEUE.union(Features::VIRTIO_F_RING_RESET);

/// What is offered of this device, and of its rings.
pub(super) fn offer(device: &dyn Device) -> Offer {
    Offer {
        features: (device.features() | RINGS).bits() | VHOST_F_LOG_ALL,
        protocol_features: protocol_features(device),
        queues: device.queues(),
        queue_num: device.queue_num(),
        queue_size_max: device.queue_size_max(),
        config_size: device.config_size(),
        memory_slots: MEMORY_SLOTS,
    }
}

impl BackendSession {
    /// A session before its first message. Whoever signals `changes` says that
    /// the device's configuration space changed; the front end is told then.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub fn new(
        device: Arc<dyn Device>,
        workers: Arc<Workers>,
        changes: Arc<EventFd>,
    ) -> io::Result<Self> {
        let (rings, events, wake) = Rings::new(Arc::clone(&device), workers)?;
        device.reset();
        let mut talk = Talk::new(offer(&*device), changes, &wake)?;
        if device.device_id() == GPU_DEVICE {
            talk.core.be_gpu();
        }
        let table = MemoryTable::default();
        let memory = table.resolve().map_err(io::Error::other)?;
        Ok(Self::of(
            device,
            talk,
            rings,
            (table, memory),
            (events, wake),
        ))
    }

    /// A session that waits for a message.
    pub(super) fn of(
        device: Arc<dyn Device>,
        talk: Talk,
        rings: Rings,
        (table, memory): (MemoryTable, Arc<GuestMemory>),
        (events, wake): (Receiver<RingEvent>, Arc<EventFd>),
    ) -> Self {
        Self {
            talk,
            device,
            table,
            memory,
            rings,
            inflight: None,
            logging: Logging::default(),
            waiting: None,
            quiet_by: None,
            quiet_limit: QUIET_LIMIT,
            events,
            wake,
            transfer: None,
        }
    }

    /// Whether nothing is half done or half said, so that another process can go on
    /// from here.
    pub(super) fn is_calm(&self) -> bool {
        self.waiting.is_none() && self.transfer.is_none() && self.talk.is_calm()
    }

    /// Shows what was agreed upon there from now on.
    #[must_use]
    pub(crate) fn shown_by(mut self, endpoint: Arc<Endpoint>) -> Self {
        self.talk.be_seen(endpoint);
        self
    }

    pub(super) fn show(&self) {
        self.talk.show(|enabled| self.rings.views(enabled));
    }

    /// How long requests in flight may take when a message, or the end of the
    /// session, waits for them: [`QUIET_LIMIT`] unless this says something else.
    #[must_use]
    pub fn with_quiet_limit(mut self, limit: Duration) -> Self {
        self.quiet_limit = limit;
        self
    }

    /// From now on the front end waits for requests in flight to end.
    pub(super) fn begin_to_drain(&mut self) {
        self.quiet_by = Instant::now().checked_add(self.quiet_limit);
    }

    /// Carries out effects until one has to wait or none is left.
    fn proceed(&mut self) -> Result<(), SessionError> {
        while self.waiting.is_none() {
            let Some(effect) = self.talk.poll_effect() else {
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

    pub(super) fn answer(&mut self, done: Result<Answer, Reason>) -> Result<(), SessionError> {
        self.waiting = None;
        self.quiet_by = None;
        self.talk.answer(done)
    }

    /// Begins an effect. `None`: it needs no answer, or its answer comes later.
    fn carry_out(&mut self, effect: Effect) -> Result<Option<Answer>, Reason> {
        match effect {
            Effect::Send { bytes, fds } => return self.queue_message(bytes, &fds),
            // The rings are stopped by now.
            Effect::SetStatus(0) => self.device.reset(),
            Effect::SetStatus(_) => {}
            Effect::ResetDevice => {
                self.device.reset();
                self.inflight = None;
                self.logging.all = false;
            }
            // Rings run only if nothing but the logging changed.
            Effect::SetFeatures(features) => {
                return self.log_all(features & VHOST_F_LOG_ALL != 0);
            }
            Effect::SetRingLog { ring, log } => return self.set_ring_log(ring, log),
            Effect::SetLog { log, fd } => {
                let log = MappedLog::map(self.talk.take_fd(fd)?, log, &self.wake)?;
                return self.set_log(log);
            }
            Effect::SetLogFd { fd } => {
                self.logging.told = self.talk.take_event(Some(fd))?.map(Arc::new);
                return Ok(self.relog());
            }
            Effect::CreateInflight {
                queues,
                queue_size,
                features,
            } => return self.create_inflight(queues, queue_size, features),
            Effect::AdoptInflight { inflight, fd } => self.adopt_inflight(inflight, fd)?,
            Effect::MoveState { direction, fd } => self.move_state(direction, fd)?,
            Effect::CheckState => return self.check_state(),
            Effect::SetGpuSocket { fd } => self.set_gpu_socket(fd)?,
            Effect::SetRequestSocket { fd } => self.talk.set_request_socket(fd)?,
            Effect::SetMemory(regions) => {
                let fds = self.talk.take_fds();
                let table = MemoryTable::replaced(regions, fds, &self.wake)?;
                return self.change_memory(table);
            }
            Effect::AddRegion(region) => {
                let fd = self.talk.take_fd(FdSlot(0))?;
                let table = self.table.with(region, fd, &self.wake)?;
                return self.change_memory(table);
            }
            Effect::RemoveRegion(region) => return self.change_memory(self.table.without(region)),
            Effect::StartRing { ring, setup, kick } => return self.start_ring(ring, setup, kick),
            Effect::StopRing { ring } => return Ok(self.stop_ring(ring)),
            Effect::SetKick { ring, kick } => return self.set_kick(ring, kick),
            Effect::SetCall { ring, call } => return self.set_call(ring, call),
            Effect::SetErr { ring, err } => return self.set_err(ring, err),
            Effect::EnableRing { ring, enabled } => {
                return Ok(self.command(ring, |workers, key| workers.enable(key, enabled)));
            }
            Effect::SetMtu { mtu } => {
                if !self.device.set_mtu(mtu) {
                    return Err(Reason::Mtu { mtu });
                }
            }
            Effect::SendRarp { mac } => {
                if !self.device.announce(mac) {
                    return Err(Reason::Mac { mac });
                }
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

    fn queue_message(&mut self, bytes: Vec<u8>, fds: &[FdId]) -> Result<Option<Answer>, Reason> {
        let fds = fds.iter().map(|_| self.inflight_fd());
        let fds = fds.collect::<io::Result<_>>().map_err(Reason::System)?;
        self.talk.send(bytes, fds);
        Ok(None)
    }

    fn create_inflight(
        &mut self,
        queues: u16,
        queue_size: u16,
        features: Option<u64>,
    ) -> Result<Option<Answer>, Reason> {
        let features = features.map(Features::from_bits_retain);
        let area = InflightArea::create(queues, queue_size, features)?;
        let (size, offset, fd) = (area.size(), 0, INFLIGHT_FD);
        self.inflight = Some(area);
        Ok(Some(Answer::Inflight { size, offset, fd }))
    }

    fn adopt_inflight(&mut self, inflight: Inflight, fd: FdSlot) -> Result<(), Reason> {
        let fd = self.talk.take_fd(fd)?;
        let features = self.talk.core.features().map(Features::from_bits_retain);
        let area = InflightArea::adopt(inflight, fd, features, &self.wake)?;
        self.inflight = Some(area);
        Ok(())
    }

    fn set_gpu_socket(&mut self, fd: FdSlot) -> Result<(), Reason> {
        let stream = Stream::check(self.talk.take_fd(fd)?).map_err(Reason::Socket)?;
        self.device.set_gpu_socket(stream).map_err(Reason::System)
    }

    fn move_state(&mut self, direction: Direction, fd: FdSlot) -> Result<(), Reason> {
        let fd = self.talk.take_fd(fd)?;
        // One at a time: the one of before ends first.
        self.transfer = None;
        let transfer = Transfer::begin(direction, fd, self.device.name(), &self.wake)?;
        self.transfer = Some(transfer);
        Ok(())
    }

    fn check_state(&mut self) -> Result<Option<Answer>, Reason> {
        let transfer = self.transfer.as_ref().ok_or(TransferError::None)?;
        let Some(end) = transfer.end() else {
            self.waiting = Some(Waiting::State);
            return Ok(None);
        };
        self.transfer = None;
        end?;
        Ok(Some(Answer::Done))
    }

    /// Answers who waits for the device's state, if it was moved by now.
    fn state_moved(&mut self) -> Result<(), SessionError> {
        let end = match (&self.waiting, &self.transfer) {
            (Some(Waiting::State), Some(transfer)) => transfer.end(),
            _ => None,
        };
        let Some(end) = end else {
            return Ok(());
        };
        self.transfer = None;
        self.answer(end.map(|()| Answer::Done).map_err(Reason::from))?;
        self.proceed()
    }

    /// The descriptor that an answer named, to go with a message.
    fn inflight_fd(&self) -> io::Result<OwnedFd> {
        match &self.inflight {
            Some(area) => area.file().try_clone_to_owned(),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Session for BackendSession {
    type Error = SessionError;

    fn wanted(&self) -> usize {
        if self.waiting.is_some() {
            0
        } else {
            self.talk.core.wanted()
        }
    }

    fn receive(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), SessionError> {
        self.talk.receive(bytes, fds)?;
        let done = self.proceed();
        self.show();
        done
    }

    fn poll_send(&mut self) -> Option<Outgoing> {
        self.talk.poll_send()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.talk.as_fd())
    }

    fn deadline(&self) -> Option<Instant> {
        self.quiet_by
    }

    fn quiet_limit(&self) -> Duration {
        self.quiet_limit
    }

    fn wake(&mut self) -> Result<(), SessionError> {
        self.talk.woken(&self.wake);
        self.talk.announce();
        let poisoned = self.table.poisoned()
            || self.logging.poisoned()
            || self.inflight.as_ref().is_some_and(InflightArea::poisoned);
        if poisoned && !self.talk.is_closing() {
            return Err(SessionError::MemoryGone);
        }
        self.state_moved()?;
        while let Ok(event) = self.events.try_recv() {
            self.ring_event(event)?;
            self.proceed()?;
            self.show();
        }
        if !self.talk.is_closing() && self.quiet_by.is_some_and(|by| by <= Instant::now()) {
            let limit = self.quiet_limit;
            return Err(SessionError::NotQuiet { limit });
        }
        Ok(())
    }

    fn close(&mut self) {
        self.talk.close();
        self.transfer = None;
        if let Some(Waiting::State) = self.waiting {
            let _ = self.answer(Err(TransferError::Cancelled.into()));
        }
        self.talk.core.disconnect();
        // Errors while ending are of no use to anybody; `is_quiet` tells.
        let _ = self.proceed();
    }

    fn is_quiet(&self) -> bool {
        self.waiting.is_none() && self.rings.are_stopped()
    }
}

impl fmt::Debug for BackendSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendSession")
            .field("core", &self.talk.core)
            .finish_non_exhaustive()
    }
}
