//! A file that is being written.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use linkspan_mem::fault;
use linkspan_vmbus::fcopy::{FRAGMENT_MAX, Place};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FsWord, RenameFlags, fallocate, fdatasync, fstatfs, fstatvfs,
    linkat, renameat, renameat_with, unlinkat,
};
use rustix::io::{Errno, pwrite};

use super::landing::Landing;
use super::{FileError, TreeOptions, own, system};

/// Bytes that are written at once, as far as they come one behind the other: whole pages,
/// and few enough to stay in the processor's cache.
const TOGETHER: usize = 16 * FRAGMENT_MAX;

/// What tmpfs says that it is (linux/magic.h).
const TMPFS_MAGIC: FsWord = 0x0102_1994;

/// A file that is not whole. Dropped, it takes all with it that was made for it.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) file: OwnedFd,
    /// The name that it has meanwhile, if it needs one.
    temporary: Option<String>,
    place: Landing,
    /// What is still to be written, and where it begins.
    kept: Vec<u8>,
    kept_at: u64,
    /// Something that was said to be taken is not written: nothing makes it whole.
    lost: Option<Errno>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(name) = self.temporary.take() {
            let _ = unlinkat(&self.place.folder, name.as_str(), AtFlags::empty());
        }
    }
}

impl Pending {
    pub(super) fn new(
        root: BorrowedFd<'_>,
        place: &Place,
        options: TreeOptions,
        readable: bool,
    ) -> Result<Self, FileError> {
        let place_of = Landing::find(root, place, options)?;
        place_of.check()?;
        let (file, temporary) = place_of.make(options.temporary, readable)?;
        let mut pending = Self {
            file,
            temporary,
            place: place_of,
            kept: Vec::new(),
            kept_at: 0,
            lost: None,
        };
        let room = TOGETHER.min(usize::try_from(place.size).unwrap_or(TOGETHER));
        let refused = |_| system("take up", &pending.place.name)(Errno::NOMEM);
        pending.kept = fault::try_with_capacity(room).map_err(refused)?;
        pending.reserve(place.size)?;
        Ok(pending)
    }

    /// Room for all of it, or an error before the first byte has come.
    fn reserve(&self, size: u64) -> Result<(), FileError> {
        if size == 0 {
            return Ok(());
        }
        if !self.in_memory() {
            match retry(|| fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, size)) {
                // Not every file system can do that.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                done => return done.map_err(system("reserve room for", &self.place.name)),
            }
        }
        let room = fstatvfs(&self.file).map_err(system("ask for the room of", &self.place.name))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        // A file system in memory without a limit says that it has no blocks at all.
        if free < size && room.f_blocks != 0 {
            return Err(FileError::NoRoom { size, free });
        }
        Ok(())
    }

    /// Whether the file is in memory, where room is reserved page by page: that takes as
    /// long as to write them, and the host waits meanwhile.
    fn in_memory(&self) -> bool {
        fstatfs(&self.file).is_ok_and(|system| system.f_type == TMPFS_MAGIC)
    }

    /// Takes bytes. What comes one behind the other is written together, so an error may
    /// be that of bytes before; it is the error of all that comes later.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), FileError> {
        let behind = self.kept_at + self.kept.len() as u64;
        let room = self.kept.capacity() - self.kept.len();
        if offset != behind || data.len() > room {
            self.write_kept()?;
            self.kept_at = offset;
        }
        if data.len() > self.kept.capacity() {
            return self.write_now(offset, data);
        }
        self.kept.extend_from_slice(data);
        if self.kept.len() == self.kept.capacity() {
            return self.write_kept();
        }
        self.soundness()
    }

    fn write_kept(&mut self) -> Result<(), FileError> {
        let kept = std::mem::take(&mut self.kept);
        let written = self.write_now(self.kept_at, &kept);
        self.kept_at += kept.len() as u64;
        self.kept = kept;
        self.kept.clear();
        written
    }

    fn write_now(&mut self, offset: u64, data: &[u8]) -> Result<(), FileError> {
        let mut done = 0;
        while self.lost.is_none() && done < data.len() {
            let at = offset + done as u64;
            match retry(|| pwrite(&self.file, &data[done..], at)) {
                Ok(0) => self.lost = Some(Errno::IO),
                Ok(count) => done += count,
                Err(errno) => self.lost = Some(errno),
            }
        }
        self.soundness()
    }

    fn soundness(&self) -> Result<(), FileError> {
        let lost = self.lost.map(system("write", &self.place.name));
        lost.map_or(Ok(()), Err)
    }

    /// Puts it in its place. What the system has kept back so far is told here.
    pub(super) fn finish(&mut self, options: TreeOptions) -> Result<(), FileError> {
        self.write_kept()?;
        let name = self.place.name.clone();
        retry(|| fdatasync(&self.file)).map_err(system("write", &name))?;
        own(self.file.as_fd(), options.mode, options.owner)
            .map_err(system("give the mode and the owner to", &name))?;
        // Somebody may have put something else there meanwhile.
        self.place.check()?;
        if self.place.overwrite {
            if self.temporary.is_none() {
                self.temporary = Some(self.place.name_once(|temporary| self.link(temporary))?);
            }
            let temporary = self.temporary.as_deref().unwrap_or_default();
            renameat(&self.place.folder, temporary, &self.place.folder, &*name)
        } else if let Some(temporary) = &self.temporary {
            let folder = &self.place.folder;
            renameat_with(folder, &**temporary, folder, &*name, RenameFlags::NOREPLACE)
        } else {
            self.link(&name)
        }
        .map_err(system("put in its place", &name))?;
        self.temporary = None;
        // They are wanted now.
        self.place.made.clear();
        Ok(())
    }

    /// Gives the file without a name this one.
    fn link(&self, name: &str) -> Result<(), Errno> {
        let folder = &self.place.folder;
        match linkat(&self.file, "", folder, name, AtFlags::EMPTY_PATH) {
            // Without CAP_DAC_READ_SEARCH, which others need for it.
            Err(Errno::NOENT | Errno::PERM) => {
                let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(CWD, path, folder, name, AtFlags::SYMLINK_FOLLOW)
            }
            done => done,
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}
