//! Clients over TCP, for whom the server is reached as it is, and who are told of SMB Direct if
//! they ask for interfaces.
//!
//! What is said goes through in order and as it is, but for that answer. A direction has one
//! buffer: who does not read is not read for.

mod flow;
mod relay;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, ReadyEvent};
use linkspan_sys::tcp::TcpListener;

use super::{End, REST};
use relay::{Relay, Side};

/// Numbers of sockets here begin there: those of pairs are places, and less.
const TOKENS: u64 = 1 << 40;

/// Connections that are taken before others have their turn.
const ACCEPTS: usize = 64;

/// Where clients over TCP are heard, and what they may have.
#[derive(Clone, Copy, Debug)]
pub struct FrontConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where SMB Direct is: if that is any address, clients are told of the one that they reached.
    pub rdma: IpAddr,
    /// Connections at a time.
    pub connections: usize,
    /// Connections at a time of one address.
    pub per_address: usize,
}

/// What a connection over TCP was.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) peer: SocketAddr,
    pub(super) bytes: [u64; 2],
    pub(super) told: u64,
    pub(super) end: End,
}

pub(super) struct Front {
    listener: TcpListener,
    /// Since the machine refused a connection, nobody is taken until then.
    rests: Option<Instant>,
    /// Somebody waits to be taken.
    calls: bool,
    config: FrontConfig,
    servers: Vec<SocketAddr>,
    connect_within: Duration,
    relays: Vec<Option<Box<Relay>>>,
    addresses: BTreeMap<IpAddr, usize>,
    left: Vec<Left>,
}

