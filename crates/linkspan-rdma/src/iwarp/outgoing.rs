//! Work and responses as frames.
//!
//! Messages go out one by one; where both work and a response wait they take turns, so
//! that neither holds up the other for longer than one message takes.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use super::batch::{Batch, Framing};
use super::connection::Connection;
use super::mpa::Ready;
use super::tags::Found;
use super::wire::{Header, Opcode, QUEUE_SEND, ReadRequest, TAGGED, Tagged, UNTAGGED, Untagged};
use super::{Terminate, WireError};
use crate::memory::Memories;
use crate::verbs::{
    Completion, Event, Failure, Key, Operation, Post, Refusal, Remote, Slice, Work,
};

/// What is on its way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// A request or reply that is to be written.
    pub(super) raw: Vec<u8>,
    /// Whether frames may be sent: a responder awaits the first one (RFC 5044, 7.1.2).
    pub(super) allowed: bool,
    /// What the first frame has to be.
    pub(super) begin: Option<Ready>,
    pub(super) nudge: Nudge,
    /// What was framed when the end came is cut off.
    pub(super) cut: bool,
    /// Frames in all batches so far, and those written.
    pub(super) framed: u64,
    pub(super) written: u64,
    /// Frames behind this one were cut off: what has their numbers now is something else.
    pub(super) valid: u64,
    jobs: VecDeque<Job>,
    /// The lists of all jobs, in order, without what is framed.
    slices: VecDeque<Slice>,
    /// Jobs that are framed, with the frame that completes them.
    finishing: VecDeque<Finishing>,
    /// The message of which a part is framed.
    message: Option<Source>,
    /// What was sent last.
    last: Source,
    next_send: u32,
    next_read: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Work,
    Response,
}

#[derive(Debug)]
struct Job {
    id: u64,
    signalled: bool,
    /// Bytes that are not framed.
    left: u32,
    framed: u32,
    /// Elements of its list, for a read.
    slices: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Send { opcode: Opcode, invalidate: u32 },
    Write { to: Remote },
    Read { from: Remote },
    Invalidate { key: Key },
}

impl Kind {
    fn operation(self) -> Operation {
        match self {
            Self::Send { .. } => Operation::Send,
            Self::Write { .. } => Operation::Write,
            Self::Read { .. } => Operation::Read,
            Self::Invalidate { .. } => Operation::Invalidate,
        }
    }
}

#[derive(Debug)]
struct Finishing {
    frame: u64,
    id: u64,
    signalled: bool,
    operation: Operation,
}

/// A read of ours that the peer has not answered.
#[derive(Debug)]
pub(super) struct Read {
    /// Its number, and whether its success is told; none if nobody asked for it.
    pub(super) work: Option<(u64, bool)>,
    /// The tag that the response has to name.
    pub(super) sink: u32,
    pub(super) len: u32,
    pub(super) got: u32,
}

