//! In-flight regions that a front end or another back end left in any state.

mod rig;

use linkspan_mem::{InflightSplit, Region, Window};
use linkspan_virtio::split::SplitDevice;
use linkspan_virtio::{DeviceQueue, InflightError, NotQuiet, QueueError, QueueLayout, QueueState};
use rig::{ALL, BASE, PACKED, Rig, buffer, chain};

type Split = InflightSplit<Window>;

/// A region of 8 descriptors and the memory that it lies in.
struct Peer {
    rig: Rig,
    memory: Region,
}

impl Peer {
    /// A region whose last user stood at `used_idx`, and a used ring that does so too.
    fn new(used_idx: u16) -> Self {
        let memory = Region::heap(Split::region_len(8)).unwrap();
        let peer = Self {
            rig: Rig::new(8),
            memory,
        };
        peer.rig.ring().publish_used_index(used_idx);
        peer.region().start(used_idx);
        peer
    }

    fn region(&self) -> Split {
        let window = self.memory.window(0, self.memory.len()).unwrap();
        InflightSplit::new(window, 8).unwrap()
    }

    fn poke(&self, offset: usize, value: u16) {
        let slice = self.memory.slice(offset as u64, 2).unwrap();
        slice.write(&value.to_ne_bytes());
    }

    fn link(&self, entry: usize, next: u16) {
        self.poke(16 + 16 * entry + 6, next);
    }

    fn mark(&self, entry: usize, inflight: u8) {
        let slice = self.memory.slice((16 + 16 * entry) as u64, 1).unwrap();
        slice.write(&[inflight]);
    }

    fn device(&self) -> Result<SplitDevice<Window>, InflightError> {
        self.rig.device(ALL).track(self.region())
    }

    /// Heads in the order in which the device takes them again.
    fn resubmitted(&self) -> Result<Vec<u16>, InflightError> {
        let mut device = self.device()?;
        for index in 0..8 {
            let ring = self.rig.ring();
            ring.set_descriptor(index, rig::descriptor(BASE, 1, 0, 0));
        }
        let available = device.state().next_available;
        self.rig.ring().publish_available_index(available);
        device.refresh().unwrap();
        let (mut heads, mut chain) = (Vec::new(), chain());
        while device.pop(&self.rig.memory.guest, &mut chain).unwrap() {
            heads.push(chain.id());
        }
        Ok(heads)
    }
}

/// SPDK #3766: a new region on a ring that is further on already.
#[test]
fn a_new_region_takes_over_where_the_ring_stands() {
    let rig = Rig::new(8);
    let memory = Region::heap(Split::region_len(8)).unwrap();
    let region = || Split::new(memory.window(0, memory.len()).unwrap(), 8).unwrap();
    let (mut driver, device) = rig.pair(ALL, 100);
    let mut device = device.track(region()).unwrap();
    assert_eq!((region().used_idx(), region().desc_num()), (100, 8));
    driver.add(&[buffer(BASE, 1)], &[], None).unwrap();
    driver.publish().unwrap();
    let mut chain = chain();
    device.refresh().unwrap();
    assert_eq!(device.pop(&rig.memory.guest, &mut chain), Ok(true));
    assert_eq!(chain.id(), 0);
    drop(device);

    let mut device = rig.device(ALL).track(region()).unwrap();
    assert_eq!(device.snapshot(), Err(NotQuiet::InFlight { count: 1 }));
    assert_eq!(device.refresh(), Ok(1));
    assert_eq!(device.arm(), Ok(true), "it must not sleep over it");
    assert_eq!(device.pop(&rig.memory.guest, &mut chain), Ok(true));
    assert_eq!(chain.id(), 0);
    assert_eq!(device.pop(&rig.memory.guest, &mut chain), Ok(false));
    assert_eq!(device.state().next_available, 101);
}

