//! Driver and device of one split ring, tied together.

mod rig;

use std::collections::VecDeque;

use linkspan_mem::{Gpa, Span, Window};
use linkspan_virtio::split::{
    AddError, IndirectTable, SplitDevice, SplitDriver, Used, VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT as INDIRECT, VIRTQ_DESC_F_NEXT as NEXT, VIRTQ_DESC_F_WRITE as WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
};
use linkspan_virtio::{Chain, NotQuiet, QueueState, RestoreError};
use rig::{ALL, BASE, BORDER, PLAIN, Rig, buffer, chain};

fn lengths(spans: &[Span]) -> Vec<u32> {
    spans.iter().map(Span::len).collect()
}

/// Buffers, one across two regions, one empty, direct and through a table that
/// is not aligned and crosses regions too.
#[test]
fn a_chain_arrives_as_it_was_added() {
    for indirect in [false, true] {
        let rig = Rig::new(8);
        let (mut driver, mut device) = rig.pair(ALL, 0);
        rig.write(BORDER - 2, b"abcd");
        let readable = [buffer(BORDER - 2, 4), buffer(BASE + 0x9000, 0)];
        let writable = [buffer(BASE + 0x9000, 16), buffer(BASE + 0xA000, 7)];
        let table = rig.table(0x8003, 4);
        let id = driver
            .add(&readable, &writable, indirect.then_some(table))
            .unwrap();
        assert_eq!(driver.free(), if indirect { 7 } else { 4 });
        assert_eq!(device.refresh(), Ok(0), "not published yet");
        driver.publish().unwrap();

        let mut chain = chain();
        assert_eq!(device.refresh(), Ok(1));
        assert_eq!(device.pop(&rig.memory.guest, &mut chain), Ok(true));
        assert_eq!(lengths(chain.readable()), [2, 2]);
        assert_eq!(lengths(chain.writable()), [16, 7]);
        assert_eq!((chain.readable_len(), chain.writable_len()), (4, 23));
        assert_eq!((chain.id(), chain.descriptors()), (id, 4));
        let mut text = [0; 4];
        chain.read_front(rig.memory.table(), &mut text).unwrap();
        assert_eq!(&text, b"abcd");
        let mut none = chain_of_nothing();
        assert_eq!(device.pop(&rig.memory.guest, &mut none), Ok(false));

        device.push(&chain, 23).unwrap();
        assert_eq!(driver.refresh(), Ok(0), "not published yet");
        device.publish().unwrap();
        assert_eq!(driver.refresh(), Ok(1));
        assert_eq!(driver.pop(), Ok(Some(Used { id, written: 23 })));
        assert_eq!(driver.pop(), Ok(None));
        assert_eq!(
            (driver.free(), driver.outstanding(), device.in_flight()),
            (8, 0, 0)
        );
    }
}

fn chain_of_nothing() -> Chain {
    Chain::new(0).unwrap()
}

/// libvhost-user 85805ee887: an indirect table that crosses regions, at every place.
#[test]
fn an_indirect_table_across_two_regions_is_read_whole() {
    for before in 0..=20 * 16 {
        let rig = Rig::new(8);
        let address = BORDER - before;
        let table: Vec<_> = (1..=20)
            .map(|next| {
                rig::descriptor(
                    BASE + 0x4000,
                    u32::from(next),
                    if next < 20 { NEXT } else { 0 },
                    next,
                )
            })
            .collect();
        rig.write_table(address, &table);
        let ring = rig.ring();
        ring.set_descriptor(0, rig::descriptor(address, 320, INDIRECT, 0));
        ring.publish_available_index(1);
        let (mut device, mut chain) = (rig.device(ALL), chain());
        device.refresh().unwrap();
        assert_eq!(device.pop(&rig.memory.guest, &mut chain), Ok(true));
        assert_eq!(lengths(chain.readable()), (1..=20).collect::<Vec<_>>());
    }
}

