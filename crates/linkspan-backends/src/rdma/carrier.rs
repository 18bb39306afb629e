//! What all that makes connections has in common.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use linkspan_mem::Region;
use linkspan_mem::fault::Injected;
use linkspan_rdma::verbs::{Event, MemoryId, Slice, Verbs};
use linkspan_rdma::{Memories, Pool};

use super::{ConnectionId, Handle, Provider, ProviderError};

/// Makes connections, by iWARP over TCP ([`Provider`]) or by a device
/// ([`DeviceProvider`](super::DeviceProvider)). It belongs to one thread and waits in one place;
/// its descriptor is readable when there is something to do, timers aside.
pub trait Carrier: AsFd {
    /// One connection, borrowed.
    type Handle<'a>: Verbs
    where
        Self: 'a;

    /// Makes memory known to all connections.
    ///
    /// # Errors
    /// When there is no room for its number.
    fn add_memory(&mut self, region: Region) -> Result<MemoryId, Injected>;

    /// Forgets memory; work that names it ends its connection.
    fn remove_memory(&mut self, memory: MemoryId) -> Option<Region>;

    /// The memory that is known, buffers of messages included.
    fn memories(&self) -> &Memories;

    /// Listens; connections that come are told by [`Event::Requested`]. Says where.
    ///
    /// # Errors
    /// What the system refuses.
    fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr>;

    /// Begins to connect.
    ///
    /// # Errors
    /// What the system refuses at once; too much private data.
    fn connect(
        &mut self,
        address: SocketAddr,
        private_data: &[u8],
    ) -> Result<ConnectionId, ProviderError>;

    /// The connection of that number; `None` when it is over, its last event was taken, and its
    /// messages were given back.
    fn connection(&mut self, id: ConnectionId) -> Option<Self::Handle<'_>>;

    /// Connections, those that are being made and those that end included.
    fn count(&self) -> usize;

    /// Begins what was posted, without waiting.
    fn flush(&mut self);

    /// Begins what was posted, and waits until something has happened, at most for
    /// `timeout`.
    ///
    /// # Errors
    /// What the system says.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// What has happened, on any connection.
    fn poll(&mut self) -> Option<(ConnectionId, Event)>;
}

/// A carrier that programs are made of: it takes guests, and waits for other things as well.
pub trait Host: Carrier {
    /// The seam to a connection, also when it is over: nothing can be done on it then but
    /// to give buffers back.
    fn verbs(&mut self, id: ConnectionId) -> Self::Handle<'_>;

    /// Who is at the other end of a connection; `None` if that is not known any more.
    fn peer(&mut self, id: ConnectionId) -> Option<SocketAddr>;

    /// A connection that came has done what is wanted of it, and does not count as half
    /// open any more.
    fn admit(&mut self, id: ConnectionId);

    /// Connections that came and are half open, and that were turned away so far.
    fn guests(&self) -> (usize, u64);

    /// Takes no connections any more.
    fn listen_no_more(&mut self);

    /// A buffer of a pool whose memory is known here.
    fn buffer(&mut self, pool: &mut Pool) -> Option<Slice> {
        pool.take_by(|region| self.add_memory(region))
    }

    /// Bytes of buffers for messages that are allocated, and buffers that are lent.
    fn buffers(&self) -> (usize, usize);

    /// Connections that wait since messages from their address have its share of buffers.
    fn short(&self) -> usize;

    /// System calls so far to wait, and for data where this process makes them itself.
    fn system_calls(&self) -> u64;

    /// Writes what goes over all connections from now on to a file, as Wireshark reads it.
    ///
    /// # Errors
    /// What the system says of the file; it is not to be seen here.
    fn capture(&mut self, file: File) -> io::Result<()>;

    /// Watches a descriptor of somebody else's as well: as long as something can be read
    /// from it, or it is closed, each [`wait`](Self::wait) comes back and
    /// [`watched`](Self::watched) tells its number.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` reports.
    fn watch(&self, source: impl AsFd, number: u32) -> io::Result<()>;

    /// A watched descriptor that the last wait found ready.
    fn watched(&mut self) -> Option<u32>;
}

impl Carrier for Provider {
    type Handle<'a> = Handle<'a>;

    fn add_memory(&mut self, region: Region) -> Result<MemoryId, Injected> {
        Self::add_memory(self, region)
    }

    fn remove_memory(&mut self, memory: MemoryId) -> Option<Region> {
        Self::remove_memory(self, memory)
    }

    fn memories(&self) -> &Memories {
        Self::memories(self)
    }

    fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        Self::listen(self, address)
    }

    fn connect(
        &mut self,
        address: SocketAddr,
        private_data: &[u8],
    ) -> Result<ConnectionId, ProviderError> {
        Self::connect(self, address, private_data)
    }

    fn connection(&mut self, id: ConnectionId) -> Option<Handle<'_>> {
        Self::connection(self, id)
    }

    fn count(&self) -> usize {
        Self::count(self)
    }

    fn flush(&mut self) {
        Self::flush(self);
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        Self::wait(self, timeout)
    }

    fn poll(&mut self) -> Option<(ConnectionId, Event)> {
        Self::poll(self)
    }
}

impl Host for Provider {
    fn verbs(&mut self, id: ConnectionId) -> Handle<'_> {
        Handle { provider: self, id }
    }

    fn peer(&mut self, id: ConnectionId) -> Option<SocketAddr> {
        self.verbs(id).peer().ok()
    }

    fn admit(&mut self, id: ConnectionId) {
        Self::admit(self, id);
    }

    fn guests(&self) -> (usize, u64) {
        Self::guests(self)
    }

    fn listen_no_more(&mut self) {
        Self::listen_no_more(self);
    }

    fn buffers(&self) -> (usize, usize) {
        Self::buffers(self)
    }

    fn short(&self) -> usize {
        Self::short(self)
    }

    fn system_calls(&self) -> u64 {
        Self::system_calls(self)
    }

    fn capture(&mut self, file: File) -> io::Result<()> {
        Self::capture(self, file)
    }

    fn watch(&self, source: impl AsFd, number: u32) -> io::Result<()> {
        Self::watch(self, source, number)
    }

    fn watched(&mut self) -> Option<u32> {
        Self::watched(self)
    }
}
