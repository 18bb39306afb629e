//! Frames that are there as a whole mean what they mean byte by byte, and what is written
//! has few pieces.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use linkspan_rdma::iwarp::{Options, Piece, WireError};
use linkspan_rdma::verbs::{Access, Event, Failure, Operation, Work};

use super::checks::options;
use super::pair::{End, Pair, done, end_of, pattern};
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
    let mut options = options();
    options.limits.receive_size = 4096;
    let mut pair = Pair::established(options);
    let data = pattern(2024, 1);
    pair.a.write(0, &data);
    let all = pair.a.slice(0, 2024);
    let (here, there) = (true, false);
    // 20 + 24 bytes, and behind the payload the checksum.
    let long = [
        (here, 44),
        (there, 2000),
        (here, 48),
        (there, 2000),
        (here, 4),
    ];
    // A message of SMB Direct is one piece with the next one.
    let short = [(here, 2 * (20 + 1364 + 4))];
    for (len, expected) in [(2024, &long[..]), (1364, &short[..])] {
        let gather = [all.part(0, 24), all.part(24, len - 24)];
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
        assert_eq!(lens, expected);
        pair.run();
        let part = &data[..len as usize];
        assert_eq!(pair.b.messages(), [part, part]);
    }
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

/// A checksum that is made as bytes are written is right wherever a write ends, also of a frame
/// that had begun when the end came.
#[test]
fn checksums_of_large_frames_are_right_wherever_writes_end() {
    let options = Options {
        crc: true,
        ..Options::default()
    };
    let data = pattern(200_000, 3);
    for count in [999, 4096, 65_488, 65_491, 65_492, 65_493, 100_001] {
        let mut pair = Pair::met(options);
        pair.a.write(0, &data);
        let to = pair.b.expose(300_000, 200_000, Access::WRITE);
        let slice = pair.a.slice(0, 200_000);
        let gather = [
            slice.part(0, 5),
            slice.part(5, 70_000),
            slice.part(70_005, 200_000),
        ];
        let work = Work::Write {
            gather: &gather,
            to,
        };
        pair.a.post(1, work).unwrap();
        pair.run_in_pieces(count, usize::MAX);
        assert_eq!(pair.a.events(), [done(1, Operation::Write)]);
        assert!(pair.b.read(pair.b.slice(300_000, 200_000)) == data);
        // Another one is cut off in its second frame.
        pair.a.post(2, work).unwrap();
        for _ in 0..2 {
            let bytes = pair.a.transmit(50_000);
            pair.b.receive(&bytes);
        }
        pair.a.connection.disconnect();
        pair.run_in_pieces(count, usize::MAX);
        pair.b.connection.receive_end();
        let ended = end_of(&pair.b.events());
        assert_eq!(ended, Failure::Wire(WireError::Truncated), "{count}");
    }
}

/// Ours: what is short was summed, and then read again to be copied.
#[test]
fn a_sum_is_of_what_is_sent_though_memory_changes_meanwhile() {
    let mut pair = Pair::established(Options {
        crc: true,
        ..options()
    });
    let slice = pair.a.slice(0, 900);
    let memory = pair.a.memories.region(pair.a.memory).unwrap().clone();
    let (over, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let place = memory.slice(0, 900).unwrap();
            let mut byte = 0;
            while !over.load(Ordering::Relaxed) {
                byte ^= 0xFF;
                place.write(&[byte; 900]);
                changes.fetch_add(1, Ordering::Relaxed);
            }
        });
        let (mut sent, mut came) = (0, 0);
        // Until it has changed for long enough.
        while sent == came && (sent < 100_000 || changes.load(Ordering::Relaxed) < 200_000) {
            pair.b.connection.post_receives(39).unwrap_or_default();
            for id in 1..40 {
                // If it is not possible any more, messages are missing.
                pair.a.send(id, slice).unwrap_or_default();
            }
            pair.run();
            sent += 39;
            came += pair.b.messages().len();
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(came, sent, "{:?}", pair.a.events().last());
    });
}
