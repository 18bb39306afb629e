//! Who signals whom, and when.

use linkspan_mem::Region;
use linkspan_vmbus::{Incoming, Outgoing, SendError, Shape, StartError};

use crate::{FEATURES, MASK, PENDING, READ_INDEX, Rig, WRITE_INDEX};

#[test]
fn a_sender_signals_when_an_empty_ring_is_empty_no_more() {
    let mut rig = Rig::new(16 << 10);
    assert!(rig.post(1, b"one"));
    assert!(!rig.post(2, b"two"), "the receiver has something to do");
    rig.incoming.refresh().unwrap();
    rig.take().unwrap();
    rig.incoming.release().unwrap();
    assert!(!rig.post(3, b"three"), "one was left");
    rig.incoming.refresh().unwrap();
    while rig.take().is_some() {}
    rig.incoming.release().unwrap();
    assert!(rig.post(4, b"four"));
}

#[test]
fn a_mask_keeps_the_sender_quiet() {
    let mut rig = Rig::new(16 << 10);
    rig.incoming.disarm();
    assert_eq!(rig.get(MASK), 1);
    assert!(!rig.post(1, b"one"));
    assert_eq!(rig.incoming.arm(), Ok(true), "it must not sleep");
    assert_eq!(rig.get(MASK), 0);
}

/// Kernels before b15b7d2a1b09 set the mask when a device is opened and with each
/// interrupt. A host that posts before the mask is cleared does not signal.
#[test]
fn a_message_that_was_posted_before_the_mask_was_cleared_is_found() {
    let mut rig = Rig::new(16 << 10);
    for round in 0..3 {
        rig.set(MASK, 1);
        assert!(!rig.post(round, b"early"));
        assert_eq!(rig.incoming.arm(), Ok(true));
        assert_eq!(rig.take(), Some((round, b"early\0\0\0".to_vec())));
        rig.incoming.release().unwrap();
        rig.set(MASK, 1);
        assert_eq!(rig.incoming.arm(), Ok(false));
        assert_eq!(rig.get(MASK), 0, "cleared each time, not once");
        assert!(rig.post(9, b"late"));
        assert_eq!(rig.incoming.arm(), Ok(true));
        assert_eq!(rig.take().unwrap().0, 9);
        rig.incoming.release().unwrap();
    }
}

#[test]
fn many_packets_of_one_signal_are_all_received_with_one_release() {
    let mut rig = Rig::new(20 << 10);
    for id in 0..50 {
        rig.send(id, &id.to_le_bytes());
    }
    assert_eq!(rig.get(WRITE_INDEX), 0, "nobody sees them yet");
    assert!(rig.outgoing.publish().unwrap());
    assert!(!rig.outgoing.publish().unwrap());
    assert_eq!(rig.get(WRITE_INDEX), 50 * 32);
    rig.incoming.refresh().unwrap();
    for id in 0..50_u64 {
        assert_eq!(rig.take(), Some((id, id.to_le_bytes().to_vec())));
    }
    assert_eq!(rig.take(), None);
    assert_eq!(rig.get(READ_INDEX), 0, "no room was given back yet");
    assert!(!rig.incoming.release().unwrap());
    assert_eq!(rig.get(READ_INDEX), 50 * 32);
}

#[test]
fn a_full_ring_says_what_it_waits_for_and_is_told_when_there_is_room() {
    let mut rig = Rig::new(16 << 10);
    assert_eq!(rig.get(FEATURES), 1);
    let payload = [7; 6224];
    rig.post(1, &payload);
    let full = SendError::Full {
        need: 6248,
        free: 12288 - 6248,
    };
    let header = linkspan_vmbus::packet::Header::in_band(2);
    // The kernel's ring of 16 KiB has room for one fragment and not for two.
    assert_eq!(rig.outgoing.send(header, &[&payload]), Err(full));
    assert_eq!(rig.outgoing.wait_for(6248), Ok(false));
    assert_eq!(rig.get(PENDING), 6248);
    rig.incoming.refresh().unwrap();
    rig.take().unwrap();
    assert!(rig.incoming.release().unwrap(), "there is room now");
    assert_eq!(rig.outgoing.wait_for(6248), Ok(true));
    assert_eq!(rig.get(PENDING), 0);
    rig.post(2, &payload);
    rig.incoming.refresh().unwrap();
    assert_eq!(rig.take().unwrap().0, 2);
    assert!(!rig.incoming.release().unwrap(), "nobody waits");
}

