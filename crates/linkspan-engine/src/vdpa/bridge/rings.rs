//! The rings of a bridge: what the front end wants of them, and a device that is
//! brought to match. A vDPA device takes all its rings at once, so what it cannot
//! take while it runs is a stop with its bases and a start from there.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_mem::{Iova, UserVa};
use linkspan_sys::PeerEventFd;
use linkspan_vhost::backend::RingSetup;
use linkspan_vhost::vdpa::{ControlCommand, Plan, RingPlan, Wire, status};
use linkspan_virtio::{Features, QueueLayout};

use super::session::{BridgeSession, note};
use crate::vdpa::control::{ASID, ControlQueue};
use crate::vdpa::device::{Wires, ring_fd};
use crate::vdpa::error::VdpaError;
use crate::vdpa::used::used_index;
use crate::vhost_user::Reason;

/// How long rings that are not stopped wait for others that perhaps are, so that a
/// front end that stops them one after the other restarts nothing in between.
const SETTLE: Duration = Duration::from_millis(20);

/// What the front end wants of a ring.
#[derive(Default)]
pub(super) struct Slot {
    /// How it runs, if it does as far as the front end knows. Its base is where it
    /// goes on.
    pub(super) setup: Option<RingSetup>,
    kick: Option<Arc<PeerEventFd>>,
    call: Option<Arc<PeerEventFd>>,
    err: Option<Arc<PeerEventFd>>,
    /// The device has it.
    live: bool,
}

impl Slot {
    /// Whether it is to run.
    pub(super) fn is_wanted(&self) -> bool {
        self.setup.is_some_and(|setup| setup.enabled)
    }
}

/// The descriptors of all rings.
struct BridgeWires<'a> {
    slots: &'a [Slot],
    control: Option<(u16, &'a ControlQueue)>,
    changes: BorrowedFd<'a>,
}

impl Wires for BridgeWires<'_> {
    fn ring(&self, ring: u16, wire: Wire) -> Option<BorrowedFd<'_>> {
        if let Some((index, control)) = self.control
            && index == ring
        {
            return match wire {
                Wire::Kick => Some(control.events.kick.as_fd()),
                Wire::Call => Some(control.events.call.as_fd()),
                Wire::Err => None,
            };
        }
        let slot = self.slots.get(usize::from(ring))?;
        let event = match wire {
            Wire::Kick => &slot.kick,
            Wire::Call => &slot.call,
            Wire::Err => &slot.err,
        };
        event.as_ref().map(|event| event.as_fd())
    }

    fn config(&self) -> Option<BorrowedFd<'_>> {
        Some(self.changes)
    }
}

impl BridgeSession {
    pub(super) fn start_ring(
        &mut self,
        ring: u16,
        setup: RingSetup,
        kick: Arc<PeerEventFd>,
    ) -> Result<(), Reason> {
        // It is looked at before the device is.
        self.place(ring, &setup)?;
        let slot = &mut self.slots[usize::from(ring)];
        slot.setup = Some(setup);
        slot.kick = Some(kick);
        self.settle().inspect_err(|_| self.take_back(ring))
    }

    /// A ring that the device did not take: the others go on without it.
    fn take_back(&mut self, ring: u16) {
        let slot = &mut self.slots[usize::from(ring)];
        slot.setup = None;
        slot.kick = None;
        self.settle_by = Some(Instant::now());
    }

    /// Where it would go on. Others that run go on soon.
    pub(super) fn stop_ring(&mut self, ring: u16) -> u32 {
        self.halt();
        let slot = &mut self.slots[usize::from(ring)];
        let base = slot.setup.take().map_or(0, |setup| setup.base);
        slot.kick = None;
        slot.call = None;
        let others = self.slots.iter().any(Slot::is_wanted);
        self.settle_by = others.then(|| Instant::now() + SETTLE);
        base
    }

    pub(super) fn enable_ring(&mut self, ring: u16, enabled: bool) -> Result<(), Reason> {
        let slot = &mut self.slots[usize::from(ring)];
        if let Some(setup) = &mut slot.setup {
            setup.enabled = enabled;
        }
        let done = if self.device().is_live() && self.has_pairs() {
            self.use_pairs().map_err(Reason::from)
        } else {
            self.settle()
        };
        done.inspect_err(|_| {
            if let Some(setup) = &mut self.slots[usize::from(ring)].setup {
                setup.enabled = !enabled;
            }
            self.settle_by = Some(Instant::now());
        })
    }

    pub(super) fn set_kick(&mut self, ring: u16, kick: Arc<PeerEventFd>) -> Result<(), Reason> {
        self.rewire(ring, Wire::Kick, Some(&kick))?;
        // One of the old descriptor may have been missed.
        ring_once(&kick);
        self.slots[usize::from(ring)].kick = Some(kick);
        Ok(())
    }

