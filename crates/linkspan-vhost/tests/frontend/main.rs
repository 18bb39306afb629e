//! The front end against our own back end, back to back, and against replies
//! made of bytes.

mod commands;
mod hostile;
mod known;
mod negotiation;
mod pair;
mod resume;
mod snapshot;

use std::collections::VecDeque;

use linkspan_mem::UserVa;
use linkspan_vhost::backend::{self, Answer, Failure};
use linkspan_vhost::frontend::{Command, Effect, Event, FdId, Negotiated, QueueUnit, RingStart};
use linkspan_vhost::message::{FRONTEND_REQUESTS, Request};
use linkspan_vhost::wire::{Header, MemoryRegionDescription};
use linkspan_vhost::{
    Backend, Frontend, MemoryRegion, Offer, ProtocolFeatures, VHOST_F_LOG_ALL, Wish, frontend,
};
use zerocopy::FromBytes;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const PACKED: u64 = 1 << 34;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const BIT_30: u64 = 1 << 30;
pub(crate) const ALL: ProtocolFeatures = Frontend::PROTOCOL_FEATURES;

/// Where the engine of these tests says that ring 0 stopped; ring 1 one further.
pub(crate) const STOPPED_AT: u32 = 100;

pub(crate) fn wish() -> Wish {
    Wish {
        features: VERSION_1 | EVENT_IDX | 1 << 40,
        required_features: VERSION_1,
        protocol_features: ALL,
        required_protocol_features: ProtocolFeatures::CONFIG,
        queues: 4,
        queue_unit: QueueUnit::Rings,
        config_size: 60,
        memory_slots: 2,
    }
}

pub(crate) fn offer() -> Offer {
    Offer {
        features: VERSION_1 | PACKED | EVENT_IDX | VHOST_F_LOG_ALL,
        protocol_features: Backend::PROTOCOL_FEATURES,
        queues: 4,
        queue_num: 4,
        queue_size_max: 1024,
        config_size: 1000,
        memory_slots: 32,
    }
}

/// One message as the front end sent it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sent {
    pub(crate) request: Request,
    pub(crate) flags: u32,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<FdId>,
}

/// Both ends with two streams between them, and an engine that does what the
/// back end asks unless told otherwise.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) front: Frontend,
    pub(crate) back: Backend,
    pub(crate) sent: Vec<Sent>,
    pub(crate) events: Vec<Event>,
    /// Most bytes that go over at once.
    pub(crate) piece: usize,
    /// The effect of the back end, counted from 0, that fails; and how.
    pub(crate) fails: Option<(usize, Failure)>,
    pub(crate) effects: usize,
    /// After so many pieces the connection is lost.
    pub(crate) cut: Option<usize>,
    pub(crate) pieces: usize,
    pub(crate) error: Option<frontend::Error>,
}

impl Pair {
    /// Two ends, negotiated.
    pub(crate) fn new() -> Self {
        let mut pair = Self::with(wish(), offer());
        pair.run();
        assert_eq!(pair.error, None);
        pair.negotiated();
        pair
    }

    pub(crate) fn with(wish: Wish, offer: Offer) -> Self {
        Self::of(Frontend::new(wish).expect("a wish"), offer)
    }

    pub(crate) fn of(front: Frontend, offer: Offer) -> Self {
        Self {
            front,
            back: Backend::new(offer).expect("an offer"),
            sent: Vec::new(),
            events: Vec::new(),
            piece: usize::MAX,
            fails: None,
            effects: 0,
            cut: None,
            pieces: 0,
            error: None,
        }
    }

    /// Two ends with features and memory.
    pub(crate) fn ready() -> Self {
        let mut pair = Self::new();
        pair.make_ready();
        pair
    }

    pub(crate) fn make_ready(&mut self) {
        let features = self.front.negotiated().expect("negotiated").features;
        self.done(Command::SetFeatures(features));
        self.done(Command::SetMemory(memory()));
        self.sent.clear();
    }

    pub(crate) fn negotiated(&mut self) -> Negotiated {
        assert_eq!(self.error, None);
        match self.events.pop() {
            Some(Event::Negotiated(negotiated)) if self.events.is_empty() => negotiated,
            other => panic!("{other:?} {:?}", self.events),
        }
    }

    /// Gives a command and lets it come to its end. Returns what was reported
    /// with the last event.
    pub(crate) fn give(&mut self, command: Command) -> Vec<Event> {
        self.front.command(command).expect("a command");
        self.run();
        std::mem::take(&mut self.events)
    }

    /// The command is done; returns what it reported before.
    #[track_caller]
    pub(crate) fn done(&mut self, command: Command) -> Vec<Event> {
        let mut events = self.give(command);
        assert_eq!(self.error, None);
        assert_eq!(events.pop(), Some(Event::Done));
        events
    }

    /// The command is refused at this message.
    #[track_caller]
    pub(crate) fn refused(&mut self, command: Command) -> (Request, Vec<Event>) {
        let mut events = self.give(command);
        assert_eq!(self.error, None);
        match events.pop() {
            Some(Event::Refused { request, code }) if code != 0 => (request, events),
            other => panic!("{other:?}"),
        }
    }

