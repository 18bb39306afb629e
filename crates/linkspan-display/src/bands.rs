//! The bands in which a picture is read: all of it, or those with tiles that may have changed.

use core::ops::Range;

use crate::damage::{TILE, Tiles};
use crate::layout::Layout;
use crate::tiling::{TILE_BYTES, Tiling};

/// The most bytes of a band, so that it stays in the caches with what becomes of it.
pub const BAND_MAX: usize = TILES_Y * TILE_BYTES;
/// Bytes of a band of lines.
const LINES_MAX: usize = TILE_BYTES;
/// Tiles of a band of Y tiles, which are side by side: lines of 512 bytes, as memory likes long
/// runs. Two bands and what they are compared with are a little more than the first cache holds.
pub(crate) const TILES_Y: usize = 4;

/// A piece of memory that is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its bytes, at most [`BAND_MAX`].
    pub len: usize,
    /// The line of the surface, or row of tiles, that is its first.
    pub(crate) row: usize,
    /// The one behind its last.
    pub(crate) next_row: usize,
    /// The bytes of a line that it has.
    pub(crate) from: usize,
    /// And the one behind them.
    pub(crate) to: usize,
}

/// A line of the picture in a band.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    /// Which line of the band.
    pub(crate) row: usize,
    /// The first byte of the picture in it.
    pub(crate) start: usize,
    /// How many.
    pub(crate) len: usize,
    /// The first pixel of the picture.
    pub(crate) x: usize,
    /// The line of the picture.
    pub(crate) y: usize,
}

impl Layout {
    /// The bands that are all of it, in the order of memory.
    pub fn bands(&self) -> impl Iterator<Item = Band> + use<> {
        Bands::new(self, None)
    }

    /// The bands of one row of them in `step`, from the row of the number `first` on: all of them, once
    /// `first` was each number below `step`.
    ///
    /// # Panics
    /// If `step` is 0.
    pub fn bands_of_rows(&self, first: usize, step: usize) -> impl Iterator<Item = Band> + use<> {
        assert_ne!(step, 0);
        let mut bands = Bands::new(self, None);
        bands.step = step;
        bands.row += first * bands.rows;
        match bands.row < bands.last_row {
            true => bands.begin_row(),
            false => bands.left = 0..0,
        }
        bands
    }

    /// The bands with pixels of what is marked, in the order of memory, and few others.
    ///
    /// # Panics
    /// If that is of a screen of another size.
    pub fn bands_within<'a>(&self, marked: &'a Tiles) -> impl Iterator<Item = Band> + use<'a> {
        let screen = marked.screen();
        let surface = self.surface();
        assert_eq!(
            (screen.width, screen.height),
            (surface.width, surface.height)
        );
        Bands::new(self, Some(marked))
    }

    /// Bytes from a line of a band to the next one.
    #[inline(always)]
    pub(crate) fn pitch(&self, band: Band) -> usize {
        match self.tiling() {
            Tiling::Linear => self.surface().stride as usize,
            // The lines of its tiles are one after the other.
            Tiling::X | Tiling::Y => band.to - band.from,
        }
    }

    /// The lines of the picture in a band, of pixels of so many bytes.
    #[inline(always)]
    pub(crate) fn lines(&self, band: Band, bytes: usize) -> impl Iterator<Item = Line> + use<> {
        let (start, end) = self.line();
        let (from, to) = (band.from.max(start), band.to.min(end));
        let height = self.tiling().height();
        let top = self.surface().y as usize;
        let first = band.row * height;
        let lines =
            first.max(top)..(band.next_row * height).min(top + self.surface().height as usize);
        lines.map(move |line| Line {
            row: line - first,
            start: from - band.from,
            len: to - from,
            x: (from - start) / bytes,
            y: line - top,
        })
    }
}

/// A layout cut into bands: rows of lines or of tiles, and each row into pieces.
struct Bands<'a> {
    marked: Option<&'a Tiles>,
    offset: u64,
    linear: bool,
    stride: usize,
    /// Bytes of a pixel.
    bytes: usize,
    /// Bytes of a line of a tile.
    unit: usize,
    /// Lines of a row: one line, or those of a tile.
    height: usize,
    /// The line with which the picture begins, and the one behind it.
    lines: Range<usize>,
    /// The bytes of a line that are the picture.
    line: Range<usize>,
    /// Bytes of a line in a band.
    piece: usize,
    /// Rows of a band.
    rows: usize,
    /// Bands are those of one in so many such rows.
    step: usize,
    /// The row behind the last one.
    last_row: usize,
    /// Where the next band is: its row, the rows of damage there, the bytes of a line that
    /// are left of a run of what is marked, and the column behind that run.
    row: usize,
    tiles: Range<usize>,
    left: Range<usize>,
    column: usize,
}

