//! The driver's side of a queue pair: frames onto the transmit queue, frames out
//! of the receive queue. Both have slots in shared memory, all of one size.
//!
//! A frame that is longer than a slot takes several: on the transmit queue they
//! make one chain, on the receive queue the device merges them if that was
//! negotiated.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};
use linkspan_mem::{Address, RegionTable, RingMemory, SharedSlice, Span};
use linkspan_virtio::{AddError, Buffer, DriverQueue, Features, UsedError};

use super::features::{
    Offloads, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_SPEED_DUPLEX, VIRTIO_NET_F_STATUS,
};
use super::header::{HEADER_LEN_MAX, Header, HeaderLayout, Offload};
use super::queue::{Body, Frame, HEAD_LEN, MERGE_MAX};

/// What a driver here can make use of without a control queue (virtio 1.3 5.1.3).
pub const WANTED: Features = VIRTIO_NET_F_CSUM
    .union(VIRTIO_NET_F_GUEST_CSUM)
    .union(VIRTIO_NET_F_GUEST_TSO4)
    .union(VIRTIO_NET_F_GUEST_TSO6)
    .union(VIRTIO_NET_F_GUEST_ECN)
    .union(VIRTIO_NET_F_GUEST_USO4)
    .union(VIRTIO_NET_F_GUEST_USO6)
    .union(VIRTIO_NET_F_HOST_TSO4)
    .union(VIRTIO_NET_F_HOST_TSO6)
    .union(VIRTIO_NET_F_HOST_ECN)
    .union(VIRTIO_NET_F_HOST_USO)
    .union(VIRTIO_NET_F_MAC)
    .union(VIRTIO_NET_F_MTU)
    .union(VIRTIO_NET_F_MRG_RXBUF)
    .union(VIRTIO_NET_F_STATUS)
    .union(VIRTIO_NET_F_SPEED_DUPLEX);

/// Bytes of a slot at least: a header and the first bytes of a frame.
pub const SLOT_BYTES_MIN: u32 = 128;
const _: () = assert!(SLOT_BYTES_MIN as usize == HEADER_LEN_MAX + HEAD_LEN);

/// Slots that one frame takes at most.
const FRAME_SLOTS_MAX: usize = MERGE_MAX;

/// The slots of a queue: shared memory in one run of addresses.
#[derive(Clone, Copy, Debug)]
pub struct Slots<A> {
    /// Where the device finds them.
    pub address: A,
    /// Where we find them.
    pub memory: Span,
    /// How many.
    pub count: u16,
    /// Bytes of each, at least [`SLOT_BYTES_MIN`].
    pub bytes: u32,
}

/// Slots that make no queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotsError {
    /// No slots, or such that are too small.
    #[error("{count} slots of {bytes} bytes; at least one of {SLOT_BYTES_MIN} is needed")]
    Slots {
        /// How many.
        count: u16,
        /// Bytes of each.
        bytes: u32,
    },
    /// The memory does not hold them.
    #[error("{len} bytes do not hold {count} slots of {bytes} bytes")]
    TooSmall {
        /// Bytes given.
        len: u32,
        /// Slots wanted.
        count: u16,
        /// Bytes of each.
        bytes: u32,
    },
    /// The machine refused memory.
    #[error(transparent)]
    Refused(#[from] Injected),
}

impl<A: Address> Slots<A> {
    fn check(&self) -> Result<(), SlotsError> {
        let (count, bytes, len) = (self.count, self.bytes, self.memory.len());
        if count == 0 || bytes < SLOT_BYTES_MIN {
            return Err(SlotsError::Slots { count, bytes });
        }
        if u64::from(len) < u64::from(count) * u64::from(bytes) {
            return Err(SlotsError::TooSmall { len, count, bytes });
        }
        Ok(())
    }

    /// The first `len` bytes of a slot, for us.
    #[inline]
    fn place(&self, slot: u16, len: u32) -> Span {
        // Inside the memory, whose length fits 32 bits.
        let start = u32::from(slot) * self.bytes;
        self.memory.part(start, self.bytes.min(len))
    }

