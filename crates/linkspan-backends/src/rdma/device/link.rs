//! One connection of a device.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use linkspan_mem::fault::{Injected, Site};
use linkspan_rdma::verbs::{
    Access, Completion, Depth, Event, Failure, Greeting, Key, Limits, MemoryId, Operation, Post,
    PostError, Received, Remote, Slice, Work,
};
use linkspan_rdma::{Memories, Pool};
use linkspan_sys::Epoll;
use linkspan_sys::poll::Interest;
use linkspan_sys::verbs::{
    self, DeviceLimits, Element, Identifier, IdentifierKey, Parameters, QueuePair, Registration,
    Rights, Sizes,
};
use rustix::io::Errno;

use super::GATHER;

/// Completions that one connection takes before others have their turn.
const TURN: usize = 256;

/// Distinguishes receives from other work in the numbers that the device is given.
const RECEIVE: u64 = 1 << 63;

/// How long a connection whose work was thrown out waits to hear why.
const WHY_WITHIN: Duration = Duration::from_millis(500);

/// How a peer that does not want us is told apart from one that nobody found, over InfiniBand
/// and RoCE (`IB_CM_REJ_CONSUMER_DEFINED`).
const REJECTED_BY_CONSUMER: i32 = 28;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The device, and then the way to the peer, is looked for.
    Resolving,
    Connecting,
    /// The peer wants to connect.
    Requested(Depth),
    Accepting(Depth),
    Running,
    Over,
}

/// Work that is posted, in order.
struct Posted {
    id: u64,
    operation: Operation,
    signalled: bool,
    /// What a read goes into, exposed for as long as it takes.
    sink: Option<Registration>,
    done: bool,
}

enum Queue {
    /// Its device is not known.
    Bare(Identifier),
    Whole(QueuePair),
    Gone,
}

pub(super) struct Link {
    phase: Phase,
    queue: Queue,
    key: IdentifierKey,
    greeting: Parameters,
    own: Depth,
    depth: Depth,
    limits: Limits,
    device: Option<DeviceLimits>,
    reads_expose: bool,
    pool: Pool,
    /// Receives that were asked for before there was a queue.
    wanted: u32,
    /// Buffers of receives that are posted, in order.
    receives: VecDeque<Slice>,
    posted: VecDeque<Posted>,
    /// The number of the first of those.
    first: u64,
    /// Memory that the device may reach for us.
    known: BTreeMap<MemoryId, Registration>,
    exposed: BTreeMap<Key, (Registration, MemoryId)>,
    failure: Option<Failure>,
    events: VecDeque<Event>,
    pub(super) due: Option<Duration>,
    pub(super) timer: Option<Duration>,
    pub(super) telling: bool,
}

impl Link {
    fn new(id: Identifier, phase: Phase, own: Depth, limits: Limits) -> Self {
        let buffers = 2 * u64::from(limits.receives) * u64::from(limits.receive_size);
        Self {
            phase,
            key: id.key(),
            queue: Queue::Bare(id),
            greeting: Parameters::default(),
            own,
            depth: Depth {
                inbound: 0,
                outbound: 0,
            },
            limits,
            device: None,
            reads_expose: false,
            // As many again may be lent as are posted.
            pool: Pool::new(
                limits.receive_size,
                usize::try_from(buffers).unwrap_or(usize::MAX),
            ),
            wanted: 0,
            receives: VecDeque::new(),
            posted: VecDeque::new(),
            first: 0,
            known: BTreeMap::new(),
            exposed: BTreeMap::new(),
            failure: None,
            events: VecDeque::new(),
            due: None,
            timer: None,
            telling: false,
        }
    }

    pub(super) fn initiator(
        id: Identifier,
        own: Depth,
        limits: Limits,
        private_data: &[u8],
        due: Duration,
    ) -> Self {
        let mut link = Self::new(id, Phase::Resolving, own, limits);
        link.greeting.private_data = private_data.to_vec();
        link.due = Some(due);
        link
    }