/// Normal descriptors, then one that refers to a table, with a write flag that
/// means nothing (2.7.5.3.2). The table is not filled in order.
#[test]
fn a_table_may_follow_descriptors_and_be_out_of_order() {
    let rig = Rig::new(8);
    let table = [
        rig::descriptor(BASE, 10, NEXT, 20),
        rig::descriptor(BASE, 25, WRITE, 0),
        rig::descriptor(BASE, 20, WRITE | NEXT, 1),
    ];
    let at = |index: u64| BASE + 0x8000 + 16 * index;
    rig.write_table(at(0), &table[..2]);
    rig.write_table(at(20), &table[2..]);
    let ring = rig.ring();
    ring.set_descriptor(5, rig::descriptor(BASE, 1, NEXT, 2));
    ring.set_descriptor(2, rig::descriptor(at(0), 21 * 16, INDIRECT | WRITE, 0));
    ring.set_available_entry(0, 5);
    ring.publish_available_index(1);
    let (mut device, mut chain) = (rig.device(ALL), chain());
    device.refresh().unwrap();
    assert_eq!(device.pop(&rig.memory.guest, &mut chain), Ok(true));
    assert_eq!(lengths(chain.readable()), [1, 10]);
    assert_eq!(lengths(chain.writable()), [20, 25]);
}

/// A line of the table that nobody writes stays with both sides.
#[test]
fn a_descriptor_that_stands_there_is_not_written_again() {
    for in_turn in [false, true] {
        stands_there(in_turn);
    }
}

fn stands_there(in_turn: bool) {
    let rig = Rig::new(4);
    let (mut driver, mut device) = (rig.driver(PLAIN), rig.device(PLAIN));
    if in_turn {
        driver.take_in_turn();
    }
    let table = || [0, 1, 2, 3].map(|index| rig.ring().descriptor(index).unwrap());
    let mut first = None;
    let mut free = VecDeque::from([3, 2, 1, 0]);
    let available = || [0, 1, 2, 3].map(|at| rig.ring().available_entry(at));
    let mut slot_of = [0; 4];
    for _ in 0..5 {
        while let Some(slot) = if in_turn {
            free.pop_front()
        } else {
            free.pop_back()
        } {
            let buffer = buffer(BASE + 64 * slot, 64);
            slot_of[usize::from(driver.add(&[], &[buffer], None).unwrap())] = slot;
        }
        assert_eq!(*first.get_or_insert_with(table), table());
        driver.publish().unwrap();
        device.refresh().unwrap();
        let mut chain = chain();
        while device.pop(&rig.memory.guest, &mut chain).unwrap() {
            device.push(&chain, 8).unwrap();
        }
        device.publish().unwrap();
        driver.refresh().unwrap();
        while let Some(used) = driver.pop().unwrap() {
            free.push_back(slot_of[usize::from(used.id)]);
        }
        assert!(!in_turn || available() == [0, 1, 2, 3]);
    }
}

#[test]
fn a_driver_refuses_chains_that_cannot_be() {
    let rig = Rig::new(2);
    let mut driver = rig.driver(PLAIN);
    let one = [buffer(BASE, 1)];
    let add = |driver: &mut SplitDriver<_>, count: usize, table: Option<IndirectTable<'_, Gpa>>| {
        driver.add(&vec![one[0]; count], &[], table)
    };
    assert_eq!(
        add(&mut driver, 0, None),
        Err(AddError::Buffers { count: 0 })
    );
    assert_eq!(
        add(&mut driver, 1025, None),
        Err(AddError::Buffers { count: 1025 })
    );
    assert_eq!(
        add(&mut driver, 3, None),
        Err(AddError::Full { need: 3, free: 2 })
    );
    let table = rig.table(0x8000, 1);
    assert_eq!(
        add(&mut driver, 1, Some(table)),
        Err(AddError::IndirectNotNegotiated)
    );
    let long = [buffer(BASE, u32::MAX), buffer(BASE, 1)];
    assert_eq!(
        driver.add(&long, &[], None),
        Err(AddError::Bytes { bytes: 1 << 32 })
    );
    assert_eq!((driver.free(), driver.outstanding()), (2, 0));
    assert_eq!(driver.publish(), Ok(()));
    assert_eq!(rig.ring().available_index(), 0);

    let mut driver = rig.driver(ALL);
    let error = AddError::TableTooSmall { len: 16, count: 2 };
    assert_eq!(add(&mut driver, 2, Some(table)), Err(error));
    assert_eq!(add(&mut driver, 1, Some(table)), Ok(0));
    assert_eq!(add(&mut driver, 1, None), Ok(1));
    assert_eq!(
        add(&mut driver, 1, None),
        Err(AddError::Full { need: 1, free: 0 })
    );
}

