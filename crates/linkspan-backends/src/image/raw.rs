//! Raw images: the bytes of the disk are the bytes of a file or a block device.
//!
//! Operations run inline on the worker: a read or write of cached data is one
//! system call on guest memory, and nothing is cheaper than that.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use linkspan_mem::fault::{self, Injected, Site};
use linkspan_mem::{RegionTable, Span};
use linkspan_sys::file;
use linkspan_sys::lock::{self, Conflict};
use rustix::fs::{FallocateFlags, fallocate};

use super::{Completion, Image, ImageQueue, Operation, ResizeError};

/// The unit of virtio-blk's addresses (virtio 1.3 5.2.4), in bytes.
const SECTOR: u64 = 512;

/// A file or block device as a disk.
#[derive(Debug)]
pub struct RawImage {
    shared: Arc<Shared>,
    block_size: u32,
}

#[derive(Debug)]
struct Shared {
    file: File,
    /// Bytes in the file. The disk has those, rounded up to a sector.
    file_len: AtomicU64,
    read_only: bool,
    /// Set by the first sync that failed and never cleared: what was dirty then
    /// may be lost, and a later sync that succeeds says nothing about it.
    sync_failed: AtomicBool,
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
    /// A descriptor was refused.
    #[error(transparent)]
    Refused(#[from] Injected),
}

/// How long an image may be in use by another process until that is an error: a
/// process that was killed a moment ago may have I/O under way, and only when
/// that has ended are its locks gone.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);

/// How often to look whether an image has become free. The kernel has no wait
/// for this kind of lock.
const LOCK_RETRY: Duration = Duration::from_millis(20);

impl RawImage {
    /// Opens a file or a block device and locks it, as QEMU does, against other
    /// users of the image; waits at most `lock_wait` for those to end.
    ///
    /// # Errors
    /// When it cannot be opened as asked, is something else, is empty, or in use.
    pub fn open(path: &Path, read_only: bool, lock_wait: Duration) -> Result<Self, OpenError> {
        let system = |source| OpenError::System {
            path: path.to_owned(),
            source,
        };
        fault::point(Site::Fd)?;
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            // A FIFO in place of an image must not hang the start.
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .map_err(system)?;
        let metadata = file.metadata().map_err(system)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(OpenError::Kind {
                path: path.to_owned(),
            });
        }
        lock_image(&file, path, read_only, lock_wait)?;
        // Only now: a user before us may have changed the size.
        let extent = file::extent(&file).map_err(system)?;
        let (file_len, block_size) = (extent.bytes, extent.logical_block.unwrap_or(512));
        if file_len == 0 {
            return Err(OpenError::Empty {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            shared: Arc::new(Shared {
                file,
                file_len: AtomicU64::new(file_len),
                read_only,
                sync_failed: AtomicBool::new(false),
            }),
            block_size,
        })
    }
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
        std::thread::sleep(LOCK_RETRY);
    }
}

impl Image for RawImage {
    fn len(&self) -> u64 {
        self.shared.file_len().next_multiple_of(SECTOR)
    }

    fn measure(&self) -> Result<(), ResizeError> {
        let (from, to) = (
            self.shared.file_len(),
            file::extent(&self.shared.file)?.bytes,
        );
        if to < from {
            return Err(ResizeError::Smaller { from, to });
        }
        self.shared.file_len.store(to, Ordering::Release);
        Ok(())
    }

    fn read_only(&self) -> bool {
        self.shared.read_only
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn open_queue(&self) -> io::Result<Box<dyn ImageQueue>> {
        Ok(Box::new(RawQueue {
            image: Arc::clone(&self.shared),
            done: VecDeque::from(fault::try_with_capacity(COMPLETIONS).map_err(io::Error::other)?),
        }))
    }

    fn sync(&self) -> io::Result<()> {
        self.shared.sync()
    }
}

impl Shared {
    fn file_len(&self) -> u64 {
        self.file_len.load(Ordering::Acquire)
    }

