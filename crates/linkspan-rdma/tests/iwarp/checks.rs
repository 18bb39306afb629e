//! Every check of what is received, by name, and what the peer is told.

use linkspan_rdma::iwarp::{Opcode, Options, WireError};
use linkspan_rdma::verbs::{Access, Event, Failure, Key, Operation, Refusal, Remote, Work};

use super::pair::{DEPTH, End, end_of, pattern};
use super::script::{
    self, READ_REQUEST, READ_RESPONSE, READ_RESPONSE_MORE, SEND, SEND_INVALIDATE, SEND_MORE,
    TERMINATE, WRITE, WRITE_MORE, frame, read_request, tagged, terminate_in, untagged,
};

pub(crate) const BASE: u64 = 1 << 16;

pub(crate) fn options() -> Options {
    let mut options = Options {
        depth: DEPTH,
        inbound_max: 4,
        ..Options::default()
    };
    options.limits.receive_size = 1000;
    options
}

pub(crate) fn responder() -> End {
    script::responder(options())
}

/// Feeds frames, of which the last is refused, and says why and what the peer is told.
pub(crate) fn refused(end: &mut End, frames: &[Vec<u8>]) -> (Failure, Option<(u8, u8, u8)>) {
    for ulpdu in frames {
        end.receive(&frame(ulpdu, false));
    }
    ended(end)
}

pub(crate) fn ended(end: &mut End) -> (Failure, Option<(u8, u8, u8)>) {
    let told = terminate_in(&end.transmit(usize::MAX));
    // Whatever comes now is not looked at.
    end.receive(&[0xEE; 3000]);
    end.connection.receive_end();
    let events = end.events();
    for event in &events {
        if let Event::Received(received) = event {
            end.pool.put(received.buffer);
        }
    }
    assert_eq!(end.pool.used().1, 0, "a buffer leaks");
    (end_of(&events), told)
}

pub(crate) fn wire(error: WireError) -> Failure {
    Failure::Wire(error)
}

pub(crate) fn no(operation: Operation, why: Refusal) -> Failure {
    Failure::Refused { operation, why }
}

fn check(frames: &[Vec<u8>], failure: Failure, told: (u8, u8, u8)) {
    let mut end = responder();
    assert_eq!(refused(&mut end, frames), (failure, Some(told)));
}

/// Fault 13 (CVE-2026-23242): a frame shorter than its header.
#[test]
fn length_below_the_header_of_its_opcode() {
    // CVE-2026-23242 and what was before it: no length is believed.
    for (control, min) in [
        (WRITE, 14),
        (READ_RESPONSE, 14),
        (SEND, 18),
        (SEND_INVALIDATE, 18),
        (READ_REQUEST, 46),
        (TERMINATE, 22),
    ] {
        for len in [0_u16, 1, 2, 13, min - 1] {
            let mut end = responder();
            let bytes = [&len.to_be_bytes()[..], &control.to_be_bytes()].concat();
            end.receive(&bytes);
            let (failure, told) = ended(&mut end);
            let Failure::Wire(WireError::FrameLength {
                got, min: least, ..
            }) = failure
            else {
                panic!("{failure:?}");
            };
            assert_eq!((got, least, told), (len, min, Some((2, 0, 3))));
        }
    }
}

#[test]
fn length_above_what_the_opcode_can_have() {
    for (control, got, min, max) in [(READ_REQUEST, 47_u16, 46, 46), (TERMINATE, 71, 22, 70)] {
        let mut end = responder();
        end.receive(&[&got.to_be_bytes()[..], &control.to_be_bytes()].concat());
        let error = WireError::FrameLength { got, min, max };
        assert_eq!(ended(&mut end), (wire(error), Some((2, 0, 3))));
    }
}

#[test]
fn version_of_ddp() {
    for version in [0, 2, 3] {
        let control = SEND & !0x0300 | version << 8;
        let error = WireError::DdpVersion {
            got: version,
            tagged: false,
        };
        check(
            &[untagged(control, 0, [0, 1, 0], b"")],
            wire(error),
            (1, 2, 6),
        );
        let control = WRITE & !0x0300 | version << 8;
        let error = WireError::DdpVersion {
            got: version,
            tagged: true,
        };
        check(&[tagged(control, 1, 0, b"")], wire(error), (1, 1, 4));
    }
}

#[test]
fn version_of_rdmap() {
    for got in [0, 2, 3] {
        let control = SEND & !0x00C0 | got << 6;
        let error = WireError::RdmapVersion { got };
        check(
            &[untagged(control, 0, [0, 1, 0], b"")],
            wire(error),
            (0, 2, 5),
        );
    }
}

