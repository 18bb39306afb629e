//! A vDPA device shown as a virtio function on a PCI bus, to a VMM that speaks
//! vfio-user. Its driver is the guest's own, so the device can be of any type.
//!
//! What the driver writes becomes calls of the device; interrupts go from the device to
//! the VMM without this process, as it gives the device the VMM's descriptors.

mod function;
mod rings;
mod space;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_sys::poll::Interest;
use linkspan_sys::vdpa::page_size;
use linkspan_sys::{Epoll, EventFd};
use linkspan_vfio::pci::{self, CONFIG_BYTES, INTX, IRQS, REGIONS};
use linkspan_vfio::wire::{IRQ_AUTOMASKED, IRQ_EVENTFD, IRQ_MASKABLE, errno};
use linkspan_vfio::{DmaMap, Irq, Offer, Region, SetIrqs};
use linkspan_vhost::vdpa::{Facts, PciFeatures};
use linkspan_virtio::pci::{
    self as registers, BAR_DOORBELLS, BAR_INTERRUPTS, BAR_REGISTERS, DOORBELL_LEN, Function,
    Identity, identity,
};

use super::device::{Opener, VdpaDevice};
use super::error::VdpaError;
use super::kept::KeptDevice;
use crate::limit::{LogLimit, chain};
use crate::messages::Messages;
use crate::vfio_user::{Device, Guest, Refused};
use rings::{Base, Kick, RunningRing};
use space::Space;

/// Maps of memory that a VMM may have at once: half of what the kernel keeps for a
/// device before it forgets the oldest.
const DMA_MAPS: u64 = 1024;

/// Bytes that a driver writes to a doorbell (virtio 1.3, 4.1.5.2).
const DOORBELL_WRITE: u64 = 2;

/// A vDPA device as a PCI function for one VMM after the other. It stays this process's
/// own in between.
pub struct PciDevice {
    kept: KeptDevice,
    features: PciFeatures,
    identity: Identity,
    /// Whether VMMs are given the pages by which rings are kicked.
    shares_doorbells: bool,
    /// None while no VMM has it, and once it was lost, until a driver begins anew.
    device: Option<VdpaDevice>,
    registers: Function,
    space: Space,
    rings: Vec<Option<RunningRing>>,
    /// How they are kicked, from a ring's first start to the end of the VMM.
    kicks: Vec<Option<Kick>>,
    /// Where rings go on once they have memory again, and may use it.
    parked: Option<Vec<Base>>,
    /// Signalled by the device when configuration space changed.
    changes: EventFd,
    /// Signalled by the device for rings that interrupt by the line.
    called: EventFd,
    /// A change of which nobody could be told.
    untold: bool,
    watch: Epoll,
    /// Accesses without effect.
    strays: LogLimit,
    /// What the device did not do.
    failures: LogLimit,
}

impl std::fmt::Debug for PciDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciDevice")
            .field("kept", &self.kept)
            .field("registers", &self.registers)
            .finish_non_exhaustive()
    }
}

impl PciDevice {
    /// Opens a device and decides how it is shown. `queue_size` is the largest that a
    /// driver may choose; 0: the device's own maximum.
    ///
    /// # Errors
    /// When it cannot be opened, or cannot be shown.
    pub fn open(open: Opener, queue_size: u32) -> Result<Self, VdpaError> {
        let device = VdpaDevice::new(open()?)?;
        let facts = device.facts();
        let identity = identity(facts.device_id)?;
        let features = PciFeatures::new(facts)?;
        let sizes = match queue_size {
            0 => facts.queue_sizes.clone(),
            wanted => {
                let size = facts.queue_size(facts.queues, wanted)?;
                vec![size; facts.queues.into()]
            }
        };
        let registers = Function::new(registers::Offer {
            features: features.offer(),
            queue_sizes: sizes.clone(),
            config_len: facts.config_size,
        });
        let space = Space::new(identity, registers.layout());
        let no_descriptor = |source| VdpaError::System {
            what: "no descriptor can be had",
            source,
        };
        let (changes, called) = (EventFd::new(), EventFd::new());
        let changes = changes.map_err(no_descriptor)?;
        let called = called.map_err(no_descriptor)?;
        let watch = Epoll::new().map_err(no_descriptor)?;
        for event in [&changes, &called] {
            let added = watch.add(event, 0, Interest::READ);
            added.map_err(no_descriptor)?;
        }
        Ok(Self {
            rings: registers.queues().iter().map(|_| None).collect(),
            kicks: registers.queues().iter().map(|_| None).collect(),
            kept: KeptDevice::new(open, device, sizes),
            features,
            identity,
            shares_doorbells: false,
            device: None,
            registers,
            space,
            parked: None,
            changes,
            called,
            untold: false,
            watch,
            strays: LogLimit::default(),
            failures: LogLimit::default(),
        })
    }

