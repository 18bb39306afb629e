//! One file's reads, writes and syncs through `io_uring`.
//!
//! A [`Ring`] can do nothing else: it is set up disabled, restricted to those
//! operations on the one file that is registered with it, and only then enabled.
//! What goes through a ring passes by a seccomp filter, so this is what keeps a
//! process that was taken over from using it for something else.
//!
//! Memory is safe in every order of events: an operation holds the memory that
//! its spans point into until it has ended, and a ring that is dropped waits for
//! those that have not.

use crate::acquire;
use crate::file::{ReadWriteFlags, Transfer};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, register::Restriction};
use linkspan_mem::RegionTable;
use linkspan_mem::fault::{self, Site};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

/// The place of the only file among the registered ones.
const FILE: Fixed = Fixed(0);

/// Entries of the submission queue at most: what is handed over in one call.
const BATCH: u32 = 128;

/// `IORING_UNREGISTER_FILES`, which a restricted ring is still allowed: it lets
/// go of the file, and of its locks, at once and not some time after closing.
const UNREGISTER_FILES: u8 = 3;

/// The most slices that one operation takes (`UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is not to be had on this machine or by this process, now or later.
    #[error("io_uring is refused: {why} ({source})")]
    Refused {
        /// Who refuses, as far as can be told.
        why: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Memory or descriptors ran out.
    #[error("cannot set up io_uring: {0}")]
    System(#[from] io::Error),
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The number it was started with.
    pub token: u32,
    /// How many bytes were moved. Fewer than asked for is possible anywhere,
    /// none is the end of the file.
    pub result: io::Result<u32>,
}

/// Reads, writes and syncs of one file, by one thread at a time.
pub struct Ring {
    /// Dropped before the slots: while it lives the kernel may use them.
    ring: IoUring,
    slots: Vec<Slot>,
    free: Vec<u32>,
    depth: u32,
    /// Operations in the submission queue that the kernel has not been told of.
    unsubmitted: u32,
}

/// An operation, or room for one.
struct Slot {
    token: u32,
    slices: Slices,
    /// What the slices point into, while the operation is in flight.
    memory: Option<Arc<RegionTable>>,
}

/// Addresses for the kernel.
struct Slices(Vec<libc::iovec>);

// SAFETY: addresses and lengths that nothing here dereferences.
unsafe impl Send for Slices {}

impl Ring {
    /// A ring for `file` with room for `depth` operations at a time.
    ///
    /// # Errors
    /// [`Error`].
    ///
    /// # Panics
    /// When `depth` is zero or above 32768.
    pub fn new(file: BorrowedFd<'_>, depth: u32) -> Result<Self, Error> {
        assert!((1..=32768).contains(&depth), "{depth} operations at a time");
        let lack = |_| io::Error::from(Errno::NOMEM);
        let slots = fault::try_with_capacity(depth as usize).map_err(lack)?;
        let free = fault::try_with_capacity(depth as usize).map_err(lack)?;
        acquire(Site::Fd)?;
        let entries = depth.next_power_of_two().min(BATCH);
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_cqsize(depth.next_power_of_two().max(entries))
            .build(entries)
            .map_err(refused)?;
        // From here on dropping it lets go of the file.
        let ring = Self {
            ring,
            slots,
            free,
            depth,
            unsubmitted: 0,
        };
        ring.bring_up(file)?;
        Ok(ring)
    }

    /// Gives the ring its file, takes everything else from it, and enables it.
    fn bring_up(&self, file: BorrowedFd<'_>) -> Result<(), Error> {
        let submitter = self.ring.submitter();
        acquire(Site::Alloc)?;
        submitter.register_files(&[file.as_raw_fd()])?;
        acquire(Site::Alloc)?;
        let fixed = Flags::FIXED_FILE.bits();
        let mut allowed = [
            Restriction::sqe_op(opcode::Read::CODE),
            Restriction::sqe_op(opcode::Write::CODE),
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_flags_allowed(fixed),
            Restriction::sqe_flags_required(fixed),
            Restriction::register_op(UNREGISTER_FILES),
        ];
        let restricted = submitter.register_restrictions(&mut allowed);
        restricted.map_err(refused)?;
        Ok(submitter.register_enable_rings()?)
    }

    /// Operations that were started and whose completion was not taken.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Starts reading what is left of a transfer, of which `done` bytes are done.
    /// The kernel is told of it by [`submit`](Self::submit).
    ///
    /// # Errors
    /// When there is no room, or no memory; nothing is started then.
    ///
    /// # Panics
    /// When the transfer is not one of `memory`.
    pub fn read(
        &mut self,
        token: u32,
        memory: &Arc<RegionTable>,
        transfer: &Transfer<'_>,
        done: u64,
    ) -> io::Result<()> {
        let offset = transfer.offset.saturating_add(done);
        let slot = self.slot(token, memory, transfer, done)?;
        let entry = match &self.slots[slot as usize].slices.0[..] {
            [one] => opcode::Read::new(FILE, one.iov_base.cast(), length(one))
                .offset(offset)
                .build(),
            more => opcode::Readv::new(FILE, more.as_ptr(), count(more))
                .offset(offset)
                .build(),
        };
        self.push(slot, &entry)
    }

    /// Starts writing what is left of a transfer, of which `done` bytes are done.
    /// The kernel is told of it by [`submit`](Self::submit).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Panics
    /// As [`read`](Self::read).
    pub fn write(
        &mut self,
        token: u32,
        memory: &Arc<RegionTable>,
        transfer: &Transfer<'_>,
        done: u64,
        flags: ReadWriteFlags,
    ) -> io::Result<()> {
        let offset = transfer.offset.saturating_add(done);
        let flags = flags.bits().cast_signed();
        let slot = self.slot(token, memory, transfer, done)?;
        let entry = match &self.slots[slot as usize].slices.0[..] {
            [one] => opcode::Write::new(FILE, one.iov_base.cast(), length(one))
                .offset(offset)
                .rw_flags(flags)
                .build(),
            more => opcode::Writev::new(FILE, more.as_ptr(), count(more))
                .offset(offset)
                .rw_flags(flags)
                .build(),
        };
        self.push(slot, &entry)
    }

    /// Starts making durable what was written before. The kernel is told of it
    /// by [`submit`](Self::submit).
    ///
    /// # Errors
    /// When there is no room; nothing is started then.
    pub fn sync_data(&mut self, token: u32) -> io::Result<()> {
        let slot = self.free_slot()?;
        self.slots[slot as usize].token = token;
        let entry = opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build();
        self.push(slot, &entry)
    }

    /// Tells the kernel of everything that was started, in one call.
    ///
    /// # Errors
    /// When the kernel would not take all now; those left are offered again by
    /// the next call.
    pub fn submit(&mut self) -> io::Result<()> {
        while self.unsubmitted > 0 {
            match self.ring.submit() {
                Ok(0) => return Err(Errno::AGAIN.into()),
                Ok(taken) => {
                    let taken = u32::try_from(taken).unwrap_or(u32::MAX);
                    self.unsubmitted = self.unsubmitted.saturating_sub(taken);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next operation that has ended. The descriptor of the ring is readable
    /// as long as there is one.
    pub fn completion(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        let index = u32::try_from(entry.user_data()).expect("the number of a slot");
        let slot = &mut self.slots[index as usize];
        slot.memory = None;
        self.free.push(index);
        let result = u32::try_from(entry.result())
            .map_err(|_| io::Error::from_raw_os_error(entry.result().wrapping_neg()));
        Some(Completion {
            token: slot.token,
            result,
        })
    }

    /// Whether an operation has ended, without a system call.
    #[inline]
    pub fn has_completions(&self) -> bool {
        // SAFETY: a ring belongs to one thread at a time (it is not `Sync`), and
        // no other view of its completion queue outlives the method that made it.
        !unsafe { self.ring.completion_shared() }.is_empty()
    }

    /// Takes a slot, with the slices of a transfer, and holds its memory.
    fn slot(
        &mut self,
        token: u32,
        memory: &Arc<RegionTable>,
        transfer: &Transfer<'_>,
        done: u64,
    ) -> io::Result<u32> {
        assert!(
            std::ptr::eq(&raw const **memory, transfer.table),
            "the transfer is of other memory"
        );
        let index = self.free_slot()?;
        let slot = &mut self.slots[index as usize];
        slot.slices.0.clear();
        // Room stays with the slot, so a ring at work allocates nothing.
        let wanted = transfer.spans.len().min(MAX_SLICES);
        if slot.slices.0.try_reserve(wanted).is_err() {
            self.free.push(index);
            return Err(Errno::NOMEM.into());
        }
        let slices = transfer.rest(done).take(wanted);
        slot.slices.0.extend(slices);
        slot.token = token;
        slot.memory = Some(Arc::clone(memory));
        Ok(index)
    }

    fn free_slot(&mut self) -> io::Result<u32> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        let index = u32::try_from(self.slots.len()).expect("32768 at most");
        if index == self.depth {
            return Err(Errno::NOBUFS.into());
        }
        // Within the capacity that was reserved at the start.
        self.slots.push(Slot {
            token: 0,
            slices: Slices(Vec::new()),
            memory: None,
        });
        Ok(index)
    }

    fn push(&mut self, slot: u32, entry: &Entry) -> io::Result<()> {
        let entry = entry
            .clone()
            .flags(Flags::FIXED_FILE)
            .user_data(u64::from(slot));
        let full = self.ring.submission().is_full();
        let made_room = if full { self.submit() } else { Ok(()) };
        // SAFETY: the slices and what they point at stay as they are until the
        // completion is taken: the slot holds both and is not free until then,
        // a vector in it does not move when the slots do, and dropping the ring
        // waits. The bytes are shared memory, which no reference covers.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.slots[slot as usize].memory = None;
            self.free.push(slot);
            return Err(made_room.err().unwrap_or(Errno::AGAIN.into()));
        }
        self.unsubmitted += 1;
        Ok(())
    }

    /// Waits until nothing is in flight; an error when the kernel does not tell.
    fn wait_all(&mut self) -> io::Result<()> {
        while self.in_flight() > 0 {
            while self.completion().is_some() {}
            if self.in_flight() == 0 {
                break;
            }
            match self.ring.submit_and_wait(1) {
                Err(error)
                    if !matches!(
                        Errno::from_io_error(&error),
                        Some(Errno::INTR | Errno::AGAIN | Errno::BUSY)
                    ) =>
                {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.wait_all().is_err() {
            // Memory that the kernel may still write to is never given back.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
        // Else the file, and its locks, live until the kernel gets round to it.
        let _ = self.ring.submitter().unregister_files();
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and is borrowed for as long.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("depth", &self.depth)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// The kernel moves less than 2 GiB at a time anyway.
fn length(slice: &libc::iovec) -> u32 {
    u32::try_from(slice.iov_len).unwrap_or(u32::MAX)
}

fn count(slices: &[libc::iovec]) -> u32 {
    u32::try_from(slices.len()).expect("1024 at most")
}

/// What setting up a ring failed with: a refusal that stays, or a lack.
fn refused(source: io::Error) -> Error {
    let why = match Errno::from_io_error(&source) {
        Some(Errno::NOSYS) => "this kernel has none, or a seccomp filter hides it",
        Some(Errno::INVAL) => "this kernel cannot restrict its rings; Linux 5.10 can",
        Some(Errno::PERM | Errno::ACCESS) if disabled_by_sysctl() => {
            "the setting kernel.io_uring_disabled forbids it"
        }
        Some(Errno::PERM | Errno::ACCESS) => {
            "a seccomp filter or security module forbids it, as containers do"
        }
        _ => return Error::System(source),
    };
    Error::Refused { why, source }
}

fn disabled_by_sysctl() -> bool {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() != "0")
}

#[cfg(test)]
mod tests;
