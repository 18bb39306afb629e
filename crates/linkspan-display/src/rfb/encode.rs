//! Rectangles of pixels: raw, or through zlib in one of three ways.

use alloc::vec::Vec;

use super::deflate::{self, Deflate};
use super::pixel::{Painter, PixelFormat, Shape};
use super::viewer::side;
use super::{tight, zrle};
use crate::cursor::Scene;
use crate::damage::Rectangle;

/// How pixels are sent.
///
/// Not CopyRect: nobody says that a part of the screen was moved, and searching for it
/// costs more than zlib takes for what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// As they are, through zlib.
    Zlib,
    /// Areas of one colour and of few colours, through zlib.
    Tight,
    /// The same in tiles of 64 by 64, and runs.
    Zrle,
}

impl Encoding {
    /// All, with their numbers.
    pub const ALL: [(i32, Self); 4] = [
        (0, Self::Raw),
        (6, Self::Zlib),
        (7, Self::Tight),
        (16, Self::Zrle),
    ];

    /// The one with this number.
    #[must_use]
    pub fn find(number: i32) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|(known, _)| *known == number).map(|row| row.1)
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            Self::Raw => 0,
            Self::Zlib => 6,
            Self::Tight => 7,
            Self::Zrle => 16,
        }
    }
}

/// A message FramebufferUpdate that is being made: its rectangles are counted.
#[derive(Debug)]
pub(super) struct Body {
    /// Where the count is.
    at: usize,
    count: u16,
}

impl Body {
    pub(super) fn begin(out: &mut Vec<u8>) -> Self {
        out.extend([0, 0]);
        let at = out.len();
        out.extend([0, 0]);
        Self { at, count: 0 }
    }

    /// Begins a rectangle: x, y, width, height.
    pub(super) fn header(&mut self, out: &mut Vec<u8>, area: (u16, u16, u16, u16), encoding: i32) {
        self.count += 1;
        for number in [area.0, area.1, area.2, area.3] {
            out.extend(number.to_be_bytes());
        }
        out.extend(encoding.to_be_bytes());
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn end(self, out: &mut [u8]) {
        out[self.at..self.at + 2].copy_from_slice(&self.count.to_be_bytes());
    }
}

/// What a client wants, and the streams that go on from update to update.
#[derive(Debug)]
pub(super) struct Encoder {
    pub(super) painter: Painter,
    pub(super) encoding: Encoding,
    /// The effort for zlib.
    pub(super) level: u8,
    /// Of Zlib, Tight and ZRLE.
    pub(super) streams: [Deflate; 3],
    pixels: Vec<u32>,
    bytes: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self {
            painter: Painter::new(PixelFormat::NATIVE),
            encoding: Encoding::Raw,
            level: deflate::LEVEL,
            streams: Default::default(),
            pixels: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Sends a part of the screen that is not empty.
    pub(super) fn rectangle(
        &mut self,
        scene: &Scene<'_>,
        area: Rectangle,
        body: &mut Body,
        out: &mut Vec<u8>,
    ) {
        let Self {
            painter,
            level,
            streams: [zlib, tight, zrle],
            pixels,
            bytes,
            ..
        } = self;
        let number = self.encoding.number();
        let begin = |part: Rectangle, body: &mut Body, out: &mut Vec<u8>| {
            let place = (
                side(part.x),
                side(part.y),
                side(part.width),
                side(part.height),
            );
            body.header(out, place, number);
        };
        match self.encoding {
            Encoding::Raw => {
                begin(area, body, out);
                for line in area.y..area.bottom() {
                    paint_line(scene, area, line, painter, pixels, out);
                }
            }
            Encoding::Zlib => {
                begin(area, body, out);
                let length = Length::begin(out);
                for line in area.y..area.bottom() {
                    bytes.clear();
                    paint_line(scene, area, line, painter, pixels, bytes);
                    zlib.write(bytes, *level, out);
                }
                zlib.flush(*level, out);
                length.end(out);
            }
            Encoding::Zrle => {
                begin(area, body, out);
                let length = Length::begin(out);
                for part in parts(area, zrle::SIDE, zrle::SIDE) {
                    gather(scene, part, pixels);
                    bytes.clear();
                    zrle::tile(pixels, part.width as usize, painter, bytes);
                    zrle.write(bytes, *level, out);
                }
                zrle.flush(*level, out);
                length.end(out);
            }
            Encoding::Tight => {
                let lines = (tight::PIXELS_MAX / area.width.min(tight::WIDTH_MAX)).min(area.height);
                for part in parts(area, tight::WIDTH_MAX, lines) {
                    begin(part, body, out);
                    gather(scene, part, pixels);
                    tight::rectangle(pixels, part.width as usize, painter, tight, *level, out);
                }
            }
        }
    }
}

/// Adds line `line` of an area, as it is, to `out`.
fn paint_line(
    scene: &Scene<'_>,
    area: Rectangle,
    line: u32,
    painter: &Painter,
    pixels: &mut Vec<u32>,
    out: &mut Vec<u8>,
) {
    pixels.clear();
    scene.append(line, area.x, area.width, pixels);
    painter.paint(pixels, Shape::Whole, out);
}

/// The pixels of a part, line by line.
fn gather(scene: &Scene<'_>, part: Rectangle, pixels: &mut Vec<u32>) {
    pixels.clear();
    for line in part.y..part.bottom() {
        scene.append(line, part.x, part.width, pixels);
    }
}

/// Cuts an area into parts of at most this size, row by row.
fn parts(area: Rectangle, width: u32, height: u32) -> impl Iterator<Item = Rectangle> {
    let rows = (area.y..area.bottom()).step_by(height as usize);
    rows.flat_map(move |y| {
        let columns = (area.x..area.right()).step_by(width as usize);
        columns.map(move |x| {
            let part = Rectangle {
                x,
                y,
                width,
                height,
            };
            part.intersection(area)
        })
    })
}

/// A length of 32 bits that is known when what it counts is there.
struct Length(usize);

impl Length {
    fn begin(out: &mut Vec<u8>) -> Self {
        out.extend([0; 4]);
        Self(out.len())
    }

