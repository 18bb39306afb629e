//! The device's side of a split virtqueue.
//!
//! One pass of a device over its queue:
//!
//! 1. [`refresh`](SplitDevice::refresh) reads the driver's index once;
//! 2. [`pop`](SplitDevice::pop) takes each chain of the batch;
//! 3. [`push`](SplitDevice::push) writes a used element for each finished one;
//! 4. [`publish`](SplitDevice::publish) shows them all with one store, and
//!    [`notify_wanted`](SplitDevice::notify_wanted) says whether to notify;
//! 5. before sleeping, [`arm`](SplitDevice::arm) asks for a notification and
//!    looks once more.

use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};
use linkspan_mem::{
    Address, AddressSpace, InflightSplit, RingMemory, SplitRing, UsedElement, publish_then_check,
};

use super::inflight::Tracker;
use super::walk::{walk, walk_one};
use super::{VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY, event_passed};
use crate::chain::Chain;
use crate::features::Features;
use crate::inflight::InflightError;
use crate::order::Order;
use crate::queue::{FIRST_NOTIFY, NotQuiet, QueueError, QueueState, RestoreError};
use crate::saved::{self, SNAPSHOT_LEN, Saved, load, save};

/// The device's side of a split virtqueue (virtio 1.3 2.7).
///
/// After the first [`QueueError`] the queue is retired: every call gives that
/// error and leaves the ring alone.
#[derive(Debug)]
pub struct SplitDevice<M> {
    ring: SplitRing<M>,
    features: Features,
    /// From the features, as the hot path asks for them.
    event_idx: bool,
    indirect: bool,
    next_available: u16,
    /// The driver's index when it was last read.
    seen_available: u16,
    next_used: u16,
    published_used: u16,
    /// Used elements published since `notify_wanted` last said what they mean.
    unnotified: u32,
    /// Whether the driver may believe that we want notifications.
    armed: bool,
    /// One bit for each head that is with the device.
    taken: Vec<u64>,
    in_flight: u16,
    /// With `VIRTIO_F_IN_ORDER`, what is in flight, and the used element of the run of
    /// chains that the next one may go on, with its place. It is not in the ring yet.
    order: Option<Order>,
    run: Option<(u16, UsedElement)>,
    inflight: Option<Tracker<M>>,
    retired: Option<QueueError>,
}

