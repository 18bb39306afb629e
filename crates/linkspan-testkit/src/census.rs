//! What a process holds: open descriptors, threads, and mappings of memory
//! files. A link that comes and goes leaves all of them as they were.
//!
//! A census is of the whole process, so a test that takes one of its own process
//! is alone in its test binary.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use linkspan_sys::{EventFd, reaper};

/// Between two looks at a condition; the number of looks is bounded as well.
const PAUSE: Duration = Duration::from_millis(1);
const LOOKS: u32 = 10_000;

/// Looks that have to agree before a process counts as at rest.
const ALIKE: u32 = 30;

/// What a process held at one moment, counted by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// Which process, as /proc names it.
    process: String,
    counts: BTreeMap<String, usize>,
}

impl Census {
    /// Counts what this process holds.
    pub fn take() -> Self {
        Self::of("self".to_owned())
    }

    fn of(process: String) -> Self {
        let mut counts = BTreeMap::new();
        let kinds = descriptors(&process)
            .into_iter()
            .chain(threads(&process))
            .chain(memory_mappings(&process));
        for kind in kinds {
            *counts.entry(kind).or_insert(0) += 1;
        }
        Self { process, counts }
    }

    /// Counts what this process holds once nothing changes any more: when many
    /// looks in a row agree, and every other thread sleeps in all of them. A
    /// thread takes its name, and drops what it held, some time after whoever
    /// started or ended it goes on; until then it runs, or waits for a processor.
    ///
    /// # Panics
    /// When it goes on changing.
    #[track_caller]
    pub fn at_rest() -> Self {
        Self::of_resting("self".to_owned())
    }

    /// The same for a child of this process.
    ///
    /// # Panics
    /// When it goes on changing, or is gone.
    #[track_caller]
    pub fn of_child_at_rest(id: u32) -> Self {
        Self::of_resting(id.to_string())
    }

    #[track_caller]
    fn of_resting(process: String) -> Self {
        let mut last = Self::of(process);
        let mut alike = 0;
        let rests = settled(|| {
            let now = Self::of(last.process.clone());
            let still = now == last && others_sleep(&now.process);
            alike = if still { alike + 1 } else { 0 };
            last = now;
            alike == ALIKE
        });
        assert!(rests, "the process does not come to rest");
        last
    }

    /// What `later` has more (`+`) or less (`-`), one line for each kind; empty
    /// if it holds the same.
    pub fn difference(&self, later: &Self) -> String {
        let mut text = String::new();
        let kinds: std::collections::BTreeSet<_> =
            self.counts.keys().chain(later.counts.keys()).collect();
        for kind in kinds {
            let before = self.counts.get(kind).copied().unwrap_or(0);
            let after = later.counts.get(kind).copied().unwrap_or(0);
            if before != after {
                let sign = if after > before { '+' } else { '-' };
                writeln!(text, "{sign}{} {kind}", before.abs_diff(after))
                    .expect("a string takes everything");
            }
        }
        text
    }

    /// How many there are of a kind, whose name begins like this.
    pub fn count(&self, kind: &str) -> usize {
        let alike = self
            .counts
            .iter()
            .filter(|(name, _)| name.starts_with(kind));
        alike.map(|(_, count)| count).sum()
    }

    /// Waits until the process holds what it held at the time of this census:
    /// some things end on threads that nobody joins.
    ///
    /// # Panics
    /// With the difference, when that does not happen.
    #[track_caller]
    pub fn assert_restored(&self, when: &str) {
        let now = || Self::of(self.process.clone());
        if !settled(|| now() == *self) {
            let difference = self.difference(&now());
            panic!("{when}, the process does not hold what it held before:\n{difference}");
        }
    }
}

/// Starts the thread that closes descriptors of peers, which stays once it was
/// needed, and waits until it has nothing to do.
///
/// # Panics
/// When it does not come to rest.
#[track_caller]
pub fn start_reaper() {
    reaper::dispose(EventFd::new().expect("an eventfd").into());
    // A new thread has its parent's name at first.
    let rests = || reaper::backlog() == 0 && Census::take().count("thread reaper") == 1;
    assert!(settled(rests), "descriptors are not closed");
}

/// Looks at a condition again and again until it holds; whether it came to hold
/// within a bounded number of looks.
pub fn settled(mut condition: impl FnMut() -> bool) -> bool {
    for _ in 0..LOOKS {
        if condition() {
            return true;
        }
        std::thread::sleep(PAUSE);
    }
    false
}

/// Bytes that a process has written so far: by system calls, or otherwise to files
/// on a disk, of which only those count that had nothing to write back before.
pub fn written_by(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/io")).unwrap_or_default();
    let bytes = |name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|bytes| bytes.trim().parse().ok())
            .unwrap_or(0)
    };
    u64::max(bytes("wchar:"), bytes("write_bytes:"))
}

fn descriptors(process: &str) -> Vec<String> {
    let folder = format!("/proc/{process}/fd");
    let own = format!("/proc/{}/fd", std::process::id());
    names(&folder)
        .iter()
        // One that is gone by now, the descriptor of this look-up above all, has no target.
        .filter_map(|name| fs::read_link(format!("{folder}/{name}")).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| *target != own)
        .map(|target| match target.split_once(":[") {
            // The number of a socket or pipe differs each time.
            Some((kind @ ("socket" | "pipe"), _)) => format!("fd {kind}"),
            _ => format!("fd {target}"),
        })
        .collect()
}

fn threads(process: &str) -> Vec<String> {
    let folder = format!("/proc/{process}/task");
    names(&folder)
        .iter()
        .filter_map(|id| fs::read_to_string(format!("{folder}/{id}/comm")).ok())
        // The kernel's own, for io_uring: they come and go as it sees fit.
        .filter(|name| !name.starts_with("iou-"))
        .map(|name| format!("thread {}", name.trim_end()))
        .collect()
}

/// Whether all threads but the one that asks sleep until something wakes them
/// (state `S`).
fn others_sleep(process: &str) -> bool {
    let folder = format!("/proc/{process}/task");
    let own = fs::read_link("/proc/thread-self").expect("/proc is mounted");
    let own = own.file_name().expect("a thread has a number");
    names(&folder)
        .iter()
        .filter(|id| id.as_str() != own)
        .all(|id| {
            // The name in parentheses may itself contain some.
            let stat = fs::read_to_string(format!("{folder}/{id}/stat"));
            stat.is_ok_and(|stat| {
                stat.rsplit_once(") ")
                    .is_some_and(|(_, rest)| rest.starts_with('S'))
            })
        })
}

fn memory_mappings(process: &str) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"));
    let maps = maps.expect("/proc is mounted and the process there");
    let of_memory = maps.lines().filter_map(|line| {
        let (_, name) = line.split_once("/memfd:")?;
        Some(format!("mapping of memfd {name}"))
    });
    of_memory.collect()
}

fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("/proc is mounted and the process there");
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    /// On a busy machine a new thread may wait long for its first turn.
    #[test]
    fn a_thread_is_counted_by_the_name_that_it_takes_late() {
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            // Longer than it takes to look as often as is looked.
            while start.elapsed() < 10 * ALIKE * PAUSE {
                std::hint::spin_loop();
            }
            rustix::thread::set_name(c"late").expect("a name");
            let _ = ended.recv();
        });
        let census = Census::at_rest();
        assert_eq!(census.count("thread late"), 1, "{census:?}");
        drop(end);
        thread.join().expect("it only waits");
    }
}
