//! What is known of a picture: its pixels in one format, whatever the guest uses.
//!
//! One pass over memory brings it up to date: each band is copied out, made into lines,
//! converted and compared while it is in the first cache, and only what differs is stored.

use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};
use linkspan_mem::wide;

use crate::bands::{BAND_MAX, Band};
use crate::damage::{Rectangle, Tiles};
use crate::format::Merge;
use crate::layout::Layout;

/// The pixels of a picture, `0xAARRGGBB` each, line by line. All viewers share it.
#[derive(Debug)]
pub struct Frame {
    width: u32,
    height: u32,
    pixels: Vec<u32>,
}

impl Frame {
    /// A black picture of this size, which a [`Layout`] has checked.
    ///
    /// # Errors
    /// There is no memory for it.
    ///
    /// # Panics
    /// Of sizes that no layout has.
    pub fn new(width: u32, height: u32) -> Result<Self, Injected> {
        let count = u64::from(width) * u64::from(height);
        assert!(count <= u64::from(crate::PIXELS_MAX), "a size was checked");
        let count = width as usize * height as usize;
        let mut pixels = fault::try_with_capacity(count)?;
        pixels.resize(count, 0xFF00_0000);
        Ok(Self {
            width,
            height,
            pixels,
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

    /// All of it.
    #[must_use]
    pub const fn area(&self) -> Rectangle {
        Rectangle {
            x: 0,
            y: 0,
            width: self.width,
            height: self.height,
        }
    }

    /// A line, or the part of it from `x` on that is `width` long.
    ///
    /// # Panics
    /// If that is not in the picture.
    #[must_use]
    pub fn line(&self, y: u32, x: u32, width: u32) -> &[u32] {
        let start = y as usize * self.width as usize + x as usize;
        &self.pixels[start..start + width as usize]
    }

    /// All pixels.
    #[must_use]
    pub fn pixels(&self) -> &[u32] {
        &self.pixels
    }

    /// All pixels, for who draws; damage is then its to mark.
    pub fn pixels_mut(&mut self) -> &mut [u32] {
        &mut self.pixels
    }

    /// Brings it up to date and marks what has changed. `read` copies bytes of the guest's
    /// memory, from this offset on, into private memory; it is asked for each byte once.
    ///
    /// # Errors
    /// Of `read`. What was read until then counts.
    ///
    /// # Panics
    /// If the layout or the damage are of another size.
    pub fn update<E>(
        &mut self,
        layout: &Layout,
        damage: &mut Tiles,
        read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.merge(layout, layout.bands(), damage, read)
    }

    /// The same for one line in `step` (or row of the memory's tiles), from the one of the number `first` on. What
    /// else has changed stays for later.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    ///
    /// # Panics
    /// The same, and if `step` is 0.
    pub fn update_some<E>(
        &mut self,
        layout: &Layout,
        (first, step): (usize, usize),
        damage: &mut Tiles,
        read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.merge(layout, layout.bands_of_rows(first, step), damage, read)
    }

    /// The same where nothing has changed but within the tiles that are `marked`: little
    /// more than those is read.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    ///
    /// # Panics
    /// The same, and if what is marked is of another size.
    pub fn update_within<E>(
        &mut self,
        layout: &Layout,
        marked: &Tiles,
        damage: &mut Tiles,
        read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.merge(layout, layout.bands_within(marked), damage, read)
    }

    fn merge<E>(
        &mut self,
        layout: &Layout,
        mut bands: impl Iterator<Item = Band>,
        damage: &mut Tiles,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let surface = layout.surface();
        assert_eq!((surface.width, surface.height), (self.width, self.height));
        assert_eq!(damage.screen(), self.area());
        let mut failed = Ok(());
        wide(Merge {
            layout,
            bands: &mut bands,
            read: &mut |offset, bytes| {
                failed = read(offset, bytes);
                failed.is_ok()
            },
            room: &mut [0; 2 * BAND_MAX],
            pixels: &mut self.pixels,
            damage,
        });
        failed
    }
}

/// The pixels as bytes of red, green, blue and opacity: what a picture file and a web page
/// want.
pub fn to_rgba(pixels: &[u32], bytes: &mut [u8]) {
    for (pixel, bytes) in pixels.iter().zip(bytes.as_chunks_mut::<4>().0) {
        *bytes = (pixel & 0xFF00_FF00 | (pixel & 0xFF) << 16 | pixel >> 16 & 0xFF).to_le_bytes();
    }
}

/// The pixels as bytes of blue, green, red and nothing: what VNC clients want.
pub fn to_bgrx(pixels: &[u32], bytes: &mut [u8]) {
    for (pixel, bytes) in pixels.iter().zip(bytes.as_chunks_mut::<4>().0) {
        *bytes = (pixel & 0x00FF_FFFF).to_le_bytes();
    }
}
