//! What a peer may reach, and what it may not: every check of a place, and what the peer
//! is told.

use linkspan_rdma::iwarp::{Opcode, WireError};
use linkspan_rdma::verbs::{Access, Event, Failure, Key, Operation, Refusal, Remote, Slice, Work};

use super::checks::{BASE, ended, no, options, refused, responder, wire};
use super::pair::{End, end_of};
use super::script::{self, SEND, SEND_INVALIDATE, WRITE, frame, read_request, tagged, untagged};

/// Facts 4, fault 22: what was invalidated, by whom ever, is reached no more.
#[test]
fn exposure_that_has_ended() {
    for by_peer in [true, false] {
        for write in [true, false] {
            let mut end = responder();
            let both = Access {
                read: true,
                write: true,
            };
            let Remote { key, address } = end.expose(0, 100, both);
            let mut number = 1;
            if by_peer {
                let message = untagged(SEND_INVALIDATE, key.0, [0, number, 0], b"");
                end.receive(&frame(&message, false));
                let events = end.events();
                let [Event::Received(received)] = &events[..] else {
                    panic!("{events:?}");
                };
                assert_eq!(received.invalidated, Some(key));
                end.pool.put(received.buffer);
                number += 1;
            } else {
                // A responder speaks second.
                end.receive(&frame(&untagged(SEND, 0, [0, number, 0], b""), false));
                end.messages();
                end.post(1, Work::Invalidate { key }).unwrap();
                end.transmit(usize::MAX);
                number += 1;
            }
            let refusal = Refusal::Key { key };
            let (frame, failure, told) = if write {
                let frame = tagged(WRITE, key.0, address, b"x");
                (frame, no(Operation::Write, refusal), (1, 1, 0))
            } else {
                let frame = read_request(1, 5, 1, key.0, address);
                (frame, no(Operation::Read, refusal), (0, 1, 0))
            };
            assert_eq!(refused(&mut end, &[frame]), (failure, Some(told)));
            assert!(number > 1);
        }
    }
}

#[test]
fn steering_tags_are_bound_to_one_connection() {
    let mut one = responder();
    let Remote { key, address } = one.expose(0, 100, Access::WRITE);
    let mut other = End::initiator(options());
    other.transmit(usize::MAX);
    other.receive(&script::reply());
    let theirs = other.expose(0, 100, Access::WRITE);
    assert_ne!(theirs.key, key);
    let failure = no(Operation::Write, Refusal::Key { key });
    let frame = tagged(WRITE, key.0, address, b"x");
    assert_eq!(refused(&mut other, &[frame]), (failure, Some((1, 1, 0))));
}

#[test]
fn every_check_of_a_write() {
    let mut end = responder();
    let readable = end.expose(0, 100, Access::READ);
    let key = readable.key;
    let frame = tagged(WRITE, key.0, BASE, b"x");
    let failure = no(Operation::Write, Refusal::Access { key });
    assert_eq!(refused(&mut end, &[frame]), (failure, Some((0, 1, 2))));
    for (address, len) in [
        (BASE - 1, 1),
        (BASE, 101),
        (BASE + 100, 1),
        (BASE + 99, 2),
        (0, 1),
        (u64::MAX - 1, 1),
    ] {
        let mut end = responder();
        let key = end.expose(0, 100, Access::WRITE).key;
        let frame = tagged(WRITE, key.0, address, &vec![1; len as usize]);
        let why = Refusal::Bounds { key, address, len };
        let failure = no(Operation::Write, why);
        assert_eq!(refused(&mut end, &[frame]), (failure, Some((1, 1, 1))));
        assert_eq!(end.read(end.slice(0, 200)), [0; 200]);
    }
    let mut end = responder();
    let key = end.expose(0, 100, Access::WRITE).key;
    let (address, len) = (u64::MAX, 2);
    let frame = tagged(WRITE, key.0, address, &[1; 2]);
    let failure = no(Operation::Write, Refusal::Wrap { address, len });
    assert_eq!(refused(&mut end, &[frame]), (failure, Some((1, 1, 3))));
}

#[test]
fn every_check_of_a_read_request() {
    let told = |code| Some((0, 1, code));
    let mut end = responder();
    let key = end.expose(0, 100, Access::WRITE).key;
    let failure = no(Operation::Read, Refusal::Access { key });
    let request = read_request(1, 5, 1, key.0, BASE);
    assert_eq!(refused(&mut end, &[request]), (failure, told(2)));
    for (address, len) in [(BASE - 1, 1), (BASE, 101), (BASE + 100, 1), (0, u32::MAX)] {
        let mut end = responder();
        let key = end.expose(0, 100, Access::READ).key;
        let why = Refusal::Bounds { key, address, len };
        let request = read_request(1, 5, len, key.0, address);
        assert_eq!(
            refused(&mut end, &[request]),
            (no(Operation::Read, why), told(1))
        );
    }
    let mut end = responder();
    let key = end.expose(0, 100, Access::READ).key;
    let why = Refusal::Wrap {
        address: u64::MAX,
        len: 2,
    };
    let request = read_request(1, 5, 2, key.0, u64::MAX);
    assert_eq!(
        refused(&mut end, &[request]),
        (no(Operation::Read, why), told(4))
    );
    let key = Key(0);
    let failure = no(Operation::Read, Refusal::Key { key });
    let request = read_request(1, 5, 2, 0, BASE);
    assert_eq!(refused(&mut responder(), &[request]), (failure, told(0)));
    let mut more = read_request(1, 5, 0, 0, 0);
    more[0] &= !0x40;
    let opcode = Opcode::ReadRequest;
    let failure = wire(WireError::Segmented { opcode });
    assert_eq!(
        refused(&mut responder(), &[more]),
        (failure, Some((1, 2, 5)))
    );
}

