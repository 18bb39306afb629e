//! What a driver's accesses ask of the device, and what the device says.

use std::io;

use linkspan_mem::{Gpa, Iova, Region, UserVa};
use linkspan_vfio::DmaMap;
use linkspan_vfio::pci::{INTX, MSIX};
use linkspan_vhost::vdpa::{Plan, RingPlan, Wire, status};
use linkspan_virtio::pci::{AccessError, BAR_INTERRUPTS, BAR_REGISTERS, Effect, Read, pieces};
use linkspan_virtio::{Features, QueueLayout};

use super::rings::{Base, FunctionWires, Kick, RunningRing};
use super::{PciDevice, drained};
use crate::limit::chain;
use crate::vdpa::device::{VdpaDevice, check_memory, ring_fd};
use crate::vdpa::error::VdpaError;
use crate::vdpa::used::used_index;
use crate::vfio_user::{Guest, Mapped, Raise};

impl PciDevice {
    /// Reads of a BAR. Where nothing is there are zeroes.
    pub(super) fn read_bar(&mut self, guest: &mut Guest, bar: u8, offset: u64, target: &mut [u8]) {
        if bar == BAR_INTERRUPTS {
            return self.space.read_vectors(offset, target);
        }
        if bar == BAR_REGISTERS {
            // What changed before is to be seen in the generation.
            self.take_changes(guest);
        }
        for piece in pieces(offset, target.len()) {
            let target = &mut target[piece.at..piece.at + piece.len];
            match self.registers.read(bar, piece.offset, target) {
                Ok(Read::Done) => {}
                Ok(Read::Config { offset, len }) => self.read_config(offset, &mut target[..len]),
                Err(stray) => self.stray(&stray),
            }
        }
        if bar == BAR_REGISTERS && !self.registers.is_pending() {
            guest.interrupts.hold(INTX, 0, false);
        }
    }

    /// Writes to a BAR, and does what that asks for.
    pub(super) fn write_bar(&mut self, guest: &mut Guest, bar: u8, offset: u64, bytes: &[u8]) {
        if bar == BAR_INTERRUPTS {
            return self.space.write_vectors(offset, bytes);
        }
        for piece in pieces(offset, bytes.len()) {
            let bytes = &bytes[piece.at..piece.at + piece.len];
            match self.registers.write(bar, piece.offset, bytes) {
                Ok(None) => {}
                Ok(Some(effect)) => self.carry_out(guest, effect),
                Err(stray) => self.stray(&stray),
            }
        }
    }

