//! Our guest with the device as a guest's kernel shows it, and a host that can say
//! anything.
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::fs;
use std::io::{self, BufRead as _, BufReader, PipeReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;

use linkspan_backends::uio::{Offer, Program};
use linkspan_testkit::{PATIENCE, VmbusHost};
use linkspan_vmbus::fcopy::{Failure, Job};
use linkspan_vmbus::ic::{FILE_COPY, Host, Status};
use rustix::process::Signal;
use serde_json::Value;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

/// Bytes of a ring of this kernel's device.
pub(crate) const RING: u64 = 20480;

/// A word on why a test does not run. In the lab all of them do.
pub(crate) fn skip(test: &str, why: &str) {
    assert_ne!(std::env::var("LINKSPAN_LAB").as_deref(), Ok("1"), "{why}");
    // Not by `eprintln`, which the test harness captures.
    drop(writeln!(io::stderr().lock(), "SKIP {test}: {why}"));
}

/// `linkspan fcopy guest` for this folder.
pub(crate) fn guest(root: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["fcopy", "guest", "--json", "--root"])
        .arg(root);
    command
}

/// A program with the device.
pub(crate) struct Machine {
    pub(crate) program: Program,
    pub(crate) hosts: Receiver<VmbusHost>,
    /// What it prints.
    lines: BufReader<PipeReader>,
}

impl Machine {
    /// `None` and a word where it cannot be; never in the lab. `first` is what the host
    /// does as soon as a channel is open.
    pub(crate) fn start(
        test: &str,
        offer: Offer,
        mut command: Command,
        first: impl FnMut(&mut VmbusHost) + Send + 'static,
    ) -> Option<Self> {
        let page = rustix::param::page_size() as u64;
        let (connect, hosts) = VmbusHost::for_each_guest_of(offer.ring, page, first);
        let (reader, writer) = io::pipe().unwrap();
        command.stdin(Stdio::null()).stdout(writer);
        match Program::start(offer, connect, command) {
            Ok(program) => Some(Self {
                program,
                hosts,
                lines: BufReader::new(reader),
            }),
            Err(error) => {
                let remedy = error.remedy().unwrap_or_else(|| panic!("{error:?}"));
                skip(test, &format!("{error}: {remedy}"));
                None
            }
        }
    }

    /// The host of the next channel that it opens.
    #[track_caller]
    pub(crate) fn host(&self) -> VmbusHost {
        self.hosts
            .recv_timeout(PATIENCE)
            .expect("it opens the device")
    }

    /// The next line that it prints; `None` at the end.
    pub(crate) fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let len = self.lines.read_line(&mut line).unwrap();
        (len > 0).then(|| line.trim_end().to_owned())
    }

    /// The next event of this name.
    #[track_caller]
    pub(crate) fn event(&mut self, name: &str) -> Value {
        loop {
            let line = self
                .line()
                .unwrap_or_else(|| panic!("it ended before {name}"));
            let value: Value = serde_json::from_str(&line).unwrap();
            if value["event"] == name {
                return value;
            }
        }
    }

    /// What the kernel says of the process.
    pub(crate) fn process(&self, file: &str) -> PathBuf {
        let id = self.program.id().to_string();
        Path::new("/proc").join(id).join(file)
    }

    /// A file or folder as the process sees it.
    pub(crate) fn inside(&self, path: &str) -> PathBuf {
        self.process("root").join(path.trim_start_matches('/'))
    }

    #[track_caller]
    pub(crate) fn stop(self) {
        self.program.signal(Signal::TERM).unwrap();
        self.ends(0);
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn ends(self, code: i32) {
        let status = self.program.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{status}");
    }

    pub(crate) fn copy(&self, host: &mut VmbusHost, job: Job, data: &[u8]) -> Result<(), Failure> {
        host.copy(&self.program, &[(job, data)]).remove(0)
    }

    /// Sends one request and gives the status of its answer.
    #[track_caller]
    pub(crate) fn ask(&self, host: &mut VmbusHost, message: &[u8]) -> Status {
        host.post(&[message], false);
        status(&host.receive(&self.program).expect("it answers"))
    }

    /// Begins a file of `size` bytes, of which 100 come.
    #[track_caller]
    pub(crate) fn begin(&self, host: &mut VmbusHost, path: &str, size: u64) -> Host {
        let mut core = Host::new(&FILE_COPY);
        let negotiation = core.negotiate();
        host.post(&[&negotiation], false);
        let answer = host.receive(&self.program).expect("it answers");
        core.receive(&answer).unwrap();
        for body in [begun(path, size), fragment(0, 100)] {
            let message = message(&mut core, &body);
            assert_eq!(self.ask(host, &message), Status::OK);
        }
        core
    }
}

/// A request with this body.
pub(crate) fn message(host: &mut Host, body: &[u8]) -> Vec<u8> {
    let (_, header) = host.request(body.len()).unwrap();
    [&header[..], body].concat()
}

/// Offset 20 of a payload (facts: include/linux/hyperv.h, struct icmsg_hdr).
pub(crate) fn status(answer: &[u8]) -> Status {
    Status(u32::from_le_bytes(answer[20..24].try_into().unwrap()))
}

/// START (facts: struct hv_start_fcopy), with CREATE_PATH.
fn begun(path: &str, size: u64) -> Vec<u8> {
    let mut body = vec![0; 36];
    for text in ["file", path] {
        let mut units: Vec<u16> = text.encode_utf16().collect();
        units.resize(260, 0);
        body.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    }
    body.extend(2_u32.to_le_bytes());
    body.extend(size.to_le_bytes());
    body
}

/// A WRITE (facts: struct hv_do_fcopy).
pub(crate) fn fragment(offset: u64, size: u32) -> Vec<u8> {
    let mut body = vec![1, 0, 0, 0];
    body.resize(40, 0);
    body.extend(offset.to_le_bytes());
    body.extend(size.to_le_bytes());
    body.resize(52 + 6144, b'd');
    body
}

/// A file for a destination; folders that are missing are made.
pub(crate) fn job(file: &str, to: &Path, data: &[u8]) -> Job {
    Job {
        file: file.into(),
        path: to.to_str().unwrap().into(),
        overwrite: false,
        create_path: true,
        size: data.len() as u64,
    }
}

pub(crate) fn bytes(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from(at * 7 / 3 % 251).expect("below 251"))
        .collect()
}

/// What is in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
