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

    /// Counts what this process holds once nothing changes any more: when many looks in a row agree.
    /// Threads get their names and drop what they held shortly after whoever
    /// started or ended them goes on.
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
            alike = if now == last { alike + 1 } else { 0 };
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
        .map(|name| format!("thread {}", name.trim_end()))
        .collect()
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
