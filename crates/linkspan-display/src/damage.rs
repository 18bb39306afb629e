//! What has changed: a bit for each tile of the screen, and rectangles made of bits.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Pixels of a damage tile, across and down.
pub const TILE: usize = SIDE as usize;
pub(crate) const SIDE: u32 = 32;

/// The most rectangles that damage is told as.
pub const RECTANGLES_MAX: usize = 64;

/// A part of a screen, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rectangle {
    /// The leftmost pixel.
    pub x: u32,
    /// The topmost pixel.
    pub y: u32,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

impl Rectangle {
    /// What both have; of size 0 if that is nothing.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        let x = self.x.max(other.x);
        let y = self.y.max(other.y);
        let right = self.right().min(other.right());
        let bottom = self.bottom().min(other.bottom());
        if right <= x || bottom <= y {
            return Self::default();
        }
        Self {
            x,
            y,
            width: right - x,
            height: bottom - y,
        }
    }

    /// The least that has both.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let x = self.x.min(other.x);
        let y = self.y.min(other.y);
        Self {
            x,
            y,
            width: self.right().max(other.right()) - x,
            height: self.bottom().max(other.bottom()) - y,
        }
    }

    /// Whether it has no pixel.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// The first column behind it.
    #[must_use]
    pub fn right(self) -> u32 {
        self.x.saturating_add(self.width)
    }

    /// The first line below it.
    #[must_use]
    pub fn bottom(self) -> u32 {
        self.y.saturating_add(self.height)
    }
}

/// A bit for each tile of a screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiles {
    width: u32,
    height: u32,
    /// Words of a row of tiles.
    words: usize,
    bits: Vec<u64>,
}

impl Tiles {
    /// Nothing of a screen of this size in pixels.
    #[must_use]
    pub fn new(width: u32, height: u32) -> Self {
        let words = (width as usize).div_ceil(TILE).div_ceil(64);
        let rows = (height as usize).div_ceil(TILE);
        Self {
            width,
            height,
            words,
            bits: vec![0; words * rows],
        }
    }