    fn carry_out(&mut self, guest: &mut Guest, effect: Effect) {
        let done = match effect {
            Effect::Kick { queue } => {
                let number = usize::from(queue);
                if let (Some(Some(ring)), Some(kick)) =
                    (self.rings.get(number), self.kicks.get(number))
                {
                    ring.kick(kick.as_ref());
                }
                return;
            }
            Effect::WriteConfig { offset, bytes } => {
                let done = self.write_config(offset, &bytes);
                return self.note(done);
            }
            Effect::Vector { queue } => return self.rewire(guest, queue),
            Effect::Agree { features } => self.agree(features),
            Effect::Start => self.start(guest, &[]),
            Effect::Reset => {
                self.rest();
                guest.interrupts.hold(INTX, 0, false);
                Ok(())
            }
            Effect::ResetQueue { .. } if self.registers.needs_reset() => {
                self.halt();
                Ok(())
            }
            Effect::ResetQueue { .. } | Effect::EnableQueue { .. } => {
                let parked = self.parked.take();
                let bases = parked.unwrap_or_else(|| self.halt());
                self.start(guest, &bases)
            }
        };
        let tell = self.registers.answer(done.is_ok());
        self.note(done);
        if tell.unwrap_or(false) {
            self.tell_of_change(guest);
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.device.as_ref().is_some_and(VdpaDevice::is_live)
    }

    /// The device is asked at once whether it agrees, so that the driver reads the truth.
    fn agree(&mut self, accepted: u64) -> Result<(), VdpaError> {
        let features = self.features.accept(accepted)?;
        self.halt();
        self.device()?.try_features(features)
    }

    /// Starts the device with all rings that are enabled, each at its beginning or where
    /// it was before; at once or as soon as it may use memory.
    fn start(&mut self, guest: &Guest, bases: &[Base]) -> Result<(), VdpaError> {
        let features = self.features.accept(self.registers.features())?;
        let plans = self.ring_plans(guest, features, bases)?;
        if !self.space.bus_master() {
            let bases = plans.iter().map(|plan| (plan.ring, Some(plan.base)));
            self.parked = Some(bases.collect());
            return Ok(());
        }
        self.device()?;
        let wanted = self.wanted(guest, None);
        for plan in &plans {
            let ring = usize::from(plan.ring);
            let kick = self.kick(ring).map(drop);
            kick.map_err(|source| VdpaError::System {
                what: "no descriptor can be had for a ring",
                source,
            })?;
        }
        for plan in &plans {
            self.rings[usize::from(plan.ring)] = Some(RunningRing::default());
        }
        let plan = Plan {
            features,
            groups: Vec::new(),
            rings: plans,
            config_call: true,
        };
        let started = self.launch(guest, wanted, plan);
        match started {
            // Whatever was made available before, when they were others or none.
            Ok(()) => {
                for (ring, kick) in self.rings.iter().zip(&self.kicks) {
                    if let Some(ring) = ring {
                        ring.kick(kick.as_ref());
                    }
                }
            }
            Err(_) => self.rings.fill_with(|| None),
        }
        started
    }

    /// The eventfd of a ring's kicks, which is the same for one VMM all the time.
    pub(super) fn kick(&mut self, ring: usize) -> io::Result<&mut Kick> {
        let kick = self.kicks.get_mut(ring).ok_or(io::ErrorKind::NotFound)?;
        Ok(match kick {
            Some(kick) => kick,
            None => kick.insert(Kick::new()?),
        })
    }

    fn ring_plans(
        &self,
        guest: &Guest,
        features: u64,
        bases: &[Base],
    ) -> Result<Vec<RingPlan>, VdpaError> {
        if let Some((ring, address)) = self.first_outside(guest) {
            // Such as that of a VMM that shares none by descriptor.
            let maps = guest.memory.maps().iter();
            let mut around =
                maps.filter(|it| (it.map.address.0..=it.map.last().0).contains(&address));
            around.try_for_each(|mapped| self.reaches(mapped))?;
            return Err(VdpaError::Address { ring, address });
        }
        let layout = QueueLayout::of(Features::from_bits_retain(features));
        let mut plans = Vec::new();
        for (ring, queue) in (0_u16..).zip(self.registers.queues()) {
            if !queue.enabled {
                continue;
            }
            let base = match bases.iter().find(|(known, _)| *known == ring) {
                Some((_, base)) => base.ok_or(VdpaError::NoBase { ring })?,
                None => layout.base(layout.start()),
            };
            plans.push(RingPlan {
                ring,
                size: queue.size,
                base,
                address: queue.areas.map(Iova),
                wires: vec![Wire::Call, Wire::Kick],
                enabled: true,
            });
        }
        Ok(plans)
    }

    /// A ring that is enabled and not all in memory of the VMM, and where.
    fn first_outside(&self, guest: &Guest) -> Option<(u16, u64)> {
        let features = Features::from_bits_retain(self.registers.features());
        let layout = QueueLayout::of(features);
        let space = &guest.memory.space().guest;
        let rings = (0_u16..).zip(self.registers.queues());
        let mut parts = rings
            .filter(|(_, queue)| queue.enabled)
            .flat_map(|(ring, queue)| {
                let lens = layout.part_lens(queue.size);
                queue
                    .areas
                    .into_iter()
                    .zip(lens)
                    .map(move |part| (ring, part))
            });
        let outside = parts.find(|(_, (address, len))| {
            let inside = |len| space.resolve_for(Gpa(*address), len, true, |_| {}).is_ok();
            !u32::try_from(*len).is_ok_and(inside)
        });
        outside.map(|(ring, (address, _))| (ring, address))
    }

    fn launch(
        &mut self,
        guest: &Guest,
        wanted: Vec<(u32, Iova, Region)>,
        plan: Plan,
    ) -> Result<(), VdpaError> {
        let Some(mut device) = self.device.take() else {
            return Ok(());
        };
        let started = device
            .set_memory(wanted)
            .and_then(|()| device.start(plan, &self.wires(guest)));
        if started.is_ok() {
            for (number, ring) in (0..).zip(&mut self.rings) {
                if let Some(ring) = ring {
                    ring.doorbell = device.doorbell(number);
                }
            }
        }
        self.device = Some(device);
        started
    }

    fn wires<'a>(&'a self, guest: &'a Guest) -> FunctionWires<'a> {
        FunctionWires {
            kicks: &self.kicks,
            queues: self.registers.queues(),
            interrupts: &guest.interrupts,
            by_line: (!self.space.msix_enabled()).then_some(&self.called),
            changes: &self.changes,
        }
    }

    /// Whether a ring that is enabled is in this memory.
    pub(super) fn has_rings_in(&self, map: &DmaMap) -> bool {
        let features = Features::from_bits_retain(self.registers.features());
        let layout = QueueLayout::of(features);
        let mut enabled = self.registers.queues().iter().filter(|it| it.enabled);
        enabled.any(|queue| {
            let mut parts = queue.areas.iter().zip(layout.part_lens(queue.size));
            parts.any(|(area, len)| {
                let last = area.saturating_add((len as u64).saturating_sub(1));
                *area <= map.last().0 && map.address.0 <= last
            })
        })
    }

    /// Stops the device, whose rings are about to lose their memory, and notes where they
    /// go on. Its driver does not hear of that.
    pub(super) fn park(&mut self, guest: &Guest) {
        let mut bases = self.halt();
        for (ring, base) in &mut bases {
            let Some(queue) = self.registers.queues().get(usize::from(*ring)) else {
                continue;
            };
            // The used ring says it of a device that cannot, as for a bridge.
            let areas = queue.areas.map(UserVa);
            let (memory, features) = (guest.memory.space(), self.registers.features());
            *base = base.or_else(|| used_index(memory, features, queue.size, areas));
        }
        self.parked = Some(bases);
    }

    /// A function that may not use memory (PCI 3.0, 6.2.2) has its device at rest.
    pub(super) fn follow_master(&mut self, guest: &mut Guest) {
        if self.space.bus_master() {
            self.unpark(guest);
        } else if self.is_live() {
            self.park(guest);
        }
    }

    /// Starts it again once all of its rings have memory and it may use that.
    pub(super) fn unpark(&mut self, guest: &mut Guest) {
        let Some(bases) = self.parked.take() else {
            return;
        };
        if self.registers.needs_reset() {
            return;
        }
        if !self.space.bus_master() || self.first_outside(guest).is_some() {
            self.parked = Some(bases);
            return;
        }
        if let Err(error) = self.start(guest, &bases) {
            self.note(Err(error));
            self.give_up(guest);
        }
    }

    /// Stops the device; where its rings were.
    pub(super) fn halt(&mut self) -> Vec<Base> {
        self.parked = None;
        self.rings.fill_with(|| None);
        let device = self.device.as_mut();
        device.map_or_else(Vec::new, VdpaDevice::stop)
    }

    /// Stops the device for a driver that begins anew. One that is not as new is given
    /// up, to be opened again.
    pub(super) fn rest(&mut self) {
        self.halt();
        let rests = |device: &VdpaDevice| device.status().is_ok_and(|status| status == 0);
        if self.device.as_ref().is_some_and(|device| !rests(device)) {
            tracing::warn!("the vDPA device does not come to rest and is opened again");
            self.device = None;
        }
        self.untold = false;
        let _ = (drained(&self.changes), drained(&self.called));
    }

    /// A reset of the function: registers, window and configuration space too.
    pub(super) fn renew(&mut self) {
        self.rest();
        self.registers.reset();
        self.registers.set_window(0, 0, 0);
        self.space.reset();
    }

    fn read_config(&mut self, offset: u32, target: &mut [u8]) {
        if target.is_empty() {
            return;
        }
        let done = self.device().and_then(|device| {
            let read = device.kernel().read_config(offset, target);
            read.map_err(|source| VdpaError::Probe {
                what: "its configuration space",
                source,
            })
        });
        self.note(done);
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), VdpaError> {
        let written = self.device()?.kernel().write_config(offset, bytes);
        written.map_err(|source| VdpaError::Step {
            what: format!("VHOST_VDPA_SET_CONFIG of {} bytes at {offset}", bytes.len()),
            source,
        })
    }

    /// Whether a map can be the device's: it came with a descriptor, to be read and written,
    /// and the device reaches it. Drivers have no buffers elsewhere.
    pub(super) fn reaches(&self, mapped: &Mapped) -> Result<(), VdpaError> {
        let map = &mapped.map;
        let (iova, len) = (map.address.0, map.size);
        let region = mapped.region.as_ref();
        let region = region.filter(|_| map.readable && map.writable);
        let region = region.ok_or(VdpaError::NotShared { iova, len })?;
        check_memory(self.kept.facts(), map.address, region)
    }

    /// The memory that the device is to have, but for one map that goes.
    pub(super) fn wanted(
        &self,
        guest: &Guest,
        without: Option<&DmaMap>,
    ) -> Vec<(u32, Iova, Region)> {
        let maps = guest.memory.maps().iter();
        maps.filter(|mapped| without != Some(&mapped.map) && self.reaches(mapped).is_ok())
            .filter_map(|mapped| {
                let region = mapped.region.clone()?;
                Some((0, mapped.map.address, region))
            })
            .collect()
    }

    /// Brings the mappings of the device to what the VMM wants. One that was suspended
    /// for that and does not go on is given up.
    pub(super) fn remap(&mut self, wanted: Vec<(u32, Iova, Region)>) -> Result<(), VdpaError> {
        let Some(device) = &mut self.device else {
            return Ok(());
        };
        // Requests under way end first where that can be asked for. Elsewhere an
        // access to what is not mapped any more fails, as behind any IOMMU.
        let paused = device.is_live() && device.facts().can_resume() && device.pause().is_ok();
        let done = device.set_memory(wanted);
        let resumed = if paused { device.resume() } else { Ok(()) };
        if resumed.is_err() {
            self.halt();
            self.device = None;
        }
        done.and(resumed)
    }

    /// The driver finds out that the device needs a reset.
    pub(super) fn give_up(&mut self, guest: &mut Guest) {
        if self.registers.broken() {
            self.tell_of_change(guest);
        }
    }

    /// Gives rings whose vector is meant their descriptors of now.
    pub(super) fn rewire_all(&mut self, guest: &mut Guest, meant: impl Fn(u16) -> bool) {
        for ring in 0..self.rings.len() {
            let vector = self.registers.queues()[ring].vector;
            if meant(vector)
                && let Ok(ring) = u16::try_from(ring)
            {
                self.rewire(guest, ring);
            }
        }
    }

    /// Gives a ring that runs the descriptor that is its interrupt now, and interrupts
    /// once: what was used meanwhile told nobody.
    fn rewire(&mut self, guest: &mut Guest, ring: u16) {
        let running = self
            .rings
            .get(usize::from(ring))
            .is_some_and(Option::is_some);
        let Some(device) = self.device.as_ref().filter(|_| running) else {
            return;
        };
        let call = self.wires(guest).call(ring);
        let set = device.kernel().set_ring_fd(ring, ring_fd(Wire::Call), call);
        if call.is_some() {
            let vector = self.registers.queues()[usize::from(ring)].vector;
            if guest.interrupts.raise(MSIX, vector.into()) == Raise::Nobody {
                self.registers.used();
                self.hold_line(guest);
            }
        }
        self.note(set.map_err(|source| VdpaError::Step {
            what: format!("another interrupt of ring {ring}"),
            source,
        }));
    }

    /// Holds the line as the registers say.
    pub(super) fn hold_line(&mut self, guest: &mut Guest) {
        let up = self.registers.is_pending() && self.space.has_line();
        guest.interrupts.hold(INTX, 0, up);
    }

    /// A change of configuration, or the end of a device.
    pub(super) fn take_changes(&mut self, guest: &mut Guest) {
        if !drained(&self.changes) {
            return;
        }
        let Some(device) = &self.device else {
            return;
        };
        let now = device.status().unwrap_or(status::NEEDS_RESET);
        if now & (status::NEEDS_RESET | status::FAILED) != 0 {
            tracing::warn!("the vDPA device is broken, its status is {now:#x}");
            self.give_up(guest);
        } else {
            self.registers.config_changed();
            self.tell_of_change(guest);
        }
    }

    fn tell_of_change(&mut self, guest: &mut Guest) {
        let vector = self.registers.config_vector();
        let told = guest.interrupts.raise(MSIX, vector.into());
        self.untold = told == Raise::Nobody && !self.space.has_line();
        self.hold_line(guest);
    }

    /// Somebody may hear now of what nobody could be told.
    pub(super) fn tell_again(&mut self, guest: &mut Guest) {
        if self.untold {
            self.tell_of_change(guest);
        }
    }

    fn stray(&mut self, error: &AccessError) {
        if let Some(more) = self.strays.allow() {
            tracing::debug!(more, "an access without effect: {error}");
        }
    }

    pub(super) fn note(&mut self, done: Result<(), VdpaError>) {
        if let Err(error) = done
            && let Some(more) = self.failures.allow()
        {
            let hint = error.hint().unwrap_or_default();
            tracing::warn!(more, hint, "{}", chain(&error));
        }
    }
}
