//! `linkspan conform`: our own back ends hold every rule, others' are judged, and a command
//! ends as its status says.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use linkspan_peers::storage_daemon;
use linkspan_testkit::census::settled;
use linkspan_testkit::served::write_image;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

fn linkspan() -> Command {
    Command::new(env!("CARGO_BIN_EXE_linkspan"))
}

/// Where a target serves.
struct Place {
    folder: TempDir,
    serving: Option<Child>,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            serving: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Serves with our program: arguments after which the socket comes.
    fn serve(&mut self, before: &[&str], after: &[&str]) {
        let mut socket = before.last().unwrap().to_string();
        socket.push_str(self.path("socket").to_str().unwrap());
        let mut command = linkspan();
        command
            .args(&before[..before.len() - 1])
            .arg(socket)
            .args(after);
        let child = command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.serving = Some(child);
    }

    /// Runs `linkspan conform` on the socket.
    fn conform(&self, kind: &str, args: &[&str]) -> Output {
        let mut command = linkspan();
        command.args(["conform", kind, "--socket-path"]);
        command.arg(self.path("socket")).args(args);
        command.output().unwrap()
    }

    /// The same, with a report for programs, and the status.
    #[track_caller]
    fn report(&self, kind: &str, args: &[&str]) -> (Option<i32>, Value) {
        let output = self.conform(kind, &[args, &["--json"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        let report = serde_json::from_slice(&output.stdout);
        let report = report.unwrap_or_else(|error| panic!("{error}: {said}"));
        (output.status.code(), report)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(child) = &mut self.serving {
            // It has ended already, or this ends it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a report says against a target.
fn against(report: &Value) -> Vec<&Value> {
    let rules = report["rules"].as_array().unwrap();
    let is_against = |rule: &&Value| rule["verdict"] == "broken" || rule["verdict"] == "died";
    rules.iter().filter(is_against).collect()
}

#[test]
fn our_disk_holds_every_rule() {
    let mut place = Place::new();
    place.serve(&["blk", "--image", "mem:1M", "--socket-path", ""], &[]);
    let (status, report) = place.report("vhost-user-blk", &["--patience", "60"]);
    assert_eq!(against(&report), Vec::<&Value>::new());
    assert_eq!(report["not_run"], 0);
    assert_eq!(status, Some(0), "{report:#}");
    // What we do not offer, no rule is about.
    assert!(report["held"].as_u64().unwrap() > 90, "{report:#}");
}

#[test]
fn our_network_device_holds_every_rule() {
    let mut place = Place::new();
    place.serve(&["net", "--port", "vhost-user:"], &["--port", "responder"]);
    let (status, report) = place.report("vhost-user-net", &["--patience", "60"]);
    assert_eq!(against(&report), Vec::<&Value>::new());
    assert_eq!(status, Some(0), "{report:#}");
    assert!(report["held"].as_u64().unwrap() > 80, "{report:#}");
}

/// What it survives changes with its version: that there is a verdict for each rule does not.
#[test]
fn a_disk_of_others_is_started_and_judged() {
    let test = "a_disk_of_others_is_started_and_judged";
    if !storage_daemon::is_installed() {
        let why = "qemu-storage-daemon (package qemu-utils) is not installed";
        // Where the summary of all tests looks; `eprintln` would be captured.
        drop(writeln!(std::io::stderr().lock(), "SKIP {test}: {why}"));
        return;
    }
    let place = Place::new();
    write_image(&place.path("disk.img"));
    let daemon = storage_daemon::command(&place.path("socket"), &place.path("disk.img"), 1);
    let words = std::iter::once(daemon.get_program()).chain(daemon.get_args());
    let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let before = fs::read(place.path("disk.img")).unwrap();
    let command = format!("exec {}", words.join(" "));
    let (status, report) =
        place.report("vhost-user-blk", &["--patience", "30", "--start", &command]);
    let rules = report["rules"].as_array().unwrap();
    let held = |name: &str| {
        rules
            .iter()
            .any(|it| it["name"] == name && it["verdict"] == "held")
    };
    assert!(held("reply-header") && held("version-1"), "{report:#}");
    assert_eq!(report["not_run"], 0, "{report:#}");
    let expected = if against(&report).is_empty() { 0 } else { 4 };
    assert_eq!(status, Some(expected), "{report:#}");
    // It was only read.
    assert!(fs::read(place.path("disk.img")).unwrap() == before);
}

#[test]
fn the_status_says_what_is_wrong() {
    let place = Place::new();
    let output = place.conform("vhost-user-blk", &["--patience", "1"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let output = place.conform("vhost-user-blk", &["--rule", "no-such-rule"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // One that closes each connection: it is there, and holds nothing.
    let listener = std::os::unix::net::UnixListener::bind(place.path("socket")).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let args = ["--patience", "1", "--rule", "serves"];
    let output = place.conform("vhost-user-blk", &args);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[test]
fn rules_are_listed() {
    let list = |args: &[&str]| {
        let output = linkspan()
            .args(["conform", "list"])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = list(&[]);
    let rules: Value = serde_json::from_str(&list(&["--json"])).unwrap();
    for rule in rules.as_array().unwrap() {
        assert!(text.contains(rule["name"].as_str().unwrap()), "{rule}");
        assert!(!rule["concerns"].as_array().unwrap().is_empty(), "{rule}");
    }
}

/// Who is told to end leaves no target behind.
#[test]
fn a_target_that_was_started_ends_with_the_command() {
    let place = Place::new();
    let command = format!(
        "echo $$ > {}; exec {} blk --image mem:1M --socket-path {}",
        place.path("pid").display(),
        env!("CARGO_BIN_EXE_linkspan"),
        place.path("socket").display()
    );
    let mut child = linkspan()
        .args([
            "conform",
            "vhost-user-blk",
            "--start",
            &command,
            "--socket-path",
        ])
        .arg(place.path("socket"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut target = None;
    let mut started = || {
        let text = fs::read_to_string(place.path("pid")).unwrap_or_default();
        target = text.trim().parse().ok().and_then(Pid::from_raw);
        target.is_some()
    };
    assert!((0..6).any(|_| settled(&mut started)));
    let id = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(id, Signal::TERM).unwrap();
    assert!(!child.wait().unwrap().success());
    let gone = || test_kill_process(target.unwrap()).is_err();
    assert!((0..6).any(|_| settled(gone)));
}
