//! Guests that do what they are told, and QEMU's monitor.
#![allow(dead_code, reason = "each test uses some of it")]

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use linkspan::demo::initramfs::GuestFile;
use linkspan::demo::machine::{self, Event, Machine};
use linkspan::demo::process::Stop;
use linkspan::demo::report;
use linkspan_testkit::census::settled;
use serde_json::{Value, json};

pub(crate) const LIMIT: Duration = Duration::from_secs(240);

pub(crate) fn skip(test: &str, why: &str) {
    // Not by `eprintln`, which the test harness captures: the summary of
    // `cargo xtask test` counts this line.
    drop(writeln!(std::io::stderr().lock(), "SKIP {test}: {why}"));
}

/// Whether it comes true; one of these waits for ten seconds or more.
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    (0..6).any(|_| settled(&mut condition))
}

/// A program of this machine and what it is linked with, for a guest.
pub(crate) fn with_libraries(program: &Path) -> Vec<GuestFile> {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    let file = |from: &Path, path: &str| GuestFile {
        path: path.to_owned(),
        data: std::fs::read(from).unwrap(),
    };
    let name = program.file_name().and_then(OsStr::to_str).unwrap();
    let mut files = vec![file(program, &format!("bin/{name}"))];
    files.extend(libraries.map(|path| file(Path::new(path), path.trim_start_matches('/'))));
    files
}

/// QEMU's monitor.
pub(crate) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    pub(crate) fn connect(console: &Path) -> Self {
        let mut stream = None;
        // The socket is there a moment before QEMU listens.
        let listens = eventually(|| {
            stream = UnixStream::connect(machine::monitor(console)).ok();
            stream.is_some()
        });
        assert!(listens, "QEMU's monitor does not listen");
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        monitor.command(&json!({"execute": "qmp_capabilities"}), answered);
        monitor
    }

    /// Gives a command: its answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: &Value) -> Value {
        self.command(command, answered)["return"].take()
    }

    /// Gives a command and reads until what is waited for, which it gives. An error is none
    /// of that.
    #[track_caller]
    pub(crate) fn command(&mut self, command: &Value, awaited: impl Fn(&Value) -> bool) -> Value {
        writeln!(self.0.get_mut(), "{command}").unwrap();
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "QEMU is gone");
            let said: Value = serde_json::from_str(&line).unwrap();
            assert!(said.get("error").is_none(), "{command}: {line}");
            if awaited(&said) {
                return said;
            }
        }
    }
}

/// The end of a command, as far as QEMU's monitor knows.
pub(crate) fn answered(said: &Value) -> bool {
    said.get("return").is_some()
}

/// A machine in [`machine::Mode::Remote`] with a name for messages.
pub(crate) struct Told {
    pub(crate) name: &'static str,
    pub(crate) machine: Machine,
}

impl Drop for Told {
    fn drop(&mut self) {
        // QEMU would first wait for a switch that is gone.
        let _ = self.machine.kill();
    }
}

impl Told {
    /// Waits for a report: its value, and the lines before it.
    #[track_caller]
    pub(crate) fn report(&mut self, key: &str) -> (String, Vec<String>) {
        let deadline = Instant::now() + LIMIT;
        let mut lines = Vec::new();
        loop {
            match self.machine.next_event(deadline, &Stop::default()).unwrap() {
                Event::Line(line) => match report::parse(&line) {
                    Some((found, value)) if found == key => return (value.to_owned(), lines),
                    Some(("problem", what)) => panic!("{}: {what}", self.name),
                    _ => lines.push(line),
                },
                end => panic!(
                    "{} does not report {key}: {end:?}\n{lines:#?}\n{}",
                    self.name,
                    self.machine.console_tail()
                ),
            }
        }
    }

    /// Runs a line of shell: its status and what it printed.
    #[track_caller]
    pub(crate) fn try_run(&mut self, line: &str) -> (u8, String) {
        self.machine.tell(line).unwrap();
        let (status, lines) = self.report("status");
        (status.parse().unwrap(), lines.join("\n"))
    }

    /// Runs a line of shell that works: what it printed.
    #[track_caller]
    pub(crate) fn run(&mut self, line: &str) -> String {
        let (status, said) = self.try_run(line);
        assert_eq!(status, 0, "{}: {line}\n{said}", self.name);
        said
    }

    /// Waits until its driver sees a link, or none.
    #[track_caller]
    pub(crate) fn await_carrier(&mut self, there: bool) {
        let there = u8::from(there);
        self.run(&format!(
            "until [ \"$(cat /sys/class/net/eth0/carrier)\" = {there} ]; do usleep 10000; done"
        ));
    }

    /// Queue pairs that it can have, and has.
    #[track_caller]
    pub(crate) fn pairs(&mut self) -> [u32; 2] {
        let said = self.run("ethtool -l eth0");
        let mut combined = said
            .lines()
            .filter_map(|line| line.strip_prefix("Combined:"))
            .map(|value| value.trim().parse().unwrap());
        [combined.next().unwrap(), combined.next().unwrap()]
    }
}