/// Strictly crossed: `free_before <= pending < free_after`; the mask means nothing
/// here, and bit 0 of the size is not part of it.
#[test]
fn room_is_signalled_once_when_it_is_crossed() {
    for extra in [0, 1] {
        let mut rig = Rig::new(16 << 10);
        for id in 0..127 {
            rig.post(id, &[1; 72]);
        }
        // 12288 bytes, of which 127 times 96 are used.
        let free = 12288 - 127 * 96;
        rig.set(MASK, 1);
        rig.set(PENDING, free + 96 + extra);
        rig.incoming.refresh().unwrap();
        let mut signals = Vec::new();
        for _ in 0..4 {
            rig.take().unwrap();
            signals.push(rig.incoming.release().unwrap());
        }
        assert_eq!(signals, [false, true, false, false], "only the second");
    }
}

#[test]
fn a_sender_without_the_feature_is_never_told() {
    let mut rig = Rig::new(16 << 10);
    rig.post(1, b"one");
    rig.set(FEATURES, 0);
    rig.set(PENDING, 12288 - 24);
    rig.incoming.refresh().unwrap();
    rig.take().unwrap();
    assert!(!rig.incoming.release().unwrap());
}

#[test]
#[should_panic(expected = "released before sleep")]
fn sleeping_on_packets_that_were_not_released_is_our_mistake() {
    let mut rig = Rig::new(16 << 10);
    rig.post(1, b"one");
    rig.incoming.refresh().unwrap();
    rig.take().unwrap();
    let _ = rig.incoming.arm();
}

#[test]
#[should_panic(expected = "published before sleep")]
fn waiting_with_packets_that_were_not_published_is_our_mistake() {
    let mut rig = Rig::new(16 << 10);
    rig.send(1, b"one");
    let _ = rig.outgoing.wait_for(8);
}

#[test]
fn a_next_life_goes_on_and_signals_what_the_one_before_may_have_left() {
    let mut rig = Rig::new(16 << 10);
    rig.post(1, b"one");
    rig.post(2, b"two");
    rig.incoming.refresh().unwrap();
    rig.take().unwrap();
    rig.incoming.release().unwrap();
    let (sent, received) = (rig.outgoing.position(), rig.incoming.position());
    // What the peer writes over our own indices meanwhile counts for nothing.
    rig.set(WRITE_INDEX, 8);
    rig.set(READ_INDEX, 8);
    let received_ring = rig.incoming.into_ring();
    received_ring.publish_read_index(received);
    let mut outgoing = Outgoing::resume(rig.outgoing.into_ring(), sent).unwrap();
    let mut incoming = Incoming::resume(received_ring, received).unwrap();
    assert_eq!(outgoing.publish(), Ok(true), "once more, to be sure");
    assert_eq!(outgoing.publish(), Ok(false));
    assert!(incoming.receive(&mut rig.packet).unwrap());
    assert_eq!(rig.packet.payload(), b"two\0\0\0\0\0");
    assert!(!incoming.receive(&mut rig.packet).unwrap());
}

#[test]
fn sizes_and_header_pages_are_the_devices() {
    for (len, header, second, data) in [
        (32 << 10, 4 << 10, 16 << 10, Some([12 << 10; 2])),
        (40 << 10, 4 << 10, 20 << 10, Some([16 << 10; 2])),
        (136 << 10, 4 << 10, 68 << 10, Some([64 << 10; 2])),
        (4 << 20, 4 << 10, 2 << 20, Some([(2 << 20) - 4096; 2])),
        (64 << 10, 16 << 10, 32 << 10, Some([16 << 10; 2])),
        (256 << 10, 64 << 10, 128 << 10, Some([64 << 10; 2])),
        // Rings of different sizes.
        (48 << 10, 4 << 10, 16 << 10, Some([12 << 10, 28 << 10])),
        // No data, no page, and nothing at all.
        (8 << 10, 4 << 10, 4 << 10, None),
        (32 << 10, 4 << 10, 30 << 10, None),
        (32 << 10, 4 << 10, 32 << 10, None),
        (32 << 10, 0, 16 << 10, None),
        (0, 4 << 10, 0, None),
        (u64::MAX, 4 << 10, 1 << 63, None),
    ] {
        let shape = Shape {
            len,
            second,
            header,
        };
        let refused = StartError::Shape {
            len,
            header,
            second,
        };
        assert_eq!(shape.data(), data.ok_or(refused), "{shape:?}");
    }
    let shape = Shape::halves(32 << 10, 4096);
    let small = Region::heap(16 << 10).unwrap();
    assert!(matches!(
        shape.rings(&small, 0).err(),
        Some(StartError::Window(_))
    ));
    assert!(matches!(
        shape.rings(&small, u64::MAX).err(),
        Some(StartError::Window(_))
    ));
}
