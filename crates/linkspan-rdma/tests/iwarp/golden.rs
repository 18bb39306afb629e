//! Bytes of the specifications and of siw, as they are on the wire.

use std::time::Duration;

use linkspan_rdma::iwarp::{Connection, FrameSize, Options};
use linkspan_rdma::verbs::{Access, Depth, Event, Key, Remote, Work};

use super::pair::{End, Pair, done, pattern};
use super::script::{self, SEND, frame, untagged};
use linkspan_rdma::verbs::Operation;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Facts 2.2: what cifs sends over siw, and what ksmbd answers.
#[test]
fn request_and_reply_are_those_of_siw() {
    let options = Options {
        depth: Depth {
            inbound: 32,
            outbound: 1,
        },
        ..Options::default()
    };
    let private = b"\0\0\0\x20\0\0\0\x01";
    let connection = Connection::initiator(options, [0; 32], private, Duration::ZERO).unwrap();
    let mut end = End::new(connection);
    assert_eq!(
        hex(&end.transmit(usize::MAX)),
        "4d504120494420526571204672616d65 10 02 000c 0020 0001 00000020 00000001".replace(' ', "")
    );
    let mut server = End::responder(options);
    server.receive(b"MPA ID Req Frame\x10\x02\x00\x0c\x00\x20\x00\x01\0\0\0\x20\0\0\0\x01");
    let [Event::Requested(greeting)] = &server.events()[..] else {
        panic!("no request");
    };
    assert_eq!(greeting.private_data, private);
    assert_eq!(
        greeting.depth,
        Depth {
            inbound: 1,
            outbound: 32
        }
    );
    let depth = Depth {
        inbound: 1,
        outbound: 8,
    };
    server.connection.accept(b"", depth).unwrap();
    assert_eq!(
        hex(&server.transmit(usize::MAX)),
        "4d504120494420526570204672616d65 10 02 0004 0001 0008".replace(' ', "")
    );
}

/// Facts 2.3 to 2.5: one frame of each kind.
#[test]
fn frames_of_every_kind() {
    let mut end = script::initiator(Options::default());
    end.write(0, b"abcde");
    let five = end.slice(0, 5);
    let to = Remote {
        key: Key(0x1234_5678),
        address: 0x1_0000_0002,
    };
    for work in [
        Work::Send {
            gather: &[five],
            invalidate: None,
            solicited: false,
        },
        Work::Send {
            gather: &[five.part(0, 2), five.part(2, 3)],
            invalidate: Some(Key(0xAABB_CCDD)),
            solicited: false,
        },
        Work::Send {
            gather: &[],
            invalidate: None,
            solicited: true,
        },
        Work::Send {
            gather: &[],
            invalidate: Some(Key(1)),
            solicited: true,
        },
        Work::Write {
            gather: &[five],
            to,
        },
    ] {
        end.post(1, work).unwrap();
    }
    let expected = [
        // Length 18 + 5, control, nothing, queue, number, offset, payload, padding, no CRC.
        "0017 4143 00000000 00000000 00000001 00000000 6162636465 000000 00000000",
        "0017 4144 aabbccdd 00000000 00000002 00000000 6162636465 000000 00000000",
        "0012 4145 00000000 00000000 00000003 00000000 00000000",
        "0012 4146 00000001 00000000 00000004 00000000 00000000",
        // Length 14 + 5, control, tag, address, payload, padding, no CRC.
        "0013 c140 12345678 0000000100000002 6162636465 000000 00000000",
    ];
    assert_eq!(
        hex(&end.transmit(usize::MAX)),
        expected.concat().replace(' ', "")
    );
    end.post(
        2,
        Work::Read {
            into: &[five],
            from: to,
        },
    )
    .unwrap();
    let request = hex(&end.transmit(usize::MAX));
    assert_eq!(request.len(), 2 * 52);
    assert_eq!(
        request[..48],
        "002e 4141 00000000 00000001 00000001 00000000 ".replace(' ', "") + &request[40..48]
    );
    // Size, source.
    assert_eq!(
        request[64..],
        "00000005 12345678 0000000100000002 00000000".replace(' ', "")
    );
    end.receive(&[0; 4]);
    // Version 0 of DDP.
    assert_eq!(
        hex(&end.transmit(usize::MAX)),
        "0016 4147 00000000 00000002 00000001 00000000 12060000 00000000".replace(' ', "")
    );
}

/// Facts 2.3: CRC32C, low byte first; a message of the size that SMB Direct sends.
#[test]
fn a_frame_with_its_checksum() {
    let options = Options {
        crc: true,
        ..Options::default()
    };
    let mut server = script::responder(options);
    let message = pattern(1364, 3);
    let bytes = frame(&untagged(SEND, 0, [0, 1, 0], &message), true);
    // Facts 2.9.
    assert_eq!(bytes.len(), 1388);
    server.receive(&bytes);
    assert_eq!(server.messages(), [message]);
    // The same bytes leave an end of ours.
    let mut pair = Pair::new(options, options);
    pair.run();
    pair.b.connection.accept(b"", options.depth).unwrap();
    pair.b.connection.post_receives(1).unwrap();
    pair.run();
    pair.a.write(0, &pattern(1364, 3));
    pair.a.send(1, pair.a.slice(0, 1364)).unwrap();
    assert_eq!(pair.a.transmit(usize::MAX), bytes);
}

/// Facts 2.9 and 8: what 1 MiB takes, in frames of 64 KiB and of a segment.
#[test]
fn a_mebibyte_in_frames_of_either_size() {
    for (frame, frames) in [(FrameSize::Max, 17), (FrameSize::Segment(1448), 737)] {
        let mut pair = Pair::established(Options {
            frame,
            ..Options::default()
        });
        let to = pair.b.expose(0, 1 << 20, Access::WRITE);
        let data = pattern(1 << 20, 1);
        pair.a.write(0, &data);
        let all = pair.a.slice(0, 1 << 20);
        pair.a.post(1, Work::Write { gather: &[all], to }).unwrap();
        let mut bytes = 0;
        loop {
            let part = pair.a.transmit(usize::MAX);
            if part.is_empty() {
                break;
            }
            bytes += part.len();
            pair.b.receive(&part);
        }
        assert_eq!(bytes, (1 << 20) + frames * 20);
        assert!(pair.b.read(all) == data);
        assert_eq!(pair.a.events(), [done(1, Operation::Write)]);
    }
}
