//! Files below folders that are allowed. A file is made beside its place, without a
//! name where the file system can do that, and put there when it is whole.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use linkspan_mem::fault::{self, Site};
use linkspan_vmbus::fcopy::{Effect, FRAGMENT_MAX, Place, Target};
use linkspan_vmbus::ic::Status;
use linkspan_vmbus::link::{DIGEST_LEN, Digest};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Uid,
    fallocate, fchmod, fchown, fdatasync, fstat, fstatvfs, linkat, mkdirat, openat2, renameat,
    renameat_with, statat, unlinkat,
};
use rustix::io::{Errno, pwrite};

use super::digest;

/// No step of a path leaves the folder that it began in, by whatever trick.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS);

/// Bytes that are written at once, as far as they come one behind the other: whole pages,
/// and few enough to stay in the processor's cache.
const TOGETHER: usize = 16 * FRAGMENT_MAX;

/// What a file that is not whole is called, where it needs a name.
const TEMPORARY: &str = ".linkspan-";

/// How often a name or a path that changes under us is tried again.
const TRIES: u32 = 16;

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

/// A file that is not whole. Dropped, it takes all with it that was made for it.
#[derive(Debug)]
struct Pending {
    file: OwnedFd,
    /// The name that it has meanwhile, if it needs one.
    temporary: Option<String>,
    place: Landing,
    /// What is still to be written, and where it begins.
    kept: Vec<u8>,
    kept_at: u64,
    /// Something that was said to be taken is not written: nothing makes it whole.
    lost: Option<Errno>,
}

/// Where a file goes.
#[derive(Debug)]
struct Landing {
    folder: OwnedFd,
    name: String,
    overwrite: bool,
    /// Folders that were made for it: where, and their names.
    made: Vec<(OwnedFd, String)>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        while let Some((parent, name)) = self.made.pop() {
            // One that somebody has put something into stays.
            let _ = unlinkat(&parent, name.as_str(), AtFlags::REMOVEDIR);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(name) = self.temporary.take() {
            let _ = unlinkat(&self.place.folder, name.as_str(), AtFlags::empty());
        }
    }
}

