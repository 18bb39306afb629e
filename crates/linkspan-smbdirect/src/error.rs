//! What ends a connection, and what is refused without an effect on it.

use linkspan_rdma::verbs::{Operation, PostError};
use thiserror::Error;

use crate::connection::State;

/// Whose fault the end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The peer broke the protocol.
    Peer,
    /// The peer does not speak a version of ours, or has no room.
    Unsupported,
    /// The peer, or what is in between, went away.
    Lost,
    /// Somebody here, or this machine.
    Local,
}

/// Why a connection ended: the first thing that went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// A message is shorter than its header.
    #[error("{message} of {got} bytes, less than {want}")]
    Short {
        /// Which.
        message: &'static str,
        /// Bytes that are there.
        got: usize,
        /// Bytes that it has at least.
        want: usize,
    },
    /// A field is below its minimum.
    #[error("{field} is {value}, less than {min}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it says.
        value: u32,
        /// The least that it may say.
        min: u32,
    },
    /// The initiator's versions do not include ours.
    #[error("versions {min:#06x} to {max:#06x} do not include 0x0100")]
    VersionRange {
        /// The oldest.
        min: u16,
        /// The newest.
        max: u16,
    },
    /// The listener chose another version than ours.
    #[error("version {version:#06x} was chosen, not 0x0100")]
    Version {
        /// Which.
        version: u16,
    },
    /// The listener refused.
    #[error("the listener refused with status {status:#010x}")]
    Refused {
        /// Its NTSTATUS.
        status: u32,
    },
    /// The listener wants to send more at once than is received.
    #[error("PreferredSendSize is {size}, more than the {max} bytes that are received")]
    PreferredSendSize {
        /// What it says.
        size: u32,
        /// What it may say.
        max: u32,
    },
    /// More arrived than a receive has room for.
    #[error("{len} bytes arrived, more than the {max} of a receive")]
    TooLong {
        /// Bytes.
        len: u32,
        /// Bytes of a receive.
        max: u32,
    },
    /// Data is not aligned.
    #[error("DataOffset is {offset}, no multiple of 8")]
    DataOffset {
        /// What it says.
        offset: u32,
    },
    /// Data begins in the header.
    #[error("DataOffset is {offset}, within the header")]
    DataInHeader {
        /// What it says.
        offset: u32,
    },
    /// Data is outside of what arrived.
    #[error("{length} bytes of data at {offset} are not within the {len} bytes that arrived")]
    DataOutside {
        /// `DataOffset`.
        offset: u32,
        /// `DataLength`.
        length: u32,
        /// Bytes that arrived.
        len: u32,
    },
    /// A message is longer than was negotiated.
    #[error("a message of {length} + {remaining} bytes, more than {max}")]
    MessageTooLong {
        /// `DataLength`.
        length: u32,
        /// `RemainingDataLength`.
        remaining: u32,
        /// `MaxFragmentedSize`.
        max: u32,
    },
    /// A segment does not continue the message before it.
    #[error("a segment says {length} + {remaining} bytes, where {expected} are missing")]
    Reassembly {
        /// `DataLength`.
        length: u32,
        /// `RemainingDataLength`.
        remaining: u32,
        /// Bytes that the message lacks.
        expected: u32,
    },
    /// More credits than can be.
    #[error("{granted} credits on top of {held}")]
    Credits {
        /// Credits that are there.
        held: u16,
        /// `CreditsGranted`.
        granted: u16,
    },
    /// Something arrived for which no receive was posted, or granted.
    #[error("an arrival without a credit")]
    NoCredit,
    /// The peer invalidated a token that is not registered here.
    #[error("the peer invalidated token {token:#010x}, which is no registration")]
    Token {
        /// Which.
        token: u32,
    },
    /// Nothing was negotiated in time.
    #[error("no negotiation within {ms} ms")]
    NegotiationTimer {
        /// How long was waited.
        ms: u64,
    },
    /// The transport was not connected in time.
    #[error("no connection within {ms} ms")]
    ConnectTimer {
        /// How long was waited.
        ms: u64,
    },
    /// The peer does not answer.
    #[error("the peer was silent for {idle_ms} ms and did not answer within {wait_ms} ms more")]
    KeepAlive {
        /// How long it was idle.
        idle_ms: u64,
        /// How long an answer was awaited.
        wait_ms: u64,
    },
    /// The peer began a message and did not finish it.
    #[error("a message still lacked {missing} bytes after {ms} ms")]
    Unfinished {
        /// Bytes that did not come.
        missing: u32,
        /// How long was waited.
        ms: u64,
    },
    /// No receive could be posted for the peer.
    #[error("no receive could be posted")]
    NoReceives,
    /// A message in very many pieces could not be put together.
    #[error("no memory for a message in very many pieces")]
    NoArea,
    /// A message was sent in part and its rest was refused.
    #[error("the rest of a message could not be posted")]
    Post,
    /// Work that was posted was not done.
    #[error("a posted {operation:?} was not done")]
    Work {
        /// What it was.
        operation: Operation,
    },
    /// The transport is gone.
    #[error("the connection was lost")]
    Lost,
    /// Somebody here ended it.
    #[error("disconnected")]
    Disconnected,
}

impl Error {
    /// Whose fault it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::VersionRange { .. } | Self::Version { .. } | Self::Refused { .. } => {
                Blame::Unsupported
            }
            Self::NegotiationTimer { .. }
            | Self::ConnectTimer { .. }
            | Self::KeepAlive { .. }
            | Self::Unfinished { .. }
            | Self::Work { .. }
            | Self::Lost => Blame::Lost,
            Self::NoReceives | Self::NoArea | Self::Post | Self::Disconnected => Blame::Local,
            _ => Blame::Peer,
        }
    }
}

/// What cannot be asked now, or not like this. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Misuse {
    /// There is no connection, not yet or not any more.
    #[error("not connected: {state}")]
    NotConnected {
        /// How far it is.
        state: State,
    },
    /// A message or transfer without bytes.
    #[error("nothing to send")]
    Empty,
    /// A message that the peer does not take.
    #[error("{len} bytes, more than {max}")]
    TooLong {
        /// Its bytes.
        len: u64,
        /// The most.
        max: u32,
    },
    /// There are as many as there may be; ask again when one is done.
    #[error("the queue of {what} is full ({max})")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many fit.
        max: usize,
    },
    /// The peer's descriptors are not what the transfer needs.
    #[error(transparent)]
    Descriptors(#[from] crate::descriptor::DescriptorError),
    /// The peer answers no reads.
    #[error("the peer answers no reads")]
    NoReads,
    /// No registration of this name is there, or it is not in that state.
    #[error("there is no such registration")]
    Registration,
    /// The machine refused memory.
    #[error(transparent)]
    Machine(#[from] linkspan_mem::fault::Injected),
}

/// Why something that was taken on was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The connection ended.
    #[error("{0}")]
    Ended(Error),
    /// The provider would not take it; the connection lives.
    #[error("the provider refused: {0}")]
    Post(#[from] PostError),
    /// It cannot be asked now.
    #[error(transparent)]
    Misuse(#[from] Misuse),
}
