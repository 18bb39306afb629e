//! Request and reply: every rule of both roles.

use std::time::Duration;

use linkspan_rdma::iwarp::{Connection, Life, Opcode, Options, PRIVATE_DATA_MAX, Ready, WireError};
use linkspan_rdma::verbs::{Depth, Event, Failure, PostError};

use super::pair::{DEPTH, End, Pair, end_of};
use super::script::{self, SEND, WRITE, frame, read_request, tagged, terminate_in, untagged};

fn depth(inbound: u16, outbound: u16) -> Depth {
    Depth { inbound, outbound }
}

fn established(end: &mut End) -> (Vec<u8>, Depth) {
    match &end.events()[..] {
        [Event::Established(greeting)] => (greeting.private_data.clone(), greeting.depth),
        other => panic!("{other:?}"),
    }
}

fn refused_reply(options: Options, bytes: &[u8]) -> (Failure, Option<(u8, u8, u8)>) {
    let mut end = End::initiator(options);
    end.transmit(usize::MAX);
    end.receive(bytes);
    let told = terminate_in(&end.transmit(usize::MAX));
    (end_of(&end.events()), told)
}

#[test]
fn depths_are_agreed_upon() {
    let mut options = Options {
        depth: depth(2, 100),
        inbound_max: 8,
        ..Options::default()
    };
    let peer = Options {
        depth: depth(16, 6),
        ..Options::default()
    };
    let mut pair = Pair::new(options, peer);
    pair.run();
    let events = pair.b.events();
    let [Event::Requested(greeting)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(greeting.private_data, b"hello");
    assert_eq!(greeting.depth, depth(100, 2));
    pair.b.connection.accept(b"welcome", depth(16, 6)).unwrap();
    // As many are answered as are wanted; no more asked than are answered.
    assert_eq!(established(&mut pair.b), (b"".to_vec(), depth(100, 2)));
    pair.run();
    assert_eq!(
        established(&mut pair.a),
        (b"welcome".to_vec(), depth(2, 100))
    );
    // A responder that wants more than we offered gets it, up to what is possible.
    let reply =
        |ird: u8, ord: u8| [b"MPA ID Rep Frame\x10\x02\x00\x04\x00", &[ird, 0, ord][..]].concat();
    let mut end = End::initiator(options);
    end.receive(&reply(3, 8));
    assert_eq!(established(&mut end).1, depth(8, 3));
    let error = WireError::Depth { wanted: 9, max: 8 };
    assert_eq!(
        refused_reply(options, &reply(3, 9)),
        (Failure::Wire(error), Some((2, 0, 6)))
    );
    // Depths may be left open (RFC 6581, 9.1).
    let mut end = End::initiator(options);
    end.receive(b"MPA ID Rep Frame\x10\x02\x00\x04\x3F\xFF\x3F\xFF");
    assert_eq!(established(&mut end).1, depth(2, 100));
    // Nothing answered means nothing asked.
    options.depth = depth(0, 5);
    let mut end = End::initiator(options);
    end.receive(&reply(0, 0));
    assert_eq!(established(&mut end).1, depth(0, 0));
}

#[test]
fn a_request_of_revision_1_is_answered_in_revision_1() {
    let options = Options {
        revision: 1,
        depth: DEPTH,
        ..Options::default()
    };
    let mut end = End::responder(Options::default());
    let mut initiator = End::initiator(options);
    let request = initiator.transmit(usize::MAX);
    assert_eq!(request, b"MPA ID Req Frame\x00\x01\x00\x05hello");
    end.receive(&request);
    let events = end.events();
    assert!(
        matches!(&events[..], [Event::Requested(greeting)] if greeting.depth == depth(32, 32)),
        "what is not said is what we would like"
    );
    end.connection.accept(b"yes", DEPTH).unwrap();
    let reply = end.transmit(usize::MAX);
    assert_eq!(reply, b"MPA ID Rep Frame\x00\x01\x00\x03yes");
    initiator.receive(&reply);
    assert_eq!(established(&mut initiator), (b"yes".to_vec(), DEPTH));
    // Revision 2 is none that was offered.
    let error = WireError::Revision { got: 2, max: 1 };
    let told = Some((2, 0, 4));
    assert_eq!(
        refused_reply(options, &script::reply()),
        (Failure::Wire(error), told)
    );
    // And one that is older than what was offered is understood.
    let mut newer = End::initiator(Options::default());
    newer.receive(b"MPA ID Rep Frame\x00\x01\x00\x00");
    assert_eq!(established(&mut newer).1, depth(32, 32));
}

#[test]
fn checksums_if_either_side_wants_them() {
    for (a, b) in [(false, false), (true, false), (false, true), (true, true)] {
        let options = |crc| Options {
            crc,
            ..Options::default()
        };
        let mut pair = Pair::new(options(a), options(b));
        pair.run();
        pair.b.connection.accept(b"", DEPTH).unwrap();
        pair.b.connection.post_receives(1).unwrap();
        pair.run();
        assert_eq!(pair.a.connection.has_crc(), a || b);
        assert_eq!(pair.b.connection.has_crc(), a || b);
        pair.a.send(1, pair.a.slice(0, 10)).unwrap();
        let bytes = pair.a.transmit(usize::MAX);
        assert_eq!(bytes[bytes.len() - 4..] != [0; 4], a || b);
        pair.b.receive(&bytes);
        assert_eq!(pair.b.messages().len(), 1);
    }
}

#[test]
fn markers_are_refused() {
    let mut end = End::responder(Options::default());
    let mut request = script::request();
    request[16] |= 0x80;
    end.receive(&request);
    let reply = end.transmit(usize::MAX);
    // Rejected, in the revision of the request.
    assert_eq!(reply, b"MPA ID Rep Frame\x20\x02\x00\x00");
    let failure = Failure::Wire(WireError::Markers);
    assert_eq!(end_of(&end.events()), failure);
    let mut reply = script::reply();
    reply[16] |= 0x80;
    assert_eq!(
        refused_reply(Options::default(), &reply),
        (failure, Some((2, 0, 4)))
    );
}

#[test]
fn what_is_no_request_gets_no_answer() {
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"MPA ID Rep Frame".to_vec(),
        b"MPA ID Req Frame\x00\x03\x00\x00".to_vec(),
        b"MPA ID Req Frame\x00\x00\x00\x00".to_vec(),
        b"MPA ID Req Frame\x00\x01\x02\x01".to_vec(),
        b"MPA ID Req Frame\x10\x02\x00\x03".to_vec(),
    ] {
        let mut end = End::responder(Options::default());
        end.receive(&bytes);
        assert_eq!(end.transmit(usize::MAX), b"");
        let events = end.events();
        assert!(matches!(end_of(&events), Failure::Wire(_)), "{events:?}");
        assert_eq!(end.connection.life(), Life::ShutDown);
    }
}

