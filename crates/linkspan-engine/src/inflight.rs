//! The region in which requests in flight are written down, so that the next
//! back end finishes what this one began (vhost-user: Inflight I/O tracking).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_mem::{Region, Window, WindowError};
use linkspan_sys::{EventFd, PeerMemory, mapping, memfd};
use linkspan_vhost::frontend::Inflight;
use linkspan_virtio::{Features, QueueLayout};

/// A mapped region for some rings, from ring 0 on.
#[derive(Debug)]
pub(crate) struct InflightArea {
    region: Region,
    /// For the front end if we made it, and for a successor process.
    file: PeerMemory,
    queues: u16,
    queue_size: u16,
}

/// Why there is no region.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InflightAreaError {
    /// The system refused.
    #[error("the in-flight region: {0}")]
    System(#[source] io::Error),
    /// The file cannot be used.
    #[error("the in-flight region: {0}")]
    Map(#[from] mapping::Error),
    /// Too small for its rings.
    #[error("an in-flight region of {size} bytes is too small for {queues} rings of {queue_size}")]
    TooSmall {
        /// Bytes that it has.
        size: u64,
        /// Rings that it is for.
        queues: u16,
        /// Entries of each.
        queue_size: u16,
    },
    /// The part of a ring does not do.
    #[error("the in-flight region: {0}")]
    Window(#[from] WindowError),
}

impl InflightAreaError {
    /// Whether the system refused something, rather than the file is wrong.
    pub(crate) fn is_system(&self) -> bool {
        use mapping::Error::{System, TooMany};
        matches!(
            self,
            Self::System(_) | Self::Map(System { .. } | TooMany { .. })
        )
    }
}

impl InflightArea {
    /// A new region, all zero: nothing is in flight. Until the features are set
    /// it is large enough for either layout: packed rings need more.
    pub(crate) fn create(
        queues: u16,
        queue_size: u16,
        features: Option<Features>,
    ) -> Result<Self, InflightAreaError> {
        let layout = features.map_or(QueueLayout::Packed, QueueLayout::of);
        let each = layout.inflight_len(queue_size);
        let size = each as u64 * u64::from(queues);
        let fd = memfd::create("linkspan-inflight", size, memfd::Sealing::Fixed)
            .map_err(InflightAreaError::System)?;
        let file = PeerMemory::check(fd)?;
        Ok(Self {
            region: Region::new(Arc::new(file.map(0, size, None)?)),
            file,
            queues,
            queue_size,
        })
    }

    /// The region that the front end kept. Until the features are set it has to
    /// be large enough for split rings, which need less; each part is checked
    /// once more when its ring starts. `gone` is signalled when the front end
    /// takes the memory back.
    pub(crate) fn adopt(
        inflight: Inflight,
        fd: OwnedFd,
        features: Option<Features>,
        gone: &Arc<EventFd>,
    ) -> Result<Self, InflightAreaError> {
        let Inflight {
            size,
            offset,
            queues,
            queue_size,
            ..
        } = inflight;
        let layout = features.map_or(QueueLayout::Split, QueueLayout::of);
        let need = layout.inflight_len(queue_size) as u64 * u64::from(queues);
        if size < need {
            return Err(InflightAreaError::TooSmall {
                size,
                queues,
                queue_size,
            });
        }
        let file = PeerMemory::check(fd)?;
        let mapping = file.map(offset, size, Some(Arc::clone(gone)))?;
        Ok(Self {
            region: Region::new(Arc::new(mapping)),
            file,
            queues,
            queue_size,
        })
    }

    /// A part of a file of our own that outlives this process: what it says of
    /// requests in flight is checked as if it came from a peer. Large enough for
    /// either layout.
    pub(crate) fn of_file(
        fd: OwnedFd,
        offset: u64,
        size: u64,
        queues: u16,
        queue_size: u16,
    ) -> Result<Self, InflightAreaError> {
        let file = PeerMemory::check(fd)?;
        let mapping = file.map(offset, size, None)?;
        Ok(Self {
            region: Region::new(Arc::new(mapping)),
            file,
            queues,
            queue_size,
        })
    }

    /// Bytes of the region.
    pub(crate) fn size(&self) -> u64 {
        self.region.len() as u64
    }

    /// The file that it is in.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether the region has a part for this ring.
    pub(crate) fn covers(&self, ring: u16) -> bool {
        ring < self.queues
    }

    /// Whether the peer took memory back.
    pub(crate) fn poisoned(&self) -> bool {
        self.region.poisoned()
    }

    /// Entries that each ring's part has room for.
    pub(crate) fn queue_size(&self) -> u16 {
        self.queue_size
    }

    /// The part of a ring.
    pub(crate) fn window(
        &self,
        ring: u16,
        layout: QueueLayout,
    ) -> Result<Window, InflightAreaError> {
        let len = layout.inflight_len(self.queue_size);
        let start = len as u64 * u64::from(ring);
        if start + len as u64 > self.size() {
            return Err(InflightAreaError::TooSmall {
                size: self.size(),
                queues: self.queues,
                queue_size: self.queue_size,
            });
        }
        Ok(self.region.window(start, len)?)
    }
}
