//! What a split device has in flight, written down for its next life
//! (vhost-user, "Inflight I/O tracking").
//!
//! While the device runs, the region is only written. It is read once, when a
//! device starts: nothing that the front end changes later matters.

use alloc::vec::Vec;

use linkspan_mem::fault;
use linkspan_mem::{InflightSplit, RingMemory};

use crate::inflight::{Found, InflightError, Seen, order};

/// The writer of a region.
#[derive(Debug)]
pub(super) struct Tracker<M> {
    region: InflightSplit<M>,
    counter: u64,
    last_batch_head: u16,
    /// Heads pushed and not yet published.
    batch: Vec<u16>,
    /// What an earlier life had in flight, the first one last.
    resubmit: Vec<Found>,
}

impl<M: RingMemory> Tracker<M> {
    /// Begins with a region that nobody has used, or finds out what was in flight
    /// when the last user of it ended, with the used ring at `used_idx`. Says
    /// whether there was a last user.
    pub(super) fn new(
        region: InflightSplit<M>,
        size: u16,
        used_idx: u16,
    ) -> Result<(Self, bool), InflightError> {
        let room = region.size();
        let mut tracker = Self {
            counter: 0,
            last_batch_head: 0,
            batch: fault::try_with_capacity(usize::from(size))?,
            resubmit: fault::try_with_capacity(usize::from(size))?,
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
            region.start(used_idx);
        } else {
            tracker.recover(size, used_idx)?;
        }
        Ok((tracker, !fresh))
    }

    /// vhost-user, "When reconnecting". Interrupted, it can be done again.
    fn recover(&mut self, size: u16, used_idx: u16) -> Result<(), InflightError> {
        let region = &self.region;
        let batch = last_batch(region, size, used_idx)?;
        for index in 0..region.size() {
            let Some(entry) = region.entry(index) else {
                break;
            };
            match entry.inflight {
                0 => {}
                1 if batch.contains(index) => {}
                1 if index >= size => return Err(InflightError::OutOfRange { index, size }),
                1 => self.resubmit.push(Found {
                    index,
                    counter: entry.counter,
                }),
                value => return Err(InflightError::State { index, value }),
            }
        }
        self.counter = order(&mut self.resubmit)?;
        self.last_batch_head = region.last_batch_head().min(size - 1);
        for index in (0..size).filter(|index| batch.contains(*index)) {
            region.clear(index);
        }
        region.settle(used_idx);
        Ok(())
    }

    /// Chains to be resubmitted before new ones are taken.
    #[inline]
    pub(super) fn resubmits(&self) -> u16 {
        // No more than the queue has entries.
        u16::try_from(self.resubmit.len()).unwrap_or(u16::MAX)
    }

    /// The next chain to be resubmitted.
    #[inline]
    pub(super) fn next_resubmit(&mut self) -> Option<u16> {
        Some(self.resubmit.pop()?.index)
    }

    /// A new chain was taken.
    #[inline]
    pub(super) fn take(&mut self, head: u16) {
        self.region.take(head, self.counter);
        // 2^64 requests are not done within one life.
        self.counter = self.counter.wrapping_add(1);
    }

    /// A chain was not used and will be taken again; `again` when it comes from
    /// an earlier life, and so stays in flight.
    pub(super) fn put_back(&mut self, head: u16, again: bool) {
        if again {
            let found = Found {
                index: head,
                counter: 0,
            };
            self.resubmit.push(found);
        } else {
            self.region.clear(head);
        }
    }

    /// A chain was used, which the driver does not see yet.
    #[inline]
    pub(super) fn push(&mut self, head: u16) {
        self.batch.push(head);
    }

    /// The driver is about to see the batch: should we die right after that,
    /// the next life knows it by these links.
    #[inline]
    pub(super) fn before_publish(&mut self) {
        for &head in &self.batch {
            self.region.batch(head, self.last_batch_head);
            self.last_batch_head = head;
        }
    }

    /// The driver sees the batch.
    #[inline]
    pub(super) fn after_publish(&mut self, used_idx: u16) {
        for head in self.batch.drain(..) {
            self.region.clear(head);
        }
        self.region.settle(used_idx);
    }
}

/// The heads that the driver has seen used and that may still be marked.
fn last_batch<M: RingMemory>(
    region: &InflightSplit<M>,
    size: u16,
    used_idx: u16,
) -> Result<Seen, InflightError> {
    let mut seen = Seen::new(size)?;
    let count = used_idx.wrapping_sub(region.used_idx());
    let mut head = region.last_batch_head();
    if count != 0 && never_settled(region, count, head) {
        return Ok(seen);
    }
    if count > size {
        return Err(InflightError::Batch { count, size });
    }
    for _ in 0..count {
        seen.add(head)?;
        head = region.entry(head).map_or(0, |entry| entry.next);
    }
    Ok(seen)
}

/// Whether the region's used index was never set at all: some back ends leave it
/// at 0 until they use something, even if the ring is further on already, and
/// the request at descriptor 0 is not to be forgotten for that (SPDK #3766).
/// Head 0 cannot be twice in one batch, so from 2 on there is no doubt; a count
/// of 1 is taken as the specification takes it.
fn never_settled<M: RingMemory>(region: &InflightSplit<M>, count: u16, head: u16) -> bool {
    let links_itself = || region.entry(0).is_some_and(|entry| entry.next == 0);
    region.used_idx() == 0 && head == 0 && count > 1 && links_itself()
}
