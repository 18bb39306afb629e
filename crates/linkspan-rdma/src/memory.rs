//! Memory by number, and buffers for messages out of a budget that connections share.

use alloc::vec::Vec;

use linkspan_mem::fault::{Injected, Site, point};
use linkspan_mem::{Region, SharedSlice};

use crate::verbs::{MemoryId, PostError, Slice};

/// The memory that a provider knows.
#[derive(Debug, Default)]
pub struct Memories {
    regions: Vec<Option<Region>>,
}

impl Memories {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes memory known.
    ///
    /// # Errors
    /// When there is no room for its number.
    pub fn add(&mut self, region: Region) -> Result<MemoryId, Injected> {
        point(Site::Alloc)?;
        let free = self.regions.iter().position(Option::is_none);
        let at = free.unwrap_or(self.regions.len());
        if free.is_none() {
            self.regions.push(None);
        }
        self.regions[at] = Some(region);
        let refused = Injected { site: Site::Alloc };
        u32::try_from(at).map(MemoryId).map_err(|_| refused)
    }

    /// Forgets memory. Work that names it then ends its connection, or, if the number was
    /// given to other memory since, means that.
    pub fn remove(&mut self, memory: MemoryId) -> Option<Region> {
        self.regions.get_mut(memory.0 as usize)?.take()
    }

    /// The memory of that number.
    #[must_use]
    #[inline]
    pub fn region(&self, memory: MemoryId) -> Option<&Region> {
        self.regions.get(memory.0 as usize)?.as_ref()
    }

    /// The bytes of a slice; `None` if they are not there.
    #[must_use]
    #[inline]
    pub fn slice(&self, slice: Slice) -> Option<SharedSlice<'_>> {
        let region = self.region(slice.memory)?;
        region.slice(slice.offset, slice.len.into()).ok()
    }

    /// Whether all of these are there.
    ///
    /// # Errors
    /// The first that is not.
    #[inline]
    pub fn check(&self, slices: &[Slice]) -> Result<(), PostError> {
        for slice in slices {
            if self.slice(*slice).is_none() {
                return Err(PostError::Memory { slice: *slice });
            }
        }
        Ok(())
    }

    /// The checksum of what `crc` stands for and these bytes.
    #[must_use]
    pub fn crc32c(&self, slice: Slice, crc: u32) -> u32 {
        self.slice(slice).map_or(crc, |bytes| bytes.crc32c(crc))
    }
}

/// Bytes that are allocated at a time.
const SLAB_BYTES: usize = 64 << 10;

/// Buffers of one size, allocated when they are first needed, up to a budget.
#[derive(Debug)]
pub struct Pool {
    size: u32,
    budget: usize,
    allocated: usize,
    free: Vec<Slice>,
    slabs: Vec<MemoryId>,
    lent: usize,
    /// Which buffers of each slab somebody has: each comes back once.
    #[cfg(debug_assertions)]
    owned: Vec<Vec<bool>>,
    /// Buffers that may be taken until that is said again.
    allowed: usize,
}

impl Pool {
    /// Buffers of `size` bytes, which all together take at most `budget`, but for one
    /// slab of 64 KiB, or of one buffer, that is always possible.
    #[must_use]
    pub fn new(size: u32, budget: usize) -> Self {
        Self {
            // Each begins at a cache line.
            size: size.max(1).next_multiple_of(64),
            budget,
            allocated: 0,
            free: Vec::new(),
            slabs: Vec::new(),
            lent: 0,
            #[cfg(debug_assertions)]
            owned: Vec::new(),
            allowed: usize::MAX,
        }
    }

    /// Bytes of a buffer.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Bytes allocated, and buffers that are lent.
    #[must_use]
    pub fn used(&self) -> (usize, usize) {
        (self.allocated, self.lent)
    }

    /// The most buffers that can be lent at a time.
    #[must_use]
    pub fn most(&self) -> usize {
        let (count, bytes) = self.slab();
        (self.budget / bytes).max(1).saturating_mul(count)
    }

    /// Buffers of a slab, and its bytes.
    fn slab(&self) -> (usize, usize) {
        let size = self.size as usize;
        let count = (SLAB_BYTES / size).max(1);
        (count, count * size)
    }

    /// At most so many buffers are lent until this is said again: what somebody has left of
    /// a share.
    pub fn allow(&mut self, count: usize) {
        self.allowed = count;
    }

    /// A buffer; `None` if the budget is spent, no more are [allowed](Self::allow), or the
    /// machine has no memory.
    pub fn take(&mut self, memories: &mut Memories) -> Option<Slice> {
        self.take_by(|region| memories.add(region))
    }

    /// The same where somebody else has the memory: `add` makes it known there.
    pub fn take_by(
        &mut self,
        add: impl FnOnce(Region) -> Result<MemoryId, Injected>,
    ) -> Option<Slice> {
        let allowed = self.allowed.checked_sub(1)?;
        if self.free.is_empty() {
            self.grow(add)?;
        }
        let buffer = self.free.pop()?;
        self.allowed = allowed;
        self.lent += 1;
        #[cfg(debug_assertions)]
        self.changes_owner(buffer, true);
        Some(buffer)
    }

    /// Takes back a buffer, of which any part from its begin on is given.
    #[inline]
    pub fn put(&mut self, buffer: Slice) {
        #[cfg(debug_assertions)]
        self.changes_owner(buffer, false);
        assert!(self.lent > 0, "no buffer is lent: {buffer:?}");
        self.lent -= 1;
        self.free.push(Slice {
            len: self.size,
            ..buffer
        });
    }

