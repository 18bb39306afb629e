//! The back end of a vhost-user session: the side that runs a device.
//!
//! [`Backend`] is one connection. Bytes go in through [`Backend::receive`],
//! and what is to be done comes out of [`Backend::poll_effect`]. Each effect
//! but a [`Send`](Effect::Send) is answered through [`Backend::answer`], and
//! only then is more received: so whatever takes time (to drain a ring, to map
//! memory) is a state here, and the reply leaves when it is over.

mod config;
mod device;
mod dispatch;
mod effect;
mod requests;
mod snapshot;

use alloc::vec;
use alloc::vec::Vec;
use core::mem;

use thiserror::Error;
use zerocopy::IntoBytes;

pub use crate::fd::{FdId, FdSlot};
pub use crate::framing::FramingError;
pub use crate::record::{NotQuiet, RestoreError};
pub use crate::ring::{Notifier, Ring, RingAddresses, RingError};
pub use config::ConfigError;
pub use effect::{Answer, ConfigWriter, Effect, Failure, RingSetup};
pub use requests::{ReplyError, Requests};

use crate::area::{Inflight, Log};
use crate::error::{Cause, Disposition, Error};
use crate::features::{ProtocolFeatures, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_ACCESS_PLATFORM};
use crate::framing::{Carries, Framing};
use crate::memory::MemoryRegion;
use crate::message::{self, FRONTEND_REQUESTS, Reply, Request};
use crate::wire::{self, DEVICE_STATE_NOFD_MASK, Header};
use dispatch::{Commit, Step};

/// The most rings of a session: the messages that carry their descriptors
/// have 8 bits for the ring.
pub const MAX_RINGS: u16 = 256;

/// The largest ring (virtio 1.3, 2.7 and 2.8).
pub const MAX_RING_SIZE: u16 = 1 << 15;

/// What a device offers to the front end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Virtio features, `VHOST_F_LOG_ALL` included. `VHOST_USER_F_PROTOCOL_FEATURES`
    /// follows from `protocol_features`.
    pub features: u64,
    /// At most [`Backend::PROTOCOL_FEATURES`].
    pub protocol_features: ProtocolFeatures,
    /// Rings, 1 to [`MAX_RINGS`].
    pub queues: u16,
    /// The answer to `VHOST_USER_GET_QUEUE_NUM`. Front ends for block devices
    /// count rings, those for network devices pairs of rings.
    pub queue_num: u64,
    /// The largest ring, 1 to [`MAX_RING_SIZE`].
    pub queue_size_max: u16,
    /// Bytes of configuration space. Front ends ask for as much as their
    /// version of the specification has; give as much as the newest has.
    pub config_size: u32,
    /// Memory regions at once, with `CONFIGURE_MEM_SLOTS`.
    pub memory_slots: u64,
}

/// The back end of one connection.
#[derive(Debug)]
pub struct Backend {
    offer: Offer,
    features: Option<u64>,
    protocol_features: ProtocolFeatures,
    regions: Vec<MemoryRegion>,
    rings: Vec<Ring>,
    framing: Framing,
    link: Link,
    turn: Turn,
    outbox: Option<(Vec<u8>, Option<FdId>)>,
    status: u8,
    needs_reset: bool,
    log: Option<Log>,
    log_fd: bool,
    inflight: Option<Inflight>,
    request_socket: bool,
    /// Whose messages are legal beside those of every device.
    kind: Option<&'static str>,
}

/// An offer that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OfferError {
    /// No ring, or more than the messages that carry descriptors can name.
    #[error("{queues} rings; 1 to {max} can be offered")]
    Queues {
        /// Rings to offer.
        queues: u16,
        /// The most.
        max: u16,
    },
    /// Rings that cannot be.
    #[error("rings of {size} entries; 1 to {max} are possible")]
    QueueSize {
        /// Entries to offer.
        size: u16,
        /// The most.
        max: u16,
    },
    /// Protocol features beyond [`Backend::PROTOCOL_FEATURES`].
    #[error("protocol features {extra:?} are not implemented")]
    ProtocolFeatures {
        /// Those.
        extra: ProtocolFeatures,
    },
    /// Virtio features that the session itself would have to have.
    #[error("features {extra:#x} are not implemented")]
    Features {
        /// Those.
        extra: u64,
    },
}

