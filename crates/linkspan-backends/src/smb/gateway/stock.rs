//! Buffers for messages and data on their way, which all connections share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use linkspan_rdma::Pool;
use linkspan_rdma::verbs::Slice;

use crate::rdma::{Host, network};
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
    /// What each address has of both, while it has connections.
    addresses: BTreeMap<IpAddr, [Held; 2]>,
}

/// Bytes that a connection has of a stock, and all connections of its address.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    own: usize,
    all: Arc<AtomicUsize>,
}

impl Held {
    /// Bytes of this connection.
    pub(super) fn own(&self) -> usize {
        self.own
    }

    fn all(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    fn add(&mut self, bytes: usize) {
        self.own += bytes;
        self.all.store(self.all() + bytes, Ordering::Relaxed);
    }

    fn take(&mut self, bytes: usize) {
        self.own = self.own.saturating_sub(bytes);
        let all = self.all().saturating_sub(bytes);
        self.all.store(all, Ordering::Relaxed);
    }
}

impl Stocks {
    /// For each direction `memory` bytes for data, and at most `share` for one address.
    pub(super) fn new(memory: usize, share: usize) -> Self {
        Self {
            up: Stock::new(memory, share),
            down: Stock::new(memory, share),
            addresses: BTreeMap::new(),
        }
    }

    /// What an address has, upwards and downwards.
    pub(super) fn of(&mut self, address: IpAddr) -> [Held; 2] {
        // Those that have no connection any more.
        self.addresses
            .retain(|_, [held, _]| Arc::strong_count(&held.all) > 1);
        self.addresses.entry(network(address)).or_default().clone()
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

    /// Room for `len` bytes, for a connection of an address that has `held`; all or nothing. An
    /// address that has nothing may have more than a share, since otherwise it would never go on.
    pub(super) fn take<C: Host>(
        &mut self,
        endpoint: &mut Endpoint<C>,
        held: &mut Held,
        len: usize,
    ) -> Option<Vec<Slice>> {
        let has = held.all();
        if has > 0 && has + len > self.share {
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
        held.add(len);
        Some(buffers)
    }

    /// Takes back what was taken at once.
    pub(super) fn give(&mut self, held: &mut Held, buffers: Vec<Slice>) {
        let len: usize = buffers.iter().map(|buffer| buffer.len as usize).sum();
        held.take(len);
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
    use linkspan_smbdirect::{Options, Role};

    use super::super::Config;
    use super::*;
    use crate::smbdirect;

    /// Ours: whoever made four connections had all of it, and others waited for ever.
    #[test]
    fn an_address_has_its_share_by_however_many_connections() {
        const LEN: usize = LARGE as usize;
        let options = Options::listener();
        let config = smbdirect::Config::new(Role::Listener, options);
        let mut endpoint: Endpoint = Endpoint::new(config).unwrap();
        let mut stocks = Stocks::new(8 * LEN, 2 * LEN);
        let address = |text: &str| text.parse().unwrap();
        let of = |stocks: &mut Stocks, text| stocks.of(address(text))[0].clone();
        let [mut one, mut two] = ["10.0.0.1"; 2].map(|it| of(&mut stocks, it));
        let mut other = of(&mut stocks, "10.0.0.2");
        let first = stocks.up.take(&mut endpoint, &mut one, LEN).unwrap();
        let second = stocks.up.take(&mut endpoint, &mut two, LEN).unwrap();
        for held in [&mut one, &mut two] {
            assert!(stocks.up.take(&mut endpoint, held, 1).is_none());
        }
        // Another one has its own, and what is longer than that while it has nothing.
        let long = stocks.up.take(&mut endpoint, &mut other, 3 * LEN).unwrap();
        assert!(stocks.up.take(&mut endpoint, &mut other, LEN).is_none());
        stocks.up.give(&mut other, long);
        // What one connection gives back another one of its address may have.
        stocks.up.give(&mut one, first);
        let third = stocks.up.take(&mut endpoint, &mut two, LEN).unwrap();
        stocks.up.give(&mut two, second);
        stocks.up.give(&mut two, third);
        assert_eq!((one.all(), other.all(), stocks.lent()), (0, 0, 0));
        // A network of IPv6 is one, and who is gone is forgotten.
        let [a, b] = ["2001:db8::1", "2001:db8::2:1"].map(|it| of(&mut stocks, it));
        assert!(Arc::ptr_eq(&a.all, &b.all) && stocks.addresses.len() == 3);
        drop([one, two, other]);
        let last = of(&mut stocks, "2001:db8::3");
        assert!(Arc::ptr_eq(&a.all, &last.all) && stocks.addresses.len() == 1);
    }

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
