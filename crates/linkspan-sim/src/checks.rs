//! What tests ask of every kind of link: seeds in which nothing is wrong, that run the same way
//! twice, that are cut at every step, and that find a fault of the model.

use std::{env, thread};

use crate::seeds::{SEEDS, THREAD, missing, run, run_all};
use crate::world::Link;

/// Those of their short form.
const QUICK: u64 = 50;

/// Does `work` in a thread of its own, whose panics are results.
///
/// # Panics
/// When it panics all the same.
pub(crate) fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::Builder::new().name(THREAD.to_owned());
    let thread = thread.spawn(work).expect("a thread");
    thread.join().expect("it catches panics")
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
        let run_one = |seed| {
            let link = run(seed, || L::new(seed, L::Fault::default()));
            link.map(|mut link| link.sim().counts.clone())
        };
        (0..10)
            .map(|seed| [run_one(seed), run_one(seed)])
            .collect::<Vec<_>>()
    });
    for [one, two] in results {
        assert_eq!(one, two);
    }
}

/// A fault of the model is found within so many seeds, with these words.
///
/// # Panics
/// When it is not.
#[track_caller]
pub(crate) fn finds<L: Link>(fault: L::Fault, seeds: u64, says: &str) {
    let says = says.to_owned();
    let words = says.clone();
    let search = move || {
        let mut failures = (0..seeds).filter_map(|seed| run(seed, || L::new(seed, fault)).err());
        failures.any(|failure| failure.contains(&words))
    };
    assert!(apart(search), "{seeds} seeds do not find {fault:?}: {says}");
}

/// The connection of this seed is cut at each step: the first `dense` of them each, then
/// at larger and larger distances.
///
/// # Errors
/// What went wrong then.
pub(crate) fn cut_everywhere<L: Link>(seed: u64, dense: u64) -> Result<(), String> {
    let make = || L::new(seed, L::Fault::default());
    let steps = run(seed, make)?.sim().steps;
    let mut at = 1;
    while at <= steps {
        let cut = || {
            let mut link = make();
            link.sim().cut_at(at);
            link
        };
        run(seed, cut).map_err(|failure| format!("cut at {at}: {failure}"))?;
        at += 1 + at / dense;
    }
    Ok(())
}
