//! The pair in memory: what upper layers are tested over.

use linkspan_mem::Region;
use linkspan_rdma::iwarp::Options;
use linkspan_rdma::local::{End, Packet};
use linkspan_rdma::verbs::{
    Access, Depth, Event, Failure, Key, Limits, MemoryId, Operation, Post, PostError, Refusal,
    Remote, Slice, Verbs, Work,
};

const DEPTH: Depth = Depth {
    inbound: 2,
    outbound: 2,
};

fn limits() -> Limits {
    Limits {
        receive_size: 1000,
        ..Options::default().limits
    }
}

fn carry(a: &mut End, b: &mut End) {
    loop {
        let (to_b, to_a) = (a.take(), b.take());
        if to_a.is_none() && to_b.is_none() {
            return;
        }
        to_b.into_iter().for_each(|packet| b.deliver(packet));
        to_a.into_iter().for_each(|packet| a.deliver(packet));
    }
}

fn events(end: &mut End) -> Vec<Event> {
    std::iter::from_fn(|| end.poll()).collect()
}

fn slice(memory: MemoryId, offset: u64, len: u32) -> Slice {
    Slice {
        memory,
        len,
        offset,
    }
}

fn text(end: &End, slice: Slice) -> String {
    let mut bytes = vec![0; slice.len as usize];
    end.memories().slice(slice).unwrap().read(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

/// Two ends with 4 KiB of memory each, connected, with two receives posted.
fn pair() -> (End, End, MemoryId) {
    let mut a = End::initiator(limits(), DEPTH, [1; 32], b"hello");
    let mut b = End::responder(limits(), DEPTH, [2; 32]);
    let memory = a.add_memory(Region::heap(4096).unwrap()).unwrap();
    assert_eq!(b.add_memory(Region::heap(4096).unwrap()), Ok(memory));
    carry(&mut a, &mut b);
    assert!(matches!(&events(&mut b)[..], [Event::Requested(it)] if it.private_data == b"hello"));
    b.accept(b"welcome", DEPTH).unwrap();
    for end in [&mut a, &mut b] {
        end.post_receives(2).unwrap();
    }
    carry(&mut a, &mut b);
    assert!(
        matches!(&events(&mut a)[..], [Event::Established(it)] if it.private_data == b"welcome")
    );
    assert!(matches!(&events(&mut b)[..], [Event::Established(_)]));
    (a, b, memory)
}

fn post(end: &mut End, id: u64, work: Work<'_>) -> Result<(), PostError> {
    end.post(&Post {
        id,
        signalled: true,
        work,
    })
}

fn send(gather: &[Slice], invalidate: Option<Key>) -> Work<'_> {
    Work::Send {
        gather,
        invalidate,
        solicited: false,
    }
}

fn end_of(end: &mut End) -> Failure {
    match events(end).last() {
        Some(Event::Ended(failure)) => *failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_works_do_what_they_say() {
    let (mut a, mut b, memory) = pair();
    a.memories()
        .slice(slice(memory, 0, 6))
        .unwrap()
        .write(b"abcdef");
    b.memories()
        .slice(slice(memory, 100, 4))
        .unwrap()
        .write(b"WXYZ");
    let both = Access {
        read: true,
        write: true,
    };
    let exposed = [slice(memory, 50, 3), slice(memory, 100, 4)];
    let to = b.expose(&exposed, both).unwrap();
    let gather = [slice(memory, 0, 2), slice(memory, 3, 2)];
    post(
        &mut a,
        1,
        Work::Write {
            gather: &gather,
            to,
        },
    )
    .unwrap();
    let into = [slice(memory, 10, 7)];
    post(
        &mut a,
        2,
        Work::Read {
            into: &into,
            from: to,
        },
    )
    .unwrap();
    post(&mut a, 3, send(&gather, Some(to.key))).unwrap();
    carry(&mut a, &mut b);
    assert_eq!(text(&a, into[0]), "abdeXYZ");
    let [Event::Received(received)] = &events(&mut b)[..] else {
        panic!("no message");
    };
    assert_eq!(received.invalidated, Some(to.key));
    assert_eq!(text(&b, received.buffer), "abde");
    b.release(received.buffer);
    assert_eq!((b.lent(), events(&mut a).len()), (0, 3));
    post(
        &mut a,
        4,
        Work::Write {
            gather: &gather,
            to,
        },
    )
    .unwrap();
    carry(&mut a, &mut b);
    let why = Refusal::Key { key: to.key };
    let operation = Operation::Write;
    assert_eq!(end_of(&mut b), Failure::Refused { operation, why });
    assert!(matches!(end_of(&mut a), Failure::Wire(_)));
}

#[test]
fn what_has_no_right_is_refused() {
    let receive = |a: &mut End| {
        for id in 0..3 {
            post(a, id, send(&[], None)).unwrap();
        }
    };
    let long = |a: &mut End| post(a, 1, send(&[slice(MemoryId(0), 0, 1001)], None)).unwrap();
    let unknown = |a: &mut End| post(a, 1, send(&[], Some(Key(5)))).unwrap();
    let read = |a: &mut End| {
        let from = Remote {
            key: Key(5),
            address: 0,
        };
        let into = [slice(MemoryId(0), 0, 1)];
        post(a, 1, Work::Read { into: &into, from }).unwrap();
    };
    type Case<'a> = (&'a dyn Fn(&mut End), Operation, Refusal);
    let key = Key(5);
    let cases: [Case<'_>; 4] = [
        (&receive, Operation::Send, Refusal::NoReceive),
        (
            &long,
            Operation::Send,
            Refusal::TooLong {
                got: 1001,
                max: 1000,
            },
        ),
        (&unknown, Operation::Send, Refusal::Key { key }),
        (&read, Operation::Read, Refusal::Key { key }),
    ];
    for (act, operation, why) in cases {
        let (mut a, mut b, _) = pair();
        act(&mut a);
        carry(&mut a, &mut b);
        assert_eq!(end_of(&mut b), Failure::Refused { operation, why });
        assert!(matches!(end_of(&mut a), Failure::Wire(_)));
    }
}

#[test]
fn a_loss_gives_all_works_back_once() {
    for steps in 0..12 {
        let (mut a, mut b, memory) = pair();
        let from = b.expose(&[slice(memory, 0, 100)], Access::READ).unwrap();
        let into = [slice(memory, 0, 100)];
        for id in 0..6 {
            let work = match id % 2 {
                0 => Work::Read { into: &into, from },
                _ => Work::Invalidate {
                    key: a.expose(&into, Access::READ).unwrap().key,
                },
            };
            post(&mut a, id, work).unwrap();
        }
        for _ in 0..steps {
            a.take().into_iter().for_each(|packet| b.deliver(packet));
            b.take().into_iter().for_each(|packet| a.deliver(packet));
        }
        a.lose();
        b.lose();
        let mut ids: Vec<u64> = events(&mut a)
            .iter()
            .filter_map(|event| match event {
                Event::Completed(completion) => Some(completion.id),
                _ => None,
            })
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5]);
        assert_eq!(end_of(&mut b), Failure::Lost);
        assert_eq!(
            post(&mut a, 1, send(&[], None)),
            Err(PostError::NotConnected)
        );
    }
}

