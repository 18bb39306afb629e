//! An end with memory, and two of them with a stream between them.

use std::time::Duration;

use linkspan_mem::Region;
use linkspan_rdma::iwarp::{Batch, Connection, Life, NotQuiet, Options, Piece, feed};
use linkspan_rdma::verbs::{
    Access, Completion, Depth, Event, Failure, MemoryId, Operation, Post, PostError, Received,
    Remote, Slice, Work,
};
use linkspan_rdma::{Memories, Pool};

pub(crate) const MEMORY: usize = 1 << 20;

pub(crate) struct End {
    pub(crate) connection: Connection,
    pub(crate) memories: Memories,
    pub(crate) pool: Pool,
    pub(crate) memory: MemoryId,
    pub(crate) batch: Batch,
    staged: Vec<u8>,
}

impl End {
    pub(crate) fn new(connection: Connection) -> Self {
        let mut memories = Memories::new();
        let memory = memories.add(Region::heap(MEMORY).unwrap()).unwrap();
        let size = connection.limits().receive_size;
        Self {
            connection,
            memories,
            pool: Pool::new(size, 1 << 20),
            memory,
            batch: Batch::new(256 << 10),
            staged: Vec::new(),
        }
    }

    pub(crate) fn initiator(options: Options) -> Self {
        let connection = Connection::initiator(options, [7; 32], b"hello", Duration::ZERO);
        Self::new(connection.unwrap())
    }

    pub(crate) fn responder(options: Options) -> Self {
        Self::new(Connection::responder(options, [9; 32], Duration::ZERO).unwrap())
    }

    /// Saves the connection, and goes on with what that makes.
    pub(crate) fn save(&mut self, options: Options) -> Result<(), NotQuiet> {
        let bytes = self.connection.snapshot()?;
        let restored = Connection::restore(options, Duration::ZERO, &bytes).unwrap();
        assert_eq!(restored.snapshot().as_ref(), Ok(&bytes));
        assert_eq!(restored.posted(), self.connection.posted());
        self.connection = restored;
        Ok(())
    }

    /// What is to be written, at most so many bytes of it.
    pub(crate) fn transmit(&mut self, max: usize) -> Vec<u8> {
        if self.connection.life() == Life::Over {
            self.batch.clear();
        }
        self.connection.fill(&mut self.batch, &self.memories);
        let mut bytes = self.told();
        assert_eq!(bytes.len(), self.batch.left());
        bytes.truncate(max);
        self.connection.written(&mut self.batch, bytes.len());
        if self.connection.life() == Life::Over {
            self.batch.clear();
        }
        bytes
    }

    /// The bytes that the batch tells.
    fn told(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in self.batch.pieces() {
            match piece {
                Piece::Bytes(part) => bytes.extend_from_slice(part),
                Piece::Slice(slice) => {
                    let at = bytes.len();
                    bytes.resize(at + slice.len as usize, 0);
                    let memory = self.memories.slice(slice).unwrap();
                    memory.read(&mut bytes[at..]);
                }
            }
        }
        bytes
    }

    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.staged.extend_from_slice(bytes);
        let used = feed(
            &mut self.connection,
            &self.staged,
            &mut self.memories,
            &mut self.pool,
        );
        self.staged.drain(..used);
        if let Some(buffer) = self.connection.take_abandoned() {
            self.pool.put(buffer);
        }
    }

    pub(crate) fn slice(&self, offset: u64, len: u32) -> Slice {
        Slice {
            memory: self.memory,
            len,
            offset,
        }
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        let slice = self.slice(offset, u32::try_from(bytes.len()).unwrap());
        self.memories.slice(slice).unwrap().write(bytes);
    }

    pub(crate) fn read(&self, slice: Slice) -> Vec<u8> {
        let mut bytes = vec![0; slice.len as usize];
        self.memories.slice(slice).unwrap().read(&mut bytes);
        bytes
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.connection.poll()).collect()
    }

    /// The messages that came; their buffers are given back. Other events are dropped.
    pub(crate) fn messages(&mut self) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        for event in self.events() {
            if let Event::Received(received) = event {
                messages.push(self.take(received));
            }
        }
        messages
    }

    pub(crate) fn take(&mut self, received: Received) -> Vec<u8> {
        let bytes = self.read(received.buffer);
        self.pool.put(received.buffer);
        bytes
    }

    pub(crate) fn post(&mut self, id: u64, work: Work<'_>) -> Result<(), PostError> {
        let post = Post {
            id,
            signalled: true,
            work,
        };
        // Framed at once where that is possible, or with what waits.
        if id.is_multiple_of(2) {
            self.connection.post(&post)
        } else {
            self.connection
                .post_to(&post, &mut self.batch, &self.memories)
        }
    }

    pub(crate) fn send(&mut self, id: u64, slice: Slice) -> Result<(), PostError> {
        self.post(
            id,
            Work::Send {
                gather: &[slice],
                invalidate: None,
                solicited: false,
            },
        )
    }

    pub(crate) fn expose(&mut self, offset: u64, len: u32, access: Access) -> Remote {
        let slice = self.slice(offset, len);
        self.connection.expose(&[slice], access).unwrap()
    }
}

