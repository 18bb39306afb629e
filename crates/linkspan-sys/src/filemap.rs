//! A file of ours, mapped so that what is cached of it is read without a system call.
//!
//! A read through a mapping blocks where the kernel has to fetch the page, and on
//! tmpfs it makes a page where the file has a hole. So who reads asks
//! [`is_cached`](FileMap::is_cached) first, which says what is in the page cache
//! now, and remembers the answer for a short while
//! ([`knows_cached`](FileMap::knows_cached)). A page that is gone by then costs the
//! wait for one page, or one page of memory; nothing else.

use crate::file::Transfer;
use crate::mapping::{Error, Pages};
use crate::sigbus;
use rustix::fs::{FileType, fcntl_getfl, fstat, fstatfs};
use rustix::mm::{Advice, ProtFlags, madvise};
use rustix::process::geteuid;
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// File systems (`statfs(2)`) whose pages are memory or come from a device of this
/// machine: tmpfs, ext2 to ext4, XFS, Btrfs. The fault of another may never end.
const LOCAL: [u64; 4] = [0x0102_1994, 0xEF53, 0x5846_5342, 0x9123_683E];

/// Bytes that are asked about at a time: as many as the kernel maps with one fault.
pub const CHUNK: u64 = CHUNK_LEN as u64;
const CHUNK_LEN: usize = 64 << 10;

/// Pages of a chunk, where pages are smallest.
const PAGES: usize = 16;

/// How long an answer counts, in milliseconds: at least, when something that was
/// cached was not the next time, which is when memory is short; and at most, when
/// that was not so for long.
const COUNTS_MS: [u32; 2] = [100, 1000];

/// The first bytes of a file, mapped for reading until this is dropped. The mapping
/// may go beyond the end, and what the file grows by is in it.
#[derive(Debug)]
pub struct FileMap {
    // Dropped first, as in `Mapping`.
    watch: sigbus::Watch,
    start: NonNull<u8>,
    len: u64,
    /// For each chunk when it was last asked about, in milliseconds, and in the
    /// lowest bit whether it was cached; zero: never.
    asked: Box<[AtomicU32]>,
    /// How long answers count now, in half milliseconds.
    counts: AtomicU32,
    _pages: Pages,
}

// SAFETY: the pages belong to no thread, and nothing here refers to their content.
unsafe impl Send for FileMap {}
// SAFETY: as above; shared access only reads fields that never change, and atomics.
unsafe impl Sync for FileMap {}

impl FileMap {
    /// Maps the first `len` bytes of a file, a multiple of [`CHUNK`], or of those
    /// that it will have.
    ///
    /// # Errors
    /// `Unsupported` for a file that is not on a local file system, and for one of
    /// another user that is not open for writing, of which the kernel does not say
    /// what is cached; what `mmap(2)` reports.
    pub fn new(file: impl AsFd, len: u64) -> io::Result<Self> {
        let fd = file.as_fd();
        if !is_local(fd)? || !tells_cached(fd)? || !len.is_multiple_of(CHUNK) || len == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let page = rustix::param::page_size();
        if !(CHUNK_LEN / PAGES..=CHUNK_LEN).contains(&page) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let span = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        crate::acquire(linkspan_mem::fault::Site::Alloc)?;
        // Zeroes without a page behind them: what is never asked about takes nothing.
        let asked = Box::<[AtomicU32]>::new_zeroed_slice(span / CHUNK_LEN);
        // SAFETY: all bits zero is an atomic zero.
        let asked = unsafe { asked.assume_init() };
        let pages = Pages::map(fd, 0, span, ProtFlags::READ).map_err(into_io)?;
        let start = pages.start();
        // SAFETY: the range is the mapping. Only what is asked for is fetched where
        // a fault does have to fetch.
        let _ = unsafe { madvise(start.as_ptr(), span, Advice::Random) };
        // SAFETY: the pages stay mapped until the watch is dropped; nobody relies
        // on their content without asking afterwards whether it was replaced.
        let watch = unsafe { sigbus::watch_read_only(start, span, page as u64) };
        Ok(Self {
            watch: watch.map_err(into_io)?,
            start: start.cast(),
            len,
            asked,
            counts: AtomicU32::new(COUNTS_MS[0] * 2),
            _pages: pages,
        })
    }

    /// Whether the chunk that begins at `chunk` times [`CHUNK`] was cached when that
    /// was last asked, or is now, if the last answer does not count any more. `now`
    /// is from [`now`].
    #[inline]
    pub fn knows_cached(&self, chunk: u64, now: Now) -> bool {
        let place = usize::try_from(chunk).ok();
        let Some(asked) = place.and_then(|place| self.asked.get(place)) else {
            return false;
        };
        let last = asked.load(Ordering::Relaxed);
        let counts = self.counts.load(Ordering::Relaxed);
        // A chunk that was not cached may be any moment.
        let counts = if last & 1 != 0 {
            counts
        } else {
            COUNTS_MS[0] * 2
        };
        if last != 0 && now.0.wrapping_sub(last & !1) < counts {
            return last & 1 != 0;
        }
        self.ask_again(chunk, asked, now)
    }

