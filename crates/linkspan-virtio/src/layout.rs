//! Queues of either layout as one type: what devices, drivers and transports
//! hold. Which layout a queue has is decided by the accepted features alone.

use linkspan_mem::{
    Address, AddressSpace, InflightPacked, InflightSplit, PackedRing, RingMemory, SplitRing,
};

use crate::chain::Chain;
use crate::driver::{AddError, Buffer, IndirectTable, Used, UsedError};
use crate::features::Features;
use crate::inflight::InflightError;
use crate::packed::{self, PackedDevice, PackedDriver};
use crate::queue::{NotQuiet, QueueError, QueueState, RestoreError, StartError};
use crate::saved::SNAPSHOT_LEN;
use crate::split::{SplitDevice, SplitDriver};

/// How a virtqueue lies in memory (virtio 1.3 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueLayout {
    /// Virtio 1.3 2.7.
    Split,
    /// Virtio 1.3 2.8.
    Packed,
}

impl QueueLayout {
    /// The layout that these accepted features ask for.
    pub fn of(features: Features) -> Self {
        if features.contains(Features::VIRTIO_F_RING_PACKED) {
            Self::Packed
        } else {
            Self::Split
        }
    }

    /// Bytes of the descriptor, driver and device area of a queue of `size` entries.
    pub fn part_lens(self, size: u16) -> [usize; 3] {
        // Sizes do not depend on the kind of memory; any will do.
        use linkspan_mem::Window;
        match self {
            Self::Split => [
                SplitRing::<Window>::descriptors_len(size),
                SplitRing::<Window>::available_len(size),
                SplitRing::<Window>::used_len(size),
            ],
            Self::Packed => [
                PackedRing::<Window>::descriptors_len(size),
                PackedRing::<Window>::EVENT_LEN,
                PackedRing::<Window>::EVENT_LEN,
            ],
        }
    }

    /// Bytes from one queue's in-flight region to the next, for queues of at most
    /// `size` entries (vhost-user, "Inflight I/O tracking").
    pub fn inflight_len(self, size: u16) -> usize {
        use linkspan_mem::Window;
        match self {
            Self::Split => InflightSplit::<Window>::region_len(size),
            Self::Packed => InflightPacked::<Window>::region_len(size),
        }
    }

    /// Where both sides of a new ring stand.
    pub fn start(self) -> QueueState {
        match self {
            Self::Split => QueueState::default(),
            Self::Packed => packed::START,
        }
    }

    /// A state as vhost-user and vhost-vdpa carry it (vhost-user,
    /// `VHOST_USER_GET_VRING_BASE`): of a split ring what is available next, of a
    /// packed one both positions with their wrap counters.
    pub fn base(self, state: QueueState) -> u32 {
        let used = match self {
            Self::Split => 0,
            Self::Packed => state.next_used,
        };
        u32::from(state.next_available) | u32::from(used) << 16
    }
}

/// Calls the method of whichever queue it is.
macro_rules! either {
    ($self:ident, $queue:ident => $call:expr) => {
        match $self {
            Self::Split($queue) => $call,
            Self::Packed($queue) => $call,
        }
    };
}

/// The device's side of a virtqueue, of either layout. The methods are described
/// where they differ, at [`SplitDevice`] and [`PackedDevice`].
#[derive(Debug)]
pub enum DeviceQueue<M> {
    /// A split virtqueue.
    Split(SplitDevice<M>),
    /// A packed virtqueue.
    Packed(PackedDevice<M>),
}

impl<M: RingMemory> DeviceQueue<M> {
    /// Serves the queue whose descriptor, driver and device area are `parts`, from
    /// `state` on, with the features that the driver accepted.
    ///
    /// # Errors
    /// When the parts hold no such ring, the ring has no such state, or memory
    /// cannot be had.
    pub fn new(
        parts: [M; 3],
        size: u16,
        features: Features,
        state: QueueState,
    ) -> Result<Self, StartError> {
        let [descriptors, driver, device] = parts;
        Ok(match QueueLayout::of(features) {
            QueueLayout::Split => {
                let ring = SplitRing::new(descriptors, driver, device, size)?;
                Self::Split(SplitDevice::new(ring, features, state)?)
            }
            QueueLayout::Packed => {
                let ring = PackedRing::new(descriptors, driver, device, size)?;
                Self::Packed(PackedDevice::new(ring, features, state)?)
            }
        })
    }

