//! Both queues of a pair: from one guest to another, and after a device was lost.

mod net_rig;

use linkspan_devices::net::driver::{TransmitDriver, WANTED};
use linkspan_devices::net::features::VIRTIO_NET_F_HASH_REPORT;
use linkspan_devices::net::header::{Header, HeaderLayout, Offload};
use linkspan_devices::net::{Filled, Frame, FrameHead, ReceiveQueue, take_transmit};
use linkspan_virtio::Chain;
use net_rig::{Receive, Rig, apart, bytes, layouts, take_all};
use proptest::prelude::*;

#[test]
fn both_drivers_go_on_with_a_new_device() {
    for features in layouts() {
        let mut receive = Receive::new(features | WANTED, 8, 256);
        let bytes = bytes(700, 1);
        let frame = Frame::private(&bytes);
        let three = Filled::Delivered { buffers: 3 };
        assert_eq!(receive.fill(&Header::default(), &frame), three);
        receive.rig.clear();
        receive.driver.restart(receive.rig.driver());
        receive.queue = receive.rig.device();
        receive.device = ReceiveQueue::new(features | WANTED, 8).unwrap();
        receive.post(8);
        assert_eq!(receive.fill(&Header::default(), &frame), three);
        receive.publish();
        assert_eq!(receive.received(9).0.len(), 1);

        let rig = Rig::new(features | WANTED);
        let slots = rig.slots(7, 256);
        let mut driver = TransmitDriver::new(rig.driver(), rig.features, slots).unwrap();
        let table = rig.memory.table();
        for _ in 0..2 {
            // Lost frames leave no slot behind.
            for _ in 0..2 {
                assert!(driver.send(table, &Offload::NONE, &frame).unwrap());
            }
            assert!(!driver.send(table, &Offload::NONE, &frame).unwrap());
            rig.clear();
            driver.restart(rig.driver());
        }
        assert!(driver.send(table, &Offload::NONE, &frame).unwrap());
        driver.queue().publish().unwrap();
        assert_eq!(
            take_all(&rig, &mut rig.device()),
            [(Header::default(), bytes)]
        );
    }
}

proptest! {
    /// From one driver to another, through the memory of both, in any sizes.
    #[test]
    fn frames_go_from_one_guest_to_another(
        lens in prop::collection::vec(14_usize..4000, 1..40),
        transmit_slot in 128_u32..2000,
        receive_slot in 128_u32..2000,
        batch in 1_usize..8,
        layout in 0_usize..4,
        hash in any::<bool>(),
    ) {
        let mut features = layouts()[layout] | WANTED;
        features.set(VIRTIO_NET_F_HASH_REPORT, hash);
        let rig = Rig::new(features);
        let slots = rig.slots(60, transmit_slot);
        let mut sender = TransmitDriver::new(rig.driver(), features, slots).unwrap();
        let mut transmit = rig.device();
        let mut receive = Receive::new(features, 60, receive_slot);
        let (mut chain, mut head) = (Chain::new(64).unwrap(), FrameHead::default());
        for lens in lens.chunks(batch) {
            let (mut delivered, table) = (Vec::new(), rig.memory.table());
            for (seed, len) in lens.iter().enumerate() {
                let bytes = bytes(*len, seed);
                if sender.send(table, &Offload::NONE, &apart(&bytes, 40)).unwrap() {
                    delivered.push((Offload::NONE, bytes));
                }
            }
            sender.queue().publish().unwrap();
            transmit.refresh().unwrap();
            let mut index = 0;
            while transmit.pop(rig.space(), &mut chain).unwrap() {
                let layout = HeaderLayout::of(features);
                let taken = take_transmit(&mut chain, table, layout, &mut head).unwrap();
                prop_assert_eq!(taken.len, delivered[index].1.len() as u64);
                let frame = Frame::transmitted(&head, &chain, table);
                match receive.fill(&taken.header, &frame) {
                    Filled::Delivered { .. } => index += 1,
                    _ => drop(delivered.remove(index)),
                }
                transmit.push(&chain, 0).unwrap();
            }
            transmit.publish().unwrap();
            sender.reclaim(table).unwrap();
            receive.publish();
            let (frames, batch) = receive.received(u32::MAX);
            prop_assert_eq!(batch.frames as usize, delivered.len());
            prop_assert_eq!(frames, delivered);
            receive.driver.post().unwrap();
            receive.driver.queue().publish().unwrap();
        }
        // Nothing has been lost of either.
        prop_assert_eq!(sender.queue().outstanding(), 0);
        receive.device.give_back(&mut receive.queue).unwrap();
        prop_assert_eq!(receive.queue.in_flight(), 0);
    }
}
