//! Connections over RDMA: iWARP over TCP ([`Provider`]), of this process, without a driver and
//! without privilege; and devices ([`DeviceProvider`]). Both are a [`Carrier`].
//!
//! A [`Provider`] belongs to one thread and waits in one place, for all of its sockets.
//! An idle connection costs nothing but its state: no buffer, no timer, no call.

mod capture;
mod carrier;
mod device;
mod guests;
mod handle;
mod link;
mod table;
mod waiting;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use linkspan_engine::Spin;
use linkspan_mem::Region;
use linkspan_mem::fault::Injected;
use linkspan_rdma::iwarp::{Batch, ENTROPY, OptionError, Options};
use linkspan_rdma::verbs::{Event, MemoryId, Slice};
use linkspan_rdma::{Memories, Pool};
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::tcp::{TcpListener, TcpStream};
use linkspan_sys::verbs::LoadError;
use rustix::rand::{GetRandomFlags, getrandom};

use capture::Capture;
pub use carrier::{Carrier, Host};
pub use device::{DeviceConfig, DeviceHandle, DeviceProvider};
use guests::Guests;
pub(crate) use guests::network;
pub use handle::Handle;
use link::Link;
use table::{Entry as _, OTHERS, Table};

/// Bytes that are read ahead at a time, for all connections.
const STAGING: usize = 128 << 10;

/// Bytes that are framed for one system call.
const BATCH_BYTES: usize = 512 << 10;

/// Batches that are kept for whoever has something to say next.
const SPARE_BATCHES: usize = 16;

/// How long a listener rests that cannot accept, and a connection for which there is no
/// memory although nobody holds any: both are asked again.
const REST: Duration = Duration::from_millis(20);

/// What epoll calls the listener.
const LISTENER: u64 = u64::MAX;

/// A connection of a provider. The number never comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    place: u32,
    life: u32,
}

impl ConnectionId {
    /// The one of that number, for carriers that are made elsewhere.
    #[must_use]
    pub fn new(number: u64) -> Self {
        Self::of(number)
    }

    /// Where it is in a table of connections; another one has this place when it is over.
    #[must_use]
    pub fn place(self) -> usize {
        self.place as usize
    }

    /// What epoll calls a descriptor of somebody else's.
    fn watched(number: u32) -> u64 {
        u64::from(OTHERS) << 32 | u64::from(number.min(u32::MAX - 1))
    }

    fn token(self) -> u64 {
        u64::from(self.life) << 32 | u64::from(self.place)
    }

    fn of(token: u64) -> Self {
        let [place, life] = [token & u64::from(u32::MAX), token >> 32];
        Self {
            place: u32::try_from(place).unwrap_or(0),
            life: u32::try_from(life).unwrap_or(0),
        }
    }
}

/// Why there is no connection, or no provider.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// Options that cannot be.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// The system refuses.
    #[error(transparent)]
    System(#[from] io::Error),
    /// There is no rdma-core.
    #[error(transparent)]
    Library(#[from] LoadError),
    /// As many connections as may be.
    #[error("{max} connections are there already")]
    Full {
        /// The limit.
        max: usize,
    },
}

/// What a provider is made with.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How connections are made.
    pub options: Options,
    /// Bytes of all buffers for messages that come, at most.
    pub budget: usize,
    /// Of them, bytes in which messages from one address may be. Connections of an address
    /// that has as many wait until some are given back, and others do not.
    pub share: usize,
    /// Connections at a time, those that are being made included.
    pub connections: usize,
    /// Of them, connections that came from one address.
    pub per_address: usize,
    /// Connections that came and were not [admitted](Handle::admit) yet. When there are so
    /// many, others wait to be accepted; who has a quarter of them is turned away.
    pub half_open: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            options: Options::default(),
            budget: 64 << 20,
            share: 32 << 20,
            connections: 4096,
            per_address: 1024,
            half_open: 512,
        }
    }
}

