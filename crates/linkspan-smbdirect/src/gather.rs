//! What is sent or received, named and not copied: slices of memory that the
//! provider knows.

/// A piece of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Which memory: a number of the driver's.
    pub memory: u64,
    /// Where in it, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl Slice {
    /// The first `len` bytes; the rest stays.
    pub(crate) fn split(&mut self, len: u32) -> Self {
        let first = Self { len, ..*self };
        self.offset = self.offset.saturating_add(u64::from(len));
        self.len -= len;
        first
    }
}

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

/// Takes up to `bytes` bytes and `count` slices from the front of `queue`, one pass.
pub(crate) fn take(
    queue: &mut alloc::collections::VecDeque<Slice>,
    bytes: u32,
    count: usize,
) -> Gather {
    let mut gather = Gather::default();
    let mut left = bytes;
    while left > 0 && gather.count < count.min(GATHER_MAX) {
        let Some(front) = queue.front_mut() else {
            break;
        };
        if front.len <= left {
            left -= front.len;
            gather.push(*front);
            queue.pop_front();
        } else {
            gather.push(front.split(left));
            left = 0;
        }
    }
    gather
}

/// Drops `bytes` bytes from the front of `queue`.
pub(crate) fn take_all(queue: &mut alloc::collections::VecDeque<Slice>, mut bytes: u32) {
    while let Some(front) = queue.front_mut().filter(|_| bytes > 0) {
        let dropped = front.split(front.len.min(bytes)).len;
        bytes -= dropped;
        if front.len == 0 {
            queue.pop_front();
        }
    }
}