    /// The same, whose VMMs are given the device's own pages for kicks, where it has such
    /// pages; whether it has. With them they have the device's file, by which they can
    /// reset the device and write its configuration also when another one has it.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn share_doorbells(&mut self) -> Result<bool, VdpaError> {
        let queues = self.kept.facts().queues;
        // Each is a page of its own in both.
        let fits = page_size() == u64::from(DOORBELL_LEN);
        let device = self.device()?;
        let all = fits
            && device.kernel().file().is_some()
            && (0..queues).all(|ring| device.doorbell(ring).is_some());
        self.shares_doorbells = all;
        Ok(all)
    }

    /// What the device says of itself.
    pub fn facts(&self) -> &Facts {
        self.kept.facts()
    }

    /// What the function is called on the bus.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The largest queues that a driver may have.
    pub fn queue_sizes(&self) -> &[u16] {
        self.kept.sizes()
    }

    /// The device, which is opened again if it was lost.
    fn device(&mut self) -> Result<&mut VdpaDevice, VdpaError> {
        let device = match self.device.take() {
            Some(device) => device,
            None => self.kept.lend()?,
        };
        Ok(self.device.insert(device))
    }

    /// The doorbells: an eventfd for each, and the device's own pages if VMMs are given
    /// them, only to be written.
    fn doorbells(&self, region: Region) -> Region {
        let page = u64::from(DOORBELL_LEN);
        let pages = (0..u64::from(self.kept.facts().queues)).map(|ring| ring * page);
        let region = Region {
            doorbells: pages.clone().map(|at| at..at + DOORBELL_WRITE).collect(),
            ..region
        };
        if !self.shares_doorbells {
            return region;
        }
        Region {
            // The kernel maps such a page to nobody who wants to read it.
            readable: false,
            mappable: pages.map(|at| at..at + page).collect(),
            ..region
        }
    }
}

impl Device for PciDevice {
    fn be_seen(&mut self, messages: &Arc<Messages>) {
        self.kept.be_seen(messages);
    }

    fn offer(&self) -> Offer {
        let layout = self.registers.layout();
        let mut regions = vec![Region::default(); REGIONS];
        for bar in [BAR_REGISTERS, BAR_INTERRUPTS, BAR_DOORBELLS] {
            regions[usize::from(bar)] = Region::of(layout.bar_len(bar));
        }
        let doorbells = &mut regions[usize::from(BAR_DOORBELLS)];
        *doorbells = self.doorbells(std::mem::take(doorbells));
        regions[pci::CONFIG as usize] = Region::of(CONFIG_BYTES);
        let mut irqs = vec![Irq::default(); IRQS];
        irqs[INTX as usize] = Irq {
            count: 1,
            flags: IRQ_EVENTFD | IRQ_MASKABLE | IRQ_AUTOMASKED,
        };
        irqs[pci::MSIX as usize] = Irq {
            count: layout.vectors().into(),
            flags: IRQ_EVENTFD,
        };
        Offer {
            regions,
            irqs,
            reset: true,
            dma_maps: DMA_MAPS,
            planes: false,
        }
    }

    fn read(
        &mut self,
        guest: &mut Guest,
        region: u32,
        offset: u64,
        target: &mut [u8],
    ) -> Result<(), Refused> {
        if region == pci::CONFIG {
            let data = self.space.read(offset, target);
            if data.hit
                && let Some((bar, offset, len)) = self.registers.window()
            {
                let mut bytes = [0; 4];
                self.read_bar(guest, bar, offset, &mut bytes[..len]);
                data.read(target, bytes);
            }
        } else if let Ok(bar) = u8::try_from(region) {
            self.read_bar(guest, bar, offset, target);
        }
        Ok(())
    }

