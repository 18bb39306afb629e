//! What is in packaging/: the unit, the rule and the settings fit each other, the
//! program, and what systemd makes of them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use linkspan_vmbus::ic::FILE_COPY;
use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging")
}

fn read(name: &str) -> String {
    fs::read_to_string(packaging().join(name)).unwrap()
}

fn skip(test: &str, why: &str) {
    // Not by `eprintln`, which the test harness captures.
    drop(writeln!(io::stderr().lock(), "SKIP {test}: {why}"));
}

/// What follows this key, line by line.
fn values(unit: &str, key: &str) -> Vec<String> {
    let prefix = format!("{key}=");
    let values = unit.lines().filter_map(|line| line.strip_prefix(&prefix));
    values.map(str::to_owned).collect()
}

/// The output of systemd-analyze; `None` where there is none.
fn analyze(words: &[&str]) -> Option<Output> {
    let mut command = Command::new("systemd-analyze");
    command.args(words).stdin(Stdio::null()).output().ok()
}

/// A unit, with the program that was built in place of the one that is installed.
fn unit(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, read(name).replace("/usr/bin/linkspan", PROGRAM)).unwrap();
    path
}

#[test]
fn unit_rule_and_settings_fit_each_other() {
    let (unit, rule) = (
        read("linkspan-fcopy.service"),
        read("60-linkspan-fcopy.rules"),
    );
    let instance = FILE_COPY.instance.unwrap();
    let conditions = values(&unit, "ConditionPathExists");
    assert_eq!(
        conditions,
        [
            format!("/sys/bus/vmbus/devices/{instance}"),
            "/etc/linkspan/fcopy.toml".into()
        ]
    );
    let class = format!("ATTR{{class_id}}==\"{{{}}}\"", FILE_COPY.interface);
    assert!(rule.contains(&class), "{rule}");
    assert!(rule.contains("ENV{SYSTEMD_WANTS}+=\"linkspan-fcopy.service\""));
    // A service that is skipped has ended Linux's daemon all the same.
    assert!(
        rule.contains(&format!("TEST==\"{}\"", conditions[1])),
        "{rule}"
    );
    // Where the settings say that files go is where the unit lets them.
    let state = values(&unit, "StateDirectory").remove(0);
    let settings = read("fcopy.toml");
    assert!(settings.contains(&format!("\nroot = \"/var/lib/{state}\"\n")));
}

/// One program can have the device; distributions give the unit of Linux's daemon these names.
#[test]
fn the_unit_does_not_run_beside_linux_s_daemon() {
    let unit = read("linkspan-fcopy.service");
    let conflicts = values(&unit, "Conflicts");
    assert_eq!(conflicts.len(), 1, "{conflicts:?}");
    let mut names: Vec<&str> = conflicts[0].split_whitespace().collect();
    names.sort_unstable();
    let expected = [
        "hv-fcopy-daemon.service",
        "hv_fcopy_daemon.service",
        "hv_fcopy_uio_daemon.service",
        "hyperv-daemons.hv-fcopy-daemon.service",
        "hypervfcopyd.service",
    ];
    assert_eq!(names, expected);
    // It is said in the section that systemd reads it in.
    let head = unit.split_once("\n[Service]").unwrap().0;
    assert!(head.contains("[Unit]\n") && head.contains("\nConflicts="));
}

/// What is commented out is right as well.
#[test]
fn the_settings_are_read_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("fcopy.toml");
    let key = |line: &str| {
        let word = line.strip_prefix("# ")?.split(" = ").next()?;
        let one = word
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        (one && line.contains(" = ")).then(|| line[2..].to_owned())
    };
    let text: Vec<String> = read("fcopy.toml")
        .lines()
        .map(|line| key(line).unwrap_or_else(|| line.to_owned()))
        .collect();
    let text = text.join("\n");
    assert_eq!(text.lines().filter(|line| line.contains(" = ")).count(), 5);
    let text = text.replace("me:users", "0:0");
    let missing = dir.path().join("missing");
    let text = text.replace("/var/lib/linkspan-fcopy", missing.to_str().unwrap());
    fs::write(&config, text).unwrap();
    let mut guest = Command::new(PROGRAM);
    let output = guest
        .args(["fcopy", "guest", "--config"])
        .arg(&config)
        .output();
    let output = output.unwrap();
    // All of it is understood, and the folder is not there.
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("cannot open the folder"), "{said}");
}

