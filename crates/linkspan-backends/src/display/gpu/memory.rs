//! Memory of a resource: a sealed file, which viewers can look at.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use linkspan_devices::gpu::Code;
use linkspan_mem::Region;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::{PeerMemory, udmabuf};

const PAGE: u64 = 4096;

/// Bytes that all resources together may take, and do.
#[derive(Debug)]
pub(super) struct Purse {
    max: u64,
    used: AtomicU64,
}

impl Purse {
    pub(super) fn new(max: u64) -> Arc<Self> {
        let used = AtomicU64::new(0);
        Arc::new(Self { max, used })
    }

    fn take(&self, bytes: u64) -> bool {
        let add = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.max);
        let done = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        done.is_ok()
    }
}

/// Memory of a resource. It counts until nobody keeps it any more.
#[derive(Debug)]
pub(super) struct PictureMemory {
    file: PeerMemory,
    pub(super) len: u64,
    purse: Arc<Purse>,
}

impl Drop for PictureMemory {
    fn drop(&mut self) {
        self.purse.used.fetch_sub(self.len, Ordering::Relaxed);
    }
}

impl PictureMemory {
    /// Memory for a picture of so many bytes, and its mapping.
    pub(super) fn new(bytes: u64, purse: &Arc<Purse>) -> Result<(Region, Arc<Self>), Code> {
        let len = bytes.next_multiple_of(PAGE);
        if !purse.take(len) {
            return Err(Code::OutOfMemory);
        }
        let made = Self::make(len, purse);
        made.map_err(|error| {
            tracing::debug!("no memory for a resource: {error}");
            Code::OutOfMemory
        })
    }

    fn make(len: u64, purse: &Arc<Purse>) -> io::Result<(Region, Arc<Self>)> {
        let file = memfd::create("linkspan-gpu", len, Sealing::Fixed).and_then(|file| {
            let memory = PeerMemory::check(file).map_err(io::Error::other)?;
            let mapping = memory.map(0, len, None).map_err(io::Error::other)?;
            Ok((memory, mapping))
        });
        let (file, mapping) = match file {
            Ok(made) => made,
            Err(error) => {
                purse.used.fetch_sub(len, Ordering::Relaxed);
                return Err(error);
            }
        };
        let memory = Self {
            file,
            len,
            purse: Arc::clone(purse),
        };
        Ok((Region::new(Arc::new(mapping)), Arc::new(memory)))
    }

    /// A descriptor by which the memory can be looked at and not changed. It lives on its
    /// own.
    pub(super) fn to_look_at(&self) -> io::Result<OwnedFd> {
        linkspan_mem::fault::point(linkspan_mem::fault::Site::Fd).map_err(io::Error::other)?;
        let number = self.file.as_fd().as_raw_fd();
        Ok(File::open(format!("/proc/self/fd/{number}"))?.into())
    }

    /// The memory as a dma-buf, which graphics drivers take.
    pub(super) fn to_dma_buf(&self) -> io::Result<OwnedFd> {
        udmabuf::export(&self.file, self.len)
    }
}
