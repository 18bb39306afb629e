//! The device's side of a queue, with the requests of a block device on top: the
//! driver's memory and rings are the peer's, and so is the in-flight region.

use std::collections::VecDeque;
use std::slice;

use linkspan_devices::block::{Block, BlockOptions, Geometry, Operation, Ranges, Request, Status};
use linkspan_mem::{Descriptor, PackedDescriptor, RegionTable, Span};
use linkspan_virtio::limits::{CHAIN_BYTES_MAX, CHAIN_DESCRIPTORS_MAX};
use linkspan_virtio::{Chain, DeviceQueue, Features, QueueError, QueueLayout};

use super::{Memory, Outcome, PeerRing, RacedWindow, address};
use crate::input::Input;

/// Steps of a script, the first byte of each.
pub(crate) mod step {
    /// Place, 16 bits; length, 8 bits; the bytes.
    pub(crate) const WRITE: u8 = 0;
    /// Index, 8 bits; address, 32 bits; length, 16 bits; flags, 8 bits; next, 8
    /// bits. In a packed ring `next` is the buffer id, and of the flags bit 7 is
    /// `AVAIL` and bit 6 is `USED`.
    pub(crate) const DESCRIPTOR: u8 = 1;
    /// Head, 16 bits: the next chain, and the index that covers it. Split only.
    pub(crate) const AVAILABLE: u8 = 2;
    /// Chains that the device may take, and how many of them it answers at once, 8 bits each.
    pub(crate) const PASS: u8 = 3;
    /// The device answers all it holds, the last first unless the order counts.
    pub(crate) const ANSWER: u8 = 4;
    /// The queue is saved and restored.
    pub(crate) const SAVE: u8 = 5;
    /// The available index, 16 bits, whatever is there. Split only.
    pub(crate) const INDEX: u8 = 6;
    /// Loads, 8 bits, and a write that happens after so many.
    pub(crate) const LATER: u8 = 7;
    /// The device dies with all that it holds, and another one begins at a base, 32 bits.
    pub(crate) const DIE: u8 = 8;
    /// How many there are.
    pub(crate) const COUNT: u8 = 9;
}

/// Pieces of memory in one chain at most.
const SEGMENTS: usize = 16;

pub(super) struct Device {
    memory: Memory,
    queue: DeviceQueue<RacedWindow>,
    tracked: bool,
    geometry: Geometry,
    available: u16,
    /// Chains without a request, to be used again.
    free: Vec<Chain>,
    held: VecDeque<(Chain, Request)>,
    outcome: Outcome,
}

impl Device {
    pub(super) fn new(memory: Memory, tracked: bool) -> Self {
        let options = BlockOptions {
            size_bytes: 1 << 20,
            block_size: 512,
            physical_block_size: 4096,
            discard_granularity: 4096,
            queues: 1,
            queue_size: 64,
            read_only: false,
            serial: *b"01234567890123456789",
        };
        let block = Block::new(options).expect("a disk");
        let layout = memory.layout();
        let base = layout.base(layout.start());
        Self {
            queue: open(&memory, tracked, base).expect("a new ring"),
            geometry: block.geometry(memory.features | block.features()),
            memory,
            tracked,
            available: 0,
            free: Vec::new(),
            held: VecDeque::new(),
            outcome: Outcome::default(),
        }
    }

    pub(super) fn play(mut self, input: &mut Input<'_>) -> Outcome {
        while let Some(step) = input.u8() {
            let done = self.step(step % step::COUNT, input);
            if done.is_none() || self.outcome.error.is_some() {
                break;
            }
        }
        if self.outcome.error.is_none() {
            self.answer_all();
        }
        if let Some(error) = self.queue.retired() {
            self.outcome.error = Some(error.to_string());
        }
        self.outcome
    }

    fn step(&mut self, step: u8, input: &mut Input<'_>) -> Option<()> {
        match step {
            step::WRITE => self.memory.write(input)?,
            step::LATER => self.memory.write_later(input)?,
            step::DESCRIPTOR => self.descriptor(input)?,
            step::AVAILABLE => {
                let head = input.u16()?;
                if let PeerRing::Split(ring) = &self.memory.peer {
                    ring.set_available_entry(self.available, head);
                    self.available = self.available.wrapping_add(1);
                    ring.publish_available_index(self.available);
                }
            }
            step::PASS => {
                let (chains, answered) = (input.u8()?, input.u8()?);
                self.pass(chains, answered);
            }
            step::ANSWER => self.answer_all(),
            step::SAVE => self.save(),
            step::DIE => self.die(input.u32()?),
            _ => {
                self.available = input.u16()?;
                if let PeerRing::Split(ring) = &self.memory.peer {
                    ring.publish_available_index(self.available);
                }
            }
        }
        Some(())
    }

