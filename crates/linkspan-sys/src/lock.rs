//! Locks on disk images, byte for byte those of QEMU, so that QEMU's programs
//! and ours exclude each other.
//!
//! A user of an image says by shared locks on single bytes what it does and what
//! it does not bear from others, and looks whether others' bytes contradict
//! that. Nobody ever holds an exclusive lock, so nobody waits for one. The locks
//! belong to the open file and go with its last descriptor.

use std::ffi::{c_int, c_short};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Byte of the first thing that a user does; the others follow.
const DOES: i64 = 100;
/// Byte of the first thing that a user does not bear; the others follow.
const BARS: i64 = 200;

/// Things that a user does to an image, as positions behind [`DOES`] and [`BARS`].
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What we do not bear from others.
const NOT_BORNE: [i64; 2] = [WRITE, RESIZE];

/// Somebody uses the image in a way that cannot go together with ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another process {}", if *.writes { "writes to the image" } else { "uses the image and bars writers" })]
pub struct Conflict {
    /// Whether the other one writes; else it reads and bears no writer.
    pub writes: bool,
}

/// Locks an image for reading, and for writing unless `read_only`, against
/// writers. Many readers go together.
///
/// `Ok(Err(_))` means that somebody else is in the way; an open file that had no lock of
/// ours has none then.
///
/// # Errors
/// What `fcntl(2)` reports for a file system without locks.
pub fn lock_image(fd: BorrowedFd<'_>, read_only: bool) -> io::Result<Result<(), Conflict>> {
    let does: &[i64] = if read_only { &[READ] } else { &[READ, WRITE] };
    // Who asks again and again is in nobody's way meanwhile. Another process may ask with this
    // open file, too, as it takes it over, and must not lose the lock by that.
    if let Some(conflict) = conflict(fd, does)? {
        return Ok(Err(conflict));
    }
    for byte in bytes(does, &NOT_BORNE) {
        set(fd, libc::F_RDLCK, byte)?;
    }
    // First the own bytes, then the look: of two that come at once, at least
    // one sees the other.
    if let Some(conflict) = conflict(fd, does)? {
        unlock_image(fd, read_only)?;
        return Ok(Err(conflict));
    }
    Ok(Ok(()))
}

/// Who is in the way of a user that does these things.
fn conflict(fd: BorrowedFd<'_>, does: &[i64]) -> io::Result<Option<Conflict>> {
    let barred = does.iter().map(|thing| (BARS + thing, false));
    let done = NOT_BORNE.iter().map(|thing| (DOES + thing, true));
    for (byte, writes) in barred.chain(done) {
        if is_locked_by_another(fd, byte)? {
            return Ok(Some(Conflict { writes }));
        }
    }
    Ok(None)
}

/// Gives back the lock of [`lock_image`].
///
/// # Errors
/// As there.
pub fn unlock_image(fd: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let does: &[i64] = if read_only { &[READ] } else { &[READ, WRITE] };
    bytes(does, &NOT_BORNE).try_for_each(|byte| set(fd, libc::F_UNLCK, byte))
}

fn bytes(does: &[i64], bars: &[i64]) -> impl Iterator<Item = i64> {
    let does = does.iter().map(|thing| DOES + thing);
    does.chain(bars.iter().map(|thing| BARS + thing))
}

fn set(fd: BorrowedFd<'_>, kind: c_int, byte: i64) -> io::Result<()> {
    call(fd, libc::F_OFD_SETLK, &mut one_byte(kind, byte))
}

fn is_locked_by_another(fd: BorrowedFd<'_>, byte: i64) -> io::Result<bool> {
    let mut lock = one_byte(libc::F_WRLCK, byte);
    call(fd, libc::F_OFD_GETLK, &mut lock)?;
    Ok(c_int::from(lock.l_type) != libc::F_UNLCK)
}

fn one_byte(kind: c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: c_short::try_from(kind).expect("kinds of locks are small numbers"),
        l_whence: 0, // SEEK_SET
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn call(fd: BorrowedFd<'_>, command: c_int, lock: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: the structure is ours and of the type that the command takes.
        if unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if Errno::from_io_error(&error) != Some(Errno::INTR) {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::process::Command;

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    fn try_lock(file: &File, read_only: bool) -> Result<(), Conflict> {
        lock_image(file.as_fd(), read_only).unwrap()
    }

    #[test]
    fn writers_exclude_everybody_and_readers_go_together() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let [one, other] = [open(image.path()), open(image.path())];
        assert_eq!(try_lock(&one, false), Ok(()));
        assert_eq!(try_lock(&other, false), Err(Conflict { writes: false }));
        assert_eq!(try_lock(&other, true), Err(Conflict { writes: true }));
        drop(one);
        assert_eq!(try_lock(&other, true), Ok(()));
        let third = open(image.path());
        assert_eq!(try_lock(&third, true), Ok(()));
        // A refused writer leaves nothing behind that would bar others.
        let writer = open(image.path());
        assert_eq!(try_lock(&writer, false), Err(Conflict { writes: false }));
        drop((other, third));
        assert_eq!(try_lock(&open(image.path()), false), Ok(()));
    }

    /// As a process does that takes an open file over, while a third one asks for the image.
    #[test]
    fn a_lock_outlives_an_attempt_with_the_same_open_file() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let [one, other] = [open(image.path()), open(image.path())];
        assert_eq!(try_lock(&one, false), Ok(()));
        set(other.as_fd(), libc::F_RDLCK, DOES + WRITE).unwrap();
        let same = one.try_clone().unwrap();
        assert_eq!(try_lock(&same, false), Err(Conflict { writes: true }));
        set(other.as_fd(), libc::F_UNLCK, DOES + WRITE).unwrap();
        assert_eq!(try_lock(&other, false), Err(Conflict { writes: false }));
    }

    /// QEMU's own tool sees our lock, and only then.
    #[test]
    fn qemu_respects_our_lock() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let qemu_writes = || {
            let command = Command::new("qemu-io")
                .args(["-f", "raw", "-c", "write 0 512"])
                .arg(image.path())
                .output();
            command.map(|output| output.status.success())
        };
        match qemu_writes() {
            Ok(wrote) => assert!(wrote, "nobody else uses the image"),
            Err(error) => {
                eprintln!("SKIP qemu_respects_our_lock: qemu-io (package qemu-utils): {error}");
                return;
            }
        }
        let ours = open(image.path());
        assert_eq!(try_lock(&ours, false), Ok(()));
        assert!(!qemu_writes().unwrap(), "QEMU wrote to a locked image");
    }
}
