//! Why a session refused a message, whose fault that is, and what to do now.

use core::fmt;

use thiserror::Error;

use crate::dma::DmaError;
use crate::framing::FramingError;
use crate::irq::IrqError;
use crate::message::{Command, Gate};
use crate::version::VersionError;
use crate::wire::errno;

/// A message that was refused.
///
/// [`disposition`](Self::disposition) says what is left to do. Log the error
/// with a limit on the rate: a peer can cause it as often as it likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub(crate) command: Option<u16>,
    pub(crate) cause: Cause,
    pub(crate) disposition: Disposition,
}

/// What is left to do after an [`Error`](struct@Error).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Nothing: the peer will be told by an effect that is already waiting, if it
    /// wants to know. The message changed nothing, and the session goes on.
    Nack,
    /// The session is over: close the socket.
    CloseLink,
}

/// Why a message was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Cause {
    /// The stream makes no sense from here on.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// There is nothing that both ends speak.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// A number that names no message.
    #[error("there is no such message")]
    UnknownCommand,
    /// A message of the other end.
    #[error("a message of the other end")]
    WrongEnd,
    /// Something else before the version.
    #[error("before the version was agreed upon")]
    BeforeVersion,
    /// The version once more.
    #[error("the version is agreed upon already")]
    SecondVersion,
    /// A message that was not agreed upon.
    #[error("not agreed upon")]
    NotAgreed,
    /// A message that this crate does not do.
    #[error("not supported")]
    Unsupported,
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
    /// Too many descriptors.
    #[error("{got} file descriptors; at most {max} come with it")]
    FdCount {
        /// Descriptors that came.
        got: usize,
        /// Most that make sense.
        max: usize,
    },
    /// Less room for the reply than the smallest one takes.
    #[error("room for {argsz} bytes of a reply that has {want}")]
    Argsz {
        /// What the message says.
        argsz: u32,
        /// Bytes of the smallest reply.
        want: u32,
    },
    /// A map that cannot be.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// Flags that mean nothing with this message.
    #[error("flags {flags:#x}")]
    Flags {
        /// They.
        flags: u32,
    },
    /// A region that does not exist.
    #[error("region {index} of {regions}")]
    RegionIndex {
        /// Which.
        index: u32,
        /// How many there are.
        regions: usize,
    },
    /// Bytes that are not inside of a region, or none.
    #[error("{count} bytes at {offset:#x} of region {region}, which has {size:#x}")]
    RegionRange {
        /// Which region.
        region: u32,
        /// The first byte.
        offset: u64,
        /// How many.
        count: u64,
        /// How many it has.
        size: u64,
    },
    /// A region that can only be read, or not even that.
    #[error("region {region} cannot be {}", if *.write { "written" } else { "read" })]
    RegionAccess {
        /// Which region.
        region: u32,
        /// Whether it was to be written.
        write: bool,
    },
    /// More bytes at once than were agreed upon.
    #[error("{count} bytes at once; {max} were agreed upon")]
    Transfer {
        /// How many.
        count: u64,
        /// The most.
        max: u64,
    },
    /// A count that differs from the bytes that came.
    #[error("a count of {count} with {got} bytes of data")]
    Count {
        /// What the message says.
        count: u64,
        /// Bytes that came.
        got: usize,
    },
    /// Interrupts that cannot be set so.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// A reply to nothing.
    #[error("a reply to nothing, with number {id}")]
    Unasked {
        /// Its number.
        id: u16,
    },
    /// A reply whose address or count is another one than what was asked for.
    #[error("a reply that says {got:#x} bytes where {want:#x} were asked for")]
    WrongReply {
        /// What it says.
        got: u64,
        /// What was asked.
        want: u64,
    },
    /// A plane of a kind that there is not.
    #[error("a plane of type {kind}")]
    PlaneType {
        /// Which.
        kind: u32,
    },
    /// Whoever drives the session could not do its part.
    #[error("failed with error {0}")]
    Failed(u32),
    /// Whoever drives the session called it wrongly.
    #[error(transparent)]
    Misuse(#[from] Misuse),
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

impl Cause {
    /// What the peer is told.
    #[must_use]
    pub fn errno(&self) -> u32 {
        match self {
            Self::Dma(DmaError::Overlap { .. }) => errno::EEXIST,
            Self::Dma(DmaError::Absent { .. }) => errno::ENOENT,
            Self::Dma(DmaError::TooMany { .. }) => errno::ENOSPC,
            Self::Unsupported | Self::NotAgreed | Self::Irq(IrqError::MaskEvent) => {
                errno::EOPNOTSUPP
            }
            Self::RegionAccess { .. } => errno::EACCES,
            Self::BeforeVersion | Self::SecondVersion => errno::EPROTO,
            Self::Failed(number) => *number,
            Self::Misuse(_) => errno::EIO,
            _ => errno::EINVAL,
        }
    }

    /// Why a message is not legal now.
    pub(crate) const fn of_gate(gate: Gate) -> Self {
        match gate {
            Gate::First => Self::SecondVersion,
            Gate::Refused => Self::Unsupported,
            Gate::Open | Gate::WriteMultiple | Gate::Planes => Self::NotAgreed,
        }
    }
}

impl Error {
    /// The number of the message, if a header was read.
    #[must_use]
    pub fn command(&self) -> Option<u16> {
        self.command
    }

    /// Why the message was refused.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// What is left to do.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        self.disposition
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.command.map(|code| (code, Command::row(code))) {
            Some((_, Some(row))) => write!(f, "{}: {}", row.name, self.cause),
            Some((code, None)) => write!(f, "message {code}: {}", self.cause),
            None => self.cause.fmt(f),
        }
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        None
    }
}
