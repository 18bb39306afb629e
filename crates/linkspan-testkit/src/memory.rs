//! Memory that a front end shares: a memory file, mapped here as well.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use linkspan_mem::{Gpa, Region, UserVa, Window};
use linkspan_sys::PeerMemory;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_vhost::wire::MemoryRegionDescription;

/// What a guest address differs by from the same place's address in the front end.
const USER_BASE: u64 = 0x7f00_0000_0000;

/// A region of memory that this test and the device share.
#[derive(Debug)]
pub struct SharedMemory {
    file: OwnedFd,
    region: Region,
    guest: Gpa,
    taken: AtomicU64,
}

impl SharedMemory {
    /// `len` bytes of zeroes at `guest`, in a file of their own.
    ///
    /// # Panics
    /// When the system has no memory, or the test armed the fault seam: memory
    /// is made before that.
    pub fn new(len: u64, guest: Gpa, sealing: Sealing) -> Arc<Self> {
        let file = memfd::create("guest", len, sealing).expect("a memory file");
        Self::of_file(file, len, guest)
    }

    /// The same bytes under another guest address.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn moved(&self, guest: Gpa) -> Arc<Self> {
        let file = self.file.try_clone().expect("a descriptor");
        Self::of_file(file, self.len(), guest)
    }

    fn of_file(file: OwnedFd, len: u64, guest: Gpa) -> Arc<Self> {
        let own = file.try_clone().expect("a descriptor");
        let mapping = PeerMemory::check(own)
            .and_then(|memory| memory.map(0, len, None))
            .expect("a mapping");
        Arc::new(Self {
            file,
            region: Region::new(Arc::new(mapping)),
            guest,
            taken: AtomicU64::new(0),
        })
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.region.len() as u64
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty()
    }

    /// The guest address of the byte at `offset`.
    pub fn guest(&self, offset: u64) -> Gpa {
        Gpa(self.guest.0 + offset)
    }

    /// The front end's address of the byte at `offset`.
    pub fn user(&self, offset: u64) -> UserVa {
        UserVa(USER_BASE + self.guest.0 + offset)
    }

    /// The region as messages describe it.
    pub fn description(&self) -> MemoryRegionDescription {
        MemoryRegionDescription {
            guest_address: self.guest.0,
            size: self.len(),
            user_address: self.user(0).0,
            mmap_offset: 0,
        }
    }

    /// Takes `len` bytes that nothing else uses, 64-byte aligned; where they begin.
    ///
    /// # Panics
    /// When there are no more.
    #[track_caller]
    pub fn take(&self, len: u64) -> u64 {
        let len = len.next_multiple_of(64);
        let at = self.taken.fetch_add(len, Ordering::Relaxed);
        assert!(at + len <= self.len(), "the shared memory is too small");
        at
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Panics
    /// When they are not all inside.
    #[track_caller]
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let slice = self.region.slice(offset, bytes.len() as u64);
        slice.expect("inside the memory").write(bytes);
    }

    /// Reads `len` bytes at `offset`.
    ///
    /// # Panics
    /// When they are not all inside.
    #[track_caller]
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let slice = self.region.slice(offset, len as u64);
        slice.expect("inside the memory").read(&mut bytes);
        bytes
    }

    /// A window for a part of a ring.
    ///
    /// # Panics
    /// When it is not all inside.
    #[track_caller]
    pub fn window(&self, offset: u64, len: usize) -> Window {
        self.region.window(offset, len).expect("inside the memory")
    }

    /// The bytes themselves, for an indirect table.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Changes the size of the file, as a hostile front end does; the mappings stay.
    ///
    /// # Panics
    /// When the file is sealed.
    #[track_caller]
    pub fn truncate(&self, len: u64) {
        rustix::fs::ftruncate(&self.file, len).expect("an unsealed file");
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
