//! The seam to upper layers, on one connection of a device.

use linkspan_rdma::Memories;
use linkspan_rdma::verbs::{
    Access, Depth, Event, Failure, Limits, Post, PostError, Remote, Slice, Verbs,
};

use super::DeviceProvider;
use crate::rdma::ConnectionId;
use crate::rdma::table::Entry as _;

/// One connection, borrowed from its provider.
pub struct DeviceHandle<'a> {
    pub(super) provider: &'a mut DeviceProvider,
    pub(super) id: ConnectionId,
}

impl Verbs for DeviceHandle<'_> {
    fn limits(&self) -> Limits {
        let link = self.provider.links.get(self.id);
        link.map_or(self.provider.config.limits, super::Link::limits)
    }

    fn memories(&self) -> &Memories {
        &self.provider.memories
    }

    fn accept(&mut self, private_data: &[u8], depth: Depth) -> Result<(), PostError> {
        self.provider.with(self.id, |link, memories| {
            link.accept(private_data, depth, memories)
        })
    }

    fn reject(&mut self, private_data: &[u8]) -> Result<(), PostError> {
        self.provider
            .with(self.id, |link, _| link.reject(private_data))
    }

    fn post_receives(&mut self, count: u32) -> Result<(), PostError> {
        self.provider.with(self.id, |link, memories| {
            link.post_receives(count, memories)
        })
    }

    fn release(&mut self, buffer: Slice) {
        let released = self.provider.with(self.id, |link, _| {
            link.release(buffer);
            Ok(())
        });
        // A connection lives for as long as something of it is lent.
        debug_assert!(released.is_ok(), "{buffer:?} was lent by nobody");
    }

    fn post(&mut self, post: &Post<'_>) -> Result<(), PostError> {
        let now = self.provider.now;
        self.provider
            .with(self.id, |link, memories| link.post(post, memories, now))
    }

    fn expose(&mut self, slices: &[Slice], access: Access) -> Result<Remote, PostError> {
        self.provider.with(self.id, |link, memories| {
            link.expose(slices, access, memories)
        })
    }

    fn disconnect(&mut self) {
        // Of one that is gone nothing is left to end.
        let _ = self.provider.with(self.id, |link, _| {
            link.end(Failure::Disconnected);
            Ok(())
        });
    }

    fn poll(&mut self) -> Option<Event> {
        let link = self.provider.links.get_mut(self.id)?;
        let event = link.poll();
        self.provider.settle(self.id);
        event
    }
}