    /// As [`new`](Self::new), from a base in the form of [`QueueLayout::base`].
    /// The base of a split ring says nothing of the used ring: where that stands
    /// is in the ring. DPDK's `virtio-user` says nothing of it for a packed ring
    /// either, which it always has begin at its start: taken at its word, all of the
    /// ring would be in flight.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_base(
        parts: [M; 3],
        size: u16,
        features: Features,
        base: u32,
    ) -> Result<Self, StartError> {
        let [a, b, c, d] = base.to_le_bytes();
        let mut state = QueueState {
            next_available: u16::from_le_bytes([a, b]),
            next_used: u16::from_le_bytes([c, d]),
        };
        let [descriptors, driver, device] = parts;
        Ok(match QueueLayout::of(features) {
            QueueLayout::Split => {
                let ring = SplitRing::new(descriptors, driver, device, size)?;
                state.next_used = ring.used_index();
                Self::Split(SplitDevice::new(ring, features, state)?)
            }
            QueueLayout::Packed => {
                if base == u32::from(packed::START.next_available) {
                    state = packed::START;
                }
                Self::new([descriptors, driver, device], size, features, state)?
            }
        })
    }

    /// The same for a device that uses whatever it takes in order and may do it twice,
    /// as frames are sent again: a split ring goes on behind what was used, whatever
    /// the base says. Drivers that outlive their device may not know more than that
    /// themselves; DPDK's virtio-user always says 0.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn behind_used(
        parts: [M; 3],
        size: u16,
        features: Features,
        base: u32,
    ) -> Result<Self, StartError> {
        if QueueLayout::of(features) == QueueLayout::Packed {
            return Self::with_base(parts, size, features, base);
        }
        let [descriptors, driver, device] = parts;
        let ring = SplitRing::new(descriptors, driver, device, size)?;
        let used = ring.used_index();
        let state = QueueState {
            next_available: used,
            next_used: used,
        };
        Ok(Self::Split(SplitDevice::new(ring, features, state)?))
    }

    /// Writes down in `memory`, an in-flight region for queues of at most `size`
    /// entries, what is in flight from now on. What an earlier life left there in
    /// flight is popped first, and the queue goes on from where that life stood.
    ///
    /// # Errors
    /// When the region is not one that a device left.
    ///
    /// # Panics
    /// When chains were popped before.
    pub fn track(self, memory: M, size: u16) -> Result<Self, InflightError> {
        Ok(match self {
            Self::Split(queue) => Self::Split(queue.track(InflightSplit::new(memory, size)?)?),
            Self::Packed(queue) => Self::Packed(queue.track(InflightPacked::new(memory, size)?)?),
        })
    }

    /// How the queue lies in memory.
    pub fn layout(&self) -> QueueLayout {
        match self {
            Self::Split(_) => QueueLayout::Split,
            Self::Packed(_) => QueueLayout::Packed,
        }
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        either!(self, queue => queue.size())
    }

    /// The error that retired the queue.
    pub fn retired(&self) -> Option<QueueError> {
        either!(self, queue => queue.retired())
    }

    /// Chains that were popped and not yet pushed.
    pub fn in_flight(&self) -> u16 {
        either!(self, queue => queue.in_flight())
    }

    /// Where the device stands. Chains in flight lie before `next_available`.
    pub fn state(&self) -> QueueState {
        either!(self, queue => queue.state())
    }

    /// The state in the form of [`QueueLayout::base`].
    pub fn base(&self) -> u32 {
        self.layout().base(self.state())
    }

    /// Looks at the ring and says how many chains wait, or at least so many; what
    /// they consist of is visible afterwards.
    ///
    /// # Errors
    /// When the driver broke the ring.
    #[inline]
    pub fn refresh(&mut self) -> Result<u16, QueueError> {
        either!(self, queue => queue.refresh())
    }

    /// Has the processor fetch what describes the next `count` chains, as far as that is
    /// known: for who takes so many at once.
    #[inline]
    pub fn prefetch(&self, count: u16) {
        // A packed ring is fetched while it is gone through.
        if let Self::Split(queue) = self {
            queue.prefetch(count);
        }
    }

    /// Takes the next chain; `false` when there is none.
    ///
    /// # Errors
    /// Whatever is wrong with the chain.
    #[inline]
    pub fn pop<A: Address>(
        &mut self,
        space: &AddressSpace<A>,
        chain: &mut Chain,
    ) -> Result<bool, QueueError> {
        either!(self, queue => queue.pop(space, chain))
    }

    /// Takes as many chains as there are, but no more than `chains` has room for, and says
    /// how many. Each is looked at as by [`pop`](Self::pop).
    ///
    /// # Errors
    /// Whatever is wrong with the first of them: those before one that is wrong are
    /// handed out, and the next call has the error.
    #[inline]
    pub fn pop_many<A: Address>(
        &mut self,
        space: &AddressSpace<A>,
        chains: &mut [Chain],
    ) -> Result<usize, QueueError> {
        either!(self, queue => queue.pop_many(space, chains))
    }

    /// Undoes the `pop` of `chain`, the last that was popped and is neither pushed
    /// nor put back: it is popped again later.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    ///
    /// # Panics
    /// When the chain is not that one.
    pub fn put_back(&mut self, chain: &Chain) -> Result<(), QueueError> {
        either!(self, queue => queue.put_back(chain))
    }

    /// Says that the device is done with `chain`, of which it wrote the first
    /// `written` writable bytes. The driver does not see it yet.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    ///
    /// # Panics
    /// When the chain is not in flight, or not the oldest in flight although
    /// `VIRTIO_F_IN_ORDER` was accepted, or `written` is more than it can hold.
    #[inline]
    pub fn push(&mut self, chain: &Chain, written: u32) -> Result<(), QueueError> {
        either!(self, queue => queue.push(chain, written))
    }

    /// The same for many chains, each with what was written of it.
    ///
    /// # Errors
    /// As for [`push`](Self::push).
    ///
    /// # Panics
    /// As for [`push`](Self::push).
    #[inline]
    pub fn push_many<'a>(
        &mut self,
        chains: impl Iterator<Item = (&'a Chain, u32)>,
    ) -> Result<(), QueueError> {
        either!(self, queue => queue.push_many(chains))
    }

    /// See [`SplitDevice::end_run`].
    #[inline]
    pub fn end_run(&mut self) {
        either!(self, queue => queue.end_run());
    }

    /// Shows the driver all that was pushed, with one store.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn publish(&mut self) -> Result<(), QueueError> {
        either!(self, queue => queue.publish())
    }

    /// Whether the driver wants to hear of what was published since the last
    /// call. The first call says yes.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn notify_wanted(&mut self) -> Result<bool, QueueError> {
        either!(self, queue => queue.notify_wanted())
    }

    /// Asks for a notification of the next chain and looks once more: `true`
    /// when chains wait already, so that the device must not sleep.
    ///
    /// # Errors
    /// As for [`refresh`](Self::refresh).
    pub fn arm(&mut self) -> Result<bool, QueueError> {
        either!(self, queue => queue.arm())
    }

    /// Asks for no notifications, as the device is awake.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn disarm(&mut self) -> Result<(), QueueError> {
        either!(self, queue => queue.disarm())
    }

    /// Retires the queue; gives the error that counts, which is the first.
    #[cold]
    pub fn retire(&mut self, error: QueueError) -> QueueError {
        either!(self, queue => queue.retire(error))
    }

    /// Saves the queue; see [`restore`](Self::restore).
    ///
    /// # Errors
    /// When chains are in flight, used ones not published, or the queue retired.
    pub fn snapshot(&self) -> Result<[u8; SNAPSHOT_LEN], NotQuiet> {
        either!(self, queue => queue.snapshot())
    }

    /// Serves a queue from where [`snapshot`](Self::snapshot) stopped.
    ///
    /// # Errors
    /// When the bytes are not those of such a queue.
    pub fn restore(
        parts: [M; 3],
        size: u16,
        layout: QueueLayout,
        bytes: &[u8],
    ) -> Result<Self, RestoreError> {
        let [descriptors, driver, device] = parts;
        Ok(match layout {
            QueueLayout::Split => {
                let ring = SplitRing::new(descriptors, driver, device, size);
                Self::Split(SplitDevice::restore(
                    ring.map_err(StartError::from)?,
                    bytes,
                )?)
            }
            QueueLayout::Packed => {
                let ring = PackedRing::new(descriptors, driver, device, size);
                Self::Packed(PackedDevice::restore(
                    ring.map_err(StartError::from)?,
                    bytes,
                )?)
            }
        })
    }
}

