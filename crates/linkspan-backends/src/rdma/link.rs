//! One connection and its socket.

use std::io;
use std::time::Duration;

use linkspan_rdma::Memories;
use linkspan_rdma::iwarp::{
    Batch, Connection, ENTROPY, Life, OptionError, Options, Piece, Wanted, feed,
};
use linkspan_rdma::verbs::{Event, Post, PostError, Slice};
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, ReadyEvent};
use linkspan_sys::tcp::{Gather, Scatter, TcpStream};

use super::capture::{Trace, Way};
use super::guests::Guest;
use super::table::Entry;
use super::{STAGING, Shared};

/// From here on bytes are read straight to their place.
const DIRECT_MIN: u32 = 4096;

/// From here on what comes behind them is read alone: the end of a frame and the header
/// of the next one, which is about as large.
const LARGE: u32 = 16 << 10;
const BETWEEN: usize = 64;

/// Small frames that do not end a run of large ones: a long piece of work ends with one.
const BETWEEN_LARGE: u8 = 2;

/// Bytes that one connection reads, or writes, before others have their turn.
const TURN: usize = 1 << 20;

/// Bytes of all connections that wait for buffers: when there are so many, the next are read in
/// small pieces.
const STAGED_MAX: usize = 16 * STAGING;

pub(super) struct Link {
    stream: Option<TcpStream>,
    connection: Connection,
    connecting: bool,
    /// What is being written.
    batch: Option<Batch>,
    /// Bytes that were read and wait for a buffer.
    staged: Vec<u8>,
    /// How many of them are dealt with.
    fed: usize,
    /// Small frames that may still come between large ones; none if those are past.
    large: u8,
    blocked: bool,
    shut: bool,
    interest: Interest,
    pub(super) busy: bool,
    /// Buffers came back that were not counted yet.
    pub(super) given: bool,
    pub(super) starving: bool,
    /// Where its bytes stand in a capture.
    trace: Trace,
    /// Who came; nobody if we connected.
    pub(super) guest: Option<Guest>,
    /// Buffers that messages of it are in, and as many as were counted for its address.
    pub(super) lent: usize,
    pub(super) counted: usize,
}

impl Entry for Link {
    fn has_events(&self) -> bool {
        self.connection.has_events()
    }

    fn poll(&mut self) -> Option<Event> {
        self.connection.poll()
    }

    fn next_due(&self) -> Option<Duration> {
        self.connection.next_timeout()
    }
}

impl Link {
    pub(super) fn initiator(
        stream: TcpStream,
        options: Options,
        entropy: [u8; ENTROPY],
        private_data: &[u8],
        now: Duration,
    ) -> Result<Self, OptionError> {
        let connection = Connection::initiator(options, entropy, private_data, now)?;
        Ok(Self {
            connecting: true,
            ..Self::new(stream, connection)
        })
    }

    pub(super) fn responder(
        stream: TcpStream,
        options: Options,
        entropy: [u8; ENTROPY],
        now: Duration,
    ) -> Result<Self, OptionError> {
        let connection = Connection::responder(options, entropy, now)?;
        Ok(Self::new(stream, connection))
    }

    fn new(stream: TcpStream, connection: Connection) -> Self {
        Self {
            stream: Some(stream),
            connection,
            connecting: false,
            batch: None,
            staged: Vec::new(),
            fed: 0,
            large: 0,
            blocked: false,
            shut: false,
            interest: Interest::NONE,
            busy: false,
            given: false,
            starving: false,
            trace: Trace::default(),
            guest: None,
            lent: 0,
            counted: 0,
        }
    }

    /// Nothing once it is closed.
    pub(super) fn stream(&self) -> Option<&TcpStream> {
        self.stream.as_ref()
    }

    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Watches the socket for the first time.
    pub(super) fn begin(
        &mut self,
        epoll: &Epoll,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        if let Some(stream) = &self.stream {
            epoll.add(stream, token, interest)?;
        }
        self.interest = interest;
        Ok(())
    }

    pub(super) fn is_over(&self) -> bool {
        self.connection.life() == Life::Over
    }

    pub(super) fn is_starved(&mut self) -> bool {
        matches!(self.connection.wanted(), Wanted::Buffer { .. })
    }

    /// Watches the socket for what can be done with it.
    pub(super) fn watch(&mut self, epoll: &Epoll, token: u64) -> io::Result<()> {
        let reads = !self.connecting && !self.is_starved();
        let wanted = match (reads, self.blocked || self.connecting) {
            (true, false) => Interest::READ,
            (true, true) => Interest::READ_WRITE,
            (false, true) => Interest::WRITE,
            (false, false) => Interest::NONE,
        };
        if let Some(stream) = self.stream.as_ref().filter(|_| wanted != self.interest) {
            epoll.modify(stream, token, wanted)?;
            self.interest = wanted;
        }
        Ok(())
    }

    pub(super) fn close(&mut self, epoll: &Epoll) {
        if let Some(stream) = self.stream.take() {
            // It is closed right after.
            let _ = epoll.delete(&stream);
        }
    }