impl Front {
    pub(super) fn new(
        tcp: &Epoll,
        config: FrontConfig,
        servers: &[SocketAddr],
        connect_within: Duration,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen)?;
        tcp.add(&listener, TOKENS, Interest::READ)?;
        Ok(Self {
            listener,
            rests: None,
            calls: false,
            config,
            servers: servers.to_vec(),
            connect_within,
            relays: Vec::new(),
            addresses: BTreeMap::new(),
            left: Vec::new(),
        })
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.address()
    }

    /// Connections.
    pub(super) fn count(&self) -> usize {
        self.relays.iter().flatten().count()
    }

    /// Those that are over, once.
    pub(super) fn left(&mut self) -> Vec<Left> {
        std::mem::take(&mut self.left)
    }

    /// When something is to be done that no socket tells of.
    pub(super) fn due(&self) -> Option<Instant> {
        let servers = self.relays.iter().flatten().filter_map(|relay| relay.due());
        servers.chain(self.rests).min()
    }

    /// Does what is due.
    pub(super) fn overdue(&mut self, tcp: &Epoll) {
        let now = Instant::now();
        for place in 0..self.relays.len() {
            let Some(relay) = &mut self.relays[place] else {
                continue;
            };
            if relay.due().is_some_and(|due| due <= now) {
                let next = relay.next_server(tcp, io::ErrorKind::TimedOut.into());
                self.ends(tcp, place, next);
            }
        }
        if self.rests.is_some_and(|until| until <= now) {
            self.rests = tcp
                .add(&self.listener, TOKENS, Interest::READ)
                .err()
                .map(|_| now + REST);
        }
    }

    /// Whether a socket of that number is one of these.
    pub(super) fn has(token: u64) -> bool {
        token >= TOKENS
    }

    /// A socket is ready.
    pub(super) fn ready(&mut self, tcp: &Epoll, event: ReadyEvent) {
        let number = event.token - TOKENS;
        if number == 0 {
            self.calls = true;
            return;
        }
        let place = usize::try_from(number / 2 - 1).unwrap_or(usize::MAX);
        let Some(relay) = self.relays.get_mut(place).and_then(Option::as_mut) else {
            return;
        };
        let side = match number % 2 {
            0 => Side::Client,
            _ => Side::Server,
        };
        let result = relay.ready(tcp, side, event);
        self.ends(tcp, place, result);
    }

    /// Takes who waits, once all sockets that were ready were looked at: what is told of a
    /// connection that is over is none of those that have its place.
    pub(super) fn accept(&mut self, tcp: &Epoll) {
        if !std::mem::take(&mut self.calls) {
            return;
        }
        for _ in 0..ACCEPTS {
            let client = match self.listener.accept() {
                Ok(client) => client,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // It would be told again at once, as long as somebody waits.
                    let _ = tcp.delete(&self.listener);
                    self.rests = Some(Instant::now() + REST);
                    return;
                }
            };
            let Ok(peer) = client.peer() else { continue };
            let ip = peer.ip();
            let of_address = self.addresses.get(&ip).copied().unwrap_or(0);
            if self.count() >= self.config.connections || of_address >= self.config.per_address {
                continue;
            }
            let free = self.relays.iter().position(Option::is_none);
            let place = free.unwrap_or(self.relays.len());
            let first = TOKENS + 2 * (place as u64 + 1);
            let reach = (&self.servers[..], self.connect_within);
            let relay = Relay::new(tcp, client, [first, first + 1], self.config.rdma, reach);
            match relay {
                Ok(relay) => {
                    if place == self.relays.len() {
                        self.relays.push(None);
                    }
                    self.relays[place] = Some(Box::new(relay));
                    *self.addresses.entry(ip).or_default() += 1;
                }
                Err(end) => self.left.push(Left {
                    peer,
                    bytes: [0; 2],
                    told: 0,
                    end,
                }),
            }
        }
    }

    fn ends(&mut self, tcp: &Epoll, place: usize, result: Result<(), End>) {
        let Err(end) = result else { return };
        let Some(relay) = self.relays[place].take() else {
            return;
        };
        let ip = relay.peer.ip();
        if let Some(count) = self.addresses.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&ip);
            }
        }
        self.left.push(Left {
            peer: relay.peer,
            bytes: relay.bytes(),
            told: relay.told,
            end,
        });
        relay.close(tcp);
    }

    /// Ends all connections, and listens no more.
    pub(super) fn stop(mut self, tcp: &Epoll) -> Vec<Left> {
        for place in 0..self.relays.len() {
            self.ends(tcp, place, Err(End::Stopped));
        }
        if self.rests.is_none() {
            // It is closed right after.
            let _ = tcp.delete(&self.listener);
        }
        self.left
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener as Listener, TcpStream};

    use super::*;

    /// Ours: what was told of a connection that was over by then was taken for another one's,
    /// which had come meanwhile and seemed to have reached its server.
    #[test]
    fn events_of_one_that_is_over_are_not_those_of_the_next() {
        let server = Listener::bind("127.0.0.1:0").unwrap();
        let tcp = Epoll::new().unwrap();
        let config = FrontConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            rdma: [127, 0, 0, 1].into(),
            connections: 1,
            per_address: 1,
        };
        let servers = [server.local_addr().unwrap()];
        let mut front = Front::new(&tcp, config, &servers, Duration::from_secs(60)).unwrap();
        let event = |number: u64, closed: bool| ReadyEvent {
            token: TOKENS + number,
            readable: !closed,
            writable: false,
            closed,
        };
        let take = |front: &mut Front, between: &[ReadyEvent]| {
            while front.count() == 0 {
                front.ready(&tcp, event(0, false));
                for event in between {
                    front.ready(&tcp, *event);
                }
                front.accept(&tcp);
            }
        };
        let address = front.address().unwrap();
        let _first = TcpStream::connect(address).unwrap();
        take(&mut front, &[]);
        let _second = TcpStream::connect(address).unwrap();
        front.ready(&tcp, event(2, true));
        assert_eq!((front.count(), front.left().len()), (0, 1));
        take(&mut front, &[event(3, true)]);
        assert!(front.due().is_some(), "nobody has answered it");
        assert_eq!(front.stop(&tcp).len(), 1);
    }
}
