//! What every provider of the rdma seam does: one suite over the pair in memory, iWARP over
//! TCP, and devices, and over two different ones that meet.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each file of tests uses what it needs"
)]

pub mod local;
mod refusals;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use linkspan_backends::rdma::{Carrier, ConnectionId};
use linkspan_mem::Region;
use linkspan_rdma::verbs::{
    Access, Depth, Event, Failure, Greeting, MemoryId, Operation, Post, PostError, Received,
    Remote, Slice, Verbs as _, Work,
};
use linkspan_testkit::PATIENCE;

pub const MEMORY: usize = 4 << 20;
pub const MEMORY_LEN: u32 = 4 << 20;
pub const DEPTH: Depth = Depth {
    inbound: 8,
    outbound: 8,
};
/// Bytes of a message that the sides receive.
pub const RECEIVE_SIZE: u32 = 8192;

/// What is different where two meet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kind {
    /// There is one connection at a time.
    pub single: bool,
    /// The listener says which exposure a message has ended.
    pub tells_invalidation: bool,
}

/// A provider, its memory, and the events that nobody took.
pub struct Side<C> {
    pub provider: C,
    pub memory: MemoryId,
    pub events: VecDeque<(ConnectionId, Event)>,
    pub ends: Vec<(ConnectionId, Failure)>,
}

impl<C: Carrier> Side<C> {
    pub fn new(mut provider: C) -> Self {
        let memory = provider.add_memory(Region::heap(MEMORY).unwrap()).unwrap();
        Self {
            provider,
            memory,
            events: VecDeque::new(),
            ends: Vec::new(),
        }
    }

    pub fn slice(&self, offset: u64, len: u32) -> Slice {
        Slice {
            memory: self.memory,
            len,
            offset,
        }
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let slice = self.slice(offset, u32::try_from(bytes.len()).unwrap());
        let memories = self.provider.memories();
        assert_eq!(memories.slice(slice).unwrap().write(bytes), bytes.len());
    }

    pub fn read(&self, slice: Slice) -> Vec<u8> {
        let mut bytes = vec![0; slice.len as usize];
        let memories = self.provider.memories();
        memories.slice(slice).unwrap().read(&mut bytes);
        bytes
    }

    pub fn post(&mut self, id: ConnectionId, number: u64, work: Work<'_>) -> Result<(), PostError> {
        let post = Post {
            id: number,
            signalled: true,
            work,
        };
        let connection = self.provider.connection(id);
        connection.ok_or(PostError::NotConnected)?.post(&post)
    }

    pub fn receive(&mut self, id: ConnectionId, count: u32) -> Result<(), PostError> {
        self.provider.connection(id).unwrap().post_receives(count)
    }

    pub fn accept(&mut self, id: ConnectionId, receives: u32) {
        self.receive(id, receives).unwrap();
        let mut connection = self.provider.connection(id).unwrap();
        connection.accept(b"welcome", DEPTH).unwrap();
    }

    pub fn send(&mut self, id: ConnectionId, number: u64, gather: &[Slice]) {
        let work = Work::Send {
            gather,
            invalidate: None,
            solicited: false,
        };
        self.post(id, number, work).unwrap();
    }

    pub fn expose(&mut self, id: ConnectionId, slices: &[Slice], access: Access) -> Remote {
        let mut connection = self.provider.connection(id).unwrap();
        connection.expose(slices, access).unwrap()
    }

    pub fn look(&mut self) {
        self.provider.wait(Some(Duration::from_millis(1))).unwrap();
        while let Some((id, event)) = self.provider.poll() {
            match event {
                Event::Ended(failure) => self.ends.push((id, failure)),
                event => self.events.push_back((id, event)),
            }
        }
    }

    /// The next event that is not of another kind than what is looked for.
    pub fn find<T>(&mut self, each: impl Fn(&Event) -> Option<T>) -> Option<(ConnectionId, T)> {
        let at = self.events.iter().position(|it| each(&it.1).is_some())?;
        let (id, event) = self.events.remove(at)?;
        each(&event).map(|found| (id, found))
    }

    pub fn message(&mut self) -> Option<Vec<u8>> {
        let (id, received) = self.find(received)?;
        let bytes = self.read(received.buffer);
        if let Some(mut connection) = self.provider.connection(id) {
            connection.release(received.buffer);
        }
        Some(bytes)
    }

    /// How a connection that is over has ended.
    pub fn end_of(&self, id: ConnectionId) -> Option<Failure> {
        let end = self.ends.iter().find(|it| it.0 == id);
        end.map(|it| it.1)
    }
}

pub fn requested(event: &Event) -> Option<Greeting> {
    match event {
        Event::Requested(greeting) => Some(greeting.clone()),
        _ => None,
    }
}

pub fn established(event: &Event) -> Option<Greeting> {
    match event {
        Event::Established(greeting) => Some(greeting.clone()),
        _ => None,
    }
}

pub fn received(event: &Event) -> Option<Received> {
    match event {
        Event::Received(received) => Some(*received),
        _ => None,
    }
}

pub fn done(event: &Event) -> Option<(u64, Operation)> {
    match event {
        Event::Completed(it) if it.done => Some((it.id, it.operation)),
        _ => None,
    }
}

