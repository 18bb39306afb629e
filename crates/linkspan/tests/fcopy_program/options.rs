//! What the options of the guest do, and what a sender shows on a terminal.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{getegid, geteuid};
use tempfile::tempdir;

use crate::rig::{Program, Rig, Sent, pattern, program};

fn send(rig: &Rig, to: &str, source: &Path, options: &[&str]) -> Sent {
    let mut command = program();
    command.arg("send").arg("--control").arg(&rig.socket);
    command.args(["--json", "--to", to]).args(options);
    Sent::of(command.arg(source).output().unwrap())
}

/// Known bug 24 of Linux's daemon: files could be executed, were root's, and had what the
/// umask left.
#[test]
fn mode_and_owner_are_what_the_options_say_whatever_the_umask_is() {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    // Only root can give files away.
    let (user, group) = if user == 0 { (12, 34) } else { (user, group) };
    let owner = format!("{user}:{group}");
    let given = ["--mode", "640", "--owner", &owner];
    let own = (geteuid().as_raw(), getegid().as_raw());
    for (options, file, folder, whose) in [
        (&[][..], 0o644, 0o755, own),
        (&given, 0o640, 0o750, (user, group)),
    ] {
        let rig = Rig::new();
        let _host = rig.host(&[]);
        let guest = rig.guest_command(options);
        let mut masked = Command::new("sh");
        masked.args(["-c", "umask 027; exec \"$0\" \"$@\""]);
        masked.arg(guest.get_program()).args(guest.get_args());
        masked.env("LINKSPAN_LOG", "off");
        let mut guest = Program::start(masked);
        guest.event("joined");
        rig.source("docs/inner/file", &pattern(10_000));
        rig.send(&[rig.folder.path().join("source/docs")], &[])
            .expect(0, &["done"]);
        for (name, mode) in [
            ("docs", folder),
            ("docs/inner", folder),
            ("docs/inner/file", file),
        ] {
            let meta = fs::metadata(rig.root.join(name)).unwrap();
            assert_eq!(meta.mode() & 0o7777, mode, "{name} {options:?}");
            assert_eq!((meta.uid(), meta.gid()), whose, "{name} {options:?}");
        }
        guest.stop();
    }
    let rig = Rig::new();
    for wrong in [
        ["--mode", "8"],
        ["--mode", "rw"],
        ["--owner", "nobody-of-this-name"],
        ["--max-size", "many"],
    ] {
        let output = rig.guest_command(&wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_file_of_the_largest_size_arrives_and_one_byte_more_is_refused() {
    let rig = Rig::new();
    let (_host, guest) = (rig.host(&[]), rig.guest(&["--max-size", "10K"]));
    let (most, more) = (
        rig.source("most", &pattern(10_240)),
        rig.source("more", &pattern(10_241)),
    );
    let sent = rig.send(&[most, more], &[]);
    sent.expect(1, &["done", "refused"]);
    assert!(sent.said.contains("the disk is full"), "{}", sent.said);
    assert_eq!(rig.names(), ["most"]);
    guest.stop();
}

#[test]
fn a_destination_is_in_one_of_several_roots_or_below_the_first() {
    let rig = Rig::new();
    let second = tempdir().unwrap();
    let other = second.path().to_str().unwrap();
    let _host = rig.host(&[]);
    let guest = rig.guest(&["--root", other]);
    let source = rig.source("file", b"x");
    let first = format!("{}/", rig.root.display());
    send(&rig, &first, &source, &[]).expect(0, &["done"]);
    send(&rig, &format!("{other}/"), &source, &[]).expect(0, &["done"]);
    // What is not absolute is below the first, and what is is never put below one.
    send(&rig, "new\\place/", &source, &["--create-path"]).expect(0, &["done"]);
    send(&rig, "/new/place/", &source, &["--create-path"]).expect(1, &["refused"]);
    rig.landed("file", b"x");
    rig.landed("new/place/file", b"x");
    assert_eq!(rig.names(), ["file", "new"]);
    assert_eq!(fs::read(second.path().join("file")).unwrap(), b"x");
    assert_eq!(fs::read_dir(second.path()).unwrap().count(), 1);
    guest.stop();
}

/// On a terminal of its own, which script(1) makes; Ctrl-C is typed there.
#[test]
fn a_terminal_sees_how_far_a_copy_is_and_takes_it_back_by_ctrl_c() {
    let rig = Rig::new();
    let (host, guest) = (rig.host(&[]), rig.guest(&[]));
    let huge = rig.source("huge", b"");
    let file = fs::File::options().write(true).open(&huge).unwrap();
    file.set_len(4 << 30).unwrap();
    let line = format!(
        "stty cols 100; exec '{}' fcopy send --control '{}' --to '{}' '{}'",
        env!("CARGO_BIN_EXE_linkspan"),
        rig.socket.display(),
        rig.root.display(),
        huge.display()
    );
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &line, "/dev/null"]);
    script.env("LINKSPAN_LOG", "off").env("TERM", "xterm");
    script.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = script.spawn().unwrap();
    let mut terminal = script.stdout.take().unwrap();
    let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
    let shown = |seen: &[u8], what: &str| String::from_utf8_lossy(seen).contains(what);
    // Some of it is done, at a rate, and some is left.
    while !(shown(&seen, "█")
        && shown(&seen, " MiB of 4.00 GiB, ")
        && shown(&seen, "iB/s, ")
        && shown(&seen, "s left"))
    {
        let len = terminal.read(&mut piece).unwrap();
        assert!(len > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..len]);
    }
    let mut keys = script.stdin.take().unwrap();
    keys.write_all(b"\x03").unwrap();
    terminal.read_to_end(&mut seen).unwrap();
    assert_eq!(script.wait().unwrap().code(), Some(1));
    assert!(
        shown(&seen, "huge: stopped"),
        "{}",
        String::from_utf8_lossy(&seen)
    );
    assert!(rig.names().is_empty());
    // Not a word of it where nobody looks.
    let small = rig.source("small", &pattern(9_000_000));
    let sent = rig.send(&[small], &[]);
    sent.expect(0, &["done"]);
    assert_eq!(sent.said, "");
    guest.stop();
    host.stop();
}
