//! What a peer can do wrong, and how it is told.

use core::fmt;

use thiserror::Error;

use super::wire::Opcode;
use crate::verbs::{Operation, Refusal};

/// Who in the stack found an error (RFC 5040, 4.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// RDMAP.
    Rdmap,
    /// DDP.
    Ddp,
    /// MPA.
    Mpa,
    /// A number without a meaning.
    Unknown(u8),
}

/// Why an end gave up, as it tells the other (RFC 5040, 4.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminate {
    /// Layer and kind of the error: four bits each.
    pub layer_and_kind: u8,
    /// Which error.
    pub code: u8,
}

impl Terminate {
    /// An error.
    #[must_use]
    pub const fn new(layer: u8, kind: u8, code: u8) -> Self {
        Self {
            layer_and_kind: layer << 4 | kind,
            code,
        }
    }

    /// Who found it.
    #[must_use]
    pub fn layer(&self) -> Layer {
        match self.layer_and_kind >> 4 {
            0 => Layer::Rdmap,
            1 => Layer::Ddp,
            2 => Layer::Mpa,
            other => Layer::Unknown(other),
        }
    }

    /// What it means.
    #[must_use]
    pub fn meaning(&self) -> &'static str {
        let place = (
            self.layer_and_kind >> 4,
            self.layer_and_kind & 0xF,
            self.code,
        );
        let known = MEANINGS.iter().find(|row| row.0 == place);
        known.map_or("unknown", |row| row.1)
    }
}

impl fmt::Display for Terminate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (layer, kind) = (self.layer_and_kind >> 4, self.layer_and_kind & 0xF);
        write!(f, "{} ({layer}/{kind}/{})", self.meaning(), self.code)
    }
}

/// Layer, kind and code of each error, and what it means.
pub const MEANINGS: &[((u8, u8, u8), &str)] = &[
    ((0, 0, 0), "local catastrophic error"),
    ((0, 1, 0), "no such steering tag"),
    ((0, 1, 1), "outside of the memory"),
    ((0, 1, 2), "no right of access"),
    ((0, 1, 3), "the steering tag is not of this stream"),
    ((0, 1, 4), "addresses go beyond the last one"),
    ((0, 1, 9), "the steering tag cannot be invalidated"),
    ((0, 1, 0xFF), "unspecified"),
    ((0, 2, 5), "wrong version of RDMAP"),
    ((0, 2, 6), "unexpected opcode"),
    ((0, 2, 7), "catastrophic error of this stream"),
    ((0, 2, 8), "catastrophic error of all streams"),
    ((0, 2, 9), "the steering tag cannot be invalidated"),
    ((0, 2, 0xFF), "unspecified"),
    ((1, 0, 0), "local catastrophic error"),
    ((1, 1, 0), "no such steering tag"),
    ((1, 1, 1), "outside of the memory"),
    ((1, 1, 2), "the steering tag is not of this stream"),
    ((1, 1, 3), "addresses go beyond the last one"),
    ((1, 1, 4), "wrong version of DDP"),
    ((1, 2, 1), "no such queue"),
    ((1, 2, 2), "no receive is posted"),
    ((1, 2, 3), "wrong message number"),
    ((1, 2, 4), "wrong offset in a message"),
    ((1, 2, 5), "message too long"),
    ((1, 2, 6), "wrong version of DDP"),
    ((2, 0, 1), "stream lost"),
    ((2, 0, 2), "wrong CRC"),
    ((2, 0, 3), "a frame that cannot be"),
    ((2, 0, 4), "a request or reply that cannot be"),
    ((2, 0, 5), "local catastrophic error"),
    ((2, 0, 6), "too few inbound reads"),
    ((2, 0, 7), "no way to begin in common"),
];