    /// The first `len` bytes of a slot, for the device.
    #[inline]
    fn buffer(&self, slot: u16, len: u32) -> Buffer<A> {
        let offset = u64::from(slot) * u64::from(self.bytes);
        let address = self.address.checked_add(offset);
        Buffer {
            address: address.expect("the slots lie in one run of addresses"),
            len,
        }
    }
}

/// Why a frame was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// It does not fit all the slots that a frame may take.
    #[error("a frame of {len} bytes needs more than {max} slots")]
    TooLong {
        /// Its bytes.
        len: u64,
        /// Slots that a frame may take.
        max: usize,
    },
    /// The queue cannot go on.
    #[error(transparent)]
    Queue(#[from] AddError),
}

/// The driver of a transmit queue.
#[derive(Debug)]
pub struct TransmitDriver<M, A> {
    queue: DriverQueue<M>,
    layout: HeaderLayout,
    slots: Slots<A>,
    /// The slot behind each in its list; the end of a list is [`END`].
    next: Vec<u16>,
    /// First slot of the chain with this id.
    first_of: Vec<u16>,
    free: u16,
    free_count: u16,
}

/// No slot.
const END: u16 = u16::MAX;

impl<M: RingMemory, A: Address> TransmitDriver<M, A> {
    /// Drives `queue`, with frames in these slots.
    ///
    /// # Errors
    /// When the slots cannot be, or private memory cannot be had.
    pub fn new(
        queue: DriverQueue<M>,
        accepted: Features,
        slots: Slots<A>,
    ) -> Result<Self, SlotsError> {
        slots.check()?;
        let mut next = fault::try_with_capacity(usize::from(slots.count))?;
        next.resize(usize::from(slots.count), END);
        let mut first_of = fault::try_with_capacity(usize::from(queue.size()))?;
        first_of.resize(usize::from(queue.size()), END);
        let mut driver = Self {
            queue,
            layout: HeaderLayout::of(accepted),
            slots,
            next,
            first_of,
            free: END,
            free_count: 0,
        };
        driver.free_all();
        Ok(driver)
    }

    /// The queue, to publish, kick and sleep.
    pub fn queue(&mut self) -> &mut DriverQueue<M> {
        &mut self.queue
    }

    /// Puts a frame onto the queue; the device sees it when the queue is published.
    /// `false` when there is no room until something was [reclaimed](Self::reclaim).
    ///
    /// # Errors
    /// When the frame is too long, or the device has broken the queue.
    #[inline]
    pub fn send(
        &mut self,
        table: &RegionTable,
        offload: &Offload,
        frame: &Frame<'_>,
    ) -> Result<bool, SendError> {
        let header_len = self.layout.len() as u64;
        let (len, slot_bytes) = (frame.len(), u64::from(self.slots.bytes));
        let need = header_len + len;
        let count = if need <= slot_bytes {
            1
        } else {
            need.div_ceil(slot_bytes)
        };
        let max = FRAME_SLOTS_MAX.min(usize::from(self.slots.count));
        if count > max as u64 {
            return Err(SendError::TooLong { len, max });
        }
        if count > u64::from(self.free_count) {
            return Ok(false);
        }
        let first = self.free;
        let place = table.slice(self.slots.place(first, self.slots.bytes));
        match *offload {
            Offload::NONE if self.layout.len() == 12 => {
                let _ = place.write_12([0; 12]);
            }
            _ => {
                let header = Header::of(offload).to_bytes();
                place.write(&header[..self.layout.len()]);
            }
        }
        if count > 1 {
            return self.send_in_many(table, frame, first);
        }
        frame.write_one(&place.part(self.layout.len(), usize::MAX));
        // At most the bytes of a slot.
        let bytes = u32::try_from(need).unwrap_or(self.slots.bytes);
        let added = self.queue.add_one(self.slots.buffer(first, bytes), false);
        self.take_slots(added, first, first, 1)
    }