/// A read of the peer that we have not answered.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) sink: Tagged,
    pub(super) key: u32,
    /// Nothing for a read of no bytes.
    pub(super) source: Option<(Found, u32)>,
    pub(super) len: u32,
    pub(super) framed: u32,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self {
            raw: Vec::new(),
            allowed: false,
            begin: None,
            nudge: Nudge::default(),
            cut: false,
            framed: 0,
            written: 0,
            valid: u64::MAX,
            jobs: VecDeque::new(),
            slices: VecDeque::new(),
            finishing: VecDeque::new(),
            message: None,
            last: Source::Response,
            next_send: 1,
            next_read: 1,
        }
    }

    /// Whether both ends have heard each other: what they begin with is over.
    pub(super) fn has_met(&self) -> bool {
        self.allowed && self.begin.is_none() && self.nudge.is_over()
    }

    /// Whether all that there was to say is written.
    pub(super) fn is_idle(&self) -> bool {
        self.raw.is_empty() && self.message.is_none() && self.framed == self.written
    }

    /// The numbers that the next message and the next read have.
    pub(super) fn numbers(&self) -> [u32; 2] {
        [self.next_send, self.next_read]
    }

    /// Goes on with these numbers, behind the first frames.
    pub(super) fn go_on(&mut self, [send, read]: [u32; 2]) {
        (self.next_send, self.next_read) = (send, read);
        self.allowed = true;
    }

    /// Works that are not done, without reads that were sent.
    pub(super) fn works(&self) -> usize {
        self.jobs.len() + self.finishing.len()
    }

    /// Whether a frame may be made now, and no work or message goes before it.
    pub(super) fn takes_frames(&self) -> bool {
        self.allowed
            && self.begin.is_none()
            && self.raw.is_empty()
            && self.message.is_none()
            && self.jobs.is_empty()
    }

    /// The number of the next message.
    pub(super) fn next_send(&self) -> u32 {
        self.next_send
    }

    /// A message of one frame is framed, which was no job.
    pub(super) fn message_is_framed(&mut self, id: u64, signalled: bool, operation: Operation) {
        self.next_send = self.next_send.wrapping_add(1);
        self.framed += 1;
        self.last = Source::Work;
        self.finishing.push_back(Finishing {
            frame: self.framed,
            id,
            signalled,
            operation,
        });
    }

    pub(super) fn push(&mut self, post: &Post<'_>, slices: &[Slice], len: u32) {
        let kind = match post.work {
            Work::Send {
                invalidate,
                solicited,
                ..
            } => Kind::Send {
                opcode: Opcode::send(invalidate.is_some(), solicited),
                invalidate: invalidate.map_or(0, |key| key.0),
            },
            Work::Write { to, .. } => Kind::Write { to },
            Work::Read { from, .. } => Kind::Read { from },
            Work::Invalidate { key } => Kind::Invalidate { key },
        };
        // Elements without bytes would never be framed.
        let before = self.slices.len();
        for slice in slices.iter().filter(|slice| slice.len > 0) {
            self.slices.push_back(*slice);
        }
        self.jobs.push_back(Job {
            id: post.id,
            signalled: post.signalled,
            left: len,
            framed: 0,
            slices: self.slices.len() - before,
            kind,
        });
    }

    /// All works that are not done, without reads that were sent.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (u64, Operation)> {
        self.slices.clear();
        self.message = None;
        let framed = self.finishing.drain(..).map(|it| (it.id, it.operation));
        framed.chain(
            self.jobs
                .drain(..)
                .map(|job| (job.id, job.kind.operation())),
        )
    }

    /// Moves bytes of the first job into a frame.
    fn take(&mut self, len: u32, frame: &mut Framing<'_>) {
        let mut left = len;
        while left > 0
            && let Some(front) = self.slices.front_mut()
        {
            let part = front.part(0, left);
            if part.len == front.len {
                self.slices.pop_front();
            } else {
                *front = front.part(part.len, front.len);
            }
            left -= part.len;
            frame.push(part);
        }
    }
}

impl Connection {
    /// Frames what there is, as long as it fits.
    pub(super) fn frames(&mut self, batch: &mut Batch, memories: &Memories) -> Result<(), Failure> {
        if !self.tx.allowed {
            return Ok(());
        }
        if let Some(begin) = self.tx.begin.take() {
            self.frame_first(begin, batch, memories);
        }
        while !batch.is_full() {
            if self.tx.message.is_none() && self.tx.nudge.take() {
                self.frame_nudge(batch, memories);
            }
            match self.source() {
                Some(Source::Work) => self.frame_work(batch, memories),
                Some(Source::Response) => self.frame_response(batch, memories)?,
                None => break,
            }
        }
        self.settle();
        Ok(())
    }

    /// What goes next.
    fn source(&self) -> Option<Source> {
        if self.tx.message.is_some() {
            return self.tx.message;
        }
        let work = self.tx.jobs.front().is_some_and(|job| match job.kind {
            Kind::Read { .. } => self.reads.len() < usize::from(self.depth.outbound),
            _ => true,
        });
        match (work, !self.responses.is_empty()) {
            (false, false) => None,
            (true, false) => Some(Source::Work),
            (false, true) => Some(Source::Response),
            (true, true) if self.tx.last == Source::Work => Some(Source::Response),
            (true, true) => Some(Source::Work),
        }
    }