impl<'a> Bands<'a> {
    fn new(layout: &Layout, marked: Option<&'a Tiles>) -> Self {
        let (start, end) = layout.line();
        let surface = layout.surface();
        let (unit, height) = (layout.tiling().width_bytes(), layout.tiling().height());
        let (top, stride) = (surface.y as usize, surface.stride as usize);
        let bytes = layout.format().bytes;
        let linear = layout.tiling() == Tiling::Linear;
        // Pieces of a line are whole columns of damage.
        let piece = match layout.tiling() {
            Tiling::Linear => LINES_MAX / bytes / TILE * TILE * bytes,
            Tiling::X => unit,
            Tiling::Y => TILES_Y * unit,
        };
        // As many lines as fit, if each is read whole.
        let rows = match linear && end - start <= piece {
            true => 1 + (LINES_MAX - (end - start)) / stride,
            false => 1,
        };
        let bottom = top + surface.height as usize;
        let mut bands = Self {
            marked,
            offset: surface.offset,
            linear,
            stride,
            bytes,
            unit,
            height,
            lines: top..bottom,
            line: start..end,
            piece,
            rows,
            step: 1,
            last_row: bottom.div_ceil(height),
            row: top / height,
            tiles: 0..0,
            left: 0..0,
            column: 0,
        };
        bands.begin_row();
        bands
    }

    /// The row behind the one that is under way, if it were a band.
    fn next_row(&self) -> usize {
        (self.row + self.rows).min(self.last_row)
    }

    /// Begins the row of `row`: its first run is wanted.
    fn begin_row(&mut self) {
        let first = (self.row * self.height).max(self.lines.start) - self.lines.start;
        let end = (self.next_row() * self.height).min(self.lines.end) - self.lines.start;
        self.tiles = first / TILE..end.div_ceil(TILE);
        self.left = match self.marked {
            Some(_) => 0..0,
            None => self.whole_line(),
        };
        self.column = 0;
    }

    /// The bytes of a line from that of its first tile on.
    fn whole_line(&self) -> Range<usize> {
        self.line.start / self.unit * self.unit..self.line.end
    }

    /// Finds the next run of what is marked in this row; whether there is one.
    fn next_run(&mut self) -> bool {
        let Some(marked) = self.marked else {
            return false;
        };
        let Some(run) = marked.run(self.tiles.clone(), self.column) else {
            return false;
        };
        // Several lines are read whole.
        if self.rows > 1 {
            self.column = usize::MAX;
            self.left = self.whole_line();
            return true;
        }
        self.column = run.end;
        let columns = self.line.start..self.line.end;
        let byte = |column: usize| columns.start + column * TILE * self.bytes;
        let from = byte(run.start) / self.unit * self.unit;
        // The tile of the run before may have the beginning of this one.
        self.left = from.max(self.left.start)..byte(run.end).min(columns.end);
        true
    }
}

impl Iterator for Bands<'_> {
    type Item = Band;

    #[inline]
    fn next(&mut self) -> Option<Band> {
        while self.left.is_empty() {
            if self.row >= self.last_row {
                return None;
            }
            if !self.next_run() {
                self.row += self.rows * self.step;
                if self.row < self.last_row {
                    self.begin_row();
                }
            }
        }
        let (row, from) = (self.row, self.left.start);
        if !self.linear {
            let to = self.left.end.next_multiple_of(self.unit);
            let to = to.min(from + self.piece);
            self.left.start = to;
            // So many lines of a tile are one tile.
            let place = row * self.height * self.stride + from * self.height;
            return Some(Band {
                offset: self.offset + place as u64,
                len: (to - from) * self.height,
                row,
                next_row: row + 1,
                from,
                to,
            });
        }
        let to = self.left.end.min(from + self.piece);
        self.left.start = to;
        let next_row = self.next_row();
        Some(Band {
            offset: self.offset + (row * self.stride + from) as u64,
            len: (next_row - row - 1) * self.stride + (to - from),
            row,
            next_row,
            from,
            to,
        })
    }
}