impl Pending {
    fn new(
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
        match retry(|| fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, size)) {
            // Not every file system can do that.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            done => return done.map_err(system("reserve room for", &self.place.name)),
        }
        let room = fstatvfs(&self.file).map_err(system("ask for the room of", &self.place.name))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if free < size {
            return Err(FileError::NoRoom { size, free });
        }
        Ok(())
    }

    /// Takes bytes. What comes one behind the other is written together, so an error may
    /// be that of bytes before; it is the error of all that comes later.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), FileError> {
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
    fn finish(&mut self, options: TreeOptions) -> Result<(), FileError> {
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

impl Landing {
    fn find(root: BorrowedFd<'_>, place: &Place, options: TreeOptions) -> Result<Self, FileError> {
        let mut landing = Self {
            folder: folder(root, ".").map_err(system("open the folder", ""))?,
            name: String::new(),
            overwrite: place.overwrite && options.overwrite,
            made: Vec::new(),
        };
        if !place.folder.is_empty() {
            landing.descend(root, &place.folder, place.create_path, options)?;
        }
        match &place.target {
            Target::In { name } => landing.name.clone_from(name),
            Target::At { last, name } => match folder(landing.folder.as_fd(), last) {
                Ok(inner) => {
                    landing.folder = inner;
                    landing.name.clone_from(name);
                }
                Err(Errno::NOENT | Errno::NOTDIR) => landing.name.clone_from(last),
                Err(errno) => return Err(system("open the folder", last)(errno)),
            },
        }
        Ok(landing)
    }

    /// Opens the folder below a root, and makes what is missing of it.
    fn descend(
        &mut self,
        root: BorrowedFd<'_>,
        path: &str,
        create: bool,
        options: TreeOptions,
    ) -> Result<(), FileError> {
        match folder(root, path) {
            Err(Errno::NOENT) if create => {}
            done => {
                self.folder = done.map_err(system("open the folder", path))?;
                return Ok(());
            }
        }
        for part in path.split('/') {
            let next = match folder(self.folder.as_fd(), part) {
                Err(Errno::NOENT) => self.make_folder(part, options),
                done => done,
            };
            self.folder = next.map_err(system("make the folder", part))?;
        }
        Ok(())
    }

    fn make_folder(&mut self, name: &str, options: TreeOptions) -> Result<OwnedFd, Errno> {
        acquire()?;
        let parent = self.folder.try_clone().map_err(|_| Errno::MFILE)?;
        match mkdirat(&self.folder, name, Mode::RWXU) {
            // Somebody else made it.
            Err(Errno::EXIST) => return folder(self.folder.as_fd(), name),
            done => done?,
        }
        self.made.push((parent, name.to_owned()));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let made = beneath(self.folder.as_fd(), name, flags, Mode::empty())?;
        own(made.as_fd(), options.folder_mode, options.owner)?;
        Ok(made)
    }

    /// Whether a file can be put there.
    fn check(&self) -> Result<(), FileError> {
        let name = self.name.clone();
        match statat(&self.folder, &*self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(system("look for", &name)(errno)),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
                Err(FileError::NotAFile { name })
            }
            Ok(_) if self.overwrite => Ok(()),
            Ok(_) => Err(FileError::Exists { name }),
        }
    }

    /// A file that nobody sees, or that nobody takes for whole.
    fn make(
        &self,
        temporary: Temporary,
        readable: bool,
    ) -> Result<(OwnedFd, Option<String>), FileError> {
        let mode = Mode::RUSR | Mode::WUSR;
        let access = if readable {
            OFlags::RDWR
        } else {
            OFlags::WRONLY
        };
        let flags = access | OFlags::CLOEXEC;
        let folder = self.folder.as_fd();
        if temporary == Temporary::Unnamed {
            match beneath(folder, ".", flags | OFlags::TMPFILE, mode) {
                // What file systems and kernels say that cannot do it.
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
                done => {
                    let file = done.map_err(system("make", &self.name))?;
                    return Ok((file, None));
                }
            }
        }
        let mut file = None;
        let name = self.name_once(|name| {
            let flags = flags | OFlags::CREATE | OFlags::EXCL;
            file = Some(beneath(folder, name, flags, mode)?);
            Ok(())
        })?;
        let file = file.ok_or(FileError::NotOpen)?;
        Ok((file, Some(name)))
    }

    /// A name that is not taken, with which `make` has made something.
    fn name_once(
        &self,
        mut make: impl FnMut(&str) -> Result<(), Errno>,
    ) -> Result<String, FileError> {
        let mut tries = 0;
        loop {
            let mut bytes = [0; 8];
            let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
            filled.map_err(system("find a name beside", &self.name))?;
            let name = format!("{TEMPORARY}{:016x}", u64::from_ne_bytes(bytes));
            match make(&name) {
                Err(Errno::EXIST) if tries < TRIES => tries += 1,
                done => {
                    done.map_err(system("make a file beside", &self.name))?;
                    return Ok(name);
                }
            }
        }
    }
}

/// A folder below this one, by a path without links.
fn folder(parent: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    beneath(parent, path, flags, Mode::empty())
}

fn beneath(
    parent: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    acquire()?;
    let mut tries = 0;
    loop {
        match openat2(parent, path, flags, mode, BENEATH) {
            // Something was renamed while the kernel walked.
            Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => tries += 1,
            done => return done,
        }
    }
}

/// The mode is set after the owner, since that takes bits away.
fn own(fd: BorrowedFd<'_>, mode: u32, owner: Option<(u32, u32)>) -> Result<(), Errno> {
    if let Some((user, group)) = owner {
        fchown(fd, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    fchmod(fd, Mode::from_raw_mode(mode))
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}
