//! The seam between an upper layer and whatever carries RDMA: a pair in memory, iWARP
//! over TCP, a device.
//!
//! A *connection* is reliable and joins two ends. An upper layer posts *work* on it and
//! takes *events* from it. Memory is known to a provider by number ([`MemoryId`]) and
//! named in gather lists by [`Slice`]; the peer names only what was exposed to it
//! ([`Verbs::expose`]), on this connection and until it is invalidated.
//!
//! Receives are a count, not buffers: the provider lends a buffer when a message comes
//! ([`Received`]), and it is given back ([`Verbs::release`]). So an idle connection
//! holds no memory, however many receives it has posted.

use alloc::vec::Vec;

use thiserror::Error;

use crate::iwarp::WireError;
use crate::memory::Memories;

/// Memory that a provider knows, whole. What the number stands for is the provider's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemoryId(pub u32);

/// Bytes in memory that a provider knows: an element of a gather list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Which memory.
    pub memory: MemoryId,
    /// Size in bytes.
    pub len: u32,
    /// The first byte in that memory.
    pub offset: u64,
}

impl Slice {
    /// The part that begins at `offset` and has at most `len` bytes.
    #[must_use]
    #[inline]
    pub fn part(&self, offset: u32, len: u32) -> Self {
        let offset = offset.min(self.len);
        Self {
            memory: self.memory,
            len: len.min(self.len - offset),
            offset: self.offset + u64::from(offset),
        }
    }
}

/// What names exposed memory on the wire: a steering tag, an rkey, the token of a
/// buffer descriptor. Cannot be guessed, and means something on one connection only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u32);

/// What the peer may do with exposed memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Read it.
    pub read: bool,
    /// Write it.
    pub write: bool,
}

impl Access {
    /// The peer reads.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    /// The peer writes.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };
}

/// A place in the peer's memory, or, to the peer, in ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Which exposure.
    pub key: Key,
    /// The address of the first byte; an exposure begins at the address that came with it.
    pub address: u64,
}

/// What is to be done, in the order in which it is posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work<'a> {
    /// One message to the peer, which takes one of its receives.
    Send {
        /// What it consists of; nothing at all is a message too.
        gather: &'a [Slice],
        /// An exposure of the peer's that ends when the message arrives.
        invalidate: Option<Key>,
        /// Whether the peer is asked to wake up for it.
        solicited: bool,
    },
    /// Bytes into the peer's memory. The peer is not told; a message that is sent
    /// later arrives later.
    Write {
        /// What is written.
        gather: &'a [Slice],
        /// Where to.
        to: Remote,
    },
    /// Bytes out of the peer's memory.
    Read {
        /// Where they go.
        into: &'a [Slice],
        /// Where they are.
        from: Remote,
    },
    /// An exposure of ours ends. When this is done, the peer can reach the memory no
    /// more, and nothing of it is under way.
    Invalidate {
        /// Which.
        key: Key,
    },
}

impl Work<'_> {
    /// Which kind it is.
    #[must_use]
    pub fn operation(&self) -> Operation {
        match self {
            Self::Send { .. } => Operation::Send,
            Self::Write { .. } => Operation::Write,
            Self::Read { .. } => Operation::Read,
            Self::Invalidate { .. } => Operation::Invalidate,
        }
    }
}

/// Kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`Work::Send`].
    Send,
    /// [`Work::Write`].
    Write,
    /// [`Work::Read`].
    Read,
    /// [`Work::Invalidate`].
    Invalidate,
}

/// Work with the number by which it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Post<'a> {
    /// Chosen by the upper layer; comes back in [`Completion::id`].
    pub id: u64,
    /// Whether its success is told. If not, it is done when a later one is that was
    /// not a read. What fails is always told.
    pub signalled: bool,
    /// What is to be done.
    pub work: Work<'a>,
}

/// How many reads may be under way, each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Reads of the peer that we answer at a time (IRD).
    pub inbound: u16,
    /// Reads of ours that the peer answers at a time (ORD).
    pub outbound: u16,
}

