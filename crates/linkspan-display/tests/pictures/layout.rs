//! What a layout refuses, and in which bands it is read.

use linkspan_display::{
    BAND_MAX, FourCc, HEIGHT_MAX, Layout, Modifier, Refusal, Surface, WIDTH_MAX,
};
use proptest::prelude::*;

use super::linear;

const PLAIN: u64 = 64 * 64 * 4;

fn plain() -> Surface {
    linear(FourCc::XRGB8888, 64, 64, 256)
}

/// libdrmtap handed tiled memory out as linear; virgl's is black. Here it is refused.
#[test]
fn unknown_formats_and_tilings_are_refused_by_name() {
    let refused = |surface: Surface| Layout::new(&surface, u64::MAX).unwrap_err().to_string();
    for (format, words) in [
        (FourCc::C8, "format C8 has a palette, which is not told"),
        (FourCc::YUYV, "video format YUYV is not supported"),
        (FourCc::NV12, "video format NV12 is not supported"),
        (FourCc::new(b"AB4H"), "format AB4H is not supported"),
        (FourCc(0), "format 0x00000000 is not supported"),
    ] {
        let surface = Surface { format, ..plain() };
        assert_eq!(refused(surface), words);
    }
    let cut = Surface {
        format: FourCc::RGB888,
        modifier: Modifier::X_TILED,
        stride: 4096,
        ..plain()
    };
    assert_eq!(
        refused(cut),
        "format RG24 with tiling Intel X (0x100000000000001) is not supported: pixels would be cut"
    );
    for (modifier, words) in [
        (
            Modifier::INVALID,
            "tiling unknown (0xffffffffffffff) is not supported",
        ),
        (
            Modifier::YF_TILED,
            "tiling Intel Yf (0x100000000000003) is not supported",
        ),
        (
            Modifier::Y_TILED_CCS,
            "compressed memory (Intel Y with compression (0x100000000000004)) is not supported",
        ),
        (
            Modifier(1 << 56 | 7),
            "compressed memory (Intel gen12 Y with media compression (0x100000000000007)) is not supported",
        ),
        (
            Modifier(1 << 56 | 9),
            "tiling Intel 4 (0x100000000000009) is not supported",
        ),
        (
            Modifier(3 << 56 | 0x10),
            "tiling NVIDIA (0x300000000000010) is not supported",
        ),
        (
            Modifier(2 << 56 | 1),
            "tiling AMD (0x200000000000001) is not supported",
        ),
    ] {
        let surface = Surface {
            modifier,
            ..plain()
        };
        assert_eq!(refused(surface), words);
    }
}

