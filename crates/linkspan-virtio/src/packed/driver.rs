//! The driver's side of a packed virtqueue.
//!
//! Used as the split one is (see [`SplitDriver`](crate::split::SplitDriver)).
//! [`refresh`](PackedDriver::refresh) says only whether a used chain waits, and
//! [`pop`](PackedDriver::pop) looks at the ring itself. What describes a chain is
//! kept in private memory, by buffer id.

use alloc::vec::Vec;

use linkspan_mem::fault;
use linkspan_mem::{
    Address, Descriptor, EventSuppression, PackedDescriptor, PackedRing, RingMemory,
    publish_then_check,
};

use super::position::Position;
use super::{RING_EVENT_FLAGS_DESC, RING_EVENT_FLAGS_DISABLE, RING_EVENT_FLAGS_ENABLE, wanted};
use crate::descriptor::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_WRITE};
use crate::driver::{
    AddError, Buffer, IndirectTable, Used, UsedError, chain_bytes, descriptors, one_buffer,
};
use crate::features::Features;
use crate::order::Order;
use crate::queue::{FIRST_NOTIFY, NotQuiet, QueueState, RestoreError, StartError};
use crate::saved::{self, SNAPSHOT_LEN, Saved, load, save};

/// The driver's side of a packed virtqueue (virtio 1.3 2.8).
#[derive(Debug)]
pub struct PackedDriver<M> {
    ring: PackedRing<M>,
    features: Features,
    event_idx: bool,
    indirect: bool,
    next_available: Position,
    published_available: Position,
    next_used: Position,
    /// The first descriptor that is not published, and its index: written last, so
    /// that the device sees the batch whole.
    withheld: Option<(u16, PackedDescriptor)>,
    /// Chains added so far, and those of them that the device may see.
    added: u64,
    published: u64,
    /// Descriptors published since `kick_wanted` last said what they mean.
    unnotified: u32,
    armed: bool,
    /// By buffer id.
    slots: Vec<Slot>,
    /// First free buffer id; meaningless when no descriptor is free.
    free_id: u16,
    free: u16,
    outstanding: u16,
    /// With `VIRTIO_F_IN_ORDER`, what the device has, and the end of the run of
    /// chains that it used at once, while the run is being taken.
    order: Option<Order>,
    run: Option<Used>,
    retired: Option<UsedError>,
}

/// What the driver knows of a buffer id, where the device cannot change it.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The next free id, of one that is free.
    next: u16,
    /// Of a chain that the device has: its descriptors, else 0.
    descriptors: u16,
    /// Its writable bytes.
    writable: u32,
    /// As the how many-th it was added.
    number: u64,
}

