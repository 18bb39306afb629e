//! Ends that are stopped, leave, never rest or say nothing, at the real programs.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use linkspan_engine::vmbus::{Channel, Framed};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::{EventFd, Listener, Stream};
use linkspan_testkit::PATIENCE;
use linkspan_testkit::census::settled;
use linkspan_vmbus::fcopy::{self, Operation, Policy, Receiver, Roots};
use linkspan_vmbus::ic::{Echo, HEADER_BYTES, Reaction, Status};
use linkspan_vmbus::packet::Header;
use rustix::process::Signal;

use crate::hostile::{RawHost, join, message, start};
use crate::rig::{Program, Rig, Sent, pattern, program};

/// A guest that writes nothing and says that all went well.
struct Nodding {
    channel: Channel,
    service: fcopy::Guest,
    _framed: Framed,
}

impl Nodding {
    fn join(rig: &Rig) -> Self {
        let (framed, fds, shape) = join(rig);
        let policy = Policy {
            roots: Roots::new(&[rig.root.to_str().unwrap()]).unwrap(),
            max_size: u64::MAX,
        };
        Self {
            channel: Channel::guest(shape, fds).unwrap(),
            service: fcopy::Guest::new(Receiver::new(policy), Echo::Full),
            _framed: framed,
        }
    }

    /// Answers all until COMPLETE comes; gives the answer to that, which is not sent.
    fn until_complete(&mut self) -> (Header, Vec<u8>) {
        let mut packet = self.channel.packet().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.channel.incoming.refresh().unwrap();
            while self.channel.incoming.receive(&mut packet).unwrap() {
                let header = Header::in_band(packet.descriptor().transaction_id);
                let payload = packet.payload_mut();
                let last = payload.len() == HEADER_BYTES + 36
                    && payload[HEADER_BYTES] == Operation::Complete as u8;
                let mut reaction = self.service.receive(payload).unwrap();
                let len = loop {
                    match reaction {
                        Reaction::Reply(len) => break len,
                        Reaction::Do(_) => reaction = self.service.answer(Status::OK, payload),
                    }
                };
                if last {
                    return (header, payload[..len].to_vec());
                }
                let answer = &payload[..len];
                self.channel.outgoing.send(header, &[answer]).unwrap();
            }
            self.channel.flush().unwrap();
            assert!(Instant::now() < deadline, "COMPLETE does not come");
            if !self.channel.arm().unwrap() {
                std::thread::yield_now();
            }
        }
    }

    fn say(&mut self, (header, answer): &(Header, Vec<u8>)) {
        self.channel.outgoing.send(*header, &[answer]).unwrap();
        self.channel.flush().unwrap();
    }
}

/// Stops a program, and waits until it has stopped.
fn halt(program: &Program) {
    program.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", program.child.id());
    // The state follows the name, which is in parentheses.
    let stopped = || {
        let text = fs::read_to_string(&stat).unwrap();
        let (_, rest) = text.rsplit_once(") ").unwrap();
        rest.starts_with('T')
    };
    assert!(settled(stopped));
}

fn begin(rig: &Rig, options: &[&str]) -> Child {
    let source = rig.source("file", &pattern(10_000));
    let mut send = rig.send_command(&[source], options);
    send.stdout(Stdio::piped()).stderr(Stdio::piped());
    send.spawn().unwrap()
}

#[test]
fn a_guest_that_leaves_right_after_its_last_answer_has_the_file() {
    let rig = Rig::new();
    let mut host = rig.host(&[]);
    for (options, verified) in [(&["--no-verify"][..], false), (&[], true)] {
        let mut guest = Nodding::join(&rig);
        let send = begin(&rig, options);
        let last = guest.until_complete();
        // The host sees both at once: the answer, and that nobody is there.
        halt(&host);
        guest.say(&last);
        drop(guest);
        host.signal(Signal::CONT);
        let sent = Sent::of(send.wait_with_output().unwrap());
        sent.expect(0, &["done"]);
        // It cannot be read back any more, and that is said.
        assert_eq!(
            sent.said.contains("not verified"),
            verified,
            "{}",
            sent.said
        );
        host.event("left");
    }
    host.stop();
}

