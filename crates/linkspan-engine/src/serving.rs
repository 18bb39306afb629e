//! A device that is being served, whoever its driver is: a front end
//! ([`vhost_user::serve`](crate::vhost_user::serve)) or the kernel
//! ([`vduse::serve`](crate::vduse::serve)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use linkspan_sys::EventFd;
use linkspan_sys::thread::spawn;

use crate::endpoint::Endpoint;
use crate::session::NotQuiet;
use crate::vhost_user::Giver;
use crate::worker::signal;

/// A device that is being served by a thread of its own.
#[derive(Debug)]
pub struct Server {
    common: Common,
    /// Hands the link over, where that can be.
    giver: Option<Giver>,
    thread: Option<JoinHandle<Result<(), NotQuiet>>>,
}

/// What a server and its thread both have.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    /// Signalled when the thread is to end.
    pub(crate) cancel: Arc<EventFd>,
    /// Signalled when it has ended.
    ended: Arc<EventFd>,
    /// Signalled when configuration space changed.
    pub(crate) changes: Arc<EventFd>,
    pub(crate) endpoint: Arc<Endpoint>,
    /// Set when another process has the link.
    pub(crate) away: Arc<AtomicBool>,
}

/// Why a server did not stop cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// Requests were still in flight.
    #[error(transparent)]
    NotQuiet(#[from] NotQuiet),
    /// A thread of ours panicked.
    #[error("the thread that serves the device panicked")]
    Panicked,
}

impl Common {
    /// Of a device that may have a descriptor of its own for changes.
    pub(crate) fn new(changes: Option<Arc<EventFd>>) -> io::Result<Self> {
        Ok(Self {
            cancel: Arc::new(EventFd::new()?),
            ended: Arc::new(EventFd::new()?),
            changes: match changes {
                Some(changes) => changes,
                None => Arc::new(EventFd::new()?),
            },
            endpoint: Arc::new(Endpoint::default()),
            away: Arc::default(),
        })
    }
}

impl Server {
    /// Serves by `run`, which ends when `cancel` is signalled.
    pub(crate) fn start(
        name: &str,
        common: Common,
        run: impl FnOnce() -> Result<(), NotQuiet> + Send + 'static,
    ) -> io::Result<Self> {
        let ended = Arc::clone(&common.ended);
        let thread = spawn(name, move || {
            let result = run();
            signal(&ended);
            result
        })?;
        Ok(Self {
            common,
            giver: None,
            thread: Some(thread),
        })
    }

    /// The same with a thread that looks at this desk whenever `cancel` is signalled.
    pub(crate) fn with_giver(mut self, giver: Giver) -> Self {
        self.giver = Some(giver);
        self
    }

    /// Whether another process has the link: it is to be left alone.
    pub fn is_away(&self) -> bool {
        self.common.away.load(Ordering::Acquire)
    }

    /// Hands the link over to another process; `None` where that cannot be.
    pub fn giver(&self) -> Option<Giver> {
        self.giver.clone()
    }

    /// The endpoint, to look at.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.common.endpoint
    }

    /// Becomes readable when serving has ended: by [`stop`](Self::stop), or since
    /// the one connection that it was given is gone.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.common.ended.as_fd()
    }

    /// Says that the device's configuration space changed: a driver that can hear
    /// of it is told (vhost-user: `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`), once for
    /// changes in quick succession. Never waits for it.
    pub fn config_changed(&self) {
        signal(&self.common.changes);
    }

    /// Ends serving once everything in flight is done. A device of the kernel goes
    /// unless it is on the vDPA bus: then another process can go on with it.
    ///
    /// # Errors
    /// When requests in flight did not end in time.
    pub fn stop(mut self) -> Result<(), StopError> {
        self.join()
    }

    fn join(&mut self) -> Result<(), StopError> {
        if let Some(giver) = &self.giver {
            giver.stop();
        }
        signal(&self.common.cancel);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => Ok(result?),
            Some(Err(_)) => Err(StopError::Panicked),
            None => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whoever wants to know calls `stop`.
        let _ = self.join();
    }
}
