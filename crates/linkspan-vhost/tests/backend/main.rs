//! The back end against a front end made of bytes.

mod config;
mod device;
mod disconnect;
mod memory;
mod requests;
mod rings;
mod sequences;
mod session;
mod snapshot;
mod table;

use linkspan_vhost::backend::{Answer, Effect, Failure};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{
    self, HEADER_BYTES, Header, InflightDescription, MemoryRegionDescription, MemoryTableHeader,
    SingleMemoryRegion, VringAddr, VringState,
};
use linkspan_vhost::{Backend, Disposition, Error, FdId, Offer, ProtocolFeatures, VHOST_F_LOG_ALL};
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const PACKED: u64 = 1 << 34;
pub(crate) const BIT_30: u64 = 1 << 30;

/// What the engine of these tests answers to a request for an in-flight region.
pub(crate) const INFLIGHT_BYTES: u64 = 0x3000;
pub(crate) const INFLIGHT_FD: FdId = FdId(7);

/// Where the engine of these tests says that a ring stopped.
pub(crate) const STOPPED_AT: u32 = 0x1234;

pub(crate) fn offer() -> Offer {
    Offer {
        features: VERSION_1 | PACKED | VHOST_F_LOG_ALL,
        protocol_features: Backend::PROTOCOL_FEATURES,
        queues: 4,
        queue_num: 4,
        queue_size_max: 1024,
        config_size: 96,
        memory_slots: 32,
    }
}

/// A session with an engine that does what it is asked, unless told otherwise.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) backend: Backend,
    /// The answer to the next effect that needs one.
    pub(crate) failure: Option<Failure>,
    /// The answer to the next effect that could have several.
    pub(crate) answer: Option<Answer>,
}

/// What came of one message.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) effects: Vec<Effect>,
    pub(crate) replies: Vec<(Header, Vec<u8>)>,
    /// Descriptors that went with the replies.
    pub(crate) fds: Vec<FdId>,
    pub(crate) error: Option<Error>,
}

impl Session {
    pub(crate) fn new(offer: Offer) -> Self {
        Self {
            backend: Backend::new(offer).expect("an offer"),
            failure: None,
            answer: None,
        }
    }

    /// A session after features, protocol features and one region of memory.
    pub(crate) fn ready() -> Self {
        Self::ready_with(VERSION_1 | BIT_30, Backend::PROTOCOL_FEATURES)
    }

    pub(crate) fn ready_with(features: u64, protocol: ProtocolFeatures) -> Self {
        let mut session = Self::new(offer());
        session
            .send(Request::SetProtocolFeatures, protocol.bits().as_bytes())
            .ok();
        session.send(Request::SetOwner, &[]).ok();
        session.send(Request::SetFeatures, features.as_bytes()).ok();
        let table = table_of(&[region(0, 0x10_0000, 0x7000_0000)]);
        session.send_fds(Request::SetMemTable, &table, 1).ok();
        session
    }

    pub(crate) fn send(&mut self, request: Request, body: &[u8]) -> Outcome {
        self.raw(&wire::encode(request.code(), 0, body), 0)
    }

    pub(crate) fn send_fds(&mut self, request: Request, body: &[u8], fds: usize) -> Outcome {
        self.raw(&wire::encode(request.code(), 0, body), fds)
    }

    pub(crate) fn ask(&mut self, request: Request, body: &[u8], fds: usize) -> Outcome {
        self.raw(&wire::encode(request.code(), Header::NEED_REPLY, body), fds)
    }

    /// One message, in as few pieces as the back end wants it.
    pub(crate) fn raw(&mut self, message: &[u8], fds: usize) -> Outcome {
        self.pieces(message, fds, usize::MAX)
    }

    /// One message, in pieces of at most `piece` bytes.
    pub(crate) fn pieces(&mut self, mut message: &[u8], mut fds: usize, piece: usize) -> Outcome {
        let mut outcome = Outcome {
            effects: Vec::new(),
            replies: Vec::new(),
            fds: Vec::new(),
            error: None,
        };
        while !message.is_empty() && outcome.error.is_none() {
            let count = self.backend.wanted().min(piece).min(message.len());
            assert!(count > 0, "the back end wants nothing of {message:?}");
            let (now, later) = message.split_at(count);
            message = later;
            outcome.error = self.backend.receive(now, fds).err();
            fds = 0;
            self.work(&mut outcome);
        }
        outcome
    }

    /// Carries out effects until none is left.
    pub(crate) fn work(&mut self, outcome: &mut Outcome) {
        while let Some(effect) = self.backend.poll_effect() {
            if let Effect::Send { bytes, fds } = &effect {
                outcome.fds.extend(fds);
                let (header, body) = Header::read_from_prefix(bytes).expect("a header");
                assert_eq!(header.size as usize, body.len());
                outcome.replies.push((header, body.to_vec()));
                continue;
            }
            assert_eq!(self.backend.wanted(), 0, "nothing is read under an effect");
            let answer = match (self.failure.take(), &effect) {
                (Some(failure), _) => Err(failure),
                (None, Effect::StopRing { .. }) => Ok(Answer::RingStopped { base: STOPPED_AT }),
                (None, Effect::ReadConfig { offset, size }) => Ok(Answer::Config(
                    (*offset..offset + size)
                        .map(|at| u8::try_from(at).expect("small"))
                        .collect(),
                )),
                (None, Effect::CreateInflight { .. }) => Ok(Answer::Inflight {
                    size: INFLIGHT_BYTES,
                    offset: 0,
                    fd: INFLIGHT_FD,
                }),
                (None, _) => Ok(self.answer.take().unwrap_or(Answer::Done)),
            };
            outcome.effects.push(effect);
            if let Err(error) = self.backend.answer(answer) {
                assert!(outcome.error.is_none());
                outcome.error = Some(error);
            }
        }
    }

