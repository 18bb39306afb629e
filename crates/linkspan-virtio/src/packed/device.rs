//! The device's side of a packed virtqueue.
//!
//! Used as the split one is (see [`SplitDevice`](crate::split::SplitDevice)).
//! A packed ring has no indices, so [`refresh`](PackedDevice::refresh) says only
//! whether a chain waits, and [`pop`](PackedDevice::pop) looks at the ring itself.

use alloc::boxed::Box;

use linkspan_mem::fault;
use linkspan_mem::{
    Address, AddressSpace, EventSuppression, InflightPacked, PackedDescriptor, PackedRing,
    RingMemory, publish_then_check,
};

use super::inflight::Tracker;
use super::position::{OWNER, Position};
use super::walk::{fill_one, walk};
use super::{RING_EVENT_FLAGS_DESC, RING_EVENT_FLAGS_DISABLE, RING_EVENT_FLAGS_ENABLE, wanted};
use crate::chain::Chain;
use crate::descriptor::VIRTQ_DESC_F_WRITE;
use crate::features::Features;
use crate::inflight::InflightError;
use crate::order::Order;
use crate::queue::{FIRST_NOTIFY, NotQuiet, QueueError, QueueState, RestoreError, StartError};
use crate::saved::{self, SNAPSHOT_LEN, Saved, load, save};

/// The device's side of a packed virtqueue (virtio 1.3 2.8).
///
/// After the first [`QueueError`] the queue is retired: every call gives that
/// error and leaves the ring alone.
#[derive(Debug)]
pub struct PackedDevice<M> {
    ring: PackedRing<M>,
    features: Features,
    /// From the features, as the hot path asks for them.
    event_idx: bool,
    indirect: bool,
    next_available: Position,
    next_used: Position,
    published_used: Position,
    /// Descriptors from `published_used` to `next_available`: those that the
    /// driver must not touch.
    held: u16,
    /// Whether as many chains were there as were wanted last: the driver is ahead.
    behind: bool,
    /// Used descriptors pushed and not yet published, by chains.
    unpublished: u16,
    /// The first one and its index: written last, so that the driver sees the batch
    /// whole.
    withheld: Option<(u16, PackedDescriptor)>,
    /// Descriptors published since `notify_wanted` last said what they mean.
    unnotified: u32,
    /// Whether the driver may believe that we want notifications.
    armed: bool,
    /// One bit for each buffer id that is with the device.
    taken: Box<[u64; ID_WORDS]>,
    in_flight: u16,
    /// With `VIRTIO_F_IN_ORDER`, what is in flight, and the used descriptor of the run
    /// of chains that the next one may go on. It is not in the ring yet.
    order: Option<Order>,
    run: Option<Used>,
    inflight: Option<Tracker<M>>,
    retired: Option<QueueError>,
}

/// A used descriptor and its place.
#[derive(Clone, Copy, Debug)]
struct Used {
    at: Position,
    id: u16,
    written: u32,
}

/// Descriptors in a cache line.
const LINE: u16 = 4;

/// Words of a set of all buffer ids: a driver may choose any.
const ID_WORDS: usize = (1 << 16) / 64;

impl<M: RingMemory> PackedDevice<M> {
    /// Serves `ring` from `state` on, with the features that the driver accepted.
    /// A new ring begins at [`START`](super::START).
    ///
    /// # Errors
    /// When the ring has no such positions, or memory for the set of chains in
    /// flight cannot be had.
    pub fn new(
        ring: PackedRing<M>,
        features: Features,
        state: QueueState,
    ) -> Result<Self, StartError> {
        assert!(
            features.contains(Features::VIRTIO_F_RING_PACKED),
            "a split ring is not a packed ring"
        );
        let size = ring.size();
        let next_available = Position::checked(state.next_available, size)?;
        let next_used = Position::checked(state.next_used, size)?;
        let apart = next_available.since(next_used, size);
        let held = match u16::try_from(apart) {
            Ok(held) if held <= size => held,
            _ => return Err(StartError::Apart { apart, size }),
        };
        let mut taken = fault::try_with_capacity(ID_WORDS)?;
        taken.resize(ID_WORDS, 0_u64);
        let taken = taken.into_boxed_slice().try_into();
        let taken = taken.expect("as many words as that");
        let in_order = features.contains(Features::VIRTIO_F_IN_ORDER);
        Ok(Self {
            ring,
            features,
            event_idx: features.contains(Features::VIRTIO_F_EVENT_IDX),
            indirect: features.contains(Features::VIRTIO_F_INDIRECT_DESC),
            next_available,
            next_used,
            published_used: next_used,
            held,
            behind: false,
            unpublished: 0,
            withheld: None,
            unnotified: FIRST_NOTIFY,
            armed: true,
            taken,
            in_flight: 0,
            order: in_order.then(|| Order::new(size)).transpose()?,
            run: None,
            inflight: None,
            retired: None,
        })
    }

