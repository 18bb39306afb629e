//! Two ends in one process, for tests and simulation: no stream and no frames, only what
//! one end says to the other, message by message.
//!
//! An [`End`] says [`Packet`]s ([`End::take`]) that whoever holds both carries over
//! ([`End::deliver`]), in order, and as late as it likes; or it loses the connection at
//! any point ([`End::lose`]).

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use linkspan_mem::Region;
use linkspan_mem::fault::{Injected, Site, point};

use crate::iwarp::connection::sum;
use crate::iwarp::error::refused;
use crate::iwarp::setup::check_private;
use crate::iwarp::tags::{Found, Tags, parts};
use crate::iwarp::{ENTROPY, Terminate, WireError};
use crate::memory::{Memories, Pool};
use crate::verbs::{
    Access, Completion, Depth, Event, Failure, Greeting, Key, Limits, MemoryId, Operation, Post,
    PostError, Received, Refusal, Remote, Slice, Verbs, Work,
};

/// What one end says to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// It wants to connect, with the reads that it answers and asks.
    Request(Greeting),
    /// It takes the other.
    Accept(Greeting),
    /// It does not.
    Reject(Vec<u8>),
    /// A message.
    Send {
        /// What it consists of.
        bytes: Vec<u8>,
        /// The exposure that ends with it.
        invalidate: Option<Key>,
        /// Whether the receiver is to wake up.
        solicited: bool,
    },
    /// Bytes into the other's memory.
    Write {
        /// What they are.
        bytes: Vec<u8>,
        /// Where to.
        to: Remote,
    },
    /// Bytes out of the other's memory are wanted.
    Read {
        /// Where they are.
        from: Remote,
        /// How many.
        len: u32,
    },
    /// The bytes that the oldest read wanted.
    Response(Vec<u8>),
    /// The other did something wrong.
    Terminate(Terminate),
    /// It disconnects.
    Close,
}

/// One of two ends.
#[derive(Debug)]
pub struct End {
    limits: Limits,
    own: Depth,
    depth: Depth,
    phase: Phase,
    memories: Memories,
    pool: Pool,
    tags: Tags,
    receives: u32,
    jobs: VecDeque<Job>,
    /// Reads that are not answered, with the places where their bytes go.
    reads: VecDeque<(Job, Vec<Slice>)>,
    responses: VecDeque<Response>,
    /// What goes before all work.
    control: VecDeque<Packet>,
    /// What waits for a buffer, and all that came behind it.
    waiting: VecDeque<Packet>,
    events: VecDeque<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Asking,
    Listening,
    /// What the peer answers and asks.
    Requested(Depth),
    Running,
    Over,
}

#[derive(Debug)]
struct Job {
    id: u64,
    signalled: bool,
    work: Owned,
}

/// A read of the other end: where its bytes are, how many, and what it named.
#[derive(Debug)]
struct Response {
    source: Option<(Found, u32)>,
    len: u32,
    key: Key,
}

#[derive(Debug)]
enum Owned {
    Send(Vec<Slice>, Option<Key>, bool),
    Write(Vec<Slice>, Remote),
    Read(Vec<Slice>, Remote),
    Invalidate(Key),
}

impl Job {
    fn operation(&self) -> Operation {
        match self.work {
            Owned::Send(..) => Operation::Send,
            Owned::Write(..) => Operation::Write,
            Owned::Read(..) => Operation::Read,
            Owned::Invalidate(_) => Operation::Invalidate,
        }
    }

    fn completion(&self, done: bool) -> Event {
        Event::Completed(Completion {
            id: self.id,
            operation: self.operation(),
            done,
        })
    }
}

impl End {
    /// The end that connects.
    #[must_use]
    pub fn initiator(
        limits: Limits,
        depth: Depth,
        entropy: [u8; ENTROPY],
        private_data: &[u8],
    ) -> Self {
        let mut end = Self::new(limits, depth, entropy, Phase::Asking);
        end.control.push_back(Packet::Request(Greeting {
            private_data: private_data.to_vec(),
            depth,
        }));
        end
    }

    /// The end that is connected to.
    #[must_use]
    pub fn responder(limits: Limits, depth: Depth, entropy: [u8; ENTROPY]) -> Self {
        Self::new(limits, depth, entropy, Phase::Listening)
    }

