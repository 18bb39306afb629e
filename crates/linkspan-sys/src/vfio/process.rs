//! A process that has VFIO devices, from who looks at what it shows.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use linkspan_mem::fault::Site;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::linux::is_device_link;
use crate::acquire;

/// A descriptor of VFIO that a process has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// A device.
    Device {
        /// Its number there.
        fd: i32,
        /// What it is called: of a node, its path.
        link: PathBuf,
    },
    /// A group, by its number; its devices are in sysfs.
    Group(u32),
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// A process by its number.
    ///
    /// # Errors
    /// `ESRCH`: there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        acquire(Site::Fd)?;
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or(rustix::io::Errno::SRCH)?;
        let fd = pidfd_open(number, PidfdFlags::empty())?;
        Ok(Self { pid, fd })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0)
    }

    /// What it has of VFIO.
    ///
    /// # Errors
    /// `EACCES` when it belongs to somebody else.
    pub fn held(pid: u32) -> io::Result<Vec<Held>> {
        let mut held = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let entry = entry?;
            let Some(fd) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // It may have closed this one meanwhile.
            let Ok(link) = fs::read_link(entry.path()) else {
                continue;
            };
            if is_device_link(link.as_os_str().as_bytes()) {
                held.push(Held::Device { fd, link });
            } else if let Some(group) = link
                .to_str()
                .and_then(|link| link.strip_prefix("/dev/vfio/"))
                .and_then(|number| number.parse().ok())
            {
                held.push(Held::Group(group));
            }
        }
        held.sort_by_key(|held| match held {
            Held::Device { fd, .. } => (0, i64::from(*fd)),
            Held::Group(group) => (1, i64::from(*group)),
        });
        Ok(held)
    }

    /// A descriptor of it, for us: the same open file.
    ///
    /// # Errors
    /// `EPERM` without the right to debug it; `EBADF` when it has closed that.
    pub fn take(&self, fd: i32) -> io::Result<OwnedFd> {
        acquire(Site::Fd)?;
        Ok(pidfd_getfd(&self.fd, fd, PidfdGetfdFlags::empty())?)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsRawFd as _;

    #[test]
    fn a_process_is_seen_to_end_and_gives_its_descriptors() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.has_ended());
        assert_eq!(Process::held(child.id()).unwrap(), []);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(process.has_ended());
        assert_eq!(
            process.take(0).unwrap_err().raw_os_error(),
            Some(libc::ESRCH)
        );
        // One's own can be had without a right.
        let ours = Process::open(std::process::id()).unwrap();
        let taken = ours.take(ours.as_fd().as_raw_fd()).unwrap();
        assert_ne!(taken.as_raw_fd(), ours.as_fd().as_raw_fd());
        assert!(Process::open(0).is_err() && Process::open(u32::MAX).is_err());
    }
}
