//! Copies between shared and private memory.
//!
//! The peer may write the shared side at any moment, so no reference to it may
//! exist and the compiler must not assume two reads agree. Rust has no bytewise
//! atomic copy yet. On x86-64 the copy is therefore inline assembly, which may
//! do whatever some Rust code could: here, relaxed atomic bytes in any order.
//! Elsewhere, and for tools that cannot see through assembly, it is a loop of
//! relaxed atomics. docs/PERFORMANCE.md has the measurements that chose the
//! thresholds.

/// Copies `len` bytes of which either side may be shared with a peer.
///
/// # Safety
/// `src` is valid for reads and `dst` for writes of `len` bytes; they do not
/// overlap. Bytes that a peer or another thread changes meanwhile arrive in any mix of old and new.
#[inline]
pub(crate) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: passed on to the caller unchanged.
    unsafe { imp::copy(dst, src, len) }
}

/// Loads 12 bytes that may be shared with a peer: the first 8, and 4 more.
///
/// # Safety
/// `src` is valid for reads of 12 bytes.
#[inline]
pub(crate) unsafe fn load_12(src: *const u8) -> (u64, u32) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let (low, high): (u64, u32);
        // SAFETY: 12 bytes, valid by contract.
        unsafe {
            core::arch::asm!(
                "mov {l}, [{s}]",
                "mov {h:e}, [{s} + 8]",
                s = in(reg) src, l = out(reg) low, h = out(reg) high,
                options(nostack, preserves_flags, readonly)
            );
        }
        (low, high)
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    {
        let (mut low, mut high) = ([0; 8], [0; 4]);
        // SAFETY: 12 bytes on one side by contract, private memory on the other.
        unsafe {
            copy(low.as_mut_ptr(), src, 8);
            copy(high.as_mut_ptr(), src.add(8), 4);
        }
        (u64::from_ne_bytes(low), u32::from_ne_bytes(high))
    }
}

