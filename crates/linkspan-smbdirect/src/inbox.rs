//! What has arrived and was not read yet: messages, each of pieces that lie where they
//! arrived. Nothing is copied, but for a message that comes in so many pieces that its
//! own buffers would be the ones that its rest needs: such pieces are kept in an area as
//! long as the longest message, at their place.

use alloc::collections::VecDeque;

use linkspan_mem::fault::{Injected, try_with_capacity};

use crate::credits;
use crate::error::Error;
use crate::gather;
use crate::wire::DataTransfer;
use linkspan_rdma::verbs::{Key, Slice};

/// Where a piece lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the buffer in which it arrived.
    Buffer(Slice),
    /// In the reassembly area.
    Area,
}

/// A piece of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub place: Place,
    /// Where in it, in bytes.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// A message that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Bytes of it that were not read, what has not arrived included.
    pub len: u32,
    /// Bytes that can be read now.
    pub arrived: u32,
    /// The token of ours that the peer invalidated with it, the last one.
    pub invalidated: Option<Key>,
}

impl Message {
    /// Whether all of it is there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.arrived == self.len
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: u64,
    /// Bytes of the message.
    total: u32,
    arrived: u32,
    read: u32,
    invalidated: Option<Key>,
}

impl Entry {
    fn missing(&self) -> u32 {
        self.total - self.arrived
    }
}

/// A piece to be copied into the area, whose buffer is free then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keep {
    pub(crate) buffer: Slice,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) to: u32,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    messages: VecDeque<Entry>,
    pieces: VecDeque<Piece>,
    /// Buffers that are held.
    held: usize,
    /// Buffers that a message that is not whole may leave held.
    held_max: usize,
    /// The message whose area it is.
    area: Option<u64>,
    next: u64,
}

impl Inbox {
    /// For a connection with `capacity` buffers.
    pub(crate) fn new(capacity: usize) -> Result<Self, Injected> {
        Ok(Self {
            messages: try_with_capacity(capacity + 2)?.into(),
            // Between two buffers there is at most one piece of the area.
            pieces: try_with_capacity(2 * capacity + 2)?.into(),
            held: 0,
            held_max: capacity.saturating_sub((capacity / 4).max(credits::REST_MIN)),
            area: None,
            next: 0,
        })
    }

    /// Buffers that are held.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Messages, the last of which may lack something.
    pub(crate) fn messages(&self) -> usize {
        self.messages.len()
    }

    /// Bytes that can be read.
    pub(crate) fn bytes(&self) -> u64 {
        let pieces = self.pieces.iter();
        pieces.map(|piece| u64::from(piece.len)).sum()
    }

    /// Bytes of them in the area.
    pub(crate) fn kept(&self) -> u64 {
        let pieces = self.pieces.iter();
        let kept = pieces.filter(|piece| piece.place == Place::Area);
        kept.map(|piece| u64::from(piece.len)).sum()
    }

    /// Bytes that the last message lacks.
    pub(crate) fn missing(&self) -> u32 {
        self.messages.back().map_or(0, Entry::missing)
    }

    /// Whether something was read of the last message.
    pub(crate) fn is_being_read(&self) -> bool {
        self.messages.back().is_some_and(|entry| entry.read > 0)
    }

    /// A segment arrived; whether its buffer is held now. A message without data is no
    /// part of any message, wherever it comes.
    pub(crate) fn arrive(
        &mut self,
        header: &DataTransfer,
        buffer: Slice,
        invalidated: Option<Key>,
    ) -> Result<bool, Error> {
        let length = header.data_length.get();
        let remaining = header.remaining_data_length.get();
        if length == 0 && remaining == 0 {
            return Ok(false);
        }
        let expected = self.missing();
        if expected == 0 {
            self.messages.push_back(Entry {
                name: self.next,
                // Bounded by MaxFragmentedRecvSize, which is checked.
                total: length + remaining,
                arrived: 0,
                read: 0,
                invalidated: None,
            });
            self.next += 1;
        } else if u64::from(length) + u64::from(remaining) != u64::from(expected) {
            return Err(Error::Reassembly {
                length,
                remaining,
                expected,
            });
        }
        if let Some(entry) = self.messages.back_mut() {
            entry.arrived += length;
            entry.invalidated = invalidated.or(entry.invalidated);
        }
        if length == 0 {
            return Ok(false);
        }
        self.pieces.push_back(Piece {
            place: Place::Buffer(buffer),
            offset: header.data_offset.get(),
            len: length,
        });
        self.held += 1;
        Ok(true)
    }

