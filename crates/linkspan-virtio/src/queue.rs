//! What both layouts of a virtqueue share: errors, positions, saved bytes.

use linkspan_mem::fault::Injected;
use linkspan_mem::{SpaceError, WindowError};

/// More entries than any event index can lag behind: what a side counts as
/// published before its first look, so that the answer is yes.
pub(crate) const FIRST_NOTIFY: u32 = 1 << 16;

/// How a driver broke a queue. A queue that met one of these is retired: it
/// keeps the error, touches the ring no more, and only a reset by the driver
/// brings it back. In a packed ring a chain has no name until its last descriptor
/// is read: up to then its head is its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// `avail.idx` claims more chains than the queue has entries, or went backwards.
    #[error(
        "the driver's available index jumped to {index}: {next} is next, {seen} was seen, the queue has {size} entries"
    )]
    AvailableJump {
        /// What the driver wrote.
        index: u16,
        /// The position that the device takes next.
        next: u16,
        /// What the driver had written before.
        seen: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// The head of a chain is not a descriptor of the queue.
    #[error("head {head} is outside a queue of {size} entries")]
    HeadOutOfRange {
        /// What the driver wrote.
        head: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// A head was made available again before the device used it.
    #[error("the chain at head {head} was made available again while in flight")]
    HeadInFlight {
        /// Which chain.
        head: u16,
    },
    /// `next` is not a descriptor of its table.
    #[error("the chain at head {head} goes on at descriptor {next} of a table of {entries}")]
    NextOutOfRange {
        /// Which chain.
        head: u16,
        /// Where it would go on.
        next: u16,
        /// Entries of the table.
        entries: u32,
    },
    /// A chain has more descriptors than the table it runs in.
    #[error("the chain at head {head} loops in a table of {entries} descriptors")]
    Loop {
        /// Which chain.
        head: u16,
        /// Entries of the table.
        entries: u32,
    },
    /// A chain in a packed ring does not end before descriptors that the device
    /// has not used yet (virtio 1.3 2.8.17).
    #[error(
        "the chain at head {head} does not end within the {free} of {size} descriptors that are not in flight"
    )]
    Overrun {
        /// Where the chain begins.
        head: u16,
        /// Descriptors that the driver may make available.
        free: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// A chain in a packed ring goes on at a descriptor that is not available
    /// (virtio 1.3 2.8.6, 2.8.17).
    #[error("the chain at head {head} goes on at descriptor {position}, which is not available")]
    NotAvailable {
        /// Where the chain begins.
        head: u16,
        /// Where it would go on.
        position: u16,
    },
    /// A chain has more descriptors than one `pop` should look at.
    #[error("the chain at head {head} has more than {limit} descriptors")]
    TooManyDescriptors {
        /// Which chain.
        head: u16,
        /// [`limits::CHAIN_DESCRIPTORS_MAX`](crate::limits::CHAIN_DESCRIPTORS_MAX).
        limit: u16,
    },
    /// A chain has more pieces of memory than its device takes.
    #[error("the chain at head {head} has more than {limit} segments")]
    TooManySegments {
        /// Which chain.
        head: u16,
        /// The room of the [`Chain`](crate::Chain).
        limit: usize,
    },
    /// A chain has more bytes than a used element can count.
    #[error("the chain at head {head} has {bytes} bytes or more")]
    TooManyBytes {
        /// Which chain.
        head: u16,
        /// The sum at which counting ended.
        bytes: u64,
    },
    /// A descriptor or an indirect table is not inside the driver's memory.
    #[error("the chain at head {head} leaves the driver's memory: {source}")]
    OutsideMemory {
        /// Which chain.
        head: u16,
        /// The range.
        source: SpaceError,
    },
    /// A device-readable descriptor follows a device-writable one (2.7.4.2).
    #[error("the chain at head {head} has a readable descriptor behind a writable one")]
    ReadableAfterWritable {
        /// Which chain.
        head: u16,
    },
    /// An indirect table without `VIRTIO_F_INDIRECT_DESC` (2.7.5.3.1).
    #[error("the chain at head {head} uses an indirect table, which was not negotiated")]
    IndirectNotNegotiated {
        /// Which chain.
        head: u16,
    },
    /// An indirect table inside an indirect table (2.7.5.3.1).
    #[error("the chain at head {head} has an indirect table inside an indirect table")]
    NestedIndirect {
        /// Which chain.
        head: u16,
    },
    /// `VIRTQ_DESC_F_INDIRECT` together with `VIRTQ_DESC_F_NEXT` (2.7.5.3.1).
    #[error("the chain at head {head} goes on behind an indirect table")]
    IndirectWithNext {
        /// Which chain.
        head: u16,
    },
    /// An indirect table that is empty, too large, or no multiple of 16 bytes.
    #[error("the chain at head {head} has an indirect table of {len} bytes")]
    IndirectLength {
        /// Which chain.
        head: u16,
        /// Its size in bytes.
        len: u32,
    },
    /// A chain lacks the bytes without which its device cannot even refuse it.
    #[error("the chain at head {head} has {have} {side} bytes where {need} are needed")]
    NoRoom {
        /// Which chain.
        head: u16,
        /// `"device-readable"` or `"device-writable"`.
        side: &'static str,
        /// Bytes needed.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
}

/// Where a side stands in a ring: in a packed ring bits 0 to 14 are the position
/// of a descriptor and bit 15 is the wrap counter, as vhost-user has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct QueueState {
    /// What is made available next: the device takes it, the driver writes it.
    pub next_available: u16,
    /// What is used next: the device writes it, the driver takes it.
    pub next_used: u16,
}

/// Why a queue does not start where it is told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The memory at hand does not hold such a ring.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The packed ring has no such descriptor.
    #[error("a packed ring of {size} entries has no position {position}")]
    Position {
        /// The position, without its wrap counter.
        position: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// More descriptors are in flight than there can be.
    #[error("{apart} descriptors are in flight, which cannot be with {size} entries")]
    Apart {
        /// How far the two positions are apart.
        apart: u32,
        /// Entries of the ring.
        size: u16,
    },
    /// The machine refused memory.
    #[error(transparent)]
    Refused(#[from] Injected),
}

/// Why a queue cannot be saved now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotQuiet {
    /// Chains are under way.
    #[error("{count} chains are in flight")]
    InFlight {
        /// How many.
        count: u16,
    },
    /// Something was written that the peer does not see yet.
    #[error("{count} ring entries are not published")]
    Unpublished {
        /// How many.
        count: u16,
    },
    /// The queue is retired; there is nothing to go on with.
    #[error("the queue is retired")]
    Retired,
}

/// Why saved bytes do not make a queue or a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Another number of bytes than this version writes.
    #[error("saved state has {len} bytes, not {want}")]
    Length {
        /// Bytes there are.
        len: usize,
        /// Bytes there should be.
        want: usize,
    },
    /// Written by something else, or by a version that is not known.
    #[error("saved state is of kind {kind:#06x}, not {want:#06x}")]
    Kind {
        /// What the bytes begin with.
        kind: u16,
        /// What they should begin with.
        want: u16,
    },
    /// The ring at hand has another size.
    #[error("saved state is of a queue of {saved} entries, the ring has {size}")]
    Size {
        /// Entries of the saved queue.
        saved: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// Features that are not served here.
    #[error("saved state has features {features:#x} that are not served here")]
    Features {
        /// The bits in question.
        features: u64,
    },
    /// The queue cannot be as saved.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The machine refused memory.
    #[error(transparent)]
    Refused(#[from] Injected),
}
