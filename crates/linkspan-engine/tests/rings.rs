//! Rings over a real socket: when they start, what wakes them, where they stop.

use std::os::fd::{AsFd, OwnedFd};

use linkspan_mem::Gpa;
use linkspan_sys::EventFd;
use linkspan_sys::memfd::Sealing;
use linkspan_testkit::disk::{SECTOR, expect_signal, room};
use linkspan_testkit::front_end::state;
use linkspan_testkit::served::content;
use linkspan_testkit::{
    Disk, DiskRing, FrontEnd, Io, Options, Refused, Served, SharedMemory, logs,
};
use linkspan_vhost::message::Request;
use linkspan_virtio::Features;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zerocopy::{FromBytes, IntoBytes};

const FIRST: Io<'static> = Io::Read {
    sector: 0,
    len: SECTOR,
};

/// A connection with one ring that is not started.
fn prepared(served: &Served, options: &Options) -> (FrontEnd, DiskRing) {
    let mut front = served.connect();
    let memory = SharedMemory::new(room(1, 64), Gpa(0), Sealing::Fixed);
    front.negotiate(options).unwrap();
    front.share(std::slice::from_ref(&memory)).unwrap();
    let ring = DiskRing::new(&memory, 0, 64, front.features());
    (front, ring)
}

#[test]
fn requests_from_before_the_start_are_served_without_a_kick() {
    let served = Served::disk(1);
    let (front, mut ring) = prepared(&served, &Options::default());
    front.enable(0, true).unwrap();
    ring.add(FIRST);
    front.start(&ring).unwrap();
    assert_eq!(ring.wait().data, content(0));
}

/// rust-vmm vhost #247, #343, #374, #375; libvhost-user 1ace07171a.
#[test]
fn kick_before_enable_is_not_lost() {
    let served = Served::disk(1);
    let (front, mut ring) = prepared(&served, &Options::default());
    front.start(&ring).unwrap();
    ring.add(FIRST);
    ring.kick();
    front.sync().unwrap();
    assert_eq!(
        ring.poll(),
        None,
        "a ring that is not enabled takes nothing"
    );
    front.enable(0, true).unwrap();
    assert_eq!(ring.wait().data, content(0));
}

#[test]
fn disabled_ring_rests_and_goes_on() {
    let served = Served::disk(1);
    let mut disk = served.drive(1);
    for _ in 0..20 {
        disk.front.enable(0, false).unwrap();
        disk.rings[0].add(FIRST);
        disk.rings[0].kick();
        disk.front.sync().unwrap();
        assert_eq!(disk.rings[0].poll(), None);
        disk.front.enable(0, true).unwrap();
        assert_eq!(disk.rings[0].wait().data, content(0));
    }
    disk.shut_down();
}

/// rust-vmm vhost #210 and #227; QEMU before 7.2 never acknowledges bit 30.
#[test]
fn old_qemu_gets_enabled_rings() {
    let served = Served::disk(2);
    let options = Options {
        ack_bit_30: false,
        ..Options::default()
    };
    let mut disk = Disk::bring_up(served.connect(), &options, 2, 64).unwrap();
    assert_eq!(disk.rings[0].read(5, SECTOR), content(5));
    assert_eq!(disk.rings[1].read(6, SECTOR), content(6));
    disk.shut_down();
}

#[test]
fn front_end_without_acknowledgements_is_served() {
    let served = Served::disk(1);
    for mem_slots in [false, true] {
        let options = Options {
            reply_ack: false,
            mem_slots,
            ..Options::default()
        };
        let mut disk = Disk::bring_up(served.connect(), &options, 1, 64).unwrap();
        assert_eq!(disk.rings[0].read(5, SECTOR), content(5));
        disk.shut_down();
    }
}

#[test]
fn new_kick_descriptor_is_listened_to_and_the_ring_scanned() {
    let served = Served::disk(1);
    let mut disk = served.drive(1);
    let ring = &mut disk.rings[0];
    for round in 0..20 {
        // As if a kick of the old descriptor had been missed.
        ring.add(Io::Read {
            sector: round,
            len: SECTOR,
        });
        let fresh = EventFd::new().unwrap();
        disk.front
            .set_event(Request::SetVringKick, 0, &fresh)
            .unwrap();
        assert_eq!(ring.wait().data, content(round));
        ring.kick = fresh;
        assert_eq!(ring.read(round + 1, SECTOR), content(round + 1));
    }
    disk.shut_down();
}

#[test]
fn new_call_descriptor_is_signalled_and_the_old_one_is_not() {
    let served = Served::disk(1);
    let mut disk = served.drive(1);
    let ring = &mut disk.rings[0];
    assert_eq!(ring.read(1, SECTOR), content(1));
    let fresh = EventFd::new().unwrap();
    disk.front
        .set_event(Request::SetVringCall, 0, &fresh)
        .unwrap();
    // A notification may have gone to the old one at the last moment.
    expect_signal(&fresh, "the new descriptor is not signalled at once");
    let old = std::mem::replace(&mut ring.call, fresh);
    old.drain().unwrap();
    for sector in 0..20 {
        assert_eq!(ring.read(sector, SECTOR), content(sector));
    }
    assert_eq!(old.drain().unwrap(), 0);
    disk.shut_down();
}