    /// Whether the area is in use.
    pub(crate) fn keeps(&self) -> bool {
        self.area.is_some()
    }

    /// The next piece to be kept in the area: of a message that is not whole and holds
    /// what its rest needs.
    #[inline]
    pub(crate) fn keep(&mut self) -> Option<Keep> {
        if self.held <= self.held_max {
            return None;
        }
        self.keep_last()
    }

    /// The last piece of the last message, if it is not whole.
    fn keep_last(&mut self) -> Option<Keep> {
        let entry = self.messages.back()?;
        let owned = self.area.is_none_or(|name| name == entry.name);
        if entry.missing() == 0 || !owned {
            return None;
        }
        let (mut end, read, name) = (entry.arrived, entry.read, entry.name);
        let mut index = self.pieces.len();
        while end > read {
            index -= 1;
            let piece = self.pieces[index];
            let to = end - piece.len;
            if let Place::Buffer(buffer) = piece.place {
                self.area = Some(name);
                self.held -= 1;
                self.pieces[index] = Piece {
                    place: Place::Area,
                    offset: to,
                    len: piece.len,
                };
                self.merge(index, to > read);
                return Some(Keep {
                    buffer,
                    offset: piece.offset,
                    len: piece.len,
                    to,
                });
            }
            end = to;
        }
        None
    }

    /// Joins a piece of the area with those next to it that are of the same message.
    fn merge(&mut self, index: usize, has_before: bool) {
        let follows = |first: &Piece, second: &Piece| {
            first.place == Place::Area
                && second.place == Place::Area
                && first.offset + first.len == second.offset
        };
        // What comes behind is of the last message, too.
        for at in [index.wrapping_add(1), index] {
            if at == 0 || at >= self.pieces.len() || (at == index && !has_before) {
                continue;
            }
            let (first, second) = (self.pieces[at - 1], self.pieces[at]);
            if follows(&first, &second) {
                self.pieces[at - 1].len += second.len;
                self.pieces.remove(at);
            }
        }
    }

    /// The first message.
    pub(crate) fn message(&self) -> Option<Message> {
        let entry = self.messages.front()?;
        Some(Message {
            len: entry.total - entry.read,
            arrived: entry.arrived - entry.read,
            invalidated: entry.invalidated,
        })
    }

    /// What can be read of the first message.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let mut left = self.message().map_or(0, |message| message.arrived);
        self.pieces.iter().map_while(move |piece| {
            left = left.checked_sub(piece.len).filter(|_| piece.len > 0)?;
            Some(*piece)
        })
    }

    /// So many bytes of the first message were read, at most those that can be; tells
    /// which buffers are free now.
    pub(crate) fn consume(&mut self, bytes: u32, mut free: impl FnMut(Slice)) {
        let Some(entry) = self.messages.front_mut() else {
            return;
        };
        let mut left = bytes.min(entry.arrived - entry.read);
        entry.read += left;
        let done = entry.read == entry.total;
        let name = entry.name;
        while left > 0 {
            let Some(piece) = self.pieces.front_mut() else {
                break;
            };
            let taken = left.min(piece.len);
            (piece.offset, piece.len) = (piece.offset + taken, piece.len - taken);
            left -= taken;
            if piece.len == 0 {
                if let Place::Buffer(buffer) = piece.place {
                    self.held -= 1;
                    free(buffer);
                }
                gather::pop(&mut self.pieces);
            }
        }
        if done {
            gather::pop(&mut self.messages);
            self.area = self.area.filter(|&owner| owner != name);
        }
    }

    /// Forgets the last message if it is not whole: its rest will not come.
    pub(crate) fn cut(&mut self, mut free: impl FnMut(Slice)) {
        if self.missing() == 0 {
            return;
        }
        let Some(entry) = self.messages.pop_back() else {
            return;
        };
        let mut left = entry.arrived - entry.read;
        while left > 0 {
            let Some(piece) = self.pieces.pop_back() else {
                break;
            };
            left -= piece.len;
            if let Place::Buffer(buffer) = piece.place {
                self.held -= 1;
                free(buffer);
            }
        }
        self.area = self.area.filter(|&owner| owner != entry.name);
    }
}
