//! The driver's side of a split virtqueue.
//!
//! The mirror of [`SplitDevice`](super::SplitDevice): [`add`](SplitDriver::add)
//! buffers, [`publish`](SplitDriver::publish) them with one store, ask
//! [`kick_wanted`](SplitDriver::kick_wanted); then [`refresh`](SplitDriver::refresh)
//! and [`pop`](SplitDriver::pop) what the device used, and
//! [`arm`](SplitDriver::arm) before sleeping. The device is trusted as little as
//! a device trusts its driver: what describes a chain is kept in private memory.

use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};
use linkspan_mem::{Address, Descriptor, RingMemory, SplitRing, UsedElement, publish_then_check};

use super::{VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY, event_passed};
use crate::descriptor::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT};
use crate::driver::{
    AddError, Buffer, IndirectTable, Used, UsedError, chain_bytes, descriptors, one_buffer,
};
use crate::features::Features;
use crate::order::Order;
use crate::queue::{FIRST_NOTIFY, NotQuiet, QueueState, RestoreError};
use crate::saved::{self, SNAPSHOT_LEN, Saved, load, save};

/// The driver's side of a split virtqueue (virtio 1.3 2.7).
#[derive(Debug)]
pub struct SplitDriver<M> {
    ring: SplitRing<M>,
    features: Features,
    event_idx: bool,
    indirect: bool,
    next_available: u16,
    published_available: u16,
    next_used: u16,
    /// The device's index when it was last read.
    seen_used: u16,
    /// Chains added so far, and those of them that the device may see.
    added: u64,
    published: u64,
    /// Chains published since `kick_wanted` last said what they mean.
    unnotified: u32,
    armed: bool,
    slots: Vec<Slot>,
    /// First free descriptor, and the last; meaningless when none is free.
    free_head: u16,
    free_tail: u16,
    free: u16,
    /// Whether those are taken first that were given back first.
    in_turn: bool,
    outstanding: u16,
    /// With `VIRTIO_F_IN_ORDER`, what the device has, and the end of the run of
    /// chains that it used at once, while the run is being taken.
    order: Option<Order>,
    run: Option<Used>,
    retired: Option<UsedError>,
}

/// What the driver knows of descriptor `i`, where the device cannot change it.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The next one of its chain or of the free list.
    next: u16,
    /// Of a head that the device has: descriptors of its chain, else 0.
    descriptors: u16,
    /// Of a head that the device has: writable bytes of its chain.
    writable: u32,
    /// As the how many-th it was added.
    number: u64,
}

impl<M: RingMemory> SplitDriver<M> {
    /// Drives `ring` from `state` on, with the features that both sides accepted;
    /// all descriptors are free.
    ///
    /// # Errors
    /// When memory for what the driver knows of descriptors cannot be had.
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
        let mut slots = fault::try_with_capacity(usize::from(size))?;
        slots.extend((0..size).map(|index| Slot {
            // In ring order, which `VIRTIO_F_IN_ORDER` keeps for ever (2.7.9).
            next: (index + 1) % size,
            descriptors: 0,
            writable: 0,
            number: 0,
        }));
        Ok(Self {
            ring,
            features,
            event_idx: features.contains(Features::VIRTIO_F_EVENT_IDX),
            indirect: features.contains(Features::VIRTIO_F_INDIRECT_DESC),
            next_available: state.next_available,
            published_available: state.next_available,
            next_used: state.next_used,
            seen_used: state.next_used,
            added: 0,
            published: 0,
            unnotified: FIRST_NOTIFY,
            armed: true,
            slots,
            free_head: 0,
            free_tail: size - 1,
            free: size,
            in_turn: false,
            outstanding: 0,
            order: in_order.then(|| Order::new(size)).transpose()?,
            run: None,
            retired: None,
        })
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The ring.
    pub fn ring(&self) -> &SplitRing<M> {
        &self.ring
    }

    /// Descriptors that are free.
    pub fn free(&self) -> u16 {
        self.free
    }

    /// Chains that were added and not yet popped.
    pub fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// The error that retired the queue.
    pub fn retired(&self) -> Option<UsedError> {
        self.retired
    }

    /// Where the driver stands.
    pub fn state(&self) -> QueueState {
        QueueState {
            next_available: self.next_available,
            next_used: self.next_used,
        }
    }

