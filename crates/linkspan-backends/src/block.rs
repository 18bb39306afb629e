//! The block device as it is served: block logic on one side, an image on the
//! other, a worker's queue between.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use linkspan_devices::block::{
    Block, BlockOptions, CONFIG_LEN, Geometry, ID_BYTES, Operation, OptionsError, Ranges, Request,
    SECTOR, Status,
};
use linkspan_engine::{
    ActiveRing, BLOCK_DEVICE, Budget, ConfigRange, Counter, Device, Histogram, LogLimit, NotLent,
    OpenQueueError, Progress, QueueHandler, RateLimit,
};
use linkspan_mem::fault::Injected;
use linkspan_virtio::{Chain, Features, QueueError};

use crate::image::{self, Completion, Image, ImageQueue, ResizeError, TURN_RETRY};
use clock::Clock;

mod clock;
mod saved;

/// A block device on an image.
pub struct BlockDevice {
    /// As it was made; its size is that of the image.
    block: Block,
    image: Arc<dyn Image>,
    /// Bytes of the disk as drivers know it, for all queues.
    size: Arc<AtomicU64>,
    limit: Option<Arc<RateLimit>>,
    counters: Vec<Arc<BlockCounters>>,
    /// Of each queue, if requests are timed.
    latencies: Vec<Arc<Histogram>>,
}

/// How a disk is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// How many queues.
    pub queues: u16,
    /// Entries of each queue at most.
    pub queue_size: u16,
    /// Bytes of a block, if not what the image likes best.
    pub block_size: Option<u32>,
    /// Serial number, padded with NUL.
    pub serial: [u8; ID_BYTES],
}

impl DiskOptions {
    /// A disk with `queues` queues of at most `queue_size` entries, as the image
    /// likes it best.
    pub fn new(queues: u16, queue_size: u16) -> Self {
        const { assert!(ID_BYTES == 20) };
        Self {
            queues,
            queue_size,
            block_size: None,
            serial: *b"linkspan\0\0\0\0\0\0\0\0\0\0\0\0",
        }
    }
}

/// Bytes that are written without reading first, whatever the image is: pages of
/// memory and blocks of file systems.
const PHYSICAL_BLOCK: u32 = 4096;

/// Answers that are shown together in the middle of a pass. A driver that looks for them
/// asks its next requests while this side goes on with the pass; each time costs both
/// sides a cache line.
const SHOWN_TOGETHER: u32 = 8;

/// What a queue of a block device counts: written by its worker, read by anybody.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct BlockCounters {
    /// Reads completed.
    pub reads: Counter,
    /// Bytes read.
    pub read_bytes: Counter,
    /// Writes completed.
    pub writes: Counter,
    /// Bytes written.
    pub written_bytes: Counter,
    /// Flushes completed.
    pub flushes: Counter,
    /// Discards completed.
    pub discards: Counter,
    /// Requests for zeroes completed.
    pub write_zeroes: Counter,
    /// Requests that ended with an I/O error or were refused.
    pub errors: Counter,
}

impl BlockDevice {
    /// A device with `queues` queues of at most `queue_size` entries.
    ///
    /// # Errors
    /// When these make no block device.
    pub fn new(image: Arc<dyn Image>, queues: u16, queue_size: u16) -> Result<Self, OptionsError> {
        Self::with_options(image, &DiskOptions::new(queues, queue_size))
    }

    /// A device of these options.
    ///
    /// # Errors
    /// When they make no block device.
    pub fn with_options(
        image: Arc<dyn Image>,
        options: &DiskOptions,
    ) -> Result<Self, OptionsError> {
        let block_size = options.block_size.unwrap_or(image.block_size());
        let block = Block::new(BlockOptions {
            size_bytes: image.len(),
            block_size,
            physical_block_size: block_size.max(PHYSICAL_BLOCK),
            discard_granularity: image.discard_granularity(),
            queues: options.queues,
            queue_size: options.queue_size,
            read_only: image.read_only(),
            serial: options.serial,
        })?;
        Ok(Self {
            block,
            size: Arc::new(AtomicU64::new(image.len())),
            image,
            limit: None,
            counters: (0..options.queues).map(|_| Arc::default()).collect(),
            latencies: Vec::new(),
        })
    }

    /// Limits what all queues do together. Each request is one operation, also
    /// one that is refused; only reads, writes, and zeroes that keep their storage
    /// have bytes.
    #[must_use]
    pub fn with_limit(mut self, limit: RateLimit) -> Self {
        self.limit = Some(Arc::new(limit));
        self
    }

