//! Frames against a naive model of them.

use linkspan_display::{FourCc, Frame, Layout, Rectangle, Tiles};
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
    let mut bands = 0;
    let result = frame.update(&layout, &mut damage, |offset, band| {
        bands += 1;
        if bands > 4 {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

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
