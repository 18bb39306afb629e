//! What a peer must not do, and what becomes of whoever does it.

use std::net::SocketAddr;

use linkspan_backends::rdma::{Carrier, ConnectionId};
use linkspan_mem::Region;
use linkspan_rdma::verbs::{Access, Event, Failure, Operation, PostError, Slice, Verbs as _, Work};

use super::{
    Kind, MEMORY, RECEIVE_SIZE, Side, connect, disconnect, done, gone, pattern, received, until,
};

/// Something that the peer refuses: both ends hear of it, and A's work comes back.
pub fn refused<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    at_a: ConnectionId,
    work: Work<'_>,
) {
    a.post(at_a, 77, work).unwrap();
    gone(a, b);
    assert_eq!((a.ends.len(), b.ends.len()), (1, 1), "exactly once");
    assert_ne!(a.ends[0].1, Failure::Disconnected);
    assert_ne!(b.ends[0].1, Failure::Disconnected);
    let count = a
        .events
        .iter()
        .filter(|it| matches!(it.1, Event::Completed(it) if it.id == 77))
        .count();
    assert_eq!(count, 1, "{:?}", a.events);
    a.events.clear();
    b.events.clear();
    a.ends.clear();
    b.ends.clear();
}

pub fn an_exposure_that_ended_is_refused<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    let (at_a, at_b) = connect(a, b, address);
    let data = pattern(64, 3);
    a.write(0, &data);
    let gather = [a.slice(0, 64)];
    let to = b.expose(at_b, &[b.slice(0, 64)], Access::WRITE);
    let write = Work::Write {
        gather: &gather,
        to,
    };
    a.post(at_a, 1, write).unwrap();
    a.send(at_a, 2, &[]);
    until(a, b, |_, b| b.message());
    assert_eq!(b.read(b.slice(0, 64)), data);
    b.post(at_b, 3, Work::Invalidate { key: to.key }).unwrap();
    let over = until(a, b, |_, b| b.find(done));
    assert_eq!(over, (at_b, (3, Operation::Invalidate)));
    let again = b.post(at_b, 4, Work::Invalidate { key: to.key });
    assert_eq!(again, Err(PostError::Key { key: to.key }));
    b.write(0, &[0; 64]);
    while a.find(done).is_some() {}
    refused(a, b, at_a, write);
    assert_eq!(b.read(b.slice(0, 64)), [0; 64], "nothing was written");
}

pub fn an_exposure_is_for_what_it_was_made<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    for (access, offset) in [(Access::READ, 0), (Access::WRITE, 1)] {
        let (at_a, at_b) = connect(a, b, address);
        b.write(0, &[9; 128]);
        let mut to = b.expose(at_b, &[b.slice(32, 64)], access);
        to.address += offset;
        let gather = [a.slice(0, 64)];
        let write = Work::Write {
            gather: &gather,
            to,
        };
        refused(a, b, at_a, write);
        assert_eq!(b.read(b.slice(0, 32)), [9; 32]);
        assert_eq!(b.read(b.slice(96, 32)), [9; 32]);
    }
}

pub fn a_key_means_nothing_on_another_connection<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    let (at_a, at_b) = connect(a, b, address);
    let from = b.expose(at_b, &[b.slice(0, 64)], Access::READ);
    let (other_a, _) = connect(a, b, address);
    let into = [a.slice(0, 64)];
    let read = Work::Read { into: &into, from };
    a.post(other_a, 1, read).unwrap();
    until(a, b, |a, _| a.end_of(other_a));
    a.events.clear();
    a.post(at_a, 2, read).unwrap();
    let over = until(a, b, |a, _| a.find(done));
    assert_eq!(over, (at_a, (2, Operation::Read)));
    disconnect(a, b, at_a);
}

pub fn a_message_that_nobody_wants_ends_the_connection<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    let (at_a, at_b) = connect(a, b, address);
    for number in 0..255 {
        a.send(at_a, number, &[]);
    }
    let mut count = 0;
    until(a, b, |_, b| {
        while b.message().is_some() {
            count += 1;
        }
        (count == 255).then_some(())
    });
    while a.find(done).is_some() {}
    let work = Work::Send {
        gather: &[],
        invalidate: None,
        solicited: false,
    };
    a.post(at_a, 1000, work).unwrap();
    gone(a, b);
    assert!(a.end_of(at_a).is_some() && b.end_of(at_b).is_some());
    for events in [&mut a.events, &mut b.events] {
        events.clear();
    }
    a.ends.clear();
    b.ends.clear();
}

