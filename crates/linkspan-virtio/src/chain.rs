//! A buffer of the driver, whichever ring layout it came through.

use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};
use linkspan_mem::{Address, AddressSpace, Descriptor, RegionTable, Span};

use crate::descriptor::VIRTQ_DESC_F_WRITE;
use crate::limits::{CHAIN_BYTES_MAX, CHAIN_DESCRIPTORS_MAX};
use crate::queue::QueueError;

/// One chain of descriptors as checked places in memory: first those that the
/// device reads, then those that it writes.
///
/// It is made once and filled by each `pop`, so that taking a chain allocates
/// nothing. Its bytes can be cut off at the front and at the end, since a device
/// must not assume where descriptors begin (virtio 1.3 2.7.4).
#[derive(Debug)]
pub struct Chain {
    id: u16,
    descriptors: u16,
    /// Of a packed queue: descriptors of the ring that it takes, and the entry of
    /// the in-flight region that holds the first of them.
    pub(crate) slots: u16,
    pub(crate) entry: u16,
    /// Where the device stood when it took the chain, and whether an earlier life
    /// had taken it already: for a chain that is put back.
    pub(crate) taken_at: u16,
    pub(crate) again: bool,
    writable_total: u32,
    /// Its pieces are the first `used` of these; what lies behind is of earlier chains.
    spans: Vec<Span>,
    used: u32,
    limit: u32,
    /// Where in the address space its memory was found last.
    near: u32,
    /// Whether a writable descriptor was seen, be it one without bytes.
    writing: bool,
    readable: Part,
    writable: Part,
}

/// A run of spans that gets shorter from either end.
#[derive(Clone, Debug, Default)]
struct Part {
    start: u32,
    end: u32,
    len: u64,
}

