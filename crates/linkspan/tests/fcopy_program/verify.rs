//! What both ends of ours do beyond the protocol: files are read back, folders without
//! files are made; and what becomes of them with the ends of others.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Instant;

use linkspan_backends::fcopy::{Guest, Tree, TreeOptions};
use linkspan_engine::vmbus::{Channel, Framed, FramedError};
use linkspan_sys::EventFd;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_testkit::PATIENCE;
use linkspan_vmbus::fcopy::{Policy, Roots};
use linkspan_vmbus::ic::{FILE_COPY, HEARTBEAT, Status};
use linkspan_vmbus::link::{Digest, Frame, Outcome, Reason, Request, Role, SLICE_MAX, VERSION};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};

use crate::rig::{Rig, Sent, pattern, program};

fn verified(sent: &Sent) -> Vec<Option<bool>> {
    let lines = sent.lines.iter();
    lines.map(|line| line["verified"].as_bool()).collect()
}

#[test]
fn files_are_read_back_unless_that_is_not_wanted() {
    let rig = Rig::new();
    let (host, guest) = (rig.host(&[]), rig.guest(&["--overwrite"]));
    let slice = usize::try_from(SLICE_MAX).unwrap();
    let sources: Vec<_> = [0, 1, 6144, slice - 1, slice, slice + 1, 3 * slice]
        .into_iter()
        .map(|len| rig.source(&format!("f{len}"), &pattern(len)))
        .collect();
    let sent = rig.send(&sources, &[]);
    sent.expect(0, &["done"; 7]);
    assert_eq!(verified(&sent), [Some(true); 7]);
    assert!(!sent.said.contains("not verified"), "{}", sent.said);
    let sent = rig.send(&sources, &["--no-verify", "--overwrite"]);
    sent.expect(0, &["done"; 7]);
    assert_eq!(verified(&sent), [Some(false); 7]);
    assert!(sent.said.is_empty(), "{}", sent.said);
    guest.stop();
    host.stop();
}

#[test]
fn whole_folders_arrive_with_all_that_can_be_sent() {
    let rig = Rig::new();
    let (host, guest) = (rig.host(&[]), rig.guest(&[]));
    let tree = rig.folder.path().join("source/tree");
    for name in [
        "new\nline",
        "tab\t",
        "trailing.",
        "sub/e\u{301}",
        "sub/-n",
        "sub/🦀",
    ] {
        rig.source(&format!("tree/{name}"), name.as_bytes());
    }
    for folder in ["empty", "nested/deep/empty", "日本/\u{301}"] {
        fs::create_dir_all(tree.join(folder)).unwrap();
    }
    // A folder with nothing but what is left out is a folder all the same.
    fs::create_dir(tree.join("links")).unwrap();
    symlink("nowhere", tree.join("links/dangling")).unwrap();
    symlink("../empty", tree.join("links/folder")).unwrap();
    symlink(".", tree.join("links/loop")).unwrap();
    // A name that is a path in Windows, and one that is no text.
    fs::write(tree.join("back\\slash"), "x").unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"\xFFodd");
    fs::write(tree.join(odd), "x").unwrap();
    let sent = rig.send(&[&tree], &[]);
    let count = |what: &str| {
        let lines = sent.lines.iter();
        lines.filter(|line| line["outcome"] == what).count()
    };
    assert_eq!(sent.status, Some(1), "{}", sent.said);
    // Six files and four folders; three links and the name; and a refusal.
    assert_eq!(
        (count("done"), count("source"), count("refused")),
        (10, 4, 1),
        "{}",
        sent.said
    );
    assert!(sent.said.contains("its name is not UTF-8"));
    for name in [
        "new\nline",
        "tab\t",
        "trailing.",
        "sub/e\u{301}",
        "sub/-n",
        "sub/🦀",
    ] {
        rig.landed(&format!("tree/{name}"), name.as_bytes());
    }
    for folder in ["empty", "nested/deep/empty", "日本/\u{301}", "links"] {
        let made = rig.root.join("tree").join(folder);
        assert!(fs::read_dir(&made).unwrap().next().is_none(), "{folder}");
        let mode = fs::metadata(&made).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }
    assert!(!rig.root.join("tree/back").exists());
    // Again: what is there is refused, folders are as good as made.
    let sent = rig.send(&[tree.join("nested")], &[]);
    sent.expect(0, &["done"]);
    // A folder where a file is.
    fs::write(rig.root.join("plain"), "x").unwrap();
    fs::create_dir(rig.folder.path().join("source/plain")).unwrap();
    let sent = rig.send(&[rig.folder.path().join("source/plain")], &[]);
    sent.expect(1, &["refused"]);
    guest.stop();
    host.stop();
}