    #[cold]
    fn ask_again(&self, chunk: u64, asked: &AtomicU32, now: Now) -> bool {
        let cached = self.is_cached(chunk);
        let last = asked.swap(now.0 | u32::from(cached), Ordering::Relaxed);
        if last & 1 != 0 {
            let counts = self.counts.load(Ordering::Relaxed);
            let counts = match cached {
                true => counts.saturating_add(1).min(COUNTS_MS[1] * 2),
                false => COUNTS_MS[0] * 2,
            };
            self.counts.store(counts, Ordering::Relaxed);
        }
        cached
    }

    /// Whether all of a chunk inside the mapping is in the page cache.
    fn is_cached(&self, chunk: u64) -> bool {
        let mut pages = [0; PAGES];
        let at = usize::try_from(chunk * CHUNK).expect("the chunk is in the mapping");
        // SAFETY: a whole chunk of the mapping, which begins at a page, and an entry
        // for each of its pages.
        let status = unsafe {
            let start = self.start.as_ptr().add(at);
            libc::mincore(start.cast(), CHUNK_LEN, pages.as_mut_ptr())
        };
        let count = CHUNK_LEN / rustix::param::page_size();
        status == 0 && pages[..count].iter().all(|page| page & 1 != 0)
    }

    /// Forgets what is known of a range, which somebody changes.
    pub fn forget(&self, offset: u64, len: u64) {
        let first = usize::try_from(offset / CHUNK).unwrap_or(usize::MAX);
        let behind = usize::try_from((offset.saturating_add(len)).div_ceil(CHUNK));
        let behind = behind.unwrap_or(usize::MAX).min(self.asked.len());
        for asked in self.asked.get(first..behind).unwrap_or_default() {
            asked.store(0, Ordering::Relaxed);
        }
    }

    /// Copies what a transfer stands for to its spans; `false` when that did not
    /// give what the file holds, since it has become shorter, or its device failed.
    /// From then on that is so for each.
    #[inline]
    pub fn read(&self, transfer: &Transfer<'_>) -> bool {
        let end = transfer.offset.checked_add(transfer.len());
        if end.is_none_or(|end| end > self.len) || self.lost() {
            return false;
        }
        let mut at = usize::try_from(transfer.offset).expect("it is in the mapping");
        for span in transfer.spans {
            let target = transfer.table.slice(*span);
            // SAFETY: all spans together end inside the mapping, which lives as long
            // as `self`; others write to it at any time, as the copy allows.
            at += unsafe { target.write_from(self.start.as_ptr().add(at), target.len()) };
        }
        // Whoever replaces pages says so first.
        fence(Ordering::Acquire);
        !self.lost()
    }

    /// Whether a part was replaced by zeroes.
    #[inline]
    pub fn lost(&self) -> bool {
        self.watch.poisoned()
    }
}

/// A moment, for [`FileMap::knows_cached`].
#[derive(Clone, Copy, Debug)]
pub struct Now(u32);

/// This moment, as exactly as it is known without asking a clock.
#[inline]
pub fn now() -> Now {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    let millis = time
        .tv_sec
        .wrapping_mul(1000)
        .wrapping_add(time.tv_nsec / 1_000_000);
    // It goes round after 24 days, and an answer of then counts for a moment more.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it goes round"
    )]
    let low = (millis as u32) << 1;
    // Never the zero of "never".
    Now(low.max(2))
}

fn is_local(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mode = fstat(fd)?.st_mode;
    let kind = fstatfs(fd)?.f_type.cast_unsigned();
    Ok(FileType::from_raw_mode(mode) == FileType::RegularFile && LOCAL.contains(&kind))
}