    /// The whole screen.
    #[must_use]
    pub fn screen(&self) -> Rectangle {
        Rectangle {
            x: 0,
            y: 0,
            width: self.width,
            height: self.height,
        }
    }

    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|word| *word == 0)
    }

    /// Nothing has changed.
    pub fn clear(&mut self) {
        self.bits.fill(0);
    }

    /// Everything has changed.
    pub fn fill(&mut self) {
        self.mark(self.screen());
    }

    /// The bits of the row of tiles with line `y`.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, y: usize) -> &mut [u64] {
        let row = y / TILE;
        &mut self.bits[row * self.words..(row + 1) * self.words]
    }

    /// What was marked in `other`, of the same size, is marked here too.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn unite(&mut self, other: &Self) {
        assert_eq!(self.screen(), other.screen(), "damage of the same screen");
        for (word, more) in self.bits.iter_mut().zip(&other.bits) {
            *word |= more;
        }
    }

    /// Marks each tile of which `rectangle` has a pixel.
    pub fn mark(&mut self, rectangle: Rectangle) {
        self.each_word(rectangle, |word, mask| *word |= mask);
    }

    /// Forgets each tile of which `rectangle` has a pixel.
    pub fn forget(&mut self, rectangle: Rectangle) {
        self.each_word(rectangle, |word, mask| *word &= !mask);
    }

    /// Whether a tile is marked of which `rectangle` has a pixel.
    #[must_use]
    pub fn touches(&self, rectangle: Rectangle) -> bool {
        let (rows, columns) = self.range(rectangle);
        rows.into_iter().any(|row| {
            let words = &self.bits[row * self.words..][..self.words];
            columns.clone().any(|column| is_set(words, column))
        })
    }

    /// The first run of columns, from column `from` on, of which each is marked in one of
    /// these rows at least.
    pub(crate) fn run(&self, rows: Range<usize>, from: usize) -> Option<Range<usize>> {
        let find = |from: usize, flip: u64| {
            let mut mask = u64::MAX << (from % 64);
            (from / 64..self.words).find_map(|index| {
                let rows = rows.clone();
                let any = rows.fold(0, |any, row| any | self.bits[row * self.words + index]);
                let found = (any ^ flip) & mask;
                mask = u64::MAX;
                (found != 0).then(|| index * 64 + found.trailing_zeros() as usize)
            })
        };
        let start = find(from, 0)?;
        Some(start..find(start, u64::MAX).unwrap_or(self.words * 64))
    }

    /// What is marked, as at most `max` rectangles, in pixels of the screen. Tiles in a row
    /// are one, and so are equal rows; if that is still too many, neighbours are joined.
    #[must_use]
    pub fn rectangles(&self, max: usize) -> Vec<Rectangle> {
        let mut done = Vec::new();
        // Those that reach down to the row before, from left to right.
        let mut open: Vec<Rectangle> = Vec::new();
        for (row, words) in self.bits.chunks_exact(self.words.max(1)).enumerate() {
            let mut reaching = Vec::new();
            let mut above = open.into_iter().peekable();
            for run in runs(words) {
                let mut area = self.area(run, row);
                while let Some(other) = above.next_if(|above| above.x < area.x) {
                    done.push(other);
                }
                if let Some(other) = above.next_if(|above| above.x == area.x) {
                    if other.width == area.width {
                        area = area.hull(other);
                    } else {
                        done.push(other);
                    }
                }
                reaching.push(area);
            }
            done.extend(above);
            open = reaching;
        }
        done.extend(open);
        done.sort_by_key(|area| (area.y, area.x));
        join(&mut done, max.max(1));
        done
    }

    /// The pixels of a run of tiles.
    fn area(&self, run: Range<usize>, row: usize) -> Rectangle {
        let (x, y) = (pixels(run.start), pixels(row));
        Rectangle {
            x,
            y,
            width: pixels(run.end).min(self.width) - x,
            height: pixels(row + 1).min(self.height) - y,
        }
    }

    /// Rows and columns of tiles of which `rectangle` has a pixel.
    fn range(&self, rectangle: Rectangle) -> (Range<usize>, Range<usize>) {
        let inner = rectangle.intersection(self.screen());
        let tiles = |start: u32, end: u32| start as usize / TILE..(end as usize).div_ceil(TILE);
        (
            tiles(inner.y, inner.bottom()),
            tiles(inner.x, inner.right()),
        )
    }

    /// Gives each word with tiles of `rectangle`, and a mask of them.
    fn each_word(&mut self, rectangle: Rectangle, mut with: impl FnMut(&mut u64, u64)) {
        if rectangle.is_empty() {
            return;
        }
        let (rows, columns) = self.range(rectangle);
        for row in rows {
            let words = &mut self.bits[row * self.words..][..self.words];
            for column in columns.clone() {
                with(&mut words[column / 64], 1 << (column % 64));
            }
        }
    }

    /// The words, for who saves them.
    pub(crate) fn words(&self) -> &[u64] {
        &self.bits
    }

    /// The words, for who restores them; bits that are no tiles are dropped.
    pub(crate) fn set_words(&mut self, words: impl Iterator<Item = u64>) {
        let mut all = self.clone();
        all.fill();
        for ((word, all), value) in self.bits.iter_mut().zip(&all.bits).zip(words) {
            *word = value & all;
        }
    }
}

/// The first pixel of a tile.
fn pixels(tile: usize) -> u32 {
    u32::try_from(tile * TILE).unwrap_or(u32::MAX)
}

fn is_set(words: &[u64], column: usize) -> bool {
    words[column / 64] >> (column % 64) & 1 != 0
}

/// Runs of bits that are set.
fn runs(words: &[u64]) -> impl Iterator<Item = Range<usize>> {
    let columns = words.len() * 64;
    let mut next = 0;
    core::iter::from_fn(move || {
        let start = (next..columns).find(|&column| is_set(words, column))?;
        let end = (start..columns).find(|&column| !is_set(words, column));
        next = end.unwrap_or(columns);
        Some(start..next)
    })
}

/// Joins neighbours in the list until there are no more than `max`.
fn join(areas: &mut Vec<Rectangle>, max: usize) {
    while areas.len() > max {
        let pairs = areas.chunks(2);
        let joined = pairs.map(|pair| pair.iter().copied().reduce(Rectangle::hull));
        *areas = joined.flatten().collect();
    }
}
