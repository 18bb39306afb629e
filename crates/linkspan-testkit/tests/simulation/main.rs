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

use linkspan_testkit::seeded::Simulation;
use plan::Fault;
use world::World;

const SIMULATION: Simulation = Simulation {
    again: "cargo test -p linkspan-testkit --test simulation",
    seeds: 1000,
    quick: 50,
    faulty: 200,
};

/// No acknowledged write is lost, none is undone by an older one, every request
/// is answered once, reads see what they may, and every run comes to its end.
#[test]
fn every_seed_keeps_what_was_acknowledged() {
    SIMULATION.every_seed(|seed| World::new(seed, Fault::None));
}

/// A seed decides everything: a failure can be looked at again.
#[test]
fn a_seed_runs_the_same_way_twice() {
    SIMULATION.the_same_twice(|seed| World::new(seed, Fault::None));
}

#[track_caller]
fn found(fault: Fault, says: &str) {
    SIMULATION.finds(fault, says, move |seed| World::new(seed, fault));
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
