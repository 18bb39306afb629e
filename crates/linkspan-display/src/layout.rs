//! How a picture lies in its memory, checked once.

use core::fmt;

use thiserror::Error;

use crate::format::Format;
use crate::fourcc::{FourCc, Modifier};
use crate::tiling::{TILE_BYTES, Tiling};

/// The widest picture, in pixels.
pub const WIDTH_MAX: u32 = 16384;
/// The highest picture, in lines.
pub const HEIGHT_MAX: u32 = 16384;
/// The largest picture, in pixels: 8K.
pub const PIXELS_MAX: u32 = 7680 * 4320;

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
    /// Lines of its tiles are no whole pixels: some would lie across two, as on no hardware.
    #[error("format {format} with tiling {modifier} is not supported: pixels would be cut")]
    Cut {
        /// Of three bytes.
        format: FourCc,
        /// With lines of 128 or 512.
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
        if !tiling.width_bytes().is_multiple_of(format.bytes) && tiling != Tiling::Linear {
            return Err(Refusal::Cut {
                format: surface.format,
                modifier: surface.modifier,
            });
        }
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

    /// The bytes of a line that are the picture, from the first to behind the last.
    #[inline(always)]
    pub(crate) fn line(&self) -> (usize, usize) {
        let start = self.surface.x as usize * self.format.bytes;
        (
            start,
            start + self.surface.width as usize * self.format.bytes,
        )
    }
}
