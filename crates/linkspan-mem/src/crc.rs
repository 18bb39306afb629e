//! CRC32C (Castagnoli) of private and of shared bytes, with the processor's instruction
//! where it has one.

use core::sync::atomic::{AtomicU8, Ordering};

/// The polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// The CRC32C of what `crc` stands for, followed by `bytes`; 0 stands for nothing.
///
/// ```
/// use linkspan_mem::crc32c;
/// assert_eq!(crc32c(0, b"123456789"), 0xE306_9283);
/// assert_eq!(crc32c(crc32c(0, b"1234"), b"56789"), 0xE306_9283);
/// ```
#[must_use]
#[inline]
pub fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: a slice is valid for reads of all its bytes.
    unsafe { extend(crc, bytes.as_ptr(), bytes.len()) }
}

/// # Safety
/// `source` is valid for reads of `len` bytes. Others may write to them meanwhile.
#[inline]
pub(crate) unsafe fn extend(crc: u32, source: *const u8, len: usize) -> u32 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if hardware::there() {
        // SAFETY: by contract, and the processor has the instruction.
        return unsafe { hardware::extend(crc, source, len) };
    }
    // SAFETY: by contract.
    unsafe { extend_by_table(crc, source, len) }
}

/// What a byte does to the state.
static BYTE: [u32; 256] = byte_table();

const fn byte_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut state = at as u32;
        let mut bit = 0;
        while bit < 8 {
            state = state >> 1 ^ if state & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[at] = state;
        at += 1;
    }
    table
}

