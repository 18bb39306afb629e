//! `linkspan demo` as people run it: what it says, and what it leaves.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use linkspan_testkit::Namespace;
use linkspan_testkit::census::settled;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM)
        .arg("demo")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Everything was looked at and found right.
#[track_caller]
fn all_right(output: &Output, status: i32, what: &[&str]) -> Value {
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["ok"], true, "{summary:#}");
    let findings = summary["findings"].as_array().unwrap();
    for name in what {
        let found = findings.iter().any(|finding| finding["what"] == *name);
        assert!(found, "{name} was not looked at: {summary:#}");
    }
    summary
}

#[test]
fn without_qemu_that_is_said_and_the_built_in_driver_takes_the_place_of_the_guest() {
    let output = run(&["--check", "--json", "--qemu", "/no/such/qemu"]);
    let looked = ["disk", "network", "queue pairs used"];
    let summary = all_right(&output, 5, &looked);
    assert_eq!(summary["kernel"], Value::Null);
    let errors = text(&output.stderr);
    for words in ["QEMU is missing", "apt-get install", "built-in driver"] {
        assert!(errors.contains(words), "no {words} in:\n{errors}");
    }
}

#[test]
fn the_driver_is_asked_for_with_packed_rings() {
    let args = ["--no-guest", "--json", "--packed", "--queue-pairs", "3"];
    let summary = all_right(&run(&args), 0, &["disk", "network"]);
    assert_eq!(summary["network"]["form"], "echo");
    assert_eq!(summary["network"]["queue_pairs"], 3);
}

/// A demo in a network of its own.
struct Demo {
    child: Child,
}

impl Demo {
    fn start(here: &Namespace, args: &[&str]) -> Self {
        let mut command = here.command(PROGRAM);
        command
            .arg("demo")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        Self { child }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `ip` shows in the namespace.
fn shown(here: &Namespace, what: &[&str]) -> String {
    text(&here.command("ip").args(what).output().unwrap().stdout)
}

fn can_boot(test: &str) -> bool {
    let missing = linkspan::demo::process::find_program(Path::new("qemu-system-x86_64")).is_none()
        || linkspan::demo::kernel::Kernel::find(None).is_err();
    if missing {
        use std::io::Write as _;
        drop(writeln!(
            std::io::stderr().lock(),
            "SKIP {test}: no QEMU or no kernel"
        ));
    }
    !missing
}

#[test]
fn a_demo_that_is_interrupted_leaves_no_interface_and_no_address() {
    if !can_boot("a_demo_that_is_interrupted") {
        return;
    }
    let Some(here) = Namespace::new("interrupted") else {
        return;
    };
    let demo = ["--check", "--net", "tap", "--accel", "tcg"];
    let mut demo = Demo::start(&here, &demo);
    let has_address = || shown(&here, &["-4", "addr"]).contains("172.31.254.1/30");
    assert!(settled(has_address), "{}", shown(&here, &["addr"]));
    assert!(shown(&here, &["link"]).contains("linkspan0"));
    kill_process(Pid::from_child(&demo.child), Signal::INT).unwrap();
    let mut status = None;
    let ended = settled(|| {
        status = demo.child.try_wait().unwrap();
        status.is_some()
    });
    assert!(ended, "it does not end");
    assert_eq!(status.unwrap().code(), Some(1));
    assert!(!shown(&here, &["link"]).contains("linkspan0"));
    assert!(!has_address());
}

/// The whole check, on a small disk, in a namespace. `through` is what starts it.
#[track_caller]
fn demo_passes(test: &str, through: &[&str], args: &[&str], looked: &[&str]) -> Option<Passed> {
    if !can_boot(test) {
        return None;
    }
    let here = Namespace::new(test)?;
    // Somebody else has the first network that would be taken.
    here.run("ip link set lo up");
    here.run("ip addr add 172.31.254.2/31 dev lo");
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), vec![0xA5; 2 << 20]).unwrap();
    let words = [through, &[PROGRAM]].concat();
    let mut command = here.command(words[0]);
    let output = command
        .args(&words[1..])
        .args(["demo", "--check", "--json", "--timeout", "240"])
        .args(["--accel", "tcg", "--image"])
        .arg(image.path())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let summary = all_right(&output, 0, looked);
    assert_eq!(summary["network"]["queue_pairs"], 2);
    let network = summary["network"].clone();
    let said = text(&output.stderr);
    Some(Passed { network, said })
}

struct Passed {
    network: Value,
    said: String,
}

#[test]
fn the_demo_reaches_this_machine_through_a_tap() {
    let looked = [
        "guest pings",
        "guest is pinged",
        "guest is visited",
        "queue pairs used",
        "interface removed",
        "every byte after",
    ];
    if let Some(passed) = demo_passes("tap", &[], &[], &looked) {
        assert_eq!(passed.network["form"], "tap");
        assert_eq!(passed.network["guest"], "172.31.254.6");
    }
}

#[test]
fn the_demo_gets_a_lease_from_the_responder_where_no_interface_may_be_made() {
    let without = ["setpriv", "--bounding-set", "-net_admin"];
    let args = ["--packed", "--queues", "1"];
    let looked = ["lease", "guest pings", "queue pairs used"];
    if let Some(passed) = demo_passes("lease", &without, &args, &looked) {
        assert_eq!(passed.network["form"], "responder");
        let why = "no permission for the tap interface";
        assert!(passed.said.contains(why), "{}", passed.said);
    }
}