    /// Writes down in `region` what is in flight, from now on. What an earlier
    /// life left there in flight is popped first, in the order in which it was
    /// taken then, and the device goes on from where that life stood, whatever
    /// the base was.
    ///
    /// # Errors
    /// When the region is not one that a device left.
    ///
    /// # Panics
    /// When chains were popped before.
    pub fn track(mut self, region: InflightPacked<M>) -> Result<Self, InflightError> {
        assert!(
            self.in_flight == 0 && self.unpublished == 0,
            "tracking begins before the first chain"
        );
        let (tracker, held) = Tracker::new(region, &self.ring, self.next_used)?;
        if let Some(held) = held {
            self.next_used = tracker.used();
            self.published_used = self.next_used;
            self.next_available = self.next_used.plus(held, self.ring.size());
            self.held = held;
        }
        self.inflight = Some(tracker);
        Ok(self)
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The ring.
    pub fn ring(&self) -> &PackedRing<M> {
        &self.ring
    }

    /// The error that retired the queue.
    pub fn retired(&self) -> Option<QueueError> {
        self.retired
    }

    /// Chains that were popped and not yet pushed.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Where the device stands. Chains in flight lie before `next_available`.
    pub fn state(&self) -> QueueState {
        QueueState {
            next_available: self.next_available.bits(),
            next_used: self.next_used.bits(),
        }
    }

    /// Looks whether a chain waits, and says how many do at least; what it
    /// consists of is visible afterwards.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn refresh(&mut self) -> Result<u16, QueueError> {
        self.check()?;
        let flags = self.ring.flags(self.next_available.index);
        let waiting = u16::from(self.next_available.is_available(flags));
        Ok(waiting.saturating_add(self.resubmits()))
    }

    /// Takes the next chain; `false` when none is available. Chains of an earlier
    /// life come first.
    ///
    /// # Errors
    /// Whatever is wrong with the chain.
    #[inline]
    pub fn pop<A: Address>(
        &mut self,
        space: &AddressSpace<A>,
        chain: &mut Chain,
    ) -> Result<bool, QueueError> {
        self.check()?;
        let again = self.inflight.as_mut().and_then(Tracker::next_resubmit);
        let walked = match again {
            Some(entry) => self.walk_copies(space, chain, entry),
            None => {
                let first = self.ring.descriptor(self.next_available.index);
                if !self.next_available.is_available(first.flags) {
                    return Ok(false);
                }
                self.walk_ring(space, chain, first)
            }
        };
        if let Err(error) = walked {
            return Err(self.retire(error));
        }
        let id = chain.id();
        let (word, bit) = place(id);
        if self.taken[word] & bit != 0 {
            return Err(self.retire(QueueError::HeadInFlight { head: id }));
        }
        self.taken[word] |= bit;
        self.in_flight += 1;
        if let Some(order) = &mut self.order {
            order.add(id);
        }
        chain.again = again.is_some();
        chain.taken_at = self.next_available.bits();
        if again.is_none() {
            self.next_available = self.next_available.plus(chain.slots, self.ring.size());
            self.held += chain.slots;
            if let Some(inflight) = &mut self.inflight {
                chain.entry = inflight.take();
            }
        }
        Ok(true)
    }