/// The driver of the session called it wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Misuse {
    /// More bytes than were wanted, or bytes while effects wait.
    #[error("{got} bytes were received where {wanted} were wanted")]
    Unwanted {
        /// Bytes handed over.
        got: usize,
        /// Bytes wanted.
        wanted: usize,
    },
    /// No effect waits for an answer.
    #[error("an answer to nothing")]
    NoQuestion,
    /// The answer does not fit the effect.
    #[error("an answer that does not fit its question")]
    WrongAnswer,
    /// The session is over.
    #[error("the session is over")]
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// Messages are received.
    Open,
    /// An error ended the session; its rings still run.
    Failed,
    /// The rings are being stopped, or are.
    Draining,
}

/// Whose turn it is to act.
#[derive(Debug)]
enum Turn {
    /// The peer's.
    Idle,
    /// The driver's, to take the effect.
    Asking(Effect, Question),
    /// The driver's, to answer it.
    Asked(Question),
}

/// What follows from the answer to an effect.
#[derive(Debug)]
struct Question {
    commit: Commit,
    context: Context,
}

/// The message that is being handled.
#[derive(Clone, Copy, Debug)]
struct Context {
    code: u32,
    need_reply: bool,
}

impl Backend {
    /// The protocol features that this state machine has.
    pub const PROTOCOL_FEATURES: ProtocolFeatures = ProtocolFeatures::MQ
        .union(ProtocolFeatures::REPLY_ACK)
        .union(ProtocolFeatures::CONFIG)
        .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
        .union(ProtocolFeatures::LOG_SHMFD)
        .union(ProtocolFeatures::BACKEND_REQ)
        .union(ProtocolFeatures::INFLIGHT_SHMFD)
        .union(ProtocolFeatures::RESET_DEVICE)
        .union(ProtocolFeatures::STATUS)
        .union(ProtocolFeatures::RARP)
        .union(ProtocolFeatures::NET_MTU)
        .union(ProtocolFeatures::DEVICE_STATE);

    /// A session before its first message.
    ///
    /// # Errors
    /// The offer is outside the limits that its fields name.
    pub fn new(mut offer: Offer) -> Result<Self, OfferError> {
        let extra = offer.protocol_features.difference(Self::PROTOCOL_FEATURES);
        if !extra.is_empty() {
            return Err(OfferError::ProtocolFeatures { extra });
        }
        let extra = offer.features & VIRTIO_F_ACCESS_PLATFORM;
        if extra != 0 {
            return Err(OfferError::Features { extra });
        }
        if !(1..=MAX_RINGS).contains(&offer.queues) {
            let (queues, max) = (offer.queues, MAX_RINGS);
            return Err(OfferError::Queues { queues, max });
        }
        if !(1..=MAX_RING_SIZE).contains(&offer.queue_size_max) {
            let (size, max) = (offer.queue_size_max, MAX_RING_SIZE);
            return Err(OfferError::QueueSize { size, max });
        }
        offer.features &= !VHOST_USER_F_PROTOCOL_FEATURES;
        if !offer.protocol_features.is_empty() {
            offer.features |= VHOST_USER_F_PROTOCOL_FEATURES;
        }
        Ok(Self {
            features: None,
            protocol_features: ProtocolFeatures::empty(),
            regions: Vec::new(),
            rings: vec![Ring::default(); offer.queues.into()],
            framing: Framing::new(Carries::Requests),
            link: Link::Open,
            turn: Turn::Idle,
            outbox: None,
            status: 0,
            needs_reset: false,
            log: None,
            log_fd: false,
            inflight: None,
            request_socket: false,
            kind: None,
            offer,
        })
    }

    /// The device is a GPU, whose front end may send `VHOST_USER_GPU_SET_SOCKET`.
    pub fn be_gpu(&mut self) {
        self.kind = Some("gpu");
    }

