//! Linux's own daemon of file copy, hv_fcopy_uio_daemon as it is, against our host: what
//! it can do comes out right, and what it cannot is what docs/known-bugs.md says of it.
//!
//! On this machine where a program can have the device, and always in the lab.

//: about Linux's daemon of Hyper-V's file copy against our host
//: pack hv_fcopy_uio_daemon
//: limit 180

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use linkspan_backends::uio::Program;
use linkspan_testkit::lab::{await_true, fcopy_daemon};
use linkspan_testkit::{PATIENCE, VmbusHost};
use linkspan_vmbus::fcopy::{FRAGMENT_MAX, Failure, Job, Operation, Options, Output, Sender};
use linkspan_vmbus::ic::{FILE_COPY, Host, Status};
use rustix::process::Signal;

/// Bytes of a ring of this kernel's device, and of earlier ones'.
const RINGS: [u64; 2] = [20480, 16384];

/// The daemon at work on a channel.
struct Daemon {
    program: Program,
    host: VmbusHost,
    dir: tempfile::TempDir,
}

impl Daemon {
    /// `None` and a word where it cannot be; never in the lab.
    fn start(test: &str, ring: u64) -> Option<Self> {
        let skip = |why: &str| {
            assert_ne!(env::var("LINKSPAN_LAB").as_deref(), Ok("1"), "{why}");
            // Not by `eprintln`, which the test harness captures.
            drop(writeln!(io::stderr().lock(), "SKIP {test}: {why}"));
        };
        let Some(daemon) = fcopy_daemon() else {
            skip("Linux's daemon is not there; cargo xtask lab run lab_fcopy_daemon builds it");
            return None;
        };
        let (connect, hosts) = VmbusHost::for_each_guest(ring);
        let mut command = Command::new(daemon);
        command.arg("-n").stdin(Stdio::null());
        let program = match Program::start(VmbusHost::offer(ring), connect, command) {
            Ok(program) => program,
            Err(error) => {
                skip(&format!("{error}: {}", error.remedy().expect("a remedy")));
                return None;
            }
        };
        Some(Self {
            program,
            host: hosts.recv_timeout(PATIENCE).expect("it opens the device"),
            dir: tempfile::tempdir().unwrap(),
        })
    }

    /// A file for a folder, which ends with a slash or does not.
    fn job(&self, file: &str, folder: &str, data: &[u8]) -> Job {
        Job {
            file: file.into(),
            path: self.dir.path().join(folder).to_str().unwrap().into(),
            overwrite: false,
            create_path: true,
            size: data.len() as u64,
        }
    }

    fn copy(&mut self, job: Job, data: &[u8]) -> Result<(), Failure> {
        self.host.copy(&self.program, &[(job, data)]).remove(0)
    }

    /// Negotiates, and gives what comes after: a host that may say anything.
    fn negotiated(&mut self) -> Host {
        let mut host = Host::new(&FILE_COPY);
        let message = host.negotiate();
        host.receive(&self.ask(&message).unwrap()).unwrap();
        host
    }

    /// One message and its answer; `None` if the daemon ends.
    fn ask(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        self.host.post(&[message], false);
        self.host.receive(&self.program)
    }

    /// A request with this body, and the status of its answer.
    fn request(&mut self, host: &mut Host, body: &[u8]) -> Option<Status> {
        let message = message(host, body);
        let answer = self.ask(&message)?;
        Some(status(&answer))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the kernel says of the process.
    fn process(&self, file: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.program.id().to_string())
            .join(file)
    }
}

fn message(host: &mut Host, body: &[u8]) -> Vec<u8> {
    let (_, header) = host.request(body.len()).unwrap();
    [&header[..], body].concat()
}

/// Offset 20 of a payload (facts: include/linux/hyperv.h, struct icmsg_hdr).
fn status(answer: &[u8]) -> Status {
    Status(u32::from_le_bytes(answer[20..24].try_into().unwrap()))
}

/// An operation without more.
fn head(operation: u32) -> Vec<u8> {
    let mut body = operation.to_le_bytes().to_vec();
    body.resize(36, 0);
    body
}

const START: u32 = 0;
const WRITE: u32 = 1;
const COMPLETE: u32 = 2;

/// START of a file (facts: struct hv_start_fcopy), with CREATE_PATH.
fn start(file: &str, path: &str) -> Vec<u8> {
    let mut body = head(START);
    for text in [file, path] {
        let mut units: Vec<u16> = text.encode_utf16().collect();
        units.resize(260, 0);
        body.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    }
    body.extend(2_u32.to_le_bytes());
    body.extend(0_u64.to_le_bytes());
    body
}