    pub(super) fn set_call(
        &mut self,
        ring: u16,
        call: Option<Arc<PeerEventFd>>,
    ) -> Result<(), Reason> {
        self.rewire(ring, Wire::Call, call.as_ref())?;
        // QEMU did not wait until this is done, and lost what went to the
        // old one meanwhile (fixed in 1ba9a52203). A call too many does no harm.
        if let Some(call) = &call {
            ring_once(call);
        }
        self.slots[usize::from(ring)].call = call;
        Ok(())
    }

    pub(super) fn set_err(
        &mut self,
        ring: u16,
        err: Option<Arc<PeerEventFd>>,
    ) -> Result<(), Reason> {
        self.rewire(ring, Wire::Err, err.as_ref())?;
        self.slots[usize::from(ring)].err = err;
        Ok(())
    }

    /// Another descriptor for a ring that runs.
    fn rewire(
        &mut self,
        ring: u16,
        wire: Wire,
        event: Option<&Arc<PeerEventFd>>,
    ) -> Result<(), VdpaError> {
        if !self.slots[usize::from(ring)].live {
            return Ok(());
        }
        let fd = event.map(|event| event.as_fd());
        let set = self.device().kernel().set_ring_fd(ring, ring_fd(wire), fd);
        set.map_err(|source| VdpaError::Step {
            what: format!("another {wire:?} descriptor of ring {ring}"),
            source,
        })
    }

    /// Whether the device should run at all. Where the front end passes the driver's
    /// status on, that says it; there are some that negotiate it and do not.
    fn should_run(&self) -> bool {
        let says = self.status.is_none_or(|now| now & status::DRIVER_OK != 0);
        says && self.features.is_some() && self.slots.iter().any(Slot::is_wanted)
    }

    /// Whether the front end drives the control queue itself.
    pub(super) fn has_control_of_its_own(&self) -> bool {
        let control = self.slots.get(usize::from(self.home.bridge().data_rings()));
        control.is_some_and(|slot| slot.setup.is_some())
    }

    fn has_pairs(&self) -> bool {
        self.home.bridge().has_pairs(self.features.unwrap_or(0))
    }

    /// Whether the device is to have this ring: with several pairs all that were
    /// started, as a command says how many are in use.
    fn is_for_device(&self, slot: &Slot) -> bool {
        slot.setup.is_some() && (self.has_pairs() || slot.is_wanted())
    }

    /// Brings the device to run the rings that are to run, and no others.
    pub(super) fn settle(&mut self) -> Result<(), Reason> {
        let should_run = self.should_run();
        let fits = self
            .slots
            .iter()
            .all(|slot| slot.live == (should_run && self.is_for_device(slot)));
        if fits {
            return Ok(());
        }
        self.settle_by = None;
        self.halt();
        if should_run { self.launch() } else { Ok(()) }
    }

    fn launch(&mut self) -> Result<(), Reason> {
        let features = self.features.unwrap_or(0);
        let theirs = self.has_control_of_its_own();
        let late = self.control.is_some() && !theirs && self.device().facts().enables_late();
        let mut rings = Vec::new();
        let mut data = Vec::new();
        let mut groups = Vec::new();
        // The control queue first: it decides what the others do.
        let control_ring = self.home.bridge().control_ring(features);
        let control_ring = control_ring.filter(|_| !theirs);
        if let (Some(ring), Some(control)) = (control_ring, &mut self.control) {
            rings.push(control.begin(ring, features)?);
            let group = self.home.facts().ring_groups.get(usize::from(ring));
            groups.extend(group.copied().flatten().map(|group| (group, ASID)));
        }
        for (ring, slot) in (0..).zip(&self.slots) {
            if let Some(setup) = slot.setup.filter(|_| self.is_for_device(slot)) {
                data.push(ring);
                rings.push(RingPlan {
                    ring,
                    size: setup.size,
                    base: setup.base,
                    address: self.place(ring, &setup)?,
                    wires: vec![Wire::Call, Wire::Err, Wire::Kick],
                    enabled: !late,
                });
            }
        }
        let plan = Plan {
            features,
            groups,
            rings,
            config_call: true,
        };
        // The control queue's memory is there before the front end's.
        let wanted = self.all_mappings();
        self.device().set_memory(wanted)?;
        self.start_device(plan, control_ring)?;
        for ring in &data {
            self.slots[usize::from(*ring)].live = true;
        }
        self.pairs = 1;
        let done = self.command_and_enable(if late { data.clone() } else { Vec::new() });
        if let Err(error) = done {
            self.halt();
            return Err(error.into());
        }
        for ring in data {
            // Whatever came before the device ran (QEMU ef02c6becf), or was answered
            // before it stopped.
            let slot = &self.slots[usize::from(ring)];
            slot.kick
                .iter()
                .chain(&slot.call)
                .for_each(|event| ring_once(event));
        }
        Ok(())
    }

