//! The hand-over of a ring of either layout under every order that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p linkspan-virtio --test loom --target-dir target/loom --release`

#![cfg(loom)]

use std::sync::Arc;

use linkspan_mem::model::ModelMemory;
use linkspan_mem::{
    AddressSpace, EventSuppression, Gpa, PackedDescriptor, PackedRing, Region, RegionTable,
    SplitRing,
};
use linkspan_virtio::packed::RING_EVENT_FLAGS_DISABLE;
use linkspan_virtio::split::{VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY};
use linkspan_virtio::{Buffer, Chain, DeviceQueue, DriverQueue, Features, QueueState, Used};
use loom::cell::UnsafeCell;
use loom::thread;

type Driver = DriverQueue<ModelMemory>;
type Device = DeviceQueue<ModelMemory>;

/// A ring of two entries of one layout.
#[derive(Clone, Copy)]
struct Kind {
    packed: bool,
    event_idx: bool,
}

/// Where the rings begin: their indices wrap on the way.
const START: u16 = u16::MAX;

/// Both sides of a ring of two entries. Neither side wants to be notified, as
/// far as the ring says, and both have had their first look.
fn pair(kind: Kind) -> (Driver, Device) {
    let mut features = Features::VIRTIO_F_VERSION_1;
    features.set(Features::VIRTIO_F_EVENT_IDX, kind.event_idx);
    features.set(Features::VIRTIO_F_RING_PACKED, kind.packed);
    let (parts, at) = if kind.packed {
        (packed_parts(), LAST)
    } else {
        (split_parts(), START)
    };
    let state = QueueState {
        next_available: at,
        next_used: at,
    };
    let mut driver = Driver::new(parts.clone(), 2, features, state).unwrap();
    let mut device = Device::new(parts, 2, features, state).unwrap();
    assert!(driver.kick_wanted().unwrap() && device.notify_wanted().unwrap());
    (driver, device)
}

fn split_parts() -> [ModelMemory; 3] {
    let parts = [
        ModelMemory::new(&[8, 8, 8, 8]),
        ModelMemory::new(&[2, 2, 2, 2, 2]),
        ModelMemory::new(&[2, 2, 4, 4, 4, 4, 2]),
    ];
    let [descriptors, available, used] = parts.clone();
    let ring = SplitRing::new(descriptors, available, used, 2).unwrap();
    let far = START.wrapping_sub(100);
    ring.publish_available_index(START);
    ring.publish_used_index(START);
    ring.set_available_flags(VIRTQ_AVAIL_F_NO_INTERRUPT);
    ring.set_used_flags(VIRTQ_USED_F_NO_NOTIFY);
    ring.set_available_event(far);
    ring.set_used_event(far);
    parts
}

/// Where the packed ring begins: at its last descriptor in the first round.
const LAST: u16 = 1 | 1 << 15;

fn packed_parts() -> [ModelMemory; 3] {
    let parts = [
        ModelMemory::new(&[8, 8, 8, 8]),
        ModelMemory::new(&[2, 2]),
        ModelMemory::new(&[2, 2]),
    ];
    let [descriptors, driver, device] = parts.clone();
    let ring = PackedRing::new(descriptors, driver, device, 2).unwrap();
    // Used in the first round already.
    ring.publish_used(
        0,
        PackedDescriptor {
            flags: 0x8080,
            ..PackedDescriptor::default()
        },
    );
    let never = EventSuppression {
        position: LAST,
        flags: RING_EVENT_FLAGS_DISABLE,
    };
    ring.set_driver_event(never);
    ring.set_device_event(never);
    parts
}

fn space() -> AddressSpace<Gpa> {
    let regions = vec![Region::heap(64).unwrap()];
    AddressSpace::new(Arc::new(RegionTable::new(regions)), &[Gpa(0)]).unwrap()
}

fn add(driver: &mut Driver) -> u16 {
    let buffer = |len| Buffer {
        address: Gpa(8),
        len,
    };
    driver.add(&[], &[buffer(7)], None).unwrap()
}

