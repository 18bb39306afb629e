//! An open descriptor of the model: each call as Linux 6.12 answers it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use linkspan_engine::{ActiveRing, EventSink, Notify, QueueCounters, Ring, RingEvent};
use linkspan_mem::{Gpa, GuestMemory, Iova, Region, UserVa};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::vdpa::{Doorbell, RingAddress, RingFd, Vdpa};
use linkspan_virtio::{DeviceQueue, Features, QueueLayout};

use super::Machine;
use super::books::{Books, Entry, ModelRing, Running, event};
use crate::PATIENCE;

const EPERM: i32 = 1;
const EEXIST: i32 = 17;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
const ENOBUFS: i32 = 105;
/// A number that Linux does not show to programs, but for mistakes such as this.
const ENOTSUPP: i32 = 524;

const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;

/// An open device.
pub(super) struct ModelVdpa {
    machine: Machine,
}

fn error<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

impl fmt::Debug for ModelVdpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ModelVdpa")
    }
}

impl ModelVdpa {
    pub(super) fn new(machine: Machine) -> Self {
        let count = usize::from(machine.inner.device.queues());
        machine.books().rings.resize_with(count, ModelRing::default);
        machine.books().spaces = vec![0; machine.groups() as usize];
        Self { machine }
    }

    /// A call about ring `index`, which needs an owner and a ring.
    fn ring<T>(
        &self,
        call: String,
        index: u16,
        then: impl FnOnce(&mut Books, usize) -> io::Result<T>,
    ) -> io::Result<T> {
        self.machine.enter(call)?;
        let mut books = self.machine.books();
        if !books.owned {
            return error(EPERM);
        }
        if usize::from(index) >= books.rings.len() {
            return error(ENOBUFS);
        }
        then(&mut books, index.into())
    }
}

impl Machine {
    fn groups(&self) -> u32 {
        let groups = self.inner.quirks.groups.iter().max();
        groups.map_or(1, |most| most + 1)
    }

    fn group(&self, ring: u16) -> u32 {
        let groups = &self.inner.quirks.groups;
        groups.get(usize::from(ring)).copied().unwrap_or(0)
    }

    /// Starts every ring that is to run and does not.
    fn start_rings(&self, books: &mut Books) {
        if books.status & DRIVER_OK == 0 || books.suspended {
            return;
        }
        for index in 0..books.rings.len() {
            let ring = &books.rings[index];
            if ring.enabled && ring.running.is_none() && self.start_ring(books, index).is_err() {
                books.status |= NEEDS_RESET;
            }
        }
    }

    fn start_ring(&self, books: &mut Books, index: usize) -> io::Result<()> {
        let number = u16::try_from(index).expect("a ring");
        let space = books.spaces[self.group(number) as usize];
        let mapped = books.iotlb.iter().filter(|entry| entry.asid == space);
        let regions = mapped.map(|entry| {
            let (guest, user) = (Gpa(entry.iova), UserVa(entry.iova));
            (entry.region.clone(), guest, user)
        });
        let memory = GuestMemory::new(regions.collect()).map_err(io::Error::other)?;
        let features = Features::from_bits_retain(books.features);
        let ring = &mut books.rings[index];
        let address = ring.address.ok_or(io::ErrorKind::NotFound)?;
        let lens = QueueLayout::of(features).part_lens(ring.size);
        let part = |at: Iova, len| memory.front_end.window(UserVa(at.0), len);
        let parts = [
            part(address.descriptor, lens[0]).map_err(io::Error::other)?,
            part(address.driver, lens[1]).map_err(io::Error::other)?,
            part(address.device, lens[2]).map_err(io::Error::other)?,
        ];
        let queue = DeviceQueue::with_base(parts, ring.size, features, ring.base);
        let handler = self.inner.device.open_queue(number, features);
        let (sink, events, wake) = EventSink::new()?;
        let kick = ring.kick.as_ref().map(|kick| kick.as_fd());
        let started = Box::new(Ring {
            index: number,
            lane: self.inner.device.lane(number),
            active: ActiveRing {
                queue: queue.map_err(io::Error::other)?,
                memory: Arc::new(memory),
                log: None,
            },
            handler: handler.map_err(io::Error::other)?,
            // Without one a worker would poll; this device waits for ever.
            kick: event(kick)?,
            call: ring.call.clone().map(Notify::Event),
            err: ring.err.clone(),
            enabled: kick.is_some(),
            retired: false,
            moves: false,
            counters: Arc::new(QueueCounters::default()),
        });
        let key = self.inner.workers.start(started, sink);
        let running = Running { key, events, wake };
        match running.next() {
            RingEvent::Done { .. } => ring.running = Some(running),
            other => return Err(io::Error::other(format!("{other:?}"))),
        }
        Ok(())
    }

