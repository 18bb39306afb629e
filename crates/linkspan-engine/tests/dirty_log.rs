//! The dirty log of live migration against a naive one: what the device wrote is
//! marked, and what it did not write is not.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use linkspan_mem::{Gpa, SplitRing, Window};
use linkspan_sys::EventFd;
use linkspan_sys::memfd::Sealing;
use linkspan_testkit::disk::{SECTOR, expect_signal, room};
use linkspan_testkit::served::content;
use linkspan_testkit::{DiskRing, FrontEnd, Io, Options, Refused, Served, SharedMemory, logs};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::VringAddr;
use zerocopy::IntoBytes;

const PAGE: u64 = 4096;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT_DESC: u64 = 1 << 28;

/// Guest addresses of the two regions, and where used rings are logged, which is
/// no guest memory.
const REGIONS: [Gpa; 2] = [Gpa(0x10_0000), Gpa(1 << 30)];
const USED: [u64; 2] = [(1 << 30) + (64 << 20), (1 << 30) + (64 << 20) + 0x3456_780c];

/// Bytes of a log that reaches behind all of that, and where it begins in its file.
const LOG_BYTES: u64 = 1 << 18;
const LOG_OFFSET: u64 = 8192;

/// A log in a file with some bytes on either side, which nobody may write.
struct Log(Arc<SharedMemory>);

impl Log {
    fn new() -> Self {
        Self(SharedMemory::new(
            LOG_OFFSET + LOG_BYTES + 4096,
            Gpa(0),
            Sealing::Open,
        ))
    }

    fn give(&self, front: &FrontEnd, bytes: u64) -> Result<(), Refused> {
        front.set_log(self.0.as_fd(), bytes, LOG_OFFSET)
    }

    /// Takes the marked pages and clears the log.
    #[track_caller]
    fn take(&self) -> BTreeSet<u64> {
        let bytes = self.0.read(0, usize::try_from(self.0.len()).unwrap());
        let (before, rest) = bytes.split_at(usize::try_from(LOG_OFFSET).unwrap());
        let (log, behind) = rest.split_at(usize::try_from(LOG_BYTES).unwrap());
        assert!(before.iter().chain(behind).all(|byte| *byte == 0));
        self.0.write(LOG_OFFSET, &vec![0; log.len()]);
        let bytes = (0..).zip(log).filter(|(_, byte)| **byte != 0);
        bytes
            .flat_map(|(at, byte)| {
                (0..8).filter_map(move |bit| (byte >> bit & 1 == 1).then_some(at * 8 + bit))
            })
            .collect()
    }
}

struct Guest {
    served: Served,
    front: FrontEnd,
    memory: [Arc<SharedMemory>; 2],
    rings: [DiskRing; 2],
    log: Log,
    /// The sector that no request has asked for yet.
    fresh: u64,
}

impl Guest {
    /// A disk with one ring in each region, not logged so far.
    fn new(without: u64, size: u16) -> Self {
        let served = Served::disk(2);
        let mut front = served.connect();
        let options = Options {
            without,
            mem_slots: true,
            ..Options::default()
        };
        front.negotiate(&options).unwrap();
        let memory = REGIONS.map(|guest| SharedMemory::new(room(1, size), guest, Sealing::Fixed));
        front.share(&memory).unwrap();
        let rings = [0, 1].map(|index| {
            let memory = &memory[usize::from(index)];
            // Used rings do not begin where pages do.
            memory.take(64 * 7);
            DiskRing::new(memory, index, size, front.features())
        });
        for ring in &rings {
            front.start(ring).unwrap();
            front.enable(ring.index(), true).unwrap();
        }
        let log = Log::new();
        Self {
            served,
            front,
            memory,
            rings,
            log,
            fresh: 0,
        }
    }

    fn log_rings(&self, on: bool) -> Result<(), Refused> {
        self.rings.iter().zip(USED).try_for_each(|(ring, log)| {
            let address = VringAddr {
                flags: on.into(),
                log,
                ..ring.address()
            };
            self.front
                .tell(Request::SetVringAddr, address.as_bytes(), &[])
        })
    }

    fn log_everything(&self) {
        self.log.give(&self.front, LOG_BYTES).unwrap();
        self.front.log_all(true).unwrap();
        self.log_rings(true).unwrap();
    }

