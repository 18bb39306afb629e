//! Pixel formats that are shown, and how each becomes `0xAARRGGBB`.
//!
//! There is one kernel: it compares the pixels of bands with what is known of them and
//! stores what differs. A line of a band is cut at columns of damage tiles, so that inner
//! loops have a fixed length and the compiler makes vector code of them.

use alloc::string::String;
use core::fmt::Write as _;

use linkspan_mem::{Kernel, ahead, ahead_later};

use crate::bands::{BAND_MAX, Band, Line, TILES_Y};
use crate::damage::{TILE, Tiles};
use crate::fourcc::FourCc;
use crate::layout::Layout;
use crate::tiling::{COLUMN, COLUMNS, HEIGHT_Y, TILE_BYTES, Tiling, WIDTH_Y, line_y, pieces_y};

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Its code.
    pub fourcc: FourCc,
    /// Its name in drm_fourcc.h, without DRM_FORMAT_.
    pub name: &'static str,
    /// Bytes of a pixel.
    pub bytes: usize,
    /// Whether it says how opaque a pixel is.
    pub alpha: bool,
    encoding: Encoding,
}

/// What the bytes of a pixel mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Xrgb,
    Argb,
    Xbgr,
    Abgr,
    Rgbx,
    Rgba,
    Bgrx,
    Bgra,
    Xrgb30,
    Argb30,
    Xbgr30,
    Abgr30,
    Rgb24,
    Bgr24,
    Rgb565,
    Bgr565,
    Xrgb1555,
    Argb1555,
    Grey,
}

const fn row(
    fourcc: FourCc,
    name: &'static str,
    bytes: usize,
    alpha: bool,
    encoding: Encoding,
) -> Format {
    Format {
        fourcc,
        name,
        bytes,
        alpha,
        encoding,
    }
}

/// All formats that are shown.
pub const FORMATS: &[Format] = &[
    row(FourCc::XRGB8888, "XRGB8888", 4, false, Encoding::Xrgb),
    row(FourCc::ARGB8888, "ARGB8888", 4, true, Encoding::Argb),
    row(FourCc::XBGR8888, "XBGR8888", 4, false, Encoding::Xbgr),
    row(FourCc::ABGR8888, "ABGR8888", 4, true, Encoding::Abgr),
    row(FourCc::RGBX8888, "RGBX8888", 4, false, Encoding::Rgbx),
    row(FourCc::RGBA8888, "RGBA8888", 4, true, Encoding::Rgba),
    row(FourCc::BGRX8888, "BGRX8888", 4, false, Encoding::Bgrx),
    row(FourCc::BGRA8888, "BGRA8888", 4, true, Encoding::Bgra),
    row(
        FourCc::XRGB2101010,
        "XRGB2101010",
        4,
        false,
        Encoding::Xrgb30,
    ),
    row(
        FourCc::ARGB2101010,
        "ARGB2101010",
        4,
        true,
        Encoding::Argb30,
    ),
    row(
        FourCc::XBGR2101010,
        "XBGR2101010",
        4,
        false,
        Encoding::Xbgr30,
    ),
    row(
        FourCc::ABGR2101010,
        "ABGR2101010",
        4,
        true,
        Encoding::Abgr30,
    ),
    row(FourCc::RGB888, "RGB888", 3, false, Encoding::Rgb24),
    row(FourCc::BGR888, "BGR888", 3, false, Encoding::Bgr24),
    row(FourCc::RGB565, "RGB565", 2, false, Encoding::Rgb565),
    row(FourCc::BGR565, "BGR565", 2, false, Encoding::Bgr565),
    row(FourCc::XRGB1555, "XRGB1555", 2, false, Encoding::Xrgb1555),
    row(FourCc::ARGB1555, "ARGB1555", 2, true, Encoding::Argb1555),
    row(FourCc::R8, "R8", 1, false, Encoding::Grey),
];

/// The table as the book shows it.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from("| fourcc | name | bytes | alpha |\n|---|---|---|---|\n");
    for format in FORMATS {
        let alpha = if format.alpha { "yes" } else { "no" };
        let (fourcc, name, bytes) = (format.fourcc, format.name, format.bytes);
        // Writing to a string does not fail.
        let _ = writeln!(page, "| `{fourcc}` | {name} | {bytes} | {alpha} |");
    }
    page
}