    /// Who gives a buffer back has it, and who is given one has not.
    #[cfg(debug_assertions)]
    fn changes_owner(&mut self, buffer: Slice, lent: bool) {
        let slab = self.slabs.iter().position(|slab| *slab == buffer.memory);
        let index = usize::try_from(buffer.offset / u64::from(self.size)).unwrap_or(usize::MAX);
        let begins = buffer.offset.is_multiple_of(self.size.into());
        let Some(owned) = slab
            .and_then(|slab| self.owned[slab].get_mut(index))
            .filter(|_| begins)
        else {
            panic!("{buffer:?} is no buffer of these");
        };
        assert_ne!(*owned, lent, "{buffer:?} is lent, or comes back, twice");
        *owned = lent;
    }

    /// Gives all memory back, that of buffers that are lent included.
    pub fn give_up(&mut self, memories: &mut Memories) {
        for slab in self.slabs.drain(..) {
            memories.remove(slab);
        }
        self.free.clear();
        #[cfg(debug_assertions)]
        self.owned.clear();
        (self.allocated, self.lent) = (0, 0);
    }

    fn grow(&mut self, add: impl FnOnce(Region) -> Result<MemoryId, Injected>) -> Option<()> {
        let size = self.size as usize;
        let (count, bytes) = self.slab();
        if !self.slabs.is_empty() && self.allocated + bytes > self.budget {
            return None;
        }
        let region = Region::heap(bytes).ok()?;
        self.free.try_reserve(count).ok()?;
        self.slabs.try_reserve(1).ok()?;
        let memory = add(region).ok()?;
        self.slabs.push(memory);
        #[cfg(debug_assertions)]
        self.owned.push(alloc::vec![false; count]);
        self.allocated += bytes;
        // The first one first.
        for at in (0..count).rev() {
            self.free.push(Slice {
                memory,
                len: self.size,
                offset: (at * size) as u64,
            });
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_known_until_it_is_removed() {
        let mut memories = Memories::new();
        let first = memories.add(Region::heap(10).unwrap()).unwrap();
        let second = memories.add(Region::heap(20).unwrap()).unwrap();
        let slice = |memory, offset, len| Slice {
            memory,
            len,
            offset,
        };
        assert_eq!(
            memories.check(&[slice(first, 0, 10), slice(second, 20, 0)]),
            Ok(())
        );
        let outside = slice(first, 1, 10);
        assert_eq!(
            memories.check(&[slice(second, 0, 20), outside]),
            Err(PostError::Memory { slice: outside })
        );
        assert_eq!(memories.remove(first).unwrap().len(), 10);
        assert!(memories.slice(slice(first, 0, 0)).is_none());
        assert!(memories.remove(first).is_none() && memories.remove(MemoryId(9)).is_none());
        let third = memories.add(Region::heap(30).unwrap()).unwrap();
        assert_eq!(third, first);
    }

    #[test]
    fn a_pool_lends_what_its_budget_allows_and_takes_it_back() {
        let mut memories = Memories::new();
        let mut pool = Pool::new(1364, 200 << 10);
        assert_eq!((pool.size(), pool.used()), (1408, (0, 0)));
        let mut lent = Vec::new();
        while let Some(buffer) = pool.take(&mut memories) {
            assert!(memories.slice(buffer).is_some());
            lent.push(buffer);
        }
        assert_eq!(lent.len(), 3 * (SLAB_BYTES / 1408));
        assert_eq!(lent.len(), pool.most());
        let mut starts: Vec<(MemoryId, u64)> =
            lent.iter().map(|it| (it.memory, it.offset)).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), lent.len());
        let count = lent.len();
        for buffer in lent {
            pool.put(buffer.part(0, 7));
        }
        assert_eq!(pool.used().1, 0);
        for _ in 0..count {
            assert_eq!(pool.take(&mut memories).map(|it| it.len), Some(1408));
        }
        assert!(pool.take(&mut memories).is_none());
    }

    /// Two others are lent meanwhile, so that the number alone does not tell.
    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "is lent, or comes back, twice")]
    fn a_buffer_that_comes_back_twice_is_found() {
        let mut memories = Memories::new();
        let mut pool = Pool::new(64, 1 << 20);
        let lent = [(); 3].map(|()| pool.take(&mut memories).unwrap());
        pool.put(lent[1].part(0, 7));
        pool.put(lent[1].part(0, 9));
    }

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "is no buffer of these")]
    fn the_middle_of_a_buffer_is_none() {
        let mut memories = Memories::new();
        let mut pool = Pool::new(64, 1 << 20);
        let lent = pool.take(&mut memories).unwrap();
        pool.put(lent.part(8, 7));
    }

    #[test]
    fn no_more_are_lent_than_are_allowed() {
        let mut memories = Memories::new();
        let mut pool = Pool::new(64, 1 << 20);
        pool.allow(2);
        let lent = [(); 3].map(|()| pool.take(&mut memories));
        assert_eq!(lent.map(|it| it.is_some()), [true, true, false]);
        pool.allow(1);
        assert!(pool.take(&mut memories).is_some() && pool.take(&mut memories).is_none());
    }

    #[test]
    fn one_buffer_is_always_possible() {
        let mut memories = Memories::new();
        let mut pool = Pool::new(1 << 20, 0);
        assert_eq!(pool.most(), 1);
        assert!(pool.take(&mut memories).is_some());
        assert!(pool.take(&mut memories).is_none());
    }
}
