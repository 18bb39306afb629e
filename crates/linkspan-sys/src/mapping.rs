//! Mapping memory that a peer shares with us.
//!
//! A descriptor from a peer may belong to a file whose server never answers,
//! and touching it then would hang a worker for ever. So a file is judged by
//! `F_GET_SEALS` alone: the kernel answers it by looking at the kind of the page
//! cache, without calling the file system, and only for memory files (memfd,
//! tmpfs) and for hugetlbfs. Sizes are asked after that, when nothing can block.

use crate::eventfd::has_link;
use crate::{EventFd, acquire, reaper, sigbus};
use linkspan_mem::Backing;
use linkspan_mem::fault::Site;
use rustix::fs::{SealFlags, fcntl_get_seals, fstat, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// Regions start at a multiple of this, so that the words of a ring in them can
/// be accessed atomically.
const WORD: u64 = 8;

/// What `statfs(2)` reports as the type of hugetlbfs.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// What `/proc/self/fd/N` says of the kernel's file for a VDUSE device. A path can
/// never equal it, because a path starts with a slash.
const VDUSE_LINK: &[u8] = b"anon_inode:[vduse-domain]";

/// Why memory of a peer cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer sent a file that is neither memfd, nor on tmpfs or hugetlbfs.
    #[error(
        "the file is not a memfd and not on tmpfs or hugetlbfs: only those cannot block, \
         use memory-backend-memfd or a file below /dev/shm or /dev/hugepages"
    )]
    NotMemory,
    /// The peer asked for no bytes at all.
    #[error("a region of 0 bytes at file offset {offset:#x}")]
    Empty {
        /// Where the region starts in the file, in bytes.
        offset: u64,
    },
    /// The peer asked for more than the file has.
    #[error(
        "a region of {len:#x} bytes at file offset {offset:#x} does not fit a file of {file_len:#x} bytes"
    )]
    OutsideFile {
        /// Where the region starts in the file, in bytes.
        offset: u64,
        /// Length of the region in bytes.
        len: u64,
        /// Length of the file in bytes when it was checked.
        file_len: u64,
    },
    /// The peer's offset would misalign every word in the region.
    #[error("a region at file offset {offset:#x}, which is no multiple of {WORD}")]
    Misaligned {
        /// Where the region starts in the file, in bytes.
        offset: u64,
    },
    /// So many mappings exist that a lost page of one more could not be repaired.
    #[error("{limit} mappings exist already, and no more can be guarded against files that shrink")]
    TooMany {
        /// How many mappings can exist at a time.
        limit: usize,
    },
    /// The kernel refused; a file without write access and one with a write
    /// seal are the peer's fault.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// A file of a peer that is memory and nothing else: mapping it, reading its
/// size and closing it cannot block.
#[derive(Debug)]
pub struct PeerMemory {
    fd: OwnedFd,
    file_len: u64,
    page_size: u64,
    sealed_shrink: bool,
}

impl PeerMemory {
    /// Accepts a descriptor from a peer if it is memory.
    ///
    /// # Errors
    /// [`Error::NotMemory`] or [`Error::System`]; the descriptor is then closed
    /// by the [`reaper`].
    pub fn check(fd: OwnedFd) -> Result<Self, Error> {
        // First, and before every other call: see the head of this module.
        let Ok(seals) = fcntl_get_seals(&fd) else {
            reaper::dispose(fd);
            return Err(Error::NotMemory);
        };
        let (file_len, page_size) = extent(fd.as_fd())?;
        Ok(Self {
            fd,
            file_len,
            page_size,
            sealed_shrink: seals.contains(SealFlags::SHRINK),
        })
    }

