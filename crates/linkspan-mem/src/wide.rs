//! Safe code, compiled for wider vectors than every processor has.

/// Work on private memory whose loops the compiler makes vector code of.
///
/// `run` is compiled twice, for any processor and for those with AVX2, so it has to be
/// `#[inline(always)]`, and so has what it calls in its loops.
pub trait Kernel {
    /// What comes of it.
    type Output;

    /// Does it.
    fn run(self) -> Self::Output;
}

/// Does the work with the widest vectors that this processor has.
///
/// ```
/// use linkspan_mem::{Kernel, wide};
///
/// struct Sum<'a>(&'a [u32]);
///
/// impl Kernel for Sum<'_> {
///     type Output = u32;
///
///     #[inline(always)]
///     fn run(self) -> u32 {
///         self.0.iter().fold(0, |sum, value| sum.wrapping_add(*value))
///     }
/// }
///
/// assert_eq!(wide(Sum(&[1, 2, 3])), 6);
/// ```
#[inline]
pub fn wide<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if avx2::there() {
        // SAFETY: the processor has AVX2, and the system keeps its registers.
        return unsafe { avx2::run(kernel) };
    }
    kernel.run()
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx2 {
    use core::arch::asm;
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    use core::sync::atomic::{AtomicU8, Ordering};

    use super::Kernel;

    /// Whether AVX2 is there: not known yet, no, yes.
    static THERE: AtomicU8 = AtomicU8::new(0);
    const NO: u8 = 1;
    const YES: u8 = 2;

    #[inline]
    pub(super) fn there() -> bool {
        match THERE.load(Ordering::Relaxed) {
            0 => look(),
            found => found == YES,
        }
    }

    #[cold]
    fn look() -> bool {
        let there = is_enabled() && __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & 1 << 5 != 0;
        THERE.store(if there { YES } else { NO }, Ordering::Relaxed);
        there
    }

    /// Whether the system keeps the wide registers of a thread.
    fn is_enabled() -> bool {
        const OSXSAVE_AND_AVX: u32 = 1 << 27 | 1 << 28;
        const SSE_AND_AVX: u32 = 1 << 1 | 1 << 2;
        if __cpuid(1).ecx & OSXSAVE_AND_AVX != OSXSAVE_AND_AVX {
            return false;
        }
        let kept: u32;
        // SAFETY: OSXSAVE says that the instruction is there; register 0 always is.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") kept, out("edx") _, options(nomem, nostack));
        }
        kept & SSE_AND_AVX == SSE_AND_AVX
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Twice<'a>(&'a mut [u32]);

    impl Kernel for Twice<'_> {
        type Output = usize;

        #[inline(always)]
        fn run(self) -> usize {
            for value in self.0.iter_mut() {
                *value = value.wrapping_mul(2);
            }
            self.0.len()
        }
    }

    #[test]
    fn either_way_does_the_same() {
        for len in [0, 1, 7, 8, 9, 100] {
            let mut some: alloc::vec::Vec<u32> = (0..len).map(|value| value * 77).collect();
            let mut same = some.clone();
            assert_eq!(wide(Twice(&mut some)), Twice(&mut same).run());
            assert_eq!(some, same);
        }
    }
}