pub(crate) struct Pair {
    pub(crate) a: End,
    pub(crate) b: End,
}

impl Pair {
    pub(crate) fn new(a: Options, b: Options) -> Self {
        Self {
            a: End::initiator(a),
            b: End::responder(b),
        }
    }

    /// Two ends that have met; their events are taken.
    pub(crate) fn established(options: Options) -> Self {
        let mut pair = Self::new(options, options);
        pair.run();
        pair.b.connection.accept(b"welcome", options.depth).unwrap();
        pair.a.connection.post_receives(100).unwrap();
        pair.b.connection.post_receives(100).unwrap();
        pair.run();
        // The initiator speaks first.
        pair.a.send(0, pair.a.slice(0, 0)).unwrap();
        pair.run();
        assert!(matches!(
            pair.a.events()[..],
            [Event::Established(_), Event::Completed(_)]
        ));
        assert_eq!(pair.b.messages(), [b""]);
        pair
    }

    /// Two ends that have heard each other.
    pub(crate) fn met(options: Options) -> Self {
        let mut pair = Self::established(options);
        pair.b.send(0, pair.b.slice(0, 0)).unwrap();
        pair.run();
        assert_eq!((pair.b.events().len(), pair.a.messages().len()), (1, 1));
        pair
    }

    /// Carries bytes until both are silent.
    pub(crate) fn run(&mut self) {
        self.run_in_pieces(usize::MAX, usize::MAX);
    }

    /// The same, written and read in pieces of these sizes.
    pub(crate) fn run_in_pieces(&mut self, write: usize, read: usize) {
        loop {
            let to_b = self.a.transmit(write);
            let to_a = self.b.transmit(write);
            for piece in to_b.chunks(read.min(to_b.len().max(1))) {
                self.b.receive(piece);
            }
            for piece in to_a.chunks(read.min(to_a.len().max(1))) {
                self.a.receive(piece);
            }
            if to_a.is_empty() && to_b.is_empty() {
                return;
            }
        }
    }
}

pub(crate) fn done(id: u64, operation: Operation) -> Event {
    Event::Completed(Completion {
        id,
        operation,
        done: true,
    })
}

pub(crate) fn undone(id: u64, operation: Operation) -> Event {
    Event::Completed(Completion {
        id,
        operation,
        done: false,
    })
}

/// How a connection ended, of all its events the last.
pub(crate) fn end_of(events: &[Event]) -> Failure {
    let ends = events.iter().filter(|it| matches!(it, Event::Ended(_)));
    assert_eq!(ends.count(), 1, "{events:?}");
    match events.last() {
        Some(Event::Ended(failure)) => *failure,
        other => panic!("{other:?} after the end"),
    }
}

pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 37 + at / 251).to_le_bytes()[0] ^ seed)
        .collect()
}

pub(crate) const DEPTH: Depth = Depth {
    inbound: 4,
    outbound: 4,
};