    fn new(limits: Limits, depth: Depth, entropy: [u8; ENTROPY], phase: Phase) -> Self {
        Self {
            limits,
            own: depth,
            depth,
            phase,
            memories: Memories::new(),
            pool: Pool::new(limits.receive_size, usize::MAX),
            tags: Tags::new(limits.exposures, entropy),
            receives: 0,
            jobs: VecDeque::new(),
            reads: VecDeque::new(),
            responses: VecDeque::new(),
            control: VecDeque::new(),
            waiting: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// The same, with a budget for what is received, in bytes.
    #[must_use]
    pub fn with_budget(mut self, budget: usize) -> Self {
        self.pool = Pool::new(self.limits.receive_size, budget);
        self
    }

    /// Makes memory known.
    ///
    /// # Errors
    /// When there is no room for its number.
    pub fn add_memory(&mut self, region: Region) -> Result<MemoryId, Injected> {
        self.memories.add(region)
    }

    /// Buffers that were lent and not given back.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.pool.used().1
    }

    /// Receives that are posted and not taken.
    #[must_use]
    pub fn receives(&self) -> u32 {
        self.receives
    }

    /// What it says next.
    pub fn take(&mut self) -> Option<Packet> {
        // There may be a buffer now.
        self.proceed();
        if let Some(packet) = self.control.pop_front() {
            return Some(packet);
        }
        if let Some(response) = self.responses.pop_front() {
            return Some(self.respond(&response));
        }
        while let Some(job) = self.jobs.front() {
            let is_read = matches!(job.work, Owned::Read(..));
            if is_read && self.reads.len() >= usize::from(self.depth.outbound) {
                return None;
            }
            let job = self.jobs.pop_front()?;
            if let Some(packet) = self.carry_out(job) {
                return Some(packet);
            }
        }
        None
    }

    fn carry_out(&mut self, job: Job) -> Option<Packet> {
        let packet = match &job.work {
            Owned::Send(gather, invalidate, solicited) => Some(Packet::Send {
                bytes: self.gather(gather),
                invalidate: *invalidate,
                solicited: *solicited,
            }),
            Owned::Write(gather, to) => Some(Packet::Write {
                bytes: self.gather(gather),
                to: *to,
            }),
            Owned::Read(into, from) => {
                let (into, from) = (into.clone(), *from);
                let len = into.iter().map(|slice| slice.len).sum();
                self.reads.push_back((job, into));
                return Some(Packet::Read { from, len });
            }
            Owned::Invalidate(key) => {
                // The peer may have done it.
                self.tags.invalidate(*key);
                None
            }
        };
        if job.signalled {
            self.events.push_back(job.completion(true));
        }
        packet
    }

    fn respond(&mut self, response: &Response) -> Packet {
        let mut slices = Vec::new();
        let there = response.source.is_none_or(|(found, offset)| {
            let each = &mut |slice| slices.push(slice);
            self.tags.places(found, offset, response.len, each)
        });
        if there {
            return Packet::Response(self.gather(&slices));
        }
        let key = response.key;
        self.refuse(Operation::Read, Refusal::Key { key });
        self.control.pop_front().unwrap_or(Packet::Close)
    }

    /// Takes what the other said.
    pub fn deliver(&mut self, packet: Packet) {
        self.waiting.push_back(packet);
        self.proceed();
    }

    fn proceed(&mut self) {
        while let Some(packet) = self.waiting.pop_front() {
            if let Some(again) = self.hear(packet) {
                self.waiting.push_front(again);
                return;
            }
        }
    }

    /// Gives a packet back for which there is no buffer now.
    fn hear(&mut self, packet: Packet) -> Option<Packet> {
        match (self.phase, packet) {
            (Phase::Over, _) => {}
            (Phase::Listening, Packet::Request(greeting)) => {
                self.phase = Phase::Requested(greeting.depth);
                self.events.push_back(Event::Requested(Greeting {
                    depth: turned(greeting.depth),
                    ..greeting
                }));
            }
            (Phase::Asking, Packet::Accept(greeting)) => {
                self.depth = turned(greeting.depth);
                self.run(greeting.private_data);
            }
            (Phase::Asking, Packet::Reject(private_data)) => {
                self.events.push_back(Event::Rejected { private_data });
                self.end(Failure::Rejected);
            }
            (_, Packet::Terminate(why)) => self.end(WireError::Terminated(why).into()),
            (_, Packet::Close) => self.end(Failure::Closed),
            (Phase::Running, packet) => return self.hear_message(packet),
            _ => self.end(Failure::Lost),
        }
        None
    }

    fn hear_message(&mut self, packet: Packet) -> Option<Packet> {
        match packet {
            Packet::Send {
                bytes,
                invalidate,
                solicited,
            } => {
                let max = self.limits.receive_size;
                let got = bytes.len() as u64;
                if self.receives == 0 {
                    self.refuse(Operation::Send, Refusal::NoReceive);
                } else if got > max.into() {
                    self.refuse(Operation::Send, Refusal::TooLong { got, max });
                } else if let Some(buffer) = self.pool.take(&mut self.memories) {
                    self.receive(&bytes, buffer, invalidate, solicited);
                } else {
                    return Some(Packet::Send {
                        bytes,
                        invalidate,
                        solicited,
                    });
                }
            }
            Packet::Write { bytes, to } => self.write(&bytes, to),
            Packet::Read { from, len } => self.read(from, len),
            Packet::Response(bytes) => {
                if let Some((job, into)) = self.reads.pop_front() {
                    self.scatter(&bytes, into.iter());
                    if job.signalled {
                        self.events.push_back(job.completion(true));
                    }
                }
            }
            _ => self.end(Failure::Lost),
        }
        None
    }

    fn receive(&mut self, bytes: &[u8], buffer: Slice, invalidate: Option<Key>, solicited: bool) {
        if let Some(key) = invalidate
            && !self.tags.invalidate(key)
        {
            self.pool.put(buffer);
            self.refuse(Operation::Send, Refusal::Key { key });
            return;
        }
        self.receives -= 1;
        // It is no longer than a receive.
        let buffer = buffer.part(0, u32::try_from(bytes.len()).unwrap_or(0));
        self.scatter(bytes, [buffer].iter());
        self.events.push_back(Event::Received(Received {
            buffer,
            invalidated: invalidate,
            solicited,
        }));
    }

    fn write(&mut self, bytes: &[u8], to: Remote) {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if len == 0 {
            return;
        }
        match self.tags.check(to.key.0, to.address, len, true) {
            Ok((found, offset)) => {
                let mut places = Vec::new();
                let each = &mut |place| places.push(place);
                self.tags.places(found, offset, len, each);
                self.scatter(bytes, places.iter());
            }
            Err(why) => self.refuse(Operation::Write, why),
        }
    }

    fn read(&mut self, from: Remote, len: u32) {
        let max = self.depth.inbound;
        if self.responses.len() >= usize::from(max) {
            self.refuse(Operation::Read, Refusal::TooManyReads { max });
            return;
        }
        let source = match len {
            0 => Ok(None),
            _ => self
                .tags
                .check(from.key.0, from.address, len, false)
                .map(Some),
        };
        match source {
            Ok(source) => self.responses.push_back(Response {
                source,
                len,
                key: from.key,
            }),
            Err(why) => self.refuse(Operation::Read, why),
        }
    }

    fn gather(&mut self, slices: &[Slice]) -> Vec<u8> {
        let len = slices.iter().map(|slice| slice.len as usize).sum();
        let (mut bytes, mut at) = (vec![0; len], 0);
        for slice in slices {
            let end = at + slice.len as usize;
            match self.memories.slice(*slice) {
                Some(memory) => memory.read(&mut bytes[at..end]),
                None => 0,
            };
            at = end;
        }
        bytes
    }

    fn scatter<'a>(&mut self, bytes: &[u8], places: impl Iterator<Item = &'a Slice>) {
        let mut at = 0;
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut lost = false;
        parts(places, 0, len, &mut |place| {
            let end = at + place.len as usize;
            let memory = self.memories.slice(place);
            lost |= memory.is_none_or(|memory| memory.write(&bytes[at..end]) < end - at);
            at = end;
        });
        if lost {
            self.end(Failure::Memory);
        }
    }

