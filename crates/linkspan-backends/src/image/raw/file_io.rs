//! The file behind a raw image: every operation as calls that wait, the flags
//! that they need, and the errors that stay.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use linkspan_sys::file::{self, ReadWriteFlags, Transfer};
use linkspan_sys::storage::{self, Alignment, Range};
use rustix::io::Errno;

use super::SECTOR;
use super::bounce::{Bounce, Buffer};
use super::mapped::Mapped;
use super::turns::Turns;
use crate::image::Durability;

/// Bytes that are discarded or zeroed at a time: the file system keeps writes
/// to the file out for as long as one such call takes.
const SLICE: u64 = 64 << 20;

/// A file or block device whose bytes are those of a disk.
#[derive(Debug)]
pub(super) struct RawFile {
    pub(super) file: File,
    /// The open file that has the lock, if another process opened it.
    pub(super) lock: Option<OwnedFd>,
    /// Who has the lock, if it is not had for as long as the file is open.
    pub(super) turns: Option<Turns>,
    /// Bytes in the file. The disk has those, rounded up to a sector.
    pub(super) len: AtomicU64,
    pub(super) read_only: bool,
    pub(super) durability: Durability,
    /// Whether the file system can read only what is cached.
    pub(super) nowait: bool,
    /// The file as memory, if what is cached is read so.
    pub(super) mapped: Option<Mapped>,
    /// What memory and places must be aligned to, if the page cache is not used.
    pub(super) direct: Option<Alignment>,
    /// Bytes of a block, if it is a block device.
    pub(super) device_block: Option<u32>,
    /// Held shared by writes of whole blocks and exclusively by writes of parts,
    /// which first read the block, where a block is more than a sector.
    pub(super) blocks: RwLock<()>,
    /// Set by the first sync that failed and never cleared: what was dirty then
    /// may be lost, and a later sync that succeeds says nothing about it.
    pub(super) sync_failed: AtomicBool,
}

impl RawFile {
    /// The open file that has the lock.
    pub(super) fn locked_by(&self) -> BorrowedFd<'_> {
        self.lock.as_ref().map_or(self.as_fd(), AsFd::as_fd)
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Reads what is cached without a system call; `false` when it has to be read
    /// otherwise.
    #[inline]
    pub(super) fn read_mapped(&self, transfer: &Transfer<'_>, done: &mut u64) -> bool {
        let Some(mapped) = &self.mapped else {
            return false;
        };
        if !mapped.read(transfer, self.len()) {
            return false;
        }
        *done = transfer.len();
        true
    }

