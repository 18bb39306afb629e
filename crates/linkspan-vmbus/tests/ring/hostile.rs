//! What the other side may write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use linkspan_mem::{ChannelRing, Raced, Region};
use linkspan_vmbus::packet::{Descriptor, Header};
use linkspan_vmbus::{Incoming, Outgoing, Packet, RingError, SendError, StartError};

use crate::{READ_INDEX, Rig, WRITE_INDEX};

const SIZE: u32 = 12 << 10;

#[test]
fn indices_outside_or_between_retire_the_ring() {
    for value in [SIZE, SIZE + 8, 4, 7, u32::MAX, 0x8000_0000] {
        let mut rig = Rig::new(16 << 10);
        rig.set(WRITE_INDEX, value);
        let error = RingError::Index {
            index: "write",
            value,
            size: SIZE,
        };
        assert_eq!(rig.incoming.refresh(), Err(error));
        rig.set(WRITE_INDEX, 0);
        assert_eq!(rig.incoming.refresh(), Err(error), "it stays so");
        assert_eq!(rig.incoming.arm(), Err(error));
        assert_eq!(rig.incoming.release(), Err(error));

        let mut rig = Rig::new(16 << 10);
        rig.set(READ_INDEX, value);
        let error = RingError::Index {
            index: "read",
            value,
            size: SIZE,
        };
        assert_eq!(rig.outgoing.refresh(), Err(error));
        let again = rig.outgoing.send(Header::in_band(1), &[b"more"]);
        assert_eq!(again, Err(SendError::Ring(error)));
        assert_eq!(rig.outgoing.wait_for(8), Err(error));
    }
}

#[test]
fn indices_that_go_back_retire_the_ring() {
    let mut rig = Rig::new(16 << 10);
    rig.post(1, &[0; 100]);
    rig.incoming.refresh().unwrap();
    rig.set(WRITE_INDEX, 64);
    assert!(matches!(
        rig.incoming.refresh(),
        Err(RingError::Back {
            index: "write",
            from: 128,
            to: 64,
            ours: 0
        })
    ));
    let mut rig = Rig::new(16 << 10);
    rig.post(1, &[0; 100]);
    rig.set(READ_INDEX, 136);
    assert!(matches!(
        rig.outgoing.refresh(),
        Err(RingError::Back {
            index: "read",
            from: 0,
            to: 136,
            ours: 128
        })
    ));
}

/// Linux's daemon reads the same bad packet for ever.
#[test]
fn a_descriptor_that_cannot_be_retires_the_ring_once() {
    for (offset8, length8, len, payload) in
        [(0, 4, 32, 0), (1, 4, 32, 8), (5, 4, 32, 40), (2, 0, 0, 16)]
    {
        let mut rig = Rig::new(16 << 10);
        let descriptor = Descriptor {
            kind: 6,
            data_offset8: offset8,
            length8,
            flags: 0,
            transaction_id: 1,
        };
        rig.poke(0, &descriptor.to_bytes());
        rig.set(WRITE_INDEX, 64);
        rig.incoming.refresh().unwrap();
        let error = RingError::Lengths { len, payload };
        assert_eq!(rig.incoming.receive(&mut rig.packet), Err(error));
        assert_eq!(rig.incoming.receive(&mut rig.packet), Err(error));
        assert_eq!(rig.incoming.refresh(), Err(error));
    }
}

/// OpenVMM looks whether the packet was published, and not its trailer.
#[test]
fn a_packet_beyond_what_was_published_or_without_its_trailer_is_refused() {
    for (length8, published, available) in [
        (4, 32, 32),
        (4, 24, 24),
        (0xFFFF, 64, 64),
        (2, 16, 16),
        (2, 8, 8),
    ] {
        let mut rig = Rig::new(16 << 10);
        let descriptor = Descriptor {
            kind: 6,
            data_offset8: 2,
            length8,
            flags: 0,
            transaction_id: 1,
        };
        rig.poke(0, &descriptor.to_bytes());
        rig.set(WRITE_INDEX, published);
        rig.incoming.refresh().unwrap();
        let found = rig.incoming.receive(&mut rig.packet);
        let got = match found {
            Err(RingError::Unpublished { available, .. }) => available,
            other => panic!("{other:?}"),
        };
        assert_eq!(got, available);
    }
}