    /// For somebody who wants to connect.
    pub(super) fn responder(
        id: Identifier,
        own: Depth,
        limits: Limits,
        parameters: Parameters,
    ) -> Self {
        let offered = depth(&parameters);
        let mut link = Self::new(id, Phase::Requested(offered), own, limits);
        link.events.push_back(Event::Requested(Greeting {
            private_data: parameters.private_data,
            depth: offered,
        }));
        if let Err(error) = link.meet_device() {
            link.refused(&error);
        }
        link
    }

    pub(super) fn key(&self) -> IdentifierKey {
        self.key
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(super) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Over, told, and nothing of it is lent.
    pub(super) fn is_done(&self) -> bool {
        self.phase == Phase::Over && self.events.is_empty() && self.pool.used().1 == 0
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.id().and_then(Identifier::peer)
    }

    fn id(&self) -> Option<&Identifier> {
        match &self.queue {
            Queue::Bare(id) => Some(id),
            Queue::Whole(pair) => Some(pair.id()),
            Queue::Gone => None,
        }
    }

    /// What can be done is what both the options and the device allow.
    fn meet_device(&mut self) -> io::Result<()> {
        let id = self.id().ok_or(io::ErrorKind::NotConnected)?;
        let (device, is_iwarp) = (id.limits()?, id.is_iwarp());
        let limits = &mut self.limits;
        let half = device.completions / 2;
        let works = u32::try_from(limits.works).unwrap_or(u32::MAX);
        limits.works = works.min(device.works).min(half) as usize;
        limits.receives = limits.receives.min(device.works).min(half);
        limits.gather = limits.gather.min(device.elements as usize).min(GATHER);
        limits.read_into = limits
            .read_into
            .min(device.read_elements as usize)
            .min(GATHER);
        if is_iwarp {
            // The peer is told a single key.
            limits.read_into = 1;
        }
        limits.exposure_slices = 1;
        let registration = u32::try_from(device.registration_bytes).unwrap_or(u32::MAX);
        limits.exposure_bytes = limits.exposure_bytes.min(registration);
        self.own.inbound = self.own.inbound.min(device.inbound.into());
        self.own.outbound = self.own.outbound.min(device.outbound.into());
        self.reads_expose = is_iwarp;
        self.device = Some(device);
        Ok(())
    }

    /// Makes the queue pair, and posts the receives that were asked for.
    fn make_queue(&mut self, memories: &mut Memories) -> Result<(), PostError> {
        if matches!(self.queue, Queue::Bare(_)) {
            let Queue::Bare(id) = std::mem::replace(&mut self.queue, Queue::Gone) else {
                return Err(PostError::NotConnected);
            };
            let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
            let sizes = Sizes {
                works: count(self.limits.works),
                receives: self.limits.receives,
                elements: count(self.limits.gather.max(self.limits.read_into)),
            };
            let pair = QueuePair::new(id, sizes).map_err(|_| REFUSED)?;
            self.queue = Queue::Whole(pair);
        }
        let wanted = std::mem::take(&mut self.wanted);
        self.receive(wanted, memories)
    }

    /// The peer's address leads to a device.
    pub(super) fn address_resolved(&mut self, within: Duration) {
        let result = match &self.queue {
            Queue::Bare(id) if self.phase == Phase::Resolving => id.resolve_route(within),
            _ => return,
        };
        if let Err(error) = result.and_then(|()| self.meet_device()) {
            self.refused(&error);
        }
    }

    pub(super) fn route_resolved(&mut self, memories: &mut Memories) {
        if self.phase != Phase::Resolving {
            return;
        }
        self.greeting.inbound = narrow(self.own.inbound);
        self.greeting.outbound = narrow(self.own.outbound);
        let made = self.make_queue(memories);
        match &self.queue {
            Queue::Whole(pair) if made.is_ok() => match pair.id().connect(&self.greeting) {
                Ok(()) => self.phase = Phase::Connecting,
                Err(error) => self.refused(&error),
            },
            _ => self.end(Failure::Lost),
        }
    }

    /// Both ends are there.
    pub(super) fn established(&mut self, parameters: Parameters, epoll: &Epoll, token: u64) {
        let (private_data, agreed) = match self.phase {
            // An end has what it asked for, or less.
            Phase::Connecting => {
                let told = depth(&parameters);
                let agreed = Depth {
                    inbound: self.own.inbound.min(told.inbound),
                    outbound: self.own.outbound.min(told.outbound),
                };
                (parameters.private_data, agreed)
            }
            Phase::Accepting(agreed) => (Vec::new(), agreed),
            _ => return,
        };
        self.depth = agreed;
        self.phase = Phase::Running;
        self.due = None;
        self.events.push_back(Event::Established(Greeting {
            private_data,
            depth: agreed,
        }));
        // Messages may have come before this (m:60697ed23): they are told after it.
        if let Queue::Whole(pair) = &self.queue
            && epoll.add(pair, token, Interest::READ).is_err()
        {
            self.end(Failure::Lost);
        }
    }

    pub(super) fn rejected(&mut self, status: i32, private_data: Vec<u8>) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        // Over iWARP it is what the connection ended with: reset (siw), or refused.
        let refused = [Errno::CONNRESET, Errno::CONNREFUSED].map(|it| -it.raw_os_error());
        if status == REJECTED_BY_CONSUMER || refused.contains(&status) {
            self.events.push_back(Event::Rejected { private_data });
            self.end(Failure::Rejected);
        } else {
            self.end(Failure::Lost);
        }
    }