impl Chain {
    /// Room for chains of at most `segments` pieces of memory.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(segments: usize) -> Result<Self, Injected> {
        Ok(Self {
            id: 0,
            descriptors: 0,
            slots: 0,
            entry: 0,
            taken_at: 0,
            again: false,
            writable_total: 0,
            spans: fault::try_with_capacity(segments)?,
            used: 0,
            limit: u32::try_from(segments).unwrap_or(u32::MAX),
            near: 0,
            writing: false,
            readable: Part::default(),
            writable: Part::default(),
        })
    }

    /// What names the chain towards the driver: its head in a split ring, its
    /// buffer id in a packed one.
    #[inline]
    pub fn id(&self) -> u16 {
        self.id
    }

    /// How many descriptors it has, those of an indirect table included.
    pub fn descriptors(&self) -> u16 {
        self.descriptors
    }

    /// Bytes that the device may write in all, whatever was cut off: what a used
    /// length never exceeds.
    #[inline]
    pub fn writable_total(&self) -> u32 {
        self.writable_total
    }

    /// What the device reads and was not cut off, in order.
    #[inline]
    pub fn readable(&self) -> &[Span] {
        self.readable.of(&self.spans)
    }

    /// What the device writes and was not cut off, in order.
    #[inline]
    pub fn writable(&self) -> &[Span] {
        self.writable.of(&self.spans)
    }

    /// Bytes in [`readable`](Self::readable).
    #[inline]
    pub fn readable_len(&self) -> u64 {
        self.readable.len
    }

    /// Bytes in [`writable`](Self::writable).
    #[inline]
    pub fn writable_len(&self) -> u64 {
        self.writable.len
    }

    /// Copies the first readable bytes out and cuts them off.
    ///
    /// # Errors
    /// [`QueueError::NoRoom`] when there are fewer; nothing is cut off then.
    #[inline]
    pub fn read_front(&mut self, table: &RegionTable, target: &mut [u8]) -> Result<(), QueueError> {
        let need = target.len() as u64;
        if self.readable.len < need || table.gather(self.readable(), 0, target).is_err() {
            return Err(self.no_room("device-readable", need, self.readable.len));
        }
        self.readable.cut_front(&mut self.spans, need);
        Ok(())
    }

    /// Cuts off the first `count` readable bytes.
    ///
    /// # Errors
    /// [`QueueError::NoRoom`] when there are fewer; nothing is cut off then.
    #[inline]
    pub fn cut_readable_front(&mut self, count: u64) -> Result<(), QueueError> {
        if self.readable.len < count {
            return Err(self.no_room("device-readable", count, self.readable.len));
        }
        self.readable.cut_front(&mut self.spans, count);
        Ok(())
    }

    /// Cuts off the first `count` writable bytes.
    ///
    /// # Errors
    /// [`QueueError::NoRoom`] when there are fewer; nothing is cut off then.
    #[inline]
    pub fn cut_writable_front(&mut self, count: u64) -> Result<(), QueueError> {
        if self.writable.len < count {
            return Err(self.no_room("device-writable", count, self.writable.len));
        }
        self.writable.cut_front(&mut self.spans, count);
        Ok(())
    }

    /// Cuts off the last writable byte, where most devices put their answer, and
    /// gives its place.
    ///
    /// # Errors
    /// [`QueueError::NoRoom`] when there is none.
    #[inline]
    pub fn take_last_writable(&mut self) -> Result<Span, QueueError> {
        match self.writable.cut_last(&mut self.spans) {
            Some(span) => Ok(span),
            None => Err(self.no_room("device-writable", 1, 0)),
        }
    }

    /// Has the processor fetch the first bytes of what the device reads, or, if it only
    /// writes, those of what it writes, two cache lines at most: for a
    /// device that takes several chains before it looks at the first.
    #[inline]
    pub fn prefetch(&self, table: &RegionTable) {
        if let Some(span) = self.readable().first() {
            table.slice(*span).prefetch();
        } else if let Some(span) = self.writable().first() {
            table.slice(*span).prefetch_to_write();
        }
    }

    /// Begins to fill with the chain at `id`.
    #[inline]
    pub(crate) fn begin(&mut self, id: u16) {
        self.id = id;
        self.descriptors = 0;
        self.writable_total = 0;
        self.used = 0;
        self.writing = false;
        self.readable = Part::default();
        self.writable = Part::default();
    }

    /// Fills with the chain at `id` that is this one descriptor, if it is one piece of
    /// memory, as most are. `false` for any other, which is to be [begun](Self::begin)
    /// and [added](Self::add): nothing is said about it.
    #[inline(always)]
    pub(crate) fn fill_one<A: Address>(
        &mut self,
        space: &AddressSpace<A>,
        (id, address): (u16, u64),
        (len, flags): (u32, u16),
    ) -> bool {
        let at = A::from_raw(address);
        self.writing = flags & VIRTQ_DESC_F_WRITE != 0;
        let Some(span) = space.resolve_one(at, len, self.writing, &mut self.near) else {
            return false;
        };
        match self.spans.first_mut() {
            Some(first) => *first = span,
            None if self.limit == 0 => return false,
            None => self.spans.push(span),
        }
        (self.id, self.descriptors, self.used) = (id, 1, 1);
        let (full, none) = (
            Part {
                start: 0,
                end: 1,
                len: len.into(),
            },
            Part::default(),
        );
        (self.readable, self.writable) = if self.writing {
            self.writable_total = len;
            (none, full)
        } else {
            self.writable_total = 0;
            (full, none)
        };
        true
    }

    /// Gives the chain its name, if it was not known at its beginning.
    #[inline]
    pub(crate) fn rename(&mut self, id: u16) {
        self.id = id;
    }

    /// Adds what a descriptor describes. One without bytes adds nothing, and its
    /// address is not looked at: Linux as a device takes it so, and it cannot
    /// be told from one that was never there.
    #[inline]
    pub(crate) fn add<A: Address>(
        &mut self,
        space: &AddressSpace<A>,
        descriptor: Descriptor,
    ) -> Result<(), QueueError> {
        let head = self.id;
        if self.descriptors == CHAIN_DESCRIPTORS_MAX {
            let limit = CHAIN_DESCRIPTORS_MAX;
            return Err(QueueError::TooManyDescriptors { head, limit });
        }
        let len = u64::from(descriptor.len);
        let bytes = self.readable.len + self.writable.len + len;
        if bytes > CHAIN_BYTES_MAX {
            return Err(QueueError::TooManyBytes { head, bytes });
        }
        let writable = descriptor.flags & VIRTQ_DESC_F_WRITE != 0;
        if writable && !self.writing {
            self.writing = true;
            (self.writable.start, self.writable.end) = (self.used, self.used);
        } else if self.writing && !writable {
            return Err(QueueError::ReadableAfterWritable { head });
        }
        let (spans, used, limit) = (&mut self.spans, &mut self.used, self.limit);
        let mut full = false;
        let address = A::from_raw(descriptor.address);
        space
            .resolve_for(address, descriptor.len, writable, |span| {
                if *used == limit {
                    full = true;
                    return;
                }
                match spans.get_mut(*used as usize) {
                    Some(place) => *place = span,
                    None => spans.push(span),
                }
                *used += 1;
            })
            .map_err(|source| QueueError::OutsideMemory { head, source })?;
        if full {
            let limit = limit as usize;
            return Err(QueueError::TooManySegments { head, limit });
        }
        self.descriptors += 1;
        if writable {
            // Below `CHAIN_BYTES_MAX`, as the sum is.
            self.writable_total += descriptor.len;
        }
        let part = if writable {
            &mut self.writable
        } else {
            &mut self.readable
        };
        part.end = self.used;
        part.len += len;
        Ok(())
    }

    #[cold]
    fn no_room(&self, side: &'static str, need: u64, have: u64) -> QueueError {
        QueueError::NoRoom {
            head: self.id,
            side,
            need,
            have,
        }
    }
}

impl Part {
    #[inline]
    fn of<'a>(&self, spans: &'a [Span]) -> &'a [Span] {
        &spans[self.start as usize..self.end as usize]
    }

    /// The caller has checked that there are so many bytes.
    #[inline]
    fn cut_front(&mut self, spans: &mut [Span], count: u64) {
        self.len -= count;
        let mut left = count;
        while left > 0 {
            let span = &mut spans[self.start as usize];
            match u32::try_from(left) {
                Ok(part) if part < span.len() => {
                    *span = span.part(part, span.len());
                    return;
                }
                _ => {
                    left -= u64::from(span.len());
                    self.start += 1;
                }
            }
        }
    }

    #[inline]
    fn cut_last(&mut self, spans: &mut [Span]) -> Option<Span> {
        let last = spans[self.start as usize..self.end as usize].last_mut()?;
        let byte = last.part(last.len() - 1, 1);
        *last = last.part(0, last.len() - 1);
        if last.is_empty() {
            self.end -= 1;
        }
        self.len -= 1;
        Some(byte)
    }
}
