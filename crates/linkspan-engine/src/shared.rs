//! What several links of one process share, when another process takes all of them over at
//! once: the ports of a switch have one table of stations.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use linkspan_sys::clock::monotonic_ns;

use crate::device::NotLent;

/// What links share. In the process that has them it is held before the first of them comes to
/// rest, so that what one passes on to another arrives; in the one that takes them over it
/// begins held. It is released once all of them run, in whichever process that is.
pub trait Shared: Send + Sync + 'static {
    /// What another process opens it with while this one still has it, before what the links'
    /// [devices](crate::Device::lend) lend.
    ///
    /// # Errors
    /// It cannot be taken over.
    fn lend(&self) -> Result<Vec<OwnedFd>, NotLent>;

    /// Takes nothing more in, and waits until what was taken in has arrived, no longer than
    /// `limit`.
    ///
    /// # Errors
    /// It took longer, and is released then; or it is held already, since links are on their way
    /// back from another hand-over, and stays so until they are back.
    fn hold(&self, limit: Duration) -> Result<(), NotLent>;

    /// What the process that takes it over has to know. It is held, and no ring runs.
    ///
    /// # Errors
    /// It cannot be taken over now.
    fn save(&self) -> Result<Vec<u8>, NotLent>;

    /// Goes on from what [`save`](Self::save) said in another process. The bytes are checked.
    ///
    /// # Errors
    /// They make no sense here; it is to be dropped then.
    fn load(&self, saved: &[u8]) -> Result<(), NotLent>;

    /// Takes in what comes from now on.
    fn release(&self);
}

/// It is held; the last who drops this releases it, unless it is another process's by then.
pub(crate) struct Held {
    shared: Arc<dyn Shared>,
    /// When that began in this process, as [`monotonic_ns`].
    pub(crate) since: u64,
    away: AtomicBool,
}

impl Held {
    /// Of something that is held already.
    pub(crate) fn new(shared: &Arc<dyn Shared>) -> Arc<Self> {
        Self::begun(shared, monotonic_ns())
    }

    /// Holds it, as [`Shared::hold`].
    ///
    /// # Errors
    /// As that.
    pub(crate) fn hold(shared: &Arc<dyn Shared>, limit: Duration) -> Result<Arc<Self>, NotLent> {
        let since = monotonic_ns();
        shared.hold(limit)?;
        Ok(Self::begun(shared, since))
    }

    fn begun(shared: &Arc<dyn Shared>, since: u64) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            since,
            away: AtomicBool::new(false),
        })
    }

    /// Another process has it.
    pub(crate) fn leave(&self) {
        self.away.store(true, Ordering::Release);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.away.load(Ordering::Acquire) {
            self.shared.release();
        }
    }
}
