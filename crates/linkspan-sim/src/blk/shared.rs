//! What both ends share: memory, files, notifications, the connection, the seed
//! and the record of what happened.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Sim;
use linkspan_mem::{Gpa, GuestMemory, Region, Span, SplitRing, UserVa, Window};
use linkspan_vhost::MemoryRegion;
use linkspan_vhost::frontend::FdId;
use linkspan_virtio::{Buffer, QueueLayout};

use super::plan::{BLOCKS_MAX, Fault, Plan};
use crate::history::BLOCK;
use crate::history::History;

/// The driver's memory: for each queue the ring, the slots of its requests, and
/// their data.
const GUEST_BASE: u64 = 0x1_0000_0000;
const USER_BASE: u64 = 0x7000_0000_0000;
const MEMORY_BYTES: u64 = 0x4_0000;
const RINGS: u64 = 0;
const SLOTS: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const QUEUE_BYTES: u64 = 0x1000;
const DATA_BYTES: u64 = 0x8000;

/// Distances of the parts of a ring.
const PARTS: [u64; 3] = [0, 0x400, 0x800];

/// Descriptors, by what they stand for.
pub(crate) const MEMORY_FD: FdId = FdId(0);
const FIRST_FILE: u64 = 100;

/// One message under way, and how much of it arrived.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<FdId>,
    pub(crate) arrived: usize,
}

/// A connection. Whoever has another number has lost it.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    pub(crate) number: u64,
    pub(crate) closed: bool,
    pub(crate) to_back: VecDeque<Message>,
    pub(crate) to_front: VecDeque<Message>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) plan: Plan,
    pub(crate) sim: Sim,
    pub(crate) history: History,
    region: Region,
    pub(crate) memory: Arc<GuestMemory>,
    /// In-flight regions, by descriptor.
    files: Vec<Region>,
    /// Notifications that were sent and not taken yet: none is lost, but each
    /// may take as long as it likes.
    kicks: Vec<bool>,
    calls: Vec<bool>,
    pub(crate) wire: Wire,
    /// Headers of the requests that each queue's back end has taken and not
    /// answered for certain, each with its number.
    taken: Vec<Vec<(u64, u64)>>,
    takes: u64,
}

impl Shared {
    pub(crate) fn new(seed: u64, fault: Fault) -> Self {
        let mut sim = Sim::new(seed);
        let plan = Plan::new(&mut sim.rng, fault);
        sim.mishaps = plan.mishaps;
        let len = usize::try_from(MEMORY_BYTES).expect("small");
        let region = Region::heap(len).expect("memory");
        let queues = usize::from(plan.queues);
        Self {
            memory: Arc::new(guest(&region)),
            plan,
            sim,
            history: History::new(),
            region,
            files: Vec::new(),
            kicks: vec![false; queues],
            calls: vec![false; queues],
            wire: Wire::default(),
            taken: vec![Vec::new(); queues],
            takes: 0,
        }
    }

    pub(crate) fn kick(&mut self, queue: u16) {
        let lost = self.plan.fault == Fault::LosesKick && self.sim.rng.percent(5);
        self.kicks[usize::from(queue)] |= !lost;
    }

    pub(crate) fn call(&mut self, queue: u16) {
        let lost = self.plan.fault == Fault::LosesCall && self.sim.rng.percent(5);
        self.calls[usize::from(queue)] |= !lost;
    }

    pub(crate) fn is_kicked(&self, queue: u16) -> bool {
        self.kicks[usize::from(queue)]
    }

    pub(crate) fn is_called(&self, queue: u16) -> bool {
        self.calls[usize::from(queue)]
    }

    pub(crate) fn take_kick(&mut self, queue: u16) {
        self.kicks[usize::from(queue)] = false;
    }

    pub(crate) fn take_call(&mut self, queue: u16) {
        self.calls[usize::from(queue)] = false;
    }

    /// A back end took a new request, whose header nobody else can have.
    pub(crate) fn take(&mut self, queue: u16, header: u64) {
        self.forget_taken(queue, header);
        self.takes += 1;
        self.taken[usize::from(queue)].push((self.takes, header));
    }

    /// As the how many-th an earlier back end took it.
    pub(crate) fn taken_as(&self, queue: u16, header: u64) -> u64 {
        let mut taken = self.taken[usize::from(queue)].iter();
        let found = taken.find(|(_, taken)| *taken == header);
        found.expect("what was in flight had been taken").0
    }

    pub(crate) fn forget_taken(&mut self, queue: u16, header: u64) {
        self.taken[usize::from(queue)].retain(|(_, taken)| *taken != header);
    }