    /// Puts a frame whose header was written to slot `first` into that one and the
    /// free ones behind it, of which there are enough.
    fn send_in_many(
        &mut self,
        table: &RegionTable,
        frame: &Frame<'_>,
        first: u16,
    ) -> Result<bool, SendError> {
        let header_len = self.layout.len() as u64;
        let slot_bytes = u64::from(self.slots.bytes);
        let need = header_len + frame.len();
        let mut buffers = [self.slots.buffer(first, 0); FRAME_SLOTS_MAX];
        let (mut slot, mut last, mut used) = (first, first, 0);
        let mut done = 0;
        while done < need {
            let part = slot_bytes.min(need - done);
            let skip = if done == 0 { header_len } else { 0 };
            let place = self.slots.place(slot, self.slots.bytes);
            frame.write(
                done + skip - header_len,
                part - skip,
                table,
                (&[place], skip),
            );
            // At most the bytes of a slot.
            let part32 = u32::try_from(part).unwrap_or(self.slots.bytes);
            buffers[used] = self.slots.buffer(slot, part32);
            used += 1;
            done += part;
            last = slot;
            slot = self.next[usize::from(slot)];
        }
        let added = self.queue.add(&buffers[..used], &[], None);
        // At most `FRAME_SLOTS_MAX`.
        self.take_slots(added, first, last, u16::try_from(used).unwrap_or(0))
    }

