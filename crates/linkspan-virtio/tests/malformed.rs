//! Rings that a driver broke. Each retires its queue with a named error, and the
//! queue keeps that error and leaves the ring alone.

mod rig;

use std::slice;

use linkspan_mem::{Descriptor, Gpa, SpaceError, SplitRing, Window};
use linkspan_virtio::limits::{CHAIN_DESCRIPTORS_MAX, INDIRECT_ENTRIES_MAX};
use linkspan_virtio::split::{
    SplitDevice, VIRTQ_DESC_F_INDIRECT as INDIRECT, VIRTQ_DESC_F_NEXT as NEXT,
    VIRTQ_DESC_F_WRITE as WRITE,
};
use linkspan_virtio::{Buffer, Chain, Features, NotQuiet, QueueError, QueueState};
use rig::{ALL, BASE, BORDER, END, PACKED, PLAIN, Rig, chain, descriptor};

const TABLE: u64 = BASE + 0x8000;

/// Makes the chain at `head` available and has the device take it.
fn pop(rig: &Rig, features: Features, head: u16, chain: &mut Chain) -> Result<bool, QueueError> {
    let ring = rig.ring();
    ring.set_available_entry(0, head);
    ring.publish_available_index(1);
    let mut device = rig.device(features);
    device.refresh().unwrap();
    let mut other = rig.device(features);
    other.refresh().unwrap();
    let many = other.pop_many(&rig.memory.guest, slice::from_mut(chain));
    let result = device.pop(&rig.memory.guest, chain);
    assert_eq!(many, result.map(usize::from), "many are taken as one is");
    if let Err(error) = result {
        assert_retired(&mut device, &ring, error, rig);
    }
    result
}

/// Every call gives the same error, and the used ring does not change.
fn assert_retired(
    device: &mut SplitDevice<Window>,
    ring: &SplitRing<Window>,
    error: QueueError,
    rig: &Rig,
) {
    let mut chain = chain();
    assert_eq!(device.retired(), Some(error));
    assert_eq!(device.refresh(), Err(error));
    assert_eq!(device.pop(&rig.memory.guest, &mut chain), Err(error));
    assert_eq!(device.push(&chain, 0), Err(error));
    assert_eq!(device.publish(), Err(error));
    assert_eq!(device.notify_wanted(), Err(error));
    assert_eq!(device.arm(), Err(error));
    assert_eq!(device.disarm(), Err(error));
    assert_eq!(device.snapshot(), Err(NotQuiet::Retired));
    let other = QueueError::HeadInFlight { head: 99 };
    assert_eq!(device.retire(other), error, "the first error counts");
    assert_eq!(
        (ring.used_index(), ring.used_flags(), ring.available_event()),
        (0, 0, 0)
    );
}

/// A ring of 8 whose descriptors from 0 on are these, with head 0.
fn pop_ring(features: Features, descriptors: &[Descriptor]) -> Result<bool, QueueError> {
    let rig = Rig::new(8);
    for (index, descriptor) in (0..).zip(descriptors) {
        rig.ring().set_descriptor(index, *descriptor);
    }
    pop(&rig, features, 0, &mut chain())
}

/// A chain that consists of this indirect table alone.
fn pop_table(table: &[Descriptor]) -> Result<bool, QueueError> {
    let rig = Rig::new(8);
    rig.write_table(TABLE, table);
    let len = u32::try_from(Descriptor::SIZE * table.len()).unwrap();
    rig.ring()
        .set_descriptor(0, descriptor(TABLE, len, INDIRECT, 0));
    pop(&rig, ALL, 0, &mut chain())
}

#[test]
fn an_available_index_that_jumps() {
    for (start, index) in [(0, 9), (0, u16::MAX), (65530, 3), (65530, 65529)] {
        let rig = Rig::new(8);
        rig.ring().publish_available_index(index);
        let state = QueueState {
            next_available: start,
            next_used: 0,
        };
        let mut device = SplitDevice::new(rig.ring(), ALL, state).unwrap();
        let error = QueueError::AvailableJump {
            index,
            next: start,
            seen: start,
            size: 8,
        };
        assert_eq!(device.refresh(), Err(error));
        assert_retired(&mut device, &rig.ring(), error, &rig);
    }
}