#[test]
fn numbers_that_cannot_be_are_refused_with_themselves() {
    let new = |surface: Surface, size| Layout::new(&surface, size).map(|layout| layout.end());
    assert_eq!(new(plain(), PLAIN), Ok(PLAIN));
    assert_eq!(
        new(plain(), PLAIN - 1),
        Err(Refusal::Outside {
            end: PLAIN,
            size: PLAIN - 1
        })
    );
    for (width, height) in [
        (0, 64),
        (64, 0),
        (WIDTH_MAX + 1, 1),
        (1, HEIGHT_MAX + 1),
        (WIDTH_MAX, HEIGHT_MAX),
    ] {
        let stride = u32::MAX;
        let surface = Surface {
            width,
            height,
            stride,
            ..plain()
        };
        assert_eq!(new(surface, u64::MAX), Err(Refusal::Size { width, height }));
    }
    let stride = 255;
    assert_eq!(
        new(Surface { stride, ..plain() }, u64::MAX),
        Err(Refusal::Stride { stride, line: 256 })
    );
    // What is left of the picture is in the line too, whatever its size.
    assert_eq!(
        new(
            Surface {
                x: u32::MAX,
                ..plain()
            },
            u64::MAX
        ),
        Err(Refusal::Stride {
            stride: 256,
            line: (u64::from(u32::MAX) + 64) * 4
        })
    );
    let x_tiled = Surface {
        modifier: Modifier::X_TILED,
        ..plain()
    };
    assert_eq!(
        new(
            Surface {
                stride: 513,
                ..x_tiled
            },
            u64::MAX
        ),
        Err(Refusal::StrideUnit {
            stride: 513,
            unit: 512
        })
    );
    let tiled = Surface {
        stride: 512,
        ..x_tiled
    };
    assert_eq!(new(tiled, u64::MAX), Ok(512 * 64));
    assert_eq!(new(Surface { y: 1, ..tiled }, u64::MAX), Ok(512 * 72));
    assert_eq!(
        new(
            Surface {
                offset: 64,
                ..tiled
            },
            u64::MAX
        ),
        Err(Refusal::Offset { offset: 64 })
    );
    let far = u64::MAX - 4095;
    assert_eq!(
        new(
            Surface {
                offset: far,
                ..tiled
            },
            u64::MAX - 1
        ),
        Err(Refusal::Outside {
            end: u64::MAX,
            size: u64::MAX - 1
        })
    );
    let lines = Surface {
        y: u32::MAX,
        ..plain()
    };
    assert_eq!(
        new(lines, 1 << 20),
        Err(Refusal::Outside {
            end: (u64::from(u32::MAX) + 63) * 256 + 256,
            size: 1 << 20
        })
    );
}

/// Found by the fuzzer: lines times stride have 65 bits.
#[test]
fn a_picture_that_ends_behind_all_addresses_is_outside() {
    let end = u64::MAX;
    for (modifier, stride) in [
        (Modifier::LINEAR, u32::MAX),
        (Modifier::Y_TILED, u32::MAX - 127),
    ] {
        let y = u32::MAX;
        let far = Surface {
            modifier,
            stride,
            y,
            height: HEIGHT_MAX,
            ..plain()
        };
        for size in [1 << 16, u64::MAX] {
            let refused = Layout::new(&far, size).unwrap_err();
            assert_eq!(refused, Refusal::Outside { end, size });
        }
    }
}

fn any_surface() -> impl Strategy<Value = Surface> {
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
    let place = (0u32..300, 0u32..300, 0u64..3);
    (format, modifier, 1u32..9000, 1u32..80, 0u32..20_000, place).prop_map(
        |(format, modifier, width, height, more, (x, y, pages))| Surface {
            format,
            // Pixels of three bytes are in no tiles.
            modifier: match format {
                FourCc::RGB888 => Modifier::LINEAR,
                _ => modifier,
            },
            width,
            height,
            stride: ((x + width) * 4 + more).next_multiple_of(512),
            offset: pages * 4096,
            x,
            y,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bands_are_short_inside_in_order_and_as_many_as_needed(surface in any_surface()) {
        let layout = Layout::new(&surface, u64::MAX).unwrap();
        let (mut end, mut bytes) = (surface.offset, 0);
        for band in layout.bands() {
            prop_assert!(band.len > 0 && band.len <= BAND_MAX);
            prop_assert!(band.offset >= end);
            end = band.offset + band.len as u64;
            bytes += band.len as u64;
        }
        prop_assert!(end <= layout.end());
        let pixels = u64::from(surface.width) * u64::from(surface.height);
        prop_assert!(bytes >= pixels * layout.format().bytes as u64);
    }

    #[test]
    fn bands_of_some_rows_are_all_of_them_in_turn(surface in any_surface(), step in 1..6_usize) {
        let layout = Layout::new(&surface, u64::MAX).unwrap();
        let turns = (0..step).map(|first| layout.bands_of_rows(first, step).collect::<Vec<_>>());
        let turns: Vec<_> = turns.collect();
        let all: Vec<_> = layout.bands().collect();
        let mut together: Vec<_> = turns.concat();
        together.sort_by_key(|band| band.offset);
        prop_assert_eq!(together, all);
    }
}
