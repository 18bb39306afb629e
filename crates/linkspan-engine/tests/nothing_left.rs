//! Broken messages of every kind in every state, connections that end anywhere:
//! the process goes on serving and holds afterwards what it held before.
//!
//! A census is of the whole process, so all of this is one test.

use std::os::fd::{AsFd, BorrowedFd};

use linkspan_mem::Gpa;
use linkspan_sys::memfd::Sealing;
use linkspan_sys::{EventFd, reaper};
use linkspan_testkit::census::{settled, start_reaper};
use linkspan_testkit::disk::{SECTOR, room};
use linkspan_testkit::front_end::{single, state};
use linkspan_testkit::{Census, Disk, DiskRing, FrontEnd, Io, Options, Served, SharedMemory};
use linkspan_vhost::message::{FRONTEND_REQUESTS, Request};
use linkspan_vhost::wire::{self, HEADER_BYTES, Header, MemoryTableHeader};
use zerocopy::IntoBytes;

type Case = fn(&Served);

const CASES: [(&str, Case); 11] = [
    ("orderly sessions", orderly),
    (
        "every message with wrong size, descriptors and flags in every state",
        matrix,
    ),
    ("numbers that name no message", unknown_numbers),
    ("a message that ends early", truncated),
    ("byte by byte", byte_by_byte),
    ("a conversation in one piece", one_piece),
    ("too many descriptors", too_many_fds),
    ("descriptors in the middle of a message", late_fds),
    (
        "a connection that ends after each byte of a bring-up",
        ends_anywhere,
    ),
    ("a connection that ends under requests", ends_under_requests),
    ("one hundred quick reconnects", reconnects),
];

#[test]
fn nothing_is_left_whatever_a_front_end_does() {
    start_reaper();
    let outside = Census::at_rest();
    let served = Served::disk(2);
    served.expect_serves();
    let before = Census::at_rest();
    for (name, case) in CASES {
        println!("{name}");
        case(&served);
        before.assert_restored(name);
        served.expect_serves();
        assert!(settled(|| reaper::backlog() == 0), "{name}");
    }
    served.stop();
    outside.assert_restored("after the server stopped");
}

/// How far a session has come when the broken message arrives.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Fresh,
    Negotiated,
    WithMemory,
    Running,
}

/// A session at a stage, with what keeps it there.
fn at(served: &Served, stage: Stage) -> (FrontEnd, Option<Disk>) {
    let mut front = served.connect();
    match stage {
        Stage::Fresh => {}
        Stage::Negotiated => front.negotiate(&Options::default()).unwrap(),
        Stage::WithMemory => {
            front.negotiate(&Options::default()).unwrap();
            let memory = SharedMemory::new(1 << 16, Gpa(0), Sealing::Fixed);
            front.set_table(&[memory]).unwrap();
        }
        Stage::Running => {
            let disk = Disk::bring_up(front, &Options::default(), 2, 8).unwrap();
            let Disk {
                front,
                memory,
                rings,
            } = disk;
            // The connection goes to the caller, the rest is kept beside it.
            let spare = FrontEnd::over(linkspan_sys::Stream::pair().unwrap().0);
            let rest = Disk {
                front: spare,
                memory,
                rings,
            };
            return (front, Some(rest));
        }
    }
    (front, None)
}

/// Whether the back end still answers, whatever it said before.
fn answers(front: &FrontEnd) -> bool {
    let question = wire::encode(Request::GetFeatures.code(), 0, &[]);
    if !front.send_raw(&question, &[]) {
        return false;
    }
    while let Some((header, body)) = front.receive() {
        if header.request == Request::GetFeatures.code() && body.len() == 8 {
            return true;
        }
    }
    false
}

fn orderly(served: &Served) {
    for _ in 0..3 {
        let mut disk = served.drive(2);
        disk.rings[1].flush();
        disk.shut_down();
    }
}

