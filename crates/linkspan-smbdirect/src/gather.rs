//! What is sent or received, named and not copied: slices of memory that the
//! provider knows.

use alloc::collections::VecDeque;

use linkspan_rdma::verbs::Slice;

/// Slices of one piece of work at most, its header not counted.
pub const GATHER_MAX: usize = 7;

/// The slices of one piece of work, in a fixed place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gather {
    slices: [Slice; GATHER_MAX],
    count: usize,
}

impl Gather {
    /// The slices.
    #[must_use]
    pub fn slices(&self) -> &[Slice] {
        &self.slices[..self.count]
    }

    /// Bytes of all.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.slices().iter().map(|slice| slice.len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn push(&mut self, slice: Slice) {
        self.slices[self.count] = slice;
        self.count += 1;
    }
}

/// Takes the first one off a queue. One that is empty then begins at its first place
/// again, so that of a long queue only as much is ever touched as was in use at once.
pub(crate) fn pop<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let first = queue.pop_front();
    if queue.is_empty() {
        queue.clear();
    }
    first
}

/// Cuts the first `len` bytes, at most all, off a slice.
fn cut(slice: &mut Slice, len: u32) -> Slice {
    let first = slice.part(0, len);
    *slice = slice.part(len, u32::MAX);
    first
}

/// Takes up to `bytes` bytes in up to `count` slices from the front of `queue`, in one
/// pass.
pub(crate) fn take(queue: &mut VecDeque<Slice>, bytes: u32, count: usize) -> Gather {
    let mut gather = Gather::default();
    let mut left = bytes;
    while left > 0 && gather.count < count.min(GATHER_MAX) {
        let Some(front) = queue.front_mut() else {
            break;
        };
        let first = cut(front, left);
        if front.len == 0 {
            pop(queue);
        }
        left -= first.len;
        gather.push(first);
    }
    gather
}

/// Drops `bytes` bytes from the front of `queue`.
pub(crate) fn skip(queue: &mut VecDeque<Slice>, mut bytes: u64) {
    while let Some(front) = queue.front_mut().filter(|_| bytes > 0) {
        let first = cut(front, u32::try_from(bytes).unwrap_or(u32::MAX));
        if front.len == 0 {
            pop(queue);
        }
        bytes -= u64::from(first.len);
    }
}

/// Whether every slice is within the addresses of its memory, and the bytes of all.
pub(crate) fn total(slices: &[Slice]) -> Option<u64> {
    slices.iter().try_fold(0u64, |sum, slice| {
        slice.offset.checked_add(u64::from(slice.len))?;
        sum.checked_add(u64::from(slice.len))
    })
}