#[test]
fn unknown_opcode() {
    for got in 8..16 {
        let error = WireError::Opcode { got };
        check(
            &[untagged(0x4140 | got, 0, [0, 1, 0], b"")],
            wire(error),
            (0, 2, 6),
        );
    }
}

#[test]
fn tagged_bit_against_the_opcode() {
    for (control, opcode) in [
        (SEND | 0x8000, Opcode::Send),
        (READ_REQUEST | 0x8000, Opcode::ReadRequest),
        (TERMINATE | 0x8000, Opcode::Terminate),
        (WRITE & !0x8000, Opcode::Write),
        (READ_RESPONSE & !0x8000, Opcode::ReadResponse),
    ] {
        let error = WireError::Unexpected { opcode };
        check(
            &[untagged(control, 0, [0, 1, 0], b"")],
            wire(error),
            (0, 2, 6),
        );
    }
}

#[test]
fn reserved_bits_mean_nothing() {
    let mut end = responder();
    end.receive(&frame(&untagged(SEND | 0x3C30, 7, [0, 1, 0], b"x"), false));
    assert_eq!(end.messages(), [b"x"]);
}

#[test]
fn queue_of_each_untagged_opcode() {
    for (frame, opcode, got) in [
        (untagged(SEND, 0, [1, 1, 0], b""), Opcode::Send, 1),
        (
            untagged(SEND, 0, [u32::MAX, 1, 0], b""),
            Opcode::Send,
            u32::MAX,
        ),
        (
            untagged(READ_REQUEST, 0, [0, 1, 0], &[0; 28]),
            Opcode::ReadRequest,
            0,
        ),
        (
            untagged(TERMINATE, 0, [0, 1, 0], &[0; 4]),
            Opcode::Terminate,
            0,
        ),
    ] {
        check(&[frame], wire(WireError::Queue { opcode, got }), (1, 2, 1));
    }
}

#[test]
fn number_of_a_message_is_exactly_the_next() {
    for (first, got, expected) in [(None, 0, 1), (None, 2, 1), (Some(1), 1, 2), (Some(1), 3, 2)] {
        let mut frames = Vec::new();
        frames.extend(first.map(|number| untagged(SEND, 0, [0, number, 0], b"a")));
        frames.push(untagged(SEND, 0, [0, got, 0], b"b"));
        let error = WireError::Number {
            queue: 0,
            got,
            expected,
        };
        check(&frames, wire(error), (1, 2, 3));
    }
    let error = WireError::Number {
        queue: 1,
        got: 2,
        expected: 1,
    };
    check(&[read_request(2, 1, 0, 1, 0)], wire(error), (1, 2, 3));
}

#[test]
fn offset_of_a_segment_is_what_has_come() {
    let begin = untagged(SEND_MORE, 0, [0, 1, 0], b"abcd");
    for got in [0, 3, 5, u32::MAX] {
        let error = WireError::Offset { got, expected: 4 };
        let next = untagged(SEND, 0, [0, 1, got], b"e");
        check(&[begin.clone(), next], wire(error), (1, 2, 4));
    }
    let error = WireError::Offset {
        got: 1,
        expected: 0,
    };
    check(&[untagged(SEND, 0, [0, 1, 1], b"")], wire(error), (1, 2, 4));
}

#[test]
fn opcode_changes_inside_of_a_message() {
    let begin = untagged(SEND_MORE, 0, [0, 1, 0], b"abcd");
    let next = untagged(SEND_INVALIDATE, 1, [0, 1, 4], b"e");
    let opcode = Opcode::SendInvalidate;
    check(
        &[begin, next],
        wire(WireError::Unexpected { opcode }),
        (0, 2, 6),
    );
}

#[test]
fn message_without_a_receive() {
    let frames: Vec<Vec<u8>> = (1..6)
        .map(|number| untagged(SEND, 0, [0, number, 0], b""))
        .collect();
    // Four are posted.
    check(&frames, no(Operation::Send, Refusal::NoReceive), (1, 2, 2));
}