/// Whether `mincore(2)` tells the truth: of a file that one neither owns nor may
/// write it says that all is cached.
fn tells_cached(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let writes = fcntl_getfl(fd)?.intersects(rustix::fs::OFlags::RDWR);
    Ok(writes || fstat(fd)?.st_uid == geteuid().as_raw())
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::System { source, .. } => source,
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_mem::{Gpa, GuestMemory, Region, UserVa};
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn memory() -> GuestMemory {
        let region = Region::heap(1 << 16).unwrap();
        GuestMemory::new(vec![(region, Gpa(0), UserVa(0x1000))]).unwrap()
    }

    /// 4 KiB at `offset`, if they came.
    fn read(map: &FileMap, offset: u64) -> Option<Vec<u8>> {
        let memory = memory();
        let mut spans = Vec::new();
        let each = |span| spans.push(span);
        memory.guest.resolve(Gpa(100), 4096, each).unwrap();
        let transfer = Transfer {
            table: memory.table(),
            spans: &spans,
            offset,
        };
        let mut bytes = vec![0; 4096];
        map.read(&transfer).then(|| {
            memory.table().gather(&spans, 0, &mut bytes).unwrap();
            bytes
        })
    }

    fn shm(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn what_is_cached_is_known_and_a_hole_is_left_alone() {
        let file = shm(&[7; CHUNK_LEN]);
        file.set_len(3 * CHUNK).unwrap();
        file.write_at(&[8; 4096], CHUNK + 4096).unwrap();
        let map = FileMap::new(&file, 4 * CHUNK).unwrap();
        let blocks = file.metadata().unwrap().blocks();
        let now = now();
        // All, a part, nothing, behind the end, behind the mapping.
        let known = [0, 1, 2, 3, 4, u64::MAX].map(|chunk| map.knows_cached(chunk, now));
        assert_eq!(known, [true, false, false, false, false, false]);
        assert_eq!(read(&map, 4096), Some(vec![7; 4096]));
        assert_eq!(file.metadata().unwrap().blocks(), blocks);
    }

    #[test]
    fn an_answer_counts_until_it_is_forgotten_or_old() {
        let file = shm(&[]);
        file.set_len(2 * CHUNK).unwrap();
        let map = FileMap::new(&file, 2 * CHUNK).unwrap();
        let first = now();
        assert!(!map.knows_cached(1, first));
        file.write_at(&[1; CHUNK_LEN], CHUNK).unwrap();
        assert!(!map.knows_cached(1, first));
        map.forget(CHUNK + 5, 1);
        assert!(map.knows_cached(1, first));
        file.set_len(CHUNK).unwrap();
        let later = Now(first.0.wrapping_add(COUNTS_MS[0] * 2));
        assert!(!map.knows_cached(1, later));
        map.forget(0, u64::MAX);
        map.forget(u64::MAX, 1);
    }

    /// While nothing leaves the cache one asks less and less; what has left makes
    /// one ask often again.
    #[test]
    fn answers_count_longer_while_nothing_leaves_the_cache() {
        let file = shm(&[7; CHUNK_LEN]);
        let map = FileMap::new(&file, CHUNK).unwrap();
        let mut moment = Now(2);
        for _ in 0..COUNTS_MS[1] * 2 {
            assert!(map.knows_cached(0, moment));
            moment = Now(moment.0 + COUNTS_MS[1] * 2);
        }
        assert!(map.knows_cached(0, moment));
        file.set_len(0).unwrap();
        // Just before the answer is too old, and just then.
        assert!(map.knows_cached(0, Now(moment.0 + COUNTS_MS[1] * 2 - 2)));
        assert!(!map.knows_cached(0, Now(moment.0 + COUNTS_MS[1] * 2)));
        assert_eq!(map.counts.load(Ordering::Relaxed), COUNTS_MS[0] * 2);
    }

    #[test]
    fn a_file_that_shrinks_is_noticed_by_the_read_that_meets_it() {
        let file = shm(&[7; 2 * CHUNK_LEN]);
        let map = FileMap::new(&file, 4 * CHUNK).unwrap();
        assert_eq!(read(&map, CHUNK), Some(vec![7; 4096]));
        file.set_len(CHUNK).unwrap();
        assert!(!map.lost());
        assert_eq!(read(&map, CHUNK), None);
        // And by all after it.
        assert!(map.lost() && read(&map, 0).is_none());
    }

    #[test]
    fn what_others_write_is_seen_and_what_the_file_grows_by() {
        let file = shm(&[7; CHUNK_LEN]);
        let map = FileMap::new(&file, 4 * CHUNK).unwrap();
        file.write_at(&[1; 4096], 0).unwrap();
        assert_eq!(read(&map, 0), Some(vec![1; 4096]));
        file.write_at(&[2; CHUNK_LEN], 2 * CHUNK).unwrap();
        assert_eq!(read(&map, 2 * CHUNK), Some(vec![2; 4096]));
        assert_eq!(read(&map, 4 * CHUNK - 4095), None);
        assert_eq!(read(&map, u64::MAX - 4095), None);
    }

    #[test]
    fn files_whose_pages_may_never_come_are_refused() {
        for path in ["/proc/self/maps", "/dev/zero"] {
            let error = FileMap::new(File::open(path).unwrap(), CHUNK).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{path}");
        }
        assert!(FileMap::new(shm(&[1]), 0).is_err());
        assert!(FileMap::new(shm(&[1]), CHUNK + 1).is_err());
    }
}
