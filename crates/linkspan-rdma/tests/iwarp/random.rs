//! Any works of both ends, split anywhere, against memory copied by hand.

use linkspan_rdma::iwarp::{FrameSize, Options};
use linkspan_rdma::verbs::{Access, Event, Operation, Remote, Work};
use proptest::prelude::*;

use super::pair::{DEPTH, End, MEMORY, Pair, pattern};

/// Where exposures begin, and how long each is.
const EXPOSED: u64 = 1 << 19;

#[derive(Clone, Debug)]
enum Step {
    Send(bool, u32, usize),
    Write(bool, u32, u32, usize),
    Read(bool, u32, u32),
    Carry(usize, usize),
    /// Both ends are saved and restored.
    Save,
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![
        0_u32..100,
        0_u32..20_000,
        Just(65_472),
        Just(65_473),
        0_u32..130_000
    ];
    let message = prop_oneof![0_u32..100, 0_u32..8192];
    prop_oneof![
        (any::<bool>(), message, 1_usize..5).prop_map(|(a, len, parts)| Step::Send(a, len, parts)),
        (any::<bool>(), len.clone(), 0_u32..200_000, 1_usize..5)
            .prop_map(|(a, len, to, parts)| Step::Write(a, len, to, parts)),
        (any::<bool>(), len, 0_u32..200_000).prop_map(|(a, len, from)| Step::Read(a, len, from)),
        (1_usize..100_000, 1_usize..70_000).prop_map(|(write, read)| Step::Carry(write, read)),
        Just(Step::Save),
    ]
}

fn frame_size() -> impl Strategy<Value = FrameSize> {
    prop_oneof![
        Just(FrameSize::Max),
        Just(FrameSize::Segment(1448)),
        (128_u16..5000).prop_map(FrameSize::Segment),
    ]
}

/// Bytes by which the pattern is told apart, and so many parts of them.
fn gather(end: &End, offset: u64, len: u32, parts: usize) -> Vec<linkspan_rdma::verbs::Slice> {
    let whole = end.slice(offset, len);
    let size = len / u32::try_from(parts).unwrap() + 1;
    (0..u32::try_from(parts).unwrap())
        .map(|at| whole.part(at * size, size))
        .collect()
}

fn model(end: &End) -> Vec<u8> {
    end.read(end.slice(0, u32::try_from(MEMORY).unwrap()))
}