    /// [Takes](Self::pop) as many chains as there are, but no more than `chains` has room
    /// for, and says how many.
    ///
    /// # Errors
    /// Whatever is wrong with the first of them: those before one that is wrong are
    /// handed out, and the next call has the error.
    #[inline(never)]
    pub fn pop_many<A: Address>(
        &mut self,
        space: &AddressSpace<A>,
        chains: &mut [Chain],
    ) -> Result<usize, QueueError> {
        let mut done = 0;
        loop {
            self.check()?;
            done += self.pop_plain(space, &mut chains[done..]);
            // What is not as plain as that, is wrong, or is not there.
            let Some(chain) = chains.get_mut(done) else {
                self.behind = true;
                return Ok(done);
            };
            let earlier = self.resubmits() > 0;
            match self.pop(space, chain) {
                Ok(true) => done += 1,
                Ok(false) => {
                    self.behind = false;
                    return Ok(done);
                }
                // What is wrong is found again when those that are sound are done. One of
                // an earlier life would not be.
                Err(_) if done > 0 && !earlier => {
                    self.retired = None;
                    return Ok(done);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes chains as long as each is one descriptor for one piece of memory, as most
    /// are, and nothing is wrong with it; says how many.
    #[inline(always)]
    fn pop_plain<A: Address>(&mut self, space: &AddressSpace<A>, chains: &mut [Chain]) -> usize {
        if self.inflight.is_some() {
            return 0;
        }
        let size = self.ring.size();
        let mut at = self.next_available;
        let mut available = at.available();
        let mut count = 0;
        for chain in chains.iter_mut().take(usize::from(size - self.held)) {
            let only = self.ring.descriptor(at.index);
            let (word, bit) = place(only.id);
            let plain = only.flags & OWNER == available
                && self.taken[word] & bit == 0
                && fill_one(space, chain, only);
            if !plain {
                break;
            }
            self.taken[word] |= bit;
            if self.behind && at.index.is_multiple_of(LINE) {
                // No further: the driver is about to write there, if it has not yet.
                let ahead = at.plus((2 * LINE).min(size), size);
                self.ring.prefetch_descriptor(ahead.index);
            }
            if let Some(order) = &mut self.order {
                order.add(only.id);
            }
            (chain.again, chain.taken_at) = (false, at.bits());
            at.index += 1;
            if at.index == size {
                (at.index, at.wrap) = (0, !at.wrap);
                available = at.available();
            }
            count += 1;
        }
        self.next_available = at;
        self.held += count;
        self.in_flight += count;
        usize::from(count)
    }

    /// Undoes the [`pop`](Self::pop) of `chain`, which is taken again later: for a
    /// device that finds a chain of no use now and cannot keep it.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    ///
    /// # Panics
    /// When the chain is not in flight, or another was popped after it and not
    /// put back.
    pub fn put_back(&mut self, chain: &Chain) -> Result<(), QueueError> {
        self.check()?;
        let id = chain.id();
        let (word, bit) = place(id);
        assert!(self.taken[word] & bit != 0, "chain {id} is not in flight");
        let taken_at = Position::from_bits(chain.taken_at);
        let behind = || taken_at.plus(chain.slots, self.ring.size());
        assert!(
            chain.again || behind() == self.next_available,
            "chain {id} is not the last that was taken"
        );
        if let Some(order) = &mut self.order {
            let newest = order.remove_newest();
            assert!(newest == Some(id), "chain {id} is not the newest in flight");
        }
        self.taken[word] &= !bit;
        self.in_flight -= 1;
        if !chain.again {
            self.next_available = taken_at;
            self.held -= chain.slots;
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.put_back(chain.entry, chain.again);
        }
        Ok(())
    }

    /// Says that the device is done with `chain`, of which it wrote the first
    /// `written` writable bytes. The driver does not see it yet.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    ///
    /// # Panics
    /// When the chain is not in flight, or not the oldest in flight although
    /// `VIRTIO_F_IN_ORDER` was accepted, or `written` is more than it can hold:
    /// all are mistakes of the device.
    #[inline]
    pub fn push(&mut self, chain: &Chain, written: u32) -> Result<(), QueueError> {
        self.check()?;
        self.push_one(chain, written);
        Ok(())
    }

    /// The same for many chains, each with what was written of it.
    ///
    /// # Errors
    /// As for [`push`](Self::push).
    ///
    /// # Panics
    /// As for [`push`](Self::push).
    #[inline(never)]
    pub fn push_many<'a>(
        &mut self,
        chains: impl Iterator<Item = (&'a Chain, u32)>,
    ) -> Result<(), QueueError> {
        self.check()?;
        for (chain, written) in chains {
            self.push_one(chain, written);
        }
        Ok(())
    }

    #[inline(always)]
    fn push_one(&mut self, chain: &Chain, written: u32) {
        let id = chain.id();
        let (word, bit) = place(id);
        let taken = &mut self.taken[word];
        assert!(*taken & bit != 0, "chain {id} is not in flight");
        *taken &= !bit;
        self.in_flight -= 1;
        assert!(
            written <= chain.writable_total(),
            "{written} bytes do not fit into chain {id}"
        );
        if let Some(order) = &mut self.order {
            let oldest = order.remove_oldest();
            assert!(oldest == Some(id), "chain {id} is not the oldest in flight");
        }
        // In order, one used descriptor serves for a run of chains: those before
        // the last must have been used completely (virtio 1.3 2.8.9).
        let at = self.run.take().map_or(self.next_used, |run| run.at);
        let used = Used { at, id, written };
        if self.order.is_some() && written == chain.writable_total() {
            self.run = Some(used);
        } else {
            self.write_used(used);
        }
        self.next_used = self.next_used.plus(chain.slots, self.ring.size());
        self.unpublished += 1;
        if let Some(inflight) = &mut self.inflight {
            inflight.push(chain.entry);
        }
    }

    /// Writes a used descriptor, but for the first one of a batch.
    #[inline]
    fn write_used(&mut self, Used { at, id, written }: Used) {
        let wrote = if written == 0 { 0 } else { VIRTQ_DESC_F_WRITE };
        let used = PackedDescriptor {
            address: 0,
            len: written,
            id,
            flags: at.used() | wrote,
        };
        match self.withheld {
            Some((first, _)) if first != at.index => self.ring.set_used(at.index, used),
            _ => self.withheld = Some((at.index, used)),
        }
    }

    /// See [`SplitDevice::end_run`](crate::split::SplitDevice::end_run). The first
    /// descriptor of a batch comes with [`publish`](Self::publish) alone.
    #[inline]
    pub fn end_run(&mut self) {
        if let Some(used) = self.run.take() {
            self.write_used(used);
        }
    }

    /// Shows the driver all that was pushed, with one store.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn publish(&mut self) -> Result<(), QueueError> {
        self.check()?;
        self.end_run();
        let Some((index, used)) = self.withheld.take() else {
            return Ok(());
        };
        if let Some(inflight) = &mut self.inflight {
            inflight.before_publish(self.next_used);
        }
        self.ring.publish_used(index, used);
        if let Some(inflight) = &mut self.inflight {
            inflight.after_publish();
        }
        let size = self.ring.size();
        // At least one chain and at most all that is held, so never 0 for a round.
        let count = self.next_used.since(self.published_used, size);
        self.held -= u16::try_from(count).unwrap_or(self.held);
        self.published_used = self.next_used;
        self.unpublished = 0;
        self.unnotified = self.unnotified.saturating_add(count);
        Ok(())
    }

    /// Whether the driver wants to hear of what was published since the last
    /// call (virtio 1.3 2.8.10). The first call says yes: what an earlier life of
    /// the device published may never have been notified.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn notify_wanted(&mut self) -> Result<bool, QueueError> {
        self.check()?;
        let count = core::mem::take(&mut self.unnotified);
        if count == 0 {
            return Ok(false);
        }
        publish_then_check();
        let event = self.ring.driver_event();
        let (new, size) = (self.published_used, self.ring.size());
        Ok(count >= FIRST_NOTIFY || wanted(event, self.event_idx, new, count, size))
    }

    /// Asks for a notification of the next chain and looks once more: `true`
    /// when chains wait already, so that the device must not sleep.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    pub fn arm(&mut self) -> Result<bool, QueueError> {
        self.check()?;
        if self.event_idx {
            self.ring.set_device_event(EventSuppression {
                position: self.next_available.bits(),
                flags: RING_EVENT_FLAGS_DESC,
            });
        } else {
            self.ring.set_device_event_flags(RING_EVENT_FLAGS_ENABLE);
        }
        self.armed = true;
        publish_then_check();
        Ok(self.refresh()? != 0)
    }

    /// Asks for no notifications, as the device is awake.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn disarm(&mut self) -> Result<(), QueueError> {
        self.check()?;
        if self.armed {
            self.ring.set_device_event_flags(RING_EVENT_FLAGS_DISABLE);
        }
        self.armed = false;
        Ok(())
    }