    /// Takes `count` slots from `first` to `last` off the free list, if they were added.
    #[inline]
    fn take_slots(
        &mut self,
        added: Result<u16, AddError>,
        first: u16,
        last: u16,
        count: u16,
    ) -> Result<bool, SendError> {
        match added {
            Ok(id) => {
                self.first_of[usize::from(id)] = first;
                self.free = core::mem::replace(&mut self.next[usize::from(last)], END);
                self.free_count -= count;
                Ok(true)
            }
            Err(AddError::Full { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Slots that are free.
    #[inline]
    pub fn room(&self) -> u16 {
        self.free_count
    }

    /// Takes back the slots of all frames that the device is done with, and says
    /// how many frames those are.
    ///
    /// # Errors
    /// When the device has broken the queue.
    #[inline]
    pub fn reclaim(&mut self, table: &RegionTable) -> Result<u16, UsedError> {
        let Self {
            queue,
            slots,
            next,
            first_of,
            free,
            free_count,
            ..
        } = self;
        queue.refresh()?;
        queue.pop_each(u16::MAX, |used| {
            let first = first_of[usize::from(used.id)];
            // It is the next that is written, or will soon be.
            let place = slots.place(first, slots.bytes);
            table.slice(place).prefetch_to_write();
            let mut slot = usize::from(first);
            *free_count += 1;
            while next[slot] != END {
                slot = usize::from(next[slot]);
                *free_count += 1;
            }
            next[slot] = *free;
            *free = first;
        })
    }

    /// Goes on with a new queue after the device was lost. Frames that were under
    /// way are lost, as frames may be.
    pub fn restart(&mut self, queue: DriverQueue<M>) {
        self.queue = queue;
        self.first_of.resize(usize::from(self.queue.size()), END);
        self.free_all();
    }

    fn free_all(&mut self) {
        for (slot, next) in (1..).zip(&mut self.next) {
            *next = slot;
        }
        if let Some(last) = self.next.last_mut() {
            *last = END;
        }
        (self.free, self.free_count) = (0, self.slots.count);
    }
}

/// A frame that the device delivered.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// What is left to do.
    pub offload: Offload,
    /// The header, which beyond that was not checked.
    pub header: &'a Header,
    /// The frame, all of it where the device wrote it: whoever only counts frames fetches
    /// nothing of them. The memory goes back to the device when the caller is done.
    pub frame: Frame<'a>,
}

/// What came of looking at a receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ReceiveBatch {
    /// Frames that were given to the caller.
    pub frames: u32,
    /// Frames that were dropped since a header is not even there.
    pub short: u32,
    /// Frames that were dropped since the number of their buffers cannot be, or
    /// not so many are there.
    pub buffers: u32,
    /// Frames that were dropped since their header does not fit them.
    pub headers: u32,
}

/// The driver of a receive queue.
#[derive(Debug)]
pub struct ReceiveDriver<M, A> {
    queue: DriverQueue<M>,
    layout: HeaderLayout,
    mergeable: bool,
    offloads: Offloads,
    slots: Slots<A>,
    /// Those that were free first come first.
    free: VecDeque<u16>,
    /// Slot of the chain with this id.
    slot_of: Vec<u16>,
    /// Bytes at the beginning of a buffer that are fetched early.
    fetched: usize,
    /// Places of what was written into used buffers that were taken ahead, how many those
    /// are, and which of them is next.
    ahead: [Span; AHEAD],
    taken: usize,
    next: usize,
    /// Places of a frame in several buffers, header included.
    spans: Vec<Span>,
}

/// Buffers that are taken at a time: the memory of all of them is on its way to the
/// processor before the first is looked at.
const AHEAD: usize = 16;

impl<M: RingMemory, A: Address> ReceiveDriver<M, A> {
    /// Drives `queue`, with buffers in these slots. Without mergeable buffers each
    /// has to hold the longest frame. Nothing is [posted](Self::post) yet.
    ///
    /// # Errors
    /// When the slots cannot be, or private memory cannot be had.
    pub fn new(
        mut queue: DriverQueue<M>,
        accepted: Features,
        slots: Slots<A>,
    ) -> Result<Self, SlotsError> {
        slots.check()?;
        queue.take_in_turn();
        let mut free: Vec<u16> = fault::try_with_capacity(usize::from(slots.count))?;
        free.extend(0..slots.count);
        let mut slot_of = fault::try_with_capacity(usize::from(queue.size()))?;
        slot_of.resize(usize::from(queue.size()), END);
        Ok(Self {
            queue,
            layout: HeaderLayout::of(accepted),
            mergeable: accepted.contains(VIRTIO_NET_F_MRG_RXBUF),
            offloads: Offloads::to_driver(accepted),
            slots,
            free: free.into(),
            slot_of,
            fetched: HEADER_LEN_MAX + HEAD_LEN,
            ahead: [Span::default(); AHEAD],
            taken: 0,
            next: 0,
            spans: fault::try_with_capacity(MERGE_MAX)?,
        })
    }

    /// The queue, to publish, kick and sleep.
    pub fn queue(&mut self) -> &mut DriverQueue<M> {
        &mut self.queue
    }

    /// Says how many bytes of each frame are looked at, at most those in two cache lines:
    /// they are on their way to the processor early. Without it all of those are.
    pub fn fetch_ahead(&mut self, bytes: usize) {
        self.fetched = self.layout.len() + bytes;
    }

    /// Slots that are free, to be [posted](Self::post).
    #[inline]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Gives the device all free slots, as far as the queue has room, and says how
    /// many; it sees them when the queue is published.
    ///
    /// # Errors
    /// When the device has broken the queue.
    #[inline]
    pub fn post(&mut self) -> Result<u16, AddError> {
        let mut posted = 0;
        while let Some(&slot) = self.free.front() {
            let buffer = self.slots.buffer(slot, self.slots.bytes);
            match self.queue.add_one(buffer, true) {
                Ok(id) => self.slot_of[usize::from(id)] = slot,
                Err(AddError::Full { .. }) => break,
                Err(error) => return Err(error),
            }
            self.free.pop_front();
            posted += 1;
        }
        Ok(posted)
    }

    /// Gives at most `budget` frames to `each`, and drops those that cannot be. The
    /// slots are free again afterwards, to be [posted](Self::post).
    ///
    /// # Errors
    /// When the device has broken the queue.
    #[inline]
    pub fn receive(
        &mut self,
        table: &RegionTable,
        budget: u32,
        mut each: impl FnMut(Received<'_>),
    ) -> Result<ReceiveBatch, UsedError> {
        let mut batch = ReceiveBatch::default();
        self.queue.refresh()?;
        for left in (1..=budget).rev() {
            // Each frame takes one at least, so none is left when the budget is used up.
            let Some(place) = self.take_buffer(table, left)? else {
                break;
            };
            let spans = [place];
            let first = table.slice(place);
            let taken = match self.read_header(&first) {
                None => Err(&mut batch.short),
                // Most frames are in one buffer.
                Some(header) if !self.mergeable || header.num_buffers == 1 => {
                    Ok((header, &spans[..]))
                }
                Some(header) => {
                    if self.take_others(table, place, header.num_buffers)? {
                        Ok((header, &self.spans[..]))
                    } else {
                        Err(&mut batch.buffers)
                    }
                }
            };
            match taken {
                Ok((header, spans)) => {
                    self.give(table, (&header, spans), &mut batch, &mut each);
                }
                Err(count) => *count += 1,
            }
        }
        Ok(batch)
    }

    /// Takes the other buffers of a frame that says it has so many; `false` when that
    /// cannot be.
    fn take_others(
        &mut self,
        table: &RegionTable,
        first: Span,
        buffers: u16,
    ) -> Result<bool, UsedError> {
        if buffers == 0 || usize::from(buffers) > MERGE_MAX {
            return Ok(false);
        }
        self.spans.clear();
        self.spans.push(first);
        for _ in 1..buffers {
            // The device shows all of a frame at once (5.1.6.4.1).
            let Some(place) = self.take_buffer(table, 1)? else {
                return Ok(false);
            };
            self.spans.push(place);
        }
        Ok(true)
    }

    /// Gives the frame in these places, behind its header, to the caller.
    #[inline]
    fn give(
        &self,
        table: &RegionTable,
        (header, spans): (&Header, &[Span]),
        batch: &mut ReceiveBatch,
        each: &mut impl FnMut(Received<'_>),
    ) {
        let header_len = self.layout.len() as u64;
        let sum: u64 = spans.iter().map(|span| u64::from(span.len())).sum();
        let len = sum - header_len;
        let Ok(offload) = header.check(len, self.offloads) else {
            batch.headers += 1;
            return;
        };
        batch.frames += 1;
        each(Received {
            offload,
            header,
            frame: Frame {
                head: &[],
                body: Body::Shared {
                    table,
                    spans,
                    skip: header_len,
                    len,
                },
            },
        });
    }

    /// The header at the beginning of a buffer; `None` when it is not all there.
    #[inline]
    fn read_header(&self, buffer: &SharedSlice<'_>) -> Option<Header> {
        if self.layout.len() == 12 {
            return buffer.read_12().map(Header::from_12);
        }
        let mut bytes = [0; HEADER_LEN_MAX];
        let there = buffer.read(&mut bytes);
        (there >= self.layout.len()).then(|| Header::read(self.layout, &bytes))
    }

    /// Takes the next used buffer, and `most` ahead if none was; the place of what was
    /// written. `None` when there is none.
    #[inline]
    fn take_buffer(&mut self, table: &RegionTable, most: u32) -> Result<Option<Span>, UsedError> {
        if self.next == self.taken {
            self.look_ahead(table, most)?;
        }
        let place = self.ahead[..self.taken].get(self.next).copied();
        self.next += usize::from(place.is_some());
        Ok(place)
    }

    /// Takes at most so many used buffers. Their slots count as free at once: nothing is
    /// posted before the frames in them were looked at.
    #[inline]
    fn look_ahead(&mut self, table: &RegionTable, most: u32) -> Result<(), UsedError> {
        let Self {
            queue,
            slots,
            slot_of,
            fetched,
            ahead,
            free,
            ..
        } = self;
        let mut count = 0;
        let most = usize::try_from(most).map_or(AHEAD, |most| most.min(AHEAD));
        // Until the end of all of them, in case something is wrong.
        (self.taken, self.next) = (0, 0);
        queue.pop_each(u16::try_from(most).unwrap_or(0), |used| {
            let slot = slot_of[usize::from(used.id)];
            let place = slots.place(slot, used.written);
            table.slice(place).part(0, *fetched).prefetch();
            ahead[count] = place;
            count += 1;
            free.push_back(slot);
        })?;
        self.taken = count;
        Ok(())
    }

    /// Goes on with a new queue after the device was lost: all slots are free.
    pub fn restart(&mut self, queue: DriverQueue<M>) {
        self.queue = queue;
        self.queue.take_in_turn();
        self.slot_of.resize(usize::from(self.queue.size()), END);
        (self.taken, self.next) = (0, 0);
        self.free.clear();
        self.free.extend(0..self.slots.count);
    }
}