    fn refuse(&mut self, operation: Operation, why: Refusal) {
        self.end(Failure::Refused { operation, why });
        let terminate = Packet::Terminate(refused(operation, &why));
        self.control.push_back(terminate);
    }

    fn run(&mut self, private_data: Vec<u8>) {
        self.phase = Phase::Running;
        self.events.push_back(Event::Established(Greeting {
            private_data,
            depth: self.depth,
        }));
    }

    /// The connection is lost.
    pub fn lose(&mut self) {
        self.end(Failure::Lost);
    }

    fn end(&mut self, failure: Failure) {
        if self.phase == Phase::Over {
            return;
        }
        self.phase = Phase::Over;
        let reads = self.reads.drain(..).map(|(job, _)| job);
        for job in reads.chain(self.jobs.drain(..)) {
            self.events.push_back(job.completion(false));
        }
        self.control.clear();
        self.waiting.clear();
        self.responses.clear();
        self.tags.clear();
        self.receives = 0;
        self.events.push_back(Event::Ended(failure));
    }
}

/// What one end answers is what the other may ask.
fn turned(depth: Depth) -> Depth {
    Depth {
        inbound: depth.outbound,
        outbound: depth.inbound,
    }
}

impl Verbs for End {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn memories(&self) -> &Memories {
        &self.memories
    }

