//! dma-bufs: memory that a driver shares, from who reads it.

use crate::mapping::Error;
use crate::seccomp::requests;
use crate::{View, view::OutsideView};
use rustix::fs::{SeekFrom, seek};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// `DMA_BUF_IOCTL_SYNC` of linux/dma-buf.h.
const SYNC: libc::Ioctl = 0x4008_6200;
/// What is asked of one, for a filter of calls.
pub(crate) const CALLS: &[u32] = requests![SYNC];
const SYNC_READ: u64 = 1;
const SYNC_END: u64 = 4;

/// A dma-buf, mapped for reading.
#[derive(Debug)]
pub struct DmaBuf {
    view: View,
    fd: OwnedFd,
}

/// Its bytes while the driver knows that they are read.
#[derive(Debug)]
pub struct Reading<'a>(&'a DmaBuf);

impl DmaBuf {
    /// How many bytes a dma-buf has.
    ///
    /// # Errors
    /// It does not say.
    pub fn size(fd: &OwnedFd) -> io::Result<u64> {
        Ok(seek(fd, SeekFrom::End(0))?)
    }

    /// The same of one that a peer gave, which may have given anything.
    ///
    /// # Errors
    /// [`Error::NotMemory`] for what is no dma-buf or has fewer bytes, and as
    /// [`map`](Self::map).
    pub fn of_peer(fd: OwnedFd, len: u64) -> Result<Self, (Error, OwnedFd)> {
        use std::os::fd::AsFd as _;
        // First: other files may hang whoever asks them anything.
        if !is_dma_buf(fd.as_fd()) || !Self::size(&fd).is_ok_and(|size| len <= size) {
            return Err((Error::NotMemory, fd));
        }
        Self::map(fd, len)
    }

    /// Maps its first `len` bytes. The descriptor stays open as long as this.
    ///
    /// # Errors
    /// [`Error`] and the descriptor: many drivers have dma-bufs that cannot be mapped.
    pub fn map(fd: OwnedFd, len: u64) -> Result<Self, (Error, OwnedFd)> {
        use std::os::fd::AsFd as _;
        match View::map(fd.as_fd(), 0, len) {
            Ok(view) => Ok(Self { view, fd }),
            Err(error) => Err((error, fd)),
        }
    }

    /// Tells the driver that it is about to be read, until the result is dropped.
    ///
    /// # Errors
    /// The driver cannot have it read now.
    pub fn reading(&self) -> io::Result<Reading<'_>> {
        self.sync(SYNC_READ)?;
        Ok(Reading(self))
    }

    fn sync(&self, mut flags: u64) -> io::Result<()> {
        loop {
            // SAFETY: the kernel reads the number, which lives through the call.
            let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), SYNC, &raw mut flags) };
            if done == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => {}
                // Plain memory, which somebody gave for a dma-buf, needs none of it.
                Some(libc::ENOTTY) => return Ok(()),
                _ => return Err(error),
            }
        }
    }
}

/// Whether a descriptor is of a dma-buf, by what the kernel itself says of it: no file system
/// is asked, nor can one say the same.
fn is_dma_buf(fd: BorrowedFd<'_>) -> bool {
    let said = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    said.is_ok_and(|said| said.lines().any(|line| line.starts_with("exp_name:")))
}

impl Reading<'_> {
    /// Copies bytes out, from `offset` on.
    ///
    /// # Errors
    /// They are not all inside; nothing was copied then.
    #[inline]
    pub fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), OutsideView> {
        self.0.view.read(offset, target)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        // What it fails with was told at the beginning, and is told the next time.
        let _ = self.0.sync(SYNC_READ | SYNC_END);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memfd::{self, Sealing};

    #[test]
    fn what_a_peer_gives_for_a_dma_buf_has_to_be_one() {
        let file = memfd::create("exp_name: not one", 4096, Sealing::Fixed).unwrap();
        let (error, _) = DmaBuf::of_peer(file, 4096).unwrap_err();
        assert!(matches!(error, Error::NotMemory), "{error}");
    }
}