    /// Retires the queue, for a device that cannot answer what it popped; gives
    /// the error that counts, which is the first.
    #[cold]
    pub fn retire(&mut self, error: QueueError) -> QueueError {
        *self.retired.get_or_insert(error)
    }

    /// Saves the queue; see [`restore`](Self::restore).
    ///
    /// # Errors
    /// When chains are in flight, used ones not published, or the queue retired.
    pub fn snapshot(&self) -> Result<[u8; SNAPSHOT_LEN], NotQuiet> {
        if self.retired.is_some() {
            return Err(NotQuiet::Retired);
        }
        let count = self.in_flight.saturating_add(self.resubmits());
        if count != 0 {
            return Err(NotQuiet::InFlight { count });
        }
        match self.unpublished {
            0 => {
                let (state, features) = (self.state(), self.features);
                let saved = Saved { state, features };
                Ok(save(saved::PACKED_DEVICE, self.size(), &saved))
            }
            count => Err(NotQuiet::Unpublished { count }),
        }
    }

    /// Serves `ring` from where [`snapshot`](Self::snapshot) stopped.
    ///
    /// # Errors
    /// When the bytes are not those of such a queue.
    pub fn restore(ring: PackedRing<M>, bytes: &[u8]) -> Result<Self, RestoreError> {
        let saved = load(saved::PACKED_DEVICE, ring.size(), bytes)?;
        Ok(Self::new(ring, saved.features, saved.state)?)
    }

