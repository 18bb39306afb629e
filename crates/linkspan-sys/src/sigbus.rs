//! Surviving memory that a peer takes away.
//!
//! A peer can shrink a file that we have mapped, unless it is sealed. An access
//! past the new end raises SIGBUS, and the same happens when huge pages or the
//! space of a tmpfs run out, or when memory breaks. One process-wide reaction
//! puts zero pages in the place of what is lost, marks the mapping as poisoned,
//! and lets the access go on. What hits no mapping of ours goes to whoever
//! reacted before us, or ends the process as it would have without us.
//!
//! # Why it is sound
//! The reaction runs in the middle of anything, so it takes no lock and
//! allocates nothing: it reads a fixed table of atomics and makes three system
//! calls at most. Mappings come and go on other threads meanwhile:
//!
//! - The mapping that the faulting access belongs to cannot go: the access
//!   borrows it. Its entry is complete, since it was written before the mapping
//!   was handed out, and stays until its drop.
//! - Any *other* entry may be changing under the reader. Each has a version that
//!   is odd while it changes, and a reader that sees it odd, or changed after it
//!   has read the fields, passes on. So what it compares the address with is an
//!   entry that was complete at some moment.
//! - A complete but outdated entry cannot contain the address. An entry is
//!   cleared before its range is unmapped, and only then can the kernel give
//!   out that range again; so the clearing happened before the mapping that
//!   faulted was made, and is visible to whoever can access that mapping.
//! - Two threads that fault in one mapping replace pages one after the other.
//!   The second may wipe what was written to zero pages of the first: a
//!   poisoned mapping promises nothing about content.

use crate::EventFd;
use crate::mapping::Error;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{MaybeUninit, transmute};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{NonNull, null, with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// How many mappings can exist at a time: 8 links with as many memory slots as
/// the protocol allows (vhost-user: 509), and untouched entries cost nothing.
const SLOTS: usize = 4096;

static TABLE: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];

/// All entries from this one on were never used.
static USED: AtomicUsize = AtomicUsize::new(0);

/// What the process did about SIGBUS before us.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// No descriptor to signal.
const NO_FD: i32 = -1;

/// A function for a signal with SA_SIGINFO.
type Reaction = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// One mapping. Only the owner of a claimed entry writes its fields, apart from
/// `poisoned`.
struct Slot {
    claimed: AtomicBool,
    version: AtomicU32,
    start: AtomicUsize,
    end: AtomicUsize,
    page_size: AtomicUsize,
    wake: AtomicI32,
    writable: AtomicBool,
    poisoned: AtomicBool,
}

/// A consistent copy of an entry.
struct Entry {
    start: usize,
    end: usize,
    page_size: usize,
    wake: i32,
    writable: bool,
}

/// Keeps one mapping in the table.
#[derive(Debug)]
pub(crate) struct Watch {
    index: usize,
    // Keeps the descriptor open whose number is in the table.
    _wake: Option<Arc<EventFd>>,
}

/// Repairs faults in `span` bytes from `start` until the result is dropped,
/// and signals `wake` when it does.
///
/// # Safety
/// The range is one whole mapping of pages of `page_size` bytes, and stays
/// mapped until the result is dropped. Nobody may rely on its content: all of it
/// may turn to zeroes at any time.
pub(crate) unsafe fn watch(
    start: NonNull<c_void>,
    span: usize,
    page_size: u64,
    wake: Option<Arc<EventFd>>,
) -> Result<Watch, Error> {
    // SAFETY: the contract is the same.
    unsafe { watch_pages(start, span, page_size, true, wake) }
}

/// The same for a mapping that is only read.
///
/// # Safety
/// As for [`watch`].
pub(crate) unsafe fn watch_read_only(
    start: NonNull<c_void>,
    span: usize,
    page_size: u64,
) -> Result<Watch, Error> {
    // SAFETY: the contract is the same.
    unsafe { watch_pages(start, span, page_size, false, None) }
}

