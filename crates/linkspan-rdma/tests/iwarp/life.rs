//! The end of a connection: all that was posted comes back, once, whatever happens.

use std::collections::BTreeMap;
use std::time::Duration;

use linkspan_rdma::iwarp::{Life, Options, WireError};
use linkspan_rdma::verbs::{Access, Event, Failure, Key, Operation, Post, PostError, Remote, Work};

use super::pair::{DEPTH, End, Pair, done, end_of, pattern, undone};
use super::script;

fn options() -> Options {
    Options {
        depth: DEPTH,
        inbound_max: 4,
        ..Options::default()
    }
}

/// Works of every kind under way, and the stream cut after any number of bytes.
#[test]
fn a_connection_lost_at_any_byte_gives_everything_back_once() {
    for crc in [false, true] {
        let mut cut = 0;
        while lost_after(cut, crc) {
            cut += if cut < 400 { 1 } else { 997 };
        }
        assert!(cut > 10_000, "{cut}");
    }
}

/// Says whether the stream went on for so long.
fn lost_after(cut: usize, crc: bool) -> bool {
    let mut pair = Pair::established(Options { crc, ..options() });
    pair.a.write(0, &pattern(20_000, 1));
    let theirs = pair.b.expose(
        0,
        50_000,
        Access {
            read: true,
            write: true,
        },
    );
    let ours = pair.a.expose(100_000, 100, Access::WRITE);
    let all = pair.a.slice(0, 10_000);
    let part = pair.a.slice(0, 3000);
    // What is being sent stays as it is.
    let read = Remote {
        address: theirs.address + 30_000,
        ..theirs
    };
    let sink = pair.a.slice(200_000, 3000);
    pair.a
        .post(
            1,
            Work::Write {
                gather: &[all],
                to: theirs,
            },
        )
        .unwrap();
    pair.a.send(2, part).unwrap();
    for id in 3..9 {
        // More than may be under way.
        pair.a
            .post(
                id,
                Work::Read {
                    into: &[sink],
                    from: read,
                },
            )
            .unwrap();
    }
    pair.a.send(9, part).unwrap();
    pair.a.post(10, Work::Invalidate { key: ours.key }).unwrap();
    pair.b.send(11, pair.b.slice(200_000, 2000)).unwrap();
    let mut left = cut;
    loop {
        let to_b = pair.a.transmit(1000);
        let to_a = pair.b.transmit(1000);
        if to_a.is_empty() && to_b.is_empty() {
            break;
        }
        let len = left.min(to_b.len());
        left -= len;
        pair.b.receive(&to_b[..len]);
        if left == 0 {
            break;
        }
        pair.a.receive(&to_a);
    }
    let went_on = left == 0;
    let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
    for end in [&mut pair.a, &mut pair.b] {
        end.connection.lost();
        end.batch.clear();
        end.receive(b"");
        let events = end.events();
        assert_eq!(end_of(&events), Failure::Lost);
        for event in events {
            match event {
                Event::Completed(completion) => *seen.entry(completion.id).or_default() += 1,
                Event::Received(received) => {
                    end.take(received);
                }
                _ => {}
            }
        }
        assert_eq!(end.connection.posted(), (0, 0, 0));
        assert_eq!(end.pool.used().1, 0, "all buffers are back");
        assert_eq!(end.connection.life(), Life::Over);
        assert_eq!(end.connection.poll(), None);
        let post = end.send(99, end.slice(0, 1));
        assert_eq!(post, Err(PostError::NotConnected));
        let posted = end.connection.post_receives(1);
        assert_eq!(posted, Err(PostError::NotConnected));
    }
    let expected: BTreeMap<u64, usize> = (1..12).map(|id| (id, 1)).collect();
    assert_eq!(seen, expected, "cut after {cut} bytes");
    went_on
}

#[test]
fn what_succeeds_silently_is_told_when_it_fails() {
    for fails in [false, true] {
        let mut pair = Pair::established(options());
        for id in [1, 2] {
            let gather = [pair.a.slice(0, 4)];
            let work = Work::Send {
                gather: &gather,
                invalidate: None,
                solicited: false,
            };
            let post = Post {
                id,
                signalled: id == 2,
                work,
            };
            pair.a.connection.post(&post).unwrap();
        }
        if fails {
            pair.a.connection.lost();
            let events = pair.a.events();
            let expected = [undone(1, Operation::Send), undone(2, Operation::Send)];
            assert_eq!(events[..2], expected);
        } else {
            pair.run();
            assert_eq!(pair.a.events(), [done(2, Operation::Send)]);
        }
    }
}

