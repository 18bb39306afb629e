//! Each step by which a disk is brought up over a link fails in turn, at both
//! ends. The seam is of the whole process, so this is one test.

use std::time::Duration;

use linkspan_testkit::census::start_reaper;
use linkspan_testkit::driven::connect;
use linkspan_testkit::sweep::sweep;
use linkspan_testkit::{Driven, Served};

#[test]
fn every_step_of_a_link_fails_in_turn_and_leaves_nothing() {
    start_reaper();
    let served = Served::disk(2);
    let report = sweep(|| {
        // No second attempt to connect.
        let connection = connect(&served.socket(), 2, Duration::ZERO)?;
        Driven::start(connection, 2).map(drop)
    });
    println!("{report:?}");
    assert!(report.points >= 60, "{report:?}");
    let requests = "no socket for requests of the back end can be had";
    assert!(report.errors.iter().any(|error| error == requests));
    served.expect_serves();
    served.stop();
}
