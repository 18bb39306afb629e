//! What descriptors of both layouts share: their flags, and indirect tables.

use linkspan_mem::{Address, AddressSpace, Descriptor, SpaceError};

use crate::limits::INDIRECT_ENTRIES_MAX;
use crate::queue::QueueError;

/// The chain goes on (virtio 1.3 2.7.5, 2.8.6).
pub const VIRTQ_DESC_F_NEXT: u16 = 1;
/// The device writes the buffer; without it, it reads.
pub const VIRTQ_DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const VIRTQ_DESC_F_INDIRECT: u16 = 4;

/// Size of a descriptor in bytes.
const ENTRY_LEN: u32 = 16;
const _: () = assert!(Descriptor::SIZE == ENTRY_LEN as usize);

/// Descriptors copied at a time: two cache lines, enough for a request of a few
/// segments in one look-up.
const BATCH: u32 = 8;

/// Reads an indirect table by copies, since it may lie at any address and across
/// regions. Drivers fill it in order, so a few entries are copied ahead.
pub(crate) struct TableReader<'a, A> {
    space: &'a AddressSpace<A>,
    address: u64,
    entries: u32,
    head: u16,
    first: u32,
    held: u32,
    bytes: [[u8; Descriptor::SIZE]; BATCH as usize],
}

impl<'a, A: Address> TableReader<'a, A> {
    /// The table of `len` bytes that the chain at `head` refers to.
    pub(crate) fn new(
        space: &'a AddressSpace<A>,
        address: u64,
        len: u32,
        head: u16,
    ) -> Result<Self, QueueError> {
        let entries = len / ENTRY_LEN;
        if len == 0 || !len.is_multiple_of(ENTRY_LEN) || entries > INDIRECT_ENTRIES_MAX {
            return Err(QueueError::IndirectLength { head, len });
        }
        Ok(Self {
            space,
            address,
            entries,
            head,
            first: 0,
            held: 0,
            bytes: [[0; Descriptor::SIZE]; BATCH as usize],
        })
    }

    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// Entry `index`, which is inside the table.
    #[inline]
    pub(crate) fn read(&mut self, index: u32) -> Result<[u8; Descriptor::SIZE], QueueError> {
        let at = index.wrapping_sub(self.first);
        if at < self.held {
            return Ok(self.bytes[at as usize]);
        }
        let head = self.head;
        self.fill(index)
            .map_err(|source| QueueError::OutsideMemory { head, source })?;
        Ok(self.bytes[0])
    }

    fn fill(&mut self, index: u32) -> Result<(), SpaceError> {
        let count = (self.entries - index).min(BATCH);
        let len = count * ENTRY_LEN;
        let outside = SpaceError {
            space: A::SPACE,
            address: self.address,
            len: u64::from(self.entries * ENTRY_LEN),
            write: false,
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
