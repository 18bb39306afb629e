//! Planes of Intel's display engines, from register files that are made up.

use std::collections::BTreeMap;

use linkspan_display::decode::intel::{
    Found, Generation, IntelError, Pipe, REGISTERS_BYTES, Shown, planes,
};
use linkspan_display::{FourCc, HotSpot, Kind, Layout, Modifier, Position, Refusal, Surface};

const ON: u32 = 1 << 31;

/// Registers by their offset; what is not there is 0. Each may be read once.
fn decode(generation: Generation, file: &[(u32, u32)]) -> Vec<Found> {
    let file: BTreeMap<u32, u32> = file.iter().copied().collect();
    let mut seen = BTreeMap::new();
    let found = planes(generation, |offset| {
        assert!(offset < REGISTERS_BYTES && offset.is_multiple_of(4));
        *seen.entry(offset).or_insert(0) += 1;
        file.get(&offset).copied().unwrap_or(0)
    });
    let twice: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "read twice: {twice:x?}");
    found
}

fn one(found: &[Found], pipe: Pipe, kind: Kind) -> Result<Option<Shown>, IntelError> {
    let mut all = found
        .iter()
        .filter(|found| (found.pipe, found.kind) == (pipe, kind));
    let shown = all.next().expect("it is listed").shown;
    assert!(all.next().is_none(), "it is listed twice");
    shown
}

fn surface(format: FourCc, modifier: Modifier, width: u32, height: u32, stride: u32) -> Surface {
    Surface {
        format,
        modifier,
        width,
        height,
        stride,
        offset: 0,
        x: 0,
        y: 0,
    }
}

/// A primary plane of gen9 on pipe A: 1920x1080, X tiles.
fn skylake() -> Vec<(u32, u32)> {
    vec![
        (0x70008, ON),
        (0x6001C, 1919 << 16 | 1079),
        (0x70180, ON | 4 << 24 | 1 << 10),
        (0x70188, 15),
        (0x70190, 1079 << 16 | 1919),
        (0x7019C, 0x0123_4000),
    ]
}

fn with(file: &[(u32, u32)], changes: &[(u32, u32)]) -> Vec<(u32, u32)> {
    [file, changes].concat()
}

fn primary(file: &[(u32, u32)]) -> Result<Option<Shown>, IntelError> {
    one(&decode(Generation::Gen9, file), Pipe::A, Kind::Primary)
}

#[test]
fn a_primary_plane_of_gen9() {
    let shown = primary(&skylake()).unwrap().unwrap();
    let want = surface(FourCc::XRGB8888, Modifier::X_TILED, 1920, 1080, 7680);
    assert_eq!(shown.layout, Layout::new(&want, u64::MAX).unwrap());
    assert_eq!(shown.layout.end(), 7680 * 1080);
    assert_eq!(shown.address, 0x0123_4000);
    assert_eq!(shown.position, Position::default());
    assert_eq!(shown.hot_spot, None);
}

#[test]
fn formats_of_gen9() {
    for (bits, format) in [
        (2 << 24, FourCc::XRGB2101010),
        (2 << 24 | 1 << 20, FourCc::XBGR2101010),
        (4 << 24, FourCc::XRGB8888),
        (4 << 24 | 2 << 4, FourCc::ARGB8888),
        (4 << 24 | 1 << 20, FourCc::XBGR8888),
        (4 << 24 | 1 << 20 | 2 << 4, FourCc::ABGR8888),
        (14 << 24, FourCc::RGB565),
    ] {
        let file = with(&skylake(), &[(0x70180, ON | 1 << 10 | bits)]);
        let shown = primary(&file).unwrap().unwrap();
        assert_eq!(shown.layout.surface().format, format);
    }
    let refused = |bits| primary(&with(&skylake(), &[(0x70180, ON | bits)])).unwrap_err();
    for (bits, format) in [
        (0, FourCc::YUYV),
        (1 << 16, FourCc::UYVY),
        (2 << 16, FourCc::YVYU),
        (3 << 16, FourCc::VYUY),
        (1 << 24, FourCc::NV12),
    ] {
        assert_eq!(
            refused(bits),
            IntelError::Refused(Refusal::Video { format })
        );
    }
    let format = FourCc::C8;
    assert_eq!(
        refused(12 << 24),
        IntelError::Refused(Refusal::Palette { format })
    );
    for number in [3, 5, 6, 7, 8, 9, 10, 11, 13, 15] {
        assert_eq!(refused(number << 24), IntelError::Format { number });
    }
    // Colours that the engine multiplies are not those in memory.
    for mode in [1, 3] {
        let file = 4 << 24 | 1 << 10 | mode << 4;
        assert_eq!(refused(file), IntelError::Opacity { mode });
    }
}

