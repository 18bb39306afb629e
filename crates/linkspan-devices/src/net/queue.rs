//! The device's side of a queue pair: from a chain of the driver to a frame, and
//! from a frame into the driver's buffers (virtio 1.3 5.1.6.2, 5.1.6.4).

use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};
use linkspan_mem::{Address, AddressSpace, RegionTable, RingMemory, SharedSlice, Span};
use linkspan_virtio::{Chain, DeviceQueue, Features, QueueError};

use super::features::VIRTIO_NET_F_MRG_RXBUF;
use super::header::{HEADER_LEN_MAX, Header, HeaderLayout};
use super::segment::Segment;

/// Bytes at the beginning of a frame that are copied before anything is decided
/// about it: enough for all headers of most frames.
pub const HEAD_LEN: usize = 108;

/// Receive buffers that one frame may take at most: enough for the longest frame
/// in buffers of 1 KiB, and drivers make theirs larger.
pub const MERGE_MAX: usize = 64;

/// Buffers that are taken at a time. The memory of all of them is on its way to the
/// processor before the first is written.
const AHEAD: usize = 16;

/// The beginning of a frame, in private memory. What was decided about it stays
/// true, whatever the sender writes meanwhile: these bytes are what is delivered.
#[derive(Clone, Debug)]
pub struct FrameHead {
    bytes: [u8; HEAD_LEN],
    end: usize,
    /// Where the frame begins in its chain.
    start: usize,
}

impl Default for FrameHead {
    fn default() -> Self {
        Self {
            bytes: [0; HEAD_LEN],
            end: 0,
            start: 0,
        }
    }
}

impl FrameHead {
    /// The first bytes of a frame that is in private memory, no more than [`HEAD_LEN`].
    pub fn of(bytes: &[u8]) -> Self {
        let mut head = Self {
            end: bytes.len().min(HEAD_LEN),
            ..Self::default()
        };
        head.bytes[..head.end].copy_from_slice(&bytes[..head.end]);
        head
    }

    /// The first bytes of the frame, all of them if there are no more than
    /// [`HEAD_LEN`].
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.end]
    }

    /// Swaps destination and source. A frame without both keeps what it has.
    #[inline]
    pub fn swap_addresses(&mut self) {
        if self.end >= 12 {
            let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = self.bytes;
            let swapped = [s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5];
            self.bytes[..12].copy_from_slice(&swapped);
        }
    }
}

/// A frame that a driver transmits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmitted {
    /// What stands before it; to be [checked](Header::check).
    pub header: Header,
    /// Bytes of the frame.
    pub len: u64,
}

/// Takes a frame out of a chain as [`take_transmit`] does, if it is one piece of memory and
/// leaves nothing to be done, as most frames are; its length. Nothing is said about any
/// other, nor taken.
#[inline(always)]
pub fn take_plain(
    chain: &Chain,
    table: &RegionTable,
    layout: HeaderLayout,
    head: &mut FrameHead,
) -> Option<u32> {
    let [span] = *chain.readable() else {
        return None;
    };
    let bytes = table.slice(span);
    let header = bytes.read_12()?;
    let len = span.len() - 12;
    if layout.len() != 12 || !Header::leaves_nothing(header, len) {
        return None;
    }
    head.start = 12;
    head.end = bytes.part(12, usize::MAX).read(&mut head.bytes);
    Some(len)
}

/// Takes a frame out of a chain of a transmit queue: its header and first bytes are
/// copied.
///
/// # Errors
/// [`QueueError::NoRoom`] when not even the header is there: the queue must be
/// retired.
pub fn take_transmit(
    chain: &mut Chain,
    table: &RegionTable,
    layout: HeaderLayout,
    head: &mut FrameHead,
) -> Result<Transmitted, QueueError> {
    let (start, have) = (layout.len() as u64, chain.readable_len());
    if have < start {
        // Cuts nothing off and says what is missing.
        chain.cut_readable_front(start)?;
    }
    let header = read_header(chain, table, layout);
    let len = have - start;
    head.start = layout.len();
    head.end = usize::try_from(len).map_or(HEAD_LEN, |len| len.min(HEAD_LEN));
    let target = &mut head.bytes[..head.end];
    let whole = target.is_empty() || table.gather(chain.readable(), start, target).is_ok();
    assert!(whole, "a chain holds the bytes it counts");
    Ok(Transmitted { header, len })
}