/// Both sides go on until there is what is looked for.
pub fn until<A: Carrier, B: Carrier, T>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    mut found: impl FnMut(&mut Side<A>, &mut Side<B>) -> Option<T>,
) -> T {
    let begin = Instant::now();
    loop {
        a.look();
        b.look();
        if let Some(found) = found(a, b) {
            return found;
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "nothing happens: {:?} {:?}, ended: {:?} {:?}",
            a.events,
            b.events,
            a.ends,
            b.ends
        );
    }
}

pub fn listen<C: Carrier>(side: &mut Side<C>, at: SocketAddr) -> SocketAddr {
    side.provider.listen(at).unwrap()
}

pub fn connect<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) -> (ConnectionId, ConnectionId) {
    let at_a = a.provider.connect(address, b"hello").unwrap();
    let (at_b, greeting) = until(a, b, |_, b| b.find(requested));
    let begin = &greeting.private_data[..5];
    assert_eq!(begin, b"hello");
    b.accept(at_b, 255);
    let (id, greeting) = until(a, b, |a, _| a.find(established));
    assert_eq!((id, &greeting.private_data[..7]), (at_a, &b"welcome"[..]));
    until(a, b, |_, b| b.find(established));
    a.receive(at_a, 255).unwrap();
    (at_a, at_b)
}

/// Until no connection is left at either side.
pub fn gone<A: Carrier, B: Carrier>(a: &mut Side<A>, b: &mut Side<B>) {
    until(a, b, |a, b| {
        // What nobody looked at is given back.
        while a.message().is_some() || b.message().is_some() {}
        (a.provider.count() + b.provider.count() == 0).then_some(())
    });
}

pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 37 + at / 251).to_le_bytes()[0] ^ seed)
        .collect()
}

const BOTH: Access = Access {
    read: true,
    write: true,
};

pub fn disconnect<A: Carrier, B: Carrier>(a: &mut Side<A>, b: &mut Side<B>, at_a: ConnectionId) {
    a.provider.connection(at_a).unwrap().disconnect();
    gone(a, b);
    a.ends.clear();
    b.ends.clear();
    a.events.clear();
    b.events.clear();
}

/// All cases, one connection after the other to the same listener.
pub fn all<A: Carrier, B: Carrier>(a: A, b: B, at: SocketAddr, kind: Kind) {
    let (mut a, mut b) = (Side::new(a), Side::new(b));
    let address = listen(&mut b, at);
    let (a, b) = (&mut a, &mut b);
    everything_arrives(a, b, address);
    both_ends_talk_at_the_same_time(a, b, address);
    more_reads_than_there_may_be_at_a_time(a, b, address);
    messages_come_before_anybody_hears_of_the_connection(a, b, address);
    an_end_is_heard_of_at_the_other(a, b, address);
    rejected_with_words(a, b, address);
    refusals::an_exposure_that_ended_is_refused(a, b, address);
    refusals::an_exposure_is_for_what_it_was_made(a, b, address);
    if !kind.single {
        refusals::a_key_means_nothing_on_another_connection(a, b, address);
    }
    refusals::a_message_that_nobody_wants_ends_the_connection(a, b, address);
    refusals::a_message_that_is_too_long_ends_the_connection(a, b, address);
    refusals::a_message_ends_an_exposure(a, b, address, kind);
    refusals::memory_that_is_removed_ends_what_uses_it(a, b, address);
    refusals::wrong_work_is_refused(a, b, address);
}

fn everything_arrives<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    let (at_a, at_b) = connect(a, b, address);
    let half = MEMORY_LEN / 2;
    let data = pattern(MEMORY / 2, 1);
    a.write(0, &data);
    let place = b.slice(77, half);
    let to = b.expose(at_b, &[place], BOTH);
    let gather = [a.slice(0, 77), a.slice(77, half - 77)];
    let write = Work::Write {
        gather: &gather,
        to,
    };
    a.post(at_a, 1, write).unwrap();
    let into = [a.slice(u64::from(half), half - 5)];
    let mut from = to;
    from.address += 5;
    a.post(at_a, 2, Work::Read { into: &into, from }).unwrap();
    a.send(at_a, 3, &[a.slice(3, 4096), a.slice(4099, 4096)]);
    a.send(at_a, 4, &[]);
    let mut left = vec![
        (1, Operation::Write),
        (2, Operation::Read),
        (3, Operation::Send),
        (4, Operation::Send),
    ];
    let mut messages = Vec::new();
    until(a, b, |a, b| {
        while let Some((_, it)) = a.find(done) {
            left.retain(|one| *one != it);
        }
        messages.extend(b.message());
        (left.is_empty() && messages.len() == 2).then_some(())
    });
    assert!(messages == [&data[3..3 + 8192], b""]);
    assert!(a.read(into[0]) == data[5..], "read back");
    assert!(b.read(place) == data);
    disconnect(a, b, at_a);
}