/// Units of the stride of gen9 depend on the tiling.
#[test]
fn tilings_of_gen9_and_their_strides() {
    for (bits, units, modifier) in [
        (0, 120, Modifier::LINEAR),
        (1, 15, Modifier::X_TILED),
        (4, 60, Modifier::Y_TILED),
    ] {
        let changes = [
            (0x70180, ON | 4 << 24 | bits << 10),
            (0x70188, 0xF000_0000 | units),
        ];
        let shown = primary(&with(&skylake(), &changes)).unwrap().unwrap();
        let got = shown.layout.surface();
        assert_eq!((got.modifier, got.stride), (modifier, 7680));
    }
}

/// GVT-g says that Yf is Y, and nothing of compression.
#[test]
fn yf_tiles_and_compression_are_refused_and_never_called_y() {
    let refused = |bits| primary(&with(&skylake(), &[(0x70180, ON | 4 << 24 | bits)])).unwrap_err();
    let modifier = Modifier::YF_TILED;
    assert_eq!(
        refused(5 << 10),
        IntelError::Refused(Refusal::Modifier { modifier })
    );
    assert_eq!(refused(4 << 10 | 1 << 15), IntelError::Compressed);
    for number in [2, 3, 6, 7] {
        assert_eq!(refused(number << 10), IntelError::Tiling { number });
    }
}

#[test]
fn rotation_mirrors_scalers_and_protection_are_refused_by_name() {
    let refused = |changes: &[(u32, u32)]| primary(&with(&skylake(), changes)).unwrap_err();
    for (bits, degrees) in [(1, 90), (2, 180), (3, 270)] {
        let file = [(0x70180, ON | 4 << 24 | 1 << 10 | bits)];
        assert_eq!(refused(&file), IntelError::Rotated { degrees });
    }
    let mirrored = [(0x70180, ON | 4 << 24 | 1 << 10 | 1 << 8)];
    assert_eq!(refused(&mirrored), IntelError::Mirrored);
    for key in 1..4 {
        let file = [(0x70180, ON | 4 << 24 | 1 << 10 | key << 21)];
        assert_eq!(refused(&file), IntelError::Keyed);
    }
    assert_eq!(refused(&[(0x7019C, 0x1004)]), IntelError::Protected);
    // Either scaler, bound to plane 1.
    for scaler in [0x68180, 0x68280] {
        assert_eq!(refused(&[(scaler, ON | 1 << 25)]), IntelError::Scaled);
        // Off, bound to another plane, or to what the pipe has made of all.
        for control in [1 << 25, ON | 2 << 25, ON] {
            assert!(primary(&with(&skylake(), &[(scaler, control)])).is_ok());
        }
    }
}

/// GVT-g takes the size of the pipe for that of the plane.
#[test]
fn the_size_of_a_plane_of_gen9_is_its_own() {
    let file = with(
        &skylake(),
        &[(0x70190, 599 << 16 | 799), (0x7018C, 40 << 16 | 30)],
    );
    let shown = primary(&file).unwrap().unwrap();
    let got = shown.layout.surface();
    assert_eq!((got.width, got.height), (800, 600));
    assert_eq!(shown.position, Position { x: 30, y: 40 });
}

