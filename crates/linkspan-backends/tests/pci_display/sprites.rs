//! All planes of a pipe: listed, read alone, and put together where that is asked for.

use linkspan_backends::display::{GpuSource, Model, Screen, Script, Source as _};
use linkspan_display::{FourCc, Kind, Position};
use linkspan_mem::Region;
use linkspan_testkit::logs;

use crate::rig::{Guest, Rig, draw, until};

/// A picture of 128 by 64, two sprites of 16 by 4 and a pointer of 64 by 64, all linear.
pub(crate) const SCRIPT: &str = "\
generation 9
register 0x70008 0x80000000
register 0x6001C 0x007F003F
register 0x70180 0x84000000  # the picture
register 0x70188 8
register 0x70190 0x003F007F
register 0x7019C 0x00010000
register 0x70280 0x84000020  # a sprite with opacity
register 0x70288 1
register 0x7028C 0x000A0014  # at 20,10
register 0x70290 0x0003000F
register 0x7029C 0x00020000
register 0x70380 0x84000000  # one without
register 0x70388 1
register 0x7038C 0x000C001E  # at 30,12
register 0x70390 0x0003000F
register 0x7039C 0x00030000
register 0x70080 0x27        # the pointer
register 0x70084 0x00040000
register 0x70088 0x000D0023  # at 35,13
table 16 0x2000 8
table 32 0x10000
table 48 0x11000
table 64 0x12000 4
";

const PICTURE: u64 = 0x2000;
const SPRITES: [u64; 2] = [0x10000, 0x11000];
const POINTER: u64 = 0x12000;
const SIZE: (u32, u32) = (128, 64);

fn rig() -> (Rig, Guest, Region) {
    let script = Script::parse(SCRIPT).unwrap();
    let rig = Rig::new(Model::Intel(Box::new(script)));
    let mut guest = rig.guest();
    let memory = guest.map(2);
    (rig, guest, memory)
}

fn fill(memory: &Region, at: u64, count: u64, colour: impl Fn(u64) -> u32) {
    (0..count).for_each(|number| draw(memory, at + number * 4, colour(number)));
}

/// Half of the sprite's pixels have an opacity of one half.
fn half_green(number: u64) -> u32 {
    if number.is_multiple_of(2) {
        0x8000_8000
    } else {
        0
    }
}

fn paint(memory: &Region) {
    fill(memory, PICTURE, 128 * 64, |number| {
        u32::try_from(number).unwrap()
    });
    fill(memory, SPRITES[0], 64, half_green);
    fill(memory, SPRITES[1], 64, |_| 0x00C0_FFEE);
    fill(memory, POINTER, 64 * 64, |number| match number {
        0 => 0xFFFF_FFFF,
        _ => 0,
    });
}

/// What a person would see, pixel by pixel, by another way of counting.
fn expected(x: u32, y: u32, sprites: bool) -> u32 {
    let below = y * SIZE.0 + x;
    if sprites && (30..46).contains(&x) && (12..16).contains(&y) {
        return 0xC0_FFEE;
    }
    if sprites && (20..36).contains(&x) && (10..14).contains(&y) && (x - 20).is_multiple_of(2) {
        let half = |channel: u32| (2 * 127 * channel + 255) / (2 * 255);
        let [_, red, green, blue] = below.to_be_bytes().map(u32::from);
        return half(red) << 16 | (0x80 + half(green)) << 8 | half(blue);
    }
    below
}

/// The pixels of a screen without opacity, with the pointer or without.
fn seen(screen: &Screen, pointer: bool) -> Vec<u32> {
    let Some(scene) = screen.scene() else {
        return Vec::new();
    };
    let scene = if pointer {
        scene
    } else {
        scene.without_cursor()
    };
    let mut pixels = Vec::new();
    (0..scene.frame.height()).for_each(|y| scene.append(y, 0, scene.frame.width(), &mut pixels));
    pixels.iter().map(|pixel| pixel & 0xFF_FFFF).collect()
}