/// Stores 12 bytes that may be shared with a peer: the first 8, and 4 more.
///
/// # Safety
/// `dst` is valid for writes of 12 bytes.
#[inline]
pub(crate) unsafe fn store_12(dst: *mut u8, (low, high): (u64, u32)) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: 12 bytes, valid by contract.
    unsafe {
        core::arch::asm!(
            "mov [{d}], {l}",
            "mov [{d} + 8], {h:e}",
            d = in(reg) dst, l = in(reg) low, h = in(reg) high,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    // SAFETY: 12 bytes on one side by contract, private memory on the other.
    unsafe {
        copy(dst, low.to_ne_bytes().as_ptr(), 8);
        copy(dst.add(8), high.to_ne_bytes().as_ptr(), 4);
    }
}

/// Has the processor fetch the cache line of `place` while others are waited for;
/// with `write`, so that it can be written at once. Changes nothing, wherever it points.
#[inline(always)]
pub(crate) fn prefetch(place: *const u8, write: bool) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint, which never faults; processors without the second one, which
    // all have by now, take it as no operation.
    unsafe {
        use core::arch::asm;
        if write {
            asm!("prefetchw [{p}]", p = in(reg) place, options(nostack, preserves_flags, readonly));
        } else {
            asm!("prefetcht0 [{p}]", p = in(reg) place, options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (place, write);
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod imp {
    use core::arch::asm;
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    use core::sync::atomic::{AtomicU8, Ordering};

    /// From here on `rep movsb` is as fast as the widest vector loop, and faster
    /// than the narrow one.
    const STRING_MOVE_MIN: usize = 4096;
    /// Without wide vectors it pays much earlier.
    const STRING_MOVE_MIN_NARROW: usize = 1024;

    /// What processor and system have, a bit each; 0 until somebody looked.
    static HAVE: AtomicU8 = AtomicU8::new(0);
    const LOOKED: u8 = 1;
    /// Vectors of 32 bytes.
    const WIDE: u8 = 2;
    /// `rep movsb` that moves more than a byte at a time, as the processor says: those before 2012
    /// have none, nor has an emulated one that does not claim it.
    const STRING_MOVE: u8 = 4;

    #[inline]
    fn have() -> u8 {
        match HAVE.load(Ordering::Relaxed) {
            0 => look(),
            known => known,
        }
    }

    #[cold]
    fn look() -> u8 {
        let leaf = __cpuid(1);
        // AVX, and XGETBV usable.
        let wanted = (1 << 28) | (1 << 27);
        let mut enabled: u32 = 0;
        if leaf.ecx & wanted == wanted {
            // SAFETY: the processor says that the instruction may be used.
            unsafe {
                asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _,
                    options(nomem, nostack, preserves_flags));
            }
        }
        let mut have = LOOKED;
        // The system saves the halves of the registers that the loop uses.
        if enabled & 0b110 == 0b110 {
            have |= WIDE;
        }
        let leaves = __cpuid(0).eax;
        // "Enhanced REP MOVSB": leaf 7, EBX, bit 9.
        if leaves >= 7 && __cpuid_count(7, 0).ebx & (1 << 9) != 0 {
            have |= STRING_MOVE;
        }
        HAVE.store(have, Ordering::Relaxed);
        have
    }

    macro_rules! two_moves {
        ($reg:ident, $size:literal, $dst:ident, $src:ident, $len:ident) => {{
            let (a, b): (u64, u64);
            // SAFETY: `len >= size`, so both moves, the second one ending at
            // `len`, stay inside; loads come before stores.
            unsafe {
                asm!(
                    concat!("mov {a:", $size, "}, [{s}]"),
                    concat!("mov {b:", $size, "}, [{s} + {t}]"),
                    concat!("mov [{d}], {a:", $size, "}"),
                    concat!("mov [{d} + {t}], {b:", $size, "}"),
                    s = in(reg) $src, d = in(reg) $dst, t = in(reg) $len - core::mem::size_of::<$reg>(),
                    a = out(reg) a, b = out(reg) b,
                    options(nostack, preserves_flags)
                );
            }
            let _ = (a, b);
        }};
    }

    /// # Safety
    /// As for [`super::copy`].
    #[inline(always)]
    pub(super) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: as promised to us.
        unsafe {
            if len < 64 {
                copy_short(dst, src, len);
            } else {
                copy_long(dst, src, len);
            }
        }
    }

    /// # Safety
    /// As for [`super::copy`], with `len >= 64`.
    #[inline(never)]
    unsafe fn copy_long(dst: *mut u8, src: *const u8, len: usize) {
        let have = have();
        let by_strings = |min: usize| len >= min && have & STRING_MOVE != 0;
        if have & WIDE != 0 && !by_strings(STRING_MOVE_MIN) {
            // SAFETY: at least 64 bytes, and wide vectors are there.
            unsafe { copy_wide(dst, src, len) }
        } else if !by_strings(STRING_MOVE_MIN_NARROW) {
            // SAFETY: at least 33 bytes.
            unsafe { copy_narrow(dst, src, len) }
        } else {
            // SAFETY: the ABI keeps the direction flag clear, so exactly
            // `len` bytes move upwards.
            unsafe {
                asm!("rep movsb",
                    inout("rcx") len => _, inout("rdi") dst => _, inout("rsi") src => _,
                    options(nostack, preserves_flags));
            }
        }
    }

    /// # Safety
    /// As for [`super::copy`], with `len < 64`. Not inlined, as its many cases are long.
    #[inline(never)]
    unsafe fn copy_short(dst: *mut u8, src: *const u8, len: usize) {
        match len {
            0 => {}
            1 => {
                // SAFETY: one byte on each side, valid by contract.
                unsafe {
                    asm!("mov {t}, [{s}]", "mov [{d}], {t}",
                        s = in(reg) src, d = in(reg) dst, t = out(reg_byte) _,
                        options(nostack, preserves_flags));
                }
            }
            2..=3 => two_moves!(u16, "x", dst, src, len),
            4..=7 => two_moves!(u32, "e", dst, src, len),
            12 => {
                // The length of most network headers, which is mostly written by words
                // right before: moves that overlap would wait for both words.
                // SAFETY: 12 bytes on each side, valid by contract.
                unsafe {
                    asm!(
                        "mov {a}, [{s}]",
                        "mov {b:e}, [{s} + 8]",
                        "mov [{d}], {a}",
                        "mov [{d} + 8], {b:e}",
                        s = in(reg) src, d = in(reg) dst, a = out(reg) _, b = out(reg) _,
                        options(nostack, preserves_flags)
                    );
                }
            }
            8..=15 => two_moves!(u64, "r", dst, src, len),
            16..=32 => {
                // SAFETY: `len >= 16`; the second move ends at `len`.
                unsafe {
                    asm!(
                        "movups {a}, [{s}]",
                        "movups {b}, [{s} + {t}]",
                        "movups [{d}], {a}",
                        "movups [{d} + {t}], {b}",
                        s = in(reg) src, d = in(reg) dst, t = in(reg) len - 16,
                        a = out(xmm_reg) _, b = out(xmm_reg) _,
                        options(nostack, preserves_flags)
                    );
                }
            }
            _ => {
                // SAFETY: at least 33 bytes.
                unsafe { copy_narrow(dst, src, len) }
            }
        }
    }

    /// # Safety
    /// As for [`super::copy`], with `len > 32`. Not inlined, so that short copies are
    /// free of the registers that this takes.
    #[inline(never)]
    pub(super) unsafe fn copy_narrow(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: whole steps of 32 bytes while more than 32 are left,
        // then the last 32, which end at `len >= 33`.
        unsafe {
            asm!(
                "2:",
                "movups {a}, [{s} + {i}]",
                "movups {b}, [{s} + {i} + 16]",
                "movups [{d} + {i}], {a}",
                "movups [{d} + {i} + 16], {b}",
                "add {i}, 32",
                "cmp {i}, {t}",
                "jb 2b",
                "movups {a}, [{s} + {t}]",
                "movups {b}, [{s} + {t} + 16]",
                "movups [{d} + {t}], {a}",
                "movups [{d} + {t} + 16], {b}",
                s = in(reg) src, d = in(reg) dst, t = in(reg) len - 32,
                i = inout(reg) 0_usize => _,
                a = out(xmm_reg) _, b = out(xmm_reg) _,
                options(nostack)
            );
        }
    }

    /// # Safety
    /// As for [`super::copy`], with `len >= 64`, on a machine with AVX.
    #[inline(always)]
    pub(super) unsafe fn copy_wide(dst: *mut u8, src: *const u8, len: usize) {
        // SAFETY: up to 128 bytes: the first 64 and the last 64. Above: the first
        // 64, then from the next cache line of the target on (stores across
        // lines halve the speed) whole steps of 128 while more than 128 are
        // left, then the last 128. The upper halves of the registers are
        // cleared, as code without AVX wants them.
        unsafe {
            asm!(
                "cmp {n}, 128",
                "ja 3f",
                "vmovdqu ymm0, [{s}]",
                "vmovdqu ymm1, [{s} + 32]",
                "vmovdqu ymm2, [{s} + {n} - 64]",
                "vmovdqu ymm3, [{s} + {n} - 32]",
                "vmovdqu [{d}], ymm0",
                "vmovdqu [{d} + 32], ymm1",
                "vmovdqu [{d} + {n} - 64], ymm2",
                "vmovdqu [{d} + {n} - 32], ymm3",
                "jmp 4f",
                "3:",
                "lea {t}, [{n} - 128]",
                "vmovdqu ymm0, [{s}]",
                "vmovdqu ymm1, [{s} + 32]",
                "vmovdqu [{d}], ymm0",
                "vmovdqu [{d} + 32], ymm1",
                "mov {i}, {d}",
                "and {i}, 63",
                "neg {i}",
                "add {i}, 64",
                "cmp {i}, {t}",
                "jae 5f",
                "2:",
                "vmovdqu ymm0, [{s} + {i}]",
                "vmovdqu ymm1, [{s} + {i} + 32]",
                "vmovdqu ymm2, [{s} + {i} + 64]",
                "vmovdqu ymm3, [{s} + {i} + 96]",
                "vmovdqu [{d} + {i}], ymm0",
                "vmovdqu [{d} + {i} + 32], ymm1",
                "vmovdqu [{d} + {i} + 64], ymm2",
                "vmovdqu [{d} + {i} + 96], ymm3",
                "sub {i}, -128",
                "cmp {i}, {t}",
                "jb 2b",
                "5:",
                "vmovdqu ymm0, [{s} + {t}]",
                "vmovdqu ymm1, [{s} + {t} + 32]",
                "vmovdqu ymm2, [{s} + {t} + 64]",
                "vmovdqu ymm3, [{s} + {t} + 96]",
                "vmovdqu [{d} + {t}], ymm0",
                "vmovdqu [{d} + {t} + 32], ymm1",
                "vmovdqu [{d} + {t} + 64], ymm2",
                "vmovdqu [{d} + {t} + 96], ymm3",
                "4:",
                "vzeroupper",
                s = in(reg) src, d = in(reg) dst, n = in(reg) len,
                i = out(reg) _, t = out(reg) _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                options(nostack)
            );
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
mod imp {
    use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

    /// # Safety
    /// As for [`super::copy`].
    pub(super) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
        let mut at = 0;
        // Words only where both sides are aligned alike; a peer in the same
        // process (miri) sees bytes only, since mixed sizes would be a race.
        let words = cfg!(not(miri)) && dst.addr() % 8 == 0 && src.addr() % 8 == 0;
        while words && len - at >= 8 {
            // SAFETY: in bounds, aligned to 8, valid as atomics for the call.
            unsafe {
                let word = AtomicU64::from_ptr(src.add(at).cast::<u64>().cast_mut())
                    .load(Ordering::Relaxed);
                AtomicU64::from_ptr(dst.add(at).cast::<u64>()).store(word, Ordering::Relaxed);
            }
            at += 8;
        }
        while at < len {
            // SAFETY: in bounds, bytes are always aligned.
            unsafe {
                let byte = AtomicU8::from_ptr(src.add(at).cast_mut()).load(Ordering::Relaxed);
                AtomicU8::from_ptr(dst.add(at)).store(byte, Ordering::Relaxed);
            }
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    /// Machines without wide vectors take the other loop, and those without fast string moves
    /// one of them for all that is long.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn both_loops_copy_exactly() {
        let source: Vec<u8> = (0..9000_usize)
            .map(|i| (i * 31 + 7).to_le_bytes()[0])
            .collect();
        let loops = match std::is_x86_feature_detected!("avx") {
            true => &[false, true][..],
            false => &[false],
        };
        for len in (64..200).chain([1024, 1025, 4095, 4096, 4097, 8000]) {
            for is_wide in loops {
                let mut target = vec![0xEE; 9000];
                let (to, from) = (target.as_mut_ptr(), source.as_ptr());
                match is_wide {
                    // SAFETY: both ranges lie in their vectors, and the machine has AVX.
                    true => unsafe { super::imp::copy_wide(to, from, len) },
                    // SAFETY: both ranges lie in their vectors.
                    false => unsafe { super::imp::copy_narrow(to, from, len) },
                }
                assert_eq!(target[..len], source[..len]);
                assert!(target[len..].iter().all(|b| *b == 0xEE), "len {len}");
            }
        }
    }

    /// Every size up to beyond the last threshold, at every alignment of both
    /// sides, with guard bytes around.
    #[test]
    fn every_size_and_alignment_copies_exactly() {
        let source: Vec<u8> = (0..9000_usize)
            .map(|i| (i * 31 + 7).to_le_bytes()[0])
            .collect();
        for len in (0..300).chain([1000, 1023, 1024, 1025, 1300, 4095, 4096, 4097, 8000]) {
            for (from, to) in [(0, 0), (1, 0), (0, 3), (7, 9), (13, 16)] {
                let mut target = vec![0xEE; 9000];
                // SAFETY: both ranges lie in their vectors.
                unsafe {
                    super::copy(target.as_mut_ptr().add(to), source.as_ptr().add(from), len);
                }
                assert_eq!(target[to..to + len], source[from..from + len], "len {len}");
                assert!(
                    target[..to]
                        .iter()
                        .chain(&target[to + len..])
                        .all(|b| *b == 0xEE),
                    "len {len}"
                );
            }
        }
    }
}