/// GVT-g ignores the offset of a plane.
#[test]
fn the_offset_of_a_plane_is_in_its_layout_and_its_memory() {
    let file = with(&skylake(), &[(0x70188, 20), (0x701A4, 9 << 16 | 200)]);
    let shown = primary(&file).unwrap().unwrap();
    let got = shown.layout.surface();
    assert_eq!((got.x, got.y), (200, 9));
    assert_eq!(
        shown.layout.end(),
        20 * 512 * (1080u64 + 9).next_multiple_of(8)
    );
    // So far to the right that lines would overlap.
    let file = with(&skylake(), &[(0x701A4, 1)]);
    assert_eq!(
        primary(&file),
        Err(IntelError::Refused(Refusal::Stride {
            stride: 7680,
            line: 7684
        }))
    );
}

#[test]
fn every_plane_of_every_enabled_pipe_is_listed() {
    // Pipe B through its own register, pipe C as the embedded panel's.
    let base = skylake();
    let on_b: Vec<(u32, u32)> = base
        .iter()
        .map(|(at, value)| (at + 0x1000, *value))
        .collect();
    let mut file = with(&on_b, &[(0x7F008, ON), (0x6F400, ON | 6 << 12)]);
    // A sprite of pipe C.
    file.extend([
        (0x72280, ON | 4 << 24),
        (0x72288, 2),
        (0x72290, 9 << 16 | 19),
        (0x7228C, 7 << 16 | 5),
        (0x7229C, 0x5000),
    ]);
    let found = decode(Generation::Gen9, &file);
    let kinds = [
        Kind::Primary,
        Kind::Sprite(1),
        Kind::Sprite(2),
        Kind::Cursor,
    ];
    let listed: Vec<_> = found.iter().map(|found| (found.pipe, found.kind)).collect();
    let want: Vec<_> = [Pipe::B, Pipe::C]
        .into_iter()
        .flat_map(|pipe| kinds.map(|kind| (pipe, kind)))
        .collect();
    assert_eq!(listed, want);
    assert!(one(&found, Pipe::B, Kind::Primary).unwrap().is_some());
    assert_eq!(one(&found, Pipe::C, Kind::Primary), Ok(None));
    let sprite = one(&found, Pipe::C, Kind::Sprite(1)).unwrap().unwrap();
    assert_eq!(sprite.position, Position { x: 5, y: 7 });
    assert_eq!(
        (sprite.layout.surface().width, sprite.address),
        (20, 0x5000)
    );
    // Nothing is enabled: nothing is listed.
    assert!(decode(Generation::Gen9, &[(0x7F008, ON)]).is_empty());
    for (input, pipe) in [
        (0, Some(Pipe::A)),
        (4, Some(Pipe::A)),
        (5, Some(Pipe::B)),
        (1, None),
        (7, None),
    ] {
        let found = decode(
            Generation::Gen8,
            &[(0x7F008, ON), (0x6F400, ON | input << 12)],
        );
        assert_eq!(found.first().map(|found| found.pipe), pipe, "{input}");
    }
}

/// QEMU (LP #1827772) and GVT-g show no sprites: video is missing from pictures.
#[test]
fn sprites_are_listed_and_shown() {
    let file = with(
        &skylake(),
        &[
            (0x70380, ON | 4 << 24 | 2 << 4),
            (0x70388, 1),
            (0x70390, 3 << 16 | 15),
            (0x7039C, 0x7000),
        ],
    );
    let found = decode(Generation::Gen9, &file);
    assert_eq!(one(&found, Pipe::A, Kind::Sprite(1)), Ok(None));
    let shown = one(&found, Pipe::A, Kind::Sprite(2)).unwrap().unwrap();
    assert_eq!(shown.layout.surface().format, FourCc::ARGB8888);
}