    /// Lets the device do some requests of each kind, and compares what it
    /// changed with what it marked. `logged`: data, used rings.
    #[track_caller]
    fn compare(&mut self, logged: [bool; 2]) {
        for ring in 0..2 {
            self.front.enable(ring, false).unwrap();
        }
        let data = content(3).repeat(8);
        let mut count = 0;
        for ring in &mut self.rings {
            let reads = [(0, 512), (1, 16384), (32, 4096), (40, 512)];
            for (sector, len) in reads {
                ring.add(Io::Read {
                    sector: self.fresh + sector,
                    len,
                });
            }
            ring.add(Io::Write {
                sector: self.fresh,
                data: &data,
            });
            ring.add(Io::Flush);
            // Outside the disk: nothing but the status is written.
            ring.add(Io::Read {
                sector: 1 << 40,
                len: 16384,
            });
            self.fresh += 50;
            count = 7;
        }
        let whole =
            |memory: &Arc<SharedMemory>| memory.read(0, usize::try_from(memory.len()).unwrap());
        let before = self.memory.each_ref().map(whole);
        self.log.take();
        for ring in 0..2 {
            self.front.enable(ring, true).unwrap();
        }
        for ring in &mut self.rings {
            for _ in 0..count {
                // Not by `wait`, which writes to the ring.
                ring.wait_polling();
            }
        }
        // All passes are over then.
        for ring in 0..2 {
            self.front.enable(ring, false).unwrap();
        }
        let mut expected = BTreeSet::new();
        for (index, before) in before.iter().enumerate() {
            let (memory, ring) = (&self.memory[index], &self.rings[index]);
            let used = ring.address().used - memory.user(0).0;
            let used = used..used + SplitRing::<Window>::used_len(ring.size()) as u64;
            for (at, (old, new)) in (0..).zip(before.iter().zip(whole(memory))) {
                if *old == new {
                    continue;
                }
                let address = if used.contains(&at) {
                    logged[1].then_some(USED[index] + at - used.start)
                } else {
                    logged[0].then_some(memory.guest(at).0)
                };
                expected.extend(address.map(|address| address / PAGE));
            }
        }
        assert_eq!(self.log.take(), expected);
        assert_eq!(expected.is_empty(), logged == [false, false]);
        for ring in 0..2 {
            self.front.enable(ring, true).unwrap();
        }
    }
}

#[test]
fn marked_pages_are_those_that_changed() {
    for (without, size) in [
        (0, 8),
        (0, 1024),
        (EVENT_IDX, 8),
        (EVENT_IDX, 1024),
        (INDIRECT_DESC, 64),
    ] {
        let mut guest = Guest::new(without, size);
        guest.log_everything();
        for _ in 0..8 {
            guest.compare([true, true]);
        }
    }
}

#[test]
fn logging_begins_and_ends_under_running_rings() {
    let mut guest = Guest::new(0, 64);
    guest.log.give(&guest.front, LOG_BYTES).unwrap();
    for _ in 0..4 {
        guest.compare([false, false]);
        guest.front.log_all(true).unwrap();
        guest.compare([true, false]);
        guest.log_rings(true).unwrap();
        guest.compare([true, true]);
        guest.front.log_all(false).unwrap();
        guest.compare([false, true]);
        guest.log_rings(false).unwrap();
    }
}

#[test]
fn requests_under_way_survive_changes_of_the_log() {
    let mut guest = Guest::new(0, 64);
    let other = Log::new();
    for round in 0..40 {
        for ring in &mut guest.rings {
            for sector in 0..8 {
                let sector = round * 8 + sector;
                ring.submit(Io::Read {
                    sector,
                    len: SECTOR,
                });
            }
        }
        let log = if round % 2 == 0 { &guest.log } else { &other };
        log.give(&guest.front, LOG_BYTES).unwrap();
        guest.front.log_all(round % 3 == 0).unwrap();
        guest.log_rings(round % 5 == 0).unwrap();
        for ring in &mut guest.rings {
            let mut done: Vec<_> = (0..8).map(|_| ring.wait().data).collect();
            done.sort();
            let mut data: Vec<_> = (0..8).map(|at| content(round * 8 + at)).collect();
            data.sort();
            assert_eq!(done, data);
        }
    }
}

/// DPDK unmaps the log of before (QEMU 7c211eb078).
#[test]
fn second_log_replaces_the_first() {
    let mut guest = Guest::new(0, 64);
    guest.log_everything();
    guest.compare([true, true]);
    let first = std::mem::replace(&mut guest.log, Log::new());
    guest.log.give(&guest.front, LOG_BYTES).unwrap();
    first.take();
    guest.compare([true, true]);
    assert_eq!(first.take(), BTreeSet::new());
    // Nothing of it is mapped any more: a front end that takes it back harms nobody.
    first.0.truncate(0);
    guest.compare([true, true]);
}

/// rust-vmm: the log is installed in the regions that exist, and later ones have none.
#[test]
fn memory_that_comes_later_is_logged_as_well() {
    let mut guest = Guest::new(0, 64);
    guest.log_everything();
    let more = SharedMemory::new(1 << 16, Gpa(1 << 20 << 9), Sealing::Fixed);
    guest.front.add(&more).unwrap();
    guest.compare([true, true]);
    let moved = guest.memory[1].moved(Gpa(more.guest(0).0 + (1 << 24)));
    guest.front.stop(1).unwrap();
    guest.front.remove(&guest.memory[1]).unwrap();
    guest.front.add(&moved).unwrap();
    guest.rings[1].move_to(&moved);
    guest.memory[1] = moved;
    guest.front.start(&guest.rings[1]).unwrap();
    guest.log_rings(true).unwrap();
    guest.compare([true, true]);
    guest.front.remove(&more).unwrap();
    guest.compare([true, true]);
}