#[test]
fn a_disconnect_between_messages_is_an_orderly_end_for_both() {
    let mut pair = Pair::established(options());
    pair.a.connection.disconnect();
    pair.a.transmit(usize::MAX);
    assert_eq!(pair.a.events(), [Event::Ended(Failure::Disconnected)]);
    assert_eq!(pair.a.connection.life(), Life::ShutDown);
    pair.b.connection.receive_end();
    assert_eq!(pair.b.events(), [Event::Ended(Failure::Closed)]);
    assert_eq!(pair.b.connection.life(), Life::Over);
    pair.a.connection.receive_end();
    assert_eq!(pair.a.connection.life(), Life::Over);
}

#[test]
fn a_stream_that_ends_inside_of_anything_is_truncated() {
    let send = script::frame(
        &script::untagged(script::SEND_MORE, 0, [0, 1, 0], &[1; 100]),
        false,
    );
    for len in 1..=send.len() {
        let mut end = script::responder(options());
        end.receive(&send[..len]);
        end.connection.receive_end();
        end.receive(b"");
        let events = end.events();
        assert_eq!(
            end_of(&events),
            Failure::Wire(WireError::Truncated),
            "{len}"
        );
        assert_eq!(end.pool.used().1, 0);
    }
}

/// What was begun is finished, what was not is cut, and then comes the reason.
#[test]
fn a_terminate_message_is_framed_whatever_is_half_written() {
    for written in [0, 1, 30, 5000, 70_000] {
        let mut end = script::responder(options());
        end.receive(&script::frame(
            &script::untagged(script::SEND, 0, [0, 1, 0], b""),
            false,
        ));
        end.messages();
        let slice = end.slice(0, 100_000);
        end.post(
            1,
            Work::Write {
                gather: &[slice],
                to: Remote {
                    key: Key(5),
                    address: 0,
                },
            },
        )
        .unwrap();
        end.send(2, end.slice(0, 100)).unwrap();
        let mut bytes = end.transmit(written);
        end.receive(&script::frame(
            &script::untagged(0x414F, 0, [0, 2, 0], b""),
            false,
        ));
        assert_eq!(end.connection.life(), Life::Open);
        bytes.extend(end.transmit(usize::MAX));
        assert_eq!(script::terminate_in(&bytes), Some((0, 2, 6)), "{written}");
        let events = end.events();
        assert!(matches!(
            end_of(&events),
            Failure::Wire(WireError::Opcode { got: 15 })
        ));
        // Of the write the last frame is begun, or it is cut off.
        let first = match written > 65_536 {
            true => done(1, Operation::Write),
            false => undone(1, Operation::Write),
        };
        let back: Vec<_> = completions(&events);
        assert_eq!(back, [first, undone(2, Operation::Send)], "{written}");
        assert_eq!(end.connection.life(), Life::ShutDown);
    }
}

fn completions(events: &[Event]) -> Vec<Event> {
    let events = events.iter();
    let back = events.filter(|it| matches!(it, Event::Completed(_)));
    back.cloned().collect()
}

/// Ours: a terminate message took the number of the first frame that was cut off for it, and
/// the work of that frame was told to be done.
#[test]
fn work_that_was_cut_off_is_told_to_be_undone() {
    for written in [0, 1, 1000, 1050] {
        let mut end = script::responder(options());
        end.receive(&script::frame(
            &script::untagged(script::SEND, 0, [0, 1, 0], b""),
            false,
        ));
        end.messages();
        // Framed when they are posted, 1024 bytes each.
        for id in [1, 3, 5] {
            end.send(id, end.slice(0, 1000)).unwrap();
        }
        let mut bytes = end.transmit(written);
        end.receive(&script::frame(
            &script::untagged(0x414F, 0, [0, 2, 0], b""),
            false,
        ));
        bytes.extend(end.transmit(usize::MAX));
        let sends = bytes.len() / 1024;
        assert_eq!(sends, written.div_ceil(1024), "{written}");
        assert_eq!(script::terminate_in(&bytes), Some((0, 2, 6)), "{written}");
        let expected = [1, 3, 5].map(|id| match id < 2 * sends {
            true => done(id as u64, Operation::Send),
            false => undone(id as u64, Operation::Send),
        });
        assert_eq!(completions(&end.events()), expected, "{written}");
    }
}

#[test]
fn a_peer_that_takes_nothing_does_not_hold_up_the_end() {
    let mut pair = Pair::established(options());
    pair.a.send(1, pair.a.slice(0, 1000)).unwrap();
    pair.a.transmit(100);
    pair.a.connection.disconnect();
    pair.a.transmit(0);
    assert_eq!(pair.a.events(), [], "a frame is half written");
    let due = pair.a.connection.next_timeout().unwrap();
    pair.a.connection.tick(due);
    assert_eq!(
        pair.a.events(),
        [
            undone(1, Operation::Send),
            Event::Ended(Failure::Disconnected)
        ]
    );
    assert_eq!(pair.a.connection.life(), Life::Over);
}

