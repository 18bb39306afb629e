//! CRC32C (Castagnoli) of private and of shared bytes, with the processor's instruction
//! where it has one, and with its carry-less products of 64 bytes at a time for much.

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
    {
        let found = hardware::found();
        if found != hardware::NOTHING {
            // SAFETY: by contract, and the processor has it.
            return unsafe { hardware::extend(found, crc, source, len) };
        }
    }
    // SAFETY: by contract.
    unsafe { extend_by_table(crc, source, len) }
}

/// What a byte does to the state.
static BYTE: [u32; 256] = byte_table();

const fn byte_table() -> [u32; 256] {
    let mut table = [0; 256];
    let (mut at, mut byte): (usize, u32) = (0, 0);
    while at < 256 {
        let mut state = byte;
        let mut bit = 0;
        while bit < 8 {
            state = state >> 1 ^ if state & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[at] = state;
        (at, byte) = (at + 1, byte + 1);
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
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    use core::sync::atomic::{AtomicU8, Ordering};

    use super::{BYTE, POLYNOMIAL, fold};

    /// Bytes of each of three parts whose states are computed side by side: the
    /// instruction takes three cycles, and one can begin in each.
    const LONG: usize = 2048;
    const SHORT: usize = 256;

    static AFTER_LONG: [[u32; 256]; 4] = zeroes_table(LONG);
    static AFTER_SHORT: [[u32; 256]; 4] = zeroes_table(SHORT);

    /// What the processor has; `UNKNOWN` until somebody looked.
    static FOUND: AtomicU8 = AtomicU8::new(UNKNOWN);
    const UNKNOWN: u8 = 0;
    pub(super) const NOTHING: u8 = 1;
    /// The instruction of SSE4.2.
    const ONE: u8 = 2;
    /// That, and products of whole registers of 64 bytes.
    const WIDE: u8 = 3;

    #[inline]
    pub(super) fn found() -> u8 {
        match FOUND.load(Ordering::Relaxed) {
            UNKNOWN => look(),
            known => known,
        }
    }

    #[cold]
    fn look() -> u8 {
        let one = __cpuid(1).ecx;
        let found = match one & 1 << 20 {
            0 => NOTHING,
            // The system saves these registers (OSXSAVE).
            _ if one & 1 << 27 != 0 && wide() => WIDE,
            _ => ONE,
        };
        FOUND.store(found, Ordering::Relaxed);
        found
    }

    /// AVX-512F and VPCLMULQDQ, if the system saves the registers: of SSE, of AVX and the
    /// three parts of AVX-512.
    fn wide() -> bool {
        const SAVED: u32 = 0b1110_0110;
        if __cpuid(0).eax < 7 {
            return false;
        }
        let leaf = __cpuid_count(7, 0);
        let saved: u32;
        // SAFETY: OSXSAVE says that the instruction is there.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") saved, out("edx") _,
                options(nomem, nostack, preserves_flags));
        }
        leaf.ebx & 1 << 16 != 0 && leaf.ecx & 1 << 10 != 0 && saved & SAVED == SAVED
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
    /// As for [`super::extend`]; the processor has what is `found`, and that is the
    /// instruction at least.
    pub(super) unsafe fn extend(found: u8, crc: u32, mut source: *const u8, mut len: usize) -> u32 {
        let mut state = !crc;
        if len >= fold::LEAST && found == WIDE {
            let folded = len - len % fold::BLOCK;
            // SAFETY: whole blocks that are there, and the processor has what it takes.
            let sum = unsafe { fold::blocks(state, source, folded) };
            // SAFETY: 16 bytes in private memory.
            state = !unsafe { one_part(0, sum.as_ptr(), sum.len()) };
            // SAFETY: not beyond the end.
            source = unsafe { source.add(folded) };
            len -= folded;
        }
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
        u32::try_from(state & u64::from(u32::MAX)).unwrap_or(0)
    }
}

/// Many bytes become 16 with the same remainder: what stands `n` bits in front of others
/// is multiplied by x^n mod P and added to those (V. Gopal and others, *Fast CRC
/// Computation for Generic Polynomials Using PCLMULQDQ Instruction*, Intel 2009).
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod fold {
    use core::arch::asm;

    use super::POLYNOMIAL;

    /// Bytes that are folded at a time, in four registers.
    pub(super) const BLOCK: usize = 256;

    /// Bytes from which on it pays.
    pub(super) const LEAST: usize = 2 * BLOCK;

    /// The factors for the lower and the upper half of 16 bytes that stand `bits` in front.
    const fn factors(bits: u32) -> [u64; 2] {
        [power(bits + 32), power(bits - 32)]
    }

    /// x^n mod P, bits reversed, as the product of two such numbers needs it.
    const fn power(n: u32) -> u64 {
        let (mut state, mut left) = (1_u32 << 31, n);
        while left > 0 {
            state = state >> 1 ^ if state & 1 == 1 { POLYNOMIAL } else { 0 };
            left -= 1;
        }
        (state as u64) << 1
    }

    /// One block in front of the next, one register in front of the next, and 16 bytes in
    /// front of the next.
    static FACTORS: [[u64; 2]; 3] = [factors(2048), factors(512), factors(128)];

    /// 16 bytes that leave the state that `state` and these bytes leave, if 0 stands
    /// before them.
    ///
    /// # Safety
    /// `source` is valid for reads of `len` bytes, a multiple of [`BLOCK`] above 0. The
    /// processor has AVX-512F, VPCLMULQDQ and their registers.
    #[inline(never)]
    pub(super) unsafe fn blocks(state: u32, source: *const u8, len: usize) -> [u8; 16] {
        let mut sum = [0; 16];
        // SAFETY: reads from `source` to its end, a block at a time, and the factors;
        // writes 16 bytes of ours.
        unsafe {
            asm!(
                "vmovd xmm4, {state:e}",
                "vpxorq zmm0, zmm4, [{s}]",
                "vmovdqu64 zmm1, [{s} + 64]",
                "vmovdqu64 zmm2, [{s} + 128]",
                "vmovdqu64 zmm3, [{s} + 192]",
                "vbroadcasti32x4 zmm12, [{f}]",
                "add {s}, 256",
                "cmp {s}, {e}",
                "jae 3f",
                "2:",
                // No fault wherever that is.
                "prefetcht0 [{s} + 2048]",
                "prefetcht0 [{s} + 2112]",
                "prefetcht0 [{s} + 2176]",
                "prefetcht0 [{s} + 2240]",
                "vpclmulqdq zmm4, zmm0, zmm12, 0x00",
                "vpclmulqdq zmm5, zmm1, zmm12, 0x00",
                "vpclmulqdq zmm6, zmm2, zmm12, 0x00",
                "vpclmulqdq zmm7, zmm3, zmm12, 0x00",
                "vpclmulqdq zmm0, zmm0, zmm12, 0x11",
                "vpclmulqdq zmm1, zmm1, zmm12, 0x11",
                "vpclmulqdq zmm2, zmm2, zmm12, 0x11",
                "vpclmulqdq zmm3, zmm3, zmm12, 0x11",
                // The sum of three.
                "vpternlogq zmm0, zmm4, [{s}], 0x96",
                "vpternlogq zmm1, zmm5, [{s} + 64], 0x96",
                "vpternlogq zmm2, zmm6, [{s} + 128], 0x96",
                "vpternlogq zmm3, zmm7, [{s} + 192], 0x96",
                "add {s}, 256",
                "cmp {s}, {e}",
                "jb 2b",
                "3:",
                // Four registers become one.
                "vbroadcasti32x4 zmm12, [{f} + 16]",
                "vpclmulqdq zmm4, zmm0, zmm12, 0x00",
                "vpclmulqdq zmm0, zmm0, zmm12, 0x11",
                "vpternlogq zmm1, zmm4, zmm0, 0x96",
                "vpclmulqdq zmm4, zmm1, zmm12, 0x00",
                "vpclmulqdq zmm1, zmm1, zmm12, 0x11",
                "vpternlogq zmm2, zmm4, zmm1, 0x96",
                "vpclmulqdq zmm4, zmm2, zmm12, 0x00",
                "vpclmulqdq zmm2, zmm2, zmm12, 0x11",
                "vpternlogq zmm3, zmm4, zmm2, 0x96",
                // Its four parts become one.
                "vmovdqu xmm5, [{f} + 32]",
                "vextracti32x4 xmm0, zmm3, 1",
                "vextracti32x4 xmm1, zmm3, 2",
                "vextracti32x4 xmm2, zmm3, 3",
                "vpclmulqdq xmm4, xmm3, xmm5, 0x00",
                "vpclmulqdq xmm3, xmm3, xmm5, 0x11",
                "vpxor xmm0, xmm0, xmm4",
                "vpxor xmm0, xmm0, xmm3",
                "vpclmulqdq xmm4, xmm0, xmm5, 0x00",
                "vpclmulqdq xmm0, xmm0, xmm5, 0x11",
                "vpxor xmm1, xmm1, xmm4",
                "vpxor xmm1, xmm1, xmm0",
                "vpclmulqdq xmm4, xmm1, xmm5, 0x00",
                "vpclmulqdq xmm1, xmm1, xmm5, 0x11",
                "vpxor xmm2, xmm2, xmm4",
                "vpxor xmm2, xmm2, xmm1",
                "vmovdqu [{t}], xmm2",
                "vzeroupper",
                state = in(reg) state,
                s = inout(reg) source => _,
                e = in(reg) source.add(len),
                f = in(reg) FACTORS.as_ptr(),
                t = in(reg) sum.as_mut_ptr(),
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack)
            );
        }
        sum
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

    /// All ways that this processor has, in parts or not, and the table agree, from any
    /// place on.
    #[test]
    fn every_size_agrees_with_the_table() {
        let bytes = pattern(20_000);
        let sizes = (0..70).chain([
            255, 256, 511, 512, 767, 768, 769, 1023, 1024, 1600, 6143, 6144, 6145, 13_000, 19_990,
        ]);
        for len in sizes {
            for start in [0, 1, 3, 8] {
                let part = &bytes[start..start + len];
                // SAFETY: a slice.
                let expected = unsafe { extend_by_table(9, part.as_ptr(), len) };
                assert_eq!(crc32c(9, part), expected, "{len} bytes from {start}");
                #[cfg(all(target_arch = "x86_64", not(miri)))]
                for way in hardware::NOTHING + 1..=hardware::found() {
                    // SAFETY: a slice, and the processor has this as well.
                    let sum = unsafe { hardware::extend(way, 9, part.as_ptr(), len) };
                    assert_eq!(sum, expected, "{len} bytes from {start}, way {way}");
                }
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
