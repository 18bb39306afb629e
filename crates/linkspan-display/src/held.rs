//! Ids of buffers and what is held for each: the side that looks.
//!
//! A source names a buffer by an id, and gives a descriptor for it once. Some kernels crash
//! when they are asked twice for one that is held, so [`Held`] says when to ask: never for
//! an id that it has. What it has stays long, since a guest flips between few buffers, and
//! goes when another kind of picture takes its place or too many are held.

use alloc::vec::Vec;

use crate::fourcc::{FourCc, Modifier};
use crate::plane::{Loss, Plane};

/// What makes a buffer under one id another buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    format: FourCc,
    modifier: Modifier,
    width: u32,
    height: u32,
    stride: u32,
}

impl From<&Plane> for Shape {
    fn from(plane: &Plane) -> Self {
        let surface = &plane.surface;
        Self {
            format: surface.format,
            modifier: surface.modifier,
            width: surface.width,
            height: surface.height,
            stride: surface.stride,
        }
    }
}

#[derive(Debug)]
struct Entry<H> {
    id: u32,
    shape: Shape,
    handle: H,
}

/// What to do about an id.
#[derive(Debug, PartialEq, Eq)]
pub enum Needed<'a, H> {
    /// This is its memory; the source is not to be asked again.
    Nothing(&'a H),
    /// The source has to be asked, and [`Held::keep`] told what it gave.
    Memory,
}

/// The buffers of one plane whose memory is held: one `H`, a descriptor or a mapping, for
/// each live id.
#[derive(Debug)]
pub struct Held<H> {
    /// The latest used comes first.
    entries: Vec<Entry<H>>,
    /// Counts up whenever all was lost.
    generation: u64,
    loss: Option<Loss>,
}

impl<H> Default for Held<H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<H> Held<H> {
    /// Buffers of a plane that are held at a time.
    pub const MAX: usize = 8;

    /// None are held.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
            generation: 0,
            loss: None,
        }
    }

    /// The source says that `plane` is shown from buffer `id`. What was held under that id
    /// for another kind of picture is dropped, and with it all of other kinds.
    pub fn shown(&mut self, id: u32, plane: &Plane) -> Needed<'_, H> {
        self.loss = None;
        let shape = Shape::from(plane);
        match self.entries.iter().position(|entry| entry.id == id) {
            Some(at) if self.entries[at].shape == shape => {
                self.entries[..=at].rotate_right(1);
                Needed::Nothing(&self.entries[0].handle)
            }
            Some(_) => {
                // Whatever else is held is of the mode before, or about to be asked for.
                self.entries
                    .retain(|entry| entry.shape == shape && entry.id != id);
                Needed::Memory
            }
            None => Needed::Memory,
        }
    }

    /// The source gave `handle` for `id`. The one that was used longest ago goes if there
    /// are too many, and all of other kinds.
    ///
    /// # Panics
    /// If one is held already: then nobody was to ask.
    pub fn keep(&mut self, id: u32, plane: &Plane, handle: H) -> &H {
        let shape = Shape::from(plane);
        assert!(
            self.entries.iter().all(|entry| entry.id != id),
            "buffer {id} was asked for twice"
        );
        self.entries.retain(|entry| entry.shape == shape);
        self.entries.truncate(Self::MAX - 1);
        self.entries.insert(0, Entry { id, shape, handle });
        &self.entries[0].handle
    }

    /// Everything is gone; says whether that is news.
    pub fn lose(&mut self, loss: Loss) -> bool {
        let news = self.loss != Some(loss);
        if news {
            self.generation += 1;
        }
        self.loss = Some(loss);
        self.entries.clear();
        news
    }

    /// Why nothing is shown, since the latest loss.
    #[must_use]
    pub const fn loss(&self) -> Option<Loss> {
        self.loss
    }

    /// Which life of the source this is: what was asked for in another one does not count.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// How many are held.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is held.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