/// # Safety
/// As for [`watch`]; what is not `writable` is never written.
unsafe fn watch_pages(
    start: NonNull<c_void>,
    span: usize,
    page_size: u64,
    writable: bool,
    wake: Option<Arc<EventFd>>,
) -> Result<Watch, Error> {
    install().map_err(|source| Error::System {
        what: "react to SIGBUS",
        source,
    })?;
    let index = TABLE
        .iter()
        .position(|slot| !slot.claimed.swap(true, Ordering::Acquire))
        .ok_or(Error::TooMany { limit: SLOTS })?;
    USED.fetch_max(index + 1, Ordering::Release);
    let start = start.as_ptr().expose_provenance();
    TABLE[index].poisoned.store(false, Ordering::Relaxed);
    TABLE[index].write(&Entry {
        start,
        end: start + span,
        page_size: usize::try_from(page_size).expect("a page can be mapped"),
        wake: wake.as_ref().map_or(NO_FD, |fd| fd.as_fd().as_raw_fd()),
        writable,
    });
    Ok(Watch { index, _wake: wake })
}

impl Watch {
    pub(crate) fn poisoned(&self) -> bool {
        TABLE[self.index].poisoned.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let slot = &TABLE[self.index];
        slot.write(&Entry {
            start: 0,
            end: 0,
            page_size: 1,
            wake: NO_FD,
            writable: false,
        });
        slot.claimed.store(false, Ordering::Release);
    }
}

impl Slot {
    const fn new() -> Self {
        Self {
            claimed: AtomicBool::new(false),
            version: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            page_size: AtomicUsize::new(1),
            wake: AtomicI32::new(NO_FD),
            writable: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
        }
    }

    fn write(&self, entry: &Entry) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        // No field may be seen new while the version is seen even and old.
        fence(Ordering::Release);
        self.start.store(entry.start, Ordering::Relaxed);
        self.end.store(entry.end, Ordering::Relaxed);
        self.page_size.store(entry.page_size, Ordering::Relaxed);
        self.wake.store(entry.wake, Ordering::Relaxed);
        self.writable.store(entry.writable, Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// The entry, unless it is just changing.
    fn read(&self) -> Option<Entry> {
        let before = self.version.load(Ordering::Acquire);
        let entry = Entry {
            start: self.start.load(Ordering::Relaxed),
            end: self.end.load(Ordering::Relaxed),
            page_size: self.page_size.load(Ordering::Relaxed),
            wake: self.wake.load(Ordering::Relaxed),
            writable: self.writable.load(Ordering::Relaxed),
        };
        // No field may be read after the version is looked at again.
        fence(Ordering::Acquire);
        let unchanged = self.version.load(Ordering::Relaxed) == before;
        (unchanged && before.is_multiple_of(2)).then_some(entry)
    }
}

/// Makes [`on_sigbus`] the reaction of this process, once.
fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // Asked first and kept before the reaction is installed, since that can be
    // needed at once.
    PREVIOUS.get_or_init(|| action(None).unwrap_or_else(|_| default_action()));
    let mut ours = default_action();
    let reaction: Reaction = on_sigbus;
    ours.sa_sigaction = reaction as usize;
    // On the stack of the thread: the one for signals that Rust's threads have may
    // be no larger than the registers that the kernel puts there. Linux tells of
    // stack overflows by another signal.
    ours.sa_flags = libc::SA_SIGINFO;
    action(Some(&ours))?;
    *installed = true;
    Ok(())
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the location of this thread's errno, which the interrupted code
    // may be about to read.
    let errno = unsafe { &mut *libc::__errno_location() };
    let saved = *errno;
    // SAFETY: the kernel passes a filled structure, and the address is part of
    // it for every SIGBUS that the kernel raises.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // A broken page that nobody accessed (BUS_MCEERR_AO) and what a process
    // sent (zero and below) do not belong to an access.
    let accessed = code == libc::BUS_ADRERR || code == libc::BUS_MCEERR_AR;
    if !(accessed && repair(address)) {
        pass_on(signal, info, context, accessed);
    }
    *errno = saved;
}

