//! The dirty log of live migration: one bit for each page of guest memory.

use core::sync::atomic::{AtomicU8, Ordering};

use crate::addr::Gpa;
use crate::region::Region;

/// A bit array in memory that whoever migrates the guest reads and clears while
/// we set bits in it (vhost-user: Migration; `VHOST_LOG_PAGE`).
///
/// Each bit is set by an atomic operation on its byte, so that no bit of a
/// neighbour is lost, and after the write that it stands for.
#[derive(Debug)]
pub struct DirtyLog {
    bits: Region,
}

impl DirtyLog {
    /// Bytes of guest memory for which one bit stands.
    pub const PAGE: u64 = 4096;

    /// A log that fills this region.
    pub fn new(bits: Region) -> Self {
        Self { bits }
    }

    /// Bytes of a log that reaches up to this address.
    pub const fn len_for(last: Gpa) -> u64 {
        last.0 / Self::PAGE / 8 + 1
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.bits.len() as u64
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// Whether the peer took part of the memory away.
    pub fn poisoned(&self) -> bool {
        self.bits.poisoned()
    }

    /// Takes the marks out, for whoever migrates the guest: calls `page` with the number of
    /// each page that was marked. One that is marked meanwhile is found now or next time.
    pub fn take(&self, mut page: impl FnMut(u64)) {
        for byte in 0..self.len() {
            let Ok(place) = self.bits.slice(byte, 1) else {
                return;
            };
            // SAFETY: as in `mark`.
            let bits = unsafe { AtomicU8::from_ptr(place.as_ptr()) };
            if bits.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // `Acquire`, since the page is copied next.
            let taken = bits.swap(0, Ordering::Acquire);
            (0..8)
                .filter(|bit| taken >> bit & 1 == 1)
                .for_each(|bit| page(byte * 8 + bit));
        }
    }

    /// Marks each page that has one of the `len` bytes at `address`, which were
    /// written before. What lies behind the end of the log has no bit.
    pub fn mark(&self, address: Gpa, len: u64) {
        let Some(more) = len.checked_sub(1) else {
            return;
        };
        let first = address.0 / Self::PAGE;
        let last = address.0.saturating_add(more) / Self::PAGE;
        for byte in first / 8..=last / 8 {
            let Ok(place) = self.bits.slice(byte, 1) else {
                return;
            };
            let from = first.saturating_sub(byte * 8).min(7);
            let to = (last - byte * 8).min(7);
            let mask = (u8::MAX << from) & (u8::MAX >> (7 - to));
            // SAFETY: one byte inside the region, alive while it is borrowed;
            // every access to it, here and by the peer, is atomic.
            let bits = unsafe { AtomicU8::from_ptr(place.as_ptr()) };
            // Unconditional: a look whether the bit is set already could come
            // before the data is visible. `Release`, since who takes the bit
            // copies the page next.
            bits.fetch_or(mask, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use proptest::prelude::*;

    fn log(bytes: usize) -> (DirtyLog, Region) {
        let region = Region::heap(bytes).unwrap();
        (DirtyLog::new(region.clone()), region)
    }

    fn bits(region: &Region) -> Vec<bool> {
        let mut bytes = vec![0; region.len()];
        region
            .slice(0, region.len() as u64)
            .unwrap()
            .read(&mut bytes);
        let bit = |page: usize| bytes[page / 8] >> (page % 8) & 1 == 1;
        (0..bytes.len() * 8).map(bit).collect()
    }

    #[test]
    fn a_log_for_an_address_has_its_bit_and_not_the_next_byte() {
        assert_eq!(DirtyLog::len_for(Gpa(0)), 1);
        assert_eq!(DirtyLog::len_for(Gpa(8 * 4096 - 1)), 1);
        assert_eq!(DirtyLog::len_for(Gpa(8 * 4096)), 2);
        assert_eq!(DirtyLog::len_for(Gpa(u64::MAX)), 1 << 49);
    }

    #[test]
    fn nothing_is_written_outside_the_log() {
        let (log, region) = log(2);
        for (at, len) in [
            (u64::MAX, 1),
            (u64::MAX - 4095, u64::MAX),
            (16 * 4096, 1),
            (1 << 40, 1 << 40),
        ] {
            log.mark(Gpa(at), len);
        }
        assert!(bits(&region).iter().all(|bit| !bit));
        log.mark(Gpa(15 * 4096), u64::MAX);
        assert_eq!(bits(&region).iter().filter(|bit| **bit).count(), 1);
        log.mark(Gpa(0), u64::MAX);
        assert!(bits(&region).iter().all(|bit| *bit));
    }

    proptest! {
        #[test]
        fn marks_agree_with_a_naive_log(
            ranges in proptest::collection::vec((0_u64..40 * 4096, 0_u64..20 * 4096), 0..6)
        ) {
            let (log, region) = log(4);
            let mut naive = vec![false; 32];
            for (at, len) in ranges {
                log.mark(Gpa(at), len);
                for (page, bit) in (0_u64..).zip(&mut naive) {
                    let page_end = (page + 1) * 4096;
                    *bit |= len > 0 && at < page_end && at + len > page_end - 4096;
                }
            }
            prop_assert_eq!(bits(&region), &naive[..]);
            let mut taken = Vec::new();
            log.take(|page| taken.push(page));
            let marked = (0..).zip(naive).filter_map(|(page, bit)| bit.then_some(page));
            prop_assert_eq!(taken, marked.collect::<Vec<u64>>());
            prop_assert!(bits(&region).iter().all(|bit| !bit));
        }
    }
}