    pub(super) fn tick(&mut self, shared: &mut Shared) {
        self.connection.tick(shared.now);
        self.write(shared);
    }

    pub(super) fn happened(&mut self, shared: &mut Shared, event: ReadyEvent) {
        self.connection.tick(shared.now);
        if self.connecting && (event.writable || event.closed) {
            self.connecting = false;
            let failed = |stream: &TcpStream| stream.check().is_err();
            if self.stream.as_ref().is_none_or(failed) {
                return self.fail(shared);
            }
        }
        if event.closed && self.is_starved() {
            // Nobody reads, so nobody else would notice.
            return self.fail(shared);
        }
        if event.readable || event.closed {
            self.read(shared);
        }
        self.blocked &= !event.writable;
        self.write(shared);
    }

    /// The socket is of no use any more.
    pub(super) fn fail(&mut self, shared: &mut Shared) {
        self.connection.lost();
        self.after(shared);
    }

    /// What the end of the connection leaves behind goes back.
    fn after(&mut self, shared: &mut Shared) {
        if let Some(buffer) = self.connection.take_abandoned() {
            shared.pool.put(buffer);
            self.lent -= 1;
        }
        if self.is_over() {
            self.unstage(shared);
            if let Some(mut batch) = self.batch.take() {
                batch.clear();
                shared.give_back(batch);
            }
        }
    }

