//! rust-vmm as driver: the vhost-user front end of crate `vhost`, memory of
//! `vm-memory`, and split rings as `virtio-queue` lays them out. No event index,
//! no indirect tables. It also checks every used length.

use std::os::fd::AsRawFd;
use std::path::Path;

use linkspan_sys::memfd::{Sealing, create};
use linkspan_testkit::PATIENCE;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split};
use virtio_queue::mock::{AvailRing, DescriptorTable, UsedRing};
use vm_memory::{Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::driver::{CHUNK, DEPTH, Driver};

/// Entries of a ring: each of [`DEPTH`] requests takes three.
const QUEUE_SIZE: u16 = 128;

/// Each queue has a part of the memory: its ring, then for each request header
/// and status, then the data of each. (`MockSplitQueue`, which would lay out a
/// ring, puts the used ring into the available one; its parts are fine.)
const PART: u64 = 1 << 20;
const AVAILABLE_AT: u64 = 4 << 10;
const USED_AT: u64 = 8 << 10;
const SLOTS_AT: u64 = 64 << 10;
const DATA_AT: u64 = 128 << 10;
const SLOT: u64 = 64;
const STATUS_AT: u64 = 16;
const QUEUES_MAX: u64 = 8;

/// What a status byte holds until the device writes it.
const NO_STATUS: u8 = 0xFF;

type Memory = GuestMemoryMmap<()>;

/// A disk driven by rust-vmm's crates.
pub struct RustVmm<'memory> {
    front: Frontend,
    memory: &'memory Memory,
    queues: Vec<Queue<'memory>>,
}

struct Queue<'memory> {
    descriptors: DescriptorTable<'memory, Memory>,
    available: AvailRing<'memory, Memory>,
    used: UsedRing<'memory, Memory>,
    base: GuestAddress,
    kick: EventFd,
    call: EventFd,
    /// Requests that were answered, all in all.
    answered: u16,
}

/// Memory that can be shared with a back end.
///
/// # Panics
/// When there is none.
pub fn memory() -> Memory {
    let len = PART * QUEUES_MAX;
    let file = create("rust-vmm", len, Sealing::Fixed).expect("a memory file");
    let len = usize::try_from(len).expect("a few MiB");
    let place = (GuestAddress(0), len, Some(FileOffset::new(file.into(), 0)));
    Memory::from_ranges_with_files([place]).expect("memory")
}

impl<'memory> RustVmm<'memory> {
    /// Connects with so many queues.
    ///
    /// # Panics
    /// When the back end cannot be used.
    pub fn connect(socket: &Path, memory: &'memory Memory, queues: usize) -> Self {
        let mut front = Frontend::connect(socket, queues as u64).expect("a connection");
        let done = "the back end does it";
        front.set_owner().expect(done);
        let bit_30 = VhostUserVirtioFeatures::PROTOCOL_FEATURES;
        let wanted = 1 << VIRTIO_F_VERSION_1
            | 1 << blk::VIRTIO_BLK_F_FLUSH
            | 1 << blk::VIRTIO_BLK_F_MQ
            | bit_30.bits();
        let offered = front.get_features().expect(done);
        assert_eq!(offered & wanted, wanted, "features");
        let wanted_protocol = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG;
        // The crate asks only once bit 30 is accepted.
        front.set_features(wanted).expect(done);
        let offered = front.get_protocol_features().expect(done);
        assert!(offered.contains(wanted_protocol), "{offered:?}");
        front.set_protocol_features(wanted_protocol).expect(done);
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert!(front.get_queue_num().expect(done) >= queues as u64);
        let region = memory.iter().next().expect("one region");
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).expect("a file");
        front.set_mem_table(&[region]).expect(done);
        let queues = (0..queues).map(|index| Queue::start(&front, memory, region, index));
        let queues = queues.collect();
        Self {
            front,
            memory,
            queues,
        }
    }

    /// Stops all rings.
    ///
    /// # Panics
    /// When the back end has not taken exactly what was asked.
    pub fn stop(self) {
        for (index, queue) in self.queues.iter().enumerate() {
            let base = self.front.get_vring_base(index).expect("a base");
            assert_eq!(base, u32::from(queue.answered), "ring {index}");
        }
    }
}