#[test]
fn message_longer_than_a_receive() {
    // Facts 4, fault 8.
    let why = Refusal::TooLong {
        got: 1001,
        max: 1000,
    };
    let long = untagged(SEND, 0, [0, 1, 0], &[1; 1001]);
    check(&[long], no(Operation::Send, why), (1, 2, 5));
    let begin = untagged(SEND_MORE, 0, [0, 1, 0], &[1; 1000]);
    let rest = untagged(SEND, 0, [0, 1, 1000], &[1]);
    check(&[begin, rest], no(Operation::Send, why), (1, 2, 5));
    let mut end = responder();
    end.receive(&frame(&untagged(SEND, 0, [0, 1, 0], &[7; 1000]), false));
    assert_eq!(end.messages(), [[7; 1000]]);
}

#[test]
fn message_that_invalidates_what_there_is_not() {
    let frame = untagged(SEND_INVALIDATE, 0x55, [0, 1, 0], b"x");
    let error = WireError::Invalidate { key: 0x55 };
    check(&[frame], wire(error), (0, 2, 9));
}

#[test]
fn empty_writes_and_reads_are_not_looked_up() {
    let mut end = responder();
    end.receive(&frame(&tagged(WRITE, 0, u64::MAX, b""), false));
    end.receive(&frame(&read_request(1, 0x77, 0, 0, u64::MAX), false));
    let response = end.transmit(usize::MAX);
    assert_eq!(response, frame(&tagged(READ_RESPONSE, 0x77, 0, b""), false));
    assert_eq!(end.events(), []);
}

#[test]
fn write_goes_on_elsewhere() {
    let parts = |second: Vec<u8>| {
        let mut end = responder();
        let key = end.expose(0, 100, Access::WRITE).key;
        let begin = tagged(WRITE_MORE, key.0, BASE, b"abcd");
        let mut second = second;
        if second[2..6] == [0; 4] {
            second[2..6].copy_from_slice(&key.0.to_be_bytes());
        }
        (refused(&mut end, &[begin, second]), key)
    };
    let ((failure, told), key) = parts(tagged(WRITE, 9, BASE + 4, b"e"));
    let error = WireError::OtherKey {
        got: 9,
        expected: key.0,
    };
    assert_eq!((failure, told), (wire(error), Some((1, 1, 0))));
    for got in [BASE, BASE + 3, BASE + 5] {
        let ((failure, told), _) = parts(tagged(WRITE, 0, got, b"e"));
        let error = WireError::OtherAddress {
            got,
            expected: BASE + 4,
        };
        assert_eq!((failure, told), (wire(error), Some((1, 1, 1))));
    }
}

#[test]
fn a_message_and_a_write_interleave() {
    let mut end = responder();
    let Remote { key, address } = end.expose(0, 100, Access::WRITE);
    for ulpdu in [
        tagged(WRITE_MORE, key.0, address, b"ab"),
        untagged(SEND_MORE, 0, [0, 1, 0], b"12"),
        tagged(WRITE_MORE, key.0, address + 2, b"cd"),
        untagged(SEND, 0, [0, 1, 2], b"34"),
        tagged(WRITE, key.0, address + 4, b"ef"),
    ] {
        end.receive(&frame(&ulpdu, false));
    }
    assert_eq!(end.read(end.slice(0, 6)), b"abcdef");
    assert_eq!(end.messages(), [b"1234"]);
}

/// An end with a read of 10 bytes under way, and the tag of its sink.
fn reading() -> (End, u32) {
    let mut end = script::initiator(options());
    let into = [end.slice(0, 4), end.slice(50, 6)];
    let from = Remote {
        key: Key(7),
        address: 3,
    };
    end.post(1, Work::Read { into: &into, from }).unwrap();
    let bytes = end.transmit(usize::MAX);
    (end, u32::from_be_bytes(bytes[20..24].try_into().unwrap()))
}

#[test]
fn response_matches_the_oldest_read_exactly() {
    let other = |sink, address, bytes: &[u8]| {
        let len = u32::try_from(bytes.len()).unwrap();
        let error = WireError::Response {
            key: sink,
            address,
            len,
        };
        (tagged(READ_RESPONSE, sink, address, bytes), wire(error))
    };
    for at in 0..3 {
        let (mut end, sink) = reading();
        let (frame, failure) = match at {
            0 => other(sink ^ 1, 0, b"0123456789"),
            1 => other(sink, 1, b"012345678"),
            _ => other(sink, 0, b"0123456789a"),
        };
        assert_eq!(refused(&mut end, &[frame]), (failure, Some((1, 1, 1))));
    }
    let (mut end, sink) = reading();
    let short = tagged(READ_RESPONSE, sink, 0, b"0123");
    let failure = wire(WireError::ResponseEnd { left: 6 });
    assert_eq!(refused(&mut end, &[short]), (failure, Some((1, 1, 1))));
    let (mut end, sink) = reading();
    let more = tagged(READ_RESPONSE_MORE, sink, 0, b"0123456789");
    let failure = wire(WireError::ResponseEnd { left: 0 });
    assert_eq!(refused(&mut end, &[more]), (failure, Some((1, 1, 1))));
    let opcode = Opcode::ReadResponse;
    let response = tagged(READ_RESPONSE, 5, 0, b"");
    check(
        &[response],
        wire(WireError::Unexpected { opcode }),
        (0, 2, 6),
    );
}

