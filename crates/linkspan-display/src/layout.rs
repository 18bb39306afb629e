//! How a picture lies in its memory, checked once; and the bands in which it is read.

use core::fmt;

use thiserror::Error;

use crate::damage::TILE;
use crate::format::Format;
use crate::fourcc::{FourCc, Modifier};
use crate::tiling::{TILE_BYTES, Tiling};

/// The widest picture, in pixels.
pub const WIDTH_MAX: u32 = 16384;
/// The highest picture, in lines.
pub const HEIGHT_MAX: u32 = 16384;
/// The largest picture, in pixels: 8K.
pub const PIXELS_MAX: u32 = 7680 * 4320;
/// The most bytes of a band, so that it stays in the first cache with what becomes of it.
/// More is slower: while a band is copied the memory that it is compared with is idle.
pub const BAND_MAX: usize = TILE_BYTES;

/// A picture in memory, as its maker describes it. Nothing of it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surface {
    /// The format of a pixel.
    pub format: FourCc,
    /// The order of lines.
    pub modifier: Modifier,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Bytes from a line to the next one.
    pub stride: u32,
    /// Where it begins in its memory, in bytes.
    pub offset: u64,
    /// Where the picture begins in the surface, in pixels: tiles are counted from 0.
    pub x: u32,
    /// The same in lines.
    pub y: u32,
}

/// Why a picture is not shown. It is never shown wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not a format of the table.
    #[error("format {format} is not supported")]
    Format {
        /// Which.
        format: FourCc,
    },
    /// Its colours are in a palette, and nobody says which.
    #[error("format {format} has a palette, which is not told")]
    Palette {
        /// Which.
        format: FourCc,
    },
    /// Its colours are luminance and two differences.
    #[error("video format {format} is not supported")]
    Video {
        /// Which.
        format: FourCc,
    },
    /// Not an order of lines that is read.
    #[error("tiling {modifier} is not supported")]
    Modifier {
        /// Which.
        modifier: Modifier,
    },
    /// Tiles whose bytes are compressed.
    #[error("compressed memory ({modifier}) is not supported")]
    Compressed {
        /// How.
        modifier: Modifier,
    },
    /// No size, or too large a one.
    #[error(
        "a picture of {width}x{height}; the most is {WIDTH_MAX}x{HEIGHT_MAX} and {PIXELS_MAX} pixels"
    )]
    Size {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// Lines would overlap.
    #[error("a stride of {stride} bytes for lines of {line}")]
    Stride {
        /// Bytes from line to line.
        stride: u32,
        /// Bytes of a line, what is left of the picture included.
        line: u64,
    },
    /// Rows of tiles that are not whole.
    #[error("a stride of {stride} bytes, no multiple of {unit}")]
    StrideUnit {
        /// Bytes from line to line.
        stride: u32,
        /// Bytes of a line of a tile.
        unit: usize,
    },
    /// Tiles begin at a page.
    #[error("tiles that begin at byte {offset:#x}, no multiple of 4096")]
    Offset {
        /// Where.
        offset: u64,
    },
    /// It is not in its memory.
    #[error("a picture that ends at byte {end} of memory of {size}")]
    Outside {
        /// The first byte behind it.
        end: u64,
        /// Bytes there are.
        size: u64,
    },
}

/// A picture in memory that was checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    surface: Surface,
    format: &'static Format,
    tiling: Tiling,
    end: u64,
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.surface, f)
    }
}

fn known_format(format: FourCc) -> Result<&'static Format, Refusal> {
    Format::find(format).ok_or(match format {
        FourCc::C8 => Refusal::Palette { format },
        FourCc::YUYV | FourCc::YVYU | FourCc::UYVY | FourCc::VYUY | FourCc::NV12 => {
            Refusal::Video { format }
        }
        _ => Refusal::Format { format },
    })
}

fn known_tiling(modifier: Modifier) -> Result<Tiling, Refusal> {
    let compressed = matches!(modifier.0 ^ (1 << 56), 4..=8);
    Tiling::from_modifier(modifier).ok_or(if compressed {
        Refusal::Compressed { modifier }
    } else {
        Refusal::Modifier { modifier }
    })
}

