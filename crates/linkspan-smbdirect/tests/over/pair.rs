//! What two ends do with each other.

use linkspan_rdma::local::Packet;
use linkspan_rdma::verbs::{Access, Depth, Failure, Greeting, Key, Limits, Operation};
use linkspan_smbdirect::{Error, MessageId, News, Options, Refusal, Role, State};

use linkspan_sim::smbdirect::ends::{LIMITS, Pair, Side};

#[test]
fn messages_go_both_ways_and_come_back_whole() {
    let mut pair = Pair::connected();
    let pattern: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    for at in [0, 1] {
        let side = &mut pair.sides[at];
        let [head, data] = [side.slice(0, 100), side.slice(4096, 99_900)];
        side.write(head, &pattern[..100]);
        side.write(data, &pattern[100..]);
        let message = side.send(&[head, data]);
        assert_eq!(message, MessageId(0));
    }
    let mut received = [Vec::new(), Vec::new()];
    while received.iter().any(|bytes| bytes.len() < pattern.len()) {
        pair.settle();
        for (side, bytes) in pair.sides.iter_mut().zip(&mut received) {
            bytes.extend(side.read());
        }
    }
    pair.settle();
    assert_eq!(received, [pattern.clone(), pattern]);
    for side in &pair.sides {
        let sent = News::Sent {
            message: MessageId(0),
            result: Ok(()),
        };
        assert!(side.news.contains(&sent));
        assert_eq!(side.end.lent(), 0);
        assert!(side.driver.core().message().is_none());
    }
}

/// Ours: each connection kept its area until it ended, outside of every budget.
#[test]
fn the_area_of_reassembly_is_there_while_a_message_needs_it() {
    let few = Options {
        receive_credit_max: 10,
        ..Options::listener()
    };
    let mut pair = Pair::new([&Options::initiator(), &few], LIMITS).unwrap();
    pair.settle();
    for _ in 0..2 {
        let from = pair.sides[0].slice(0, 100_000);
        pair.sides[0].write(from, &[9; 100_000]);
        pair.sides[0].send(&[from]);
        pair.settle();
        let driver = &pair.sides[1].driver;
        assert!(driver.core().status().kept_bytes > 0);
        assert_eq!(driver.area_len(), 173_910);
        assert_eq!(pair.sides[1].read(), [9; 100_000]);
        pair.settle();
        assert_eq!(pair.sides[1].driver.area_len(), 0);
    }
}

/// Fault 21 (CVE-2026-23093): memory in several pieces is given back with a wrong count.
#[test]
fn memory_is_written_and_read_and_given_back() {
    let mut pair = Pair::connected();
    let there = [
        pair.sides[0].slice(0, 3000),
        pair.sides[0].slice(8192, 5000),
    ];
    let (written, place) = pair.sides[0].register(&there, Access::WRITE).unwrap();
    let from = pair.sides[1].slice(0, 8000);
    pair.sides[1].write(from, &[7; 8000]);
    let core = pair.sides[1].driver.core_mut();
    core.write(&[from], &[place], 0).unwrap();
    let last = core.send(&[from.part(0, 50)], Some(Key(place.token)));
    pair.settle();
    assert_eq!(pair.sides[0].bytes(there[1]), [7; 5000]);
    assert_eq!(pair.sides[0].read(), [7; 50]);
    pair.sides[0].driver.core_mut().deregister(written).unwrap();
    let (readable, place) = pair.sides[0].register(&there, Access::READ).unwrap();
    let into = pair.sides[1].slice(100_000, 8000);
    let core = pair.sides[1].driver.core_mut();
    core.read(&[into], &[place], 0).unwrap();
    pair.settle();
    assert_eq!(pair.sides[1].bytes(into), [7; 8000]);
    pair.sides[0]
        .driver
        .core_mut()
        .deregister(readable)
        .unwrap();
    pair.settle();
    let message = last.unwrap();
    let sent = News::Sent {
        message,
        result: Ok(()),
    };
    assert!(pair.sides[1].news.contains(&sent));
    let status = pair.sides[0].driver.core().status();
    assert_eq!(status.registrations[0], 64);
}

#[test]
fn the_end_is_told_to_both() {
    let mut pair = Pair::connected();
    pair.sides[0].driver.core_mut().disconnect();
    pair.settle();
    assert_eq!(pair.sides[0].news, [News::Ended(Error::Disconnected)]);
    assert_eq!(pair.sides[1].news, [News::Ended(Error::Lost)]);
    assert_eq!(pair.sides[1].driver.failure(), Some(Failure::Closed));
    for side in &pair.sides {
        assert_eq!(side.driver.core().state(), State::Disconnected);
    }
}

#[test]
fn depths_are_those_of_both() {
    let (mut asks, answers) = (Options::initiator(), Options::listener());
    asks.outbound_reads = 100;
    let mut pair = Pair::new([&asks, &answers], LIMITS).unwrap();
    pair.settle();
    let sides = pair.sides.each_ref();
    let reads = sides.map(|side| side.driver.core().status().outbound_reads);
    assert_eq!(reads, [1, 8]);
}

#[test]
fn two_idle_ends_ask_each_other_for_ever_and_nothing_else() {
    let mut pair = Pair::connected();
    let before = pair
        .sides
        .each_ref()
        .map(|side| side.driver.core().status());
    for _ in 0..10 {
        pair.wait();
    }
    for (side, before) in pair.sides.iter().zip(before) {
        let traffic = side.driver.core().status().traffic;
        // A question and an answer each time, since both ask at once.
        assert_eq!(traffic.sends - before.traffic.sends, 20, "{traffic:?}");
        assert_eq!(side.driver.core().state(), State::Connected);
    }
}

