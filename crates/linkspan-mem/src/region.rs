//! One mapping of shared memory, counted by reference.

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::copy::{copy, load_12, prefetch, store_12};
use crate::crc;
use crate::fault::{self, Injected, Site};
use crate::ring::{Window, WindowError};

/// What keeps the bytes of a region alive.
///
/// # Safety
/// `base()` is valid for reads and writes of `len()` bytes until the value is
/// dropped, and neither ever changes. No alignment is promised: windows check
/// the one that they need.
pub unsafe trait Backing: Send + Sync + 'static {
    /// The first byte.
    fn base(&self) -> NonNull<u8>;

    /// Size in bytes.
    fn len(&self) -> usize;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the peer took part of the memory away (a file that shrank): from
    /// then on reads give zeroes and the link must end.
    fn poisoned(&self) -> bool {
        false
    }
}

/// A piece of memory that a peer reads and writes at any moment.
///
/// No reference to its bytes ever exists: control words are read by value
/// through a [`Window`], payload is copied through a [`SharedSlice`].
#[derive(Clone)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    backing: Arc<dyn Backing>,
}

// SAFETY: the pointer is into `backing`, which is Send and Sync; all access is
// by copies and atomics that tolerate concurrent writers.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// A range that is not inside its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at offset {offset} are not inside a region of {size} bytes")]
pub struct OutsideRegion {
    /// First byte of the range.
    pub offset: u64,
    /// Size of the range in bytes.
    pub len: u64,
    /// Size of the region in bytes.
    pub size: u64,
}

impl Region {
    /// Takes over a mapping.
    pub fn new(backing: Arc<dyn Backing>) -> Self {
        Self {
            base: backing.base(),
            len: backing.len(),
            backing,
        }
    }

    /// A region of zeroes in private memory, for tests and in-process links.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn heap(len: usize) -> Result<Self, Injected> {
        fault::point(Site::Alloc)?;
        Ok(Self::new(Arc::new(Heap::new(len)?)))
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the peer took part of the memory away; see [`Backing::poisoned`].
    pub fn poisoned(&self) -> bool {
        self.backing.poisoned()
    }

    /// The `len` bytes at `offset`.
    ///
    /// # Errors
    /// When they are not all inside.
    #[inline]
    pub fn slice(&self, offset: u64, len: u64) -> Result<SharedSlice<'_>, OutsideRegion> {
        let start = self.checked_start(offset, len)?;
        Ok(SharedSlice {
            // SAFETY: `start + len` was checked to lie inside the mapping.
            base: unsafe { self.base.add(start) },
            // Fits: it is at most `self.len`.
            len: usize::try_from(len).unwrap_or(0),
            region: PhantomData,
        })
    }

    /// A window of `len` bytes at `offset` onto a ring, which keeps the region
    /// alive. Bounds are checked here and not per field.
    ///
    /// # Errors
    /// When it is not all inside.
    pub fn window(&self, offset: u64, len: usize) -> Result<Window, WindowError> {
        let start = self.checked_start(offset, len as u64)?;
        // SAFETY: inside the mapping, which the clone of the region keeps alive.
        Ok(unsafe { Window::new(self.base.add(start), len, self.clone()) })
    }

    #[inline]
    fn checked_start(&self, offset: u64, len: u64) -> Result<usize, OutsideRegion> {
        let size = self.len as u64;
        match offset.checked_add(len) {
            Some(end) if end <= size => usize::try_from(offset).ok(),
            _ => None,
        }
        .ok_or(OutsideRegion { offset, len, size })
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes)", self.len)
    }
}

/// Bytes that processors fetch at a time.
const CACHE_LINE: usize = 64;

/// Bytes inside a region, for as long as the region is borrowed.
#[derive(Clone, Copy)]
pub struct SharedSlice<'a> {
    base: NonNull<u8>,
    len: usize,
    region: PhantomData<&'a Region>,
}

