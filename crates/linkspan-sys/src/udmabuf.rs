//! A memory file as a dma-buf, which graphics drivers and other devices take.

use crate::acquire;
use crate::seccomp::requests;
use linkspan_mem::fault::Site;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const DEVICE: &str = "/dev/udmabuf";

/// `UDMABUF_CREATE` of linux/udmabuf.h.
const UDMABUF_CREATE: libc::Ioctl = 0x4018_7542;
const UDMABUF_FLAGS_CLOEXEC: u32 = 1;

/// struct udmabuf_create.
#[repr(C)]
struct Create {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

/// `UDMABUF_CREATE_LIST` of linux/udmabuf.h.
const UDMABUF_CREATE_LIST: libc::Ioctl = 0x4008_7543;
/// Both, for a filter of calls.
pub(crate) const CALLS: &[u32] = requests![UDMABUF_CREATE, UDMABUF_CREATE_LIST];
/// The most pieces of a dma-buf: the kernel's limit, unless its module was told another.
pub const PIECES_MAX: usize = 1024;

/// A part of a memory file.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Which.
    pub file: BorrowedFd<'a>,
    /// Where it begins, in bytes: at a page.
    pub offset: u64,
    /// How many bytes: whole pages.
    pub len: u64,
}

/// A dma-buf of the first `len` bytes of a memory file, a multiple of the page size. The
/// file has to be sealed against shrinking and not against writing. It lives on its own.
///
/// # Errors
/// `NotFound` where the kernel has no `/dev/udmabuf`; what opening it or the call reports:
/// `EINVAL` for a file that does not fit, or above the kernel's limit (64 MiB).
pub fn export(file: impl AsFd, len: u64) -> io::Result<OwnedFd> {
    let device = device()?;
    acquire(Site::Fd)?;
    let create = Create {
        memfd: file.as_fd().as_raw_fd().cast_unsigned(),
        flags: UDMABUF_FLAGS_CLOEXEC,
        offset: 0,
        size: len,
    };
    // SAFETY: the kernel reads the structure, which lives through the call.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), UDMABUF_CREATE, &raw const create) };
    owned(made)
}

/// A dma-buf of pieces of memory files, one after the other: whole pages of files that are
/// sealed as for [`export`], at most [`PIECES_MAX`]. It lives on its own.
///
/// # Errors
/// As for [`export`], and `EINVAL` for no piece or too many.
pub fn export_list(pieces: &[Piece<'_>]) -> io::Result<OwnedFd> {
    let count = u32::try_from(pieces.len()).ok();
    let count = count.filter(|_| (1..=PIECES_MAX).contains(&pieces.len()));
    let count = count.ok_or(io::Error::from_raw_os_error(libc::EINVAL))?;
    let device = device()?;
    acquire(Site::Alloc)?;
    let mut list: Vec<u64> = Vec::with_capacity(1 + 3 * pieces.len());
    // struct udmabuf_create_list and as many struct udmabuf_create_item, whose words of 32
    // bits lie in pairs.
    let pair = |low: u32, high: u32| {
        let ([a, b, c, d], [e, f, g, h]) = (low.to_ne_bytes(), high.to_ne_bytes());
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    };
    list.push(pair(UDMABUF_FLAGS_CLOEXEC, count));
    for piece in pieces {
        let memfd = piece.file.as_raw_fd().cast_unsigned();
        list.extend([pair(memfd, 0), piece.offset, piece.len]);
    }
    acquire(Site::Fd)?;
    // SAFETY: the kernel reads the head and as many items as it says, which live through
    // the call.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), UDMABUF_CREATE_LIST, list.as_ptr()) };
    owned(made)
}

/// Whether this machine makes such dma-bufs, as far as can be told without one.
///
/// # Errors
/// `NotFound` where the kernel has no `/dev/udmabuf`, or why it cannot be opened.
pub fn available() -> io::Result<()> {
    device().map(drop)
}

/// Whether this machine has the device, which a permission may be missing for.
#[must_use]
pub fn exists() -> bool {
    std::path::Path::new(DEVICE).exists()
}

fn device() -> io::Result<std::fs::File> {
    acquire(Site::Fd)?;
    let mut options = std::fs::File::options();
    options.read(true).write(true).open(DEVICE)
}

/// What a call that makes a descriptor returned.
fn owned(made: i32) -> io::Result<OwnedFd> {
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}
