//! Files below folders that are allowed. A file is made beside its place, without a
//! name where the file system can do that, and put there when it is whole.

mod landing;
mod pending;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use linkspan_mem::fault::{self, Site};
use linkspan_vmbus::fcopy::{Effect, Place};
use linkspan_vmbus::ic::Status;
use linkspan_vmbus::link::{DIGEST_LEN, Digest};
use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, openat2};
use rustix::io::Errno;

use self::landing::Landing;
use self::pending::Pending;
use super::digest;

/// How a file is made before it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Temporary {
    /// Without a name (`O_TMPFILE`), so that nothing is left even if this process is
    /// killed; with one where the file system cannot do that.
    #[default]
    Unnamed,
    /// With a name that begins with `.linkspan-`.
    Named,
}

/// What files and folders become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeOptions {
    /// User and group; those of this process if not given.
    pub owner: Option<(u32, u32)>,
    /// Whether files that exist may be replaced, if that is asked for.
    pub overwrite: bool,
    /// Mode of files.
    pub mode: u32,
    /// Mode of folders that are made.
    pub folder_mode: u32,
    /// How a file is made.
    pub temporary: Temporary,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self {
            owner: None,
            overwrite: false,
            mode: 0o644,
            folder_mode: 0o755,
            temporary: Temporary::default(),
        }
    }
}

/// Why a file is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// There is one, and it is not to be replaced.
    #[error("{name:?} exists")]
    Exists {
        /// Its name.
        name: String,
    },
    /// Something else has its name: a folder, a link, a device.
    #[error("{name:?} is no file")]
    NotAFile {
        /// Its name.
        name: String,
    },
    /// There is not enough room.
    #[error("{size} bytes, where {free} are free")]
    NoRoom {
        /// Bytes of the file.
        size: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// Nothing was begun.
    #[error("no file is open")]
    NotOpen,
    /// The system refused.
    #[error("cannot {what} {name:?}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        name: String,
        /// What it answered.
        source: io::Error,
    },
}

impl FileError {
    /// What the host is told.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Exists { .. } | Self::NotAFile { .. } => Status::ALREADY_EXISTS,
            Self::NoRoom { .. } => Status::DISK_FULL,
            Self::NotOpen => Status::FAIL,
            Self::System { source, .. } => match Errno::from_io_error(source) {
                Some(Errno::EXIST) => Status::ALREADY_EXISTS,
                Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Status::DISK_FULL,
                // What leads out of a root, through a link, or cannot be a name.
                Some(Errno::XDEV | Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL) => {
                    Status::INVALID_ARGUMENT
                }
                Some(Errno::NOSYS) => Status::NOT_SUPPORTED,
                _ => Status::FAIL,
            },
        }
    }
}

fn system(what: &'static str, name: &str) -> impl FnOnce(Errno) -> FileError + use<> {
    let name = name.to_owned();
    move |errno| FileError::System {
        what,
        name,
        source: errno.into(),
    }
}

/// Folders that may be written to, and the file that is being written.
#[derive(Debug)]
pub struct Tree {
    roots: Vec<OwnedFd>,
    options: TreeOptions,
    open: Option<Pending>,
    /// Whether the file that was finished last can be asked for.
    keep: bool,
    last: Option<OwnedFd>,
}

impl Tree {
    /// These folders, in the order in which a [`Place`] counts them.
    ///
    /// # Errors
    /// One is no folder, or the kernel has no openat2 (Linux 5.6).
    pub fn new<P: AsRef<Path>>(roots: &[P], options: TreeOptions) -> Result<Self, FileError> {
        let open = |root: &P| {
            let root = root.as_ref();
            let failed = system("open the folder", &root.to_string_lossy());
            acquire()
                .and_then(|()| {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    openat2(CWD, root, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
                })
                .map_err(failed)
        };
        Ok(Self {
            roots: roots.iter().map(open).collect::<Result<_, _>>()?,
            options,
            open: None,
            keep: false,
            last: None,
        })
    }

    /// Whether the file that was finished last is kept open, to be read back.
    pub fn keep(&mut self, keep: bool) {
        self.keep = keep;
        self.last = None;
    }

    /// Reads a part of the file that was finished last. With its end it is closed.
    pub fn digest(&mut self, offset: u64, len: u32) -> Digest {
        let read = |file: &OwnedFd| {
            let size = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
            Ok((size, digest::read(file.as_fd(), offset, len)?))
        };
        let found = self.last.as_ref().map(read);
        match found.unwrap_or(Err(Errno::BADF)) {
            Ok((size, slice)) => {
                if offset.saturating_add(u64::from(slice.len)) >= size {
                    self.last = None;
                }
                Digest {
                    status: Status::OK,
                    len: slice.len,
                    size,
                    sha256: slice.sha256,
                }
            }
            Err(_) => Digest {
                status: Status::FAIL,
                len: 0,
                size: 0,
                sha256: [0; DIGEST_LEN],
            },
        }
    }

    /// Makes a folder, and what is missing above it if the place says so. One that is
    /// there is as good.
    ///
    /// # Errors
    /// It could not be made; nothing is left then.
    pub fn make_folder(&self, place: &Place) -> Result<(), FileError> {
        let root = self.roots.get(place.root).ok_or(FileError::NotOpen)?;
        let mut landing = Landing::find(root.as_fd(), place, self.options)?;
        let name = landing.name.clone();
        landing
            .make_folder(&name, self.options)
            .map_err(system("make the folder", &name))?;
        landing.made.clear();
        Ok(())
    }

    /// Does what is asked for; `payload` is what the effect came with.
    ///
    /// # Errors
    /// It could not be done. After [`Effect::Open`] nothing is left then; after
    /// [`Effect::Finish`] comes [`Effect::Discard`].
    pub fn carry_out(&mut self, effect: &Effect, payload: &[u8]) -> Result<(), FileError> {
        match effect {
            Effect::Open(place) => {
                (self.open, self.last) = (None, None);
                let root = self.roots.get(place.root).ok_or(FileError::NotOpen)?;
                let pending = Pending::new(root.as_fd(), place, self.options, self.keep)?;
                self.open = Some(pending);
                Ok(())
            }
            Effect::Write { offset, data } => {
                let pending = self.open.as_mut().ok_or(FileError::NotOpen)?;
                let data = payload.get(data.clone()).ok_or(FileError::NotOpen)?;
                pending.write(*offset, data)
            }
            Effect::Finish => {
                let pending = self.open.as_mut().ok_or(FileError::NotOpen)?;
                pending.finish(self.options)?;
                // Without it the file cannot be read back, and that is said then.
                let again = || {
                    acquire().ok()?;
                    pending.file.try_clone().ok()
                };
                self.last = self.keep.then(again).flatten();
                self.open = None;
                Ok(())
            }
            Effect::Discard => {
                self.open = None;
                Ok(())
            }
        }
    }
}

/// Asks the fault seam before something is acquired.
fn acquire() -> Result<(), Errno> {
    fault::point(Site::Fd).map_err(|_| Errno::MFILE)
}

/// The mode is set after the owner, since that takes bits away.
fn own(fd: BorrowedFd<'_>, mode: u32, owner: Option<(u32, u32)>) -> Result<(), Errno> {
    if let Some((user, group)) = owner {
        fchown(fd, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    fchmod(fd, Mode::from_raw_mode(mode))
}