/// # Safety
/// As for [`extend`].
unsafe fn extend_by_table(crc: u32, source: *const u8, len: usize) -> u32 {
    let mut state = !crc;
    for at in 0..len {
        // SAFETY: in bounds; a byte is always aligned, and may change meanwhile.
        let byte = unsafe { AtomicU8::from_ptr(source.add(at).cast_mut()).load(Ordering::Relaxed) };
        state = state >> 8 ^ BYTE[usize::from(state.to_le_bytes()[0] ^ byte)];
    }
    !state
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod hardware {
    use core::arch::asm;
    use core::arch::x86_64::__cpuid;
    use core::sync::atomic::{AtomicU8, Ordering};

    use super::{BYTE, POLYNOMIAL};

    /// Bytes of each of three parts whose states are computed side by side: the
    /// instruction takes three cycles, and one can begin in each.
    const LONG: usize = 2048;
    const SHORT: usize = 256;

    static AFTER_LONG: [[u32; 256]; 4] = zeroes_table(LONG);
    static AFTER_SHORT: [[u32; 256]; 4] = zeroes_table(SHORT);

    /// Whether the processor has the instruction; 0 until somebody looked.
    static THERE: AtomicU8 = AtomicU8::new(UNKNOWN);
    const UNKNOWN: u8 = 0;
    const NO: u8 = 1;
    const YES: u8 = 2;

    #[inline]
    pub(super) fn there() -> bool {
        match THERE.load(Ordering::Relaxed) {
            UNKNOWN => look(),
            known => known == YES,
        }
    }

    #[cold]
    fn look() -> bool {
        // SSE4.2.
        let there = __cpuid(1).ecx & 1 << 20 != 0;
        THERE.store(if there { YES } else { NO }, Ordering::Relaxed);
        there
    }

    /// What each byte of a state becomes after so many bytes of zero.
    const fn zeroes_table(zeroes: usize) -> [[u32; 256]; 4] {
        // The state is linear over its bits: follow each of them.
        let mut bits = [0; 32];
        let mut bit = 0;
        while bit < 32 {
            let mut state: u32 = 1 << bit;
            let mut left = zeroes * 8;
            while left > 0 {
                state = state >> 1 ^ if state & 1 == 1 { POLYNOMIAL } else { 0 };
                left -= 1;
            }
            bits[bit] = state;
            bit += 1;
        }
        let mut table = [[0; 256]; 4];
        let mut at = 0;
        while at < 4 * 256 {
            let (byte, value) = (at / 256, at % 256);
            let mut bit = 0;
            while bit < 8 {
                if value >> bit & 1 == 1 {
                    table[byte][value] ^= bits[byte * 8 + bit];
                }
                bit += 1;
            }
            at += 1;
        }
        table
    }

    #[inline]
    fn after(table: &[[u32; 256]; 4], state: u32) -> u32 {
        let bytes = state.to_le_bytes();
        let part = |at: usize| table[at][usize::from(bytes[at])];
        part(0) ^ part(1) ^ part(2) ^ part(3)
    }

    /// # Safety
    /// As for [`super::extend`]; the processor has the instruction.
    pub(super) unsafe fn extend(crc: u32, mut source: *const u8, mut len: usize) -> u32 {
        let mut state = !crc;
        for (size, table) in [(LONG, &AFTER_LONG), (SHORT, &AFTER_SHORT)] {
            while len >= 3 * size {
                // SAFETY: three parts of `size` bytes, which is a multiple of 8, are there.
                let (a, b, c) = unsafe { three_parts(state, source, size) };
                state = after(table, after(table, a) ^ b) ^ c;
                // SAFETY: not beyond the end.
                source = unsafe { source.add(3 * size) };
                len -= 3 * size;
            }
        }
        // SAFETY: the rest of what is there.
        unsafe { one_part(state, source, len) }
    }

    /// # Safety
    /// `source` is valid for reads of `3 * size` bytes, and `size` a multiple of 8 above 0.
    #[inline]
    unsafe fn three_parts(state: u32, source: *const u8, size: usize) -> (u32, u32, u32) {
        let (mut a, mut b, mut c) = (u64::from(state), 0_u64, 0_u64);
        // SAFETY: steps of 8 bytes from the begin of each part to its end.
        unsafe {
            asm!(
                "2:",
                "crc32 {a}, qword ptr [{s}]",
                "crc32 {b}, qword ptr [{s} + {n}]",
                "crc32 {c}, qword ptr [{s} + 2*{n}]",
                "add {s}, 8",
                "cmp {s}, {e}",
                "jb 2b",
                s = inout(reg) source => _, n = in(reg) size, e = in(reg) source.add(size),
                a = inout(reg) a, b = inout(reg) b, c = inout(reg) c,
                options(nostack, readonly)
            );
        }
        (low(a), low(b), low(c))
    }

    /// # Safety
    /// `source` is valid for reads of `len` bytes.
    #[inline]
    unsafe fn one_part(state: u32, source: *const u8, len: usize) -> u32 {
        let mut state = u64::from(state);
        let mut at = 0;
        while len - at >= 8 {
            // SAFETY: 8 bytes are there.
            unsafe {
                asm!("crc32 {c}, qword ptr [{s}]",
                    s = in(reg) source.add(at), c = inout(reg) state,
                    options(nostack, readonly, preserves_flags));
            }
            at += 8;
        }
        while at < len {
            let byte: u64;
            // SAFETY: one byte is there.
            unsafe {
                asm!("movzx {b:e}, byte ptr [{s}]",
                    s = in(reg) source.add(at), b = out(reg) byte,
                    options(nostack, readonly, preserves_flags));
            }
            let index = (state ^ byte).to_le_bytes()[0];
            state = u64::from(low(state) >> 8 ^ BYTE[usize::from(index)]);
            at += 1;
        }
        !low(state)
    }

    /// The state: the instruction leaves the upper half zero.
    #[inline]
    fn low(state: u64) -> u32 {
        (state & u64::from(u32::MAX)) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::Region;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len)
            .map(|at| (at * 131 + at / 256).to_le_bytes()[0])
            .collect()
    }

    /// RFC 3720, B.4.
    #[test]
    fn vectors_of_rfc_3720() {
        let up: Vec<u8> = (0..32).collect();
        let down: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(0, &[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(0, &[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(0, &up), 0x46DD_794E);
        assert_eq!(crc32c(0, &down), 0x113F_DB5C);
        assert_eq!(crc32c(0, b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(7, b""), 7);
    }

    /// The instruction, in parts or not, and the table agree, from any place on.
    #[test]
    fn every_size_agrees_with_the_table() {
        let bytes = pattern(20_000);
        let sizes = (0..70).chain([
            255, 256, 767, 768, 769, 1600, 6143, 6144, 6145, 13_000, 19_990,
        ]);
        for len in sizes {
            for start in [0, 1, 3, 8] {
                let part = &bytes[start..start + len];
                // SAFETY: a slice.
                let expected = unsafe { extend_by_table(9, part.as_ptr(), len) };
                assert_eq!(crc32c(9, part), expected, "{len} bytes from {start}");
                let split = len / 3;
                let whole = crc32c(crc32c(9, &part[..split]), &part[split..]);
                assert_eq!(whole, expected, "{len} bytes from {start} in two parts");
            }
        }
    }

    #[test]
    fn shared_bytes_have_the_same() {
        let bytes = pattern(9000);
        let region = Region::heap(9000).unwrap();
        let slice = region.slice(0, 9000).unwrap();
        slice.write(&bytes);
        assert_eq!(slice.crc32c(0), crc32c(0, &bytes));
        assert_eq!(slice.part(5, 100).crc32c(3), crc32c(3, &bytes[5..105]));
        assert_eq!(slice.part(5, 0).crc32c(3), 3);
    }
}
