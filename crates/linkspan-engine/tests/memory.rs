//! Memory of a front end over a real socket: what is accepted, how it changes
//! under rings that run, and what happens when it is taken back.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_mem::Gpa;
use linkspan_sys::EventFd;
use linkspan_sys::memfd::{self, SealFlags, Sealing};
use linkspan_testkit::disk::{SECTOR, room};
use linkspan_testkit::front_end::{single, state};
use linkspan_testkit::served::content;
use linkspan_testkit::{
    Disk, DiskRing, FrontEnd, Io, Options, Refused, Served, SharedMemory, logs,
};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{MemoryRegionDescription, MemoryTableHeader, VringAddr};
use zerocopy::IntoBytes;

const SLOTS: Options = Options {
    ack_bit_30: true,
    reply_ack: true,
    mem_slots: true,
    without: 0,
    packed: false,
};

fn negotiated(served: &Served) -> FrontEnd {
    let mut front = served.connect();
    front.negotiate(&SLOTS).unwrap();
    front
}

fn table(regions: &[(u64, u64, u64, u64)]) -> Vec<u8> {
    let regions: Vec<_> = regions.iter().map(|region| wire(*region)).collect();
    let header = MemoryTableHeader {
        num_regions: u32::try_from(regions.len()).unwrap(),
        padding: 0,
    };
    [header.as_bytes(), regions.as_bytes()].concat()
}

fn wire((guest, size, user, offset): (u64, u64, u64, u64)) -> MemoryRegionDescription {
    MemoryRegionDescription {
        guest_address: guest,
        size,
        user_address: user,
        mmap_offset: offset,
    }
}

#[track_caller]
fn refused(result: Result<(), Refused>, what: &str) {
    assert!(
        matches!(result, Err(Refused::Nack { .. })),
        "{what}: {result:?}"
    );
}

#[test]
fn files_that_are_no_memory_are_refused_by_name() {
    logs::capture();
    let served = Served::disk(1);
    let front = negotiated(&served);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, [0; 4096]).unwrap();
    let regular = File::options().read(true).write(true).open(&path).unwrap();
    let zero = File::options()
        .read(true)
        .write(true)
        .open("/dev/zero")
        .unwrap();
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let event: OwnedFd = EventFd::new().unwrap().into();
    let directory = File::open("/").unwrap();
    let mut kinds: Vec<(&str, BorrowedFd<'_>)> = vec![
        ("/dev/zero", zero.as_fd()),
        ("pipe", pipe.as_fd()),
        ("eventfd", event.as_fd()),
        ("directory", directory.as_fd()),
        ("socket", front.as_fd()),
    ];
    // What the build folder lies on may be a tmpfs, whose files are memory.
    if memfd::seals(&regular).is_err() {
        kinds.push(("regular file", regular.as_fd()));
    } else {
        println!("SKIP: regular file: the build folder is on a tmpfs");
    }
    for (what, fd) in kinds {
        let body = table(&[(0, 4096, 0x1000, 0)]);
        refused(front.tell(Request::SetMemTable, &body, &[fd]), what);
    }
    logs::expect_line(&["VHOST_USER_SET_MEM_TABLE", "the file is not a memfd"]);
    // The link lives, and takes memory that is right.
    let memory = SharedMemory::new(4096, Gpa(0), Sealing::Fixed);
    front.set_table(&[memory]).unwrap();
}

#[test]
fn memory_that_cannot_be_written_is_refused() {
    let served = Served::disk(1);
    let front = negotiated(&served);
    let sealed = memfd::create("sealed", 4096, Sealing::Open).unwrap();
    memfd::add_seals(&sealed, SealFlags::WRITE).unwrap();
    let body = table(&[(0, 4096, 0x1000, 0)]);
    refused(
        front.tell(Request::SetMemTable, &body, &[sealed.as_fd()]),
        "sealed against writes",
    );
    front.sync().unwrap();
}

