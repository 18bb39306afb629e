//! The image seam: what a block device stands on.
//!
//! A queue of a device opens an [`ImageQueue`] of its own, hands it operations
//! on spans of guest memory, and takes completions by token. Data goes between
//! the image and guest memory directly wherever the format allows it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use linkspan_mem::{RegionTable, Span};

pub(crate) mod handed;
mod memory;
mod open;
mod options;
pub mod qcow2;
mod raw;
mod spec;

pub use memory::{MemoryImage, NullImage};
pub use open::{ImageError, ImageOptions, open, take_over};
pub use options::{Durability, Engine, Io, LOCK_WAIT, OpenError, OpenOptions};
pub use qcow2::Qcow2Image;
pub use raw::RawImage;
pub use spec::{Format, FormatError, SizeError, Spec, SpecError, parse_size};

/// How often to look whether an image has become free. The kernel has no wait for this kind
/// of lock.
pub(crate) const TURN_RETRY: Duration = Duration::from_millis(20);

/// A disk image, shared by the queues that serve it.
pub trait Image: Send + Sync + 'static {
    /// Size in bytes; a multiple of 512. It never gets smaller.
    fn len(&self) -> u64;

    /// Looks again how large the image is, which somebody may have enlarged;
    /// [`len`](Self::len) says what was found, and the operations of all queues
    /// reach that far. May wait for the image.
    ///
    /// # Errors
    /// [`ResizeError`]; everything is as before then.
    fn measure(&self) -> Result<(), ResizeError> {
        Ok(())
    }

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// The unit in bytes in which the image is best accessed.
    fn block_size(&self) -> u32;

    /// The unit in bytes in which the image gives storage back; a power of two
    /// from 512 on.
    fn discard_granularity(&self) -> u32 {
        4096
    }

    /// Acquires ahead what queues need that a sandbox will not let this process have any more:
    /// so many queues, of at most `depth` operations each.
    ///
    /// # Errors
    /// When a resource cannot be had.
    fn prepare(&self, queues: u16, depth: u16) -> io::Result<()> {
        let _ = (queues, depth);
        Ok(())
    }

    /// A queue for one worker, of at most `depth` operations at a time.
    ///
    /// # Errors
    /// When a resource cannot be had.
    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn ImageQueue>>;

    /// Makes everything durable that was written before, for a clean stop.
    ///
    /// # Errors
    /// When the system could not, now or at any time before: a failed sync stays failed.
    fn sync(&self) -> io::Result<()>;

    /// What another process opens the image with while this one still has it, so that it can
    /// go on with it: see [`take_over`].
    ///
    /// # Errors
    /// It cannot, in words.
    fn lend(&self) -> Result<Vec<OwnedFd>, String> {
        Err("an image of this kind cannot be handed to another process".to_owned())
    }

    /// Another process may have taken it over when its queues end next.
    fn leave(&self) {}

    /// The disk is to be closed: what waits for somebody who is away fails soon from now on.
    fn hurry(&self) {}
}

/// Why an image does not have a new size.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// The system would not measure it.
    #[error("the image cannot be measured: {0}")]
    System(#[from] io::Error),
    /// Its size is part of its format.
    #[error(
        "the size of a qcow2 image is in the image, which nobody else can change while it is served; \
         end this process, `qemu-img resize` it, and start anew"
    )]
    Fixed,
    /// It is measured when it is opened.
    #[error(
        "the size of a disk on a share is that of when it was opened; end this process, enlarge the file, and start anew"
    )]
    Share,
    /// It got smaller: a driver that still uses the end of it would lose data.
    #[error(
        "the image got smaller, from {from} to {to} bytes, which a disk in use cannot; enlarge it again or start anew"
    )]
    Smaller {
        /// Bytes that it had.
        from: u64,
        /// Bytes that it has now.
        to: u64,
    },
}

/// Operations of one queue, used by one worker.
pub trait ImageQueue: Send {
    /// Whether operations may be handed over. Not while another process has the image, to
    /// which a guest may migrate or from which it comes: ask again after [`TURN_RETRY`].
    fn has_turn(&mut self) -> bool {
        true
    }

    /// Hands over an operation, and gives what came of it if that is known at once.
    /// Otherwise there will be a completion that carries `token`; it may wait for
    /// [`launch`](Self::launch) before it begins. The spans point into `memory`, which
    /// the queue keeps for as long as it needs it.
    fn submit(
        &mut self,
        token: u32,
        operation: Operation<'_>,
        memory: &Arc<RegionTable>,
    ) -> Option<io::Result<()>>;

    /// Begins everything that was submitted, with one system call where it takes
    /// any: to be called after a batch.
    fn launch(&mut self) {}

    /// The next completion, if one is there.
    fn completion(&mut self) -> Option<Completion>;

    /// Is readable when completions are there that were not when
    /// [`completion`](Self::completion) last gave `None`, and perhaps at other
    /// times. A queue that does everything within `submit` has none.
    fn completion_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether a completion is there, as far as that can be seen without a system
    /// call: asked often by a worker that looks for work instead of sleeping.
    fn has_completion(&self) -> bool {
        false
    }
}

/// What to do to an image. Offsets and sizes are in bytes, inside the image, and
/// multiples of 512.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// Reads from `offset` into `data`.
    Read {
        /// First byte in the image.
        offset: u64,
        /// Where the data goes.
        data: &'a [Span],
    },
    /// Writes `data` from `offset` on.
    Write {
        /// First byte in the image.
        offset: u64,
        /// Where the data is.
        data: &'a [Span],
        /// Whether it must be durable before it completes: set when the driver
        /// has no way to ask for a flush.
        durable: bool,
    },
    /// Makes durable what was completed before.
    Flush,
    /// Says that these bytes are of no use: from now on they read as anything, or
    /// as zeroes. An image that cannot make use of that does nothing.
    Discard {
        /// First byte in the image.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Makes bytes read as zeroes.
    WriteZeroes {
        /// First byte in the image.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Whether they may give up their place in the image.
        unmap: bool,
        /// As for a write.
        durable: bool,
    },
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The token it was submitted with.
    pub token: u32,
    /// Whether it was done. An error is that of this operation only.
    pub result: io::Result<()>,
}
