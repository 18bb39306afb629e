//! Both ends, over both rings of a channel, saved and restored at every step.

use std::collections::BTreeMap;

use linkspan_mem::{Region, Window};
use linkspan_vmbus::fcopy::{
    Effect, Failure, Guest, Job, Options, Output, Place, Receiver, Sender, Target,
};
use linkspan_vmbus::ic::{Echo, Reaction, Status};
use linkspan_vmbus::packet::Header;
use linkspan_vmbus::{Incoming, Outgoing, Packet, Shape};

use crate::{pattern, policy};

/// One end of a channel.
struct Side {
    outgoing: Outgoing<Window>,
    incoming: Incoming<Window>,
    packet: Packet,
    signals: usize,
}

impl Side {
    fn next(&mut self) -> bool {
        self.incoming.refresh().unwrap();
        self.incoming.receive(&mut self.packet).unwrap()
    }

    /// Ends a pass.
    fn flush(&mut self) {
        self.signals += usize::from(self.incoming.release().unwrap());
        self.signals += usize::from(self.outgoing.publish().unwrap());
    }
}

/// A channel of this size; guest and host.
fn channel(len: u64) -> (Side, Side) {
    let region = Region::heap(usize::try_from(2 * len).unwrap()).unwrap();
    let rings = || Shape::halves(2 * len, 4096).rings(&region, 0).unwrap();
    let side = |swap: bool| {
        let mut rings = rings();
        if swap {
            rings.reverse();
        }
        let [outgoing, incoming] = rings;
        let incoming = Incoming::new(incoming).unwrap();
        Side {
            packet: Packet::new(incoming.packet_max()).unwrap(),
            outgoing: Outgoing::new(outgoing).unwrap(),
            incoming,
            signals: 0,
        }
    };
    (side(false), side(true))
}

/// Files in the guest, by their paths.
#[derive(Default)]
struct Disk {
    files: BTreeMap<String, Vec<u8>>,
    /// What is being written.
    open: Option<(Place, Vec<u8>)>,
    room: usize,
}

impl Disk {
    fn carry_out(&mut self, effect: &Effect, payload: &[u8]) -> Status {
        match effect {
            Effect::Open(place) => {
                if self.files.contains_key(&path(place)) && !place.overwrite {
                    return Status::ALREADY_EXISTS;
                }
                self.open = Some((place.clone(), Vec::new()));
            }
            Effect::Write { offset, data } => {
                let (_, bytes) = self.open.as_mut().expect("a file");
                let at = usize::try_from(*offset).unwrap();
                if at + data.len() > self.room {
                    return Status::DISK_FULL;
                }
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[at..at + data.len()].copy_from_slice(&payload[data.clone()]);
            }
            Effect::Finish => {
                let (place, bytes) = self.open.take().expect("a file");
                self.files.insert(path(&place), bytes);
            }
            Effect::Discard => self.open = None,
        }
        Status::OK
    }
}

fn path(place: &Place) -> String {
    let name = match &place.target {
        Target::In { name } => name,
        Target::At { last, .. } => last,
    };
    format!("{}/{}/{name}", place.root, place.folder)
}

struct Pair {
    host: Side,
    guest: Side,
    sender: Sender,
    receiver: Guest,
    disk: Disk,
    options: Options,
    echo: Echo,
    /// Whether both ends are saved and restored between any two steps.
    cut: bool,
    steps: usize,
}

impl Pair {
    fn new(ring: u64, outstanding: usize, echo: Echo, cut: bool) -> Self {
        let (guest, host) = channel(ring);
        let options = Options { outstanding };
        Self {
            host,
            guest,
            sender: Sender::new(options).unwrap(),
            receiver: Guest::new(Receiver::new(policy()), echo),
            disk: Disk {
                room: usize::MAX,
                ..Disk::default()
            },
            options,
            echo,
            cut,
            steps: 0,
        }
    }

    /// Sends what there is room for; gives what else comes.
    fn host_turn(&mut self, source: &[u8]) -> Option<Output> {
        while self.host.next() {
            self.sender.receive(self.host.packet.payload());
        }
        let mut found = None;
        while self.host.outgoing.refresh().unwrap() as usize >= Outgoing::<Window>::room_of(6224) {
            let header = Header::in_band(1);
            let outgoing = &mut self.host.outgoing;
            match self.sender.poll_output() {
                Some(Output::Send(message)) => outgoing.send(header, &[&message]).unwrap(),
                Some(Output::Write {
                    head,
                    offset,
                    len,
                    padding,
                }) => {
                    let at = usize::try_from(offset).unwrap();
                    let parts = [&head[..], &source[at..at + len], &vec![0; padding]];
                    outgoing.send(header, &parts).unwrap();
                }
                other => {
                    found = other;
                    break;
                }
            }
        }
        self.host.flush();
        found
    }

