//! What goes wrong between a driver and its provider.

use linkspan_rdma::Memories;
use linkspan_rdma::verbs::{Access, Depth, Event, Limits, Post, PostError, Remote, Slice, Verbs};

use super::plan::Fault;
use crate::Rng;

/// How posts are refused, and what else goes wrong between driver and provider.
#[derive(Debug)]
pub(crate) struct Luck {
    pub(crate) rng: Rng,
    pub(crate) refusals: u64,
    pub(crate) refused: u64,
    pub(crate) fault: Fault,
}

impl Luck {
    pub(crate) fn strikes(&mut self, fault: Fault) -> bool {
        self.fault == fault && self.rng.percent(10)
    }

    fn refuses(&mut self) -> Result<(), PostError> {
        if self.refusals > 0 && self.rng.percent(5) {
            self.refusals -= 1;
            self.refused += 1;
            return Err(PostError::Full { max: 0 });
        }
        Ok(())
    }
}

/// A provider that refuses now and then.
pub(crate) struct Moody<'a, C> {
    pub(crate) end: &'a mut C,
    pub(crate) luck: &'a mut Luck,
}

impl<C: Verbs> Verbs for Moody<'_, C> {
    fn limits(&self) -> Limits {
        self.end.limits()
    }

    fn memories(&self) -> &Memories {
        self.end.memories()
    }

    fn accept(&mut self, private_data: &[u8], depth: Depth) -> Result<(), PostError> {
        self.luck.refuses()?;
        self.end.accept(private_data, depth)
    }

    fn reject(&mut self, private_data: &[u8]) -> Result<(), PostError> {
        self.end.reject(private_data)
    }

    fn post_receives(&mut self, count: u32) -> Result<(), PostError> {
        self.luck.refuses()?;
        let few = u32::from(count > 1 && self.luck.fault == Fault::PostsTooFew);
        self.end.post_receives(count - few)
    }

    fn release(&mut self, buffer: Slice) {
        if !self.luck.strikes(Fault::LosesBuffer) {
            self.end.release(buffer);
        }
    }

    fn post(&mut self, post: &Post<'_>) -> Result<(), PostError> {
        self.luck.refuses()?;
        self.end.post(post)
    }

    fn expose(&mut self, slices: &[Slice], access: Access) -> Result<Remote, PostError> {
        self.luck.refuses()?;
        self.end.expose(slices, access)
    }

    fn disconnect(&mut self) {
        self.end.disconnect();
    }

    fn poll(&mut self) -> Option<Event> {
        self.end.poll()
    }
}