    fn read(&self, offset: u64, data: &[Span], memory: &RegionTable) -> io::Result<()> {
        let wanted = spans_len(data);
        let mut done = file::read_spans(self.file.as_fd(), memory, data, offset)?;
        // The last sector of a file that is no multiple of 512 reads as zeroes
        // behind the end; a file that shrank reads as an error.
        if done < wanted && offset + done >= self.file_len() {
            let zeroes = [0; 512];
            let count =
                usize::try_from(wanted - done).map_or(zeroes.len(), |n| n.min(zeroes.len()));
            memory
                .scatter(data, done, &zeroes[..count])
                .map_err(io::Error::other)?;
            done += count as u64;
        }
        if done < wanted {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the image is shorter than it was when it was opened",
            ));
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[Span], memory: &RegionTable) -> io::Result<()> {
        let done = file::write_spans(self.file.as_fd(), memory, data, offset)?;
        if done < spans_len(data) {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier sync of the image failed"));
        }
        self.file
            .sync_data()
            .inspect_err(|_| self.sync_failed.store(true, Ordering::Release))
    }

    fn carry_out(&self, operation: Operation<'_>, memory: &RegionTable) -> io::Result<()> {
        match operation {
            Operation::Read { offset, data } => self.read(offset, data, memory),
            Operation::Write { .. } | Operation::Discard { .. } | Operation::WriteZeroes { .. }
                if self.read_only =>
            {
                Err(io::ErrorKind::ReadOnlyFilesystem.into())
            }
            Operation::Write {
                offset,
                data,
                durable,
            } => {
                self.write(offset, data, memory)?;
                if durable { self.sync() } else { Ok(()) }
            }
            Operation::Flush => self.sync(),
            Operation::Discard { offset, len } => {
                match self.allocate(FallocateFlags::PUNCH_HOLE, offset, len) {
                    // A file system without holes keeps the bytes, which is allowed.
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
                    done => done,
                }
            }
            Operation::WriteZeroes {
                offset,
                len,
                unmap,
                durable,
            } => {
                self.write_zeroes(offset, len, unmap)?;
                if durable { self.sync() } else { Ok(()) }
            }
        }
    }

    fn allocate(&self, how: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        let how = how | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, how, offset, len)?)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let how = if unmap {
            FallocateFlags::PUNCH_HOLE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        match self.allocate(how, offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            done => return done,
        }
        let zeroes = [0; 1 << 16];
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let part = usize::try_from(end - at).map_or(zeroes.len(), |n| n.min(zeroes.len()));
            self.file.write_all_at(&zeroes[..part], at)?;
            at += part as u64;
        }
        Ok(())
    }
}

fn spans_len(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.len())).sum()
}

/// Completions that fit without another allocation; more than a caller that
/// takes each at once ever leaves.
const COMPLETIONS: usize = 16;

struct RawQueue {
    image: Arc<Shared>,
    done: VecDeque<Completion>,
}

impl ImageQueue for RawQueue {
    fn submit(&mut self, token: u32, operation: Operation<'_>, memory: &Arc<RegionTable>) {
        let result = self.image.carry_out(operation, memory);
        self.done.push_back(Completion { token, result });
    }

    fn completion(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use linkspan_mem::{Gpa, GuestMemory, Region, UserVa};

    use super::*;

    fn memory() -> GuestMemory {
        let region = Region::heap(1 << 16).unwrap();
        GuestMemory::new(vec![(region, Gpa(0), UserVa(0x1000))]).unwrap()
    }

    fn spans(memory: &GuestMemory, ranges: &[(u64, u32)]) -> Vec<Span> {
        let mut spans = Vec::new();
        for (at, len) in ranges {
            memory
                .guest
                .resolve(Gpa(*at), *len, |span| spans.push(span))
                .unwrap();
        }
        spans
    }

    fn one(
        queue: &mut dyn ImageQueue,
        operation: Operation<'_>,
        memory: &GuestMemory,
    ) -> io::Result<()> {
        queue.submit(7, operation, memory.table());
        let completion = queue.completion().unwrap();
        assert_eq!(completion.token, 7);
        completion.result
    }

    fn image_of(bytes: &[u8], read_only: bool) -> (tempfile::NamedTempFile, RawImage) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let image = RawImage::open(file.path(), read_only, Duration::ZERO).unwrap();
        (file, image)
    }