fn matrix(served: &Served) {
    let stages = [
        Stage::Fresh,
        Stage::Negotiated,
        Stage::WithMemory,
        Stage::Running,
    ];
    for row in &FRONTEND_REQUESTS {
        let sizes = row.payload.sizes();
        let (least, most) = (*sizes.start(), *sizes.end());
        let right = least..=most;
        let mut broken = Vec::new();
        for size in [0, 1, 4, 7, 8, 9, 12, 20, 40, 264, 268, 4096, least, most] {
            for fds in [0, 1, 8] {
                for fill in [0, 0xff] {
                    broken.push((row.code, 0, vec![fill; size], fds));
                }
            }
            if !right.contains(&size) {
                broken.push((row.code, Header::NEED_REPLY, vec![0; size], 0));
            }
        }
        for flags in [Header::NEED_REPLY, Header::REPLY, 1 << 4, 1 << 31] {
            broken.push((row.code, flags, vec![0; least], row.min_fds));
        }
        for stage in stages {
            // Several in one session as long as it lives, so that they meet
            // states that others left behind.
            let mut session = at(served, stage);
            for (code, flags, body, fds) in &broken {
                let event = EventFd::new().unwrap();
                let fds = vec![event.as_fd(); *fds];
                session.0.send_raw(&wire::encode(*code, *flags, body), &fds);
                if !answers(&session.0) {
                    session = at(served, stage);
                }
            }
            // One front end at a time.
            drop(session);
            // The version is wrong, and nothing can follow.
            for version in [0, 2, 3] {
                let (front, _rest) = at(served, stage);
                let header = header(row.code, version, 0);
                front.send_raw(header.as_bytes(), &[]);
                front.expect_closed();
            }
        }
    }
}

fn header(request: u32, flags: u32, size: u32) -> Header {
    Header {
        request,
        flags,
        size,
    }
}

fn unknown_numbers(served: &Served) {
    for code in [0, 45, 46, 1000, 1006, 1 << 16, u32::MAX] {
        for flags in [0, Header::NEED_REPLY] {
            for size in [0, 8, 4096] {
                let (front, _rest) = at(served, Stage::Negotiated);
                front.send_raw(&wire::encode(code, flags, &vec![0; size]), &[]);
                let nacked = answers(&front);
                assert_eq!(nacked, flags != 0, "{code} with flags {flags}");
            }
        }
    }
    for size in [4097, 1 << 20, 1 << 31, u32::MAX] {
        let (front, _rest) = at(served, Stage::Negotiated);
        front.send_raw(header(1, 1, size).as_bytes(), &[]);
        front.expect_closed();
    }
}

fn truncated(served: &Served) {
    let memory = SharedMemory::new(4096, Gpa(0), Sealing::Fixed);
    let message = wire::encode(Request::AddMemReg.code(), 0, &single(&memory));
    for len in 1..message.len() {
        let (front, _rest) = at(served, Stage::Negotiated);
        front.send_raw(&message[..len], &[memory.as_fd()]);
    }
}

/// Messages that bring one ring up, each with its descriptors.
struct Script {
    steps: Vec<(Vec<u8>, Vec<usize>)>,
    memory: std::sync::Arc<SharedMemory>,
    ring: DiskRing,
}

impl Script {
    fn new() -> Self {
        let memory = SharedMemory::new(room(1, 8), Gpa(0), Sealing::Fixed);
        let features = 1u64 << 32 | 1 << 30 | 1 << 28;
        let ring = DiskRing::new(&memory, 0, 8, features);
        let table = MemoryTableHeader {
            num_regions: 1,
            padding: 0,
        };
        let table = [table.as_bytes(), memory.description().as_bytes()].concat();
        let ask = |request: Request, body: &[u8], fds: &[usize]| {
            let bytes = wire::encode(request.code(), Header::NEED_REPLY, body);
            (bytes, fds.to_vec())
        };
        let zero = 0u64;
        // MQ, REPLY_ACK, CONFIG and CONFIGURE_MEM_SLOTS.
        let protocol = 1u64 | 1 << 3 | 1 << 9 | 1 << 15;
        let steps = vec![
            ask(Request::GetFeatures, &[], &[]),
            ask(Request::GetProtocolFeatures, &[], &[]),
            ask(Request::SetProtocolFeatures, protocol.as_bytes(), &[]),
            ask(Request::GetQueueNum, &[], &[]),
            ask(Request::SetOwner, &[], &[]),
            ask(Request::SetVringCall, zero.as_bytes(), &[2]),
            ask(Request::SetFeatures, features.as_bytes(), &[]),
            ask(
                Request::GetConfig,
                &[[0; 4], [96, 0, 0, 0], [0; 4]].concat(),
                &[],
            ),
            ask(Request::SetMemTable, &table, &[0]),
            ask(Request::SetVringNum, &state(0, 8), &[]),
            ask(Request::SetVringBase, &state(0, 0), &[]),
            ask(Request::SetVringAddr, ring.address().as_bytes(), &[]),
            ask(Request::SetVringErr, zero.as_bytes(), &[3]),
            ask(Request::SetVringKick, zero.as_bytes(), &[1]),
            ask(Request::SetVringEnable, &state(0, 1), &[]),
            ask(Request::SetMemTable, &table, &[0]),
            ask(Request::SetVringKick, zero.as_bytes(), &[1]),
            ask(Request::GetVringBase, &state(0, 0), &[]),
        ];
        Self {
            steps,
            memory,
            ring,
        }
    }