    /// Takes every ring back from its worker, with its base.
    fn stop_rings(&self, books: &mut Books) {
        for ring in &mut books.rings {
            let Some(running) = ring.running.take() else {
                continue;
            };
            self.inner.workers.stop(running.key);
            loop {
                if let RingEvent::Stopped { ring: stopped } = running.next() {
                    ring.base = stopped.active.queue.base();
                    break;
                }
            }
        }
    }

    fn reset(&self, books: &mut Books) {
        self.stop_rings(books);
        books.status = 0;
        books.features = 0;
        books.suspended = false;
        for ring in &mut books.rings {
            ring.enabled = false;
            ring.size = 0;
            ring.base = 0;
            ring.address = None;
        }
    }
}

impl Running {
    /// What the worker says next.
    fn next(&self) -> RingEvent {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            if let Ok(event) = self.events.try_recv() {
                return event;
            }
            self.wake.drain().expect("an eventfd");
            if let Ok(event) = self.events.try_recv() {
                return event;
            }
            let waited = wait_for(self.wake.as_fd(), Direction::Read, None, Some(deadline));
            assert_eq!(waited.expect("poll"), Wake::Ready, "a worker answers");
        }
    }
}

impl Vdpa for ModelVdpa {
    fn device_id(&self) -> io::Result<u32> {
        self.machine.enter("GET_DEVICE_ID".into())?;
        Ok(self.machine.inner.device.device_id())
    }

    fn features(&self) -> io::Result<u64> {
        self.machine.enter("GET_FEATURES".into())?;
        let inner = &self.machine.inner;
        Ok(inner.device.features().bits() | inner.quirks.features)
    }

    fn set_features(&self, features: u64) -> io::Result<()> {
        self.machine.enter(format!("SET_FEATURES {features:#x}"))?;
        let mut books = self.machine.books();
        if books.status & FEATURES_OK != 0 {
            return error(EBUSY);
        }
        books.features = features;
        Ok(())
    }

    fn backend_features(&self) -> io::Result<u64> {
        self.machine.enter("GET_BACKEND_FEATURES".into())?;
        Ok(self.machine.inner.quirks.backend_features.bits())
    }

    fn set_backend_features(&self, features: u64) -> io::Result<()> {
        self.machine
            .enter(format!("SET_BACKEND_FEATURES {features:#x}"))?;
        if features & !self.machine.inner.quirks.backend_features.bits() != 0 {
            return error(EOPNOTSUPP);
        }
        self.machine.books().backend_features = features;
        Ok(())
    }

    fn set_owner(&self) -> io::Result<()> {
        self.machine.enter("SET_OWNER".into())?;
        let mut books = self.machine.books();
        if books.owned {
            return error(EBUSY);
        }
        books.owned = true;
        Ok(())
    }

    fn status(&self) -> io::Result<u8> {
        self.machine.enter("GET_STATUS".into())?;
        Ok(self.machine.books().status)
    }

