//! Frames against a naive model of them.

use std::convert::Infallible;

use linkspan_display::{BAND_MAX, FourCc, Frame, Layout, Modifier, Rectangle, Surface, Tiles};
use proptest::prelude::*;

use super::{linear, noise, update};

#[test]
fn what_has_not_changed_is_no_damage() {
    let surface = linear(FourCc::XRGB8888, 333, 77, 333 * 4 + 12);
    let mut memory = noise(surface.stride as usize * 77);
    let mut frame = Frame::new(333, 77).unwrap();
    assert_eq!(update(&mut frame, &surface, &memory).rectangles(8).len(), 1);
    assert!(update(&mut frame, &surface, &memory).is_empty());
    // What is between lines, and the byte that is no colour, does not count.
    memory[333 * 4] ^= 1;
    memory[3] ^= 0x55;
    assert!(update(&mut frame, &surface, &memory).is_empty());
    memory[surface.stride as usize * 40 + 100 * 4] ^= 1;
    let tile = Rectangle {
        x: 96,
        y: 32,
        width: 32,
        height: 32,
    };
    assert_eq!(update(&mut frame, &surface, &memory).rectangles(8), [tile]);
}

/// The guest's memory went away in the middle of a pass.
#[test]
fn a_pass_that_fails_keeps_what_it_has_read() {
    let surface = linear(FourCc::XRGB8888, 64, 512, 256);
    let memory = noise(256 * 512);
    let layout = Layout::new(&surface, memory.len() as u64).unwrap();
    let mut frame = Frame::new(64, 512).unwrap();
    let mut damage = Tiles::new(64, 512);
    // Whole rows of tiles of damage are read until then, line by line.
    let mut lines = 0;
    let result = frame.update(&layout, &mut damage, |offset, band| {
        lines += 1;
        if lines > 2 * 32 {
            return Err("gone");
        }
        let start = usize::try_from(offset).unwrap();
        band.copy_from_slice(&memory[start..start + band.len()]);
        Ok(())
    });
    assert_eq!(result, Err("gone"));
    let read = damage.rectangles(1)[0].height;
    assert!(read > 0 && read < 512, "{read}");
    // The next pass finds the rest, and only that.
    let rest = update(&mut frame, &surface, &memory).rectangles(1)[0];
    assert_eq!((rest.y, rest.bottom()), (read, 512));
}

/// A letter of a console is a few lines of one column of tiles, not the whole screen.
#[test]
fn where_nothing_has_changed_nothing_is_read() {
    // All lines of the tile of damage, in as few tiles of memory as have them.
    for (modifier, most) in [
        (Modifier::LINEAR, 32 * 32 * 4),
        (Modifier::X_TILED, 4 * 4096),
        (Modifier::Y_TILED, 4096),
    ] {
        let surface = Surface {
            modifier,
            ..linear(FourCc::XRGB8888, 1920, 1088, 1920 * 4)
        };
        let layout = Layout::new(&surface, 1920 * 4 * 1088).unwrap();
        let mut frame = Frame::new(1920, 1088).unwrap();
        let mut damage = Tiles::new(1920, 1088);
        let mut marked = Tiles::new(1920, 1088);
        let mut bytes = 0;
        let mut pass = |marked: &Tiles| {
            bytes = 0;
            let read = |_, band: &mut [u8]| {
                bytes += band.len();
                Ok::<(), Infallible>(())
            };
            let Ok(()) = frame.update_within(&layout, marked, &mut damage, read);
            bytes
        };
        assert_eq!(pass(&marked), 0);
        marked.mark(Rectangle {
            x: 808,
            y: 512,
            width: 8,
            height: 16,
        });
        assert_eq!(pass(&marked), most, "{modifier}");
        marked.fill();
        assert_eq!(pass(&marked), 1920 * 4 * 1088);
    }
}

/// A picture of any layout.
fn any_place() -> impl Strategy<Value = Surface> {
    let format = prop_oneof![
        Just(FourCc::XRGB8888),
        Just(FourCc::RGB888),
        Just(FourCc::RGB565),
        Just(FourCc::R8),
    ];
    let modifier = prop_oneof![
        Just(Modifier::LINEAR),
        Just(Modifier::X_TILED),
        Just(Modifier::Y_TILED),
    ];
    let size = (1u32..1500, 1u32..120, 0u32..3000);
    (format, modifier, size, (0u32..200, 0u32..50)).prop_map(
        |(format, modifier, (width, height, more), (x, y))| Surface {
            // Pixels of three bytes are in no tiles.
            modifier: match format {
                FourCc::RGB888 => Modifier::LINEAR,
                _ => modifier,
            },
            x,
            y,
            stride: ((x + width) * 4 + more).next_multiple_of(512),
            ..linear(format, width, height, 0)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// All that is marked is brought up to date, and each band is read once.
    #[test]
    fn a_part_is_what_a_whole_pass_has_there(
        surface in any_place(),
        parts in prop::collection::vec((0u32..1500, 0u32..120, 1u32..200, 1u32..60), 0..5),
    ) {
        let lines = (surface.y + surface.height).next_multiple_of(32);
        let memory = noise(surface.stride as usize * lines as usize);
        let layout = Layout::new(&surface, memory.len() as u64).unwrap();
        let (width, height) = (surface.width, surface.height);
        let mut whole = Frame::new(width, height).unwrap();
        update(&mut whole, &surface, &memory);
        let mut marked = Tiles::new(width, height);
        for (x, y, width, height) in parts {
            marked.mark(Rectangle { x, y, width, height });
        }
        let mut part = Frame::new(width, height).unwrap();
        let before = part.pixels().to_vec();
        let mut damage = Tiles::new(width, height);
        let mut end = 0;
        let read = |offset: u64, band: &mut [u8]| {
            let start = usize::try_from(offset).unwrap();
            assert!(band.len() <= BAND_MAX && offset >= end);
            end = offset + band.len() as u64;
            band.copy_from_slice(&memory[start..start + band.len()]);
            Ok::<(), Infallible>(())
        };
        let Ok(()) = part.update_within(&layout, &marked, &mut damage, read);
        for (at, (now, (before, want))) in
            part.pixels().iter().zip(before.iter().zip(whole.pixels())).enumerate()
        {
            let at = u32::try_from(at).unwrap();
            let (x, y) = (at % width, at / width);
            let pixel = Rectangle { x, y, width: 1, height: 1 };
            // A band may have more than what is marked.
            prop_assert!(now == want || now == before && !marked.touches(pixel), "{}, {}", x, y);
        }
    }

    /// Exactly the tiles with a pixel that has changed are marked.
    #[test]
    fn damage_is_what_a_naive_comparison_finds(
        (width, height) in (1u32..400, 1u32..120),
        changes in prop::collection::vec((0u32..400, 0u32..120), 0..12),
    ) {
        let surface = linear(FourCc::XBGR8888, width, height, width * 4);
        let mut memory = noise(width as usize * height as usize * 4);
        let mut frame = Frame::new(width, height).unwrap();
        update(&mut frame, &surface, &memory);
        let mut want = Tiles::new(width, height);
        for (x, y) in changes.into_iter().filter(|&(x, y)| x < width && y < height) {
            let at = (y * width + x) as usize * 4;
            memory[at] = !memory[at];
            want.mark(Rectangle { x, y, width: 1, height: 1 });
            let damage = update(&mut frame, &surface, &memory);
            let mut one = Tiles::new(width, height);
            one.mark(Rectangle { x, y, width: 1, height: 1 });
            prop_assert_eq!(damage, one);
        }
    }
}