fn all(sprites: bool) -> Vec<u32> {
    let at = |y| (0..SIZE.0).map(move |x| expected(x, y, sprites));
    (0..SIZE.1).flat_map(at).collect()
}

/// QEMU (LP #1827772): video in a sprite is missing from pictures.
#[test]
fn sprites_are_put_together_where_that_is_asked_for_and_never_else() {
    logs::capture();
    let (rig, _guest, memory) = rig();
    paint(&memory);
    let mut plain = rig.viewer(0);
    until(&mut plain, "the picture", |screen| {
        seen(screen, false) == all(false)
    });
    // That they are left out is said once, however often one looks.
    let name = rig.path("screen").display().to_string();
    let lines = || logs::lines(&[&name, "sprites are on and left out"]).len();
    for _ in 0..100 {
        plain.look().unwrap();
    }
    assert_eq!(lines(), 1);
    let mut whole = rig.viewer(0);
    whole.compose();
    until(&mut whole, "all of it", |screen| {
        seen(screen, false) == all(true)
    });
    let mut with_pointer = all(true);
    with_pointer[13 * 128 + 35] = 0xFF_FFFF;
    assert!(seen(&whole, true) == with_pointer);
}

#[test]
fn every_plane_is_listed_and_can_be_seen_alone() {
    let (rig, mut guest, memory) = rig();
    paint(&memory);
    let mut source = GpuSource::connect(&rig.path("screen")).unwrap();
    let kinds = |source: &mut GpuSource| {
        let planes = source.planes().unwrap();
        planes.iter().map(|shown| shown.kind).collect::<Vec<_>>()
    };
    let (first, second) = (Kind::Sprite(1), Kind::Sprite(2));
    assert_eq!(
        kinds(&mut source),
        [Kind::Primary, first, second, Kind::Cursor]
    );
    let planes = source.planes().unwrap();
    assert_eq!(planes[1].plane.position, Position { x: 20, y: 10 });
    assert_eq!(planes[1].plane.surface.format, FourCc::ARGB8888);
    let mut screen = rig.viewer(0);
    let sprite = screen.plane(first).unwrap().unwrap();
    assert_eq!((sprite.width(), sprite.height()), (16, 4));
    let wanted: Vec<u32> = (0..64).map(half_green).collect();
    assert!(sprite.pixels() == wanted);
    let sprite = screen.plane(second).unwrap().unwrap();
    assert_eq!(sprite.pixels(), [0xFFC0_FFEE; 64]);
    // One that is off is not there, and one that cannot be shown says why.
    guest.write(0, 0x70280, &[0; 4]).unwrap();
    let off = |screen: &mut Screen| screen.plane(first).unwrap().is_none();
    assert!(linkspan_testkit::census::settled(|| off(&mut screen)));
    guest
        .write(0, 0x70380, &0x8400_0002u32.to_le_bytes())
        .unwrap();
    let why = "rotation by 180 degrees is not supported";
    let refused = |screen: &mut Screen| match screen.plane(second) {
        Err(error) => error.to_string() == why,
        Ok(_) => false,
    };
    assert!(linkspan_testkit::census::settled(|| refused(&mut screen)));
    // The client's own messages have the first one, as an overlay.
    let mut overlay = linkspan_vfio::client::Ask::QueryPlane { flags: 2, kind: 0 };
    let answer = guest.0.ask(&overlay, &[]).unwrap().0;
    assert!(
        matches!(&answer, linkspan_vfio::client::Answer::Plane(info) if info.format == 0),
        "{answer:?}"
    );
    guest
        .write(0, 0x70280, &0x8400_0021u32.to_le_bytes())
        .unwrap();
    let why = b"rotation by 90 degrees is not supported".to_vec();
    let refused = guest.0.ask(&overlay, &[]).unwrap().0;
    assert_eq!(refused, linkspan_vfio::client::Answer::PlaneRefused(why));
    guest
        .write(0, 0x70280, &0x8400_0020u32.to_le_bytes())
        .unwrap();
    overlay = linkspan_vfio::client::Ask::QueryPlane { flags: 2, kind: 0 };
    let answer = guest.0.ask(&overlay, &[]).unwrap().0;
    assert!(
        matches!(&answer, linkspan_vfio::client::Answer::Plane(info) if info.width == 16),
        "{answer:?}"
    );
}

