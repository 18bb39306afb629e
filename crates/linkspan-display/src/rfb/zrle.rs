//! Tiles of ZRLE (RFC 6143 7.7.6), before they go through zlib.

use alloc::vec::Vec;

use super::encode::Palette;
use super::pixel::{Painter, Shape};

/// Pixels of a tile, across and down.
pub(super) const SIDE: u32 = 64;

/// Adds a tile, in the form that is shortest: one colour, a palette, runs, or pixels.
pub(super) fn tile(pixels: &[u32], width: usize, painter: &Painter, out: &mut Vec<u8>) {
    let palette = Palette::of(pixels);
    let each = painter.len(Shape::Compact);
    if let Some([colour]) = palette.as_ref().map(Palette::colours) {
        out.push(1);
        painter.paint(&[*colour], Shape::Compact, out);
        return;
    }
    let (mut runs, mut run_bytes, mut single) = (0, 0, 0);
    for (_, len) in runs_of(pixels) {
        runs += 1;
        run_bytes += 1 + (len - 1) / 255;
        single += usize::from(len == 1);
    }
    let plain = pixels.len() * each;
    let as_runs = runs * each + run_bytes;
    let height = pixels.len() / width.max(1);
    if let Some(palette) = palette {
        let count = palette.colours().len();
        let bits = match count {
            2 => 1,
            3..=4 => 2,
            _ => 4,
        };
        let packed = height * width.div_ceil(8 / bits);
        // A run of one has no length.
        let indexed = runs + run_bytes - single;
        let head = count * each;
        if head + packed.min(indexed) < plain.min(as_runs) {
            let number = u8::try_from(count).unwrap_or(0);
            out.push(if packed <= indexed {
                number
            } else {
                128 + number
            });
            painter.paint(palette.colours(), Shape::Compact, out);
            if packed <= indexed {
                for line in pixels.chunks(width) {
                    palette.pack(line, bits, out);
                }
                return;
            }
            for (pixel, len) in runs_of(pixels) {
                let index = palette.index(pixel);
                if len == 1 {
                    out.push(index);
                } else {
                    out.push(128 + index);
                    length(len, out);
                }
            }
            return;
        }
    }
    if as_runs < plain {
        out.push(128);
        for (pixel, len) in runs_of(pixels) {
            painter.paint(&[pixel], Shape::Compact, out);
            length(len, out);
        }
        return;
    }
    out.push(0);
    painter.paint(pixels, Shape::Compact, out);
}

/// Pixels of the same colour in a row, which go on over the ends of lines.
fn runs_of(pixels: &[u32]) -> impl Iterator<Item = (u32, usize)> {
    let same = |a: &u32, b: &u32| (a ^ b) & 0xFF_FFFF == 0;
    pixels.chunk_by(same).map(|run| (run[0], run.len()))
}

/// The length of a run: bytes that add up to one less.
fn length(len: usize, out: &mut Vec<u8>) {
    let mut left = len - 1;
    while left >= 255 {
        out.push(255);
        left -= 255;
    }
    out.push(u8::try_from(left).unwrap_or(0));
}