    /// What was sent since the last call, by name.
    pub(crate) fn requests(&mut self) -> Vec<Request> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter().map(|sent| sent.request).collect()
    }

    /// Lets both ends talk until neither has anything to say.
    pub(crate) fn run(&mut self) {
        let mut to_front: VecDeque<(Vec<u8>, usize)> = VecDeque::new();
        loop {
            let Some(effect) = self.front.poll_effect() else {
                let Some((bytes, fds)) = to_front.pop_front() else {
                    return;
                };
                if !self.feed_front(&bytes, fds) {
                    return;
                }
                continue;
            };
            match effect {
                Effect::Report(event) => self.events.push(event),
                Effect::Send { bytes, fds } => {
                    self.sent.push(read(&bytes, &fds));
                    if !self.feed_back(&bytes, fds.len(), &mut to_front) {
                        return;
                    }
                }
            }
        }
    }

    fn lost(&mut self) -> bool {
        self.pieces += 1;
        self.cut.is_some_and(|cut| self.pieces > cut)
    }

    fn feed_front(&mut self, mut bytes: &[u8], mut fds: usize) -> bool {
        while !bytes.is_empty() {
            if self.lost() {
                return false;
            }
            let count = self.front.wanted().min(self.piece).min(bytes.len());
            assert!(count > 0, "the front end wants nothing of {bytes:?}");
            let result = self.front.receive(&bytes[..count], fds);
            fds = 0;
            bytes = &bytes[count..];
            if let Err(error) = result {
                assert!(self.front.is_over() && self.front.wanted() == 0);
                self.error = Some(error);
                return false;
            }
        }
        true
    }

    fn feed_back(
        &mut self,
        mut bytes: &[u8],
        mut fds: usize,
        to_front: &mut VecDeque<(Vec<u8>, usize)>,
    ) -> bool {
        while !bytes.is_empty() {
            if self.lost() {
                return false;
            }
            let count = self.back.wanted().min(self.piece).min(bytes.len());
            assert!(count > 0, "the back end wants nothing of {bytes:?}");
            // What is wrong with a message is seen in what is sent back.
            let refused = self.back.receive(&bytes[..count], fds).is_err();
            let mut refused = refused && self.back.wanted() == 0;
            fds = 0;
            bytes = &bytes[count..];
            while let Some(effect) = self.back.poll_effect() {
                if let backend::Effect::Send { bytes, fds } = effect {
                    to_front.push_back((bytes, fds.len()));
                    refused = false;
                    continue;
                }
                let answer = self.answer(&effect);
                if let Err(error) = self.back.answer(answer) {
                    refused |= error.disposition() == linkspan_vhost::Disposition::CloseLink;
                }
            }
            if refused {
                return false;
            }
        }
        true
    }

    fn answer(&mut self, effect: &backend::Effect) -> Result<Answer, Failure> {
        use backend::Effect as E;
        let at = self.effects;
        self.effects += 1;
        if let Some((_, failure)) = self.fails.filter(|(fails, _)| *fails == at) {
            return Err(failure);
        }
        Ok(match effect {
            E::StopRing { ring } => Answer::RingStopped {
                base: STOPPED_AT + u32::from(*ring),
            },
            E::ReadConfig { offset, size } => Answer::Config(config(*offset, *size)),
            E::CreateInflight { .. } => Answer::Inflight {
                size: 0x5000,
                offset: 0x1000,
                fd: FdId(77),
            },
            _ => Answer::Done,
        })
    }

    /// The connection is lost: both ends stop, and the back end stops its rings.
    pub(crate) fn lose(&mut self) {
        self.front.disconnect();
        assert_eq!(self.front.poll_effect(), None);
        self.back.disconnect();
        while let Some(effect) = self.back.poll_effect() {
            let answer = self.answer(&effect);
            let _ = self.back.answer(answer);
        }
        // An effect may have been under way when it was lost.
        if !self.back.is_over() {
            let _ = self.back.answer(Err(Failure::System));
            self.lose();
        }
        assert!(self.back.is_over());
    }

    /// Both ends know the same of everything that both know.
    #[track_caller]
    pub(crate) fn agree(&self) {
        assert_eq!(self.front.features(), self.back.features());
        let regions: Vec<_> = self
            .front
            .regions()
            .iter()
            .map(|(region, _)| *region)
            .collect();
        assert_eq!(regions, self.back.regions());
        assert_eq!(self.front.rings(), self.back.rings());
    }
}

fn read(bytes: &[u8], fds: &[FdId]) -> Sent {
    let (header, body) = Header::read_from_prefix(bytes).expect("a header");
    let row = linkspan_vhost::message::find(&FRONTEND_REQUESTS, header.request);
    Sent {
        request: row.expect("a message").request,
        flags: header.flags,
        body: body.to_vec(),
        fds: fds.to_vec(),
    }
}

/// Byte `i` of the configuration space of these tests is `i`, wrapping.
pub(crate) fn config(offset: u32, size: u32) -> Vec<u8> {
    let byte = |at: u32| u8::try_from(at % 256).expect("a byte");
    (offset..offset + size).map(byte).collect()
}

pub(crate) fn region(guest: u64, size: u64, user: u64) -> MemoryRegion {
    MemoryRegion::new(MemoryRegionDescription {
        guest_address: guest,
        size,
        user_address: user,
        mmap_offset: 0x1000,
    })
    .expect("a region")
}

pub(crate) fn memory() -> Vec<(MemoryRegion, FdId)> {
    vec![
        (region(0, 0x10_0000, 0x7000_0000), FdId(1)),
        (region(1 << 32, 0x10_0000, 0x8000_0000), FdId(2)),
    ]
}

pub(crate) fn start(ring: u16) -> RingStart {
    let at = 0x7000_0000 + u64::from(ring) * 0x1_0000;
    let fd = u64::from(ring) * 10;
    RingStart {
        ring,
        size: 256,
        base: 5 + u32::from(ring),
        descriptor: UserVa(at),
        driver: UserVa(at + 0x4000),
        device: UserVa(at + 0x8000),
        log: None,
        kick: Some(FdId(fd + 1)),
        call: Some(FdId(fd + 2)),
        err: Some(FdId(fd + 3)),
        enabled: true,
    }
}

pub(crate) fn start_all() -> Command {
    Command::StartRings((0..4).map(start).collect())
}