    /// Commands before data queues take anything.
    fn command_and_enable(&mut self, late: Vec<u16>) -> Result<(), VdpaError> {
        if self.has_control_of_its_own() {
            return Ok(());
        }
        if let Some(mac) = self.mac {
            self.command(ControlCommand::Mac(mac))?;
        }
        if self.has_pairs() {
            self.use_pairs()?;
        }
        self.device().enable(late)
    }

    /// `VHOST_USER_SET_VRING_ENABLE` as a command.
    fn use_pairs(&mut self) -> Result<(), VdpaError> {
        if self.has_control_of_its_own() {
            return Ok(());
        }
        let last = self.slots.iter().rposition(Slot::is_wanted);
        let pairs = last.map_or(1, |ring| ring / 2 + 1);
        let pairs = u16::try_from(pairs).unwrap_or(1);
        if pairs == self.pairs {
            return Ok(());
        }
        self.command(ControlCommand::Pairs(pairs))?;
        self.pairs = pairs;
        Ok(())
    }

    /// A command, if there is a control queue. A device that did not answer is stopped, to
    /// be started anew: its answer may come late, and is not that to the next command.
    pub(super) fn command(&mut self, command: ControlCommand) -> Result<(), VdpaError> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        let done = control.command(command);
        if control.is_lost() {
            self.halt();
            self.settle_by = Some(Instant::now());
        }
        done
    }

    fn start_device(&mut self, plan: Plan, control_ring: Option<u16>) -> Result<(), VdpaError> {
        let mut device = self.lend();
        let wires = BridgeWires {
            slots: &self.slots,
            control: control_ring.zip(self.control.as_ref()),
            changes: self.talk.changes(),
        };
        let done = device.start(plan, &wires);
        self.back(device);
        done
    }

    /// Where a ring is for the device: by guest address, all of each part in the
    /// front end's memory.
    fn place(&self, ring: u16, setup: &RingSetup) -> Result<[Iova; 3], Reason> {
        let layout = QueueLayout::of(Features::from_bits_retain(setup.features));
        let lens = layout.part_lens(setup.size);
        let parts = [setup.descriptor, setup.driver, setup.device];
        let mut places = [Iova(0); 3];
        for ((place, part), len) in places.iter_mut().zip(parts).zip(lens) {
            *place = self.translate(ring, part, len)?;
        }
        Ok(places)
    }

    fn translate(&self, ring: u16, address: UserVa, len: usize) -> Result<Iova, VdpaError> {
        let outside = VdpaError::Address {
            ring,
            address: address.0,
        };
        let mut first = None;
        let mut pieces = 0;
        let resolved = u32::try_from(len).is_ok_and(|len| {
            let space = &self.memory.front_end;
            let each = |span| {
                pieces += 1;
                first = first.or(Some(span));
            };
            space.resolve(address, len, each).is_ok()
        });
        let guest = first
            .filter(|_| resolved && pieces == 1)
            .and_then(|span| self.memory.guest.address(span));
        guest.map(|guest| Iova(guest.0)).ok_or(outside)
    }

    /// Suspends the device, to be resumed; `false` when that does not work.
    pub(super) fn pause(&mut self) -> bool {
        match self.device().pause() {
            Ok(_) => true,
            Err(error) => {
                note("the device cannot be suspended", &error);
                false
            }
        }
    }

    /// Stops the device, and notes where its rings go on.
    pub(super) fn halt(&mut self) {
        let bases = self.device().stop();
        for (ring, base) in bases {
            let Some(setup) = self
                .slots
                .get(usize::from(ring))
                .and_then(|slot| slot.setup)
            else {
                continue;
            };
            // The used ring says it of a device that cannot: what was used is done,
            // and what was not is done again, as QEMU has it.
            let base = base.or_else(|| {
                let areas = [setup.descriptor, setup.driver, setup.device];
                used_index(&self.memory, setup.features, setup.size, areas)
            });
            let slot = &mut self.slots[usize::from(ring)];
            slot.setup = Some(RingSetup {
                base: base.unwrap_or(setup.base),
                ..setup
            });
        }
        for slot in &mut self.slots {
            slot.live = false;
        }
    }
}

/// Signals a descriptor of the front end once. A counter that is full is signalled already.
fn ring_once(event: &PeerEventFd) {
    if let Err(error) = event.signal() {
        tracing::debug!("a descriptor of the front end cannot be written: {error}");
    }
}
