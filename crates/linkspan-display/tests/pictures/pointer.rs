//! The pointer over a picture.

use linkspan_display::{Cursor, FourCc, Frame, HotSpot, Position, Rectangle, Scene};

use super::{linear, update};

/// A pointer of 4 by 2: opaque white, half of red, nothing, opaque black; all twice.
fn cursor(hot_spot: Option<HotSpot>) -> Cursor {
    let mut frame = Frame::new(4, 2).unwrap();
    let line = [0xFFFF_FFFFu32, 0x8080_0000, 0, 0xFF00_0000];
    let memory: Vec<u8> = [line, line]
        .concat()
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    update(&mut frame, &linear(FourCc::ARGB8888, 4, 2, 16), &memory);
    Cursor::new(&frame, hot_spot).unwrap()
}

fn line(position: (i32, i32), y: u32) -> Vec<u32> {
    let mut frame = Frame::new(6, 3).unwrap();
    frame.pixels_mut().fill(0xFF00_00FF);
    let cursor = cursor(None);
    let position = Position {
        x: position.0,
        y: position.1,
    };
    let mut pixels = Vec::new();
    let scene = Scene {
        frame: &frame,
        sprites: &[],
        cursor: Some((&cursor, position)),
    };
    scene.append(y, 0, 6, &mut pixels);
    pixels.into_iter().map(|pixel| pixel & 0xFF_FFFF).collect()
}

#[test]
fn opacity_is_multiplied_already() {
    let blue = 0xFF;
    assert_eq!(line((1, 1), 0), [blue; 6]);
    let half = 0x80_007F;
    assert_eq!(line((1, 1), 1), [blue, 0xFF_FFFF, half, blue, 0, blue]);
    assert_eq!(line((1, 1), 2), [blue, 0xFF_FFFF, half, blue, 0, blue]);
}

/// GVT-g decodes the signs of a pointer's place and drops them.
#[test]
fn a_pointer_that_is_partly_left_of_the_screen_or_above_it_is_cut() {
    let blue = 0xFF;
    assert_eq!(line((-3, -1), 0), [0, blue, blue, blue, blue, blue]);
    assert_eq!(line((-3, -1), 1), [blue; 6]);
    assert_eq!(line((-4, 0), 0), [blue; 6]);
    assert_eq!(line((5, 2), 2), [blue, blue, blue, blue, blue, 0xFF_FFFF]);
    for far in [i32::MIN, i32::MAX] {
        assert_eq!(line((far, far), 1), [blue; 6]);
        assert_eq!(line((far, 0), 1), [blue; 6]);
    }
    let screen = Frame::new(6, 3).unwrap().area();
    let covers = |x, y| cursor(None).covers(Position { x, y }, screen);
    let area = |x, y, width, height| Rectangle {
        x,
        y,
        width,
        height,
    };
    assert_eq!(covers(-3, -1), area(0, 0, 1, 1));
    assert_eq!(covers(5, 2), area(5, 2, 1, 1));
    assert!(covers(-4, 0).is_empty() && covers(i32::MIN, i32::MAX).is_empty());
}

/// A guest may say more colour than opacity; nothing overflows.
#[test]
fn colours_that_are_brighter_than_opacity_saturate() {
    let mut frame = Frame::new(1, 1).unwrap();
    frame.pixels_mut()[0] = 0x00FF_FFFF;
    let bright = Cursor::new(&frame, None).unwrap();
    let mut under = Frame::new(1, 1).unwrap();
    under.pixels_mut()[0] = 0xFFFF_FFFF;
    let mut pixels = Vec::new();
    let scene = Scene {
        frame: &under,
        sprites: &[],
        cursor: Some((&bright, Position::default())),
    };
    scene.append(0, 0, 1, &mut pixels);
    assert_eq!(pixels, [0xFFFF_FFFF]);
}

/// rustdesk #15896: hot spots that were guessed are wrong by up to 19 pixels.
#[test]
fn a_hot_spot_that_is_not_known_is_not_guessed() {
    assert_eq!(HotSpot::from_wire(u32::MAX, u32::MAX, 64, 64), None);
    assert_eq!(HotSpot::from_wire(3, u32::MAX, 64, 64), None);
    assert_eq!(HotSpot::from_wire(64, 0, 64, 64), None);
    assert_eq!(
        HotSpot::from_wire(3, 63, 64, 64),
        Some(HotSpot { x: 3, y: 63 })
    );
    let outside = HotSpot { x: 4, y: 0 };
    assert_eq!(cursor(Some(outside)).hot_spot(), None);
}

#[test]
fn places_of_the_kernel_have_signs() {
    assert_eq!(
        Position::from_wire(0xFFFF_FFFD, 7),
        Position { x: -3, y: 7 }
    );
}