/// What all connections share.
struct Shared {
    memories: Memories,
    pool: Pool,
    staging: Box<[u8]>,
    /// Bytes of all connections that were read and wait for buffers.
    staged: usize,
    batches: Vec<Batch>,
    now: Duration,
    capture: Option<Capture>,
    /// System calls of the data path.
    calls: u64,
}

impl Shared {
    fn batch(&mut self) -> Batch {
        self.batches
            .pop()
            .unwrap_or_else(|| Batch::new(BATCH_BYTES))
    }

    fn give_back(&mut self, batch: Batch) {
        if self.batches.len() < SPARE_BATCHES {
            self.batches.push(batch);
        }
    }
}

/// iWARP over TCP.
pub struct Provider {
    config: Config,
    epoll: Epoll,
    /// Lent while its events are dealt with.
    ready: Option<Ready>,
    begin: Instant,
    spin: Spin,
    shared: Shared,
    listener: Option<TcpListener>,
    /// When the listener is asked again.
    listener_rests: Option<Duration>,
    guests: Guests,
    /// Numbers of watched descriptors that became ready.
    watched: Vec<u32>,
    links: Table<Link>,
    /// Those with something to write.
    busy: VecDeque<ConnectionId>,
    /// Those that were given buffers back, which nobody counted yet.
    given: VecDeque<ConnectionId>,
    /// Those that wait for a buffer, the first one first.
    starved: VecDeque<ConnectionId>,
}

impl Provider {
    /// A provider without connections.
    ///
    /// # Errors
    /// Options that cannot be; what the system refuses.
    pub fn new(config: Config) -> Result<Self, ProviderError> {
        config.options.check()?;
        Ok(Self {
            epoll: Epoll::new()?,
            ready: None,
            begin: Instant::now(),
            spin: Spin::new(waiting::LOOK),
            shared: Shared {
                memories: Memories::new(),
                pool: Pool::new(config.options.limits.receive_size, config.budget),
                staging: vec![0; STAGING].into_boxed_slice(),
                staged: 0,
                batches: Vec::new(),
                now: Duration::ZERO,
                capture: None,
                calls: 0,
            },
            config,
            listener: None,
            listener_rests: None,
            guests: Guests::default(),
            watched: Vec::new(),
            links: Table::new(),
            busy: VecDeque::new(),
            given: VecDeque::new(),
            starved: VecDeque::new(),
        })
    }

    /// Makes memory known to all connections.
    ///
    /// # Errors
    /// When there is no room for its number.
    pub fn add_memory(&mut self, region: Region) -> Result<MemoryId, Injected> {
        self.shared.memories.add(region)
    }

    /// Forgets memory; work that names it ends its connection.
    pub fn remove_memory(&mut self, memory: MemoryId) -> Option<Region> {
        self.shared.memories.remove(memory)
    }

    /// The memory that is known, buffers of messages included.
    #[must_use]
    pub fn memories(&self) -> &Memories {
        &self.shared.memories
    }

    /// Bytes of buffers that are allocated, and buffers that are lent.
    #[must_use]
    pub fn buffers(&self) -> (usize, usize) {
        self.shared.pool.used()
    }

