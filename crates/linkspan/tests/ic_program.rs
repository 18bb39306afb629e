//! `linkspan ic` as people run it: guest and host, each its own process, and ends that
//! say anything.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use linkspan_engine::vmbus::{Channel, Framed, Offer};
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::{EventFd, Listener};
use linkspan_testkit::PATIENCE;
use linkspan_testkit::census::settled;
use linkspan_vmbus::Shape;
use linkspan_vmbus::ic::shutdown::{Action, Request, Requester};
use linkspan_vmbus::ic::timesync::{Clock, Purpose, Sample};
use linkspan_vmbus::ic::{
    HEARTBEAT, SHUTDOWN, Service, Status, TIME_SYNC, heartbeat, shutdown, timesync,
};
use linkspan_vmbus::link::{Frame, Reason, VERSION};
use linkspan_vmbus::packet::{Contents, Header};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

struct Program {
    child: Child,
    lines: BufReader<ChildStdout>,
    /// What was said and not asked for: services speak in any order.
    before: Vec<Value>,
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let command = command.env("LINKSPAN_LOG", "off");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            lines,
            before: Vec::new(),
        }
    }

    /// The next event of this name and service.
    #[track_caller]
    fn event(&mut self, service: &str, name: &str) -> Value {
        let is = |value: &Value| {
            value["event"] == name && (service.is_empty() || value["service"] == service)
        };
        if let Some(at) = self.before.iter().position(is) {
            return self.before.remove(at);
        }
        let mut line = String::new();
        loop {
            line.clear();
            let len = self.lines.read_line(&mut line).unwrap();
            assert!(len > 0, "it ended before {name}");
            let value: Value = serde_json::from_str(&line).unwrap();
            if is(&value) {
                return value;
            }
            self.before.push(value);
        }
    }

    #[track_caller]
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    /// Waits until it has ended by itself.
    fn status(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Rig {
    folder: TempDir,
    socket: PathBuf,
}

impl Rig {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        let socket = folder.path().join("s");
        Self { folder, socket }
    }

    fn command(&self, verb: &str, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_linkspan"));
        let option = if verb == "host" {
            "--control"
        } else {
            "--connect"
        };
        command
            .args(["ic", verb, "--json", option])
            .arg(&self.socket);
        command.args(options);
        command
    }

    fn host(&self, options: &[&str]) -> Program {
        let mut host = Program::start(&mut self.command("host", options));
        host.event("", "listening");
        host
    }

    fn guest(&self, options: &[&str]) -> Program {
        Program::start(&mut self.command("guest", options))
    }

    /// A program that writes down what it is told, and does nothing else.
    fn recorder(&self) -> (PathBuf, PathBuf) {
        let (program, file) = (
            self.folder.path().join("recorder"),
            self.folder.path().join("told"),
        );
        let script = format!("#!/bin/sh\necho \"$@\" >>{}\n", file.display());
        fs::write(&program, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, mode).unwrap();
        (program, file)
    }
}

#[test]
fn a_guest_lives_and_its_clock_is_compared() {
    let rig = Rig::new();
    let mut host = rig.host(&["--interval", "1"]);
    let mut guest = rig.guest(&[]);
    for service in ["heartbeat", "shutdown", "timesync"] {
        guest.event(service, "joined");
    }
    let alive = host.event("heartbeat", "alive");
    assert_eq!(alive["health"], "unknown");
    for _ in 0..2 {
        let sample = guest.event("timesync", "sample");
        // One machine, one clock.
        assert!(sample["offset_seconds"].as_f64().unwrap().abs() < 60.0);
    }
    guest.stop();
    host.event("heartbeat", "left");
    // Another one, which has less.
    let mut guest = rig.guest(&["--services", "heartbeat,heartbeat"]);
    guest.event("heartbeat", "joined");
    host.event("heartbeat", "alive");
    guest.stop();
    host.stop();
    assert!(!rig.socket.exists());
}

