//! A kubelet that does what it is told, by gRPC's own library.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use linkspan_testkit::census::settled;
use serde_json::{Value, json};

/// A Python that has this; `None` after saying that there is none.
pub(crate) fn python(test: &str, modules: &str, package: &str) -> Option<&'static str> {
    let has = |python: &&str| {
        let mut command = Command::new(python);
        let tried = command.args(["-c", &format!("import {modules}")]).output();
        tried.is_ok_and(|it| it.status.success())
    };
    let found = ["/usr/bin/python3", "python3"].into_iter().find(has);
    if found.is_none() {
        // Not by `eprintln`, which the test harness captures.
        let mut out = std::io::stderr().lock();
        let why = format!("Python lacks {modules}, Debian package {package}");
        drop(writeln!(out, "SKIP {test}: {why}"));
    }
    found
}

pub(crate) struct Kubelet {
    child: Child,
    input: ChildStdin,
    said: Arc<Mutex<Vec<Value>>>,
}

impl Kubelet {
    /// One that uses this folder, and does nothing yet; `None` where there can be none.
    pub(crate) fn new(test: &str, folder: &Path) -> Option<Self> {
        let python = python(test, "grpc, google.protobuf", "python3-grpcio")?;
        let mut command = Command::new(python);
        command.args(["-c", include_str!("kubelet.py")]).arg(folder);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (to, from) = (Arc::clone(&said), child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                to.lock()
                    .unwrap()
                    .push(serde_json::from_str(&line).unwrap());
            }
        });
        let input = child.stdin.take().unwrap();
        Some(Self { child, input, said })
    }

    /// Has it do something, without waiting.
    pub(crate) fn tell(&mut self, what: &Value) {
        writeln!(self.input, "{what}").unwrap();
    }

    pub(crate) fn start(&mut self) {
        self.tell(&json!(["start"]));
        self.says("started");
    }

    /// What it said until now does not count any more.
    pub(crate) fn forget(&self) {
        self.said.lock().unwrap().clear();
    }

    /// Waits for the next time that it says this.
    #[track_caller]
    pub(crate) fn says(&self, event: &str) -> Value {
        self.says_of(event, |_| true)
    }

    /// The same, of what is like this. What it said before of the same kind and resource is
    /// forgotten, and of other things is not.
    #[track_caller]
    pub(crate) fn says_of(&self, event: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        let mut heard = || {
            let mut said = self.said.lock().unwrap();
            let at = said.iter().position(|it| it["event"] == event && is(it));
            found = at.map(|at| said.remove(at));
            if let (Some(at), Some(found)) = (at, &found) {
                let mut index = 0;
                said.retain(|it| {
                    index += 1;
                    let is_later = index > at;
                    is_later || it["event"] != event || it["resource"] != found["resource"]
                });
            }
            found.is_some()
        };
        let heard = (0..6).any(|_| settled(&mut heard));
        assert!(heard, "no {event}: {:?}", self.said.lock().unwrap());
        found.unwrap()
    }

    /// Waits until the devices of a resource are these.
    #[track_caller]
    pub(crate) fn has(&self, resource: &str, devices: &Value) {
        self.says_of("devices", |it| {
            it["resource"] == resource && it["devices"] == *devices
        });
    }

    /// The code of the refusal of what it is told to do.
    #[track_caller]
    pub(crate) fn is_refused(&mut self, what: &Value) -> (String, String) {
        self.tell(what);
        let refused = self.says("refused");
        let text = |key: &str| refused[key].as_str().unwrap().to_owned();
        (text("code"), text("why"))
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
