//! Parts of files that both ends map beside guest memory: the in-flight region
//! and the dirty log. And the direction in which a device's state travels.

use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use crate::wire::{InflightDescription, LogDescription};

/// A region that records requests in flight (vhost-user: Inflight description).
///
/// Checked: it is not empty, its range does not wrap, and it covers rings of
/// at least one entry. Whether its bytes suffice for them is for whoever maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inflight {
    /// Bytes.
    pub size: u64,
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// Rings that it covers, from ring 0 on.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
}

/// The dirty log (vhost-user: Migration): one bit for 4096 bytes of guest memory.
///
/// Checked: it is not empty and its range does not wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Log {
    /// Bytes.
    pub size: u64,
    /// Where it starts in the file, in bytes.
    pub offset: u64,
}

/// Where a device's state goes (vhost-user: Migrating back-end state).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The back end writes it, to the end of file.
    Save,
    /// The back end reads it, up to the end of file.
    Load,
}

/// Why an in-flight region or a log cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AreaError {
    /// Without bytes, or its end does not fit into 64 bits.
    #[error("{size:#x} bytes from {offset:#x} of a file")]
    Range {
        /// Bytes.
        size: u64,
        /// Where they start.
        offset: u64,
    },
    /// Rings that do not exist.
    #[error("an in-flight region for {queues} rings; there are {max}")]
    Queues {
        /// Rings that it covers.
        queues: u16,
        /// How many there are.
        max: u16,
    },
    /// Rings of a size that cannot be.
    #[error("an in-flight region for rings of {queue_size} entries; 1 to {max} are possible")]
    QueueSize {
        /// Entries.
        queue_size: u16,
        /// The most that there can be.
        max: u16,
    },
    /// Rings run, so it is too late.
    #[error("ring {ring} runs, so its requests in flight are recorded already")]
    Running {
        /// The ring.
        ring: u16,
    },
}

impl Inflight {
    /// A region of `size` bytes at `offset` of a file for `queues` rings of
    /// `queue_size` entries.
    ///
    /// # Errors
    /// Its range is empty or wraps, or it covers nothing.
    pub fn new(size: u64, offset: u64, queues: u16, queue_size: u16) -> Result<Self, AreaError> {
        check_range(size, offset)?;
        check_rings(queues, u16::MAX, queue_size, u16::MAX)?;
        Ok(Self {
            size,
            offset,
            queues,
            queue_size,
        })
    }

    pub(crate) fn description(&self) -> InflightDescription {
        InflightDescription {
            mmap_size: self.size,
            mmap_offset: self.offset,
            num_queues: self.queues,
            queue_size: self.queue_size,
            padding: 0,
        }
    }
}

impl Log {
    /// A log of `size` bytes at `offset` of a file.
    ///
    /// # Errors
    /// Its range is empty or wraps.
    pub fn new(size: u64, offset: u64) -> Result<Self, AreaError> {
        check_range(size, offset)?;
        Ok(Self { size, offset })
    }

    pub(crate) fn description(&self) -> LogDescription {
        LogDescription {
            mmap_size: self.size,
            mmap_offset: self.offset,
        }
    }
}

/// An inflight description with or without its padding. `bytes` have a length
/// that the table allows.
pub(crate) fn read_inflight(bytes: &[u8]) -> InflightDescription {
    let mut whole = [0; size_of::<InflightDescription>()];
    let read = bytes.len().min(whole.len());
    whole[..read].copy_from_slice(&bytes[..read]);
    let description = InflightDescription::read_from_bytes(&whole).expect("the sizes are equal");
    InflightDescription {
        padding: 0,
        ..description
    }
}

/// The same in `len` bytes: whoever leaves the padding out gets none.
pub(crate) fn write_inflight(description: InflightDescription, len: usize) -> alloc::vec::Vec<u8> {
    let bytes = description.as_bytes();
    bytes[..len.clamp(InflightDescription::PACKED_BYTES, bytes.len())].to_vec()
}

pub(crate) fn check_range(size: u64, offset: u64) -> Result<(), AreaError> {
    match offset.checked_add(size) {
        Some(_) if size > 0 => Ok(()),
        _ => Err(AreaError::Range { size, offset }),
    }
}

pub(crate) fn check_rings(
    queues: u16,
    queues_max: u16,
    queue_size: u16,
    size_max: u16,
) -> Result<(), AreaError> {
    if !(1..=queues_max).contains(&queues) {
        return Err(AreaError::Queues {
            queues,
            max: queues_max,
        });
    }
    if !(1..=size_max).contains(&queue_size) {
        return Err(AreaError::QueueSize {
            queue_size,
            max: size_max,
        });
    }
    Ok(())
}
