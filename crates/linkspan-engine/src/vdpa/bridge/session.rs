//! One connection of a front end to a vDPA device: the protocol core, and what
//! becomes of its effects.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use linkspan_mem::{GuestMemory, Iova};
use linkspan_sys::EventFd;
use linkspan_vhost::backend::{Answer, Effect, FdSlot};
use linkspan_vhost::vdpa::{ControlCommand, status};

use super::BridgedDevice;
use super::rings::Slot;
use crate::endpoint::{Endpoint, RingView};
use crate::limit::chain;
use crate::session::{Outgoing, Session};
use crate::vdpa::control::ControlQueue;
use crate::vdpa::device::VdpaDevice;
use crate::vdpa::error::VdpaError;
use crate::vhost_user::memory::MemoryTable;
use crate::vhost_user::talk::Talk;
use crate::vhost_user::{Reason, SessionError};

/// Where the MAC address and the MTU of a network device are (virtio 1.3, 5.1.4).
const MAC_LEN: usize = 6;
const MTU_AT: u32 = 10;
/// `VIRTIO_NET_F_MTU`.
const NET_F_MTU: u64 = 1 << 3;

/// A vDPA device lent to one front end.
pub(crate) struct BridgeSession {
    pub(super) talk: Talk,
    pub(super) home: Arc<BridgedDevice>,
    /// There until the end.
    device: Option<VdpaDevice>,
    pub(super) table: MemoryTable,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) slots: Vec<Slot>,
    pub(super) control: Option<ControlQueue>,
    /// What the device gets of features, once they are agreed upon.
    pub(super) features: Option<u64>,
    /// The driver's status, once it was told.
    pub(super) status: Option<u8>,
    /// The address that the front end gave the device.
    pub(super) mac: Option<[u8; MAC_LEN]>,
    /// Queue pairs that the device has in use.
    pub(super) pairs: u16,
    /// Rings were stopped, and others wait to go on.
    pub(super) settle_by: Option<Instant>,
    /// Signalled when the front end takes memory back.
    gone: Arc<EventFd>,
}

impl BridgeSession {
    pub(super) fn new(
        home: Arc<BridgedDevice>,
        device: VdpaDevice,
        changes: Arc<EventFd>,
    ) -> io::Result<Self> {
        match Parts::new(&home, changes) {
            Ok(parts) => Ok(Self {
                talk: parts.talk,
                slots: (0..home.rings()).map(|_| Slot::default()).collect(),
                home,
                device: Some(device),
                table: parts.table,
                memory: parts.memory,
                control: parts.control,
                features: None,
                status: None,
                mac: None,
                pairs: 1,
                settle_by: None,
                gone: parts.gone,
            }),
            Err(error) => {
                home.give_back(device);
                Err(error)
            }
        }
    }

    /// What is agreed upon, and each message, can be seen there from now on.
    #[must_use]
    pub(super) fn shown_by(mut self, endpoint: Arc<Endpoint>) -> Self {
        self.talk.be_seen(endpoint);
        self
    }

    /// The rings are the kernel's, so of what they do nothing is known.
    fn show(&self) {
        let slots = || (0..).zip(&self.slots);
        let view = |(index, slot): (u16, &Slot), enabled: &dyn Fn(u16) -> bool| {
            let setup = slot.setup?;
            Some(RingView {
                index,
                size: setup.size,
                enabled: enabled(index),
                counters: None,
            })
        };
        self.talk
            .show(|enabled| slots().filter_map(|it| view(it, enabled)).collect());
    }

    pub(super) fn device(&mut self) -> &mut VdpaDevice {
        self.device.as_mut().expect("it is there until the end")
    }

    /// The device for a call that borrows from the session.
    pub(super) fn lend(&mut self) -> VdpaDevice {
        self.device.take().expect("it is there until the end")
    }

    pub(super) fn back(&mut self, device: VdpaDevice) {
        self.device = Some(device);
    }