/// The most pixels of a line that are read at once.
const PIECE: usize = 4 * TILE;

const OPAQUE: u32 = 0xFF00_0000;

/// Exchanges red and blue.
#[inline(always)]
const fn swapped(p: u32) -> u32 {
    p & 0xFF00_FF00 | (p & 0xFF) << 16 | p >> 16 & 0xFF
}

/// The eight highest of ten bits in each colour; `red` and `blue` are where they begin.
#[inline(always)]
const fn of_30(p: u32, red: u32, blue: u32) -> u32 {
    (p >> (red + 2) & 0xFF) << 16 | (p >> 12 & 0xFF) << 8 | p >> (blue + 2) & 0xFF
}

/// Two bits of opacity, spread over eight.
#[inline(always)]
const fn alpha_of_30(p: u32) -> u32 {
    ((p >> 30) * 0x55) << 24
}

/// Five bits spread over eight.
#[inline(always)]
const fn five(value: u32) -> u32 {
    let value = value & 0x1F;
    value << 3 | value >> 2
}

#[inline(always)]
const fn of_565(p: u32, red: u32, blue: u32) -> u32 {
    let green = p >> 5 & 0x3F;
    OPAQUE | five(p >> red) << 16 | (green << 2 | green >> 4) << 8 | five(p >> blue)
}

#[inline(always)]
const fn of_1555(p: u32) -> u32 {
    five(p >> 10) << 16 | five(p >> 5) << 8 | five(p)
}

#[inline(always)]
fn wide(bytes: [u8; 2]) -> u32 {
    u32::from(u16::from_le_bytes(bytes))
}

impl Format {
    /// The format with this code, if it is shown.
    #[must_use]
    pub fn find(fourcc: FourCc) -> Option<&'static Self> {
        FORMATS.iter().find(|format| format.fourcc == fourcc)
    }
}

/// Bands that are compared with what is known, which is brought up to date.
pub(crate) struct Merge<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) bands: &'a mut dyn Iterator<Item = Band>,
    /// Copies bytes from an offset on; `false` is the end of it all.
    pub(crate) read: &'a mut dyn FnMut(u64, &mut [u8]) -> bool,
    /// Room for two bands.
    pub(crate) room: &'a mut [u8; 2 * BAND_MAX],
    /// All that is known, `0xAARRGGBB` each.
    pub(crate) pixels: &'a mut [u32],
    /// Where tiles are marked in which something differs.
    pub(crate) damage: &'a mut Tiles,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let format = self.layout.format();
        let word = u32::from_le_bytes;
        match format.encoding {
            Encoding::Xrgb => self.with(|p| OPAQUE | word(p)),
            Encoding::Argb => self.with(word),
            Encoding::Xbgr => self.with(|p| OPAQUE | swapped(word(p))),
            Encoding::Abgr => self.with(|p| swapped(word(p))),
            Encoding::Rgbx => self.with(|p| OPAQUE | word(p) >> 8),
            Encoding::Rgba => self.with(|p| word(p).rotate_right(8)),
            Encoding::Bgrx => self.with(|p| OPAQUE | swapped(word(p) >> 8)),
            Encoding::Bgra => self.with(|p| swapped(word(p).rotate_right(8))),
            Encoding::Xrgb30 => self.with(|p| OPAQUE | of_30(word(p), 20, 0)),
            Encoding::Argb30 => self.with(|p| alpha_of_30(word(p)) | of_30(word(p), 20, 0)),
            Encoding::Xbgr30 => self.with(|p| OPAQUE | of_30(word(p), 0, 20)),
            Encoding::Abgr30 => self.with(|p| alpha_of_30(word(p)) | of_30(word(p), 0, 20)),
            Encoding::Rgb24 => self.with(|[b, g, r]| word([b, g, r, 0xFF])),
            Encoding::Bgr24 => self.with(|[r, g, b]| word([b, g, r, 0xFF])),
            Encoding::Rgb565 => self.with(|p| of_565(wide(p), 11, 0)),
            Encoding::Bgr565 => self.with(|p| of_565(wide(p), 0, 11)),
            Encoding::Xrgb1555 => self.with(|p| OPAQUE | of_1555(wide(p))),
            Encoding::Argb1555 => self.with(|p| ((wide(p) >> 15) * OPAQUE) | of_1555(wide(p))),
            Encoding::Grey => self.with(|[v]| word([v, v, v, 0xFF])),
        }
    }
}

