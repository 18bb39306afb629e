//! Stores that pass by the caches, and hints ahead of loads, for pictures that are larger than
//! any cache.

/// Memory to which is stored past the caches: what nobody reads soon is then neither read
/// before it is overwritten nor takes the place of what is used.
#[derive(Debug)]
pub struct PastCaches<'a> {
    target: &'a mut [u8],
}

/// Bytes that are stored at once.
const LINE: usize = 64;

/// Stores what `with` copies past the caches. It is all there when this returns.
///
/// ```
/// let mut target = vec![0; 256];
/// linkspan_mem::past_caches(&mut target, |target| target.copy(100, b"a line"));
/// assert_eq!(&target[100..106], b"a line");
/// ```
pub fn past_caches<T>(target: &mut [u8], with: impl FnOnce(&mut PastCaches<'_>) -> T) -> T {
    /// Such stores are in no order with others until this.
    struct Fence;
    impl Drop for Fence {
        fn drop(&mut self) {
            // SAFETY: SSE is part of this architecture.
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            unsafe {
                core::arch::x86_64::_mm_sfence();
            }
        }
    }
    // Nobody else can look at the target before it: it is borrowed until then.
    let _fence = Fence;
    with(&mut PastCaches { target })
}

impl PastCaches<'_> {
    /// Copies bytes to this place.
    ///
    /// # Panics
    /// If they do not fit there.
    #[inline(always)]
    pub fn copy(&mut self, at: usize, bytes: &[u8]) {
        let target = &mut self.target[at..][..bytes.len()];
        // Parts of a line are stored as ever, since others will come for its rest.
        let head = target.as_ptr().align_offset(LINE).min(target.len());
        let (first, target) = target.split_at_mut(head);
        let (first_bytes, bytes) = bytes.split_at(head);
        first.copy_from_slice(first_bytes);
        let (lines, last) = target.as_chunks_mut::<LINE>();
        let (pieces, last_bytes) = bytes.as_chunks::<LINE>();
        for (line, piece) in lines.iter_mut().zip(pieces) {
            store(line, piece);
        }
        last.copy_from_slice(last_bytes);
    }
}

/// Stores a line, which is at a multiple of its size.
#[inline(always)]
fn store(line: &mut [u8; LINE], bytes: &[u8; LINE]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        debug_assert!(line.as_ptr().addr().is_multiple_of(LINE));
        let parts = line.as_chunks_mut::<16>().0.iter_mut();
        for (part, bytes) in parts.zip(bytes.as_chunks::<16>().0) {
            // SAFETY: both are 16 bytes of their own, and the first is at a multiple of 16, as
            // the caller split its memory there. SSE2 is part of this architecture.
            unsafe {
                let value = _mm_loadu_si128(bytes.as_ptr().cast::<__m128i>());
                _mm_stream_si128(part.as_mut_ptr().cast::<__m128i>(), value);
            }
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    line.copy_from_slice(bytes);
}

/// Hints that this memory will be looked at soon.
#[inline(always)]
pub fn ahead<T>(memory: &[T]) {
    hint::<T0, T>(memory);
}

/// Hints that it will be looked at, after as much as the first cache holds: it comes to the
/// second one, to which more can be on its way at once.
#[inline(always)]
pub fn ahead_later<T>(memory: &[T]) {
    hint::<T1, T>(memory);
}

/// `_MM_HINT_T0`: to all caches.
const T0: i32 = 3;
/// `_MM_HINT_T1`: to the second one.
const T1: i32 = 2;

#[inline(always)]
fn hint<const HINT: i32, T>(memory: &[T]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use core::arch::x86_64::_mm_prefetch;
        let start = memory.as_ptr().cast::<i8>();
        for at in (0..size_of_val(memory)).step_by(LINE) {
            // SAFETY: the address is within the memory, and a hint changes nothing anyway.
            unsafe { _mm_prefetch::<HINT>(start.add(at)) };
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = memory;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_any_length_come_to_any_place() {
        let bytes: alloc::vec::Vec<u8> = (0..=255).collect();
        for at in 0..70 {
            for len in [0, 1, 15, 16, 63, 64, 65, 127, 128, 200, 256] {
                let mut target = alloc::vec![7; 400];
                past_caches(&mut target, |target| target.copy(at, &bytes[..len]));
                assert_eq!(target[at..at + len], bytes[..len], "{at} {len}");
                assert!(
                    target[..at]
                        .iter()
                        .chain(&target[at + len..])
                        .all(|&b| b == 7)
                );
            }
        }
        ahead(&bytes[1..]);
        ahead_later(&bytes[1..]);
        ahead::<u64>(&[]);
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn what_does_not_fit_is_not_stored() {
        past_caches(&mut [0; 64], |target| target.copy(60, &[1; 8]));
    }
}
