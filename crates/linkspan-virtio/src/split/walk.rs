//! From a head to a checked chain.
//!
//! Each descriptor is read once, into a private copy, and only the copy is
//! believed. Every loop is bounded by the size of its table, which is bounded.

use linkspan_mem::{Address, AddressSpace, Descriptor, RingMemory, SplitRing};

use crate::chain::Chain;
use crate::descriptor::{TableReader, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT};
use crate::queue::QueueError;

/// Fills `chain` with what begins at `head`, which is inside the ring.
#[inline]
pub(super) fn walk<M: RingMemory, A: Address>(
    ring: &SplitRing<M>,
    space: &AddressSpace<A>,
    indirect: bool,
    head: u16,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    let Some(first) = ring.descriptor(head) else {
        return Err(out_of_range(head, head, ring.size()));
    };
    if fill_one(space, head, first, chain) {
        return Ok(());
    }
    chain.begin(head);
    walk_on(ring, space, indirect, first, chain)
}

/// The same for a chain of one descriptor for one piece of memory; `false` for any other
/// one and for what is wrong.
#[inline(always)]
pub(super) fn walk_one<M: RingMemory, A: Address>(
    ring: &SplitRing<M>,
    space: &AddressSpace<A>,
    head: u16,
    chain: &mut Chain,
) -> bool {
    let first = ring.descriptor(head);
    first.is_some_and(|first| fill_one(space, head, first, chain))
}

#[inline(always)]
fn fill_one<A: Address>(
    space: &AddressSpace<A>,
    head: u16,
    only: Descriptor,
    chain: &mut Chain,
) -> bool {
    (only.flags & (VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_INDIRECT) == 0)
        && chain.fill_one(space, (head, only.address), (only.len, only.flags))
}

/// Fills `chain`, which has begun, with what begins with the descriptor `first`.
fn walk_on<M: RingMemory, A: Address>(
    ring: &SplitRing<M>,
    space: &AddressSpace<A>,
    indirect: bool,
    first: Descriptor,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    let (head, size) = (chain.id(), ring.size());
    let mut descriptor = first;
    for _ in 0..size {
        if descriptor.flags & VIRTQ_DESC_F_INDIRECT != 0 {
            if !indirect {
                return Err(QueueError::IndirectNotNegotiated { head });
            }
            return walk_indirect(space, descriptor, chain);
        }
        chain.add(space, descriptor)?;
        if descriptor.flags & VIRTQ_DESC_F_NEXT == 0 {
            return Ok(());
        }
        let next = descriptor.next;
        descriptor = ring
            .descriptor(next)
            .ok_or_else(|| out_of_range(head, next, size))?;
    }
    Err(QueueError::Loop {
        head,
        entries: u32::from(size),
    })
}

#[cold]
fn out_of_range(head: u16, next: u16, size: u16) -> QueueError {
    QueueError::NextOutOfRange {
        head,
        next,
        entries: u32::from(size),
    }
}

/// Goes on in an indirect table, which ends its chain (virtio 1.3 2.7.5.3). The
/// write flag of `table` itself is ignored, as 2.7.5.3.2 asks.
fn walk_indirect<A: Address>(
    space: &AddressSpace<A>,
    table: Descriptor,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    let head = chain.id();
    if table.flags & VIRTQ_DESC_F_NEXT != 0 {
        return Err(QueueError::IndirectWithNext { head });
    }
    let mut reader = TableReader::new(space, table.address, table.len, head)?;
    let entries = reader.entries();
    let mut index = 0;
    for _ in 0..entries {
        let descriptor = Descriptor::from_bytes(reader.read(index)?);
        if descriptor.flags & VIRTQ_DESC_F_INDIRECT != 0 {
            return Err(QueueError::NestedIndirect { head });
        }
        chain.add(space, descriptor)?;
        if descriptor.flags & VIRTQ_DESC_F_NEXT == 0 {
            return Ok(());
        }
        index = u32::from(descriptor.next);
        if index >= entries {
            let next = descriptor.next;
            return Err(QueueError::NextOutOfRange {
                head,
                next,
                entries,
            });
        }
    }
    Err(QueueError::Loop { head, entries })
}