    /// Fills `chain` from the ring, whose next descriptor is `first`.
    #[inline]
    fn walk_ring<A: Address>(
        &mut self,
        space: &AddressSpace<A>,
        chain: &mut Chain,
        first: PackedDescriptor,
    ) -> Result<(), QueueError> {
        let (ring, size, start) = (&self.ring, self.ring.size(), self.next_available);
        let (head, free) = (start.index, size - self.held);
        let mut inflight = self.inflight.as_mut();
        if let Some(inflight) = &mut inflight {
            inflight.begin();
        }
        if free == 0 {
            return Err(QueueError::Overrun { head, free, size });
        }
        if let Some(inflight) = &mut inflight {
            inflight.stage(first);
        }
        if fill_one(space, chain, first) {
            return Ok(());
        }
        chain.begin(head);
        let mut count = 0;
        walk(space, self.indirect, chain, || {
            count += 1;
            if count == 1 {
                return Ok(first);
            }
            if count > free {
                return Err(QueueError::Overrun { head, free, size });
            }
            let at = start.plus(count - 1, size);
            let copied = ring.descriptor(at.index);
            if !at.is_available(copied.flags) {
                let position = at.index;
                return Err(QueueError::NotAvailable { head, position });
            }
            if let Some(inflight) = &mut inflight {
                inflight.stage(copied);
            }
            Ok(copied)
        })
    }

    /// Fills `chain` from the copies that an earlier life left, which are looked
    /// at as if they were new.
    #[cold]
    fn walk_copies<A: Address>(
        &mut self,
        space: &AddressSpace<A>,
        chain: &mut Chain,
        entry: u16,
    ) -> Result<(), QueueError> {
        chain.begin(entry);
        chain.entry = entry;
        let mut next = entry;
        let inflight = self.inflight.as_ref();
        walk(space, self.indirect, chain, || {
            // What was recovered ends as its flags say, so there is a next one.
            let (copied, after) = inflight.map_or_else(Default::default, |it| it.copied(next));
            next = after;
            Ok(copied)
        })
    }

    #[inline]
    fn check(&self) -> Result<(), QueueError> {
        match self.retired {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    #[inline]
    fn resubmits(&self) -> u16 {
        self.inflight.as_ref().map_or(0, Tracker::resubmits)
    }
}

/// Word and bit of a buffer id in the set of those taken.
#[inline]
fn place(id: u16) -> (usize, u64) {
    (usize::from(id / 64), 1 << (id % 64))
}