/// The driver's side of a virtqueue, of either layout. The methods are described
/// where they differ, at [`SplitDriver`] and [`PackedDriver`].
#[derive(Debug)]
pub enum DriverQueue<M> {
    /// A split virtqueue.
    Split(SplitDriver<M>),
    /// A packed virtqueue.
    Packed(PackedDriver<M>),
}

impl<M: RingMemory> DriverQueue<M> {
    /// Drives the queue whose descriptor, driver and device area are `parts`, from
    /// `state` on, with the features that both sides accepted; all descriptors
    /// are free.
    ///
    /// # Errors
    /// When the parts hold no such ring, the ring has no such state, or memory
    /// cannot be had.
    pub fn new(
        parts: [M; 3],
        size: u16,
        features: Features,
        state: QueueState,
    ) -> Result<Self, StartError> {
        let [descriptors, driver, device] = parts;
        Ok(match QueueLayout::of(features) {
            QueueLayout::Split => {
                let ring = SplitRing::new(descriptors, driver, device, size)?;
                Self::Split(SplitDriver::new(ring, features, state)?)
            }
            QueueLayout::Packed => {
                let ring = PackedRing::new(descriptors, driver, device, size)?;
                Self::Packed(PackedDriver::new(ring, features, state)?)
            }
        })
    }

