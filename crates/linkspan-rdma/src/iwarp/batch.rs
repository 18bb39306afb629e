//! Frames on their way out: what one system call writes, and how far it got.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::wire::{CRC, Header, TRAILER_MAX, padding};
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
/// It is the driver's, and need not exist while a connection has nothing to say; but
/// one that has begun belongs to its connection until it is empty.
#[derive(Debug)]
pub struct Batch {
    /// What goes before all frames: a request or a reply of the set-up.
    raw: Vec<u8>,
    frames: VecDeque<Frame>,
    slices: VecDeque<Slice>,
    /// Bytes that are written of what is first.
    begun: usize,
    /// Bytes that are not written.
    left: usize,
    limit: usize,
}

#[derive(Debug)]
struct Frame {
    header: Header,
    /// Elements of its payload.
    slices: u16,
    payload: u32,
    trailer: [u8; TRAILER_MAX],
    trailer_len: u8,
}

impl Frame {
    fn len(&self) -> usize {
        self.header.bytes().len() + self.payload as usize + usize::from(self.trailer_len)
    }
}

/// Frames of a batch at most: with its header, payload and trailer each is at least three
/// pieces, of which a system call takes 256; the rest waits for the next one.
const FRAMES_MAX: usize = 64;

impl Batch {
    /// A batch that is full when it holds so many bytes; at least a frame fits.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            raw: Vec::new(),
            frames: VecDeque::new(),
            slices: VecDeque::new(),
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
        let mut skip = self.begun;
        let raw = Some(Piece::Bytes(&self.raw)).filter(|_| !self.raw.is_empty());
        let frames = FramePieces {
            frames: self.frames.iter(),
            slices: self.slices.iter(),
            current: None,
        };
        raw.into_iter().chain(frames).filter_map(move |piece| {
            let len = piece.len();
            let done = skip.min(len);
            skip -= done;
            piece.from(done)
        })
    }

    /// So many bytes of it were written; says how many frames that completes.
    pub fn advance(&mut self, written: usize) -> u64 {
        assert!(written <= self.left, "more was written than there was");
        self.left -= written;
        self.begun += written;
        if !self.raw.is_empty() {
            if self.begun < self.raw.len() {
                return 0;
            }
            self.begun -= self.raw.len();
            self.raw = Vec::new();
        }
        let mut complete = 0;
        while let Some(frame) = self.frames.front() {
            if self.begun < frame.len() {
                break;
            }
            self.begun -= frame.len();
            self.slices.drain(..usize::from(frame.slices));
            self.frames.pop_front();
            complete += 1;
        }
        complete
    }

    /// Drops all that is there, as when the connection is over.
    pub fn clear(&mut self) {
        self.raw = Vec::new();
        self.frames.clear();
        self.slices.clear();
        self.begun = 0;
        self.left = 0;
    }

    /// Drops what was not begun; says how many frames that are.
    pub(super) fn cut(&mut self) -> u64 {
        let keep = usize::from(self.begun > 0 && self.raw.is_empty());
        let mut cut = 0;
        while self.frames.len() > keep {
            if let Some(frame) = self.frames.pop_back() {
                self.left -= frame.len();
                let slices = self.slices.len() - usize::from(frame.slices);
                self.slices.truncate(slices);
                cut += 1;
            }
        }
        cut
    }

    pub(super) fn is_full(&self) -> bool {
        self.left >= self.limit || self.frames.len() >= FRAMES_MAX
    }

    pub(super) fn push_raw(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
        self.left += bytes.len();
    }

    pub(super) fn push_slice(&mut self, slice: Slice) {
        self.slices.push_back(slice);
    }

    /// A frame, whose payload are the last `slices` elements. `crc` extends a checksum by
    /// bytes of memory; without it the checksum is zero.
    pub(super) fn push_frame(
        &mut self,
        mut header: Header,
        slices: usize,
        payload: u32,
        crc: Option<&mut (dyn FnMut(Slice, u32) -> u32 + '_)>,
    ) {
        header.finish(payload);
        let padding = padding(header.bytes().len() + payload as usize);
        let mut trailer = [0; TRAILER_MAX];
        if let Some(extend) = crc {
            let mut sum = linkspan_mem::crc32c(0, header.bytes());
            for slice in self.slices.range(self.slices.len() - slices..) {
                sum = extend(*slice, sum);
            }
            sum = linkspan_mem::crc32c(sum, &trailer[..padding]);
            trailer[padding..padding + CRC].copy_from_slice(&sum.to_le_bytes());
        }
        let frame = Frame {
            header,
            // Lists have limits far below that.
            slices: u16::try_from(slices).unwrap_or(u16::MAX),
            payload,
            trailer,
            trailer_len: u8::try_from(padding + CRC).unwrap_or(0),
        };
        self.left += frame.len();
        self.frames.push_back(frame);
    }
}

impl Piece<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Slice(slice) => slice.len as usize,
        }
    }

    /// What is left of it behind so many bytes; nothing if that is all.
    fn from(self, done: usize) -> Option<Self> {
        if done == self.len() {
            return None;
        }
        Some(match self {
            Self::Bytes(bytes) => Self::Bytes(&bytes[done..]),
            // Below its length.
            Self::Slice(slice) => {
                Self::Slice(slice.part(u32::try_from(done).unwrap_or(0), slice.len))
            }
        })
    }
}

struct FramePieces<'a, F, S> {
    frames: F,
    slices: S,
    /// The frame whose header was given, and its elements that were not.
    current: Option<(&'a Frame, u16)>,
}

impl<'a, F, S> Iterator for FramePieces<'a, F, S>
where
    F: Iterator<Item = &'a Frame>,
    S: Iterator<Item = &'a Slice>,
{
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        match self.current {
            None => {
                let frame = self.frames.next()?;
                self.current = Some((frame, frame.slices));
                Some(Piece::Bytes(frame.header.bytes()))
            }
            Some((frame, 0)) => {
                self.current = None;
                let len = usize::from(frame.trailer_len);
                Some(Piece::Bytes(&frame.trailer[..len]))
            }
            Some((frame, left)) => {
                self.current = Some((frame, left - 1));
                self.slices.next().map(|slice| Piece::Slice(*slice))
            }
        }
    }
}