#[test]
fn an_available_index_as_far_ahead_as_the_queue_is_long() {
    let rig = Rig::new(8);
    rig.ring().publish_available_index(2);
    let state = QueueState {
        next_available: 65530,
        next_used: 0,
    };
    let mut device = SplitDevice::new(rig.ring(), ALL, state).unwrap();
    assert_eq!(device.refresh(), Ok(8));
}

#[test]
fn an_available_index_that_goes_back() {
    let rig = Rig::new(8);
    let mut device = rig.device(ALL);
    rig.ring().publish_available_index(4);
    assert_eq!(device.refresh(), Ok(4));
    rig.ring().publish_available_index(3);
    assert!(matches!(
        device.refresh(),
        Err(QueueError::AvailableJump {
            index: 3,
            seen: 4,
            ..
        })
    ));
}

#[test]
fn arming_finds_the_jump_too() {
    let rig = Rig::new(8);
    let mut device = rig.device(ALL);
    rig.ring().publish_available_index(9);
    assert!(matches!(
        device.arm(),
        Err(QueueError::AvailableJump { index: 9, .. })
    ));
}

#[test]
fn a_head_out_of_range() {
    for head in [8, u16::MAX] {
        let rig = Rig::new(8);
        let error = QueueError::HeadOutOfRange { head, size: 8 };
        assert_eq!(pop(&rig, ALL, head, &mut chain()), Err(error));
    }
}

#[test]
fn a_head_that_is_in_flight_already() {
    let rig = Rig::new(8);
    let ring = rig.ring();
    ring.set_descriptor(3, descriptor(BASE, 1, WRITE, 0));
    ring.set_available_entry(0, 3);
    ring.set_available_entry(1, 3);
    ring.publish_available_index(2);
    let mut device = rig.device(ALL);
    let (mut first, mut second) = (chain(), chain());
    assert_eq!(device.refresh(), Ok(2));
    assert_eq!(device.pop(&rig.memory.guest, &mut first), Ok(true));
    let error = QueueError::HeadInFlight { head: 3 };
    assert_eq!(device.pop(&rig.memory.guest, &mut second), Err(error));
    assert_eq!(device.in_flight(), 1);
}

#[test]
fn a_next_out_of_range() {
    let error = QueueError::NextOutOfRange {
        head: 0,
        next: 8,
        entries: 8,
    };
    assert_eq!(pop_ring(ALL, &[descriptor(BASE, 1, NEXT, 8)]), Err(error));
}

#[test]
fn a_loop() {
    let error = QueueError::Loop {
        head: 0,
        entries: 8,
    };
    assert_eq!(pop_ring(ALL, &[descriptor(BASE, 1, NEXT, 0)]), Err(error));
    let two = [descriptor(BASE, 1, NEXT, 1), descriptor(BASE, 1, NEXT, 0)];
    assert_eq!(pop_ring(ALL, &two), Err(error));
}

#[test]
fn a_chain_of_the_whole_ring_is_no_loop() {
    let whole: Vec<_> = (1..8)
        .map(|next| descriptor(BASE, 1, NEXT, next))
        .chain([descriptor(BASE, 1, 0, 0)])
        .collect();
    assert_eq!(pop_ring(ALL, &whole), Ok(true));
}

/// The chain that is sound before it is handed out first, and does not hide it.
#[test]
fn a_buffer_that_can_only_be_read_is_not_written() {
    for features in [ALL, PACKED] {
        for at_once in [1, 2] {
            let mut rig = Rig::new(8);
            rig.memory = rig.memory.with_read_only(&[1]);
            let (mut driver, mut device) = rig.queues(features, 0);
            let buffer = Buffer {
                address: Gpa(BORDER),
                len: 16,
            };
            driver.add(&[buffer], &[], None).unwrap();
            driver.add(&[], &[buffer], None).unwrap();
            driver.publish().unwrap();
            device.refresh().unwrap();
            let mut chains = [chain(), chain()];
            let space = &rig.memory.guest;
            let mut take = || device.pop_many(space, &mut chains[..at_once]);
            assert_eq!(take(), Ok(1));
            let error = take().unwrap_err();
            assert!(matches!(error, QueueError::OutsideMemory { .. }), "{error}");
            assert_eq!(device.retired(), Some(error));
            assert_eq!(device.publish(), Err(error));
            driver.refresh().unwrap();
            assert_eq!(driver.pop(), Ok(None));
        }
    }
}

