//! Where a file goes: the folder, with what was made of it, and the name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linkspan_vmbus::fcopy::{Place, Target};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat2, statat, unlinkat,
};
use rustix::io::Errno;

use super::{FileError, Temporary, TreeOptions, acquire, own, system};

/// No step of a path leaves the folder that it began in, by whatever trick.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS);

/// What a file that is not whole is called, where it needs a name.
const TEMPORARY: &str = ".linkspan-";

/// How often a name or a path that changes under us is tried again.
const TRIES: u32 = 16;

/// Where a file goes.
#[derive(Debug)]
pub(super) struct Landing {
    pub(super) folder: OwnedFd,
    pub(super) name: String,
    pub(super) overwrite: bool,
    /// Folders that were made for it: where, and their names.
    pub(super) made: Vec<(OwnedFd, String)>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        while let Some((parent, name)) = self.made.pop() {
            // One that somebody has put something into stays.
            let _ = unlinkat(&parent, name.as_str(), AtFlags::REMOVEDIR);
        }
    }
}

impl Landing {
    pub(super) fn find(
        root: BorrowedFd<'_>,
        place: &Place,
        options: TreeOptions,
    ) -> Result<Self, FileError> {
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

    pub(super) fn make_folder(
        &mut self,
        name: &str,
        options: TreeOptions,
    ) -> Result<OwnedFd, Errno> {
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
    pub(super) fn check(&self) -> Result<(), FileError> {
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
    pub(super) fn make(
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
    pub(super) fn name_once(
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