#[test]
fn a_guest_that_answered_while_the_host_was_stopped_is_not_given_up() {
    let rig = Rig::new();
    let host = rig.host(&[]);
    let mut guest = Nodding::join(&rig);
    let send = begin(&rig, &["--no-verify", "--timeout", "2"]);
    let last = guest.until_complete();
    halt(&host);
    guest.say(&last);
    // The guest's time passes, and nobody looks.
    let over = Instant::now() + Duration::from_millis(2100);
    let never = EventFd::new().unwrap();
    let woken = wait_for(never.as_fd(), Direction::Read, None, Some(over)).unwrap();
    assert_eq!(woken, Wake::Deadline);
    host.signal(Signal::CONT);
    let sent = Sent::of(send.wait_with_output().unwrap());
    sent.expect(0, &["done"]);
    host.stop();
}

#[test]
fn a_host_that_never_rests_does_not_keep_the_guest_from_its_end() {
    let rig = Rig::new();
    let listener = Listener::bind(&rig.socket).unwrap();
    let mut guest = Program::start(rig.guest_command(&[]));
    // Files without end: there is always more than the guest has done when it is filled again.
    let mut host = RawHost::meet_with(&listener, 2 << 20);
    guest.event("joined");
    let start = message(7, &start(&rig.root, 5000));
    let mut packet = host.channel.packet().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut full = false;
    let status = loop {
        let header = Header::in_band(1);
        for _ in 0..16 {
            let sent = host.channel.outgoing.send(header, &[&start]);
            if sent.is_err() && !std::mem::replace(&mut full, true) {
                guest.signal(Signal::TERM);
            }
        }
        host.channel.incoming.refresh().unwrap();
        while host.channel.incoming.receive(&mut packet).unwrap() {}
        host.channel.flush().unwrap();
        // Whoever gives room back to one that waits for it looks whether more has come.
        host.channel.outgoing.wait_for(u32::MAX).unwrap();
        if let Some(status) = guest.child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not hear the signal");
    };
    assert_eq!(status.code(), Some(0));
    assert!(rig.names().is_empty());
}

/// Connections that say nothing: more than a host keeps of one kind.
fn silent(path: &Path) -> Vec<Stream> {
    let mut streams = Vec::new();
    // Few may wait at a socket until somebody takes them.
    let full = || {
        streams.extend(Stream::connect(path));
        streams.len() == 40
    };
    assert!(settled(full));
    streams
}

#[test]
fn clients_that_say_nothing_keep_nobody_out() {
    let rig = Rig::new();
    let device = rig.folder.path().join("device");
    let host = rig.host(&["--device", device.to_str().unwrap()]);
    let mut guest = program();
    guest.args(["guest", "--json", "--root"]).arg(&rig.root);
    guest.arg("--connect").arg(&device);
    let mut guest = Program::start(guest);
    guest.event("joined");
    // Guests have a number of their own.
    let guests = silent(&device);
    rig.send(&[rig.source("first", b"1")], &[])
        .expect(0, &["done"]);
    // Those at the senders' socket have their time, and then go.
    let senders = silent(&rig.socket);
    let source = rig.source("second", b"2");
    assert_eq!(rig.send(&[&source], &[]).status, Some(3));
    for stream in &senders {
        let deadline = Instant::now() + PATIENCE;
        let left = wait_for(stream.as_fd(), Direction::Read, None, Some(deadline));
        assert_eq!(left.unwrap(), Wake::Ready, "it is kept");
    }
    rig.send(&[source], &[]).expect(0, &["done"]);
    drop((guests, senders));
    guest.stop();
    host.stop();
}
