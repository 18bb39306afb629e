//! Windows onto the regions in which a back end writes down what it has in
//! flight, so that its next life finds it (vhost-user, "Inflight I/O tracking").
//!
//! The front end keeps the region, so it is as hostile as any other shared
//! memory. Its fields are in the machine's byte order: it never leaves one. What
//! counts is the order of stores as the next life sees it; each store that must
//! not come before others begins with [`publish`].

use super::{RingMemory, WindowError};
use crate::barrier::publish;

/// Offsets of what both layouts begin with.
const FEATURES: usize = 0;
const VERSION: usize = 8;
const DESC_NUM: usize = 10;

/// Every queue's region is a multiple of this, in all known implementations.
const REGION_ALIGN: usize = 64;

/// What is asked of a region's address: that of its widest field.
const FIELD_ALIGN: usize = 8;

/// The version that a used region has; a new one is zeroed.
const INFLIGHT_VERSION: u16 = 1;

/// `QueueRegionSplit`: what a back end has in flight of one split queue.
#[derive(Debug)]
pub struct InflightSplit<M> {
    memory: M,
    size: u16,
}

/// A `DescStateSplit` as it stood in shared memory at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflightSplitEntry {
    /// 1 for a head in flight, else 0.
    pub inflight: u8,
    /// The head that was used before this one in the last batch.
    pub next: u16,
    /// Its place in the order of fetching.
    pub counter: u64,
}

mod split {
    pub(super) const LAST_BATCH_HEAD: usize = 12;
    pub(super) const USED_IDX: usize = 14;
    pub(super) const HEADER: usize = 16;
    pub(super) const ENTRY: usize = 16;
    pub(super) const INFLIGHT: usize = 0;
    pub(super) const NEXT: usize = 6;
    pub(super) const COUNTER: usize = 8;
}

impl<M: RingMemory> InflightSplit<M> {
    /// Bytes from one queue's region to the next, for `size` descriptors.
    pub const fn region_len(size: u16) -> usize {
        (split::HEADER + split::ENTRY * size as usize).next_multiple_of(REGION_ALIGN)
    }

    /// Takes `memory` as the region of a queue of at most `size` descriptors.
    ///
    /// # Errors
    /// When it is too small or not aligned to 8 bytes.
    pub fn new(memory: M, size: u16) -> Result<Self, WindowError> {
        check(&memory, Self::region_len(size), size)?;
        Ok(Self { memory, size })
    }

    /// Descriptors that the region has room for.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// 0 when nobody has used the region yet, else 1.
    pub fn version(&self) -> u16 {
        // SAFETY: inside the header, aligned to 2.
        unsafe { self.memory.load_u16(VERSION) }
    }

    /// What the region says of its size.
    pub fn desc_num(&self) -> u16 {
        // SAFETY: as in `version`.
        unsafe { self.memory.load_u16(DESC_NUM) }
    }

    /// The head that was used last.
    pub fn last_batch_head(&self) -> u16 {
        // SAFETY: as in `version`.
        unsafe { self.memory.load_u16(split::LAST_BATCH_HEAD) }
    }

    /// The index of the used ring when the last batch was done with.
    pub fn used_idx(&self) -> u16 {
        // SAFETY: as in `version`.
        unsafe { self.memory.load_u16(split::USED_IDX) }
    }

    /// The entry of descriptor `index`, or `None` when there is none.
    pub fn entry(&self, index: u16) -> Option<InflightSplitEntry> {
        if index >= self.size {
            return None;
        }
        let at = self.at(index);
        // SAFETY: `at` gives an entry of the region; its fields are aligned.
        Some(unsafe {
            InflightSplitEntry {
                inflight: self.memory.load_u8(at + split::INFLIGHT),
                next: self.memory.load_u16(at + split::NEXT),
                counter: self.memory.load_u64(at + split::COUNTER),
            }
        })
    }

