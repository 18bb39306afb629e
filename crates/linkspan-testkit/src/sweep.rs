//! Makes each step of a bring-up fail in turn.
//!
//! Whatever acquires something passes a point of [`linkspan_mem::fault`]. A
//! sweep runs a bring-up with the first point failing, then with the second, and
//! so on until a run passes all of them. The seam is process-global, so a sweep
//! is alone in its test binary.

use std::fmt::Display;

use linkspan_mem::fault;

use crate::census::Census;

/// No bring-up has so many points; one that does never ends.
const POINTS_MAX: u64 = 10_000;

/// What a sweep did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How many points failed, each in a run of its own.
    pub points: u64,
    /// What the failed runs reported, in order. A point whose failure a run
    /// survived, by trying again or by doing with less, has no entry.
    pub errors: Vec<String>,
}

impl Report {
    /// Points whose failure did not fail the run.
    pub fn absorbed(&self) -> u64 {
        self.points - self.errors.len() as u64
    }
}

/// Runs `bring_up`, which also ends what it began, with each point failing in
/// turn. After each run everything is as before, and the next run without a
/// failure works.
///
/// # Panics
/// When that is not so, or when a run fails although no point did.
#[track_caller]
pub fn sweep<E: Display>(mut bring_up: impl FnMut() -> Result<(), E>) -> Report {
    let mut whole = |when: &str| {
        if let Err(error) = bring_up() {
            panic!("{when}, a run in which nothing fails does not work: {error}");
        }
    };
    // What is made once and kept (the thread that closes descriptors) exists
    // after this.
    whole("at first");
    let before = Census::at_rest();
    let mut report = Report {
        points: 0,
        errors: Vec::new(),
    };
    for nth in 1..POINTS_MAX {
        let armed = fault::arm(nth);
        let result = bring_up();
        let fired = armed.fired();
        drop(armed);
        let when = format!("after point {nth} failed");
        before.assert_restored(&when);
        match result {
            Ok(()) if !fired => return report,
            Ok(()) => {}
            Err(error) if fired => {
                let error = error.to_string();
                assert!(!error.is_empty(), "point {nth} failed without a word");
                report.errors.push(error);
            }
            Err(error) => panic!("a run failed before point {nth} was reached: {error}"),
        }
        report.points = nth;
        if let Err(error) = bring_up() {
            panic!("{when}, the next run does not work: {error}");
        }
        before.assert_restored(&when);
    }
    panic!("the bring-up has more than {POINTS_MAX} points, or one that comes back for ever");
}
