//! The kernel's end of a file system in user space (FUSE): messages to and from it, the
//! mount of a single file, and files that stand behind what is mapped.

use crate::acquire;
use crate::seccomp::requests;
use linkspan_mem::fault::Site;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read, write};
use rustix::mount::{MountFlags, UnmountFlags, mount};
use std::ffi::{CString, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Bytes that a buffer for [`Fuse::receive`] has at least (`FUSE_MIN_READ_BUFFER`).
pub const BUFFER_MIN: usize = 8192;

/// `FUSE_DEV_IOC_BACKING_OPEN`: `_IOW(229, 1, struct fuse_backing_map)`.
const BACKING_OPEN: libc::Ioctl = iow(1, size_of::<BackingMap>());

/// `FUSE_DEV_IOC_BACKING_CLOSE`: `_IOW(229, 2, uint32_t)`.
const BACKING_CLOSE: libc::Ioctl = iow(2, size_of::<u32>());

/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, uint32_t)`.
const CLONE: u32 = 0x8004_e500;

/// What is asked of the device, for a filter of calls.
pub(crate) const CALLS: &[u32] = requests![BACKING_OPEN, BACKING_CLOSE, CLONE];

/// include/uapi/linux/fuse.h, `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// A request that writes to the kernel, of FUSE's type 229.
#[expect(clippy::cast_possible_truncation, reason = "16 bytes at most")]
const fn iow(number: u32, size: usize) -> libc::Ioctl {
    const WRITE: u32 = 1;
    const TYPE: u32 = 229;
    (WRITE << 30 | (size as u32) << 16 | TYPE << 8 | number) as libc::Ioctl
}

/// What [`Fuse::receive`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message of so many bytes.
    Message(usize),
    /// Nothing at the moment.
    Nothing,
    /// The mount is gone, and there will be nothing any more.
    Unmounted,
}

/// A connection to the kernel, not blocking; readable when there is a message. Whoever
/// uses the file that it serves gets errors once this is dropped.
#[derive(Debug)]
pub struct Fuse(OwnedFd);

impl Fuse {
    /// A connection that is not mounted yet.
    ///
    /// # Errors
    /// `ENOENT` and `ENODEV` where the kernel has no FUSE, `EPERM` and `EACCES` where
    /// this process may not use it.
    pub fn open() -> io::Result<Self> {
        acquire(Site::Fd)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(Self(open("/dev/fuse", flags, Mode::empty())?))
    }

    /// Mounts it on the file `at`, of this mode, as a regular file of this process's user.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN; what `mount(2)` reports.
    pub fn mount(&self, at: &Path, mode: u32) -> io::Result<()> {
        acquire(Site::Alloc)?;
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let options = format!(
            "fd={},rootmode={:o},user_id={},group_id={},default_permissions,allow_other",
            self.0.as_raw_fd(),
            libc::S_IFREG | mode,
            user.as_raw(),
            group.as_raw(),
        );
        let options = CString::new(options).expect("numbers and words");
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        Ok(mount("linkspan", at, "fuse", flags, options.as_c_str())?)
    }

    /// Takes the kernel's next message into `buffer`. Never waits.
    ///
    /// # Errors
    /// `EINVAL` for a buffer of less than [`BUFFER_MIN`].
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            return match read(&self.0, &mut *buffer) {
                Ok(len) => Ok(Received::Message(len)),
                Err(Errno::AGAIN) => Ok(Received::Nothing),
                Err(Errno::NODEV) => Ok(Received::Unmounted),
                // A request whose caller took it back while it was read.
                Err(Errno::INTR | Errno::NOENT) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Gives the kernel an answer, or a notification. One whose request is gone, or
    /// whose mount is, is dropped.
    ///
    /// # Errors
    /// `EINVAL` for what is no message.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        loop {
            return match write(&self.0, message) {
                Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::PERM) => Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Makes `file` one that can stand behind an open file; what is mapped of that one
    /// are then its pages. Gives its number.
    ///
    /// # Errors
    /// `ENOTTY` and `EINVAL` from a kernel that cannot, `EPERM` without CAP_SYS_ADMIN or
    /// where it was not negotiated.
    pub fn back(&self, file: BorrowedFd<'_>) -> io::Result<i32> {
        acquire(Site::Fd)?;
        let map = BackingMap {
            fd: file.as_raw_fd(),
            flags: 0,
            padding: 0,
        };
        // SAFETY: the kernel reads the structure, which is of the request's size.
        let id = unsafe { libc::ioctl(self.0.as_raw_fd(), BACKING_OPEN, &raw const map) };
        positive(id)
    }

    /// Gives a number of [`back`](Self::back) back. Open files keep their file.
    ///
    /// # Errors
    /// `ENOENT` for a number that was not given out.
    pub fn unback(&self, id: i32) -> io::Result<()> {
        // SAFETY: the kernel reads the number, which is of the request's size.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), BACKING_CLOSE, &raw const id) };
        positive(done).map(drop)
    }
}

impl AsFd for Fuse {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes the mount at `at` away; with `lazily` its name at once, and itself when nobody uses it
/// any more.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `EBUSY` if it is used, `EINVAL` if nothing is mounted there.
pub fn unmount(at: &Path, lazily: bool) -> io::Result<()> {
    let flags = match lazily {
        true => UnmountFlags::DETACH,
        false => UnmountFlags::empty(),
    };
    Ok(rustix::mount::unmount(at, flags | UnmountFlags::NOFOLLOW)?)
}

fn positive(result: c_int) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_are_those_of_the_kernels_header() {
        assert_eq!(BACKING_OPEN, 0x4010_e501);
        assert_eq!(BACKING_CLOSE, 0x4004_e502);
    }

    #[test]
    fn a_connection_that_was_never_mounted_carries_nothing() {
        let Ok(fuse) = Fuse::open() else {
            return;
        };
        let mut buffer = [0; BUFFER_MIN];
        assert!(fuse.receive(&mut buffer).is_err());
        assert!(fuse.back(fuse.as_fd()).is_err());
    }
}
