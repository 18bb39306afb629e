//! The driver's side of the block device: requests onto a queue, answers back.
//!
//! A request is one header, at most one run of data, and one status byte. Header,
//! status and the indirect table of each request lie in a slot of shared memory;
//! the data is wherever the caller wants it.

use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};
use linkspan_mem::{Address, Descriptor, RegionTable, RingMemory, Span};
use linkspan_virtio::Features;
use linkspan_virtio::{AddError, Buffer, DriverQueue, IndirectTable, UsedError};
use virtio_bindings::virtio_blk as bits;

use super::config::CONFIG_LEN;
use super::{SECTOR, Status, feature};

/// Shared memory that each request of a queue needs beside its data, in bytes.
pub const SLOT_BYTES: u32 = 128;

/// Where things lie in a slot: what is written for each request in one cache line,
/// and the table, which mostly stays as it is, in another.
const HEADER: u32 = 0;
const HEADER_LEN: u32 = 16;
const STATUS: u32 = 16;
/// The one range of a discard or a request for zeroes.
const RANGE: u32 = 32;
const RANGE_LEN: u32 = 16;
const TABLE: u32 = 64;
const TABLE_LEN: u32 = 48;
const _: () = assert!(
    TABLE_LEN as usize == 3 * Descriptor::SIZE
        && RANGE + RANGE_LEN <= TABLE
        && TABLE + TABLE_LEN <= SLOT_BYTES
);

/// What a status byte holds until the device writes it: no status there is.
const NO_STATUS: u8 = 0xFF;

/// What a driver knows of a disk before it uses it (virtio 1.3 5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Size of a block in bytes.
    pub block_size: u32,
    /// Queues that the device says it has; 1 without `VIRTIO_BLK_F_MQ`.
    pub queues: u16,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether a flush makes writes durable; else each write is by itself.
    pub flush: bool,
    /// Size in bytes that is written without reading first; the block size
    /// without `VIRTIO_BLK_F_TOPOLOGY`.
    pub physical_block_size: u64,
    /// What can be discarded at a time, if anything.
    pub discard: Option<RangeLimits>,
    /// What can be made zero at a time without data, if anything.
    pub write_zeroes: Option<RangeLimits>,
}

/// Limits of a discard or of a request for zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// Sectors of a range at most.
    pub sectors_max: u32,
    /// Ranges of a request at most.
    pub ranges_max: u32,
    /// For discards, the unit in bytes in which ranges have an effect.
    pub alignment: u64,
    /// For zeroes, whether they may be had by giving storage back.
    pub may_unmap: bool,
}

impl DiskInfo {
    /// Reads configuration space under the features that were accepted. What is
    /// missing of it counts as zero.
    pub fn from_config(config: &[u8], accepted: Features) -> Self {
        let mut bytes = [0; CONFIG_LEN];
        let len = config.len().min(CONFIG_LEN);
        bytes[..len].copy_from_slice(&config[..len]);
        let has = |bit| accepted.contains(feature(bit));
        let [c0, c1, c2, c3, c4, c5, c6, c7, ..] = bytes;
        let sectors = u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let block_size = if has(bits::VIRTIO_BLK_F_BLK_SIZE) {
            word(20)
        } else {
            512
        };
        let exponent = if has(bits::VIRTIO_BLK_F_TOPOLOGY) {
            bytes[24]
        } else {
            0
        };
        let limits = |bit, at, alignment, may_unmap| {
            has(bit).then(|| RangeLimits {
                sectors_max: word(at),
                ranges_max: word(at + 4),
                alignment,
                may_unmap,
            })
        };
        Self {
            size_bytes: sectors.saturating_mul(SECTOR),
            block_size,
            queues: if has(bits::VIRTIO_BLK_F_MQ) {
                u16::from_le_bytes([bytes[34], bytes[35]])
            } else {
                1
            },
            read_only: has(bits::VIRTIO_BLK_F_RO),
            flush: has(bits::VIRTIO_BLK_F_FLUSH),
            physical_block_size: u64::from(block_size)
                .checked_shl(exponent.into())
                .unwrap_or(0),
            discard: limits(
                bits::VIRTIO_BLK_F_DISCARD,
                36,
                u64::from(word(44)) * SECTOR,
                false,
            ),
            write_zeroes: limits(bits::VIRTIO_BLK_F_WRITE_ZEROES, 48, SECTOR, bytes[56] != 0),
        }
    }
}

