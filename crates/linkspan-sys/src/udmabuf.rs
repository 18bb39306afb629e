//! A memory file as a dma-buf, which graphics drivers and other devices take.

use crate::acquire;
use linkspan_mem::fault::Site;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `UDMABUF_CREATE` of linux/udmabuf.h.
const UDMABUF_CREATE: libc::c_ulong = 0x4018_7542;
const UDMABUF_FLAGS_CLOEXEC: u32 = 1;

/// struct udmabuf_create.
#[repr(C)]
struct Create {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

/// A dma-buf of the first `len` bytes of a memory file, a multiple of the page size. The
/// file has to be sealed against shrinking and not against writing. It lives on its own.
///
/// # Errors
/// `NotFound` where the kernel has no `/dev/udmabuf`; what opening it or the call reports:
/// `EINVAL` for a file that does not fit, or above the kernel's limit (64 MiB).
pub fn export(file: impl AsFd, len: u64) -> io::Result<OwnedFd> {
    acquire(Site::Fd)?;
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/udmabuf")?;
    acquire(Site::Fd)?;
    let create = Create {
        memfd: file.as_fd().as_raw_fd().cast_unsigned(),
        flags: UDMABUF_FLAGS_CLOEXEC,
        offset: 0,
        size: len,
    };
    // SAFETY: the kernel reads the structure, which lives through the call.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), UDMABUF_CREATE, &raw const create) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}
