//! The pointer, and what a viewer sees: a frame with it, or without.

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
        let side = |at: i32, length: u32, all: u32| {
            let start = i64::from(at).clamp(0, all.into());
            let end = (i64::from(at) + i64::from(length)).clamp(start, all.into());
            let number = |n: i64| u32::try_from(n).unwrap_or(0);
            (number(start), number(end - start))
        };
        let (x, width) = side(position.x, self.width, screen.width);
        let (y, height) = side(position.y, self.height, screen.height);
        let area = Rectangle {
            x,
            y,
            width,
            height,
        };
        area.intersection(screen)
    }

    /// Draws what it has of line `y` from `x` on over `line`.
    fn blend(&self, position: Position, x: u32, y: u32, line: &mut [u32]) {
        let row = i64::from(y) - i64::from(position.y);
        let Some(row) = usize::try_from(row)
            .ok()
            .filter(|&row| row < self.height as usize)
        else {
            return;
        };
        let width = self.width as usize;
        let pixels = &self.pixels[row * width..][..width];
        let left = i64::from(position.x) - i64::from(x);
        // Pixels of it that are left of the line, and of the line that are left of it.
        let skipped = usize::try_from(-left).unwrap_or(0).min(width);
        let ahead = usize::try_from(left).unwrap_or(0).min(line.len());
        for (under, &over) in line[ahead..].iter_mut().zip(&pixels[skipped..]) {
            *under = over_under(over, *under);
        }
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

/// A frame, and the pointer that is to be drawn over it.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The picture.
    pub frame: &'a Frame,
    /// The pointer and where its upper left pixel is.
    pub cursor: Option<(&'a Cursor, Position)>,
}

impl<'a> Scene<'a> {
    /// A frame alone.
    #[must_use]
    pub const fn of(frame: &'a Frame) -> Self {
        Self {
            frame,
            cursor: None,
        }
    }

    /// Adds the part of line `y` that is `width` long from `x` on to `pixels`.
    pub fn append(&self, y: u32, x: u32, width: u32, pixels: &mut Vec<u32>) {
        let start = pixels.len();
        pixels.extend_from_slice(self.frame.line(y, x, width));
        if let Some((cursor, position)) = self.cursor {
            cursor.blend(position, x, y, &mut pixels[start..]);
        }
    }
}