/// A chain that was put back is as if it had never been taken, in this life and
/// in the next; one of an earlier life stays in flight until it is used.
#[test]
fn what_is_put_back_is_not_in_flight() {
    for features in [ALL, PACKED] {
        let rig = Rig::new(8);
        let memory = Region::heap(1 << 12).unwrap();
        let region = || memory.window(0, memory.len()).unwrap();
        let (mut driver, device) = rig.queues(features, 0);
        let mut device = device.track(region(), 8).unwrap();
        let ids = [0, 1].map(|_| driver.add(&[buffer(BASE, 1)], &[], None).unwrap());
        driver.publish().unwrap();
        let mut chains = [chain(), chain()];
        device.refresh().unwrap();
        for chain in &mut chains {
            assert_eq!(device.pop(&rig.memory.guest, chain), Ok(true));
        }
        let base = device.base();
        device.put_back(&chains[1]).unwrap();
        assert_eq!(device.in_flight(), 1);
        assert_ne!(device.base(), base);
        drop(device);

        let start = QueueLayout::of(features).start();
        let device = DeviceQueue::new(rig.parts(features), 8, features, start).unwrap();
        let mut device = device.track(region(), 8).unwrap();
        assert_eq!(device.snapshot(), Err(NotQuiet::InFlight { count: 1 }));
        for round in 0..2 {
            for (chain, id) in chains.iter_mut().zip(ids) {
                device.refresh().unwrap();
                assert_eq!(device.pop(&rig.memory.guest, chain), Ok(true), "{round}");
                assert_eq!(chain.id(), id);
            }
            assert_eq!(device.pop(&rig.memory.guest, &mut chain()), Ok(false));
            if round == 0 {
                device.put_back(&chains[1]).unwrap();
                device.put_back(&chains[0]).unwrap();
                assert_eq!(device.in_flight(), 0);
            }
        }
        for chain in &chains {
            device.push(chain, 0).unwrap();
        }
        device.publish().unwrap();
        assert!(device.snapshot().is_ok());
        driver.refresh().unwrap();
        for id in ids {
            assert_eq!(driver.pop().unwrap().map(|used| used.id), Some(id));
        }
    }
}

/// SPDK #3766: another back end left its used index at 0 when it began.
#[test]
fn a_used_index_that_was_never_set_forgets_no_request() {
    for used in [2, 8, 100] {
        let peer = Peer::new(used);
        peer.poke(14, 0);
        peer.mark(0, 1);
        assert_eq!(peer.resubmitted(), Ok(vec![0]), "{used}");
        assert_eq!(peer.region().used_idx(), used);
    }
}

#[test]
fn requests_come_again_in_the_order_in_which_they_were_taken() {
    let peer = Peer::new(0);
    for (head, counter) in [(3, 7), (0, 9), (6, 8), (1, 3)] {
        peer.region().take(head, counter);
    }
    assert_eq!(peer.resubmitted(), Ok(vec![1, 3, 6, 0]));
}

/// The driver saw the last batch, the region did not.
#[test]
fn the_last_batch_is_not_in_flight() {
    let peer = Peer::new(65535);
    for (head, counter) in [(3, 0), (5, 1), (2, 2)] {
        peer.region().take(head, counter);
    }
    peer.region().batch(2, 0);
    peer.region().batch(3, 2);
    peer.rig.ring().publish_used_index(1);
    assert_eq!(peer.resubmitted(), Ok(vec![5]));
    assert_eq!(peer.region().used_idx(), 1);
}

/// libvhost-user b9d248dfac: a state that was counted but not stored, or the
/// other way round, overflowed a list.
#[test]
fn a_state_that_is_neither_0_nor_1() {
    for value in [2, 0x80, 0xFF] {
        let peer = Peer::new(0);
        peer.mark(3, value);
        let error = InflightError::State { index: 3, value };
        assert_eq!(peer.device().err(), Some(error));
    }
}

