//! Files that live in memory: guest memory in tests, in-flight and log regions,
//! frame buffers.

use crate::acquire;
use linkspan_mem::fault::Site;
use rustix::fs::{MemfdFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

pub use rustix::fs::SealFlags;

/// Whether the size of a new file may change later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealing {
    /// Sealed against shrinking and growing, and against further seals: what a
    /// peer can map without fear.
    Fixed,
    /// No seals yet; [`add_seals`] can add them.
    Open,
}

/// A new file of `len` zero bytes. `name` is shown in `/proc` and means nothing.
///
/// # Errors
/// `EMFILE`, or `EFBIG` and `EINVAL` for a length or name that the kernel refuses.
pub fn create(name: &str, len: u64, sealing: Sealing) -> io::Result<OwnedFd> {
    acquire(Site::Fd)?;
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    acquire(Site::Alloc)?;
    ftruncate(&fd, len)?;
    if sealing == Sealing::Fixed {
        add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    }
    Ok(fd)
}

/// The seals of a file. Only files of shared memory and hugetlbfs have any; a
/// file on tmpfs is sealed against sealing.
///
/// # Errors
/// `EINVAL` for any other file; `EBADF` for an `O_PATH` descriptor.
pub fn seals(fd: impl AsFd) -> io::Result<SealFlags> {
    Ok(fcntl_get_seals(fd)?)
}

/// Adds seals. They can never be taken off.
///
/// # Errors
/// `EPERM` if the file is sealed against sealing, `EBUSY` for a write seal
/// while a writable mapping exists.
pub fn add_seals(fd: impl AsFd, seals: SealFlags) -> io::Result<()> {
    Ok(fcntl_add_seals(fd, seals)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::fstat;
    use rustix::io::{FdFlags, fcntl_getfd};

    #[test]
    fn fixed_file_keeps_its_size() {
        let fd = create("fixed", 8192, Sealing::Fixed).unwrap();
        assert_eq!(fstat(&fd).unwrap().st_size, 8192);
        assert!(ftruncate(&fd, 4096).is_err());
        assert!(ftruncate(&fd, 16384).is_err());
        assert!(add_seals(&fd, SealFlags::WRITE).is_err());
        assert!(fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));
    }

    #[test]
    fn open_file_changes_until_it_is_sealed() {
        let fd = create("open", 4096, Sealing::Open).unwrap();
        assert!(seals(&fd).unwrap().is_empty());
        ftruncate(&fd, 0).unwrap();
        add_seals(&fd, SealFlags::GROW).unwrap();
        assert_eq!(seals(&fd).unwrap(), SealFlags::GROW);
        assert!(ftruncate(&fd, 4096).is_err());
    }

    #[test]
    fn impossible_length_is_an_error() {
        assert!(create("huge", u64::MAX, Sealing::Fixed).is_err());
    }
}
