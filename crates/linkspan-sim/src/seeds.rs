//! Runs seeds: one, many on all processors, twice, cut at every step, or with a fault of the
//! model that has to be found.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::{cell, env, panic, thread};

use crate::world::{self, Counts, Link, Trail};

/// The name of threads whose panics are results.
const THREAD: &str = "simulation";

/// Seeds that tests run of each link.
pub const SEEDS: u64 = 1000;
/// Those of their short form.
const QUICK: u64 = 50;

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

/// Does `work` in a thread of its own, whose panics are results.
///
/// # Panics
/// When it panics all the same.
pub(crate) fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::Builder::new().name(THREAD.to_owned());
    let thread = thread.spawn(work).expect("a thread");
    thread.join().expect("it catches panics")
}

/// Runs a world, in a thread whose panics are results ([`apart`]).
///
/// # Errors
/// What went wrong in it, what happened before, and how to see it again.
pub(crate) fn run<L: Link>(seed: u64, link: &mut L) -> Result<Counts, String> {
    keep_messages();
    let mut trail = Trail::new();
    match catch_unwind(AssertUnwindSafe(|| world::run(link, &mut trail))) {
        Ok(()) => Ok(link.sim().counts.clone()),
        Err(_) => {
            let message = MESSAGE.take().unwrap_or_default();
            let (story, name) = (world::story(link, &trail), L::NAME);
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
            if seed >= first + count {
                return;
            }
            let result = run(seed, &mut L::new(seed, L::Fault::default()));
            let mut results = results.lock().expect("nobody panics with it");
            match result {
                Ok(counts) => results.counts.add_all(&counts),
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

/// The seeds of a test: in none anything goes wrong, and in all of them together everything
/// that may happen does. `LINKSPAN_TEST_QUICK` is for fewer of them.
///
/// # Panics
/// When that is not so.
#[track_caller]
pub(crate) fn every_seed<L: Link>() {
    let quick = env::var_os("LINKSPAN_TEST_QUICK").is_some();
    let outcome = run_all::<L>(0, if quick { QUICK } else { SEEDS }, 1);
    if let Some((_, failure)) = outcome.failures.first() {
        panic!("{failure}");
    }
    // A simulation in which nothing goes wrong proves nothing.
    let missing = missing::<L>(&outcome.counts);
    assert!(
        quick || missing.is_empty(),
        "{missing:?} did not happen: {:?}",
        outcome.counts
    );
}

/// A seed decides everything: the first ones run the same way twice.
///
/// # Panics
/// When they do not.
#[track_caller]
pub(crate) fn the_same_twice<L: Link>() {
    let results = apart(|| {
        let run_one = |seed| run(seed, &mut L::new(seed, L::Fault::default()));
        (0..10)
            .map(|seed| [run_one(seed), run_one(seed)])
            .collect::<Vec<_>>()
    });
    for [one, two] in results {
        assert_eq!(one, two);
    }
}

/// A fault of the model is found within so many seeds. One seed after the other, so that it is
/// the same one that finds it each time.
///
/// # Panics
/// When it is not, or with other words.
#[track_caller]
pub(crate) fn finds<L: Link>(fault: L::Fault, seeds: u64, says: &str) {
    let search = move || (0..seeds).find_map(|seed| run(seed, &mut L::new(seed, fault)).err());
    let failure = apart(search);
    let failure = failure.unwrap_or_else(|| panic!("{seeds} seeds do not find {fault:?}"));
    assert!(failure.contains(says), "{fault:?}: {failure}");
}

/// The connection of this seed is cut at each step: the first `dense` of them each, then
/// at larger and larger distances.
///
/// # Errors
/// What went wrong then.
pub(crate) fn cut_everywhere<L: Link>(seed: u64, dense: u64) -> Result<(), String> {
    let make = || L::new(seed, L::Fault::default());
    let mut whole = make();
    run(seed, &mut whole)?;
    let steps = whole.sim().steps;
    let mut at = 1;
    while at <= steps {
        let mut link = make();
        link.sim().cut_at(at);
        run(seed, &mut link).map_err(|failure| format!("cut at {at}: {failure}"))?;
        at += 1 + at / dense;
    }
    Ok(())
}

/// A kind of link, whatever its type.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// What is simulated, in some words.
    pub about: &'static str,
    /// Runs so many seeds from the first one on.
    pub run: fn(first: u64, count: u64, enough: usize) -> Outcome,
}

impl Kind {
    pub(crate) const fn of<L: Link>() -> Self {
        Self {
            name: L::NAME,
            about: L::ABOUT,
            run: run_all::<L>,
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
