//! The block device (virtio 1.3 5.2): what it offers, and what it makes of a
//! chain. The bytes of the disk are the caller's.

mod config;
pub mod driver;
mod ranges;
mod request;

use linkspan_virtio::Features;
use virtio_bindings::virtio_blk as bits;

use config::Config;
pub use config::{CONFIG_LEN, SEG_MAX_LIMIT};
pub use ranges::{DISCARD_SECTORS_MAX, RANGES_MAX, Range, Ranges, WRITE_ZEROES_SECTORS_MAX};
pub use request::{Geometry, Operation, Request, Status};

/// The unit of positions and sizes on the wire in bytes, whatever the block
/// size (virtio 1.3 5.2.4).
pub const SECTOR: u64 = 512;

/// Bytes of a device's serial number (virtio 1.3 5.2.6).
pub const ID_BYTES: usize = bits::VIRTIO_BLK_ID_BYTES as usize;

/// What a block device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// Size of the disk in bytes; what does not fill a sector is not shown.
    pub size_bytes: u64,
    /// Smallest size in bytes that the image reads and writes well: a power of
    /// two from 512 to 32768. A hint to the driver, no limit.
    pub block_size: u32,
    /// Size in bytes that is written without reading first: a power of two from
    /// the block size to 32768. A hint as well.
    pub physical_block_size: u32,
    /// Unit in bytes in which the image can forget what it holds: a power of two
    /// from 512 to 2 GiB. A hint as well.
    pub discard_granularity: u32,
    /// How many queues, at least one.
    pub queues: u16,
    /// Entries of each queue at most, at least one.
    pub queue_size: u16,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Serial number, padded with NUL.
    pub serial: [u8; ID_BYTES],
}

/// Options that make no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// Linux takes powers of two from 512 on only.
    #[error("a block size of {block_size} bytes is not a power of two from 512 to 32768")]
    BlockSize {
        /// What was asked for, in bytes.
        block_size: u32,
    },
    /// A physical block holds a whole number of blocks.
    #[error(
        "a physical block of {physical} bytes is not a power of two from the block size, {block_size} bytes, to 32768"
    )]
    PhysicalBlock {
        /// What was asked for, in bytes.
        physical: u32,
        /// Bytes of a block.
        block_size: u32,
    },
    /// Drivers are told of whole sectors.
    #[error("{granularity} bytes, the unit of discards, are not a power of two from 512 on")]
    Granularity {
        /// What was asked for, in bytes.
        granularity: u32,
    },
    /// A device without queues cannot be driven.
    #[error("a block device needs at least one queue")]
    NoQueue,
    /// A queue without entries holds nothing.
    #[error("a queue needs at least one entry")]
    EmptyQueue,
}

/// A block device, apart from its queues and its image. It never changes: what
/// was negotiated is known to the session, and what a queue does to the queue,
/// so there is nothing of it to save.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    options: BlockOptions,
}

impl Block {
    /// A device of these options.
    ///
    /// # Errors
    /// When the options make none.
    pub fn new(options: BlockOptions) -> Result<Self, OptionsError> {
        let block_size = options.block_size;
        if !block_size.is_power_of_two() || !(512..=32768).contains(&block_size) {
            return Err(OptionsError::BlockSize { block_size });
        }
        let physical = options.physical_block_size;
        if !physical.is_power_of_two() || !(block_size..=32768).contains(&physical) {
            return Err(OptionsError::PhysicalBlock {
                physical,
                block_size,
            });
        }
        let granularity = options.discard_granularity;
        if !granularity.is_power_of_two() || u64::from(granularity) < SECTOR {
            return Err(OptionsError::Granularity { granularity });
        }
        if options.queues == 0 {
            return Err(OptionsError::NoQueue);
        }
        if options.queue_size == 0 {
            return Err(OptionsError::EmptyQueue);
        }
        Ok(Self { options })
    }

    /// The same device with another size in bytes.
    #[must_use]
    pub fn with_size(mut self, size_bytes: u64) -> Self {
        self.options.size_bytes = size_bytes;
        self
    }

    /// What a worker needs to understand the requests of a driver that accepted
    /// these features.
    pub fn geometry(&self, accepted: Features) -> Geometry {
        Geometry {
            capacity_sectors: self.options.size_bytes / SECTOR,
            read_only: self.options.read_only,
            // Without FLUSH the driver cannot ask for durability, so each write
            // must be durable by itself (virtio 1.3 5.2.6.2).
            write_through: !accepted.contains(feature(bits::VIRTIO_BLK_F_FLUSH)),
            discard: accepted.contains(feature(bits::VIRTIO_BLK_F_DISCARD)),
            write_zeroes: accepted.contains(feature(bits::VIRTIO_BLK_F_WRITE_ZEROES)),
            serial: self.options.serial,
        }
    }

    /// Segments that a [`Chain`](linkspan_virtio::Chain) must have room for: data,
    /// header and status, each perhaps across two regions.
    pub fn chain_segments(&self) -> usize {
        2 * (Config::seg_max(self.options.queue_size) as usize + 2)
    }

    /// What is offered: the bits of the device type (virtio 1.3 5.2.3).
    pub fn features(&self) -> Features {
        if self.options.read_only {
            OFFERED | feature(bits::VIRTIO_BLK_F_RO)
        } else {
            OFFERED | feature(bits::VIRTIO_BLK_F_DISCARD) | feature(bits::VIRTIO_BLK_F_WRITE_ZEROES)
        }
    }

    /// How many queues there are.
    pub fn queues(&self) -> u16 {
        self.options.queues
    }

    /// Entries of each queue at most.
    pub fn queue_size(&self) -> u16 {
        self.options.queue_size
    }

    /// Copies configuration space from `offset` on into `target`; `false`, and
    /// nothing is copied, when it is not all inside. None of it is writable: the
    /// cache mode, which alone would be, is not offered.
    pub fn read_config(&self, offset: usize, target: &mut [u8]) -> bool {
        Config::new(&self.options).read(offset, target)
    }
}

const fn feature(bit: u32) -> Features {
    Features::from_bits_retain(1 << bit)
}

/// What every block device here offers (virtio 1.3 5.2.3).
const OFFERED: Features = feature(bits::VIRTIO_BLK_F_SEG_MAX)
    .union(feature(bits::VIRTIO_BLK_F_BLK_SIZE))
    .union(feature(bits::VIRTIO_BLK_F_TOPOLOGY))
    .union(feature(bits::VIRTIO_BLK_F_FLUSH))
    .union(feature(bits::VIRTIO_BLK_F_MQ));