    /// Reads what is cached. `None` when that is not all.
    #[inline]
    pub(super) fn read_cached(
        &self,
        transfer: &Transfer<'_>,
        done: &mut u64,
    ) -> Option<io::Result<()>> {
        let flags = ReadWriteFlags::NOWAIT;
        match file::read_spans(self.as_fd(), transfer, done, flags) {
            Ok(()) => Some(self.end_read(transfer, *done)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Reads all that is left of a transfer.
    pub(super) fn read(
        &self,
        transfer: &Transfer<'_>,
        done: &mut u64,
        bounce: &mut Bounce,
    ) -> io::Result<()> {
        match self.direct {
            Some(alignment) if !is_aligned(alignment, transfer, *done) => {
                bounce.read(self.as_fd(), alignment, transfer, done)?;
            }
            _ => file::read_spans(self.as_fd(), transfer, done, ReadWriteFlags::empty())?,
        }
        self.end_read(transfer, *done)
    }

    /// Judges a read of which nothing more comes. The last sector of a file that
    /// is no multiple of 512 reads as zeroes behind the end; a file that shrank
    /// reads as an error.
    pub(super) fn end_read(&self, transfer: &Transfer<'_>, done: u64) -> io::Result<()> {
        let missing = transfer.len() - done;
        if missing == 0 {
            return Ok(());
        }
        if missing < SECTOR && transfer.offset + done >= self.len() {
            let zeroes = [0; 512];
            let count = usize::try_from(missing).unwrap_or(zeroes.len());
            let part = &zeroes[..count];
            let filled = transfer.table.scatter(transfer.spans, done, part);
            return filled.map_err(io::Error::other);
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the image is shorter than it was when it was opened",
        ))
    }

    /// Writes all that is left of a transfer.
    pub(super) fn write(
        &self,
        transfer: &Transfer<'_>,
        done: &mut u64,
        durable: bool,
        bounce: &mut Bounce,
    ) -> io::Result<()> {
        let flags = self.write_flags(durable);
        let result = match self.direct {
            Some(alignment) => self.write_direct(alignment, transfer, done, flags, bounce),
            None => file::write_spans(self.as_fd(), transfer, done, flags),
        };
        self.end_write(transfer, *done, durable, result)
    }

    fn write_direct(
        &self,
        alignment: Alignment,
        transfer: &Transfer<'_>,
        done: &mut u64,
        flags: ReadWriteFlags,
        bounce: &mut Bounce,
    ) -> io::Result<()> {
        let block = u64::from(alignment.offset);
        let (_shared, _alone);
        if block > SECTOR {
            let whole = (transfer.offset + *done).is_multiple_of(block)
                && (transfer.len() - *done).is_multiple_of(block);
            if whole {
                _shared = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
            } else {
                _alone = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
            }
        }
        if is_aligned(alignment, transfer, *done) {
            file::write_spans(self.as_fd(), transfer, done, flags)
        } else {
            bounce.write(self.as_fd(), alignment, transfer, done, flags)
        }
    }

    /// The flags of a write that is to be durable, or not.
    pub(super) fn write_flags(&self, durable: bool) -> ReadWriteFlags {
        if durable {
            ReadWriteFlags::DSYNC
        } else {
            ReadWriteFlags::empty()
        }
    }

    /// Judges a write of which nothing more is done.
    pub(super) fn end_write(
        &self,
        transfer: &Transfer<'_>,
        done: u64,
        durable: bool,
        result: io::Result<()>,
    ) -> io::Result<()> {
        match result {
            Ok(()) if done < transfer.len() => Err(io::ErrorKind::WriteZero.into()),
            Err(error) if durable && loses_data(&error) => self.end_sync(Err(error)),
            result => result,
        }
    }

    /// Whether a write must be durable when it is answered.
    pub(super) fn is_durable(&self, asked: bool) -> bool {
        match self.durability {
            Durability::Flush => asked,
            Durability::EachWrite => true,
            Durability::Nothing => false,
        }
    }

    /// What to answer to a flush, or a durable write, before anything is done:
    /// nothing may be needed, or nothing help any more.
    pub(super) fn sync_at_once(&self) -> Option<io::Result<()>> {
        if self.durability == Durability::Nothing {
            return Some(Ok(()));
        }
        let failed = self.sync_failed.load(Ordering::Acquire);
        failed.then(|| Err(io::Error::other("an earlier sync of the image failed")))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        match self.sync_at_once() {
            Some(known) => known,
            None => self.end_sync(file::sync_data(&self.file)),
        }
    }

    /// Keeps in mind that a sync failed.
    pub(super) fn end_sync(&self, result: io::Result<()>) -> io::Result<()> {
        if result.is_err() {
            self.sync_failed.store(true, Ordering::Release);
        }
        result
    }

    /// Does something to a range that no mapping may outlive.
    fn change(&self, offset: u64, len: u64, how: Range) -> io::Result<bool> {
        let forget = || {
            if let Some(mapped) = &self.mapped {
                mapped.forget(offset, len);
            }
        };
        forget();
        let changed = storage::change_range(&self.file, how, offset, len);
        forget();
        changed
    }

    /// Lets the file system forget a range. That it cannot is no error.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        // A device refuses parts of blocks, and a hint may cover less.
        let block = u64::from(self.device_block.unwrap_or(1));
        let from = offset.next_multiple_of(block);
        let to = (offset + len) / block * block;
        for (at, len) in slices(from, to.saturating_sub(from)) {
            if !self.change(at, len, Range::Hole)? {
                break;
            }
        }
        Ok(())
    }

    /// Makes a range read as zeroes.
    pub(super) fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        unmap: bool,
        durable: bool,
        bounce: &mut Bounce,
    ) -> io::Result<()> {
        for (at, len) in slices(offset, len) {
            let block = u64::from(self.device_block.unwrap_or(1));
            let whole = at.is_multiple_of(block) && len.is_multiple_of(block);
            let changed = whole
                && ((unmap && self.change(at, len, Range::Hole)?)
                    || self.change(at, len, Range::Zeroes)?);
            if !changed {
                self.write_plain_zeroes(at, len, bounce)?;
            }
        }
        if durable { self.sync() } else { Ok(()) }
    }

    pub(super) fn write_plain_zeroes(
        &self,
        offset: u64,
        len: u64,
        bounce: &mut Bounce,
    ) -> io::Result<()> {
        let zeroes = Buffer::new()?;
        let mut at = offset;
        while at < offset + len {
            let (table, span) = zeroes.part(0, offset + len - at);
            let part = Transfer {
                table,
                spans: &[span],
                offset: at,
            };
            self.write(&part, &mut 0, false, bounce)?;
            at += part.len();
        }
        Ok(())
    }
}

impl AsFd for RawFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A range in pieces of at most [`SLICE`] bytes: offsets and sizes.
fn slices(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..len.div_ceil(SLICE)).map(move |index| {
        let at = index * SLICE;
        (offset + at, SLICE.min(len - at))
    })
}

/// Whether what is left of a transfer can go past the page cache as it is.
pub(super) fn is_aligned(alignment: Alignment, transfer: &Transfer<'_>, done: u64) -> bool {
    let block = alignment.offset as usize;
    // What is done keeps the alignment if it is whole blocks.
    (transfer.offset | done).is_multiple_of(u64::from(alignment.offset))
        && transfer.spans.iter().all(|span| {
            let bytes = transfer.table.slice(*span);
            bytes.len().is_multiple_of(block)
                && bytes
                    .as_ptr()
                    .addr()
                    .is_multiple_of(alignment.memory as usize)
        })
}

/// Whether a durable write that failed like this may have lost data of others:
/// not when it was refused before it began.
fn loses_data(error: &io::Error) -> bool {
    !matches!(
        Errno::from_io_error(error),
        Some(
            Errno::FAULT | Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::INVAL | Errno::NOMEM
        )
    )
}