    fn end(self, out: &mut [u8]) {
        // A screen has at most 133 MB, and what becomes of it not much more.
        let len = u32::try_from(out.len() - self.0).unwrap_or(u32::MAX);
        out[self.0 - 4..self.0].copy_from_slice(&len.to_be_bytes());
    }
}

/// The colours of an area, if they are few, in the order in which they come.
#[derive(Debug)]
pub(super) struct Palette {
    colours: [u32; Self::MAX],
    count: usize,
}

impl Palette {
    /// The most colours that are few.
    pub(super) const MAX: usize = 16;

    /// The colours of these pixels, without their opacity.
    pub(super) fn of(pixels: &[u32]) -> Option<Self> {
        let mut palette = Self {
            colours: [0; Self::MAX],
            count: 0,
        };
        let mut last = None;
        for &pixel in pixels {
            let colour = pixel & 0xFF_FFFF;
            if last == Some(colour) {
                continue;
            }
            last = Some(colour);
            if palette.position(colour).is_none() {
                *palette.colours.get_mut(palette.count)? = colour;
                palette.count += 1;
            }
        }
        Some(palette)
    }

    pub(super) fn colours(&self) -> &[u32] {
        &self.colours[..self.count]
    }

    fn position(&self, colour: u32) -> Option<usize> {
        self.colours().iter().position(|known| *known == colour)
    }

    /// The number of the colour of a pixel, which is in it.
    pub(super) fn index(&self, pixel: u32) -> u8 {
        let index = self.position(pixel & 0xFF_FFFF).unwrap_or(0);
        u8::try_from(index).unwrap_or(0)
    }

    /// Adds the numbers of a line of pixels, `bits` for each, the first one highest.
    pub(super) fn pack(&self, line: &[u32], bits: usize, out: &mut Vec<u8>) {
        for group in line.chunks(8 / bits) {
            let byte = group.iter().enumerate().fold(0, |byte, (at, pixel)| {
                byte | self.index(*pixel) << (8 - bits * (at + 1))
            });
            out.push(byte);
        }
    }
}
