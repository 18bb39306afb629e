//! From a position to a checked chain; each descriptor is read once.

use linkspan_mem::{Address, AddressSpace, Descriptor, PackedDescriptor};

use crate::chain::Chain;
use crate::descriptor::{
    TableReader, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE,
};
use crate::queue::QueueError;

/// Fills `chain` with the one descriptor that it has, if it has one in one piece of
/// memory; `false` for any other.
#[inline(always)]
pub(super) fn fill_one<A: Address>(
    space: &AddressSpace<A>,
    chain: &mut Chain,
    only: PackedDescriptor,
) -> bool {
    let one = (only.flags & (VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_INDIRECT) == 0)
        && chain.fill_one(space, (only.id, only.address), (only.len, only.flags));
    if one {
        chain.slots = 1;
    }
    one
}

/// Fills `chain`, which has begun, with descriptors from `next` until one ends
/// it; `next` has to fail some time.
#[inline]
pub(super) fn walk<A: Address>(
    space: &AddressSpace<A>,
    indirect: bool,
    chain: &mut Chain,
    mut next: impl FnMut() -> Result<PackedDescriptor, QueueError>,
) -> Result<(), QueueError> {
    let head = chain.id();
    chain.slots = 0;
    loop {
        let copied = next()?;
        chain.slots += 1;
        if copied.flags & VIRTQ_DESC_F_INDIRECT == 0 {
            chain.add(space, plain(copied))?;
            if copied.flags & VIRTQ_DESC_F_NEXT != 0 {
                continue;
            }
        } else {
            if !indirect {
                return Err(QueueError::IndirectNotNegotiated { head });
            }
            // All or nothing, unlike in a split ring (virtio 1.3 2.8.5).
            if chain.slots > 1 || copied.flags & VIRTQ_DESC_F_NEXT != 0 {
                return Err(QueueError::IndirectWithNext { head });
            }
            walk_indirect(space, copied, chain)?;
        }
        chain.rename(copied.id);
        return Ok(());
    }
}

/// An indirect table is used from its first entry to its last, and of the flags
/// in it only one counts (virtio 1.3 2.8.7).
fn walk_indirect<A: Address>(
    space: &AddressSpace<A>,
    table: PackedDescriptor,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    let mut reader = TableReader::new(space, table.address, table.len, chain.id())?;
    for index in 0..reader.entries() {
        chain.add(space, plain(from_bytes(reader.read(index)?)))?;
    }
    Ok(())
}

fn plain(copied: PackedDescriptor) -> Descriptor {
    Descriptor {
        address: copied.address,
        len: copied.len,
        flags: copied.flags & VIRTQ_DESC_F_WRITE,
        next: 0,
    }
}

fn from_bytes(bytes: [u8; 16]) -> PackedDescriptor {
    let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, i0, i1, f0, f1] = bytes;
    PackedDescriptor {
        address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        len: u32::from_le_bytes([l0, l1, l2, l3]),
        id: u16::from_le_bytes([i0, i1]),
        flags: u16::from_le_bytes([f0, f1]),
    }
}
