//! Our program under the name of Linux's daemon.
//!
//! On this machine where a program can have the device, and always in the lab.

//: about our program in the place of Linux's daemon of file copy
//: limit 240

mod fcopy_device;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use fcopy_device::{Machine, PROGRAM, RING, bytes, job};
use linkspan_testkit::{PATIENCE, VmbusHost};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tempfile::{TempDir, tempdir};

/// A folder with the daemon's name, settings, and where files go.
struct Rig {
    dir: TempDir,
    daemon: PathBuf,
    config: PathBuf,
    inbox: PathBuf,
}

impl Rig {
    fn new() -> Self {
        let dir = tempdir().unwrap();
        let daemon = dir.path().join("hv_fcopy_uio_daemon");
        symlink(PROGRAM, &daemon).unwrap();
        let (config, inbox) = (dir.path().join("fcopy.toml"), dir.path().join("in"));
        fs::create_dir(&inbox).unwrap();
        let text = format!("root = \"{}\"\nmode = \"600\"\n", inbox.display());
        fs::write(&config, text).unwrap();
        Self {
            dir,
            daemon,
            config,
            inbox,
        }
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(&self.daemon);
        command.args(words).stdin(Stdio::null()).output().unwrap()
    }

    fn config(&self) -> &str {
        self.config.to_str().unwrap()
    }
}

#[test]
fn it_has_the_options_of_linux_s_daemon() {
    let rig = Rig::new();
    for help in ["-h", "--help"] {
        let output = rig.run(&[help]);
        assert!(output.status.success());
        let said = String::from_utf8(output.stdout).unwrap();
        for word in ["-n, --no-daemon", "-h, --help", "/etc/linkspan/fcopy.toml"] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    assert_eq!(rig.run(&["-x"]).status.code(), Some(2));
    assert_eq!(rig.run(&["guest"]).status.code(), Some(2));
    // By its own name it is the program that it is.
    let output = Command::new(PROGRAM).arg("-n").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn what_is_wrong_is_told_before_it_leaves() {
    let rig = Rig::new();
    fs::write(&rig.config, "root = \"/tmp\"\nowners = \"me\"\n").unwrap();
    for words in [
        &["-n", "--config", rig.config()][..],
        &["--config", rig.config()],
    ] {
        let output = rig.run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        let line = format!("{}:2: unknown field `owners`", rig.config());
        assert!(said.contains(&line), "{said}");
    }
    let rig = Rig::new();
    fs::remove_dir(&rig.inbox).unwrap();
    let output = rig.run(&["--config", rig.config()]);
    assert_eq!(output.status.code(), Some(5));
    // No device, or the host's service is off: whatever is so here.
    let rig = Rig::new();
    if !fs::exists("/sys/bus/vmbus/devices/eb765408-105f-49b6-b4aa-c123b64d17d4").unwrap() {
        for words in [
            &["-n", "--config", rig.config()][..],
            &["--config", rig.config()],
        ] {
            let output = rig.run(words);
            assert!(matches!(output.status.code(), Some(3 | 5)), "{output:?}");
            assert!(String::from_utf8(output.stderr).unwrap().contains("try: "));
        }
    }
}

#[test]
fn in_the_foreground_it_takes_files_until_it_is_stopped() {
    let rig = Rig::new();
    let mut command = Command::new(&rig.daemon);
    command.args(["-n", "--config", rig.config()]);
    let test = "in_the_foreground_it_takes_files_until_it_is_stopped";
    let Some(machine) = Machine::start(test, VmbusHost::offer(RING), command, |_| {}) else {
        return;
    };
    let (mut host, data) = (machine.host(), bytes(20_000));
    let file = job("file", &rig.inbox, &data);
    machine.copy(&mut host, file, &data).unwrap();
    assert!(fs::read(rig.inbox.join("file")).unwrap() == data);
    machine.stop();
}

/// The process that runs this daemon, wherever it is now.
fn find(rig: &Rig) -> Option<Pid> {
    let path = rig.daemon.to_str().unwrap();
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let ours = line.split(|byte| *byte == 0).next() == Some(path.as_bytes());
        let id = entry.file_name().to_str()?.parse().ok()?;
        ours.then(|| Pid::from_raw(id)).flatten()
    })
}

#[test]
fn a_daemon_leaves_takes_files_and_says_so_to_the_log() {
    let rig = Rig::new();
    let (begin, end) = (rig.dir.path().join("begin"), rig.dir.path().join("end"));
    for fifo in [&begin, &end] {
        assert!(Command::new("mkfifo").arg(fifo).status().unwrap().success());
    }
    let script = format!(
        "cat {}; {} --config {} && echo left && cat {}",
        begin.display(),
        rig.daemon.display(),
        rig.config(),
        end.display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let test = "a_daemon_leaves_takes_files_and_says_so_to_the_log";
    let offer = VmbusHost::offer(RING);
    let Some(mut machine) = Machine::start(test, offer, command, |_| {}) else {
        return;
    };
    let place = machine.inside("/dev/log");
    drop(fs::remove_file(&place));
    let log = UnixDatagram::bind(&place).unwrap();
    log.set_read_timeout(Some(PATIENCE)).unwrap();
    drop(File::options().write(true).open(&begin).unwrap());
    assert_eq!(machine.line().as_deref(), Some("left"));
    let daemon = find(&rig).expect("it runs");
    let mut line = [0; 1024];
    let len = log.recv(&mut line).unwrap();
    let said = String::from_utf8_lossy(&line[..len]);
    let id = daemon.as_raw_pid();
    assert_eq!(said, format!("<30>hv_fcopy_uio_daemon[{id}]: started"));
    let (mut host, data) = (machine.host(), bytes(20_000));
    let file = job("file", &rig.inbox, &data);
    machine.copy(&mut host, file, &data).unwrap();
    let pidfd = pidfd_open(daemon, PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&pidfd, Signal::TERM).unwrap();
    let mut fds = [rustix::event::PollFd::new(
        &pidfd,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut fds, None).unwrap();
    drop(File::options().write(true).open(&end).unwrap());
    machine.ends(0);
}
