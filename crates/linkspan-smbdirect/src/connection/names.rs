//! The words of a connection: what goes in and what comes out.

use core::fmt;

use linkspan_rdma::verbs::{Key, Remote, Slice};

use crate::error::{Error, Refusal};
use crate::gather::Gather;
use crate::wire;

/// Which end it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It connects and asks.
    Initiator,
    /// It is connected to and answers.
    Listener,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The transport is being connected.
    Connecting,
    /// It is, and nothing was said yet.
    NegotiateNeeded,
    /// Sizes and credits are being negotiated.
    NegotiateRunning,
    /// They could not be; the peer is being told.
    NegotiateFailed,
    /// Messages are sent and received.
    Connected,
    /// It is being ended.
    Disconnecting,
    /// It is over.
    Disconnected,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::NegotiateNeeded => "negotiation needed",
            Self::NegotiateRunning => "negotiating",
            Self::NegotiateFailed => "negotiation failed",
            Self::Connected => "connected",
            Self::Disconnecting => "disconnecting",
            Self::Disconnected => "disconnected",
        })
    }
}

/// A message that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

/// An RDMA read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(pub u64);

/// Work that was given to the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId(pub u64);

/// A registration, in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistrationId {
    pub(crate) index: u32,
    pub(crate) life: u32,
}

/// A message that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Where it is.
    pub buffer: Slice,
    /// Its bytes.
    pub len: u32,
    /// A private copy of the first [`wire::HEAD_LEN`] of them, or of all.
    pub head: &'a [u8],
    /// The token of ours that the peer invalidated with it.
    pub invalidated: Option<Key>,
}

/// What stands before the data of a send.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; wire::HEAD_LEN],
    len: u8,
    slot: u16,
}

impl Header {
    pub(crate) fn new<const N: usize>(message: &[u8; N], padding: usize, slot: u16) -> Self {
        let mut bytes = [0; wire::HEAD_LEN];
        bytes[..N].copy_from_slice(message);
        Self {
            bytes,
            // At most 32.
            len: u8::try_from(N + padding).unwrap_or(0),
            slot,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// A number that no other header has until this one is sent, below
    /// [`Connection::header_slots`](super::Connection::header_slots): where a driver may
    /// put it.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.slot
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", self.bytes())
    }
}

/// What is to be done, or has happened, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "a gather list in a fixed place, so that nothing is allocated for a send"
)]
pub enum Output {
    /// Post so many receives, and say how many were
    /// ([`receives_posted`](super::Connection::receives_posted)).
    PostReceives {
        /// How many.
        count: u32,
    },
    /// Send one message: the header, then the data.
    Send {
        /// Its name.
        work: WorkId,
        /// What comes first.
        header: Header,
        /// What follows.
        data: Gather,
        /// Whether its end is to be told.
        signalled: bool,
        /// A token of the peer's that ends with it.
        invalidate: Option<Key>,
    },
    /// Write into the peer's memory.
    Write {
        /// Its name.
        work: WorkId,
        /// What.
        local: Gather,
        /// Where to.
        remote: Remote,
        /// Whether its end is to be told.
        signalled: bool,
    },
    /// Read from the peer's memory; the end is to be told.
    Read {
        /// Its name.
        work: WorkId,
        /// Where to.
        local: Gather,
        /// What.
        remote: Remote,
    },
    /// Invalidate a token of ours; the end is to be told.
    Invalidate {
        /// Its name.
        work: WorkId,
        /// Which.
        key: Key,
    },
    /// Copy a piece of a message into the reassembly area, before anything else is
    /// done: its buffer is given back next.
    Keep {
        /// The piece, within its buffer.
        from: Slice,
        /// Where in the area.
        to: u32,
    },
    /// The buffer of an arrival is not needed any more.
    Release {
        /// Which.
        buffer: Slice,
    },
    /// End the transport's connection.
    Disconnect,
    /// The upper layer hears of it.
    Tell(News),
}

/// An [`Output`] without the bytes and slices of a send, write or read, which are
/// [`Staged`]: what waits and is handed on is small.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    PostReceives {
        count: u32,
    },
    Send {
        work: WorkId,
        signalled: bool,
        invalidate: Option<Key>,
    },
    Write {
        work: WorkId,
        remote: Remote,
        signalled: bool,
    },
    Read {
        work: WorkId,
        remote: Remote,
    },
    Invalidate {
        work: WorkId,
        key: Key,
    },
    Keep {
        from: Slice,
        to: u32,
    },
    Release {
        buffer: Slice,
    },
    Disconnect,
    /// So many messages in a row were sent, the first of which is this one: as many
    /// [`News::Sent`].
    Sent {
        first: MessageId,
        count: u32,
    },
    Tell(News),
}

/// What the send, write or read consists of that was taken last.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) header: Header,
    pub(crate) data: Gather,
}

impl Staged {
    pub(crate) fn new() -> Self {
        Self {
            header: Header::new(&[], 0, 0),
            data: Gather::default(),
        }
    }

    /// A task with all that belongs to it.
    pub(crate) fn output(&self, task: Task) -> Output {
        match task {
            Task::PostReceives { count } => Output::PostReceives { count },
            Task::Send {
                work,
                signalled,
                invalidate,
            } => Output::Send {
                work,
                header: self.header,
                data: self.data,
                signalled,
                invalidate,
            },
            Task::Write {
                work,
                remote,
                signalled,
            } => Output::Write {
                work,
                local: self.data,
                remote,
                signalled,
            },
            Task::Read { work, remote } => Output::Read {
                work,
                local: self.data,
                remote,
            },
            Task::Invalidate { work, key } => Output::Invalidate { work, key },
            Task::Keep { from, to } => Output::Keep { from, to },
            Task::Release { buffer } => Output::Release { buffer },
            Task::Disconnect => Output::Disconnect,
            Task::Sent { first, .. } => Output::Tell(News::Sent {
                message: first,
                result: Ok(()),
            }),
            Task::Tell(news) => Output::Tell(news),
        }
    }
}

/// What an upper layer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Sizes and credits are agreed upon.
    Connected,
    /// There is something to be read. Told once for all that came.
    Received,
    /// A message was sent, or not; what it named may be used again.
    Sent {
        /// Which.
        message: MessageId,
        /// How it ended.
        result: Result<(), Refusal>,
    },
    /// A read or write is done, or not; what it named may be used again.
    Transferred {
        /// Which.
        transfer: TransferId,
        /// Whether it is a write.
        write: bool,
        /// How it ended.
        result: Result<(), Refusal>,
    },
    /// A registration has ended: the peer cannot reach its memory.
    Deregistered {
        /// Which.
        id: RegistrationId,
        /// How it ended.
        result: Result<(), Refusal>,
    },
    /// All is over, and why. Nothing follows but buffers that are given back.
    Ended(Error),
}