fn run(steps: &[Step], frame: FrameSize, crc: bool, pieces: (usize, usize)) {
    let options = Options {
        frame,
        crc,
        depth: DEPTH,
        ..Options::default()
    };
    let mut pair = Pair::met(options);
    let half = MEMORY / 2;
    pair.a.write(0, &pattern(half, 1));
    pair.b.write(0, &pattern(half, 2));
    let both = Access {
        read: true,
        write: true,
    };
    let len = u32::try_from(half).unwrap();
    let mut places = [
        pair.b.expose(EXPOSED, len, both),
        pair.a.expose(EXPOSED, len, both),
    ];
    let mut messages: [Vec<Vec<u8>>; 2] = Default::default();
    let mut expected: [Vec<Vec<u8>>; 2] = Default::default();
    let mut posted = [0_usize; 2];
    let mut told = [0_usize; 2];
    for (id, step) in (0_u64..).zip(steps) {
        let settle = |pair: &mut Pair, messages: &mut [Vec<Vec<u8>>; 2], told: &mut [usize; 2]| {
            for (at, end) in [&mut pair.a, &mut pair.b].into_iter().enumerate() {
                for event in end.events() {
                    match event {
                        Event::Received(received) => {
                            let bytes = end.take(received);
                            messages[at].push(bytes);
                            end.connection.post_receives(1).unwrap();
                        }
                        Event::Completed(completion) => {
                            assert!(completion.done);
                            told[at] += 1;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        };
        match *step {
            Step::Save => {
                pair.run_in_pieces(pieces.0, pieces.1);
                settle(&mut pair, &mut messages, &mut told);
                // Exposures are made anew, and their tags are others.
                let ends = [&mut pair.b, &mut pair.a];
                for (place, end) in places.iter_mut().zip(ends) {
                    let key = place.key;
                    end.post(u64::MAX, Work::Invalidate { key }).unwrap();
                    end.transmit(usize::MAX);
                    assert_eq!(end.events().len(), 1);
                    end.save(options).unwrap();
                    *place = end.expose(EXPOSED, len, both);
                    assert_ne!(place.key, key);
                }
            }
            Step::Carry(write, read) => {
                let to_b = pair.a.transmit(write);
                let to_a = pair.b.transmit(write);
                to_b.chunks(read).for_each(|part| pair.b.receive(part));
                to_a.chunks(read).for_each(|part| pair.a.receive(part));
                settle(&mut pair, &mut messages, &mut told);
            }
            Step::Send(from_a, len, parts) => {
                let at = usize::from(!from_a);
                let end = if from_a { &mut pair.a } else { &mut pair.b };
                let list = gather(end, u64::from(len), len, parts);
                expected[1 - at].push(list.iter().flat_map(|slice| end.read(*slice)).collect());
                let work = Work::Send {
                    gather: &list,
                    invalidate: None,
                    solicited: false,
                };
                end.post(id, work).unwrap();
                posted[at] += 1;
            }
            Step::Write(from_a, len, to, parts) => {
                let at = usize::from(!from_a);
                let end = if from_a { &mut pair.a } else { &mut pair.b };
                let list = gather(end, u64::from(to), len, parts);
                let place = Remote {
                    address: places[at].address + u64::from(to),
                    ..places[at]
                };
                end.post(
                    id,
                    Work::Write {
                        gather: &list,
                        to: place,
                    },
                )
                .unwrap();
                posted[at] += 1;
            }
            Step::Read(from_a, len, from) => {
                let at = usize::from(!from_a);
                // What is written there may come before or after: so it is not compared
                // unless all is quiet, and the sink is the same place here.
                pair.run_in_pieces(pieces.0, pieces.1);
                let end = if from_a { &mut pair.a } else { &mut pair.b };
                let into = end.slice(EXPOSED + u64::from(from), len);
                let place = Remote {
                    address: places[at].address + u64::from(from),
                    ..places[at]
                };
                end.post(
                    id,
                    Work::Read {
                        into: &[into],
                        from: place,
                    },
                )
                .unwrap();
                posted[at] += 1;
                pair.run_in_pieces(pieces.0, pieces.1);
                settle(&mut pair, &mut messages, &mut told);
                let (mine, theirs) = (pair.a.read(into), pair.b.read(into));
                assert!(mine == theirs, "a read of {len} bytes at {from}");
            }
        }
    }
    pair.run_in_pieces(pieces.0, pieces.1);
    for (at, end) in [&mut pair.a, &mut pair.b].into_iter().enumerate() {
        for event in end.events() {
            match event {
                Event::Received(received) => {
                    let bytes = end.take(received);
                    messages[at].push(bytes);
                }
                Event::Completed(completion) => {
                    assert!(completion.done && completion.operation != Operation::Invalidate);
                    told[at] += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(end.connection.posted().1, 0);
        assert_eq!(end.pool.used().1, 0);
    }
    assert_eq!(told, posted);
    let lens = |all: &[Vec<Vec<u8>>; 2]| {
        all.clone()
            .map(|it| it.iter().map(Vec::len).collect::<Vec<_>>())
    };
    assert_eq!(lens(&messages), lens(&expected));
    assert!(messages == expected);
    check_writes(steps, &pair);
}

/// The last write to each place is what is there, where no read has changed it.
fn check_writes(steps: &[Step], pair: &Pair) {
    if steps.iter().any(|step| matches!(step, Step::Read(..))) {
        return;
    }
    for (from_a, source, target) in [(true, &pair.a, &pair.b), (false, &pair.b, &pair.a)] {
        let source = model(source);
        let mut expected = vec![0; MEMORY / 2];
        for step in steps {
            if let Step::Write(by_a, len, to, _) = step
                && *by_a == from_a
            {
                let range = *to as usize..(*to + *len) as usize;
                expected[range.clone()].copy_from_slice(&source[range]);
            }
        }
        assert!(model(target)[MEMORY / 2..] == expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_works_in_any_pieces(
        steps in proptest::collection::vec(step(), 1..20),
        frame in frame_size(),
        crc in any::<bool>(),
        pieces in (1_usize..200_000, 1_usize..70_000),
    ) {
        // No fewer than a few bytes at a time, or it takes for ever.
        run(&steps, frame, crc, (pieces.0.max(300), pieces.1.max(100)));
    }
}

/// A small conversation of all kinds, with every size of pieces.
#[test]
fn every_split_is_the_same() {
    let steps = [
        Step::Send(true, 100, 3),
        Step::Write(false, 150, 3, 2),
        Step::Send(false, 0, 1),
        Step::Read(true, 130, 3),
        Step::Write(true, 300, 7, 4),
        Step::Read(false, 77, 9),
        Step::Save,
        Step::Send(true, 7, 1),
        Step::Write(true, 100, 7, 2),
        Step::Send(false, 9, 1),
    ];
    for crc in [false, true] {
        for piece in (1..30).chain([31, 47, 64, 100, 128, 139]) {
            run(&steps, FrameSize::Segment(128), crc, (piece, piece));
            run(&steps, FrameSize::Max, crc, (usize::MAX, piece));
        }
    }
}
