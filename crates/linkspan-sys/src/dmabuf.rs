//! dma-bufs: memory that a driver shares, from who reads it.

use crate::mapping::Error;
use crate::{View, view::OutsideView};
use rustix::fs::{SeekFrom, seek};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// `DMA_BUF_IOCTL_SYNC` of linux/dma-buf.h.
const SYNC: libc::Ioctl = 0x4008_6200;
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