impl Merge<'_> {
    /// Does it for pixels of `N` bytes that `pixel` converts.
    #[inline(always)]
    fn with<const N: usize>(self, pixel: impl Fn([u8; N]) -> u32) {
        match self.layout.tiling() {
            Tiling::Y => self.columns(pixel),
            Tiling::Linear | Tiling::X => self.lines(pixel),
        }
    }

    /// Where lines are in one piece. They are read in short pieces: then what is read and
    /// what it is compared with come from memory at the same time.
    #[inline(always)]
    fn lines<const N: usize>(self, pixel: impl Fn([u8; N]) -> u32) {
        let width = self.layout.surface().width as usize;
        for band in self.bands {
            let pitch = self.layout.pitch(band);
            for line in self.layout.lines(band, N) {
                let columns = self.damage.row_mut(line.y);
                let mut offset = band.offset + (line.row * pitch + line.start) as u64;
                let (mut x, end) = (line.x, line.x + line.len / N);
                while x < end {
                    let next = ((x + PIECE) / TILE * TILE).min(end);
                    let bytes = &mut self.room[..(next - x) * N];
                    if !(self.read)(offset, bytes) {
                        return;
                    }
                    let (piece, _) = bytes.as_chunks();
                    let at = line.y * width;
                    let soon = at + x + PIECE;
                    ahead(self.pixels.get(soon..soon + piece.len()).unwrap_or(&[]));
                    run(piece, &mut self.pixels[at..][..width], x, columns, &pixel);
                    offset += (piece.len() * N) as u64;
                    x = next;
                }
            }
        }
    }

    /// Where they are in columns. With each line of a band a part of the next one is read, and
    /// a hint goes to what that will be compared with, so that both come from memory meanwhile.
    #[inline(always)]
    fn columns<const N: usize>(self, pixel: impl Fn([u8; N]) -> u32) {
        let width = self.layout.surface().width as usize;
        let (mut tiles, mut next_tiles) = self.room.split_at_mut(BAND_MAX);
        let Some(mut band) = self.bands.next() else {
            return;
        };
        let mut ok = (self.read)(band.offset, &mut tiles[..band.len]);
        while ok {
            let next = self.bands.next();
            let (mut offset, len) = next.map_or((0, 0), |next| (next.offset, next.len));
            let mut parts = next_tiles[..len].chunks_mut((len / HEIGHT_Y).max(1));
            let mut read = |part: &mut [u8]| {
                let from = offset;
                offset += part.len() as u64;
                (self.read)(from, part)
            };
            let next_lines = next.map(|next| self.layout.lines(next, N));
            let mut next_lines = next_lines.into_iter().flatten();
            for line in self.layout.lines(band, N) {
                if ok && let Some(part) = parts.next() {
                    ok = read(part);
                }
                // Its lines are too short for the processor to foresee.
                if let Some(Line { x, y, len, .. }) = next_lines.next() {
                    ahead_later(&self.pixels[y * width + x..][..len / N]);
                }
                let known = &mut self.pixels[line.y * width..][..width];
                let columns = self.damage.row_mut(line.y);
                run_y(tiles.as_chunks().0, line, known, columns, &pixel);
            }
            ok = ok && parts.all(read);
            let Some(next) = next else {
                return;
            };
            band = next;
            core::mem::swap(&mut tiles, &mut next_tiles);
        }
    }
}