    #[test]
    fn data_moves_between_file_and_scattered_memory() {
        let (file, image) = image_of(&[0x11; 4096], false);
        let memory = memory();
        let mut queue = image.open_queue().unwrap();
        let data = spans(&memory, &[(100, 300), (5000, 724)]);
        memory.table().scatter(&data, 0, &[0xAB; 1024]).unwrap();
        one(
            &mut *queue,
            Operation::Write {
                offset: 512,
                data: &data,
                durable: true,
            },
            &memory,
        )
        .unwrap();
        let on_disk = std::fs::read(file.path()).unwrap();
        assert!(
            on_disk[..512]
                .iter()
                .chain(&on_disk[1536..])
                .all(|b| *b == 0x11)
        );
        assert!(on_disk[512..1536].iter().all(|b| *b == 0xAB));

        let back = spans(&memory, &[(20000, 1536)]);
        one(
            &mut *queue,
            Operation::Read {
                offset: 0,
                data: &back,
            },
            &memory,
        )
        .unwrap();
        let mut bytes = [0; 1536];
        memory.table().gather(&back, 0, &mut bytes).unwrap();
        assert_eq!(bytes, on_disk[..1536]);
        one(&mut *queue, Operation::Flush, &memory).unwrap();
    }

    #[test]
    fn a_file_with_a_broken_last_sector_reads_zeroes_behind_its_end() {
        let (_file, image) = image_of(&[0x22; 700], false);
        assert_eq!(image.len(), 1024);
        let memory = memory();
        let data = spans(&memory, &[(0, 1024)]);
        memory.table().scatter(&data, 0, &[0xFF; 1024]).unwrap();
        one(
            &mut *image.open_queue().unwrap(),
            Operation::Read {
                offset: 0,
                data: &data,
            },
            &memory,
        )
        .unwrap();
        let mut bytes = [0; 1024];
        memory.table().gather(&data, 0, &mut bytes).unwrap();
        assert!(bytes[..700].iter().all(|b| *b == 0x22));
        assert!(bytes[700..].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_file_that_shrank_gives_an_error_and_not_zeroes() {
        let (file, image) = image_of(&[1; 4096], false);
        file.as_file().set_len(1024).unwrap();
        let memory = memory();
        let data = spans(&memory, &[(0, 2048)]);
        let result = one(
            &mut *image.open_queue().unwrap(),
            Operation::Read {
                offset: 0,
                data: &data,
            },
            &memory,
        );
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_read_only_image_is_never_written() {
        let (file, image) = image_of(&[1; 512], true);
        let memory = memory();
        let data = spans(&memory, &[(0, 512)]);
        let result = one(
            &mut *image.open_queue().unwrap(),
            Operation::Write {
                offset: 0,
                data: &data,
                durable: false,
            },
            &memory,
        );
        assert_eq!(
            result.unwrap_err().kind(),
            io::ErrorKind::ReadOnlyFilesystem
        );
        assert_eq!(std::fs::read(file.path()).unwrap(), [1; 512]);
    }

    #[test]
    fn what_is_no_image_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            RawImage::open(folder.path(), true, Duration::ZERO),
            Err(OpenError::Kind { .. })
        ));
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            RawImage::open(empty.path(), false, Duration::ZERO),
            Err(OpenError::Empty { .. })
        ));
        let missing = folder.path().join("missing");
        let error = RawImage::open(&missing, false, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }

    #[test]
    fn an_image_in_use_is_refused_and_a_free_one_taken_within_the_wait() {
        let (file, image) = image_of(&[1; 512], false);
        let again = |wait| RawImage::open(file.path(), false, wait);
        assert!(matches!(
            again(Duration::ZERO),
            Err(OpenError::InUse { .. })
        ));
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| again(LOCK_WAIT));
            drop(image);
            waiting.join()
        });
        assert!(waiting.is_ok_and(|opened| opened.is_ok()));
    }
}
