//! Frames through a receive queue of either layout, buffers that do not suffice, and
//! a device that lies.

mod net_rig;

use linkspan_devices::net::driver::{ReceiveBatch, WANTED};
use linkspan_devices::net::features::VIRTIO_NET_F_MRG_RXBUF;
use linkspan_devices::net::header::{Header, Offload};
use linkspan_devices::net::{Filled, Frame, MERGE_MAX, ReceiveQueue};
use linkspan_mem::{Gpa, Span};
use linkspan_virtio::{Buffer, Chain, DeviceQueue, Features, QueueError, QueueLayout, UsedError};
use net_rig::{PARTIAL, Receive, Rig, SIZE, SLOTS, apart, bytes, layouts};

#[test]
fn frames_are_received_in_one_buffer_or_several() {
    for features in layouts() {
        let (mergeable, not) = (
            features | WANTED,
            (features | WANTED) - VIRTIO_NET_F_MRG_RXBUF,
        );
        for (features, slot) in [
            (mergeable, 128),
            (mergeable, 200),
            (mergeable, 1600),
            (not, 1600),
        ] {
            let mut receive = Receive::new(features, 40, slot);
            for round in 0..30 {
                let mut sent = Vec::new();
                for (seed, len) in [60, 1514, 14, 116, 117, 20 + round].into_iter().enumerate() {
                    let bytes = bytes(len, seed);
                    let filled = receive.fill(&Header::of(&PARTIAL), &apart(&bytes, 100));
                    let need = (12 + len).div_ceil(slot as usize);
                    let buffers = u16::try_from(need).unwrap();
                    assert_eq!(filled, Filled::Delivered { buffers });
                    // A checksum outside of a frame is for the driver to drop.
                    if len >= 52 {
                        sent.push((PARTIAL, bytes));
                    }
                }
                assert!(receive.received(99).0.is_empty(), "not published yet");
                receive.publish();
                let (frames, batch) = receive.received(99);
                assert_eq!(frames, sent);
                assert_eq!(batch.frames as usize, sent.len());
                assert_eq!(batch.headers as usize, 6 - sent.len());
                let posted = receive.driver.post().unwrap();
                assert!(posted >= 6);
                receive.driver.queue().publish().unwrap();
            }
        }
    }
}

/// Nothing of a frame is to be seen before there is room for all of it.
#[test]
fn a_frame_without_room_is_not_half_delivered() {
    for features in layouts() {
        let mut receive = Receive::new(features | WANTED, 4, 256);
        let (long, short) = (bytes(1200, 1), bytes(100, 2));
        let header = Header::default();
        assert_eq!(
            receive.fill(&header, &Frame::private(&long)),
            Filled::NoBuffers
        );
        assert_eq!(receive.device.held(), 4);
        assert_eq!(
            receive.fill(&header, &Frame::private(&long)),
            Filled::NoBuffers
        );
        receive.publish();
        assert!(receive.received(9).0.is_empty());
        // The buffers are there for a frame that fits.
        let one = Filled::Delivered { buffers: 1 };
        assert_eq!(receive.fill(&header, &Frame::private(&short)), one);
        receive.publish();
        assert_eq!(receive.received(9).0, [(Offload::NONE, short.clone())]);
        // What is held goes back before the queue stops, and is found by the next.
        assert_eq!(receive.device.held(), 3);
        assert_eq!(receive.queue.in_flight(), 3);
        receive.device.give_back(&mut receive.queue).unwrap();
        assert_eq!((receive.device.held(), receive.queue.in_flight()), (0, 0));
        let saved = receive.queue.snapshot().unwrap();
        let layout = QueueLayout::of(features);
        receive.queue = DeviceQueue::restore(receive.rig.parts(), SIZE, layout, &saved).unwrap();
        for _ in 0..3 {
            assert_eq!(receive.fill(&header, &Frame::private(&short)), one);
        }
        assert_eq!(
            receive.fill(&header, &Frame::private(&short)),
            Filled::NoBuffers
        );
        receive.publish();
        assert_eq!(receive.received(9).0.len(), 3);
    }
}

/// A queue that is broken takes nothing back, and its buffers are not used with another one.
#[test]
fn buffers_of_a_broken_queue_are_forgotten() {
    for features in layouts() {
        let mut receive = Receive::new(features | WANTED, 4, 256);
        let (long, short) = (bytes(1200, 1), bytes(100, 2));
        let header = Header::default();
        assert_eq!(
            receive.fill(&header, &Frame::private(&long)),
            Filled::NoBuffers
        );
        assert_eq!(receive.device.held(), 4);
        let error = receive.queue.retire(QueueError::HeadInFlight { head: 99 });
        assert_eq!(receive.device.give_back(&mut receive.queue), Err(error));
        assert_eq!(receive.device.held(), 0);
        let mut fresh = Receive::new(features | WANTED, 1, 256);
        std::mem::swap(&mut fresh.device, &mut receive.device);
        for filled in [Filled::Delivered { buffers: 1 }, Filled::NoBuffers] {
            assert_eq!(fresh.fill(&header, &Frame::private(&short)), filled);
        }
    }
}

#[test]
fn a_buffer_that_is_too_small_waits_for_a_frame_that_fits() {
    let features = (Features::SPLIT_QUEUE | WANTED) - VIRTIO_NET_F_MRG_RXBUF;
    let mut receive = Receive::new(features, 2, 256);
    let (long, short) = (bytes(245, 1), bytes(244, 2));
    let header = Header::default();
    assert_eq!(
        receive.fill(&header, &Frame::private(&long)),
        Filled::TooSmall
    );
    assert_eq!(
        receive.fill(&header, &Frame::private(&long)),
        Filled::TooSmall
    );
    let one = Filled::Delivered { buffers: 1 };
    assert_eq!(receive.fill(&header, &Frame::private(&short)), one);
    receive.publish();
    assert_eq!(receive.received(9).0, [(Offload::NONE, short)]);
}

