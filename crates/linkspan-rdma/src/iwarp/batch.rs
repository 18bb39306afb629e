//! Frames on their way out: what one system call writes, and how far it got.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use linkspan_mem::crc32c;

use super::wire::{CRC, Header, READ_REQUEST, TRAILER_MAX, padding};
use crate::memory::Memories;
use crate::verbs::Slice;

/// A piece of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes that stand here.
    Bytes(&'a [u8]),
    /// Bytes of memory.
    Slice(Slice),
}

/// Frames that are to be written, in order, as gather lists of headers and memory.
///
/// The end of a frame, the header of the next one and what is short of its payload are one
/// piece, and so are such frames in a row: system calls take their time for each piece. It is the driver's, and need not exist
/// while a connection has nothing to say; but one that has begun belongs to its connection
/// until it is empty.
#[derive(Debug)]
pub struct Batch {
    /// The bytes that stand here: those before `done` are written, and from `end` on there is
    /// room.
    text: Vec<u8>,
    done: usize,
    end: usize,
    /// What is not written.
    parts: VecDeque<Part>,
    frames: VecDeque<Frame>,
    /// Bytes, not written, of what goes before all frames: a request or a reply of the
    /// set-up.
    raw: usize,
    /// Bytes that are written of the first frame.
    begun: usize,
    /// Bytes that are not written.
    left: usize,
    limit: usize,
}

#[derive(Debug)]
enum Part {
    /// The next bytes that stand here, so many.
    Text(usize),
    Slice(Slice),
}

#[derive(Debug)]
struct Frame {
    len: usize,
    /// Bytes of it that stand here, and elements of memory.
    text: usize,
    slices: usize,
}

/// Frames of a batch at most.
const FRAMES_MAX: usize = 512;

/// Pieces from which on a batch is full: a system call takes 256, and a frame of much has its
/// header and a few elements; the rest waits for the next one.
const PARTS_MAX: usize = 240;

/// Payload that is copied to the header rather than written from where it is: a copy in the
/// cache takes less time than the system takes for a piece. So messages that fit segments of
/// TCP go as one piece.
const COPIED_MAX: u32 = 1536;

/// Bytes that stand here from which on a batch is full. A connection whose peer does not read
/// keeps as many.
const TEXT_MAX: usize = 192 << 10;

/// Room that is made at first.
const TEXT_MIN: usize = 1024;

/// Written bytes that are kept in front of others.
const DONE_MAX: usize = 8192;

