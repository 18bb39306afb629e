//! `linkspan driver net` against DPDK's `net_vhost`: counts on both sides, contents,
//! and a device that dies under the traffic.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use linkspan_peers::testpmd::{self, Counts, Port, Testpmd};
use linkspan_testkit::BackEnd;
use linkspan_testkit::back_end::Says;
use linkspan_testkit::census::settled;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Where the summary of `cargo xtask test` looks; `eprintln` would be captured.
fn skip(test: &str, why: &str) {
    drop(writeln!(std::io::stderr().lock(), "SKIP {test}: {why}"));
}

/// `None` when there is no DPDK here.
fn place(test: &str) -> Option<Place> {
    if testpmd::is_installed() {
        return Some(Place::new());
    }
    skip(test, "dpdk-testpmd (package dpdk-dev) is not installed");
    None
}

/// One at a time: both ends of a link may look at their rings without a pause.
static ALONE: Mutex<()> = Mutex::new(());

struct Place {
    folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    fn new() -> Self {
        Self {
            // Whoever failed before us does not matter.
            _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Starts `linkspan driver net`.
    fn driver(&self, args: &[&str]) -> Driver {
        let (out, err) = (
            self.folder.path().join("out"),
            self.folder.path().join("err"),
        );
        let mut command = Command::new(env!("CARGO_BIN_EXE_linkspan"));
        command
            .args(["driver", "net", "--connect-limit", "30", "--socket-path"])
            .arg(self.socket())
            .args(args)
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap());
        let child = command.spawn().unwrap();
        let args = format!("{args:?}");
        Driver {
            child,
            out,
            err,
            args,
        }
    }

    /// A bench that works, and its figures.
    #[track_caller]
    fn bench(&self, mode: &str, args: &[&str]) -> Value {
        let bench = ["bench", "--json", "--seconds", "0.5", "--mode", mode];
        self.driver(&[&bench[..], args].concat()).figures()
    }
}

struct Driver {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    args: String,
}

impl Driver {
    /// Waits for its end: exit status, standard output, standard error.
    #[track_caller]
    fn end(&mut self) -> (i32, String, String) {
        let mut status = None;
        let mut ended = || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        };
        // One of these waits for ten seconds or more.
        let ended = (0..6).any(|_| settled(&mut ended));
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        let (out, err) = (text(&self.out), text(&self.err));
        assert!(ended, "the driver hangs: {}\n{err}", self.args);
        (status.and_then(|status| status.code()).unwrap(), out, err)
    }