/// The settings of planes lie where the unit looks, and sockets where it makes room.
#[test]
fn unit_of_planes_and_its_settings_fit_each_other() {
    let unit = read("linkspan.service");
    let start = values(&unit, "ExecStart").remove(0);
    let (_, file) = start.split_once("/usr/bin/linkspan up ").unwrap();
    assert_eq!(values(&unit, "ConditionPathExists"), [file]);
    let folders = ["RuntimeDirectory", "StateDirectory"];
    let folders = folders.map(|key| values(&unit, key).remove(0));
    let settings = read("plane.toml");
    let control = format!("\ncontrol = \"/run/{}/control.sock\"\n", folders[0]);
    assert!(settings.contains(&control));
    assert!(settings.contains(&format!("/var/lib/{}/disk.img", folders[1])));
}

/// The settings as they are have no link, and with all that is commented out they have two.
#[test]
fn settings_of_planes_and_their_examples_make_sense() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let check = |name: &str, text: &str, status: i32| {
        let file = dir.path().join(name);
        let text = text.replace("/var/lib/linkspan", folder);
        fs::write(&file, text.replace("/run/linkspan", folder)).unwrap();
        let mut command = Command::new(PROGRAM);
        let output = command.args(["plane", "check"]).arg(&file).output();
        let output = output.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let said = said + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{name}: {said}");
        said
    };
    let text = read("plane.toml");
    let said = check("as-it-is", &text, 0);
    assert!(said.contains("there are no links yet"), "{said}");
    fs::write(dir.path().join("disk.img"), vec![0; 512]).unwrap();
    let (head, examples) = text.split_once("\n[plane]").unwrap();
    let example = |line: &str| {
        let line = line.strip_prefix("# ").unwrap_or(line);
        (line.contains(" = ") || line.starts_with('[')).then(|| line.to_owned())
    };
    let lines: Vec<String> = examples.lines().filter_map(example).collect();
    let all = format!("{head}\n[plane]\n{}\n", lines.join("\n"));
    let all = check("all", &all, 0);
    assert!(
        all.contains("[link.\"disk\"]") && all.contains("[link.\"lan\"]"),
        "{all}"
    );
}

#[test]
fn systemd_takes_the_unit_of_planes() {
    let dir = tempfile::tempdir().unwrap();
    let unit = unit(dir.path(), "linkspan.service");
    let Some(verified) = analyze(&["verify", "--man=no", unit.to_str().unwrap()]) else {
        let why = "there is no systemd-analyze, Debian package systemd";
        return skip("systemd_takes_the_unit_of_planes", why);
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success(), "{said}");
    assert!(!said.contains("linkspan"), "{said}");
}

#[test]
fn systemd_takes_the_unit_and_finds_little_exposed() {
    let test = "systemd_takes_the_unit_and_finds_little_exposed";
    let dir = tempfile::tempdir().unwrap();
    let unit = unit(dir.path(), "linkspan-fcopy.service");
    let unit = unit.to_str().unwrap();
    let Some(verified) = analyze(&["verify", "--man=no", unit]) else {
        return skip(test, "there is no systemd-analyze, Debian package systemd");
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success(), "{said}");
    assert!(!said.contains("linkspan"), "{said}");
    // Of 10, least is best; what runs as root and may write somewhere has not 0.
    let security = analyze(&[
        "security",
        "--offline=true",
        "--threshold=20",
        "--no-pager",
        unit,
    ]);
    let security = security.unwrap();
    let said = String::from_utf8_lossy(&security.stdout);
    assert!(security.status.success(), "{said}");
}

/// The system calls of a filter's words, as systemd has them.
fn expand(words: &str) -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    for word in words.split_whitespace() {
        if !word.starts_with('@') {
            calls.insert(word.to_owned());
            continue;
        }
        let output = analyze(&["syscall-filter", "--no-pager", word]).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let inner: Vec<&str> = text
            .lines()
            .skip(1)
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        calls.extend(expand(&inner.join(" ")));
    }
    calls
}

