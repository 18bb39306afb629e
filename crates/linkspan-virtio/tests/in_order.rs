//! `VIRTIO_F_IN_ORDER`: what stands in the ring, and what a device makes of it.

mod rig;

use linkspan_mem::UsedElement;
use linkspan_mem::Window;
use linkspan_virtio::split::VIRTQ_DESC_F_WRITE as WRITE;
use linkspan_virtio::{Chain, DeviceQueue, DriverQueue, Features, Used, UsedError};
use rig::{ALL, BASE, PACKED, Rig, buffer, chain};

const IN_ORDER: Features = Features::VIRTIO_F_IN_ORDER;

/// Four chains of 4 writable bytes, taken by the device.
fn taken(rig: &Rig, features: Features) -> (DriverQueue<Window>, DeviceQueue<Window>, Vec<Chain>) {
    let (mut driver, mut device) = rig.queues(features, 0);
    for _ in 0..4 {
        driver.add(&[], &[buffer(BASE, 4)], None).unwrap();
    }
    driver.publish().unwrap();
    device.refresh().unwrap();
    let mut chains: Vec<Chain> = (0..4).map(|_| chain()).collect();
    for chain in &mut chains {
        assert_eq!(device.pop(&rig.memory.guest, chain), Ok(true));
    }
    (driver, device, chains)
}

fn drain(driver: &mut DriverQueue<Window>) -> Result<Vec<Used>, UsedError> {
    driver.refresh()?;
    let mut all = Vec::new();
    while let Some(used) = driver.pop()? {
        all.push(used);
    }
    Ok(all)
}

fn used(id: u16, written: u32) -> Used {
    Used { id, written }
}

/// Only chains that were used completely may lack an entry of their own.
#[test]
fn one_entry_serves_for_a_run_of_chains() {
    for features in [ALL | IN_ORDER, PACKED | IN_ORDER] {
        let rig = Rig::new(4);
        let (mut driver, mut device, chains) = taken(&rig, features);
        for (chain, written) in chains.iter().zip([4, 4, 1, 4]) {
            device.push(chain, written).unwrap();
        }
        device.publish().unwrap();
        match device {
            DeviceQueue::Split(_) => {
                assert_eq!(rig.ring().used_index(), 4);
                let element = |id, len| UsedElement { id, len };
                assert_eq!(rig.ring().used_element(0), element(2, 1));
                assert_eq!(rig.ring().used_element(1), element(0, 0), "left out");
                assert_eq!(rig.ring().used_element(3), element(3, 4));
            }
            DeviceQueue::Packed(_) => {
                assert_eq!(rig.packed().descriptor(0).id, 2);
                assert_eq!(rig.packed().flags(0), 0x8080 | WRITE);
                assert_eq!(rig.packed().flags(1), 0x0080 | WRITE, "left out");
                assert_eq!(rig.packed().descriptor(3).len, 4);
                assert_eq!(rig.packed().flags(3), 0x8080 | WRITE);
            }
        }
        let all = [used(0, 4), used(1, 4), used(2, 1), used(3, 4)];
        assert_eq!(drain(&mut driver).unwrap(), all);
        assert_eq!(driver.free(), 4);
    }
}

/// In order, a driver uses descriptors in ring order (virtio 1.3 2.7.9).
#[test]
fn a_driver_keeps_to_the_order_of_the_ring() {
    let rig = Rig::new(4);
    let (mut driver, mut device) = rig.queues(ALL | IN_ORDER, 0);
    let mut next = 0;
    for count in [1, 2, 1, 3, 2, 2] {
        let buffers = vec![buffer(BASE, 1); count];
        assert_eq!(driver.add(&buffers, &[], None), Ok(next));
        driver.publish().unwrap();
        device.refresh().unwrap();
        let mut chain = chain();
        device.pop(&rig.memory.guest, &mut chain).unwrap();
        device.push(&chain, 0).unwrap();
        device.publish().unwrap();
        assert_eq!(drain(&mut driver).unwrap(), [used(next, 0)]);
        next = (next + u16::try_from(count).unwrap()) % 4;
    }
}

/// A device names the end of a run that its index does not cover.
#[test]
fn a_run_that_goes_beyond_the_index() {
    let rig = Rig::new(4);
    let (mut driver, _, _) = taken(&rig, ALL | IN_ORDER);
    rig.ring()
        .set_used_element(0, UsedElement { id: 3, len: 0 });
    rig.ring().publish_used_index(2);
    let error = UsedError::NotOutstanding { id: 3 };
    assert_eq!(drain(&mut driver), Err(error));
    assert_eq!(driver.retired(), Some(error));
}

/// Out of order is the device's own mistake, and is found where it is made.
#[test]
#[should_panic(expected = "is not the oldest in flight")]
fn a_split_device_that_leaves_the_order() {
    let rig = Rig::new(4);
    let (_, mut device, chains) = taken(&rig, ALL | IN_ORDER);
    let _ = device.push(&chains[1], 0);
}

#[test]
#[should_panic(expected = "is not the oldest in flight")]
fn a_packed_device_that_leaves_the_order() {
    let rig = Rig::new(4);
    let (_, mut device, chains) = taken(&rig, PACKED | IN_ORDER);
    let _ = device.push(&chains[1], 0);
}

/// DPDK's `virtio-user` gives the base of a packed ring without its used half, which
/// would mean that all of the ring is in flight.
#[test]
fn base_of_a_packed_ring_without_its_used_half_is_its_start() {
    let rig = Rig::new(4);
    let (mut driver, _) = rig.queues(PACKED, 0);
    let mut device = DeviceQueue::with_base(rig.parts(PACKED), 4, PACKED, 1 << 15).unwrap();
    for round in 0..3 {
        for _ in 0..4 {
            driver.add(&[buffer(BASE, 4)], &[], None).unwrap();
        }
        driver.publish().unwrap();
        let mut chain = chain();
        for taken in 0..4 {
            let popped = device.pop(&rig.memory.guest, &mut chain);
            assert_eq!(popped, Ok(true), "round {round}, chain {taken}");
            device.push(&chain, 0).unwrap();
        }
        device.publish().unwrap();
        assert_eq!(drain(&mut driver).unwrap().len(), 4);
    }
}
