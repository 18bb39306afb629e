//! Faults that others had, each by a scripted peer: the list of facts on SMB Direct in
//! Linux, and what its first version of 2017 did wrong. docs/known-bugs.md has them all.

use linkspan_rdma::verbs::{Depth, Key, Operation, PostError, Slice};
use linkspan_smbdirect::wire::NegotiateResponse;
use linkspan_smbdirect::{
    Arrival, Connection, Descriptor, Error, Misuse, News, Options, OptionsError, Output, Refusal,
    RegistrationState, Role, State, WorkId,
};
use zerocopy::{FromBytes, IntoBytes};

use super::peer::{DEPTH, DEVICE, Peer, initiator, listener, request, slice, small, transfer};

/// What is to be done now, with nothing said of what became of it.
fn outputs(core: &mut Connection) -> Vec<Output> {
    std::iter::from_fn(|| core.poll_output(0)).collect()
}

fn works(outputs: &[Output]) -> Vec<WorkId> {
    let name = |output: &Output| match output {
        Output::Send { work, .. } | Output::Write { work, .. } | Output::Read { work, .. } => {
            Some(*work)
        }
        _ => None,
    };
    outputs.iter().filter_map(name).collect()
}

fn descriptors(count: u32, length: u32) -> Vec<Descriptor> {
    let one = |token| Descriptor {
        offset: 4096,
        token,
        length,
    };
    (0..count).map(one).collect()
}

/// Fault 1 (8cf2bbac, 93ac432274e1): both sides stall.
#[test]
fn the_last_credit_goes_only_with_a_grant() {
    for peer_asks in [1, 2, 10] {
        let mut peer = listener(peer_asks);
        // All that the peer holds is used by its first message, which grants one.
        peer.core.send(&[slice(5000)], None).unwrap();
        peer.sent.clear();
        peer.data(transfer(peer_asks, 1, 10, 0));
        peer.core.send(&[slice(5000)], None).unwrap();
        peer.pump();
        for (bytes, _) in &peer.sent {
            assert_ne!(
                bytes[2..4],
                [0, 0],
                "it was the last one and grants nothing"
            );
        }
        assert!(
            peer.core.status().receives_granted > 0,
            "the peer can answer"
        );
    }
}

/// Fault 2 (6e3c5052f968, 26ad87a2cfb8): the peer overruns the receives.
#[test]
fn what_is_granted_was_posted_before() {
    let mut core = Connection::new(Role::Listener, &small(Role::Listener), &DEVICE, 0).unwrap();
    assert_eq!(outputs(&mut core), [Output::PostReceives { count: 1 }]);
    core.receives_posted(0, 1);
    core.established(0, DEPTH);
    let bytes = request(10, 1024, 1024, 131_072);
    let arrival = |head| Arrival {
        buffer: slice(20),
        len: 20,
        head,
        invalidated: None,
    };
    core.received(0, arrival(bytes.as_bytes()));
    let asked = outputs(&mut core);
    assert!(
        asked.contains(&Output::PostReceives { count: 10 }),
        "{asked:?}"
    );
    // Nothing is said before it is known, and no more than is known.
    core.receives_posted(0, 3);
    let Some(Output::Send { header, .. }) = core.poll_output(0) else {
        panic!("a response");
    };
    let response = NegotiateResponse::read_from_bytes(header.bytes()).unwrap();
    assert_eq!(response.credits_granted.get(), 3);
    assert_eq!(core.status().receives_granted, 3);
    // A fourth message is one too many.
    let empty = transfer(10, 0, 0, 0);
    for _ in 0..3 {
        core.received(0, arrival(empty.as_bytes()));
    }
    assert_eq!(core.first_error(), None);
    core.received(0, arrival(empty.as_bytes()));
    assert_eq!(core.first_error(), Some(Error::NoCredit));
}

/// Fault 3 (8e94268b21c8, 21538121efe6): reassembly is corrupted.
#[test]
fn an_empty_message_between_fragments_changes_nothing() {
    for mut peer in [listener(10), initiator()] {
        peer.data(transfer(10, 1, 1000, 500));
        peer.data(transfer(10, 1, 0, 0));
        peer.data(transfer(10, 1, 500, 0));
        assert_eq!(peer.read(), [1500]);
    }
}