impl SharedSlice<'_> {
    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte, for system calls that take an address. Rust code must
    /// not make a reference of it.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The part that begins at `offset` and has at most `len` bytes.
    #[inline]
    pub fn part(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len);
        Self {
            // SAFETY: `offset <= len`, so it stays inside or one past the end.
            base: unsafe { self.base.add(offset) },
            len: len.min(self.len - offset),
            region: PhantomData,
        }
    }

    /// Copies the first bytes out, as many as fit on both sides; returns how many.
    #[inline]
    pub fn read(&self, target: &mut [u8]) -> usize {
        let len = self.len.min(target.len());
        // SAFETY: `len` bytes are valid on both sides; private memory cannot
        // overlap a region that the borrow keeps mapped.
        unsafe { copy(target.as_mut_ptr(), self.base.as_ptr(), len) };
        len
    }

    /// The first 12 bytes by value, in no memory of ours; `None` when there are fewer.
    #[inline]
    pub fn read_12(&self) -> Option<[u8; 12]> {
        if self.len < 12 {
            return None;
        }
        // SAFETY: 12 bytes are valid, which the borrow keeps mapped.
        let (low, high) = unsafe { load_12(self.base.as_ptr()) };
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&low.to_ne_bytes());
        bytes[8..].copy_from_slice(&high.to_ne_bytes());
        Some(bytes)
    }

    /// Copies the first bytes in, as many as fit on both sides; returns how many.
    #[inline]
    pub fn write(&self, source: &[u8]) -> usize {
        let len = self.len.min(source.len());
        // SAFETY: as in `read`.
        unsafe { copy(self.base.as_ptr(), source.as_ptr(), len) };
        len
    }

    /// Makes the first 12 bytes these; `false`, and nothing is written, when there is no
    /// room. Where they end a cache line, so that what follows them has lines of its own,
    /// bytes that are there already are not written anew: the line stays with everybody
    /// who reads it.
    #[inline]
    pub fn write_12(&self, bytes: [u8; 12]) -> bool {
        if self.len < 12 {
            return false;
        }
        let [a, b, c, d, e, f, g, h, high @ ..] = bytes;
        let low = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        let value = (low, u32::from_ne_bytes(high));
        let place = self.base.as_ptr();
        // SAFETY: 12 bytes are valid, which the borrow keeps mapped.
        unsafe {
            if !self.ends_line_after_12() || load_12(place) != value {
                store_12(place, value);
            }
        }
        true
    }

    /// Whether a cache line ends behind the first 12 bytes.
    #[inline]
    fn ends_line_after_12(&self) -> bool {
        (self.base.as_ptr().addr() + 12).is_multiple_of(CACHE_LINE)
    }

    /// The CRC32C of what `crc` stands for, followed by these bytes.
    #[must_use]
    #[inline]
    pub fn crc32c(&self, crc: u32) -> u32 {
        // SAFETY: all bytes are valid, which the borrow keeps mapped.
        unsafe { crc::extend(crc, self.base.as_ptr(), self.len) }
    }

    /// Copies `len` bytes in that are no region's, or as many as fit; returns how many.
    ///
    /// # Safety
    /// `source` is valid for reads of `len` bytes, which do not overlap these. Others
    /// may write to them meanwhile.
    #[inline]
    pub unsafe fn write_from(&self, source: *const u8, len: usize) -> usize {
        let len = self.len.min(len);
        // SAFETY: `len` bytes are valid on both sides, by contract without overlap.
        unsafe { copy(self.base.as_ptr(), source, len) };
        len
    }

    /// Copies `bytes` in where other ones stand; what is the same already is not
    /// written, so that its cache line stays with whoever reads it.
    #[inline]
    pub fn write_changed<const N: usize>(&self, bytes: [u8; N]) -> usize {
        let mut now = [0; N];
        if self.read(&mut now) == N && now == bytes {
            return N;
        }
        self.write(&bytes)
    }

    /// Copies the first bytes to other shared memory, as many as fit on both
    /// sides; returns how many.
    #[inline]
    pub fn copy_to(&self, target: SharedSlice<'_>) -> usize {
        let len = self.len.min(target.len);
        let distance = self.base.addr().get().abs_diff(target.base.addr().get());
        if distance < len {
            return self.copy_overlapping(target);
        }
        // SAFETY: `len` bytes are valid on both sides, and they are at least as far
        // apart as that.
        unsafe { copy(target.base.as_ptr(), self.base.as_ptr(), len) };
        len
    }

    /// The same by way of private memory; bytes on both sides arrive as old or new.
    #[cold]
    fn copy_overlapping(&self, target: SharedSlice<'_>) -> usize {
        let len = self.len.min(target.len);
        let mut bytes = [0; 256];
        for at in (0..len).step_by(bytes.len()) {
            let part = bytes.len().min(len - at);
            self.part(at, part).read(&mut bytes);
            target.part(at, part).write(&bytes);
        }
        len
    }

    /// Has the processor fetch the first two cache lines, so that they are there when
    /// they are [read](Self::read): worth it where several such places are known
    /// before the first is needed.
    #[inline]
    pub fn prefetch(&self) {
        for place in self.two_lines() {
            prefetch(place, false);
        }
    }

    /// The same for bytes that are to be [written](Self::write). A line of which only the
    /// last 12 are these is not taken from others, as [`write_12`](Self::write_12) mostly
    /// leaves it alone.
    #[inline]
    pub fn prefetch_to_write(&self) {
        let [first, second] = self.two_lines();
        prefetch(first, !self.ends_line_after_12());
        prefetch(second, true);
    }

    /// Bytes in the first two cache lines, perhaps in one that these bytes only touch.
    #[inline]
    fn two_lines(&self) -> [*const u8; 2] {
        let second = self.len.saturating_sub(1).min(CACHE_LINE);
        let base = self.base.as_ptr();
        [base, base.wrapping_add(second)].map(<*mut u8>::cast_const)
    }

    /// Makes all bytes zero.
    pub fn clear(&self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        for at in (0..self.len).step_by(ZEROES.len()) {
            self.part(at, ZEROES.len()).write(&ZEROES);
        }
    }
}