/// What was taken with a chain that is wrong is used and shown as any other.
#[test]
fn sound_chains_before_one_that_is_wrong_are_served() {
    for features in [
        ALL,
        PACKED,
        ALL - Features::VIRTIO_F_IN_ORDER,
        PACKED - Features::VIRTIO_F_IN_ORDER,
    ] {
        for sound in 1..6_u64 {
            let rig = Rig::new(8);
            let (mut driver, mut device) = rig.queues(features, 0);
            let mut add = |address, len| {
                let buffer = Buffer {
                    address: Gpa(address),
                    len,
                };
                driver.add(&[], &[buffer], None).unwrap()
            };
            for at in 0..sound {
                add(BASE + 16 * at, 16);
            }
            add(END, 1);
            driver.publish().unwrap();
            device.refresh().unwrap();
            let mut chains: [Chain; 8] = std::array::from_fn(|_| chain());
            let space = &rig.memory.guest;
            let taken = device.pop_many(space, &mut chains);
            assert_eq!(taken, Ok(usize::try_from(sound).unwrap()), "{features:?}");
            assert_eq!(device.retired(), None);
            let (served, rest) = chains.split_at_mut(taken.unwrap());
            device
                .push_many(served.iter().map(|chain| (chain, 16)))
                .unwrap();
            device.publish().unwrap();
            driver.refresh().unwrap();
            for _ in 0..sound {
                assert!(driver.pop().unwrap().is_some());
            }
            device.refresh().unwrap();
            let error = device.pop_many(space, rest).unwrap_err();
            assert!(matches!(error, QueueError::OutsideMemory { .. }), "{error}");
            assert_eq!(device.retired(), Some(error));
            assert_eq!(driver.pop(), Ok(None));
        }
    }
}

#[test]
fn a_descriptor_outside_memory() {
    for (address, len) in [
        (0, 1),
        (BASE - 1, 2),
        (END - 1, 2),
        (END, 1),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (BASE, u32::MAX),
    ] {
        let source = SpaceError {
            space: "guest address",
            address,
            len: u64::from(len),
            write: true,
        };
        assert_eq!(
            pop_ring(ALL, &[descriptor(address, len, WRITE, 0)]),
            Err(QueueError::OutsideMemory { head: 0, source })
        );
    }
}

#[test]
fn a_readable_descriptor_behind_a_writable_one() {
    let error = Err(QueueError::ReadableAfterWritable { head: 0 });
    for len in [0, 1] {
        let chain = [
            descriptor(BASE, 1, NEXT, 1),
            descriptor(BASE, len, WRITE | NEXT, 2),
            descriptor(BASE, 1, 0, 0),
        ];
        assert_eq!(pop_ring(ALL, &chain), error);
        let table = [
            descriptor(BASE, len, WRITE | NEXT, 1),
            descriptor(BASE, 1, 0, 0),
        ];
        assert_eq!(pop_table(&table), error);
    }
}

#[test]
fn an_indirect_table_that_was_not_negotiated() {
    let error = Err(QueueError::IndirectNotNegotiated { head: 0 });
    assert_eq!(
        pop_ring(PLAIN, &[descriptor(TABLE, 16, INDIRECT, 0)]),
        error
    );
}

#[test]
fn an_indirect_table_inside_an_indirect_table() {
    let error = Err(QueueError::NestedIndirect { head: 0 });
    assert_eq!(pop_table(&[descriptor(TABLE, 16, INDIRECT, 0)]), error);
    let second = [
        descriptor(BASE, 1, NEXT, 1),
        descriptor(TABLE, 16, INDIRECT, 0),
    ];
    assert_eq!(pop_table(&second), error);
}

#[test]
fn an_indirect_table_that_goes_on() {
    let error = Err(QueueError::IndirectWithNext { head: 0 });
    assert_eq!(
        pop_ring(ALL, &[descriptor(TABLE, 16, INDIRECT | NEXT, 1)]),
        error
    );
}

