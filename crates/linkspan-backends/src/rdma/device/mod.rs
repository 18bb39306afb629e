//! RDMA devices, real ones and those of the kernel in software, through rdma-core.
//!
//! What a connection has is its own: its queue pair, the descriptor that its completions are
//! waited for on, and its protection domain, in which all memory is registered that its work
//! names. So an exposure means nothing on another connection, as everywhere behind this seam.
//!
//! What is different from iWARP over TCP:
//! * Receives are memory: a device is given each buffer beforehand. It is allocated when receives
//!   are posted, and goes with the connection.
//! * An exposure is one range, and its address is that of the memory in this process.
//! * The end of an exposure is the end of its registration: programs cannot ask devices for less.
//!   Over iWARP a message of the peer's ends it as well, though siw does not say that it did;
//!   elsewhere a message that should is an ordinary one.
//! * Every work is signalled to the device, so that its place in the queue is known to be free.
//! * Private data is followed by zeroes over RoCE.
//! * A peer that broke the protocol is told apart from one that left only where the device says so.

mod handle;
mod link;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use linkspan_mem::Region;
use linkspan_mem::fault::Injected;
use linkspan_rdma::Memories;
use linkspan_rdma::verbs::{Depth, Event, Limits, MemoryId, PostError};
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::verbs::{Channel, Happened, Identifier, IdentifierKey, Library, Parameters};

pub use handle::DeviceHandle;
use link::Link;

use super::guests::{Guest, Guests};
use super::table::{OTHERS, Table};
use super::{Carrier, ConnectionId, Host, ProviderError};

/// Elements of a gather list at most.
const GATHER: usize = 32;

/// What epoll calls the channel.
const CHANNEL: u64 = u64::MAX;

/// Events of the channel that are taken at a time.
const EVENTS: usize = 64;

/// What a provider is made with.
#[derive(Clone, Copy, Debug)]
pub struct DeviceConfig {
    /// How many of everything; a device may do with less.
    pub limits: Limits,
    /// Reads at a time that we would like, each way; 255 at most.
    pub depth: Depth,
    /// Connections at a time, those that are being made included.
    pub connections: usize,
    /// Of them, connections that came from one address.
    pub per_address: usize,
    /// Connections that came and were not [admitted](Host::admit) yet: others are rejected
    /// meanwhile. One address has a quarter of them.
    pub half_open: usize,
    /// How long the way to a peer, and then its answer, may take; and from the request of one
    /// that came until it is established.
    pub reply_within: Duration,
    /// Whether a port is for a device, which speaks iWARP or does not: none connects to one that
    /// is not, listens there, or is accepted.
    pub port_fits: fn(port: u16, is_iwarp: bool) -> bool,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            limits: Limits {
                works: 1024,
                receives: 512,
                receive_size: 8192,
                // What every known device can; more is for whoever knows his.
                gather: 6,
                read_into: 1,
                work_bytes: 1 << 30,
                exposures: 1023,
                exposure_slices: 1,
                exposure_bytes: 1 << 30,
            },
            depth: Depth {
                inbound: 32,
                outbound: 32,
            },
            connections: 1024,
            per_address: 256,
            half_open: 128,
            reply_within: Duration::from_secs(10),
            port_fits: |_, _| true,
        }
    }
}

/// Connections of RDMA devices.
pub struct DeviceProvider {
    config: DeviceConfig,
    epoll: Epoll,
    /// Lent while its events are dealt with.
    ready: Option<Ready>,
    begin: Instant,
    now: Duration,
    memories: Memories,
    links: Table<Link>,
    /// By what the channel names them.
    keys: BTreeMap<IdentifierKey, ConnectionId>,
    /// Those whose device has done more than was taken.
    busy: VecDeque<ConnectionId>,
    /// Numbers of watched descriptors that became ready.
    watched: Vec<u32>,
    listeners: Vec<Identifier>,
    guests: Guests,
    /// System calls to wait, and to hear what has happened.
    calls: u64,
    channel: Channel,
}

impl DeviceProvider {
    /// A provider without connections.
    ///
    /// # Errors
    /// There is no rdma-core, the kernel has no RDMA, or the system refuses.
    pub fn new(config: DeviceConfig) -> Result<Self, ProviderError> {
        let library = Library::load()?;
        let epoll = Epoll::new()?;
        let channel = Channel::new(library)?;
        epoll.add(&channel, CHANNEL, Interest::READ)?;
        Ok(Self {
            config,
            epoll,
            ready: None,
            begin: Instant::now(),
            now: Duration::ZERO,
            memories: Memories::new(),
            links: Table::new(),
            keys: BTreeMap::new(),
            busy: VecDeque::new(),
            watched: Vec::new(),
            listeners: Vec::new(),
            guests: Guests::default(),
            calls: 0,
            channel,
        })
    }

