//! `linkspan fcopy` as people run it: guest, host and sender, each its own process.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use linkspan_engine::vmbus::{Channel, Framed, Offer};
use linkspan_sys::Listener;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_testkit::PATIENCE;
use linkspan_testkit::census::settled;
use linkspan_vmbus::fcopy::{START_LEN, WRITE_LEN};
use linkspan_vmbus::ic::FILE_COPY;
use linkspan_vmbus::link::{Frame, Reason, Role, VERSION};
use linkspan_vmbus::packet::Header;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linkspan"));
    command.arg("fcopy").env("LINKSPAN_LOG", "off");
    command
}

/// A program that says what happens, line by line.
struct Program {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Program {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next event of this name.
    #[track_caller]
    fn event(&mut self, name: &str) -> Value {
        let mut line = String::new();
        loop {
            line.clear();
            let len = self.lines.read_line(&mut line).unwrap();
            assert!(len > 0, "it ended before {name}");
            let value: Value = serde_json::from_str(&line).unwrap();
            if value["event"] == name {
                return value;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    #[track_caller]
    fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder with everything: the socket, the root, what is sent.
struct Rig {
    folder: TempDir,
    root: PathBuf,
    socket: PathBuf,
}

impl Rig {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        let socket = folder.path().join("s");
        Self {
            folder,
            root,
            socket,
        }
    }

    fn host(&self, args: &[&str]) -> Program {
        let mut command = program();
        command.args(["host", "--json", "--control"]);
        command.arg(&self.socket).args(args);
        let mut host = Program::start(command);
        host.event("listening");
        host
    }

    fn guest_command(&self, args: &[&str]) -> Command {
        let mut command = program();
        command.args(["guest", "--json", "--root"]).arg(&self.root);
        command.arg("--connect").arg(&self.socket).args(args);
        command
    }

    fn guest(&self, args: &[&str]) -> Program {
        let mut guest = Program::start(self.guest_command(args));
        guest.event("joined");
        guest
    }

    fn source(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("source").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn send_command<S: AsRef<OsStr>>(&self, files: &[S], args: &[&str]) -> Command {
        let mut command = program();
        command.arg("send").arg("--control").arg(&self.socket);
        command.args(["--json", "--to"]).arg(&self.root);
        command.args(args).args(files);
        command
    }

    fn send<S: AsRef<OsStr>>(&self, files: &[S], args: &[&str]) -> Sent {
        Sent::of(self.send_command(files, args).output().unwrap())
    }

    #[track_caller]
    fn landed(&self, name: &str, bytes: &[u8]) {
        let found = fs::read(self.root.join(name)).unwrap();
        assert!(found == bytes, "{name}: {} bytes", found.len());
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    }
}

struct Sent {
    status: Option<i32>,
    lines: Vec<Value>,
    said: String,
}

impl Sent {
    fn of(output: Output) -> Self {
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        Self {
            status: output.status.code(),
            lines: lines.collect(),
            said: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn expect(&self, status: i32, outcomes: &[&str]) {
        let found: Vec<_> = self
            .lines
            .iter()
            .map(|line| line["outcome"].as_str())
            .collect();
        let outcomes: Vec<_> = outcomes.iter().map(|outcome| Some(*outcome)).collect();
        assert_eq!(
            (self.status, found),
            (Some(status), outcomes),
            "{}",
            self.said
        );
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 % 251).to_le_bytes()[0]).collect()
}

/// Known bugs 2, 11 and 24 of Linux's daemon: names.
#[test]
fn files_of_any_name_and_size_arrive() {
    let rig = Rig::new();
    let (host, guest) = (rig.host(&[]), rig.guest(&[]));
    let long = "x".repeat(255);
    let sizes = [0, 1, 6143, 6144, 6145, 12_288, 3_000_000, 77, 78, 79, 80];
    let names = [
        "plain",
        "naïve-日本.txt",
        "🦀 crab",
        " spaces ",
        "-dash",
        "%PATH%x",
        "a\"b'c",
        "e\u{301}",
        &long,
        ".hidden",
        "$HOME",
    ];
    let mut sources = Vec::new();
    for (name, size) in names.into_iter().zip(sizes) {
        sources.push(rig.source(name, &pattern(size)));
    }
    let sent = rig.send(&sources, &[]);
    sent.expect(0, &["done"; 11]);
    for (name, size) in names.into_iter().zip(sizes) {
        rig.landed(name, &pattern(size));
    }
    assert_eq!(rig.names().len(), names.len());
    guest.stop();
    host.stop();
    assert!(!rig.socket.exists());
}

/// Known bug 4 of Linux's daemon: only one size of ring.
#[test]
fn rings_have_any_size() {
    for size in ["12288", "16384", "20480", "69632", "2M"] {
        let rig = Rig::new();
        let (host, guest) = (rig.host(&["--ring-size", size]), rig.guest(&[]));
        let source = rig.source("file", &pattern(1_000_000));
        rig.send(&[source], &[]).expect(0, &["done"]);
        rig.landed("file", &pattern(1_000_000));
        guest.stop();
        host.stop();
    }
    for size in ["8192", "20481", "1G"] {
        let rig = Rig::new();
        let mut command = program();
        command.args(["host", "--control"]).arg(&rig.socket);
        let output = command.args(["--ring-size", size]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{size}");
    }
}

#[test]
fn folders_arrive_with_all_that_is_in_them() {
    let rig = Rig::new();
    let (_host, _guest) = (rig.host(&[]), rig.guest(&[]));
    rig.source("docs/a", b"1");
    rig.source("docs/inner/日本/b", b"22");
    rig.source("docs/inner/c", &pattern(100_000));
    let docs = rig.folder.path().join("source/docs");
    std::os::unix::fs::symlink("/etc/passwd", docs.join("link")).unwrap();
    let sent = rig.send(&[docs], &[]);
    // The link is told of, and all else arrives.
    sent.expect(1, &["source", "done", "done", "done"]);
    assert!(
        sent.said
            .contains("link: it is neither a file nor a folder")
    );
    rig.landed("docs/a", b"1");
    rig.landed("docs/inner/日本/b", b"22");
    rig.landed("docs/inner/c", &pattern(100_000));
    assert!(!rig.root.join("docs/link").exists());
}

#[test]
fn a_file_that_exists_is_replaced_if_both_ends_agree() {
    let rig = Rig::new();
    let _host = rig.host(&[]);
    let guest = rig.guest(&[]);
    let source = rig.source("file", b"new");
    fs::write(rig.root.join("file"), "old").unwrap();
    let sent = rig.send(&[&source], &[]);
    sent.expect(1, &["refused"]);
    assert!(
        sent.said
            .contains("the guest refused START: the file exists")
    );
    rig.send(&[&source], &["--overwrite"])
        .expect(1, &["refused"]);
    rig.landed("file", b"old");
    guest.stop();
    let _guest = rig.guest(&["--overwrite"]);
    rig.send(&[&source], &[]).expect(1, &["refused"]);
    rig.send(&[&source], &["--overwrite"]).expect(0, &["done"]);
    rig.landed("file", b"new");
}

#[test]
fn places_outside_of_the_roots_are_refused() {
    let rig = Rig::new();
    let (_host, _guest) = (rig.host(&[]), rig.guest(&["--max-size", "10"]));
    let source = rig.source("file", b"x");
    let large = rig.source("large", b"eleven bytes");
    std::os::unix::fs::symlink("/tmp", rig.root.join("out")).unwrap();
    let out = rig.root.join("out/x");
    for to in [
        "/",
        "/etc",
        "../x",
        "%TEMP%/x",
        "C:\\x",
        out.to_str().unwrap(),
    ] {
        let mut command = program();
        command.arg("send").arg("--control").arg(&rig.socket);
        command.args(["--json", "--to", to]).arg(&source);
        Sent::of(command.output().unwrap()).expect(1, &["refused"]);
    }
    let sent = rig.send(&[large], &[]);
    sent.expect(1, &["refused"]);
    assert!(sent.said.contains("the disk is full"));
    assert_eq!(rig.names(), ["out"]);
}

/// Known bug 22 of Linux's daemon: a disk that is full was any failure.
#[test]
fn a_full_disk_is_told_and_nothing_is_left() {
    let rig = Rig::new();
    let _host = rig.host(&[]);
    let guest = rig.guest_command(&[]);
    // The limit of a process is the disk's end for it.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 100; exec \"$0\" \"$@\""]);
    limited.arg(guest.get_program()).args(guest.get_args());
    limited.env("LINKSPAN_LOG", "off");
    let mut guest = Program::start(limited);
    guest.event("joined");
    let (large, small) = (
        rig.source("a", &pattern(300_000)),
        rig.source("b", b"small"),
    );
    let sent = rig.send(&[large, small], &["--create-path"]);
    sent.expect(1, &["refused", "done"]);
    // Where the file system reserves room first START is refused, elsewhere WRITE.
    let told = sent.said.contains("a: the guest refused") && sent.said.contains("the disk is full");
    assert!(told, "{}", sent.said);
    assert_eq!(rig.names(), ["b"]);
    guest.stop();
}

/// A file of so many bytes that nobody has copied it when the test goes on.
fn huge(rig: &Rig) -> PathBuf {
    let path = rig.source("huge", b"");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4 << 30)
        .unwrap();
    path
}

/// Begins a copy that takes long, into a folder that is made for it.
fn begin_huge(rig: &Rig) -> Child {
    let huge = huge(rig);
    let mut command = program();
    command.args(["send", "--json", "--create-path", "--control"]);
    command
        .arg(&rig.socket)
        .arg("--to")
        .arg(rig.root.join("new/"));
    command.arg(huge);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let folder = rig.root.join("new");
    assert!(settled(|| folder.exists()), "it does not begin");
    child
}

/// Known bug 12 of Linux's daemon: CANCEL was refused, and the part stayed.
#[test]
fn a_copy_that_is_interrupted_leaves_nothing() {
    let rig = Rig::new();
    let (host, guest) = (rig.host(&[]), rig.guest(&[]));
    let sender = begin_huge(&rig);
    kill_process(Pid::from_child(&sender), Signal::INT).unwrap();
    let sent = Sent::of(sender.wait_with_output().unwrap());
    sent.expect(1, &["stopped"]);
    assert!(rig.names().is_empty());
    // The same when the sender is killed: the host takes the file back.
    let mut sender = begin_huge(&rig);
    sender.kill().unwrap();
    sender.wait().unwrap();
    assert!(settled(|| rig.names().is_empty()), "{:?}", rig.names());
    let source = rig.source("file", b"next");
    rig.send(&[source], &[]).expect(0, &["done"]);
    guest.stop();
    host.stop();
}

#[test]
fn a_guest_that_is_killed_comes_back() {
    let rig = Rig::new();
    let mut host = rig.host(&[]);
    let guest = rig.guest(&[]);
    let sender = begin_huge(&rig);
    guest.kill();
    let sent = Sent::of(sender.wait_with_output().unwrap());
    sent.expect(3, &["lost"]);
    host.event("left");
    // Nothing of the file, which never had a name.
    assert!(fs::read_dir(rig.root.join("new")).unwrap().next().is_none());
    let _guest = rig.guest(&[]);
    let source = rig.source("file", b"next");
    rig.send(&[source], &[]).expect(0, &["done"]);
    rig.landed("file", b"next");
}

/// Known bugs 1 and 9 of Linux's daemon: it did not survive a host that went away.
#[test]
fn a_host_that_is_killed_comes_back() {
    let rig = Rig::new();
    let host = rig.host(&[]);
    let mut guest = rig.guest(&[]);
    let sender = begin_huge(&rig);
    host.kill();
    let sent = Sent::of(sender.wait_with_output().unwrap());
    sent.expect(3, &["host"]);
    guest.event("left");
    assert!(settled(|| rig.names().is_empty()), "{:?}", rig.names());
    let _host = rig.host(&[]);
    guest.event("joined");
    let source = rig.source("file", b"next");
    rig.send(&[source], &[]).expect(0, &["done"]);
    guest.stop();
}

#[test]
fn nobody_there_is_told() {
    let rig = Rig::new();
    let source = rig.source("file", b"x");
    let none = rig.send(&[&source], &[]);
    assert_eq!(none.status, Some(3), "{}", none.said);
    let _host = rig.host(&[]);
    rig.send(&[&source], &["--timeout", "1"])
        .expect(3, &["no-guest"]);
    let missing = rig.send(&[rig.folder.path().join("missing")], &[]);
    missing.expect(1, &["source"]);
}

#[test]
fn guests_have_a_socket_of_their_own_if_there_is_one() {
    let rig = Rig::new();
    let device = rig.folder.path().join("device");
    let _host = rig.host(&["--device", device.to_str().unwrap()]);
    let source = rig.source("file", b"x");
    let guest = rig.guest_command(&[]).output().unwrap();
    assert_eq!(guest.status.code(), Some(2));
    let mut command = program();
    command.args(["send", "--control"]).arg(&device);
    let output = command.args(["--to", "/x"]).arg(&source).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let mut command = program();
    command.args(["guest", "--json", "--root"]).arg(&rig.root);
    command.arg("--connect").arg(&device);
    let mut guest = Program::start(command);
    guest.event("joined");
    rig.send(&[source], &[]).expect(0, &["done"]);
    guest.stop();
}

#[test]
fn a_second_guest_waits_for_the_first_to_leave() {
    let rig = Rig::new();
    let _host = rig.host(&[]);
    let first = rig.guest(&[]);
    let mut second = Program::start(rig.guest_command(&[]));
    first.stop();
    second.event("joined");
    second.stop();
}

// A host that says anything.

struct RawHost {
    channel: Channel,
    _framed: Framed,
}

fn accept(listener: &Listener) -> Framed {
    let deadline = std::time::Instant::now() + PATIENCE;
    wait_for(listener.as_fd(), Direction::Read, None, Some(deadline)).unwrap();
    let mut framed = Framed::accepted(listener.accept().unwrap());
    let never = linkspan_sys::EventFd::new().unwrap();
    let (frame, _) = framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
    assert_eq!(frame, Frame::hello(Role::Guest));
    framed
}

fn channel_frame(offer: &Offer) -> Frame {
    Frame::Channel {
        version: VERSION,
        interface: FILE_COPY.interface,
        instance: FILE_COPY.instance.unwrap(),
        shape: offer.shape,
    }
}

impl RawHost {
    fn meet(listener: &Listener) -> Self {
        let mut framed = accept(listener);
        let offer = Offer::new(20480).unwrap();
        framed
            .say(&channel_frame(&offer), &offer.descriptors())
            .unwrap();
        let mut host = Self {
            channel: offer.host().unwrap(),
            _framed: framed,
        };
        let body = [1, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 1, 0];
        assert_eq!(host.ask(0, &body), 0);
        host
    }

    /// Sends a request and gives the status of its answer.
    fn ask(&mut self, kind: u16, body: &[u8]) -> u32 {
        let message = message(kind, body);
        self.channel
            .outgoing
            .send(Header::in_band(1), &[&message])
            .unwrap();
        self.channel.flush().unwrap();
        let mut packet = self.channel.packet().unwrap();
        loop {
            self.channel.incoming.refresh().unwrap();
            if self.channel.incoming.receive(&mut packet).unwrap() {
                let status = packet.payload()[20..24].try_into().unwrap();
                return u32::from_le_bytes(status);
            }
            self.channel.flush().unwrap();
            if !self.channel.incoming.arm().unwrap() {
                std::thread::yield_now();
            }
        }
    }
}

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let size = u16::try_from(body.len()).unwrap();
    let mut bytes = vec![1, 0, 0, 0];
    bytes.extend((u32::from(size) + 20).to_le_bytes());
    bytes.extend([3, 0, 0, 0]);
    bytes.extend(kind.to_le_bytes());
    bytes.extend([1, 0, 1, 0]);
    bytes.extend(size.to_le_bytes());
    bytes.extend([0, 0, 0, 0, 9, 3, 0, 0]);
    bytes.extend(body);
    bytes
}

fn start(path: &Path, size: u64) -> Vec<u8> {
    let mut body = vec![0; START_LEN];
    let put = |body: &mut Vec<u8>, at: usize, text: &str| {
        for (index, unit) in text.encode_utf16().enumerate() {
            body[at + 2 * index..][..2].copy_from_slice(&unit.to_le_bytes());
        }
    };
    put(&mut body, 36, "file");
    put(&mut body, 556, path.to_str().unwrap());
    body[1080..].copy_from_slice(&size.to_le_bytes());
    body
}

fn resident(child: &Child) -> u64 {
    let path = format!("/proc/{}/statm", child.id());
    let text = fs::read_to_string(path).unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Known bug 3 of Linux's daemon: each START kept its names.
#[test]
fn a_hundred_thousand_starts_take_no_memory() {
    let mut rig = Rig::new();
    // In memory, where there is such a place: the file system is not what is tried.
    let quick = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempdir())
        .unwrap();
    rig.root = quick.path().to_owned();
    let listener = Listener::bind(&rig.socket).unwrap();
    let guest = Program::start(rig.guest_command(&[]));
    let mut host = RawHost::meet(&listener);
    let start = start(&rig.root, 5000);
    let mut before = 0;
    for round in 0..100_000 {
        assert_eq!(host.ask(7, &start), 0);
        if round == 1000 {
            before = resident(&guest.child);
        }
    }
    let after = resident(&guest.child);
    assert!(after <= before + 64, "{before} pages became {after}");
    let open = fs::read_dir(format!("/proc/{}/fd", guest.child.id())).unwrap();
    assert!(open.count() < 30);
    guest.stop();
    assert!(rig.names().is_empty());
}

/// Known bugs 13 to 16 and 19 of Linux's daemon, at the running program.
#[test]
fn a_hostile_host_gets_errors_and_the_guest_lives() {
    const FAIL: u32 = 0x8000_4005;
    const INVALID: u32 = 0x8007_0057;
    let rig = Rig::new();
    let listener = Listener::bind(&rig.socket).unwrap();
    let mut guest = Program::start(rig.guest_command(&[]));
    let mut host = RawHost::meet(&listener);
    guest.event("joined");
    let head = |operation: u32| {
        let mut body = operation.to_le_bytes().to_vec();
        body.resize(36, 0);
        body
    };
    let write = |size: u32| {
        let mut body = head(1);
        body.resize(WRITE_LEN, 7);
        body[40..48].copy_from_slice(&0_u64.to_le_bytes());
        body[48..52].copy_from_slice(&size.to_le_bytes());
        body
    };
    assert_eq!(host.ask(7, &head(2)), FAIL);
    assert_eq!(host.ask(7, &write(10)), FAIL);
    assert_eq!(host.ask(7, &[0; 10]), INVALID);
    for len in [0, 35, 36, 1000, START_LEN - 1] {
        assert_eq!(host.ask(7, &start(&rig.root, 10)[..len]), INVALID);
    }
    assert_eq!(host.ask(7, &start(&rig.root, 10)), 0);
    assert_eq!(host.ask(7, &write(200_000)), INVALID);
    assert_eq!(host.ask(7, &write(11)), INVALID);
    assert_eq!(host.ask(7, &write(10)), 0);
    assert_eq!(host.ask(7, &head(2)), 0);
    rig.landed("file", &[7; 10]);
    drop(host);
    guest.event("left");

    // Rings of nonsense: the guest leaves, and comes again.
    for seed in 0_u8..8 {
        let mut framed = accept(&listener);
        let offer = Offer::new(20480).unwrap();
        let noise: Vec<u8> = (0..offer.shape.len)
            .map(|at| at.to_le_bytes()[0].wrapping_mul(seed | 1) ^ seed)
            .collect();
        rustix::io::pwrite(&offer.memory, &noise, 0).unwrap();
        // Indices that can be, so that what is behind them is looked at.
        for ring in [0, 20480] {
            rustix::io::pwrite(&offer.memory, &[0; 8], ring).unwrap();
        }
        let write: u32 = 64 * u32::from(seed + 1);
        rustix::io::pwrite(&offer.memory, &write.to_le_bytes(), 20480).unwrap();
        framed
            .say(&channel_frame(&offer), &offer.descriptors())
            .unwrap();
        offer.call.signal().unwrap();
        guest.event("left");
    }
    // A host that does not want it, and is asked again.
    accept(&listener)
        .say(&Frame::Refused(Reason::Busy), &[])
        .unwrap();
    let mut host = RawHost::meet(&listener);
    assert_eq!(host.ask(7, &head(3)), 0);
    // Descriptors that are none of a channel.
    drop(host);
    let mut framed = accept(&listener);
    let offer = Offer::new(20480).unwrap();
    let file = File::open("/dev/zero").unwrap();
    let fds = [file.as_fd(), offer.kick.as_fd(), offer.call.as_fd()];
    framed.say(&channel_frame(&offer), &fds).unwrap();
    drop(framed);
    assert_eq!(RawHost::meet(&listener).ask(7, &head(3)), 0);
    guest.stop();
    assert_eq!(rig.names(), ["file"]);
}

// A guest that says anything.

fn join(rig: &Rig) -> (Framed, Vec<std::os::fd::OwnedFd>, linkspan_vmbus::Shape) {
    let mut framed = Framed::connect(&rig.socket, Role::Guest).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let never = linkspan_sys::EventFd::new().unwrap();
    let (frame, fds) = framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
    let Frame::Channel { shape, .. } = frame else {
        panic!("{frame:?}");
    };
    (framed, fds, shape)
}

#[test]
fn a_hostile_guest_is_given_up_and_the_host_lives() {
    let rig = Rig::new();
    let mut host = rig.host(&[]);
    // Indices that no ring has, and a kick.
    for (index, value) in [(0, 4_u32), (0, 1 << 30), (20480 + 4, 12)] {
        let (_framed, fds, _) = join(&rig);
        rustix::io::pwrite(&fds[0], &value.to_le_bytes(), index).unwrap();
        rustix::io::write(&fds[1], &1_u64.to_ne_bytes()).unwrap();
        let left = host.event("left");
        assert!(left["reason"].as_str().unwrap().contains("ring"), "{left}");
    }
    // Messages that are none, and a frame that no guest says.
    for payload in [&[0xFF; 40][..], &[1, 0, 0, 0, 20, 0, 0, 0], &[]] {
        let (_framed, fds, shape) = join(&rig);
        let mut channel = Channel::guest(shape, fds).unwrap();
        channel
            .outgoing
            .send(Header::in_band(1), &[payload])
            .unwrap();
        channel.flush().unwrap();
        host.event("left");
    }
    let (framed, _, _) = join(&rig);
    rustix::io::write(framed.as_fd(), &[6, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    host.event("left");
    // The eventfds are the guest's as well: full, they hold nobody up.
    let (framed, fds, _) = join(&rig);
    for fd in &fds[1..] {
        rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    }
    // It does not even negotiate.
    let source = rig.source("file", b"x");
    rig.send(&[&source], &["--timeout", "1"])
        .expect(3, &["no-guest"]);
    drop(framed);
    host.event("left");
    let _guest = rig.guest(&[]);
    rig.send(&[source], &[]).expect(0, &["done"]);
    host.stop();
}

#[test]
fn clients_that_say_nonsense_are_left() {
    let rig = Rig::new();
    let (host, _guest) = (rig.host(&[]), rig.guest(&[]));
    let mut silent = Vec::new();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[1, 0, 0, 0, 8, 0, 0, 0],
        &[255],
    ] {
        let stream = linkspan_sys::Stream::connect(&rig.socket).unwrap();
        rustix::io::write(stream.as_fd(), bytes).unwrap();
        silent.push(stream);
    }
    // What is sent as a file must be one.
    let mut framed = Framed::connect(&rig.socket, Role::Sender).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let never = linkspan_sys::EventFd::new().unwrap();
    framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
    let request = linkspan_vmbus::link::Request {
        file: "file".into(),
        path: "x".into(),
        overwrite: false,
        create_path: false,
        size: 10,
        patience: 1000,
    };
    let zero = File::open("/dev/zero").unwrap();
    framed
        .say(&Frame::Send(request.clone()), &[zero.as_fd()])
        .unwrap();
    let (frame, _) = framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
    let source = linkspan_vmbus::link::Outcome::Source;
    assert_eq!(frame, Frame::Done(source));
    // And as long as it was said to be: what was begun is taken back.
    let short = File::open(rig.source("short", b"1234")).unwrap();
    framed.say(&Frame::Send(request), &[short.as_fd()]).unwrap();
    let (frame, _) = framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
    assert_eq!(frame, Frame::Done(source));
    assert!(rig.names().is_empty());
    rig.send(&[rig.source("file", b"x")], &[])
        .expect(0, &["done"]);
    host.stop();
}
