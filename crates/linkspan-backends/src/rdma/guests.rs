//! Who has come, by address: so that no address takes all room, and nobody keeps others
//! out by beginning and not going on.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use linkspan_sys::poll::Interest;
use linkspan_sys::tcp::TcpStream;

use super::link::Link;
use super::{Config, ConnectionId, LISTENER, Provider, REST, entropy};

/// Of the connections that may be half open, one address has at most this part.
const HALF_OPEN_SHARE: usize = 4;

/// A connection that came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guest {
    pub(super) address: IpAddr,
    pub(super) half_open: bool,
}

impl Guest {
    pub(super) fn new(address: IpAddr) -> Self {
        Self {
            address: network(address),
            half_open: true,
        }
    }
}

/// Whom an address stands for: of IPv6, anybody has a network of 64 bits of it.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// What there is of an address.
#[derive(Debug, Default)]
struct Address {
    connections: usize,
    half_open: usize,
    /// Buffers that messages of it are in.
    lent: usize,
    /// Those that wait for buffers of its share, the first one first.
    waiting: VecDeque<ConnectionId>,
}

#[derive(Debug, Default)]
pub(super) struct Guests {
    addresses: BTreeMap<IpAddr, Address>,
    pub(super) half_open: usize,
    /// Connections that wait for buffers of their addresses.
    waiting: usize,
    /// The listener is left alone, since too many are half open.
    pub(super) full: bool,
    pub(super) turned_away: u64,
}

impl Guests {
    /// Connections of an address, and those that are half open.
    pub(super) fn of(&self, address: IpAddr) -> (usize, usize) {
        let address = self.addresses.get(&address);
        address.map_or((0, 0), |it| (it.connections, it.half_open))
    }

    /// Buffers that messages of an address are in.
    pub(super) fn lent(&self, address: IpAddr) -> usize {
        self.addresses.get(&address).map_or(0, |it| it.lent)
    }

    /// A connection of it has `now` buffers, and had others before.
    pub(super) fn lend(&mut self, address: IpAddr, before: usize, now: usize) {
        if let Some(address) = self.addresses.get_mut(&address) {
            address.lent = address.lent + now - before;
        }
    }

    /// A connection waits for buffers of its address.
    pub(super) fn wait(&mut self, address: IpAddr, id: ConnectionId) {
        if let Some(address) = self.addresses.get_mut(&address) {
            address.waiting.push_back(id);
            self.waiting += 1;
        }
    }

    /// Who has waited the longest for buffers of an address.
    pub(super) fn next(&mut self, address: IpAddr) -> Option<ConnectionId> {
        let next = self.addresses.get_mut(&address)?.waiting.pop_front()?;
        self.waiting -= 1;
        Some(next)
    }

    /// Connections that wait for buffers of their addresses.
    pub(super) fn short(&self) -> usize {
        self.waiting
    }

    /// Whether one more of an address finds room, where each may have so many, and all together
    /// so many that are half open.
    pub(super) fn have_room(&self, address: IpAddr, per_address: usize, half_open: usize) -> bool {
        let (all, own) = self.of(address);
        let share = (half_open / HALF_OPEN_SHARE).max(1);
        all < per_address && own < share
    }

    pub(super) fn come(&mut self, address: IpAddr) {
        let address = self.addresses.entry(address).or_default();
        address.connections += 1;
        address.half_open += 1;
        self.half_open += 1;
    }

    pub(super) fn admit(&mut self, address: IpAddr) {
        if let Some(address) = self.addresses.get_mut(&address) {
            address.half_open -= 1;
            self.half_open -= 1;
        }
    }

    pub(super) fn leave(&mut self, guest: Guest) {
        if guest.half_open {
            self.admit(guest.address);
        }
        if let Some(address) = self.addresses.get_mut(&guest.address) {
            address.connections -= 1;
            if address.connections == 0 {
                // Those that wait are gone as well.
                self.waiting -= address.waiting.len();
                self.addresses.remove(&guest.address);
            }
        }
    }
}

impl Provider {
    /// Takes who has come.
    pub(super) fn accept(&mut self) {
        // As many as one wait brings; the rest comes with the next.
        for _ in 0..64 {
            let Some(listener) = &self.listener else {
                return;
            };
            if self.guests.half_open >= self.config.half_open {
                // Until one of them is admitted, or leaves.
                let none = self.epoll.modify(listener, LISTENER, Interest::NONE);
                self.guests.full = none.is_ok();
                return;
            }
            let stream = match listener.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // No descriptors, most likely: it would be told again at once.
                    if self
                        .epoll
                        .modify(listener, LISTENER, Interest::NONE)
                        .is_ok()
                    {
                        self.listener_rests = Some(self.shared.now + REST);
                    }
                    return;
                }
            };
            // Whoever finds no room is closed.
            if self.welcome(stream).is_none() {
                self.guests.turned_away += 1;
            }
        }
    }

    fn welcome(&mut self, stream: TcpStream) -> Option<()> {
        let guest = Guest::new(stream.peer().ok()?.ip());
        let Config {
            per_address,
            half_open,
            ..
        } = self.config;
        if !self.guests.have_room(guest.address, per_address, half_open) {
            return None;
        }
        let entropy = entropy().ok()?;
        let mut link =
            Link::responder(stream, self.config.options, entropy, self.shared.now).ok()?;
        link.guest = Some(guest);
        self.add(link, Interest::READ).ok()?;
        self.guests.come(guest.address);
        Some(())
    }

    /// A connection that came has done what is wanted of it.
    pub(super) fn admit(&mut self, id: ConnectionId) {
        let guest = self.link(id).and_then(|link| link.guest.as_mut());
        if let Some(guest) = guest.filter(|guest| guest.half_open) {
            guest.half_open = false;
            let address = guest.address;
            self.guests.admit(address);
            self.look_for_guests();
        }
    }

    /// The listener is asked again if it was left alone for want of room.
    pub(super) fn look_for_guests(&mut self) {
        if self.guests.full
            && let Some(listener) = &self.listener
        {
            let again = self.epoll.modify(listener, LISTENER, Interest::READ);
            self.guests.full = again.is_err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_and_goes_is_counted_by_network() {
        let mut guests = Guests::default();
        let [one, same, other] = ["2001:db8::1", "2001:db8::2:3", "::ffff:10.0.0.1"]
            .map(|address| Guest::new(address.parse().unwrap()));
        for guest in [one, same, other] {
            guests.come(guest.address);
        }
        guests.admit(one.address);
        assert_eq!((guests.of(same.address), guests.half_open), ((2, 1), 2));
        let four: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(guests.of(four), (1, 1));
        guests.leave(Guest {
            half_open: false,
            ..one
        });
        guests.leave(same);
        guests.leave(other);
        assert_eq!(guests.of(one.address), (0, 0));
        assert!(guests.addresses.is_empty() && guests.half_open == 0);
    }
}