/// What a driver here can make use of (virtio 1.3 5.2.3).
pub const WANTED: Features = feature(bits::VIRTIO_BLK_F_BLK_SIZE)
    .union(feature(bits::VIRTIO_BLK_F_RO))
    .union(feature(bits::VIRTIO_BLK_F_TOPOLOGY))
    .union(feature(bits::VIRTIO_BLK_F_FLUSH))
    .union(feature(bits::VIRTIO_BLK_F_DISCARD))
    .union(feature(bits::VIRTIO_BLK_F_WRITE_ZEROES))
    .union(feature(bits::VIRTIO_BLK_F_MQ));

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<A> {
    /// Fills a buffer from a sector on.
    Read {
        /// First sector of 512 bytes.
        sector: u64,
        /// Where the data goes.
        data: Buffer<A>,
    },
    /// Writes a buffer from a sector on.
    Write {
        /// First sector of 512 bytes.
        sector: u64,
        /// Where the data is.
        data: Buffer<A>,
    },
    /// Makes durable what was answered before.
    Flush,
    /// Forgets sectors: they read as anything until they are written. Only with
    /// [`DiskInfo::discard`], whose limits are the caller's to keep.
    Discard {
        /// First sector of 512 bytes.
        sector: u64,
        /// How many.
        sectors: u32,
    },
    /// Makes sectors zero. Only with [`DiskInfo::write_zeroes`], whose limits are
    /// the caller's to keep.
    WriteZeroes {
        /// First sector of 512 bytes.
        sector: u64,
        /// How many.
        sectors: u32,
        /// Whether the device may give the storage back.
        unmap: bool,
    },
    /// Fills a buffer with the serial number of the disk.
    Serial {
        /// 20 bytes.
        data: Buffer<A>,
    },
}

/// The answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The number that the command was given.
    pub token: u64,
    /// How it ended. A device that wrote no status counts as failed.
    pub status: Status,
}

/// The driver of one queue of a disk.
#[derive(Debug)]
pub struct BlockDriver<M, A> {
    queue: DriverQueue<M>,
    address: A,
    memory: Span,
    slots: Vec<Option<Pending<A>>>,
    free: Vec<u16>,
    /// Slot of the chain with this id.
    slot_of: Vec<u16>,
    indirect: bool,
}

#[derive(Clone, Copy, Debug)]
struct Pending<A> {
    command: Command<A>,
    token: u64,
}

/// Memory for slots that cannot hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// Too small.
    #[error("{len} bytes do not hold {slots} slots of {SLOT_BYTES} bytes")]
    TooSmall {
        /// Bytes given.
        len: u32,
        /// Slots wanted.
        slots: u16,
    },
    /// The machine refused memory.
    #[error(transparent)]
    Refused(#[from] Injected),
}

impl<M: RingMemory, A: Address> BlockDriver<M, A> {
    /// Drives `queue` with at most `depth` requests at a time. Their slots are at
    /// `memory`, which the device knows as `address`; it is `depth` times
    /// [`SLOT_BYTES`].
    ///
    /// # Errors
    /// When the memory is too small, or private memory cannot be had.
    pub fn new(
        queue: DriverQueue<M>,
        accepted: Features,
        depth: u16,
        address: A,
        memory: Span,
    ) -> Result<Self, DriverError> {
        let len = memory.len();
        if len / SLOT_BYTES < u32::from(depth) {
            return Err(DriverError::TooSmall { len, slots: depth });
        }
        let mut slots = fault::try_with_capacity(usize::from(depth))?;
        slots.resize_with(usize::from(depth), || None);
        let mut free = fault::try_with_capacity(usize::from(depth))?;
        free.extend((0..depth).rev());
        let mut slot_of = fault::try_with_capacity(usize::from(queue.size()))?;
        slot_of.resize(usize::from(queue.size()), 0);
        Ok(Self {
            queue,
            address,
            memory,
            slots,
            free,
            slot_of,
            indirect: accepted.contains(Features::VIRTIO_F_INDIRECT_DESC),
        })
    }

    /// The queue, to publish, kick and sleep.
    pub fn queue(&mut self) -> &mut DriverQueue<M> {
        &mut self.queue
    }

