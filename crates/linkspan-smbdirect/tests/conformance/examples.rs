//! The examples of MS-SMBD, section 4, as bytes.

use linkspan_rdma::verbs::{Key, Remote};
use linkspan_smbdirect::{Descriptor, News, Output, Role};
use zerocopy::IntoBytes;

use super::peer::{DEPTH, Peer, initiator, response, slice, small, transfer};

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

#[test]
fn example_4_1_establishing_a_connection() {
    let request = hex("0001 0001 0000 0a00 00040000 00040000 00000200");
    let answer = hex("0001 0001 0001 0000 0a00 0a00 00000000 00001000 00040000 00040000 00000200");
    let mut listener = Peer::new(Role::Listener, &small(Role::Listener));
    listener.say(&request);
    assert_eq!(listener.sent, [(answer.clone(), 0)]);

    let mut initiator = Peer::new(Role::Initiator, &small(Role::Initiator));
    assert_eq!(initiator.sent, [(request, 0)]);
    // The first message is there before anything else is said.
    initiator.sent.clear();
    assert_eq!(response().as_bytes(), answer);
    initiator.core.established(0, DEPTH);
    let arrival = linkspan_smbdirect::Arrival {
        buffer: slice(32),
        len: 32,
        head: &answer,
        invalidated: None,
    };
    initiator.core.received(0, arrival);
    loop {
        match initiator.core.poll_output(0) {
            Some(Output::Tell(News::Connected)) => break,
            Some(Output::PostReceives { count }) => initiator.core.receives_posted(0, count),
            Some(Output::Release { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    initiator.core.send(&[slice(200)], None).unwrap();
    initiator.pump();
    let first = hex("0a00 0a00 0000 0000 00000000 18000000 c8000000 00000000");
    assert_eq!(initiator.sent, [(first, 200)]);
}

#[test]
fn example_4_2_500_bytes() {
    let mut peer = initiator();
    // The peer's answer takes a credit, which the next message replaces.
    peer.data(transfer(10, 1, 100, 0));
    assert_eq!(peer.read(), [100]);
    peer.core.send(&[slice(500)], None).unwrap();
    peer.pump();
    let message = hex("0a00 0100 0000 0000 00000000 18000000 f4010000 00000000");
    assert_eq!(peer.sent.last().unwrap(), &(message, 500));
}

#[test]
fn example_4_3_64_kib_in_66_segments() {
    let mut peer = initiator();
    peer.sent.clear();
    peer.core.send(&[slice(65536)], None).unwrap();
    peer.pump();
    while peer.sent.len() < 66 {
        let before = peer.sent.len();
        peer.data(transfer(10, 1, 0, 0));
        assert!(peer.sent.len() > before, "a credit lets one segment go");
    }
    let mut left = 65536;
    for (index, (bytes, len)) in peer.sent.iter().enumerate() {
        let want = if index < 65 { 1000 } else { 536 };
        left -= want;
        assert_eq!(*len, want);
        assert_eq!(bytes[8..12], left.to_le_bytes());
        assert_eq!(bytes[12..16], 24u32.to_le_bytes());
        assert_eq!(bytes[20..24], [0; 4]);
    }
    assert_eq!((peer.sent.len(), left), (66, 0));
    let sent = |event: &&Output| matches!(event, Output::Tell(News::Sent { result: Ok(()), .. }));
    assert_eq!(peer.events.iter().filter(sent).count(), 1);
}

#[test]
fn example_4_4_and_4_5_descriptors_and_transfers() {
    let cases = [
        (
            0xABCD_E012,
            0x1A00_BC56,
            "12e0cdab00000000 56bc001a 00001000",
        ),
        (
            0x0DCB_A024,
            0x1A00_BC57,
            "24a0cb0d00000000 57bc001a 00001000",
        ),
    ];
    for (offset, token, bytes) in cases {
        let mut peer = initiator();
        let remote = Remote {
            key: Key(token),
            address: offset,
        };
        let (id, descriptor) = peer.core.register(1 << 20, || Ok(remote)).unwrap();
        assert_eq!(descriptor.to_bytes().to_vec(), hex(bytes));
        assert_eq!(Descriptor::from_bytes(descriptor.to_bytes()), descriptor);
        peer.core.deregister(id).unwrap();
        peer.pump();
        let ended = Output::Tell(News::Deregistered { id, result: Ok(()) });
        assert!(peer.events.contains(&ended));
        // The other end reads it (4.4), or writes it (4.5), as one work.
        peer.events.clear();
        let local = [slice(1 << 20)];
        if token == 0x1A00_BC56 {
            peer.core.read(&local, &[descriptor], 0).unwrap();
        } else {
            peer.core.write(&local, &[descriptor], 0).unwrap();
        }
        peer.pump();
        let found = |event: &Output| match event {
            Output::Read {
                remote: to, local, ..
            }
            | Output::Write {
                remote: to, local, ..
            } => *to == remote && local.len() == 1 << 20,
            _ => false,
        };
        assert!(peer.events.iter().any(found), "{:?}", peer.events);
    }
}
