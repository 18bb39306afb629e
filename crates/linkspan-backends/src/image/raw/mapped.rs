//! Cached data read through a mapping of the file, without a system call.
//!
//! A read goes this way only when all of its chunks were in the page cache a moment
//! ago. Whatever is wrong with it, the same read as a system call follows, and its
//! result is what the guest hears; after the first one that was, no more go this way.

use std::fs::File;
use std::io;

use linkspan_sys::file::Transfer;
use linkspan_sys::filemap::{self, CHUNK, FileMap};

/// Bytes of an image that are mapped, from its beginning on: the tables of pages
/// that this takes at most are a 512th of it, 32 MiB.
const MAPPED_MAX: u64 = 16 << 30;

/// The largest request that is read so, in bytes. Of a larger one the system call is
/// a small part, and should pages be gone after all, few are waited for one by one.
const REQUEST_MAX: u64 = 16 << 10;

/// The beginning of an image, mapped.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) map: FileMap,
}

impl Mapped {
    /// Maps a file that this process has locked.
    ///
    /// # Errors
    /// As for [`FileMap::new`].
    pub(super) fn new(file: &File) -> io::Result<Self> {
        Ok(Self {
            map: FileMap::new(file, MAPPED_MAX)?,
        })
    }

    /// Reads what is cached of an image of `len` bytes; `false` when it is to be
    /// read otherwise, whatever is in the buffers then.
    #[inline]
    pub(super) fn read(&self, transfer: &Transfer<'_>, len: u64) -> bool {
        let bytes = transfer.len();
        let (first, end) = (transfer.offset, transfer.offset.saturating_add(bytes));
        if bytes == 0 || bytes > REQUEST_MAX || end > len || self.map.lost() {
            return false;
        }
        let now = filemap::now();
        let mut chunks = first / CHUNK..=(end - 1) / CHUNK;
        chunks.all(|chunk| self.map.knows_cached(chunk, now)) && self.map.read(transfer)
    }

    /// A range is about to be given back or zeroed, or was: to be called on both
    /// sides of it, so that nothing is known that was so before.
    pub(super) fn forget(&self, offset: u64, len: u64) {
        self.map.forget(offset, len);
    }
}