#[test]
fn what_is_named_may_be_a_link() {
    let rig = Rig::new();
    let (_host, _guest) = (rig.host(&[]), rig.guest(&[]));
    rig.source("real/file", b"x");
    let folder = rig.folder.path().join("source");
    symlink(folder.join("real"), folder.join("alias")).unwrap();
    symlink(folder.join("real/file"), folder.join("other")).unwrap();
    let sent = rig.send(&[folder.join("alias"), folder.join("other")], &[]);
    sent.expect(0, &["done", "done"]);
    rig.landed("alias/file", b"x");
    rig.landed("other", b"x");
}

/// A guest of version 1, or of others, is not asked, and that is said.
#[test]
fn a_guest_of_others_is_not_verified() {
    let rig = Rig::new();
    let host = rig.host(&[]);
    let stream = linkspan_sys::Stream::connect(&rig.socket).unwrap();
    let hello = [1, 0, 0, 0, 8, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0];
    rustix::io::write(stream.as_fd(), &hello).unwrap();
    let deadline = Some(Instant::now() + PATIENCE);
    wait_for(stream.as_fd(), Direction::Read, None, deadline).unwrap();
    let mut channel = [0; 72];
    let mut fds = Vec::new();
    let got = stream.receive(&mut channel, &mut fds, 8).unwrap();
    assert_eq!((got.bytes, fds.len(), channel[0]), (72, 3, 2));
    assert_eq!(channel[8..12], [1, 0, 0, 0], "version 1 is spoken");
    // The guest that serves it has no socket, as with the kernel's device.
    let shape = linkspan_vmbus::Shape::halves(
        u64::from_le_bytes(channel[48..56].try_into().unwrap()),
        4096,
    );
    let channel = Channel::guest(shape, fds).unwrap();
    let (serving, stop) = serve(&rig, channel);
    let folder = rig.folder.path().join("source/docs");
    rig.source("docs/file", b"x");
    fs::create_dir(folder.join("empty")).unwrap();
    let sent = rig.send(&[folder], &[]);
    sent.expect(1, &["no-folders", "done"]);
    assert_eq!(verified(&sent), [Some(false); 2]);
    assert!(
        sent.said.contains("1 files are there but not verified"),
        "{}",
        sent.said
    );
    rig.landed("docs/file", b"x");
    stop.signal().unwrap();
    serving.join().unwrap();
    host.stop();
}

/// Serves a channel without a socket, until it is told to stop.
fn serve(rig: &Rig, channel: Channel) -> (JoinHandle<()>, EventFd) {
    let stop = EventFd::new().unwrap();
    let (root, cancel) = (rig.root.clone(), stop.try_clone().unwrap());
    let serving = std::thread::spawn(move || {
        let policy = Policy {
            roots: Roots::new(&[root.to_str().unwrap()]).unwrap(),
            max_size: 1 << 30,
        };
        let options = TreeOptions {
            overwrite: true,
            ..TreeOptions::default()
        };
        let tree = Tree::new(&[&root], options).unwrap();
        drop(Guest::new(policy, tree).serve(channel, None, cancel.as_fd()));
    });
    (serving, stop)
}

/// A guest that is asked, and answers as the test wants.
struct Liar {
    framed: Framed,
    _serving: JoinHandle<()>,
    stop: EventFd,
}

impl Liar {
    fn join(rig: &Rig) -> Self {
        let mut framed = Framed::connect(&rig.socket, Role::Guest).unwrap();
        let never = EventFd::new().unwrap();
        let deadline = Some(Instant::now() + PATIENCE);
        let (frame, fds) = framed.await_frame(never.as_fd(), deadline).unwrap();
        let Frame::Channel { shape, version, .. } = frame else {
            panic!("{frame:?}");
        };
        assert_eq!(version, VERSION);
        let channel = Channel::guest(shape, fds).unwrap();
        let (serving, stop) = serve(rig, channel);
        Self {
            framed,
            _serving: serving,
            stop,
        }
    }

