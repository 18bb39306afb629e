//! Two ends, simulated from a seed: the seed decides options, load, who does the next
//! step, when connections are cut and posts refused, and when ends are saved and restored.
//!
//! One seed again: `LINKSPAN_SEED=… cargo test -p linkspan-smbdirect --test over every_seed`

mod end;
mod plan;
mod world;

use linkspan_rdma::local::End;
use linkspan_testkit::seeded::{Simulation, apart};

pub(crate) use end::Luck;
pub(crate) use plan::Fault;
use world::World;

use crate::carrier::Carrier;
use crate::stream::Stream;

const SIMULATION: Simulation = Simulation {
    again: "cargo test -p linkspan-smbdirect --test over every_seed_loses_nothing",
    seeds: 1000,
    quick: 100,
    faulty: 100,
};

/// Over a stream, which takes longer.
const STREAMS: Simulation = Simulation {
    again: "cargo test -p linkspan-smbdirect --test over every_seed_over_a_stream",
    seeds: 500,
    quick: 50,
    faulty: 100,
};

fn none<C: Carrier>(seed: u64) -> World<C> {
    World::new(seed, Fault::None)
}

/// No deadlock, no byte lost or repeated, each message and transfer told once, and all
/// credits, buffers and registrations back, whatever is refused or cut.
#[test]
fn every_seed_loses_nothing_and_comes_to_its_end() {
    SIMULATION.every_seed(none::<End>);
}

/// The same over iWARP, whose stream is written and read in pieces of any size.
#[test]
fn every_seed_over_a_stream_loses_nothing_and_comes_to_its_end() {
    STREAMS.every_seed(none::<Stream>);
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    apart(|| {
        SIMULATION.the_same_twice(none::<End>);
        STREAMS.the_same_twice(none::<Stream>);
    });
}

/// A connection that is cut at any step, from the first one on.
fn cut_everywhere<C: Carrier>(
    simulation: Simulation,
    seeds: std::ops::Range<u64>,
    skip: u64,
) -> Result<(), String> {
    for seed in seeds {
        let mut whole = none::<C>(seed);
        simulation.run(seed, &mut whole)?;
        let mut at = 1;
        while at <= whole.steps() {
            simulation
                .run(seed, &mut none::<C>(seed).cut_at(at))
                .map_err(|failure| format!("cut at {at}: {failure}"))?;
            at += 1 + at / skip;
        }
    }
    Ok(())
}

#[test]
fn a_connection_that_is_cut_at_every_step_loses_nothing() {
    // The first steps each, then some.
    apart(|| cut_everywhere::<End>(SIMULATION, 0..4, 100))
        .unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn a_stream_that_is_cut_at_every_step_loses_nothing() {
    apart(|| cut_everywhere::<Stream>(STREAMS, 0..3, 100))
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// Of one seed each step, and none is left out.
#[test]
fn a_stream_of_one_seed_is_cut_at_each_of_its_steps() {
    let whole = |seed| {
        let mut world = none::<Stream>(seed);
        let ran = STREAMS.run(seed, &mut world);
        ran.map(|happened| (happened, world.steps()))
    };
    let failure = apart(move || {
        for seed in 0..STREAMS.seeds {
            let (happened, steps) = whole(seed)?;
            let of_all = [happened.messages, happened.transfers, happened.invalidated];
            // One that does a little of everything, and in which nothing else goes wrong.
            let alone = happened.lives == 1 && happened.refusals == 0;
            if alone && of_all.iter().all(|count| *count > 1) && steps < 1000 {
                return cut_everywhere::<Stream>(STREAMS, seed..seed + 1, u64::MAX);
            }
        }
        Err("no seed does a little of everything".to_owned())
    });
    failure.unwrap_or_else(|failure| panic!("{failure}"));
}

#[track_caller]
fn found(fault: Fault, says: &str) {
    SIMULATION.finds(fault, says, move |seed| World::<End>::new(seed, fault));
}

#[track_caller]
fn found_over_a_stream(fault: Fault, says: &str) {
    STREAMS.finds(fault, says, move |seed| World::<Stream>::new(seed, fault));
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
