//! `linkspan fcopy host -- COMMAND`: a program that sees the device as a kernel shows it.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

/// The exit status where something is missing on this machine.
const MISSING: i32 = 5;

fn host(dir: &Path, command: &[&str]) -> Command {
    let mut host = Command::new(PROGRAM);
    host.args(["fcopy", "host", "--json", "--control"]);
    host.arg(dir.join("s")).arg("--").args(command);
    host.stdin(Stdio::null());
    host
}

/// Whether a program can have the device here; otherwise a word.
fn able(test: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let output = host(dir.path(), &["true"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(MISSING) {
        assert!(said.contains("try: "), "{said}");
        // Not by `eprintln`, which the test harness captures.
        drop(writeln!(io::stderr().lock(), "SKIP {test}: {said}"));
        return false;
    }
    assert!(output.status.success(), "{said}");
    true
}

fn kill(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Reads what it prints until the guest has the channel; the reader keeps the pipe open.
fn joined(host: &mut Child) -> impl Sized + use<> {
    let mut lines = BufReader::new(host.stdout.take().unwrap()).lines();
    let joined = lines.any(|line| line.unwrap().contains("\"joined\""));
    assert!(joined, "the program did not open the device");
    lines
}

#[test]
fn the_host_ends_with_the_program_and_with_its_status() {
    if !able("the_host_ends_with_the_program_and_with_its_status") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (script, code) in [("exit 0", 0), ("exit 9", 9), ("kill -TERM $$", 143)] {
        let mut host = host(dir.path(), &["sh", "-c", script]);
        let output = host.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{script}: {output:?}");
    }
}

#[test]
fn our_guest_takes_files_from_the_device_and_ends_by_a_signal() {
    if !able("our_guest_takes_files_from_the_device_and_ends_by_a_signal") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (inbox, source) = (dir.path().join("in"), dir.path().join("naïve-日本.bin"));
    fs::create_dir(&inbox).unwrap();
    let data: Vec<u8> = (0..1_000_000_u32)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    fs::write(&source, &data).unwrap();
    let root = inbox.to_str().unwrap();
    let guest = [PROGRAM, "fcopy", "guest", "--root", root];
    let mut host = host(dir.path(), &guest)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = joined(&mut host);
    let mut send = Command::new(PROGRAM);
    send.args(["fcopy", "send", "--control"])
        .arg(dir.path().join("s"));
    let sent = send.arg(&source).arg("--to").arg(&inbox).output().unwrap();
    assert!(sent.status.success(), "{sent:?}");
    assert!(fs::read(inbox.join("naïve-日本.bin")).unwrap() == data);
    kill(&host, Signal::TERM);
    assert!(host.wait().unwrap().success());
    drop(lines);
}

#[test]
fn a_guest_that_stops_while_the_ring_is_full_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (inbox, source, socket) = (
        dir.path().join("in"),
        dir.path().join("large"),
        dir.path().join("s"),
    );
    fs::create_dir(&inbox).unwrap();
    fs::File::create(&source).unwrap().set_len(1 << 29).unwrap();
    let ours = |words: &[&str], option: &str| {
        let mut command = Command::new(PROGRAM);
        command.arg("fcopy").args(words).arg(option).arg(&socket);
        command.stdin(Stdio::null());
        command
    };
    let mut host = ours(&["host", "--json"], "--control");
    let mut host = host.stdout(Stdio::piped()).spawn().unwrap();
    let root = inbox.to_str().unwrap();
    let mut guest = ours(&["guest", "--root", root], "--connect");
    let mut guest = guest.spawn().unwrap();
    let lines = joined(&mut host);
    let mut send = ours(&["send", "--timeout", "1"], "--control");
    let mut send = send.arg(&source).args(["--to", root]).spawn().unwrap();
    let wrote = || {
        let counts = fs::read_to_string(format!("/proc/{}/io", guest.id())).unwrap();
        let wrote = counts.lines().find_map(|line| line.strip_prefix("wchar: "));
        wrote.unwrap().parse::<u64>().unwrap()
    };
    while wrote() < 1 << 20 {
        assert!(send.try_wait().unwrap().is_none(), "it ended early");
    }
    kill(&guest, Signal::STOP);
    assert_eq!(send.wait().unwrap().code(), Some(3));
    guest.kill().unwrap();
    guest.wait().unwrap();
    kill(&host, Signal::TERM);
    assert!(host.wait().unwrap().success());
    drop(lines);
}

#[test]
fn linux_s_daemon_takes_a_folder() {
    let test = "linux_s_daemon_takes_a_folder";
    let Some(daemon) = std::env::var_os("LINKSPAN_FCOPY_DAEMON") else {
        let why = "Linux's daemon is not there; cargo xtask test builds it";
        drop(writeln!(io::stderr().lock(), "SKIP {test}: {why}"));
        return;
    };
    if !able(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (inbox, source) = (dir.path().join("in"), dir.path().join("docs"));
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::create_dir(&inbox).unwrap();
    let data: Vec<u8> = (0..300_000_u32)
        .map(|at| u8::try_from(at % 241).unwrap())
        .collect();
    for name in ["a", "sub/b"] {
        fs::write(source.join(name), &data).unwrap();
    }
    let daemon = [daemon.to_str().unwrap(), "-n"];
    let mut host = host(dir.path(), &daemon)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = joined(&mut host);
    let mut send = Command::new(PROGRAM);
    send.args(["fcopy", "send", "--control"])
        .arg(dir.path().join("s"));
    // It makes folders only if the destination ends with a slash.
    let to = format!("{}/", inbox.display());
    let sent = send.arg(&source).args(["--to", &to]).output().unwrap();
    assert!(sent.status.success(), "{sent:?}");
    for name in ["a", "sub/b"] {
        assert!(fs::read(inbox.join("docs").join(name)).unwrap() == data);
    }
    kill(&host, Signal::TERM);
    assert_eq!(host.wait().unwrap().code(), Some(143));
    drop(lines);
}