    pub(crate) fn set_up(&mut self, ring: u16) {
        self.send(Request::SetVringNum, &state(ring, 256)).ok();
        self.send(Request::SetVringBase, &state(ring, 5)).ok();
        self.send(Request::SetVringAddr, addr(ring).as_bytes()).ok();
    }

    pub(crate) fn kick(&mut self, ring: u16) -> Outcome {
        self.send_fds(Request::SetVringKick, u64::from(ring).as_bytes(), 1)
    }

    /// Started and enabled.
    pub(crate) fn run(&mut self, ring: u16) {
        self.set_up(ring);
        self.kick(ring).ok();
        self.send(Request::SetVringEnable, &state(ring, 1)).ok();
    }

    pub(crate) fn disconnect(&mut self) -> Vec<Effect> {
        self.backend.disconnect();
        let mut outcome = Outcome {
            effects: Vec::new(),
            replies: Vec::new(),
            fds: Vec::new(),
            error: None,
        };
        self.work(&mut outcome);
        assert_eq!(outcome.replies, []);
        assert_eq!(outcome.error, None);
        assert!(self.backend.is_over());
        assert_eq!(self.backend.wanted(), 0);
        outcome.effects
    }
}

impl Outcome {
    /// The message was accepted and got no reply.
    #[track_caller]
    pub(crate) fn ok(self) -> Vec<Effect> {
        assert_eq!(self.error, None);
        assert_eq!(self.replies, []);
        self.effects
    }

    /// The message was accepted without anything to do.
    #[track_caller]
    pub(crate) fn quiet(self) {
        assert_eq!(self.ok(), []);
    }

    /// The only reply, to `request`.
    #[track_caller]
    pub(crate) fn reply(mut self, request: Request) -> Vec<u8> {
        assert_eq!(self.error, None);
        let (header, body) = self.replies.pop().expect("a reply");
        assert_eq!(self.replies, [], "never two replies");
        assert_eq!(header.request, request.code());
        // QEMU compares the flags as a whole.
        assert_eq!(header.flags, Header::VERSION | Header::REPLY);
        body
    }

    #[track_caller]
    pub(crate) fn reply_u64(self, request: Request) -> u64 {
        u64::read_from_bytes(&self.reply(request)).expect("8 bytes")
    }

    /// Refused, and the session is over.
    #[track_caller]
    pub(crate) fn closed(self) -> Error {
        assert_eq!(self.replies, []);
        let error = self.error.expect("an error");
        assert_eq!(error.disposition(), Disposition::CloseLink, "{error}");
        error
    }

    /// Refused with a nonzero acknowledgement, and the session goes on.
    #[track_caller]
    pub(crate) fn nacked(mut self) -> Error {
        let error = self.error.take().expect("an error");
        assert_eq!(error.disposition(), Disposition::Nack, "{error}");
        let (header, body) = self.replies.pop().expect("a reply");
        assert_eq!(self.replies, [], "never two replies");
        assert_eq!(Some(header.request), error.request());
        assert_eq!(header.flags, Header::VERSION | Header::REPLY);
        assert_ne!(u64::read_from_bytes(&body).expect("8 bytes"), 0);
        error
    }
}

pub(crate) fn state(ring: u16, num: u32) -> Vec<u8> {
    let index = ring.into();
    VringState { index, num }.as_bytes().to_vec()
}

pub(crate) fn addr(ring: u16) -> VringAddr {
    let at = 0x7000_0000 + u64::from(ring) * 0x1_0000;
    VringAddr {
        index: ring.into(),
        flags: 0,
        descriptor: at,
        available: at + 0x4000,
        used: at + 0x8000,
        log: 0,
    }
}

pub(crate) fn region(guest: u64, size: u64, user: u64) -> MemoryRegionDescription {
    MemoryRegionDescription {
        guest_address: guest,
        size,
        user_address: user,
        mmap_offset: 0,
    }
}

pub(crate) fn table_of(regions: &[MemoryRegionDescription]) -> Vec<u8> {
    let num_regions = u32::try_from(regions.len()).expect("few");
    let header = MemoryTableHeader {
        num_regions,
        padding: 0,
    };
    [header.as_bytes(), regions.as_bytes()].concat()
}

pub(crate) fn single(region: MemoryRegionDescription) -> Vec<u8> {
    SingleMemoryRegion { padding: 0, region }
        .as_bytes()
        .to_vec()
}

/// An inflight description with its padding, for rings of 64 entries.
pub(crate) fn inflight(size: u64, queues: u16) -> Vec<u8> {
    let description = InflightDescription {
        mmap_size: size,
        mmap_offset: 0,
        num_queues: queues,
        queue_size: 64,
        padding: 0,
    };
    description.as_bytes().to_vec()
}

pub(crate) fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER_BYTES] {
    let header = Header {
        request,
        flags,
        size,
    };
    header.as_bytes().try_into().expect("12 bytes")
}
