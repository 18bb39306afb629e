//! Rectangles of Tight: one colour, a palette, or pixels; no JPEG, so nothing is lost.

use alloc::vec::Vec;

use super::deflate::Deflate;
use super::encode::Palette;
use super::pixel::{Painter, Shape};

/// The widest rectangle.
pub(super) const WIDTH_MAX: u32 = 2048;
/// The most pixels of a rectangle, so that its length fits into 22 bits.
pub(super) const PIXELS_MAX: u32 = 1 << 16;

/// Fewer bytes are sent as they are.
const DEFLATE_MIN: usize = 12;
const FILL: u8 = 0x80;
/// A filter is named; the first stream.
const FILTER: u8 = 0x40;
const PALETTE: u8 = 1;

/// Adds a rectangle.
pub(super) fn rectangle(
    pixels: &[u32],
    width: usize,
    painter: &Painter,
    stream: &mut Deflate,
    level: u8,
    out: &mut Vec<u8>,
) {
    let palette = Palette::of(pixels);
    let mut data = Vec::new();
    match palette {
        Some(palette) if palette.colours().len() == 1 => {
            out.push(FILL);
            painter.paint(palette.colours(), Shape::Tight, out);
            return;
        }
        Some(palette) => {
            let count = palette.colours().len();
            out.extend([FILTER, PALETTE, u8::try_from(count - 1).unwrap_or(0)]);
            painter.paint(palette.colours(), Shape::Tight, out);
            if count == 2 {
                for line in pixels.chunks(width) {
                    palette.pack(line, 1, &mut data);
                }
            } else {
                data.extend(pixels.iter().map(|pixel| palette.index(*pixel)));
            }
        }
        None => {
            out.push(0);
            painter.paint(pixels, Shape::Tight, &mut data);
        }
    }
    if data.len() < DEFLATE_MIN {
        out.extend(data);
        return;
    }
    let mut packed = Vec::new();
    stream.write(&data, level, &mut packed);
    stream.flush(level, &mut packed);
    length(packed.len(), out);
    out.extend(packed);
}

/// A length of up to 22 bits, seven, seven and eight to a byte.
fn length(len: usize, out: &mut Vec<u8>) {
    let part = |shift: usize, mask: usize| u8::try_from(len >> shift & mask).unwrap_or(0);
    match len {
        0..0x80 => out.push(part(0, 0x7F)),
        0x80..0x4000 => out.extend([part(0, 0x7F) | 0x80, part(7, 0x7F)]),
        _ => out.extend([part(0, 0x7F) | 0x80, part(7, 0x7F) | 0x80, part(14, 0xFF)]),
    }
}