    /// Accepts a file that VDUSE gave for a piece of its driver's address space:
    /// the kernel's own, in which pages come and go with what the driver maps, or
    /// the memory of a peer that drives the device through vhost-vdpa.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn of_vduse(fd: OwnedFd) -> Result<Self, Error> {
        if !matches!(has_link(fd.as_fd(), VDUSE_LINK), Ok(true)) {
            return Self::check(fd);
        }
        Ok(Self {
            fd,
            // It has no length: a page that the driver does not map is lost in
            // the way of one behind the end of a file that shrank.
            file_len: u64::MAX,
            page_size: system_page(),
            sealed_shrink: false,
        })
    }

    /// Length of the file in bytes when it was checked.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Size of the pages of the file in bytes: a huge page on hugetlbfs.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Which file it is: no other one that is open or mapped has the same device and
    /// number.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn file_id(&self) -> Result<(u64, u64), Error> {
        let stat = fstat(&self.fd).map_err(|errno| Error::System {
            what: "read the number of the memory file",
            source: errno.into(),
        })?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Whether the file can never get shorter (`F_SEAL_SHRINK`). Memory without
    /// that seal is usable too: see [`Mapping::poisoned`].
    #[must_use]
    pub fn sealed_shrink(&self) -> bool {
        self.sealed_shrink
    }

    /// Maps `len` bytes from `offset` of the file for reading and writing.
    ///
    /// `offset` need not be a multiple of the page size (vhost-user:
    /// `mmap_offset`). Pages are not reserved and not touched. `wake` is
    /// signalled when the mapping gets poisoned.
    ///
    /// # Errors
    /// [`Error`], with nothing left mapped.
    pub fn map(&self, offset: u64, len: u64, wake: Option<Arc<EventFd>>) -> Result<Mapping, Error> {
        let outside = Error::OutsideFile {
            offset,
            len,
            file_len: self.file_len,
        };
        match offset.checked_add(len) {
            Some(end) if end <= self.file_len => {}
            _ => return Err(outside),
        }
        if len == 0 {
            return Err(Error::Empty { offset });
        }
        if !offset.is_multiple_of(WORD) {
            return Err(Error::Misaligned { offset });
        }
        let lead = offset % self.page_size;
        // The end of a file may lie within its last page, so rounding up can
        // pass it by less than a page, and only overflow at the end of u64.
        let span = (lead + len).checked_next_multiple_of(self.page_size);
        let (Some(Ok(span)), Ok(len), Ok(lead)) = (
            span.map(usize::try_from),
            usize::try_from(len),
            usize::try_from(lead),
        ) else {
            return Err(outside);
        };
        let start = offset - offset % self.page_size;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let pages = Pages::map(self.fd.as_fd(), start, span, access)?;
        // SAFETY: `lead` is below the page size and so within the mapping.
        let base = unsafe { pages.start.cast::<u8>().add(lead) };
        // SAFETY: the pages stay mapped until `Mapping` is dropped, which drops
        // the watch first; they are shared with a peer, so that whoever reads
        // them expects any content, zeroes included.
        let watch = unsafe { sigbus::watch(pages.start, span, self.page_size, wake)? };
        Ok(Mapping {
            watch,
            base,
            len,
            _pages: pages,
        })
    }
}

impl AsFd for PeerMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Memory shared with a peer, mapped until it is dropped.
///
/// If the peer takes memory away, by shrinking its file, the next access finds
/// zeroes instead, and the mapping is *poisoned* from then on. Accesses by the
/// kernel on our behalf (`preadv2`, io_uring) report `EFAULT` instead.
#[derive(Debug)]
pub struct Mapping {
    // Dropped first, in order of declaration: the fault repair must not know
    // this address range any more when the kernel may give it to somebody else.
    watch: sigbus::Watch,
    base: NonNull<u8>,
    len: usize,
    _pages: Pages,
}

// SAFETY: the pages belong to no thread, and nothing here refers to their content.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared access only reads fields that never change, and an atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The first byte that was asked for.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// How many bytes were asked for; never zero.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty mapping cannot be made"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether a part of the memory was lost and replaced by zeroes. What was
    /// read since means nothing, and what is written reaches nobody: the link
    /// that uses this memory has to end.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.watch.poisoned()
    }
}

// SAFETY: base and length describe bytes inside of a readable and writable
// mapping that lives as long as the value; pages that a peer takes away are
// replaced by zero pages upon the first access. The base is 8-byte aligned,
// since pages are and `map` refuses other offsets.
unsafe impl Backing for Mapping {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }

    fn poisoned(&self) -> bool {
        self.poisoned()
    }
}

/// Whole pages, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<c_void>,
    span: usize,
}

impl Pages {
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        span: usize,
        access: ProtFlags,
    ) -> Result<Self, Error> {
        let system = |source| Error::System {
            what: "map the memory",
            source,
        };
        acquire(Site::Map).map_err(system)?;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses a free address range, so no memory in use
        // is replaced.
        let start = unsafe { mmap(null_mut(), span, access, flags, fd, offset) };
        let start = start.map_err(|errno| system(errno.into()))?;
        let start = NonNull::new(start).expect("the kernel never maps address zero unasked");
        Ok(Self { start, span })
    }

    pub(crate) fn start(&self) -> NonNull<c_void> {
        self.start
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by `map`, and whoever used it borrowed
        // the mapping that is being dropped.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.span) };
        // It fails only if splitting a mapping passes the limit of mappings,
        // and this is a whole one. Leaking address space is the safe remainder.
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// Length and page size in bytes of a file that is known to be memory.
fn extent(fd: BorrowedFd<'_>) -> Result<(u64, u64), Error> {
    let system = |what| {
        move |errno: rustix::io::Errno| Error::System {
            what,
            source: errno.into(),
        }
    };
    let stat = fstat(fd).map_err(system("read the size of the memory file"))?;
    let file_len = u64::try_from(stat.st_size).unwrap_or(0);
    let statfs = fstatfs(fd).map_err(system("read the page size of the memory file"))?;
    let page_size = match (u64::try_from(statfs.f_type), u64::try_from(statfs.f_bsize)) {
        (Ok(HUGETLBFS_MAGIC), Ok(size)) if size.is_power_of_two() => size,
        _ => system_page(),
    };
    Ok((file_len, page_size))
}

/// Size of an ordinary page in bytes.
fn system_page() -> u64 {
    u64::try_from(rustix::param::page_size()).expect("a page is small")
}

#[cfg(test)]
mod tests;
