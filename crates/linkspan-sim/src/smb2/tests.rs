//! SMB2 through a gateway: its seeds, and faults of the model that they find.

use super::{Fault, Share};
use crate::checks;

/// No acknowledged write is lost or undone, every request is answered once, memory is reached
/// only while it is registered, and all credits are where they were granted.
#[test]
fn every_seed_keeps_what_was_acknowledged() {
    checks::every_seed::<Share>();
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    checks::the_same_twice::<Share>();
}

#[test]
fn a_share_that_is_cut_at_every_step_loses_nothing() {
    let cut =
        checks::apart(|| (0..4).try_for_each(|seed| checks::cut_everywhere::<Share>(seed, 100)));
    cut.unwrap_or_else(|failure| panic!("{failure}"));
}

#[track_caller]
fn found(fault: Fault, says: &str) {
    checks::finds::<Share>(fault, 300, says);
}

#[test]
fn a_lost_write_is_found() {
    found(Fault::LosesWrite, "came after it and was answered");
}

#[test]
fn a_lost_message_is_found() {
    found(Fault::LosesMessage, "nothing is left to do");
}

#[test]
fn data_that_is_not_placed_is_found() {
    found(Fault::ForgetsData, "came after it and was answered");
}

#[test]
fn a_lost_credit_is_found() {
    found(Fault::LosesCredit, "credits are lost");
}
