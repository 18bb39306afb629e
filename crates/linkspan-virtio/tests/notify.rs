//! Who is notified when, in packed rings of sizes that are no powers of two.
//! `split.rs` asks the same of split rings.

mod rig;

use linkspan_mem::{EventSuppression, Window};
use linkspan_virtio::packed::{
    RING_EVENT_FLAGS_DESC, RING_EVENT_FLAGS_DISABLE, RING_EVENT_FLAGS_ENABLE,
};
use linkspan_virtio::{DeviceQueue, DriverQueue, Features};
use rig::{BASE, PACKED, Rig, buffer, chain};

fn add_one(driver: &mut DriverQueue<Window>) {
    driver.add(&[buffer(BASE, 1)], &[], None).unwrap();
    driver.publish().unwrap();
}

fn use_all(rig: &Rig, device: &mut DeviceQueue<Window>) -> u16 {
    let (mut chain, mut count) = (chain(), 0);
    while device.pop(&rig.memory.guest, &mut chain).unwrap() {
        device.push(&chain, 0).unwrap();
        count += 1;
    }
    device.publish().unwrap();
    count
}

fn drain(driver: &mut DriverQueue<Window>) {
    while driver.pop().unwrap().is_some() {}
}

#[test]
fn a_side_is_notified_exactly_when_it_asked() {
    let flags = PACKED - Features::VIRTIO_F_EVENT_IDX;
    for (features, size, start) in [(PACKED, 3, 0), (PACKED, 7, 4), (flags, 3, 0), (flags, 7, 4)] {
        let rig = Rig::new(size);
        let (mut driver, mut device) = rig.queues(features, start);
        assert_eq!(driver.kick_wanted(), Ok(true), "the first look says yes");
        assert_eq!(device.notify_wanted(), Ok(true), "the first look says yes");
        for round in 0..20 {
            assert_eq!(device.arm(), Ok(false), "round {round}");
            add_one(&mut driver);
            assert_eq!(driver.kick_wanted(), Ok(true));
            assert_eq!(driver.kick_wanted(), Ok(false), "nothing new");
            device.disarm().unwrap();
            add_one(&mut driver);
            assert_eq!(driver.kick_wanted(), Ok(false), "the device is awake");

            assert_eq!(driver.arm(), Ok(false));
            assert_eq!(use_all(&rig, &mut device), 2);
            assert_eq!(device.notify_wanted(), Ok(true));
            driver.disarm().unwrap();
            drain(&mut driver);
            add_one(&mut driver);
            use_all(&rig, &mut device);
            assert_eq!(device.notify_wanted(), Ok(false), "the driver is awake");
            drain(&mut driver);
        }
        add_one(&mut driver);
        assert_eq!(device.arm(), Ok(true), "what came before is found");
        assert_eq!(device.arm(), Ok(true), "and not forgotten by arming again");
        use_all(&rig, &mut device);
        assert_eq!(driver.arm(), Ok(true));
    }
}

/// Each position that a driver can ask for, over two rounds of a ring of 3.
#[test]
fn a_descriptor_that_is_passed_is_notified() {
    for asked in 0..6_u16 {
        let rig = Rig::new(3);
        let (mut driver, mut device) = rig.queues(PACKED, 0);
        device.notify_wanted().unwrap();
        let wrap = u16::from(asked < 3) << 15;
        rig.packed().set_driver_event(EventSuppression {
            position: (asked % 3) | wrap,
            flags: RING_EVENT_FLAGS_DESC,
        });
        // Three batches of two descriptors.
        for batch in 0..3 {
            add_one(&mut driver);
            add_one(&mut driver);
            assert_eq!(use_all(&rig, &mut device), 2);
            let wanted = device.notify_wanted();
            assert_eq!(wanted, Ok(asked / 2 == batch), "{asked} in {batch}");
            drain(&mut driver);
        }
    }
}

#[test]
fn what_a_peer_must_not_ask_for_is_taken_as_a_wish() {
    let flags = PACKED - Features::VIRTIO_F_EVENT_IDX;
    for (features, event, wanted) in [
        (PACKED, RING_EVENT_FLAGS_ENABLE, true),
        (PACKED, RING_EVENT_FLAGS_DISABLE, false),
        (PACKED, RING_EVENT_FLAGS_DISABLE | 0x100, false),
        (PACKED, 3, true),
        (flags, RING_EVENT_FLAGS_DESC, true),
    ] {
        let rig = Rig::new(3);
        let (mut driver, mut device) = rig.queues(features, 0);
        device.notify_wanted().unwrap();
        let position = u16::MAX;
        let flags = event;
        rig.packed()
            .set_driver_event(EventSuppression { position, flags });
        add_one(&mut driver);
        use_all(&rig, &mut device);
        assert_eq!(device.notify_wanted(), Ok(wanted), "{event}");
    }
}