    fn guest_turn(&mut self) {
        while self.guest.next() {
            let payload = self.guest.packet.payload_mut();
            let mut reaction = self.receiver.receive(payload).unwrap();
            let len = loop {
                match reaction {
                    Reaction::Reply(len) => break len,
                    Reaction::Do(effect) => {
                        let status = self.disk.carry_out(&effect, payload);
                        reaction = self.receiver.answer(status, payload);
                    }
                }
            };
            let reply = &self.guest.packet.payload()[..len];
            let header = Header::in_band(self.guest.packet.descriptor().transaction_id);
            self.guest.outgoing.send(header, &[reply]).unwrap();
            if self.cut {
                break;
            }
        }
        self.guest.flush();
    }

    fn cut(&mut self) {
        self.steps += 1;
        if !self.cut {
            return;
        }
        if let Ok(saved) = self.sender.snapshot() {
            self.sender = Sender::restore(self.options, &saved).unwrap();
            assert_eq!(self.sender.snapshot().unwrap(), saved);
        }
        let saved = self.receiver.snapshot().expect("nothing is under way");
        let receiver = Receiver::new(policy());
        self.receiver = Guest::restore(receiver, self.echo, &saved).unwrap();
        assert_eq!(self.receiver.snapshot().unwrap(), saved);
    }

    /// Until the host says how it went.
    fn run(&mut self, source: &[u8]) -> Output {
        for _ in 0..10_000 {
            if let Some(output) = self.host_turn(source) {
                return output;
            }
            self.cut();
            self.guest_turn();
            self.cut();
        }
        panic!("it never ends");
    }

    fn copy(&mut self, file: &str, path: &str, overwrite: bool, source: &[u8]) -> Output {
        let job = Job {
            file: file.into(),
            path: path.into(),
            overwrite,
            create_path: true,
            size: source.len() as u64,
        };
        self.sender.send(&job).unwrap();
        self.run(source)
    }
}

#[test]
fn files_of_every_size_arrive_through_every_ring() {
    for (ring, outstanding, echo) in [
        (16 << 10, 1, Echo::Full),
        (20 << 10, 2, Echo::Full),
        (68 << 10, 8, Echo::Header),
        (2 << 20, 32, Echo::Header),
    ] {
        for cut in [false, true] {
            let mut pair = Pair::new(ring, outstanding, echo, cut);
            assert_eq!(pair.run(&[]), Output::Ready);
            for len in [0, 1, 6143, 6144, 6145, 100_000] {
                let source = pattern(len);
                let name = format!("naïve-日本-{len}");
                assert_eq!(
                    pair.copy(&name, "/srv/in/a/b/", false, &source),
                    Output::Done
                );
                let arrived = &pair.disk.files[&format!("0/a/b/{name}")];
                assert!(*arrived == source, "{len} bytes");
            }
            assert!(pair.disk.open.is_none());
        }
    }
}

#[test]
fn failures_come_back_and_leave_nothing() {
    for cut in [false, true] {
        let mut pair = Pair::new(20 << 10, 2, Echo::Full, cut);
        assert_eq!(pair.run(&[]), Output::Ready);
        assert_eq!(pair.copy("f", "/tmp/", false, b"old"), Output::Done);
        let failed = |output| match output {
            Output::Failed(Failure::Refused { status, .. }) => status,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            failed(pair.copy("f", "/tmp/", false, b"new")),
            Status::ALREADY_EXISTS
        );
        assert_eq!(
            failed(pair.copy("f", "/etc/", false, b"new")),
            Status::INVALID_ARGUMENT
        );
        pair.disk.room = 10_000;
        assert_eq!(
            failed(pair.copy("f", "/tmp/", true, &pattern(50_000))),
            Status::DISK_FULL
        );
        assert!(pair.disk.open.is_none());
        assert_eq!(pair.disk.files["1//f"], b"old", "the old file is as it was");
        assert_eq!(pair.copy("f", "/tmp/", true, b"new"), Output::Done);
        assert_eq!(pair.disk.files["1//f"], b"new");
    }
}

/// Stopped after any number of steps: nothing is left, and the next file arrives.
#[test]
fn a_copy_stopped_anywhere_leaves_nothing() {
    let source = pattern(40_000);
    for after in 0..30 {
        let mut pair = Pair::new(20 << 10, 2, Echo::Full, true);
        assert_eq!(pair.run(&[]), Output::Ready);
        let job = Job {
            file: "f".into(),
            path: "/tmp/".into(),
            overwrite: false,
            create_path: false,
            size: 40_000,
        };
        pair.sender.send(&job).unwrap();
        let mut done = None;
        for _ in 0..after {
            done = pair.host_turn(&source);
            if done.is_some() {
                break;
            }
            pair.guest_turn();
            pair.cut();
        }
        if done.is_none() {
            pair.sender.cancel(Failure::Stopped);
            done = Some(pair.run(&source));
        }
        if done == Some(Output::Done) {
            assert_eq!(pair.disk.files.len(), 1);
        } else {
            assert_eq!(done, Some(Output::Failed(Failure::Stopped)));
            assert!(pair.disk.files.is_empty());
        }
        assert!(pair.disk.open.is_none());
        assert_eq!(pair.copy("g", "/tmp/", false, b"next"), Output::Done);
    }
}
