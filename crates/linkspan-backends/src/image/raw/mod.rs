//! Raw images: the bytes of the disk are the bytes of a file or a block device.
//!
//! A read of cached data is one system call on guest memory, by the worker, and
//! nothing is cheaper than that. What would make the worker wait goes through
//! `io_uring`, or to threads where that is refused.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use linkspan_mem::fault::{self, Site};
use linkspan_sys::file;
use linkspan_sys::lock;
use linkspan_sys::reaper;
use linkspan_sys::storage::{self, Alignment};
use linkspan_sys::uring::{self, Ring};
use rustix::fs::{FileType, OFlags, Stat, fcntl_getfl, fcntl_setfl, fstat};

use super::options::{Engine, Io, OpenError, OpenOptions};
use super::{Image, ImageQueue, ResizeError, TURN_RETRY};

mod bounce;
mod file_io;
mod job;
mod mapped;
mod pool;
mod queue;
mod rings;
#[cfg(test)]
mod tests;
mod turns;

use file_io::RawFile;
use mapped::Mapped;
use pool::{Pool, Port};
use queue::RawQueue;
use rings::Rings;
use turns::Turns;

/// The unit of virtio-blk's addresses (virtio 1.3 5.2.4), in bytes.
const SECTOR: u64 = 512;

/// The largest block size of a disk, in bytes: Linux knows no larger ones.
const BLOCK_MAX: u32 = 32768;

/// The coarsest alignment of memory that a buffer of ours has, in bytes.
const MEMORY_ALIGNMENT_MAX: u32 = 4096;

/// A file or block device as a disk.
#[derive(Debug)]
pub struct RawImage {
    file: Arc<RawFile>,
    engine: Engine,
    pool: Arc<Pool>,
    rings: Arc<Rings>,
}