    /// Adds a chain: first what the device reads, then what it writes. With a
    /// `table` it takes one descriptor of the queue, else one for each buffer.
    /// The device does not see it yet. Gives the name by which it comes back.
    ///
    /// # Errors
    /// When there is no room or the chain is not possible.
    #[inline]
    pub fn add<A: Address>(
        &mut self,
        readable: &[Buffer<A>],
        writable: &[Buffer<A>],
        table: Option<IndirectTable<'_, A>>,
    ) -> Result<u16, AddError> {
        self.check()?;
        let writable_bytes = chain_bytes(readable, writable)?;
        let count = readable.len() + writable.len();
        let need = if table.is_some() { 1 } else { count };
        if need > usize::from(self.free) {
            let free = self.free;
            return Err(AddError::Full { need, free });
        }
        let head = self.free_head;
        let taken = match table {
            Some(table) => {
                self.fill_table(table, readable, writable, count)?;
                1
            }
            None => self.fill_ring(readable, writable),
        };
        self.was_added(head, (taken, writable_bytes));
        Ok(head)
    }

    /// The same for one buffer, which the device writes if it is `writable`.
    ///
    /// # Errors
    /// As for [`add`](Self::add).
    #[inline]
    pub fn add_one<A: Address>(
        &mut self,
        buffer: Buffer<A>,
        writable: bool,
    ) -> Result<u16, AddError> {
        self.check()?;
        if self.free == 0 {
            return Err(AddError::Full { need: 1, free: 0 });
        }
        let (descriptor, writable_bytes) = one_buffer(buffer, writable);
        let head = self.free_head;
        self.put_descriptor(head, descriptor);
        self.free_head = self.slots[usize::from(head)].next;
        self.was_added(head, (1, writable_bytes));
        Ok(head)
    }

    /// Makes a chain available, and keeps what has to be known of it.
    #[inline]
    fn was_added(&mut self, head: u16, (descriptors, writable): (u16, u32)) {
        self.free -= descriptors;
        self.outstanding += 1;
        let slot = &mut self.slots[usize::from(head)];
        slot.descriptors = descriptors;
        slot.writable = writable;
        slot.number = self.added;
        self.added += 1;
        if let Some(order) = &mut self.order {
            order.add(head);
        }
        if self.ring.available_entry(self.next_available) != head {
            self.ring.set_available_entry(self.next_available, head);
        }
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Shows the device all that was added, with one store.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn publish(&mut self) -> Result<(), UsedError> {
        self.check()?;
        let count = self.unpublished();
        if count != 0 {
            self.ring.publish_available_index(self.next_available);
            self.published_available = self.next_available;
            self.published = self.added;
            self.unnotified = self.unnotified.saturating_add(u32::from(count));
        }
        Ok(())
    }

    /// Whether the device wants to hear of what was published since the last
    /// call (virtio 1.3 2.7.10.1). The first call says yes, for a device that
    /// was not there when an earlier life of this driver published.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn kick_wanted(&mut self) -> Result<bool, UsedError> {
        self.check()?;
        let count = core::mem::take(&mut self.unnotified);
        if count == 0 {
            return Ok(false);
        }
        publish_then_check();
        Ok(if self.event_idx {
            event_passed(self.ring.available_event(), self.published_available, count)
        } else {
            count >= FIRST_NOTIFY || self.ring.used_flags() & VIRTQ_USED_F_NO_NOTIFY == 0
        })
    }

    /// Reads the device's index and says how many used chains wait; what the
    /// device wrote into them is visible afterwards.
    ///
    /// # Errors
    /// [`UsedError::UsedJump`] when more are claimed than the device has.
    #[inline]
    pub fn refresh(&mut self) -> Result<u16, UsedError> {
        self.check()?;
        let index = self.ring.used_index();
        let waiting = index.wrapping_sub(self.next_used);
        // Unpublished chains are with the driver still.
        let outstanding = self.outstanding - self.unpublished();
        if waiting > outstanding || waiting < self.waiting() {
            return Err(self.retire(UsedError::UsedJump {
                index,
                next: self.next_used,
                outstanding,
            }));
        }
        self.seen_used = index;
        Ok(waiting)
    }