#[test]
fn ring_that_starts_while_the_guest_migrates_is_logged() {
    let mut guest = Guest::new(0, 64);
    guest.log_everything();
    for _ in 0..3 {
        guest.front.stop(0).unwrap();
        guest.front.start(&guest.rings[0]).unwrap();
        // It started without its flag.
        guest.log_rings(true).unwrap();
        guest.compare([true, true]);
    }
}

#[test]
fn log_that_is_too_small_is_refused_by_name() {
    logs::capture();
    let last = REGIONS[1].0 + room(1, 64) - 1;
    let need = last / PAGE / 8 + 1;
    let guest = Guest::new(0, 64);
    guest.log.give(&guest.front, need).unwrap();
    guest.front.log_all(true).unwrap();
    // The used ring is behind it.
    let refused = guest.log_rings(true);
    assert!(matches!(refused, Err(Refused::Nack { .. })), "{refused:?}");
    logs::expect_line(&[
        "VHOST_USER_SET_VRING_ADDR",
        "does not reach to the used ring",
    ]);
    // Memory that has no bits is not taken, and the rest goes on.
    let behind = SharedMemory::new(1 << 16, Gpa(1 << 40), Sealing::Fixed);
    let refused = guest.front.add(&behind);
    assert!(matches!(refused, Err(Refused::Nack { .. })), "{refused:?}");
    logs::expect_line(&[
        "VHOST_USER_ADD_MEM_REG",
        "is too small for memory up to 0x1000000ffff",
    ]);
    // Not logged, it needs none; but logging cannot begin then.
    guest.front.log_all(false).unwrap();
    guest.front.add(&behind).unwrap();
    let refused = guest.front.log_all(true);
    assert!(matches!(refused, Err(Refused::Nack { .. })), "{refused:?}");
    guest.front.remove(&behind).unwrap();
    guest.front.log_all(true).unwrap();
    // This message has no way to say no.
    let refused = guest.log.give(&guest.front, need - 1);
    assert!(
        matches!(refused, Err(Refused::Closed { .. })),
        "{refused:?}"
    );
    let (reason, fault) = guest.served.next_end();
    let named = format!("a dirty log of {} bytes is too small", need - 1);
    assert!(fault && reason.contains(&named), "{reason}");
    guest.served.expect_serves();
}

#[test]
fn used_ring_whose_log_address_wraps_is_refused() {
    let guest = Guest::new(0, 64);
    guest.log_everything();
    let address = VringAddr {
        flags: 1,
        log: u64::MAX - 8,
        ..guest.rings[0].address()
    };
    let refused = guest
        .front
        .tell(Request::SetVringAddr, address.as_bytes(), &[]);
    assert!(matches!(refused, Err(Refused::Nack { .. })), "{refused:?}");
}

#[test]
fn file_that_cannot_be_a_log_ends_the_session_by_name() {
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let small = SharedMemory::new(4096, Gpa(0), Sealing::Fixed);
    let cases = [
        (
            pipe.as_fd(),
            LOG_BYTES,
            "the dirty log: the file is not a memfd",
        ),
        (
            small.as_fd(),
            LOG_BYTES,
            "does not fit a file of 0x1000 bytes",
        ),
        (small.as_fd(), u64::MAX - LOG_OFFSET, "does not fit a file"),
        (small.as_fd(), 0, "0x0 bytes from 0x2000 of a file"),
    ];
    for (fd, size, named) in cases {
        let guest = Guest::new(0, 8);
        let refused = guest.front.set_log(fd, size, LOG_OFFSET);
        assert!(
            matches!(refused, Err(Refused::Closed { .. })),
            "{refused:?}"
        );
        let (reason, _) = guest.served.next_end();
        assert!(reason.contains(named), "{reason}");
        guest.served.expect_serves();
    }
}

/// Front ends that take every feature have no log.
#[test]
fn feature_without_a_log_serves() {
    let mut guest = Guest::new(0, 64);
    guest.front.log_all(true).unwrap();
    guest.compare([false, false]);
}

#[test]
fn who_wants_to_hear_of_the_log_is_told() {
    let mut guest = Guest::new(0, 64);
    guest.log_everything();
    let changed = EventFd::new().unwrap();
    guest
        .front
        .tell(Request::SetLogFd, &[], &[changed.as_fd()])
        .unwrap();
    guest.compare([true, true]);
    expect_signal(&changed, "the log changed, and nobody is told");
}

#[test]
fn log_that_is_taken_back_ends_the_link_by_name() {
    let mut guest = Guest::new(0, 64);
    guest.log_everything();
    guest.log.0.truncate(0);
    guest.rings[0].submit(Io::Read {
        sector: 0,
        len: SECTOR,
    });
    guest.front.expect_closed();
    let (reason, fault) = guest.served.next_end();
    assert_eq!(reason, "the front end took back memory that it had shared");
    assert!(fault);
    guest.served.expect_serves();
}
