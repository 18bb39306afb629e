//! Each program that serves has its sandbox once it does, in all its threads, unless it is
//! told not to.

use std::fs;
use std::path::Path;

use linkspan_testkit::census::settled;
use rustix::process::Signal;

mod programs;

use programs::Program;

/// What all threads of a process have in common of a line of their status; `None` if they
/// differ, or have none.
fn status(id: u32, name: &str) -> Option<String> {
    let mut found: Option<String> = None;
    for task in fs::read_dir(format!("/proc/{id}/task")).ok()? {
        // It may have ended by now.
        let Ok(status) = fs::read_to_string(task.ok()?.path().join("status")) else {
            continue;
        };
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let value = line.trim_start_matches(':').trim().to_owned();
        if found.get_or_insert_with(|| value.clone()) != &value {
            return None;
        }
    }
    found
}

/// Waits until a program has a filter of system calls, then ends it.
#[track_caller]
fn is_sealed(program: Program) {
    let id = program.id();
    let mut sealed = || status(id, "Seccomp").as_deref() == Some("2");
    let sealed = (0..6).any(|_| settled(&mut sealed));
    assert!(sealed, "{id}: {}", program.complained());
    assert_eq!(status(id, "NoNewPrivs").as_deref(), Some("1"));
    program.signal(Signal::TERM);
    let (code, _, errors) = program.end();
    assert_eq!(code, Some(0), "{errors}");
}

fn words(dir: &Path, line: &str) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    line.split(' ')
        .map(|word| word.replace("DIR", dir))
        .collect()
}

/// Starts a program, with DIR for a folder.
fn start(dir: &Path, line: &str) -> Program {
    let words = words(dir, line);
    Program::start(&words[0], &words[1..])
}

#[test]
fn who_serves_has_given_up_system_calls() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), vec![0; 1 << 20]).unwrap();
    fs::create_dir(dir.path().join("inbox")).unwrap();
    for line in [
        "blk --socket-path DIR/1 --image DIR/disk --json",
        "blk --socket-path DIR/2 --image DIR/disk --io threads --json",
        "blk --socket-path DIR/3 --image mem:1M --json",
        "net --port vhost-user:DIR/4 --port responder --json",
        "gpu --socket-path DIR/5 --display DIR/screen --json",
        "display serve --socket-path DIR/6 --json",
        "fcopy host --control DIR/7 --json",
        "ic host --control DIR/8 --json",
        "smbdirect listen --addr 127.0.0.1:0 --control DIR/9 --json",
        "smb gateway --listen 127.0.0.1:0 --to 127.0.0.1:1 --json",
        "smb serve --share files=DIR/inbox --public --listen-tcp 127.0.0.1:0 --json",
    ] {
        is_sealed(start(dir.path(), line));
    }
}

/// Those that have to find somebody first.
#[test]
fn who_has_found_its_peer_has_given_up_system_calls() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("inbox")).unwrap();
    let host = start(dir.path(), "fcopy host --control DIR/host --json");
    let screen = start(dir.path(), "gpu --socket-path DIR/gpu --display DIR/screen");
    let there = |name| dir.path().join(name).exists();
    let mut both = || there("host") && there("screen");
    assert!((0..3).any(|_| settled(&mut both)));
    for line in [
        "fcopy guest --root DIR/inbox --connect DIR/host --json",
        "display vnc DIR/screen --listen 127.0.0.1:0 --json",
        "display watch DIR/screen --listen 127.0.0.1:0 --json",
    ] {
        is_sealed(start(dir.path(), line));
    }
    is_sealed(host);
    is_sealed(screen);
}

#[test]
fn who_is_told_not_to_gives_up_nothing_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let line = "blk --socket-path DIR/1 --image mem:1M --json --sandbox";
    let off = start(dir.path(), &format!("{line} off"));
    off.await_error("--sandbox off");
    let mut serves = || off.said().contains("listening");
    assert!((0..3).any(|_| settled(&mut serves)));
    assert_eq!(
        status(off.id(), "Seccomp"),
        status(std::process::id(), "Seccomp")
    );
    off.signal(Signal::TERM);
    assert_eq!(off.end().0, Some(0));

    let log = start(dir.path(), &format!("{line} log"));
    log.await_error("--sandbox log");
    is_sealed(log);

    let wrong = start(dir.path(), &format!("{line} perhaps"));
    assert_eq!(wrong.end().0, Some(2));
}