    /// A piece of the next message, and the descriptors that come with it.
    pub(crate) fn receive(&mut self, to_back: bool, wanted: usize) -> (Vec<u8>, Vec<FdId>) {
        let queue = if to_back {
            &mut self.wire.to_back
        } else {
            &mut self.wire.to_front
        };
        let message = queue.front_mut().expect("bytes are under way");
        let left = message.bytes.len() - message.arrived;
        let most = left.min(wanted);
        let count = if self.sim.rng.percent(80) {
            most
        } else {
            1 + self.sim.rng.index(most)
        };
        let fds = if message.arrived == 0 {
            message.fds.clone()
        } else {
            Vec::new()
        };
        let bytes = message.bytes[message.arrived..][..count].to_vec();
        message.arrived += count;
        if message.arrived == message.bytes.len() {
            queue.pop_front();
        }
        (bytes, fds)
    }

    /// A new file of zeroes.
    pub(crate) fn create_file(&mut self, len: usize) -> FdId {
        self.files.push(Region::heap(len).expect("memory"));
        FdId(FIRST_FILE + self.files.len() as u64 - 1)
    }

    pub(crate) fn file(&self, fd: FdId) -> Region {
        let at = fd.0.checked_sub(FIRST_FILE).expect("an in-flight region");
        self.files[usize::try_from(at).expect("few")].clone()
    }

    /// The memory as it is shared.
    pub(crate) fn table(&self) -> MemoryRegion {
        MemoryRegion {
            guest_address: Gpa(GUEST_BASE),
            size: MEMORY_BYTES,
            user_address: UserVa(USER_BASE),
            mmap_offset: 0,
        }
    }

    /// Another mapping of it.
    pub(crate) fn map(&self) -> Arc<GuestMemory> {
        Arc::new(guest(&self.region))
    }

    pub(crate) fn layout(&self) -> QueueLayout {
        QueueLayout::of(self.plan.features)
    }

    /// Front-end addresses of the parts of a ring.
    pub(crate) fn part_addresses(queue: u16) -> [UserVa; 3] {
        PARTS.map(|part| UserVa(USER_BASE + RINGS + u64::from(queue) * QUEUE_BYTES + part))
    }

    /// The parts of a ring for the driver.
    pub(crate) fn parts(&self, queue: u16) -> [Window; 3] {
        let mut at = Self::part_addresses(queue).into_iter();
        self.layout().part_lens(self.plan.size).map(|len| {
            let at = at.next().expect("three parts");
            self.memory.front_end.window(at, len).expect("room")
        })
    }

    /// Where the used ring of a split queue stands.
    pub(crate) fn used_index(&self, queue: u16) -> u16 {
        let [descriptors, driver, device] = self.parts(queue);
        let ring = SplitRing::new(descriptors, driver, device, self.plan.size);
        ring.expect("a split ring").used_index()
    }

    /// Nothing is in the ring, and no back end has anything of it.
    pub(crate) fn clear_ring(&mut self, queue: u16) {
        self.taken[usize::from(queue)].clear();
        let zeroes = [0; 0x1000];
        let at = RINGS + u64::from(queue) * QUEUE_BYTES;
        self.region
            .slice(at, QUEUE_BYTES)
            .expect("inside")
            .write(&zeroes);
    }

    /// Where the slots of a queue's requests are.
    pub(crate) fn slots(&self, queue: u16) -> (Gpa, Span) {
        self.place(SLOTS + u64::from(queue) * QUEUE_BYTES, 0x1000)
    }

    /// Buffer `index` of a queue.
    pub(crate) fn buffer(&self, queue: u16, index: u16, blocks: u64) -> (Buffer<Gpa>, Span) {
        let len = u32::try_from(blocks).expect("few") * 512;
        let at = u64::from(index) * BLOCKS_MAX * BLOCK as u64;
        let (address, span) = self.place(DATA + u64::from(queue) * DATA_BYTES + at, len);
        (Buffer { address, len }, span)
    }

    fn place(&self, at: u64, len: u32) -> (Gpa, Span) {
        let address = Gpa(GUEST_BASE + at);
        let mut found = Span::default();
        let resolved = self.memory.guest.resolve(address, len, |span| found = span);
        resolved.expect("inside the memory");
        (address, found)
    }
}

fn guest(region: &Region) -> GuestMemory {
    let regions = vec![(region.clone(), Gpa(GUEST_BASE), UserVa(USER_BASE))];
    GuestMemory::new(regions).expect("one region")
}