impl Batch {
    /// A batch that is full when it holds so many bytes; at least a frame fits.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            text: Vec::new(),
            done: 0,
            end: 0,
            parts: VecDeque::new(),
            frames: VecDeque::new(),
            raw: 0,
            begun: 0,
            left: 0,
            limit,
        }
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Bytes that are not written.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// What is to be written, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let mut text = &self.text[self.done..];
        self.parts.iter().map(move |part| match *part {
            Part::Text(len) => {
                let (first, rest) = text.split_at(len);
                text = rest;
                Piece::Bytes(first)
            }
            Part::Slice(slice) => Piece::Slice(slice),
        })
    }

    /// So many bytes of it were written; says how many frames that completes.
    pub fn advance(&mut self, written: usize) -> u64 {
        assert!(written <= self.left, "more was written than there was");
        self.left -= written;
        self.drop_parts(written);
        let raw = self.raw.min(written);
        self.raw -= raw;
        self.begun += written - raw;
        let mut complete = 0;
        while let Some(frame) = self.frames.front() {
            if self.begun < frame.len {
                break;
            }
            self.begun -= frame.len;
            self.frames.pop_front();
            complete += 1;
        }
        if self.left == 0 {
            (self.done, self.end) = (0, 0);
        } else if self.done > DONE_MAX && self.done >= self.end - self.done {
            self.text.copy_within(self.done..self.end, 0);
            (self.done, self.end) = (0, self.end - self.done);
        }
        complete
    }

    fn drop_parts(&mut self, written: usize) {
        let mut left = written;
        while left > 0
            && let Some(part) = self.parts.front_mut()
        {
            let (count, all) = match part {
                Part::Text(len) => {
                    let count = left.min(*len);
                    self.done += count;
                    *len -= count;
                    (count, *len == 0)
                }
                Part::Slice(slice) => (cut(slice, left).len as usize, slice.len == 0),
            };
            left -= count;
            if all {
                self.parts.pop_front();
            }
        }
    }

    /// Drops all that is there, as when the connection is over.
    pub fn clear(&mut self) {
        self.text = Vec::new();
        self.parts.clear();
        self.frames.clear();
        (self.done, self.end) = (0, 0);
        (self.raw, self.begun, self.left) = (0, 0, 0);
    }

    /// Drops what was not begun; says how many frames that are.
    pub(super) fn cut(&mut self) -> u64 {
        let keep = usize::from(self.begun > 0);
        let mut cut = 0;
        while self.frames.len() > keep {
            if let Some(frame) = self.frames.pop_back() {
                self.left -= frame.len;
                self.end -= frame.text;
                self.drop_last_parts(frame.text, frame.slices);
                cut += 1;
            }
        }
        cut
    }

    /// Drops the last parts: so many bytes that stand here, and so many elements.
    fn drop_last_parts(&mut self, mut text: usize, mut slices: usize) {
        while text > 0 || slices > 0 {
            match self.parts.back_mut() {
                Some(Part::Text(len)) => {
                    let count = text.min(*len);
                    text -= count;
                    *len -= count;
                    if *len == 0 {
                        self.parts.pop_back();
                    }
                }
                Some(Part::Slice(_)) => {
                    slices -= 1;
                    self.parts.pop_back();
                }
                None => return,
            }
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.left >= self.limit
            || self.end - self.done >= TEXT_MAX
            || self.parts.len() >= PARTS_MAX
            || self.frames.len() >= FRAMES_MAX
    }

    /// What goes before all frames.
    pub(super) fn push_raw(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.count_text(bytes.len());
        self.raw += bytes.len();
        self.left += bytes.len();
    }

    /// Room for so many bytes behind those that stand here.
    #[inline]
    fn room(&mut self, count: usize) -> &mut [u8] {
        let end = self.end + count;
        if end > self.text.len() {
            self.text.resize(end.max(TEXT_MIN).next_power_of_two(), 0);
        }
        &mut self.text[self.end..end]
    }

    /// So many bytes of the room were filled.
    fn count_text(&mut self, count: usize) {
        self.end += count;
        match self.parts.back_mut() {
            Some(Part::Text(len)) => *len += count,
            _ => self.parts.push_back(Part::Text(count)),
        }
    }

    /// Begins a frame with `payload` bytes, which are pushed next.
    #[inline]
    pub(super) fn frame<'a>(
        &'a mut self,
        mut header: Header,
        payload: u32,
        crc: bool,
        memories: &'a Memories,
    ) -> Framing<'a> {
        header.finish(payload);
        header.put_to(self.room(READ_REQUEST));
        let bytes = header.bytes();
        self.count_text(bytes.len());
        Framing {
            frame: Frame {
                len: bytes.len() + payload as usize,
                text: bytes.len(),
                slices: 0,
            },
            sum: crc.then(|| crc32c(0, bytes)),
            batch: self,
            memories,
        }
    }
}

/// Takes the first bytes, at most so many, off a slice.
fn cut(slice: &mut Slice, max: usize) -> Slice {
    let first = slice.part(0, u32::try_from(max).unwrap_or(u32::MAX));
    *slice = slice.part(first.len, slice.len);
    first
}

/// Ends a frame whose checksum so far is `sum`: zeroes stand there, and their number with
/// the checksum behind them is all of it.
fn put_trailer(trailer: &mut [u8], sum: u32) {
    let padding = trailer.len() - CRC;
    let sum = crc32c(sum, &trailer[..padding]);
    trailer[padding..].copy_from_slice(&sum.to_le_bytes());
}

/// A frame that has begun.
pub(super) struct Framing<'a> {
    batch: &'a mut Batch,
    memories: &'a Memories,
    frame: Frame,
    /// The checksum so far, where there is one.
    sum: Option<u32>,
}

impl Framing<'_> {
    /// The next bytes of its payload.
    #[inline]
    pub(super) fn push(&mut self, slice: Slice) {
        if slice.len <= COPIED_MAX && self.copy(slice) {
            return;
        }
        if let Some(sum) = &mut self.sum {
            *sum = self.memories.crc32c(slice, *sum);
        }
        self.batch.parts.push_back(Part::Slice(slice));
        self.frame.slices += 1;
    }

    /// Copies what is short, and sums the copy, which nobody changes meanwhile; not if it is
    /// not there, which whoever writes finds out.
    fn copy(&mut self, slice: Slice) -> bool {
        let Some(memory) = self.memories.slice(slice) else {
            return false;
        };
        let room = self.batch.room(memory.len());
        let count = memory.read(room);
        if let Some(sum) = &mut self.sum {
            *sum = crc32c(*sum, &room[..count]);
        }
        self.batch.count_text(count);
        self.frame.text += count;
        true
    }

    /// All of its payload was pushed.
    #[inline]
    pub(super) fn end(mut self) {
        let count = padding(self.frame.len) + CRC;
        let room = self.batch.room(TRAILER_MAX);
        room.fill(0);
        match self.sum {
            Some(sum) => {
                put_trailer(&mut room[..count], sum);
                self.batch.count_text(count);
            }
            None => self.batch.count_text(count),
        }
        self.frame.text += count;
        self.frame.len += count;
        self.batch.left += self.frame.len;
        self.batch.frames.push_back(self.frame);
    }
}