/// Private memory that poses as a mapping.
struct Heap {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain memory, owned; access rules are those of `Region`.
unsafe impl Send for Heap {}
// SAFETY: as above.
unsafe impl Sync for Heap {}

impl Heap {
    fn new(len: usize) -> Result<Self, Injected> {
        let refused = Injected { site: Site::Alloc };
        let layout = Layout::from_size_align(len.max(1), 4096).map_err(|_| refused)?;
        // SAFETY: the layout has a size of at least 1.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(refused)?;
        let layout = Layout::from_size_align(len, 4096).map_err(|_| refused)?;
        Ok(Self { base, layout })
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        let size = self.layout.size().max(1);
        if let Ok(layout) = Layout::from_size_align(size, self.layout.align()) {
            // SAFETY: allocated in `new` with exactly this layout.
            unsafe { dealloc(self.base.as_ptr(), layout) }
        }
    }
}

/// Copies bytes out that are no region's: of a mapping that can only be read.
///
/// # Safety
/// `source` is valid for reads of as many bytes as `target` has, which do not overlap it.
/// Others may write to them meanwhile.
#[inline]
pub unsafe fn read_from(source: *const u8, target: &mut [u8]) {
    // SAFETY: by contract for one side, by the borrow for the other.
    unsafe { copy(target.as_mut_ptr(), source, target.len()) };
}

// SAFETY: allocated for `layout.size()` bytes at 4096, freed on drop only.
unsafe impl Backing for Heap {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.layout.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    #[test]
    fn slices_stay_inside_their_region() {
        let region = Region::heap(100).unwrap();
        assert_eq!(region.slice(0, 100).unwrap().len(), 100);
        assert_eq!(region.slice(100, 0).unwrap().len(), 0);
        for (offset, len) in [(0, 101), (100, 1), (101, 0), (u64::MAX, 1), (1, u64::MAX)] {
            assert_eq!(
                region.slice(offset, len).err(),
                Some(OutsideRegion {
                    offset,
                    len,
                    size: 100
                })
            );
        }
    }

    #[test]
    fn reads_and_writes_move_what_fits() {
        let region = Region::heap(16).unwrap();
        let slice = region.slice(4, 8).unwrap();
        assert_eq!(slice.write(b"0123456789"), 8);
        let mut back = [0; 16];
        assert_eq!(region.slice(0, 16).unwrap().read(&mut back), 16);
        assert_eq!(&back, b"\0\0\0\x0001234567\0\0\0\0");
        assert_eq!(slice.part(6, 10).read(&mut back), 2);
        assert_eq!(slice.part(9, 1).len(), 0);
    }

