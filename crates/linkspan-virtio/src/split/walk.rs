//! From a head to a checked chain.
//!
//! Each descriptor is read once, into a private copy, and only the copy is
//! believed. Every loop is bounded by the size of its table, which is bounded.

use linkspan_mem::{Address, AddressSpace, Descriptor, RingMemory, SpaceError, SplitRing};

use super::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT};
use crate::chain::Chain;
use crate::limits::INDIRECT_ENTRIES_MAX;
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
    let size = ring.size();
    chain.begin(head);
    let mut index = head;
    for _ in 0..size {
        let Some(descriptor) = ring.descriptor(index) else {
            return Err(QueueError::NextOutOfRange {
                head,
                next: index,
                entries: u32::from(size),
            });
        };
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
        index = descriptor.next;
    }
    Err(QueueError::Loop {
        head,
        entries: u32::from(size),
    })
}

/// Goes on in an indirect table, which ends its chain (virtio 1.3 2.7.5.3). The
/// write flag of `table` itself is ignored, as 2.7.5.3.2 asks.
fn walk_indirect<A: Address>(
    space: &AddressSpace<A>,
    table: Descriptor,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    let (head, len) = (chain.id(), table.len);
    if table.flags & VIRTQ_DESC_F_NEXT != 0 {
        return Err(QueueError::IndirectWithNext { head });
    }
    let entries = len / ENTRY_LEN;
    if len == 0 || !len.is_multiple_of(ENTRY_LEN) || entries > INDIRECT_ENTRIES_MAX {
        return Err(QueueError::IndirectLength { head, len });
    }
    let mut reader = TableReader::new(space, table.address, entries);
    let mut index = 0;
    for _ in 0..entries {
        let descriptor = reader
            .read(index)
            .map_err(|source| QueueError::OutsideMemory { head, source })?;
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

/// Size of a descriptor in bytes.
const ENTRY_LEN: u32 = 16;
const _: () = assert!(Descriptor::SIZE == ENTRY_LEN as usize);

/// Descriptors copied at a time: two cache lines, enough for a request of a few
/// segments in one look-up.
const BATCH: u32 = 8;

/// Reads an indirect table by copies, since it may lie at any address and across
/// regions. Drivers fill it in order, so a few entries are copied ahead.
struct TableReader<'a, A> {
    space: &'a AddressSpace<A>,
    address: u64,
    entries: u32,
    first: u32,
    held: u32,
    bytes: [[u8; Descriptor::SIZE]; BATCH as usize],
}

impl<'a, A: Address> TableReader<'a, A> {
    fn new(space: &'a AddressSpace<A>, address: u64, entries: u32) -> Self {
        Self {
            space,
            address,
            entries,
            first: 0,
            held: 0,
            bytes: [[0; Descriptor::SIZE]; BATCH as usize],
        }
    }

    /// Entry `index`, which is inside the table.
    #[inline]
    fn read(&mut self, index: u32) -> Result<Descriptor, SpaceError> {
        let at = index.wrapping_sub(self.first);
        if at < self.held {
            return Ok(Descriptor::from_bytes(self.bytes[at as usize]));
        }
        self.fill(index)?;
        Ok(Descriptor::from_bytes(self.bytes[0]))
    }

    fn fill(&mut self, index: u32) -> Result<(), SpaceError> {
        let count = (self.entries - index).min(BATCH);
        let len = count * ENTRY_LEN;
        let outside = SpaceError {
            space: A::SPACE,
            address: self.address,
            len: u64::from(self.entries * ENTRY_LEN),
        };
        let start = self
            .address
            .checked_add(u64::from(index * ENTRY_LEN))
            .ok_or(outside)?;
        let table = self.space.table();
        let bytes = self.bytes.as_flattened_mut();
        let mut done = 0;
        self.space
            .resolve(A::from_raw(start), len, |span| {
                done += table.slice(span).read(&mut bytes[done..len as usize]);
            })
            .map_err(|_| outside)?;
        self.first = index;
        self.held = count;
        Ok(())
    }
}