#[test]
fn bytes_before_the_set_up_is_over() {
    let failure = Failure::Wire(WireError::Early { got: 3 });
    // Behind a request, together with it or before it was answered.
    for together in [true, false] {
        let mut end = End::responder(Options::default());
        let request = script::request();
        if together {
            end.receive(&[&request[..], b"abc"].concat());
        } else {
            end.receive(&request);
            end.receive(b"abc");
        }
        end.transmit(usize::MAX);
        let events = end.events();
        assert!(matches!(events[0], Event::Requested(_)));
        assert_eq!(end_of(&events), failure);
        let too_late = end.connection.accept(b"", DEPTH);
        assert_eq!(too_late, Err(PostError::NotConnected));
    }
    // Behind a reply: the responder has heard no frame yet.
    let bytes = [&script::reply()[..], b"abc"].concat();
    let mut end = End::initiator(Options::default());
    end.receive(&bytes);
    end.transmit(usize::MAX);
    assert_eq!(end_of(&end.events()), failure);
}

/// RFC 5044, 7.1.2: the initiator speaks first.
#[test]
fn a_responder_sends_nothing_before_the_first_frame() {
    let mut end = script::responder(Options::default());
    end.send(1, end.slice(0, 4)).unwrap();
    assert_eq!(end.transmit(usize::MAX), b"");
    // Not even half a frame makes a difference.
    let first = frame(&untagged(SEND, 0, [0, 1, 0], b"now"), false);
    end.receive(&first[..first.len() - 1]);
    assert_eq!(end.transmit(usize::MAX), b"");
    end.receive(&first[first.len() - 1..]);
    assert_eq!(end.transmit(usize::MAX).len(), 20 + 4 + 4);
}

