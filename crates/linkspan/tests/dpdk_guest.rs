//! DPDK's `net_virtio_user` as a guest of `linkspan net`: counts on both sides, and
//! either of them dies under the traffic.

use std::io::Write as _;
use std::path::{Path, PathBuf};
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
        self.serve_with(mode, options, &[])
    }

    #[track_caller]
    fn serve_with(&self, mode: &str, options: &str, more: &[&str]) -> Program {
        let port = format!("vhost-user:{},{options}", self.socket().display());
        let args = ["--json", "--mode", mode, "--port", &port];
        let program = Program::start("net", args.iter().chain(more));
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

/// A frame in a capture.
struct Captured {
    /// From the guest.
    inbound: bool,
    bytes: Vec<u8>,
}

/// The frames of a capture (pcapng: enhanced packet blocks with their flags).
fn captured(file: &Path) -> Vec<Captured> {
    const PACKET: u32 = 6;
    let bytes = std::fs::read(file).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut frames = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let len = word(at + 4) as usize;
        assert_eq!(word(at + len - 4) as usize, len, "the block at {at}");
        if word(at) == PACKET {
            let held = word(at + 20) as usize;
            assert_eq!(held, word(at + 24) as usize, "whole");
            // The one option: 2, of 4 bytes.
            let flags = at + 28 + held.next_multiple_of(4);
            assert_eq!(word(flags), 2 | 4 << 16);
            frames.push(Captured {
                inbound: word(flags + 4) & 3 == 1,
                bytes: bytes[at + 28..at + 28 + held].to_vec(),
            });
        }
        at += len;
    }
    frames
}

/// Few enough for all of them to be captured.
#[test]
fn frames_of_a_dpdk_guest_come_back_byte_for_byte() {
    let Some(place) = place("frames_of_a_dpdk_guest_come_back_byte_for_byte") else {
        return;
    };
    let file = place.folder.path().join("capture");
    for manner in manners() {
        let options = ["--capture", file.to_str().unwrap()];
        let program = place.serve_with("echo", "queues=2,packets-per-second=2000", &options);
        let mut guest = place.guest(manner, "flowgen");
        counts_when(&mut guest, |counts| counts.received > 1000);
        guest.stop();
        drop(guest);
        let counts = end(program);
        assert_eq!(counts["not_captured"], 0, "{counts}");
        let (mut came, mut went) = (Vec::new(), Vec::new());
        for mut frame in captured(&file) {
            // What it makes is UDP in IPv4, and each header adds up.
            assert_eq!(frame.bytes.len(), 60);
            assert_eq!(frame.bytes[12..15], [8, 0, 0x45]);
            assert_eq!(frame.bytes[23], 17);
            let header = frame.bytes[14..34].as_chunks::<2>().0.iter();
            let sum: u32 = header
                .map(|word| u32::from(u16::from_be_bytes(*word)))
                .sum();
            assert_eq!((sum & 0xFFFF) + (sum >> 16), 0xFFFF, "{:x?}", frame.bytes);
            if frame.inbound {
                came.push(frame.bytes);
            } else {
                let (to, from) = frame.bytes[..12].split_at_mut(6);
                to.swap_with_slice(from);
                went.push(frame.bytes);
            }
        }
        let numbers = [&came, &went].map(|frames| frames.len() as u64);
        assert_eq!(
            numbers,
            ["frames_in", "frames_out"].map(|way| number(&counts, way))
        );
        assert!(numbers[1] > 1000, "{manner:?}: {counts}");
        // The pairs have no order among each other.
        came.sort_unstable();
        went.sort_unstable();
        let mut came = came.into_iter();
        for frame in went {
            // One in between had no room at the guest.
            assert!(
                came.any(|sent| sent == frame),
                "{manner:?}: not sent: {frame:x?}"
            );
        }
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
/// connects to it. Each of them gets frames of both pairs.
#[track_caller]
fn outlives_its_device(place: &Place, port: Port) {
    let serve = || place.serve("sink", "queues=2,client");
    let mut program = serve();
    let mut guest = place.guest((2, port), "txonly");
    for _ in 0..3 {
        await_both_pairs(&program);
        program.signal(Signal::KILL);
        drop(program.end());
        program = serve();
    }
    await_both_pairs(&program);
    guest.stop();
    drop(guest);
    let counts = end(program);
    let dropped = counts["dropped"].as_object().unwrap();
    assert!(dropped.values().all(|count| *count == 0), "{counts}");
}

/// Waits until the program has frames of each pair of its guest.
#[track_caller]
fn await_both_pairs(program: &Program) {
    // Before it has begun SIGHUP would end it.
    let connected = || program.said().contains("\"connected\"");
    assert!((0..6).any(|_| settled(connected)), "it does not connect");
    let mut counts = Value::Null;
    let mut both = || {
        counts = program.counts("");
        let pairs = counts["pairs"].as_array().unwrap();
        pairs.len() == 2 && pairs.iter().all(|pair| number(pair, "frames_in") > 5_000)
    };
    let both = (0..6).any(|_| settled(&mut both));
    assert!(both, "not both pairs: {counts}");
}

#[test]
fn a_dpdk_guest_outlives_its_device() {
    if let Some(place) = place("a_dpdk_guest_outlives_its_device") {
        let port = Port::VirtioUserServer {
            packed: false,
            in_order: false,
        };
        outlives_its_device(&place, port);
    }
}

#[test]
fn a_dpdk_guest_with_packed_rings_outlives_its_device() {
    if let Some(place) = place("a_dpdk_guest_with_packed_rings_outlives_its_device") {
        for in_order in [false, true] {
            let port = Port::VirtioUserServer {
                packed: true,
                in_order,
            };
            outlives_its_device(&place, port);
        }
    }
}
