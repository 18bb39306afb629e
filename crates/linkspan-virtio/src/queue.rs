//! What both layouts of a virtqueue share: errors, positions, saved bytes.

use linkspan_mem::SpaceError;

/// How a driver broke a queue. A queue that met one of these is retired: it
/// keeps the error, touches the ring no more, and only a reset by the driver
/// brings it back.
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

/// Where a device stands in a split ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct QueueState {
    /// The position in the available ring that the device takes next: what
    /// vhost-user calls the base of a ring.
    pub next_available: u16,
    /// The position in the used ring that the device writes next.
    pub next_used: u16,
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
    /// The machine refused memory.
    #[error(transparent)]
    Refused(#[from] linkspan_mem::fault::Injected),
}
