//! A disk image on a share.
//!
//! One thread owns the connection and the open file. Requests of all queues are in flight
//! together. When the connection is lost it makes another one, and what was not answered is asked
//! again; no request fails for that before the time limit.
//!
//! What keeps the disk as it should be:
//! - The file is opened so that nobody else may write it, nor read it where it is written here. A
//!   new connection names the session of the one before, which the server ends first; and the file
//!   cannot be opened again while the old one is. So nothing that was asked before is done
//!   after what is asked again.
//! - What was written and not flushed stays here, and is written again on each new connection: the
//!   server may have lost it with its memory, and would say to the next flush that all is well.
//! - Two changes of the same byte are never in flight together.

mod file;
mod reconnect;
mod serve;
mod work;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use linkspan_sys::thread;

use super::error::Error;
use super::share::Share;
use crate::image::handed::{Handed, HandedQueue};
use crate::image::{Image, ImageQueue, ResizeError};
use file::Target;
use serve::Server;

/// How a disk on a share is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Whether writes are refused.
    pub read_only: bool,
    /// How long to wait for other users of the file to end.
    pub lock_wait: Duration,
    /// How long requests wait for a new connection until they fail; for ever without it.
    pub time_limit: Option<Duration>,
}

/// A disk image on a share. Dropping it closes the file.
pub struct SmbImage {
    handed: Arc<Handed>,
    len: u64,
    read_only: bool,
    thread: Option<JoinHandle<()>>,
}

impl SmbImage {
    /// Opens the file at a path of a share as a disk.
    ///
    /// # Errors
    /// The server refuses, somebody else has it open, it is no file, or it has no sector;
    /// nothing stays open then.
    pub fn open(mut share: Share, path: &str, options: &DiskOptions) -> Result<Self, Error> {
        let mut target = Target::new(path, options.read_only);
        let open = target.open_within(&mut share, options.lock_wait)?;
        let handed = Arc::new(Handed::new().map_err(Error::Here)?);
        let len = target.len;
        let server = Server::new(share, target, open, &handed, options.time_limit)?;
        let thread = thread::spawn("disk on a share", move || server.run());
        Ok(Self {
            handed,
            len,
            read_only: options.read_only,
            thread: Some(thread.map_err(Error::Here)?),
        })
    }
}

impl fmt::Debug for SmbImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SmbImage({} bytes)", self.len)
    }
}

impl Drop for SmbImage {
    fn drop(&mut self) {
        self.handed.end();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the thread of a disk on a share panicked");
        }
    }
}

impl Image for SmbImage {
    fn len(&self) -> u64 {
        self.len
    }

    /// It was measured when it was opened, and nobody else may write it.
    fn measure(&self) -> Result<(), ResizeError> {
        Err(ResizeError::Share)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn ImageQueue>> {
        Ok(Box::new(HandedQueue::new(&self.handed)?))
    }

    fn sync(&self) -> io::Result<()> {
        self.handed.sync()
    }

    /// A server that is away is not waited for until the time limit any more.
    fn hurry(&self) {
        self.handed.hurry();
    }
}