    #[test]
    fn what_differs_is_written_and_what_is_no_regions_is_copied_in() {
        let region = region(&[1; 24]);
        let slice = region.slice(4, 16).unwrap();
        for new in [[1; 16], [2; 16], [2; 16]] {
            assert_eq!(slice.write_changed(new), 16);
        }
        // Less room than bytes.
        assert_eq!(slice.part(12, 4).write_changed([3; 16]), 4);
        // SAFETY: an array of 3 bytes, of which that many are asked for.
        assert_eq!(unsafe { slice.write_from([9; 3].as_ptr(), 3) }, 3);
        let mut expected = [1; 24];
        expected[4..16].fill(2);
        expected[16..20].fill(3);
        expected[4..7].fill(9);
        assert_eq!(bytes(&region), expected);
    }

    fn region(bytes: &[u8]) -> Region {
        let region = Region::heap(bytes.len()).unwrap();
        region.slice(0, bytes.len() as u64).unwrap().write(bytes);
        region
    }

    fn bytes(region: &Region) -> Vec<u8> {
        let mut bytes = vec![0; region.len()];
        region
            .slice(0, region.len() as u64)
            .unwrap()
            .read(&mut bytes);
        bytes
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251).to_le_bytes()[0]).collect()
    }

    #[test]
    fn shared_bytes_go_to_shared_memory_as_many_as_fit() {
        for len in [0, 1, 7, 64, 200, 4096, 9000] {
            let (source, target) = (region(&pattern(9000)), region(&[0xEE; 9500]));
            let from = source.slice(0, len as u64).unwrap();
            assert_eq!(from.copy_to(target.slice(10, 9490).unwrap()), len);
            let found = bytes(&target);
            assert_eq!(found[10..10 + len], pattern(9000)[..len]);
            let mut others = found[..10].iter().chain(&found[10 + len..]);
            assert!(others.all(|byte| *byte == 0xEE));
            let short = target.slice(0, 5).unwrap();
            assert_eq!(from.copy_to(short), len.min(5));
        }
    }

    #[test]
    fn copies_between_places_that_overlap_do_no_harm() {
        for (from, to) in [(0_u16, 1_u16), (1, 0), (0, 300), (300, 0), (5, 5)] {
            let region = region(&pattern(2000));
            let slice = |at: u16| region.slice(at.into(), 1000).unwrap();
            assert_eq!(slice(from).copy_to(slice(to)), 1000);
            let end = usize::from(from.max(to)) + 1000;
            assert_eq!(
                bytes(&region)[end..],
                pattern(2000)[end..],
                "{from} to {to}"
            );
        }
    }

    #[test]
    fn twelve_bytes_are_read_by_value_if_there_are_so_many() {
        let region = region(&pattern(100));
        let slice = |at, len| region.slice(at, len).unwrap();
        assert_eq!(slice(7, 90).read_12().unwrap()[..], pattern(100)[7..19]);
        assert!(slice(88, 12).read_12().is_some());
        assert_eq!(slice(89, 11).read_12(), None);
    }

    #[test]
    fn twelve_bytes_are_written_wherever_a_cache_line_ends() {
        for at in 0..64 {
            let region = region(&pattern(100));
            let slice = region.slice(at, 12).unwrap();
            let at = usize::try_from(at).unwrap();
            for fill in [pattern(100)[at], 7, 7, 0] {
                assert!(slice.write_12([fill; 12]));
                assert_eq!(slice.read_12(), Some([fill; 12]), "at {at}");
            }
            assert_eq!(bytes(&region)[..at], pattern(100)[..at]);
            assert_eq!(bytes(&region)[at + 12..], pattern(100)[at + 12..]);
        }
        let short = region(&[0; 100]);
        assert!(!short.slice(89, 11).unwrap().write_12([1; 12]));
        assert_eq!(bytes(&short), [0; 100]);
    }

    #[test]
    fn fetching_ahead_changes_nothing() {
        let region = region(&pattern(200));
        for (at, len) in [(0, 0), (0, 1), (0, 200), (63, 2), (199, 1)] {
            let slice = region.slice(at, len).unwrap();
            slice.prefetch();
            slice.prefetch_to_write();
        }
        assert_eq!(bytes(&region), pattern(200));
    }

    #[test]
    fn cleared_bytes_are_zero_and_no_others() {
        let region = region(&pattern(10000));
        region.slice(1, 9000).unwrap().clear();
        let mut want = pattern(10000);
        want[1..9001].fill(0);
        assert_eq!(bytes(&region), want);
    }
}
