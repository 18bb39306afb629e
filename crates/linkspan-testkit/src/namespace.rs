//! Networks of the kernel that exist for one test.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread::{self, JoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace; it goes when it is dropped, and the interfaces in it.
#[derive(Debug)]
pub struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        // One that is left behind is seen by whoever looks.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

impl Namespace {
    /// `None`, and a word, where it cannot be. The name is one of this process.
    pub fn new(name: &str) -> Option<Self> {
        let namespace = Self(format!("linkspan-{name}-{}", std::process::id()));
        let made = Command::new("ip")
            .args(["netns", "add", &namespace.0])
            .output();
        let tools = Command::new("ping").arg("-V").output();
        let why = match made {
            Ok(made) if made.status.success() && tools.is_ok() => return Some(namespace),
            Ok(made) => {
                let why = String::from_utf8_lossy(&made.stderr).into_owned();
                format!("{} (root and ping are needed)", why.trim())
            }
            Err(error) => format!("ip: {error}"),
        };
        // Not by `eprintln`, which would be captured.
        let mut out = std::io::stderr().lock();
        let _ = writeln!(out, "SKIP interfaces of this machine: {why}");
        None
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// A program in the namespace, which hears SIGHUP.
    pub fn command(&self, program: &str) -> Command {
        let mut command = crate::program("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    /// A thread of this process in the namespace.
    ///
    /// # Panics
    /// When it cannot be.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let place = File::open(format!("/run/netns/{}", self.0)).unwrap();
        thread::spawn(move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(place.as_fd(), network).unwrap();
            work()
        })
    }

    /// Runs a command line, which succeeds.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn run(&self, line: &str) {
        let mut words = line.split(' ');
        let output = self
            .command(words.next().unwrap())
            .args(words)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {said}{errors}");
    }
}