#[test]
fn a_guest_that_sleeps_misses_beats_and_lives_again() {
    let rig = Rig::new();
    let mut host = rig.host(&["--interval", "1", "--services", "heartbeat"]);
    let mut guest = rig.guest(&["--services", "heartbeat"]);
    guest.event("heartbeat", "joined");
    host.event("heartbeat", "alive");
    let id = Pid::from_child(&guest.child);
    kill_process(id, Signal::STOP).unwrap();
    assert_eq!(host.event("heartbeat", "missed")["count"], 1);
    assert_eq!(host.event("heartbeat", "missed")["count"], 2);
    kill_process(id, Signal::CONT).unwrap();
    host.event("heartbeat", "alive");
    guest.stop();
    host.stop();
}

#[test]
fn a_guest_shuts_down_only_when_that_is_allowed() {
    let rig = Rig::new();
    let (program, told) = rig.recorder();
    let wish = ["--services", "shutdown", "--shutdown", "reboot"];
    let mut host = rig.host(&wish);
    // It waits for the other services, which this host has not.
    let mut guest = rig.guest(&["--shutdown-command", program.to_str().unwrap()]);
    let refused = guest.event("shutdown", "shutdown");
    assert_eq!(refused["allowed"], false);
    assert_eq!(host.event("shutdown", "answered")["ok"], false);
    assert_eq!(host.status(), Some(1));
    guest.stop();
    assert!(!told.exists());
    for (action, more) in [
        ("poweroff", &["--force", "--message", "Größe\nändern"][..]),
        ("reboot", &[]),
        ("hibernate", &[]),
    ] {
        let options = [&["--services", "shutdown", "--shutdown", action][..], more].concat();
        let mut host = rig.host(&options);
        let mut guest = rig.command("guest", &["--services", "shutdown", "--allow-shutdown"]);
        let mut guest = Program::start(guest.arg("--shutdown-command").arg(&program));
        let wish = guest.event("shutdown", "shutdown");
        assert_eq!(
            (&wish["allowed"], &wish["action"]),
            (&true.into(), &action.into())
        );
        assert_eq!(wish["force"], !more.is_empty());
        assert_eq!(host.event("shutdown", "answered")["ok"], true);
        assert_eq!(host.status(), Some(0));
        let done =
            || fs::read_to_string(&told).is_ok_and(|text| text.ends_with(&format!("{action}\n")));
        assert!(settled(done));
        guest.stop();
    }
    assert_eq!(
        fs::read_to_string(&told).unwrap(),
        "poweroff\nreboot\nhibernate\n"
    );
}

#[test]
fn a_clock_that_is_right_is_left_alone_allowed_or_not() {
    let rig = Rig::new();
    for (options, ok) in [(&[][..], false), (&["--allow-time-set"][..], true)] {
        let mut host = rig.host(&["--services", "timesync", "--set-time"]);
        let options = [&["--services", "timesync"][..], options].concat();
        let mut guest = rig.guest(&options);
        let told = guest.event("timesync", "set");
        assert_eq!(told["allowed"], ok);
        // The clock of this machine is right already: a second is not stepped over.
        assert_eq!(told["set"], false);
        assert_eq!(host.event("timesync", "answered")["ok"], ok);
        guest.stop();
        host.stop();
    }
}

