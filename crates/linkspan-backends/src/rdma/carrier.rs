//! What all that makes connections has in common.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use linkspan_mem::Region;
use linkspan_mem::fault::Injected;
use linkspan_rdma::Memories;
use linkspan_rdma::verbs::{Event, MemoryId, Verbs};

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

    /// The connection of that number; `None` when it is over and its last event was taken.
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