impl RawImage {
    /// Opens a file or a block device and locks it, as QEMU does, against other
    /// users of the image.
    ///
    /// # Errors
    /// When it cannot be opened as asked, is something else, is empty, or in use.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, OpenError> {
        let file = open_file(path, options)?;
        if !options.migratable {
            lock_image(&file, path, options.read_only, options.lock_wait)?;
        }
        Self::of(path, options, file, None)
    }

    /// Opens the file or block device that another process has open and locked: `lock` is
    /// a descriptor of its open file, and the lock is ours as well for as long as we have it.
    ///
    /// # Errors
    /// As [`open`](Self::open), or it is another file.
    pub fn take_over(path: &Path, options: &OpenOptions, lock: OwnedFd) -> Result<Self, OpenError> {
        let file = open_file(path, options)?;
        let known = (fstat(&file), fstat(&lock));
        let same = matches!(known, (Ok(own), Ok(other)) if is_same(&own, &other));
        if !same {
            reaper::dispose(lock);
            let path = path.to_owned();
            return Err(OpenError::Other { path });
        }
        Self::of(path, options, file, Some(lock))
    }

    fn of(
        path: &Path,
        options: &OpenOptions,
        file: File,
        lock: Option<OwnedFd>,
    ) -> Result<Self, OpenError> {
        let system = |source| OpenError::System {
            path: path.to_owned(),
            source,
        };
        // Only now: a user before us may have changed the size.
        let extent = file::extent(&file).map_err(system)?;
        if extent.bytes == 0 {
            return Err(OpenError::Empty {
                path: path.to_owned(),
            });
        }
        let in_memory = storage::in_memory(&file).map_err(system)?;
        // A file that is memory has no way past a cache, and needs none.
        let direct = options.direct && !in_memory;
        let direct = match direct.then(|| alignment(&file, extent.logical_block)) {
            None => None,
            Some(Ok(alignment)) => Some(alignment),
            Some(Err(source)) => {
                return Err(OpenError::Direct {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        if let Some(Alignment { offset: block, .. }) = direct
            && !extent.bytes.is_multiple_of(u64::from(block))
        {
            return Err(OpenError::Unaligned {
                path: path.to_owned(),
                bytes: extent.bytes,
                block,
            });
        }
        let engine = if in_memory && options.io == Io::Auto {
            Engine::Inline
        } else {
            engine(&file, options.io, direct)?
        };
        tracing::info!("{}: I/O is done by {engine}", path.display());
        let nowait = direct.is_none() && storage::reads_without_wait(&file).map_err(system)?;
        let mapped = if options.mapped && direct.is_none() {
            map(&file, path)
        } else {
            None
        };
        let file = Arc::new(RawFile {
            file,
            turns: options.migratable.then(|| Turns::new(path, lock.is_some())),
            lock,
            mapped,
            len: AtomicU64::new(extent.bytes),
            read_only: options.read_only,
            durability: options.durability,
            nowait,
            direct,
            device_block: extent.logical_block,
            blocks: RwLock::default(),
            sync_failed: AtomicBool::new(false),
        });
        Ok(Self {
            pool: Arc::new(Pool::new(Arc::clone(&file))),
            file,
            engine,
            rings: Arc::default(),
        })
    }

    /// Who does the I/O.
    pub fn engine(&self) -> Engine {
        self.engine
    }
}

/// The file as memory, where that serves. It is done without where it cannot be had.
fn map(file: &File, path: &Path) -> Option<Mapped> {
    match Mapped::new(file) {
        Ok(mapped) => Some(mapped),
        Err(error) => {
            tracing::debug!("{}: is not mapped: {error}", path.display());
            None
        }
    }
}

fn open_file(path: &Path, options: &OpenOptions) -> Result<File, OpenError> {
    let system = |source| OpenError::System {
        path: path.to_owned(),
        source,
    };
    fault::point(Site::Fd)?;
    // A FIFO in place of an image must not hang the start.
    let mut flags = OFlags::NONBLOCK;
    if options.direct {
        flags |= OFlags::DIRECT;
    }
    let opened = File::options()
        .read(true)
        .write(!options.read_only)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let file = match opened {
        Err(source) if options.direct && source.kind() == io::ErrorKind::InvalidInput => {
            return Err(OpenError::Direct {
                path: path.to_owned(),
                source,
            });
        }
        opened => opened.map_err(system)?,
    };
    let metadata = file.metadata().map_err(system)?;
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        return Err(OpenError::Kind {
            path: path.to_owned(),
        });
    }
    // From here on it waits: io_uring takes the flag as a wish for EAGAIN.
    let flags = fcntl_getfl(&file).map_err(|errno| system(errno.into()))?;
    fcntl_setfl(&file, flags - OFlags::NONBLOCK).map_err(|errno| system(errno.into()))?;
    Ok(file)
}

pub(super) fn lock_image(
    file: &File,
    path: &Path,
    read_only: bool,
    wait: Duration,
) -> Result<(), OpenError> {
    let deadline = Instant::now() + wait;
    let mut told = false;
    loop {
        let conflict = match lock::lock_image(file.as_fd(), read_only) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(conflict)) => conflict,
            Err(error) => {
                tracing::warn!(
                    "{}: cannot be locked, so nothing keeps others from using it: {error}",
                    path.display()
                );
                return Ok(());
            }
        };
        if Instant::now() >= deadline {
            return Err(OpenError::InUse {
                path: path.to_owned(),
                conflict,
            });
        }
        if !told {
            tracing::info!("{}: {conflict}; waiting for it to end", path.display());
            told = true;
        }
        std::thread::sleep(TURN_RETRY);
    }
}