/// How a peer broke the protocol, or what it says of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WireError {
    /// The frame of the set-up has another begin.
    #[error("this is no MPA {what} frame")]
    NotMpa {
        /// Which frame was due.
        what: &'static str,
    },
    /// A revision of MPA that we did not offer.
    #[error("MPA revision {got}, where 1 to {max} are possible")]
    Revision {
        /// What it has.
        got: u8,
        /// The newest possible.
        max: u8,
    },
    /// The peer wants markers.
    #[error("the peer wants MPA markers")]
    Markers,
    /// Too much private data.
    #[error("{got} bytes of private data, where {min} to {max} are possible")]
    PrivateData {
        /// Bytes announced.
        got: u16,
        /// The least: what the enhanced set-up takes.
        min: u16,
        /// The most.
        max: u16,
    },
    /// Bytes before they were due.
    #[error("{got} bytes came before the set-up was over")]
    Early {
        /// How many, at least.
        got: usize,
    },
    /// The peer wants to have more reads answered than we can.
    #[error("the peer reads {wanted} at a time, and we answer {max}")]
    Depth {
        /// What it wants.
        wanted: u16,
        /// What we can.
        max: u16,
    },
    /// The peer chose a first frame that we did not offer.
    #[error("no way to begin in common")]
    Ready,
    /// The first frame is not what was agreed upon.
    #[error("the first frame is {got:?}, where {expected:?} was agreed upon")]
    First {
        /// What came.
        got: Opcode,
        /// What should have.
        expected: Opcode,
    },
    /// A frame that is shorter than its own header, or longer.
    #[error("a frame of {got} bytes, where {min} to {max} are possible")]
    FrameLength {
        /// Its length.
        got: u16,
        /// The least.
        min: u16,
        /// The most.
        max: u16,
    },
    /// The checksum.
    #[error("CRC {got:#010x}, where {expected:#010x} is right")]
    Crc {
        /// What came.
        got: u32,
        /// What it should be.
        expected: u32,
    },
    /// The version of DDP.
    #[error("DDP version {got}")]
    DdpVersion {
        /// What came.
        got: u16,
        /// Whether the frame is tagged.
        tagged: bool,
    },
    /// The version of RDMAP.
    #[error("RDMAP version {got}")]
    RdmapVersion {
        /// What came.
        got: u16,
    },
    /// No such opcode.
    #[error("unknown opcode {got}")]
    Opcode {
        /// What came.
        got: u16,
    },
    /// An opcode that does not fit its header, or comes now.
    #[error("unexpected {opcode:?}")]
    Unexpected {
        /// What came.
        opcode: Opcode,
    },
    /// Another queue.
    #[error("{opcode:?} on queue {got}")]
    Queue {
        /// What came.
        opcode: Opcode,
        /// Where.
        got: u32,
    },
    /// The number of a message is not the next one.
    #[error("message {got} of queue {queue}, where {expected} is next")]
    Number {
        /// Which queue.
        queue: u32,
        /// What came.
        got: u32,
        /// What is next.
        expected: u32,
    },
    /// A part of a message that is not the next one.
    #[error("offset {got} of a message of which {expected} bytes have come")]
    Offset {
        /// What came.
        got: u32,
        /// What is next.
        expected: u32,
    },
    /// A message that has to be one frame is not.
    #[error("{opcode:?} in more than one frame")]
    Segmented {
        /// Which.
        opcode: Opcode,
    },
    /// Part of a write that names other memory than the part before.
    #[error("a write goes on with steering tag {got:#x} instead of {expected:#x}")]
    OtherKey {
        /// What came.
        got: u32,
        /// What was there before.
        expected: u32,
    },
    /// Part of a write that does not follow upon the one before.
    #[error("a write goes on at {got:#x} instead of {expected:#x}")]
    OtherAddress {
        /// What came.
        got: u64,
        /// What is next.
        expected: u64,
    },
    /// A response to what was not asked for: another tag, place or length.
    #[error(
        "a read response for steering tag {key:#x} with {len} bytes at {address:#x}, which was not asked for"
    )]
    Response {
        /// The tag that it names.
        key: u32,
        /// Where it goes.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// A response that ends before all has come, or goes on when it has.
    #[error("a read response ends with {left} bytes missing, or goes on without")]
    ResponseEnd {
        /// Bytes missing.
        left: u32,
    },
    /// A steering tag that the peer can end no more.
    #[error("steering tag {key:#x} cannot be invalidated")]
    Invalidate {
        /// Which.
        key: u32,
    },
    /// A steering tag that the peer ends while it reads by it.
    #[error("steering tag {key:#x} was invalidated before a read of it was answered")]
    InvalidateEarly {
        /// Which.
        key: u32,
    },
    /// The stream ended inside of a frame.
    #[error("the stream ended inside of a frame")]
    Truncated,
    /// The peer says that something is wrong.
    #[error("the peer terminated the stream: {0}")]
    Terminated(Terminate),
}

impl WireError {
    /// What the peer is told; nothing if it knows, or if there is no way to tell it.
    #[must_use]
    pub fn terminate(&self) -> Option<Terminate> {
        let (layer, kind, code) = match self {
            Self::FrameLength { .. } => (2, 0, 3),
            Self::Crc { .. } => (2, 0, 2),
            Self::NotMpa { .. }
            | Self::Revision { .. }
            | Self::Markers
            | Self::PrivateData { .. }
            | Self::Early { .. } => (2, 0, 4),
            Self::Depth { .. } => (2, 0, 6),
            Self::Ready | Self::First { .. } => (2, 0, 7),
            Self::DdpVersion { tagged: true, .. } => (1, 1, 4),
            Self::DdpVersion { tagged: false, .. } => (1, 2, 6),
            Self::RdmapVersion { .. } => (0, 2, 5),
            Self::Opcode { .. } | Self::Unexpected { .. } => (0, 2, 6),
            Self::Queue { .. } => (1, 2, 1),
            Self::Number { .. } => (1, 2, 3),
            Self::Offset { .. } => (1, 2, 4),
            Self::Segmented { .. } => (1, 2, 5),
            Self::OtherKey { .. } => (1, 1, 0),
            Self::OtherAddress { .. } | Self::Response { .. } | Self::ResponseEnd { .. } => {
                (1, 1, 1)
            }
            Self::Invalidate { .. } | Self::InvalidateEarly { .. } => (0, 2, 9),
            Self::Truncated | Self::Terminated(_) => return None,
        };
        Some(Terminate::new(layer, kind, code))
    }
}

/// What a peer is told whose operation was refused.
pub(crate) fn refused(operation: Operation, why: &Refusal) -> Terminate {
    let read = operation == Operation::Read;
    let (layer, kind, code) = match why {
        Refusal::NoReceive => (1, 2, 2),
        Refusal::TooLong { .. } => (1, 2, 5),
        Refusal::Key { .. } if read => (0, 1, 0),
        Refusal::Key { .. } => (1, 1, 0),
        Refusal::Bounds { .. } if read => (0, 1, 1),
        Refusal::Bounds { .. } => (1, 1, 1),
        Refusal::Wrap { .. } if read => (0, 1, 4),
        Refusal::Wrap { .. } => (1, 1, 3),
        // DDP has no code for it.
        Refusal::Access { .. } => (0, 1, 2),
        Refusal::TooManyReads { .. } => (0, 2, 7),
    };
    Terminate::new(layer, kind, code)
}