    fn frame_work(&mut self, batch: &mut Batch, memories: &Memories) {
        let Some(job) = self.tx.jobs.front() else {
            return;
        };
        match job.kind {
            Kind::Send { opcode, invalidate } => {
                let payload = job.left.min(self.options.payload(UNTAGGED));
                let last = payload == job.left;
                let fields = Untagged {
                    invalidate,
                    queue: QUEUE_SEND,
                    number: self.tx.next_send,
                    offset: job.framed,
                };
                let header = Header::untagged(opcode, last, fields);
                self.frame_job(header, payload, last, batch, memories);
                if last {
                    self.tx.next_send = self.tx.next_send.wrapping_add(1);
                }
            }
            Kind::Write { to } => {
                let payload = job.left.min(self.options.payload(TAGGED));
                let last = payload == job.left;
                let place = Tagged {
                    key: to.key.0,
                    address: to.address.wrapping_add(job.framed.into()),
                };
                let header = Header::tagged(Opcode::Write, last, place);
                self.frame_job(header, payload, last, batch, memories);
            }
            Kind::Read { from } => self.frame_read(from, batch, memories),
            Kind::Invalidate { key } => {
                // The peer may have done it.
                self.tags.invalidate(key);
                self.job_is_framed();
            }
        }
    }

    /// Frames the next part of the first job.
    fn frame_job(
        &mut self,
        header: Header,
        payload: u32,
        last: bool,
        batch: &mut Batch,
        memories: &Memories,
    ) {
        let mut frame = batch.frame(header, payload, self.crc, memories);
        self.tx.take(payload, &mut frame);
        frame.end();
        self.tx.framed += 1;
        if let Some(job) = self.tx.jobs.front_mut() {
            job.left -= payload;
            job.framed += payload;
        }
        self.tx.message = (!last).then_some(Source::Work);
        if last {
            self.job_is_framed();
        }
    }

    /// The first job is done when all frames so far are written.
    fn job_is_framed(&mut self) {
        self.tx.last = Source::Work;
        if let Some(job) = self.tx.jobs.pop_front() {
            self.tx.finishing.push_back(Finishing {
                frame: self.tx.framed,
                id: job.id,
                signalled: job.signalled,
                operation: job.kind.operation(),
            });
        }
    }

    fn frame_read(&mut self, from: Remote, batch: &mut Batch, memories: &Memories) {
        let Some(job) = self.tx.jobs.pop_front() else {
            return;
        };
        self.tx.last = Source::Work;
        let list = self.tx.slices.drain(..job.slices);
        self.sinks.extend(list);
        let work = Some((job.id, job.signalled));
        self.request_read(work, job.left, from, batch, memories);
    }

    fn request_read(
        &mut self,
        work: Option<(u64, bool)>,
        len: u32,
        from: Remote,
        batch: &mut Batch,
        memories: &Memories,
    ) {
        let sink = Tagged {
            key: self.tags.sink(),
            address: 0,
        };
        let request = ReadRequest {
            sink,
            len,
            source: Tagged {
                key: from.key.0,
                address: from.address,
            },
        };
        let header = Header::read_request(self.tx.next_read, &request);
        self.tx.next_read = self.tx.next_read.wrapping_add(1);
        self.reads.push_back(Read {
            work,
            sink: sink.key,
            len,
            got: 0,
        });
        self.push_frame(header, batch, memories);
    }

    fn frame_response(&mut self, batch: &mut Batch, memories: &Memories) -> Result<(), Failure> {
        let max = self.options.payload(TAGGED);
        let Some(response) = self.responses.front_mut() else {
            return Ok(());
        };
        let payload = (response.len - response.framed).min(max);
        let source = response.source;
        if source.is_some_and(|(found, _)| !self.tags.is_valid(found)) {
            let key = Key(response.key);
            return Err(Failure::Refused {
                operation: Operation::Read,
                why: Refusal::Key { key },
            });
        }
        let begin = response.framed;
        let place = Tagged {
            key: response.sink.key,
            address: response.sink.address.wrapping_add(response.framed.into()),
        };
        response.framed += payload;
        let last = response.framed == response.len;
        let header = Header::tagged(Opcode::ReadResponse, last, place);
        self.tx.message = (!last).then_some(Source::Response);
        if last {
            self.responses.pop_front();
            self.tx.last = Source::Response;
        }
        let mut frame = batch.frame(header, payload, self.crc, memories);
        if let Some((found, offset)) = source {
            self.tags
                .places(found, offset + begin, payload, &mut |slice| {
                    frame.push(slice)
                });
        }
        frame.end();
        self.tx.framed += 1;
        if let Some((found, _)) = source {
            self.tags.is_framed(found, self.tx.framed);
        }
        Ok(())
    }