    /// Carries out effects until none is left.
    fn proceed(&mut self) -> Result<(), SessionError> {
        while let Some(effect) = self.talk.poll_effect() {
            if let Effect::Send { bytes, .. } = effect {
                self.talk.send(bytes, Vec::new());
                continue;
            }
            let done = self.carry_out(effect);
            self.talk.answer(done)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) -> Result<Answer, Reason> {
        match effect {
            Effect::SetFeatures(features) => self.set_features(features)?,
            Effect::SetStatus(status) => self.set_status(status)?,
            Effect::ResetDevice => self.reset(),
            Effect::SetMemory(regions) => {
                let fds = self.talk.take_fds();
                let table = MemoryTable::replaced(regions, fds, &self.gone)?;
                self.change_memory(table)?;
            }
            Effect::AddRegion(region) => {
                let fd = self.talk.take_fd(FdSlot(0))?;
                let table = self.table.with(region, fd, &self.gone)?;
                self.change_memory(table)?;
            }
            Effect::RemoveRegion(region) => {
                let table = self.table.without(region);
                self.change_memory(table)?;
            }
            Effect::StartRing { ring, setup, kick } => {
                let kick = self.talk.take_event(kick)?.ok_or(Reason::NoKick)?;
                self.start_ring(ring, setup, Arc::new(kick))?;
            }
            Effect::StopRing { ring } => {
                let base = self.stop_ring(ring);
                return Ok(Answer::RingStopped { base });
            }
            Effect::SetKick { ring, kick } => {
                let kick = self.talk.take_event(kick)?.ok_or(Reason::NoKick)?;
                self.set_kick(ring, Arc::new(kick))?;
            }
            Effect::SetCall { ring, call } => {
                let call = self.talk.take_event(call)?.map(Arc::new);
                self.set_call(ring, call)?;
            }
            Effect::SetErr { ring, err } => {
                let err = self.talk.take_event(err)?.map(Arc::new);
                self.set_err(ring, err)?;
            }
            Effect::EnableRing { ring, enabled } => self.enable_ring(ring, enabled)?,
            Effect::ReadConfig { offset, size } => {
                let bytes = self.read_config(offset, size)?;
                return Ok(Answer::Config(bytes));
            }
            Effect::WriteConfig { offset, bytes, .. } => self.write_config(offset, &bytes)?,
            Effect::SetMtu { mtu } => self.set_mtu(mtu)?,
            Effect::SetRequestSocket { fd } => self.talk.set_request_socket(fd)?,
            Effect::Send { .. }
            | Effect::SetRingLog { .. }
            | Effect::SetLog { .. }
            | Effect::SetLogFd { .. }
            | Effect::CreateInflight { .. }
            | Effect::AdoptInflight { .. }
            | Effect::MoveState { .. }
            | Effect::SetGpuSocket { .. }
            | Effect::CheckState
            | Effect::SendRarp { .. } => return Err(Reason::NotOffered),
        }
        Ok(Answer::Done)
    }

    fn reset(&mut self) {
        self.halt();
        self.features = None;
        self.status = None;
        self.mac = None;
        self.slots.fill_with(Slot::default);
    }

    /// The device is asked at once whether it agrees, so that the answer is true.
    fn set_features(&mut self, accepted: u64) -> Result<(), Reason> {
        let features = self.home.bridge().accept(accepted);
        let features = features.map_err(VdpaError::from)?;
        self.halt();
        self.device().try_features(features)?;
        self.features = Some(features);
        Ok(())
    }

    /// The status of the device itself follows from what is to run.
    fn set_status(&mut self, new: u8) -> Result<(), Reason> {
        let old = self.status.replace(new);
        if new == 0 {
            self.halt();
            return Ok(());
        }
        if (old.unwrap_or(0) ^ new) & status::DRIVER_OK != 0
            && let Err(reason) = self.settle()
        {
            self.status = old;
            return Err(reason);
        }
        Ok(())
    }

    /// The regions that the device is to reach: the front end's by guest address,
    /// and those of the control queue in their own space.
    fn change_memory(&mut self, table: MemoryTable) -> Result<(), Reason> {
        let memory = table.resolve()?;
        let was_live = self.device().is_live();
        let resumes = self.device().facts().can_resume();
        if was_live {
            let paused = resumes && self.pause();
            if !paused {
                self.halt();
            }
        }
        let before = (
            std::mem::replace(&mut self.table, table),
            std::mem::replace(&mut self.memory, memory),
        );
        let Err(reason) = self.remap(was_live) else {
            return Ok(());
        };
        (self.table, self.memory) = before;
        if let Err(error) = self.remap(was_live) {
            tracing::warn!("nor does the device go on with the memory of before: {error}");
            // Whoever waits for its rings is told by the end of the session.
            self.settle_by = Some(Instant::now());
        }
        Err(reason)
    }

    /// Maps what the table says, and lets rings that ran go on.
    fn remap(&mut self, was_live: bool) -> Result<(), Reason> {
        let wanted = self.all_mappings();
        self.device().set_memory(wanted)?;
        if self.device().is_live() {
            return Ok(self.device().resume()?);
        }
        if was_live { self.settle() } else { Ok(()) }
    }

    pub(super) fn all_mappings(&self) -> Vec<(u32, Iova, linkspan_mem::Region)> {
        let theirs = self.table.regions().map(|(known, region)| {
            let iova = Iova(known.guest_address.0);
            (0, iova, region.clone())
        });
        let ours = self.control.iter().map(ControlQueue::mapping);
        theirs.chain(ours).collect()
    }

    /// Read from the device each time (QEMU 6ae72f609a); beyond what it has there
    /// are zeroes.
    fn read_config(&mut self, offset: u32, size: u32) -> Result<Vec<u8>, Reason> {
        let mut bytes = vec![0; size as usize];
        let there = self
            .device()
            .facts()
            .config_size
            .saturating_sub(offset)
            .min(size);
        if there > 0 {
            let target = &mut bytes[..there as usize];
            let read = self.device().kernel().read_config(offset, target);
            read.map_err(|source| VdpaError::Probe {
                what: "its configuration space",
                source,
            })?;
        }
        Ok(bytes)
    }

    /// Only what was written (QEMU 421f45d03f); an address by a command, where
    /// there is one.
    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Reason> {
        let features = self.features.unwrap_or(0);
        if self.home.bridge().sets_mac(features)
            && !self.has_control_of_its_own()
            && offset == 0
            && let Ok(mac) = <[u8; MAC_LEN]>::try_from(bytes)
        {
            return Ok(self.set_mac(mac)?);
        }
        let size = self.device().facts().config_size;
        let end = u64::from(offset) + bytes.len() as u64;
        if end > size.into() {
            let len = bytes.len();
            return Err(crate::device::ConfigRange { offset, len, size }.into());
        }
        let written = self.device().kernel().write_config(offset, bytes);
        Ok(written.map_err(|source| VdpaError::Step {
            what: format!("VHOST_VDPA_SET_CONFIG of {} bytes at {offset}", bytes.len()),
            source,
        })?)
    }

    fn set_mac(&mut self, mac: [u8; MAC_LEN]) -> Result<(), VdpaError> {
        if self.device().is_live() {
            self.command(ControlCommand::Mac(mac))?;
        }
        self.mac = Some(mac);
        Ok(())
    }

    /// A device that has a limit of its own cannot have a larger one.
    fn set_mtu(&mut self, mtu: u16) -> Result<(), Reason> {
        if self.device().facts().features & NET_F_MTU == 0 {
            return Ok(());
        }
        let bytes = self.read_config(MTU_AT, 2)?;
        let most = u16::from_le_bytes([bytes[0], bytes[1]]);
        if mtu > most {
            return Err(Reason::Mtu { mtu });
        }
        Ok(())
    }
}

impl Session for BridgeSession {
    type Error = SessionError;

