//! A driver's memory and rings against the device's side of a split queue, with
//! the requests of a block device on top.
//!
//! The bytes are a script: writes to memory, descriptors, available chains,
//! passes of the device, requests that it holds and answers later, saving and
//! restoring.

use std::collections::VecDeque;

use linkspan_devices::block::{Block, BlockOptions, Geometry, Operation, Ranges, Request, Status};
use linkspan_mem::{
    Address, Descriptor, Gpa, GuestMemory, Region, RegionTable, Span, SplitRing, UserVa, Window,
};
use linkspan_virtio::limits::{CHAIN_BYTES_MAX, CHAIN_DESCRIPTORS_MAX};
use linkspan_virtio::split::SplitDevice;
use linkspan_virtio::{Chain, Features, QueueError, QueueState};

use crate::input::Input;

/// Steps of a script, the first byte of each.
pub(crate) mod step {
    /// Place, 16 bits; length, 8 bits; the bytes.
    pub(crate) const WRITE: u8 = 0;
    /// Index, 8 bits; address, 32 bits; length, 16 bits; flags, 8 bits; next, 8 bits.
    pub(crate) const DESCRIPTOR: u8 = 1;
    /// Head, 16 bits: the next chain, and the index that covers it.
    pub(crate) const AVAILABLE: u8 = 2;
    /// Chains that the device may take, and how many of them it answers at once, 8 bits each.
    pub(crate) const PASS: u8 = 3;
    /// The device answers all it holds, the last first.
    pub(crate) const ANSWER: u8 = 4;
    /// The queue is saved and restored.
    pub(crate) const SAVE: u8 = 5;
    /// The available index, 16 bits, whatever is there.
    pub(crate) const INDEX: u8 = 6;
    /// How many there are.
    pub(crate) const COUNT: u8 = 7;
}

/// Guest addresses of three regions: the first two are neighbours.
pub(crate) const REGIONS: [(Gpa, usize); 3] = [
    (Gpa(0x1000), 0x1000),
    (Gpa(0x2000), 0x2000),
    (Gpa(u64::MAX - 0xFFF), 0x800),
];

/// Bytes of them together: what writes can reach.
const BYTES: usize = 0x3800;

/// Where a ring of 64 entries has its parts in the first region.
const PARTS: [u64; 3] = [0, 0x400, 0x500];

/// Pieces of memory in one chain at most.
const SEGMENTS: usize = 16;

/// What came of a script, for tests that seeds do what they say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Requests that were answered.
    pub answers: usize,
    /// How the queue was retired, if it was.
    pub retired: Option<QueueError>,
    /// Times that it was saved and restored.
    pub restores: usize,
}

/// The target.
pub fn target(data: &[u8]) {
    run(data);
}

/// Runs a script to the end. Its first two bytes choose features and size.
pub fn run(data: &[u8]) -> Outcome {
    let mut input = Input::new(data);
    let mut outcome = Outcome::default();
    let (Some(bits), Some(shift)) = (input.u8(), input.u8()) else {
        return outcome;
    };
    let mut features = Features::VIRTIO_F_VERSION_1;
    features.set(Features::VIRTIO_F_INDIRECT_DESC, bits & 1 != 0);
    features.set(Features::VIRTIO_F_EVENT_IDX, bits & 2 != 0);
    let mut device = Device::new(features, 1 << (shift % 7));
    while let Some(step) = input.u8() {
        if device.step(step % step::COUNT, &mut input).is_none() {
            break;
        }
    }
    device.answer_all();
    outcome.answers = device.answers;
    outcome.restores = device.restores;
    outcome.retired = device.queue.retired();
    outcome
}

struct Device {
    memory: GuestMemory,
    queue: SplitDevice<Window>,
    features: Features,
    geometry: Geometry,
    available: u16,
    /// Chains without a request, to be used again.
    free: Vec<Chain>,
    held: VecDeque<(Chain, Request)>,
    answers: usize,
    restores: usize,
}

impl Device {
    fn new(features: Features, size: u16) -> Self {
        let regions = REGIONS.map(|(guest, len)| {
            let region = Region::heap(len).expect("memory");
            (region, guest, user(guest))
        });
        let memory = GuestMemory::new(regions.into()).expect("three regions");
        let queue = SplitDevice::new(ring(&memory, size), features, QueueState::default());
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
        Self {
            queue: queue.expect("memory"),
            geometry: block.geometry(features | block.features()),
            memory,
            features,
            available: 0,
            free: Vec::new(),
            held: VecDeque::new(),
            answers: 0,
            restores: 0,
        }
    }