#[test]
fn regions_that_cannot_be_are_refused() {
    logs::capture();
    let served = Served::disk(1);
    let front = negotiated(&served);
    let file = memfd::create("small", 0x4000, Sealing::Fixed).unwrap();
    let fds = [file.as_fd(), file.as_fd()];
    let one = [
        ("longer than the file", (0, 0x5000, 0x1000, 0)),
        ("behind the file", (0, 0x1000, 0x1000, 0x4000)),
        (
            "far behind the file",
            (0, 0x1000, 0x1000, u64::MAX - 0x1000),
        ),
        ("empty", (0, 0, 0x1000, 0)),
        ("wraps in the guest", (u64::MAX - 0xFFF, 0x2000, 0x1000, 0)),
        ("wraps in the front end", (0, 0x2000, u64::MAX - 0xFFF, 0)),
        ("size wraps", (0x1000, u64::MAX, 0x1000, 0)),
        ("misaligned", (0, 0x1000, 0x1000, 4)),
    ];
    for (what, region) in one {
        let body = table(&[region]);
        refused(front.tell(Request::SetMemTable, &body, &fds[..1]), what);
        let body = [&[0; 8], wire(region).as_bytes()].concat();
        refused(front.tell(Request::AddMemReg, &body, &fds[..1]), what);
    }
    let two = [
        (
            "overlap in the guest",
            (0, 0x2000, 0x1000, 0),
            (0x1FFF, 0x1000, 0x9000, 0),
        ),
        (
            "overlap in the front end",
            (0, 0x2000, 0x1000, 0),
            (0x2000, 0x1000, 0x2FFF, 0),
        ),
        (
            "twice the same",
            (0, 0x2000, 0x1000, 0),
            (0, 0x2000, 0x1000, 0),
        ),
    ];
    for (what, first, second) in two {
        let body = table(&[first, second]);
        refused(front.tell(Request::SetMemTable, &body, &fds), what);
    }
    logs::expect_line(&[
        "VHOST_USER_ADD_MEM_REG",
        "does not fit a file of 0x4000 bytes",
    ]);
    logs::expect_line(&["VHOST_USER_SET_MEM_TABLE", "overlap a region from"]);
    // Neighbours are no overlap.
    let body = table(&[(0, 0x2000, 0x1000, 0), (0x2000, 0x2000, 0x3000, 0x2000)]);
    front.tell(Request::SetMemTable, &body, &fds).unwrap();
}

/// libvhost-user 4fafedc9da, 316ee11144: identical and absent regions.
#[test]
fn slots_are_added_once_and_removed_once() {
    let served = Served::disk(1);
    let front = negotiated(&served);
    let memory = SharedMemory::new(4096, Gpa(0), Sealing::Fixed);
    for _ in 0..3 {
        front.add(&memory).unwrap();
        refused(front.add(&memory), "twice");
        front.remove(&memory).unwrap();
        refused(front.remove(&memory), "absent");
    }
    // QEMU a81d8d4a72, libvhost-user fa3d5483f0: a descriptor that is to be closed.
    front.add(&memory).unwrap();
    front
        .tell(Request::RemMemReg, &single(&memory), &[memory.as_fd()])
        .unwrap();
}

/// Writes rounds of sectors while `change` runs, and reads all back.
fn keeps_data_right(options: &Options, change: impl Fn(&FrontEnd, &Disk, u64)) {
    let served = Served::disk(2);
    let mut disk = Disk::bring_up(served.connect(), options, 2, 64).unwrap();
    for round in 0..30 {
        let data = |sector: u64| content(sector * 1000 + round);
        for sector in 0..8 {
            for (part, ring) in (0..).zip(&mut disk.rings) {
                let sector = part * 100 + sector;
                ring.submit(Io::Write {
                    sector,
                    data: &data(sector),
                });
            }
        }
        change(&disk.front, &disk, round);
        for (part, ring) in (0..).zip(&mut disk.rings) {
            for _ in 0..8 {
                assert_eq!(ring.wait().status, 0);
            }
            for sector in 0..8 {
                let sector = part * 100 + sector;
                assert_eq!(ring.read(sector, SECTOR), data(sector), "sector {sector}");
            }
        }
    }
    disk.shut_down();
    served.expect_serves();
}

#[test]
fn memory_table_replaced_under_running_rings() {
    let extra = SharedMemory::new(1 << 16, Gpa(1 << 40), Sealing::Fixed);
    keeps_data_right(&Options::default(), |front, disk, round| {
        let mut regions = vec![Arc::clone(&disk.memory)];
        if round % 2 == 0 {
            regions.insert(0, Arc::clone(&extra));
        }
        front.set_table(&regions).unwrap();
    });
}

#[test]
fn memory_slots_change_under_running_rings() {
    let extra = SharedMemory::new(1 << 16, Gpa(1 << 40), Sealing::Fixed);
    keeps_data_right(&SLOTS, |front, _, _| {
        front.add(&extra).unwrap();
        front.remove(&extra).unwrap();
    });
}

#[test]
fn table_change_that_is_refused_leaves_running_rings_as_they_were() {
    let file = memfd::create("small", 0x4000, Sealing::Fixed).unwrap();
    keeps_data_right(&Options::default(), |front, _, _| {
        let body = table(&[(0, 0x5000, 0x1000, 0)]);
        let result = front.tell(Request::SetMemTable, &body, &[file.as_fd()]);
        refused(result, "longer than the file");
    });
}