    /// Begins to use the region, for a used ring that stands at `used_idx`.
    pub fn start(&self, used_idx: u16) {
        for index in 0..self.size {
            self.clear(index);
            self.link(index, 0);
        }
        // SAFETY: inside the header, aligned to the size of each field.
        unsafe {
            self.memory.store_u64(FEATURES, 0);
            self.memory.store_u16(DESC_NUM, self.size);
            self.memory.store_u16(split::LAST_BATCH_HEAD, 0);
            self.memory.store_u16(split::USED_IDX, used_idx);
            publish();
            self.memory.store_u16(VERSION, INFLIGHT_VERSION);
        }
    }

    /// Notes that `head` was taken, as the `counter`th.
    ///
    /// # Panics
    /// When there is no such descriptor: heads are checked before.
    #[inline]
    pub fn take(&self, head: u16, counter: u64) {
        let at = self.at(head);
        // SAFETY: as in `entry`.
        unsafe {
            self.memory.store_u64(at + split::COUNTER, counter);
            publish();
            self.memory.store_u8(at + split::INFLIGHT, 1);
        }
    }

    /// Puts `head` in front of the batch that is about to be published, whose
    /// head before was `last`.
    ///
    /// # Panics
    /// As for [`take`](Self::take).
    #[inline]
    pub fn batch(&self, head: u16, last: u16) {
        self.link(head, last);
        publish();
        // SAFETY: inside the header.
        unsafe { self.memory.store_u16(split::LAST_BATCH_HEAD, head) }
    }

    /// Notes that `head` is in flight no more.
    ///
    /// # Panics
    /// As for [`take`](Self::take).
    #[inline]
    pub fn clear(&self, head: u16) {
        let at = self.at(head);
        publish();
        // SAFETY: as in `entry`.
        unsafe { self.memory.store_u8(at + split::INFLIGHT, 0) }
    }

    /// Notes that the last batch is done with.
    #[inline]
    pub fn settle(&self, used_idx: u16) {
        publish();
        // SAFETY: inside the header.
        unsafe { self.memory.store_u16(split::USED_IDX, used_idx) }
    }

    fn link(&self, index: u16, next: u16) {
        let at = self.at(index);
        // SAFETY: as in `entry`.
        unsafe { self.memory.store_u16(at + split::NEXT, next) }
    }

    #[inline]
    fn at(&self, index: u16) -> usize {
        assert!(index < self.size, "no such entry in an in-flight region");
        split::HEADER + split::ENTRY * usize::from(index)
    }
}

/// `QueueRegionPacked`: what a back end has in flight of one packed queue. The
/// used descriptors overwrite available ones, so it holds copies of them.
#[derive(Debug)]
pub struct InflightPacked<M> {
    memory: M,
    size: u16,
}

/// A `DescStatePacked`: a private copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct InflightPackedEntry {
    /// 1 for the head of a chain in flight, else 0.
    pub inflight: u8,
    /// The next entry of the chain or of the free list.
    pub next: u16,
    /// Of a head: the last entry of its chain.
    pub last: u16,
    /// Of a head: entries of its chain.
    pub num: u16,
    /// Of a head: its place in the order of fetching.
    pub counter: u64,
    /// The descriptor's buffer id.
    pub id: u16,
    /// The descriptor's flags.
    pub flags: u16,
    /// The descriptor's length in bytes.
    pub len: u32,
    /// The descriptor's address.
    pub address: u64,
}

mod packed {
    /// `free_head` and `old_free_head`, as one word: they change together.
    pub(super) const FREE: usize = 12;
    /// `used_idx`, `old_used_idx`, both wrap counters and padding, as one word:
    /// an index without its wrap counter would mislead the next life.
    pub(super) const USED: usize = 16;
    pub(super) const HEADER: usize = 32;
    pub(super) const ENTRY: usize = 32;
    pub(super) const INFLIGHT: usize = 0;
    pub(super) const NEXT: usize = 2;
    pub(super) const LAST: usize = 4;
    pub(super) const NUM: usize = 6;
    pub(super) const COUNTER: usize = 8;
    pub(super) const ID: usize = 16;
    pub(super) const FLAGS: usize = 18;
    pub(super) const LEN: usize = 20;
    pub(super) const ADDRESS: usize = 24;
}

