//! `linkspan driver blk` against back ends that are not there, do not do, or
//! break the protocol: at first it ends with a status and a reason, later it waits
//! for one that does.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use linkspan_testkit::BackEnd;
use linkspan_testkit::back_end::{Caller, Message, Says, honest};
use linkspan_testkit::census::{settled, written_by};
use linkspan_testkit::program;
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::message::Request;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

fn driver(socket: &Path, verb: &[&str]) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_linkspan"));
    command
        .args(["driver", "blk", "--connect-limit", "1", "--socket-path"])
        .arg(socket)
        .args(verb)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Two queues for a moment.
const TWO_QUEUES: [&str; 8] = [
    "bench",
    "--op",
    "randread",
    "--queues",
    "2",
    "--seconds",
    "1",
    "--json",
];

/// The command ends like this on a back end that does `what`.
#[track_caller]
fn ends(verb: &[&str], what: impl FnOnce(&Caller), status: i32, reasons: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let back = BackEnd::listen(&folder.path().join("socket"));
    let child = driver(&back.path(), verb).spawn().unwrap();
    let caller = back.accept();
    what(&caller);
    drop(caller);
    expect(&child.wait_with_output().unwrap(), status, reasons);
}

#[track_caller]
fn expect(output: &Output, status: i32, reasons: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(output.stdout.is_empty());
    for reason in reasons {
        assert!(text.contains(reason), "no {reason:?} in: {text}");
    }
}

#[test]
fn a_back_end_that_is_not_there_has_status_3() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let output = driver(&socket, &["info"]).output().unwrap();
    let path = socket.to_str().unwrap();
    expect(&output, 3, &[path, "no back end answers", "try: "]);
}

#[test]
fn a_back_end_that_never_answers_has_status_3_within_the_limit() {
    let says = Says::default();
    for silent_at in [Request::GetFeatures, Request::GetConfig] {
        let name = silent_at.message().name;
        ends(
            &["info"],
            |caller| {
                caller
                    .until(&says, |message| message.request == silent_at)
                    .unwrap();
                caller.expect_closed();
            },
            3,
            &["does not answer", name, "try: "],
        );
    }
}

#[test]
fn a_back_end_that_leaves_has_status_3() {
    let says = Says::default();
    for at in [Request::GetFeatures, Request::SetVringKick] {
        ends(
            &["info"],
            |caller| {
                caller
                    .until(&says, |message| message.request == at)
                    .unwrap();
            },
            3,
            &["the back end closed the connection"],
        );
    }
}

/// Answers honestly but for one message.
fn but(caller: &Caller, at: Request, change: impl Fn(&mut Vec<u8>)) {
    let says = Says::default();
    let wanted = |message: &Message| message.request == at;
    let message = caller.until(&says, wanted).expect("it is asked");
    let mut answer = honest(&says, &message).expect("there is an answer");
    change(&mut answer.bytes);
    caller.say(&answer);
    caller.serve(&says);
}

#[test]
fn a_back_end_that_breaks_the_protocol_has_status_4() {
    let version = |bytes: &mut Vec<u8>| bytes[4] = 4 | 2;
    ends(
        &["info"],
        |caller| but(caller, Request::GetFeatures, version),
        4,
        &["version 2"],
    );
    let another = |bytes: &mut Vec<u8>| bytes[0] = 40;
    ends(
        &["info"],
        |caller| but(caller, Request::SetVringAddr, another),
        4,
        &["VHOST_USER_SET_VRING_ADDR", "a reply to message 40"],
    );
    let nack = |bytes: &mut Vec<u8>| bytes[12] = 9;
    ends(
        &["info"],
        |caller| but(caller, Request::SetVringKick, nack),
        4,
        &["refused VHOST_USER_SET_VRING_KICK with 9"],
    );
}

