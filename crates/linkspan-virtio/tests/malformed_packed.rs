//! Packed rings that a driver or a device broke. Each retires its queue with a
//! named error, and the queue keeps that error and leaves the ring alone.

mod rig;

use linkspan_mem::{PackedDescriptor, Window};
use linkspan_virtio::packed::{
    PackedDevice, PackedDriver, START, VIRTQ_DESC_F_AVAIL as AVAIL, VIRTQ_DESC_F_USED as USED,
};
use linkspan_virtio::split::{
    VIRTQ_DESC_F_INDIRECT as INDIRECT, VIRTQ_DESC_F_NEXT as NEXT, VIRTQ_DESC_F_WRITE as WRITE,
};
use linkspan_virtio::{
    AddError, Chain, Features, NotQuiet, QueueError, QueueState, RestoreError, StartError,
    UsedError,
};
use rig::{BASE, END, PACKED, Rig, buffer, chain};

const TABLE: u64 = BASE + 0x8000;

/// Address, length, id and flags beside those that make it available.
type Entry = (u64, u32, u16, u16);

/// Makes these descriptors available in the first round.
fn fill(rig: &Rig, entries: &[Entry]) {
    for (position, (address, len, id, flags)) in (0..).zip(entries.iter().copied()) {
        let descriptor = PackedDescriptor {
            address,
            len,
            id,
            flags: flags | AVAIL,
        };
        rig.packed().publish_descriptor(position, descriptor);
    }
}

/// What leaves the address of a descriptor as it is.
fn used(id: u16, len: u32, flags: u16) -> PackedDescriptor {
    PackedDescriptor {
        address: 0,
        len,
        id,
        flags,
    }
}

fn device(rig: &Rig, features: Features) -> PackedDevice<Window> {
    PackedDevice::new(rig.packed(), features, START).unwrap()
}

/// Takes the chain at the beginning of a ring of 5.
fn pop(features: Features, entries: &[Entry]) -> Result<Chain, QueueError> {
    let rig = Rig::new(5);
    fill(&rig, entries);
    let mut first = [chain()];
    let many = device(&rig, features).pop_many(&rig.memory.guest, &mut first);
    let mut device = device(&rig, features);
    assert_eq!(device.refresh(), Ok(1));
    let mut chain = chain();
    let result = device.pop(&rig.memory.guest, &mut chain);
    assert_eq!(many, result.map(usize::from), "many are taken as one is");
    match result {
        Ok(taken) => assert!(taken),
        Err(error) => {
            assert_retired(&mut device, error, &rig);
            return Err(error);
        }
    }
    Ok(chain)
}

fn assert_retired(device: &mut PackedDevice<Window>, error: QueueError, rig: &Rig) {
    let mut chain = chain();
    let (flags, event) = (device.ring().flags(0), device.ring().device_event());
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
    assert_eq!(device.ring().flags(0), flags);
    assert_eq!(device.ring().device_event(), event);
}

#[test]
fn a_chain_is_named_by_its_last_descriptor() {
    let chain = pop(PACKED, &[(BASE, 3, 77, NEXT), (BASE, 9, 40000, WRITE)]).unwrap();
    assert_eq!((chain.id(), chain.descriptors()), (40000, 2));
    assert_eq!((chain.readable_len(), chain.writable_len()), (3, 9));
}

#[test]
fn a_chain_that_goes_on_where_nothing_is_available() {
    let error = QueueError::NotAvailable {
        head: 0,
        position: 2,
    };
    let entries = [(BASE, 3, 0, NEXT), (BASE, 9, 0, NEXT)];
    assert_eq!(pop(PACKED, &entries).err(), Some(error));
}

/// The same behind chains that are sound: those are handed out, and it is found next.
#[test]
fn a_chain_that_is_wrong_behind_some_that_are_not() {
    let good = |id| (BASE, 3, id, 0);
    let none = QueueError::NotAvailable {
        head: 2,
        position: 3,
    };
    let in_flight = QueueError::HeadInFlight { head: 1 };
    for (third, error) in [((BASE, 3, 2, NEXT), none), (good(1), in_flight)] {
        let rig = Rig::new(5);
        fill(&rig, &[good(0), good(1), third]);
        let mut device = device(&rig, PACKED);
        let mut chains: [Chain; 4] = std::array::from_fn(|_| chain());
        assert_eq!(device.pop_many(&rig.memory.guest, &mut chains), Ok(2));
        assert_eq!([chains[0].id(), chains[1].id()], [0, 1]);
        let again = device.pop_many(&rig.memory.guest, &mut chains[2..]);
        assert_eq!(again, Err(error));
        assert_retired(&mut device, error, &rig);
    }
}