impl<M: RingMemory> PackedDriver<M> {
    /// Drives `ring` from `state` on, with the features that both sides accepted;
    /// all descriptors are free. A new ring begins at [`START`](super::START).
    ///
    /// # Errors
    /// When the ring has no such positions or something would be in flight, or
    /// memory for what the driver knows of chains cannot be had.
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
        if next_available != next_used {
            let apart = next_available.since(next_used, size);
            return Err(StartError::Apart { apart, size });
        }
        let mut slots = fault::try_with_capacity(usize::from(size))?;
        slots.extend((0..size).map(|id| Slot {
            next: id + 1,
            descriptors: 0,
            writable: 0,
            number: 0,
        }));
        let in_order = features.contains(Features::VIRTIO_F_IN_ORDER);
        Ok(Self {
            ring,
            features,
            event_idx: features.contains(Features::VIRTIO_F_EVENT_IDX),
            indirect: features.contains(Features::VIRTIO_F_INDIRECT_DESC),
            next_available,
            published_available: next_available,
            next_used,
            withheld: None,
            added: 0,
            published: 0,
            unnotified: FIRST_NOTIFY,
            armed: true,
            slots,
            free_id: 0,
            free: size,
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
    pub fn ring(&self) -> &PackedRing<M> {
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
            next_available: self.next_available.bits(),
            next_used: self.next_used.bits(),
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
        let free = self.free;
        let taken = match u16::try_from(need) {
            Ok(taken) if taken <= free => taken,
            _ => return Err(AddError::Full { need, free }),
        };
        let id = self.free_id;
        match table {
            Some(table) => {
                let descriptor = self.fill_table(table, readable, writable, count)?;
                self.put(descriptor, id);
            }
            None => {
                for descriptor in descriptors(readable, writable) {
                    self.put(descriptor, id);
                }
            }
        }
        self.was_added(id, (taken, writable_bytes));
        Ok(id)
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
        let id = self.free_id;
        self.put(descriptor, id);
        self.was_added(id, (1, writable_bytes));
        Ok(id)
    }

    /// Keeps what has to be known of a chain that was added.
    #[inline]
    fn was_added(&mut self, id: u16, (descriptors, writable): (u16, u32)) {
        self.free -= descriptors;
        self.outstanding += 1;
        let slot = &mut self.slots[usize::from(id)];
        self.free_id = slot.next;
        slot.descriptors = descriptors;
        slot.writable = writable;
        slot.number = self.added;
        self.added += 1;
        if let Some(order) = &mut self.order {
            order.add(id);
        }
    }

    /// Shows the device all that was added, with one store.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn publish(&mut self) -> Result<(), UsedError> {
        self.check()?;
        let Some((index, first)) = self.withheld.take() else {
            return Ok(());
        };
        self.ring.publish_descriptor(index, first);
        let size = self.ring.size();
        let count = self.next_available.since(self.published_available, size);
        self.published_available = self.next_available;
        self.published = self.added;
        self.unnotified = self.unnotified.saturating_add(count);
        Ok(())
    }

    /// Whether the device wants to hear of what was published since the last
    /// call (virtio 1.3 2.8.10). The first call says yes, for a device that was
    /// not there when an earlier life of this driver published.
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
        let event = self.ring.device_event();
        let (new, size) = (self.published_available, self.ring.size());
        Ok(count >= FIRST_NOTIFY || wanted(event, self.event_idx, new, count, size))
    }