    /// How the queue lies in memory.
    pub fn layout(&self) -> QueueLayout {
        match self {
            Self::Split(_) => QueueLayout::Split,
            Self::Packed(_) => QueueLayout::Packed,
        }
    }

    /// See [`SplitDriver::take_in_turn`]; a packed ring is always gone through so.
    pub fn take_in_turn(&mut self) {
        if let Self::Split(queue) = self {
            queue.take_in_turn();
        }
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        either!(self, queue => queue.size())
    }

    /// Descriptors that are free.
    #[inline]
    pub fn free(&self) -> u16 {
        either!(self, queue => queue.free())
    }

    /// Chains that were added and not yet popped.
    #[inline]
    pub fn outstanding(&self) -> u16 {
        either!(self, queue => queue.outstanding())
    }

    /// The error that retired the queue.
    pub fn retired(&self) -> Option<UsedError> {
        either!(self, queue => queue.retired())
    }

    /// Where the driver stands.
    pub fn state(&self) -> QueueState {
        either!(self, queue => queue.state())
    }

    /// The state in the form of [`QueueLayout::base`].
    pub fn base(&self) -> u32 {
        self.layout().base(self.state())
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
        either!(self, queue => queue.add(readable, writable, table))
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
        either!(self, queue => queue.add_one(buffer, writable))
    }

    /// Shows the device all that was added, with one store.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn publish(&mut self) -> Result<(), UsedError> {
        either!(self, queue => queue.publish())
    }

    /// Whether the device wants to hear of what was published since the last
    /// call. The first call says yes.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn kick_wanted(&mut self) -> Result<bool, UsedError> {
        either!(self, queue => queue.kick_wanted())
    }

    /// Looks at the ring and says how many used chains wait, or at least so many;
    /// what the device wrote into them is visible afterwards.
    ///
    /// # Errors
    /// When the device broke the ring.
    #[inline]
    pub fn refresh(&mut self) -> Result<u16, UsedError> {
        either!(self, queue => queue.refresh())
    }

    /// Takes the next used chain and frees its descriptors; `None` when none waits.
    ///
    /// # Errors
    /// When the device names a chain that it does not have, or a length that
    /// cannot be.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Used>, UsedError> {
        either!(self, queue => queue.pop())
    }

    /// Takes at most so many used chains, as [`pop`](Self::pop) does; how many.
    ///
    /// # Errors
    /// As for [`pop`](Self::pop).
    #[inline]
    pub fn pop_each(&mut self, most: u16, each: impl FnMut(Used)) -> Result<u16, UsedError> {
        either!(self, queue => queue.pop_each(most, each))
    }

    /// Asks for a notification of the next used chain and looks once more:
    /// `true` when some wait already, so that the driver must not sleep.
    ///
    /// # Errors
    /// As for [`refresh`](Self::refresh).
    pub fn arm(&mut self) -> Result<bool, UsedError> {
        either!(self, queue => queue.arm())
    }

    /// Asks for no notifications, as the driver is awake.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn disarm(&mut self) -> Result<(), UsedError> {
        either!(self, queue => queue.disarm())
    }

    /// Saves the queue.
    ///
    /// # Errors
    /// When chains are outstanding or the queue is retired.
    pub fn snapshot(&self) -> Result<[u8; SNAPSHOT_LEN], NotQuiet> {
        either!(self, queue => queue.snapshot())
    }

    /// Drives a queue from where [`snapshot`](Self::snapshot) stopped.
    ///
    /// # Errors
    /// When the bytes are not those of such a queue.
    pub fn restore(
        parts: [M; 3],
        size: u16,
        layout: QueueLayout,
        bytes: &[u8],
    ) -> Result<Self, RestoreError> {
        let [descriptors, driver, device] = parts;
        Ok(match layout {
            QueueLayout::Split => {
                let ring = SplitRing::new(descriptors, driver, device, size);
                Self::Split(SplitDriver::restore(
                    ring.map_err(StartError::from)?,
                    bytes,
                )?)
            }
            QueueLayout::Packed => {
                let ring = PackedRing::new(descriptors, driver, device, size);
                Self::Packed(PackedDriver::restore(
                    ring.map_err(StartError::from)?,
                    bytes,
                )?)
            }
        })
    }
}