/// Whoever waits on a peer's descriptor gives the peer a thread.
#[test]
fn full_call_descriptor_that_blocks_holds_nobody() {
    let served = Served::disk(2);
    let mut disk = served.drive(2);
    let full: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    disk.front
        .tell(Request::SetVringCall, 0u64.as_bytes(), &[full.as_fd()])
        .unwrap();
    for sector in 0..4 {
        disk.rings[0].submit(Io::Read {
            sector,
            len: SECTOR,
        });
        assert_eq!(disk.rings[0].wait_polling().data, content(sector));
        assert_eq!(disk.rings[1].read(sector, SECTOR), content(sector));
    }
    disk.shut_down();
}

#[test]
fn ring_without_call_descriptor_is_served() {
    let served = Served::disk(1);
    let mut disk = served.drive(1);
    let nofd = 1u64 << 8;
    disk.front
        .tell(Request::SetVringCall, nofd.as_bytes(), &[])
        .unwrap();
    disk.rings[0].submit(FIRST);
    assert_eq!(disk.rings[0].wait_polling().data, content(0));
}

const NOFD: u64 = 1 << 8;

/// vhost-user, `VHOST_USER_SET_VRING_KICK` with `NOFD`: nobody says when there is
/// something to do.
#[test]
fn rings_without_kick_descriptor_are_polled_and_starve_nobody() {
    let served = Served::disk(4);
    let mut disk = served.drive(4);
    for ring in [0u64, 1, 2] {
        for request in [Request::SetVringKick, Request::SetVringCall] {
            let body = ring | NOFD;
            disk.front.tell(request, body.as_bytes(), &[]).unwrap();
        }
    }
    for round in 0..50 {
        // Two workers have two rings each: one polls both of its own, the other one.
        for (sector, ring) in (round..).zip(&mut disk.rings) {
            ring.add(Io::Read {
                sector,
                len: SECTOR,
            });
        }
        disk.rings[3].kick();
        for (sector, ring) in (round..).zip(&mut disk.rings) {
            assert_eq!(ring.wait_polling().data, content(sector));
        }
    }
    disk.shut_down();
    let end = served.next_end();
    assert!(!end.1, "{}", end.0);
}

#[test]
fn polled_ring_starts_rests_breaks_and_stops_like_any_other() {
    let served = Served::disk(2);
    let (front, mut ring) = prepared(&served, &Options::default());
    front.enable(0, true).unwrap();
    for _ in 0..3 {
        front.start(&ring).unwrap();
        let nofd = NOFD.as_bytes();
        front.tell(Request::SetVringKick, nofd, &[]).unwrap();
        ring.add(FIRST);
        assert_eq!(ring.wait_polling().data, content(0));
        // Disabled, it takes nothing and is polled again afterwards.
        front.enable(0, false).unwrap();
        ring.add(FIRST);
        front.sync().unwrap();
        assert_eq!(ring.poll(), None);
        front.enable(0, true).unwrap();
        assert_eq!(ring.wait_polling().data, content(0));
        // With a descriptor it sleeps again, and is woken.
        let fresh = EventFd::new().unwrap();
        front.set_event(Request::SetVringKick, 0, &fresh).unwrap();
        ring.kick = fresh;
        assert_eq!(ring.read(1, SECTOR), content(1));
        front.tell(Request::SetVringKick, nofd, &[]).unwrap();
        assert_eq!(front.stop(0).unwrap(), ring.base());
    }
    // It may start as one that is polled, too, and be given up as one.
    let index = state(0, 64);
    front.tell(Request::SetVringNum, &index, &[]).unwrap();
    let base = state(0, ring.base().into());
    front.tell(Request::SetVringBase, &base, &[]).unwrap();
    let address = ring.address();
    let told = front.tell(Request::SetVringAddr, address.as_bytes(), &[]);
    told.unwrap();
    let nofd = NOFD.as_bytes();
    front.tell(Request::SetVringKick, nofd, &[]).unwrap();
    ring.add(FIRST);
    assert_eq!(ring.wait_polling().data, content(0));
    front.set_event(Request::SetVringErr, 0, &ring.err).unwrap();
    let beyond = ring.base().wrapping_add(1000);
    ring.raw().publish_available_index(beyond);
    ring.expect_broken();
    front.stop(0).unwrap();
}

#[test]
fn base_is_where_the_driver_stands_and_the_ring_goes_on_there() {
    let served = Served::disk(1);
    let mut disk = served.drive(1);
    for round in 0..10 {
        for sector in 0..round {
            assert_eq!(disk.rings[0].read(sector, SECTOR), content(sector));
        }
        let base = disk.front.stop(0).unwrap();
        assert_eq!(base, disk.rings[0].base());
        // Asked again, it says the same.
        assert_eq!(disk.front.stop(0).unwrap(), base);
        disk.front.start(&disk.rings[0]).unwrap();
    }
    disk.shut_down();
}

