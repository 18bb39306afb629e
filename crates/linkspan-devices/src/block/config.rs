//! Configuration space of the block device (virtio 1.3 5.2.4).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::ranges::{DISCARD_SECTORS_MAX, RANGES_MAX, WRITE_ZEROES_SECTORS_MAX};
use super::{BlockOptions, SECTOR};

/// Size of the configuration space in bytes. The whole structure of virtio 1.3
/// is there, zero where a feature is not offered, since front ends ask for as
/// much as they know.
pub const CONFIG_LEN: usize = size_of::<Config>();
const _: () = assert!(CONFIG_LEN == 96);

/// Data segments of a request at most. A driver reads this before it chooses the
/// size of its queues, and a chain with header and status may not be longer than
/// the queue: 126 fits the 128 entries that virtual machine monitors default to.
pub const SEG_MAX_LIMIT: u32 = 126;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Config {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    cylinders: U16,
    heads: u8,
    sectors: u8,
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    /// In blocks. Must never be 1: Windows then gets very slow (QEMU 99bfc1c754).
    opt_io_size: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    /// In sectors.
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
    /// Secure erase and zones are not offered.
    not_offered: [u8; 36],
}

impl Config {
    pub(super) fn new(options: &BlockOptions) -> Self {
        let (block, physical) = (options.block_size, options.physical_block_size);
        let writable = |value| U32::new(if options.read_only { 0 } else { value });
        Self {
            capacity: U64::new(options.size_bytes / SECTOR),
            size_max: U32::ZERO,
            seg_max: U32::new(Self::seg_max(options.queue_size)),
            cylinders: U16::ZERO,
            heads: 0,
            sectors: 0,
            blk_size: U32::new(block),
            // Both are powers of two from 512 to 32768, the second one not the smaller.
            physical_block_exp: u8::try_from((physical / block).ilog2()).unwrap_or(0),
            alignment_offset: 0,
            min_io_size: U16::new(u16::try_from(physical / block).unwrap_or(1)),
            opt_io_size: U32::ZERO,
            writeback: 0,
            unused0: 0,
            num_queues: U16::new(options.queues),
            max_discard_sectors: writable(DISCARD_SECTORS_MAX),
            max_discard_seg: writable(RANGES_MAX),
            discard_sector_alignment: writable(
                options.discard_granularity >> SECTOR.trailing_zeros(),
            ),
            max_write_zeroes_sectors: writable(WRITE_ZEROES_SECTORS_MAX),
            max_write_zeroes_seg: writable(RANGES_MAX),
            write_zeroes_may_unmap: u8::from(!options.read_only),
            unused1: [0; 3],
            not_offered: [0; 36],
        }
    }

    /// Header and status take a descriptor each, and a chain may not be longer
    /// than its queue (virtio 1.3 2.7.5.3.1).
    pub(super) fn seg_max(queue_size: u16) -> u32 {
        u32::from(queue_size)
            .saturating_sub(2)
            .clamp(1, SEG_MAX_LIMIT)
    }

    pub(super) fn read(&self, offset: usize, target: &mut [u8]) -> bool {
        crate::read_config(self.as_bytes(), offset, target)
    }
}
