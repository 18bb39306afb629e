//! Simulation from seeds: a seed decides everything about a [`World`], so that what went
//! wrong in it can be looked at again.
//!
//! `LINKSPAN_SEED` is the one seed to run, `LINKSPAN_SEEDS` and `LINKSPAN_FIRST_SEED` are how
//! many and the first of them, which `cargo xtask long` sets, and `LINKSPAN_TEST_QUICK` is for
//! fewer of them.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::{cell, env, panic, thread};

/// Numbers that follow from a seed alone (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Those of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// One below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// The same of fewer bits.
    pub fn small(&mut self, end: u32) -> u32 {
        u32::try_from(self.below(end.into())).expect("below a small number")
    }

    /// The same of fewer bits, from `min` to `max`.
    pub fn short(&mut self, min: u16, max: u16) -> u16 {
        min + u16::try_from(self.below(u64::from(max - min) + 1)).expect("below a short")
    }

    /// A place among so many.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a length")
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// How often what may happen in a world did.
pub trait Happened: Clone + Debug + Default + PartialEq + Send {
    /// Each of its numbers.
    fn counts(&mut self) -> Vec<&mut u64>;

    /// Adds those of another run.
    fn add(&mut self, mut other: Self) {
        for (sum, count) in self.counts().into_iter().zip(other.counts()) {
            *sum += *count;
        }
    }
}

/// What a seed decides.
pub trait World {
    /// What may happen in it.
    type Happened: Happened;

    /// To the end, where nothing is left to do. What is wrong with it is a panic.
    fn run(&mut self);

    /// What did happen.
    fn happened(&self) -> Self::Happened;

    /// What the seed has decided, and the last steps: for the report of a failure.
    fn story(&self) -> String;
}

/// How a simulation is run.
#[derive(Clone, Copy, Debug)]
pub struct Simulation {
    /// The command that runs one seed again.
    pub again: &'static str,
    /// Seeds that tests run.
    pub seeds: u64,
    /// Those of their short form.
    pub quick: u64,
    /// Seeds within which a fault of the model is found.
    pub faulty: u64,
}

/// The name of threads whose panics are results.
const THREAD: &str = "simulation";

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

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Does `work` in a thread of its own, whose panics are results.
///
/// # Panics
/// When it panics all the same.
pub fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::Builder::new().name(THREAD.to_owned());
    let thread = thread.spawn(work).expect("a thread");
    thread.join().expect("it catches panics")
}

impl Simulation {
    /// Runs a world.
    ///
    /// # Errors
    /// What went wrong in it, and what happened before.
    pub fn run<W: World>(&self, seed: u64, world: &mut W) -> Result<W::Happened, String> {
        keep_messages();
        match catch_unwind(AssertUnwindSafe(|| world.run())) {
            Ok(()) => Ok(world.happened()),
            Err(_) => {
                let message = MESSAGE.take().unwrap_or_default();
                let (story, again) = (world.story(), self.again);
                Err(format!(
                    "seed {seed}: {message}\n{story}again: LINKSPAN_SEED={seed} {again}"
                ))
            }
        }
    }

    /// Runs seeds on all processors: the failures, and what happened in the others.
    fn run_all<W: World>(
        &self,
        make: impl Fn(u64) -> W + Sync,
        (first, count, enough): (u64, u64, usize),
    ) -> (Vec<(u64, String)>, W::Happened) {
        let next = AtomicU64::new(first);
        let results = Mutex::new((Vec::new(), W::Happened::default()));
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..threads {
                let work = || {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= first + count {
                            return;
                        }
                        let result = self.run(seed, &mut make(seed));
                        let mut results = results.lock().expect("nobody panics with it");
                        match result {
                            Ok(happened) => results.1.add(happened),
                            Err(failure) => results.0.push((seed, failure)),
                        }
                        if results.0.len() >= enough {
                            return;
                        }
                    }
                };
                let thread = thread::Builder::new().name(THREAD.to_owned());
                thread.spawn_scoped(scope, work).expect("a thread");
            }
        });
        results.into_inner().expect("nobody panics with it")
    }

    /// Runs all seeds that are asked for: in none anything goes wrong, and in all of them
    /// together everything that may happen does. Says what did.
    ///
    /// # Panics
    /// When that is not so.
    #[track_caller]
    pub fn every_seed<W: World>(&self, make: impl Fn(u64) -> W + Sync) -> W::Happened {
        let quick = env::var_os("LINKSPAN_TEST_QUICK").is_some();
        let usual = if quick { self.quick } else { self.seeds };
        let one = number("LINKSPAN_SEED");
        let (first, count, enough) = match (one, number("LINKSPAN_SEEDS")) {
            (Some(seed), _) => (seed, 1, 1),
            (None, Some(count)) => {
                let first = number("LINKSPAN_FIRST_SEED").unwrap_or(0);
                (first, count, usize::MAX)
            }
            (None, None) => (0, usual, 1),
        };
        let (failures, mut happened) = self.run_all(make, (first, count, enough));
        // What `cargo xtask long` reads.
        println!("simulation: {count} seeds, {} failures", failures.len());
        println!("{happened:?}");
        if let Some((_, failure)) = failures.iter().min() {
            panic!("{failure}");
        }
        // A simulation in which nothing goes wrong proves nothing.
        let everything = happened.counts().iter().all(|count| **count > 0);
        assert!(count < self.seeds || everything, "{happened:?}");
        happened
    }

    /// A seed decides everything: the first ones run the same way twice.
    ///
    /// # Panics
    /// When they do not.
    #[track_caller]
    pub fn the_same_twice<W: World>(&self, make: impl Fn(u64) -> W) {
        for seed in 0..10 {
            let [one, two] = [(); 2].map(|()| self.run(seed, &mut make(seed)));
            assert_eq!(one, two);
        }
    }

    /// A fault of the model is found. One seed after the other, so that it is the same one
    /// that finds it each time.
    ///
    /// # Panics
    /// When it is not, or with other words.
    #[track_caller]
    pub fn finds<W: World>(
        self,
        fault: impl Debug,
        says: &str,
        make: impl Fn(u64) -> W + Send + 'static,
    ) {
        let search = move || {
            let mut seeds = 0..self.faulty;
            seeds.find_map(|seed| self.run(seed, &mut make(seed)).err())
        };
        let failure = apart(search);
        let count = self.faulty;
        let failure = failure.unwrap_or_else(|| panic!("{count} seeds do not find {fault:?}"));
        assert!(failure.contains(says), "{fault:?}: {failure}");
    }
}