/// The header at the beginning of a chain, whatever it consists of; bytes that are not
/// there are zero.
fn read_header(chain: &Chain, table: &RegionTable, layout: HeaderLayout) -> Header {
    let mut bytes = [0; HEADER_LEN_MAX];
    let have = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX);
    let end = layout.len().min(have);
    let whole = table.gather(chain.readable(), 0, &mut bytes[..end]).is_ok();
    assert!(whole, "a chain holds the bytes it counts");
    Header::read(layout, &bytes)
}

/// A frame wherever it lies: first bytes in private memory, and what follows them.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The first bytes.
    pub head: &'a [u8],
    /// The rest.
    pub body: Body<'a>,
}

/// What follows the first bytes of a frame.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// Bytes in private memory.
    Private(&'a [u8]),
    /// Bytes in the memory of whoever sends the frame.
    Shared {
        /// That memory.
        table: &'a RegionTable,
        /// Places in it.
        spans: &'a [Span],
        /// Bytes of them to be skipped.
        skip: u64,
        /// Bytes behind those.
        len: u64,
    },
}

impl<'a> Frame<'a> {
    /// A frame in private memory.
    #[inline]
    pub fn private(bytes: &'a [u8]) -> Self {
        Self {
            head: bytes,
            body: Body::Private(&[]),
        }
    }

    /// A frame that another was cut into.
    #[inline]
    pub fn segment(segment: Segment<'a>) -> Self {
        Self {
            head: segment.headers,
            body: Body::Private(segment.payload),
        }
    }

    /// A frame that [`take_transmit`] took out of `chain`.
    #[inline]
    pub fn transmitted(head: &'a FrameHead, chain: &'a Chain, table: &'a RegionTable) -> Self {
        let skip = (head.start + head.end) as u64;
        Self {
            head: head.bytes(),
            body: Body::Shared {
                table,
                spans: chain.readable(),
                skip,
                len: chain.readable_len().saturating_sub(skip),
            },
        }
    }