    /// Takes the next used chain of the batch that [`refresh`](Self::refresh)
    /// saw and frees its descriptors; `None` at its end.
    ///
    /// # Errors
    /// When the device names a chain that it does not have, or a length that
    /// cannot be.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Used>, UsedError> {
        self.pop_one()
    }

    /// The same for at most so many; how many.
    ///
    /// # Errors
    /// As for [`pop`](Self::pop).
    #[inline]
    pub fn pop_each(&mut self, most: u16, mut each: impl FnMut(Used)) -> Result<u16, UsedError> {
        for taken in 0..most {
            match self.pop_one()? {
                Some(used) => each(used),
                None => return Ok(taken),
            }
        }
        Ok(most)
    }

    #[inline(always)]
    fn pop_one(&mut self) -> Result<Option<Used>, UsedError> {
        self.check()?;
        if self.waiting() == 0 {
            return Ok(None);
        }
        let end = match self.run {
            Some(end) => end,
            None => self.read_used()?,
        };
        let used = self.next_of_run(end)?;
        let descriptors = self.slots[usize::from(used.id)].descriptors;
        self.give_back(used.id, descriptors);
        self.outstanding -= 1;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(used))
    }

    /// Asks for a notification of the next used chain and looks once more:
    /// `true` when some wait already, so that the driver must not sleep.
    ///
    /// # Errors
    /// As for [`refresh`](Self::refresh).
    pub fn arm(&mut self) -> Result<bool, UsedError> {
        self.check()?;
        if self.event_idx {
            self.ring.set_used_event(self.next_used);
        } else {
            self.ring.set_available_flags(0);
        }
        self.armed = true;
        publish_then_check();
        Ok(self.refresh()? != 0)
    }

    /// Asks for no notifications, as the driver is awake; with the event index
    /// there is nothing to do.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn disarm(&mut self) -> Result<(), UsedError> {
        self.check()?;
        if self.armed && !self.event_idx {
            self.ring.set_available_flags(VIRTQ_AVAIL_F_NO_INTERRUPT);
        }
        self.armed = false;
        Ok(())
    }

    /// Saves the queue; see [`restore`](Self::restore).
    ///
    /// # Errors
    /// When chains are outstanding or the queue is retired.
    pub fn snapshot(&self) -> Result<[u8; SNAPSHOT_LEN], NotQuiet> {
        if self.retired.is_some() {
            return Err(NotQuiet::Retired);
        }
        match self.outstanding {
            0 => {
                let (state, features) = (self.state(), self.features);
                Ok(save(
                    saved::SPLIT_DRIVER,
                    self.size(),
                    &Saved { state, features },
                ))
            }
            count => Err(NotQuiet::InFlight { count }),
        }
    }

    /// Drives `ring` from where [`snapshot`](Self::snapshot) stopped.
    ///
    /// # Errors
    /// When the bytes are not those of such a queue.
    pub fn restore(ring: SplitRing<M>, bytes: &[u8]) -> Result<Self, RestoreError> {
        let saved = load(saved::SPLIT_DRIVER, ring.size(), bytes)?;
        Ok(Self::new(ring, saved.features, saved.state)?)
    }

    /// Writes a chain into the ring from the free list; gives the descriptors taken.
    #[inline]
    fn fill_ring<A: Address>(&mut self, readable: &[Buffer<A>], writable: &[Buffer<A>]) -> u16 {
        let mut taken = 0;
        let mut index = self.free_head;
        for mut descriptor in descriptors(readable, writable) {
            let next = self.slots[usize::from(index)].next;
            if descriptor.flags & VIRTQ_DESC_F_NEXT != 0 {
                // Else it means nothing, and what is free next changes all the time.
                descriptor.next = next;
            }
            self.put_descriptor(index, descriptor);
            index = next;
            taken += 1;
        }
        self.free_head = index;
        taken
    }

    /// Writes a descriptor, unless it stands there already: a cache line that is not
    /// written stays with the device too.
    #[inline]
    fn put_descriptor(&self, index: u16, descriptor: Descriptor) {
        if self.ring.descriptor(index) != Some(descriptor) {
            self.ring.set_descriptor(index, descriptor);
        }
    }

    /// Writes a chain into an indirect table and one descriptor that refers to it.
    fn fill_table<A: Address>(
        &mut self,
        table: IndirectTable<'_, A>,
        readable: &[Buffer<A>],
        writable: &[Buffer<A>],
        count: usize,
    ) -> Result<(), AddError> {
        if !self.indirect {
            return Err(AddError::IndirectNotNegotiated);
        }
        let len = table.bytes.len();
        if len / Descriptor::SIZE < count {
            return Err(AddError::TableTooSmall { len, count });
        }
        let mut size = 0;
        for (index, mut descriptor) in (0..).zip(descriptors(readable, writable)) {
            descriptor.next = index + 1;
            let place = Descriptor::SIZE * usize::from(index);
            let place = table.bytes.part(place, Descriptor::SIZE);
            place.write_changed(descriptor.to_bytes());
            size += 16;
        }
        let index = self.free_head;
        let descriptor = Descriptor {
            address: table.address.raw(),
            len: size,
            flags: VIRTQ_DESC_F_INDIRECT,
            next: 0,
        };
        self.put_descriptor(index, descriptor);
        self.free_head = self.slots[usize::from(index)].next;
        Ok(())
    }

    /// Reads the used element at hand and checks it.
    #[inline]
    fn read_used(&mut self) -> Result<Used, UsedError> {
        let UsedElement { id, len } = self.ring.used_element(self.next_used);
        let (name, slot) = match u16::try_from(id) {
            Ok(name) => (name, self.slots.get(usize::from(name))),
            Err(_) => (0, None),
        };
        let writable = match slot {
            Some(slot) if slot.descriptors != 0 && slot.number < self.published => slot.writable,
            _ => return Err(self.retire(UsedError::NotOutstanding { id })),
        };
        if len > writable {
            let id = name;
            return Err(self.retire(UsedError::UsedLength { id, len, writable }));
        }
        Ok(Used {
            id: name,
            written: len,
        })
    }

    /// The next chain of a run that ends with `end`: in order, those before it
    /// were used completely (virtio 1.3 2.7.9).
    #[inline]
    fn next_of_run(&mut self, end: Used) -> Result<Used, UsedError> {
        // `end` is outstanding, so the order has it and all that came before.
        let oldest = self.order.as_mut().and_then(Order::remove_oldest);
        match oldest {
            // The index must cover the whole run.
            Some(id) if id != end.id && self.waiting() == 1 => {
                let id = u32::from(end.id);
                Err(self.retire(UsedError::NotOutstanding { id }))
            }
            Some(id) if id != end.id => {
                self.run = Some(end);
                let written = self.slots[usize::from(id)].writable;
                Ok(Used { id, written })
            }
            _ => {
                self.run = None;
                Ok(end)
            }
        }
    }

    /// Takes free descriptors in the order in which they were given back from now on, not
    /// the newest first: for a queue all of whose descriptors are mostly with the device.
    /// Both sides then go through table, rings and buffers from front to back.
    pub fn take_in_turn(&mut self) {
        self.in_turn = true;
    }

    /// Puts the descriptors of a chain in front of the free list, or behind it. In order
    /// there is no list: they lie behind those that are free.
    #[inline(always)]
    fn give_back(&mut self, head: u16, descriptors: u16) {
        self.slots[usize::from(head)].descriptors = 0;
        if self.order.is_some() {
            self.free += descriptors;
            return;
        }
        let mut last = head;
        for _ in 1..descriptors {
            last = self.slots[usize::from(last)].next;
        }
        if self.free == 0 {
            (self.free_head, self.free_tail) = (head, last);
        } else if self.in_turn {
            self.slots[usize::from(self.free_tail)].next = head;
            self.free_tail = last;
        } else {
            self.slots[usize::from(last)].next = self.free_head;
            self.free_head = head;
        }
        self.free += descriptors;
    }

    #[cold]
    fn retire(&mut self, error: UsedError) -> UsedError {
        *self.retired.get_or_insert(error)
    }

    #[inline]
    fn check(&self) -> Result<(), UsedError> {
        match self.retired {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    #[inline]
    fn waiting(&self) -> u16 {
        self.seen_used.wrapping_sub(self.next_used)
    }

    #[inline]
    fn unpublished(&self) -> u16 {
        self.next_available.wrapping_sub(self.published_available)
    }
}
