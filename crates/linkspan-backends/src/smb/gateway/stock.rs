//! Buffers for messages and data on their way, which all connections share.

use linkspan_rdma::Pool;
use linkspan_rdma::verbs::Slice;

use crate::rdma::Host;
use crate::smbdirect::Endpoint;

/// Bytes of a buffer for what is short.
const SMALL: u32 = 4096;

/// Bytes of all of those.
const SMALL_ALL: usize = 8 << 20;

/// Bytes of a buffer for data.
const LARGE: u32 = 256 << 10;

/// What is longer than so many short buffers is in long ones.
const SMALL_MAX: usize = 8;

/// Bytes of memory in which a message of `longest` bytes has room.
pub(super) fn least_memory(longest: usize) -> usize {
    longest.next_multiple_of(LARGE as usize)
}

/// The buffers of both directions. Neither waits for the other's: a server that cannot say what
/// it has to say may not listen any more.
pub(super) struct Stocks {
    pub(super) up: Stock,
    pub(super) down: Stock,
}

impl Stocks {
    /// For each direction `memory` bytes for data, and at most `share` for one connection.
    pub(super) fn new(memory: usize, share: usize) -> Self {
        Self {
            up: Stock::new(memory, share),
            down: Stock::new(memory, share),
        }
    }

    /// Buffers that are lent.
    pub(super) fn lent(&self) -> usize {
        self.up.lent() + self.down.lent()
    }

    /// Whether a direction has none that could come back.
    pub(super) fn is_unused(&self) -> bool {
        self.up.lent() == 0 || self.down.lent() == 0
    }

    /// Whether any came back since this was asked.
    pub(super) fn came_back(&mut self) -> bool {
        // Both are asked.
        self.up.came_back() | self.down.came_back()
    }
}

/// The buffers of one direction.
pub(super) struct Stock {
    small: Pool,
    large: Pool,
    share: usize,
    came_back: bool,
}

impl Stock {
    fn new(memory: usize, share: usize) -> Self {
        Self {
            small: Pool::new(SMALL, SMALL_ALL),
            large: Pool::new(LARGE, memory),
            share,
            came_back: false,
        }
    }

    fn lent(&self) -> usize {
        self.small.used().1 + self.large.used().1
    }

    fn came_back(&mut self) -> bool {
        std::mem::take(&mut self.came_back)
    }

    /// Room for `len` bytes, for somebody who has `held`; all or nothing. Who has nothing may
    /// have more than a share, since otherwise it would never go on.
    pub(super) fn take<C: Host>(
        &mut self,
        endpoint: &mut Endpoint<C>,
        held: &mut usize,
        len: usize,
    ) -> Option<Vec<Slice>> {
        if *held > 0 && *held + len > self.share {
            return None;
        }
        let is_small = len <= SMALL_MAX * SMALL as usize;
        let pool = match is_small {
            true => &mut self.small,
            false => &mut self.large,
        };
        let size = pool.size() as usize;
        let mut buffers = Vec::with_capacity(len.div_ceil(size));
        let mut left = len;
        while left > 0 {
            let Some(buffer) = endpoint.buffer(pool) else {
                for buffer in buffers {
                    pool.put(buffer);
                }
                return None;
            };
            let part = left.min(size);
            buffers.push(buffer.part(0, u32::try_from(part).unwrap_or(buffer.len)));
            left -= part;
        }
        *held += len;
        Some(buffers)
    }

    /// Takes back what was taken at once.
    pub(super) fn give(&mut self, held: &mut usize, buffers: Vec<Slice>) {
        let len: usize = buffers.iter().map(|buffer| buffer.len as usize).sum();
        *held = held.saturating_sub(len);
        let pool = match len <= SMALL_MAX * SMALL as usize {
            true => &mut self.small,
            false => &mut self.large,
        };
        for buffer in buffers {
            pool.put(buffer);
            self.came_back = true;
        }
    }
}

/// `len` bytes of buffers, from `at` on.
pub(super) fn cut(buffers: &[Slice], mut at: usize, mut len: usize) -> Vec<Slice> {
    let mut parts = Vec::new();
    for buffer in buffers {
        let size = buffer.len as usize;
        if at >= size {
            at -= size;
            continue;
        }
        let part = len.min(size - at);
        if part == 0 {
            break;
        }
        // Both are at most the length of a buffer.
        let [from, count] = [at, part].map(|count| u32::try_from(count).unwrap_or(buffer.len));
        parts.push(buffer.part(from, count));
        (at, len) = (0, len - part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use linkspan_rdma::verbs::MemoryId;

    use super::super::Config;
    use super::*;

    /// Ours: who waited for more than there is waited for ever.
    #[test]
    fn the_longest_message_fits_into_the_least_memory() {
        for longest in [1, LARGE as usize, (8 << 20) + 65_536] {
            let least = least_memory(longest);
            let fits = |memory: usize| memory / LARGE as usize * LARGE as usize >= longest;
            assert!(fits(least) && !fits(least - 1), "{longest} {least}");
        }
        assert_eq!(Config::new(Vec::new()).least_memory(), 33 * LARGE as usize);
    }

    #[test]
    fn a_part_of_buffers_is_what_it_says() {
        let buffer = |offset, len| Slice {
            memory: MemoryId(1),
            len,
            offset,
        };
        let buffers = [buffer(0, 10), buffer(100, 10), buffer(200, 5)];
        assert_eq!(cut(&buffers, 0, 25), buffers);
        assert_eq!(cut(&buffers, 4, 3), [buffer(4, 3)]);
        assert_eq!(
            cut(&buffers, 8, 13),
            [buffer(8, 2), buffer(100, 10), buffer(200, 1)]
        );
        assert_eq!(cut(&buffers, 10, 10), [buffer(100, 10)]);
        assert_eq!(cut(&buffers, 3, 0), []);
        assert_eq!(cut(&buffers, 20, 9), [buffer(200, 5)]);
    }
}
