//! Ids of buffers and what they hold: the side that shows.

use alloc::vec::Vec;

use thiserror::Error;

/// The name of a buffer, for who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub u32);

/// Why there is no descriptor for an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExportError<E> {
    /// It was never given out.
    #[error("buffer {} was never shown", id.0)]
    Unknown {
        /// Which.
        id: BufferId,
    },
    /// It was, and is gone: the picture has changed, or the device was reset.
    #[error("buffer {} is not shown any more", id.0)]
    Retired {
        /// Which.
        id: BufferId,
    },
    /// The descriptor cannot be made. The id is as it was.
    #[error("no descriptor for the buffer")]
    Make(#[source] E),
}

/// All numbers are used up: 2^32 different buffers were shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("there are no numbers left for buffers")]
pub struct NoNumbers;

#[derive(Debug)]
struct Entry<K, B> {
    id: BufferId,
    key: K,
    buffer: B,
}

/// The buffers that were shown: `K` is all that makes a picture another one (its stride and
/// its offsets too), `B` what keeps its memory.
///
/// An id holds its buffer from the query that names it until others have pushed it out, so
/// a get that follows its query finds it; one that is still shown is not pushed out. Numbers
/// are not used twice. The descriptor is made last, when nothing can fail after it:
/// [`get`](Self::get) returns what `make` returned.
#[derive(Debug)]
pub struct Exports<K, B> {
    /// The latest shown comes first.
    entries: Vec<Entry<K, B>>,
    next: u32,
}

impl<K: PartialEq, B> Default for Exports<K, B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: PartialEq, B> Exports<K, B> {
    /// Buffers that are held at a time, unless more than these are shown: twice what a viewer
    /// holds, so that an id that it was just told is not pushed out by its other planes.
    pub const MAX: usize = 16;

    /// Nothing was shown.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
            next: 1,
        }
    }

    /// A picture is shown. The same one has the same id as long as it is held; `buffer` is
    /// called for one that is new. It pushes out those that were shown longest ago, but for
    /// what `is_shown` still.
    ///
    /// # Errors
    /// Numbers ran out.
    pub fn query(
        &mut self,
        key: K,
        is_shown: impl Fn(BufferId) -> bool,
        buffer: impl FnOnce() -> B,
    ) -> Result<BufferId, NoNumbers> {
        if let Some(at) = self.entries.iter().position(|entry| entry.key == key) {
            self.entries[..=at].rotate_right(1);
            return Ok(self.entries[0].id);
        }
        let id = BufferId(self.next);
        self.next = self.next.checked_add(1).ok_or(NoNumbers)?;
        let buffer = buffer();
        while self.entries.len() >= Self::MAX {
            let old = self.entries.iter().rposition(|entry| !is_shown(entry.id));
            let Some(old) = old else {
                break;
            };
            self.entries.remove(old);
        }
        self.entries.insert(0, Entry { id, key, buffer });
        Ok(id)
    }

    /// What `make` makes of the buffer: a new descriptor each time, which lives on its own.
    ///
    /// # Errors
    /// [`ExportError`]: nothing was made.
    pub fn get<F, E>(
        &self,
        id: BufferId,
        make: impl FnOnce(&B) -> Result<F, E>,
    ) -> Result<F, ExportError<E>> {
        match self.entries.iter().find(|entry| entry.id == id) {
            Some(entry) => make(&entry.buffer).map_err(ExportError::Make),
            None if id.0 == 0 || id.0 >= self.next => Err(ExportError::Unknown { id }),
            None => Err(ExportError::Retired { id }),
        }
    }

    /// Buffers that are no more: their ids are retired.
    pub fn forget(&mut self, is: impl Fn(&B) -> bool) {
        self.entries.retain(|entry| !is(&entry.buffer));
    }

    /// What is not shown any more is let go of at once, with its id.
    pub fn retire_hidden(&mut self, is_shown: impl Fn(BufferId) -> bool) {
        self.entries.retain(|entry| is_shown(entry.id));
    }

    /// The device was reset: all ids are retired.
    pub fn retire(&mut self) {
        self.entries.clear();
    }
}
