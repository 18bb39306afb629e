//! Our program as a process of its own.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

use linkspan_testkit::census::settled;
use rustix::process::{Pid, Signal, kill_process};

/// A program that runs, and what it says.
pub struct Program {
    child: Child,
    out: JoinHandle<String>,
    errors: JoinHandle<String>,
}

fn read(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut said = Vec::new();
        // What came before an error counts.
        let _ = from.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    })
}

impl Program {
    /// Starts `linkspan COMMAND ARGS`.
    pub fn start<S: AsRef<OsStr>>(command: &str, args: impl IntoIterator<Item = S>) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_linkspan"))
            .arg(command)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            out: read(child.stdout.take().unwrap()),
            errors: read(child.stderr.take().unwrap()),
            child,
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end: status, the lines of standard output, standard error.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, Vec<serde_json::Value>, String) {
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
        let (out, errors) = (self.out.join().unwrap(), self.errors.join().unwrap());
        assert!(ended, "it does not end: {out}{errors}");
        let lines = out.lines().map(|line| serde_json::from_str(line).unwrap());
        let code = status.and_then(|status| status.code());
        (code, lines.collect(), errors)
    }
}
