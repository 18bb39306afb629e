//! iWARP: a peer's stream against both roles, from its first byte (`rdma_mpa`) and from
//! an established connection on (`rdma_ddp`).
//!
//! The first byte says which end is under test and with which options. Then come
//! operations: pieces of the peer's stream, raw or as frames that are completed with
//! length and checksum, and what the end's own upper layer and driver do meanwhile. In a
//! frame the tags 0xFFFFFF01, 02 and 03 stand for what is exposed to be written and to
//! be read, and for the sink of the latest read; 04 for what is long and exposed to be read.
//!
//! Whether a work is told to be done is compared with what was really written of it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use linkspan_mem::{Region, crc32c};
use linkspan_rdma::iwarp::{Batch, Connection, FrameSize, Options, Piece, Ready, feed};
use linkspan_rdma::verbs::{
    Access, Completion, Depth, Event, Key, MemoryId, Operation, Post, Remote, Slice, Work,
};
use linkspan_rdma::{Memories, Pool};

use crate::input::Input;

/// What came of a script.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Messages received, and works done.
    pub done: usize,
    /// Works that were refused, or came back undone.
    pub refused: usize,
    /// Why the connection ended, if that was before the script did.
    pub error: Option<String>,
}

/// The target `rdma_mpa`.
pub fn mpa(bytes: &[u8]) {
    run_mpa(bytes);
}

/// The target `rdma_ddp`.
pub fn ddp(bytes: &[u8]) {
    run_ddp(bytes);
}

/// Runs a script from the first byte of the stream on.
pub fn run_mpa(bytes: &[u8]) -> Outcome {
    let mut input = Input::new(bytes);
    let kind = input.u8().unwrap_or(0);
    End::new(kind).run(&mut input)
}

/// Runs a script on an established connection.
pub fn run_ddp(bytes: &[u8]) -> Outcome {
    let mut input = Input::new(bytes);
    let kind = input.u8().unwrap_or(0) & !(REVISION_1 | READY | REJECTS);
    let mut end = End::new(kind);
    end.unwritten = Some(VecDeque::new());
    end.transmit(usize::MAX);
    end.receive(if kind & INITIATOR == 0 {
        b"MPA ID Req Frame\x10\x02\x00\x04\x00\x10\x00\x04"
    } else {
        b"MPA ID Rep Frame\x10\x02\x00\x04\x00\x02\x00\x02"
    });
    end.look();
    end.transmit(usize::MAX);
    end.connection.post_receives(2).expect("two are few");
    end.expose();
    end.run(&mut input)
}

/// Bits of the first byte.
pub const INITIATOR: u8 = 1;
/// Checksums are asked for.
pub const CRC: u8 = 2;
/// Revision 1.
pub const REVISION_1: u8 = 4;
/// An initiator offers to begin.
pub const READY: u8 = 8;
/// Short frames are sent.
pub const SHORT: u8 = 16;
/// Requests are rejected.
pub const REJECTS: u8 = 32;

const MEMORY: usize = 128 << 10;
const WRITABLE: (u64, u32) = (512, 256);
const READABLE: (u64, u32) = (768, 256);
const SINK: u64 = 1024;
const SINK_MAX: u32 = 255;
/// Longer than what is copied to its header, and than what is summed when it is framed.
const LONG: (u64, u32) = (4096, 120 << 10);

/// Opcodes of frames: a write, a read request, and all kinds of sends.
const WRITE: u16 = 0;
const READ_REQUEST: u16 = 1;
const SENDS: std::ops::RangeInclusive<u16> = 3..=6;

/// Of the first 16 bits behind the length: the last frame of a message.
const LAST: u16 = 0x4000;

/// The tag of a write that nobody posted.
const NUDGE: [u8; 4] = [0, 0, 0, 1];

/// Bytes of a frame, or of the request or reply of a set-up.
fn whole_len(bytes: &[u8]) -> usize {
    let number = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    if bytes.starts_with(b"MPA ID ") {
        20 + number(18)
    } else {
        (2 + number(0)).next_multiple_of(4) + 4
    }
}

