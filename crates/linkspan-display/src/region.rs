//! Regions of a VFIO device: the chain of capabilities that says what one is, and the
//! region by which a screen's EDID is told.
//!
//! A chain begins at an offset that the region's information names, and each capability
//! names the next one; 0 ends it. All offsets count from the start of that information, and
//! the kernel writes them upwards, so what points back is no chain.

use alloc::vec::Vec;
use core::ops::Range;

use thiserror::Error;

/// Bytes of a region's information, in front of its capabilities.
const HEAD: u64 = 32;
/// The most capabilities of a region.
pub const CAPABILITIES_MAX: usize = 32;

/// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.
const SPARSE_MMAP: u16 = 1;
/// `VFIO_REGION_INFO_CAP_TYPE`.
const TYPE: u16 = 2;

/// `VFIO_REGION_TYPE_GFX`: the type of a region for displays.
pub const TYPE_GFX: u32 = 1;
/// `VFIO_REGION_SUBTYPE_GFX_EDID`: its subtype.
pub const SUBTYPE_EDID: u32 = 1;

/// What a region says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Only these parts of it can be mapped, in bytes of it.
    SparseMmap(Vec<Range<u64>>),
    /// What it is: a type and a subtype.
    Type {
        /// A type of VFIO, or with bit 31 a PCI vendor.
        kind: u32,
        /// Which of that type.
        subtype: u32,
    },
    /// One that is not known.
    Other {
        /// Its number.
        id: u16,
        /// Its version.
        version: u16,
    },
}

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A capability is not inside what the kernel answered.
    #[error("a capability at byte {at}, which ends at {end}, in {len} bytes")]
    Outside {
        /// Where it begins.
        at: u64,
        /// Where it would end.
        end: u64,
        /// Bytes there are.
        len: u64,
    },
    /// It points into what it stands behind, or back.
    #[error("the capability behind byte {from} is at {at}")]
    Back {
        /// Where the one before ends.
        from: u64,
        /// Where this one begins.
        at: u64,
    },
    /// It goes on and on.
    #[error("more than {CAPABILITIES_MAX} capabilities")]
    TooMany,
    /// A part that can be mapped ends behind the last address.
    #[error("a part of {size:#x} bytes at {offset:#x}")]
    Part {
        /// Where it begins.
        offset: u64,
        /// How many bytes.
        size: u64,
    },
}

