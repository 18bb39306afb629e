//! The seam to upper layers, on one connection.

use std::io;
use std::net::SocketAddr;

use linkspan_rdma::Memories;
use linkspan_rdma::verbs::{Access, Depth, Event, Limits, Post, PostError, Remote, Slice, Verbs};

use super::link::Link;
use super::table::Entry as _;
use super::{ConnectionId, Provider};

/// One connection, borrowed from its provider.
pub struct Handle<'a> {
    pub(super) provider: &'a mut Provider,
    pub(super) id: ConnectionId,
}

impl Handle<'_> {
    fn link(&mut self) -> Result<&mut Link, PostError> {
        self.provider.link(self.id).ok_or(PostError::NotConnected)
    }

    /// There is something to write.
    fn wake(&mut self) {
        let id = self.id;
        if let Some(link) = self.provider.link(id)
            && !link.busy
        {
            link.busy = true;
            self.provider.busy.push_back(id);
        }
    }

    /// A connection that came has done what is wanted of it, and does not count as half
    /// open any more.
    pub fn admit(&mut self) {
        self.provider.admit(self.id);
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// What the system says of a connection that is lost.
    pub fn peer(&mut self) -> io::Result<SocketAddr> {
        let link = self.provider.link(self.id);
        let stream = link.and_then(|link| link.stream());
        stream.ok_or(io::ErrorKind::NotConnected)?.peer()
    }
}

impl Verbs for Handle<'_> {
    fn limits(&self) -> Limits {
        self.provider.config.options.limits
    }

    fn memories(&self) -> &Memories {
        self.provider.memories()
    }

    fn accept(&mut self, private_data: &[u8], depth: Depth) -> Result<(), PostError> {
        self.link()?.connection().accept(private_data, depth)?;
        self.wake();
        Ok(())
    }

    fn reject(&mut self, private_data: &[u8]) -> Result<(), PostError> {
        self.link()?.connection().reject(private_data)?;
        self.wake();
        Ok(())
    }

    fn post_receives(&mut self, count: u32) -> Result<(), PostError> {
        self.link()?.connection().post_receives(count)
    }

    fn release(&mut self, buffer: Slice) {
        self.provider.release(self.id, buffer);
    }

    fn post(&mut self, post: &Post<'_>) -> Result<(), PostError> {
        let Provider {
            links,
            shared,
            busy,
            ..
        } = &mut *self.provider;
        let link = links.get_mut(self.id).ok_or(PostError::NotConnected)?;
        link.post(shared, post)?;
        if !link.busy {
            link.busy = true;
            busy.push_back(self.id);
        }
        Ok(())
    }

    fn expose(&mut self, slices: &[Slice], access: Access) -> Result<Remote, PostError> {
        self.provider.shared.memories.check(slices)?;
        self.link()?.connection().expose(slices, access)
    }

    fn disconnect(&mut self) {
        if let Ok(link) = self.link() {
            link.connection().disconnect();
            self.wake();
        }
    }

    fn poll(&mut self) -> Option<Event> {
        let id = self.id;
        let event = self.provider.link(id)?.poll();
        self.provider.settle(id);
        event
    }
}
