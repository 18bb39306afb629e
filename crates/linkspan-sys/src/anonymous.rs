//! Memory of our own, of any size: zeroes until it is written, and given back
//! piece by piece.

use crate::acquire;
use linkspan_mem::Backing;
use linkspan_mem::fault::Site;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::io;
use std::ptr::{NonNull, null_mut};

/// Private memory without a file. It takes what was written of it, by whole pages.
#[derive(Debug)]
pub struct AnonymousMemory {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: the pages belong to no thread, and nothing here refers to their content.
unsafe impl Send for AnonymousMemory {}
// SAFETY: as above; fields never change.
unsafe impl Sync for AnonymousMemory {}

impl AnonymousMemory {
    /// `len` bytes of zeroes. Nothing is reserved for them: when the machine has no
    /// memory left, the kernel ends a process.
    ///
    /// # Errors
    /// `InvalidInput` for no bytes at all; `ENOMEM` if there is no address space.
    pub fn new(len: u64) -> io::Result<Self> {
        acquire(Site::Map)?;
        let len = usize::try_from(len)
            .ok()
            .filter(|len| isize::try_from(*len).is_ok() && *len > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses a free address range, so no memory in use is
        // replaced.
        let start = unsafe { mmap_anonymous(null_mut(), len, access, flags)? };
        let start = NonNull::new(start).expect("the kernel never maps address zero unasked");
        Ok(Self { start, len })
    }

    /// Gives the whole pages from `offset` on and before `offset + len` back; they
    /// are zero from then on. The range that this was, in bytes, perhaps empty:
    /// the caller sees to what is beside it.
    ///
    /// # Errors
    /// `InvalidInput` for a range that is not inside; what `madvise(2)` reports for
    /// locked memory.
    pub fn give_back(&self, offset: u64, len: u64) -> io::Result<std::ops::Range<u64>> {
        let inside = |at: &u64| *at <= self.len as u64;
        let end = offset.checked_add(len).filter(inside);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        let page = rustix::param::page_size() as u64;
        // The mapping begins at a page; its last one may be a part.
        let first = offset.next_multiple_of(page);
        let behind = if end == self.len as u64 {
            end
        } else {
            end - end % page
        };
        if first >= behind {
            return Ok(offset..offset);
        }
        let (Ok(at), Ok(count)) = (usize::try_from(first), usize::try_from(behind - first)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: `at` is inside the mapping.
        let start = unsafe { self.start.cast::<u8>().add(at) };
        // SAFETY: the pages are private memory of this mapping. Whoever accesses
        // them copies bytes that may change at any moment, as users of a `Region`
        // do, and no reference to them exists.
        unsafe { madvise(start.as_ptr().cast(), count, Advice::LinuxDontNeed)? };
        Ok(first..behind)
    }
}

impl Drop for AnonymousMemory {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by `new`, and whoever used it borrowed the
        // value that is being dropped.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

// SAFETY: base and length describe a readable and writable mapping that lives as
// long as the value; neither changes.
unsafe impl Backing for AnonymousMemory {
    fn base(&self) -> NonNull<u8> {
        self.start.cast()
    }

    fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_mem::Region;
    use std::sync::Arc;

    /// Pages that take memory, by their number.
    fn resident(memory: &AnonymousMemory) -> Vec<usize> {
        let mut pages = vec![0_u8; memory.len.div_ceil(rustix::param::page_size())];
        // SAFETY: one byte for each page of the mapping.
        let result =
            unsafe { libc::mincore(memory.start.as_ptr(), memory.len, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        (0..pages.len()).filter(|at| pages[*at] & 1 != 0).collect()
    }

    #[test]
    fn only_what_was_written_takes_memory_until_it_is_given_back() {
        let page = rustix::param::page_size() as u64;
        let memory = Arc::new(AnonymousMemory::new(16 * page + 1000).unwrap());
        let region = Region::new(Arc::clone(&memory) as Arc<dyn Backing>);
        let write = |at: u64, len: u64| {
            let bytes = vec![7; usize::try_from(len).unwrap()];
            region.slice(at, len).unwrap().write(&bytes);
        };
        let read = |at: u64| {
            let mut byte = [0xEE];
            region.slice(at, 1).unwrap().read(&mut byte);
            byte[0]
        };
        assert!(resident(&memory).is_empty());
        write(3 * page, 4 * page);
        assert_eq!(resident(&memory), [3, 4, 5, 6]);
        let given = memory.give_back(3 * page + 1, 3 * page).unwrap();
        assert_eq!(given, 4 * page..6 * page);
        assert_eq!(resident(&memory), [3, 6]);
        let found = [3 * page, 4 * page - 1, 4 * page, 6 * page - 1, 6 * page].map(read);
        assert_eq!(found, [7, 7, 0, 0, 7]);
        // The last page is a part of one.
        write(16 * page, 1000);
        let given = memory.give_back(16 * page, 1000).unwrap();
        assert_eq!(given, 16 * page..16 * page + 1000);
        assert_eq!(read(16 * page + 999), 0);
        assert!(memory.give_back(page + 1, page).unwrap().is_empty());
        assert!(memory.give_back(0, 17 * page).is_err());
        assert!(memory.give_back(u64::MAX, 2).is_err());
    }

    #[test]
    fn impossible_lengths_are_errors() {
        for len in [0, u64::MAX, 1 << 62] {
            assert!(AnonymousMemory::new(len).is_err(), "{len}");
        }
    }
}