    fn set_status(&self, status: u8) -> io::Result<()> {
        self.machine.enter(format!("SET_STATUS {status}"))?;
        let mut books = self.machine.books();
        if status != 0 && books.status & !status != 0 {
            return error(EINVAL);
        }
        if status == 0 {
            self.machine.reset(&mut books);
            return Ok(());
        }
        let quirks = &self.machine.inner.quirks;
        let before = books.status;
        books.status = status;
        // As vdpa_sim: a driver that leaves it out does not know how memory is reached.
        let platform = quirks.features & 1 << 33;
        if quirks.refuses_features || books.features & platform != platform {
            books.status &= !FEATURES_OK;
        }
        if status & !before & DRIVER_OK != 0 {
            if quirks.does_not_start {
                books.status |= NEEDS_RESET;
            }
            self.machine.start_rings(&mut books);
        }
        Ok(())
    }

    fn config_size(&self) -> io::Result<u32> {
        self.machine.enter("GET_CONFIG_SIZE".into())?;
        Ok(self.machine.inner.device.config_size())
    }

    fn read_config(&self, offset: u32, bytes: &mut [u8]) -> io::Result<()> {
        self.machine
            .enter(format!("GET_CONFIG {} at {offset}", bytes.len()))?;
        let device = &self.machine.inner.device;
        if bytes.is_empty() || device.read_config(offset, bytes).is_err() {
            return error(EINVAL);
        }
        Ok(())
    }