    #[track_caller]
    fn figures(&mut self) -> Value {
        let (status, out, err) = self.end();
        assert_eq!(status, 0, "{}\n{err}", self.args);
        let figures: Value = serde_json::from_str(&out).unwrap();
        println!("{}: {figures}", self.args);
        figures
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How rings and buffers are used: with how many pairs, and options.
const MANNERS: [(u16, &[&str]); 6] = [
    (1, &[]),
    (2, &["--no-mergeable"]),
    (2, &["--in-order"]),
    (1, &["--packed"]),
    (2, &["--packed", "--in-order", "--poll"]),
    (1, &["--packed", "--in-order", "--no-mergeable"]),
];

/// Runs the bench in all manners, each on a device that another driver has left.
#[track_caller]
fn in_all_manners(place: &Place, mode: &str, more: &[&str], mut check: impl FnMut(u16, &Value)) {
    for (pairs, manner) in MANNERS {
        let number = pairs.to_string();
        let args = [&["--queues", &number], manner, more].concat();
        let figures = place.bench(mode, &args);
        let has = |option: &str| manner.contains(&option);
        assert_eq!(figures["packed"], has("--packed"));
        assert_eq!(figures["in_order"], has("--in-order"));
        assert_eq!(figures["mergeable"], !has("--no-mergeable"));
        assert_eq!(figures["damaged"], 0);
        assert_eq!(figures["disordered"], 0);
        assert_eq!(figures["reconnects"], 0);
        check(pairs, &figures);
    }
}

fn number(figures: &Value, name: &str) -> u64 {
    figures[name].as_u64().unwrap()
}

/// What was counted since `before`.
fn since(before: &mut Counts, now: Counts) -> Counts {
    let was = std::mem::replace(before, now);
    Counts {
        received: now.received - was.received,
        received_bytes: now.received_bytes - was.received_bytes,
        sent: now.sent - was.sent,
        sent_bytes: now.sent_bytes - was.sent_bytes,
    }
}

#[test]
fn every_frame_that_is_sent_arrives() {
    let Some(place) = place("every_frame_that_is_sent_arrives") else {
        return;
    };
    let mut device = Testpmd::start(Port::Vhost, &place.socket(), 2, "rxonly");
    let mut before = Counts::default();
    in_all_manners(&place, "tx", &["--size", "100"], |_, figures| {
        let sent = number(figures, "sent");
        let arrived = |counts: &Counts| counts.received >= before.received + sent;
        let counts = device.counts_when(arrived);
        let counts = since(&mut before, counts);
        assert!(sent > 0);
        assert_eq!(figures["lost"], 0);
        assert_eq!((counts.received, counts.received_bytes), (sent, 100 * sent));
    });
}

#[test]
fn frames_that_are_received_are_whole() {
    let Some(place) = place("frames_that_are_received_are_whole") else {
        return;
    };
    let mut device = Testpmd::start(Port::Vhost, &place.socket(), 2, "txonly");
    let mut before = Counts::default();
    in_all_manners(&place, "rx", &["--ring", "256"], |pairs, figures| {
        let received = number(figures, "received");
        let counts = device.counts_when(|counts| counts.sent >= before.sent + received);
        let counts = since(&mut before, counts);
        assert!(received > 0);
        assert_eq!(number(figures, "received_bytes"), 64 * received);
        // Those that it put into the rings after the driver had looked last.
        let left = counts.sent - received;
        assert!(left <= 256 * u64::from(pairs), "{left} of {counts:?}");
    });
}

#[test]
fn frames_that_go_round_come_back_as_they_were() {
    let Some(place) = place("frames_that_go_round_come_back_as_they_were") else {
        return;
    };
    let mut device = Testpmd::start(Port::Vhost, &place.socket(), 2, "macswap");
    let mut before = Counts::default();
    // Its rings have no more than this, and it drops what they do not hold.
    for size in ["60", "1514"] {
        let window = ["--window", "128", "--size", size];
        in_all_manners(&place, "loop", &window, |_, figures| {
            let sent = number(figures, "sent");
            let counts = device.counts_when(|counts| counts.sent >= before.sent + sent);
            let counts = since(&mut before, counts);
            assert!(sent > 0);
            assert_eq!(number(figures, "received"), sent);
            assert_eq!((counts.received, counts.sent), (sent, sent));
        });
    }
    // In between it forwards in another way, with the driver still there.
    let mut driver = place.driver(&["bench", "--mode", "tx", "--json", "--seconds", "1"]);
    device.forward("rxonly");
    assert!(number(&driver.figures(), "sent") > 0);
}

/// DPDK 22.11 says 128 pairs, however many its port has.
#[test]
fn a_device_says_what_it_is() {
    let Some(place) = place("a_device_says_what_it_is") else {
        return;
    };
    let _device = Testpmd::start(Port::Vhost, &place.socket(), 1, "io");
    let info = place.driver(&["info", "--json"]).figures();
    assert_eq!(info["queue_pairs_max"], 128);
    assert_eq!(info["mac"], Value::Null, "it has no configuration space");
    let info = place.driver(&["info", "--queues", "128", "--packed"]).end();
    assert_eq!(info.0, 0, "{}", info.2);
    assert!(info.1.contains("at most 128"), "{}", info.1);
}

#[test]
fn as_many_pairs_as_there_are_and_not_one_more() {
    let place = Place::new();
    let back = BackEnd::listen(&place.socket());
    // It counts pairs.
    let says = Says {
        queues: 3,
        ..Says::default()
    };
    let mut driver = place.driver(&["--queues", "3", "info", "--json"]);
    back.accept().serve(&says);
    assert_eq!(driver.figures()["queue_pairs_max"], 3);
    let mut driver = place.driver(&["--queues", "4", "info"]);
    back.accept().serve(&says);
    let (status, _, err) = driver.end();
    assert_eq!(status, 4, "{err}");
    for word in ["4 queue pairs", "it has 3", "--queues"] {
        assert!(err.contains(word), "no {word} in:\n{err}");
    }
}

/// The device dies with frames on the way, and another one takes its place. All
/// pairs of the driver go on.
#[track_caller]
fn outlives_its_device(place: &Place, port: Port, more: &[&str]) {
    let bench = [
        "bench",
        "--mode",
        "loop",
        "--json",
        "--queues",
        "2",
        "--window",
        "128",
        "--seconds",
        "600",
    ];
    let first = || Testpmd::start(port, &place.socket(), 2, "macswap");
    // A client connects while the driver waits for it.
    let bench = [more, &bench].concat();
    let (mut driver, mut device) = if port == Port::Vhost {
        let device = first();
        (place.driver(&bench), device)
    } else {
        let driver = place.driver(&bench);
        (driver, first())
    };
    let mut sent = 0;
    for _ in 0..2 {
        let mut moved = || device.counts().sent > 10_000;
        assert!((0..6).any(|_| settled(&mut moved)), "no frames go round");
        drop(device);
        device = first();
        let mut moved = || {
            sent = device.counts().sent;
            sent > 10_000
        };
        assert!((0..6).any(|_| settled(&mut moved)), "no frames go round");
    }
    kill_process(Pid::from_child(&driver.child), Signal::TERM).unwrap();
    let figures = driver.figures();
    assert_eq!(figures["damaged"], 0);
    assert_eq!(figures["disordered"], 0);
    assert_eq!(figures["reconnects"], 2);
    assert!(number(&figures, "received") >= 20_000 + sent, "{figures}");
    assert_both_pairs(&figures);
    // Each time no more than the rings of both pairs hold: what a device does not
    // send back for a while is written off, and more is sent.
    assert!(number(&figures, "lost") <= 2 * 2 * 1024, "{figures}");
}

#[test]
fn a_device_that_dies_is_replaced_under_the_traffic() {
    if let Some(place) = place("a_device_that_dies_is_replaced_under_the_traffic") {
        outlives_its_device(&place, Port::Vhost, &[]);
    }
}

#[test]
fn a_device_that_dies_is_replaced_under_the_traffic_of_packed_rings() {
    if let Some(place) = place("a_device_that_dies_is_replaced_under_the_traffic_of_packed_rings") {
        for manner in [&["--packed"][..], &["--packed", "--in-order"]] {
            outlives_its_device(&place, Port::Vhost, manner);
        }
    }
}

#[test]
fn a_device_that_connects_to_the_driver_is_replaced_under_the_traffic() {
    if let Some(place) = place("a_device_that_connects_to_the_driver_is_replaced_under_the_traffic")
    {
        outlives_its_device(&place, Port::VhostClient, &["--server"]);
        assert!(!place.socket().exists(), "the socket went with the driver");
    }
}

/// Each pair has sent frames and has got some back.
#[track_caller]
fn assert_both_pairs(figures: &Value) {
    let pairs = figures["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 2);
    for pair in pairs {
        let (sent, received) = (number(pair, "sent"), number(pair, "received"));
        assert!(sent >= received && received > 1000, "{figures}");
    }
    for way in ["sent", "received"] {
        let sum: u64 = pairs.iter().map(|pair| number(pair, way)).sum();
        assert_eq!(sum, number(figures, way));
    }
}

/// Our driver is killed with frames on the way, and the device serves the next one.
#[test]
fn a_driver_that_dies_is_followed_by_the_next() {
    let Some(place) = place("a_driver_that_dies_is_followed_by_the_next") else {
        return;
    };
    let mut device = Testpmd::start(Port::Vhost, &place.socket(), 2, "macswap");
    let bench = [
        "bench", "--mode", "loop", "--json", "--queues", "2", "--window", "128",
    ];
    for manner in [
        &[][..],
        &["--packed"],
        &["--in-order"],
        &["--packed", "--in-order"],
    ] {
        let before = device.counts().sent;
        let driver = place.driver(&[&bench[..], manner, &["--seconds", "600"]].concat());
        let mut moved = || device.counts().sent > before + 10_000;
        assert!((0..6).any(|_| settled(&mut moved)), "no frames go round");
        // It is killed here.
        drop(driver);
        let next = [&bench[..], manner, &["--seconds", "0.5"]].concat();
        let figures = place.driver(&next).figures();
        for none in ["lost", "damaged", "disordered", "reconnects"] {
            assert_eq!(figures[none], 0, "{figures}");
        }
        assert_both_pairs(&figures);
    }
}