#[test]
fn messages_wait_for_buffers() {
    let (mut a, b, memory) = pair();
    let mut b = b.with_budget(0);
    b.post_receives(200).unwrap();
    let mut sent = 0;
    let mut held = Vec::new();
    while sent < 100 {
        post(&mut a, sent, send(&[slice(memory, sent, 1)], None)).unwrap();
        carry(&mut a, &mut b);
        sent += 1;
        for event in events(&mut b) {
            let Event::Received(received) = event else {
                panic!("{event:?}");
            };
            held.push(received.buffer);
        }
    }
    let first = held.len();
    assert!(first < 100, "a slab has {first}");
    let mut seen = 0;
    while let Some(buffer) = held.pop() {
        b.release(buffer);
        seen += 1;
        for event in events(&mut b) {
            if let Event::Received(received) = event {
                held.push(received.buffer);
            }
        }
    }
    assert_eq!((seen, b.lent()), (100, 0));
}

#[test]
fn a_rejected_end_hears_why() {
    let mut a = End::initiator(limits(), DEPTH, [1; 32], b"");
    let mut b = End::responder(limits(), DEPTH, [2; 32]);
    carry(&mut a, &mut b);
    b.reject(b"no").unwrap();
    assert_eq!(b.take(), Some(Packet::Reject(b"no".to_vec())));
    a.deliver(Packet::Reject(b"no".to_vec()));
    let private_data = b"no".to_vec();
    let expected = [
        Event::Rejected { private_data },
        Event::Ended(Failure::Rejected),
    ];
    assert_eq!(events(&mut a), expected);
    assert_eq!(end_of(&mut b), Failure::Disconnected);
}

#[test]
fn a_disconnect_reaches_the_other_end() {
    let (mut a, mut b, _) = pair();
    a.disconnect();
    a.disconnect();
    carry(&mut a, &mut b);
    assert_eq!(events(&mut a), [Event::Ended(Failure::Disconnected)]);
    assert_eq!(events(&mut b), [Event::Ended(Failure::Closed)]);
}