    /// Bytes to read next from the socket: what is missing of a header, then
    /// of its body. Never read more, since descriptors belong to the message
    /// whose first byte they come with. 0 while an effect waits to be taken
    /// or answered, and after the end of the session.
    #[must_use]
    pub fn wanted(&self) -> usize {
        match (self.link, &self.turn, &self.outbox) {
            (Link::Open, Turn::Idle, None) => self.framing.wanted(),
            _ => 0,
        }
    }

    /// Whether a message has begun and is not all there: its descriptors are to
    /// be kept.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        self.framing.begun()
    }

    /// Takes bytes of the socket, at most [`wanted`](Self::wanted), and the
    /// number of descriptors that came with them. Descriptors are legal only
    /// with the first byte of a message.
    ///
    /// # Errors
    /// The message that ended with these bytes was refused, or the stream
    /// makes no sense; [`Error::disposition`] says what is left to do.
    pub fn receive(&mut self, bytes: &[u8], fds: usize) -> Result<(), Error> {
        let wanted = self.wanted();
        if self.link != Link::Open {
            return Err(self.fail(None, Misuse::Over.into()));
        }
        if bytes.len() > wanted {
            return Err(self.fail(
                None,
                Misuse::Unwanted {
                    got: bytes.len(),
                    wanted,
                }
                .into(),
            ));
        }
        if bytes.is_empty() && fds == 0 {
            return Ok(());
        }
        let frame = match self.framing.push(bytes, fds) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(()),
            Err(error) => return Err(self.fail(self.framing.request(), error.into())),
        };
        let context = Context {
            code: frame.header.request,
            need_reply: frame.header.flags & Header::NEED_REPLY != 0,
        };
        let step = self.dispatch(&frame);
        self.advance(context, step)
    }

    /// What is to be done next, if anything is.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if let Some((bytes, fd)) = self.outbox.take() {
            let fds = fd.into_iter().collect();
            return Some(Effect::Send { bytes, fds });
        }
        if self.link == Link::Draining && matches!(self.turn, Turn::Idle) {
            self.turn = self.next_drain()?;
        }
        match mem::replace(&mut self.turn, Turn::Idle) {
            Turn::Asking(effect, question) => {
                self.turn = Turn::Asked(question);
                Some(effect)
            }
            other => {
                self.turn = other;
                None
            }
        }
    }

    /// The answer to the effect taken last, if [`Effect::needs_answer`].
    ///
    /// # Errors
    /// With a [`Failure`] the message is refused, as from [`receive`](Self::receive).
    pub fn answer(&mut self, answer: Result<Answer, Failure>) -> Result<(), Error> {
        let Question { commit, context } = match mem::replace(&mut self.turn, Turn::Idle) {
            Turn::Asked(question) => question,
            other => {
                self.turn = other;
                return Err(self.fail(None, Misuse::NoQuestion.into()));
            }
        };
        let step = match answer {
            Ok(answer) => self.commit(commit, answer),
            Err(failure) => self.give_up(&commit, failure),
        };
        if self.link == Link::Draining {
            return match step {
                Err(cause @ Cause::Misuse(_)) => Err(self.fail(Some(context.code), cause)),
                _ => Ok(()),
            };
        }
        self.advance(context, step)
    }

    /// Ends the session: the peer is gone, or an error said
    /// [`CloseLink`](Disposition::CloseLink), or the device is to stop.
    ///
    /// What is left to do is one [`Effect::StopRing`] for each running ring,
    /// each to be answered. An effect that was taken before is still to be
    /// answered first; one that was not is void. After
    /// [`is_over`](Self::is_over) the bases of all rings are known.
    pub fn disconnect(&mut self) {
        self.link = Link::Draining;
        self.outbox = None;
        self.framing = Framing::new(Carries::Requests);
        if matches!(self.turn, Turn::Asking(..)) {
            self.turn = Turn::Idle;
        }
    }

    /// Whether the session has ended and all its rings are stopped.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.link == Link::Draining
            && matches!(self.turn, Turn::Idle)
            && self.rings.iter().all(|ring| !ring.running)
    }

    /// What is offered, with `VHOST_USER_F_PROTOCOL_FEATURES` where it follows.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The virtio features that were acknowledged, if they were.
    #[must_use]
    pub fn features(&self) -> Option<u64> {
        self.features
    }

    /// The protocol features that were acknowledged.
    #[must_use]
    pub fn protocol_features(&self) -> ProtocolFeatures {
        self.protocol_features
    }

    /// The memory regions in use, in the order in which they came.
    #[must_use]
    pub fn regions(&self) -> &[MemoryRegion] {
        &self.regions
    }

    /// All rings, by index.
    #[must_use]
    pub fn rings(&self) -> &[Ring] {
        &self.rings
    }

    /// How a running ring was started, to start it again after [`restore`](Self::restore).
    #[must_use]
    pub fn running_setup(&self, ring: u16) -> Option<RingSetup> {
        let known = self
            .rings
            .get(usize::from(ring))
            .filter(|known| known.running)?;
        known.setup(self.offer.queue_size_max, self.features).ok()
    }

    /// The first running ring, asked to stop.
    fn next_drain(&self) -> Option<Turn> {
        let ring = self.first_ring(|ring| ring.running)?;
        let context = Context {
            code: Request::GetVringBase.code(),
            need_reply: false,
        };
        let question = Question {
            commit: Commit::Stopped { ring },
            context,
        };
        Some(Turn::Asking(Effect::StopRing { ring }, question))
    }

    pub(crate) fn first_ring(&self, is: impl Fn(&Ring) -> bool) -> Option<u16> {
        (0..self.offer.queues)
            .zip(&self.rings)
            .find(|(_, ring)| is(ring))
            .map(|(index, _)| index)
    }

    /// Carries a message one step on: to the next effect, to its reply, to its refusal.
    fn advance(&mut self, context: Context, step: Result<Step, Cause>) -> Result<(), Error> {
        match step {
            Ok(Step::Ask(effect, commit)) => {
                self.turn = Turn::Asking(effect, Question { commit, context });
            }
            Ok(Step::Reply(body)) => self.reply(context, &body),
            Ok(Step::ReplyWith(body, fd)) => {
                self.reply(context, &body);
                if let Some((_, sent)) = &mut self.outbox {
                    *sent = Some(fd);
                }
            }
            Ok(Step::Done) => {
                if self.is_ack_wanted(context) {
                    self.reply(context, 0u64.as_bytes());
                }
            }
            Ok(Step::Close(cause)) => return Err(self.fail(Some(context.code), cause)),
            Err(cause) => return Err(self.refuse(context, cause)),
        }
        Ok(())
    }

    /// vhost-user, `REPLY_ACK`: a message that has a reply of its own gets
    /// that one alone. Negotiation counts as it stands when the message is
    /// done, so that the message that negotiates it can ask already.
    fn is_ack_wanted(&self, context: Context) -> bool {
        context.need_reply && self.protocol_features.contains(ProtocolFeatures::REPLY_ACK)
    }

    /// Tells the peer that its message was refused, where the protocol has a
    /// way to say so; otherwise the session is over.
    fn refuse(&mut self, context: Context, cause: Cause) -> Error {
        let reply = message::find(&FRONTEND_REQUESTS, context.code).map(|row| row.reply);
        match reply {
            Some(Reply::OrEmpty(_)) => self.reply(context, &[]),
            Some(Reply::Code) => {
                self.reply(context, (1 | DEVICE_STATE_NOFD_MASK).as_bytes());
            }
            Some(Reply::Ack) | None if self.is_ack_wanted(context) => {
                self.reply(context, 1u64.as_bytes());
            }
            _ => return self.fail(Some(context.code), cause),
        }
        Error {
            request: Some(context.code),
            cause,
            disposition: Disposition::Nack,
        }
    }

    fn reply(&mut self, context: Context, body: &[u8]) {
        self.outbox = Some((wire::encode(context.code, Header::REPLY, body), None));
    }

    fn fail(&mut self, request: Option<u32>, cause: Cause) -> Error {
        if self.link == Link::Open {
            self.link = Link::Failed;
        }
        Error {
            request,
            cause,
            disposition: Disposition::CloseLink,
        }
    }
}
