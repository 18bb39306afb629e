//! Frames through a transmit queue of either layout, and chains that are none.

mod net_rig;

use linkspan_devices::net::driver::{
    ReceiveDriver, SLOT_BYTES_MIN, SendError, Slots, SlotsError, TransmitDriver, WANTED,
};
use linkspan_devices::net::features::VIRTIO_NET_F_HASH_REPORT;
use linkspan_devices::net::header::{Header, HeaderLayout, Offload};
use linkspan_devices::net::{Frame, FrameHead, HEAD_LEN, take_transmit};
use linkspan_mem::Gpa;
use linkspan_virtio::{Buffer, Chain, Features, QueueError};
use net_rig::{PARTIAL, Rig, SLOTS, apart, bytes, layouts, read, take_all};

#[test]
fn frames_of_any_length_are_transmitted() {
    for (features, slot) in layouts().into_iter().zip([128, 256, 1000, 2048]) {
        for features in [features, features | VIRTIO_NET_F_HASH_REPORT] {
            let rig = Rig::new(features | WANTED);
            let slots = rig.slots(40, slot);
            let mut driver = TransmitDriver::new(rig.driver(), rig.features, slots).unwrap();
            let mut device = rig.device();
            for round in 0..30 {
                let lens = [60, 1, 108, 109, 127, 128, 129, 1514, 14 + round];
                let mut sent = Vec::new();
                for (seed, len) in lens.into_iter().enumerate() {
                    let bytes = bytes(len, seed);
                    let frame = apart(&bytes, round * 5);
                    if driver.send(rig.memory.table(), &PARTIAL, &frame).unwrap() {
                        sent.push(bytes);
                    }
                }
                driver.queue().publish().unwrap();
                let taken = take_all(&rig, &mut device);
                assert!(taken.len() >= 6);
                for ((header, bytes), sent) in taken.iter().zip(&sent) {
                    assert_eq!(*header, Header::of(&PARTIAL));
                    assert_eq!(bytes, sent);
                }
                assert_eq!(taken.len(), sent.len());
                assert_eq!(
                    usize::from(driver.reclaim(rig.memory.table()).unwrap()),
                    sent.len()
                );
            }
        }
    }
}

#[test]
fn a_full_transmit_queue_says_so_and_goes_on() {
    for features in layouts() {
        let rig = Rig::new(features | WANTED);
        let slots = rig.slots(10, 256);
        let mut driver = TransmitDriver::new(rig.driver(), rig.features, slots).unwrap();
        let mut device = rig.device();
        // Each takes three slots.
        let bytes = bytes(600, 1);
        for _ in 0..50 {
            let table = rig.memory.table();
            let mut send = || driver.send(table, &Offload::NONE, &Frame::private(&bytes));
            let sent = (0..5).take_while(|_| send().unwrap()).count();
            assert_eq!(sent, 3);
            driver.queue().publish().unwrap();
            assert_eq!(take_all(&rig, &mut device).len(), 3);
            assert_eq!(driver.reclaim(table).unwrap(), 3);
        }
        let long = vec![0; 2560];
        let error = driver
            .send(rig.memory.table(), &Offload::NONE, &Frame::private(&long))
            .unwrap_err();
        assert_eq!(error, SendError::TooLong { len: 2560, max: 10 });
    }
}

#[test]
fn slots_that_cannot_be_are_refused() {
    let rig = Rig::new(layouts()[0] | WANTED);
    let short = Slots {
        count: 3,
        ..rig.slots(2, SLOT_BYTES_MIN)
    };
    let new = |slots| TransmitDriver::new(rig.driver(), rig.features, slots).unwrap_err();
    let (len, bytes) = (2 * SLOT_BYTES_MIN, SLOT_BYTES_MIN);
    let error = SlotsError::TooSmall {
        len,
        count: 3,
        bytes,
    };
    assert_eq!(new(short), error);
    for (count, bytes) in [(0, 128), (1, 127)] {
        let slots = Slots {
            count,
            bytes,
            ..rig.slots(1, 128)
        };
        assert_eq!(new(slots), SlotsError::Slots { count, bytes });
        let receive = ReceiveDriver::new(rig.driver(), rig.features, slots);
        assert_eq!(receive.unwrap_err(), SlotsError::Slots { count, bytes });
    }
}