/// Buffers of 12 bytes would have the device take thousands for one frame.
#[test]
fn a_frame_takes_no_more_than_so_many_buffers() {
    let rig = Rig::new(Features::SPLIT_QUEUE | WANTED);
    let mut driver = rig.driver();
    for at in 0..u64::from(SIZE) {
        let buffer = Buffer {
            address: Gpa(SLOTS + 12 * at),
            len: 12,
        };
        driver.add(&[], &[buffer], None).unwrap();
    }
    driver.publish().unwrap();
    let (mut queue, mut device) = (rig.device(), ReceiveQueue::new(rig.features, 8).unwrap());
    queue.refresh().unwrap();
    let mut fill = |len: usize| {
        let bytes = bytes(len, 1);
        device.fill(
            &mut queue,
            rig.space(),
            None,
            &Frame::private(&bytes),
            |_| {},
        )
    };
    assert_eq!(fill(12 * MERGE_MAX), Ok(Filled::TooSmall));
    let buffers = u16::try_from(MERGE_MAX).unwrap();
    assert_eq!(
        fill(12 * (MERGE_MAX - 1)),
        Ok(Filled::Delivered { buffers })
    );
}

#[test]
fn a_buffer_without_room_for_a_header_breaks_the_queue() {
    for writable in [0, 11] {
        let rig = Rig::new(Features::SPLIT_QUEUE | WANTED);
        let mut driver = rig.driver();
        let buffer = |len| Buffer {
            address: Gpa(SLOTS),
            len,
        };
        driver.add(&[buffer(5)], &[buffer(writable)], None).unwrap();
        driver.publish().unwrap();
        let (mut queue, mut device) = (rig.device(), ReceiveQueue::new(rig.features, 8).unwrap());
        queue.refresh().unwrap();
        let bytes = bytes(60, 1);
        let error = device
            .fill(
                &mut queue,
                rig.space(),
                None,
                &Frame::private(&bytes),
                |_| {},
            )
            .unwrap_err();
        assert!(
            matches!(error, QueueError::NoRoom { need: 12, .. }),
            "{error}"
        );
        assert_eq!(queue.retired(), Some(error));
    }
}

/// Whoever logs writes hears of exactly the bytes that were written.
#[test]
fn what_was_written_is_reported() {
    let mut receive = Receive::new(Features::SPLIT_QUEUE | WANTED, 8, 128);
    let bytes = bytes(300, 1);
    let mut places = Vec::new();
    let (queue, space) = (&mut receive.queue, &receive.rig.memory.guest);
    let frame = Frame::private(&bytes);
    let mut wrote = |span: Span| places.push((space.address(span).unwrap().0, span.len()));
    receive
        .device
        .fill(queue, space, None, &frame, &mut wrote)
        .unwrap();
    assert_eq!(
        places,
        [(SLOTS, 128), (SLOTS + 128, 128), (SLOTS + 256, 56)]
    );
}

/// A device that lies about what it delivered.
#[test]
fn frames_that_cannot_be_are_dropped_and_counted() {
    let batch = ReceiveBatch::default;
    let short = ReceiveBatch {
        short: 1,
        ..batch()
    };
    let buffers = ReceiveBatch {
        buffers: 1,
        ..batch()
    };
    let headers = ReceiveBatch {
        headers: 1,
        ..batch()
    };
    let frames = ReceiveBatch {
        frames: 1,
        ..batch()
    };
    // Numbers of buffers in the first bytes, and used lengths.
    for (buffers, written, expected) in [
        (1_u16, vec![11], short),
        (0, vec![100], buffers),
        (65, vec![100], buffers),
        (u16::MAX, vec![100], buffers),
        // Not as many as it says are there.
        (3, vec![100, 100], buffers),
        (2, vec![12, 13], headers),
        (2, vec![12, 14], frames),
        (2, vec![26, 0], frames),
    ] {
        let mut receive = Receive::new(Features::SPLIT_QUEUE | WANTED, 8, 256);
        receive.queue.refresh().unwrap();
        let (mut chain, space) = (Chain::new(8).unwrap(), &receive.rig.memory.guest);
        for (index, written) in written.iter().enumerate() {
            assert_eq!(receive.queue.pop(space, &mut chain), Ok(true));
            if index == 0 {
                let header = Header {
                    num_buffers: buffers,
                    ..Header::default()
                };
                let table = receive.rig.memory.table();
                table
                    .scatter(chain.writable(), 0, &header.to_bytes()[..12])
                    .unwrap();
            }
            receive.queue.push(&chain, *written).unwrap();
        }
        receive.publish();
        let (frames, batch) = receive.received(9);
        assert_eq!(batch, expected, "{buffers} {written:?}");
        assert_eq!(frames.len(), expected.frames as usize);
        // Every slot is free again.
        receive.post(u16::try_from(written.len()).unwrap());
    }
}

#[test]
fn a_device_that_breaks_the_ring_ends_the_queue() {
    let mut receive = Receive::new(Features::SPLIT_QUEUE | WANTED, 8, 256);
    let DeviceQueue::Split(queue) = &receive.queue else {
        panic!("a split ring");
    };
    queue.ring().publish_used_index(100);
    let error = receive
        .driver
        .receive(receive.rig.memory.table(), 9, |_| {});
    assert!(
        matches!(error, Err(UsedError::UsedJump { .. })),
        "{error:?}"
    );
}
