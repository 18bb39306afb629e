//! Mounts that nobody else sees.

use crate::acquire;
use linkspan_mem::fault::Site;
use rustix::fs::{Mode, OFlags, open, symlink};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Gives this thread, and the programs that it starts from now on, mounts of their own:
/// what is mounted there is seen by no other, and goes with the last of them.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; `ENOSPC` and `ENOMEM`.
pub fn unshare_thread() -> io::Result<()> {
    acquire(Site::Alloc)?;
    // SAFETY: descriptors stay shared. What this thread has alone from now on, its
    // folder, root and mask of modes, belongs to nothing that is kept in memory.
    unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS)? };
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", flags)?)
}

/// Covers `dir` with an empty folder in memory that has everything that `dir` has except
/// `without`: the place for something else.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; what `mount(2)` reports. Whoever called
/// [`unshare_thread`] ends the thread then.
pub fn shadow(dir: &Path, without: &OsStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    acquire(Site::Fd)?;
    let old = open(dir, flags, Mode::empty())?;
    // Names of what is covered, by the descriptor.
    let below = Path::new("/proc/self/fd").join(old.as_raw_fd().to_string());
    let entries = fs::read_dir(&below)?.collect::<io::Result<Vec<_>>>()?;
    acquire(Site::Alloc)?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount("linkspan", dir, "tmpfs", flags, c"mode=0755")?;
    for entry in entries {
        let name = entry.file_name();
        if name == without {
            continue;
        }
        let (from, to) = (below.join(&name), dir.join(&name));
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
            continue;
        }
        if kind.is_dir() {
            fs::create_dir(&to)?;
        } else {
            drop(File::create(&to)?);
        }
        match mount_bind_recursive(&from, &to) {
            // It went in the meantime, as devices do.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_mounts_is_seen_by_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        fs::create_dir(path.join("folder")).unwrap();
        for name in ["folder/inner", "file", "hidden"] {
            fs::write(path.join(name), name).unwrap();
        }
        symlink("file", path.join("link")).unwrap();
        let thread = std::thread::spawn({
            let path = path.clone();
            move || {
                match unshare_thread() {
                    Err(error) if error.raw_os_error() == Some(libc::EPERM) => return,
                    done => done.unwrap(),
                }
                shadow(&path, OsStr::new("hidden")).unwrap();
                for name in ["folder/inner", "file", "link"] {
                    assert!(path.join(name).is_file(), "{name}");
                }
                assert_eq!(fs::read(path.join("link")).unwrap(), b"file");
                assert!(!path.join("hidden").exists());
                fs::write(path.join("hidden"), "another").unwrap();
            }
        });
        thread.join().unwrap();
        assert_eq!(fs::read(path.join("hidden")).unwrap(), b"hidden");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 4);
    }
}
