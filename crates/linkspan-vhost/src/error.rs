//! Why a session refused a message, whose fault that is, and what to do now.

use core::fmt;

use thiserror::Error;

use crate::area::AreaError;
use crate::backend::{ConfigError, Failure, FramingError, Misuse, RingError};
use crate::memory::MemoryError;
use crate::message::{self, FRONTEND_REQUESTS, Gate};

/// A message that was refused.
///
/// [`disposition`](Self::disposition) says what is left to do. Log the error
/// with a limit on the rate: a peer can cause it as often as it likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub(crate) request: Option<u32>,
    pub(crate) cause: Cause,
    pub(crate) disposition: Disposition,
}

/// What is left to do after an [`Error`](struct@Error).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Nothing: the peer will be told by an effect that is already waiting,
    /// the message changed nothing, and the session goes on.
    Nack,
    /// The session is over: stop its rings (`disconnect`) and close the socket.
    CloseLink,
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The peer broke the protocol, or gave something that cannot be used.
    Peer,
    /// This side does not do what it was asked, or made a mistake.
    Us,
    /// The operating system refused a resource.
    System,
}

/// Why a message was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Cause {
    /// The stream makes no sense from here on.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// A number that names no message.
    #[error("there is no such message")]
    UnknownRequest,
    /// A message that the negotiation did not allow.
    #[error("not negotiated: it needs {needs}")]
    NotNegotiated {
        /// What would allow it.
        needs: Gate,
    },
    /// A message that the offer allows but that this crate does not do.
    #[error("not supported")]
    Unsupported,
    /// An MTU that is none.
    #[error("an MTU of {mtu} bytes is not 68 to 65535")]
    Mtu {
        /// What the message says.
        mtu: u64,
    },
    /// A body of the wrong length.
    #[error("a body of {got} bytes instead of {min} to {max}")]
    BodySize {
        /// Bytes that came.
        got: usize,
        /// Fewest that make sense.
        min: usize,
        /// Most that make sense.
        max: usize,
    },
    /// Too few or too many descriptors.
    #[error("{got} file descriptors instead of {min} to {max}")]
    FdCount {
        /// Descriptors that came.
        got: usize,
        /// Fewest that make sense.
        min: usize,
        /// Most that make sense.
        max: usize,
    },
    /// A ring that does not exist.
    #[error("ring {index} of {rings}")]
    RingIndex {
        /// The ring named.
        index: u32,
        /// How many there are.
        rings: u16,
    },
    /// Virtio features that were not offered.
    #[error("features {unknown:#x} were not offered")]
    Features {
        /// The bits too many.
        unknown: u64,
    },
    /// Virtio features changed under running rings.
    #[error("features {changed:#x} cannot change while ring {ring} runs")]
    FeaturesWhileRunning {
        /// The bits that would change.
        changed: u64,
        /// A ring that runs.
        ring: u16,
    },
    /// Protocol features that were not offered.
    #[error("protocol features {unknown:#x} were not offered")]
    ProtocolFeatures {
        /// The bits too many.
        unknown: u64,
    },
    /// A ring cannot be what the message wants it to be.
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
    /// An access to configuration space that cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An in-flight region or a log that cannot be.
    #[error(transparent)]
    Area(#[from] AreaError),
    /// A device status that cannot be.
    #[error("a device status of {value:#x}; it has 8 bits")]
    Status {
        /// What came instead.
        value: u64,
    },
    /// A state transfer that does not exist.
    #[error("direction {direction} and phase {phase} of a state transfer; 0 and 1, and 0 exist")]
    DeviceState {
        /// The direction.
        direction: u32,
        /// The phase.
        phase: u32,
    },
    /// A state cannot be moved while rings run.
    #[error("the state of a device whose ring {ring} runs cannot be moved")]
    StateOfRunning {
        /// The ring.
        ring: u16,
    },
    /// Whoever drives the session could not do its part.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// Whoever drives the session called it wrongly.
    #[error(transparent)]
    Misuse(#[from] Misuse),
}

impl Error {
    /// The number of the message, if a header was read.
    #[must_use]
    pub fn request(&self) -> Option<u32> {
        self.request
    }

    /// Why the message was refused.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match &self.cause {
            Cause::Failed(failure) => failure.fault(),
            Cause::Misuse(_) | Cause::Unsupported => Fault::Us,
            _ => Fault::Peer,
        }
    }

    /// What is left to do.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        self.disposition
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(code) = self.request {
            match message::find(&FRONTEND_REQUESTS, code) {
                Some(row) => write!(f, "{}: ", row.name)?,
                None => write!(f, "message {code}: ")?,
            }
        }
        self.cause.fmt(f)
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        self.cause.source()
    }
}