    /// The peer left. What came before is still told.
    pub(super) fn disconnected(&mut self) {
        while self.phase == Phase::Running && self.take_completions() {}
        let in_flight = self.posted.iter().any(|posted| !posted.done);
        self.end(if in_flight {
            Failure::Lost
        } else {
            Failure::Closed
        });
    }

    pub(super) fn refused(&mut self, error: &io::Error) {
        self.end(match error.kind() {
            io::ErrorKind::TimedOut => Failure::TimedOut,
            _ => Failure::Lost,
        });
    }

    /// The time has come that it was given.
    pub(super) fn tick(&mut self, now: Duration) {
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.end(match self.phase {
                Phase::Running => Failure::Lost,
                _ => Failure::TimedOut,
            });
        }
    }

    /// Takes what the device has done; says whether there may be more.
    pub(super) fn completions(&mut self, now: Duration) -> bool {
        let Queue::Whole(pair) = &mut self.queue else {
            return false;
        };
        if pair.listen().is_err() {
            self.end(Failure::Lost);
            return false;
        }
        let mut taken = 0;
        while self.phase == Phase::Running && self.take_completions() {
            taken += 1;
            if taken >= TURN / 16 {
                return true;
            }
        }
        if self.failure.is_some() && self.phase == Phase::Running && self.due.is_none() {
            self.due = Some(now + WHY_WITHIN);
        }
        false
    }

    fn take_completions(&mut self) -> bool {
        let Queue::Whole(pair) = &mut self.queue else {
            return false;
        };
        let mut list = [None; 16];
        let mut count = 0;
        let result = pair.poll(&mut |completion| {
            list[count] = Some(completion);
            count += 1;
        });
        for completion in list.iter().flatten() {
            self.completed(completion);
        }
        if result.is_err() {
            self.end(Failure::Lost);
        }
        matches!(result, Ok(1..))
    }

    fn completed(&mut self, completion: &verbs::Completion) {
        let operation = if completion.id & RECEIVE == 0 {
            let at = completion.id.wrapping_sub(self.first);
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let Some(posted) = self.posted.get_mut(at) else {
                return;
            };
            posted.done = completion.failed.is_none();
            let operation = posted.operation;
            if posted.done {
                self.tell_done();
            }
            Some(operation)
        } else {
            let Some(buffer) = self.receives.pop_front() else {
                return;
            };
            match completion.failed {
                None => self.received(buffer, completion),
                Some(_) => self.pool.put(buffer),
            }
            None
        };
        let Some(status) = completion.failed else {
            return;
        };
        if completion.flushed {
            // Why, is told by whatever was first, or by the end of the connection.
            self.failure.get_or_insert(Failure::Lost);
        } else {
            self.end(Failure::Device { operation, status });
        }
    }

    fn received(&mut self, buffer: Slice, completion: &verbs::Completion) {
        let invalidated = completion.invalidated.map(Key);
        if let Some(key) = invalidated {
            // The device has ended it; now its memory is let go as well.
            self.hide(key);
        }
        self.events.push_back(Event::Received(Received {
            buffer: buffer.part(0, completion.len),
            invalidated,
            solicited: false,
        }));
    }

    /// Work that is done is told in order.
    fn tell_done(&mut self) {
        while let Some(posted) = self.posted.pop_front_if(|posted| posted.done) {
            self.first = self.first.wrapping_add(1);
            if let (Some(sink), Queue::Whole(pair)) = (posted.sink, &mut self.queue) {
                // One that stays ends with the connection.
                let _ = pair.deregister(sink);
            }
            if posted.signalled {
                self.events.push_back(Event::Completed(Completion {
                    id: posted.id,
                    operation: posted.operation,
                    done: true,
                }));
            }
        }
    }

    fn hide(&mut self, key: Key) -> bool {
        let Some((registration, _)) = self.exposed.remove(&key) else {
            return false;
        };
        match &mut self.queue {
            Queue::Whole(pair) => pair.deregister(registration).is_ok(),
            _ => true,
        }
    }

    pub(super) fn end(&mut self, failure: Failure) {
        if self.phase == Phase::Over {
            return;
        }
        self.phase = Phase::Over;
        self.due = None;
        if let Queue::Whole(pair) = &self.queue {
            // The peer hears of it, unless it is gone itself.
            let _ = pair.id().disconnect();
        }
        // Now the device does nothing for it any more, and reaches nothing.
        self.queue = Queue::Gone;
        self.known.clear();
        self.exposed.clear();
        for posted in self.posted.drain(..) {
            if posted.signalled || !posted.done {
                self.events.push_back(Event::Completed(Completion {
                    id: posted.id,
                    operation: posted.operation,
                    done: posted.done,
                }));
            }
        }
        for buffer in self.receives.drain(..) {
            self.pool.put(buffer);
        }
        self.events.push_back(Event::Ended(failure));
    }

    pub(super) fn release(&mut self, buffer: Slice) {
        self.pool.put(buffer);
    }

    /// Gives the memory of its buffers back.
    pub(super) fn give_up(&mut self, memories: &mut Memories) {
        self.pool.give_up(memories);
    }

    /// Memory is forgotten. What is under way may be about it.
    pub(super) fn forget(&mut self, memory: MemoryId) {
        let exposed = self.exposed.values().any(|it| it.1 == memory);
        let known = self.known.remove(&memory);
        if exposed || (known.is_some() && !self.posted.is_empty()) {
            self.end(Failure::Memory);
        } else if let (Some(registration), Queue::Whole(pair)) = (known, &mut self.queue) {
            // One that stays is of no use to anybody, and ends with the connection.
            let _ = pair.deregister(registration);
        }
    }

    pub(super) fn accept(
        &mut self,
        private_data: &[u8],
        depth: Depth,
        memories: &mut Memories,
    ) -> Result<(), PostError> {
        let Phase::Requested(offered) = self.phase else {
            return Err(PostError::NotConnected);
        };
        check_private(private_data)?;
        let agreed = Depth {
            inbound: depth.inbound.min(self.own.inbound),
            outbound: depth.outbound.min(self.own.outbound).min(offered.outbound),
        };
        let parameters = Parameters {
            private_data: private_data.to_vec(),
            inbound: narrow(agreed.inbound),
            outbound: narrow(agreed.outbound),
        };
        let made = self.make_queue(memories);
        let result = match (&self.queue, made) {
            (Queue::Whole(pair), Ok(())) => pair.accept(&parameters),
            (_, made) => {
                self.end(Failure::Lost);
                return made;
            }
        };
        match result {
            Ok(()) => self.phase = Phase::Accepting(agreed),
            // The peer is gone.
            Err(error) => self.refused(&error),
        }
        Ok(())
    }

    pub(super) fn reject(&mut self, private_data: &[u8]) -> Result<(), PostError> {
        let Phase::Requested(_) = self.phase else {
            return Err(PostError::NotConnected);
        };
        check_private(private_data)?;
        if let Some(id) = self.id() {
            // The peer may be gone.
            let _ = id.reject(private_data);
        }
        self.end(Failure::Disconnected);
        Ok(())
    }

    pub(super) fn post_receives(
        &mut self,
        count: u32,
        memories: &mut Memories,
    ) -> Result<(), PostError> {
        if self.phase == Phase::Over {
            return Err(PostError::NotConnected);
        }
        let max = self.limits.receives as usize;
        if self.receives.len() + self.wanted as usize + count as usize > max {
            return Err(PostError::Full { max });
        }
        if matches!(self.queue, Queue::Bare(_)) {
            self.wanted += count;
            return Ok(());
        }
        self.receive(count, memories)
    }

    /// Posts them all, or as many as there are buffers for and says so.
    fn receive(&mut self, count: u32, memories: &mut Memories) -> Result<(), PostError> {
        for _ in 0..count {
            let buffer = self.pool.take(memories).ok_or(REFUSED)?;
            let posted = self.element(buffer, memories).and_then(|element| {
                let Queue::Whole(pair) = &mut self.queue else {
                    return Err(PostError::NotConnected);
                };
                pair.post_receive(RECEIVE, element).map_err(|_| REFUSED)
            });
            if let Err(error) = posted {
                self.pool.put(buffer);
                return Err(error);
            }
            self.receives.push_back(buffer);
        }
        Ok(())
    }

    /// A slice as the device knows it.
    fn element(&mut self, slice: Slice, memories: &Memories) -> Result<Element, PostError> {
        let registration = match self.known.get(&slice.memory) {
            Some(registration) => *registration,
            None => {
                let region = memories.region(slice.memory);
                let region = region.ok_or(PostError::Memory { slice })?;
                let Queue::Whole(pair) = &mut self.queue else {
                    return Err(PostError::NotConnected);
                };
                let rights = Rights {
                    write: true,
                    ..Rights::default()
                };
                let len = region.len() as u64;
                let made = pair.register(region, 0, len, rights).map_err(|_| REFUSED)?;
                self.known.insert(slice.memory, made);
                made
            }
        };
        let address = registration.address + slice.offset;
        Ok(Element::new(address, slice.len, registration.local_key))
    }

    pub(super) fn post(&mut self, post: &Post<'_>, memories: &Memories) -> Result<(), PostError> {
        if self.phase != Phase::Running {
            return Err(PostError::NotConnected);
        }
        let max = self.limits.works;
        if self.posted.len() >= max {
            return Err(PostError::Full { max });
        }
        let (slices, operation) = match post.work {
            Work::Invalidate { key } => return self.invalidate(post, key),
            Work::Send {
                gather,
                invalidate,
                solicited,
            } => {
                // Memory of programs cannot be invalidated by the peer but over iWARP: there
                // it is told to, elsewhere it does so itself when it has the message.
                let invalidate = invalidate.filter(|_| self.reads_expose).map(|key| key.0);
                let operation = verbs::Operation::Send {
                    invalidate,
                    solicited,
                };
                (gather, operation)
            }
            Work::Write { gather, to } => {
                let (address, key) = (to.address, to.key.0);
                (gather, verbs::Operation::Write { address, key })
            }
            Work::Read { .. } if self.depth.outbound == 0 => return Err(PostError::NoReads),
            Work::Read { into, from } => {
                let (address, key) = (from.address, from.key.0);
                (into, verbs::Operation::Read { address, key })
            }
        };
        let is_read = matches!(operation, verbs::Operation::Read { .. });
        self.check_sizes(slices, is_read)?;
        memories.check(slices)?;
        let mut sink = None;
        let mut elements = [Element::default(); GATHER];
        for (element, slice) in elements.iter_mut().zip(slices) {
            *element = if is_read && self.reads_expose {
                let registration = self.sink(*slice, memories)?;
                sink = Some(registration);
                Element::new(registration.address, slice.len, registration.local_key)
            } else {
                self.element(*slice, memories)?
            };
        }
        let number = self.first.wrapping_add(self.posted.len() as u64) & !RECEIVE;
        let Queue::Whole(pair) = &mut self.queue else {
            return Err(PostError::NotConnected);
        };
        if pair
            .post(number, &elements[..slices.len()], operation)
            .is_err()
        {
            if let Some(sink) = sink {
                // One that stays ends with the connection.
                let _ = pair.deregister(sink);
            }
            return Err(REFUSED);
        }
        self.posted.push_back(Posted {
            id: post.id,
            operation: post.work.operation(),
            signalled: post.signalled,
            sink,
            done: false,
        });
        Ok(())
    }

    fn check_sizes(&self, slices: &[Slice], is_read: bool) -> Result<(), PostError> {
        let limits = &self.limits;
        let max = if is_read {
            limits.read_into
        } else {
            limits.gather
        };
        if slices.len() > max {
            let got = slices.len();
            return Err(PostError::Elements { got, max });
        }
        let got = slices.iter().map(|slice| u64::from(slice.len)).sum();
        let max = limits.work_bytes;
        if got > max.into() {
            return Err(PostError::Bytes { got, max });
        }
        Ok(())
    }

    /// What a read goes into. Over iWARP the peer writes it as it writes any exposure, and is
    /// told its key: so it is the bytes of this read alone, for as long as it takes.
    fn sink(&mut self, slice: Slice, memories: &Memories) -> Result<Registration, PostError> {
        let rights = Rights {
            write: true,
            remote_write: true,
            ..Rights::default()
        };
        self.register(slice, memories, rights)
    }

    fn register(
        &mut self,
        slice: Slice,
        memories: &Memories,
        rights: Rights,
    ) -> Result<Registration, PostError> {
        let region = memories.region(slice.memory);
        let region = region.ok_or(PostError::Memory { slice })?;
        let Queue::Whole(pair) = &mut self.queue else {
            return Err(PostError::NotConnected);
        };
        let made = pair.register(region, slice.offset, slice.len.into(), rights);
        made.map_err(|_| REFUSED)
    }

    fn invalidate(&mut self, post: &Post<'_>, key: Key) -> Result<(), PostError> {
        if !self.exposed.contains_key(&key) {
            return Err(PostError::Key { key });
        }
        if !self.hide(key) {
            self.end(Failure::Memory);
            return Ok(());
        }
        self.posted.push_back(Posted {
            id: post.id,
            operation: Operation::Invalidate,
            signalled: post.signalled,
            sink: None,
            done: true,
        });
        self.tell_done();
        Ok(())
    }

    pub(super) fn expose(
        &mut self,
        slices: &[Slice],
        access: Access,
        memories: &Memories,
    ) -> Result<Remote, PostError> {
        if self.phase != Phase::Running {
            return Err(PostError::NotConnected);
        }
        let limits = self.limits;
        let &[slice] = slices else {
            let (got, max) = (slices.len(), limits.exposure_slices);
            return Err(PostError::Elements { got, max });
        };
        if slice.len == 0 || slice.len > limits.exposure_bytes {
            let (got, max) = (slice.len.into(), limits.exposure_bytes);
            return Err(PostError::Bytes { got, max });
        }
        memories.check(slices)?;
        if self.exposed.len() >= limits.exposures {
            let max = limits.exposures;
            return Err(PostError::Full { max });
        }
        let rights = Rights {
            write: false,
            remote_read: access.read,
            remote_write: access.write,
        };
        let registration = self.register(slice, memories, rights)?;
        let key = Key(registration.remote_key);
        self.exposed.insert(key, (registration, slice.memory));
        Ok(Remote {
            key,
            address: registration.address,
        })
    }
}

/// The device or the kernel refuses: no room, no memory that can be pinned.
const REFUSED: PostError = PostError::System(Injected { site: Site::Map });

/// Bytes of private data that every transport takes, both ways.
const PRIVATE_DATA_MAX: u32 = 148;

fn check_private(private_data: &[u8]) -> Result<(), PostError> {
    let (got, max) = (private_data.len() as u64, PRIVATE_DATA_MAX);
    if got > max.into() {
        return Err(PostError::Bytes { got, max });
    }
    Ok(())
}

fn depth(parameters: &Parameters) -> Depth {
    Depth {
        inbound: parameters.inbound.into(),
        outbound: parameters.outbound.into(),
    }
}

fn narrow(depth: u16) -> u8 {
    u8::try_from(depth).unwrap_or(u8::MAX)
}
