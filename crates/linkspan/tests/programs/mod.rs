//! Our program as a process of its own.
#![allow(dead_code, reason = "each test uses some of it")]

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use linkspan_testkit::census::settled;
use rustix::process::{Pid, Signal, kill_process};

/// A program that runs, and what it says.
pub(crate) struct Program {
    child: Child,
    out: Said,
    errors: Said,
}

/// What comes out of a pipe.
struct Said {
    text: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Said {
    fn new(mut from: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let reader = thread::spawn({
            let text = Arc::clone(&text);
            move || {
                let mut bytes = [0; 4096];
                // An error is an end.
                while let Ok(len @ 1..) = from.read(&mut bytes) {
                    text.lock().unwrap().extend_from_slice(&bytes[..len]);
                }
            }
        });
        Self { text, reader }
    }

    fn until_now(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    fn all(self) -> String {
        self.reader.join().unwrap();
        let text = self.text.lock().unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Program {
    /// Starts `linkspan COMMAND ARGS`.
    pub(crate) fn start<S: AsRef<OsStr>>(command: &str, args: impl IntoIterator<Item = S>) -> Self {
        let mut child = linkspan_testkit::program(env!("CARGO_BIN_EXE_linkspan"))
            .arg(command)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            out: Said::new(child.stdout.take().unwrap()),
            errors: Said::new(child.stderr.take().unwrap()),
            child,
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said until now on standard output.
    pub(crate) fn said(&self) -> String {
        self.out.until_now()
    }

    /// The same on standard error.
    pub(crate) fn complained(&self) -> String {
        self.errors.until_now()
    }

    /// Waits until it has said this on standard error.
    #[track_caller]
    pub(crate) fn await_error(&self, words: &str) {
        let mut said = || self.errors.until_now().contains(words);
        assert!((0..3).any(|_| settled(&mut said)), "it never says {words}");
    }

    /// What `linkspan net --json` has counted until now at the port whose name ends so.
    #[track_caller]
    pub(crate) fn counts(&self, port: &str) -> serde_json::Value {
        let all = || {
            let said = self.said();
            let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let lines = whole
                .lines()
                .map(|line| serde_json::from_str(line).unwrap());
            let of_port = |line: &serde_json::Value| {
                let name = line["port"].as_str().unwrap_or_default();
                line["event"] == "counts" && name.ends_with(port)
            };
            lines.filter(of_port).collect::<Vec<_>>()
        };
        let before = all().len();
        self.signal(Signal::HUP);
        let mut now = Vec::new();
        let mut said = || {
            now = all();
            now.len() > before
        };
        assert!((0..6).any(|_| settled(&mut said)), "it says nothing");
        now.pop().unwrap()
    }

    /// Waits for the end: status, the lines of standard output, standard error.
    #[track_caller]
    pub(crate) fn end(mut self) -> (Option<i32>, Vec<serde_json::Value>, String) {
        let mut status = None;
        let mut ended = || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        };
        // One of these waits for ten seconds or more.
        let ended = (0..3).any(|_| settled(&mut ended));
        if !ended {
            let _ = self.child.kill();
        }
        let (out, errors) = (self.out.all(), self.errors.all());
        assert!(ended, "it does not end: {out}{errors}");
        let lines = out.lines().map(|line| serde_json::from_str(line).unwrap());
        let code = status.and_then(|status| status.code());
        (code, lines.collect(), errors)
    }
}
