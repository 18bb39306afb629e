//! qcow2 images, by the crate `imago`.
//!
//! One thread owns the image: what it does may wait for the disk at any point,
//! and a worker must not. Data goes through a buffer of that thread. So a qcow2
//! image is slower than a raw one, and all its queues share the one thread.
//!
//! A request is answered when the tables that lead to its data have been handed
//! to the kernel. QEMU may leave them in its own memory until a flush, since its
//! guest dies with it; ours lives on when this process is killed, and believes
//! what was answered.

mod chain;
mod header;
mod serve;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use linkspan_sys::thread;

use super::handed::{Handed, HandedQueue};
use super::{Image, ImageQueue, ResizeError};
use chain::ChainOptions;
pub use chain::{CHAIN_MAX, Qcow2Error};
pub(super) use header::MAGIC;
pub use header::{FeatureNames, HeaderError};
pub use serve::contains_panics;

/// A qcow2 image as a disk. Dropping it writes back its tables, and waits for that.
pub struct Qcow2Image {
    handed: Arc<Handed>,
    len: u64,
    cluster: u32,
    read_only: bool,
    thread: Option<JoinHandle<()>>,
}

impl Qcow2Image {
    /// Opens and locks the image and what it stands on; waits at most `lock_wait`
    /// for each other user of a file. Backing images and data files are opened
    /// only below the folders `allowed`.
    ///
    /// # Errors
    /// [`Qcow2Error`]; nothing stays open then.
    pub fn open(
        path: &Path,
        read_only: bool,
        lock_wait: Duration,
        allowed: &[PathBuf],
    ) -> Result<Self, Qcow2Error> {
        let options = ChainOptions {
            read_only,
            lock_wait,
            allowed: allowed.to_vec(),
        };
        let handed = Arc::new(Handed::new()?);
        let (sender, opened) = mpsc::sync_channel(1);
        let (of_thread, path) = (Arc::clone(&handed), path.to_owned());
        // The image is opened where it is used: its reader may panic there.
        let thread = thread::spawn("qcow2", move || {
            serve::run(&path, &options, &of_thread, &sender);
        })?;
        // Dropped on failure, when the thread has nothing to serve and ends.
        let mut image = Self {
            handed,
            len: 0,
            cluster: 512,
            read_only,
            thread: Some(thread),
        };
        let header = match opened.recv() {
            Ok(opened) => opened?,
            Err(mpsc::RecvError) => unreachable!("the thread says how it went"),
        };
        image.len = header.size - header.size % 512;
        image.cluster = header.cluster;
        Ok(image)
    }
}

impl fmt::Debug for Qcow2Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qcow2Image({} bytes)", self.len)
    }
}

impl Drop for Qcow2Image {
    fn drop(&mut self) {
        self.handed.end();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the thread of a qcow2 image panicked");
        }
    }
}

impl Image for Qcow2Image {
    fn len(&self) -> u64 {
        self.len
    }

    /// The size is in the image, which is locked against others.
    fn measure(&self) -> Result<(), ResizeError> {
        Err(ResizeError::Fixed)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn discard_granularity(&self) -> u32 {
        self.cluster
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn ImageQueue>> {
        Ok(Box::new(HandedQueue::new(&self.handed)?))
    }

    fn sync(&self) -> io::Result<()> {
        self.handed.sync()
    }
}