/// The system calls that the guest makes while it takes a file.
fn called(dir: &Path) -> BTreeSet<String> {
    let (socket, trace, inbox) = (dir.join("s"), dir.join("trace"), dir.join("in"));
    fs::create_dir(&inbox).unwrap();
    let source = dir.join("file");
    fs::write(&source, vec![7; 100_000]).unwrap();
    let mut host = Command::new(PROGRAM);
    host.args(["fcopy", "host", "--json", "--control"])
        .arg(&socket);
    let mut host = host.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(host.stdout.take().unwrap());
    lines.read_line(&mut String::new()).unwrap();
    let mut guest = Command::new("strace");
    guest.args(["-f", "-qq", "-o"]).arg(&trace).arg(PROGRAM);
    guest.args(["fcopy", "guest", "--owner", "0:0", "--overwrite", "--root"]);
    guest.arg(&inbox).arg("--connect").arg(&socket);
    let mut guest = guest.stdin(Stdio::null()).spawn().unwrap();
    // Twice: made, and replaced.
    for option in ["--create-path", "--overwrite"] {
        let mut send = Command::new(PROGRAM);
        send.args(["fcopy", "send", option, "--control"])
            .arg(&socket);
        send.arg("--to").arg(inbox.join("new/folder/")).arg(&source);
        assert!(send.status().unwrap().success());
    }
    // The guest's own number is the first word of what strace writes.
    let text = fs::read_to_string(&trace).unwrap();
    let id = text.split_whitespace().next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
    assert!(guest.wait().unwrap().success());
    kill_process(Pid::from_child(&host), Signal::TERM).unwrap();
    host.wait().unwrap();
    let text = fs::read_to_string(&trace).unwrap();
    // A number of a process, and a call.
    let calls = text.lines().filter_map(|line| {
        let (_, call) = line.split_once(' ')?;
        let (name, _) = call.trim_start().split_once('(')?;
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        name.bytes().all(word).then(|| name.to_owned())
    });
    calls.collect()
}

#[test]
fn what_the_guest_calls_is_what_its_unit_allows() {
    let test = "what_the_guest_calls_is_what_its_unit_allows";
    if analyze(&["--version"]).is_none() {
        return skip(test, "there is no systemd-analyze, Debian package systemd");
    }
    if Command::new("strace").arg("-V").output().is_err() {
        return skip(test, "there is no strace");
    }
    let mut allowed = expand("@default");
    for words in values(&read("linkspan-fcopy.service"), "SystemCallFilter") {
        match words.strip_prefix('~') {
            Some(words) => allowed = &allowed - &expand(words),
            None => allowed.extend(expand(&words)),
        }
    }
    assert!(
        allowed.contains("openat2") && !allowed.contains("mount"),
        "{allowed:?}"
    );
    let dir = tempfile::tempdir().unwrap();
    let called = called(dir.path());
    for call in [
        "openat2",
        "landlock_restrict_self",
        "pwrite64",
        "fdatasync",
        "linkat",
        "fchown",
    ] {
        assert!(called.contains(call), "{call}: {called:?}");
    }
    let refused: Vec<&String> = called.difference(&allowed).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

/// What a file of the project says of processors, comments left out.
fn processors(path: &Path, found: &mut Vec<String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            processors(&entry.unwrap().path(), found);
        }
        return;
    }
    let text = fs::read_to_string(path).unwrap();
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    for line in code {
        let words = ["target_arch", "core::arch", "std::arch", "asm!", "x86"];
        if words.iter().any(|word| line.contains(word)) {
            found.push(format!("{}: {line}", path.display()));
        }
    }
}

/// Known bug 28 of Linux's daemon: it was not built for ARM64.
#[test]
fn no_part_of_file_copy_depends_on_the_processor() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for part in [
        "linkspan-vmbus/src",
        "linkspan-engine/src/vmbus",
        "linkspan-backends/src/fcopy",
        "linkspan-backends/src/uio",
        "linkspan-sys/src/uio",
        "linkspan-sys/src/sandbox.rs",
        "linkspan/src/fcopy",
    ] {
        processors(&crates.join(part), &mut found);
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn pages_and_completions_are_printed() {
    let run = |words: &[&str]| {
        let output = Command::new(PROGRAM).args(words).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, page) = run(&["man", "driver", "blk"]);
    assert_eq!(code, Some(0));
    assert!(page.contains(".TH linkspan-driver-blk 1"), "{page}");
    assert!(page.contains("\\-\\-socket\\-path"), "{page}");
    assert_eq!(run(&["man", "nothing"]), (Some(2), String::new()));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man1");
    assert_eq!(run(&["man", "--out", out.to_str().unwrap()]).0, Some(0));
    assert!(fs::read_to_string(out.join("linkspan-driver-blk.1")).unwrap() == page);
    for (shell, word) in [
        ("bash", "complete -F _linkspan"),
        ("zsh", "#compdef linkspan"),
        ("fish", "complete -c linkspan"),
    ] {
        let (code, text) = run(&["completions", shell]);
        assert!(code == Some(0) && text.contains(word), "{shell}: {text}");
        assert!(text.contains("smbdirect"), "{shell}");
    }
}