    fn write_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.machine
            .enter(format!("SET_CONFIG {bytes:02x?} at {offset}"))?;
        let device = &self.machine.inner.device;
        let end = u64::from(offset) + bytes.len() as u64;
        if bytes.is_empty() || end > device.config_size().into() {
            return error(EINVAL);
        }
        // The kernel does not say whether the device took it.
        let _ = device.write_config(offset, bytes);
        Ok(())
    }

    fn set_config_call(&self, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.machine
            .enter(format!("SET_CONFIG_CALL {}", fd.is_some()))?;
        self.machine.books().config_call = event(fd)?;
        Ok(())
    }

    fn queues(&self) -> io::Result<u32> {
        self.machine.enter("GET_VQS_COUNT".into())?;
        let inner = &self.machine.inner;
        Ok(inner
            .quirks
            .queues
            .unwrap_or_else(|| inner.device.queues().into()))
    }

    fn queue_size_max(&self) -> io::Result<u16> {
        self.machine.enter("GET_VRING_NUM".into())?;
        let inner = &self.machine.inner;
        let own = || inner.device.queue_size_max();
        Ok(inner.quirks.queue_size_max.unwrap_or_else(own))
    }

    fn queue_size(&self, ring: u16) -> io::Result<u32> {
        self.ring(format!("GET_VRING_SIZE {ring}"), ring, |_, _| {
            error(EOPNOTSUPP)
        })
    }

    fn iova_range(&self) -> io::Result<(Iova, Iova)> {
        self.machine.enter("GET_IOVA_RANGE".into())?;
        Ok(self.machine.inner.quirks.iova)
    }

    fn groups(&self) -> io::Result<u32> {
        self.machine.enter("GET_GROUP_NUM".into())?;
        Ok(self.machine.groups())
    }

    fn address_spaces(&self) -> io::Result<u32> {
        self.machine.enter("GET_AS_NUM".into())?;
        Ok(self.machine.inner.quirks.address_spaces)
    }

    fn ring_group(&self, ring: u16) -> io::Result<u32> {
        let group = self.machine.group(ring);
        self.ring(format!("GET_VRING_GROUP {ring}"), ring, |_, _| Ok(group))
    }

    fn set_group_asid(&self, group: u32, asid: u32) -> io::Result<()> {
        let call = format!("SET_GROUP_ASID {group} {asid}");
        // The kernel takes the group for a ring at first.
        let index = u16::try_from(group).unwrap_or(u16::MAX);
        let spaces = self.machine.inner.quirks.address_spaces;
        self.ring(call, index, |books, _| {
            match books.spaces.get_mut(group as usize) {
                Some(space) if asid < spaces => *space = asid,
                _ => return error(EINVAL),
            }
            Ok(())
        })
    }

    fn set_ring_size(&self, ring: u16, size: u16) -> io::Result<()> {
        let most = self.queue_size_max_unlogged();
        self.ring(format!("SET_VRING_NUM {ring} {size}"), ring, |books, at| {
            if !size.is_power_of_two() || size > most {
                return error(EINVAL);
            }
            books.rings[at].size = size;
            Ok(())
        })
    }

    fn set_ring_address(&self, ring: u16, address: RingAddress) -> io::Result<()> {
        self.ring(format!("SET_VRING_ADDR {ring}"), ring, |books, at| {
            let live = books.status & DRIVER_OK != 0 && !books.suspended;
            let aligned = address.driver.0.is_multiple_of(2) && address.device.0.is_multiple_of(4);
            if live || !aligned {
                return error(EINVAL);
            }
            books.rings[at].address = Some(address);
            Ok(())
        })
    }

    fn set_ring_base(&self, ring: u16, base: u32) -> io::Result<()> {
        self.ring(
            format!("SET_VRING_BASE {ring} {base:#x}"),
            ring,
            |books, at| {
                if books.status & DRIVER_OK != 0 && !books.suspended {
                    return error(EINVAL);
                }
                let packed = books.features & 1 << 34 != 0;
                if !packed && base > 0xffff {
                    return error(EINVAL);
                }
                books.rings[at].base = base;
                Ok(())
            },
        )
    }

    fn ring_base(&self, ring: u16) -> io::Result<u32> {
        self.ring(format!("GET_VRING_BASE {ring}"), ring, |books, at| {
            let ring = &books.rings[at];
            // Of a ring that runs nothing true can be said.
            let runs = ring.running.is_some();
            Ok(if runs { 0xdead } else { ring.base })
        })
    }

    fn set_ring_fd(&self, ring: u16, which: RingFd, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let machine = &self.machine;
        let call = format!("SET_VRING_{which:?} {ring} {}", fd.is_some());
        self.ring(call, ring, |books, at| {
            let event = event(fd)?.map(Arc::new);
            let ring = &mut books.rings[at];
            let key = ring.running.as_ref().map(|running| running.key);
            let workers = &machine.inner.workers;
            match which {
                RingFd::Kick => ring.kick.clone_from(&event),
                RingFd::Call => ring.call.clone_from(&event),
                RingFd::Err => ring.err.clone_from(&event),
            }
            let Some(key) = key else {
                return Ok(());
            };
            match which {
                RingFd::Kick => {
                    let kick = event.map(|kick| kick.as_fd().try_clone_to_owned());
                    let kick = kick.transpose()?.map(linkspan_sys::PeerEventFd::check);
                    let kick = kick.transpose().map_err(io::Error::other)?;
                    workers.set_kick(key, kick);
                }
                RingFd::Call => workers.set_call(key, event.map(Notify::Event)),
                RingFd::Err => workers.set_err(key, event),
            }
            let running = books.rings[at].running.as_ref();
            running.map(Running::next);
            Ok(())
        })
    }

    fn doorbell(&self, ring: u16) -> io::Result<Doorbell> {
        self.machine.enter(format!("MMAP {ring}"))?;
        match &self.machine.inner.pages {
            Some(pages) => Doorbell::map(pages, ring),
            None => error(ENOTSUPP),
        }
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.machine.inner.pages.as_ref().map(AsFd::as_fd)
    }

    fn enable_ring(&self, ring: u16, enabled: bool) -> io::Result<()> {
        let machine = &self.machine;
        self.ring(
            format!("SET_VRING_ENABLE {ring} {enabled}"),
            ring,
            |books, at| {
                books.rings[at].enabled = enabled;
                if !machine.inner.quirks.deaf_to_late_enable {
                    machine.start_rings(books);
                }
                Ok(())
            },
        )
    }

    fn suspend(&self) -> io::Result<()> {
        self.machine.enter("SUSPEND".into())?;
        let mut books = self.machine.books();
        if books.status & DRIVER_OK == 0 {
            return Ok(());
        }
        if self.machine.inner.quirks.backend_features.bits() & 1 << 4 == 0 {
            return error(EOPNOTSUPP);
        }
        self.machine.stop_rings(&mut books);
        books.suspended = true;
        Ok(())
    }

    fn resume(&self) -> io::Result<()> {
        self.machine.enter("RESUME".into())?;
        let mut books = self.machine.books();
        if books.status & DRIVER_OK == 0 {
            return Ok(());
        }
        if self.machine.inner.quirks.backend_features.bits() & 1 << 5 == 0 {
            return error(EOPNOTSUPP);
        }
        books.suspended = false;
        self.machine.start_rings(&mut books);
        Ok(())
    }

    fn map(&self, asid: u32, iova: Iova, region: &Region) -> io::Result<()> {
        let len = region.len() as u64;
        self.machine
            .enter(format!("IOTLB_UPDATE {asid} {:#x} {len:#x}", iova.0))?;
        let quirks = &self.machine.inner.quirks;
        let mut books = self.machine.books();
        if !books.owned {
            return error(EPERM);
        }
        let (first, last) = (quirks.iova.0.0, quirks.iova.1.0);
        let end = iova.0.checked_add(len.wrapping_sub(1));
        if len == 0
            || asid >= quirks.address_spaces
            || iova.0 < first
            || end.is_none_or(|end| end > last)
            || books.batch.is_some_and(|open| open != asid)
        {
            return error(EINVAL);
        }
        let end = end.unwrap_or(u64::MAX);
        let overlaps = books.iotlb.iter().any(|entry| {
            let last = entry.iova + (entry.region.len() as u64 - 1);
            entry.asid == asid && entry.iova <= end && iova.0 <= last
        });
        if overlaps {
            return error(EEXIST);
        }
        books.iotlb.push(Entry {
            asid,
            iova: iova.0,
            region: region.clone(),
        });
        Ok(())
    }

    fn unmap(&self, asid: u32, iova: Iova, len: u64) -> io::Result<()> {
        self.machine
            .enter(format!("IOTLB_INVALIDATE {asid} {:#x} {len:#x}", iova.0))?;
        let mut books = self.machine.books();
        if !books.owned {
            return error(EPERM);
        }
        // A span of all 64 bits has a length of 0 here.
        if len == 0 || books.batch.is_some_and(|open| open != asid) {
            return error(EINVAL);
        }
        let last = iova.0 + (len - 1);
        books.iotlb.retain(|entry| {
            entry.asid != asid || entry.iova > last || {
                let end = entry.iova + (entry.region.len() as u64 - 1);
                end < iova.0
            }
        });
        Ok(())
    }

    fn batch(&self, asid: u32, begin: bool) -> io::Result<()> {
        let which = if begin { "BEGIN" } else { "END" };
        self.machine.enter(format!("IOTLB_BATCH_{which} {asid}"))?;
        let mut books = self.machine.books();
        if !books.owned {
            return error(EPERM);
        }
        if books.batch.is_some_and(|open| open != asid) {
            return error(EINVAL);
        }
        books.batch = begin.then_some(asid);
        Ok(())
    }
}

impl ModelVdpa {
    fn queue_size_max_unlogged(&self) -> u16 {
        let inner = &self.machine.inner;
        let own = || inner.device.queue_size_max();
        inner.quirks.queue_size_max.unwrap_or_else(own)
    }
}

impl Drop for ModelVdpa {
    /// The kernel resets the device and forgets all.
    fn drop(&mut self) {
        let mut books = self.machine.books();
        self.machine.reset(&mut books);
        let absent = books.absent;
        *books = Books::default();
        books.absent = absent;
    }
}
