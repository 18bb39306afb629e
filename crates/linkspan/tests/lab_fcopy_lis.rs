//! What Microsoft's own suite for guests tries of file copy (lis-test, FCOPY), with our
//! programs: `linkspan fcopy host -- linkspan fcopy guest`, and `send`.
//!
//! On this machine where a program can have the device, and always in the lab. Files of
//! 10 GB are for figures; services that go and come back are in lab_fcopy_guest.rs.

//: about the list of Microsoft's suite for file copy, with our programs
//: limit 400

mod fcopy_device;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use fcopy_device::{PROGRAM, bytes, skip};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::{TempDir, tempdir};

/// The exit status where something is missing on this machine.
const MISSING: i32 = 5;

/// A host, and the guest that it runs.
struct Rig {
    dir: TempDir,
    inbox: PathBuf,
    host: Child,
    _lines: BufReader<ChildStdout>,
}

/// Waits until the host listens; the reader keeps its pipe open.
fn listening(host: &mut Child) -> BufReader<ChildStdout> {
    let mut lines = BufReader::new(host.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("listening"), "{line}");
    lines
}

impl Rig {
    /// `None` and a word where a program cannot have the device; never in the lab.
    fn start(test: &str, options: &[&str]) -> Option<Self> {
        let dir = tempdir().unwrap();
        let trial = Command::new(PROGRAM)
            .args(["fcopy", "host", "--control"])
            .arg(dir.path().join("trial"))
            .args(["--", "true"])
            .output()
            .unwrap();
        if trial.status.code() == Some(MISSING) {
            skip(test, &String::from_utf8_lossy(&trial.stderr));
            return None;
        }
        let inbox = dir.path().join("in");
        fs::create_dir(&inbox).unwrap();
        let mut host = Command::new(PROGRAM);
        host.args(["fcopy", "host", "--json", "--control"]);
        host.arg(dir.path().join("s"));
        host.args(["--", PROGRAM, "fcopy", "guest", "--root"]);
        let host = host.arg(&inbox).args(options).stdin(Stdio::null());
        let mut host = host.stdout(Stdio::piped()).spawn().unwrap();
        let lines = listening(&mut host);
        Some(Self {
            dir,
            inbox,
            host,
            _lines: lines,
        })
    }

    fn source(&self, name: &str, data: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, data).unwrap();
        path
    }

    fn send(&self, source: &Path, to: &Path, options: &[&str]) -> Output {
        send(&self.dir.path().join("s"), source, to, options)
    }

    #[track_caller]
    fn arrives(&self, source: &Path, to: &Path, options: &[&str]) {
        let sent = self.send(source, to, options);
        assert!(sent.status.success(), "{sent:?}");
    }

    #[track_caller]
    fn stop(mut self) {
        kill(&self.host, Signal::TERM);
        assert!(self.host.wait().unwrap().success());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // It has ended already, or a test failed; its guest ends with it.
        let _ = self.host.kill();
        let _ = self.host.wait();
    }
}

fn send(socket: &Path, source: &Path, to: &Path, options: &[&str]) -> Output {
    let mut send = Command::new(PROGRAM);
    send.args(["fcopy", "send", "--control"]).arg(socket);
    // A folder's slash at its end is not lost.
    send.args(options).arg("--to").arg(to).arg(source);
    send.output().unwrap()
}