/// WRITE that says `size` (facts: struct hv_do_fcopy).
fn write(size: u32) -> Vec<u8> {
    let mut body = head(WRITE);
    body.resize(48, 0);
    body.extend(size.to_le_bytes());
    body.resize(52 + FRAGMENT_MAX, b'd');
    body
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from(at * 7 / 3 % 251).expect("below 251"))
        .collect()
}

#[test]
fn files_of_all_sizes_arrive_with_either_ring() {
    for ring in RINGS {
        let Some(mut daemon) = Daemon::start("files_of_all_sizes_arrive", ring) else {
            return;
        };
        let files: Vec<(String, Vec<u8>)> = [0, 1, 6143, 6144, 6145, 1 << 20]
            .into_iter()
            .map(|len| (format!("file-{len}"), bytes(len)))
            .collect();
        let jobs: Vec<(Job, &[u8])> = files
            .iter()
            .map(|(name, data)| (daemon.job(name, "new/folder/", data), &data[..]))
            .collect();
        let done = daemon.host.copy(&daemon.program, &jobs);
        assert_eq!(done, vec![Ok(()); files.len()]);
        for (name, data) in &files {
            let arrived = fs::read(daemon.path("new/folder").join(name)).unwrap();
            assert!(arrived == *data, "{name}");
        }
        daemon.program.signal(Signal::TERM).unwrap();
        daemon.program.wait().unwrap();
    }
}

#[test]
fn a_file_that_exists_is_replaced_only_if_that_is_asked_for() {
    let Some(mut daemon) = Daemon::start("a_file_that_exists", RINGS[0]) else {
        return;
    };
    fs::write(daemon.path("file"), "what there was").unwrap();
    let refused = daemon.job("file", "", b"new");
    let replaces = Job {
        overwrite: true,
        ..refused.clone()
    };
    let done = daemon
        .host
        .copy(&daemon.program, &[(refused, b"new"), (replaces, b"new")]);
    let exists = Failure::Refused {
        operation: Operation::Start,
        status: Status::ALREADY_EXISTS,
    };
    assert_eq!(done, [Err(exists), Ok(())]);
    assert_eq!(fs::read(daemon.path("file")).unwrap(), b"new");
}

#[test]
fn known_of_linux_names_that_are_not_ascii_are_mangled() {
    let Some(mut daemon) = Daemon::start("names_that_are_not_ascii", RINGS[0]) else {
        return;
    };
    let job = daemon.job("naïve-日本.txt", "", b"data");
    daemon.copy(job, b"data").unwrap();
    assert!(!daemon.path("naïve-日本.txt").exists());
    let names: Vec<_> = fs::read_dir(daemon.dir.path()).unwrap().collect();
    assert_eq!(names.len(), 1);
    assert!(names[0].as_ref().unwrap().file_name().to_str().is_none());
}

#[test]
fn known_of_linux_cancel_is_refused_and_the_partial_file_stays() {
    let Some(mut daemon) = Daemon::start("cancel_is_refused", RINGS[0]) else {
        return;
    };
    let job = daemon.job("file", "", &bytes(100_000));
    let mut sender = Sender::new(Options { outstanding: 1 }).unwrap();
    let mut statuses = Vec::new();
    let ended = 'all: loop {
        while let Some(output) = sender.poll_output() {
            match output {
                Output::Send(message) => daemon.host.post(&[&message], false),
                Output::Write {
                    head, len, padding, ..
                } => {
                    daemon
                        .host
                        .post(&[&head, &vec![1; len], &vec![0; padding]], false);
                    sender.cancel(Failure::Stopped);
                }
                Output::Ready => sender.send(&job).unwrap(),
                ended => break 'all ended,
            }
        }
        let answer = daemon.host.receive(&daemon.program).unwrap();
        statuses.push(status(&answer));
        sender.receive(&answer);
    };
    assert_eq!(ended, Output::Failed(Failure::Stopped));
    // Negotiation, START, WRITE, CANCEL.
    assert_eq!(statuses, [Status::OK, Status::OK, Status::OK, Status::FAIL]);
    assert_eq!(
        fs::metadata(daemon.path("file")).unwrap().len(),
        FRAGMENT_MAX as u64
    );
}

#[test]
fn known_of_linux_a_write_beyond_its_message_writes_the_heap_into_the_file() {
    let Some(mut daemon) = Daemon::start("a_write_beyond_its_message", RINGS[0]) else {
        return;
    };
    let mut host = daemon.negotiated();
    let folder = format!("{}/", daemon.dir.path().display());
    assert_eq!(
        daemon.request(&mut host, &start("file", &folder)),
        Some(Status::OK)
    );
    assert_eq!(daemon.request(&mut host, &write(12000)), Some(Status::OK));
    let written = fs::read(daemon.path("file")).unwrap();
    assert_eq!(written.len(), 12000);
    assert!(written[..FRAGMENT_MAX].iter().all(|byte| *byte == b'd'));
}

