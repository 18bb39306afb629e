//! One connection of a device.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use linkspan_mem::fault::{Injected, Site};
use linkspan_rdma::verbs::{
    Completion, Depth, Event, Failure, Greeting, Key, Limits, MemoryId, Operation, PostError, Slice,
};
use linkspan_rdma::{Memories, Pool};
use linkspan_sys::Epoll;
use linkspan_sys::poll::Interest;
use linkspan_sys::verbs::{
    DeviceLimits, Identifier, IdentifierKey, Parameters, QueuePair, Registration, Sizes,
};
use rustix::io::Errno;

use super::{DeviceConfig, GATHER, Guest};
use crate::rdma::table::Entry;

/// siw overlooks a first frame that follows its reply at once, until more bytes come: how often an
/// initiator that has spoken and hears nothing pokes its peer.
pub(super) const NUDGES: u8 = 3;

/// How a peer that does not want us is told apart from one that nobody found, over InfiniBand
/// and RoCE (`IB_CM_REJ_CONSUMER_DEFINED`).
const REJECTED_BY_CONSUMER: i32 = 28;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
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
pub(super) struct Posted {
    pub(super) id: u64,
    pub(super) operation: Operation,
    pub(super) signalled: bool,
    /// What a read goes into, exposed for as long as it takes.
    pub(super) sink: Option<Registration>,
    pub(super) done: bool,
}

pub(super) enum Queue {
    /// Its device is not known.
    Bare(Identifier),
    Whole(QueuePair),
    Gone,
}

pub(super) struct Link {
    pub(super) phase: Phase,
    pub(super) queue: Queue,
    pub(super) key: IdentifierKey,
    pub(super) greeting: Parameters,
    pub(super) own: Depth,
    pub(super) depth: Depth,
    pub(super) limits: Limits,
    pub(super) device: Option<DeviceLimits>,
    pub(super) reads_expose: bool,
    pub(super) pool: Pool,
    /// Receives that were asked for before there was a queue.
    pub(super) wanted: u32,
    /// Buffers of receives that are posted, in order.
    pub(super) receives: VecDeque<Slice>,
    pub(super) posted: VecDeque<Posted>,
    /// The number of the first of those.
    pub(super) first: u64,
    /// Memory that the device may reach for us.
    pub(super) known: BTreeMap<MemoryId, Registration>,
    pub(super) exposed: BTreeMap<Key, (Registration, MemoryId)>,
    pub(super) failure: Option<Failure>,
    pub(super) events: VecDeque<Event>,
    pub(super) due: Option<Duration>,
    /// When the peer is poked, and how many times it may be.
    pub(super) nudge: Option<Duration>,
    pub(super) nudges: u8,
    /// Who came; nobody if we connected.
    pub(super) guest: Option<Guest>,
}

impl Entry for Link {
    fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn next_due(&self) -> Option<Duration> {
        self.due.into_iter().chain(self.nudge).min()
    }
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
            nudge: None,
            nudges: 0,
            guest: None,
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
        due: Duration,
    ) -> Self {
        let offered = depth(&parameters);
        let private_data = said(id.is_iwarp(), parameters.private_data);
        let mut link = Self::new(id, Phase::Requested(offered), own, limits);
        link.due = Some(due);
        link.events.push_back(Event::Requested(Greeting {
            private_data,
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

    /// Over, told, and nothing of it is lent.
    pub(super) fn is_done(&self) -> bool {
        self.phase == Phase::Over && self.events.is_empty() && self.pool.used().1 == 0
    }

    /// Bytes of its buffers, and buffers that are lent.
    pub(super) fn buffers(&self) -> (usize, usize) {
        self.pool.used()
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
        let room = device.works.min(half).saturating_sub(NUDGES.into());
        limits.works = works.min(room) as usize;
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
                works: count(self.limits.works + usize::from(NUDGES)),
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
    pub(super) fn address_resolved(&mut self, config: &DeviceConfig) {
        let Queue::Bare(id) = &self.queue else {
            return;
        };
        if self.phase != Phase::Resolving {
            return;
        }
        let port = id.peer().map_or(0, |peer| peer.port());
        if !(config.port_fits)(port, id.is_iwarp()) {
            return self.end(Failure::WrongDevice { port });
        }
        let result = id.resolve_route(config.reply_within);
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
        if self.phase == Phase::Connecting && self.reads_expose {
            self.nudges = NUDGES;
        }
        let (private_data, agreed) = match self.phase {
            // An end has what it asked for, or less.
            Phase::Connecting => {
                let told = depth(&parameters);
                let agreed = Depth {
                    inbound: self.own.inbound.min(told.inbound),
                    outbound: self.own.outbound.min(told.outbound),
                };
                (said(self.reads_expose, parameters.private_data), agreed)
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
        if self.nudge.is_some_and(|at| at <= now) {
            self.poke(now);
        }
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.end(match self.phase {
                Phase::Running => Failure::Lost,
                _ => Failure::TimedOut,
            });
        }
    }

    pub(super) fn end(&mut self, failure: Failure) {
        if self.phase == Phase::Over {
            return;
        }
        self.phase = Phase::Over;
        (self.due, self.nudge) = (None, None);
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
}

/// The device or the kernel refuses: no room, no memory that can be pinned.
pub(super) const REFUSED: PostError = PostError::System(Injected { site: Site::Map });

/// Bytes of private data that every transport takes, both ways.
const PRIVATE_DATA_MAX: u32 = 148;

fn check_private(private_data: &[u8]) -> Result<(), PostError> {
    let (got, max) = (private_data.len() as u64, PRIVATE_DATA_MAX);
    if got > max.into() {
        return Err(PostError::Bytes { got, max });
    }
    Ok(())
}

/// What a peer said: over InfiniBand and RoCE whoever says nothing is heard to say zeroes.
fn said(is_iwarp: bool, private_data: Vec<u8>) -> Vec<u8> {
    if !is_iwarp && private_data.iter().all(|byte| *byte == 0) {
        return Vec::new();
    }
    private_data
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
