//! The memory that the front end shares: which regions may stand beside each other.

use alloc::vec::Vec;

use linkspan_mem::{Gpa, UserVa};
use thiserror::Error;

use crate::wire::MemoryRegionDescription;

/// One region of the front end's memory (vhost-user: Memory region description).
///
/// Checked: it is not empty, and neither its guest range, its front-end range
/// nor its range in the file wraps. Whether the file has these bytes is for
/// whoever maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// First guest address.
    pub guest_address: Gpa,
    /// Bytes, at least 1.
    pub size: u64,
    /// First address in the front end's process.
    pub user_address: UserVa,
    /// Where the region starts in the file, in bytes.
    pub mmap_offset: u64,
}

/// Why a memory table or a change to it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// A region without bytes.
    #[error("the region at {guest_address} has no bytes")]
    Empty {
        /// Where it would be.
        guest_address: Gpa,
    },
    /// A range that does not fit into 64 bits.
    #[error("a region of {size:#x} bytes from {space} {start:#x} wraps")]
    Wraps {
        /// Which range.
        space: &'static str,
        /// Its start.
        start: u64,
        /// Its bytes.
        size: u64,
    },
    /// Two regions that share addresses.
    #[error("{size:#x} bytes from {space} {start:#x} overlap a region from {other:#x}")]
    Overlap {
        /// In which space.
        space: &'static str,
        /// Start of the refused region.
        start: u64,
        /// Bytes of the refused region.
        size: u64,
        /// Start of the region that is there.
        other: u64,
    },
    /// The region to add is there already.
    #[error("the region of {size:#x} bytes at {guest_address} is there already")]
    Present {
        /// Its guest address.
        guest_address: Gpa,
        /// Its bytes.
        size: u64,
    },
    /// The region to remove is not there.
    #[error("no region of {size:#x} bytes at {guest_address} and {user_address}")]
    Absent {
        /// The guest address asked for.
        guest_address: Gpa,
        /// The front-end address asked for.
        user_address: UserVa,
        /// The bytes asked for.
        size: u64,
    },
    /// More regions than there is room for.
    #[error("{count} memory regions; at most {max} fit")]
    TooMany {
        /// How many there would be.
        count: u64,
        /// How many there may be.
        max: u64,
    },
}

impl MemoryRegion {
    /// A region as it stands in a message, checked by itself.
    ///
    /// # Errors
    /// It is empty, or one of its ranges wraps.
    pub fn new(wire: MemoryRegionDescription) -> Result<Self, MemoryError> {
        let guest_address = Gpa(wire.guest_address);
        if wire.size == 0 {
            return Err(MemoryError::Empty { guest_address });
        }
        let ranges = [
            ("guest address", wire.guest_address),
            ("front-end address", wire.user_address),
            ("file offset", wire.mmap_offset),
        ];
        for (space, start) in ranges {
            if start.checked_add(wire.size).is_none() {
                return Err(MemoryError::Wraps {
                    space,
                    start,
                    size: wire.size,
                });
            }
        }
        Ok(Self {
            guest_address,
            size: wire.size,
            user_address: UserVa(wire.user_address),
            mmap_offset: wire.mmap_offset,
        })
    }

    /// The region as it stands in a message.
    #[must_use]
    pub fn description(&self) -> MemoryRegionDescription {
        MemoryRegionDescription {
            guest_address: self.guest_address.0,
            size: self.size,
            user_address: self.user_address.0,
            mmap_offset: self.mmap_offset,
        }
    }

    /// vhost-user, `VHOST_USER_REM_MEM_REG`: a region is known by its
    /// addresses and size; the offset in the file does not count.
    fn is(&self, other: &Self) -> bool {
        (self.guest_address, self.size, self.user_address)
            == (other.guest_address, other.size, other.user_address)
    }
}

/// The regions after `new` was added to `regions`, of which there may be `max`.
pub(crate) fn add(
    regions: &[MemoryRegion],
    new: MemoryRegion,
    max: u64,
) -> Result<Vec<MemoryRegion>, MemoryError> {
    let count = (regions.len() as u64).saturating_add(1);
    if count > max {
        return Err(MemoryError::TooMany { count, max });
    }
    for old in regions {
        if old.is(&new) {
            let (guest_address, size) = (new.guest_address, new.size);
            return Err(MemoryError::Present {
                guest_address,
                size,
            });
        }
        let spaces = [
            ("guest address", new.guest_address.0, old.guest_address.0),
            ("front-end address", new.user_address.0, old.user_address.0),
        ];
        for (space, start, other) in spaces {
            // Neither sum wraps: `MemoryRegion::new` saw to that.
            if start < other + old.size && other < start + new.size {
                return Err(MemoryError::Overlap {
                    space,
                    start,
                    size: new.size,
                    other,
                });
            }
        }
    }
    let mut grown = Vec::with_capacity(regions.len() + 1);
    grown.extend_from_slice(regions);
    grown.push(new);
    Ok(grown)
}

/// The regions after the one like `old` was removed, and that one.
pub(crate) fn remove(
    regions: &[MemoryRegion],
    old: MemoryRegion,
) -> Result<(Vec<MemoryRegion>, MemoryRegion), MemoryError> {
    let Some(at) = regions.iter().position(|region| region.is(&old)) else {
        return Err(MemoryError::Absent {
            guest_address: old.guest_address,
            user_address: old.user_address,
            size: old.size,
        });
    };
    let mut rest = regions.to_vec();
    let removed = rest.remove(at);
    Ok((rest, removed))
}

/// A whole table, checked like regions added one after the other.
pub(crate) fn table(
    descriptions: impl ExactSizeIterator<Item = MemoryRegionDescription>,
    max: u64,
) -> Result<Vec<MemoryRegion>, MemoryError> {
    let mut regions = Vec::new();
    for description in descriptions {
        regions = add(&regions, MemoryRegion::new(description)?, max)?;
    }
    Ok(regions)
}