    fn wanted(&self) -> usize {
        self.talk.core.wanted()
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
        self.settle_by
    }

    fn wake(&mut self) -> Result<(), SessionError> {
        self.talk.woken(&self.gone);
        if self.talk.is_closing() {
            return Ok(());
        }
        if self.table.poisoned() {
            return Err(SessionError::MemoryGone);
        }
        if self.talk.has_changed() && self.device().is_live() {
            let now = self.device().status().unwrap_or(status::NEEDS_RESET);
            if now & (status::NEEDS_RESET | status::FAILED) != 0 {
                self.talk.core.set_needs_reset();
                self.talk.announce();
                return Err(SessionError::DeviceLost { status: now });
            }
        }
        self.talk.announce();
        if self.settle_by.is_some_and(|by| by <= Instant::now()) {
            self.settle_by = None;
            if let Err(reason) = self.settle() {
                let waiting = self.slots.iter().position(Slot::is_wanted);
                let ring = waiting
                    .and_then(|ring| u16::try_from(ring).ok())
                    .unwrap_or(0);
                return Err(SessionError::RingLost { ring, reason });
            }
        }
        Ok(())
    }

    fn close(&mut self) {
        self.talk.close();
        self.settle_by = None;
        self.halt();
        self.talk.core.disconnect();
        // Errors while ending are of no use to anybody.
        let _ = self.proceed();
    }

    fn is_quiet(&self) -> bool {
        self.device.as_ref().is_none_or(|device| !device.is_live())
    }
}

impl Drop for BridgeSession {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            self.home.give_back(device);
        }
    }
}

impl fmt::Debug for BridgeSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BridgeSession")
            .field("core", &self.talk.core)
            .finish_non_exhaustive()
    }
}

/// What a session has beside its device, all of it or nothing.
struct Parts {
    talk: Talk,
    table: MemoryTable,
    memory: Arc<GuestMemory>,
    control: Option<ControlQueue>,
    gone: Arc<EventFd>,
}

impl Parts {
    fn new(home: &BridgedDevice, changes: Arc<EventFd>) -> io::Result<Self> {
        let gone = Arc::new(EventFd::new()?);
        let talk = Talk::new(home.offer(), changes, &gone)?;
        let control = if home.bridge().drives_control() {
            Some(ControlQueue::new(
                home.facts().queue_size(home.facts().queues, 0).unwrap_or(2),
            )?)
        } else {
            None
        };
        let table = MemoryTable::default();
        let memory = table.resolve().map_err(io::Error::other)?;
        Ok(Self {
            talk,
            table,
            memory,
            control,
            gone,
        })
    }
}

/// An error of a ring that waits, in a log.
pub(super) fn note(what: &str, error: &VdpaError) {
    tracing::warn!("{what}: {}", chain(error));
}