    /// Times each request from now on, from the pass that takes it to its answer. That costs
    /// a look at the clock for each.
    #[must_use]
    pub fn with_latency(mut self) -> Self {
        let queues = self.block.queues();
        self.latencies = (0..queues).map(|_| Arc::default()).collect();
        self
    }

    /// How long requests of each queue took, where they are timed.
    pub fn latencies(&self) -> &[Arc<Histogram>] {
        &self.latencies
    }

    /// Takes over the size of an image that somebody enlarged; the size in bytes
    /// if it is another one. Configuration space and all queues have it from
    /// then on, and the driver is to be told (virtio 1.3 5.2.5). May wait for the
    /// image, so call it from a thread that may.
    ///
    /// # Errors
    /// [`ResizeError`]; everything is as before then.
    pub fn resize(&self) -> Result<Option<u64>, ResizeError> {
        self.image.measure()?;
        let size = self.image.len();
        let before = self.size.swap(size, Ordering::AcqRel);
        Ok((size != before).then_some(size))
    }

    /// What each queue has counted so far.
    pub fn counters(&self) -> &[Arc<BlockCounters>] {
        &self.counters
    }
}

impl fmt::Debug for BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockDevice")
            .field("block", &self.block)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Device for BlockDevice {
    fn name(&self) -> &'static str {
        "block"
    }

    fn device_id(&self) -> u32 {
        BLOCK_DEVICE
    }

    fn features(&self) -> Features {
        self.block.features()
    }

    fn queues(&self) -> u16 {
        self.block.queues()
    }

    fn queue_size_max(&self) -> u16 {
        self.block.queue_size()
    }

    fn config_size(&self) -> u32 {
        u32::try_from(CONFIG_LEN).expect("less than 256")
    }

    fn read_config(&self, offset: u32, target: &mut [u8]) -> Result<(), ConfigRange> {
        let len = target.len();
        let size = self.size.load(Ordering::Acquire);
        if self
            .block
            .with_size(size)
            .read_config(offset as usize, target)
        {
            return Ok(());
        }
        Err(ConfigRange {
            offset,
            len,
            size: self.config_size(),
        })
    }

    fn lend(&self) -> Result<Vec<OwnedFd>, NotLent> {
        self.image.lend().map_err(NotLent)
    }

    fn save(&self) -> Result<Vec<u8>, NotLent> {
        // What is broken by now is not handed on.
        self.lend()?;
        self.image.leave();
        Ok(saved::save(self.size.load(Ordering::Acquire)))
    }

    fn load(&self, saved: &[u8]) -> Result<(), NotLent> {
        let size = saved::load(saved, self.image.len())?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn open_queue(
        &self,
        index: u16,
        features: Features,
    ) -> Result<Box<dyn QueueHandler>, OpenQueueError> {
        let image = self
            .image
            .open_queue(self.block.queue_size())
            .map_err(|source| OpenQueueError::System {
                what: "the image cannot serve another queue",
                source,
            })?;
        let mut queue = BlockQueue {
            geometry: self.block.geometry(features),
            size: Arc::clone(&self.size),
            segments: self.block.chain_segments(),
            image,
            slots: Vec::new(),
            free: Vec::new(),
            sliced: VecDeque::new(),
            unshown: 0,
            limit: self.limit.clone(),
            counters: Arc::clone(&self.counters[usize::from(index)]),
            clock: self.latencies.get(usize::from(index)).map(Clock::new),
            errors: LogLimit::default(),
        };
        // One slot is enough to make progress, whatever is refused later.
        queue.add_slot()?;
        Ok(Box::new(queue))
    }
}

/// One queue of a block device.
struct BlockQueue {
    geometry: Geometry,
    /// Bytes of the disk, looked at once in a pass.
    size: Arc<AtomicU64>,
    segments: usize,
    image: Box<dyn ImageQueue>,
    /// Requests by token. A slot keeps its chain's room for the next request.
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Requests with ranges left, of which no slice is under way; in turn.
    sliced: VecDeque<u32>,
    /// Answers that the driver was not shown in this pass.
    unshown: u32,
    limit: Option<Arc<RateLimit>>,
    counters: Arc<BlockCounters>,
    /// If requests are timed.
    clock: Option<Clock>,
    errors: LogLimit,
}

/// What a request does, in bytes.
#[derive(Clone, Copy, Default)]
struct Moved {
    /// What the budget of a pass has less.
    work: u64,
    /// What counts against a limit.
    data: u64,
}

struct Slot {
    chain: Chain,
    request: Option<Request>,
    /// When it was taken, if that is timed.
    taken: Option<Instant>,
    /// What is left to do of a discard or a request for zeroes.
    ranges: Ranges,
}

