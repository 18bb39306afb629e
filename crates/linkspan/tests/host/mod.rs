//! A supervisor with its plane, and what there is to see of its links.
#![allow(dead_code, reason = "each test uses some of it")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use linkspan_testkit::census::settled;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::Program;

/// A folder with a plane, and its supervisor.
pub(crate) struct Host {
    folder: TempDir,
    pub(crate) up: Program,
}

impl Host {
    /// Starts this plane, whose control socket is `control.sock`, in this folder.
    pub(crate) fn start(folder: TempDir, plane: &str, options: &[&str]) -> Self {
        let file = folder.path().join("plane.toml");
        fs::write(&file, plane).unwrap();
        let file = file.to_str().unwrap();
        let up = Program::start("up", [&[file], options].concat());
        Self { folder, up }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_linkspan"));
        command.args(arguments).arg("--control");
        command.arg(self.at("control.sock")).output().unwrap()
    }

    /// A part of the tree; null where there is none, or nobody answers yet.
    pub(crate) fn seen(&self, path: &str) -> Value {
        let output = self.run(&["inspect", path, "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Waits until a part of the tree is like this.
    #[track_caller]
    pub(crate) fn becomes(&self, path: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut now = Value::Null;
        let mut there = || {
            now = self.seen(path);
            is(&now)
        };
        let there = (0..6).any(|_| settled(&mut there));
        assert!(there, "{path}: {now:#}");
        now
    }

    #[track_caller]
    pub(crate) fn process(&self, link: &str) -> Pid {
        let pid = self.becomes(&format!("{link}/pid"), Value::is_i64);
        Pid::from_raw(i32::try_from(pid.as_i64().unwrap()).unwrap()).unwrap()
    }

    pub(crate) fn end(self) {
        self.up.signal(Signal::TERM);
        let (status, _, errors) = self.up.end();
        assert_eq!(status, Some(0), "{errors}");
    }
}