    fn write(
        &mut self,
        guest: &mut Guest,
        region: u32,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Refused> {
        if region == pci::CONFIG {
            let (touched, data) = self.space.write(offset, bytes);
            if touched.control {
                self.follow_master(guest);
                self.rewire_all(guest, |_| true);
                self.hold_line(guest);
                self.tell_again(guest);
            }
            if touched.window {
                let (bar, offset, len) = self.space.window();
                self.registers.set_window(bar, offset, len);
                if let Some((bar, offset, len)) = self.registers.window()
                    && let Some(bytes) = data.written(bytes)
                {
                    self.write_bar(guest, bar, offset, &bytes[..len]);
                }
            }
        } else if let Ok(bar) = u8::try_from(region) {
            self.write_bar(guest, bar, offset, bytes);
        }
        Ok(())
    }

    /// The file of the device, whose pages have the places of the doorbells in the BAR.
    fn region_fd(&mut self, region: u32) -> io::Result<OwnedFd> {
        if region != u32::from(BAR_DOORBELLS) || !self.shares_doorbells {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let device = self.device().map_err(io::Error::other)?;
        let file = device.kernel().file().ok_or(io::ErrorKind::Unsupported)?;
        file.try_clone_to_owned()
    }

    fn doorbell_fds(&mut self, region: u32, count: usize) -> io::Result<Vec<OwnedFd>> {
        if region != u32::from(BAR_DOORBELLS) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut fds = Vec::with_capacity(count);
        for ring in 0..count {
            fds.push(self.kick(ring)?.share()?);
        }
        Ok(fds)
    }

    /// Before the device runs nothing is done: its start maps all at once.
    fn mapped(&mut self, guest: &mut Guest, map: &DmaMap) -> Result<(), Refused> {
        if let Some(mapped) = guest.memory.find(map)
            && let Err(error) = self.reaches(mapped)
        {
            tracing::debug!("left out: {}", chain(&error));
            return Ok(());
        }
        if self.parked.is_some() {
            self.unpark(guest);
            return Ok(());
        }
        if !self.is_live() {
            return Ok(());
        }
        let wanted = self.wanted(guest, None);
        self.remap(wanted).map_err(|error| {
            self.note(Err(error));
            if !self.is_live() {
                self.give_up(guest);
            }
            Refused {
                errno: errno::ENOMEM,
                what: "the device does not take the memory",
            }
        })
    }

    /// Whether the device runs or not, it does not use the memory any more. A VMM that
    /// changes what is at some addresses takes back all that is around, rings too, and
    /// gives it anew.
    fn unmapping(&mut self, guest: &mut Guest, map: &DmaMap) {
        if self.is_live() && self.has_rings_in(map) {
            self.park(guest);
        }
        let wanted = self.wanted(guest, Some(map));
        if let Err(error) = self.remap(wanted) {
            // It could keep the memory, so it goes.
            self.note(Err(error));
            self.halt();
            self.device = None;
            self.give_up(guest);
        }
    }

    fn interrupts_changed(&mut self, guest: &mut Guest, set: &SetIrqs) {
        if set.index != pci::MSIX {
            return self.hold_line(guest);
        }
        let (start, end) = (set.start, set.start.saturating_add(set.count));
        // Of no vectors all are meant.
        let all = set.count == 0;
        self.rewire_all(guest, |vector| {
            all || (start..end).contains(&u32::from(vector))
        });
        self.tell_again(guest);
    }

    fn reset(&mut self, guest: &mut Guest) -> Result<(), Refused> {
        self.renew();
        guest.interrupts.hold(INTX, 0, false);
        Ok(())
    }

    /// The next one finds everything as it is after a reset.
    fn disconnected(&mut self) {
        self.renew();
        // The one that leaves could kick rings of the next one by them.
        self.kicks.fill_with(|| None);
        if let Some(device) = self.device.take() {
            self.kept.give_back(device);
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn wake(&mut self, guest: &mut Guest) {
        self.take_changes(guest);
        if drained(&self.called) {
            self.registers.used();
            self.hold_line(guest);
        }
    }
}

impl Drop for PciDevice {
    fn drop(&mut self) {
        self.halt();
    }
}

/// Whether an event of ours was signalled.
fn drained(event: &EventFd) -> bool {
    match event.drain() {
        Ok(count) => count > 0,
        Err(error) => panic!("our own eventfd cannot be read: {error}"),
    }
}