impl BlockQueue {
    fn add_slot(&mut self) -> Result<(), Injected> {
        let chain = Chain::new(self.segments)?;
        let token = u32::try_from(self.slots.len()).expect("a queue has at most 32768 entries");
        self.slots.push(Slot {
            chain,
            request: None,
            taken: None,
            ranges: Ranges::new(),
        });
        self.free.push(token);
        Ok(())
    }

    /// A free slot. Slots grow to the depth that the driver really uses.
    fn free_slot(&mut self) -> Option<u32> {
        if self.free.is_empty() && self.add_slot().is_err() {
            // Those in flight come back and go on with what there is.
            return None;
        }
        self.free.pop()
    }

    /// Takes one chain; what it moves, or `None` when there is none.
    fn take(&mut self, ring: &mut ActiveRing, token: u32) -> Result<Option<Moved>, QueueError> {
        let slot = &mut self.slots[token as usize];
        let table = ring.memory.table();
        if !ring.queue.pop(&ring.memory.guest, &mut slot.chain)? {
            return Ok(None);
        }
        let request = Request::parse(&mut slot.chain, table, &self.geometry)
            .map_err(|error| ring.queue.retire(error))?;
        slot.request = Some(request);
        slot.taken = self.clock.as_ref().map(Clock::now);
        let chain = &slot.chain;
        let (operation, bytes) = match request.operation {
            Operation::Read { offset } => {
                let data = chain.writable();
                (
                    image::Operation::Read { offset, data },
                    chain.writable_len(),
                )
            }
            Operation::Write { offset, durable } => {
                let data = chain.readable();
                (
                    image::Operation::Write {
                        offset,
                        data,
                        durable,
                    },
                    chain.readable_len(),
                )
            }
            Operation::Flush => (image::Operation::Flush, 0),
            Operation::Discard | Operation::WriteZeroes { .. } => {
                return Ok(Some(self.take_ranges(ring, token, request.operation)));
            }
            Operation::Answer(status) => {
                self.finish(ring, token, status);
                return Ok(Some(Moved::default()));
            }
        };
        if let Some(known) = self.image.submit(token, operation, table) {
            self.end(ring, token, known);
        }
        Ok(Some(Moved {
            work: bytes,
            data: bytes,
        }))
    }

    /// Reads the list of a chain that was taken, and begins with it.
    fn take_ranges(&mut self, ring: &mut ActiveRing, token: u32, operation: Operation) -> Moved {
        let slot = &mut self.slots[token as usize];
        let table = ring.memory.table();
        let list = slot
            .ranges
            .read(operation, &mut slot.chain, table, &self.geometry);
        if let Err(status) = list {
            self.finish(ring, token, status);
            return Moved::default();
        }
        let data = match operation {
            Operation::WriteZeroes { .. } => slot.ranges.kept_bytes(),
            _ => 0,
        };
        Moved {
            work: self.next_slice(ring, token),
            data,
        }
    }

    /// Hands the next slice of a request's ranges to the image, and answers when
    /// there is none; how many bytes it has. One slice of a request is under way at
    /// a time, so that a huge request holds neither the worker nor the image.
    fn next_slice(&mut self, ring: &mut ActiveRing, token: u32) -> u64 {
        let slot = &mut self.slots[token as usize];
        let Some((range, last)) = slot.ranges.next_slice() else {
            self.finish(ring, token, Status::Ok);
            return 0;
        };
        let (offset, len) = (range.offset, range.len);
        let operation = match slot.request.map(|request| request.operation) {
            Some(Operation::WriteZeroes { durable }) => image::Operation::WriteZeroes {
                offset,
                len,
                unmap: range.unmap,
                // What makes the last slice durable does it for all.
                durable: durable && last,
            },
            _ => image::Operation::Discard { offset, len },
        };
        let known = self.image.submit(token, operation, ring.memory.table());
        if let Some(known) = known {
            self.end(ring, token, known);
        }
        len
    }