impl Layout {
    /// Checks everything that `surface` says, in memory of `size` bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(surface: &Surface, size: u64) -> Result<Self, Refusal> {
        let &Surface {
            width,
            height,
            stride,
            offset,
            ..
        } = surface;
        let format = known_format(surface.format)?;
        let tiling = known_tiling(surface.modifier)?;
        let sized = (1..=WIDTH_MAX).contains(&width) && (1..=HEIGHT_MAX).contains(&height);
        if !sized || width * height > PIXELS_MAX {
            return Err(Refusal::Size { width, height });
        }
        let line = (u64::from(surface.x) + u64::from(width)) * format.bytes as u64;
        if u64::from(stride) < line {
            return Err(Refusal::Stride { stride, line });
        }
        let lines = u64::from(surface.y) + u64::from(height);
        let length = if tiling == Tiling::Linear {
            let above = (lines - 1).saturating_mul(stride.into());
            above.saturating_add(line)
        } else {
            let unit = tiling.width_bytes();
            if !(stride as usize).is_multiple_of(unit) {
                return Err(Refusal::StrideUnit { stride, unit });
            }
            if !offset.is_multiple_of(TILE_BYTES as u64) {
                return Err(Refusal::Offset { offset });
            }
            let lines = lines.next_multiple_of(tiling.height() as u64);
            lines.saturating_mul(stride.into())
        };
        let end = offset.saturating_add(length);
        // The last address stands for all that there are not.
        if end > size || end == u64::MAX {
            return Err(Refusal::Outside { end, size });
        }
        Ok(Self {
            surface: *surface,
            format,
            tiling,
            end,
        })
    }

    /// What was checked.
    #[must_use]
    pub const fn surface(&self) -> &Surface {
        &self.surface
    }

    /// Its format.
    #[must_use]
    pub const fn format(&self) -> &'static Format {
        self.format
    }

    /// Its order of lines.
    #[must_use]
    pub const fn tiling(&self) -> Tiling {
        self.tiling
    }

    /// The first byte behind it. No band ends later.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// The bands that are all of it, in the order of memory.
    pub fn bands(&self) -> impl Iterator<Item = Band> + use<> {
        let grid = self.grid();
        let mut next = Some((grid.first_row, 0));
        core::iter::from_fn(move || {
            let (row, part) = next?;
            let band = grid.band(row, part);
            next = match (part + 1 < grid.parts, band.next_row) {
                (true, _) => Some((row, part + 1)),
                (false, row) if row < grid.last_row => Some((row, 0)),
                _ => None,
            };
            Some(band)
        })
    }

    /// The bytes of a line that are the picture, from the first to behind the last.
    #[inline(always)]
    fn line(&self) -> (usize, usize) {
        let start = self.surface.x as usize * self.format.bytes;
        (
            start,
            start + self.surface.width as usize * self.format.bytes,
        )
    }

    fn grid(&self) -> Grid {
        let (start, end) = self.line();
        let (width, height) = (self.tiling.width_bytes(), self.tiling.height());
        let stride = self.surface.stride as usize;
        let top = self.surface.y as usize;
        let bytes = self.format.bytes;
        let linear = self.tiling == Tiling::Linear;
        // Parts of a line are whole columns of damage.
        let piece = match linear {
            true => BAND_MAX / bytes / TILE * TILE * bytes,
            false => width,
        };
        let start = if linear { start } else { start / width * width };
        let parts = (end - start).div_ceil(piece);
        // As many lines as fit, if each is read whole.
        let lines = match parts {
            1 if linear => 1 + (BAND_MAX - (end - start)) / stride,
            _ => 1,
        };
        Grid {
            offset: self.surface.offset,
            linear,
            stride,
            height,
            start,
            end,
            piece,
            parts,
            lines,
            first_row: top / height,
            last_row: (top + self.surface.height as usize).div_ceil(height),
        }
    }
}

/// A layout cut into bands.
#[derive(Clone, Copy)]
struct Grid {
    offset: u64,
    linear: bool,
    stride: usize,
    /// Lines of a row: of one line, or of tiles.
    height: usize,
    /// The first byte of a line, or of its first tile.
    start: usize,
    /// The one behind its last.
    end: usize,
    /// Bytes of a line in a band.
    piece: usize,
    /// Bands side by side.
    parts: usize,
    /// Rows of a band.
    lines: usize,
    /// The line of the surface, or row of tiles, with which the picture begins.
    first_row: usize,
    /// The one behind its last.
    last_row: usize,
}

impl Grid {
    #[inline]
    fn band(&self, row: usize, part: usize) -> Band {
        let from = self.start + part * self.piece;
        if self.linear {
            let to = self.end.min(from + self.piece);
            let lines = self.lines.min(self.last_row - row);
            return Band {
                offset: self.offset + (row * self.stride + from) as u64,
                len: (lines - 1) * self.stride + (to - from),
                row,
                next_row: row + lines,
                from,
                to,
            };
        }
        // So many lines of a tile are one tile.
        let place = row * self.height * self.stride + from * self.height;
        Band {
            offset: self.offset + place as u64,
            len: TILE_BYTES,
            row,
            next_row: row + 1,
            from,
            to: from + self.piece,
        }
    }
}

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
    /// Bytes from a line of a band to the next one.
    #[inline(always)]
    pub(crate) fn pitch(&self, band: Band) -> usize {
        match self.tiling {
            Tiling::Linear => self.surface.stride as usize,
            // A tile is a band, and has its lines one after the other.
            Tiling::X | Tiling::Y => band.to - band.from,
        }
    }

    /// The lines of the picture in a band, of pixels of `N` bytes.
    #[inline(always)]
    pub(crate) fn lines<const N: usize>(&self, band: Band) -> impl Iterator<Item = Line> + use<N> {
        let (start, end) = self.line();
        let (from, to) = (band.from.max(start), band.to.min(end));
        let top = self.surface.y as usize;
        let first = band.row * self.tiling.height();
        let lines = first.max(top)
            ..(band.next_row * self.tiling.height()).min(top + self.surface.height as usize);
        lines.map(move |line| Line {
            row: line - first,
            start: from - band.from,
            len: to - from,
            x: (from - start) / N,
            y: line - top,
        })
    }
}
