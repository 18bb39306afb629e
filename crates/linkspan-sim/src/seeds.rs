//! Runs seeds: one, or many on all processors.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::{cell, panic, thread};

use crate::world::{self, Counts, Link, Trail};

/// The name of threads whose panics are results.
pub(crate) const THREAD: &str = "simulation";

/// Seeds that tests run of each link.
pub const SEEDS: u64 = 1000;
thread_local! {
    /// What the last panic of this thread said.
    static MESSAGE: cell::RefCell<Option<String>> = const { cell::RefCell::new(None) };
}

/// What panics of threads of a simulation say is kept, and not printed.
fn keep_messages() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() == Some(THREAD) {
                MESSAGE.set(Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// Makes a world and runs it to its end, in a thread whose panics are results.
///
/// # Errors
/// What went wrong in it, what happened before, and how to see it again.
pub(crate) fn run<L: Link>(seed: u64, make: impl FnOnce() -> L) -> Result<L, String> {
    keep_messages();
    let (mut made, mut trail) = (None, Trail::new());
    let work = || world::run(made.insert(make()), &mut trail);
    match (catch_unwind(AssertUnwindSafe(work)), made) {
        (Ok(()), Some(link)) => Ok(link),
        (_, made) => {
            let message = MESSAGE.take().unwrap_or_default();
            let story = made.map(|mut link| world::story(&mut link, &trail));
            let (story, name) = (story.unwrap_or_default(), L::NAME);
            Err(format!(
                "{name}, seed {seed}: {message}\n{story}again: \
                 cargo xtask sim --link {name} --first-seed {seed} --seeds 1"
            ))
        }
    }
}

/// What came of many seeds.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Seeds that failed, and how.
    pub failures: Vec<(u64, String)>,
    /// What happened in the others.
    pub counts: Counts,
}

/// Runs so many seeds on all processors, until so many of them failed.
pub(crate) fn run_all<L: Link>(first: u64, count: u64, enough: usize) -> Outcome {
    let next = AtomicU64::new(first);
    let results = Mutex::new(Outcome::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed.wrapping_sub(first) >= count {
                return;
            }
            let result = run(seed, || L::new(seed, L::Fault::default()));
            let mut results = results.lock().expect("nobody panics with it");
            match result {
                Ok(mut link) => results.counts.add_all(&link.sim().counts),
                Err(failure) => results.failures.push((seed, failure)),
            }
            if results.failures.len() >= enough {
                return;
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            let thread = thread::Builder::new().name(THREAD.to_owned());
            thread.spawn_scoped(scope, work).expect("a thread");
        }
    });
    let mut outcome = results.into_inner().expect("nobody panics with it");
    outcome.failures.sort();
    outcome
}

/// What may happen with this link and did not.
pub(crate) fn missing<L: Link>(counts: &Counts) -> Vec<&'static str> {
    let mishaps = L::MISHAPS.iter().map(|mishap| mishap.name());
    let all = mishaps.chain(L::HAPPENS.iter().copied());
    all.filter(|name| counts.of(name) == 0).collect()
}

/// A kind of link, whatever its type.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Runs so many seeds from the first one on.
    pub run: fn(first: u64, count: u64, enough: usize) -> Outcome,
    /// What may happen with it and did not.
    pub missing: fn(&Counts) -> Vec<&'static str>,
}

impl Kind {
    pub(crate) const fn of<L: Link>() -> Self {
        Self {
            name: L::NAME,
            run: run_all::<L>,
            missing: missing::<L>,
        }
    }
}

/// Counts as a line.
#[must_use]
pub fn line(counts: &Counts) -> String {
    let mut line = String::new();
    for (name, count) in counts.iter() {
        let comma = if line.is_empty() { "" } else { ", " };
        let _ = write!(line, "{comma}{count} {name}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::apart;
    use crate::smbdirect::Iwarp;

    #[test]
    fn a_world_that_cannot_be_made_is_a_result() {
        let failure = apart(|| run::<Iwarp>(7, || panic!("no such world")).err()).unwrap();
        assert!(failure.contains("no such world"), "{failure}");
        assert!(failure.contains("--first-seed 7"), "{failure}");
    }
}