#[test]
fn two_tagged_messages_do_not_interleave() {
    let (mut end, sink) = reading();
    let key = end.expose(100, 100, Access::WRITE).key;
    let opcode = Opcode::Write;
    let frames = [
        tagged(READ_RESPONSE_MORE, sink, 0, b"0123"),
        tagged(WRITE, key.0, BASE, b"x"),
    ];
    let failure = wire(WireError::Unexpected { opcode });
    assert_eq!(refused(&mut end, &frames), (failure, Some((0, 2, 6))));
    let (mut end, sink) = reading();
    let key = end.expose(100, 100, Access::WRITE).key;
    let opcode = Opcode::ReadResponse;
    let frames = [
        tagged(WRITE_MORE, key.0, BASE, b"x"),
        tagged(READ_RESPONSE, sink, 0, b"0123456789"),
    ];
    let failure = wire(WireError::Unexpected { opcode });
    assert_eq!(refused(&mut end, &frames), (failure, Some((0, 2, 6))));
}

#[test]
fn a_sink_is_no_place_to_write_or_read() {
    let (mut end, sink) = reading();
    let key = Key(sink);
    let failure = no(Operation::Write, Refusal::Key { key });
    let write = tagged(WRITE, sink, 0, b"x");
    assert_eq!(refused(&mut end, &[write]), (failure, Some((1, 1, 0))));
    let (mut end, sink) = reading();
    let failure = no(Operation::Read, Refusal::Key { key: Key(sink) });
    let read = read_request(1, 1, 1, sink, 0);
    assert_eq!(refused(&mut end, &[read]), (failure, Some((0, 1, 0))));
}

#[test]
fn a_response_in_parts_fills_its_list() {
    let (mut end, sink) = reading();
    end.receive(&frame(&tagged(READ_RESPONSE_MORE, sink, 0, b"012"), false));
    end.receive(&frame(&tagged(READ_RESPONSE, sink, 3, b"3456789"), false));
    assert_eq!(end.read(end.slice(0, 4)), b"0123");
    assert_eq!(end.read(end.slice(50, 6)), b"456789");
}

#[test]
fn wrong_checksum() {
    let with_crc = Options {
        crc: true,
        ..options()
    };
    let good = frame(&untagged(SEND, 0, [0, 1, 0], &pattern(100, 1)), true);
    for at in (0..good.len()).step_by(3) {
        let mut end = script::responder(with_crc);
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        end.receive(&bytes);
        end.receive(&[0; 70_000]);
        let events = end.events();
        // What is in the header may be found out before the checksum is there.
        let failure = {
            end.transmit(usize::MAX);
            end.connection.receive_end();
            let mut all = events;
            all.extend(end.events());
            assert!(!all.iter().any(|it| matches!(it, Event::Received(_))));
            end_of(&all)
        };
        if at >= 20 {
            assert!(
                matches!(failure, Failure::Wire(WireError::Crc { .. })),
                "byte {at}: {failure:?}"
            );
        }
    }
    // Without checksums nobody looks.
    let mut end = responder();
    let mut bytes = frame(&untagged(SEND, 0, [0, 1, 0], b"abc"), false);
    let last = bytes.len() - 1;
    bytes[last] = 9;
    end.receive(&bytes);
    assert_eq!(end.messages(), [b"abc"]);
}

#[test]
fn terminate_of_the_peer_is_told() {
    let mut end = responder();
    end.receive(&frame(&untagged(SEND, 0, [0, 1, 0], b""), false));
    end.send(5, end.slice(0, 10)).unwrap();
    let bytes = frame(
        &untagged(TERMINATE, 0, [2, 1, 0], b"\x12\x02\xC0\x00\x00\x12headers"),
        false,
    );
    end.receive(&bytes);
    let failure = end_of(&end.events());
    let text = failure.to_string();
    assert_eq!(
        text,
        "the peer terminated the stream: no receive is posted (1/2/2)"
    );
    assert_eq!(end.transmit(usize::MAX), b"");
}
