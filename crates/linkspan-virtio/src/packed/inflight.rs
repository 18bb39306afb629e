//! What a packed device has in flight, written down for its next life
//! (vhost-user, "Inflight I/O tracking"). Used descriptors overwrite available
//! ones, so the region holds copies of the latter, in chains and a free list.
//!
//! While the device runs, the region is only written: links and heads are kept
//! here too, where the front end cannot change them.

use alloc::vec::Vec;

use linkspan_mem::fault;
use linkspan_mem::{InflightPacked, InflightPackedEntry, PackedDescriptor, PackedRing, RingMemory};

use super::position::Position;
use crate::descriptor::VIRTQ_DESC_F_NEXT;
use crate::inflight::{Found, InflightError, Seen, order};

/// The writer of a region.
#[derive(Debug)]
pub(super) struct Tracker<M> {
    region: InflightPacked<M>,
    counter: u64,
    /// The entries as we know them. Of an entry in use only `next` and, in a
    /// head, `last` and `num` count, unless it is still to be resubmitted.
    entries: Vec<InflightPackedEntry>,
    free_head: u16,
    /// Entries of the chain that is being taken, and the last of them.
    staged: u16,
    staged_last: u16,
    /// Entries whose chains were pushed and not yet published.
    batch: Vec<u16>,
    used: Position,
    /// What an earlier life had in flight, the first one last.
    resubmit: Vec<Found>,
}

impl<M: RingMemory> Tracker<M> {
    /// Begins with a region that nobody has used, for a device that stands at
    /// `used`, or finds out what was in flight when the last user of it ended.
    /// Says how many descriptors were, if there was a last user.
    pub(super) fn new(
        region: InflightPacked<M>,
        ring: &PackedRing<M>,
        used: Position,
    ) -> Result<(Self, Option<u16>), InflightError> {
        let (room, size) = (region.size(), ring.size());
        let mut tracker = Self {
            counter: 0,
            entries: fault::try_with_capacity(usize::from(room))?,
            free_head: 0,
            staged: 0,
            staged_last: 0,
            batch: fault::try_with_capacity(usize::from(size))?,
            used,
            resubmit: fault::try_with_capacity(usize::from(room))?,
            region,
        };
        let (region, desc_num) = (&tracker.region, tracker.region.desc_num());
        let fresh = match region.version() {
            0 => true,
            1 => false,
            version => return Err(InflightError::Version { version }),
        };
        // A queue may be smaller than the front end said it could be.
        if room < size || !fresh && desc_num != room {
            return Err(InflightError::Size {
                desc_num,
                room,
                size,
            });
        }
        if fresh {
            region.start(used.bits());
        }
        let read = (0..room).map_while(|index| tracker.region.entry(index));
        tracker.entries.extend(read);
        let held = if fresh {
            None
        } else {
            Some(tracker.recover(ring)?)
        };
        Ok((tracker, held))
    }

    /// vhost-user, "When reconnecting". Nothing is written before all is checked;
    /// interrupted after that, it can be done again.
    fn recover(&mut self, ring: &PackedRing<M>) -> Result<u16, InflightError> {
        let (free, used) = self.last_step(ring)?;
        let room = self.region.size();
        let mut seen = Seen::new(room)?;
        let mut index = free;
        while index != room {
            seen.add(index)?;
            index = self.entries[usize::from(index)].next;
        }
        let undone = self.find_chains(&mut seen, ring.size())?;
        if let Some(index) = (0..room).find(|index| !seen.contains(*index)) {
            return Err(InflightError::Lost { index });
        }
        let mut held: u16 = 0;
        for found in &self.resubmit {
            // Disjoint chains of at most 2^15 entries in all.
            held += self.entries[usize::from(found.index)].num;
        }
        if held > ring.size() {
            let (count, size) = (held, ring.size());
            return Err(InflightError::TooMany { count, size });
        }
        self.counter = order(&mut self.resubmit)?;
        self.free_head = free;
        self.used = used;
        for index in undone {
            self.region.clear(index);
        }
        self.region.set_free(free, free);
        self.region.set_used(used.bits(), used.bits());
        take_back(ring, used, held);
        Ok(held)
    }

    /// Where the last life was when all that it had begun was either done or
    /// undone: the head of the free list and the position in the ring.
    fn last_step(&self, ring: &PackedRing<M>) -> Result<(u16, Position), InflightError> {
        let ([free, old_free], [used, old_used]) = (self.region.free(), self.region.used());
        for bits in [used, old_used] {
            let (position, size) = (Position::from_bits(bits).index, ring.size());
            if position >= size {
                return Err(InflightError::Position { position, size });
            }
        }
        let old = Position::from_bits(old_used);
        // The flags of the first descriptor show the whole batch to the driver.
        let shown = || !old.is_available(ring.flags(old.index));
        Ok(if used != old_used && shown() {
            (free, Position::from_bits(used))
        } else {
            (old_free, old)
        })
    }