struct End {
    connection: Connection,
    options: Options,
    memories: Memories,
    memory: MemoryId,
    pool: Pool,
    batch: Batch,
    staged: Vec<u8>,
    now: Duration,
    crc: bool,
    rejects: bool,
    exposed: [Option<Remote>; 3],
    sink: u32,
    /// What is written of a frame that is not written to its end.
    frame: Vec<u8>,
    /// Sends and writes that are posted and not written, in order; and those that are written
    /// and not told. Only where no frame can be there that nobody posted.
    unwritten: Option<VecDeque<u64>>,
    written: BTreeSet<u64>,
    held: Vec<Slice>,
    next_id: u64,
    posted: BTreeSet<u64>,
    ended: bool,
    outcome: Outcome,
}

/// What is in memory before anybody writes.
static PATTERN: [u8; MEMORY] = {
    let mut bytes = [0x5A; MEMORY];
    let mut at = 0;
    while at < MEMORY {
        bytes[at] ^= at.to_le_bytes()[0];
        at += 1;
    }
    bytes
};

impl End {
    fn new(kind: u8) -> Self {
        let has = |bit| kind & bit != 0;
        let depth = Depth {
            inbound: 2,
            outbound: 2,
        };
        let mut options = Options {
            depth,
            inbound_max: 4,
            crc: has(CRC),
            revision: if has(REVISION_1) { 1 } else { 2 },
            ready: has(READY).then_some(Ready {
                write: true,
                read: true,
                send: true,
            }),
            frame: if has(SHORT) {
                FrameSize::Segment(128)
            } else {
                FrameSize::Max
            },
            ..Options::default()
        };
        options.limits.receive_size = 200;
        options.limits.works = 20;
        options.limits.receives = 50;
        options.limits.exposures = 4;
        let connection = if has(INITIATOR) {
            Connection::initiator(options, [7; 32], b"fuzz", Duration::ZERO)
        } else {
            Connection::responder(options, [7; 32], Duration::ZERO)
        };
        let mut memories = Memories::new();
        let region = Region::heap(MEMORY).expect("little");
        region.slice(0, MEMORY as u64).expect("all").write(&PATTERN);
        let memory = memories.add(region).expect("the first");
        Self {
            connection: connection.expect("good options"),
            options,
            memories,
            memory,
            pool: Pool::new(200, 64 << 10),
            batch: Batch::new(100_000),
            staged: Vec::new(),
            now: Duration::ZERO,
            crc: has(CRC),
            rejects: has(REJECTS),
            exposed: [None; 3],
            sink: 0,
            frame: Vec::new(),
            unwritten: None,
            written: BTreeSet::new(),
            held: Vec::new(),
            next_id: 0,
            posted: BTreeSet::new(),
            ended: false,
            outcome: Outcome::default(),
        }
    }

    fn run(mut self, input: &mut Input<'_>) -> Outcome {
        while let Some(operation) = input.u8() {
            if self.step(operation, input).is_none() {
                break;
            }
            self.look();
        }
        self.connection.lost();
        self.batch.clear();
        let error = self.outcome.error.take();
        let was_over = self.ended;
        self.look();
        self.outcome.error = error.filter(|_| was_over);
        assert!(self.ended && self.posted.is_empty(), "something is lost");
        let backs = std::mem::take(&mut self.held);
        backs.into_iter().for_each(|buffer| self.pool.put(buffer));
        assert_eq!(self.pool.used().1, 0, "a buffer is lost");
        self.check_memory();
        self.outcome
    }

