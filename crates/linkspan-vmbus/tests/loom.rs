//! The hand-over of a channel's ring under every order that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p linkspan-vmbus --test loom --target-dir target/loom --release`

#![cfg(loom)]

use std::sync::Arc;

use linkspan_mem::ChannelRing;
use linkspan_mem::model::ModelMemory;
use linkspan_vmbus::packet::Header;
use linkspan_vmbus::{Incoming, Outgoing, Packet, SendError};
use loom::cell::UnsafeCell;
use loom::thread;

/// Both ends of a ring in which two packets without payload have room. It begins
/// so that the second packet goes over the end.
fn pair() -> (Outgoing<ModelMemory>, Incoming<ModelMemory>) {
    let header = ModelMemory::new(&[4; 17]);
    let data = ModelMemory::new(&[8; 8]);
    let ring = || ChannelRing::new(header.clone(), data.clone()).unwrap();
    let start = ring();
    start.publish_write_index(32);
    start.publish_read_index(32);
    (
        Outgoing::new(ring()).unwrap(),
        Incoming::new(ring()).unwrap(),
    )
}

fn packet() -> Packet {
    Packet::new(16).unwrap()
}

fn send(outgoing: &mut Outgoing<ModelMemory>, id: u64) -> Result<(), SendError> {
    outgoing.send(Header::in_band(id), &[])
}

/// What was sent is modelled by a cell, and what was received by another: the
/// model fails when an access is not ordered after the other side's.
#[test]
fn what_is_published_is_seen_whole_and_room_is_given_after_it_was_read() {
    loom::model(|| {
        let (mut outgoing, mut incoming) = pair();
        let cells = Arc::new([UnsafeCell::new(0), UnsafeCell::new(0)]);
        let theirs = Arc::clone(&cells);
        let side = thread::spawn(move || {
            let [sent, received] = &*theirs;
            sent.with_mut(|_| ());
            send(&mut outgoing, 7).unwrap();
            outgoing.publish().unwrap();
            if outgoing.refresh().unwrap() == 56 {
                received.with(|_| ());
                return true;
            }
            false
        });
        let [sent, received] = &*cells;
        let mut packet = packet();
        if incoming.refresh().unwrap() > 0 {
            assert_eq!(incoming.receive(&mut packet), Ok(true));
            assert_eq!(packet.descriptor().transaction_id, 7);
            sent.with(|_| ());
            received.with_mut(|_| ());
            incoming.release().unwrap();
            side.join().unwrap();
        } else {
            assert!(!side.join().unwrap(), "given back before it was taken");
        }
    });
}

/// The sender publishes two packets; the receiver takes what it finds and sleeps
/// when there is none. If it sleeps over one, it must have been signalled for it.
fn no_packet_is_slept_over(masked: bool) {
    loom::model(move || {
        let (mut outgoing, mut incoming) = pair();
        if masked {
            incoming.disarm();
        }
        let side = thread::spawn(move || {
            [1, 2].map(|id| {
                send(&mut outgoing, id).unwrap();
                outgoing.publish().unwrap()
            })
        });
        let (mut packet, mut taken) = (packet(), 0);
        while incoming.arm().unwrap() {
            if masked {
                incoming.disarm();
            }
            while incoming.receive(&mut packet).unwrap() {
                taken += 1;
                assert_eq!(packet.descriptor().transaction_id, taken as u64);
            }
            incoming.release().unwrap();
        }
        let signals = side.join().unwrap();
        assert!(
            taken == 2 || signals[taken..].contains(&true),
            "asleep with {} packets waiting",
            2 - taken
        );
    });
}

#[test]
fn no_packet_is_slept_over_with_the_mask() {
    no_packet_is_slept_over(true);
}

#[test]
fn no_packet_is_slept_over_without_the_mask() {
    no_packet_is_slept_over(false);
}

/// The ring is full and the sender waits for room, for one packet or for two; the
/// receiver takes them one by one. If the sender sleeps, the receiver signals when
/// there is enough.
fn no_room_is_slept_over(packets: u32) {
    loom::model(move || {
        let (mut outgoing, mut incoming) = pair();
        for id in [1, 2] {
            send(&mut outgoing, id).unwrap();
        }
        outgoing.publish().unwrap();
        assert_eq!(
            send(&mut outgoing, 3),
            Err(SendError::Full { need: 24, free: 16 })
        );
        incoming.refresh().unwrap();
        let side = thread::spawn(move || {
            let mut packet = packet();
            [(); 2].map(|()| {
                assert_eq!(incoming.receive(&mut packet), Ok(true));
                incoming.release().unwrap()
            })
        });
        if outgoing.wait_for(24 * packets).unwrap() {
            send(&mut outgoing, 3).unwrap();
            side.join().unwrap();
        } else {
            let signals = side.join().unwrap();
            assert_eq!(signals.iter().filter(|signal| **signal).count(), 1);
            for id in 0..packets {
                send(&mut outgoing, id.into()).unwrap();
            }
        }
    });
}

#[test]
fn no_room_is_slept_over_by_who_waits_for_one_packet() {
    no_room_is_slept_over(1);
}

#[test]
fn no_room_is_slept_over_by_who_waits_for_more() {
    no_room_is_slept_over(2);
}
