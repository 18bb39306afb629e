//! Memory that is shared with the target: a memory file, written by system calls.
//! Nothing is mapped here, so whatever becomes of the file harms the target alone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{Ordering, fence};

use linkspan_sys::memfd::{self, Sealing};
use linkspan_vhost::wire::{MemoryRegionDescription, MemoryTableHeader};
use zerocopy::IntoBytes as _;

use crate::Stop;

/// Where memory begins in the guest, which is not where its file does.
pub(crate) const GUEST: u64 = 0x10_0000;

/// What a front-end address differs by from the guest's of the same place.
pub(crate) const USER: u64 = 0x7f00_0000_0000;

/// Bytes of it, which is more than any rule needs.
pub(crate) const LEN: u64 = 0x10_0000;

/// One region.
pub(crate) struct Memory {
    file: File,
}

impl Memory {
    /// `LEN` bytes of zeroes. What is to shrink is not sealed.
    pub(crate) fn new(sealing: Sealing) -> Result<Self, Stop> {
        let file = memfd::create("conform", LEN, sealing)?;
        Ok(Self { file: file.into() })
    }

    /// The region as messages describe it.
    pub(crate) fn description(&self) -> MemoryRegionDescription {
        MemoryRegionDescription {
            guest_address: GUEST,
            size: LEN,
            user_address: USER + GUEST,
            mmap_offset: 0,
        }
    }

    /// Writes `bytes` at `offset`, after all that was written before.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        fence(Ordering::SeqCst);
        Ok(self.file.write_all_at(bytes, offset)?)
    }

    /// Reads `len` bytes at `offset`; what the file has lost reads as zeroes.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Stop> {
        let mut bytes = vec![0; len];
        match self.file.read_exact_at(&mut bytes, offset) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.into()),
            _ => {
                fence(Ordering::SeqCst);
                Ok(bytes)
            }
        }
    }

    /// Reads a 16-bit number of a ring.
    pub(crate) fn read_u16(&self, offset: u64) -> Result<u16, Stop> {
        let bytes = self.read(offset, 2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// Changes the size of the file.
    pub(crate) fn truncate(&self, len: u64) -> Result<(), Stop> {
        Ok(self.file.set_len(len)?)
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The body of `VHOST_USER_SET_MEM_TABLE` that claims `count` regions and has these.
pub(crate) fn table(count: u32, regions: &[MemoryRegionDescription]) -> Vec<u8> {
    let header = MemoryTableHeader {
        num_regions: count,
        padding: 0,
    };
    [header.as_bytes(), regions.as_bytes()].concat()
}