    fn step(&mut self, operation: u8, input: &mut Input<'_>) -> Option<()> {
        let slice = |offset, len: u8| Slice {
            memory: self.memory,
            len: len.into(),
            offset,
        };
        let peer = Remote {
            key: Key(5),
            address: 1,
        };
        match operation % 16 {
            0 => {
                let len = input.u8()?.into();
                self.receive(input.bytes(len));
            }
            kind @ (1 | 2) => {
                let len = input.u8()?.into();
                let frame = self.frame(input.bytes(len));
                let piece = if kind == 1 { frame.len() } else { 1 };
                frame.chunks(piece).for_each(|part| self.receive(part));
            }
            3 => {
                let len = input.u8()?;
                let gather = [slice(0, len / 2), slice(256, len - len / 2)];
                self.post(Work::Send {
                    gather: &gather,
                    invalidate: (len == 9).then_some(Key(9)),
                    solicited: len == 8,
                });
            }
            4 => {
                let gather = [match input.u8()? {
                    255 => Slice {
                        memory: self.memory,
                        len: u32::from(input.u8()?) * 480,
                        offset: LONG.0,
                    },
                    len => slice(0, len),
                }];
                self.post(Work::Write {
                    gather: &gather,
                    to: peer,
                });
            }
            5 => {
                let into = [slice(SINK, input.u8()?)];
                self.post(Work::Read {
                    into: &into,
                    from: peer,
                });
            }
            6 => {
                let which = usize::from(input.u8()? & 1);
                if let Some(remote) = self.exposed[which] {
                    self.post(Work::Invalidate { key: remote.key });
                }
            }
            7 => self.expose(),
            8 => {
                self.transmit(match input.u8()? {
                    255 => usize::MAX,
                    max => usize::from(max) * 16,
                });
            }
            9 => {
                if let Some(buffer) = self.held.pop() {
                    self.pool.put(buffer);
                    self.receive(b"");
                }
            }
            10 => {
                self.now += Duration::from_millis(u64::from(input.u8()?) * 100);
                self.connection.tick(self.now);
            }
            11 => self.connection.disconnect(),
            12 => self.connection.receive_end(),
            13 => self.connection.lost(),
            14 => match input.u8()? {
                0 => self.restore(None),
                255 => self.restore(Some([input.u8()?, input.u8()?])),
                count => drop(self.connection.post_receives(count.into())),
            },
            _ => {
                let due = self.connection.next_timeout();
                self.now = due.unwrap_or(self.now).max(self.now);
                self.connection.tick(self.now);
            }
        }
        Some(())
    }

    /// Saved and restored, if it is quiet; or what somebody has made of it is looked at.
    fn restore(&mut self, change: Option<[u8; 2]>) {
        let Ok(mut bytes) = self.connection.snapshot() else {
            return;
        };
        if let Some([at, flip]) = change {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= flip;
            let made = Connection::restore(self.options, self.now, &bytes);
            if let Ok(mut made) = made {
                assert_eq!(made.snapshot().as_ref(), Ok(&bytes));
                made.disconnect();
                made.lost();
                assert!(made.poll().is_some(), "it does not end");
            }
            return;
        }
        let restored = Connection::restore(self.options, self.now, &bytes);
        self.connection = restored.expect("it was saved");
        assert_eq!(self.connection.snapshot().as_ref(), Ok(&bytes));
        self.exposed = [None; 3];
    }