/// Fault 7: a target of the peer's that is huge, or changes.
#[test]
fn a_target_that_changes_is_followed_within_bounds() {
    let mut peer = listener(10);
    for asks in [1, u16::MAX, 3, 1, 255] {
        for _ in 0..20 {
            peer.data(transfer(asks, 1, 10, 0));
            assert_eq!(peer.read(), [10]);
        }
        let status = peer.core.status();
        assert_eq!(status.receive_credit_target, asks);
        let posted = status.receives_available + status.receives_granted;
        // One more than is ever wanted goes with a last credit.
        assert!(posted <= 11, "{posted} for {asks}");
        assert!(status.receives_granted > 0);
    }
}

/// Faults 8 and 9 (1944f6ab, 5a9f5df18): a terminate message and a loop of reconnects.
#[test]
fn no_send_is_larger_than_what_the_peer_receives() {
    for receives in [128, 129, 1364, 8192, 65_536] {
        let options = Options {
            max_send_size: 8192,
            ..small(Role::Listener)
        };
        let mut peer = Peer::new(Role::Listener, &options);
        peer.say(request(10, 1024, receives, 131_072).as_bytes());
        peer.data(transfer(10, 255, 10, 0));
        peer.sent.clear();
        peer.core.send(&[slice(16_000)], None).unwrap();
        peer.pump();
        assert!(!peer.sent.is_empty());
        let largest = peer
            .sent
            .iter()
            .map(|(bytes, len)| u32::try_from(bytes.len()).unwrap() + len)
            .max();
        assert_eq!(largest, Some(receives.min(8192)));
    }
}

/// Fault 14 (CVE-2025-39929): a negotiation that fails keeps its buffer.
#[test]
fn a_failed_negotiation_gives_its_buffer_back() {
    for len in 0..20 {
        let mut peer = Peer::new(Role::Listener, &small(Role::Listener));
        peer.say(&request(10, 1024, 1024, 131_072).as_bytes()[..len]);
        assert!(matches!(peer.assert_ends(), Error::Short { .. }));
    }
    let mut peer = Peer::new(Role::Initiator, &small(Role::Initiator));
    peer.say(NegotiateResponse::refusal(0xC000_009A).as_bytes());
    let status = 0xC000_009A;
    assert_eq!(peer.assert_ends(), Error::Refused { status });
}

/// Fault 15 (7ad3884ff), and the first version: slices that the list has no room for.
#[test]
fn many_slices_are_cut_by_the_length_of_the_list() {
    let mut peer = initiator();
    let slices = vec![slice(10); 100];
    peer.core.send(&slices, None).unwrap();
    let mut sent = 0;
    for output in outputs(&mut peer.core) {
        if let Output::Send { work, data, .. } = output {
            let most = usize::from(peer.core.options().send_gather) - 1;
            assert!((1..=most).contains(&data.slices().len()));
            sent += data.len();
            peer.core.completed(work, true);
        }
    }
    assert!(sent > 0 && sent.is_multiple_of(50), "{sent}");
}

/// Fault 16: a number of elements that a device does not have.
#[test]
fn a_device_with_few_elements_is_used_as_it_is() {
    let device = |gather| linkspan_smbdirect::Device { gather, ..DEVICE };
    for gather in 2..8 {
        let fitted = Options::initiator().fit(&device(gather)).unwrap();
        assert_eq!(usize::from(fitted.send_gather), gather.min(6));
    }
    let none = Options::initiator().fit(&device(1));
    assert!(matches!(
        none,
        Err(OptionsError::Device {
            got: 1,
            want: 2,
            ..
        })
    ));
}

/// Fault 17 (6b749ab01): Windows sends 31 descriptors, and a server waited for ever.
#[test]
fn thirty_one_descriptors_need_no_more_works_than_there_are() {
    let options = Options {
        transfer_depth: 4,
        ..small(Role::Listener)
    };
    let mut peer = Peer::new(Role::Listener, &options);
    peer.say(request(10, 1024, 1024, 131_072).as_bytes());
    for read in [false, true] {
        let local = [slice(31 * 1000)];
        let remote = descriptors(31, 1000);
        let started = if read {
            peer.core.read(&local, &remote, 0)
        } else {
            peer.core.write(&local, &remote, 0)
        };
        let transfer = started.unwrap();
        let mut posted = 0;
        loop {
            let outputs = outputs(&mut peer.core);
            let works = works(&outputs);
            assert!(works.len() <= 4, "{} at a time", works.len());
            posted += works.len();
            let told = News::Transferred {
                transfer,
                write: !read,
                result: Ok(()),
            };
            if outputs.contains(&Output::Tell(told)) {
                break;
            }
            assert!(!works.is_empty(), "it waits for ever");
            works
                .into_iter()
                .for_each(|work| peer.core.completed(work, true));
        }
        assert_eq!(posted, 31);
    }
}

