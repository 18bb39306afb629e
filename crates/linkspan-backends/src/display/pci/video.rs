//! Video memory.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use linkspan_mem::Region;

use super::super::memory::{PictureMemory, Purse};

/// Video memory: ours to clear, the client's to draw on, the viewers' to look at.
pub(super) struct Video {
    pub(super) memory: Arc<PictureMemory>,
    region: Region,
}

impl Video {
    pub(super) fn new(bytes: u64) -> io::Result<Self> {
        let made = PictureMemory::drawn_on(bytes, &Purse::new(bytes));
        let (region, memory) = made.map_err(|_| io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory, region })
    }

    pub(super) fn len(&self) -> u64 {
        self.memory.len
    }

    /// A descriptor for the client.
    pub(super) fn fd(&self) -> io::Result<OwnedFd> {
        self.memory.to_draw_on()
    }

    /// Reads; what is outside reads as zero.
    pub(super) fn read(&self, offset: u64, target: &mut [u8]) {
        target.fill(0);
        if let Ok(slice) = self.region.slice(offset, target.len() as u64) {
            slice.read(target);
        }
    }

    /// Writes what is inside.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        if let Ok(slice) = self.region.slice(offset, bytes.len() as u64) {
            slice.write(bytes);
        }
    }

    /// Makes bytes zero.
    pub(super) fn clear(&self, offset: u64, len: u64) {
        if let Ok(slice) = self.region.slice(offset, len) {
            slice.clear();
        }
    }
}