    /// Bytes that were read and wait for buffers: 2 MiB, and a few of each connection.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.shared.staged
    }

    /// Listens; connections that come are told by [`Event::Requested`]. Says where.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address)?;
        self.epoll.add(&listener, LISTENER, Interest::READ)?;
        let address = listener.address()?;
        self.listener = Some(listener);
        Ok(address)
    }

    /// Watches a descriptor of somebody else's as well: as long as something can be
    /// read from it, or it is closed, each [`wait`](Self::wait) comes back and
    /// [`watched`](Self::watched) tells its number.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` reports.
    pub fn watch(&self, source: impl AsFd, number: u32) -> io::Result<()> {
        self.epoll
            .add(source, ConnectionId::watched(number), Interest::READ)
    }

    /// Watches it no more, as before it is closed.
    ///
    /// # Errors
    /// It was not watched.
    pub fn unwatch(&self, source: impl AsFd) -> io::Result<()> {
        self.epoll.delete(source)
    }

    /// A watched descriptor that the last wait found ready.
    pub fn watched(&mut self) -> Option<u32> {
        self.watched.pop()
    }

    /// Connections that came and are half open, and that were turned away so far.
    #[must_use]
    pub fn guests(&self) -> (usize, u64) {
        (self.guests.half_open, self.guests.turned_away)
    }

    /// Takes no connections any more.
    pub fn listen_no_more(&mut self) {
        if let Some(listener) = self.listener.take() {
            // It is closed right after.
            let _ = self.epoll.delete(&listener);
        }
    }

    /// Writes what goes over all connections from now on to a file, as Wireshark reads it
    /// (pcap, with addresses and TCP headers made up). It takes time, and holds payload.
    ///
    /// # Errors
    /// What the system says of the file. Later errors end the capture, and nothing else.
    pub fn capture(&mut self, file: File) -> io::Result<()> {
        self.shared.capture = Some(Capture::new(file)?);
        Ok(())
    }

    /// Begins to connect.
    ///
    /// # Errors
    /// What the system refuses at once; too much private data.
    pub fn connect(
        &mut self,
        address: SocketAddr,
        private_data: &[u8],
    ) -> Result<ConnectionId, ProviderError> {
        let stream = TcpStream::connect(address)?;
        self.tell_time();
        let link = Link::initiator(
            stream,
            self.config.options,
            entropy()?,
            private_data,
            self.shared.now,
        )?;
        self.add(link, Interest::WRITE)
    }

    fn add(&mut self, mut link: Link, interest: Interest) -> Result<ConnectionId, ProviderError> {
        let max = self.config.connections;
        let room = self.links.len() < max;
        let id = self.links.next_id().filter(|_| room);
        let id = id.ok_or(ProviderError::Full { max })?;
        link.begin(&self.epoll, id.token(), interest)?;
        self.links.add(id, link);
        self.settle(id);
        Ok(id)
    }

    /// The connection of that number; `None` when it is over, its last event was taken, and its
    /// messages were given back.
    pub fn connection(&mut self, id: ConnectionId) -> Option<Handle<'_>> {
        self.link(id)?;
        Some(Handle { provider: self, id })
    }

    /// System calls for data, and to wait for it.
    #[must_use]
    pub fn system_calls(&self) -> u64 {
        self.shared.calls
    }

    /// Connections, those that are being made and those that end included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.links.len()
    }

    fn link(&mut self, id: ConnectionId) -> Option<&mut Link> {
        self.links.get_mut(id)
    }

    fn tell_time(&mut self) {
        self.shared.now = self.begin.elapsed();
    }

    /// Writes what was posted, without waiting.
    pub fn flush(&mut self) {
        while let Some(id) = self.given.pop_front() {
            if let Some(link) = self.links.get_mut(id) {
                link.given = false;
                self.settle(id);
            }
        }
        while let Some(id) = self.busy.pop_front() {
            if let Some((link, shared)) = self.parts(id) {
                link.busy = false;
                link.write(shared);
                self.settle(id);
            }
        }
    }

    fn parts(&mut self, id: ConnectionId) -> Option<(&mut Link, &mut Shared)> {
        Some((self.links.get_mut(id)?, &mut self.shared))
    }

    /// Writes what was posted, and waits until something has happened, at most for
    /// `timeout`.
    ///
    /// # Errors
    /// What `epoll_wait(2)` reports.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.flush();
        let timeout = self.timeout(timeout);
        let mut ready = self
            .ready
            .take()
            .unwrap_or_else(|| Ready::with_capacity(256));
        self.watched.clear();
        self.sleep(&mut ready, timeout)?;
        self.tell_time();
        for event in ready.iter() {
            if event.token == LISTENER {
                self.accept();
                continue;
            }
            let id = ConnectionId::of(event.token);
            if id.life == OTHERS {
                self.watched.push(id.place);
                continue;
            }
            let room = self.room(id);
            if let Some((link, shared)) = self.parts(id) {
                shared.pool.allow(room);
                link.happened(shared, event);
                self.settle(id);
            }
        }
        self.ready = Some(ready);
        self.tick();
        self.ask_again()?;
        self.flush();
        Ok(())
    }

    fn tick(&mut self) {
        while let Some(id) = self.links.due(self.shared.now) {
            if let Some((link, shared)) = self.parts(id) {
                link.tick(shared);
                self.settle(id);
            }
        }
    }

    /// After anything: what has to be watched, told, written or closed.
    fn settle(&mut self, id: ConnectionId) {
        self.links.note(id);
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if let Some(guest) = link.guest.filter(|_| link.lent != link.counted) {
            self.guests.lend(guest.address, link.counted, link.lent);
            link.counted = link.lent;
            if self.guests.lent(guest.address) < self.share()
                && let Some(next) = self.guests.next(guest.address)
            {
                self.starved.push_back(next);
            }
        }
        self.starve(id);
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if link.watch(&self.epoll, id.token()).is_err() {
            link.fail(&mut self.shared);
            self.links.note(id);
        }
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if link.is_over() {
            // Whoever posts to it is told so until it has heard of the end.
            link.close(&self.epoll);
            // It is there until all its messages are given back, which count for its address.
            if !link.has_events() && link.lent == 0 {
                self.remove(id);
            }
        }
    }

    fn remove(&mut self, id: ConnectionId) {
        if let Some(guest) = self.links.remove(id).and_then(|link| link.guest) {
            self.guests.leave(guest);
            self.look_for_guests();
        }
    }

    /// What has happened, on any connection.
    pub fn poll(&mut self) -> Option<(ConnectionId, Event)> {
        loop {
            match self.links.poll()? {
                Ok(told) => return Some(told),
                Err(id) => self.settle(id),
            }
        }
    }

    /// Buffers that an address may have; one is always possible.
    fn share(&self) -> usize {
        (self.config.share / self.shared.pool.size() as usize).max(1)
    }

    /// Buffers that messages of a connection may still take.
    fn room(&self, id: ConnectionId) -> usize {
        match self.links.get(id).and_then(|link| link.guest) {
            Some(guest) => self.share().saturating_sub(self.guests.lent(guest.address)),
            None => usize::MAX,
        }
    }

    /// A connection that waits for a buffer is queued, once: where its address has its share it
    /// waits for the others of it.
    fn starve(&mut self, id: ConnectionId) {
        let room = self.room(id);
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if link.starving || !link.is_starved() {
            return;
        }
        link.starving = true;
        match link.guest {
            Some(guest) if room == 0 => self.guests.wait(guest.address, id),
            _ => self.starved.push_back(id),
        }
    }

    /// Connections that wait since their address has its share of the buffers.
    #[must_use]
    pub fn short(&self) -> usize {
        self.guests.short()
    }

    fn release(&mut self, id: ConnectionId, buffer: Slice) {
        self.shared.pool.put(buffer);
        let awaited = !self.starved.is_empty() || self.guests.short() > 0;
        let Some(link) = self.links.get_mut(id) else {
            self.feed_starved();
            return;
        };
        link.lent -= 1;
        if awaited || link.is_over() {
            self.settle(id);
            self.feed_starved();
        } else if !link.given {
            // Nobody waits for it: what its address has is counted once for many.
            link.given = true;
            self.given.push_back(id);
        }
    }

    /// The connection that has waited the longest looks for a buffer.
    fn feed_starved(&mut self) {
        while let Some(id) = self.starved.pop_front() {
            let room = self.room(id);
            let Some((link, shared)) = self.parts(id) else {
                // It is gone.
                continue;
            };
            link.starving = false;
            shared.pool.allow(room);
            link.read(shared);
            link.write(shared);
            self.settle(id);
            return;
        }
    }
}

impl AsFd for Provider {
    /// Readable when [`Provider::wait`] has something to do, timers aside.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn entropy() -> io::Result<[u8; ENTROPY]> {
    let mut bytes = [0; ENTROPY];
    let mut filled = 0;
    while filled < ENTROPY {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
    }
    Ok(bytes)
}