/// The time of another host: far off, and nobody here may set the clock.
#[test]
fn a_clock_that_cannot_be_set_is_told() {
    let rig = Rig::new();
    let listener = Listener::bind(&rig.socket).unwrap();
    let mut guest = Command::new("setpriv");
    guest.args(["--bounding-set", "-sys_time", "--"]);
    if !Command::new("setpriv")
        .args(["--bounding-set", "-sys_time", "--", "true"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
        && rustix::process::geteuid().is_root()
    {
        // Root that cannot give the right away would set this machine's clock.
        println!("SKIP a_clock_that_cannot_be_set_is_told: setpriv gives no right away");
        return;
    }
    if !rustix::process::geteuid().is_root() {
        guest = Command::new("env");
    }
    let options = ["--services", "timesync", "--allow-time-set"];
    let command = rig.command("guest", &options);
    guest.arg(command.get_program()).args(command.get_args());
    let mut guest = Program::start(&mut guest);
    let mut host = Raw::host(&listener, &TIME_SYNC);
    let mut clock = Clock::default();
    host.send(&clock.start());
    assert!(matches!(
        clock.receive(&host.receive()),
        Ok(timesync::Event::Ready(_))
    ));
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let far = now + Duration::from_secs(86_400 * 400);
    for (purpose, status) in [
        (Purpose::Sample, Status::OK),
        (Purpose::Set, Status::FAIL),
        (Purpose::Probe, Status::OK),
    ] {
        let sample = Sample {
            purpose,
            unix_100ns: u64::try_from(far.as_nanos() / 100).unwrap(),
            reference_100ns: Some(1),
        };
        host.send(&clock.tell(sample).unwrap());
        assert_eq!(
            clock.receive(&host.receive()),
            Ok(timesync::Event::Answered(status)),
            "{purpose:?}"
        );
    }
    let told = guest.event("timesync", "set");
    assert!(told["offset_seconds"].as_f64().unwrap() > 86_400.0 * 399.0);
    assert_eq!(
        (&told["allowed"], &told["set"]),
        (&true.into(), &false.into())
    );
    guest.stop();
}

/// One end of a channel, and whatever is said on it.
struct Raw {
    channel: Channel,
    framed: Framed,
}

impl Raw {
    fn host(listener: &Listener, service: &Service) -> Self {
        let deadline = Instant::now() + PATIENCE;
        wait_for(listener.as_fd(), Direction::Read, None, Some(deadline)).unwrap();
        let mut framed = Framed::accepted(listener.accept().unwrap());
        let never = EventFd::new().unwrap();
        let (frame, _) = framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
        assert_eq!(frame, Frame::hello_of(service));
        let offer = Offer::new(20480).unwrap();
        let channel = Frame::Channel {
            version: VERSION,
            interface: service.interface,
            instance: service.instance.unwrap_or_default(),
            shape: offer.shape,
        };
        framed.say(&channel, &offer.descriptors()).unwrap();
        Self {
            channel: offer.host().unwrap(),
            framed,
        }
    }

    fn guest(rig: &Rig, service: &Service) -> Self {
        let (framed, fds, shape) = join(rig, service);
        Self {
            channel: Channel::guest(shape, fds).unwrap(),
            framed,
        }
    }

    fn send(&mut self, payload: &[u8]) {
        let header = Header::in_band(1);
        self.channel.outgoing.send(header, &[payload]).unwrap();
        self.channel.flush().unwrap();
    }

    /// The next message.
    fn receive(&mut self) -> Vec<u8> {
        let mut packet = self.channel.packet().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.channel.incoming.refresh().unwrap();
            if self.channel.incoming.receive(&mut packet).unwrap() {
                let Contents::InBand { payload } = packet.contents().unwrap() else {
                    panic!("{packet:?}");
                };
                self.channel.flush().unwrap();
                return payload.to_vec();
            }
            assert!(Instant::now() < deadline, "nothing comes");
            self.channel.flush().unwrap();
            if !self.channel.arm().unwrap() {
                std::thread::yield_now();
            }
        }
    }
}

fn join(rig: &Rig, service: &Service) -> (Framed, Vec<OwnedFd>, Shape) {
    let mut framed = Framed::connect_with(&rig.socket, &Frame::hello_of(service)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let never = EventFd::new().unwrap();
    let (frame, fds) = framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
    let Frame::Channel {
        shape, interface, ..
    } = frame
    else {
        panic!("{frame:?}");
    };
    assert_eq!(interface, service.interface);
    (framed, fds, shape)
}

#[test]
fn a_hostile_host_gets_errors_and_the_guest_lives() {
    let rig = Rig::new();
    let listener = Listener::bind(&rig.socket).unwrap();
    let (program, told) = rig.recorder();
    let mut guest = rig.command("guest", &["--services", "shutdown", "--allow-shutdown"]);
    let mut guest = Program::start(guest.arg("--shutdown-command").arg(&program));
    let wish = Request {
        action: Action::PowerOff,
        force: false,
        reason: 0,
        timeout_s: 0,
        message: String::new(),
    };
    // Nonsense and what was not agreed upon first.
    let mut host = Raw::host(&listener, &SHUTDOWN);
    guest.event("shutdown", "joined");
    for nonsense in [&[][..], &[1; 27], &[0xFF; 64], &[0; 3000]] {
        host.send(nonsense);
    }
    // Some of it was answered; the next host knows nothing of that.
    drop(host);
    guest.event("shutdown", "left");
    let mut host = Raw::host(&listener, &SHUTDOWN);
    guest.event("shutdown", "joined");
    let mut requester = Requester::default();
    let start = requester.start();
    host.send(&start);
    assert!(matches!(
        requester.receive(&host.receive()),
        Ok(shutdown::Event::Ready(_))
    ));
    // Flags that mean nothing, and a message cut short: refused, and nothing is done.
    for short in [false, true] {
        let mut message = requester.request(&wish).unwrap();
        if short {
            message[18..20].copy_from_slice(&4_u16.to_le_bytes());
            message[4..8].copy_from_slice(&24_u32.to_le_bytes());
            message.truncate(32);
        } else {
            message[36] = 9;
        }
        host.send(&message);
        assert!(matches!(
            requester.receive(&host.receive()),
            Ok(shutdown::Event::Answered(status)) if !status.is_ok()
        ));
    }
    assert!(!told.exists());
    // Rings of nonsense: the guest leaves, and comes again.
    drop(host);
    guest.event("shutdown", "left");
    for index in [4_u32, 1 << 30] {
        let deadline = Instant::now() + PATIENCE;
        wait_for(listener.as_fd(), Direction::Read, None, Some(deadline)).unwrap();
        let mut framed = Framed::accepted(listener.accept().unwrap());
        let never = EventFd::new().unwrap();
        framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
        let offer = Offer::new(20480).unwrap();
        let channel = Frame::Channel {
            version: VERSION,
            interface: SHUTDOWN.interface,
            instance: SHUTDOWN.instance.unwrap(),
            shape: offer.shape,
        };
        framed.say(&channel, &offer.descriptors()).unwrap();
        guest.event("shutdown", "joined");
        rustix::io::pwrite(&offer.memory, &index.to_le_bytes(), 20480).unwrap();
        offer.call.signal().unwrap();
        let left = guest.event("shutdown", "left");
        assert!(left["reason"].as_str().unwrap().contains("ring"), "{left}");
    }
    // It is asked what only file copy knows, and does what is right after it.
    let mut host = Raw::host(&listener, &SHUTDOWN);
    guest.event("shutdown", "joined");
    host.framed
        .say(&Frame::Verify { offset: 0, len: 1 }, &[])
        .unwrap();
    let mut requester = Requester::default();
    host.send(&requester.start());
    requester.receive(&host.receive()).unwrap();
    host.send(&requester.request(&wish).unwrap());
    let answer = requester.receive(&host.receive());
    assert_eq!(answer, Ok(shutdown::Event::Answered(Status::OK)));
    assert!(settled(|| told.exists()));
    guest.stop();
}

#[test]
fn a_hostile_guest_is_given_up_and_the_host_lives() {
    let rig = Rig::new();
    let mut host = rig.host(&["--interval", "1", "--timeout", "1"]);
    // Indices that no ring has, and a kick.
    for value in [4_u32, 1 << 30] {
        let (_framed, fds, _) = join(&rig, &HEARTBEAT);
        rustix::io::pwrite(&fds[0], &value.to_le_bytes(), 0).unwrap();
        rustix::io::write(&fds[1], &1_u64.to_ne_bytes()).unwrap();
        let left = host.event("heartbeat", "left");
        assert!(left["reason"].as_str().unwrap().contains("ring"), "{left}");
    }
    // Messages that are none, and a frame that no guest says.
    for service in [&HEARTBEAT, &SHUTDOWN, &TIME_SYNC] {
        let mut raw = Raw::guest(&rig, service);
        raw.send(&[0xFF; 40]);
        let left = host.event("", "left");
        assert!(
            left["reason"].as_str().unwrap().contains("protocol"),
            "{left}"
        );
    }
    let (framed, _, _) = join(&rig, &HEARTBEAT);
    rustix::io::write(framed.as_fd(), &[12, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    host.event("heartbeat", "left");
    // It does not even negotiate.
    let (_framed, _, _) = join(&rig, &SHUTDOWN);
    let left = host.event("shutdown", "left");
    assert_eq!(left["reason"], "the guest does not answer");
    // A beat that is answered with another number.
    let mut raw = Raw::guest(&rig, &HEARTBEAT);
    let mut pulse =
        linkspan_vmbus::ic::Guest::new(heartbeat::Pulse::default(), linkspan_vmbus::ic::Echo::Full);
    for wrong in [false, true] {
        let mut message = raw.receive();
        pulse.receive(&mut message).unwrap();
        if wrong {
            message[28] ^= 0x40;
        }
        raw.send(&message);
    }
    host.event("heartbeat", "strange");
    drop(raw);
    // One that has the device keeps others out, and only from that.
    let _held = join(&rig, &HEARTBEAT);
    let mut second = rig.guest(&[]);
    second.event("timesync", "joined");
    host.event("timesync", "ready");
    second.stop();
    host.stop();
}

#[test]
fn what_cannot_be_is_told_with_its_status() {
    let rig = Rig::new();
    let run = |verb: &str, options: &[&str]| {
        let mut command = rig.command(verb, options);
        let output = command.env("LINKSPAN_LOG", "off").output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (status, _) = run("host", &["--services", "nonsense"]);
    assert_eq!(status, Some(2));
    let (status, said) = run("host", &["--services", "heartbeat", "--shutdown", "reboot"]);
    assert_eq!(status, Some(2), "{said}");
    // A guest that never comes: a signal ends it, and it was not done.
    let host = rig.host(&["--shutdown", "reboot"]);
    kill_process(Pid::from_child(&host.child), Signal::INT).unwrap();
    assert_eq!(host.status(), Some(1));
    // A guest that leaves before it answers.
    let host = rig.host(&["--services", "shutdown", "--shutdown", "reboot"]);
    drop(join(&rig, &SHUTDOWN));
    assert_eq!(host.status(), Some(3));
    let host = rig.host(&["--services", "shutdown", "--shutdown", "reboot"]);
    let mut raw = Raw::guest(&rig, &SHUTDOWN);
    raw.send(&[0xFF; 40]);
    assert_eq!(host.status(), Some(4));
    // A host without the service is one that may have it later.
    let host = rig.host(&["--services", "heartbeat"]);
    let guest = rig.guest(&["--services", "shutdown,heartbeat"]);
    let mut raw = Framed::connect_with(&rig.socket, &Frame::hello_of(&SHUTDOWN)).unwrap();
    let never = EventFd::new().unwrap();
    let deadline = Some(Instant::now() + PATIENCE);
    let (frame, _) = raw.await_frame(never.as_fd(), deadline).unwrap();
    assert_eq!(frame, Frame::Refused(Reason::Interface));
    host.stop();
    let mut host = rig.host(&["--services", "shutdown"]);
    host.event("shutdown", "ready");
    guest.stop();
    host.stop();
    // No device of the kernel on this machine.
    let mut command = Command::new(env!("CARGO_BIN_EXE_linkspan"));
    let output = command.args(["ic", "guest"]).output().unwrap();
    if !PathBuf::from("/sys/bus/vmbus").exists() {
        assert_eq!(output.status.code(), Some(5));
    }
}
