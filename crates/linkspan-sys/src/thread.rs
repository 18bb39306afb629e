//! Threads with names, and the processors that they may run on.

use crate::acquire;
use linkspan_mem::fault::Site;
use rustix::thread::sched_getaffinity;
use std::io;
use std::num::NonZeroUsize;
use std::thread::{Builder, JoinHandle, available_parallelism};

/// Starts a thread. The kernel shows the first 15 bytes of its name.
///
/// # Errors
/// `EAGAIN` if the limit of threads or of memory is reached.
pub fn spawn<T, F>(name: impl Into<String>, run: F) -> io::Result<JoinHandle<T>>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    acquire(Site::Thread)?;
    Builder::new().name(name.into()).spawn(run)
}

/// How many processors this thread may run on (`sched_getaffinity(2)`): the
/// sensible upper bound for workers. At least one.
#[must_use]
pub fn available_cpus() -> NonZeroUsize {
    // The call fails on machines with more processors than the set of rustix
    // holds (1024); the standard library copes with those.
    sched_getaffinity(None)
        .ok()
        .and_then(|set| NonZeroUsize::new(usize::try_from(set.count()).ok()?))
        .or_else(|| available_parallelism().ok())
        .unwrap_or(NonZeroUsize::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::{CpuSet, sched_setaffinity};

    #[test]
    fn thread_has_its_name_and_returns_its_value() {
        let thread = spawn("queue 3", || {
            std::thread::current().name().map(str::to_owned)
        });
        assert_eq!(thread.unwrap().join().unwrap().as_deref(), Some("queue 3"));
    }

    #[test]
    fn pinned_thread_has_one_cpu() {
        let pinned = spawn("pinned", || {
            let allowed = sched_getaffinity(None).unwrap();
            let first = (0..CpuSet::MAX_CPU)
                .find(|&cpu| allowed.is_set(cpu))
                .unwrap();
            let mut one = CpuSet::new();
            one.set(first);
            sched_setaffinity(None, &one).unwrap();
            (
                u32::try_from(available_cpus().get()).unwrap(),
                allowed.count(),
            )
        });
        let (after, before) = pinned.unwrap().join().unwrap();
        assert_eq!(after, 1);
        assert!(before >= 1);
    }
}