    /// Ends an exposure for the peer. Whoever owns the memory has it back at once, so that no
    /// frame may name it any more.
    pub(super) fn invalidate(&mut self, key: u32) -> Result<(), WireError> {
        if self.tags.framed(Key(key)) > self.tx.written {
            return Err(WireError::InvalidateEarly { key });
        }
        let ended = self.tags.invalidate(Key(key));
        ended.then_some(()).ok_or(WireError::Invalidate { key })
    }

    /// The frame that a responder of equal rank awaits (RFC 6581, 9.2).
    fn frame_first(&mut self, begin: Ready, batch: &mut Batch, memories: &Memories) {
        if begin.write {
            self.frame_nudge(batch, memories);
        } else if begin.read {
            let from = Remote {
                key: Key(1),
                address: 0,
            };
            self.request_read(None, 0, from, batch, memories);
        } else {
            let fields = Untagged {
                invalidate: 0,
                queue: QUEUE_SEND,
                number: self.tx.next_send,
                offset: 0,
            };
            self.tx.next_send = self.tx.next_send.wrapping_add(1);
            let header = Header::untagged(Opcode::Send, true, fields);
            self.push_frame(header, batch, memories);
        }
    }

    /// A write of no bytes means nothing to anybody: its tag is not looked at.
    fn frame_nudge(&mut self, batch: &mut Batch, memories: &Memories) {
        let place = Tagged { key: 1, address: 0 };
        let header = Header::tagged(Opcode::Write, true, place);
        self.push_frame(header, batch, memories);
    }

    pub(super) fn frame_terminate(
        &mut self,
        batch: &mut Batch,
        terminate: Terminate,
        memories: &Memories,
    ) {
        let header = Header::terminate(terminate.layer_and_kind, terminate.code);
        self.push_frame(header, batch, memories);
    }

    /// A frame without payload.
    fn push_frame(&mut self, header: Header, batch: &mut Batch, memories: &Memories) {
        batch.frame(header, 0, self.crc, memories).end();
        self.tx.framed += 1;
    }

    /// What is written is done.
    pub(super) fn settle(&mut self) {
        let done = self.tx.written.min(self.tx.valid);
        while let Some(first) = self.tx.finishing.front() {
            if first.frame > done {
                return;
            }
            if first.signalled {
                self.events.push_back(Event::Completed(Completion {
                    id: first.id,
                    operation: first.operation,
                    done: true,
                }));
            }
            self.tx.finishing.pop_front();
        }
    }

    /// The oldest read has all its bytes.
    pub(super) fn read_is_done(&mut self) {
        if let Some(read) = self.reads.pop_front()
            && let Some((id, true)) = read.work
        {
            self.events.push_back(Event::Completed(Completion {
                id,
                operation: Operation::Read,
                done: true,
            }));
        }
    }

    /// The read that a response has to be for.
    pub(super) fn awaited(&self) -> Result<&Read, WireError> {
        let opcode = Opcode::ReadResponse;
        self.reads.front().ok_or(WireError::Unexpected { opcode })
    }
}

/// When an initiator that hears nothing pokes its peer.
#[derive(Debug, Default)]
pub(super) struct Nudge {
    left: u8,
    pause: Duration,
    due: Option<Duration>,
    now: bool,
}

impl Nudge {
    pub(super) fn arm(&mut self, times: u8, after: Duration) {
        self.left = times;
        self.pause = after;
    }

    /// The first frame is out.
    pub(super) fn begin(&mut self, now: Duration) {
        if self.left > 0 && self.due.is_none() {
            self.due = Some(now + self.pause);
        }
    }

    /// The peer has answered.
    pub(super) fn stop(&mut self) {
        *self = Self::default();
    }

    /// Whether the peer is poked no more.
    fn is_over(&self) -> bool {
        self.left == 0 && !self.now
    }

    pub(super) fn tick(&mut self, now: Duration) {
        if self.left > 0 && self.due.is_some_and(|due| now >= due) {
            self.left -= 1;
            self.now = true;
            self.pause *= 2;
            self.due = (self.left > 0).then_some(now + self.pause);
        }
    }

    pub(super) fn due(&self) -> Option<Duration> {
        self.due
    }

    fn take(&mut self) -> bool {
        core::mem::take(&mut self.now)
    }
}