fn both_ends_talk_at_the_same_time<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    let (at_a, at_b) = connect(a, b, address);
    for number in 0..200 {
        a.send(at_a, number, &[a.slice(number, 5000)]);
    }
    // A listener may speak when it has heard something.
    let mut counts = [0; 2];
    until(a, b, |_, b| {
        counts[1] += usize::from(b.message().is_some());
        (counts[1] > 0).then_some(())
    });
    for number in 0..200 {
        b.send(at_b, number, &[b.slice(number, 5000)]);
    }
    until(a, b, |a, b| {
        while a.message().is_some() {
            counts[0] += 1;
        }
        while b.message().is_some() {
            counts[1] += 1;
        }
        (counts == [200, 200]).then_some(())
    });
    disconnect(a, b, at_a);
}

fn more_reads_than_there_may_be_at_a_time<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    let (at_a, at_b) = connect(a, b, address);
    let data = pattern(1 << 20, 7);
    b.write(0, &data);
    let from = b.expose(at_b, &[b.slice(0, 1 << 20)], Access::READ);
    let places: Vec<Slice> = (0..32).map(|at| a.slice(at << 15, 1 << 15)).collect();
    for (number, place) in (0..).zip(&places) {
        let mut from = from;
        from.address += place.offset;
        let into = [*place];
        a.post(at_a, number, Work::Read { into: &into, from })
            .unwrap();
    }
    let mut count = 0;
    until(a, b, |a, _| {
        while a.find(done).is_some() {
            count += 1;
        }
        (count == 32).then_some(())
    });
    assert!(a.read(a.slice(0, 1 << 20)) == data);
    disconnect(a, b, at_a);
}

/// m:60697ed23, m:b6d787d1f: a completion of a receive before the connection is established.
fn messages_come_before_anybody_hears_of_the_connection<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    let at_a = a.provider.connect(address, b"hello").unwrap();
    let (at_b, _) = until(a, b, |_, b| b.find(requested));
    b.accept(at_b, 2);
    b.provider.flush();
    let begin = Instant::now();
    // Only one of them goes on.
    while a.find(established).is_none() {
        a.look();
        // A listener in memory has to be asked what it says.
        if begin.elapsed() > Duration::from_secs(1) {
            b.look();
        }
        assert!(begin.elapsed() < PATIENCE);
    }
    a.send(at_a, 1, &[a.slice(0, 100)]);
    let begin = Instant::now();
    while a.find(done).is_none() {
        a.look();
        if begin.elapsed() > Duration::from_secs(1) {
            b.look();
        }
        assert!(begin.elapsed() < PATIENCE);
    }
    until(a, b, |_, b| {
        b.events
            .iter()
            .any(|it| received(&it.1).is_some())
            .then_some(())
    });
    let kinds: Vec<bool> = b
        .events
        .iter()
        .map(|it| established(&it.1).is_some())
        .collect();
    assert_eq!(kinds, [true, false], "{:?}", b.events);
    b.message().unwrap();
    disconnect(a, b, at_a);
}

fn an_end_is_heard_of_at_the_other<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    for a_ends in [true, false] {
        let (at_a, at_b) = connect(a, b, address);
        a.send(at_a, 1, &[a.slice(0, 10)]);
        until(a, b, |a, b| {
            (a.find(done).is_some() | b.message().is_some()).then_some(())
        });
        if a_ends {
            a.provider.connection(at_a).unwrap().disconnect();
        } else {
            b.provider.connection(at_b).unwrap().disconnect();
        }
        gone(a, b);
        let (ours, theirs) = (a.end_of(at_a).unwrap(), b.end_of(at_b).unwrap());
        let expected = if a_ends {
            (Failure::Disconnected, Failure::Closed)
        } else {
            (Failure::Closed, Failure::Disconnected)
        };
        assert_eq!((ours, theirs), expected);
        assert_eq!((a.ends.len(), b.ends.len()), (1, 1), "exactly once");
        assert!(a.provider.connection(at_a).is_none());
        let work = Work::Send {
            gather: &[],
            invalidate: None,
            solicited: false,
        };
        assert_eq!(a.post(at_a, 1, work), Err(PostError::NotConnected));
        for events in [&mut a.events, &mut b.events] {
            events.clear();
        }
        a.ends.clear();
        b.ends.clear();
    }
}

fn rejected_with_words<A: Carrier, B: Carrier>(
    a: &mut Side<A>,
    b: &mut Side<B>,
    address: SocketAddr,
) {
    let at_a = a.provider.connect(address, b"please").unwrap();
    let (at_b, greeting) = until(a, b, |_, b| b.find(requested));
    assert_eq!(&greeting.private_data[..6], b"please");
    let rejected = b.provider.connection(at_b).unwrap().reject(b"not now");
    rejected.unwrap();
    let words = |event: &Event| match event {
        Event::Rejected { private_data } => Some(private_data.clone()),
        _ => None,
    };
    let (id, said) = until(a, b, |a, _| a.find(words));
    assert_eq!((id, &said[..7]), (at_a, &b"not now"[..]));
    gone(a, b);
    assert_eq!(a.ends, [(at_a, Failure::Rejected)]);
    assert_eq!(b.ends, [(at_b, Failure::Disconnected)]);
    a.ends.clear();
    b.ends.clear();
}