/// `VIRTIO_F_RING_RESET`: a ring that was reset begins anew, and the other one is
/// served all the time.
#[test]
fn one_ring_is_reset_and_begins_anew_while_the_other_runs() {
    let served = Served::disk(2);
    let mut disk = served.drive(2);
    let reset = Features::VIRTIO_F_RING_RESET.bits();
    assert_eq!(disk.front.features() & reset, reset, "it is offered");
    for round in 1..5 {
        for sector in 0..round {
            assert_eq!(disk.rings[0].read(sector, SECTOR), content(sector));
        }
        disk.rings[1].add(FIRST);
        disk.front.stop(0).unwrap();
        disk.rings[1].kick();
        assert_eq!(disk.rings[1].wait().data, content(0));
        disk.rings[0].raw().publish_used_index(0);
        disk.rings[0].reset(0);
        disk.front.start(&disk.rings[0]).unwrap();
        assert_eq!(disk.rings[0].read(7, SECTOR), content(7));
        assert_eq!(disk.rings[0].raw().used_index(), 1, "from the beginning");
    }
    disk.shut_down();
}

#[test]
fn stop_waits_for_the_requests_that_were_taken() {
    let served = Served::disk(1);
    let mut disk = served.drive(1);
    for _ in 0..50 {
        for sector in 0..16 {
            disk.rings[0].submit(Io::Read {
                sector,
                len: SECTOR,
            });
        }
        // Everything before the base was answered, and nothing behind it.
        let base = disk.front.stop(0).unwrap();
        assert_eq!(disk.rings[0].raw().used_index(), base);
        disk.front.start(&disk.rings[0]).unwrap();
        for _ in 0..16 {
            let done = disk.rings[0].wait();
            assert_eq!(done.status, 0);
        }
    }
    disk.shut_down();
}

#[test]
fn positions_wrap_at_65536() {
    let served = Served::disk(1);
    let (front, mut ring) = prepared(&served, &Options::default());
    ring.raw().publish_used_index(65_530);
    ring.reset(65_530);
    front.start(&ring).unwrap();
    front.enable(0, true).unwrap();
    for sector in 0..20 {
        assert_eq!(ring.read(sector, SECTOR), content(sector));
    }
    assert_eq!(front.stop(0).unwrap(), 14);
}

#[test]
fn every_ring_size_serves_or_is_refused() {
    let served = Served::disk(1);
    for shift in 0..=10 {
        let size = 1 << shift;
        let mut disk = Disk::bring_up(served.connect(), &Options::default(), 1, size).unwrap();
        for sector in 0..4 {
            assert_eq!(disk.rings[0].read(sector, SECTOR), content(sector));
        }
        disk.shut_down();
    }
    let (front, _) = prepared(&served, &Options::default());
    for size in [0, 3, 100, 1023, 1025, 2048, 32768, 65536, u32::MAX] {
        let refused = front.tell(Request::SetVringNum, &state(0, size), &[]);
        assert!(matches!(refused, Err(Refused::Nack { .. })), "{size}");
    }
}

#[test]
fn two_hundred_and_fifty_six_queues_serve() {
    // Both ends of three descriptors for each ring are in this process.
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < 2048) {
        println!("SKIP: 2048 open files are not allowed here (ulimit -Hn)");
        return;
    }
    let raised = Rlimit {
        current: Some(limit.current.unwrap_or(2048).max(2048)),
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let served = Served::disk(256);
    let mut disk = Disk::bring_up(served.connect(), &Options::default(), 256, 4).unwrap();
    let count = disk.front.ask(Request::GetQueueNum, &[], &[]).unwrap();
    assert_eq!(u64::read_from_bytes(&count).unwrap(), 256);
    for round in 0..2 {
        for (sector, ring) in (round..).zip(&mut disk.rings) {
            assert_eq!(ring.read(sector, SECTOR), content(sector));
        }
    }
    let beyond = disk.front.tell(Request::SetVringNum, &state(256, 4), &[]);
    assert!(matches!(beyond, Err(Refused::Nack { .. })));
    disk.shut_down();
}

#[test]
fn descriptors_that_are_no_eventfds_are_refused() {
    logs::capture();
    let served = Served::disk(1);
    let mut disk = served.drive(1);
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let file = std::fs::File::open("/dev/zero").unwrap();
    for request in [
        Request::SetVringKick,
        Request::SetVringCall,
        Request::SetVringErr,
    ] {
        for fd in [pipe.as_fd(), file.as_fd(), disk.front.as_fd()] {
            let refused = disk.front.tell(request, 0u64.as_bytes(), &[fd]);
            assert!(matches!(refused, Err(Refused::Nack { .. })), "{request:?}");
        }
    }
    logs::expect_line(&["VHOST_USER_SET_VRING_CALL", "is not an eventfd"]);
    // What it had before still works.
    assert_eq!(disk.rings[0].read(3, SECTOR), content(3));
    disk.shut_down();
}
