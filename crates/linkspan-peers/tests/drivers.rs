//! Our disk under drivers that others wrote: every byte that they read and write
//! is right, with one queue and with four, split and packed, again and again, and
//! nothing of them is left.
//!
//! A census is of the whole process, so all of this is one test.

use linkspan_peers::driver::exercise;
use linkspan_peers::{
    Blkio, Driver, PackedBases, RustVmm, SharedBytes, VirtioDriver, rust_vmm_driver,
};
use linkspan_sys::reaper;
use linkspan_testkit::census::{settled, start_reaper};
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::served::content;
use linkspan_testkit::{Census, Served};
use virtio_driver::VirtioFeatureFlags as Features;

/// A session of a driver: with our disk, with another one beside it, with so many
/// queues, and a number that makes its bytes different.
type Session = fn(&Served, &Served, usize, u8);

const SESSIONS: [(&str, Session); 6] = [
    ("libblkio", |served, _, queues, seed| {
        let mut driver = Blkio::connect(&served.socket(), queues);
        assert_eq!(driver.property("max-queues"), 4);
        exercise(&mut driver, &served.image(), seed);
    }),
    ("rust-vmm", |served, _, queues, seed| {
        let memory = rust_vmm_driver::memory();
        let mut driver = RustVmm::connect(&served.socket(), &memory, queues);
        exercise(&mut driver, &served.image(), seed);
        driver.stop();
    }),
    ("virtio-driver, split", |served, other, queues, seed| {
        virtio_driver(served, other, queues, seed, Features::empty());
    }),
    (
        "virtio-driver, split with event index",
        |served, other, queues, seed| {
            virtio_driver(served, other, queues, seed, Features::RING_EVENT_IDX);
        },
    ),
    ("virtio-driver, packed", |served, other, queues, seed| {
        virtio_driver(served, other, queues, seed, Features::RING_PACKED);
    }),
    (
        "virtio-driver, packed with event index",
        |served, other, queues, seed| {
            let features = Features::RING_PACKED | Features::RING_EVENT_IDX;
            virtio_driver(served, other, queues, seed, features);
        },
    ),
];

fn virtio_driver(served: &Served, other: &Served, queues: usize, seed: u8, features: Features) {
    let mut shared = SharedBytes::new(&other.socket());
    let features = features | Features::VERSION_1;
    let packed = features.contains(Features::RING_PACKED);
    let bases = packed.then(|| PackedBases::start(&served.socket()));
    let socket = bases.as_ref().map_or(served.socket(), PackedBases::socket);
    let mut driver = VirtioDriver::connect(&socket, &mut shared, queues, features);
    assert_eq!(driver.queues(), queues);
    exercise(&mut driver, &served.image(), seed);
    // With packed rings it panics when an error has written less than it wanted.
    if !packed {
        assert_eq!(driver.read_beyond_the_end(), -5, "EIO");
        let mut sector = vec![0; SECTOR];
        driver.read(0, SECTOR as u64, &mut sector);
        assert_eq!(sector, content(1), "it goes on");
    }
}

#[test]
fn drivers_of_others_come_and_go_and_every_byte_is_right() {
    start_reaper();
    let outside = Census::at_rest();
    let (served, other) = (Served::disk(4), Served::disk(1));
    let before = Census::at_rest();
    let mut seed = 0;
    for (name, session) in SESSIONS {
        for queues in [1, 4] {
            // The second time on what the first one left.
            for _ in 0..2 {
                seed += 1;
                println!("{name}, {queues} queues");
                session(&served, &other, queues, seed);
                let (reason, fault) = served.next_end();
                assert!(!fault, "{name}: {reason}");
                before.assert_restored(name);
                assert!(settled(|| reaper::backlog() == 0), "{name}");
            }
        }
    }
    served.stop();
    other.stop();
    outside.assert_restored("after the servers stopped");
}
