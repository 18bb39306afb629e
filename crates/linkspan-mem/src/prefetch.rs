//! Asking for a cache line before it is needed.

/// Begins to fetch the cache line of `place`. A hint: nothing is read as far as the
/// program can tell, and an address that is not mapped does nothing.
#[inline(always)]
pub(crate) fn prefetch(place: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the instruction accesses nothing and never faults, whatever the address.
    unsafe {
        core::arch::asm!("prefetcht0 [{place}]", place = in(reg) place,
            options(nostack, preserves_flags, readonly));
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{place}]", place = in(reg) place,
            options(nostack, preserves_flags, readonly));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = place;
}
