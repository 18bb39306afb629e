//! The page of a device on which a driver kicks a queue without a system call.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{Ordering, fence};

use linkspan_mem::fault::Site;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use rustix::param::page_size;

use crate::acquire;

/// A mapped page whose first 16 bits take the number of a queue that is kicked
/// (virtio 1.3 4.1.5.2). As long as it is mapped the kernel holds the device for
/// this process, so whoever is done with the device [revokes](Self::revoke) it.
#[derive(Debug)]
pub struct Doorbell {
    page: NonNull<c_void>,
    ring: u16,
}

// SAFETY: the page stays mapped at its place until the value is dropped, and all
// that is done with it is one store of 16 bits, which may race with any other.
unsafe impl Send for Doorbell {}
// SAFETY: as above.
unsafe impl Sync for Doorbell {}

impl Doorbell {
    /// Maps page `ring` of a file: of a vhost-vdpa device, that by which this ring
    /// is kicked.
    ///
    /// # Errors
    /// The kernel's own: without a page that belongs to one ring alone, devices
    /// say that the call is not supported or not valid. Every processor but x86-64
    /// is said not to be supported here: a device could see the kick before what
    /// it is about.
    pub fn map(fd: impl AsFd, ring: u16) -> io::Result<Self> {
        if !cfg!(target_arch = "x86_64") {
            return Err(io::ErrorKind::Unsupported.into());
        }
        acquire(Site::Map)?;
        let len = page_size();
        let at = u64::from(ring) * len as u64;
        // SAFETY: a new mapping where nothing is.
        let page = unsafe { mmap(null_mut(), len, ProtFlags::WRITE, MapFlags::SHARED, fd, at) }?;
        let page = NonNull::new(page).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { page, ring })
    }

    /// Kicks the ring.
    #[inline]
    pub fn kick(&self) {
        // What was published comes first. On x86-64 that holds for devices too.
        fence(Ordering::Release);
        // SAFETY: the page is mapped for writing and aligned, and nobody here has a
        // reference to it.
        unsafe { self.page.cast::<u16>().write_volatile(self.ring.to_le()) };
    }

    /// Gives the device's page back; kicks go nowhere from now on.
    ///
    /// # Errors
    /// When the kernel has no mapping for the page that takes its place.
    pub fn revoke(&self) -> io::Result<()> {
        // SAFETY: it replaces the page of this value, in which others may write at
        // this moment, by one that is as large.
        unsafe {
            mmap_anonymous(
                self.page.as_ptr(),
                page_size(),
                ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED,
            )
        }?;
        Ok(())
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        // SAFETY: nobody can write to it any more.
        let unmapped = unsafe { munmap(self.page.as_ptr(), page_size()) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::memfd::{self, Sealing};

    #[test]
    fn a_kick_is_the_number_of_the_ring_on_its_page() {
        let pages = memfd::create("pages", 3 * page_size() as u64, Sealing::Fixed).unwrap();
        let pages = File::from(pages);
        let doorbell = Doorbell::map(&pages, 2).unwrap();
        let at = 2 * page_size() as u64;
        let read = || {
            let mut bytes = [0; 4];
            pages.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        assert_eq!(read(), [0; 4]);
        doorbell.kick();
        assert_eq!(read(), [2, 0, 0, 0]);
        pages.write_all_at(&[0; 4], at).unwrap();
        doorbell.revoke().unwrap();
        doorbell.kick();
        assert_eq!(read(), [0; 4]);
    }

    #[test]
    fn what_has_no_such_page_is_refused() {
        let null = File::open("/dev/null").unwrap();
        assert!(Doorbell::map(&null, 0).is_err());
    }
}
