//! Pixels as a client wants them.

use alloc::vec::Vec;

use super::Error;

/// The format of a client's pixels (RFC 6143 7.4): true colour of 8, 16 or 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat {
    /// Bits of a pixel.
    pub bits: u8,
    /// How many of them count.
    pub depth: u8,
    /// Whether the highest byte comes first.
    pub big_endian: bool,
    /// The highest values of red, green and blue.
    pub max: [u16; 3],
    /// Where red, green and blue begin.
    pub shift: [u8; 3],
}

impl PixelFormat {
    /// What we have: bytes of blue, green, red and nothing.
    pub const NATIVE: Self = Self {
        bits: 32,
        depth: 24,
        big_endian: false,
        max: [255; 3],
        shift: [16, 8, 0],
    };

    pub(super) const LEN: usize = 16;

    /// # Errors
    /// What of it is not supported.
    pub(super) fn read(bytes: &[u8; Self::LEN]) -> Result<Self, Error> {
        let &[
            bits,
            depth,
            big_endian,
            true_colour,
            r0,
            r1,
            g0,
            g1,
            b0,
            b1,
            rs,
            gs,
            bs,
            ..,
        ] = bytes;
        if !matches!(bits, 8 | 16 | 32) {
            return Err(Error::BitsPerPixel { bits });
        }
        if true_colour == 0 {
            return Err(Error::ColourMap);
        }
        let max = [[r0, r1], [g0, g1], [b0, b1]].map(u16::from_be_bytes);
        let shift = [rs, gs, bs];
        for (&max, &shift) in max.iter().zip(&shift) {
            // All bits of a colour are ones.
            let width = max.trailing_ones();
            let whole = max != 0 && max.count_ones() == width;
            if !whole || u32::from(shift) + width > u32::from(bits) {
                return Err(Error::Colour { max, shift, bits });
            }
        }
        Ok(Self {
            bits,
            depth,
            big_endian: big_endian != 0,
            max,
            shift,
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend([self.bits, self.depth, u8::from(self.big_endian), 1]);
        for max in self.max {
            out.extend(max.to_be_bytes());
        }
        out.extend(self.shift);
        out.extend([0; 3]);
    }

    /// A pixel in which every colour is at its highest.
    fn white(&self) -> u32 {
        let colours = self.max.iter().zip(self.shift);
        colours.fold(0, |all, (&max, shift)| all | u32::from(max) << shift)
    }
}

/// How a pixel is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Whole (PIXEL).
    Whole,
    /// As ZRLE does (CPIXEL): without the byte that is always 0.
    Compact,
    /// As Tight does (TPIXEL): red, green, blue.
    Tight,
}

/// Makes a client's pixels of ours.
#[derive(Debug)]
pub(super) struct Painter {
    format: PixelFormat,
    tables: [[u32; 256]; 3],
    /// The bytes of a pixel that are written in the compact shape.
    compact: (usize, usize),
    tight: bool,
}

impl Painter {
    pub(super) fn new(format: PixelFormat) -> Self {
        let table = |colour: usize| {
            let (max, shift) = (u32::from(format.max[colour]), format.shift[colour]);
            let mut table = [0; 256];
            for (value, entry) in (0..).zip(&mut table) {
                *entry = ((value * max + 127) / 255) << shift;
            }
            table
        };
        let len = usize::from(format.bits / 8);
        let mut compact = (0, len);
        let white = format.white();
        if format.bits == 32 && format.depth <= 24 {
            let (low, high) = (white >> 24 == 0, white & 0xFF == 0);
            // The highest byte is the last one of a pixel with its lowest byte first.
            if (low && !format.big_endian) || (high && format.big_endian) {
                compact = (0, 3);
            } else if low || high {
                compact = (1, 4);
            }
        }
        Self {
            format,
            tables: [table(0), table(1), table(2)],
            compact,
            tight: format.bits == 32 && format.depth == 24 && format.max == [255; 3],
        }
    }

    pub(super) const fn format(&self) -> PixelFormat {
        self.format
    }

    /// Bytes of a pixel in this shape.
    pub(super) fn len(&self, shape: Shape) -> usize {
        match shape {
            Shape::Compact => self.compact.1 - self.compact.0,
            Shape::Tight if self.tight => 3,
            Shape::Whole | Shape::Tight => usize::from(self.format.bits / 8),
        }
    }

    fn bytes(&self, pixel: u32) -> [u8; 4] {
        let [b, g, r, _] = pixel.to_le_bytes();
        let [red, green, blue] = &self.tables;
        let value = red[usize::from(r)] | green[usize::from(g)] | blue[usize::from(b)];
        if self.format.big_endian {
            (value << (32 - u32::from(self.format.bits))).to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    }

    /// Adds these pixels to `out`.
    pub(super) fn paint(&self, pixels: &[u32], shape: Shape, out: &mut Vec<u8>) {
        if shape == Shape::Tight && self.tight {
            out.extend(pixels.iter().flat_map(|pixel| {
                let [b, g, r, _] = pixel.to_le_bytes();
                [r, g, b]
            }));
            return;
        }
        let (start, end) = match shape {
            Shape::Compact => self.compact,
            _ => (0, usize::from(self.format.bits / 8)),
        };
        if self.format == PixelFormat::NATIVE && end == 4 {
            out.extend(
                pixels
                    .iter()
                    .flat_map(|pixel| (pixel & 0xFF_FFFF).to_le_bytes()),
            );
            return;
        }
        for &pixel in pixels {
            out.extend_from_slice(&self.bytes(pixel)[start..end]);
        }
    }
}