/// Facts 4, fault 18, from the other end.
#[test]
fn more_reads_at_a_time_than_were_agreed_upon() {
    let mut end = responder();
    let key = end.expose(0, 100, Access::READ).key;
    // The script asked for 16, and 4 are possible.
    assert_eq!(end.connection.depth().inbound, 4);
    let requests: Vec<Vec<u8>> = (1..6)
        .map(|number| read_request(number, 5, 10, key.0, BASE))
        .collect();
    let why = Refusal::TooManyReads { max: 4 };
    let failure = no(Operation::Read, why);
    assert_eq!(refused(&mut end, &requests), (failure, Some((0, 2, 7))));
}

/// The memory of an exposure that ends while a write into it is half there.
#[test]
fn exposure_that_ends_under_a_write() {
    let mut end = responder();
    end.receive(&frame(&untagged(SEND, 0, [0, 1, 0], b""), false));
    end.messages();
    let Remote { key, address } = end.expose(0, 100, Access::WRITE);
    let bytes = frame(&tagged(WRITE, key.0, address, &[1; 100]), false);
    end.receive(&bytes[..60]);
    end.post(1, Work::Invalidate { key }).unwrap();
    end.transmit(usize::MAX);
    end.receive(&bytes[60..]);
    let failure = no(Operation::Write, Refusal::Key { key });
    assert_eq!(ended(&mut end), (failure, Some((1, 1, 0))));
    assert_eq!(end.read(end.slice(44, 100)), [0; 100]);
}

/// The same under a read: what was not framed does not go out.
#[test]
fn exposure_that_ends_under_a_read() {
    let mut end = responder();
    let Remote { key, address } = end.expose(0, 500_000, Access::READ);
    end.receive(&frame(&read_request(1, 5, 500_000, key.0, address), false));
    // A batch takes about half of it.
    let begun = end.transmit(usize::MAX);
    assert!(begun.len() < 400_000);
    end.post(1, Work::Invalidate { key }).unwrap();
    end.receive(&frame(
        &untagged(SEND_INVALIDATE, key.0, [0, 1, 0], b""),
        false,
    ));
    let failure = no(Operation::Read, Refusal::Key { key });
    assert_eq!(ended(&mut end), (failure, Some((0, 1, 0))));
}

/// The same where all is framed and the peer takes none of it: its message does not give the
/// memory back to an owner who puts something else there.
#[test]
fn a_peer_that_ends_an_exposure_which_it_still_reads() {
    for (written, failure) in [(0, true), (1000, true), (49_999, true), (usize::MAX, false)] {
        let mut end = responder();
        let Remote { key, address } = end.expose(0, 50_000, Access::READ);
        let request = read_request(1, 5, 50_000, key.0, address);
        end.receive(&frame(&request, false));
        end.transmit(written);
        let message = untagged(SEND_INVALIDATE, key.0, [0, 1, 0], b"");
        end.receive(&frame(&message, false));
        if failure {
            let error = WireError::InvalidateEarly { key: key.0 };
            assert!(end.events().is_empty(), "nobody is told that it has ended");
            let rest = end.transmit(usize::MAX);
            // Of a frame that has begun the rest goes out while the memory is still lent.
            assert_eq!(rest.len() > 40_000, (1..9000).contains(&written));
            end.receive(&[0xEE; 3000]);
            end.connection.receive_end();
            assert_eq!(end_of(&end.events()), wire(error));
        } else {
            let events = end.events();
            let [Event::Received(received)] = &events[..] else {
                panic!("{events:?}");
            };
            assert_eq!(received.invalidated, Some(key));
            end.pool.put(received.buffer);
        }
        assert_eq!(end.pool.used().1, 0, "a buffer leaks");
    }
}

#[test]
fn memory_that_is_gone_ends_the_connection() {
    let mut end = responder();
    let Remote { key, address } = end.expose(0, 100, Access::WRITE);
    end.memories.remove(end.memory);
    end.receive(&frame(&tagged(WRITE, key.0, address, b"x"), false));
    end.transmit(usize::MAX);
    assert_eq!(end_of(&end.events()), Failure::Memory);
    let nowhere = Slice::default();
    assert_eq!(nowhere.part(1, 5), nowhere);
}