    fn descriptor(&self, input: &mut Input<'_>) -> Option<()> {
        let (index, short) = (u16::from(input.u8()?), input.u32()?);
        let (len, flags, next) = (input.u16()?, u16::from(input.u8()?), input.u8()?);
        let (address, len) = (address(short), len.into());
        match &self.memory.peer {
            PeerRing::Split(ring) => ring.set_descriptor(
                index,
                Descriptor {
                    address,
                    len,
                    flags,
                    next: next.into(),
                },
            ),
            PeerRing::Packed(ring) => {
                let (at, id) = (index % ring.size(), next.into());
                let descriptor = PackedDescriptor {
                    address,
                    len,
                    id,
                    flags: flags & 0xBF | (flags & 0x40) << 9,
                };
                ring.publish_descriptor(at, descriptor);
            }
        }
        Some(())
    }

    /// One pass as a worker does it.
    fn pass(&mut self, chains: u8, answered: u8) {
        match self.take(chains, answered) {
            Ok(()) => assert_eq!(self.queue.retired(), None),
            Err(error) => self.check_retired(error),
        }
    }

    fn take(&mut self, chains: u8, answered: u8) -> Result<(), QueueError> {
        self.queue.disarm()?;
        let waiting = self.queue.refresh()?;
        let size = self.queue.size();
        // What an earlier life left comes on top.
        let most = if self.tracked { 2 * size } else { size };
        assert!(waiting <= most, "more chains than entries");
        // A packed ring is looked at again for each chain.
        let split = self.memory.layout() == QueueLayout::Split;
        let mut taken = 0;
        while taken < chains {
            let mut chain = match self.free.pop() {
                Some(chain) => chain,
                None => Chain::new(SEGMENTS).expect("memory"),
            };
            let space = &self.memory.guest.guest;
            let popped = if taken.is_multiple_of(2) {
                self.queue.pop(space, &mut chain)?
            } else {
                self.queue.pop_many(space, slice::from_mut(&mut chain))? == 1
            };
            if !popped {
                assert!(
                    !split || u16::from(taken) == waiting,
                    "a pass takes what waits"
                );
                self.free.push(chain);
                break;
            }
            taken += 1;
            assert!(
                !split || u16::from(taken) <= waiting,
                "more than was waiting"
            );
            assert!(
                self.queue.in_flight() <= size,
                "more in flight than entries"
            );
            self.check_chain(&chain);
            let table = self.memory.guest.table();
            let request = Request::parse(&mut chain, table, &self.geometry)
                .map_err(|error| self.queue.retire(error))?;
            self.held.push_back((chain, request));
            if taken <= answered {
                self.answer(false)?;
            }
        }
        self.publish()
    }

    fn publish(&mut self) -> Result<(), QueueError> {
        self.queue.publish()?;
        self.queue.notify_wanted()?;
        let calm = self.memory.is_calm();
        let waits = self.queue.arm()?;
        let more = self.queue.refresh()? > 0;
        assert!(!waits || more || !calm, "it says that some wait");
        Ok(())
    }

    /// Answers one request: the one taken last, or the one taken first.
    fn answer(&mut self, last: bool) -> Result<(), QueueError> {
        let held = if last && !self.memory.is(Features::VIRTIO_F_IN_ORDER) {
            self.held.pop_back()
        } else {
            self.held.pop_front()
        };
        let Some((mut chain, request)) = held else {
            return Ok(());
        };
        let table = self.memory.guest.table();
        let status = execute(&mut chain, &request, table, &self.geometry);
        let written = request.complete(table, status);
        assert!(written <= chain.writable_total());
        let pushed = self.queue.push(&chain, written);
        self.free.push(chain);
        self.outcome.answers += usize::from(pushed.is_ok());
        pushed
    }

    fn answer_all(&mut self) {
        let mut result = Ok(());
        while !self.held.is_empty() {
            result = result.and(self.answer(true));
        }
        if let Err(error) = result.and_then(|()| self.publish()) {
            self.check_retired(error);
        } else {
            assert_eq!(self.queue.in_flight(), 0);
        }
    }

    fn save(&mut self) {
        let Ok(saved) = self.queue.snapshot() else {
            return;
        };
        assert_eq!(self.queue.in_flight(), 0);
        let (parts, size) = (self.memory.parts(), self.queue.size());
        let restored = DeviceQueue::restore(parts, size, self.memory.layout(), &saved);
        let restored = restored.expect("its own bytes");
        assert_eq!(restored.snapshot(), Ok(saved));
        assert_eq!(restored.state(), self.queue.state());
        self.outcome.restores += 1;
        self.replace(track(&self.memory, self.tracked, restored));
    }

