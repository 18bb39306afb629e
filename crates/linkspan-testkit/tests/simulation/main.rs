//! A disk over vhost-user, simulated from a seed: front-end core and driver queues
//! on one side, back-end core, device queues and a model of a disk on the other,
//! in one address space, one step at a time. The seed decides who does the next
//! step, how bytes are split, when connections are cut, back ends killed, and
//! sessions saved and restored.
//!
//! One seed again: `LINKSPAN_SEED=… cargo test -p linkspan-testkit --test simulation`

mod back;
mod front;
mod history;
mod plan;
mod shared;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::{cell, env, panic, thread};

use plan::Fault;
use shared::Happened;
use world::World;

/// The one seed to run.
const SEED_ENV: &str = "LINKSPAN_SEED";
/// How many seeds, and the first of them; `cargo xtask long sim-blk` sets both.
const SEEDS_ENV: &str = "LINKSPAN_SEEDS";
const FIRST_ENV: &str = "LINKSPAN_FIRST_SEED";
/// Set for the short form of tests.
const QUICK_ENV: &str = "LINKSPAN_TEST_QUICK";

const SEEDS: u64 = 1000;
const SEEDS_QUICK: u64 = 50;

/// Seeds within which a fault of the model is found.
const SEEDS_FAULTY: u64 = 200;

thread_local! {
    /// What the last panic of this thread said.
    static MESSAGE: cell::RefCell<Option<String>> = const { cell::RefCell::new(None) };
}

/// Runs one seed; what went wrong and what happened before, if something did.
fn run(seed: u64, fault: Fault) -> Result<Happened, String> {
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
    let mut world = World::new(seed, fault);
    match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(()) => Ok(world.shared.happened),
        Err(_) => {
            let message = MESSAGE.take().unwrap_or_default();
            let plan = &world.shared.plan;
            let events = world.shared.events();
            Err(format!(
                "seed {seed}: {message}\n{plan:#?}\nthe last events:\n{events}\
                 again: {SEED_ENV}={seed} cargo test -p linkspan-testkit --test simulation"
            ))
        }
    }
}

/// The name of threads whose panics are reported with their seed.
const SIMULATION: &str = "simulation";

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
                    let result = run(seed, Fault::None);
                    let mut results = results.lock().expect("nobody panics with it");
                    match result {
                        Ok(happened) => results.1.add(&happened),
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

/// No acknowledged write is lost, none is undone by an older one, every request
/// is answered once, reads see what they may, and every run comes to its end.
#[test]
fn every_seed_keeps_what_was_acknowledged() {
    let quick = env::var_os(QUICK_ENV).is_some();
    let usual = if quick { SEEDS_QUICK } else { SEEDS };
    let (first, count, enough) = match (number(SEED_ENV), number(SEEDS_ENV)) {
        (Some(seed), _) => (seed, 1, 1),
        (None, Some(count)) => (number(FIRST_ENV).unwrap_or(0), count, usize::MAX),
        (None, None) => (0, usual, 1),
    };
    let (failures, mut happened) = run_all(first, count, enough);
    // What `cargo xtask long sim-blk` reads.
    println!("simulation: {count} seeds, {} failures", failures.len());
    println!("{happened:?}");
    if let Some((_, failure)) = failures.iter().min() {
        panic!("{failure}");
    }
    // A simulation in which nothing goes wrong proves nothing.
    let everything = happened.all().iter().all(|count| **count > 0);
    assert!(count < SEEDS || everything, "{happened:?}");
}

/// A seed decides everything: a failure can be looked at again.
#[test]
fn a_seed_runs_the_same_way_twice() {
    for seed in 0..10 {
        assert_eq!(run(seed, Fault::None), run(seed, Fault::None));
    }
}

/// One seed after the other, so that it is the same one that finds it each time.
#[track_caller]
fn found(fault: Fault, says: &str) {
    let search = move || (0..SEEDS_FAULTY).find_map(|seed| run(seed, fault).err());
    let thread = thread::Builder::new().name(SIMULATION.to_owned());
    let failure = thread.spawn(search).expect("a thread").join();
    let failure = failure.expect("it catches panics");
    let failure = failure.unwrap_or_else(|| panic!("{SEEDS_FAULTY} seeds do not find {fault:?}"));
    assert!(failure.contains(says), "{fault:?}: {failure}");
}

#[test]
fn requests_in_flight_that_are_forgotten_are_found() {
    found(Fault::NoReplay, "nothing is left to do");
}

#[test]
fn requests_in_flight_that_come_again_in_another_order_are_found() {
    found(Fault::ReplayOutOfOrder, "taken again in another order");
}

#[test]
fn a_lost_write_is_found() {
    found(Fault::LosesBlock, "came after it and was answered");
}

#[test]
fn a_write_of_a_dead_back_end_is_found() {
    found(Fault::WritesAfterDeath, "after that was answered");
}

#[test]
fn a_lost_kick_is_found() {
    found(Fault::LosesKick, "nothing is left to do");
}

#[test]
fn a_lost_call_is_found() {
    found(Fault::LosesCall, "nothing is left to do");
}