pub fn a_message_that_is_too_long_ends_the_connection<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    let (at_a, _) = connect(a, b, address);
    let gather = [a.slice(0, RECEIVE_SIZE + 1)];
    a.post(
        at_a,
        77,
        Work::Send {
            gather: &gather,
            invalidate: None,
            solicited: false,
        },
    )
    .unwrap();
    gone(a, b);
    assert_eq!((a.ends.len(), b.ends.len()), (1, 1), "exactly once");
    let lens = b.events.iter().filter(|it| received(&it.1).is_some());
    assert_eq!(lens.count(), 0, "nothing of it is told");
    for events in [&mut a.events, &mut b.events] {
        events.clear();
    }
    a.ends.clear();
    b.ends.clear();
}

pub fn a_message_ends_an_exposure<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
    kind: Kind,
) {
    let (at_a, at_b) = connect(a, b, address);
    let to = b.expose(at_b, &[b.slice(0, 64)], Access::WRITE);
    let gather = [a.slice(0, 10)];
    let send = Work::Send {
        gather: &gather,
        invalidate: Some(to.key),
        solicited: true,
    };
    a.post(at_a, 1, send).unwrap();
    let (_, it) = until(a, b, |_, b| b.find(received));
    assert_eq!(it.buffer.len, 10);
    b.provider.connection(at_b).unwrap().release(it.buffer);
    if kind.tells_invalidation {
        assert_eq!(it.invalidated, Some(to.key));
    } else {
        assert_eq!(it.invalidated, None);
    }
    if it.invalidated.is_none() {
        // Then whoever exposed it ends it, whatever the message did.
        b.post(at_b, 2, Work::Invalidate { key: to.key }).unwrap();
        until(a, b, |_, b| b.find(done));
    }
    while a.find(done).is_some() {}
    let write = Work::Write {
        gather: &gather,
        to,
    };
    refused(a, b, at_a, write);
}

pub fn memory_that_is_removed_ends_what_uses_it<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    let (at_a, at_b) = connect(a, b, address);
    let memory = b.provider.add_memory(Region::heap(4096).unwrap()).unwrap();
    let place = Slice {
        memory,
        len: 4096,
        offset: 0,
    };
    let to = b.expose(at_b, &[place], Access::WRITE);
    assert_eq!(b.provider.remove_memory(memory).unwrap().len(), 4096);
    let error = b.provider.connection(at_b).map(|mut connection| {
        let error = connection.expose(&[place], Access::WRITE).unwrap_err();
        matches!(error, PostError::Memory { .. } | PostError::NotConnected)
    });
    assert_ne!(error, Some(false));
    let gather = [a.slice(0, 64)];
    let write = Work::Write {
        gather: &gather,
        to,
    };
    // It may be over already.
    let _ = a.post(at_a, 77, write);
    gone(a, b);
    assert_eq!(b.ends, [(at_b, Failure::Memory)]);
    for events in [&mut a.events, &mut b.events] {
        events.clear();
    }
    a.ends.clear();
    b.ends.clear();
}

pub fn wrong_work_is_refused<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    let (at_a, at_b) = connect(a, b, address);
    let limits = a.provider.connection(at_a).unwrap().limits();
    let outside = Slice {
        memory: a.memory,
        len: 2,
        offset: MEMORY as u64 - 1,
    };
    let send = |gather: &[Slice], a: &mut Side<A>| {
        let work = Work::Send {
            gather,
            invalidate: None,
            solicited: false,
        };
        a.post(at_a, 1, work).unwrap_err()
    };
    assert_eq!(send(&[outside], a), PostError::Memory { slice: outside });
    let long = vec![a.slice(0, 1); limits.gather + 1];
    let (got, max) = (limits.gather + 1, limits.gather);
    assert_eq!(send(&long, a), PostError::Elements { got, max });
    let key = linkspan_rdma::verbs::Key(0x1234_5678);
    let unknown = a.post(at_a, 1, Work::Invalidate { key });
    assert_eq!(unknown, Err(PostError::Key { key }));
    let limits = b.provider.connection(at_b).unwrap().limits();
    let many = b.receive(at_b, limits.receives);
    assert!(matches!(many, Err(PostError::Full { .. })), "{many:?}");
    // And everything goes on.
    a.send(at_a, 2, &[a.slice(0, 5)]);
    assert_eq!(until(a, b, |_, b| b.message()).len(), 5);
    disconnect(a, b, at_a);
}
