//! Formats, tilings, layouts, frames and damage.

mod damage;
mod formats;
mod frame;
mod layout;
mod pointer;
mod sprites;
mod tiler;

use std::convert::Infallible;

use linkspan_display::{FourCc, Frame, Layout, Modifier, Surface, Tiles};

/// A picture line by line from byte 0 on.
fn linear(format: FourCc, width: u32, height: u32, stride: u32) -> Surface {
    Surface {
        format,
        modifier: Modifier::LINEAR,
        width,
        height,
        stride,
        offset: 0,
        x: 0,
        y: 0,
    }
}

/// Brings `frame` up to date from `memory`; says what has changed.
fn update(frame: &mut Frame, surface: &Surface, memory: &[u8]) -> Tiles {
    let layout = Layout::new(surface, memory.len() as u64).unwrap();
    let mut damage = Tiles::new(surface.width, surface.height);
    let mut end = 0;
    let result = frame.update(&layout, &mut damage, |offset, band| {
        let start = usize::try_from(offset).unwrap();
        assert!(band.len() <= linkspan_display::BAND_MAX);
        end = end.max(start + band.len());
        band.copy_from_slice(&memory[start..start + band.len()]);
        Ok::<(), Infallible>(())
    });
    let Ok(()) = result;
    assert!(end as u64 <= layout.end());
    damage
}

/// The picture in `memory`.
fn picture(surface: &Surface, memory: &[u8]) -> Vec<u32> {
    let mut frame = Frame::new(surface.width, surface.height).unwrap();
    update(&mut frame, surface, memory);
    frame.pixels().to_vec()
}

/// Bytes that differ from their neighbours, without a short period.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_F491u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    std::iter::repeat_with(next).take(len).collect()
}