    fn die(&mut self, base: u32) {
        self.free
            .extend(self.held.drain(..).map(|(chain, _)| chain));
        let (calm, before) = (self.memory.is_calm(), self.memory.bytes());
        let opened = open(&self.memory, self.tracked, base);
        let unchanged = || before == self.memory.bytes();
        assert!(opened.is_ok() || !calm || unchanged(), "it did not begin");
        self.replace(opened);
    }

    fn replace(&mut self, queue: Result<DeviceQueue<RacedWindow>, String>) {
        match queue {
            Ok(queue) => self.queue = queue,
            Err(error) => self.outcome.error = Some(error),
        }
    }

    /// A queue that is retired says why, always the same, and leaves the ring alone.
    fn check_retired(&mut self, error: QueueError) {
        assert!(!error.to_string().is_empty());
        let before = self.memory.bytes();
        let space = &self.memory.guest.guest;
        let mut chain = Chain::new(SEGMENTS).expect("memory");
        assert_eq!(self.queue.retired(), Some(error));
        assert_eq!(self.queue.refresh(), Err(error));
        assert_eq!(self.queue.disarm(), Err(error));
        assert_eq!(self.queue.pop(space, &mut chain), Err(error));
        assert_eq!(self.queue.publish(), Err(error));
        assert_eq!(self.queue.notify_wanted(), Err(error));
        assert_eq!(self.queue.arm(), Err(error));
        assert!(self.queue.snapshot().is_err());
        assert_eq!(self.memory.bytes(), before);
    }

    fn check_chain(&self, chain: &Chain) {
        let parts = [
            (chain.readable(), chain.readable_len()),
            (chain.writable(), chain.writable_len()),
        ];
        for (spans, len) in parts {
            let sum: u64 = spans.iter().map(|span| u64::from(span.len())).sum();
            assert_eq!(sum, len);
            // Panics when one is not inside its region.
            let table = self.memory.guest.table();
            let slices = spans.iter().map(|span| table.slice(*span));
            assert_eq!(slices.map(|slice| slice.len() as u64).sum::<u64>(), len);
        }
        assert!(chain.readable().len() + chain.writable().len() <= SEGMENTS);
        assert!(chain.descriptors() <= CHAIN_DESCRIPTORS_MAX);
        assert!(chain.readable_len() + chain.writable_len() <= CHAIN_BYTES_MAX);
        assert_eq!(u64::from(chain.writable_total()), chain.writable_len());
        let indirect = self.memory.is(Features::VIRTIO_F_INDIRECT_DESC);
        assert!(indirect || chain.descriptors() <= self.queue.size());
    }
}

fn open(memory: &Memory, tracked: bool, base: u32) -> Result<DeviceQueue<RacedWindow>, String> {
    let (parts, size, features) = (memory.parts(), memory.size, memory.features);
    let queue = DeviceQueue::with_base(parts, size, features, base);
    let queue = queue.map_err(|error| error.to_string())?;
    track(memory, tracked, queue)
}

fn track(
    memory: &Memory,
    tracked: bool,
    queue: DeviceQueue<RacedWindow>,
) -> Result<DeviceQueue<RacedWindow>, String> {
    if !tracked {
        return Ok(queue);
    }
    let queue = queue.track(memory.inflight(), memory.size);
    queue.map_err(|error| error.to_string())
}

/// What an image would do with the data.
fn execute(chain: &mut Chain, request: &Request, table: &RegionTable, disk: &Geometry) -> Status {
    let inside = |offset: u64, spans: &[Span]| {
        let len: u64 = spans.iter().map(|span| u64::from(span.len())).sum();
        assert!(len > 0 && len.is_multiple_of(512) && offset.is_multiple_of(512));
        assert!(
            offset + len <= disk.capacity_sectors * 512,
            "outside the disk"
        );
        usize::try_from(len).expect("memory is small")
    };
    match request.operation {
        Operation::Read { offset } => {
            let data = vec![0x5A; inside(offset, chain.writable())];
            table.scatter(chain.writable(), 0, &data).expect("room");
            Status::Ok
        }
        Operation::Write { offset, .. } => {
            let mut data = vec![0; inside(offset, chain.readable())];
            table.gather(chain.readable(), 0, &mut data).expect("data");
            Status::Ok
        }
        Operation::Discard | Operation::WriteZeroes { .. } => {
            let mut ranges = Ranges::new();
            let list = ranges.read(request.operation, chain, table, disk);
            while let Some((range, _)) = ranges.next_slice() {
                let end = range.offset + range.len;
                assert!(list.is_ok() && end <= disk.capacity_sectors * 512);
            }
            list.err().unwrap_or(Status::Ok)
        }
        Operation::Flush => Status::Ok,
        Operation::Answer(status) => status,
    }
}