    /// Looks whether a used chain waits, and says how many do at least; what the
    /// device wrote into it is visible afterwards.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn refresh(&mut self) -> Result<u16, UsedError> {
        self.check()?;
        let flags = self.ring.flags(self.next_used.index);
        Ok(u16::from(
            self.run.is_some() || self.next_used.is_used(flags),
        ))
    }

    /// Takes the next used chain and frees its descriptors; `None` when none
    /// waits.
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
        let end = match self.run {
            Some(end) => end,
            None => match self.read_used()? {
                Some(end) => end,
                None => return Ok(None),
            },
        };
        let used = self.next_of_run(end);
        let slot = &mut self.slots[usize::from(used.id)];
        let descriptors = core::mem::take(&mut slot.descriptors);
        slot.next = self.free_id;
        self.free_id = used.id;
        self.free += descriptors;
        self.outstanding -= 1;
        self.next_used = self.next_used.plus(descriptors, self.ring.size());
        Ok(Some(used))
    }

    /// Asks for a notification of the next used chain and looks once more:
    /// `true` when some wait already, so that the driver must not sleep.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    pub fn arm(&mut self) -> Result<bool, UsedError> {
        self.check()?;
        if self.event_idx {
            self.ring.set_driver_event(EventSuppression {
                position: self.next_used.bits(),
                flags: RING_EVENT_FLAGS_DESC,
            });
        } else {
            self.ring.set_driver_event_flags(RING_EVENT_FLAGS_ENABLE);
        }
        self.armed = true;
        publish_then_check();
        Ok(self.refresh()? != 0)
    }

    /// Asks for no notifications, as the driver is awake.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn disarm(&mut self) -> Result<(), UsedError> {
        self.check()?;
        if self.armed {
            self.ring.set_driver_event_flags(RING_EVENT_FLAGS_DISABLE);
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
                let saved = Saved { state, features };
                Ok(save(saved::PACKED_DRIVER, self.size(), &saved))
            }
            count => Err(NotQuiet::InFlight { count }),
        }
    }

    /// Drives `ring` from where [`snapshot`](Self::snapshot) stopped.
    ///
    /// # Errors
    /// When the bytes are not those of such a queue.
    pub fn restore(ring: PackedRing<M>, bytes: &[u8]) -> Result<Self, RestoreError> {
        let saved = load(saved::PACKED_DRIVER, ring.size(), bytes)?;
        Ok(Self::new(ring, saved.features, saved.state)?)
    }

    /// Writes the next descriptor of the ring, unless it is the first one of a batch.
    #[inline]
    fn put(&mut self, descriptor: Descriptor, id: u16) {
        let at = self.next_available;
        let packed = PackedDescriptor {
            address: descriptor.address,
            len: descriptor.len,
            id,
            flags: descriptor.flags | at.available(),
        };
        match self.withheld {
            None => self.withheld = Some((at.index, packed)),
            Some(_) => self.ring.set_descriptor(at.index, packed),
        }
        self.next_available = at.plus(1, self.ring.size());
    }

    /// Writes a chain into an indirect table; gives the descriptor that refers to it.
    fn fill_table<A: Address>(
        &self,
        table: IndirectTable<'_, A>,
        readable: &[Buffer<A>],
        writable: &[Buffer<A>],
        count: usize,
    ) -> Result<Descriptor, AddError> {
        if !self.indirect {
            return Err(AddError::IndirectNotNegotiated);
        }
        let len = table.bytes.len();
        if len / Descriptor::SIZE < count {
            return Err(AddError::TableTooSmall { len, count });
        }
        let (mut place, mut size) = (0, 0);
        for descriptor in descriptors(readable, writable) {
            let packed = Descriptor {
                // A packed descriptor has its flags where a split one has `next`.
                next: descriptor.flags & VIRTQ_DESC_F_WRITE,
                flags: 0,
                ..descriptor
            };
            let entry = table.bytes.part(place, Descriptor::SIZE);
            entry.write_changed(packed.to_bytes());
            place += Descriptor::SIZE;
            size += 16;
        }
        Ok(Descriptor {
            address: table.address.raw(),
            len: size,
            flags: VIRTQ_DESC_F_INDIRECT,
            next: 0,
        })
    }

    /// Reads the used descriptor at hand, if it is one, and checks it.
    #[inline]
    fn read_used(&mut self) -> Result<Option<Used>, UsedError> {
        let at = self.next_used.index;
        let PackedDescriptor { len, id, flags, .. } = self.ring.descriptor(at);
        if !self.next_used.is_used(flags) {
            return Ok(None);
        }
        let slot = match self.slots.get(usize::from(id)) {
            Some(slot) if slot.descriptors != 0 && slot.number < self.published => *slot,
            _ => {
                let id = u32::from(id);
                return Err(self.retire(UsedError::NotOutstanding { id }));
            }
        };
        let writable = slot.writable;
        if len <= writable {
            return Ok(Some(Used { id, written: len }));
        }
        // Without the flag the length means nothing (virtio 1.3 2.8.4), but some
        // devices forget the flag, so one that makes sense is believed.
        if flags & VIRTQ_DESC_F_WRITE == 0 {
            return Ok(Some(Used { id, written: 0 }));
        }
        Err(self.retire(UsedError::UsedLength { id, len, writable }))
    }

    /// The next chain of a run that ends with `end`: in order, those before it
    /// were used completely (virtio 1.3 2.8.9).
    #[inline]
    fn next_of_run(&mut self, end: Used) -> Used {
        // `end` is outstanding, so the order has it and all that came before.
        let oldest = self.order.as_mut().and_then(Order::remove_oldest);
        match oldest {
            Some(id) if id != end.id => {
                self.run = Some(end);
                let written = self.slots[usize::from(id)].writable;
                Used { id, written }
            }
            _ => {
                self.run = None;
                end
            }
        }
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
}