/// A chain without a whole header cannot be anything.
#[test]
fn a_chain_without_a_header_breaks_the_queue() {
    for len in [0, 11] {
        let rig = Rig::new(Features::SPLIT_QUEUE);
        let (mut driver, mut device) = (rig.driver(), rig.device());
        let buffer = Buffer {
            address: Gpa(SLOTS),
            len,
        };
        driver.add(&[buffer], &[buffer], None).unwrap();
        driver.publish().unwrap();
        let mut chain = Chain::new(8).unwrap();
        device.refresh().unwrap();
        assert_eq!(device.pop(rig.space(), &mut chain), Ok(true));
        let (layout, mut head) = (HeaderLayout::Buffers, FrameHead::default());
        let error = take_transmit(&mut chain, rig.memory.table(), layout, &mut head).unwrap_err();
        assert!(
            matches!(error, QueueError::NoRoom { need: 12, .. }),
            "{error}"
        );
        assert!(head.bytes().is_empty());
    }
}

/// Header and frame may be cut into descriptors at any place (virtio 1.3 2.7.4).
#[test]
fn a_frame_may_be_cut_anywhere() {
    let rig = Rig::new(Features::SPLIT_QUEUE);
    let (mut driver, mut device) = (rig.driver(), rig.device());
    let header = Header::of(&PARTIAL).to_bytes();
    let frame = bytes(300, 3);
    let all = [&header[..12], &frame].concat();
    let slice = rig.memory.table().regions()[0].slice(SLOTS, 512).unwrap();
    slice.write(&all);
    for cut in 0..all.len() {
        for second in [cut, cut + 1, all.len()] {
            let second = second.min(all.len());
            let buffers = [(0, cut), (cut, second), (second, all.len())].map(|(from, to)| Buffer {
                address: Gpa(SLOTS + from as u64),
                len: u32::try_from(to - from).unwrap(),
            });
            driver.add(&buffers, &[], None).unwrap();
            driver.publish().unwrap();
            let frames = take_all(&rig, &mut device);
            assert_eq!(frames, [(Header::of(&PARTIAL), frame.clone())], "{cut}");
            driver.refresh().unwrap();
            driver.pop().unwrap();
        }
    }
}

/// What was looked at is what is delivered, whatever the sender writes meanwhile.
#[test]
fn a_frame_keeps_the_head_that_was_looked_at() {
    let rig = Rig::new(Features::SPLIT_QUEUE);
    let (mut driver, mut device) = (rig.driver(), rig.device());
    let all = [&[0; 12][..], &bytes(200, 3)].concat();
    let slice = rig.memory.table().regions()[0].slice(SLOTS, 212).unwrap();
    slice.write(&all);
    let buffer = Buffer {
        address: Gpa(SLOTS),
        len: 212,
    };
    driver.add(&[buffer], &[], None).unwrap();
    driver.publish().unwrap();
    let (mut chain, mut head) = (Chain::new(8).unwrap(), FrameHead::default());
    device.refresh().unwrap();
    assert_eq!(device.pop(rig.space(), &mut chain), Ok(true));
    let table = rig.memory.table();
    take_transmit(&mut chain, table, HeaderLayout::Buffers, &mut head).unwrap();
    slice.write(&[0xEE; 212]);
    let found = read(&Frame::transmitted(&head, &chain, table));
    assert_eq!(found[..HEAD_LEN], all[12..12 + HEAD_LEN]);
    assert!(found[HEAD_LEN..].iter().all(|byte| *byte == 0xEE));
}