    /// Commands that were submitted and not yet answered.
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts a command onto the queue; the device sees it when the queue is
    /// published. `false` when there is no room until something is answered.
    ///
    /// # Errors
    /// When the device has broken the queue.
    #[inline]
    pub fn submit(
        &mut self,
        table: &RegionTable,
        command: Command<A>,
        token: u64,
    ) -> Result<bool, AddError> {
        let Some(&slot) = self.free.last() else {
            return Ok(false);
        };
        match self.add(table, slot, &command) {
            Ok(id) => {
                self.slot_of[usize::from(id)] = slot;
                self.slots[usize::from(slot)] = Some(Pending { command, token });
                self.free.pop();
                Ok(true)
            }
            Err(AddError::Full { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The next answer of those that [`DriverQueue::refresh`] saw.
    ///
    /// # Errors
    /// When the device has broken the queue.
    #[inline]
    pub fn answer(&mut self, table: &RegionTable) -> Result<Option<Answer>, UsedError> {
        let Some(used) = self.queue.pop()? else {
            return Ok(None);
        };
        let slot = self.slot_of[usize::from(used.id)];
        let mut byte = [NO_STATUS];
        table.slice(self.place(slot, STATUS, 1)).read(&mut byte);
        let Some(pending) = self.slots[usize::from(slot)].take() else {
            unreachable!("the queue gives back only chains that were added");
        };
        self.free.push(slot);
        Ok(Some(Answer {
            token: pending.token,
            status: Status::from_byte(byte[0]),
        }))
    }

    /// Goes on with a new queue after the device was lost: everything that it
    /// had not answered is asked again, which
    /// changes nothing if it was done already.
    ///
    /// # Errors
    /// When the new queue is smaller than what was under way.
    pub fn resubmit(&mut self, table: &RegionTable, queue: DriverQueue<M>) -> Result<(), AddError> {
        self.queue = queue;
        self.slot_of.resize(usize::from(self.queue.size()), 0);
        for slot in (0..).take(self.slots.len()) {
            if let Some(pending) = self.slots[usize::from(slot)] {
                let id = self.add(table, slot, &pending.command)?;
                self.slot_of[usize::from(id)] = slot;
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        table: &RegionTable,
        slot: u16,
        command: &Command<A>,
    ) -> Result<u16, AddError> {
        let (kind, sector, input, output) = match *command {
            Command::Read { sector, data } => (bits::VIRTIO_BLK_T_IN, sector, None, Some(data)),
            Command::Write { sector, data } => (bits::VIRTIO_BLK_T_OUT, sector, Some(data), None),
            Command::Flush => (bits::VIRTIO_BLK_T_FLUSH, 0, None, None),
            Command::Serial { data } => (bits::VIRTIO_BLK_T_GET_ID, 0, None, Some(data)),
            Command::Discard { sector, sectors } => {
                let range = self.put_range(table, slot, sector, sectors, false);
                (bits::VIRTIO_BLK_T_DISCARD, 0, Some(range), None)
            }
            Command::WriteZeroes {
                sector,
                sectors,
                unmap,
            } => {
                let range = self.put_range(table, slot, sector, sectors, unmap);
                (bits::VIRTIO_BLK_T_WRITE_ZEROES, 0, Some(range), None)
            }
        };
        let mut header = [0; HEADER_LEN as usize];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        table
            .slice(self.place(slot, HEADER, HEADER_LEN))
            .write(&header);
        table.slice(self.place(slot, STATUS, 1)).write(&[NO_STATUS]);

        let header = self.buffer(slot, HEADER, HEADER_LEN);
        let status = self.buffer(slot, STATUS, 1);
        let readable = [header, input.unwrap_or(header)];
        let writable = [output.unwrap_or(status), status];
        let readable = &readable[..1 + usize::from(input.is_some())];
        let writable = &writable[1 - usize::from(output.is_some())..];
        let indirect = self.indirect.then(|| IndirectTable {
            address: self.buffer(slot, TABLE, TABLE_LEN).address,
            bytes: table.slice(self.place(slot, TABLE, TABLE_LEN)),
        });
        self.queue.add(readable, writable, indirect)
    }

    /// Writes a range into a slot and gives its place (virtio 1.3 5.2.6).
    fn put_range(
        &self,
        table: &RegionTable,
        slot: u16,
        sector: u64,
        sectors: u32,
        unmap: bool,
    ) -> Buffer<A> {
        let flags = if unmap {
            bits::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
        } else {
            0
        };
        let mut range = [0; RANGE_LEN as usize];
        range[..8].copy_from_slice(&sector.to_le_bytes());
        range[8..12].copy_from_slice(&sectors.to_le_bytes());
        range[12..].copy_from_slice(&flags.to_le_bytes());
        table
            .slice(self.place(slot, RANGE, RANGE_LEN))
            .write(&range);
        self.buffer(slot, RANGE, RANGE_LEN)
    }

    /// Part of a slot, for us.
    fn place(&self, slot: u16, offset: u32, len: u32) -> Span {
        self.memory.part(u32::from(slot) * SLOT_BYTES + offset, len)
    }

    /// Part of a slot, for the device.
    fn buffer(&self, slot: u16, offset: u32, len: u32) -> Buffer<A> {
        let offset = u64::from(slot) * u64::from(SLOT_BYTES) + u64::from(offset);
        let address = self.address.checked_add(offset);
        Buffer {
            address: address.expect("the slots lie in one run of addresses"),
            len,
        }
    }
}
