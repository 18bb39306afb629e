//! The pointer, sprites, and what a viewer sees: a frame with them, or without.

use alloc::vec::Vec;

use crate::damage::Rectangle;
use crate::frame::Frame;
use crate::plane::{HotSpot, Position};

/// A pointer. Its colours are multiplied by their opacity already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    width: u32,
    height: u32,
    pixels: Vec<u32>,
    hot_spot: Option<HotSpot>,
}

impl Cursor {
    /// The widest and highest pointer.
    pub const MAX: u32 = 512;

    /// A pointer that shows `frame`; none if that is larger than any.
    #[must_use]
    pub fn new(frame: &Frame, hot_spot: Option<HotSpot>) -> Option<Self> {
        let (width, height) = (frame.width(), frame.height());
        let fits = width <= Self::MAX && height <= Self::MAX;
        fits.then(|| Self {
            width,
            height,
            pixels: frame.pixels().to_vec(),
            hot_spot: hot_spot.filter(|spot| spot.x < width && spot.y < height),
        })
    }

    /// Pixels across.
    #[must_use]
    pub const fn width(&self) -> u32 {
        self.width
    }

    /// Pixels down.
    #[must_use]
    pub const fn height(&self) -> u32 {
        self.height
    }

    /// Where it points, if that is known. It is drawn by its position and needs none.
    #[must_use]
    pub const fn hot_spot(&self) -> Option<HotSpot> {
        self.hot_spot
    }

    /// Its pixels, line by line.
    #[must_use]
    pub fn pixels(&self) -> &[u32] {
        &self.pixels
    }

    /// What it covers of a screen when it is at `position`, which may be outside.
    #[must_use]
    pub fn covers(&self, position: Position, screen: Rectangle) -> Rectangle {
        let area = Rectangle {
            x: 0,
            y: 0,
            width: self.width,
            height: self.height,
        };
        moved(area, position, screen)
    }
}

/// A plane between the picture and the pointer. Its colours are multiplied by their opacity
/// already; one without opacity covers what is below.
#[derive(Debug)]
pub struct Sprite {
    /// Its number, from 1: those with higher ones are above.
    pub number: u8,
    /// What it shows.
    pub frame: Frame,
    /// Where its upper left pixel is, as seen from that of the picture below.
    pub position: Position,
}

impl Sprite {
    /// What a part of it covers of a screen.
    #[must_use]
    pub fn covers(&self, part: Rectangle, screen: Rectangle) -> Rectangle {
        moved(part, self.position, screen)
    }
}

/// A rectangle as it is seen of something at `position`, as far as it is on the screen.
fn moved(part: Rectangle, position: Position, screen: Rectangle) -> Rectangle {
    let side = |at: i32, from: u32, length: u32, all: u32| {
        let begin = i64::from(at) + i64::from(from);
        let start = begin.clamp(0, all.into());
        let end = (begin + i64::from(length)).clamp(start, all.into());
        let number = |n: i64| u32::try_from(n).unwrap_or(0);
        (number(start), number(end - start))
    };
    let (x, width) = side(position.x, part.x, part.width, screen.width);
    let (y, height) = side(position.y, part.y, part.height, screen.height);
    let area = Rectangle {
        x,
        y,
        width,
        height,
    };
    area.intersection(screen)
}

/// Draws what a picture at `position` has of line `y` from `x` on over `line`.
fn blend((pixels, width): (&[u32], u32), position: Position, (x, y): (u32, u32), line: &mut [u32]) {
    let width = width as usize;
    let row = i64::from(y) - i64::from(position.y);
    let row = usize::try_from(row)
        .ok()
        .and_then(|row| pixels.chunks_exact(width.max(1)).nth(row));
    let Some(row) = row else {
        return;
    };
    let left = i64::from(position.x) - i64::from(x);
    // Pixels of it that are left of the line, and of the line that are left of it.
    let skipped = usize::try_from(-left).unwrap_or(0).min(width);
    let ahead = usize::try_from(left).unwrap_or(0).min(line.len());
    for (under, &over) in line[ahead..].iter_mut().zip(&row[skipped..]) {
        *under = over_under(over, *under);
    }
}

/// A pixel that is multiplied by its opacity, over another one.
fn over_under(over: u32, under: u32) -> u32 {
    let rest = 255 - (over >> 24);
    let channel = |shift: u32| {
        let product = (under >> shift & 0xFF) * rest;
        let share = (product + 127) / 255;
        // A guest may say more colour than opacity.
        ((over >> shift & 0xFF) + share).min(255) << shift
    };
    0xFF00_0000 | channel(16) | channel(8) | channel(0)
}

/// A frame, and what is to be drawn over it.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The picture.
    pub frame: &'a Frame,
    /// Planes above it, from the lowest to the highest.
    pub sprites: &'a [Sprite],
    /// The pointer, above all, and where its upper left pixel is.
    pub cursor: Option<(&'a Cursor, Position)>,
}

impl<'a> Scene<'a> {
    /// A frame alone.
    #[must_use]
    pub const fn of(frame: &'a Frame) -> Self {
        Self {
            frame,
            sprites: &[],
            cursor: None,
        }
    }

    /// The same without the pointer.
    #[must_use]
    pub const fn without_cursor(self) -> Self {
        Self {
            cursor: None,
            ..self
        }
    }

    /// Adds the part of line `y` that is `width` long from `x` on to `pixels`.
    pub fn append(&self, y: u32, x: u32, width: u32, pixels: &mut Vec<u32>) {
        let start = pixels.len();
        pixels.extend_from_slice(self.frame.line(y, x, width));
        let line = &mut pixels[start..];
        for sprite in self.sprites {
            let picture = (sprite.frame.pixels(), sprite.frame.width());
            blend(picture, sprite.position, (x, y), line);
        }
        if let Some((cursor, position)) = self.cursor {
            blend((cursor.pixels(), cursor.width), position, (x, y), line);
        }
    }
}