    /// A frame of which only what is between length and padding is given.
    fn frame(&self, ulpdu: &[u8]) -> Vec<u8> {
        let len = u16::try_from(ulpdu.len()).expect("at most 255");
        let mut bytes = len.to_be_bytes().to_vec();
        bytes.extend_from_slice(ulpdu);
        let [writable, readable, long] = self.exposed.map(|it| it.map_or(0, |remote| remote.key.0));
        let end = bytes.len().min(48);
        for at in (4..end.saturating_sub(3)).step_by(4) {
            let tag = match bytes[at..at + 4] {
                [0xFF, 0xFF, 0xFF, 1] => writable,
                [0xFF, 0xFF, 0xFF, 2] => readable,
                [0xFF, 0xFF, 0xFF, 3] => self.sink,
                [0xFF, 0xFF, 0xFF, 4] => long,
                _ => continue,
            };
            bytes[at..at + 4].copy_from_slice(&tag.to_be_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let sum = if self.crc { crc32c(0, &bytes) } else { 0 };
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.staged.extend_from_slice(bytes);
        let used = feed(
            &mut self.connection,
            &self.staged,
            &mut self.memories,
            &mut self.pool,
        );
        self.staged.drain(..used);
    }

    fn expose(&mut self) {
        for (at, (offset, len)) in [WRITABLE, READABLE, LONG].into_iter().enumerate() {
            let whole = Slice {
                memory: self.memory,
                len,
                offset,
            };
            let list = [whole.part(0, 100), whole.part(100, len)];
            let access = [Access::WRITE, Access::READ, Access::READ][at];
            if let Ok(remote) = self.connection.expose(&list, access) {
                self.exposed[at] = Some(remote);
            }
        }
    }

    fn post(&mut self, work: Work<'_>) {
        let id = self.next_id;
        self.next_id += 1;
        let post = Post {
            id,
            signalled: true,
            work,
        };
        // Framed at once where that is possible, or with what waits.
        let posted = if id.is_multiple_of(2) {
            self.connection.post(&post)
        } else {
            self.connection
                .post_to(&post, &mut self.batch, &self.memories)
        };
        match posted {
            Ok(()) => {
                assert!(self.posted.insert(id));
                if let Some(unwritten) = &mut self.unwritten
                    && matches!(work, Work::Send { .. } | Work::Write { .. })
                {
                    unwritten.push_back(id);
                }
            }
            Err(_) => self.outcome.refused += 1,
        }
    }

    fn transmit(&mut self, max: usize) {
        self.connection.fill(&mut self.batch, &self.memories);
        let mut bytes = self.told();
        assert_eq!(bytes.len(), self.batch.left());
        bytes.truncate(max);
        self.connection.written(&mut self.batch, bytes.len());
        self.frame.extend(bytes);
        self.read_frames();
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
                    let memory = self.memories.slice(slice).expect("known memory");
                    memory.read(&mut bytes[at..]);
                }
            }
        }
        bytes
    }

    /// What was written to its end.
    fn read_frames(&mut self) {
        let mut bytes = std::mem::take(&mut self.frame);
        let mut at = 0;
        // The begin of a request or reply of the set-up says how long it is.
        while bytes.len() - at >= 20 && bytes.len() - at >= whole_len(&bytes[at..]) {
            let len = whole_len(&bytes[at..]);
            let frame = &bytes[at..at + len];
            at += len;
            if frame.starts_with(b"MPA ID ") {
                continue;
            }
            let control = u16::from_be_bytes([frame[2], frame[3]]);
            let opcode = control & 0xF;
            if let (READ_REQUEST, Some(&[a, b, c, d])) = (opcode, frame.get(20..24)) {
                self.sink = u32::from_be_bytes([a, b, c, d]);
            }
            let posted = SENDS.contains(&opcode) || (opcode == WRITE && frame[4..8] != NUDGE);
            if let Some(unwritten) = &mut self.unwritten
                && posted
                && control & LAST != 0
            {
                let id = unwritten.pop_front().expect("nobody posted it");
                self.written.insert(id);
            }
        }
        bytes.drain(..at);
        self.frame = bytes;
    }

    /// A work is done if it was written to its end, and only then.
    fn completed(&mut self, completion: &Completion) {
        assert!(self.posted.remove(&completion.id), "{completion:?}");
        if completion.done {
            self.outcome.done += 1;
        } else {
            self.outcome.refused += 1;
        }
        let written = self.written.remove(&completion.id);
        if matches!(completion.operation, Operation::Send | Operation::Write)
            && self.unwritten.is_some()
        {
            assert_eq!(written, completion.done, "{completion:?}");
        }
    }

    /// What has happened: each work comes back once, and nothing after the end.
    fn look(&mut self) {
        if let Some(buffer) = self.connection.take_abandoned() {
            self.pool.put(buffer);
        }
        while let Some(event) = self.connection.poll() {
            assert!(!self.ended, "{event:?} after the end");
            match event {
                Event::Requested(_) if self.rejects => {
                    let rejected = self.connection.reject(b"no");
                    self.outcome.refused += usize::from(rejected.is_err());
                }
                Event::Requested(greeting) => {
                    let accepted = self.connection.accept(b"yes", greeting.depth);
                    // Whatever else came with it may have ended it.
                    self.outcome.refused += usize::from(accepted.is_err());
                }
                Event::Established(_) | Event::Rejected { .. } => {}
                Event::Received(received) => {
                    assert!(received.buffer.len <= 200);
                    self.held.push(received.buffer);
                    self.outcome.done += 1;
                }
                Event::Completed(completion) => self.completed(&completion),
                Event::Ended(failure) => {
                    self.ended = true;
                    self.outcome.error = Some(failure.to_string());
                    self.batch.clear();
                    assert_eq!(self.connection.posted(), (0, 0, 0));
                }
            }
        }
        if let Some(buffer) = self.connection.take_abandoned() {
            self.pool.put(buffer);
        }
    }

    /// A peer writes where it may, and a read of ours where it was told.
    fn check_memory(&self) {
        let region = self.memories.region(self.memory).expect("it is there");
        let mut bytes = [0; MEMORY];
        let all = region.slice(0, MEMORY as u64).expect("all");
        all.read(&mut bytes);
        for (offset, len) in [WRITABLE, (SINK, SINK_MAX)] {
            let begin = usize::try_from(offset).expect("small");
            let place = begin..begin + usize::try_from(len).expect("small");
            bytes[place.clone()].copy_from_slice(&PATTERN[place]);
        }
        assert!(bytes == PATTERN, "other memory was written");
    }
}
