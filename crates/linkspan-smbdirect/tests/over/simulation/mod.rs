//! Two ends, simulated from a seed: the seed decides options, load, who does the next
//! step, when connections are cut and posts refused, and when ends are saved and restored.
//!
//! One seed again: `LINKSPAN_SEED=… cargo test -p linkspan-smbdirect --test over every_seed`

mod end;
mod plan;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::{cell, env, panic, thread};

use plan::Fault;
use world::{Happened, World};

/// The one seed to run.
const SEED_ENV: &str = "LINKSPAN_SEED";
/// How many seeds, and the first of them; `cargo xtask long sim-smbdirect` sets both.
const SEEDS_ENV: &str = "LINKSPAN_SEEDS";
const FIRST_ENV: &str = "LINKSPAN_FIRST_SEED";
/// Set for the short form of tests.
const QUICK_ENV: &str = "LINKSPAN_TEST_QUICK";

const SEEDS: u64 = 1000;
const SEEDS_QUICK: u64 = 100;

/// Seeds within which a fault of the model is found.
const SEEDS_FAULTY: u64 = 100;

thread_local! {
    /// What the last panic of this thread said.
    static MESSAGE: cell::RefCell<Option<String>> = const { cell::RefCell::new(None) };
}

/// The name of threads whose panics are reported with their seed.
const SIMULATION: &str = "simulation";

/// Runs a world; what went wrong and what happened before, if something did.
fn run(seed: u64, mut world: World) -> Result<(Happened, u64), String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() == Some(SIMULATION) {
                MESSAGE.set(Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
    match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(()) => Ok((world.happened, world.steps())),
        Err(_) => {
            let message = MESSAGE.take().unwrap_or_default();
            let (plan, events) = (&world.plan, world.events());
            Err(format!(
                "seed {seed}: {message}\n{plan:#?}\nthe last steps:\n{events}\
                 again: {SEED_ENV}={seed} cargo test -p linkspan-smbdirect --test over every_seed"
            ))
        }
    }
}

/// Runs seeds on all processors: the failures, and what happened in the others.
fn run_all(first: u64, count: u64, enough: usize) -> (Vec<(u64, String)>, Happened) {
    let next = AtomicU64::new(first);
    let results = Mutex::new((Vec::new(), Happened::default()));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            let work = || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let result = run(seed, World::new(seed, Fault::None));
                    let mut results = results.lock().expect("nobody panics with it");
                    match result {
                        Ok((happened, _)) => results.1.add(&happened),
                        Err(failure) => results.0.push((seed, failure)),
                    }
                    if results.0.len() >= enough {
                        return;
                    }
                }
            };
            let thread = thread::Builder::new().name(SIMULATION.to_owned());
            thread.spawn_scoped(scope, work).expect("a thread");
        }
    });
    results.into_inner().expect("nobody panics with it")
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// No deadlock, no byte lost or repeated, each message and transfer told once, and all
/// credits, buffers and registrations back, whatever is refused or cut.
#[test]
fn every_seed_loses_nothing_and_comes_to_its_end() {
    let quick = env::var_os(QUICK_ENV).is_some();
    let usual = if quick { SEEDS_QUICK } else { SEEDS };
    let (first, count, enough) = match (number(SEED_ENV), number(SEEDS_ENV)) {
        (Some(seed), _) => (seed, 1, 1),
        (None, Some(count)) => (number(FIRST_ENV).unwrap_or(0), count, usize::MAX),
        (None, None) => (0, usual, 1),
    };
    let (failures, mut happened) = run_all(first, count, enough);
    // What `cargo xtask long sim-smbdirect` reads.
    println!("simulation: {count} seeds, {} failures", failures.len());
    println!("{happened:?}");
    if let Some((_, failure)) = failures.iter().min() {
        panic!("{failure}");
    }
    // A simulation in which nothing goes wrong proves nothing.
    let everything = happened.all().iter().all(|count| **count > 0);
    assert!(count < SEEDS || everything, "{happened:?}");
}

/// In a thread of its own, whose panics are results.
fn simulate<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::Builder::new().name(SIMULATION.to_owned());
    let thread = thread.spawn(work).expect("a thread");
    thread.join().expect("it catches panics")
}

/// A seed decides everything: a failure can be looked at again.
#[test]
fn a_seed_runs_the_same_way_twice() {
    for seed in 0..10 {
        let again = move || run(seed, World::new(seed, Fault::None));
        assert_eq!(simulate(again), simulate(again));
    }
}

/// A connection that is cut at any step, from the first one on.
#[test]
fn a_connection_that_is_cut_at_every_step_loses_nothing() {
    let failure = simulate(|| {
        for seed in 0..4 {
            let steps = run(seed, World::new(seed, Fault::None))?.1;
            // The first steps each, then some.
            let mut at = 1;
            while at <= steps {
                run(seed, World::new(seed, Fault::None).cut_at(at))
                    .map_err(|failure| format!("cut at {at}: {failure}"))?;
                at += 1 + at / 100;
            }
        }
        Ok::<_, String>(())
    });
    failure.unwrap_or_else(|failure| panic!("{failure}"));
}

/// One seed after the other, so that it is the same one that finds it each time.
#[track_caller]
fn found(fault: Fault, says: &str) {
    let search = move || {
        let mut seeds = 0..SEEDS_FAULTY;
        seeds.find_map(|seed| run(seed, World::new(seed, fault)).err())
    };
    let failure = simulate(search);
    let failure = failure.unwrap_or_else(|| panic!("{SEEDS_FAULTY} seeds do not find {fault:?}"));
    assert!(failure.contains(says), "{fault:?}: {failure}");
}

#[test]
fn a_lost_message_is_found() {
    found(Fault::LosesMessage, "it ended without a reason");
}

#[test]
fn a_repeated_message_is_found() {
    found(Fault::RepeatsMessage, "has another length");
}

#[test]
fn a_changed_byte_is_found() {
    found(Fault::ChangesByte, "has other bytes");
}

#[test]
fn a_lost_grant_is_found() {
    found(Fault::LosesGrant, "nothing is left to do");
}

#[test]
fn a_message_that_overtakes_a_write_is_found() {
    found(Fault::Overtakes, "other bytes were written");
}

#[test]
fn a_lost_buffer_is_found() {
    found(Fault::LosesBuffer, "buffers are lost");
}

#[test]
fn a_lost_completion_is_found() {
    found(Fault::LosesCompletion, "nothing is left to do");
}

#[test]
fn a_receive_that_was_not_posted_is_found() {
    found(Fault::PostsTooFew, "receives are lost");
}

#[test]
fn a_forgotten_token_is_found() {
    found(Fault::ForgetsToken, "was to be invalidated");
}
