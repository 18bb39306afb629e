//! The seam by which tests make each step of bring-up fail in turn.
//!
//! Whoever acquires something that a machine can refuse (memory whose size
//! depends on a peer or on an option, a mapping, a descriptor, a thread) passes
//! a [`point`] first. Tests [`arm`] the seam so that the n-th point fails, for
//! every n, and see that everything is as it was before. Disarmed, a point is
//! one relaxed load; none lies on a hot path.
//!
//! ```
//! use linkspan_mem::fault::{self, Site};
//!
//! fn bring_up() -> Result<(), fault::Injected> {
//!     fault::point(Site::Map)?;
//!     fault::point(Site::Thread)
//! }
//!
//! let sweep = fault::arm(2);
//! assert_eq!(bring_up().unwrap_err().site, Site::Thread);
//! drop(sweep);
//! assert!(bring_up().is_ok());
//! ```

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is being acquired at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// Memory of a size that a peer or an option decides.
    Alloc,
    /// A mapping of a file or of peer memory.
    Map,
    /// A descriptor: socket, eventfd, epoll, memfd, file.
    Fd,
    /// A thread.
    Thread,
}

/// The failure that an armed seam injects, and that a refused allocation is
/// reported as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine refused: {site:?}")]
pub struct Injected {
    /// What was refused.
    pub site: Site,
}

static ARMED: AtomicBool = AtomicBool::new(false);
static LEFT: AtomicU64 = AtomicU64::new(0);
static PASSED: AtomicU64 = AtomicU64::new(0);

/// Passes a point of acquisition.
///
/// # Errors
/// Only while a test has armed the seam, and then once.
#[inline]
pub fn point(site: Site) -> Result<(), Injected> {
    if ARMED.load(Ordering::Relaxed) {
        armed_point(site)
    } else {
        Ok(())
    }
}

/// An empty vector with room for `count` items.
///
/// # Errors
/// When the memory cannot be had; never aborts.
pub fn try_with_capacity<T>(count: usize) -> Result<Vec<T>, Injected> {
    point(Site::Alloc)?;
    let mut items = Vec::new();
    items
        .try_reserve_exact(count)
        .map_err(|_| Injected { site: Site::Alloc })?;
    Ok(items)
}

/// Makes the `nth` point (counted from 1, over all threads of the process) fail
/// once. One sweep at a time: tests that arm run in a process of their own.
pub fn arm(nth: u64) -> Sweep {
    assert!(nth > 0, "points count from 1");
    assert!(
        !ARMED.swap(true, Ordering::SeqCst),
        "another sweep is armed in this process"
    );
    PASSED.store(0, Ordering::SeqCst);
    LEFT.store(nth, Ordering::SeqCst);
    Sweep { nth }
}

/// An armed seam; disarmed when dropped.
#[derive(Debug)]
pub struct Sweep {
    nth: u64,
}

impl Sweep {
    /// Whether the n-th point was reached, and so failed.
    pub fn fired(&self) -> bool {
        PASSED.load(Ordering::SeqCst) >= self.nth
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        ARMED.store(false, Ordering::SeqCst);
    }
}

#[cold]
fn armed_point(site: Site) -> Result<(), Injected> {
    let passed = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    if passed == LEFT.load(Ordering::SeqCst) {
        return Err(Injected { site });
    }
    Ok(())
}