/// A primary plane of Broadwell.
fn broadwell() -> Vec<(u32, u32)> {
    vec![
        (0x70008, ON),
        (0x6001C, 1919 << 16 | 1079),
        (0x70180, ON | 6 << 26 | 1 << 10),
        (0x70188, 7680),
        (0x7019C, 0x4000),
    ]
}

#[test]
fn a_primary_plane_of_gen8() {
    let shown = |changes: &[(u32, u32)]| {
        let file = with(&broadwell(), changes);
        one(&decode(Generation::Gen8, &file), Pipe::A, Kind::Primary)
    };
    let plain = shown(&[]).unwrap().unwrap();
    let want = surface(FourCc::XRGB8888, Modifier::X_TILED, 1920, 1080, 7680);
    assert_eq!(plain.layout.surface(), &want);
    for (number, format) in [
        (5, FourCc::RGB565),
        (6, FourCc::XRGB8888),
        (8, FourCc::XBGR2101010),
        (10, FourCc::XRGB2101010),
        (14, FourCc::XBGR8888),
    ] {
        let got = shown(&[(0x70180, ON | number << 26)]).unwrap().unwrap();
        let surface = got.layout.surface();
        assert_eq!(
            (surface.format, surface.modifier),
            (format, Modifier::LINEAR)
        );
    }
    for number in [0, 1, 3, 4, 7, 9, 11, 12, 13, 15] {
        let refused = shown(&[(0x70180, ON | number << 26)]);
        assert_eq!(refused, Err(IntelError::Format { number }));
    }
    let turned = shown(&[(0x70180, ON | 6 << 26 | 1 << 15)]);
    assert_eq!(turned, Err(IntelError::Rotated { degrees: 180 }));
    let moved = shown(&[(0x70188, 8192), (0x701A4, 3 << 16 | 4)])
        .unwrap()
        .unwrap();
    assert_eq!((moved.layout.surface().x, moved.layout.surface().y), (4, 3));
}

/// GVT-g exchanges red and blue of sprites: bit 20 is set for what has red lowest.
#[test]
fn the_colour_order_of_a_sprite_is_the_drivers() {
    let sprite = |control: u32, scale: u32| {
        let file = with(
            &broadwell(),
            &[
                (0x70280, ON | control),
                (0x70288, 256),
                (0x70290, 3 << 16 | 15),
                (0x7028C, 2 << 16 | 1),
                (0x7029C, 0x9000),
                (0x70304, scale),
            ],
        );
        one(&decode(Generation::Gen8, &file), Pipe::A, Kind::Sprite(1))
    };
    for (control, format) in [
        (2 << 25, FourCc::XRGB8888),
        (2 << 25 | 1 << 20, FourCc::XBGR8888),
        (1 << 25, FourCc::XRGB2101010),
        (1 << 25 | 1 << 20, FourCc::XBGR2101010),
    ] {
        let shown = sprite(control, 0).unwrap().unwrap();
        assert_eq!(shown.layout.surface().format, format);
        assert_eq!(shown.position, Position { x: 1, y: 2 });
    }
    assert_eq!(sprite(2 << 25, ON), Err(IntelError::Scaled));
    for key in [1 << 22, 1 << 2] {
        assert_eq!(sprite(2 << 25 | key, 0), Err(IntelError::Keyed));
    }
    assert_eq!(
        sprite(2 << 25 | 1 << 15, 0),
        Err(IntelError::Rotated { degrees: 180 })
    );
    let format = FourCc::YUYV;
    assert_eq!(
        sprite(0, 0),
        Err(IntelError::Refused(Refusal::Video { format }))
    );
    assert_eq!(sprite(3 << 25, 0), Err(IntelError::Format { number: 3 }));
}

