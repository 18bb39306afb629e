//! The address space of a device's driver, mapped under the rules for hostile
//! peers.

use std::sync::Arc;

use linkspan_mem::{Gpa, GuestMemory, Region, SpaceError, UserVa};
use linkspan_sys::vduse::{self, VduseDevice};
use linkspan_sys::{EventFd, PeerMemory, mapping};

/// Regions that a driver may have at once. A driver in the kernel has one, and one
/// for each queue; a virtual machine's memory a few.
const REGIONS_MAX: usize = 512;

/// `VDUSE_ACCESS_WO`, a bit of the access to a region.
const WRITE: u8 = 2;

/// Why the memory of a driver cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] vduse::Error),
    /// The file is of the wrong kind, too short, or could not be mapped.
    #[error("memory at {first:#x} to {last:#x}: {error}")]
    Map {
        /// First address.
        first: u64,
        /// Last address.
        last: u64,
        /// Why.
        error: mapping::Error,
    },
    /// Addresses that cannot be.
    #[error("the kernel says that the memory from {from:#x} on is at {first:#x} to {last:#x}")]
    Range {
        /// What was asked for.
        from: u64,
        /// First address.
        first: u64,
        /// Last address.
        last: u64,
    },
    /// More than any driver has.
    #[error("more than {REGIONS_MAX} regions of memory")]
    TooMany,
    /// The regions contradict each other.
    #[error(transparent)]
    Layout(#[from] SpaceError),
}

impl MapError {
    pub(super) fn is_system(&self) -> bool {
        match self {
            Self::Kernel(_) => true,
            Self::Map { error, .. } => matches!(
                error,
                mapping::Error::System { .. } | mapping::Error::TooMany { .. }
            ),
            _ => false,
        }
    }
}

/// No memory at all.
pub(super) fn nothing() -> Arc<GuestMemory> {
    let none = GuestMemory::new(Vec::new());
    Arc::new(none.expect("no regions contradict each other"))
}

/// All memory that the driver of a device has mapped at this moment. Rings and
/// buffers have the same kind of address, so both spaces are alike. `gone` is
/// signalled when a page is missing.
///
/// Nothing of an earlier look is used again: the kernel frees the pages of rings
/// without a word, and has others under the same addresses later.
pub(super) fn look_up(
    device: &VduseDevice,
    gone: &Arc<EventFd>,
) -> Result<Arc<GuestMemory>, MapError> {
    let (mut regions, mut read_only) = (Vec::new(), Vec::new());
    let mut from = Some(0);
    while let Some(start) = from {
        let Some(region) = device.region(start)? else {
            break;
        };
        if regions.len() == REGIONS_MAX {
            return Err(MapError::TooMany);
        }
        let record = region.record;
        let (first, last) = (record.first, record.last);
        let len = last.checked_sub(first).and_then(|len| len.checked_add(1));
        let Some(len) = len.filter(|_| first >= start) else {
            return Err(MapError::Range {
                from: start,
                first,
                last,
            });
        };
        let wake = Some(Arc::clone(gone));
        let mapped = PeerMemory::of_vduse(region.fd)
            .and_then(|memory| memory.map(record.offset, len, wake))
            .map_err(|error| MapError::Map { first, last, error })?;
        if record.access & WRITE == 0 {
            read_only.push(regions.len());
        }
        regions.push((Region::new(Arc::new(mapped)), Gpa(first), UserVa(first)));
        from = last.checked_add(1);
    }
    Ok(Arc::new(
        GuestMemory::new(regions)?.with_read_only(&read_only),
    ))
}