/// libvhost-user bf21298c08: the head of the last batch was not checked.
#[test]
fn links_that_leave_the_region_or_loop() {
    let peer = Peer::new(4);
    peer.rig.ring().publish_used_index(6);
    for head in [8, u16::MAX] {
        peer.poke(12, head);
        let error = InflightError::OutOfRange {
            index: head,
            size: 8,
        };
        assert_eq!(peer.device().err(), Some(error));
    }
    peer.poke(12, 7);
    peer.link(7, 7);
    let error = InflightError::LinkedTwice { index: 7 };
    assert_eq!(peer.device().err(), Some(error));
    peer.link(7, 9);
    let error = InflightError::OutOfRange { index: 9, size: 8 };
    assert_eq!(peer.device().err(), Some(error));
    peer.link(7, 1);
    assert!(peer.device().is_ok());
}

#[test]
fn a_used_index_that_makes_no_sense() {
    let peer = Peer::new(4);
    for (used_idx, count) in [(5, u16::MAX), (65531, 9)] {
        peer.poke(14, used_idx);
        let error = InflightError::Batch { count, size: 8 };
        assert_eq!(peer.device().err(), Some(error));
    }
}

#[test]
fn a_region_of_another_version_or_size() {
    let peer = Peer::new(0);
    peer.poke(8, 2);
    let error = InflightError::Version { version: 2 };
    assert_eq!(peer.device().err(), Some(error));
    peer.poke(8, 1);
    peer.poke(10, 4);
    let error = InflightError::Size {
        desc_num: 4,
        room: 8,
        size: 8,
    };
    assert_eq!(peer.device().err(), Some(error));

    // The queue may be smaller than the region, but not larger.
    peer.poke(10, 8);
    let small = Rig::new(4);
    assert!(small.device(ALL).track(peer.region()).is_ok());
    peer.mark(4, 1);
    let error = InflightError::OutOfRange { index: 4, size: 4 };
    assert_eq!(small.device(ALL).track(peer.region()).err(), Some(error));
    let large = Rig::new(16);
    assert!(matches!(
        large.device(ALL).track(peer.region()),
        Err(InflightError::Size { size: 16, .. })
    ));
}

#[test]
fn a_counter_that_has_no_successor() {
    let peer = Peer::new(0);
    peer.region().take(2, u64::MAX);
    let error = InflightError::Counter { index: 2 };
    assert_eq!(peer.device().err(), Some(error));
}

/// What is in flight is looked at in the ring again, as if it were new.
#[test]
fn a_request_in_flight_may_have_become_nonsense() {
    let peer = Peer::new(0);
    peer.region().take(2, 0);
    let ring = peer.rig.ring();
    ring.set_descriptor(2, rig::descriptor(BASE, 1, 1, 8));
    ring.publish_available_index(1);
    let mut device = peer.device().unwrap();
    device.refresh().unwrap();
    assert!(matches!(
        device.pop(&peer.rig.memory.guest, &mut chain()),
        Err(QueueError::NextOutOfRange { head: 2, .. })
    ));
    // A driver that cannot have made so many available shows as a jump.
    ring.publish_available_index(0);
    assert!(peer.device().unwrap().refresh().is_err());
}

/// A region changed while the device runs has no effect on it.
#[test]
fn a_region_is_read_once() {
    let rig = Rig::new(8);
    let memory = Region::heap(Split::region_len(8)).unwrap();
    let region = Split::new(memory.window(0, memory.len()).unwrap(), 8).unwrap();
    let (mut driver, device) = rig.pair(ALL, 0);
    let mut device = device.track(region).unwrap();
    let mut chain = chain();
    for _ in 0..20 {
        memory
            .slice(0, memory.len() as u64)
            .unwrap()
            .write(&[0xA5; 192]);
        driver.add(&[buffer(BASE, 1)], &[], None).unwrap();
        driver.publish().unwrap();
        device.refresh().unwrap();
        assert_eq!(device.pop(&rig.memory.guest, &mut chain), Ok(true));
        device.push(&chain, 0).unwrap();
        device.publish().unwrap();
        driver.refresh().unwrap();
        assert!(driver.pop().unwrap().is_some());
    }
    let state = QueueState {
        next_available: 20,
        next_used: 20,
    };
    assert_eq!(device.state(), state);
}