    fn accept(&mut self, private_data: &[u8], depth: Depth) -> Result<(), PostError> {
        let Phase::Requested(peer) = self.phase else {
            return Err(PostError::NotConnected);
        };
        check_private(private_data)?;
        self.depth = Depth {
            inbound: depth.inbound.min(self.own.inbound.max(peer.outbound)),
            outbound: depth.outbound.min(peer.inbound),
        };
        self.control.push_back(Packet::Accept(Greeting {
            private_data: private_data.to_vec(),
            depth: self.depth,
        }));
        self.run(Vec::new());
        Ok(())
    }

    fn reject(&mut self, private_data: &[u8]) -> Result<(), PostError> {
        let Phase::Requested(_) = self.phase else {
            return Err(PostError::NotConnected);
        };
        check_private(private_data)?;
        self.end(Failure::Disconnected);
        self.control
            .push_back(Packet::Reject(private_data.to_vec()));
        Ok(())
    }

    fn post_receives(&mut self, count: u32) -> Result<(), PostError> {
        if self.phase == Phase::Over {
            return Err(PostError::NotConnected);
        }
        let max = self.limits.receives;
        let all = self.receives.checked_add(count).filter(|all| *all <= max);
        self.receives = all.ok_or(PostError::Full { max: max as usize })?;
        Ok(())
    }

    fn release(&mut self, buffer: Slice) {
        self.pool.put(buffer);
        self.proceed();
    }

    fn post(&mut self, post: &Post<'_>) -> Result<(), PostError> {
        if self.phase != Phase::Running {
            return Err(PostError::NotConnected);
        }
        let limits = self.limits;
        if self.jobs.len() + self.reads.len() >= limits.works {
            return Err(PostError::Full { max: limits.works });
        }
        let (slices, max): (&[Slice], usize) = match post.work {
            Work::Send { gather, .. } | Work::Write { gather, .. } => (gather, limits.gather),
            Work::Read { .. } if self.depth.outbound == 0 => return Err(PostError::NoReads),
            Work::Read { into, .. } => (into, limits.read_into),
            Work::Invalidate { key } if !self.tags.is_live(key) => {
                return Err(PostError::Key { key });
            }
            Work::Invalidate { .. } => (&[], 0),
        };
        sum(slices, max, limits.work_bytes)?;
        self.memories.check(slices)?;
        point(Site::Alloc)?;
        let list = slices.to_vec();
        let work = match post.work {
            Work::Send {
                invalidate,
                solicited,
                ..
            } => Owned::Send(list, invalidate, solicited),
            Work::Write { to, .. } => Owned::Write(list, to),
            Work::Read { from, .. } => Owned::Read(list, from),
            Work::Invalidate { key } => Owned::Invalidate(key),
        };
        self.jobs.push_back(Job {
            id: post.id,
            signalled: post.signalled,
            work,
        });
        Ok(())
    }

    fn expose(&mut self, slices: &[Slice], access: Access) -> Result<Remote, PostError> {
        if self.phase != Phase::Running {
            return Err(PostError::NotConnected);
        }
        let limits = self.limits;
        let len = sum(slices, limits.exposure_slices, limits.exposure_bytes)?;
        self.memories.check(slices)?;
        self.tags.expose(slices, len, access)
    }

    fn disconnect(&mut self) {
        if self.phase != Phase::Over {
            self.end(Failure::Disconnected);
            self.control.push_back(Packet::Close);
        }
    }

    fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}