impl<M: RingMemory> InflightPacked<M> {
    /// Bytes from one queue's region to the next, for `size` descriptors.
    pub const fn region_len(size: u16) -> usize {
        (packed::HEADER + packed::ENTRY * size as usize).next_multiple_of(REGION_ALIGN)
    }

    /// Takes `memory` as the region of a queue of at most `size` descriptors.
    ///
    /// # Errors
    /// When it is too small or not aligned to 8 bytes.
    pub fn new(memory: M, size: u16) -> Result<Self, WindowError> {
        check(&memory, Self::region_len(size), size)?;
        Ok(Self { memory, size })
    }

    /// Descriptors that the region has room for.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// 0 when nobody has used the region yet, else 1.
    pub fn version(&self) -> u16 {
        // SAFETY: inside the header, aligned to 2.
        unsafe { self.memory.load_u16(VERSION) }
    }

    /// What the region says of its size.
    pub fn desc_num(&self) -> u16 {
        // SAFETY: as in `version`.
        unsafe { self.memory.load_u16(DESC_NUM) }
    }

    /// `free_head` and `old_free_head`: the first free entry as it will be and
    /// as it was after the last step that was done with.
    pub fn free(&self) -> [u16; 2] {
        // SAFETY: inside the header, aligned to 4.
        let [a, b, c, d] = unsafe { self.memory.load_u32(packed::FREE) }.to_ne_bytes();
        [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
    }

    /// `used_idx` and `old_used_idx`, each with its wrap counter in bit 15. Bit
    /// 15 of an index itself, which none can have, is lost.
    pub fn used(&self) -> [u16; 2] {
        // SAFETY: inside the header, aligned to 8.
        let word = unsafe { self.memory.load_u64(packed::USED) };
        let [a, b, c, d, wrap, old_wrap, ..] = word.to_ne_bytes();
        let join = |index: u16, wrap: u8| index & 0x7FFF | u16::from(wrap != 0) << 15;
        [
            join(u16::from_ne_bytes([a, b]), wrap),
            join(u16::from_ne_bytes([c, d]), old_wrap),
        ]
    }

    /// Entry `index`, or `None` when there is none.
    pub fn entry(&self, index: u16) -> Option<InflightPackedEntry> {
        if index >= self.size {
            return None;
        }
        let at = self.at(index);
        // SAFETY: `at` gives an entry of the region; its fields are aligned.
        Some(unsafe {
            InflightPackedEntry {
                inflight: self.memory.load_u8(at + packed::INFLIGHT),
                next: self.memory.load_u16(at + packed::NEXT),
                last: self.memory.load_u16(at + packed::LAST),
                num: self.memory.load_u16(at + packed::NUM),
                counter: self.memory.load_u64(at + packed::COUNTER),
                id: self.memory.load_u16(at + packed::ID),
                flags: self.memory.load_u16(at + packed::FLAGS),
                len: self.memory.load_u32(at + packed::LEN),
                address: self.memory.load_u64(at + packed::ADDRESS),
            }
        })
    }

    /// Begins to use the region, with all entries free, for a device that stands
    /// at `used` (wrap counter in bit 15).
    pub fn start(&self, used: u16) {
        for index in 0..self.size {
            self.clear(index);
            self.set_next(index, index + 1);
        }
        // SAFETY: inside the header, aligned to the size of each field.
        unsafe {
            self.memory.store_u64(FEATURES, 0);
            self.memory.store_u16(DESC_NUM, self.size);
        }
        self.set_free(0, 0);
        self.set_used(used, used);
        publish();
        // SAFETY: as above.
        unsafe { self.memory.store_u16(VERSION, INFLIGHT_VERSION) }
    }

    /// Writes the copy of a descriptor into entry `index`: `id`, `flags`, `len`
    /// and `address`.
    ///
    /// # Panics
    /// When there is no such entry: indices are the caller's own.
    #[inline]
    pub fn set_descriptor(&self, index: u16, entry: &InflightPackedEntry) {
        let at = self.at(index);
        // SAFETY: as in `entry`.
        unsafe {
            self.memory.store_u16(at + packed::ID, entry.id);
            self.memory.store_u16(at + packed::FLAGS, entry.flags);
            self.memory.store_u32(at + packed::LEN, entry.len);
            self.memory.store_u64(at + packed::ADDRESS, entry.address);
        }
    }

    /// Makes entry `index` the head of a chain in flight: `last`, `num` and
    /// `counter`. It counts once it is off the free list.
    ///
    /// # Panics
    /// As for [`set_descriptor`](Self::set_descriptor).
    #[inline]
    pub fn take(&self, index: u16, entry: &InflightPackedEntry) {
        let at = self.at(index);
        // SAFETY: as in `entry`.
        unsafe {
            self.memory.store_u16(at + packed::NUM, entry.num);
            self.memory.store_u16(at + packed::LAST, entry.last);
            self.memory.store_u64(at + packed::COUNTER, entry.counter);
            self.memory.store_u8(at + packed::INFLIGHT, 1);
        }
    }

    /// Links entry `index` to `next`.
    ///
    /// # Panics
    /// As for [`set_descriptor`](Self::set_descriptor).
    #[inline]
    pub fn set_next(&self, index: u16, next: u16) {
        let at = self.at(index);
        // SAFETY: as in `entry`.
        unsafe { self.memory.store_u16(at + packed::NEXT, next) }
    }

    /// Notes that the chain at entry `index` is in flight no more.
    ///
    /// # Panics
    /// As for [`set_descriptor`](Self::set_descriptor).
    #[inline]
    pub fn clear(&self, index: u16) {
        let at = self.at(index);
        publish();
        // SAFETY: as in `entry`.
        unsafe { self.memory.store_u8(at + packed::INFLIGHT, 0) }
    }

    /// Sets `free_head` and `old_free_head` at once.
    #[inline]
    pub fn set_free(&self, free_head: u16, old_free_head: u16) {
        let ([a, b], [c, d]) = (free_head.to_ne_bytes(), old_free_head.to_ne_bytes());
        publish();
        // SAFETY: as in `free`.
        unsafe {
            self.memory
                .store_u32(packed::FREE, u32::from_ne_bytes([a, b, c, d]));
        }
    }

    /// Sets `used_idx` and `old_used_idx`, each with its wrap counter in bit 15,
    /// at once.
    #[inline]
    pub fn set_used(&self, used: u16, old_used: u16) {
        let split = |used: u16| ((used & 0x7FFF).to_ne_bytes(), u8::from(used >> 15 != 0));
        let (([a, b], wrap), ([c, d], old_wrap)) = (split(used), split(old_used));
        let word = u64::from_ne_bytes([a, b, c, d, wrap, old_wrap, 0, 0]);
        publish();
        // SAFETY: as in `used`.
        unsafe { self.memory.store_u64(packed::USED, word) }
    }

    #[inline]
    fn at(&self, index: u16) -> usize {
        assert!(index < self.size, "no such entry in an in-flight region");
        packed::HEADER + packed::ENTRY * usize::from(index)
    }
}

fn check<M: RingMemory>(memory: &M, need: usize, size: u16) -> Result<(), WindowError> {
    if size == 0 || size > 1 << 15 {
        return Err(WindowError::Size { size });
    }
    let len = memory.len();
    if len < need {
        return Err(WindowError::TooSmall { size, need, len });
    }
    if !memory.is_aligned(FIELD_ALIGN) {
        return Err(WindowError::Unaligned { align: FIELD_ALIGN });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Region, Window};

    /// The sizes that libvhost-user, DPDK and SPDK compute, though two of them
    /// leave padding out of the sum: the alignment makes up for it.
    #[test]
    fn regions_have_the_sizes_that_others_expect() {
        type Split = InflightSplit<Window>;
        type Packed = InflightPacked<Window>;
        for size in (1..=1024).chain([1 << 14, 1 << 15]) {
            let entries = usize::from(size);
            let libvhost_user = (16 * entries + 2).next_multiple_of(64);
            let dpdk = (16 * entries + 8 + 2 * 4).next_multiple_of(64);
            let dpdk_packed = (32 * entries + 8 + 2 * 6 + 9).next_multiple_of(64);
            assert_eq!(Split::region_len(size), libvhost_user, "{size}");
            assert_eq!(Split::region_len(size), dpdk, "{size}");
            assert_eq!(Packed::region_len(size), dpdk_packed, "{size}");
        }
        assert_eq!(Split::region_len(128), 2112);
    }

    #[test]
    fn split_fields_lie_where_the_specification_puts_them() {
        let memory = Region::heap(128).unwrap();
        let region = InflightSplit::new(memory.window(0, 128).unwrap(), 4).unwrap();
        assert_eq!(region.version(), 0);
        region.start(0x0102);
        region.take(2, 0x1122_3344_5566_7788);
        region.take(1, 3);
        region.clear(1);
        region.batch(2, 0x0304);
        let mut bytes = [0; 64];
        memory.slice(0, 64).unwrap().read(&mut bytes);
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        assert_eq!(bytes[..8], [0; 8]);
        assert_eq!([8, 10, 12, 14].map(number), [1, 4, 2, 0x0102]);
        assert_eq!((bytes[32], bytes[48], number(54)), (0, 1, 0x0304));
        assert_eq!(bytes[56..64], 0x1122_3344_5566_7788_u64.to_ne_bytes());
        let entry = InflightSplitEntry {
            inflight: 1,
            next: 0x0304,
            counter: 0x1122_3344_5566_7788,
        };
        assert_eq!((region.entry(2), region.entry(4)), (Some(entry), None));
        region.settle(9);
        assert_eq!((region.used_idx(), region.last_batch_head()), (9, 2));
    }

    #[test]
    fn packed_fields_lie_where_the_specification_puts_them() {
        let memory = Region::heap(192).unwrap();
        let region = InflightPacked::new(memory.window(0, 192).unwrap(), 3).unwrap();
        region.start(0x8001);
        let entry = InflightPackedEntry {
            inflight: 1,
            next: 2,
            last: 0x0506,
            num: 0x0708,
            counter: 0x1122_3344_5566_7788,
            id: 0x090A,
            flags: 0x0B0C,
            len: 0x0D0E_0F10,
            address: 0x2122_2324_2526_2728,
        };
        region.set_descriptor(1, &entry);
        region.take(1, &entry);
        region.set_free(0x3132, 0x3334);
        region.set_used(0x0001, 0x8002);
        let mut bytes = [0; 128];
        memory.slice(0, 128).unwrap().read(&mut bytes);
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let header = [8, 10, 12, 14, 16, 18].map(number);
        assert_eq!(header, [1, 3, 0x3132, 0x3334, 1, 2]);
        assert_eq!(bytes[20..22], [0, 1], "wrap counters");
        assert_eq!((number(34), number(98)), (1, 3), "linked one to the next");
        assert_eq!((bytes[64], bytes[65]), (1, 0));
        let fields = [66, 68, 70, 80, 82].map(number);
        assert_eq!(fields, [2, 0x0506, 0x0708, 0x090A, 0x0B0C]);
        assert_eq!(bytes[72..80], entry.counter.to_ne_bytes());
        assert_eq!(bytes[84..88], entry.len.to_ne_bytes());
        assert_eq!(bytes[88..96], entry.address.to_ne_bytes());
        assert_eq!((region.entry(1), region.entry(3)), (Some(entry), None));
        assert_eq!(region.free(), [0x3132, 0x3334]);
        assert_eq!(region.used(), [0x0001, 0x8002]);
    }

    #[test]
    fn a_region_that_does_not_fit_is_refused() {
        let memory = Region::heap(256).unwrap();
        let window = |at, len| memory.window(at, len).unwrap();
        let error = |size, need, len| Some(WindowError::TooSmall { size, need, len });
        assert_eq!(
            InflightSplit::new(window(0, 127), 4).err(),
            error(4, 128, 127)
        );
        assert_eq!(
            InflightPacked::new(window(0, 127), 2).err(),
            error(2, 128, 127)
        );
        assert_eq!(
            InflightPacked::new(window(4, 192), 2).err(),
            Some(WindowError::Unaligned { align: 8 })
        );
        assert_eq!(
            InflightSplit::new(window(0, 256), 0).err(),
            Some(WindowError::Size { size: 0 })
        );
    }
}
