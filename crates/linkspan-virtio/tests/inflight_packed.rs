//! In-flight regions of packed rings that a front end left in any state.

mod rig;

use linkspan_mem::{InflightPacked, InflightPackedEntry, Region, Window};
use linkspan_virtio::packed::{PackedDevice, START};
use linkspan_virtio::split::VIRTQ_DESC_F_NEXT as NEXT;
use linkspan_virtio::{InflightError, NotQuiet, QueueError};
use rig::{BASE, END, PACKED, Rig, chain};

type Packed = InflightPacked<Window>;

/// A region of 4 descriptors with two chains in flight, the younger one at
/// entries 0 and 1, the older one at entry 2; entry 3 is free.
struct Peer {
    rig: Rig,
    memory: Region,
}

impl Peer {
    fn new() -> Self {
        let peer = Self {
            rig: Rig::new(4),
            memory: Region::heap(Packed::region_len(4)).unwrap(),
        };
        let region = peer.region();
        region.start(START.next_used);
        let entry = |num, last, counter, id, flags| InflightPackedEntry {
            num,
            last,
            counter,
            id,
            flags,
            len: 5,
            address: BASE,
            ..InflightPackedEntry::default()
        };
        let entries = [
            (0, entry(2, 1, 9, 0, NEXT)),
            (1, entry(0, 0, 0, 70, 0)),
            (2, entry(1, 2, 8, 60, 0)),
        ];
        for (index, entry) in &entries {
            region.set_descriptor(*index, entry);
        }
        region.take(0, &entries[0].1);
        region.take(2, &entries[2].1);
        region.set_free(3, 3);
        peer
    }

    fn region(&self) -> Packed {
        let window = self.memory.window(0, self.memory.len()).unwrap();
        Packed::new(window, 4).unwrap()
    }

    fn poke(&self, offset: u64, bytes: &[u8]) {
        self.memory.slice(offset, 8).unwrap().write(bytes);
    }

    /// Writes a 16-bit field of an entry.
    fn set(&self, entry: u64, field: u64, value: u16) {
        self.poke(32 + 32 * entry + field, &value.to_ne_bytes());
    }

    fn device(&self) -> Result<PackedDevice<Window>, InflightError> {
        let device = PackedDevice::new(self.rig.packed(), PACKED, START).unwrap();
        device.track(self.region())
    }

    fn error(&self) -> Option<InflightError> {
        let mut before = vec![0; self.memory.len()];
        let mut after = before.clone();
        let slice = self.memory.slice(0, self.memory.len() as u64).unwrap();
        slice.read(&mut before);
        let error = self.device().err();
        slice.read(&mut after);
        assert!(
            error.is_none() || before == after,
            "nothing is changed then"
        );
        error
    }
}

const NEXT_FIELD: u64 = 2;
const LAST_FIELD: u64 = 4;
const NUM_FIELD: u64 = 6;

#[test]
fn what_was_in_flight_comes_first_and_in_its_order() {
    let peer = Peer::new();
    let mut device = peer.device().unwrap();
    assert_eq!(device.snapshot(), Err(NotQuiet::InFlight { count: 2 }));
    assert_eq!(device.state().next_available, 3 | 1 << 15);
    assert_eq!(device.state().next_used, START.next_used);
    assert_eq!(device.arm(), Ok(true), "it must not sleep over it");
    let (mut first, mut second) = (chain(), chain());
    assert_eq!(device.pop(&peer.rig.memory.guest, &mut first), Ok(true));
    assert_eq!((first.id(), first.descriptors()), (60, 1));
    assert_eq!(device.pop(&peer.rig.memory.guest, &mut second), Ok(true));
    assert_eq!((second.id(), second.descriptors()), (70, 2));
    assert_eq!(device.pop(&peer.rig.memory.guest, &mut chain()), Ok(false));
    device.push(&second, 0).unwrap();
    device.push(&first, 0).unwrap();
    device.publish().unwrap();
    assert_eq!(device.state().next_used, 3 | 1 << 15);
    assert_eq!(peer.error(), None);
    assert_eq!(peer.device().unwrap().state(), device.state());
}

/// libvhost-user b9d248dfac, of the packed layout.
#[test]
fn a_state_that_is_neither_0_nor_1() {
    for entry in [0, 1, 3] {
        let peer = Peer::new();
        peer.poke(32 + 32 * entry, &[2]);
        let index = u16::try_from(entry).unwrap();
        let error = InflightError::State { index, value: 2 };
        assert_eq!(peer.error(), Some(error));
    }
}

