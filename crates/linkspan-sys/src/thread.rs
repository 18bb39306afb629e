//! Threads with names, and the processors that they may run on.

use crate::acquire;
use linkspan_mem::fault::Site;
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io;
use std::num::NonZeroUsize;
use std::sync::mpsc;
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

/// As [`spawn`]; with `cpu` the thread runs on that processor and on no other.
///
/// # Errors
/// As for [`spawn`], or when the processor is not one that this process may use;
/// the error names it, and `run` is not called.
pub fn spawn_on<F>(cpu: Option<u32>, name: impl Into<String>, run: F) -> io::Result<JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    let Some(cpu) = cpu else {
        return spawn(name, run);
    };
    let (sender, pinned) = mpsc::sync_channel(1);
    let thread = spawn(name, move || {
        let result = pin(cpu);
        let failed = result.is_err();
        // Whoever started this thread waits for it.
        let _ = sender.send(result);
        if !failed {
            run();
        }
    })?;
    let result = pinned.recv().map_err(io::Error::other)?;
    if let Err(errno) = result {
        // It ends at once, and nothing of it is left when the caller hears of it.
        let _ = thread.join();
        return Err(io::Error::new(
            io::Error::from(errno).kind(),
            format!("a thread cannot run on CPU {cpu}: {errno}"),
        ));
    }
    Ok(thread)
}

/// Lets the calling thread run on one processor only.
fn pin(cpu: u32) -> Result<(), Errno> {
    let cpu = usize::try_from(cpu).map_err(|_| Errno::INVAL)?;
    if cpu >= CpuSet::MAX_CPU {
        return Err(Errno::INVAL);
    }
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one)
}

/// The processors that this thread may run on, as far as their numbers are below
/// 1024.
///
/// # Errors
/// On machines with more processors than that.
pub fn allowed_cpus() -> io::Result<Vec<u32>> {
    let set = sched_getaffinity(None)?;
    let numbers = (0..).take(CpuSet::MAX_CPU);
    Ok((0..CpuSet::MAX_CPU)
        .zip(numbers)
        .filter(|(cpu, _)| set.is_set(*cpu))
        .map(|(_, number)| number)
        .collect())
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

    #[test]
    fn thread_has_its_name_and_returns_its_value() {
        let thread = spawn("queue 3", || {
            std::thread::current().name().map(str::to_owned)
        });
        assert_eq!(thread.unwrap().join().unwrap().as_deref(), Some("queue 3"));
    }

    #[test]
    fn pinned_thread_has_one_cpu() {
        for cpu in allowed_cpus().unwrap() {
            let (sender, seen) = mpsc::channel();
            let pinned = spawn_on(Some(cpu), "pinned", move || {
                let seen = (available_cpus().get(), allowed_cpus().unwrap());
                sender.send(seen).unwrap();
            });
            pinned.unwrap().join().unwrap();
            assert_eq!(seen.recv().unwrap(), (1, vec![cpu]));
        }
    }

    #[test]
    fn processor_that_is_not_there_is_named_and_nothing_runs() {
        for cpu in [1023, 1024, u32::MAX] {
            let ran = spawn_on(Some(cpu), "nowhere", || panic!("it must not run"));
            let error = ran.unwrap_err().to_string();
            assert!(error.contains(&format!("CPU {cpu}")), "{error}");
        }
    }
}
