//! The order in which chains came, where they must go back in the same order.

use alloc::collections::VecDeque;

use linkspan_mem::fault::{self, Injected, Site};

/// Names of chains, oldest first. Kept by a side of a queue with
/// `VIRTIO_F_IN_ORDER` (virtio 1.3 2.7.9, 2.8.9).
#[derive(Debug)]
pub(crate) struct Order(VecDeque<u16>);

impl Order {
    /// Room for `size` chains, so that keeping order never allocates.
    pub(crate) fn new(size: u16) -> Result<Self, Injected> {
        fault::point(Site::Alloc)?;
        let mut names = VecDeque::new();
        names
            .try_reserve_exact(usize::from(size))
            .map_err(|_| Injected { site: Site::Alloc })?;
        Ok(Self(names))
    }

    #[inline]
    pub(crate) fn add(&mut self, name: u16) {
        self.0.push_back(name);
    }

    pub(crate) fn remove_newest(&mut self) -> Option<u16> {
        self.0.pop_back()
    }

    #[inline]
    pub(crate) fn remove_oldest(&mut self) -> Option<u16> {
        self.0.pop_front()
    }
}