/// What a provider can do on one connection. What is beyond it is refused when it is
/// posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Works that are posted and not done.
    pub works: usize,
    /// Receives that are posted and not taken.
    pub receives: u32,
    /// Bytes of a message that is received.
    pub receive_size: u32,
    /// Elements of a gather list of sends and writes.
    pub gather: usize,
    /// Elements of the list that a read goes into.
    pub read_into: usize,
    /// Bytes of one send, write or read.
    pub work_bytes: u32,
    /// Exposures at a time.
    pub exposures: usize,
    /// Elements of an exposure.
    pub exposure_slices: usize,
    /// Bytes of an exposure.
    pub exposure_bytes: u32,
}

/// What one end tells the other when they meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What the upper layers say to each other.
    pub private_data: Vec<u8>,
    /// In a request what the peer offers, seen from here: `outbound` is what we may
    /// use of its `inbound`. On an established connection what holds.
    pub depth: Depth,
}

/// A message that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Where it is, until it is given back with [`Verbs::release`]. Messages without
    /// bytes have a buffer as well.
    pub buffer: Slice,
    /// The exposure of ours that the peer ended with it.
    pub invalidated: Option<Key>,
    /// Whether the peer wants us to wake up for it.
    pub solicited: bool,
}

/// What became of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The number that it was posted with.
    pub id: u64,
    /// What it was.
    pub operation: Operation,
    /// Whether it was done. If not, the connection is at its end, which
    /// [`Event::Ended`] explains.
    pub done: bool,
}

/// What happens on a connection, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants to connect: accept or reject.
    Requested(Greeting),
    /// The peer is there. Work can be posted.
    Established(Greeting),
    /// The peer does not want us; it is followed by [`Event::Ended`].
    Rejected {
        /// What its upper layer says.
        private_data: Vec<u8>,
    },
    /// A message came.
    Received(Received),
    /// Work is done, or will not be.
    Completed(Completion),
    /// The connection is over: the last event, exactly one. All that was posted has come
    /// back before it, every exposure has ended, and nothing is under way.
    Ended(Failure),
}

/// Why a connection is over. The first cause is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Failure {
    /// We said so.
    #[error("disconnected")]
    Disconnected,
    /// The peer said so, between two messages.
    #[error("the peer disconnected")]
    Closed,
    /// The peer does not want us.
    #[error("the peer rejected the connection")]
    Rejected,
    /// The connection broke.
    #[error("the connection was lost")]
    Lost,
    /// The peer did not do its part in time.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// Memory that work or an exposure names is not known any more.
    #[error("memory that was in use is gone")]
    Memory,
    /// The device that leads there is not one that the port is for.
    #[error("port {port} is not for the RDMA device that leads there")]
    WrongDevice {
        /// Where it was to connect to.
        port: u16,
    },
    /// A device gave up: `None` is a receive.
    #[error("the device gave up at {operation:?}: status {status}")]
    Device {
        /// What it was about to do.
        operation: Option<Operation>,
        /// Why, in its own numbers (`ibv_wc_status`).
        status: i32,
    },
    /// The peer broke the protocol, or says that we did.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer asked for what it has no right to, or sent what nobody wanted.
    #[error("the peer's {operation:?} was refused: {why}")]
    Refused {
        /// What it was about to do.
        operation: Operation,
        /// Why not.
        why: Refusal,
    },
}