/// Bytes come off at either end of a chain, whatever its descriptors are.
#[test]
fn a_chain_is_cut_without_regard_to_descriptors() {
    let rig = Rig::new(8);
    let (mut driver, mut device) = rig.pair(ALL, 0);
    rig.write(BASE + 0x8000, b"0123456789");
    let readable = [(0x8000, 3), (0x8003, 1), (0x8004, 6)].map(|(at, len)| buffer(BASE + at, len));
    let writable = [(0x9000, 2), (0x9002, 2), (0x9004, 1)].map(|(at, len)| buffer(BASE + at, len));
    driver.add(&readable, &writable, None).unwrap();
    driver.publish().unwrap();
    let mut chain = chain();
    device.refresh().unwrap();
    device.pop(&rig.memory.guest, &mut chain).unwrap();

    let table = rig.memory.table();
    let mut five = [0; 5];
    chain.read_front(table, &mut five).unwrap();
    assert_eq!(&five, b"01234");
    assert_eq!(lengths(chain.readable()), [5]);
    chain.cut_readable_front(1).unwrap();
    let mut rest = [0; 4];
    assert!(chain.read_front(table, &mut five).is_err());
    chain.read_front(table, &mut rest).unwrap();
    assert_eq!(&rest, b"6789");
    assert_eq!((chain.readable(), chain.readable_len()), (&[][..], 0));
    assert!(chain.cut_readable_front(1).is_err());

    let last = chain.take_last_writable().unwrap();
    table.slice(last).write(b"z");
    assert_eq!(lengths(chain.writable()), [2, 2]);
    let last = chain.take_last_writable().unwrap();
    table.slice(last).write(b"y");
    chain.cut_writable_front(2).unwrap();
    assert_eq!(
        (lengths(chain.writable()), chain.writable_len()),
        (vec![1], 1)
    );
    assert!(chain.cut_writable_front(2).is_err());
    let last = chain.take_last_writable().unwrap();
    table.slice(last).write(b"x");
    assert!(chain.take_last_writable().is_err());
    assert_eq!(chain.writable_total(), 5);
    let mut written = [0; 5];
    let region = &table.regions()[0];
    region.slice(0x9000, 5).unwrap().read(&mut written);
    assert_eq!(&written, b"\0\0xyz");
}

#[test]
#[should_panic(expected = "do not fit into chain")]
fn a_used_length_beyond_the_writable_bytes_is_our_mistake() {
    let rig = Rig::new(8);
    let (mut driver, mut device) = rig.pair(ALL, 0);
    driver
        .add(&[buffer(BASE, 9)], &[buffer(BASE, 3)], None)
        .unwrap();
    driver.publish().unwrap();
    let mut chain = chain();
    device.refresh().unwrap();
    device.pop(&rig.memory.guest, &mut chain).unwrap();
    let _ = device.push(&chain, 4);
}

#[test]
#[should_panic(expected = "is not in flight")]
fn using_a_chain_twice_is_our_mistake() {
    let rig = Rig::new(8);
    let (mut driver, mut device) = rig.pair(ALL, 0);
    driver.add(&[buffer(BASE, 9)], &[], None).unwrap();
    driver.publish().unwrap();
    let mut chain = chain();
    device.refresh().unwrap();
    device.pop(&rig.memory.guest, &mut chain).unwrap();
    device.push(&chain, 0).unwrap();
    let _ = device.push(&chain, 0);
}

fn add_one(driver: &mut SplitDriver<Window>) {
    driver.add(&[buffer(BASE, 1)], &[], None).unwrap();
    driver.publish().unwrap();
}

fn use_all(rig: &Rig, device: &mut SplitDevice<Window>) -> u16 {
    let mut chain = chain();
    let count = device.refresh().unwrap();
    while device.pop(&rig.memory.guest, &mut chain).unwrap() {
        device.push(&chain, 0).unwrap();
    }
    device.publish().unwrap();
    count
}

/// The first look says yes on either side: an earlier life may have published
/// and died before it notified. After that, nothing new means no notification.
#[test]
fn the_first_notification_is_never_left_out() {
    for features in [PLAIN, ALL] {
        let rig = Rig::new(8);
        let ring = rig.ring();
        ring.set_available_flags(VIRTQ_AVAIL_F_NO_INTERRUPT);
        ring.set_used_flags(VIRTQ_USED_F_NO_NOTIFY);
        ring.set_available_event(77);
        ring.set_used_event(77);
        let (mut driver, mut device) = rig.pair(features, 0);
        assert_eq!(driver.kick_wanted(), Ok(true));
        assert_eq!(driver.kick_wanted(), Ok(false));
        assert_eq!(device.notify_wanted(), Ok(true));
        assert_eq!(device.notify_wanted(), Ok(false));
        add_one(&mut driver);
        assert_eq!(driver.kick_wanted(), Ok(false));
        use_all(&rig, &mut device);
        assert_eq!(device.notify_wanted(), Ok(false));
    }
}