/// Fault 18: more reads under way than were agreed upon.
#[test]
fn no_more_reads_are_under_way_than_were_agreed_upon() {
    for agreed in [1, 2, 8] {
        let options = small(Role::Listener);
        let mut core = Connection::new(Role::Listener, &options, &DEVICE, 0).unwrap();
        outputs(&mut core);
        core.receives_posted(0, 1);
        let depth = Depth {
            inbound: 1,
            outbound: agreed,
        };
        core.established(0, depth);
        let bytes = request(10, 1024, 1024, 131_072);
        core.received(
            0,
            Arrival {
                buffer: slice(20),
                len: 20,
                head: bytes.as_bytes(),
                invalidated: None,
            },
        );
        outputs(&mut core);
        core.receives_posted(0, 10);
        let response = works(&outputs(&mut core));
        core.completed(response[0], true);
        core.read(&[slice(2000)], &descriptors(20, 100), 0).unwrap();
        let mut posted = 0;
        while posted < 20 {
            let works = works(&outputs(&mut core));
            assert!(!works.is_empty() && works.len() <= usize::from(agreed));
            posted += works.len();
            works
                .into_iter()
                .for_each(|work| core.completed(work, true));
        }
        let over = |output: &Output| matches!(output, Output::Tell(News::Transferred { .. }));
        assert!(outputs(&mut core).iter().any(over));
    }
}

/// Fault 20 (9da82dc73cb0, cf74fcdc43b3): work without a completion is freed twice.
#[test]
fn works_that_are_silent_come_back_once_when_the_connection_dies() {
    let mut peer = initiator();
    let messages: Vec<_> = (0..8)
        .map(|_| peer.core.send(&[slice(10)], None).unwrap())
        .collect();
    let sent = outputs(&mut peer.core);
    let silent = |output: &&Output| {
        matches!(
            output,
            Output::Send {
                signalled: false,
                ..
            }
        )
    };
    assert!(sent.iter().filter(silent).count() > 3);
    // The provider tells of some, then of the end.
    for work in works(&sent).into_iter().take(3) {
        peer.core.completed(work, false);
    }
    peer.core.ended();
    let told = outputs(&mut peer.core);
    for message in messages {
        let of = |output: &&Output| matches!(output, Output::Tell(News::Sent { message: told, result: Err(_) }) if *told == message);
        assert_eq!(told.iter().filter(of).count(), 1, "{message:?}");
    }
}

/// Fault 22 (27ceb3f86, 6297f3a09): memory that the peer may still reach is reused.
#[test]
fn memory_is_its_owners_again_only_after_an_invalidation() {
    let mut peer = initiator();
    let remote = linkspan_rdma::verbs::Remote {
        key: Key(5),
        address: 0,
    };
    let (id, _) = peer.core.register(100, || Ok(remote)).unwrap();
    // An answer without an invalidation, such as an error: it is done here.
    peer.data(transfer(10, 1, 50, 0));
    peer.core.deregister(id).unwrap();
    let asked = outputs(&mut peer.core);
    let Some(Output::Invalidate { work, key: Key(5) }) = asked
        .iter()
        .find(|it| matches!(it, Output::Invalidate { .. }))
    else {
        panic!("{asked:?}");
    };
    let told = |outputs: &[Output]| {
        let told = |it: &Output| matches!(it, Output::Tell(News::Deregistered { .. }));
        outputs.iter().any(told)
    };
    assert!(!told(&asked));
    peer.core.completed(*work, true);
    assert!(told(&outputs(&mut peer.core)));
    // What the connection's end does to others.
    let (other, _) = peer.core.register(100, || Ok(remote)).unwrap();
    peer.core.ended();
    assert!(told(&outputs(&mut peer.core)));
    assert_eq!(
        peer.core.registration(other),
        Some(RegistrationState::Disabled)
    );
}