/// Replaces what is lost at `address` by zero pages, if it is ours.
fn repair(address: usize) -> bool {
    let used = USED.load(Ordering::Acquire);
    let hit = TABLE[..used].iter().find_map(|slot| {
        let entry = slot.read()?;
        (entry.start <= address && address < entry.end).then_some((slot, entry))
    });
    let Some((slot, entry)) = hit else {
        return false;
    };
    let from = address & !(entry.page_size - 1);
    // First, so that no other thread reads the zeroes and finds that all is well.
    slot.poisoned.store(true, Ordering::SeqCst);
    let mut access = ProtFlags::READ;
    // Memory that nobody can write counts towards no limit of the system.
    access.set(ProtFlags::WRITE, entry.writable);
    // A file that shrinks loses everything up to its end, so one repair does for
    // all of it, and the number of mappings stays small.
    // SAFETY: the range is a part of a watched mapping, which exists and whose
    // users expect zeroes at any time: see the head of this module.
    let zeroes = unsafe {
        mmap_anonymous(
            with_exposed_provenance_mut(from),
            entry.end - from,
            access,
            MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
        )
    };
    if zeroes.is_err() {
        return false;
    }
    if entry.wake != NO_FD {
        let one = 1_u64;
        // SAFETY: the watch keeps the descriptor open. It is non-blocking, and
        // a full counter is a signalled one, so that no result matters.
        unsafe { libc::write(entry.wake, (&raw const one).cast(), size_of::<u64>()) };
    }
    true
}

/// Does what would have been done without us, and ends the process if nobody
/// wants the signal. An access that failed is repeated afterwards and then ends
/// it; what was sent has to be sent again, and arrives when the reaction is left.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, accessed: bool) {
    let previous = PREVIOUS.get();
    let reaction = previous.map_or(libc::SIG_DFL, |action| action.sa_sigaction);
    match reaction {
        // Nobody can ignore that an access failed.
        libc::SIG_IGN if !accessed => return,
        libc::SIG_DFL | libc::SIG_IGN => {
            let _ = action(Some(&default_action()));
        }
        function => {
            let function: *const () = with_exposed_provenance(function);
            if previous.is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0) {
                // SAFETY: the kernel accepted this as a function of this type.
                let function = unsafe { transmute::<*const (), Reaction>(function) };
                function(signal, info, context);
            } else {
                // SAFETY: as above, for a function without SA_SIGINFO.
                let function = unsafe { transmute::<*const (), extern "C" fn(c_int)>(function) };
                function(signal);
            }
        }
    }
    // The reaction of Rust's runtime to what it does not know is to go back to
    // the default and to hope for a repetition. Without one, this process would
    // go on with our own reaction gone.
    let gave_up = action(None).is_ok_and(|now| now.sa_sigaction == libc::SIG_DFL);
    if gave_up && !accessed {
        // SAFETY: sends a signal to this thread, and nothing else.
        unsafe { libc::raise(signal) };
    }
}

/// Sets what the process does about SIGBUS, if given, and returns what it did.
fn action(new: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    let mut old = MaybeUninit::uninit();
    let new = new.map_or(null(), |new| &raw const *new);
    // SAFETY: both point to structures of ours or to nothing; the functions that
    // are set are `on_sigbus`, which may interrupt anything, or the default.
    let status = unsafe { libc::sigaction(libc::SIGBUS, new, old.as_mut_ptr()) };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it has filled the structure.
    Ok(unsafe { old.assume_init() })
}

fn default_action() -> libc::sigaction {
    // SAFETY: all bits zero is an action: the default one, no flags, no mask.
    unsafe { MaybeUninit::zeroed().assume_init() }
}