    /// Bytes of the frame.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> u64 {
        self.head.len() as u64
            + match self.body {
                Body::Private(bytes) => bytes.len() as u64,
                Body::Shared { len, .. } => len,
            }
    }

    /// Copies the frame into private memory, as for segmentation; `None` when it
    /// does not fit, else its part of `target`.
    pub fn read<'t>(&self, target: &'t mut [u8]) -> Option<&'t mut [u8]> {
        let len = usize::try_from(self.len()).ok()?;
        let target = target.get_mut(..len)?;
        let (head, rest) = target.split_at_mut(self.head.len());
        head.copy_from_slice(self.head);
        match self.body {
            Body::Private(bytes) => rest.copy_from_slice(bytes),
            Body::Shared {
                table, spans, skip, ..
            } => table.gather(spans, skip, rest).ok()?,
        }
        Some(target)
    }

    /// Copies as many of its first bytes as `target` has room for; says how many.
    pub fn read_front(&self, target: &mut [u8]) -> usize {
        let len = usize::try_from(self.len()).unwrap_or(usize::MAX);
        let len = len.min(target.len());
        let (head, rest) = target[..len].split_at_mut(self.head.len().min(len));
        head.copy_from_slice(&self.head[..head.len()]);
        match self.body {
            Body::Private(bytes) => rest.copy_from_slice(&bytes[..rest.len()]),
            Body::Shared {
                table, spans, skip, ..
            } => {
                if !rest.is_empty() && table.gather(spans, skip, rest).is_err() {
                    return head.len();
                }
            }
        }
        len
    }

    /// Copies all of the frame to a place that is known to hold it.
    #[inline]
    pub(super) fn write_one(&self, place: &SharedSlice<'_>) {
        let done = place.write(self.head);
        let rest = place.part(done, usize::MAX);
        let (len, done) = match self.body {
            Body::Private([]) | Body::Shared { len: 0, .. } => return,
            Body::Private(bytes) => (bytes.len(), rest.write(bytes)),
            Body::Shared {
                table,
                spans,
                skip,
                len,
            } => {
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                (len, table.copy_out((spans, skip), len, &rest))
            }
        };
        assert!(done == len, "room and frame were counted before");
    }

    /// Copies the `len` bytes at `from` to `offset` in `spans`, which are known to
    /// hold them.
    #[inline]
    pub(super) fn write(
        &self,
        from: u64,
        len: u64,
        table: &RegionTable,
        (spans, offset): (&[Span], u64),
    ) {
        if from == 0
            && len == self.len()
            && let [span] = spans
        {
            let skip = usize::try_from(offset).unwrap_or(usize::MAX);
            return self.write_one(&table.slice(*span).part(skip, usize::MAX));
        }
        self.write_parts(from, len, table, (spans, offset));
    }

    fn write_parts(
        &self,
        from: u64,
        len: u64,
        table: &RegionTable,
        (spans, offset): (&[Span], u64),
    ) {
        let head_len = self.head.len() as u64;
        let mut at = offset;
        let mut left = len;
        let whole = if from < head_len {
            let first = left.min(head_len - from);
            let part = part(self.head, from, first);
            at += first;
            left -= first;
            table.scatter(spans, offset, part).is_ok()
        } else {
            true
        };
        let from = from.saturating_sub(head_len);
        let whole = whole
            && match self.body {
                _ if left == 0 => true,
                Body::Private(bytes) => table.scatter(spans, at, part(bytes, from, left)).is_ok(),
                Body::Shared {
                    table: source,
                    spans: places,
                    skip,
                    ..
                } => table
                    .copy_run((spans, at), source, (places, skip + from), left)
                    .is_ok(),
            };
        assert!(whole, "room and frame were counted before");
    }
}

/// Part of a frame; all numbers were counted from it.
#[inline]
fn part(bytes: &[u8], from: u64, len: u64) -> &[u8] {
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    &bytes[from..from + len]
}

/// What became of a frame for a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// It lies in so many buffers, which the driver sees when the queue is published.
    Delivered {
        /// How many.
        buffers: u16,
    },
    /// The driver has too few buffers there.
    NoBuffers,
    /// The buffers that are there are too small for it.
    TooSmall,
}

/// Delivers frames into the buffers of a receive queue.
///
/// Buffers are taken ahead, and those that did not suffice for a frame are held for the
/// next one: nothing is ever half delivered. Before the queue is stopped they go
/// [back](Self::give_back).
#[derive(Debug)]
pub struct ReceiveQueue {
    layout: HeaderLayout,
    mergeable: bool,
    /// A ring of chains, of which `held` from `first` on are taken from the queue, and the
    /// `filled` ones before them hold frames of these lengths with their headers.
    chains: Vec<Chain>,
    lens: Vec<u32>,
    first: usize,
    held: usize,
    filled: usize,
}