#[test]
fn a_free_list_that_leaves_the_region_or_loops() {
    let peer = Peer::new();
    for index in [5, u16::MAX] {
        peer.region().set_free(index, index);
        let error = InflightError::OutOfRange { index, size: 4 };
        assert_eq!(peer.error(), Some(error));
    }
    peer.region().set_free(3, 3);
    peer.set(3, NEXT_FIELD, 3);
    let error = InflightError::LinkedTwice { index: 3 };
    assert_eq!(peer.error(), Some(error));
    // Into a chain: what is free is not in flight, so its rest is what is lost.
    peer.set(3, NEXT_FIELD, 0);
    let error = InflightError::LinkedTwice { index: 2 };
    peer.set(1, NEXT_FIELD, 2);
    peer.set(2, NEXT_FIELD, 2);
    assert_eq!(peer.error(), Some(error));
}

#[test]
fn chains_that_leave_the_region_or_share_an_entry() {
    let peer = Peer::new();
    peer.set(0, NEXT_FIELD, 4);
    let error = InflightError::OutOfRange { index: 4, size: 4 };
    assert_eq!(peer.error(), Some(error));
    for index in [0, 2, 3] {
        let peer = Peer::new();
        peer.set(0, NEXT_FIELD, index);
        peer.set(0, LAST_FIELD, index);
        assert!(peer.error().is_some(), "{index}");
    }
}

#[test]
fn chains_of_a_length_that_cannot_be() {
    for num in [0, 1, 3, 5, u16::MAX] {
        let peer = Peer::new();
        peer.set(0, NUM_FIELD, num);
        let error = peer.error();
        assert!(
            matches!(error, Some(InflightError::Length { index: 0, .. })) || num == 3,
            "{num}: {error:?}"
        );
        assert!(error.is_some());
    }
    let peer = Peer::new();
    peer.set(0, LAST_FIELD, 0);
    let error = InflightError::Length { index: 0, num: 2 };
    assert_eq!(peer.error(), Some(error));
}

#[test]
fn an_entry_that_is_nowhere() {
    let peer = Peer::new();
    peer.region().set_free(4, 4);
    let error = InflightError::Lost { index: 3 };
    assert_eq!(peer.error(), Some(error));
}

#[test]
fn positions_versions_sizes_and_counters_that_cannot_be() {
    let peer = Peer::new();
    peer.region().set_used(4, START.next_used);
    let error = InflightError::Position {
        position: 4,
        size: 4,
    };
    assert_eq!(peer.error(), Some(error));
    let peer = Peer::new();
    peer.poke(8, &7_u16.to_ne_bytes());
    let error = InflightError::Version { version: 7 };
    assert_eq!(peer.error(), Some(error));
    let peer = Peer::new();
    peer.poke(10, &3_u16.to_ne_bytes());
    assert!(matches!(peer.error(), Some(InflightError::Size { .. })));
    let peer = Peer::new();
    peer.poke(40, &u64::MAX.to_ne_bytes());
    let error = InflightError::Counter { index: 0 };
    assert_eq!(peer.error(), Some(error));
    // A region of 4 with 3 in flight, for a queue of 2.
    let small = Rig::new(2);
    let device = PackedDevice::new(small.packed(), PACKED, START).unwrap();
    let error = InflightError::TooMany { count: 3, size: 2 };
    assert_eq!(device.track(Peer::new().region()).err(), Some(error));
}

/// Copies are looked at as if they were new.
#[test]
fn a_request_in_flight_may_have_become_nonsense() {
    let peer = Peer::new();
    peer.poke(32 + 32 * 2 + 24, &END.to_ne_bytes());
    let mut device = peer.device().unwrap();
    assert!(matches!(
        device.pop(&peer.rig.memory.guest, &mut chain()),
        Err(QueueError::OutsideMemory { .. })
    ));
    // Two chains of one name.
    let peer = Peer::new();
    peer.set(2, 16, 70);
    let mut device = peer.device().unwrap();
    let (space, mut chain) = (&peer.rig.memory.guest, chain());
    assert_eq!(device.pop(space, &mut chain), Ok(true));
    let error = QueueError::HeadInFlight { head: 70 };
    assert_eq!(device.pop(space, &mut chain), Err(error));
}

/// A region changed while the device runs has no effect on it.
#[test]
fn a_region_is_read_once() {
    let rig = Rig::new(3);
    let memory = Region::heap(Packed::region_len(3)).unwrap();
    let (mut driver, device) = rig.queues(PACKED, 0);
    let window = memory.window(0, memory.len()).unwrap();
    let mut device = device.track(window, 3).unwrap();
    let junk = vec![0xA5; memory.len()];
    let mut chain = chain();
    for _ in 0..20 {
        memory.slice(0, memory.len() as u64).unwrap().write(&junk);
        let buffers = [rig::buffer(BASE, 1); 2];
        driver.add(&buffers, &[], None).unwrap();
        driver.publish().unwrap();
        assert_eq!(device.pop(&rig.memory.guest, &mut chain), Ok(true));
        device.push(&chain, 0).unwrap();
        device.publish().unwrap();
        assert!(driver.pop().unwrap().is_some());
    }
    assert_eq!(device.state(), driver.state());
}
