//! Memory that is only looked at: a picture of a guest.

use crate::mapping::{Error, Pages, PeerMemory};
use crate::sigbus;
use rustix::mm::ProtFlags;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

/// A range that is not inside the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at offset {offset} are not inside memory of {size} bytes")]
pub struct OutsideView {
    /// First byte of the range.
    pub offset: u64,
    /// Size of the range in bytes.
    pub len: usize,
    /// Size of the memory in bytes.
    pub size: usize,
}

/// A file's bytes, mapped for reading until this is dropped. Others change them at any
/// moment; what they take away reads as zeroes, and is [`lost`](Self::lost).
#[derive(Debug)]
pub struct View {
    // Dropped first, as in `Mapping`.
    watch: sigbus::Watch,
    base: NonNull<u8>,
    len: usize,
    _pages: Pages,
}

// SAFETY: the pages belong to no thread, and nothing here refers to their content.
unsafe impl Send for View {}
// SAFETY: as above; shared access only reads fields that never change, and an atomic.
unsafe impl Sync for View {}

impl View {
    /// Maps `len` bytes from `offset` of a file of the kernel, such as a device or a
    /// dma-buf; of a memory file of a peer with [`of_peer`](Self::of_peer).
    ///
    /// # Errors
    /// [`Error`], with nothing left mapped.
    pub fn map(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Self, Error> {
        let page = rustix::param::page_size();
        let outside = Error::OutsideFile {
            offset,
            len,
            file_len: u64::MAX,
        };
        if len == 0 {
            return Err(Error::Empty { offset });
        }
        let lead = offset % page as u64;
        let span = len
            .checked_add(lead)
            .and_then(|span| span.checked_next_multiple_of(page as u64));
        let (Some(Ok(span)), Ok(len), Ok(lead)) = (
            span.map(usize::try_from),
            usize::try_from(len),
            usize::try_from(lead),
        ) else {
            return Err(outside);
        };
        let pages = Pages::map(fd, offset - lead as u64, span, ProtFlags::READ)?;
        // SAFETY: `lead` is below the page size and so within the mapping.
        let base = unsafe { pages.start().cast::<u8>().add(lead) };
        // SAFETY: the pages stay mapped until the watch is dropped; whoever reads them
        // expects any content, zeroes included.
        let watch = unsafe { sigbus::watch_read_only(pages.start(), span, page as u64)? };
        Ok(Self {
            watch,
            base,
            len,
            _pages: pages,
        })
    }

    /// Maps `len` bytes from `offset` of a peer's memory file.
    ///
    /// # Errors
    /// [`Error`], with nothing left mapped.
    pub fn of_peer(memory: &PeerMemory, offset: u64, len: u64) -> Result<Self, Error> {
        let file_len = memory.file_len();
        match offset.checked_add(len) {
            Some(end) if end <= file_len => Self::map(memory.as_fd(), offset, len),
            _ => Err(Error::OutsideFile {
                offset,
                len,
                file_len,
            }),
        }
    }

    /// How many bytes there are; never zero.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty one cannot be made")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// # Errors
    /// They are not all inside; nothing was copied then.
    #[inline]
    pub fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), OutsideView> {
        let outside = OutsideView {
            offset,
            len: target.len(),
            size: self.len,
        };
        let start = usize::try_from(offset).map_err(|_| outside)?;
        match start.checked_add(target.len()) {
            Some(end) if end <= self.len => {}
            _ => return Err(outside),
        }
        // SAFETY: the range was checked to lie inside the mapping, which lives as long as
        // `self`; private memory cannot overlap it.
        unsafe { linkspan_mem::read_from(self.base.as_ptr().add(start), target) };
        Ok(())
    }

    /// Whether a part was taken away and reads as zeroes.
    #[must_use]
    pub fn lost(&self) -> bool {
        self.watch.poisoned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memfd::{self, Sealing};

    #[test]
    fn what_is_inside_is_read_as_it_is_now() {
        let file = memfd::create("picture", 8192, Sealing::Fixed).unwrap();
        let memory = PeerMemory::check(file).unwrap();
        let view = View::of_peer(&memory, 100, 8000).unwrap();
        rustix::io::pwrite(&memory, b"guest", 100 + 7995).unwrap();
        let mut bytes = [0; 5];
        view.read(7995, &mut bytes).unwrap();
        assert_eq!((&bytes, view.len()), (b"guest", 8000));
        for offset in [7996, 8000, u64::MAX] {
            let error = view.read(offset, &mut bytes).unwrap_err();
            assert_eq!(error.size, 8000);
        }
        assert!(View::of_peer(&memory, 0, 8193).is_err());
        assert!(View::of_peer(&memory, u64::MAX, 2).is_err());
        assert!(View::of_peer(&memory, 8192, 0).is_err());
        assert!(!view.lost());
    }

    #[test]
    fn memory_that_is_taken_away_reads_as_zeroes() {
        let file = memfd::create("picture", 8192, Sealing::Open).unwrap();
        let memory = PeerMemory::check(file).unwrap();
        let view = View::of_peer(&memory, 0, 8192).unwrap();
        rustix::io::pwrite(&memory, &[7; 8192], 0).unwrap();
        rustix::fs::ftruncate(&memory, 4096).unwrap();
        let mut bytes = [1; 8192];
        view.read(0, &mut bytes).unwrap();
        assert!(bytes[4096..].iter().all(|byte| *byte == 0));
        assert!(view.lost());
    }
}