impl<M: RingMemory> SplitDevice<M> {
    /// Serves `ring` from `state` on, with the features that the driver accepted.
    ///
    /// # Errors
    /// When memory for the set of chains in flight cannot be had.
    pub fn new(
        ring: SplitRing<M>,
        features: Features,
        state: QueueState,
    ) -> Result<Self, Injected> {
        assert!(
            !features.contains(Features::VIRTIO_F_RING_PACKED),
            "a packed ring is not a split ring"
        );
        let (size, in_order) = (ring.size(), features.contains(Features::VIRTIO_F_IN_ORDER));
        let words = usize::from(size).div_ceil(64);
        let mut taken = fault::try_with_capacity(words)?;
        taken.resize(words, 0);
        Ok(Self {
            ring,
            features,
            event_idx: features.contains(Features::VIRTIO_F_EVENT_IDX),
            indirect: features.contains(Features::VIRTIO_F_INDIRECT_DESC),
            next_available: state.next_available,
            seen_available: state.next_available,
            next_used: state.next_used,
            published_used: state.next_used,
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
    /// taken then, and the device goes on from where that life stood: the used
    /// ring and the region say where, whatever the base was.
    ///
    /// # Errors
    /// When the region is not one that a device left.
    ///
    /// # Panics
    /// When chains were popped before.
    pub fn track(mut self, region: InflightSplit<M>) -> Result<Self, InflightError> {
        assert!(
            self.in_flight == 0 && self.unpublished() == 0,
            "tracking begins before the first chain"
        );
        let used_idx = self.ring.used_index();
        let (tracker, earlier) = Tracker::new(region, self.ring.size(), used_idx)?;
        if earlier {
            self.next_used = used_idx;
            self.published_used = used_idx;
            self.next_available = used_idx.wrapping_add(tracker.resubmits());
            self.seen_available = self.next_available;
        }
        self.inflight = Some(tracker);
        Ok(self)
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The ring.
    pub fn ring(&self) -> &SplitRing<M> {
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
            next_available: self.next_available,
            next_used: self.next_used,
        }
    }

    /// Reads the driver's index and says how many chains wait; what they consist
    /// of is visible afterwards.
    ///
    /// # Errors
    /// [`QueueError::AvailableJump`] when more are claimed than the queue has
    /// entries, or fewer than before (virtio 1.3 2.7.6.1).
    #[inline]
    pub fn refresh(&mut self) -> Result<u16, QueueError> {
        self.check()?;
        let index = self.ring.available_index();
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.ring.size() || waiting < self.waiting() {
            return Err(self.retire(QueueError::AvailableJump {
                index,
                next: self.next_available,
                seen: self.seen_available,
                size: self.ring.size(),
            }));
        }
        self.seen_available = index;
        Ok(waiting.saturating_add(self.resubmits()))
    }

    /// Has the processor fetch the first descriptors of the next chains, `count` at most,
    /// of the batch that [`refresh`](Self::refresh) saw.
    #[inline]
    pub fn prefetch(&self, count: u16) {
        for at in 0..count.min(self.waiting()) {
            let position = self.next_available.wrapping_add(at);
            self.ring
                .prefetch_descriptor(self.ring.available_entry(position));
        }
    }

    /// Takes the next chain of the batch that [`refresh`](Self::refresh) saw;
    /// `false` at its end. Chains of an earlier life come first.
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
        let head = match again {
            Some(head) => head,
            None if self.waiting() == 0 => return Ok(false),
            None => self.ring.available_entry(self.next_available),
        };
        let size = self.ring.size();
        if head >= size {
            return Err(self.retire(QueueError::HeadOutOfRange { head, size }));
        }
        let (word, bit) = place(head);
        if self.taken[word] & bit != 0 {
            return Err(self.retire(QueueError::HeadInFlight { head }));
        }
        if let Err(error) = walk(&self.ring, space, self.indirect, head, chain) {
            return Err(self.retire(error));
        }
        self.taken[word] |= bit;
        self.in_flight += 1;
        if let Some(order) = &mut self.order {
            order.add(head);
        }
        chain.again = again.is_some();
        chain.taken_at = self.next_available;
        if again.is_none() {
            self.next_available = self.next_available.wrapping_add(1);
            if let Some(inflight) = &mut self.inflight {
                inflight.take(head);
            }
        }
        Ok(true)
    }

    /// [Takes](Self::pop) as many chains of the batch as there are, but no more than
    /// `chains` has room for, and says how many.
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
                return Ok(done);
            };
            let earlier = self.resubmits() > 0;
            match self.pop(space, chain) {
                Ok(true) => done += 1,
                Ok(false) => return Ok(done),
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
        let mut at = self.next_available;
        let mut count = 0;
        for chain in chains.iter_mut().take(usize::from(self.waiting())) {
            let head = self.ring.available_entry(at);
            let (word, bit) = place(head);
            let Some(taken) = self.taken.get_mut(word) else {
                break;
            };
            if *taken & bit != 0 || !walk_one(&self.ring, space, head, chain) {
                break;
            }
            *taken |= bit;
            if let Some(order) = &mut self.order {
                order.add(head);
            }
            (chain.again, chain.taken_at) = (false, at);
            at = at.wrapping_add(1);
            count += 1;
        }
        self.next_available = at;
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
        assert!(
            self.taken.get(word).is_some_and(|taken| taken & bit != 0),
            "chain {id} is not in flight"
        );
        assert!(
            chain.again || chain.taken_at.wrapping_add(1) == self.next_available,
            "chain {id} is not the last that was taken"
        );
        if let Some(order) = &mut self.order {
            let newest = order.remove_newest();
            assert!(newest == Some(id), "chain {id} is not the newest in flight");
        }
        self.taken[word] &= !bit;
        self.in_flight -= 1;
        if !chain.again {
            self.next_available = chain.taken_at;
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.put_back(id, chain.again);
        }
        Ok(())
    }

    /// Writes a used element: the device is done with `chain`, of which it wrote
    /// the first `written` writable bytes. The driver does not see it yet.
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
        assert!(
            self.taken.get(word).is_some_and(|taken| taken & bit != 0),
            "chain {id} is not in flight"
        );
        assert!(
            written <= chain.writable_total(),
            "{written} bytes do not fit into chain {id}"
        );
        if let Some(order) = &mut self.order {
            let oldest = order.remove_oldest();
            assert!(oldest == Some(id), "chain {id} is not the oldest in flight");
        }
        self.taken[word] &= !bit;
        self.in_flight -= 1;
        // In order, one used element serves for a run of chains: those before the
        // last must have been used completely (virtio 1.3 2.7.9).
        let at = self.run.take().map_or(self.next_used, |(at, _)| at);
        let element = UsedElement {
            id: u32::from(id),
            len: written,
        };
        if self.order.is_some() && written == chain.writable_total() {
            self.run = Some((at, element));
        } else {
            self.ring.set_used_element(at, element);
        }
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(inflight) = &mut self.inflight {
            inflight.push(id);
        }
    }