/// What the buffers hold is modelled by two cells, one for each direction: the
/// model fails when an access to a cell is not ordered after the other side's.
fn what_is_published_is_seen_whole(packed: bool) {
    loom::model(move || {
        let (mut driver, mut device) = pair(Kind {
            packed,
            event_idx: true,
        });
        let cells = Arc::new([UnsafeCell::new(0), UnsafeCell::new(0)]);
        let theirs = Arc::clone(&cells);
        let side = thread::spawn(move || {
            let [request, answer] = &*theirs;
            request.with_mut(|_| ());
            let id = add(&mut driver);
            driver.publish().unwrap();
            if driver.refresh().unwrap() == 1 {
                assert_eq!(driver.pop(), Ok(Some(Used { id, written: 5 })));
                answer.with(|_| ());
                return true;
            }
            false
        });
        let [request, answer] = &*cells;
        let mut chain = Chain::new(1).unwrap();
        if device.refresh().unwrap() == 1 {
            assert_eq!(device.pop(&space(), &mut chain), Ok(true));
            assert_eq!((chain.readable_len(), chain.writable_len()), (0, 7));
            request.with(|_| ());
            answer.with_mut(|_| ());
            device.push(&chain, 5).unwrap();
            device.publish().unwrap();
            side.join().unwrap();
        } else {
            assert!(!side.join().unwrap(), "used before it was taken");
        }
    });
}

#[test]
fn what_is_published_in_a_split_ring_is_seen_whole() {
    what_is_published_is_seen_whole(false);
}

#[test]
fn what_is_published_in_a_packed_ring_is_seen_whole() {
    what_is_published_is_seen_whole(true);
}

/// The driver adds two chains; the device takes what it finds and sleeps when
/// there is none. If it sleeps over a chain, it must have been kicked for it.
fn no_kick_is_lost(kind: Kind) {
    loom::model(move || {
        let (mut driver, mut device) = pair(kind);
        let side = thread::spawn(move || {
            [(); 2].map(|()| {
                add(&mut driver);
                driver.publish().unwrap();
                driver.kick_wanted().unwrap()
            })
        });
        let (space, mut chain) = (space(), Chain::new(1).unwrap());
        let mut taken = 0;
        while device.arm().unwrap() {
            device.disarm().unwrap();
            while device.pop(&space, &mut chain).unwrap() {
                taken += 1;
            }
        }
        let kicks = side.join().unwrap();
        assert!(
            taken == 2 || kicks[taken..].contains(&true),
            "asleep with {} chains waiting",
            2 - taken
        );
    });
}

#[test]
fn no_kick_is_lost_with_flags() {
    no_kick_is_lost(Kind {
        packed: false,
        event_idx: false,
    });
}

#[test]
fn no_kick_is_lost_with_flags_of_a_packed_ring() {
    no_kick_is_lost(Kind {
        packed: true,
        event_idx: false,
    });
}

#[test]
fn no_kick_is_lost_with_the_event_index() {
    no_kick_is_lost(Kind {
        packed: false,
        event_idx: true,
    });
}

#[test]
fn no_kick_is_lost_with_the_event_index_of_a_packed_ring() {
    no_kick_is_lost(Kind {
        packed: true,
        event_idx: true,
    });
}

/// The same for used chains and the driver's sleep.
fn no_notification_is_lost(kind: Kind) {
    loom::model(move || {
        let (mut driver, mut device) = pair(kind);
        add(&mut driver);
        add(&mut driver);
        driver.publish().unwrap();
        let mut chains = [(); 2].map(|()| Chain::new(1).unwrap());
        assert!(device.refresh().unwrap() > 0);
        for chain in &mut chains {
            assert_eq!(device.pop(&space(), chain), Ok(true));
        }
        let side = thread::spawn(move || {
            chains.map(|chain| {
                device.push(&chain, 7).unwrap();
                device.publish().unwrap();
                device.notify_wanted().unwrap()
            })
        });
        let mut taken = 0;
        while driver.arm().unwrap() {
            driver.disarm().unwrap();
            while driver.pop().unwrap().is_some() {
                taken += 1;
            }
        }
        let notifications = side.join().unwrap();
        assert!(
            taken == 2 || notifications[taken..].contains(&true),
            "asleep with {} used chains waiting",
            2 - taken
        );
    });
}

#[test]
fn no_notification_is_lost_with_flags() {
    no_notification_is_lost(Kind {
        packed: false,
        event_idx: false,
    });
}

#[test]
fn no_notification_is_lost_with_flags_of_a_packed_ring() {
    no_notification_is_lost(Kind {
        packed: true,
        event_idx: false,
    });
}

#[test]
fn no_notification_is_lost_with_the_event_index() {
    no_notification_is_lost(Kind {
        packed: false,
        event_idx: true,
    });
}

#[test]
fn no_notification_is_lost_with_the_event_index_of_a_packed_ring() {
    no_notification_is_lost(Kind {
        packed: true,
        event_idx: true,
    });
}