    fn step(&mut self, step: u8, input: &mut Input<'_>) -> Option<()> {
        match step {
            step::WRITE => {
                let (at, len) = (input.u16()?, input.u8()?);
                self.write(usize::from(at) % BYTES, input.bytes(len.into()));
            }
            step::DESCRIPTOR => {
                let index = input.u8()?;
                let descriptor = Descriptor {
                    address: address(input.u32()?),
                    len: input.u16()?.into(),
                    flags: input.u8()?.into(),
                    next: input.u8()?.into(),
                };
                self.queue.ring().set_descriptor(index.into(), descriptor);
            }
            step::AVAILABLE => {
                let head = input.u16()?;
                self.queue.ring().set_available_entry(self.available, head);
                self.available = self.available.wrapping_add(1);
                self.queue.ring().publish_available_index(self.available);
            }
            step::PASS => {
                let (chains, answered) = (input.u8()?, input.u8()?);
                self.pass(chains, answered);
            }
            step::ANSWER => self.answer_all(),
            step::SAVE => self.save(),
            _ => {
                self.available = input.u16()?;
                self.queue.ring().publish_available_index(self.available);
            }
        }
        Some(())
    }

    fn write(&self, mut at: usize, mut bytes: &[u8]) {
        for (region, (_, len)) in self.memory.table().regions().iter().zip(REGIONS) {
            if at < len {
                let part = bytes.len().min(len - at);
                let slice = region.slice(at as u64, part as u64);
                slice.expect("inside the region").write(&bytes[..part]);
                bytes = &bytes[part..];
                at = len;
            }
            at -= len;
        }
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
        assert!(waiting <= self.queue.size(), "more chains than entries");
        let mut taken = 0;
        while taken < chains {
            let mut chain = match self.free.pop() {
                Some(chain) => chain,
                None => Chain::new(SEGMENTS).expect("memory"),
            };
            if !self.queue.pop(&self.memory.guest, &mut chain)? {
                assert_eq!(u16::from(taken), waiting, "a pass takes what waits");
                self.free.push(chain);
                break;
            }
            taken += 1;
            assert!(u16::from(taken) <= waiting, "more than was waiting");
            self.check_chain(&chain);
            let table = self.memory.table();
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
        let waits = self.queue.arm()?;
        assert!(
            !waits || self.queue.refresh()? > 0,
            "it says that some wait"
        );
        Ok(())
    }

    /// Answers one request: the one taken last, or the one taken first.
    fn answer(&mut self, last: bool) -> Result<(), QueueError> {
        let held = if last {
            self.held.pop_back()
        } else {
            self.held.pop_front()
        };
        let Some((mut chain, request)) = held else {
            return Ok(());
        };
        let table = self.memory.table();
        let status = execute(&mut chain, &request, table, &self.geometry);
        let written = request.complete(table, status);
        assert!(written <= chain.writable_total());
        let pushed = self.queue.push(&chain, written);
        self.free.push(chain);
        self.answers += usize::from(pushed.is_ok());
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
            assert!(self.queue.retired().is_some() || self.queue.in_flight() > 0);
            return;
        };
        let ring = ring(&self.memory, self.queue.size());
        let restored = SplitDevice::restore(ring, &saved).expect("its own bytes");
        assert_eq!(restored.snapshot(), Ok(saved));
        assert_eq!(restored.state(), self.queue.state());
        self.queue = restored;
        self.restores += 1;
    }

    /// A queue that is retired says why, always the same, and leaves the ring alone.
    fn check_retired(&mut self, error: QueueError) {
        assert!(!error.to_string().is_empty());
        let used = |queue: &SplitDevice<Window>| {
            let ring = queue.ring();
            (ring.used_index(), ring.used_flags(), ring.available_event())
        };
        let before = used(&self.queue);
        assert_eq!(self.queue.retired(), Some(error));
        assert_eq!(self.queue.refresh(), Err(error));
        assert_eq!(self.queue.disarm(), Err(error));
        assert_eq!(self.queue.publish(), Err(error));
        assert_eq!(self.queue.arm(), Err(error));
        assert_eq!(used(&self.queue), before);
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
            let slices = spans.iter().map(|span| self.memory.table().slice(*span));
            assert_eq!(slices.map(|slice| slice.len() as u64).sum::<u64>(), len);
        }
        assert!(chain.readable().len() + chain.writable().len() <= SEGMENTS);
        assert!(chain.descriptors() <= CHAIN_DESCRIPTORS_MAX);
        assert!(chain.readable_len() + chain.writable_len() <= CHAIN_BYTES_MAX);
        assert_eq!(u64::from(chain.writable_total()), chain.writable_len());
        let indirect = self.features.contains(Features::VIRTIO_F_INDIRECT_DESC);
        assert!(indirect || chain.descriptors() <= self.queue.size());
    }
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

fn ring(memory: &GuestMemory, size: u16) -> SplitRing<Window> {
    let [descriptors, available, used] = PARTS.map(|part| user(Gpa(REGIONS[0].0.0 + part)));
    let window = |at, len| memory.front_end.window(at, len).expect("room for a ring");
    SplitRing::new(
        window(descriptors, SplitRing::<Window>::descriptors_len(size)),
        window(available, SplitRing::<Window>::available_len(size)),
        window(used, SplitRing::<Window>::used_len(size)),
        size,
    )
    .expect("a possible size")
}

/// Where the front end has what the guest has at `guest`.
fn user(guest: Gpa) -> UserVa {
    UserVa(guest.0 ^ 1 << 40)
}

/// Small numbers name the lower regions, large ones the end of the space.
fn address(short: u32) -> u64 {
    Gpa::from_raw(i64::from(short.cast_signed()).cast_unsigned()).raw()
}