    /// Writes the used element of a run of chains to the ring, of which
    /// [`publish`](Self::publish) takes care, too: for who has to know that all that
    /// was pushed is there before it is shown.
    #[inline]
    pub fn end_run(&mut self) {
        if let Some((at, element)) = self.run.take() {
            self.ring.set_used_element(at, element);
        }
    }

    /// Shows the driver all that was pushed, with one store.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn publish(&mut self) -> Result<(), QueueError> {
        self.check()?;
        let count = self.unpublished();
        if count != 0 {
            self.end_run();
            if let Some(inflight) = &mut self.inflight {
                inflight.before_publish();
            }
            self.ring.publish_used_index(self.next_used);
            if let Some(inflight) = &mut self.inflight {
                inflight.after_publish(self.next_used);
            }
            self.published_used = self.next_used;
            self.unnotified = self.unnotified.saturating_add(u32::from(count));
        }
        Ok(())
    }

    /// Whether the driver wants to hear of what was published since the last
    /// call (virtio 1.3 2.7.7.2). The first call says yes: what an earlier life
    /// of the device published may never have been notified.
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
        Ok(if self.event_idx {
            event_passed(self.ring.used_event(), self.published_used, count)
        } else {
            count >= FIRST_NOTIFY || self.ring.available_flags() & VIRTQ_AVAIL_F_NO_INTERRUPT == 0
        })
    }

    /// Asks for a notification of the next chain and looks once more: `true`
    /// when chains wait already, so that the device must not sleep.
    ///
    /// # Errors
    /// As for [`refresh`](Self::refresh).
    pub fn arm(&mut self) -> Result<bool, QueueError> {
        self.check()?;
        if self.event_idx {
            self.ring.set_available_event(self.next_available);
        } else {
            self.ring.set_used_flags(0);
        }
        self.armed = true;
        publish_then_check();
        Ok(self.refresh()? != 0)
    }

    /// Asks for no notifications, as the device is awake. With the event index
    /// there is nothing to do: the driver passes it once (virtio 1.3 2.7.10).
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn disarm(&mut self) -> Result<(), QueueError> {
        self.check()?;
        if self.armed && !self.event_idx {
            self.ring.set_used_flags(VIRTQ_USED_F_NO_NOTIFY);
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
    /// When chains are in flight, used elements not published, or the queue retired.
    pub fn snapshot(&self) -> Result<[u8; SNAPSHOT_LEN], NotQuiet> {
        if self.retired.is_some() {
            return Err(NotQuiet::Retired);
        }
        let count = self.in_flight.saturating_add(self.resubmits());
        if count != 0 {
            return Err(NotQuiet::InFlight { count });
        }
        match self.unpublished() {
            0 => {
                let (state, features) = (self.state(), self.features);
                Ok(save(
                    saved::SPLIT_DEVICE,
                    self.size(),
                    &Saved { state, features },
                ))
            }
            count => Err(NotQuiet::Unpublished { count }),
        }
    }

    /// Serves `ring` from where [`snapshot`](Self::snapshot) stopped.
    ///
    /// # Errors
    /// When the bytes are not those of such a queue.
    pub fn restore(ring: SplitRing<M>, bytes: &[u8]) -> Result<Self, RestoreError> {
        let saved = load(saved::SPLIT_DEVICE, ring.size(), bytes)?;
        Ok(Self::new(ring, saved.features, saved.state)?)
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

    #[inline]
    fn waiting(&self) -> u16 {
        self.seen_available.wrapping_sub(self.next_available)
    }

    #[inline]
    fn unpublished(&self) -> u16 {
        self.next_used.wrapping_sub(self.published_used)
    }
}

/// Word and bit of a head in the set of those taken.
#[inline]
fn place(head: u16) -> (usize, u64) {
    (usize::from(head / 64), 1 << (head % 64))
}
