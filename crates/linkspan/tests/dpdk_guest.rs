//! DPDK's `net_virtio_user` as a guest of `linkspan net`: counts on both sides, and
//! either of them dies under the traffic.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use linkspan_peers::testpmd::{self, Counts, Port, Testpmd};
use linkspan_testkit::census::settled;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

mod programs;

use programs::Program;

/// One at a time: both ends of a link may look at their rings without a pause.
static ALONE: Mutex<()> = Mutex::new(());

struct Place {
    folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// `None` when there is no DPDK here.
fn place(test: &str) -> Option<Place> {
    if !testpmd::is_installed() {
        // Where the summary of `cargo xtask test` looks; `eprintln` would be captured.
        let why = "dpdk-testpmd (package dpdk-dev) is not installed";
        drop(writeln!(std::io::stderr().lock(), "SKIP {test}: {why}"));
        return None;
    }
    Some(Place {
        // Whoever failed before us does not matter.
        _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner),
        folder: tempfile::tempdir().unwrap(),
    })
}

impl Place {
    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Our program with one guest's port.
    #[track_caller]
    fn serve(&self, mode: &str, options: &str) -> Program {
        let port = format!("vhost-user:{},{options}", self.socket().display());
        let program = Program::start("net", ["--json", "--mode", mode, "--port", &port]);
        let listens = options.contains("client") || settled(|| self.socket().exists());
        assert!(listens, "it does not listen");
        program
    }

    /// A guest of DPDK on it.
    fn guest(&self, (pairs, port): (u16, Port), mode: &str) -> Testpmd {
        Testpmd::start(port, &self.socket(), pairs, mode)
    }
}

/// With how many pairs, and how rings and buffers are used.
fn manners() -> impl Iterator<Item = (u16, Port)> {
    let manner = |pairs, packed, in_order, mergeable| {
        let port = Port::VirtioUser {
            packed,
            in_order,
            mergeable,
        };
        (pairs, port)
    };
    [
        manner(1, false, false, true),
        manner(2, false, false, false),
        manner(2, false, true, true),
        manner(1, true, false, true),
        manner(2, true, true, true),
        manner(1, true, true, false),
    ]
    .into_iter()
}

/// What the guest has counted once this holds.
#[track_caller]
fn counts_when(guest: &mut Testpmd, condition: impl Fn(&Counts) -> bool) -> Counts {
    let mut counts = guest.counts_when(&condition);
    for _ in 0..5 {
        if condition(&counts) {
            break;
        }
        counts = guest.counts_when(&condition);
    }
    assert!(condition(&counts), "{counts:?}");
    counts
}

/// Ends the program; what it counted of its one port.
#[track_caller]
fn end(program: Program) -> Value {
    program.signal(Signal::TERM);
    let (status, lines, errors) = program.end();
    assert_eq!(status, Some(0), "{errors}");
    let counts = lines.into_iter().find(|line| line["event"] == "counts");
    counts.expect("it says what it counted")
}

fn number(counts: &Value, name: &str) -> u64 {
    counts[name].as_u64().unwrap()
}

#[test]
fn every_frame_of_a_dpdk_guest_arrives() {
    let Some(place) = place("every_frame_of_a_dpdk_guest_arrives") else {
        return;
    };
    for manner in manners() {
        let program = place.serve("sink", "queues=2");
        let mut guest = place.guest(manner, "txonly");
        counts_when(&mut guest, |counts| counts.sent > 20_000);
        guest.stop();
        let sent = guest.counts();
        // The program takes what is in the rings before they go.
        drop(guest);
        let counts = end(program);
        let arrived = number(&counts, "frames_in");
        let (pairs, _) = manner;
        assert!(arrived <= sent.sent, "{manner:?}: {counts} of {sent:?}");
        assert!(
            arrived + 256 * u64::from(pairs) >= sent.sent,
            "{counts} of {sent:?}"
        );
        assert_eq!(number(&counts, "bytes_in"), 64 * arrived);
        let dropped = counts["dropped"].as_object().unwrap();
        assert!(dropped.values().all(|count| *count == 0), "{counts}");
    }
}

#[test]
fn a_dpdk_guest_receives_what_is_sent() {
    let Some(place) = place("a_dpdk_guest_receives_what_is_sent") else {
        return;
    };
    for manner in manners() {
        let program = place.serve("source", "queues=2");
        let mut guest = place.guest(manner, "rxonly");
        counts_when(&mut guest, |counts| counts.received > 20_000);
        // While it forwards it does not count frames and bytes at once.
        guest.stop();
        let counts = guest.counts();
        drop(guest);
        let sent = end(program);
        assert!(
            number(&sent, "frames_out") >= counts.received,
            "{manner:?}: {sent}"
        );
        assert_eq!(counts.received_bytes, 64 * counts.received);
    }
}

#[test]
fn frames_of_a_dpdk_guest_come_back() {
    let Some(place) = place("frames_of_a_dpdk_guest_come_back") else {
        return;
    };
    for manner in manners() {
        let program = place.serve("echo", "queues=2");
        let mut guest = place.guest(manner, "flowgen");
        counts_when(&mut guest, |counts| counts.received > 20_000);
        guest.stop();
        drop(guest);
        let counts = end(program);
        let (came, went) = (number(&counts, "frames_in"), number(&counts, "frames_out"));
        let dropped = counts["dropped"].as_object().unwrap();
        let dropped = dropped.values().filter_map(Value::as_u64).sum::<u64>();
        assert_eq!(came, went + dropped, "{manner:?}: {counts}");
        assert_eq!(number(&counts["dropped"], "broken"), 0, "{counts}");
    }
}

/// A guest is killed with frames on the way, and the next one is served.
#[test]
fn a_dpdk_guest_that_dies_is_followed_by_the_next() {
    let Some(place) = place("a_dpdk_guest_that_dies_is_followed_by_the_next") else {
        return;
    };
    let program = place.serve("sink", "queues=2");
    for manner in manners().take(4) {
        let mut guest = place.guest(manner, "txonly");
        counts_when(&mut guest, |counts| counts.sent > 10_000);
    }
    let counts = end(program);
    assert!(number(&counts, "frames_in") > 40_000 - 4 * 512, "{counts}");
}

/// The guest listens and stays; our program dies under its traffic, and another one
/// connects to it.
#[test]
fn a_dpdk_guest_outlives_its_device() {
    let Some(place) = place("a_dpdk_guest_outlives_its_device") else {
        return;
    };
    let mut program = place.serve("sink", "queues=2,client");
    let mut guest = place.guest((2, Port::VirtioUserServer), "txonly");
    let mut sent = 0;
    for _ in 0..3 {
        sent = counts_when(&mut guest, |counts| counts.sent > sent + 10_000).sent;
        program.signal(Signal::KILL);
        drop(program.end());
        program = place.serve("sink", "queues=2,client");
        // What was in the rings is not looked at again by the guest.
        sent = guest.counts().sent.max(sent);
    }
    counts_when(&mut guest, |counts| counts.sent > sent + 10_000);
    guest.stop();
    drop(guest);
    assert!(number(&end(program), "frames_in") > 10_000 - 2 * 256);
}
