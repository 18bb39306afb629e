//! What Microsoft's own suite for guests tries of file copy (lis-test, FCOPY), with our
//! programs: `linkspan fcopy host -- linkspan fcopy guest`, and `send`.
//!
//! On this machine where a program can have the device, and always in the lab, whose guest
//! is emulated and gets small files. The file of 10 GB is for figures (`cargo xtask bench
//! fcopy`); a device that goes and comes back is in lab_fcopy_guest.rs as well.

//: about the list of Microsoft's suite for file copy, with our programs
//: limit 400

mod fcopy_device;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use fcopy_device::{PROGRAM, bytes, skip};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags, statvfs};
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
        Self::start_in(tempdir().unwrap(), test, options)
    }

    fn start_in(dir: TempDir, test: &str, options: &[&str]) -> Option<Self> {
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

/// Bytes of a large file: as the list has it, or what is large in the lab and for the tests
/// that take seconds.
fn large(gigabytes: u64) -> u64 {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    match std::env::var("LINKSPAN_LAB").as_deref() {
        Ok("1") => 4 << 20,
        _ if is_set("LINKSPAN_TEST_QUICK") => 64 << 20,
        _ => gigabytes << 30,
    }
}

/// A folder with room for so many bytes: in memory if it can be, since disks are not what
/// is tried. `None` and a word where there is none.
fn roomy(test: &str, bytes: u64) -> Option<TempDir> {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    let room = |folder: &Path| {
        let stat = statvfs(folder).ok()?;
        (stat.f_bavail * stat.f_frsize > bytes + bytes / 8).then_some(())
    };
    let memory = Path::new("/dev/shm");
    if kib << 10 > 2 * bytes && room(memory).is_some() {
        return Some(tempfile::tempdir_in(memory).unwrap());
    }
    let dir = tempdir().unwrap();
    if room(dir.path()).is_none() {
        skip(test, &format!("there is no room for {bytes} bytes"));
        return None;
    }
    Some(dir)
}

/// Bytes that are written or compared at a time.
const CHUNK: usize = 1 << 20;

/// A file with different bytes here and there and at its end, and holes between.
fn sparse(path: &Path, len: u64) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    let mut piece = bytes(CHUNK);
    let (mut at, step) = (0, (len / 16) | 1);
    while at < len {
        let place = at.min(len - CHUNK as u64);
        piece[..8].copy_from_slice(&place.to_le_bytes());
        file.write_all_at(&piece, place).unwrap();
        at += step;
    }
    file.write_all_at(&piece, len - CHUNK as u64).unwrap();
}

#[track_caller]
fn same_large(one: &Path, other: &Path) {
    let files = [one, other].map(|path| File::open(path).unwrap());
    let [len, came] = [0, 1].map(|at: usize| files[at].metadata().unwrap().len());
    assert_eq!(came, len);
    let mut pieces = [vec![0; CHUNK], vec![0; CHUNK]];
    for at in (0..len).step_by(CHUNK) {
        let left = usize::try_from(len - at).unwrap().min(CHUNK);
        for (file, piece) in files.iter().zip(&mut pieces) {
            file.read_exact_at(&mut piece[..left], at).unwrap();
        }
        assert!(pieces[0][..left] == pieces[1][..left], "from {at} on");
    }
}

#[test]
fn repeated_a_file_of_2_gb_comes_and_is_deleted() {
    let test = "repeated_a_file_of_2_gb_comes_and_is_deleted";
    let len = large(2);
    let Some(rig) = roomy(test, len).and_then(|dir| Rig::start_in(dir, test, &[])) else {
        return;
    };
    let source = rig.dir.path().join("large");
    sparse(&source, len);
    let place = rig.inbox.join("large");
    for _ in 0..2 {
        rig.arrives(&source, &rig.inbox, &[]);
        same_large(&source, &place);
        fs::remove_file(&place).unwrap();
    }
    rig.stop();
}

/// A program of ours that says what happens.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn start(words: &[&str], socket: &Path) -> Self {
        let mut command = Command::new(PROGRAM);
        command.arg("fcopy").args(words).arg(socket);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    #[track_caller]
    fn event(&mut self, name: &str) {
        let (word, mut line) = (format!("\"{name}\""), String::new());
        while !line.contains(&word) {
            line.clear();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "no {name}");
        }
    }

    #[track_caller]
    fn stop(mut self) {
        kill(&self.child, Signal::TERM);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Guest Services are switched off and on: the host goes, and another one comes.
#[test]
fn service_a_file_of_5_gb_comes_after_20_hosts() {
    let test = "service_a_file_of_5_gb_comes_after_20_hosts";
    let len = large(5);
    let Some(dir) = roomy(test, len) else {
        return;
    };
    let (inbox, socket) = (dir.path().join("in"), dir.path().join("s"));
    fs::create_dir(&inbox).unwrap();
    let root = inbox.to_str().unwrap();
    let host = || {
        let mut host = Running::start(&["host", "--json", "--control"], &socket);
        host.event("listening");
        host
    };
    let mut last = host();
    let guest = ["guest", "--json", "--root", root, "--connect"];
    let mut guest = Running::start(&guest, &socket);
    // Each start of a program takes the lab a second or two.
    let hosts = if len < 1 << 30 { 3 } else { 20 };
    for _ in 0..hosts {
        guest.event("joined");
        last.stop();
        guest.event("left");
        last = host();
    }
    guest.event("joined");
    let source = dir.path().join("large");
    sparse(&source, len);
    // Read back below, and not by the guest: hashes take a build for tests long.
    let sent = send(&socket, &source, &inbox, &["--no-verify"]);
    assert!(sent.status.success(), "{sent:?}");
    same_large(&source, &inbox.join("large"));
    guest.stop();
    last.stop();
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
