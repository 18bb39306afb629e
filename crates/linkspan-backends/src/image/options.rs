//! How an image is opened, and why it is not.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use linkspan_mem::fault::Injected;
use linkspan_sys::lock::Conflict;
use linkspan_sys::uring;

/// How long an image may be in use by another process until that is an error: a
/// process that was killed a moment ago may have I/O under way on a slow disk, and
/// only when that has ended are its locks gone.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);

/// How an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Whether writes are refused.
    pub read_only: bool,
    /// How long to wait for other users of the image to end.
    pub lock_wait: Duration,
    /// Who does what cannot be done at once.
    pub io: Io,
    /// Whether the data goes past the page cache of this machine (`O_DIRECT`).
    pub direct: bool,
    /// What a write and a flush promise.
    pub durability: Durability,
    /// Whether what is cached may be read through a mapping of the file.
    pub mapped: bool,
    /// Whether the image is locked only while queues of it are open, so that another process
    /// can have it open that a guest migrates to.
    pub migratable: bool,
}

impl Default for OpenOptions {
    /// For reading and writing, waiting [`LOCK_WAIT`], with the page cache and a mapping.
    fn default() -> Self {
        Self {
            read_only: false,
            lock_wait: LOCK_WAIT,
            io: Io::default(),
            direct: false,
            durability: Durability::default(),
            mapped: true,
            migratable: false,
        }
    }
}

/// Who does the I/O that would make a worker wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// Nobody, for a file that is memory: the worker does it at once. Else
    /// `io_uring`, or threads where that is refused.
    #[default]
    Auto,
    /// `io_uring`; an error where it is refused.
    Uring,
    /// Threads.
    Threads,
}

/// What a write and a flush promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A write is durable when it was flushed.
    #[default]
    Flush,
    /// Each write is durable when it is answered.
    EachWrite,
    /// Nothing is made durable, a flush does nothing: for images that are thrown
    /// away.
    Nothing,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The system would not open or measure it.
    #[error("{path}: {source}", path = path.display())]
    System {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("{path}: neither a regular file nor a block device", path = path.display())]
    Kind {
        /// The image.
        path: PathBuf,
    },
    /// No bytes.
    #[error("{path}: the image is empty; make one with `truncate -s 1G {path}`", path = path.display())]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// Another process uses it in a way that excludes this one.
    #[error("{path}: {conflict}; end that process first", path = path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// Who is in the way.
        conflict: Conflict,
    },
    /// The image that another process hands over is another one.
    #[error("{path}: not the image that the other process has", path = path.display())]
    Other {
        /// The image.
        path: PathBuf,
    },
    /// It cannot be used past the page cache.
    #[error("{path}: cannot be used past the page cache: {source}; use the cache", path = path.display())]
    Direct {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Past the page cache only whole blocks can be written.
    #[error(
        "{path}: past the page cache the size must be a multiple of {block} bytes, and is {bytes}; \
         use the cache, or enlarge the image",
        path = path.display()
    )]
    Unaligned {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// Bytes of a block.
        block: u32,
    },
    /// `io_uring` was asked for and cannot be had.
    #[error(transparent)]
    Uring(#[from] uring::Error),
    /// A descriptor was refused.
    #[error(transparent)]
    Refused(#[from] Injected),
}

/// Who does the I/O of an opened image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The worker.
    Inline,
    /// A ring of each queue.
    Uring,
    /// Threads that all queues share.
    Threads,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inline => "the workers, since the image is memory",
            Self::Uring => "io_uring",
            Self::Threads => "threads",
        })
    }
}
