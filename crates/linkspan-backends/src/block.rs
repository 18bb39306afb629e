//! The block device as it is served: block logic on one side, an image on the
//! other, a worker's queue between.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use linkspan_devices::block::{
    Block, BlockOptions, CONFIG_LEN, Geometry, ID_BYTES, Operation, OptionsError, Request, SECTOR,
    Status,
};
use linkspan_engine::{
    ActiveRing, Budget, ConfigRange, Counter, Device, LogLimit, OpenQueueError, Progress,
    QueueHandler, RateLimit,
};
use linkspan_mem::fault::Injected;
use linkspan_virtio::{Chain, Features, QueueError};

use crate::image::{self, Image, ImageQueue, ResizeError};

/// A block device on an image.
pub struct BlockDevice {
    /// As it was made; its size is that of the image.
    block: Block,
    image: Arc<dyn Image>,
    /// Bytes of the disk as drivers know it, for all queues.
    size: Arc<AtomicU64>,
    limit: Option<Arc<RateLimit>>,
    counters: Vec<Arc<BlockCounters>>,
}

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
    /// Requests that ended with an I/O error or were refused.
    pub errors: Counter,
}

impl BlockDevice {
    /// A device with `queues` queues of at most `queue_size` entries.
    ///
    /// # Errors
    /// When these make no block device.
    pub fn new(image: Arc<dyn Image>, queues: u16, queue_size: u16) -> Result<Self, OptionsError> {
        let options = BlockOptions {
            size_bytes: image.len(),
            block_size: image.block_size(),
            queues,
            queue_size,
            read_only: image.read_only(),
            serial: *b"linkspan\0\0\0\0\0\0\0\0\0\0\0\0",
        };
        const { assert!(ID_BYTES == 20) };
        Ok(Self {
            block: Block::new(options)?,
            size: Arc::new(AtomicU64::new(options.size_bytes)),
            image,
            limit: None,
            counters: (0..queues).map(|_| Arc::default()).collect(),
        })
    }

    /// Limits what all queues do together. Each request is one operation, also
    /// one that is refused; only reads and writes have bytes.
    #[must_use]
    pub fn with_limit(mut self, limit: RateLimit) -> Self {
        self.limit = Some(Arc::new(limit));
        self
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

    fn open_queue(
        &self,
        index: u16,
        features: Features,
    ) -> Result<Box<dyn QueueHandler>, OpenQueueError> {
        let image = self
            .image
            .open_queue()
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
            limit: self.limit.clone(),
            counters: Arc::clone(&self.counters[usize::from(index)]),
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
    limit: Option<Arc<RateLimit>>,
    counters: Arc<BlockCounters>,
    errors: LogLimit,
}

struct Slot {
    chain: Chain,
    request: Option<Request>,
}

impl BlockQueue {
    fn add_slot(&mut self) -> Result<(), Injected> {
        let chain = Chain::new(self.segments)?;
        let token = u32::try_from(self.slots.len()).expect("a queue has at most 32768 entries");
        self.slots.push(Slot {
            chain,
            request: None,
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

    /// Takes one chain; how many bytes it moves, or `None` when there is none.
    fn take(&mut self, ring: &mut ActiveRing, token: u32) -> Result<Option<u64>, QueueError> {
        let slot = &mut self.slots[token as usize];
        let table = ring.memory.table();
        if !ring.queue.pop(&ring.memory.guest, &mut slot.chain)? {
            return Ok(None);
        }
        let request = Request::parse(&mut slot.chain, table, &self.geometry)
            .map_err(|error| ring.queue.retire(error))?;
        slot.request = Some(request);
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
            Operation::Answer(status) => {
                self.finish(ring, token, status);
                return Ok(Some(0));
            }
        };
        self.image.submit(token, operation, table);
        Ok(Some(bytes))
    }

    /// Answers every request that the image is done with.
    fn reap(&mut self, ring: &mut ActiveRing) {
        while let Some(completion) = self.image.completion() {
            let status = match completion.result {
                Ok(()) => Status::Ok,
                Err(error) => {
                    if let Some(more) = self.errors.allow() {
                        tracing::warn!(more, "a request of the guest failed: {error}");
                    }
                    Status::IoErr
                }
            };
            self.finish(ring, completion.token, status);
        }
    }

    fn finish(&mut self, ring: &mut ActiveRing, token: u32, status: Status) {
        let slot = &mut self.slots[token as usize];
        self.free.push(token);
        let Some(request) = slot.request.take() else {
            panic!("the image completed request {token}, which is not in flight");
        };
        self.counters.count(&request, &slot.chain, status);
        let written = request.complete(ring.memory.table(), status);
        if ring.logs_writes() {
            request.for_each_write(&slot.chain, status, |span| ring.log_write(span));
        }
        // A ring that was retired meanwhile takes no answers; its request is over
        // all the same, and the worker hears of the reason when it publishes.
        let _ = ring.queue.push(&slot.chain, written);
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
            Operation::Answer(_) => {}
        }
    }
}

impl QueueHandler for BlockQueue {
    fn run(&mut self, ring: &mut ActiveRing, budget: Budget) -> Result<Progress, QueueError> {
        let (mut chains, mut bytes) = (0, 0);
        self.geometry.capacity_sectors = self.size.load(Ordering::Acquire) / SECTOR;
        self.reap(ring);
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
                    bytes += moved;
                    if let Some((limit, now)) = &limit {
                        limit.charge(moved, *now);
                    }
                }
                Ok(None) | Err(_) => {
                    self.free.push(token);
                    return taken.map(|_| Progress::Idle);
                }
            }
            self.reap(ring);
            chains += 1;
        }
        Ok(Progress::More)
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
