//! Why a session with a back end cannot go on, and why a command is refused.

use thiserror::Error;

use crate::area::AreaError;
use crate::backend::Misuse;
use crate::error::Fault;
use crate::features::ProtocolFeatures;
use crate::framing::FramingError;
use crate::memory::MemoryError;
use crate::message::{Gate, Request};
use crate::ring::RingError;

/// The session is over: close the socket.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The stream makes no sense from here on.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// The back end sent something that nobody asked for.
    #[error("message {code} although nothing was asked")]
    Unasked {
        /// Its number.
        code: u32,
    },
    /// The reply is to something else.
    #[error("{}: a reply to message {got} instead", name(.request))]
    WrongReply {
        /// What was asked.
        request: Request,
        /// The number in the reply.
        got: u32,
    },
    /// A reply of the wrong length.
    #[error("{}: a reply of {got} bytes instead of {min} to {max}", name(.request))]
    ReplySize {
        /// What was asked.
        request: Request,
        /// Bytes that came.
        got: usize,
        /// Fewest that make sense.
        min: usize,
        /// Most that make sense.
        max: usize,
    },
    /// A reply with too few or too many descriptors.
    #[error("{}: {got} file descriptors with the reply instead of {min} to {max}", name(.request))]
    ReplyFds {
        /// What was asked.
        request: Request,
        /// Descriptors that came.
        got: usize,
        /// Fewest that make sense.
        min: usize,
        /// Most that make sense.
        max: usize,
    },
    /// A reply that means nothing.
    #[error("{}: the reply {value:#x} makes no sense", name(.request))]
    ReplyValue {
        /// What was asked.
        request: Request,
        /// What came.
        value: u64,
    },
    /// The base of another ring.
    #[error("VHOST_USER_GET_VRING_BASE: asked for ring {ring}, got ring {got}")]
    ReplyRing {
        /// The ring that was asked for.
        ring: u16,
        /// The ring in the reply.
        got: u32,
    },
    /// A base that the ring cannot have.
    #[error("VHOST_USER_GET_VRING_BASE: ring {ring}: {error}")]
    ReplyBase {
        /// The ring.
        ring: u16,
        /// Why not.
        error: RingError,
    },
    /// Another part of configuration space than was asked for.
    #[error(
        "VHOST_USER_GET_CONFIG: {got_size} bytes from {got_offset} instead of {size} from {offset}"
    )]
    ReplyConfig {
        /// First byte that was asked for.
        offset: u32,
        /// Bytes that were asked for.
        size: u32,
        /// First byte in the reply.
        got_offset: u32,
        /// Bytes in the reply.
        got_size: u32,
    },
    /// An in-flight region that cannot be.
    #[error("VHOST_USER_GET_INFLIGHT_FD: {0}")]
    ReplyInflight(#[from] AreaError),
    /// A step of the negotiation, or a reset, was refused.
    #[error("{}: refused with {code}", name(.request))]
    Refused {
        /// The step.
        request: Request,
        /// What the back end acknowledged it with.
        code: u64,
    },
    /// The back end keeps to the protocol, but is not what is needed.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// Whoever drives the session called it wrongly.
    #[error(transparent)]
    Misuse(#[from] Misuse),
}

/// A back end that is not what is needed: another one, or this one started in
/// another way, might be. Nothing was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Misfit {
    /// More rings than it has (with `VHOST_USER_PROTOCOL_F_MQ` it says how
    /// many; without it has one, or one pair).
    #[error("{wanted} rings are wanted; the back end has {max}")]
    Queues {
        /// Rings wanted.
        wanted: u16,
        /// Rings that it has.
        max: u64,
    },
    /// Virtio features that it does not have, or has no more.
    #[error("the back end does not offer features {missing:#x}")]
    Features {
        /// Those missing.
        missing: u64,
    },
    /// Protocol features that it does not have, or has no more.
    #[error("the back end does not offer protocol features {missing:?}")]
    ProtocolFeatures {
        /// Those missing.
        missing: ProtocolFeatures,
    },
    /// Fewer memory regions than are needed, or than it had before.
    #[error("{wanted} memory regions are needed; the back end has room for {max}")]
    MemorySlots {
        /// Regions needed.
        wanted: u64,
        /// Regions that it has room for.
        max: u64,
    },
    /// A configuration space without these bytes.
    #[error("the back end has no {size} bytes from {offset} of configuration space")]
    Config {
        /// First byte asked for.
        offset: u32,
        /// Bytes asked for.
        size: u32,
    },
}

/// A command that was not begun. Nothing was sent and nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The negotiation or another command is under way, or effects wait.
    #[error("something else is under way")]
    Busy,
    /// The session is over.
    #[error("the session is over")]
    Over,
    /// The negotiation did not allow it.
    #[error("not negotiated: it needs {needs}")]
    NotNegotiated {
        /// What would allow it.
        needs: Gate,
    },
    /// Virtio features that are not negotiated.
    #[error("features {unknown:#x} were not offered, or not wanted")]
    Features {
        /// The bits too many.
        unknown: u64,
    },
    /// Virtio features cannot change under running rings.
    #[error("features {changed:#x} cannot change while ring {ring} runs")]
    FeaturesWhileRunning {
        /// The bits that would change.
        changed: u64,
        /// A ring that runs.
        ring: u16,
    },
    /// It needs rings that do not run.
    #[error("ring {ring} runs")]
    Running {
        /// The ring.
        ring: u16,
    },
    /// It needs a ring that runs.
    #[error("ring {ring} does not run")]
    NotRunning {
        /// The ring.
        ring: u16,
    },
    /// A ring beyond those wanted.
    #[error("ring {ring} of {rings}")]
    RingIndex {
        /// The ring.
        ring: u16,
        /// How many there are.
        rings: u16,
    },
    /// A ring named twice.
    #[error("ring {ring} is named twice")]
    Twice {
        /// The ring.
        ring: u16,
    },
    /// A command without rings or memory regions.
    #[error("a command about nothing")]
    Nothing,
    /// Rings cannot start without memory.
    #[error("no memory was set yet")]
    NoMemory,
    /// A ring that cannot be.
    #[error("ring {ring}: {error}")]
    Ring {
        /// The ring.
        ring: u16,
        /// Why not.
        error: RingError,
    },
    /// A memory table that cannot be.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// An in-flight region that cannot be.
    #[error(transparent)]
    Area(#[from] AreaError),
    /// An access to configuration space that cannot be.
    #[error("{size} bytes from {offset} of configuration space; 1 to {max} at once are possible")]
    Config {
        /// First byte.
        offset: u32,
        /// How many.
        size: usize,
        /// The most in one message.
        max: usize,
    },
}

impl Error {
    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Misuse(_) => Fault::Us,
            _ => Fault::Peer,
        }
    }

    /// Why the back end does not fit, if that is all that is wrong with it.
    #[must_use]
    pub fn misfit(&self) -> Option<Misfit> {
        match self {
            Self::Misfit(misfit) => Some(*misfit),
            _ => None,
        }
    }
}

fn name(request: &Request) -> &'static str {
    request.message().name
}
