//! Configuration space of a device that is driven over a link, for whoever uses
//! the link.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use linkspan_sys::EventFd;

use crate::worker::signal;

/// What the back end last said. One thread writes it.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: Mutex<Vec<u8>>,
    changed: EventFd,
}

impl ConfigSpace {
    pub(crate) fn new(bytes: Vec<u8>) -> io::Result<Self> {
        Ok(Self {
            bytes: Mutex::new(bytes),
            changed: EventFd::new()?,
        })
    }

    /// What it is now; from now on only later changes are told of.
    pub(crate) fn read(&self) -> Vec<u8> {
        // First: a change after this is told of again rather than not at all.
        if let Err(error) = self.changed.drain() {
            panic!("our own eventfd cannot be read: {error}");
        }
        self.lock().clone()
    }

    /// Becomes readable with a change that was not read yet.
    pub(crate) fn changed(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// What the back end says now; whether that is another thing than before.
    pub(crate) fn replace(&self, bytes: &[u8]) -> bool {
        let mut known = self.lock();
        if *known == bytes {
            return false;
        }
        bytes.clone_into(&mut known);
        drop(known);
        signal(&self.changed);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
