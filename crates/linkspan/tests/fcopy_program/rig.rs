//! Programs, and what they need.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linkspan"));
    command.arg("fcopy").env("LINKSPAN_LOG", "off");
    command
}

/// A program that says what happens, line by line.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) lines: BufReader<ChildStdout>,
}

impl Program {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next event of this name.
    #[track_caller]
    pub(crate) fn event(&mut self, name: &str) -> Value {
        let mut line = String::new();
        loop {
            line.clear();
            let len = self.lines.read_line(&mut line).unwrap();
            assert!(len > 0, "it ended before {name}");
            let value: Value = serde_json::from_str(&line).unwrap();
            if value["event"] == name {
                return value;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    #[track_caller]
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder with everything: the socket, the root, what is sent.
pub(crate) struct Rig {
    pub(crate) folder: TempDir,
    pub(crate) root: PathBuf,
    pub(crate) socket: PathBuf,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let folder = tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        let socket = folder.path().join("s");
        Self {
            folder,
            root,
            socket,
        }
    }

    pub(crate) fn host(&self, args: &[&str]) -> Program {
        let mut command = program();
        command.args(["host", "--json", "--control"]);
        command.arg(&self.socket).args(args);
        let mut host = Program::start(command);
        host.event("listening");
        host
    }

    pub(crate) fn guest_command(&self, args: &[&str]) -> Command {
        let mut command = program();
        command.args(["guest", "--json", "--root"]).arg(&self.root);
        command.arg("--connect").arg(&self.socket).args(args);
        command
    }

    pub(crate) fn guest(&self, args: &[&str]) -> Program {
        let mut guest = Program::start(self.guest_command(args));
        guest.event("joined");
        guest
    }

    pub(crate) fn source(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("source").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn send_command<S: AsRef<OsStr>>(&self, files: &[S], args: &[&str]) -> Command {
        let mut command = program();
        command.arg("send").arg("--control").arg(&self.socket);
        command.args(["--json", "--to"]).arg(&self.root);
        command.args(args).args(files);
        command
    }

    pub(crate) fn send<S: AsRef<OsStr>>(&self, files: &[S], args: &[&str]) -> Sent {
        Sent::of(self.send_command(files, args).output().unwrap())
    }

    #[track_caller]
    pub(crate) fn landed(&self, name: &str, bytes: &[u8]) {
        let found = fs::read(self.root.join(name)).unwrap();
        assert!(found == bytes, "{name}: {} bytes", found.len());
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    }
}

pub(crate) struct Sent {
    pub(crate) status: Option<i32>,
    pub(crate) lines: Vec<Value>,
    pub(crate) said: String,
}

impl Sent {
    pub(crate) fn of(output: Output) -> Self {
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        Self {
            status: output.status.code(),
            lines: lines.collect(),
            said: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub(crate) fn expect(&self, status: i32, outcomes: &[&str]) {
        let found: Vec<_> = self
            .lines
            .iter()
            .map(|line| line["outcome"].as_str())
            .collect();
        let outcomes: Vec<_> = outcomes.iter().map(|outcome| Some(*outcome)).collect();
        assert_eq!(
            (self.status, found),
            (Some(status), outcomes),
            "{}",
            self.said
        );
    }
}

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 % 251).to_le_bytes()[0]).collect()
}