#[test]
fn a_chain_that_is_longer_than_its_ring() {
    let error = QueueError::Overrun {
        head: 0,
        free: 5,
        size: 5,
    };
    assert_eq!(pop(PACKED, &[(BASE, 1, 0, NEXT); 5]).err(), Some(error));
    let mut whole = [(BASE, 1, 0, NEXT); 5];
    whole[4].3 = 0;
    assert!(pop(PACKED, &whole).is_ok());
}

/// The driver goes into its next round before the device used anything.
#[test]
fn descriptors_in_flight_that_are_made_available_again() {
    let rig = Rig::new(2);
    fill(&rig, &[(BASE, 1, 0, 0), (BASE, 1, 1, 0)]);
    let mut device = device(&rig, PACKED);
    let mut chain = chain();
    for _ in 0..2 {
        assert_eq!(device.pop(&rig.memory.guest, &mut chain), Ok(true));
    }
    assert_eq!(device.pop(&rig.memory.guest, &mut chain), Ok(false));
    rig.packed().publish_used(0, used(0, 1, USED));
    let error = QueueError::Overrun {
        head: 0,
        free: 0,
        size: 2,
    };
    assert_eq!(device.pop(&rig.memory.guest, &mut chain), Err(error));
    assert_retired(&mut device, error, &rig);
}

#[test]
fn a_buffer_id_that_is_in_flight_already() {
    let rig = Rig::new(4);
    fill(&rig, &[(BASE, 1, u16::MAX, 0), (BASE, 1, u16::MAX, 0)]);
    let mut device = device(&rig, PACKED);
    let mut chain = chain();
    assert_eq!(device.pop(&rig.memory.guest, &mut chain), Ok(true));
    let error = QueueError::HeadInFlight { head: u16::MAX };
    assert_eq!(device.pop(&rig.memory.guest, &mut chain), Err(error));
}

#[test]
fn a_descriptor_outside_memory_or_in_a_wrong_place() {
    let outside = pop(PACKED, &[(END, 1, 3, 0)]);
    assert!(matches!(outside, Err(QueueError::OutsideMemory { .. })));
    let entries = [(BASE, 1, 0, WRITE | NEXT), (BASE, 1, 0, 0)];
    let error = QueueError::ReadableAfterWritable { head: 0 };
    assert_eq!(pop(PACKED, &entries).err(), Some(error));
}

#[test]
fn an_indirect_table_where_none_may_be() {
    let table = (TABLE, 16, 0, INDIRECT);
    let plain = PACKED - Features::VIRTIO_F_INDIRECT_DESC;
    let error = QueueError::IndirectNotNegotiated { head: 0 };
    assert_eq!(pop(plain, &[table]).err(), Some(error));
    let error = Some(QueueError::IndirectWithNext { head: 0 });
    assert_eq!(pop(PACKED, &[(BASE, 1, 0, NEXT), table]).err(), error);
    let goes_on = (TABLE, 16, 0, INDIRECT | NEXT);
    assert_eq!(pop(PACKED, &[goes_on, (BASE, 1, 0, 0)]).err(), error);
    for len in [0, 15, 17, 16 * 32769] {
        let error = QueueError::IndirectLength { head: 0, len };
        let table = (TABLE, len, 0, INDIRECT);
        assert_eq!(pop(PACKED, &[table]).err(), Some(error));
    }
}

/// In a table only the write flag counts; it has no links (virtio 1.3 2.8.7).
#[test]
fn flags_of_an_indirect_table_are_ignored_but_one() {
    let rig = Rig::new(5);
    let entry = |address: u64, len: u32, flags: u16| {
        // Flags are where a split descriptor has its link.
        rig::descriptor(address, len, 0xFFFF, flags)
    };
    let ignored = !WRITE;
    let table = [entry(BASE, 3, ignored), entry(BASE, 5, ignored | WRITE)];
    rig.write_table(TABLE, &table);
    fill(&rig, &[(TABLE, 32, 7, INDIRECT | WRITE)]);
    let mut chain = chain();
    let mut device = device(&rig, PACKED);
    assert_eq!(device.pop(&rig.memory.guest, &mut chain), Ok(true));
    assert_eq!((chain.id(), chain.descriptors()), (7, 2));
    assert_eq!((chain.readable_len(), chain.writable_len()), (3, 5));
}