#[test]
fn a_back_end_with_too_few_queues_has_status_4_and_both_numbers() {
    let mut single = Says::default();
    single.protocol.remove(ProtocolFeatures::MQ);
    for (says, has) in [
        (
            Says {
                queues: 0,
                ..Says::default()
            },
            0,
        ),
        (
            Says {
                queues: 1,
                ..Says::default()
            },
            1,
        ),
        (single, 1),
    ] {
        let reason = format!("2 rings are wanted; the back end has {has}");
        ends(
            &TWO_QUEUES,
            |caller| drop(caller.serve(&says)),
            4,
            &[&reason, "try: "],
        );
    }
}

#[test]
fn queues_that_cannot_be_have_status_2_and_nobody_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    for queues in ["0", "257", "65535"] {
        let mut verb = TWO_QUEUES;
        verb[4] = queues;
        let output = driver(&socket, &verb).output().unwrap();
        expect(&output, 2, &[queues]);
    }
}

/// A load over back ends of all kinds.
struct Load {
    folder: TempDir,
    child: Child,
}

impl Load {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = File::create(folder.path().join("disk")).unwrap();
        image.set_len(16 << 20).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let verb = [
            "verify",
            "--overwrite",
            "--json",
            "--seconds",
            "3600",
            "--queues",
            "2",
        ];
        let mut command = driver(&folder.path().join("socket"), &verb);
        // The first back end may be slow to start on a busy machine.
        command.args(["--depth", "8"]).stderr(log);
        let first = serve(folder.path());
        let child = command.spawn().unwrap();
        let mut load = Self { folder, child };
        load.expect_alive("a queue");
        load.end(first);
        load
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Ends a back end under the load.
    fn end(&mut self, mut back: Child) {
        let loaded = settled(|| written_by(back.id()) >= 1 << 20);
        assert!(loaded, "no load: {}", self.log());
        back.kill().unwrap();
        back.wait().unwrap();
    }

    fn expect_alive(&mut self, when: &str) {
        let over = self.child.try_wait().unwrap();
        assert!(over.is_none(), "after {when}: {over:?} {}", self.log());
    }

    #[track_caller]
    fn expect_logged(&self, text: &str) {
        assert!(settled(|| self.log().contains(text)), "{}", self.log());
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Our own back end, when it listens.
fn serve(folder: &Path) -> Child {
    // What is written is counted from here on.
    File::open(folder.join("disk"))
        .and_then(|image| image.sync_data())
        .unwrap();
    let log = File::create(folder.join("blk.log")).unwrap();
    let child = program(env!("CARGO_BIN_EXE_linkspan"))
        .args(["blk", "--socket-path"])
        .arg(folder.join("socket"))
        .arg("--image")
        .arg(folder.join("disk"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let log = || std::fs::read_to_string(folder.join("blk.log")).unwrap_or_default();
    assert!(settled(|| log().contains("listening")), "{}", log());
    child
}

/// A later back end that does not fit is named, and the load waits for the next.
#[test]
fn a_later_back_end_that_does_not_fit_is_named_and_waited_out() {
    let mut load = Load::new();
    // With every feature of the one before.
    let few = Says {
        queues: 1,
        features: u64::MAX,
        ..Says::default()
    };
    {
        let back = BackEnd::listen(&load.socket());
        back.accept().serve(&few);
        load.expect_logged("2 rings are wanted; the back end has 1");
        load.expect_alive("too few queues");
        // It comes again, though this one broke the protocol.
        but(&back.accept(), Request::GetFeatures, |bytes| {
            bytes[4] = 4 | 2
        });
        back.accept();
        load.expect_alive("a broken protocol");
    }
    let back = serve(load.folder.path());
    load.end(back);
    let mut last = serve(load.folder.path());
    // Its disk grows under the load, which is told.
    let disk = load.folder.path().join("disk");
    let image = File::options().write(true).open(disk).unwrap();
    image.set_len(32 << 20).unwrap();
    signal(&last, Signal::HUP);
    load.expect_logged("the configuration space of the device changed");
    load.expect_alive("a larger disk");
    signal(&load.child, Signal::TERM);
    let log = load.log();
    let output = load.child.wait_with_output().unwrap();
    assert!(output.status.success(), "{} {log}", output.status);
    assert!(!output.stdout.is_empty(), "there is a report");
    last.kill().unwrap();
    last.wait().unwrap();
}
