//! Tiles that have changed, and rectangles made of them.

use linkspan_display::{Rectangle, TILE, Tiles};
use proptest::prelude::*;

fn area(x: u32, y: u32, width: u32, height: u32) -> Rectangle {
    Rectangle {
        x,
        y,
        width,
        height,
    }
}

#[test]
fn rectangles_are_whole_tiles_cut_at_the_screen() {
    let mut tiles = Tiles::new(100, 70);
    assert!(tiles.is_empty());
    tiles.mark(area(33, 1, 1, 1));
    assert_eq!(tiles.rectangles(8), [area(32, 0, 32, 32)]);
    tiles.mark(area(99, 69, 1000, 1000));
    assert_eq!(
        tiles.rectangles(8),
        [area(32, 0, 32, 32), area(96, 64, 4, 6)]
    );
    tiles.fill();
    assert_eq!(tiles.rectangles(8), [area(0, 0, 100, 70)]);
    tiles.forget(area(0, 0, 64, 70));
    assert_eq!(tiles.rectangles(8), [area(64, 0, 36, 70)]);
    tiles.clear();
    assert!(tiles.is_empty());
    tiles.mark(area(100, 0, 5, 5));
    tiles.mark(area(u32::MAX, u32::MAX, u32::MAX, u32::MAX));
    tiles.mark(area(0, 0, 0, 5));
    assert!(tiles.is_empty());
}

#[test]
fn equal_rows_are_one_and_others_are_not() {
    let mut tiles = Tiles::new(3200, 320);
    tiles.mark(area(64, 0, 64, 96));
    tiles.mark(area(2048, 32, 96, 32));
    tiles.mark(area(64, 96, 96, 32));
    assert_eq!(
        tiles.rectangles(8),
        [
            area(64, 0, 64, 96),
            area(2048, 32, 96, 32),
            area(64, 96, 96, 32)
        ]
    );
    assert_eq!(tiles.rectangles(1), [area(64, 0, 2080, 128)]);
}

proptest! {
    #[test]
    fn rectangles_have_what_is_marked_and_no_more_than_they_may(
        (width, height) in (1u32..5000, 1u32..400),
        marks in prop::collection::vec((0u32..5000, 0u32..400, 1u32..300, 1u32..100), 0..40),
        max in 1usize..70,
    ) {
        let mut tiles = Tiles::new(width, height);
        for (x, y, across, down) in marks {
            tiles.mark(area(x, y, across, down));
        }
        let found = tiles.rectangles(max);
        prop_assert!(found.len() <= max);
        let mut covered = Tiles::new(width, height);
        for rectangle in &found {
            prop_assert!(!rectangle.is_empty());
            prop_assert_eq!(rectangle.intersection(tiles.screen()), *rectangle);
            covered.mark(*rectangle);
        }
        let side = u32::try_from(TILE).unwrap();
        for x in (0..width).step_by(TILE) {
            for y in (0..height).step_by(TILE) {
                let tile = area(x, y, side, side);
                prop_assert!(!tiles.touches(tile) || covered.touches(tile));
            }
        }
        // As many as there are: then exactly those, and none twice.
        let all = tiles.rectangles(usize::MAX);
        let mut exact = Tiles::new(width, height);
        for rectangle in &all {
            prop_assert!(!exact.touches(*rectangle));
            exact.mark(*rectangle);
        }
        prop_assert_eq!(exact, tiles);
    }
}