    fn add(&mut self, link: Link) -> Result<ConnectionId, ProviderError> {
        let max = self.config.connections;
        let id = self.links.next_id().ok_or(ProviderError::Full { max })?;
        self.keys.insert(link.key(), id);
        self.links.add(id, link);
        self.settle(id);
        Ok(id)
    }

    /// Takes somebody who wants to connect. Whoever finds no room is rejected, as the identifier
    /// goes.
    fn welcome(&mut self, identifier: Identifier, parameters: Parameters) {
        let DeviceConfig {
            depth,
            limits,
            per_address,
            half_open,
            ..
        } = self.config;
        let nobody = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let guest = Guest::new(identifier.peer().map_or(nobody, |peer| peer.ip()));
        let at = identifier.address().map_or(0, |at| at.port());
        let room = (self.config.port_fits)(at, identifier.is_iwarp())
            && self.guests.half_open < half_open
            && self.guests.have_room(guest.address, per_address, half_open);
        if !room || self.full().is_err() {
            self.guests.turned_away += 1;
            return;
        }
        let due = self.now + self.config.reply_within;
        let mut link = Link::responder(identifier, depth, limits, parameters, due);
        link.guest = Some(guest);
        self.guests.come(guest.address);
        if self.add(link).is_err() {
            self.guests.leave(guest);
        }
    }

    fn full(&self) -> Result<(), ProviderError> {
        let max = self.config.connections;
        if self.links.len() >= max {
            return Err(ProviderError::Full { max });
        }
        Ok(())
    }

    fn with<T>(
        &mut self,
        id: ConnectionId,
        act: impl FnOnce(&mut Link, &mut Memories) -> Result<T, PostError>,
    ) -> Result<T, PostError> {
        let link = self.links.get_mut(id).ok_or(PostError::NotConnected)?;
        let result = act(link, &mut self.memories);
        self.settle(id);
        result
    }

    /// After anything: what has to be told, waited for or forgotten.
    fn settle(&mut self, id: ConnectionId) {
        self.links.note(id);
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        if link.is_done() {
            link.give_up(&mut self.memories);
            self.forget_key(id);
            if let Some(guest) = self.links.remove(id).and_then(|link| link.guest) {
                self.guests.leave(guest);
            }
        }
    }

    /// An identifier that is gone may have its name given to another.
    fn forget_key(&mut self, id: ConnectionId) {
        if let Some(link) = self.links.get(id)
            && self.keys.get(&link.key()) == Some(&id)
        {
            self.keys.remove(&link.key());
        }
    }

    fn happened(&mut self) -> io::Result<()> {
        for _ in 0..EVENTS {
            self.calls += 1;
            let event = match self.channel.next() {
                Ok(event) => event,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if let Happened::Requested(identifier, parameters) = event.happened {
                self.welcome(identifier, parameters);
                continue;
            }
            let Some(id) = self.keys.get(&event.of).copied() else {
                continue;
            };
            let Some(link) = self.links.get_mut(id) else {
                continue;
            };
            match event.happened {
                Happened::AddressResolved => link.address_resolved(&self.config),
                Happened::RouteResolved => link.route_resolved(&mut self.memories),
                Happened::Established(parameters) => {
                    link.established(parameters, &self.epoll, id.token());
                    self.busy.push_back(id);
                }
                Happened::Rejected {
                    status,
                    private_data,
                } => link.rejected(status, private_data),
                Happened::Disconnected => link.disconnected(),
                Happened::Failed { status } => {
                    link.refused(&io::Error::from_raw_os_error(status.saturating_neg()));
                }
                _ => {}
            }
            self.settle(id);
        }
        Ok(())
    }

    fn completions(&mut self, id: ConnectionId) {
        if let Some(link) = self.links.get_mut(id) {
            if link.completions(self.now) {
                self.busy.push_back(id);
            }
            self.settle(id);
        }
    }

    fn tick(&mut self) {
        while let Some(id) = self.links.due(self.now) {
            if let Some(link) = self.links.get_mut(id) {
                link.tick(self.now);
                self.settle(id);
            }
        }
    }

    /// Until when to wait at most.
    fn timeout(&self, timeout: Option<Duration>) -> Option<Duration> {
        if self.links.tells() || !self.busy.is_empty() {
            return Some(Duration::ZERO);
        }
        let Some(due) = self.links.first_due() else {
            return timeout;
        };
        // Rounded up, so that it is due when we wake up.
        let left = due.saturating_sub(self.begin.elapsed()) + Duration::from_millis(1);
        Some(timeout.map_or(left, |timeout| timeout.min(left)))
    }
}

impl Carrier for DeviceProvider {
    type Handle<'a> = DeviceHandle<'a>;