fn word(bytes: &[u8], at: u64) -> Option<u32> {
    let bytes = bytes.get(usize::try_from(at).ok()?..)?;
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

fn long(bytes: &[u8], at: u64) -> Option<u64> {
    let bytes = bytes.get(usize::try_from(at).ok()?..)?;
    Some(u64::from_ne_bytes(*bytes.first_chunk()?))
}

/// The capabilities of a region: `bytes` is all that the kernel answered, in this machine's
/// byte order, and `first` where it says the first one is.
///
/// # Errors
/// What is wrong with the chain.
pub fn capabilities(bytes: &[u8], first: u32) -> Result<Vec<Capability>, ChainError> {
    let len = bytes.len() as u64;
    let mut list = Vec::new();
    let (mut from, mut at) = (HEAD, u64::from(first));
    while at != 0 {
        if at < from {
            return Err(ChainError::Back { from, at });
        }
        if list.len() == CAPABILITIES_MAX {
            return Err(ChainError::TooMany);
        }
        let outside = |end| ChainError::Outside { at, end, len };
        let (Some(id), Some(next)) = (word(bytes, at), word(bytes, at + 4)) else {
            return Err(outside(at + 8));
        };
        let ([id, version], end) = (halves(id), at + 8);
        let (capability, end) = match id {
            TYPE => {
                let (kind, subtype) = (word(bytes, end), word(bytes, end + 4));
                let end = end + 8;
                let (Some(kind), Some(subtype)) = (kind, subtype) else {
                    return Err(outside(end));
                };
                (Capability::Type { kind, subtype }, end)
            }
            SPARSE_MMAP => {
                let count = word(bytes, end).ok_or(outside(end + 8))?;
                let start = end + 8;
                let end = start + u64::from(count) * 16;
                // So the number is no larger than what was answered.
                if end > len {
                    return Err(outside(end));
                }
                let parts = (0..u64::from(count)).map(|part| part_at(bytes, start + part * 16));
                let parts: Result<Vec<_>, _> = parts.collect();
                (Capability::SparseMmap(parts?), end)
            }
            _ => (Capability::Other { id, version }, end),
        };
        list.push(capability);
        (from, at) = (end, u64::from(next));
    }
    Ok(list)
}

fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

fn part_at(bytes: &[u8], at: u64) -> Result<Range<u64>, ChainError> {
    let offset = long(bytes, at).unwrap_or(0);
    let size = long(bytes, at + 8).unwrap_or(0);
    let end = offset.checked_add(size);
    Ok(offset..end.ok_or(ChainError::Part { offset, size })?)
}

/// Bytes of the head of an EDID region (`struct vfio_region_gfx_edid`).
pub const EDID_HEAD: usize = 24;
/// Where in it the size of the EDID is, in bytes.
pub const EDID_SIZE: u64 = 8;
/// Where in it the state of the link is.
pub const EDID_LINK: u64 = 20;
/// The link is up: the guest is told of a screen.
pub const LINK_UP: u32 = 1;
/// The link is down.
pub const LINK_DOWN: u32 = 2;

/// The head of an EDID region. Its offset is not compared with the region's size, which
/// GVT-g says too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdidRegion {
    /// Where the EDID is, in bytes of the region.
    pub offset: u32,
    /// Its most bytes.
    pub size_max: u32,
    /// Its bytes now.
    pub size: u32,
    /// The widest mode, in pixels; 0: not said.
    pub width_max: u32,
    /// The highest mode.
    pub height_max: u32,
    /// [`LINK_UP`], [`LINK_DOWN`], or 0 when nobody said.
    pub link: u32,
}

/// Why no EDID can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EdidRegionError {
    /// The EDID would overwrite the head, or not begin at a word.
    #[error("the device wants its EDID at byte {offset} of its region")]
    Offset {
        /// Where.
        offset: u32,
    },
    /// It takes no EDID that large.
    #[error("an EDID of {size} bytes; the device takes {max}")]
    Size {
        /// Bytes of the EDID.
        size: u32,
        /// What it takes.
        max: u32,
    },
    /// The mode is larger than the device can show.
    #[error("{width}x{height}; the device shows at most {width_max}x{height_max}")]
    Mode {
        /// Pixels across.
        width: u32,
        /// Lines.
        height: u32,
        /// The most across; 0: not said.
        width_max: u32,
        /// The most lines.
        height_max: u32,
    },
}

impl EdidRegion {
    /// The head, word by word.
    #[must_use]
    pub const fn from_words(words: [u32; 6]) -> Self {
        let [offset, size_max, size, width_max, height_max, link] = words;
        Self {
            offset,
            size_max,
            size,
            width_max,
            height_max,
            link,
        }
    }

    /// Whether an EDID of so many bytes for such a mode can be told.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, size: u32, width: u32, height: u32) -> Result<(), EdidRegionError> {
        let Self {
            offset,
            size_max,
            width_max,
            height_max,
            ..
        } = *self;
        if offset < 24 || !offset.is_multiple_of(4) {
            return Err(EdidRegionError::Offset { offset });
        }
        if size > size_max {
            let max = size_max;
            return Err(EdidRegionError::Size { size, max });
        }
        let above = |side: u32, max: u32| max != 0 && side > max;
        if above(width, width_max) || above(height, height_max) {
            return Err(EdidRegionError::Mode {
                width,
                height,
                width_max,
                height_max,
            });
        }
        Ok(())
    }
}