/// A line of Y tiles.
#[inline(always)]
fn run_y<const N: usize>(
    tiles: &[[u8; TILE_BYTES]],
    line: Line,
    known: &mut [u32],
    columns: &mut [u64],
    pixel: &impl Fn([u8; N]) -> u32,
) {
    let (mut start, mut x, end) = (line.start, line.x, line.start + line.len);
    // Columns of damage piece by piece, if they are whole ones of the tiles.
    if start.is_multiple_of(TILE * N) && x.is_multiple_of(TILE) {
        while start + TILE * N <= end
            && let Some(known) = known[x..].first_chunk_mut()
        {
            let pieces = pieces_y(&tiles[start / WIDTH_Y], line.row);
            let from = start % WIDTH_Y / COLUMN;
            mark(columns, x / TILE, whole_y(pieces, from, known, pixel));
            start += TILE * N;
            x += TILE;
        }
    }
    if start == end {
        return;
    }
    let mut bytes = [[[0; COLUMN]; COLUMNS]; TILES_Y];
    for (bytes, tile) in bytes.iter_mut().zip(tiles) {
        *bytes = line_y(tile, line.row);
    }
    let (rest, _) = bytes.as_flattened().as_flattened()[start..end].as_chunks();
    run(rest, known, x, columns, pixel);
}

/// A column of damage in a line of a Y tile, from piece `from` on; says whether anything in
/// it differed. Pieces are compared where they are, two by two: what was just stored in pieces
/// is slow to load as a whole.
#[inline(always)]
fn whole_y<const N: usize>(
    pieces: impl Fn(usize) -> [u8; COLUMN],
    from: usize,
    known: &mut [u32; TILE],
    pixel: &impl Fn([u8; N]) -> u32,
) -> bool {
    let count = 2 * COLUMN / N;
    let fresh = |pair: usize| {
        let pair = [0, 1].map(|piece| pieces(from + 2 * pair + piece));
        let mut fresh = [0; 2 * COLUMN];
        for (fresh, bytes) in fresh.iter_mut().zip(pair.as_flattened().as_chunks().0) {
            *fresh = pixel(*bytes);
        }
        fresh
    };
    let mut differs = false;
    for (pair, known) in known.chunks_exact(count).enumerate() {
        differs |= fresh(pair)[..count] != *known;
    }
    if differs {
        for (pair, known) in known.chunks_exact_mut(count).enumerate() {
            known.copy_from_slice(&fresh(pair)[..count]);
        }
    }
    differs
}

/// One line.
#[inline(always)]
fn run<const N: usize>(
    pixels: &[[u8; N]],
    line: &mut [u32],
    x: usize,
    columns: &mut [u64],
    pixel: &impl Fn([u8; N]) -> u32,
) {
    let known = &mut line[x..x + pixels.len()];
    let mut column = x / TILE;
    let head = (x.next_multiple_of(TILE) - x).min(pixels.len());
    let (first, pixels) = pixels.split_at(head);
    let (first_known, known) = known.split_at_mut(head);
    if head > 0 {
        mark(columns, column, ragged(first, first_known, pixel));
        column += 1;
    }
    let (pixels, rest) = pixels.as_chunks::<TILE>();
    let (known, rest_known) = known.as_chunks_mut::<TILE>();
    for (pixels, known) in pixels.iter().zip(known) {
        mark(columns, column, whole(pixels, known, pixel));
        column += 1;
    }
    if !rest.is_empty() {
        mark(columns, column, ragged(rest, rest_known, pixel));
    }
}

#[inline(always)]
fn mark(columns: &mut [u64], column: usize, differs: bool) {
    columns[column / 64] |= u64::from(differs) << (column % 64);
}

/// A column of a line of a tile; says whether anything in it differed.
#[inline(always)]
fn whole<const N: usize>(
    pixels: &[[u8; N]; TILE],
    known: &mut [u32; TILE],
    pixel: &impl Fn([u8; N]) -> u32,
) -> bool {
    let mut fresh = [0; TILE];
    let mut differs = 0;
    for ((fresh, bytes), known) in fresh.iter_mut().zip(pixels).zip(known.iter()) {
        *fresh = pixel(*bytes);
        differs |= *fresh ^ known;
    }
    if differs == 0 {
        return false;
    }
    *known = fresh;
    true
}

/// The same for fewer pixels.
#[inline(always)]
fn ragged<const N: usize>(
    pixels: &[[u8; N]],
    known: &mut [u32],
    pixel: &impl Fn([u8; N]) -> u32,
) -> bool {
    let mut differs = 0;
    for (bytes, known) in pixels.iter().zip(known) {
        let value = pixel(*bytes);
        differs |= value ^ *known;
        *known = value;
    }
    differs != 0
}