/// What changes of a sprite is what viewers are told, wherever it is by then.
#[test]
fn sprites_that_change_move_and_go_are_damage() {
    let (rig, mut guest, memory) = rig();
    paint(&memory);
    let mut screen = rig.viewer(0);
    screen.compose();
    let whole = |screen: &Screen| seen(screen, false) == all(true);
    until(&mut screen, "all of it", whole);
    assert!(!screen.look().unwrap().damaged);
    let touched = |screen: &Screen, x: u32, y: u32| {
        let (width, height) = (1, 1);
        screen.damage().touches(linkspan_display::Rectangle {
            x,
            y,
            width,
            height,
        })
    };
    // A pixel of the second, at 30,12.
    draw(&memory, SPRITES[1], 0x0011_2233);
    assert!(screen.look().unwrap().damaged);
    assert_eq!(seen(&screen, false)[12 * 128 + 30], 0x11_2233);
    assert!(touched(&screen, 30, 12) && !touched(&screen, 100, 50));
    draw(&memory, SPRITES[1], 0x00C0_FFEE);
    until(&mut screen, "the pixel as before", whole);
    // To 100,50: both places have changed.
    guest
        .write(0, 0x7038C, &0x0032_0064u32.to_le_bytes())
        .unwrap();
    let there = |screen: &Screen| seen(screen, false).get(50 * 128 + 100) == Some(&0xC0_FFEE);
    until(&mut screen, "its new place", there);
    assert!(touched(&screen, 30, 12) && touched(&screen, 100, 50));
    let below = 15 * 128 + 45;
    assert_eq!(seen(&screen, false)[below as usize], below);
    guest.write(0, 0x70380, &[0; 4]).unwrap();
    until(&mut screen, "its end", |screen| !there(screen));
    assert!(touched(&screen, 100, 50) && !touched(&screen, 30, 12));
    // Half of it is left of the picture, and the picture is not where the pipe begins.
    guest
        .write(0, 0x7018C, &0x0000_001Cu32.to_le_bytes())
        .unwrap();
    let moved = |screen: &Screen| {
        let pixels = seen(screen, false);
        (0..16).all(|x: u32| {
            let shifted = expected(x + 28, 10, false) != pixels[(10 * 128 + x) as usize];
            let covered = x < 8 && x.is_multiple_of(2);
            covered == (pixels[(10 * 128 + x) as usize] >> 8 & 0xFF >= 0x80) && (shifted || x > 0)
        })
    };
    until(&mut screen, "the picture's place", moved);
}

/// A part that is missing makes the whole wrong.
#[test]
fn a_sprite_that_cannot_be_shown_is_named_and_nothing_is_shown_without_it() {
    logs::capture();
    let (rig, mut guest, memory) = rig();
    paint(&memory);
    let mut screen = rig.viewer(0);
    screen.compose();
    until(&mut screen, "all of it", |screen| {
        seen(screen, false) == all(true)
    });
    guest
        .write(0, 0x68180, &0x8400_0000u32.to_le_bytes())
        .unwrap();
    let why = "sprite 1: scaling is not supported";
    until(&mut screen, "the reason", |screen| {
        screen.no_signal().map(ToString::to_string) == Some(why.into())
    });
    // It is said once, however often one looks, and viewers hear of it once.
    let before = logs::lines(&[why]).len();
    assert_eq!(before, 1);
    for _ in 0..100 {
        assert!(screen.look().unwrap().is_empty());
    }
    assert_eq!(logs::lines(&[why]).len(), before);
    // Who does not want sprites sees the picture.
    let mut plain = rig.viewer(0);
    until(&mut plain, "the picture", |screen| {
        seen(screen, false) == all(false)
    });
    guest.write(0, 0x68180, &[0; 4]).unwrap();
    until(&mut screen, "all of it again", |screen| {
        seen(screen, false) == all(true)
    });
}