fn pointer(changes: &[(u32, u32)]) -> Result<Option<Shown>, IntelError> {
    let file = with(&skylake(), &[(0x70080, 0x27), (0x70084, 0x8000)]);
    let found = decode(Generation::Gen9, &with(&file, changes));
    one(&found, Pipe::A, Kind::Cursor)
}

#[test]
fn pointers_of_every_mode() {
    for (mode, side) in [(0x27, 64), (0x22, 128), (0x23, 256)] {
        let shown = pointer(&[(0x70080, mode)]).unwrap().unwrap();
        let got = shown.layout.surface();
        assert_eq!((got.width, got.height, got.stride), (side, side, side * 4));
        assert_eq!(
            (got.format, got.modifier),
            (FourCc::ARGB8888, Modifier::LINEAR)
        );
    }
    for mode in [0, 0x20, 0x1000] {
        assert_eq!(pointer(&[(0x70080, mode)]), Ok(None));
    }
    for mode in [2, 3, 4, 5, 6, 7, 0x24, 0x25, 0x26] {
        assert_eq!(
            pointer(&[(0x70080, mode)]),
            Err(IntelError::Pointer { mode })
        );
    }
    let turned = pointer(&[(0x70080, 0x27 | 1 << 15)]);
    assert_eq!(turned, Err(IntelError::Rotated { degrees: 180 }));
    let short = pointer(&[(0x700A0, ON | 31)]).unwrap().unwrap();
    assert_eq!(short.layout.surface().height, 32);
    let short = pointer(&[(0x700A0, ON | 0xFF)]).unwrap().unwrap();
    assert_eq!(short.layout.surface().height, 64);
}

/// GVT-g drops the signs of a pointer's place.
#[test]
fn the_place_of_a_pointer_has_signs() {
    for (value, x, y) in [
        (0x0007_0005, 5, 7),
        (0x8007_0005, 5, -7),
        (0x0007_8005, -5, 7),
        (0xFFFF_FFFF, -0x7FFF, -0x7FFF),
        (0x8000_8000, 0, 0),
    ] {
        let shown = pointer(&[(0x70088, value)]).unwrap().unwrap();
        assert_eq!(shown.position, Position { x, y });
    }
}

#[test]
fn a_hot_spot_counts_inside_its_pointer_only() {
    let spot = |x, y| {
        pointer(&[(0x78830, x), (0x78834, y)])
            .unwrap()
            .unwrap()
            .hot_spot
    };
    assert_eq!(spot(63, 1), Some(HotSpot { x: 63, y: 1 }));
    assert_eq!(spot(64, 1), None);
    assert_eq!(spot(u32::MAX, u32::MAX), None);
}

/// Every value of a control register, as far as its fields go, with other registers of all
/// kinds: a picture inside its memory, or an error.
#[test]
fn any_registers_are_planes_or_errors() {
    let mut state = 7u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    for round in 0..60_000u32 {
        let generation = if round % 2 == 0 {
            Generation::Gen8
        } else {
            Generation::Gen9
        };
        for found in planes(generation, |_| next() | (round & 4) << 29) {
            if let Ok(Some(shown)) = found.shown {
                assert!(shown.address.is_multiple_of(4096));
                assert!(shown.layout.bands().next().is_some());
            }
        }
    }
}

/// What PVINFO says is read once, however many pipes have a pointer.
#[test]
fn pointers_of_two_pipes() {
    let base = with(
        &skylake(),
        &[(0x70080, 0x27), (0x71008, ON), (0x71080, 0x22)],
    );
    let found = decode(
        Generation::Gen9,
        &with(&base, &[(0x78830, 5), (0x78834, 6)]),
    );
    for pipe in [Pipe::A, Pipe::B] {
        let shown = one(&found, pipe, Kind::Cursor).unwrap().unwrap();
        assert_eq!(shown.hot_spot, Some(HotSpot { x: 5, y: 6 }));
    }
}
