//! SMB Direct: its seeds, and faults of the model that they find.

use super::{Fault, Iwarp, Local};
use crate::checks::{self, apart, cut_everywhere};
use crate::world::Link as _;

/// No deadlock, no byte lost or repeated, each message and transfer told once, and all
/// credits, buffers and registrations back, whatever is refused or cut.
#[test]
fn every_seed_loses_nothing_and_comes_to_its_end() {
    checks::every_seed::<Local>();
}

/// The same over iWARP, whose stream is written and read in pieces of any size.
#[test]
fn every_seed_over_a_stream_loses_nothing_and_comes_to_its_end() {
    checks::every_seed::<Iwarp>();
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    checks::the_same_twice::<Local>();
    checks::the_same_twice::<Iwarp>();
}

#[test]
fn a_connection_that_is_cut_at_every_step_loses_nothing() {
    // The first steps each, then some.
    apart(|| (0..4).try_for_each(|seed| cut_everywhere::<Local>(seed, 100)))
        .unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn a_stream_that_is_cut_at_every_step_loses_nothing() {
    apart(|| (0..3).try_for_each(|seed| cut_everywhere::<Iwarp>(seed, 100)))
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// Of one seed each step, and none is left out.
#[test]
fn a_stream_of_one_seed_is_cut_at_each_of_its_steps() {
    let failure = apart(|| {
        for seed in 0..crate::seeds::SEEDS {
            let mut world = crate::seeds::run(seed, || Iwarp::new(seed, Fault::None))?;
            let counts = world.sim().counts.clone();
            let of_all = ["messages", "transfers", "invalidations"];
            // One that does a little of everything, and in which nothing else goes wrong.
            let alone = counts.of("lives") == 1 && counts.of("posts refused") == 0;
            let all = of_all.iter().all(|name| counts.of(name) > 1);
            if alone && all && world.sim().steps < 1000 {
                return cut_everywhere::<Iwarp>(seed, u64::MAX);
            }
        }
        Err("no seed does a little of everything".to_owned())
    });
    failure.unwrap_or_else(|failure| panic!("{failure}"));
}

#[track_caller]
fn found(fault: Fault, says: &str) {
    checks::finds::<Local>(fault, 100, says);
}

#[track_caller]
fn found_over_a_stream(fault: Fault, says: &str) {
    checks::finds::<Iwarp>(fault, 100, says);
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

#[test]
fn lost_bytes_of_a_stream_are_found() {
    found_over_a_stream(Fault::LosesMessage, "nothing is left to do");
}

#[test]
fn repeated_bytes_of_a_stream_are_found() {
    found_over_a_stream(Fault::RepeatsMessage, "it ended without a reason");
}

#[test]
fn a_changed_byte_of_a_stream_is_found() {
    found_over_a_stream(Fault::ChangesByte, "it ended without a reason");
}

#[test]
fn a_lost_buffer_of_a_stream_is_found() {
    found_over_a_stream(Fault::LosesBuffer, "buffers are lost");
}

#[test]
fn a_lost_completion_of_a_stream_is_found() {
    found_over_a_stream(Fault::LosesCompletion, "nothing is left to do");
}

#[test]
fn a_receive_that_was_not_posted_to_a_stream_is_found() {
    found_over_a_stream(Fault::PostsTooFew, "it ended without a reason");
}
