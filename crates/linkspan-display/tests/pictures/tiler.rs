//! A tiler that goes the other way, byte by byte from the formulas of Intel's manuals, and
//! the pictures that come back from what it made.

use linkspan_display::{FourCc, Surface, TILE_BYTES, Tiling, untile};
use linkspan_mem::past_caches;
use proptest::prelude::*;

use super::{linear, noise, picture};

/// Where byte `x` of line `y` lies.
fn place(tiling: Tiling, x: usize, y: usize, pitch: usize) -> usize {
    match tiling {
        Tiling::Linear => y * pitch + x,
        Tiling::X => (y / 8) * 8 * pitch + (x / 512) * 4096 + (y % 8) * 512 + x % 512,
        Tiling::Y => {
            (y / 32) * 32 * pitch
                + (x / 128) * 4096
                + ((x % 128) / 16) * 512
                + (y % 32) * 16
                + x % 16
        }
    }
}

/// Lays lines out in tiles.
fn tiled(tiling: Tiling, lines: &[u8], pitch: usize) -> Vec<u8> {
    let mut memory = vec![0; lines.len()];
    for (at, byte) in lines.iter().enumerate() {
        memory[place(tiling, at % pitch, at / pitch, pitch)] = *byte;
    }
    memory
}

#[test]
fn places_are_those_of_the_manuals() {
    let pitch = 1024;
    assert_eq!(place(Tiling::X, 512, 0, pitch), 4096);
    assert_eq!(place(Tiling::X, 0, 1, pitch), 512);
    assert_eq!(place(Tiling::X, 0, 8, pitch), 8 * pitch);
    assert_eq!(place(Tiling::Y, 16, 0, pitch), 512);
    assert_eq!(place(Tiling::Y, 0, 1, pitch), 16);
    assert_eq!(place(Tiling::Y, 128, 0, pitch), 4096);
    assert_eq!(place(Tiling::Y, 0, 32, pitch), 32 * pitch);
}

#[test]
fn a_tile_becomes_lines() {
    for tiling in [Tiling::X, Tiling::Y] {
        let (width, pitch) = (tiling.width_bytes(), 1024);
        let lines = noise(TILE_BYTES);
        let tile = tiled(tiling, &lines, width);
        let mut back = vec![0; pitch * tiling.height()];
        past_caches(&mut back, |back| untile(tiling, &tile, back, 0, pitch));
        for (line, bytes) in lines.chunks(width).zip(back.chunks(pitch)) {
            assert_eq!(line, &bytes[..width], "{tiling}");
        }
    }
}

/// GVT-g reads the offset of a plane and does not apply it: its pictures are shifted.
#[test]
fn an_offset_is_applied_before_tiles() {
    for tiling in [Tiling::Linear, Tiling::X, Tiling::Y] {
        let (pitch, lines) = (2048, 96);
        let bytes = noise(pitch * lines);
        let memory = tiled(tiling, &bytes, pitch);
        let surface = Surface {
            modifier: tiling.modifier(),
            x: 131,
            y: 13,
            ..linear(FourCc::XRGB8888, 300, 77, 2048)
        };
        let got = picture(&surface, &memory);
        for y in 0..77usize {
            for x in 0..300usize {
                let at = (y + 13) * pitch + (x + 131) * 4;
                let want = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                assert_eq!(got[y * 300 + x], want | 0xFF00_0000, "{tiling} {x} {y}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the size, the place and the format: tiled and read is as linear and read.
    #[test]
    fn tiled_pictures_are_the_same_as_linear_ones(
        tiling in prop_oneof![Just(Tiling::X), Just(Tiling::Y)],
        format in prop_oneof![
            Just((FourCc::XRGB8888, 4)), Just((FourCc::XBGR2101010, 4)), Just((FourCc::RGB565, 2)),
        ],
        (x, y) in (0u32..200, 0u32..70),
        (width, height) in (1u32..700, 1u32..100),
    ) {
        let (format, bytes) = format;
        let pitch = ((x + width) * bytes).next_multiple_of(512) + 512;
        let lines = (y + height).next_multiple_of(32);
        let content = noise(pitch as usize * lines as usize);
        let flat = Surface { x, y, ..linear(format, width, height, pitch) };
        let memory = tiled(tiling, &content, pitch as usize);
        let surface = Surface { modifier: tiling.modifier(), ..flat };
        prop_assert_eq!(picture(&surface, &memory), picture(&flat, &content));
    }
}