#[test]
fn a_rejected_initiator_hears_why() {
    let mut pair = Pair::new(Options::default(), Options::default());
    pair.run();
    pair.b.connection.reject(b"go away").unwrap();
    pair.run();
    let events = pair.a.events();
    let private_data = b"go away".to_vec();
    assert_eq!(
        events,
        [
            Event::Rejected { private_data },
            Event::Ended(Failure::Rejected)
        ]
    );
    let events = pair.b.events();
    assert_eq!(end_of(&events), Failure::Disconnected);
}

#[test]
fn private_data_has_its_limit() {
    let long = [0; PRIVATE_DATA_MAX + 1];
    let error = Connection::initiator(Options::default(), [0; 32], &long, Duration::ZERO);
    assert_eq!(error.err().map(|it| it.got), Some(253));
    let mut end = End::responder(Options::default());
    let early = end.connection.accept(b"", DEPTH);
    assert_eq!(early, Err(PostError::NotConnected));
    assert_eq!(end.connection.reject(b""), Err(PostError::NotConnected));
    end.receive(&script::request());
    let error = PostError::Bytes { got: 253, max: 252 };
    assert_eq!(end.connection.accept(&long, DEPTH), Err(error));
    assert_eq!(end.connection.reject(&long), Err(error));
    end.connection.accept(&long[1..], DEPTH).unwrap();
    assert_eq!(end.transmit(usize::MAX).len(), 20 + 256);
}

fn ready(write: bool, read: bool, send: bool) -> Ready {
    Ready { write, read, send }
}

/// RFC 6581, 9.2, with each way to begin.
#[test]
fn peers_of_equal_rank_begin_with_a_frame_of_their_own() {
    for (offered, first) in [
        (ready(true, true, true), Opcode::Write),
        (ready(false, true, true), Opcode::ReadRequest),
        (ready(false, false, true), Opcode::Send),
    ] {
        let options = Options {
            ready: Some(offered),
            ..Options::default()
        };
        let mut pair = Pair::new(options, Options::default());
        pair.run();
        pair.b.connection.accept(b"", DEPTH).unwrap();
        pair.b.connection.post_receives(1).unwrap();
        pair.b.send(1, pair.b.slice(0, 3)).unwrap();
        pair.a.connection.post_receives(1).unwrap();
        let reply = pair.b.transmit(usize::MAX);
        pair.a.receive(&reply);
        let begin = pair.a.transmit(usize::MAX);
        assert_eq!(u16::from(begin[3] & 0xF), first as u16, "{first:?}");
        pair.b.receive(&begin);
        // Now the responder may speak; nothing of this was a message or a read.
        pair.run();
        assert_eq!(pair.a.messages(), [[0; 3]]);
        pair.a.send(2, pair.a.slice(0, 5)).unwrap();
        pair.run();
        assert_eq!(pair.b.messages(), [[0; 5]]);
        assert_eq!(pair.a.connection.posted(), (0, 0, 0));
    }
}

/// Facts 2.2: without a way in common there is none; and what was agreed upon holds.
#[test]
fn another_way_to_begin_is_refused() {
    // We offered nothing, and the peer chose.
    let reply = b"MPA ID Rep Frame\x10\x02\x00\x04\x80\x10\x80\x08";
    let failure = Failure::Wire(WireError::Ready);
    let told = Some((2, 0, 7));
    assert_eq!(refused_reply(Options::default(), reply), (failure, told));
    // We offered reads, and it chose writes.
    let options = Options {
        ready: Some(ready(false, true, false)),
        ..Options::default()
    };
    assert_eq!(refused_reply(options, reply), (failure, told));
    // A write was agreed upon, and a message comes, or a write that has bytes, or a read.
    for (first, got) in [
        (untagged(SEND, 0, [0, 1, 0], b""), Opcode::Send),
        (tagged(WRITE, 1, 0, b"x"), Opcode::Write),
        (tagged(WRITE & !0x4000, 1, 0, b""), Opcode::Write),
        (read_request(1, 1, 0, 1, 0), Opcode::ReadRequest),
    ] {
        let mut end = End::responder(Options::default());
        end.receive(b"MPA ID Req Frame\x10\x02\x00\x04\x80\x10\x80\x10");
        end.connection.accept(b"", DEPTH).unwrap();
        end.connection.post_receives(1).unwrap();
        end.transmit(usize::MAX);
        end.receive(&frame(&first, false));
        let expected = Opcode::Write;
        let failure = Failure::Wire(WireError::First { got, expected });
        assert_eq!(terminate_in(&end.transmit(usize::MAX)), told);
        assert_eq!(end_of(&end.events()), failure);
    }
}

