//! The memory in which real rings lie.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::RingMemory;
use crate::copy::{copy, prefetch};
use crate::region::Region;

/// Bytes of a region, kept alive by it, that a ring lies in.
#[derive(Clone)]
pub struct Window {
    base: NonNull<u8>,
    len: usize,
    region: Region,
}

// SAFETY: as for `Region`; all access is atomic.
unsafe impl Send for Window {}

impl Window {
    /// # Safety
    /// `base` is valid for `len` bytes for as long as `region` lives.
    pub(crate) unsafe fn new(base: NonNull<u8>, len: usize, region: Region) -> Self {
        Self { base, len, region }
    }

    /// Whether the peer took part of the memory away.
    pub fn poisoned(&self) -> bool {
        self.region.poisoned()
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window({} bytes)", self.len)
    }
}

macro_rules! window_access {
    ($load:ident, $store:ident, $value:ty, $atomic:ty) => {
        #[inline(always)]
        unsafe fn $load(&self, offset: usize) -> $value {
            debug_assert!(offset + size_of::<$value>() <= self.len);
            // SAFETY: in bounds and aligned by contract, alive through `region`.
            unsafe { <$atomic>::from_ptr(self.base.as_ptr().add(offset).cast()) }
                .load(Ordering::Relaxed)
        }

        #[inline(always)]
        unsafe fn $store(&self, offset: usize, value: $value) {
            debug_assert!(offset + size_of::<$value>() <= self.len);
            // SAFETY: in bounds and aligned by contract, alive through `region`.
            unsafe { <$atomic>::from_ptr(self.base.as_ptr().add(offset).cast()) }
                .store(value, Ordering::Relaxed);
        }
    };
}

impl RingMemory for Window {
    fn len(&self) -> usize {
        self.len
    }

    fn is_aligned(&self, align: usize) -> bool {
        self.base.addr().get().is_multiple_of(align)
    }

    window_access!(load_u8, store_u8, u8, AtomicU8);
    window_access!(load_u16, store_u16, u16, AtomicU16);
    window_access!(load_u32, store_u32, u32, AtomicU32);
    window_access!(load_u64, store_u64, u64, AtomicU64);

    #[inline(always)]
    fn prefetch(&self, offset: usize) {
        prefetch(self.base.as_ptr().wrapping_add(offset), false);
    }

    #[inline]
    unsafe fn copy_out(&self, offset: usize, target: &mut [u8]) {
        debug_assert!(offset + target.len() <= self.len);
        // SAFETY: in bounds by contract, alive through `region`; private memory
        // cannot overlap it.
        unsafe {
            copy(
                target.as_mut_ptr(),
                self.base.as_ptr().add(offset),
                target.len(),
            );
        }
    }

    #[inline]
    unsafe fn copy_in(&self, offset: usize, source: &[u8]) {
        debug_assert!(offset + source.len() <= self.len);
        // SAFETY: as in `copy_out`.
        unsafe {
            copy(
                self.base.as_ptr().add(offset),
                source.as_ptr(),
                source.len(),
            );
        }
    }
}
