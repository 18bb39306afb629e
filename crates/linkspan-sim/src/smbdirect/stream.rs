//! An end of iWARP with its memory, whose stream is whatever holds both ends: bytes that are
//! written and read in pieces of any size.

use std::time::Duration;

use linkspan_mem::Region;
use linkspan_mem::fault::Injected;
use linkspan_rdma::iwarp::{Batch, Connection, FrameSize, Life, Options, Piece, Ready, feed};
use linkspan_rdma::verbs::{
    Access, Depth, Event, Limits, MemoryId, Post, PostError, Remote, Slice, Verbs, Work,
};
use linkspan_rdma::{Memories, Pool};
use linkspan_smbdirect::{self as smbdirect, Role, private_data};

/// How a stream is made, and how it carries bytes.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// How frames are cut.
    pub frame: FrameSize,
    /// Whether they have checksums.
    pub crc: bool,
    /// Of MPA.
    pub revision: u8,
    /// The ready-to-receive messages that are offered.
    pub ready: Option<Ready>,
    /// Signs of life that are awaited.
    pub nudges: u8,
}

impl Way {
    /// As a program does it.
    pub const USUAL: Self = Self {
        frame: FrameSize::Max,
        crc: false,
        revision: 2,
        ready: None,
        nudges: 0,
    };

    fn options(&self, depth: Depth, limits: Limits) -> Options {
        Options {
            depth,
            inbound_max: 128,
            crc: self.crc,
            revision: self.revision,
            ready: self.ready,
            frame: self.frame,
            limits,
            nudges: self.nudges,
            ..Options::default()
        }
    }
}

/// What goes over the stream one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// These.
    Some(Vec<u8>),
    /// There will be no more.
    End,
}

/// One end.
pub struct Stream {
    connection: Connection,
    options: Options,
    memories: Memories,
    pool: Pool,
    batch: Batch,
    /// Bytes that are here and wait for a buffer.
    staged: Vec<u8>,
    /// The peer will say nothing more.
    ended: bool,
    /// Whether the end of what is written was told.
    shut: bool,
    /// Every other work is framed when it is posted.
    posts: u64,
}

impl Stream {
    /// An end that has said nothing.
    ///
    /// # Panics
    /// The options cannot be.
    pub fn new(
        role: Role,
        options: &smbdirect::Options,
        limits: Limits,
        way: &Way,
        now: u64,
    ) -> Self {
        let depth = Depth {
            inbound: options.inbound_reads,
            outbound: options.outbound_reads,
        };
        let now = Duration::from_millis(now);
        let iwarp = way.options(depth, limits);
        let connection = match role {
            Role::Initiator => Connection::initiator(iwarp, [1; 32], &private_data(options), now),
            Role::Listener => Connection::responder(iwarp, [2; 32], now),
        };
        Self {
            connection: connection.expect("options that can be"),
            options: iwarp,
            memories: Memories::new(),
            pool: Pool::new(limits.receive_size, usize::MAX),
            batch: Batch::new(256 << 10),
            staged: Vec::new(),
            ended: false,
            shut: false,
            posts: 0,
        }
    }