/// A peer that sets the bit and offers nothing is an ordinary one.
#[test]
fn equal_rank_without_a_way_to_begin_is_taken_politely() {
    let mut end = End::responder(Options::default());
    end.receive(b"MPA ID Req Frame\x10\x02\x00\x04\x80\x10\x00\x10");
    end.connection.accept(b"", DEPTH).unwrap();
    let reply = end.transmit(usize::MAX);
    assert_eq!(reply, b"MPA ID Rep Frame\x10\x02\x00\x04\x00\x10\x00\x04");
}

#[test]
fn a_peer_that_says_nothing_is_given_up() {
    let second = Duration::from_secs(1);
    let mut end = End::initiator(Options::default());
    end.transmit(usize::MAX);
    assert_eq!(end.connection.next_timeout(), Some(second * 10));
    end.connection.tick(second * 9);
    assert_eq!(end.events(), []);
    end.connection.tick(second * 10);
    assert_eq!(end.events(), [Event::Ended(Failure::TimedOut)]);
    let mut end = End::responder(Options::default());
    end.receive(b"MPA ID Req");
    assert_eq!(end.connection.next_timeout(), Some(second * 5));
    end.connection.tick(second * 5);
    assert_eq!(end.events(), [Event::Ended(Failure::TimedOut)]);
    assert_eq!(end.connection.life(), Life::Over);
    assert_eq!(end.connection.next_timeout(), None);
}

/// siw overlooks a first frame that follows upon its reply at once, until more bytes
/// come. So more bytes come: a write of nothing, which nobody looks at.
#[test]
fn an_initiator_that_hears_nothing_pokes_its_peer() {
    let milli = Duration::from_millis(1);
    let mut end = script::initiator(Options::default());
    assert_eq!(end.connection.next_timeout(), None, "nothing was sent");
    end.send(1, end.slice(0, 4)).unwrap();
    end.transmit(usize::MAX);
    assert_eq!(end.connection.next_timeout(), Some(milli * 30));
    end.connection.tick(milli * 29);
    assert_eq!(end.transmit(usize::MAX), b"");
    let nudge = frame(&tagged(WRITE, 1, 0, b""), false);
    for at in [30, 90, 210] {
        assert_eq!(end.connection.next_timeout(), Some(milli * at));
        end.connection.tick(milli * at);
        assert_eq!(end.transmit(usize::MAX), nudge);
    }
    assert_eq!(end.connection.next_timeout(), None, "that was enough");
    // A peer that answers is left alone.
    let mut end = script::initiator(Options::default());
    end.send(1, end.slice(0, 4)).unwrap();
    end.transmit(usize::MAX);
    end.receive(&frame(&untagged(SEND, 0, [0, 1, 0], b"hi"), false));
    assert_eq!(end.connection.next_timeout(), None);
    end.connection.tick(milli * 1000);
    assert_eq!(end.transmit(usize::MAX), b"");
    // And so is one that is known not to be siw.
    let options = Options {
        nudges: 0,
        ..Options::default()
    };
    let mut end = script::initiator(options);
    end.send(1, end.slice(0, 4)).unwrap();
    end.transmit(usize::MAX);
    assert_eq!(end.connection.next_timeout(), None);
}

/// And our end does not have that race: a first frame may come in the same packet as
/// anything, or byte by byte.
#[test]
fn a_first_frame_right_behind_the_reply_is_not_overlooked() {
    let mut pair = Pair::new(Options::default(), Options::default());
    pair.b.connection.post_receives(1).unwrap();
    pair.a.send(1, pair.a.slice(0, 4)).unwrap_err();
    pair.run();
    pair.b.connection.accept(b"", DEPTH).unwrap();
    let reply = pair.b.transmit(usize::MAX);
    pair.a.receive(&reply);
    pair.a.send(1, pair.a.slice(0, 4)).unwrap();
    // Nothing else happens at the responder between its reply and this.
    let first = pair.a.transmit(usize::MAX);
    for byte in &first {
        pair.b.receive(std::slice::from_ref(byte));
    }
    assert_eq!(pair.b.messages().len(), 1);
}