impl<'memory> Queue<'memory> {
    fn start(
        front: &Frontend,
        memory: &'memory Memory,
        region: VhostUserMemoryRegionInfo,
        index: usize,
    ) -> Self {
        let done = "the back end does it";
        let base = GuestAddress(index as u64 * PART);
        let (available, used) = (
            base.unchecked_add(AVAILABLE_AT),
            base.unchecked_add(USED_AT),
        );
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("an eventfd");
        let (kick, call, err) = (event(), event(), event());
        let user = |address: GuestAddress| region.userspace_addr + address.raw_value();
        let addresses = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: user(base),
            used_ring_addr: user(used),
            avail_ring_addr: user(available),
            log_addr: None,
        };
        // These clear their rings, so before the device sees them.
        let descriptors = DescriptorTable::new(memory, base, QUEUE_SIZE);
        let available = AvailRing::new(memory, available, QUEUE_SIZE);
        let used = UsedRing::new(memory, used, QUEUE_SIZE);
        front.set_vring_num(index, QUEUE_SIZE).expect(done);
        front.set_vring_base(index, 0).expect(done);
        front.set_vring_addr(index, &addresses).expect(done);
        front.set_vring_err(index, &err).expect(done);
        front.set_vring_call(index, &call).expect(done);
        front.set_vring_kick(index, &kick).expect(done);
        let mut front = front.clone();
        front.set_vring_enable(index, true).expect(done);
        Self {
            descriptors,
            available,
            used,
            base,
            kick,
            call,
            answered: 0,
        }
    }

    fn slot(&self, slot: usize) -> GuestAddress {
        self.base.unchecked_add(SLOTS_AT + slot as u64 * SLOT)
    }

    fn data(&self, slot: usize) -> GuestAddress {
        self.base
            .unchecked_add(DATA_AT + slot as u64 * CHUNK as u64)
    }

    /// Makes a request available. Data of length 0 is none.
    fn submit(&self, memory: &Memory, slot: usize, kind: u32, sector: u64, len: usize) {
        let header = self.slot(slot);
        memory.write_obj(kind.to_le(), header).expect("memory");
        let at = header.unchecked_add(8);
        memory.write_obj(sector.to_le(), at).expect("memory");
        let status = header.unchecked_add(STATUS_AT);
        memory.write_obj(NO_STATUS, status).expect("memory");
        let flag = |flag: u32| u16::try_from(flag).expect("a flag of 16 bits");
        let (next, write) = (flag(VRING_DESC_F_NEXT), flag(VRING_DESC_F_WRITE));
        let to_us = if kind == blk::VIRTIO_BLK_T_IN {
            write
        } else {
            0
        };
        let mut parts = vec![
            (header, 16, 0),
            (self.data(slot), len, to_us),
            (status, 1, write),
        ];
        parts.retain(|(_, len, _)| *len > 0);
        let first = u16::try_from(3 * slot).expect("fits the ring");
        let last = first + u16::try_from(parts.len()).expect("three") - 1;
        for (index, (address, len, flags)) in (first..).zip(parts) {
            let len = u32::try_from(len).expect("a chunk");
            let flags = if index == last { flags } else { flags | next };
            let descriptor = split::Descriptor::new(address.raw_value(), len, flags, index + 1);
            let stored = self
                .descriptors
                .store(index, RawDescriptor::from(descriptor));
            stored.expect("a descriptor of the table");
        }
        let index = self.available.idx().load();
        let entry = self
            .available
            .ring()
            .ref_at(usize::from(index % QUEUE_SIZE));
        entry.expect("an entry").store(first);
        self.available.idx().store(index.wrapping_add(1));
    }

    /// Kicks and waits for `count` answers, each of which has written `len` bytes.
    fn finish(&mut self, memory: &Memory, count: usize, len: impl Fn(usize) -> usize) {
        self.kick.write(1).expect("a kick");
        let mut slots = vec![false; count];
        while slots.contains(&false) {
            if self.used.idx().load() == self.answered {
                self.sleep();
                continue;
            }
            let entry = usize::from(self.answered % QUEUE_SIZE);
            let used = self.used.ring().ref_at(entry).expect("an entry").load();
            let slot = used.id() as usize / 3;
            let was = std::mem::replace(&mut slots[slot], true);
            assert!(!was && used.id() % 3 == 0, "chain {}", used.id());
            assert_eq!(used.len() as usize, len(slot) + 1, "data and status");
            let status = self.slot(slot).unchecked_add(STATUS_AT);
            let status: u8 = memory.read_obj(status).expect("memory");
            assert_eq!(u32::from(status), blk::VIRTIO_BLK_S_OK, "no error");
            self.answered = self.answered.wrapping_add(1);
        }
    }

    /// Until the device calls.
    fn sleep(&self) {
        let epoll = Epoll::new().expect("an epoll");
        let event = EpollEvent::new(EventSet::IN, 0);
        let fd = self.call.as_raw_fd();
        epoll.ctl(ControlOperation::Add, fd, event).expect("epoll");
        let limit = i32::try_from(PATIENCE.as_millis()).expect("a minute");
        let count = epoll.wait(limit, &mut [EpollEvent::default()]);
        assert_eq!(count.expect("epoll"), 1, "no answer in time");
        self.call.read().expect("a call");
    }
}