    fn add_memory(&mut self, region: Region) -> Result<MemoryId, Injected> {
        self.memories.add(region)
    }

    fn remove_memory(&mut self, memory: MemoryId) -> Option<Region> {
        let ids: Vec<ConnectionId> = self.links.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(link) = self.links.get_mut(id) {
                link.forget(memory);
                self.settle(id);
            }
        }
        self.memories.remove(memory)
    }

    fn memories(&self) -> &Memories {
        &self.memories
    }

    fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = Identifier::new(&self.channel)?;
        let address = listener.listen(address)?;
        let fits = |is_iwarp| (self.config.port_fits)(address.port(), is_iwarp);
        if listener.has_device() && !fits(listener.is_iwarp()) {
            let what = "the port is not for the RDMA device that has the address";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        self.listeners.push(listener);
        Ok(address)
    }

    fn connect(
        &mut self,
        address: SocketAddr,
        private_data: &[u8],
    ) -> Result<ConnectionId, ProviderError> {
        self.full()?;
        if private_data.len() > PRIVATE_DATA_MAX {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        let identifier = Identifier::new(&self.channel)?;
        identifier.resolve(address, self.config.reply_within)?;
        self.now = self.begin.elapsed();
        let DeviceConfig { depth, limits, .. } = self.config;
        let due = self.now + self.config.reply_within;
        let link = Link::initiator(identifier, depth, limits, private_data, due);
        self.add(link)
    }

    fn connection(&mut self, id: ConnectionId) -> Option<DeviceHandle<'_>> {
        self.links.get(id)?;
        Some(DeviceHandle { provider: self, id })
    }

    fn count(&self) -> usize {
        self.links.len()
    }

    /// What is posted is under way already.
    fn flush(&mut self) {}

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = self.timeout(timeout);
        let mut ready = self
            .ready
            .take()
            .unwrap_or_else(|| Ready::with_capacity(256));
        self.calls += 1;
        self.watched.clear();
        self.epoll.wait(&mut ready, timeout)?;
        self.now = self.begin.elapsed();
        let mut told = false;
        for event in ready.iter() {
            let id = ConnectionId::of(event.token);
            // What a device has done is taken before it is heard that a peer has left.
            if event.token == CHANNEL {
                told = true;
            } else if id.life == OTHERS {
                self.watched.push(id.place);
            } else {
                self.completions(id);
            }
        }
        self.ready = Some(ready);
        if told {
            self.happened()?;
        }
        for _ in 0..self.busy.len() {
            if let Some(id) = self.busy.pop_front() {
                self.completions(id);
            }
        }
        self.tick();
        Ok(())
    }

    fn poll(&mut self) -> Option<(ConnectionId, Event)> {
        loop {
            match self.links.poll()? {
                Ok(told) => return Some(told),
                Err(id) => self.settle(id),
            }
        }
    }
}

impl Host for DeviceProvider {
    fn verbs(&mut self, id: ConnectionId) -> DeviceHandle<'_> {
        DeviceHandle { provider: self, id }
    }

    fn peer(&mut self, id: ConnectionId) -> Option<SocketAddr> {
        self.links.get(id).and_then(Link::peer)
    }

    fn admit(&mut self, id: ConnectionId) {
        let guest = self.links.get_mut(id).and_then(|link| link.guest.as_mut());
        if let Some(guest) = guest.filter(|guest| guest.half_open) {
            guest.half_open = false;
            self.guests.admit(guest.address);
        }
    }

    fn guests(&self) -> (usize, u64) {
        (self.guests.half_open, self.guests.turned_away)
    }

    fn listen_no_more(&mut self) {
        self.listeners.clear();
    }

    /// Of all connections together.
    fn buffers(&self) -> (usize, usize) {
        let each = self.links.iter().map(|(_, link)| link.buffers());
        each.fold((0, 0), |(bytes, lent), it| (bytes + it.0, lent + it.1))
    }

    /// None: each has its own.
    fn short(&self) -> usize {
        0
    }

    fn system_calls(&self) -> u64 {
        self.calls
    }

    fn capture(&mut self, _file: File) -> io::Result<()> {
        let what = "what goes over a device is not to be seen here";
        Err(io::Error::new(io::ErrorKind::Unsupported, what))
    }

    fn watch(&self, source: impl AsFd, number: u32) -> io::Result<()> {
        let token = ConnectionId::watched(number);
        self.epoll.add(source, token, Interest::READ)
    }

    fn watched(&mut self) -> Option<u32> {
        self.watched.pop()
    }
}

/// Bytes of private data that a request over InfiniBand and RoCE has room for.
const PRIVATE_DATA_MAX: usize = 56;

impl AsFd for DeviceProvider {
    /// Readable when [`Carrier::wait`] has something to do, timers aside.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
