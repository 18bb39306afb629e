//! What the driver's side of a queue speaks of, whichever its layout.

use linkspan_mem::{Address, Descriptor, SharedSlice};

use crate::descriptor::{VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::limits::{CHAIN_BYTES_MAX, CHAIN_DESCRIPTORS_MAX};

/// A piece of memory that the device shall read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer<A> {
    /// Where it is, in the space that the device knows.
    pub address: A,
    /// Its size in bytes.
    pub len: u32,
}

/// Memory for an indirect table (virtio 1.3 2.7.5.3). It belongs to the chain
/// until the chain is used.
#[derive(Clone, Copy)]
pub struct IndirectTable<'a, A> {
    /// Where the device finds it.
    pub address: A,
    /// Its bytes: 16 for each buffer of the chain.
    pub bytes: SharedSlice<'a>,
}

/// A chain that the device is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What `add` called it.
    pub id: u16,
    /// Bytes that the device says it wrote, at most those that were writable.
    pub written: u32,
}

/// Why a chain was not added; the queue is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// Too few descriptors are free; it helps to wait for used ones.
    #[error("{need} descriptors are needed, {free} are free")]
    Full {
        /// Descriptors needed.
        need: usize,
        /// Descriptors there are.
        free: u16,
    },
    /// A chain needs at least one buffer, and no more than devices take.
    #[error("a chain of {count} buffers is not possible")]
    Buffers {
        /// How many were given.
        count: usize,
    },
    /// More bytes than a used element can count.
    #[error("a chain of {bytes} bytes is too long")]
    Bytes {
        /// How many were given.
        bytes: u64,
    },
    /// The device did not agree to indirect descriptors.
    #[error("indirect descriptors were not negotiated")]
    IndirectNotNegotiated,
    /// The indirect table cannot hold the chain.
    #[error("an indirect table of {len} bytes cannot hold {count} descriptors")]
    TableTooSmall {
        /// Its size in bytes.
        len: usize,
        /// Buffers of the chain.
        count: usize,
    },
    /// The device broke the queue before.
    #[error(transparent)]
    Retired(#[from] UsedError),
}

/// How a device broke a queue, which is retired from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UsedError {
    /// `used.idx` claims more chains than the device has.
    #[error(
        "the device's used index jumped to {index}: {next} is next, {outstanding} chains are outstanding"
    )]
    UsedJump {
        /// What the device wrote.
        index: u16,
        /// The position that the driver takes next.
        next: u16,
        /// Chains that the device has.
        outstanding: u16,
    },
    /// The device used what is not the head of a chain that it has.
    #[error("the device used chain {id}, which it does not have")]
    NotOutstanding {
        /// What the device wrote.
        id: u32,
    },
    /// The device claims to have written more than it may.
    #[error("the device claims {len} bytes in chain {id}, which has {writable} writable ones")]
    UsedLength {
        /// Which chain.
        id: u16,
        /// What the device wrote.
        len: u32,
        /// Writable bytes of the chain.
        writable: u32,
    },
}

/// The descriptors of a chain, linked but without `next`.
#[inline]
pub(crate) fn descriptors<'a, A: Address>(
    readable: &'a [Buffer<A>],
    writable: &'a [Buffer<A>],
) -> impl Iterator<Item = Descriptor> + 'a {
    let last = readable.len() + writable.len() - 1;
    let flagged = readable.iter().map(|buffer| (buffer, 0));
    let flagged = flagged.chain(writable.iter().map(|buffer| (buffer, VIRTQ_DESC_F_WRITE)));
    flagged
        .enumerate()
        .map(move |(index, (buffer, flag))| Descriptor {
            address: buffer.address.raw(),
            len: buffer.len,
            flags: if index == last {
                flag
            } else {
                flag | VIRTQ_DESC_F_NEXT
            },
            next: 0,
        })
}

/// The descriptor of a chain of one buffer, and its writable bytes.
#[inline]
pub(crate) fn one_buffer<A: Address>(buffer: Buffer<A>, writable: bool) -> (Descriptor, u32) {
    let (flags, writable_bytes) = if writable {
        (VIRTQ_DESC_F_WRITE, buffer.len)
    } else {
        (0, 0)
    };
    let descriptor = Descriptor {
        address: buffer.address.raw(),
        len: buffer.len,
        flags,
        next: 0,
    };
    (descriptor, writable_bytes)
}

/// Checks number and bytes of a chain; gives the writable bytes.
#[inline]
pub(crate) fn chain_bytes<A>(
    readable: &[Buffer<A>],
    writable: &[Buffer<A>],
) -> Result<u32, AddError> {
    let count = readable.len() + writable.len();
    if count == 0 || count > usize::from(CHAIN_DESCRIPTORS_MAX) {
        return Err(AddError::Buffers { count });
    }
    let sum = |buffers: &[Buffer<A>]| buffers.iter().map(|b| u64::from(b.len)).sum::<u64>();
    let written = sum(writable);
    let bytes = sum(readable) + written;
    if bytes > CHAIN_BYTES_MAX {
        return Err(AddError::Bytes { bytes });
    }
    u32::try_from(written).map_err(|_| AddError::Bytes { bytes })
}