#[test]
fn an_indirect_table_of_an_impossible_length() {
    for len in [0, 1, 15, 17, 16 * (INDIRECT_ENTRIES_MAX + 1), u32::MAX] {
        let error = Err(QueueError::IndirectLength { head: 0, len });
        assert_eq!(pop_ring(ALL, &[descriptor(TABLE, len, INDIRECT, 0)]), error);
    }
}

#[test]
fn an_indirect_table_outside_memory() {
    for address in [END - 16, u64::MAX - 15, u64::MAX - 31] {
        let source = SpaceError {
            space: "guest address",
            address,
            len: 32,
            write: false,
        };
        assert_eq!(
            pop_ring(ALL, &[descriptor(address, 32, INDIRECT, 0)]),
            Err(QueueError::OutsideMemory { head: 0, source })
        );
    }
}

/// The end of a long table is looked at only when its beginning led there.
#[test]
fn an_indirect_table_whose_end_is_outside_memory() {
    let rig = Rig::new(8);
    let address = END - 9 * 16;
    let table: Vec<_> = (1..10)
        .map(|next| descriptor(BASE, 1, NEXT, next))
        .collect();
    rig.write_table(address, &table);
    rig.ring()
        .set_descriptor(0, descriptor(address, 20 * 16, INDIRECT, 0));
    let error = pop(&rig, ALL, 0, &mut chain()).unwrap_err();
    let source = SpaceError {
        space: "guest address",
        address,
        len: 320,
        write: false,
    };
    assert_eq!(error, QueueError::OutsideMemory { head: 0, source });
}

#[test]
fn a_next_outside_its_indirect_table() {
    let error = QueueError::NextOutOfRange {
        head: 0,
        next: 2,
        entries: 2,
    };
    let table = [descriptor(BASE, 1, NEXT, 2), descriptor(BASE, 1, 0, 0)];
    assert_eq!(pop_table(&table), Err(error));
}

#[test]
fn a_loop_inside_an_indirect_table() {
    let error = Err(QueueError::Loop {
        head: 0,
        entries: 2,
    });
    let table = [descriptor(BASE, 1, NEXT, 1), descriptor(BASE, 1, NEXT, 0)];
    assert_eq!(pop_table(&table), error);
}

#[test]
fn more_descriptors_than_one_pop_looks_at() {
    let limit = CHAIN_DESCRIPTORS_MAX;
    let table: Vec<_> = (1..=limit + 1)
        .map(|next| descriptor(BASE, 0, NEXT, next))
        .collect();
    let error = Err(QueueError::TooManyDescriptors { head: 0, limit });
    assert_eq!(pop_table(&table), error);
}

#[test]
fn more_segments_than_the_chain_has_room_for() {
    let table: Vec<_> = (1..=65)
        .map(|next| descriptor(BASE, 1, NEXT, next))
        .collect();
    let error = QueueError::TooManySegments { head: 0, limit: 64 };
    assert_eq!(pop_table(&table), Err(error));

    // One descriptor across two regions is two segments.
    let rig = Rig::new(1);
    rig.ring()
        .set_descriptor(0, descriptor(BORDER - 1, 2, 0, 0));
    let mut narrow = Chain::new(1).unwrap();
    let error = QueueError::TooManySegments { head: 0, limit: 1 };
    assert_eq!(pop(&rig, ALL, 0, &mut narrow), Err(error));
}

#[test]
fn more_bytes_than_a_used_element_counts() {
    // The sum is looked at before the address, so no 4 GiB of memory are needed.
    let chain = [
        descriptor(BASE, 0x1000, NEXT, 1),
        descriptor(BASE, u32::MAX - 0xFFF, 0, 0),
    ];
    let bytes = 1 << 32;
    let error = QueueError::TooManyBytes { head: 0, bytes };
    assert_eq!(pop_ring(ALL, &chain), Err(error));
}

#[test]
fn a_device_may_retire_a_queue_that_it_cannot_answer() {
    let rig = Rig::new(8);
    rig.ring().set_descriptor(0, descriptor(BASE, 1, 0, 0));
    let mut chain = chain();
    assert_eq!(pop(&rig, ALL, 0, &mut chain), Ok(true));
    let error = chain.take_last_writable().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the chain at head 0 has 0 device-writable bytes where 1 are needed"
    );
    let mut device = rig.device(ALL);
    assert_eq!(device.retire(error), error);
    assert_retired(&mut device, &rig.ring(), error, &rig);
}