#[test]
fn a_token_of_an_earlier_connection_is_nothing_on_the_next() {
    let mut pair = Pair::connected();
    let there = [pair.sides[0].slice(0, 100)];
    let (id, place) = pair.sides[0].register(&there, Access::WRITE).unwrap();
    for side in &mut pair.sides {
        side.end.lose();
    }
    pair.settle();
    let result = Err(Refusal::Ended(Error::Lost));
    let told = News::Deregistered { id, result };
    assert!(pair.sides[0].news.contains(&told));
    let mut pair = Pair::connected();
    let local = pair.sides[1].slice(0, 100);
    let core = pair.sides[1].driver.core_mut();
    core.write(&[local], &[place], 0).unwrap();
    pair.settle();
    let refused = Some(Failure::Refused {
        operation: Operation::Write,
        why: linkspan_rdma::verbs::Refusal::Key {
            key: Key(place.token),
        },
    });
    assert_eq!(pair.sides[0].driver.failure(), refused);
    assert_eq!(pair.sides[0].bytes(there[0]), [0; 100]);
    let state = pair.sides[1].driver.core().state();
    assert_eq!(state, State::Disconnected);
}

/// What a listener answers to an initiator with this private data, whose set-up offers two
/// reads each way.
fn answer(private_data: &[u8]) -> Option<(Depth, Vec<u8>)> {
    let depth = Depth {
        inbound: 2,
        outbound: 2,
    };
    let options = Options::listener();
    let mut side = Side::new(Role::Listener, &options, LIMITS, 0).unwrap();
    side.end.deliver(Packet::Request(Greeting {
        private_data: private_data.to_vec(),
        depth,
    }));
    side.turn(0);
    match side.end.take()? {
        Packet::Accept(greeting) => Some((greeting.depth, greeting.private_data)),
        Packet::Reject(_) => None,
        other => panic!("{other:?}"),
    }
}

/// Fault 19 (ef71f1e0, fad988a2): depths in the wrong byte order, or cut to 8 bits.
#[test]
fn a_peer_of_old_is_answered_in_its_private_data() {
    // Nothing, or what the set-up says: it is as in the set-up.
    let agreed = Depth {
        inbound: 1,
        outbound: 2,
    };
    assert_eq!(answer(b""), Some((agreed, Vec::new())));
    assert_eq!(answer(b"\0\0\0\x02\0\0\0\x02"), Some((agreed, Vec::new())));
    assert_eq!(answer(b"\x02\0\0\0\x02\0\0\0"), Some((agreed, Vec::new())));
    // Others: what both can, in the terms of who asked.
    let (depth, header) = answer(b"\0\0\0\x01\0\0\0\x20").unwrap();
    assert_eq!(
        (depth.outbound, &header[..]),
        (1, &b"\0\0\0\x01\0\0\0\x01"[..])
    );
    assert_eq!(answer(b"\0\0\0\0\0\0\0\0"), None);
}

/// Fault 28 (8d4312f8e): once messages were built of an iterator over pages, they were longer than
/// what Windows receives, or not whole, and it reset the connection in a benchmark of files.
#[test]
fn messages_of_pages_are_cut_by_what_the_peer_receives_and_reset_no_connection() {
    const PAGE: u32 = 4096;
    // A peer of old, Linux, and Windows, which receives more than it is sent.
    for (receive, send) in [(512, 8192), (1364, 8192), (8192, 1364)] {
        let ours = Options {
            max_send_size: send,
            max_receive_size: 8192,
            ..Options::initiator()
        };
        let theirs = Options {
            max_receive_size: receive,
            ..Options::listener()
        };
        // A receive is no longer than that, as a device has it.
        let device = Limits {
            receive_size: receive,
            ..LIMITS
        };
        let mut pair = Pair {
            sides: [
                Side::new(Role::Initiator, &ours, LIMITS, 0).unwrap(),
                Side::new(Role::Listener, &theirs, device, 0).unwrap(),
            ],
            now: 0,
        };
        pair.settle();
        let all = pair.sides[0].slice(0, 8 * PAGE);
        let bytes: Vec<u8> = (0..8 * PAGE)
            .map(|at| (at % 251).to_le_bytes()[0])
            .collect();
        pair.sides[0].write(all, &bytes);
        let segment = receive.min(send) - 24;
        let edges =
            (1..5).flat_map(|count| [count * segment - 1, count * segment, count * segment + 1]);
        for len in edges.chain([1, PAGE, 5 * PAGE + 7]) {
            // The rest of a page, whole pages, and a part of the last one.
            let mut list = vec![all.part(3000, len.min(PAGE - 3000))];
            let mut at = PAGE;
            while at < 3000 + len {
                list.push(all.part(at, PAGE.min(3000 + len - at)));
                at += PAGE;
            }
            let message = pair.sides[0].send(&list);
            let mut received = Vec::new();
            while received.len() < len as usize {
                let before = received.len();
                pair.settle();
                received.extend(pair.sides[1].read());
                assert!(
                    received.len() > before,
                    "{len} bytes: no more than {before} come"
                );
            }
            pair.settle();
            assert!(
                received == bytes[3000..3000 + len as usize],
                "{len} bytes to {receive}"
            );
            let result = Ok(());
            assert!(pair.sides[0].news.contains(&News::Sent { message, result }));
            for side in &pair.sides {
                assert_eq!(side.driver.core().state(), State::Connected);
            }
        }
    }
}