/// Why a peer may not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No receive is posted.
    #[error("no receive is posted")]
    NoReceive,
    /// A message is longer than a receive.
    #[error("a message of {got} bytes, where {max} are received")]
    TooLong {
        /// Bytes that it has at least.
        got: u64,
        /// Bytes that are received.
        max: u32,
    },
    /// No such exposure, or none any more.
    #[error("key {:#x} exposes nothing", .key.0)]
    Key {
        /// What it named.
        key: Key,
    },
    /// Outside of the exposure.
    #[error("{len} bytes at {address:#x} are outside what key {:#x} exposes", .key.0)]
    Bounds {
        /// What it named.
        key: Key,
        /// The first address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// Addresses that go beyond the last one.
    #[error("{len} bytes at {address:#x} go beyond the last address")]
    Wrap {
        /// The first address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// Not for that.
    #[error("key {:#x} is not exposed for that", .key.0)]
    Access {
        /// What it named.
        key: Key,
    },
    /// More reads at a time than were agreed upon.
    #[error("more than {max} reads at a time")]
    TooManyReads {
        /// What was agreed upon.
        max: u16,
    },
}

/// Why work was not taken. Nothing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PostError {
    /// The connection is not established, or is over.
    #[error("not connected")]
    NotConnected,
    /// As much as possible is posted already.
    #[error("{max} are posted already")]
    Full {
        /// The limit.
        max: usize,
    },
    /// A list with too many elements.
    #[error("a list of {got} elements, where {max} are possible")]
    Elements {
        /// Elements of it.
        got: usize,
        /// The limit.
        max: usize,
    },
    /// Too many bytes.
    #[error("{got} bytes, where {max} are possible")]
    Bytes {
        /// Bytes of all elements.
        got: u64,
        /// The limit.
        max: u32,
    },
    /// No reads were agreed upon.
    #[error("the peer answers no reads")]
    NoReads,
    /// No such exposure, or none any more.
    #[error("key {:#x} exposes nothing", .key.0)]
    Key {
        /// Which.
        key: Key,
    },
    /// Bytes outside of the memory, or memory that the provider does not know.
    #[error("{slice:?} is not in memory that is known")]
    Memory {
        /// The element.
        slice: Slice,
    },
    /// All keys of this connection have been used: connect anew.
    #[error("the connection has no key left")]
    KeysSpent,
    /// The machine has no memory, or the device refuses.
    #[error(transparent)]
    System(#[from] linkspan_mem::fault::Injected),
}

/// One connection of a provider.
pub trait Verbs {
    /// What is possible.
    fn limits(&self) -> Limits;

    /// The memory that is known, buffers of messages included.
    fn memories(&self) -> &Memories;

    /// Takes the peer that [`Event::Requested`] told of, with at most these reads at a
    /// time. [`Event::Established`] follows.
    ///
    /// # Errors
    /// Nobody is to be accepted now, or too much private data.
    fn accept(&mut self, private_data: &[u8], depth: Depth) -> Result<(), PostError>;

    /// Does not take it. [`Event::Ended`] follows.
    ///
    /// # Errors
    /// As for [`Verbs::accept`].
    fn reject(&mut self, private_data: &[u8]) -> Result<(), PostError>;

    /// Lets the peer send so many messages more. Possible before the connection is
    /// established, so that none comes too early.
    ///
    /// # Errors
    /// Too many, or the connection is over.
    fn post_receives(&mut self, count: u32) -> Result<(), PostError>;

    /// Gives the buffer of a message back. Also after the end of the connection.
    fn release(&mut self, buffer: Slice);

    /// Posts work.
    ///
    /// # Errors
    /// It cannot be done now or ever; nothing has happened.
    fn post(&mut self, post: &Post<'_>) -> Result<(), PostError>;

    /// Lets the peer reach these bytes, in this order, as one range.
    ///
    /// # Errors
    /// Not possible; nothing has happened.
    fn expose(&mut self, slices: &[Slice], access: Access) -> Result<Remote, PostError>;

    /// Ends the connection; [`Event::Ended`] follows. Work that is not done will not be:
    /// whoever wants a last message to arrive waits for its completion first.
    fn disconnect(&mut self);

    /// What has happened.
    fn poll(&mut self) -> Option<Event>;
}

impl<V: Verbs + ?Sized> Verbs for &mut V {
    fn limits(&self) -> Limits {
        (**self).limits()
    }

    fn memories(&self) -> &Memories {
        (**self).memories()
    }

    fn accept(&mut self, private_data: &[u8], depth: Depth) -> Result<(), PostError> {
        (**self).accept(private_data, depth)
    }

    fn reject(&mut self, private_data: &[u8]) -> Result<(), PostError> {
        (**self).reject(private_data)
    }

    fn post_receives(&mut self, count: u32) -> Result<(), PostError> {
        (**self).post_receives(count)
    }

    fn release(&mut self, buffer: Slice) {
        (**self).release(buffer);
    }

    fn post(&mut self, post: &Post<'_>) -> Result<(), PostError> {
        (**self).post(post)
    }

    fn expose(&mut self, slices: &[Slice], access: Access) -> Result<Remote, PostError> {
        (**self).expose(slices, access)
    }

    fn disconnect(&mut self) {
        (**self).disconnect();
    }

    fn poll(&mut self) -> Option<Event> {
        (**self).poll()
    }
}
