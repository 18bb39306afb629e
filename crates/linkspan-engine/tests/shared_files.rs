//! Files that a front end gives besides guest memory: regions for requests in
//! flight that are too small, and the flags of all of them, which are the front
//! end's as well.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use linkspan_mem::Gpa;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_testkit::disk::room;
use linkspan_testkit::{DiskRing, FrontEnd, Options, Refused, Served, SharedMemory, logs};
use linkspan_vhost::message::Request;
use linkspan_virtio::{Features, QueueLayout};
use rustix::fs::fcntl_getfl;
use zerocopy::IntoBytes;

const QUEUES: u16 = 2;
const SIZE: u16 = 64;

fn bytes_for(layout: QueueLayout, queues: u16) -> u64 {
    layout.inflight_len(SIZE) as u64 * u64::from(queues)
}

/// `VHOST_USER_SET_INFLIGHT_FD` for two rings of 64 entries.
fn give(front: &FrontEnd, size: u64, offset: u64, file: &OwnedFd) -> Result<(), Refused> {
    let body = [[size, offset].as_bytes(), [QUEUES, SIZE, 0, 0].as_bytes()].concat();
    front.tell(Request::SetInflightFd, &body, &[file.as_fd()])
}

/// A negotiated session, with these features if they are set by now.
fn session(served: &Served, layout: Option<QueueLayout>) -> FrontEnd {
    let mut front = served.connect();
    front.negotiate(&Options::default()).unwrap();
    if layout == Some(QueueLayout::Packed) {
        set_packed(&front);
    }
    front
}

fn set_packed(front: &FrontEnd) {
    let features = front.features() | Features::VIRTIO_F_RING_PACKED.bits();
    let told = front.tell(Request::SetFeatures, features.as_bytes(), &[]);
    told.unwrap();
}

/// One byte less than the rings need is refused, whatever their layout.
#[test]
fn a_region_that_is_cut_short_is_refused_for_its_layout() {
    logs::capture();
    let served = Served::disk(QUEUES);
    for layout in [QueueLayout::Split, QueueLayout::Packed] {
        let front = session(&served, Some(layout));
        let need = bytes_for(layout, QUEUES);
        let file = memfd::create("region", need, Sealing::Fixed).unwrap();
        for size in [1, need / 2, need - 1] {
            let refused = give(&front, size, 0, &file);
            assert!(matches!(refused, Err(Refused::Nack { .. })), "{size}");
            let text =
                format!("an in-flight region of {size} bytes is too small for 2 rings of 64");
            logs::expect_line(&["VHOST_USER_SET_INFLIGHT_FD", &text]);
        }
        // What the message says and the file has not.
        for (size, offset) in [(need + 1, 0), (need, 64), (need, u64::MAX - need)] {
            let refused = give(&front, size, offset, &file);
            assert!(matches!(refused, Err(Refused::Nack { .. })), "{size}");
        }
        give(&front, need, 0, &file).unwrap();
        drop(front);
        served.next_end();
    }
    served.expect_serves();
}

/// Who gives the region before the features can give one that is too small for
/// packed rings. The rings that are in it run, the others are refused.
#[test]
fn a_region_of_split_rings_is_refused_when_a_packed_ring_starts() {
    logs::capture();
    let served = Served::disk(QUEUES);
    let mut front = served.connect();
    // Only to know the features.
    front.negotiate(&Options::default()).unwrap();
    let features = front.features();
    drop(front);
    served.next_end();

    let front = served.connect();
    let protocol = front.ask(Request::GetProtocolFeatures, &[], &[]).unwrap();
    let set = front.tell(Request::SetProtocolFeatures, &protocol, &[]);
    set.unwrap();
    let need = bytes_for(QueueLayout::Split, QUEUES);
    assert!(need < bytes_for(QueueLayout::Packed, QUEUES));
    let file = memfd::create("region", need, Sealing::Fixed).unwrap();
    give(&front, need, 0, &file).unwrap();
    let packed = features | Features::VIRTIO_F_RING_PACKED.bits();
    front
        .tell(Request::SetFeatures, packed.as_bytes(), &[])
        .unwrap();
    let memory = SharedMemory::new(room(QUEUES, SIZE), Gpa(0), Sealing::Fixed);
    front.set_table(&[Arc::clone(&memory)]).unwrap();
    let ring = DiskRing::new(&memory, 1, SIZE, features);
    // The part of ring 1 lies behind the end.
    let _ = front.start(&ring);
    front.expect_closed();
    let (reason, fault) = served.next_end();
    assert!(fault);
    let text = format!("an in-flight region of {need} bytes is too small for 2 rings of 64");
    assert!(
        reason.contains("VHOST_USER_SET_VRING_KICK") && reason.contains(&text),
        "{reason}"
    );
    served.expect_serves();
}

/// QEMU 4c58843e5d: `O_NONBLOCK` belongs to the open file, which the front end
/// shares.
#[test]
fn flags_of_memory_descriptors_stay() {
    let served = Served::disk(1);
    let mut front = served.connect();
    front.negotiate(&Options::default()).unwrap();
    let memory = SharedMemory::new(room(1, SIZE), Gpa(0), Sealing::Fixed);
    let region = memfd::create("region", 1 << 20, Sealing::Fixed).unwrap();
    let log = memfd::create("log", 1 << 20, Sealing::Fixed).unwrap();
    let files = [memory.as_fd(), region.as_fd(), log.as_fd()];
    let before = files.map(|file| fcntl_getfl(file).unwrap());
    front.set_table(&[Arc::clone(&memory)]).unwrap();
    give_one(&front, &region).unwrap();
    front.set_log(log.as_fd(), 1 << 20, 0).unwrap();
    let ring = DiskRing::new(&memory, 0, SIZE, front.features());
    front.start(&ring).unwrap();
    front.enable(0, true).unwrap();
    front.sync().unwrap();
    let after = files.map(|file| fcntl_getfl(file).unwrap());
    assert_eq!(before, after);
}

fn give_one(front: &FrontEnd, file: &OwnedFd) -> Result<(), Refused> {
    let body = [[1u64 << 20, 0].as_bytes(), [1u16, SIZE, 0, 0].as_bytes()].concat();
    front.tell(Request::SetInflightFd, &body, &[file.as_fd()])
}

/// QEMU fails when a back end that comes back has fewer slots, so every
/// connection is offered the same.
#[test]
fn every_connection_is_offered_the_same() {
    let served = Served::disk(3);
    let offers = || {
        let front = served.connect();
        let offer = [
            Request::GetFeatures,
            Request::GetProtocolFeatures,
            Request::GetQueueNum,
        ]
        .map(|request| front.ask(request, &[], &[]).unwrap());
        front
            .tell(Request::SetProtocolFeatures, &offer[1], &[])
            .unwrap();
        let slots = front.ask(Request::GetMaxMemSlots, &[], &[]).unwrap();
        drop(front);
        served.next_end();
        (offer, slots)
    };
    let first = offers();
    for _ in 0..3 {
        served.drive(2).shut_down();
        served.next_end();
        assert_eq!(offers(), first);
    }
}