#[test]
fn a_packet_longer_than_this_side_takes_is_refused() {
    let mut rig = Rig::new(16 << 10);
    rig.post(1, &[0; 200]);
    rig.incoming.refresh().unwrap();
    let mut small = Packet::new(100).unwrap();
    assert_eq!(
        rig.incoming.receive(&mut small),
        Err(RingError::TooLong { len: 216, max: 100 })
    );
}

#[test]
fn a_packet_that_never_fits_is_told_from_one_that_does_not_fit_now() {
    let mut rig = Rig::new(16 << 10);
    let payload = vec![0; SIZE as usize];
    let header = Header::in_band(1);
    for len in [12288 - 16 - 8 - 7, 12288] {
        let sent = rig.outgoing.send(header, &[&payload[..len]]);
        let too_long = SendError::TooLong {
            len: len + 16,
            size: SIZE,
        };
        assert_eq!(sent, Err(too_long));
    }
    // All but the 8 bytes that stay free.
    let most = rig.incoming.packet_max() - 16;
    assert_eq!(most, 12288 - 8 - 8 - 16);
    assert!(rig.post(1, &payload[..most]));
    rig.incoming.refresh().unwrap();
    assert_eq!(rig.take().unwrap().1.len(), most);
}

#[test]
fn a_ring_that_begins_broken_is_not_joined() {
    let broken = |offset, value| {
        let rig = Rig::new(16 << 10);
        rig.set(offset, value);
        (rig.outgoing.into_ring(), rig.incoming.into_ring())
    };
    for value in [4, SIZE] {
        for index in [READ_INDEX, WRITE_INDEX] {
            let (outgoing, incoming) = broken(index, value);
            let error = Outgoing::new(outgoing).err();
            assert!(matches!(error, Some(StartError::Ring(_))));
            let error = Incoming::new(incoming).err();
            assert!(matches!(error, Some(StartError::Ring(_))));
        }
    }
}

/// Linux's daemon reads lengths, copies the packet, and reads the lengths again from
/// the copy. Here the sender changes the descriptor before every load of ours.
#[test]
fn lengths_that_change_while_they_are_read_are_read_once() {
    for at in 1..12 {
        let region = Region::heap(16 << 10).unwrap();
        let window = || {
            (
                region.window(0, 4096).unwrap(),
                region.window(4096, 12288).unwrap(),
            )
        };
        let (header, data) = window();
        let mut outgoing = Outgoing::new(ChannelRing::new(header, data).unwrap()).unwrap();
        outgoing.send(Header::in_band(1), &[&[1; 200]]).unwrap();
        outgoing.send(Header::in_band(2), &[&[2; 200]]).unwrap();
        outgoing.publish().unwrap();
        let (memory, loads) = (region.clone(), AtomicU64::new(0));
        let peer = Arc::new(move || {
            if loads.fetch_add(1, Ordering::Relaxed) == at {
                let longer = Descriptor {
                    kind: 6,
                    data_offset8: 2,
                    length8: 51,
                    flags: 0,
                    transaction_id: 3,
                };
                memory.slice(4096, 16).unwrap().write(&longer.to_bytes());
            }
        });
        let (header, data) = window();
        let ring = ChannelRing::new(Raced::new(header, peer.clone()), Raced::new(data, peer));
        let mut incoming = Incoming::new(ring.unwrap()).unwrap();
        let mut packet = Packet::new(4096).unwrap();
        assert!(incoming.receive(&mut packet).unwrap());
        let descriptor = packet.descriptor();
        assert_eq!(packet.payload().len(), descriptor.len() - 16);
        match descriptor.transaction_id {
            1 => assert_eq!(packet.payload(), [1; 200]),
            _ => assert_eq!(descriptor.length8, 51),
        }
    }
}
