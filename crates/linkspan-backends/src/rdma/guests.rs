//! Who has come, by address: so that no address takes all room, and nobody keeps others
//! out by beginning and not going on.

use std::collections::BTreeMap;
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
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[derive(Debug, Default)]
pub(super) struct Guests {
    /// Of each address that there is: connections, and those of them that are half open.
    addresses: BTreeMap<IpAddr, (usize, usize)>,
    pub(super) half_open: usize,
    /// The listener is left alone, since too many are half open.
    pub(super) full: bool,
    pub(super) turned_away: u64,
}

impl Guests {
    /// Connections of an address, and those that are half open.
    pub(super) fn of(&self, address: IpAddr) -> (usize, usize) {
        self.addresses.get(&address).copied().unwrap_or_default()
    }

    /// Whether one more of an address finds room, where each may have so many, and all together
    /// so many that are half open.
    pub(super) fn have_room(&self, address: IpAddr, per_address: usize, half_open: usize) -> bool {
        let (all, own) = self.of(address);
        let share = (half_open / HALF_OPEN_SHARE).max(1);
        all < per_address && own < share
    }

    pub(super) fn come(&mut self, address: IpAddr) {
        let (all, half_open) = self.addresses.entry(address).or_default();
        (*all, *half_open) = (*all + 1, *half_open + 1);
        self.half_open += 1;
    }

    pub(super) fn admit(&mut self, address: IpAddr) {
        if let Some((_, half_open)) = self.addresses.get_mut(&address) {
            *half_open -= 1;
            self.half_open -= 1;
        }
    }

    pub(super) fn leave(&mut self, guest: Guest) {
        if guest.half_open {
            self.admit(guest.address);
        }
        if let Some((all, _)) = self.addresses.get_mut(&guest.address) {
            *all -= 1;
            if *all == 0 {
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
