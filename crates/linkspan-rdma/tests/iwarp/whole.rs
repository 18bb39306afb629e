//! Frames that are there as a whole mean what they mean byte by byte, and what is written
//! has few pieces.

use linkspan_rdma::iwarp::{Options, Piece};
use linkspan_rdma::verbs::{Event, Work};

use super::checks::options;
use super::pair::{End, Pair, pattern};
use super::script::{
    SEND, SEND_INVALIDATE, SEND_MORE, WRITE_MORE, frame, responder, tagged, untagged,
};

/// What became of frames: messages, how the connection ended, what the peer is told, and
/// buffers that are not back.
fn outcome(end: &mut End) -> (Vec<Vec<u8>>, Vec<Event>, Vec<u8>, usize) {
    let (mut messages, mut others) = (Vec::new(), Vec::new());
    for event in end.events() {
        match event {
            Event::Received(received) => messages.push(end.take(received)),
            event => others.push(event),
        }
    }
    let told = end.transmit(usize::MAX);
    // What is abandoned goes back.
    end.receive(b"");
    others.extend(end.events());
    (messages, others, told, end.pool.used().1)
}

#[test]
fn whole_frames_mean_the_same_as_their_bytes_one_by_one() {
    let send = |number: u32, payload: &[u8]| untagged(SEND, 0, [0, number, 0], payload);
    let cases = [
        vec![send(1, b"one"), send(2, b""), send(3, &pattern(1000, 3))],
        // A part, its rest, and one behind it.
        vec![
            untagged(SEND_MORE, 0, [0, 1, 0], &[1; 500]),
            untagged(SEND, 0, [0, 1, 500], &[2; 500]),
            send(2, b"two"),
        ],
        // Bits that nobody looks at.
        vec![
            untagged(SEND | 0x3010, 9, [0, 1, 0], b"bits"),
            send(2, b"two"),
        ],
        // A write has begun.
        vec![tagged(WRITE_MORE, 1, 0, b""), send(1, b"one")],
        // Too long, too early, too late, of another queue, in the middle.
        vec![send(1, &[0; 1001])],
        vec![send(2, b"two")],
        vec![send(1, b"one"), send(1, b"one")],
        vec![untagged(SEND, 0, [1, 1, 0], b"one")],
        vec![untagged(SEND, 0, [0, 1, 4], b"one")],
        vec![untagged(SEND_MORE, 0, [0, 1, 0], b"one"), send(1, b"one")],
        vec![untagged(SEND_INVALIDATE, 77, [0, 1, 0], b"one")],
        // More than there are receives.
        (1..=5).map(|number| send(number, b"more")).collect(),
    ];
    for (frames, crc) in cases
        .iter()
        .flat_map(|frames| [(frames, false), (frames, true)])
    {
        let options = Options { crc, ..options() };
        for broken in [false, true] {
            let mut bytes: Vec<u8> = frames.iter().flat_map(|it| frame(it, crc)).collect();
            let last = bytes.len() - 1;
            bytes[last] ^= u8::from(broken);
            let mut whole = responder(options);
            whole.receive(&bytes);
            let mut single = responder(options);
            for byte in bytes.chunks(1) {
                single.receive(byte);
            }
            let outcome = outcome(&mut whole);
            assert_eq!(
                outcome,
                self::outcome(&mut single),
                "{frames:?} {crc} {broken}"
            );
            assert_eq!(outcome.3, 0, "a buffer is not back");
        }
    }
}

#[test]
fn a_header_and_what_is_short_are_one_piece() {
    let mut pair = Pair::established(options());
    let data = pattern(600, 1);
    pair.a.write(0, &data);
    let all = pair.a.slice(0, 600);
    let gather = [all.part(0, 24), all.part(24, 576)];
    for id in 1..=2 {
        let work = Work::Send {
            gather: &gather,
            invalidate: None,
            solicited: false,
        };
        pair.a.post(id, work).unwrap();
    }
    pair.a.connection.fill(&mut pair.a.batch, &pair.a.memories);
    let lens: Vec<(bool, usize)> = pair
        .a
        .batch
        .pieces()
        .map(|piece| match piece {
            Piece::Bytes(bytes) => (true, bytes.len()),
            Piece::Slice(slice) => (false, slice.len as usize),
        })
        .collect();
    let (here, there) = (true, false);
    // 20 + 24 bytes, and behind the payload the checksum.
    assert_eq!(
        lens,
        [
            (here, 44),
            (there, 576),
            (here, 48),
            (there, 576),
            (here, 4)
        ]
    );
    pair.run();
    assert_eq!(pair.b.messages(), [data.clone(), data]);
}

/// A batch that is never empty forgets what is written.
#[test]
fn short_messages_in_short_writes_arrive_in_order() {
    let mut pair = Pair::established(options());
    let mut expected = Vec::new();
    let mut arrived = Vec::new();
    for id in 0..1000_u32 {
        let bytes = pattern(1 + id as usize % 100, id.to_le_bytes()[0]);
        let offset = u64::from(id % 50) * 100;
        pair.a.write(offset, &bytes);
        let slice = pair.a.slice(offset, u32::try_from(bytes.len()).unwrap());
        pair.a.send(id.into(), slice).unwrap();
        expected.push(bytes);
        pair.b.connection.post_receives(1).unwrap();
        // About as much as comes, so that something is left.
        let written = pair.a.transmit(74);
        pair.b.receive(&written);
        arrived.extend(pair.b.messages());
    }
    pair.run();
    arrived.extend(pair.b.messages());
    assert!(arrived == expected);
}
