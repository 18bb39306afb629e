//! Which bytes of a file have come.

use alloc::vec::Vec;

use thiserror::Error;

/// Runs of bytes that are kept apart. Hosts write from the beginning to the end, so
/// there is one; whoever needs more than these is up to something.
pub const PARTS_MAX: usize = 64;

/// Runs of bytes, apart from each other and in order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Parts(Vec<(u64, u64)>);

/// More holes than are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a file with more than {PARTS_MAX} runs of bytes apart from each other")]
pub struct TooManyParts;

impl Parts {
    /// The bytes from `start` to before `end` have come.
    ///
    /// # Errors
    /// They would be a run too many; then nothing has changed.
    pub fn add(&mut self, start: u64, end: u64) -> Result<(), TooManyParts> {
        if start >= end {
            return Ok(());
        }
        self.room_for(start, end)?;
        let (first, behind) = self.touched(start, end);
        let touched = self.0.drain(first..behind);
        let all = touched.fold((start, end), |all, one| {
            (all.0.min(one.0), all.1.max(one.1))
        });
        self.0.insert(first, all);
        Ok(())
    }

    /// Whether those bytes can be added.
    ///
    /// # Errors
    /// They would be a run too many.
    pub fn room_for(&self, start: u64, end: u64) -> Result<(), TooManyParts> {
        let (first, behind) = self.touched(start, end);
        if first == behind && self.0.len() == PARTS_MAX {
            return Err(TooManyParts);
        }
        Ok(())
    }

    /// The runs that become one with these bytes.
    fn touched(&self, start: u64, end: u64) -> (usize, usize) {
        let first = self.0.partition_point(|(_, other)| *other < start);
        let behind = self.0.partition_point(|(other, _)| *other <= end);
        (first, behind)
    }

    /// Whether all bytes of a file of this size have come.
    #[must_use]
    pub fn is_whole(&self, size: u64) -> bool {
        size == 0 || self.0 == [(0, size)]
    }

    /// How many bytes have come.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    pub(crate) fn runs(&self) -> &[(u64, u64)] {
        &self.0
    }
}