/// Fault 23 (60697ed23, b6d787d1f): some devices are late to say so.
#[test]
fn a_message_before_the_connection_is_established_is_kept() {
    let mut core = Connection::new(Role::Listener, &small(Role::Listener), &DEVICE, 0).unwrap();
    outputs(&mut core);
    core.receives_posted(0, 1);
    let bytes = request(10, 1024, 1024, 131_072);
    core.received(
        0,
        Arrival {
            buffer: slice(20),
            len: 20,
            head: bytes.as_bytes(),
            invalidated: None,
        },
    );
    assert_eq!(outputs(&mut core), []);
    core.established(0, DEPTH);
    let buffer = slice(20);
    let next = [
        Output::Release { buffer },
        Output::PostReceives { count: 10 },
    ];
    assert_eq!(outputs(&mut core), next);
}

/// Fault 24 (0508f2a66, f02d76212), and the first version: waiters asleep for ever.
#[test]
fn a_disconnect_wakes_every_waiter_once() {
    let mut peer = listener(10);
    peer.data(transfer(10, 2, 10, 0));
    // Two credits; the rest waits for more.
    let messages: Vec<_> = (0..20)
        .map(|_| peer.core.send(&[slice(2000)], None).unwrap())
        .collect();
    let write = peer
        .core
        .write(&[slice(10)], &descriptors(1, 10), 0)
        .unwrap();
    peer.core.disconnect();
    peer.core.disconnect();
    peer.pump();
    assert_eq!(peer.assert_ends(), Error::Disconnected);
    let result = Err(Refusal::Ended(Error::Disconnected));
    for message in messages {
        let told = Output::Tell(News::Sent { message, result });
        assert_eq!(peer.events.iter().filter(|it| **it == told).count(), 1);
    }
    let transfer = write;
    let told = Output::Tell(News::Transferred {
        transfer,
        write: true,
        result,
    });
    assert_eq!(peer.events.iter().filter(|it| **it == told).count(), 1);
    let state = State::Disconnected;
    let again = peer.core.send(&[slice(1)], None);
    assert_eq!(again, Err(Misuse::NotConnected { state }));
}

/// Fault 25 (CVE-2025-39932, 2dc39effb): what comes late finds nothing to break.
#[test]
fn what_comes_after_the_end_does_nothing() {
    let mut peer = listener(10);
    peer.core.send(&[slice(10)], None).unwrap();
    peer.core.ended();
    outputs(&mut peer.core);
    let late = slice(44);
    peer.core.completed(WorkId(0), true);
    peer.core.completed(WorkId(77), false);
    peer.core.refused(0, WorkId(1), PostError::NotConnected);
    peer.core.receives_posted(0, 5);
    peer.core.established(0, DEPTH);
    peer.core.handle_timeout(1 << 40);
    peer.core.disconnect();
    peer.core.ended();
    peer.core.received(
        0,
        Arrival {
            buffer: late,
            len: 44,
            head: &[0; 32],
            invalidated: Some(Key(1)),
        },
    );
    assert_eq!(outputs(&mut peer.core), [Output::Release { buffer: late }]);
    assert_eq!(peer.core.first_error(), Some(Error::Lost));
}

/// Fault 31 (84d55a319, CVE-2025-38523): a copy beyond what a buffer has.
#[test]
fn a_message_is_read_byte_by_byte_within_its_pieces() {
    let mut peer = listener(10);
    peer.data(transfer(10, 1, 700, 500));
    peer.data(transfer(10, 1, 500, 0));
    for left in (1..=1200).rev() {
        assert_eq!(peer.core.message().unwrap().len, left);
        for piece in peer.core.pieces() {
            let linkspan_smbdirect::Place::Buffer(buffer) = piece.place else {
                panic!("{piece:?}");
            };
            let end = piece.offset + piece.len;
            assert!(piece.offset >= 24 && end <= buffer.len, "{piece:?}");
        }
        peer.core.consume(1);
    }
    assert_eq!(peer.core.message(), None);
    peer.core.consume(1);
    peer.pump();
    assert_eq!(peer.core.status().held_buffers, 0);
}

/// The first version: two senders saw one credit, and both took it.
#[test]
fn two_messages_do_not_share_a_credit() {
    let mut peer = initiator();
    let credits = peer.core.status().send_credits;
    for _ in 0..40 {
        peer.core.send(&[slice(10)], None).unwrap();
    }
    let sent = works(&outputs(&mut peer.core)).len();
    let status = peer.core.status();
    assert_eq!(sent, usize::from(credits - status.send_credits));
    assert_eq!(status.waiting, 40 - sent);
}