/// Both sides ask, with flags or event index, over the wrap of the index.
#[test]
fn a_side_is_notified_exactly_when_it_asked() {
    for (features, start) in [(PLAIN, 0), (ALL, 0), (ALL, 65533), (PLAIN, 65533)] {
        let rig = Rig::new(8);
        let (mut driver, mut device) = rig.pair(features, start);
        driver.kick_wanted().unwrap();
        device.notify_wanted().unwrap();
        for round in 0..6 {
            assert_eq!(device.arm(), Ok(false), "round {round}");
            add_one(&mut driver);
            assert_eq!(driver.kick_wanted(), Ok(true));
            device.disarm().unwrap();
            add_one(&mut driver);
            assert_eq!(driver.kick_wanted(), Ok(false), "the device is awake");

            assert_eq!(driver.arm(), Ok(false));
            assert_eq!(use_all(&rig, &mut device), 2);
            assert_eq!(device.notify_wanted(), Ok(true));
            driver.disarm().unwrap();
            assert_eq!(driver.refresh(), Ok(2));
            add_one(&mut driver);
            use_all(&rig, &mut device);
            assert_eq!(device.notify_wanted(), Ok(false), "the driver is awake");
            driver.refresh().unwrap();
            while driver.pop().unwrap().is_some() {}
        }
        // What came before the side armed is found by arming.
        add_one(&mut driver);
        assert_eq!(device.arm(), Ok(true));
        assert_eq!(device.arm(), Ok(true), "and not forgotten by arming again");
        use_all(&rig, &mut device);
        assert_eq!(driver.arm(), Ok(true));
    }
}

#[test]
fn a_saved_pair_goes_on_where_it_was() {
    let rig = Rig::new(8);
    let (mut driver, mut device) = rig.pair(ALL, 65534);
    for _ in 0..3 {
        add_one(&mut driver);
    }
    assert_eq!(driver.snapshot(), Err(NotQuiet::InFlight { count: 3 }));
    let mut taken = chain();
    device.refresh().unwrap();
    device.pop(&rig.memory.guest, &mut taken).unwrap();
    assert_eq!(device.snapshot(), Err(NotQuiet::InFlight { count: 1 }));
    device.push(&taken, 0).unwrap();
    assert_eq!(device.snapshot(), Err(NotQuiet::Unpublished { count: 1 }));
    device.publish().unwrap();

    // The device goes away with two chains still waiting.
    let saved = device.snapshot().unwrap();
    let mut device = SplitDevice::restore(rig.ring(), &saved).unwrap();
    let state = QueueState {
        next_available: 65535,
        next_used: 65535,
    };
    assert_eq!(device.state(), state);
    assert_eq!(use_all(&rig, &mut device), 2);
    assert_eq!(driver.refresh(), Ok(3));
    while driver.pop().unwrap().is_some() {}

    let saved = driver.snapshot().unwrap();
    assert_eq!(
        SplitDevice::restore(rig.ring(), &saved).err(),
        Some(RestoreError::Kind {
            kind: 0x4401,
            want: 0x5301
        })
    );
    let mut driver = SplitDriver::restore(rig.ring(), &saved).unwrap();
    add_one(&mut driver);
    assert_eq!(use_all(&rig, &mut device), 1);
}

#[test]
fn saved_bytes_are_not_believed() {
    let rig = Rig::new(8);
    let saved = rig.device(ALL).snapshot().unwrap();
    let restore = |bytes: &[u8]| SplitDevice::restore(rig.ring(), bytes).err();
    assert_eq!(restore(&saved), None);
    assert_eq!(
        restore(&saved[1..]),
        Some(RestoreError::Length { len: 15, want: 16 })
    );
    let mut newer = saved;
    newer[0] += 1;
    assert_eq!(
        restore(&newer),
        Some(RestoreError::Kind {
            kind: 0x5302,
            want: 0x5301
        })
    );
    let mut longer = saved;
    longer[2] = 16;
    assert_eq!(
        restore(&longer),
        Some(RestoreError::Size { saved: 16, size: 8 })
    );
    let mut packed = saved;
    packed[12] |= 4;
    assert_eq!(
        restore(&packed),
        Some(RestoreError::Features { features: 1 << 34 })
    );
    // Positions that do not fit the ring are found when it is read.
    let mut moved = saved;
    moved[4] = 200;
    let mut device = SplitDevice::restore(rig.ring(), &moved).unwrap();
    assert!(device.refresh().is_err());
}