impl Driver for RustVmm<'_> {
    fn queues(&self) -> usize {
        self.queues.len()
    }

    fn capacity(&self) -> u64 {
        let mut front = self.front.clone();
        let flags = VhostUserConfigFlags::empty();
        let config = front.get_config(0, 8, flags, &[0; 8]);
        let (_, bytes) = config.expect("configuration space");
        512 * u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
    }

    fn read(&mut self, queue: usize, offset: u64, into: &mut [u8]) {
        let (queue, memory) = (&mut self.queues[queue], self.memory);
        let mut sector = offset / 512;
        for batch in into.chunks_mut(DEPTH * CHUNK) {
            let lens: Vec<usize> = batch.chunks(CHUNK).map(<[u8]>::len).collect();
            for (slot, len) in lens.iter().enumerate() {
                queue.submit(memory, slot, blk::VIRTIO_BLK_T_IN, sector, *len);
                sector += *len as u64 / 512;
            }
            queue.finish(memory, lens.len(), |slot| lens[slot]);
            let read = memory.read_slice(batch, queue.data(0));
            read.expect("memory");
        }
    }

    fn write(&mut self, queue: usize, offset: u64, data: &[u8]) {
        let (queue, memory) = (&mut self.queues[queue], self.memory);
        let mut sector = offset / 512;
        for batch in data.chunks(DEPTH * CHUNK) {
            memory.write_slice(batch, queue.data(0)).expect("memory");
            let mut count = 0;
            for (slot, chunk) in batch.chunks(CHUNK).enumerate() {
                queue.submit(memory, slot, blk::VIRTIO_BLK_T_OUT, sector, chunk.len());
                sector += chunk.len() as u64 / 512;
                count += 1;
            }
            queue.finish(memory, count, |_| 0);
        }
    }

    fn flush(&mut self, queue: usize) {
        let (queue, memory) = (&mut self.queues[queue], self.memory);
        queue.submit(memory, 0, blk::VIRTIO_BLK_T_FLUSH, 0, 0);
        queue.finish(memory, 1, |_| 0);
    }
}
