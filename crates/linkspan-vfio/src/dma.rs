//! The memory that the client shares: which maps may stand beside each other.

use alloc::vec::Vec;

use linkspan_mem::Iova;
use thiserror::Error;

use crate::wire::{DMA_FILE_IO, DMA_MMAP, DMA_READ, DMA_WRITE, DmaMapBody};

/// One map of memory (vfio-user: `VFIO_USER_DMA_MAP`).
///
/// Checked: it is not empty, and neither its addresses nor its range in the file wraps.
/// Whether the file has these bytes is for whoever maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMap {
    /// The first address that the device uses.
    pub address: Iova,
    /// Bytes, at least 1.
    pub size: u64,
    /// Where it begins in its file, in bytes.
    pub offset: u64,
    /// Whether the device may read it. What it may only write is reached by messages alone.
    pub readable: bool,
    /// Whether the device may write it.
    pub writable: bool,
    /// Whether it came with a descriptor. Other memory is reached by messages alone: of
    /// such a kind are read-only memory, and regions of devices, ours included.
    pub shared: bool,
}

/// Why a map is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DmaError {
    /// A map without bytes.
    #[error("the map at {address} has no bytes")]
    Empty {
        /// Where it would be.
        address: Iova,
    },
    /// A range that does not fit into 64 bits.
    #[error("a map of {size:#x} bytes from {space} {start:#x} wraps")]
    Wraps {
        /// Which range.
        space: &'static str,
        /// Its start.
        start: u64,
        /// Its bytes.
        size: u64,
    },
    /// Flags that mean nothing, or memory that can be neither read nor written.
    #[error("flags {flags:#x} of a map")]
    Flags {
        /// They.
        flags: u32,
    },
    /// Flags that say how its descriptor is used, without one.
    #[error("flags {flags:#x} of a map that has no descriptor")]
    NoDescriptor {
        /// They.
        flags: u32,
    },
    /// A length of the structure that it does not have.
    #[error("a structure of {argsz} bytes, which has {want}")]
    Argsz {
        /// What it says.
        argsz: u32,
        /// Its bytes.
        want: u32,
    },
    /// There is another one.
    #[error("{size:#x} bytes at {address} overlap the map at {other}")]
    Overlap {
        /// The first address of the refused map.
        address: Iova,
        /// Its bytes.
        size: u64,
        /// The first address of the one that is there.
        other: Iova,
    },
    /// There is no such map.
    #[error("no map of {size:#x} bytes at {address}")]
    Absent {
        /// The address asked for.
        address: Iova,
        /// The bytes asked for.
        size: u64,
    },
    /// More maps than were agreed upon.
    #[error("more than {max} maps")]
    TooMany {
        /// How many there may be.
        max: u64,
    },
}

impl DmaMap {
    /// A map as it stands in a message, checked by itself.
    pub(crate) fn new(body: &DmaMapBody, shared: bool) -> Result<Self, DmaError> {
        let DmaMapBody {
            argsz,
            flags,
            offset,
            address,
            size,
        } = *body;
        let want = 32;
        if argsz < want {
            return Err(DmaError::Argsz { argsz, want });
        }
        let (rights, ways) = (DMA_READ | DMA_WRITE, DMA_MMAP | DMA_FILE_IO);
        if flags & !(rights | ways) != 0 || flags & rights == 0 {
            return Err(DmaError::Flags { flags });
        }
        if flags & ways != 0 && !shared {
            return Err(DmaError::NoDescriptor { flags });
        }
        if size == 0 {
            let address = Iova(address);
            return Err(DmaError::Empty { address });
        }
        // The last byte of the space may be part of a map.
        for (space, start) in [("I/O address", address), ("file offset", offset)] {
            if start.checked_add(size - 1).is_none() {
                return Err(DmaError::Wraps { space, start, size });
            }
        }
        Ok(Self {
            address: Iova(address),
            size,
            offset,
            readable: flags & DMA_READ != 0,
            writable: flags & DMA_WRITE != 0,
            shared,
        })
    }

    /// The flags of a message that say the same.
    pub(crate) fn flags(&self) -> u32 {
        let bit = |is: bool, flag: u32| if is { flag } else { 0 };
        bit(self.readable, DMA_READ) | bit(self.writable, DMA_WRITE)
    }

    /// Its last address.
    #[must_use]
    pub fn last(&self) -> Iova {
        Iova(self.address.0 + (self.size - 1))
    }
}

/// All maps, by address.
#[derive(Clone, Debug, Default)]
pub(crate) struct DmaMaps(Vec<DmaMap>);

/// What is to be done for a new map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It goes here.
    At(usize),
    /// It is there already, of whichever file.
    There,
}

impl DmaMaps {
    pub(crate) fn all(&self) -> &[DmaMap] {
        &self.0
    }

    /// Where a map goes, of which there may be `max`.
    pub(crate) fn place(&self, new: &DmaMap, max: u64) -> Result<Place, DmaError> {
        let at = self.0.partition_point(|map| map.last() < new.address);
        if let Some(other) = self.0.get(at)
            && other.address <= new.last()
        {
            // Firmware has memory mapped over and over.
            if other == new {
                return Ok(Place::There);
            }
            return Err(DmaError::Overlap {
                address: new.address,
                size: new.size,
                other: other.address,
            });
        }
        if self.0.len() as u64 >= max {
            return Err(DmaError::TooMany { max });
        }
        Ok(Place::At(at))
    }

    pub(crate) fn insert(&mut self, at: usize, map: DmaMap) {
        self.0.insert(at, map);
    }

    /// Takes away the map of exactly these bytes.
    pub(crate) fn find(&self, address: Iova, size: u64) -> Result<usize, DmaError> {
        let at = self.0.iter().position(|map| map.address == address);
        at.filter(|at| self.0[*at].size == size)
            .ok_or(DmaError::Absent { address, size })
    }

    pub(crate) fn remove(&mut self, at: usize) -> DmaMap {
        self.0.remove(at)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