fn kill(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[track_caller]
fn same(one: &Path, other: &Path) {
    let (one, other) = (fs::read(one).unwrap(), fs::read(other).unwrap());
    assert!(one == other, "{} and {} bytes", one.len(), other.len());
}

#[track_caller]
fn refused(sent: &Output, reason: &str) {
    let said = String::from_utf8_lossy(&sent.stderr);
    assert_eq!(sent.status.code(), Some(1), "{said}");
    assert!(said.contains(reason), "{said}");
}

#[test]
fn basic_a_file_of_10_mb_goes_into_a_folder() {
    let Some(rig) = Rig::start("basic", &[]) else {
        return;
    };
    let source = rig.source("testfile", &bytes(10 << 20));
    let folder = PathBuf::from(format!("{}/", rig.inbox.display()));
    rig.arrives(&source, &folder, &[]);
    same(&rig.inbox.join("testfile"), &source);
    rig.stop();
}

#[test]
fn exists_and_overwrite_a_file_is_replaced_by_force_alone() {
    let Some(rig) = Rig::start("exists and overwrite", &["--overwrite"]) else {
        return;
    };
    let first = rig.source("testfile", &bytes(100_000));
    rig.arrives(&first, &rig.inbox, &[]);
    let second = rig.source("testfile", &bytes(77_777));
    refused(&rig.send(&second, &rig.inbox, &[]), "the file exists");
    assert!(fs::read(rig.inbox.join("testfile")).unwrap() == bytes(100_000));
    rig.arrives(&second, &rig.inbox, &["--overwrite"]);
    same(&rig.inbox.join("testfile"), &second);
    rig.stop();
}

#[test]
fn non_ascii_contents_and_names_arrive_as_they_are() {
    let Some(rig) = Rig::start("non-ascii", &[]) else {
        return;
    };
    let text = "Съешь же ещё этих мягких французских булок, 日本語, \u{1F980}\r\n\0".repeat(1000);
    for name in ["plain", "ещё-日本-\u{1F980}"] {
        let source = rig.source(name, text.as_bytes());
        rig.arrives(&source, &rig.inbox, &[]);
        same(&rig.inbox.join(name), &source);
    }
    rig.stop();
}

#[test]
fn large_and_repeated_files_come_and_are_deleted() {
    let Some(rig) = Rig::start("large and repeated", &[]) else {
        return;
    };
    // The lab's guest is emulated.
    let large = match std::env::var_os("LINKSPAN_LAB") {
        Some(_) => 4 << 20,
        None => 64 << 20,
    };
    let source = rig.source("large", &bytes(large));
    let place = rig.inbox.join("large");
    for _ in 0..5 {
        rig.arrives(&source, &rig.inbox, &[]);
        same(&place, &source);
        fs::remove_file(&place).unwrap();
    }
    rig.stop();
}

/// A folder that nothing can be put into, until the value ends.
struct Immutable(File);

impl Immutable {
    fn new(folder: &Path) -> rustix::io::Result<Self> {
        let file = File::open(folder).expect("a folder of ours");
        let flags = ioctl_getflags(&file)?;
        ioctl_setflags(&file, flags | IFlags::IMMUTABLE)?;
        Ok(Self(file))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let flags = ioctl_getflags(&self.0).expect("they were read before");
        ioctl_setflags(&self.0, flags - IFlags::IMMUTABLE).expect("they were set before");
    }
}

#[test]
fn negative_an_immutable_folder_takes_nothing() {
    let Some(rig) = Rig::start("negative: immutable", &[]) else {
        return;
    };
    let source = rig.source("testfile", b"x");
    let folder = rig.inbox.join("test");
    fs::create_dir(&folder).unwrap();
    match Immutable::new(&folder) {
        Ok(held) => {
            refused(&rig.send(&source, &folder, &[]), "START");
            drop(held);
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
            rig.arrives(&source, &folder, &[]);
        }
        Err(errno) => skip(
            "negative: immutable",
            &format!("no folder can be so: {errno}"),
        ),
    }
    rig.stop();
}

#[test]
fn negative_without_the_service_nothing_is_sent() {
    let Some(mut rig) = Rig::start("negative: service", &[]) else {
        return;
    };
    // The host without its guest.
    rig.host.kill().unwrap();
    rig.host.wait().unwrap();
    let socket = rig.dir.path().join("bare");
    let mut host = Command::new(PROGRAM);
    host.args(["fcopy", "host", "--json", "--control"])
        .arg(&socket);
    let mut host = host.stdout(Stdio::piped()).spawn().unwrap();
    let lines = listening(&mut host);
    let source = rig.source("testfile", b"x");
    let sent = send(&socket, &source, &rig.inbox, &["--timeout", "1"]);
    assert_eq!(sent.status.code(), Some(3), "{sent:?}");
    // The daemon is started afterwards: what failed does not appear.
    let guest = |socket: &Path| {
        let mut guest = Command::new(PROGRAM);
        guest.args(["fcopy", "guest", "--root"]).arg(&rig.inbox);
        guest.arg("--connect").arg(socket).spawn().unwrap()
    };
    let mut first = guest(&socket);
    let next = rig.source("next", b"next");
    assert!(send(&socket, &next, &rig.inbox, &[]).status.success());
    assert_eq!(fcopy_device::names(&rig.inbox), ["next"]);
    // It is stopped, and started again.
    kill(&first, Signal::TERM);
    first.wait().unwrap();
    let sent = send(&socket, &source, &rig.inbox, &["--timeout", "1"]);
    assert_eq!(sent.status.code(), Some(3), "{sent:?}");
    let mut second = guest(&socket);
    let last = rig.source("last", b"last");
    assert!(send(&socket, &last, &rig.inbox, &[]).status.success());
    assert_eq!(fcopy_device::names(&rig.inbox), ["last", "next"]);
    for child in [&mut second, &mut host] {
        kill(child, Signal::TERM);
        assert!(child.wait().unwrap().success());
    }
    drop(lines);
}
