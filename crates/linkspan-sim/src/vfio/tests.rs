//! vfio-user: its seeds, and faults of the model that they find.

use super::{Fault, Pci};
use crate::checks;

/// Every question is answered once and in order, the region is what the writes make, maps are the
/// same at both ends, and whoever went away is back.
#[test]
fn every_seed_answers_all_that_is_asked() {
    checks::every_seed::<Pci>();
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    checks::the_same_twice::<Pci>();
}

#[test]
fn a_device_that_is_cut_at_every_step_does_nothing_twice() {
    let cut =
        checks::apart(|| (0..4).try_for_each(|seed| checks::cut_everywhere::<Pci>(seed, 100)));
    cut.unwrap_or_else(|failure| panic!("{failure}"));
}

#[track_caller]
fn found(fault: Fault, says: &str) {
    checks::finds::<Pci>(fault, 200, says);
}

#[test]
fn a_lost_write_is_found() {
    found(Fault::LosesWrite, "is read, and not");
}

#[test]
fn a_repeated_write_is_found() {
    found(Fault::RepeatsWrite, "is read, and not");
}

#[test]
fn a_lost_message_is_found() {
    found(Fault::LosesMessage, "nothing is left to do");
}

#[test]
fn a_write_of_a_dead_device_is_found() {
    found(Fault::ActsAfterDeath, "none that the writes make");
}

#[test]
fn other_memory_is_found() {
    found(Fault::ChangesMemory, "other memory was read");
}
