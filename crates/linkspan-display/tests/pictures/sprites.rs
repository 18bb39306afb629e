//! Planes between the picture and the pointer.

use linkspan_display::{Cursor, Frame, Position, Rectangle, Scene, Sprite};

fn filled(width: u32, height: u32, pixel: u32) -> Frame {
    let mut frame = Frame::new(width, height).unwrap();
    frame.pixels_mut().fill(pixel);
    frame
}

fn sprite(number: u8, pixel: u32, x: i32, y: i32) -> Sprite {
    Sprite {
        number,
        frame: filled(3, 2, pixel),
        position: Position { x, y },
    }
}

fn line(scene: &Scene<'_>, y: u32) -> Vec<u32> {
    let mut pixels = Vec::new();
    scene.append(y, 0, scene.frame.width(), &mut pixels);
    pixels
}

/// Picture, sprites in their order, pointer: each over those before, by its own opacity.
#[test]
fn planes_lie_over_each_other_in_their_order() {
    let (black, blue, red) = (0xFF00_0000, 0xFF00_00FF, 0xFFFF_0000);
    let half_green = 0x8000_8000;
    let picture = filled(6, 4, black);
    let sprites = [sprite(1, blue, 1, 1), sprite(2, half_green, 2, 1)];
    let pointer = Cursor::new(&filled(1, 1, red), None).unwrap();
    let scene = Scene {
        frame: &picture,
        sprites: &sprites,
        cursor: Some((&pointer, Position { x: 3, y: 1 })),
    };
    let (mixed, dark) = (0xFF00_807F, 0xFF00_8000);
    assert_eq!(line(&scene, 0), [black; 6]);
    assert_eq!(line(&scene, 1), [black, blue, mixed, red, dark, black]);
    assert_eq!(line(&scene, 2), [black, blue, mixed, mixed, dark, black]);
    assert_eq!(line(&scene, 3), [black; 6]);
    // A part of a line is the same as in the whole.
    let mut part = Vec::new();
    scene.append(1, 2, 3, &mut part);
    assert_eq!(part, [mixed, red, dark]);
    let without = scene.without_cursor();
    assert_eq!(line(&without, 1), [black, blue, mixed, mixed, dark, black]);
    assert_eq!(line(&Scene::of(&picture), 1), [black; 6]);
}

#[test]
fn a_sprite_may_be_anywhere() {
    let blue = 0xFF00_00FF;
    let picture = filled(4, 3, 0xFF00_0000);
    let all = picture.area();
    let area = |x, y, width, height| Rectangle {
        x,
        y,
        width,
        height,
    };
    let whole = area(0, 0, 3, 2);
    for (x, y, seen) in [
        (-2, -1, area(0, 0, 1, 1)),
        (3, 2, area(3, 2, 1, 1)),
        (0, 0, area(0, 0, 3, 2)),
        (4, 0, Rectangle::default()),
        (i32::MIN, i32::MAX, Rectangle::default()),
        (i32::MAX, i32::MIN, Rectangle::default()),
    ] {
        let sprites = [sprite(1, blue, x, y)];
        assert_eq!(sprites[0].covers(whole, all), seen, "{x},{y}");
        let scene = Scene {
            sprites: &sprites,
            ..Scene::of(&picture)
        };
        let lines = (0..3).flat_map(|y| line(&scene, y));
        let found = lines.filter(|pixel| *pixel == blue).count();
        assert_eq!(found, (seen.width * seen.height) as usize, "{x},{y}");
    }
    // A part of it, as damage is told.
    let sprite = sprite(1, blue, 1, 1);
    assert_eq!(sprite.covers(area(1, 0, 2, 1), all), area(2, 1, 2, 1));
}
