//! The ranges of a discard or of a request for zeroes (virtio 1.3 5.2.6): read
//! once, checked all before any is touched, and handed out in slices.

use alloc::vec::Vec;

use linkspan_mem::RegionTable;
use linkspan_mem::fault;
use linkspan_virtio::Chain;
use virtio_bindings::virtio_blk as bits;

use super::{Geometry, Operation, SECTOR, Status};

/// Ranges that one request lists at most.
pub const RANGES_MAX: u32 = 32;

/// Sectors of a range to be forgotten at most: 2 GiB, as QEMU has it.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 22;

/// Sectors of a range to be made zero at most: 128 MiB, since an image that
/// cannot do better writes them all before the request is answered.
pub const WRITE_ZEROES_SECTORS_MAX: u32 = 1 << 18;

/// Bytes of a range in the list: sector, count, flags.
const ENTRY_LEN: usize = 16;

/// The one flag there is: zeroes may be had by giving storage back.
const UNMAP: u32 = bits::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

/// What is forgotten at a time. Giving back so much storage takes milliseconds at
/// most, and the worker serves others in between.
const DISCARD_SLICE: u64 = 16 << 20;

/// What is made zero at a time, perhaps by writing it.
const ZEROES_SLICE: u64 = 4 << 20;

/// A part of a disk, in bytes, whole sectors inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte on the disk.
    pub offset: u64,
    /// How many bytes, at least one.
    pub len: u64,
    /// Whether zeroes may be had by giving storage back.
    pub unmap: bool,
}

/// What is left to do of one request: a private copy of its list. Kept with the
/// request's place, it takes memory once, when the first list is read into it.
#[derive(Debug, Default)]
pub struct Ranges {
    /// The last one first.
    left: Vec<Range>,
    slice: u64,
}

impl Ranges {
    /// No ranges, and no memory for any.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the list of a request whose operation is [`Operation::Discard`] or
    /// [`Operation::WriteZeroes`], in place of what was left here.
    ///
    /// # Errors
    /// The answer to give at once, and nothing is to be done then:
    /// [`Status::Unsupp`] for flags that no device knows, or none but a request
    /// for zeroes has; [`Status::IoErr`] for a list that is empty, too long or not
    /// made of whole entries, and for ranges that are too long or outside the disk.
    pub fn read(
        &mut self,
        operation: Operation,
        chain: &mut Chain,
        table: &RegionTable,
        geometry: &Geometry,
    ) -> Result<(), Status> {
        self.left.clear();
        let (sectors_max, flags_known, slice) = match operation {
            Operation::WriteZeroes { .. } => (WRITE_ZEROES_SECTORS_MAX, UNMAP, ZEROES_SLICE),
            _ => (DISCARD_SECTORS_MAX, 0, DISCARD_SLICE),
        };
        self.slice = slice;
        let count = usize::try_from(chain.readable_len() / ENTRY_LEN as u64).unwrap_or(usize::MAX);
        let whole = chain.readable_len().is_multiple_of(ENTRY_LEN as u64);
        if !whole || count == 0 || count > RANGES_MAX as usize {
            return Err(Status::IoErr);
        }
        if self.left.capacity() < count {
            self.left = fault::try_with_capacity(RANGES_MAX as usize).map_err(|_| Status::IoErr)?;
        }
        let checked = (0..count).try_for_each(|_| {
            let mut entry = [0; ENTRY_LEN];
            chain
                .read_front(table, &mut entry)
                .map_err(|_| Status::IoErr)?;
            let range = read_entry(entry, sectors_max, flags_known, geometry)?;
            self.left.extend(range);
            Ok(())
        });
        if let Err(status) = checked {
            self.left.clear();
            return Err(status);
        }
        self.left.reverse();
        Ok(())
    }

    /// The next slice to work on, in the order of the list, and whether it is the
    /// last one.
    pub fn next_slice(&mut self) -> Option<(Range, bool)> {
        let range = self.left.last_mut()?;
        let slice = Range {
            len: range.len.min(self.slice),
            ..*range
        };
        range.offset += slice.len;
        range.len -= slice.len;
        if range.len == 0 {
            self.left.pop();
        }
        Some((slice, self.left.is_empty()))
    }

    /// Bytes that are left of ranges whose storage is kept.
    pub fn kept_bytes(&self) -> u64 {
        let kept = self.left.iter().filter(|range| !range.unmap);
        kept.map(|range| range.len).sum()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Forgets what is left.
    pub fn clear(&mut self) {
        self.left.clear();
    }
}

/// One entry of a list; `None` for a range without sectors.
fn read_entry(
    entry: [u8; ENTRY_LEN],
    sectors_max: u32,
    flags_known: u32,
    geometry: &Geometry,
) -> Result<Option<Range>, Status> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = entry;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes(flags);
    // First, since the specification has this answer for whatever else is wrong
    // (virtio 1.3 5.2.6.2).
    if flags & !flags_known != 0 {
        return Err(Status::Unsupp);
    }
    if count > sectors_max {
        return Err(Status::IoErr);
    }
    let len = u64::from(count) * SECTOR;
    match geometry.offset(sector, len) {
        Ok(offset) => Ok(Some(Range {
            offset,
            len,
            unmap: flags & UNMAP != 0,
        })),
        Err(Status::Ok) => Ok(None),
        Err(status) => Err(status),
    }
}