    fn asked(&mut self) -> Frame {
        let never = EventFd::new().unwrap();
        let deadline = Some(Instant::now() + PATIENCE);
        self.framed.await_frame(never.as_fd(), deadline).unwrap().0
    }

    fn say(&mut self, frame: &Frame) {
        self.framed.say(frame, &[]).unwrap();
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.signal().unwrap();
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest {
        status: Status::OK,
        len: u32::try_from(bytes.len()).unwrap(),
        size: bytes.len() as u64,
        sha256: Sha256::digest(bytes).into(),
    }
}

#[test]
fn a_file_that_differs_is_named_with_the_place() {
    let rig = Rig::new();
    let mut host = rig.host(&[]);
    let bytes = pattern(100_000);
    let source = rig.source("file", &bytes);
    let right = digest(&bytes);
    let mut changed = bytes.clone();
    changed[77_777] ^= 1;
    let answers = [
        (Frame::Digest(right), "done", ""),
        (Frame::Digest(digest(&changed)), "differs", "from byte 0 on"),
        (
            Frame::Digest(Digest { size: 1, ..right }),
            "differs",
            "from byte 0 on",
        ),
        (
            Frame::Digest(Digest { len: 1, ..right }),
            "differs",
            "from byte 0 on",
        ),
        (
            Frame::Digest(Digest {
                status: Status::FAIL,
                ..right
            }),
            "unread",
            "could not read it back: failed",
        ),
    ];
    let mut liar = Liar::join(&rig);
    for (answer, outcome, said) in answers {
        let sending = rig.send_command(&[&source], &["--overwrite"]);
        let sending = spawn(sending);
        assert_eq!(
            liar.asked(),
            Frame::Verify {
                offset: 0,
                len: 100_000
            }
        );
        liar.say(&answer);
        let sent = Sent::of(sending.wait_with_output().unwrap());
        sent.expect(i32::from(outcome != "done"), &[outcome]);
        assert!(sent.said.contains(said), "{}", sent.said);
    }
    // One that does not answer is given up, and so is one that answers what was not asked.
    let sending = spawn(rig.send_command(&[&source], &["--overwrite", "--timeout", "1"]));
    liar.asked();
    let sent = Sent::of(sending.wait_with_output().unwrap());
    sent.expect(3, &["silent"]);
    host.event("left");
    let mut liar = Liar::join(&rig);
    let sending = spawn(rig.send_command(&[&source], &["--overwrite"]));
    liar.asked();
    let made = [12, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
    rustix::io::write(liar.framed.as_fd(), &made).unwrap();
    let sent = Sent::of(sending.wait_with_output().unwrap());
    sent.expect(3, &["lost"]);
    let left = host.event("left");
    assert!(left["reason"].as_str().unwrap().contains("MADE"), "{left}");
    host.stop();
}

#[test]
fn a_guest_that_leaves_while_it_reads_back_has_the_file() {
    let rig = Rig::new();
    let mut host = rig.host(&[]);
    let source = rig.source("file", b"1");
    let mut liar = Liar::join(&rig);
    let sending = spawn(rig.send_command(&[&source], &[]));
    liar.asked();
    drop(liar);
    let sent = Sent::of(sending.wait_with_output().unwrap());
    sent.expect(0, &["done"]);
    assert!(sent.said.contains("not verified"), "{}", sent.said);
    host.event("left");
    host.stop();
}

fn spawn(mut command: Command) -> std::process::Child {
    let command = command.stdout(std::process::Stdio::piped());
    command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_signal_while_a_file_is_read_back_ends_with_what_is_there() {
    let rig = Rig::new();
    let host = rig.host(&[]);
    let (first, second) = (rig.source("a", b"1"), rig.source("b", b"2"));
    let mut liar = Liar::join(&rig);
    let sending = spawn(rig.send_command(&[&first, &second], &[]));
    liar.asked();
    kill_process(Pid::from_child(&sending), Signal::INT).unwrap();
    // Whichever of both comes first, the signal has come before the second file.
    liar.say(&Frame::Digest(digest(b"1")));
    let sent = Sent::of(sending.wait_with_output().unwrap());
    // The file is there; the other one was not tried.
    sent.expect(1, &["done"]);
    assert!(sent.said.contains("1 more files were not tried"));
    assert_eq!(rig.names(), ["a"]);
    host.stop();
}

#[test]
fn a_second_signal_does_not_wait() {
    let rig = Rig::new();
    let host = rig.host(&[]);
    let source = rig.source("a", b"1");
    let mut liar = Liar::join(&rig);
    let mut sending = spawn(rig.send_command(&[&source], &[]));
    liar.asked();
    // Until it has ended, which the first one alone does not bring about.
    let ended = || {
        let _ = kill_process(Pid::from_child(&sending), Signal::INT);
        sending.try_wait().unwrap().is_some()
    };
    assert!(linkspan_testkit::census::settled(ended));
    // The second one ends it as signals do, and the host takes that as it is.
    let status = sending.wait().unwrap();
    assert_eq!(status.code(), None);
    liar.say(&Frame::Digest(digest(b"1")));
    host.stop();
}

/// Whatever comes last, the guest's negotiation or the file, the file begins.
#[test]
fn a_file_may_come_before_the_guest_is_ready() {
    let rig = Rig::new();
    let host = rig.host(&[]);
    let deadline = Some(Instant::now() + PATIENCE);
    let never = EventFd::new().unwrap();
    let mut guest = Framed::connect_with(&rig.socket, &Frame::hello_unasked()).unwrap();
    let (frame, fds) = guest.await_frame(never.as_fd(), deadline).unwrap();
    let Frame::Channel { shape, .. } = frame else {
        panic!("{frame:?}");
    };
    let mut sender = Framed::connect(&rig.socket, Role::Sender).unwrap();
    sender.await_frame(never.as_fd(), deadline).unwrap();
    let request = Request {
        file: "x".into(),
        path: rig.root.to_str().unwrap().into(),
        overwrite: false,
        create_path: false,
        size: 1,
        patience: 60_000,
        verify: true,
        folder: false,
    };
    let file = File::open(rig.source("x", b"x")).unwrap();
    sender.say(&Frame::Send(request), &[file.as_fd()]).unwrap();
    // Whoever comes after it and is answered shows that the host has it.
    let mut next = Framed::connect(&rig.socket, Role::Sender).unwrap();
    next.await_frame(never.as_fd(), deadline).unwrap();
    let (serving, stop) = serve(&rig, Channel::guest(shape, fds).unwrap());
    let (frame, _) = sender.await_frame(never.as_fd(), deadline).unwrap();
    assert_eq!(frame, Frame::Done(Outcome::Done));
    stop.signal().unwrap();
    serving.join().unwrap();
    host.stop();
}

/// The host reads what the guest reads; it asks for no more than it was given.
#[test]
fn what_a_sender_gives_as_a_folder_must_be_one() {
    let rig = Rig::new();
    let (host, _guest) = (rig.host(&[]), rig.guest(&[]));
    let mut framed = Framed::connect(&rig.socket, Role::Sender).unwrap();
    let never = EventFd::new().unwrap();
    let deadline = Some(Instant::now() + PATIENCE);
    framed.await_frame(never.as_fd(), deadline).unwrap();
    let mut ask = |folder: bool, file: File, name: &str| {
        let request = Request {
            file: name.into(),
            path: rig.root.to_str().unwrap().into(),
            overwrite: false,
            create_path: false,
            size: 0,
            patience: 10_000,
            verify: true,
            folder,
        };
        framed.say(&Frame::Send(request), &[file.as_fd()]).unwrap();
        match framed.await_frame(never.as_fd(), deadline).unwrap().0 {
            Frame::Done(outcome) => outcome,
            frame => panic!("{frame:?}"),
        }
    };
    let (folder, file) = (rig.folder.path(), rig.source("f", b""));
    let open = |path: &Path| File::open(path).unwrap();
    assert_eq!(ask(true, open(&file), "x"), Outcome::Source);
    assert_eq!(ask(false, open(folder), "x"), Outcome::Source);
    assert_eq!(ask(true, open(folder), "x"), Outcome::Done);
    assert_eq!(ask(false, open(&file), "y"), Outcome::Verified);
    for name in ["", "..", "a/b", "a\\b", "."] {
        let refused = ask(true, open(folder), name);
        assert!(matches!(refused, Outcome::Refused { .. }), "{name}");
    }
    assert_eq!(rig.names(), ["x", "y"]);
    host.stop();
}

#[test]
fn a_host_of_files_has_no_other_device() {
    let rig = Rig::new();
    let host = rig.host(&[]);
    let mut framed = Framed::connect_with(&rig.socket, &Frame::hello_of(&HEARTBEAT)).unwrap();
    let never = EventFd::new().unwrap();
    let deadline = Some(Instant::now() + PATIENCE);
    let (frame, _) = framed.await_frame(never.as_fd(), deadline).unwrap();
    assert_eq!(frame, Frame::Refused(Reason::Interface));
    let closed = framed.await_frame(never.as_fd(), deadline);
    assert!(matches!(closed, Err(FramedError::Closed)));
    assert_ne!(FILE_COPY.interface, HEARTBEAT.interface);
    host.stop();
}

#[test]
fn the_demonstration_copies_a_folder() {
    let rig = Rig::new();
    rig.source("docs/a", &pattern(10_000));
    rig.source("docs/b/c", b"x");
    let docs = rig.folder.path().join("source/docs");
    let to = rig.folder.path().join("not/yet");
    let demo = |more: &[&str]| {
        let mut command = program();
        command.args(["demo", "--json", "--to"]).arg(&to);
        Sent::of(command.arg(&docs).args(more).output().unwrap())
    };
    let sent = demo(&[]);
    sent.expect(0, &["done", "done"]);
    assert_eq!(verified(&sent), [Some(true); 2]);
    assert_eq!(fs::read(to.join("docs/a")).unwrap(), pattern(10_000));
    assert_eq!(fs::read(to.join("docs/b/c")).unwrap(), b"x");
    demo(&[]).expect(1, &["refused", "refused"]);
    demo(&["--overwrite"]).expect(0, &["done", "done"]);
    // Both ends are gone: the numbers that it told are nobody's.
    let numbers: Vec<&str> = sent
        .said
        .split(|c: char| !c.is_ascii_digit())
        .filter(|word| !word.is_empty())
        .collect();
    let socket = |id: &&str| {
        let line = fs::read_to_string(format!("/proc/{id}/cmdline"));
        line.is_ok_and(|line| line.contains("fcopy.sock"))
    };
    assert!(!numbers.iter().take(2).any(socket), "{}", sent.said);
}

/// The command that the README and the page on file copy show, in the place they mean.
#[test]
fn the_demonstration_runs_as_it_is_shown() {
    let rig = Rig::new();
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (page, before) in [
        ("README.md", "cargo run --release -p linkspan -- "),
        ("docs/fcopy.md", "linkspan "),
    ] {
        let text = fs::read_to_string(project.join(page)).unwrap();
        let begin = format!("{before}fcopy demo ");
        let line = text.lines().find(|line| line.starts_with(&begin));
        let shown = line.unwrap_or_else(|| panic!("{page} does not show it"));
        let words = shown[before.len()..].split('#').next().unwrap();
        let to = rig.folder.path().join(page.replace('/', "-"));
        let words = words.split_whitespace().map(|word| match word {
            "/tmp/in" => to.to_str().unwrap(),
            word => word,
        });
        let mut demo = Command::new(env!("CARGO_BIN_EXE_linkspan"));
        let demo = demo.args(words).current_dir(&project);
        let output = demo.env("LINKSPAN_LOG", "off").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let files = same(&project.join("docs"), &to.join("docs"));
        assert!(files > 10, "{page}");
        let said = String::from_utf8_lossy(&output.stderr);
        let told = said.contains(&format!("{files} files arrived, "));
        assert!(
            told && said.contains(", read back and compared\n"),
            "{said}"
        );
    }
}

/// How many files there are below a folder, all of which are there as well.
fn same(here: &Path, there: &Path) -> usize {
    let entries = fs::read_dir(here).unwrap().map(|entry| entry.unwrap());
    let files = entries.map(|entry| {
        let (here, there) = (entry.path(), there.join(entry.file_name()));
        if here.is_dir() {
            return same(&here, &there);
        }
        let same = fs::read(&here).unwrap() == fs::read(&there).unwrap();
        assert!(same, "{}", there.display());
        1
    });
    files.sum()
}