#[test]
fn nobody_waits_for_ever_for_the_last_bytes() {
    let mut pair = Pair::established(options());
    pair.a.connection.disconnect();
    pair.a.transmit(usize::MAX);
    let due = pair.a.connection.next_timeout().unwrap();
    pair.a.connection.tick(due);
    assert_eq!(pair.a.connection.life(), Life::Over);
}

#[test]
fn the_first_cause_is_kept() {
    let mut pair = Pair::established(options());
    pair.a.receive(&[0; 4]);
    pair.a.connection.disconnect();
    pair.a.connection.memory_lost();
    pair.a.transmit(usize::MAX);
    pair.a.connection.lost();
    let events = pair.a.events();
    assert!(matches!(
        end_of(&events),
        Failure::Wire(WireError::DdpVersion { .. })
    ));
}

#[test]
fn limits_are_those_that_are_told() {
    let mut options = options();
    options.limits.works = 3;
    options.limits.receives = 200;
    options.limits.gather = 2;
    options.limits.read_into = 1;
    options.limits.work_bytes = 1000;
    options.limits.exposures = 1;
    options.limits.exposure_slices = 2;
    options.limits.exposure_bytes = 500;
    let mut pair = Pair::established(options);
    let a = &mut pair.a;
    let slice = a.slice(0, 10);
    let remote = Remote {
        key: Key(1),
        address: 0,
    };
    let elements = |got, max| Err(PostError::Elements { got, max });
    let many = [slice; 3];
    let send = |gather| Work::Send {
        gather,
        invalidate: None,
        solicited: false,
    };
    assert_eq!(a.post(1, send(&many)), elements(3, 2));
    let write = Work::Write {
        gather: &many,
        to: remote,
    };
    assert_eq!(a.post(1, write), elements(3, 2));
    let read = Work::Read {
        into: &many[..2],
        from: remote,
    };
    assert_eq!(a.post(1, read), elements(2, 1));
    let long = [a.slice(0, 600); 2];
    let too_long = PostError::Bytes {
        got: 1200,
        max: 1000,
    };
    assert_eq!(a.post(1, send(&long)), Err(too_long));
    let access = Access::READ;
    let too_long = PostError::Bytes { got: 600, max: 500 };
    assert_eq!(a.connection.expose(&long[..1], access), Err(too_long));
    let exposed = a.connection.expose(&many, access);
    assert_eq!(exposed.err(), elements(3, 2).err());
    let key = a.connection.expose(&many[..2], access).unwrap().key;
    let full = a.connection.expose(&many[..1], access);
    assert_eq!(full, Err(PostError::Full { max: 1 }));
    assert_eq!(
        a.connection.post_receives(101),
        Err(PostError::Full { max: 200 })
    );
    let unknown = Key(key.0 ^ 1);
    let work = Work::Invalidate { key: unknown };
    assert_eq!(a.post(1, work), Err(PostError::Key { key: unknown }));
    for id in 0..3 {
        a.send(id, slice).unwrap();
    }
    assert_eq!(a.send(3, slice), Err(PostError::Full { max: 3 }));
    pair.run();
    assert_eq!(pair.a.events().len(), 3);
    assert_eq!(pair.a.connection.posted().1, 0);
}

#[test]
fn reads_are_refused_where_the_peer_answers_none() {
    let mut pair = Pair::new(options(), options());
    pair.run();
    let none = linkspan_rdma::verbs::Depth {
        inbound: 0,
        outbound: 0,
    };
    pair.b.connection.accept(b"", none).unwrap();
    pair.run();
    // The initiator wants some, so some are answered.
    assert_eq!(pair.b.connection.depth().inbound, 4);
    let into = [pair.b.slice(0, 1)];
    let from = Remote {
        key: Key(1),
        address: 0,
    };
    let read = Work::Read { into: &into, from };
    assert_eq!(pair.b.post(1, read), Err(PostError::NoReads));
}

/// A frame that waits for a buffer costs nothing but itself, and goes on when one is back.
#[test]
fn messages_wait_for_buffers_that_others_hold() {
    let mut options = options();
    options.limits.receive_size = 40_000;
    let mut pair = Pair::established(options);
    // A slab is one buffer.
    pair.b.pool = linkspan_rdma::Pool::new(40_000, 0);
    for id in 0..3 {
        pair.a.write(0, &pattern(100, u8::try_from(id).unwrap()));
        pair.a.send(id, pair.a.slice(0, 100)).unwrap();
        let bytes = pair.a.transmit(usize::MAX);
        pair.b.receive(&bytes);
    }
    for seed in 0..3 {
        let events = pair.b.events();
        let [Event::Received(received)] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(pair.b.take(*received), pattern(100, seed));
        pair.b.receive(b"");
    }
}

#[test]
fn time_may_stand_still() {
    let mut end = End::responder(options());
    end.connection.tick(Duration::ZERO);
    end.connection.tick(Duration::ZERO);
    assert_eq!(end.events(), []);
}