    fn fds(&self, names: &[usize]) -> Vec<BorrowedFd<'_>> {
        let ring = &self.ring;
        let all = [
            self.memory.as_fd(),
            ring.kick.as_fd(),
            ring.call.as_fd(),
            ring.err.as_fd(),
        ];
        names.iter().map(|name| all[*name]).collect()
    }
}

fn byte_by_byte(served: &Served) {
    let script = Script::new();
    let front = served.connect();
    for (bytes, fds) in &script.steps {
        let (first, rest) = bytes.split_at(1);
        assert!(front.send_raw(first, &script.fds(fds)));
        for byte in rest.chunks(1) {
            assert!(front.send_raw(byte, &[]));
        }
    }
    for (bytes, _) in &script.steps {
        let (header, _) = front.receive().expect("a reply to each message");
        assert_eq!(header.request.to_ne_bytes(), bytes[..4]);
    }
}

fn one_piece(served: &Served) {
    let script = Script::new();
    let front = served.connect();
    let without_fds = script.steps.iter().filter(|(_, fds)| fds.is_empty());
    let messages: Vec<_> = without_fds.take(6).collect();
    let bytes: Vec<u8> = messages
        .iter()
        .flat_map(|(bytes, _)| bytes.clone())
        .collect();
    assert!(front.send_raw(&bytes, &[]));
    for _ in &messages {
        assert!(front.receive().is_some(), "a reply to each message");
    }
}

fn too_many_fds(served: &Served) {
    let event = EventFd::new().unwrap();
    for count in [9, 10, 64, 253] {
        for stage in [Stage::Fresh, Stage::Running] {
            let (front, _rest) = at(served, stage);
            let fds = vec![event.as_fd(); count];
            front.send_raw(&wire::encode(Request::SetOwner.code(), 0, &[]), &fds);
            front.expect_closed();
        }
    }
}

fn late_fds(served: &Served) {
    let memory = SharedMemory::new(4096, Gpa(0), Sealing::Fixed);
    let message = wire::encode(Request::AddMemReg.code(), 0, &single(&memory));
    for at_byte in [1, HEADER_BYTES, HEADER_BYTES + 1, message.len() - 1] {
        let (front, _rest) = at(served, Stage::Negotiated);
        front.send_raw(&message[..at_byte], &[memory.as_fd()]);
        front.send_raw(&message[at_byte..], &[memory.as_fd()]);
        front.expect_closed();
    }
}

fn ends_anywhere(served: &Served) {
    let script = Script::new();
    for last in 0..script.steps.len() {
        let len = script.steps[last].0.len();
        for cut in [1, HEADER_BYTES - 1, HEADER_BYTES, len - 1, len] {
            let front = served.connect();
            for (bytes, fds) in &script.steps[..last] {
                front.send_raw(bytes, &script.fds(fds));
            }
            let (bytes, fds) = &script.steps[last];
            front.send_raw(&bytes[..cut.min(len)], &script.fds(fds));
        }
    }
}

fn ends_under_requests(served: &Served) {
    for _ in 0..20 {
        let mut disk = served.drive(2);
        for ring in &mut disk.rings {
            for sector in 0..16 {
                ring.submit(Io::Write {
                    sector,
                    data: &[1; SECTOR],
                });
            }
        }
        drop(disk);
        // Half a message is under way as well.
        let disk = served.drive(2);
        disk.front.send_raw(
            &wire::encode(Request::GetVringBase.code(), 0, &state(0, 0)),
            &[],
        );
    }
}

fn reconnects(served: &Served) {
    for round in 0..100 {
        match round % 3 {
            0 => drop(served.connect()),
            1 => drop(served.drive(2)),
            _ => {
                let disk = served.drive(1);
                disk.front.stop(0).unwrap();
            }
        }
    }
}
