//! `linkspan fcopy` as people run it: guest, host and sender, each its own process.

mod hostile;
mod options;
mod patience;
mod rig;
mod verify;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use linkspan_testkit::census::settled;
use rustix::process::{Pid, Signal, kill_process};

use rig::{Program, Rig, Sent, pattern, program};

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
    assert!(sent.said.contains("link: links in folders are not sent"));
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