/// The first version: a send that failed was a line in the log.
#[test]
fn a_send_that_fails_is_told_and_ends_the_connection_once() {
    let mut peer = initiator();
    let message = peer.core.send(&[slice(10)], None).unwrap();
    let sent = works(&outputs(&mut peer.core));
    peer.core.completed(sent[0], false);
    let operation = Operation::Send;
    let result = Err(Refusal::Ended(Error::Work { operation }));
    peer.pump();
    assert!(
        peer.events
            .contains(&Output::Tell(News::Sent { message, result }))
    );
    assert_eq!(peer.assert_ends(), Error::Work { operation });
}

/// The first version: whether receives could be posted was not looked at.
#[test]
fn a_listener_without_receives_refuses() {
    let mut core = Connection::new(Role::Listener, &small(Role::Listener), &DEVICE, 0).unwrap();
    outputs(&mut core);
    core.receives_posted(0, 1);
    core.established(0, DEPTH);
    let bytes = request(10, 1024, 1024, 131_072);
    core.received(
        0,
        Arrival {
            buffer: slice(20),
            len: 20,
            head: bytes.as_bytes(),
            invalidated: None,
        },
    );
    outputs(&mut core);
    core.receives_posted(0, 0);
    let refusal = outputs(&mut core);
    let [Output::Send { work, header, .. }] = refusal[..] else {
        panic!("{refusal:?}");
    };
    assert_eq!(
        header.bytes(),
        NegotiateResponse::refusal(0xC000_009A).as_bytes()
    );
    core.completed(work, true);
    assert_eq!(core.first_error(), Some(Error::NoReceives));
    assert_eq!(outputs(&mut core), [Output::Disconnect]);
}

/// A place of no bytes is no end of a list.
#[test]
fn slices_without_bytes_are_left_out() {
    let mut peer = initiator();
    let none = Slice::default();
    peer.core
        .send(&[none, slice(5), none, none, slice(6), none], None)
        .unwrap();
    let sent = outputs(&mut peer.core);
    let [Output::Send { data, .. }] = &sent[..] else {
        panic!("{sent:?}");
    };
    assert_eq!(data.slices(), [slice(5), slice(6)]);
    assert_eq!(peer.core.send(&[none], None), Err(Misuse::Empty));
}

/// Ours, found by the simulation: a message said that something was written which was not.
#[test]
fn a_message_behind_a_write_that_is_refused_is_refused() {
    let mut peer = initiator();
    let before = peer.core.send(&[slice(10)], None).unwrap();
    let transfer = peer
        .core
        .write(&[slice(200)], &descriptors(2, 100), 0)
        .unwrap();
    let behind = [20, 30].map(|len| peer.core.send(&[slice(len)], None).unwrap());
    let mut writes = 0;
    let mut events = Vec::new();
    while let Some(output) = peer.core.poll_output(0) {
        match output {
            Output::Send { work, data, .. } => {
                assert_eq!(data.len(), 10);
                peer.core.completed(work, true);
            }
            // The second part of it.
            Output::Write { work, .. } if writes == 1 => {
                writes += 1;
                let why = PostError::Full { max: 0 };
                peer.core.refused(0, work, why);
            }
            Output::Write { work, .. } => {
                writes += 1;
                peer.core.completed(work, true);
            }
            Output::Tell(news) => events.push(news),
            _ => {}
        }
    }
    let result = Err(Refusal::Post(PostError::Full { max: 0 }));
    for message in behind {
        assert!(events.contains(&News::Sent { message, result }));
    }
    let write = true;
    let refused = News::Transferred {
        transfer,
        write,
        result,
    };
    assert!(events.contains(&refused));
    let message = before;
    let result = Ok(());
    assert!(events.contains(&News::Sent { message, result }));
    assert_eq!(peer.core.state(), State::Connected);
}

/// Fault 29 (1422bba9b, 53d7f0700): where a session was to be encrypted, RDMA carried plain text.
#[test]
fn what_is_to_be_encrypted_does_not_go_by_rdma() {
    let options = Options::initiator();
    let by_rdma = |len| [false, true].map(|encrypted| options.by_rdma(len, encrypted));
    assert_eq!(by_rdma(4095), [false, false]);
    assert_eq!(by_rdma(4096), [true, false]);
    assert_eq!(by_rdma(u64::MAX), [true, false]);
}