#[test]
fn a_start_that_the_ring_does_not_have() {
    let rig = Rig::new(5);
    let at = |next_available, next_used| QueueState {
        next_available,
        next_used,
    };
    let start = |state| PackedDevice::new(rig.packed(), PACKED, state).err();
    let position = |position| Some(StartError::Position { position, size: 5 });
    assert_eq!(start(at(5, 0)), position(5));
    assert_eq!(start(at(0, 0xFFFF)), position(0x7FFF));
    assert_eq!(start(at(0x8002, 0x8001)), None);
    let error = StartError::Apart { apart: 6, size: 5 };
    assert_eq!(start(at(0x0002, 0x8001)), Some(error));
    let driver = PackedDriver::new(rig.packed(), PACKED, at(0x8002, 0x8001)).err();
    assert_eq!(driver, Some(StartError::Apart { apart: 1, size: 5 }));

    let mut saved = device(&rig, PACKED).snapshot().unwrap();
    saved[4] = 9;
    let error = PackedDevice::restore(rig.packed(), &saved).err();
    assert_eq!(error, position(9).map(RestoreError::Start));
    let error = PackedDevice::restore(rig.packed(), &[0; 16]).err();
    assert!(matches!(error, Some(RestoreError::Kind { kind: 0, .. })));
}

/// A driver with two published chains, 0 of 4 writable bytes in two descriptors
/// and 1 with none, and a third that is not published.
fn busy_driver(rig: &Rig) -> PackedDriver<Window> {
    let mut driver = PackedDriver::new(rig.packed(), PACKED, START).unwrap();
    let one = [buffer(BASE, 1)];
    assert_eq!(driver.add(&one, &[buffer(BASE, 4)], None), Ok(0));
    assert_eq!(driver.add(&one, &[], None), Ok(1));
    driver.publish().unwrap();
    assert_eq!(driver.add(&one, &[], None), Ok(2));
    driver
}

fn use_first(id: u16, len: u32, flags: u16) -> Result<u32, UsedError> {
    let rig = Rig::new(5);
    let mut driver = busy_driver(&rig);
    rig.packed()
        .publish_used(0, used(id, len, AVAIL | USED | flags));
    assert_eq!(driver.refresh(), Ok(1));
    match driver.pop() {
        Ok(used) => Ok(used.unwrap().written),
        Err(error) => {
            assert_eq!(driver.retired(), Some(error));
            assert_eq!(driver.refresh(), Err(error));
            assert_eq!(driver.pop(), Err(error));
            assert_eq!(driver.publish(), Err(error));
            assert_eq!(driver.kick_wanted(), Err(error));
            assert_eq!(driver.arm(), Err(error));
            assert_eq!(driver.disarm(), Err(error));
            let added = driver.add(&[buffer(BASE, 1)], &[], None);
            assert_eq!(added, Err(AddError::Retired(error)));
            assert_eq!(driver.snapshot(), Err(NotQuiet::Retired));
            Err(error)
        }
    }
}

#[test]
fn a_used_id_that_the_device_does_not_have() {
    for id in [2, 3, 5, u16::MAX] {
        let error = UsedError::NotOutstanding { id: id.into() };
        assert_eq!(use_first(id, 0, 0), Err(error), "{id}");
    }
    assert_eq!(use_first(1, 0, 0), Ok(0));
}

/// A length counts where the flag says so; some devices forget the flag.
#[test]
fn a_used_length_beyond_the_writable_bytes() {
    for (id, len, writable) in [(0, 5, 4), (0, u32::MAX, 4), (1, 1, 0)] {
        let error = UsedError::UsedLength { id, len, writable };
        assert_eq!(use_first(id, len, WRITE), Err(error));
        assert_eq!(use_first(id, len, 0), Ok(0), "it means nothing");
    }
    assert_eq!(use_first(0, 4, WRITE), Ok(4));
    assert_eq!(use_first(0, 3, 0), Ok(3));
}

#[test]
fn a_chain_that_is_used_twice() {
    let rig = Rig::new(5);
    let mut driver = busy_driver(&rig);
    for position in [0, 2] {
        rig.packed()
            .publish_used(position, used(0, 0, AVAIL | USED));
    }
    assert!(driver.pop().unwrap().is_some());
    let error = UsedError::NotOutstanding { id: 0 };
    assert_eq!(driver.pop(), Err(error));
}

/// The first used descriptor of a batch is shown last, whatever its size.
#[test]
fn a_batch_is_seen_whole_or_not_at_all() {
    let rig = Rig::new(5);
    let (mut driver, mut device) = rig.queues(PACKED, 4);
    for _ in 0..3 {
        driver.add(&[buffer(BASE, 1)], &[], None).unwrap();
        assert_eq!(device.refresh(), Ok(0), "not published yet");
    }
    driver.publish().unwrap();
    let mut chains = [(); 3].map(|()| chain());
    for chain in &mut chains {
        assert_eq!(device.pop(&rig.memory.guest, chain), Ok(true));
    }
    for chain in &chains {
        device.push(chain, 0).unwrap();
        assert_eq!(driver.refresh(), Ok(0), "not published yet");
    }
    assert_eq!(device.snapshot(), Err(NotQuiet::Unpublished { count: 3 }));
    device.publish().unwrap();
    for _ in 0..3 {
        assert!(driver.pop().unwrap().is_some());
    }
    assert_eq!(driver.pop(), Ok(None));
}
