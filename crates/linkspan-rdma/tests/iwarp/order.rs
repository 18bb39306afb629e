//! Order and fairness: what upper layers rely on.

use linkspan_rdma::iwarp::{FrameSize, Options};
use linkspan_rdma::verbs::{Access, Event, Operation, Work};

use super::pair::{DEPTH, Pair, done, pattern};

fn options() -> Options {
    Options {
        depth: DEPTH,
        inbound_max: 4,
        ..Options::default()
    }
}

/// Facts 2.8: the message that follows writes finds their bytes.
#[test]
fn a_message_after_writes_arrives_after_their_bytes() {
    let mut pair = Pair::established(options());
    let to = pair.b.expose(0, 300_000, Access::WRITE);
    let data = pattern(300_000, 5);
    pair.a.write(0, &data);
    let slice = pair.a.slice(0, 300_000);
    let gather = [
        slice.part(0, 7),
        slice.part(7, 100_000),
        slice.part(100_007, 300_000),
    ];
    pair.a
        .post(
            1,
            Work::Write {
                gather: &gather,
                to,
            },
        )
        .unwrap();
    let message = [slice.part(0, 3)];
    let work = Work::Send {
        gather: &message,
        invalidate: Some(to.key),
        solicited: true,
    };
    pair.a.post(2, work).unwrap();
    let mut seen = false;
    while !seen {
        let bytes = pair.a.transmit(999);
        assert!(!bytes.is_empty());
        pair.b.receive(&bytes);
        for event in pair.b.events() {
            let Event::Received(received) = event else {
                panic!("{event:?}");
            };
            assert_eq!(received.invalidated, Some(to.key));
            assert!(received.solicited);
            assert!(pair.b.read(slice) == data);
            pair.b.take(received);
            seen = true;
        }
    }
    assert_eq!(
        pair.a.events(),
        [done(1, Operation::Write), done(2, Operation::Send)]
    );
}

#[test]
fn reads_beyond_the_depth_wait_and_all_are_done_in_order() {
    let mut pair = Pair::established(options());
    let data = pattern(100_000, 8);
    pair.b.write(0, &data);
    let from = pair.b.expose(0, 100_000, Access::READ);
    for id in 0..20 {
        let into = pair.a.slice(id * 5000, 5000);
        let mut place = from;
        place.address += id * 5000;
        let work = Work::Read {
            into: &[into.part(0, 100), into.part(100, 5000)],
            from: place,
        };
        pair.a.post(id, work).unwrap();
    }
    pair.run_in_pieces(777, 333);
    let expected: Vec<Event> = (0..20).map(|id| done(id, Operation::Read)).collect();
    assert_eq!(pair.a.events(), expected);
    assert!(pair.a.read(pair.a.slice(0, 100_000)) == data);
}

/// A queue of long messages does not hold up responses, nor do responses hold it up.
#[test]
fn responses_and_messages_take_turns() {
    let frame = FrameSize::Segment(1448);
    let mut pair = Pair::established(Options { frame, ..options() });
    let from = pair.b.expose(0, 1 << 20, Access::READ);
    for id in 0..4 {
        let into = pair.a.slice(id * 20_000, 20_000);
        pair.a
            .post(
                id,
                Work::Read {
                    into: &[into],
                    from,
                },
            )
            .unwrap();
    }
    let requests = pair.a.transmit(usize::MAX);
    for id in 10..50 {
        pair.b.send(id, pair.b.slice(0, 8000)).unwrap();
    }
    pair.b.receive(&requests);
    let mut order = Vec::new();
    loop {
        let bytes = pair.b.transmit(1448);
        if bytes.is_empty() {
            break;
        }
        pair.a.receive(&bytes);
        for event in pair.a.events() {
            match event {
                Event::Received(received) => {
                    pair.a.take(received);
                    order.push('m');
                }
                Event::Completed(_) => order.push('r'),
                other => panic!("{other:?}"),
            }
        }
    }
    let order: String = order.into_iter().collect();
    assert!(
        order.starts_with("mrmrmrmr") || order.starts_with("rmrmrmrm"),
        "{order}"
    );
    assert_eq!(order.len(), 44);
}

/// An exposure that ends here is told when nothing of it is under way any more.
#[test]
fn an_invalidation_is_done_when_what_was_framed_before_is_written() {
    let mut pair = Pair::established(options());
    let exposed = pair.a.expose(0, 1000, Access::READ);
    let gather = [pair.a.slice(0, 1000)];
    let to = pair.b.expose(0, 1000, Access::WRITE);
    pair.a
        .post(
            1,
            Work::Write {
                gather: &gather,
                to,
            },
        )
        .unwrap();
    let key = exposed.key;
    pair.a.post(2, Work::Invalidate { key }).unwrap();
    pair.a.transmit(500);
    assert_eq!(pair.a.events(), []);
    assert_eq!(pair.a.connection.posted().0, 0);
    pair.a.transmit(520);
    assert_eq!(
        pair.a.events(),
        [done(1, Operation::Write), done(2, Operation::Invalidate)]
    );
    // With nothing under way it is done at once.
    let key = pair.a.expose(0, 1000, Access::READ).key;
    pair.a.post(3, Work::Invalidate { key }).unwrap();
    assert_eq!(pair.a.transmit(usize::MAX), b"");
    assert_eq!(pair.a.events(), [done(3, Operation::Invalidate)]);
}

#[test]
fn empty_works_are_works() {
    let mut pair = Pair::established(options());
    let to = pair.b.expose(
        0,
        10,
        Access {
            read: true,
            write: true,
        },
    );
    let empty = [pair.a.slice(5, 0); 2];
    pair.a.post(1, Work::Write { gather: &empty, to }).unwrap();
    pair.a
        .post(
            2,
            Work::Read {
                into: &empty,
                from: to,
            },
        )
        .unwrap();
    let some = [pair.a.slice(5, 0), pair.a.slice(9, 1), pair.a.slice(5, 0)];
    pair.a.write(9, b"!");
    for (id, gather) in [(3, &empty[..]), (4, &some[..]), (5, &empty[..0])] {
        let work = Work::Send {
            gather,
            invalidate: None,
            solicited: false,
        };
        pair.a.post(id, work).unwrap();
    }
    pair.run();
    assert_eq!(pair.b.messages(), [&b""[..], b"!", b""]);
    let mut ids: Vec<u64> = pair
        .a
        .events()
        .iter()
        .map(|event| match event {
            Event::Completed(completion) if completion.done => completion.id,
            other => panic!("{other:?}"),
        })
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3, 4, 5]);
    assert_eq!(pair.a.connection.posted().1, 0);
}
