//! What is sent or received, named and not copied: slices of memory that the
//! provider knows.

use alloc::collections::VecDeque;

use linkspan_rdma::verbs::Slice;

/// Slices of one piece of work at most, its header not counted.
pub const GATHER_MAX: usize = 7;

/// The slices of one piece of work, in a fixed place.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gather {
    /// The first one is what goes before them: a header.
    list: [Slice; GATHER_MAX + 1],
    count: usize,
}

impl PartialEq for Gather {
    fn eq(&self, other: &Self) -> bool {
        self.slices() == other.slices()
    }
}

impl Eq for Gather {}

impl Gather {
    /// The slices.
    #[must_use]
    pub fn slices(&self) -> &[Slice] {
        &self.list[1..=self.count]
    }

    /// The same with one before them.
    pub(crate) fn behind(&mut self, first: Slice) -> &[Slice] {
        self.list[0] = first;
        &self.list[..=self.count]
    }

    pub(crate) fn clear(&mut self) {
        self.count = 0;
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
        self.count += 1;
        self.list[self.count] = slice;
    }

    /// Takes up to `bytes` bytes in up to `count` slices from the front of `queue`, in
    /// place of what was there; says how many bytes.
    pub(crate) fn take(&mut self, queue: &mut VecDeque<Slice>, bytes: u32, count: usize) -> u32 {
        let max = count.min(GATHER_MAX);
        let mut left = bytes;
        self.count = 0;
        while left > 0 && self.count < max {
            let Some(front) = queue.front_mut() else {
                break;
            };
            let first = cut(front, left);
            if front.len == 0 {
                pop(queue);
            }
            left -= first.len;
            self.push(first);
        }
        bytes - left
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
