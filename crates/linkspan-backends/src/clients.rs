//! Whoever is connected to a host of VMBus: each has a token, and so long to say what it is.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use linkspan_engine::vmbus::Framed;
use linkspan_sys::poll::Interest;
use linkspan_sys::{Epoll, Listener};
use linkspan_vmbus::link::Phase;

use crate::door::Door;

/// Connections at a time, of each kind.
const CLIENTS_MAX: usize = 32;

/// How long a client has to say what it is.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// A connection, and what its host knows of it.
pub(crate) struct Client<T> {
    pub(crate) framed: Framed,
    /// Until when it has to have said what it is.
    hello: Instant,
    pub(crate) known: T,
}

impl<T> Client<T> {
    fn is_fresh(&self) -> bool {
        self.framed.phase() == Phase::Fresh
    }
}

/// All that are connected.
pub(crate) struct Clients<T> {
    all: BTreeMap<u64, Client<T>>,
    next: u64,
}

impl<T> Clients<T> {
    /// Nobody; the first one gets this token.
    pub(crate) fn new(first: u64) -> Self {
        Self {
            all: BTreeMap::new(),
            next: first,
        }
    }

    /// Takes whoever waits at the socket, and has it watched. Those that are of the `same`
    /// kind as it have a number that they do not exceed, so that no kind keeps out another.
    pub(crate) fn accept(
        &mut self,
        epoll: &Epoll,
        door: &mut Door<Listener>,
        known: T,
        same: impl Fn(&T) -> bool,
    ) {
        // A client that left before is nobody's loss.
        let Some(stream) = door.accept(epoll, Listener::accept) else {
            return;
        };
        if self.iter().filter(|client| same(&client.known)).count() >= CLIENTS_MAX {
            return;
        }
        let framed = Framed::accepted(stream);
        let token = self.next;
        self.next += 1;
        let watched = epoll.add(framed.as_fd(), token, Interest::READ);
        if watched.is_ok() {
            let hello = Instant::now() + HELLO_LIMIT;
            let client = Client {
                framed,
                hello,
                known,
            };
            self.all.insert(token, client);
        }
    }

    pub(crate) fn get(&self, token: u64) -> Option<&Client<T>> {
        self.all.get(&token)
    }

    pub(crate) fn get_mut(&mut self, token: u64) -> Option<&mut Client<T>> {
        self.all.get_mut(&token)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Client<T>> {
        self.all.values()
    }

    /// Forgets a client, which is not watched any more.
    pub(crate) fn remove(&mut self, epoll: &Epoll, token: u64) -> Option<Client<T>> {
        let client = self.all.remove(&token)?;
        let _ = epoll.delete(client.framed.as_fd());
        Some(client)
    }

    /// When the first of them has to have said what it is.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let fresh = self.iter().filter(|client| client.is_fresh());
        fresh.map(|client| client.hello).min()
    }

    /// Those whose time for that is over.
    pub(crate) fn late(&self, now: Instant) -> Vec<u64> {
        let late = |client: &Client<T>| client.is_fresh() && client.hello <= now;
        let late = self.all.iter().filter(|(_, client)| late(client));
        late.map(|(token, _)| *token).collect()
    }
}

/// How long to wait when the first thing is due then.
pub(crate) fn until(first: Option<Instant>) -> Option<Duration> {
    // Not before it: the system counts whole milliseconds.
    let left = first?.saturating_duration_since(Instant::now());
    Some(left + Duration::from_millis(1))
}