/// What I/O past the page cache must be aligned to. A kernel that does not say
/// takes blocks of the device, or of 4096 bytes.
fn alignment(file: &File, logical_block: Option<u32>) -> io::Result<Alignment> {
    let block = logical_block.unwrap_or(4096);
    let found = storage::direct_alignment(file)?.unwrap_or(Alignment {
        memory: block,
        offset: block,
    });
    if found.offset > BLOCK_MAX || found.memory > MEMORY_ALIGNMENT_MAX {
        let text = format!("it asks for {found:?} bytes, which is too much");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let offset = found.offset.max(512);
    Ok(Alignment { offset, ..found })
}

/// Who does what makes a worker wait.
fn engine(file: &File, wish: Io, direct: Option<Alignment>) -> Result<Engine, OpenError> {
    if wish == Io::Threads {
        return Ok(Engine::Threads);
    }
    // A write of a part of a block reads the rest first and keeps other writes
    // to the block out meanwhile, which only threads can wait for.
    if let Some(Alignment { offset, .. }) = direct
        && u64::from(offset) > SECTOR
    {
        return Ok(Engine::Threads);
    }
    choose(wish, Ring::new(file.as_fd(), 1).map(drop))
}

/// The choice between `io_uring` and threads, after a trial of the first.
fn choose(wish: Io, trial: Result<(), uring::Error>) -> Result<Engine, OpenError> {
    match trial {
        Ok(()) => Ok(Engine::Uring),
        Err(error @ uring::Error::Refused { .. }) if wish == Io::Auto => {
            tracing::info!("{error}; threads do the I/O");
            Ok(Engine::Threads)
        }
        Err(error) => Err(OpenError::Uring(error)),
    }
}

impl Image for RawImage {
    fn len(&self) -> u64 {
        self.file.len().next_multiple_of(SECTOR)
    }

    fn measure(&self) -> Result<(), ResizeError> {
        let (from, to) = (self.file.len(), file::extent(&self.file)?.bytes);
        if to < from {
            return Err(ResizeError::Smaller { from, to });
        }
        // Past the page cache there is no part of a block.
        let block = self.file.direct.map_or(1, |direct| direct.offset);
        let to = to / u64::from(block) * u64::from(block);
        self.file.len.store(to, Ordering::Release);
        Ok(())
    }

    fn read_only(&self) -> bool {
        self.file.read_only
    }

    fn block_size(&self) -> u32 {
        let direct = self.file.direct.map(|direct| direct.offset);
        direct.max(self.file.device_block).unwrap_or(512)
    }

    fn prepare(&self, queues: u16, depth: u16) -> io::Result<()> {
        if self.engine != Engine::Uring {
            return Ok(());
        }
        let rings = self.rings.prepare(self.file.as_fd(), queues, depth);
        rings.map_err(io::Error::other)
    }

    fn open_queue(&self, depth: u16) -> io::Result<Box<dyn ImageQueue>> {
        let port = Port::new(Arc::clone(&self.pool), usize::from(depth))?;
        let ring = match self.engine {
            Engine::Inline => None,
            Engine::Threads => {
                self.pool.start()?;
                None
            }
            Engine::Uring => {
                let ring = self.rings.take(self.file.as_fd(), depth);
                let ring = ring.map_err(io::Error::other)?;
                if ring.is_none() {
                    tracing::info!("more queues than rings were made for: threads do the I/O");
                    self.pool.start()?;
                }
                ring
            }
        };
        let file = Arc::clone(&self.file);
        let inline = self.engine == Engine::Inline;
        Ok(Box::new(RawQueue::new(file, port, ring, inline, depth)?))
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn leave(&self) {
        if let Some(turns) = &self.file.turns {
            turns.stay();
        }
    }

    fn lend(&self) -> Result<Vec<OwnedFd>, String> {
        if self.file.sync_failed.load(Ordering::Acquire) {
            return Err(
                "writes to the image were lost, which another process would not know; \
                 end this one and look after the disk"
                    .to_owned(),
            );
        }
        let lock = self.file.locked_by().try_clone_to_owned();
        Ok(vec![lock.map_err(|error| error.to_string())?])
    }
}

/// Whether two open files are the same file, or the same device.
fn is_same(one: &Stat, other: &Stat) -> bool {
    let kind = |stat: &Stat| FileType::from_raw_mode(stat.st_mode);
    kind(one) == kind(other)
        && match kind(one) {
            FileType::BlockDevice => one.st_rdev == other.st_rdev,
            _ => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        }
}
