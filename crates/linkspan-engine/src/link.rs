//! A device that is driven, over whatever it is reached.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use linkspan_sys::EventFd;

use crate::config_space::ConfigSpace;
use crate::endpoint::Endpoint;
use crate::worker::signal;

/// A device that is driven over a link. Dropping it ends the link.
#[derive(Debug)]
pub struct Link {
    pub(crate) cancel: Arc<EventFd>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) config: Arc<ConfigSpace>,
    pub(crate) thread: Option<JoinHandle<()>>,
}

impl Link {
    /// The endpoint, to look at.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The device's configuration space, as many bytes of it as were asked for:
    /// what it said last, none from a back end without
    /// `VHOST_USER_PROTOCOL_F_CONFIG`. A disk that grew is seen here.
    pub fn config(&self) -> Vec<u8> {
        self.config.read()
    }

    /// Becomes readable when [`config`](Self::config) has changed since it was
    /// last called. The device says so itself (a back end by
    /// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`), or another one took its place.
    pub fn config_changed(&self) -> BorrowedFd<'_> {
        self.config.changed()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        signal(&self.cancel);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the link's thread panicked");
        }
    }
}
