//! File copy: its seeds, and faults of the model that they find.

use super::{Fault, Vm};
use crate::checks;

/// Every file arrives whole, one that does not leaves the old one as it was, and the channel is
/// open again whoever went away.
#[test]
fn every_seed_brings_all_files_over() {
    checks::every_seed::<Vm>();
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    checks::the_same_twice::<Vm>();
}

/// The device is taken away at any step.
#[test]
fn a_channel_that_is_rescinded_at_every_step_comes_back() {
    let cut = checks::apart(|| (0..4).try_for_each(|seed| checks::cut_everywhere::<Vm>(seed, 100)));
    cut.unwrap_or_else(|failure| panic!("{failure}"));
}

#[track_caller]
fn found(fault: Fault, says: &str) {
    checks::finds::<Vm>(fault, 200, says);
}

#[test]
fn a_lost_signal_is_found() {
    found(Fault::LosesSignal, "nothing is left to do");
}

#[test]
fn a_lost_message_is_found() {
    found(Fault::LosesMessage, "nothing is left to do");
}

#[test]
fn a_changed_byte_of_a_ring_is_found() {
    found(Fault::ChangesByte, "other bytes");
}

#[test]
fn a_file_that_is_left_behind_is_found() {
    found(Fault::ForgetsFile, "two files are open");
}