    /// Fills the list of chains to be resubmitted, `seen` being the free entries
    /// and then all; gives the free entries that are marked as in flight.
    fn find_chains(&mut self, seen: &mut Seen, size: u16) -> Result<Vec<u16>, InflightError> {
        let room = self.region.size();
        let mut undone = fault::try_with_capacity(usize::from(room))?;
        let mut heads = fault::try_with_capacity(usize::from(room))?;
        for (index, entry) in (0..room).zip(&self.entries) {
            match entry.inflight {
                0 => {}
                1 if seen.contains(index) => undone.push(index),
                1 => heads.push(index),
                value => return Err(InflightError::State { index, value }),
            }
        }
        for index in heads {
            let head = &self.entries[usize::from(index)];
            let (num, wrong) = (
                head.num,
                InflightError::Length {
                    index,
                    num: head.num,
                },
            );
            if num == 0 || num > size {
                return Err(wrong);
            }
            let mut at = index;
            for left in (0..num).rev() {
                seen.add(at)?;
                let entry = &self.entries[usize::from(at)];
                let ends = entry.flags & VIRTQ_DESC_F_NEXT == 0;
                if ends != (left == 0) || ends && at != head.last {
                    return Err(wrong);
                }
                at = entry.next;
            }
            let counter = head.counter;
            self.resubmit.push(Found { index, counter });
        }
        Ok(undone)
    }

    /// Where the device stands with all that was published.
    pub(super) fn used(&self) -> Position {
        self.used
    }

    /// Chains to be resubmitted before new ones are taken.
    #[inline]
    pub(super) fn resubmits(&self) -> u16 {
        // No more than the queue has entries.
        u16::try_from(self.resubmit.len()).unwrap_or(u16::MAX)
    }

    /// The entry of the next chain to be resubmitted.
    #[inline]
    pub(super) fn next_resubmit(&mut self) -> Option<u16> {
        Some(self.resubmit.pop()?.index)
    }

    /// The descriptor at `entry` as it was when it was taken, and the next entry.
    pub(super) fn copied(&self, entry: u16) -> (PackedDescriptor, u16) {
        let entry = &self.entries[usize::from(entry)];
        let copied = PackedDescriptor {
            address: entry.address,
            len: entry.len,
            id: entry.id,
            flags: entry.flags,
        };
        (copied, entry.next)
    }

    /// Begins to take a chain; one that was begun before counts as never begun.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.staged = 0;
        self.staged_last = self.free_head;
    }

    /// Copies the next descriptor of the chain. The queue has seen to it that no
    /// more are in flight than the ring has, so an entry is free.
    #[inline]
    pub(super) fn stage(&mut self, copied: PackedDescriptor) {
        if self.staged > 0 {
            self.staged_last = self.entries[usize::from(self.staged_last)].next;
        }
        self.staged += 1;
        let entry = InflightPackedEntry {
            id: copied.id,
            flags: copied.flags,
            len: copied.len,
            address: copied.address,
            ..InflightPackedEntry::default()
        };
        self.region.set_descriptor(self.staged_last, &entry);
    }

    /// The chain was taken; gives the entry of its head.
    #[inline]
    pub(super) fn take(&mut self) -> u16 {
        let (index, last) = (self.free_head, self.staged_last);
        self.free_head = self.entries[usize::from(last)].next;
        let head = &mut self.entries[usize::from(index)];
        (head.last, head.num, head.counter) = (last, self.staged, self.counter);
        self.region.take(index, head);
        self.region.set_free(self.free_head, self.free_head);
        // 2^64 requests are not done within one life.
        self.counter = self.counter.wrapping_add(1);
        index
    }

    /// The chain at `entry` was not used and will be taken again; `again` when it
    /// comes from an earlier life, and so stays in flight. An entry that is free
    /// and still marked counts as free, should we die in between.
    pub(super) fn put_back(&mut self, entry: u16, again: bool) {
        if again {
            let found = Found {
                index: entry,
                counter: 0,
            };
            self.resubmit.push(found);
            return;
        }
        let last = self.entries[usize::from(entry)].last;
        self.entries[usize::from(last)].next = self.free_head;
        self.region.set_next(last, self.free_head);
        self.free_head = entry;
        self.region.set_free(entry, entry);
        self.region.clear(entry);
    }

    /// The chain at `entry` was used, which the driver does not see yet. The
    /// region learns of it at the end of the batch: until then chains are taken.
    #[inline]
    pub(super) fn push(&mut self, entry: u16) {
        self.batch.push(entry);
    }

    /// The driver is about to see the batch, with the device at `used` after it:
    /// should we die right after that, the next life takes over from here.
    #[inline]
    pub(super) fn before_publish(&mut self, used: Position) {
        let old_free = self.free_head;
        for &index in &self.batch {
            let last = self.entries[usize::from(index)].last;
            self.entries[usize::from(last)].next = self.free_head;
            self.region.set_next(last, self.free_head);
            self.free_head = index;
        }
        self.region.set_free(self.free_head, old_free);
        self.region.set_used(used.bits(), self.used.bits());
        self.used = used;
    }

    /// The driver sees the batch.
    #[inline]
    pub(super) fn after_publish(&mut self) {
        for index in self.batch.drain(..) {
            self.region.clear(index);
        }
        self.region.set_free(self.free_head, self.free_head);
        self.region.set_used(self.used.bits(), self.used.bits());
    }
}

/// Takes back the used descriptors of a batch that the last life did not come to
/// show: behind the first one, which was not written yet, the driver has looked
/// at none. It would take them for new ones later.
fn take_back<M: RingMemory>(ring: &PackedRing<M>, used: Position, held: u16) {
    let mut at = used;
    for _ in 0..held {
        let mut descriptor = ring.descriptor(at.index);
        if at.is_used(descriptor.flags) {
            descriptor.flags = at.available();
            ring.publish_used(at.index, descriptor);
        }
        at = at.plus(1, ring.size());
    }
}