#[test]
fn known_of_linux_a_short_message_ends_it() {
    let Some(mut daemon) = Daemon::start("a_short_message_ends_it", RINGS[0]) else {
        return;
    };
    let mut host = daemon.negotiated();
    assert_eq!(daemon.request(&mut host, &[0; 28]), None);
    let status = daemon.program.wait().unwrap();
    assert!(!status.success(), "{status}");
}

#[test]
fn known_of_linux_complete_without_start_closes_descriptor_0() {
    let Some(mut daemon) = Daemon::start("complete_without_start", RINGS[0]) else {
        return;
    };
    let mut host = daemon.negotiated();
    assert!(daemon.process("fd/0").symlink_metadata().is_ok());
    assert_eq!(daemon.request(&mut host, &head(COMPLETE)), Some(Status::OK));
    assert!(daemon.process("fd/0").symlink_metadata().is_err());
}

#[test]
fn known_of_linux_a_second_start_leaks_the_first_file() {
    let Some(mut daemon) = Daemon::start("a_second_start", RINGS[0]) else {
        return;
    };
    let mut host = daemon.negotiated();
    let folder = format!("{}/", daemon.dir.path().display());
    let open = |daemon: &Daemon| fs::read_dir(daemon.process("fd")).unwrap().count();
    let before = open(&daemon);
    for name in ["a", "b", "c"] {
        assert_eq!(
            daemon.request(&mut host, &start(name, &folder)),
            Some(Status::OK)
        );
    }
    assert_eq!(daemon.request(&mut host, &head(COMPLETE)), Some(Status::OK));
    assert_eq!(open(&daemon), before + 2);
}

#[test]
fn known_of_linux_the_second_message_of_one_signal_stalls() {
    let Some(mut daemon) = Daemon::start("the_second_message", RINGS[0]) else {
        return;
    };
    let mut host = daemon.negotiated();
    let messages = [
        message(&mut host, &head(COMPLETE)),
        message(&mut host, &head(COMPLETE)),
    ];
    // It waits for an interrupt: both messages are there before it wakes.
    let waits = |daemon: &Daemon| {
        let call = fs::read_to_string(daemon.process("syscall")).unwrap();
        call.starts_with("17 ")
    };
    await_true("it reads", || waits(&daemon));
    daemon.host.post(&[&messages[0]], true);
    daemon.host.post(&[&messages[1]], true);
    daemon.host.interrupt();
    assert!(daemon.host.receive(&daemon.program).is_some());
    // Before it answered it did not read; now it does, and nothing will wake it.
    await_true("it reads again", || waits(&daemon));
    assert!(daemon.host.take().is_none());
    daemon.host.interrupt();
    assert!(daemon.host.receive(&daemon.program).is_some());
}

#[test]
fn known_of_linux_a_device_that_is_gone_is_read_for_ever() {
    let Some(daemon) = Daemon::start("a_device_that_is_gone", RINGS[0]) else {
        return;
    };
    let calls = || {
        let counts = fs::read_to_string(daemon.process("io")).unwrap();
        let reads = counts.lines().find_map(|line| line.strip_prefix("syscr: "));
        reads.unwrap().parse::<u64>().unwrap()
    };
    let before = calls();
    daemon.host.rescind();
    await_true("it reads again and again", || calls() > before + 1000);
}

#[test]
fn known_of_linux_a_name_leads_out_of_its_folder() {
    let Some(mut daemon) = Daemon::start("a_name_leads_out", RINGS[0]) else {
        return;
    };
    fs::create_dir(daemon.path("in")).unwrap();
    let job = daemon.job("../out", "in/", b"data");
    daemon.copy(job, b"data").unwrap();
    assert_eq!(fs::read(daemon.path("out")).unwrap(), b"data");
}

#[test]
fn known_of_linux_files_can_be_executed_and_a_last_folder_is_not_made() {
    let Some(mut daemon) = Daemon::start("files_can_be_executed", RINGS[0]) else {
        return;
    };
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    let (good, bad) = (daemon.job("file", "a/", b""), daemon.job("file", "b", b""));
    let done = daemon
        .host
        .copy(&daemon.program, &[(good, b""), (bad, b"")]);
    let refused = Failure::Refused {
        operation: Operation::Start,
        status: Status::FAIL,
    };
    assert_eq!(done, [Ok(()), Err(refused)]);
    assert_eq!(mode(&daemon.path("a/file")) & 0o100, 0o100);
    assert!(!daemon.path("b").exists());
}