/// QEMU 27806d2ddb, c85f42703d: a ring that could not be mapped ended the whole
/// process. Here it does not start, and the others run.
#[test]
fn ring_outside_memory_is_refused_and_the_others_run() {
    logs::capture();
    let served = Served::disk(2);
    let front = negotiated(&served);
    let memory = SharedMemory::new(room(2, 64), Gpa(0), Sealing::Fixed);
    front.share(&[Arc::clone(&memory)]).unwrap();
    let [mut kept, mut lost] =
        [0, 1].map(|index| DiskRing::new(&memory, index, 64, front.features()));
    front.start(&kept).unwrap();
    front.enable(0, true).unwrap();
    let right = lost.address();
    let end = memory.user(0).0 + memory.len();
    for wrong in [
        VringAddr {
            descriptor: 0,
            ..right
        },
        VringAddr {
            available: end,
            ..right
        },
        // Its last byte is outside.
        VringAddr {
            used: end - (6 + 8 * 64) + 4,
            ..right
        },
        VringAddr {
            used: u64::MAX - 3,
            ..right
        },
    ] {
        let told = front.tell(Request::SetVringNum, &state(1, 64), &[]);
        told.unwrap();
        let set = front.tell(Request::SetVringAddr, wrong.as_bytes(), &[]);
        set.unwrap();
        let started = front.set_event(Request::SetVringKick, 1, &lost.kick);
        refused(started, "outside memory");
        assert_eq!(kept.read(2, SECTOR), content(2));
    }
    logs::expect_line(&["VHOST_USER_SET_VRING_KICK", "ring address"]);
    front.start(&lost).unwrap();
    front.enable(1, true).unwrap();
    assert_eq!(lost.read(3, SECTOR), content(3));
}

#[test]
fn memory_removed_under_a_ring_retires_that_ring_only() {
    logs::capture();
    let served = Served::disk(2);
    let front = negotiated(&served);
    let memories =
        [Gpa(0), Gpa(1 << 40)].map(|guest| SharedMemory::new(room(1, 64), guest, Sealing::Fixed));
    front.share(&memories).unwrap();
    let [mut kept, mut lost] = [0, 1].map(|index| {
        let memory = &memories[usize::from(index)];
        DiskRing::new(memory, index, 64, front.features())
    });
    for ring in [&mut kept, &mut lost] {
        front.start(ring).unwrap();
        front.enable(ring.index(), true).unwrap();
        assert_eq!(ring.read(1, SECTOR), content(1));
    }
    for round in 0..3 {
        front.remove(&memories[1]).unwrap();
        lost.expect_broken();
        logs::expect_line(&["retired", "ring=1", "ring address"]);
        assert_eq!(kept.read(round, SECTOR), content(round));
        assert_eq!(kept.err.drain().unwrap(), 0, "the other ring is whole");
        // The memory comes back; the ring does once it is stopped and started.
        front.add(&memories[1]).unwrap();
        let base = front.stop(1).unwrap();
        assert_eq!(base, lost.base());
        front.start(&lost).unwrap();
        assert_eq!(lost.read(round, SECTOR), content(round));
    }
}

#[test]
fn chain_into_removed_memory_retires_the_ring() {
    logs::capture();
    let served = Served::disk(1);
    let front = negotiated(&served);
    let rings = SharedMemory::new(room(1, 64), Gpa(0), Sealing::Fixed);
    front.share(&[Arc::clone(&rings)]).unwrap();
    let mut ring = DiskRing::new(&rings, 0, 64, front.features());
    front.start(&ring).unwrap();
    front.enable(0, true).unwrap();
    // Ring and buffers are the same bytes; the guest address of the buffers moves.
    front.set_table(&[rings.moved(Gpa(1 << 40))]).unwrap();
    ring.expect_broken();
    let base = front.stop(0).unwrap();
    let moved = rings.moved(Gpa(1 << 40));
    ring.reset(base);
    ring.move_to(&moved);
    front.start(&ring).unwrap();
    assert_eq!(ring.read(3, SECTOR), content(3));
}

/// Takes memory back under rings that run, down to `left` bytes.
fn shrinks(left: u64) {
    let served = Served::disk(2);
    let memory = SharedMemory::new(room(2, 64), Gpa(0), Sealing::Open);
    for _ in 0..5 {
        let memory = SharedMemory::new(memory.len(), Gpa(0), Sealing::Open);
        let front = served.connect();
        let mut disk = Disk::bring_up_in(front, &Options::default(), &memory, 2, 64).unwrap();
        for ring in &mut disk.rings {
            for sector in 0..16 {
                ring.submit(Io::Read {
                    sector,
                    len: SECTOR,
                });
            }
        }
        memory.truncate(left);
        for ring in &disk.rings {
            ring.kick();
        }
        disk.front.expect_closed();
        let (reason, fault) = served.next_end();
        assert_eq!(reason, "the front end took back memory that it had shared");
        assert!(fault);
    }
    served.expect_serves();
    served.stop();
}

#[test]
fn memory_that_is_taken_back_ends_the_link_by_name() {
    shrinks(0);
}

#[test]
fn buffers_that_are_taken_back_end_the_link_by_name() {
    // The first page has the first ring; what it points to is gone.
    shrinks(4096);
}