    /// Reads what is there, within its turn.
    pub(super) fn read(&mut self, shared: &mut Shared) {
        let before = shared.pool.used().1;
        let mut turn = 0;
        while turn < TURN {
            match self.read_once(shared) {
                Ok(Some((count, full))) => {
                    turn += count;
                    // Less than there was room for: nothing is left.
                    if !full {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.connection.lost();
                    break;
                }
            }
        }
        self.lent += shared.pool.used().1 - before;
        self.after(shared);
    }

    /// One system call, or none when bytes wait for a buffer or the connection is over.
    fn read_once(&mut self, shared: &mut Shared) -> io::Result<Option<(usize, bool)>> {
        if !self.staged.is_empty() {
            self.fed += feed(
                &mut self.connection,
                &self.staged[self.fed..],
                &mut shared.memories,
                &mut shared.pool,
            );
            if self.fed < self.staged.len() {
                return Ok(None);
            }
            self.unstage(shared);
        }
        let Some(stream) = &self.stream else {
            return Ok(None);
        };
        match self.connection.wanted() {
            Wanted::Nothing => Ok(None),
            Wanted::Buffer { .. } => match shared.pool.take(&mut shared.memories) {
                Some(buffer) => {
                    self.connection.give(buffer);
                    Ok(Some((0, true)))
                }
                None => Ok(None),
            },
            Wanted::Place { len, crc } if len >= DIRECT_MIN || self.large > 0 => {
                self.read_direct(shared, len, crc)
            }
            Wanted::Place { .. } | Wanted::Bytes(_) => {
                let room = ahead(shared, self.large > 0);
                shared.calls += 1;
                let count = stream.read_bytes(&mut shared.staging[..room])?;
                if let Some(capture) = &mut shared.capture {
                    let parts = [&shared.staging[..count]];
                    capture.write(&mut self.trace, stream, Way::In, &parts);
                }
                self.take(shared, count)?;
                self.large = match self.connection.wanted() {
                    Wanted::Place { len, .. } if len >= LARGE => BETWEEN_LARGE,
                    // Not even a header came.
                    Wanted::Bytes(_) if count < room => self.large,
                    _ => self.large.saturating_sub(1),
                };
                Ok(Some((count, count == room)))
            }
        }
    }

    /// Straight to where the bytes belong, and what is behind them into private memory.
    fn read_direct(
        &mut self,
        shared: &mut Shared,
        len: u32,
        crc: Option<u32>,
    ) -> io::Result<Option<(usize, bool)>> {
        let Some(stream) = &self.stream else {
            return Ok(None);
        };
        let mut scatter = Scatter::new();
        let memories = &shared.memories;
        let mut whole = true;
        let mut lost = false;
        self.connection.places(len, |place| {
            match memories.slice(place) {
                Some(slice) => whole &= scatter.push_shared(slice),
                None => lost = true,
            };
        });
        if lost {
            self.connection.memory_lost();
            return Ok(Some((0, true)));
        }
        let placed_max = scatter.len();
        let between = ahead(shared, self.large > 0 || len >= LARGE);
        if whole {
            scatter.push(&mut shared.staging[..between]);
        }
        let room = scatter.len();
        let count = stream.read(&mut scatter);
        shared.calls += 1;
        let count = count?;
        if count == 0 {
            self.connection.receive_end();
            return Ok(Some((0, false)));
        }
        let placed = count.min(placed_max);
        // At most `len`.
        let placed_len = u32::try_from(placed).unwrap_or(len);
        let sum = crc.map_or(0, |crc| {
            let mut sum = crc;
            self.connection
                .places(placed_len, |place| sum = shared.memories.crc32c(place, sum));
            sum
        });
        if let Some(capture) = &mut shared.capture {
            let mut bytes = Vec::new();
            self.connection
                .places(placed_len, |place| add(&mut bytes, &shared.memories, place));
            let parts = [&bytes[..], &shared.staging[..count - placed]];
            capture.write(&mut self.trace, stream, Way::In, &parts);
        }
        self.connection.placed(placed_len, sum);
        if len >= LARGE {
            self.large = BETWEEN_LARGE;
        }
        if count > placed {
            self.take(shared, count - placed)?;
        }
        Ok(Some((count, count == room)))
    }

    /// Takes what was read into private memory; nothing is the end of the stream.
    fn take(&mut self, shared: &mut Shared, count: usize) -> io::Result<()> {
        if count == 0 {
            self.connection.receive_end();
            return Ok(());
        }
        let Shared {
            staging,
            memories,
            pool,
            staged,
            ..
        } = shared;
        let bytes = &staging[..count];
        let used = feed(&mut self.connection, bytes, memories, pool);
        if used < count {
            linkspan_mem::fault::point(linkspan_mem::fault::Site::Alloc)
                .map_err(|_| io::ErrorKind::OutOfMemory)?;
            self.staged.extend_from_slice(&bytes[used..]);
            *staged += count - used;
        }
        Ok(())
    }

    /// Nothing waits for a buffer any more.
    fn unstage(&mut self, shared: &mut Shared) {
        shared.staged -= self.staged.len();
        self.staged = Vec::new();
        self.fed = 0;
    }

    /// Posts work, which is framed at once if nothing goes before it.
    pub(super) fn post(&mut self, shared: &mut Shared, post: &Post<'_>) -> Result<(), PostError> {
        let batch = self.batch.get_or_insert_with(|| shared.batch());
        let posted = self.connection.post_to(post, batch, &shared.memories);
        if batch.is_empty()
            && let Some(batch) = self.batch.take()
        {
            shared.give_back(batch);
        }
        posted
    }

    /// Writes what there is to say, as much as the socket takes.
    pub(super) fn write(&mut self, shared: &mut Shared) {
        let mut turn = 0;
        while !self.connecting && !self.blocked && !self.is_over() {
            let mut batch = match self.batch.take() {
                Some(batch) => batch,
                None => shared.batch(),
            };
            self.connection.fill(&mut batch, &shared.memories);
            if batch.is_empty() {
                shared.give_back(batch);
                break;
            }
            let done = self.write_batch(shared, &batch);
            shared.calls += 1;
            match done {
                Ok(Some((written, all))) => {
                    if let (Some(capture), Some(stream)) = (&mut shared.capture, &self.stream) {
                        let bytes = first(&batch, written, &shared.memories);
                        capture.write(&mut self.trace, stream, Way::Out, &[&bytes]);
                    }
                    self.connection.written(&mut batch, written);
                    turn += written;
                    // Where there is room for more, epoll says so behind what others have.
                    self.blocked = !all || turn >= TURN;
                }
                Ok(None) => {
                    // What was begun cannot be finished.
                    self.connection.memory_lost();
                    self.connection.lost();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocked = true,
                Err(_) => self.connection.lost(),
            }
            self.batch = Some(batch);
        }
        self.after(shared);
        if self.connection.life() == Life::ShutDown && !self.shut {
            self.shut = true;
            if let Some(stream) = &self.stream {
                // A peer that is gone is found out by reading.
                let _ = stream.shut_down();
            }
        }
    }

    /// One system call. Says how much was written, and whether that was all it was given;
    /// `None` if memory is not there any more.
    fn write_batch(&self, shared: &Shared, batch: &Batch) -> io::Result<Option<(usize, bool)>> {
        let Some(stream) = &self.stream else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let mut gather = Gather::new();
        for piece in batch.pieces() {
            let fits = match piece {
                Piece::Bytes(bytes) => gather.push(bytes),
                Piece::Slice(slice) => match shared.memories.slice(slice) {
                    Some(slice) => gather.push_shared(slice),
                    None => return Ok(None),
                },
            };
            if !fits {
                break;
            }
        }
        let offered = gather.len();
        let written = stream.write(&mut gather)?;
        Ok(Some((written, written == offered)))
    }
}

/// Bytes to read ahead: what comes behind large frames, or has no room, in small pieces.
fn ahead(shared: &Shared, large: bool) -> usize {
    if large || shared.staged >= STAGED_MAX {
        BETWEEN
    } else {
        shared.staging.len()
    }
}

/// The first bytes of a batch, for a capture.
fn first(batch: &Batch, len: usize, memories: &Memories) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in batch.pieces() {
        match piece {
            Piece::Bytes(part) => bytes.extend_from_slice(part),
            Piece::Slice(slice) => add(&mut bytes, memories, slice),
        }
        if bytes.len() >= len {
            break;
        }
    }
    bytes.truncate(len);
    bytes
}

fn add(bytes: &mut Vec<u8>, memories: &Memories, slice: Slice) {
    let at = bytes.len();
    bytes.resize(at + slice.len as usize, 0);
    if let Some(memory) = memories.slice(slice) {
        memory.read(&mut bytes[at..]);
    }
}