    /// Makes memory known.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn add_memory(&mut self, region: Region) -> Result<MemoryId, Injected> {
        self.memories.add(region)
    }

    /// What it writes next, at most so many bytes.
    pub fn write(&mut self, max: usize) -> Option<Bytes> {
        self.feed();
        if self.connection.life() == Life::Over {
            self.batch.clear();
        } else {
            self.connection.fill(&mut self.batch, &self.memories);
        }
        let bytes = self.told(max);
        let connection = &mut self.connection;
        if !self.batch.is_empty() {
            connection.written(&mut self.batch, bytes.len());
        }
        if !bytes.is_empty() {
            return Some(Bytes::Some(bytes));
        }
        let ends = connection.life() != Life::Open && !self.shut;
        self.shut |= ends;
        ends.then_some(Bytes::End)
    }

    /// The first bytes that the batch tells.
    fn told(&self, max: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in self.batch.pieces() {
            let room = max - bytes.len();
            if room == 0 {
                break;
            }
            match piece {
                Piece::Bytes(part) => bytes.extend_from_slice(&part[..part.len().min(room)]),
                Piece::Slice(slice) => {
                    let part = slice.part(0, u32::try_from(room).unwrap_or(u32::MAX));
                    let at = bytes.len();
                    bytes.resize(at + part.len as usize, 0);
                    let memory = self.memories.slice(part).expect("memory that is there");
                    memory.read(&mut bytes[at..]);
                }
            }
        }
        bytes
    }

    /// What it reads; at most so many bytes of it, and the rest comes back.
    pub fn read(&mut self, bytes: Bytes, max: usize) -> Option<Bytes> {
        let mut rest = Vec::new();
        match bytes {
            Bytes::End => self.ended = true,
            Bytes::Some(mut bytes) => {
                rest = bytes.split_off(max.min(bytes.len()));
                self.staged.extend_from_slice(&bytes);
            }
        }
        self.feed();
        (!rest.is_empty()).then_some(Bytes::Some(rest))
    }

    fn feed(&mut self) {
        let Self {
            connection,
            memories,
            pool,
            staged,
            ..
        } = self;
        let used = feed(connection, staged, memories, pool);
        staged.drain(..used);
        if self.ended && self.staged.is_empty() {
            self.ended = false;
            self.connection.receive_end();
        }
        self.after();
    }

    /// What the end of the connection leaves behind goes back.
    fn after(&mut self) {
        if let Some(buffer) = self.connection.take_abandoned() {
            self.pool.put(buffer);
        }
    }

    /// The stream is gone.
    pub fn lose(&mut self) {
        self.connection.lost();
        self.after();
    }

    /// Buffers that are lent.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.pool.used().1
    }

    /// Receives that are posted and not taken.
    #[must_use]
    pub fn receives(&self) -> u32 {
        self.connection.posted().2
    }

    /// Says what time it is, in milliseconds.
    pub fn tick(&mut self, now: u64) {
        self.connection.tick(Duration::from_millis(now));
        self.after();
    }

    /// When that is due.
    pub fn next_timeout(&self) -> Option<u64> {
        let due = self.connection.next_timeout()?;
        Some(u64::try_from(due.as_micros().div_ceil(1000)).expect("not for ages"))
    }

    /// Saves the connection if it is quiet, and goes on with what that makes.
    pub fn restore(&mut self, now: u64) -> bool {
        if !self.staged.is_empty() || !self.batch.is_empty() {
            return false;
        }
        let Ok(bytes) = self.connection.snapshot() else {
            return false;
        };
        let now = Duration::from_millis(now);
        let restored = Connection::restore(self.options, now, &bytes);
        let restored = restored.expect("it was saved a moment ago");
        assert_eq!(restored.posted(), self.connection.posted());
        self.connection = restored;
        true
    }
}

impl Verbs for Stream {
    fn limits(&self) -> Limits {
        self.connection.limits()
    }

    fn memories(&self) -> &Memories {
        &self.memories
    }

    fn accept(&mut self, private_data: &[u8], depth: Depth) -> Result<(), PostError> {
        self.connection.accept(private_data, depth)
    }

    fn reject(&mut self, private_data: &[u8]) -> Result<(), PostError> {
        self.connection.reject(private_data)
    }

    fn post_receives(&mut self, count: u32) -> Result<(), PostError> {
        self.connection.post_receives(count)
    }

    fn release(&mut self, buffer: Slice) {
        self.pool.put(buffer);
    }

    fn post(&mut self, post: &Post<'_>) -> Result<(), PostError> {
        self.posts += 1;
        if self.posts.is_multiple_of(2) {
            return self
                .connection
                .post_to(post, &mut self.batch, &self.memories);
        }
        let slices: &[Slice] = match post.work {
            Work::Send { gather, .. } | Work::Write { gather, .. } => gather,
            Work::Read { into, .. } => into,
            Work::Invalidate { .. } => &[],
        };
        self.memories.check(slices)?;
        self.connection.post(post)
    }

    fn expose(&mut self, slices: &[Slice], access: Access) -> Result<Remote, PostError> {
        self.memories.check(slices)?;
        self.connection.expose(slices, access)
    }

    fn disconnect(&mut self) {
        self.connection.disconnect();
    }

    fn poll(&mut self) -> Option<Event> {
        self.connection.poll()
    }
}