    /// Hands over slices that are due, and takes chains, until there are no more or
    /// the budget is used up.
    fn take_batch(
        &mut self,
        ring: &mut ActiveRing,
        budget: Budget,
    ) -> Result<Progress, QueueError> {
        if budget.chains > 0 && !self.image.has_turn() {
            return Ok(Progress::Until(Instant::now() + TURN_RETRY));
        }
        let (mut chains, mut bytes) = (0, 0);
        // Slices have a budget of their own, or they would keep out new requests.
        let mut sliced = 0;
        while sliced < budget.bytes
            && let Some(token) = self.sliced.pop_front()
        {
            sliced += self.next_slice(ring, token);
        }
        // One look at the clock is enough: what comes in during a pass waits.
        let limit = self.limit.clone().map(|limit| (limit, Instant::now()));
        while chains < budget.chains && bytes < budget.bytes {
            let Some(token) = self.free_slot() else {
                return Ok(Progress::Idle);
            };
            if let Some((limit, now)) = &limit
                && let Err(until) = limit.admit(*now)
            {
                self.free.push(token);
                return Ok(Progress::Until(until));
            }
            let taken = self.take(ring, token);
            match taken {
                Ok(Some(moved)) => {
                    bytes += moved.work;
                    if let Some((limit, now)) = &limit {
                        limit.charge(moved.data, *now);
                    }
                }
                Ok(None) => {
                    self.free.push(token);
                    return Ok(Progress::Idle);
                }
                Err(error) => {
                    self.free.push(token);
                    self.give_up_slices(ring);
                    return Err(error);
                }
            }
            chains += 1;
        }
        Ok(if budget.chains == 0 {
            Progress::Idle
        } else {
            Progress::More
        })
    }

    /// Answers every request that the image is done with.
    fn reap(&mut self, ring: &mut ActiveRing) {
        while let Some(Completion { token, result }) = self.image.completion() {
            self.end(ring, token, result);
        }
    }

    /// The image is done with a request, or with a slice of one.
    #[inline]
    fn end(&mut self, ring: &mut ActiveRing, token: u32, result: io::Result<()>) {
        let ranges = &mut self.slots[token as usize].ranges;
        let status = match result {
            Ok(()) if !ranges.is_empty() => {
                self.sliced.push_back(token);
                return;
            }
            Ok(()) => Status::Ok,
            Err(error) => {
                if let Some(more) = self.errors.allow() {
                    tracing::warn!(more, "a request of the guest failed: {error}");
                }
                ranges.clear();
                Status::IoErr
            }
        };
        self.finish(ring, token, status);
    }

    /// Ends what waits for its next slice: nobody will hear of it.
    fn give_up_slices(&mut self, ring: &mut ActiveRing) {
        while let Some(token) = self.sliced.pop_front() {
            self.slots[token as usize].ranges.clear();
            self.finish(ring, token, Status::IoErr);
        }
    }

    /// What to say when no more chains are taken.
    fn rest(&self) -> Progress {
        if self.sliced.is_empty() {
            Progress::Idle
        } else {
            Progress::More
        }
    }

    fn finish(&mut self, ring: &mut ActiveRing, token: u32, status: Status) {
        let slot = &mut self.slots[token as usize];
        self.free.push(token);
        let Some(request) = slot.request.take() else {
            panic!("the image completed request {token}, which is not in flight");
        };
        self.counters.count(&request, &slot.chain, status);
        if let (Some(clock), Some(taken)) = (&mut self.clock, slot.taken) {
            clock.answered(taken);
        }
        let written = request.complete(ring.memory.table(), status);
        if ring.logs_writes() {
            request.for_each_write(&slot.chain, status, |span| ring.log_write(span));
        }
        // A ring that was retired meanwhile takes no answers; its request is over
        // all the same, and the worker hears of the reason when it publishes.
        let _ = ring.queue.push(&slot.chain, written);
        self.unshown += 1;
        if self.unshown == SHOWN_TOGETHER {
            self.unshown = 0;
            ring.show();
        }
    }
}

impl BlockCounters {
    fn count(&self, request: &Request, chain: &Chain, status: Status) {
        match request.operation {
            _ if status != Status::Ok => self.errors.add(1),
            Operation::Read { .. } => {
                self.reads.add(1);
                self.read_bytes.add(chain.writable_len());
            }
            Operation::Write { .. } => {
                self.writes.add(1);
                self.written_bytes.add(chain.readable_len());
            }
            Operation::Flush => self.flushes.add(1),
            Operation::Discard => self.discards.add(1),
            Operation::WriteZeroes { .. } => self.write_zeroes.add(1),
            Operation::Answer(_) => {}
        }
    }
}

impl QueueHandler for BlockQueue {
    fn run(&mut self, ring: &mut ActiveRing, budget: Budget) -> Result<Progress, QueueError> {
        self.geometry.capacity_sectors = self.size.load(Ordering::Acquire) / SECTOR;
        self.unshown = 0;
        if let Some(clock) = &mut self.clock {
            clock.look();
        }
        self.reap(ring);
        let progress = self.take_batch(ring, budget);
        self.image.launch();
        // Some of it may be done already.
        self.reap(ring);
        Ok(match (progress?, self.rest()) {
            (progress, Progress::Idle) => progress,
            (_, slices) => slices,
        })
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn completion_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.image.completion_fd()
    }

    fn has_completions(&self) -> bool {
        self.image.has_completion()
    }
}