impl ReceiveQueue {
    /// For a driver with these features, whose buffers have at most `segments` pieces.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(accepted: Features, segments: usize) -> Result<Self, Injected> {
        let mergeable = accepted.contains(VIRTIO_NET_F_MRG_RXBUF);
        let count = if mergeable { MERGE_MAX } else { 2 * AHEAD };
        let mut chains = fault::try_with_capacity(count)?;
        for _ in 0..count {
            chains.push(Chain::new(segments)?);
        }
        let mut lens = fault::try_with_capacity(count)?;
        lens.resize(count, 0);
        Ok(Self {
            layout: HeaderLayout::of(accepted),
            mergeable,
            chains,
            lens,
            first: 0,
            held: 0,
            filled: 0,
        })
    }

    /// Buffers that are held for the next frame.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes buffers ahead for so many frames, as far as there are some: their memory is
    /// on its way while the frames are still being looked at.
    ///
    /// # Errors
    /// As for [`fill`](Self::fill).
    #[inline]
    pub fn expect<M: RingMemory, A: Address>(
        &mut self,
        queue: &mut DeviceQueue<M>,
        space: &AddressSpace<A>,
        frames: usize,
    ) -> Result<(), QueueError> {
        let most = self.chains.len().min(frames);
        if self.held < most {
            self.take(queue, space, most)?;
        }
        Ok(())
    }

    /// Delivers a frame with this header, in which the number of buffers is set; without
    /// one, nothing is left to the receiver. `wrote` hears of all places that were written.
    /// The queue has the frame when the batch is [finished](Self::finish).
    ///
    /// # Errors
    /// When the driver broke the queue, a buffer without room for a header included.
    #[inline]
    pub fn fill<M: RingMemory, A: Address>(
        &mut self,
        queue: &mut DeviceQueue<M>,
        space: &AddressSpace<A>,
        header: Option<&Header>,
        frame: &Frame<'_>,
        mut wrote: impl FnMut(Span),
    ) -> Result<Filled, QueueError> {
        if self.held == 0 && !self.take(queue, space, AHEAD)? {
            return Ok(Filled::NoBuffers);
        }
        let need = self.layout.len() as u64 + frame.len();
        let chain = &self.chains[self.first];
        let [span] = *chain.writable() else {
            return self.fill_many(queue, space, (header, frame), wrote);
        };
        if need > u64::from(span.len()) {
            return self.fill_many(queue, space, (header, frame), wrote);
        }
        // One piece of memory, as most buffers are.
        let place = space.table().slice(span);
        match header {
            None if self.layout.len() == 12 => {
                let _ = place.write_12(Header::PLAIN);
            }
            header => {
                let header = header.copied().unwrap_or_default();
                place.write(&header.in_buffers(1).to_bytes()[..self.layout.len()]);
            }
        }
        frame.write_one(&place.part(self.layout.len(), usize::MAX));
        // Not more than the span, whose length fits.
        let len = u32::try_from(need).unwrap_or(u32::MAX);
        wrote(span.part(0, len));
        self.lens[self.first] = len;
        self.first = self.place(1);
        self.held -= 1;
        self.filled += 1;
        Ok(Filled::Delivered { buffers: 1 })
    }

    /// Pushes the chains of all frames that were delivered.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    #[inline]
    pub fn finish<M: RingMemory>(&mut self, queue: &mut DeviceQueue<M>) -> Result<(), QueueError> {
        let filled = core::mem::take(&mut self.filled);
        if filled == 0 {
            return Ok(());
        }
        // The end of the ring, and its beginning, or what lies between.
        let (before, count) = (self.first, self.chains.len());
        let parts = match before.checked_sub(filled) {
            Some(start) => [start..before, 0..0],
            None => [before + count - filled..count, 0..before],
        };
        for part in parts {
            let lens = self.lens[part.clone()].iter().copied();
            queue.push_many(self.chains[part].iter().zip(lens))?;
        }
        Ok(())
    }

    /// The same for a frame that takes several buffers, or one in several pieces.
    fn fill_many<M: RingMemory, A: Address>(
        &mut self,
        queue: &mut DeviceQueue<M>,
        space: &AddressSpace<A>,
        (header, frame): (Option<&Header>, &Frame<'_>),
        wrote: impl FnMut(Span),
    ) -> Result<Filled, QueueError> {
        self.finish(queue)?;
        let need = self.layout.len() as u64 + frame.len();
        let (mut room, mut count) = (0, 0);
        while room < need {
            if count > 0 && !self.mergeable || count == MERGE_MAX {
                return Ok(Filled::TooSmall);
            }
            let more = self.held + AHEAD;
            if count == self.held && !self.take(queue, space, more)? {
                return Ok(Filled::NoBuffers);
            }
            room += self.chain(count).writable_len();
            count += 1;
        }
        // At most `MERGE_MAX`.
        let buffers = u16::try_from(count).unwrap_or(u16::MAX);
        let header = header.copied().unwrap_or_default();
        let bytes = header.in_buffers(buffers).to_bytes();
        let bytes = &bytes[..self.layout.len()];
        self.spread(queue, space.table(), (bytes, frame), count, wrote)?;
        self.first = self.place(count);
        self.held -= count;
        Ok(Filled::Delivered { buffers })
    }

    /// Spreads header and frame over the first `count` chains, which have room.
    fn spread<M: RingMemory>(
        &self,
        queue: &mut DeviceQueue<M>,
        table: &RegionTable,
        (header, frame): (&[u8], &Frame<'_>),
        count: usize,
        mut wrote: impl FnMut(Span),
    ) -> Result<(), QueueError> {
        let header_len = header.len() as u64;
        let need = header_len + frame.len();
        let mut done = 0;
        for index in 0..count {
            let chain = self.chain(index);
            let len = chain.writable_len().min(need - done);
            let mut offset = 0;
            if index == 0 {
                let whole = table.scatter(chain.writable(), 0, header).is_ok();
                assert!(whole, "a buffer has room for a header");
                offset = header_len;
            }
            let from = done + offset - header_len;
            frame.write(from, len - offset, table, (chain.writable(), offset));
            for_each_written(chain, len, &mut wrote);
            // A chain has less than 2^32 bytes, or it would not have been popped.
            queue.push(chain, u32::try_from(len).unwrap_or(u32::MAX))?;
            done += len;
        }
        Ok(())
    }

    /// Gives held buffers back to the queue, which is to be stopped; none are held then.
    ///
    /// # Errors
    /// Only the one that retired the queue.
    pub fn give_back<M: RingMemory>(
        &mut self,
        queue: &mut DeviceQueue<M>,
    ) -> Result<(), QueueError> {
        // A broken queue takes nothing back, and what comes in its place gives them anew.
        let held = core::mem::take(&mut self.held);
        self.finish(queue)?;
        for index in (0..held).rev() {
            queue.put_back(self.chain(index))?;
        }
        Ok(())
    }

    /// Where the chain is that comes `index` behind the first that is held.
    #[inline]
    fn place(&self, index: usize) -> usize {
        let at = self.first + index;
        // Both are at most the number of chains.
        at.checked_sub(self.chains.len()).unwrap_or(at)
    }

    #[inline]
    fn chain(&self, index: usize) -> &Chain {
        &self.chains[self.place(index)]
    }

    /// Takes more buffers, as many as there are, until there are `most`; `false` when
    /// there are none.
    #[inline]
    fn take<M: RingMemory, A: Address>(
        &mut self,
        queue: &mut DeviceQueue<M>,
        space: &AddressSpace<A>,
        most: usize,
    ) -> Result<bool, QueueError> {
        self.finish(queue)?;
        let before = self.held;
        let most = most.min(self.chains.len());
        queue.prefetch(u16::try_from(most - before).unwrap_or(u16::MAX));
        let mut looked = false;
        while self.held < most {
            // As many as there are up to the end of our ring.
            let start = self.place(self.held);
            let end = self.chains.len().min(start + most - self.held);
            let chains = &mut self.chains[start..end];
            let count = queue.pop_many(space, chains)?;
            if count == 0 {
                if self.held > before || looked || queue.refresh()? == 0 {
                    break;
                }
                looked = true;
                continue;
            }
            let least = self.layout.len() as u64;
            for chain in &mut chains[..count] {
                if chain.writable_len() < least {
                    // Cuts nothing off and says what is missing.
                    let error = chain.cut_writable_front(least);
                    return Err(error.map_or_else(|error| queue.retire(error), |()| unreachable!()));
                }
                chain.prefetch(space.table());
            }
            self.held += count;
        }
        Ok(self.held > before)
    }
}

#[inline]
fn for_each_written(chain: &Chain, len: u64, wrote: &mut impl FnMut(Span)) {
    let mut left = len;
    for span in chain.writable() {
        if left == 0 {
            break;
        }
        let part = span.part(0, u32::try_from(left).unwrap_or(u32::MAX));
        left -= u64::from(part.len());
        wrote(part);
    }
}
