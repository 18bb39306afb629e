//! Linux's own daemon of file copy as it is, to which `linkspan fcopy send` sends through
//! `linkspan fcopy host`: what is there is said not to be verified, and what the daemon does
//! wrong is what docs/known-bugs.md says of it.
//!
//! On this machine where a program can have the device, and always in the lab.

//: about sending to Linux's daemon of file copy with our programs
//: pack hv_fcopy_uio_daemon
//: limit 180

mod fcopy_device;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use fcopy_device::{PROGRAM, bytes, names, skip};
use linkspan_testkit::lab;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

/// The exit status where something is missing on this machine.
const MISSING: i32 = 5;

/// A host, and the daemon that it runs.
struct Rig {
    dir: TempDir,
    inbox: PathBuf,
    host: Child,
    _lines: BufReader<ChildStdout>,
}

/// What became of files that were sent.
struct Sent {
    code: Option<i32>,
    lines: Vec<Value>,
    said: String,
}

impl Rig {
    /// `None` and a word where it cannot be; never in the lab.
    fn start(test: &str) -> Option<Self> {
        let Some(daemon) = lab::fcopy_daemon() else {
            skip(
                test,
                "Linux's daemon is not there; cargo xtask lab run lab_fcopy_send builds it",
            );
            return None;
        };
        let dir = tempdir().unwrap();
        let host = |socket: &str| {
            let mut host = Command::new(PROGRAM);
            host.args(["fcopy", "host", "--json", "--control"]);
            host.arg(dir.path().join(socket)).arg("--");
            host.stdin(Stdio::null());
            host
        };
        let trial = host("trial").arg("true").output().unwrap();
        if trial.status.code() == Some(MISSING) {
            skip(test, &String::from_utf8_lossy(&trial.stderr));
            return None;
        }
        let inbox = dir.path().join("in");
        fs::create_dir(&inbox).unwrap();
        let mut host = host("s");
        let host = host.arg(daemon).arg("-n").stdout(Stdio::piped());
        let mut host = host.spawn().unwrap();
        let mut lines = BufReader::new(host.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains("listening"), "{line}");
        Some(Self {
            dir,
            inbox,
            host,
            _lines: lines,
        })
    }

    fn source(&self, name: &str, data: &[u8]) -> PathBuf {
        let path = self.dir.path().join("source").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, data).unwrap();
        path
    }

    /// Sends to the folder, with the slash at its end that the daemon needs.
    fn send(&self, sources: &[&Path], options: &[&str]) -> Sent {
        let mut send = Command::new(PROGRAM);
        send.args(["fcopy", "send", "--json", "--control"]);
        send.arg(self.dir.path().join("s")).args(options);
        send.arg("--to").arg(format!("{}/", self.inbox.display()));
        let output = send.args(sources).output().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        Sent {
            code: output.status.code(),
            lines: lines
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect(),
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.host), Signal::TERM).unwrap();
        // The daemon has no handler of its own: the host ends as it did.
        let status = self.host.wait().unwrap();
        assert_eq!(status.code(), Some(128 + 15), "{status}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // It has ended already, or a test failed; its daemon ends with it.
        let _ = self.host.kill();
        let _ = self.host.wait();
    }
}

impl Sent {
    #[track_caller]
    fn outcomes(&self, outcomes: &[&str]) {
        let found: Vec<&str> = self
            .lines
            .iter()
            .map(|line| line["outcome"].as_str().unwrap())
            .collect();
        assert_eq!(found, outcomes, "{}", self.said);
        assert!(self.lines.iter().all(|line| line["verified"] == false));
    }
}

/// Nobody reads back there, so it is looked at here: size and bytes.
#[test]
fn files_arrive_and_are_said_not_to_be_verified() {
    let Some(rig) = Rig::start("files_arrive_and_are_said_not_to_be_verified") else {
        return;
    };
    let sizes = [0, 1, 6143, 6144, 6145, 300_000];
    let files: Vec<(String, Vec<u8>)> = sizes
        .into_iter()
        .map(|size| (format!("file-{size}"), bytes(size)))
        .collect();
    let sources: Vec<PathBuf> = files
        .iter()
        .map(|(name, data)| rig.source(name, data))
        .collect();
    let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    let sent = rig.send(&sources, &[]);
    assert_eq!(sent.code, Some(0), "{}", sent.said);
    sent.outcomes(&["done"; 6]);
    let word = "6 files are there but not verified";
    assert!(sent.said.contains(word), "{}", sent.said);
    for (name, data) in &files {
        let arrived = rig.inbox.join(name);
        assert_eq!(fs::metadata(&arrived).unwrap().len(), data.len() as u64);
        assert!(fs::read(&arrived).unwrap() == *data, "{name}");
    }
    // Who does not want it read back is not told that it was not.
    let sent = rig.send(&sources[..1], &["--no-verify", "--overwrite"]);
    assert_eq!(sent.code, Some(0), "{}", sent.said);
    sent.outcomes(&["done"]);
    assert!(!sent.said.contains("not verified"), "{}", sent.said);
    rig.stop();
}

/// What the daemon refuses is told, and what it does wrong is as it is known.
#[test]
fn known_of_linux_its_failures_are_told_and_a_mangled_name_is_not_noticed() {
    let test = "known_of_linux_its_failures_are_told";
    let Some(rig) = Rig::start(test) else {
        return;
    };
    fs::write(rig.inbox.join("there"), "what there was").unwrap();
    let there = rig.source("there", b"new");
    let sent = rig.send(&[&there], &[]);
    assert_eq!(sent.code, Some(1), "{}", sent.said);
    sent.outcomes(&["refused"]);
    assert_eq!(
        fs::read(rig.inbox.join("there")).unwrap(),
        b"what there was"
    );
    // A folder without files: the protocol has no words for it.
    let empty = rig.dir.path().join("source/empty");
    fs::create_dir(&empty).unwrap();
    let sent = rig.send(&[&empty], &["--create-path"]);
    assert_eq!(sent.code, Some(1), "{}", sent.said);
    sent.outcomes(&["no-folders"]);
    assert_eq!(names(&rig.inbox), ["there"]);
    // It says that it has the file, and has another one: why "not verified" is said.
    let named = rig.source("naïve-日本.txt", b"data");
    let sent = rig.send(&[&named], &[]);
    assert_eq!(sent.code, Some(0), "{}", sent.said);
    sent.outcomes(&["done"]);
    assert!(sent.said.contains("not verified"), "{}", sent.said);
    assert!(!rig.inbox.join("naïve-日本.txt").exists());
    assert_eq!(fs::read_dir(&rig.inbox).unwrap().count(), 2);
    rig.stop();
}
