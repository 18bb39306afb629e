//! The disk over vhost-user: its seeds, and faults of the model that they find.

use super::{Disk, Fault};
use crate::checks;

/// No acknowledged write is lost, none is undone by an older one, every request
/// is answered once, reads see what they may, and every run comes to its end.
#[test]
fn every_seed_keeps_what_was_acknowledged() {
    checks::every_seed::<Disk>();
}

/// A seed decides everything: a failure can be looked at again.
#[test]
fn a_seed_runs_the_same_way_twice() {
    checks::the_same_twice::<Disk>();
}

/// A connection that is cut at any step, from the first one on.
#[test]
fn a_disk_that_is_cut_at_every_step_loses_nothing() {
    let cut =
        checks::apart(|| (0..4).try_for_each(|seed| checks::cut_everywhere::<Disk>(seed, 50)));
    cut.unwrap_or_else(|failure| panic!("{failure}"));
}

#[track_caller]
fn found(fault: Fault, says: &str) {
    checks::finds::<Disk>(fault, 200, says);
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
