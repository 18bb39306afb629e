//! Each format, pixel by pixel.

use linkspan_display::{FORMATS, Format, FourCc, to_bgrx, to_rgba};

use super::{linear, noise, picture};

/// One pixel of a format.
fn pixel(format: FourCc, bytes: &[u8]) -> u32 {
    let stride = u32::try_from(bytes.len()).unwrap();
    picture(&linear(format, 1, 1, stride), bytes)[0]
}

#[test]
fn eight_bits_a_colour() {
    let bytes = [0x11, 0x22, 0x33, 0x44];
    for (format, want) in [
        (FourCc::XRGB8888, 0xFF33_2211),
        (FourCc::ARGB8888, 0x4433_2211),
        (FourCc::XBGR8888, 0xFF11_2233),
        (FourCc::ABGR8888, 0x4411_2233),
        (FourCc::RGBX8888, 0xFF44_3322),
        (FourCc::RGBA8888, 0x1144_3322),
        (FourCc::BGRX8888, 0xFF22_3344),
        (FourCc::BGRA8888, 0x1122_3344),
        (FourCc::RGB888, 0xFF33_2211),
        (FourCc::BGR888, 0xFF11_2233),
        (FourCc::R8, 0xFF11_1111),
    ] {
        let len = Format::find(format).unwrap().bytes;
        assert_eq!(pixel(format, &bytes[..len]), want, "{format}");
    }
}

#[test]
fn other_numbers_of_bits() {
    let words = |value: u32| value.to_le_bytes();
    let thirty = 2 << 30 | 0x3FF << 20 | 0x200 << 10 | 0x004;
    assert_eq!(pixel(FourCc::XRGB2101010, &words(thirty)), 0xFFFF_8001);
    assert_eq!(pixel(FourCc::ARGB2101010, &words(thirty)), 0xAAFF_8001);
    assert_eq!(pixel(FourCc::XBGR2101010, &words(thirty)), 0xFF01_80FF);
    assert_eq!(pixel(FourCc::ABGR2101010, &words(thirty)), 0xAA01_80FF);
    for (bits, red, green, blue) in [(16, 11, 5, 0), (15, 10, 5, 0)] {
        let (format, swapped, wide) = match bits {
            16 => (FourCc::RGB565, FourCc::BGR565, 63u32),
            _ => (FourCc::XRGB1555, FourCc::ARGB1555, 31),
        };
        for value in [0u32, 1, 7, 15, 30, 31] {
            let green_value = value * wide / 31;
            let word = value << red | green_value << green | (31 - value) << blue;
            let bytes = &words(word)[..2];
            // Within one step of the exact value.
            let near = |got: u32, value: u32, max: u32| got.abs_diff(value * 255 / max) <= 3;
            let got = pixel(format, bytes);
            assert!(near(got >> 16 & 0xFF, value, 31), "{format} {value}");
            assert!(near(got >> 8 & 0xFF, green_value, wide), "{format} {value}");
            assert!(near(got & 0xFF, 31 - value, 31), "{format} {value}");
            assert_eq!(got >> 24, 0xFF);
            let other = pixel(swapped, bytes);
            if bits == 16 {
                assert_eq!(other >> 16 & 0xFF, got & 0xFF);
            } else {
                assert_eq!(other, got & 0xFF_FFFF);
            }
        }
    }
    // The ends are the ends.
    for format in [FourCc::RGB565, FourCc::XRGB1555, FourCc::BGR565] {
        assert_eq!(pixel(format, &[0xFF, 0xFF]), 0xFFFF_FFFF);
        assert_eq!(pixel(format, &[0, 0]), 0xFF00_0000);
    }
    assert_eq!(pixel(FourCc::ARGB1555, &[0xFF, 0xFF]), 0xFFFF_FFFF);
}

/// What vector code does to long runs, and to their ends, is what it does to one pixel.
#[test]
fn a_run_of_any_length_is_converted_as_its_pixels_are() {
    for format in FORMATS {
        let bytes = noise(300 * format.bytes);
        for (start, len) in [(0, 300), (1, 31), (7, 200), (31, 33), (32, 64), (299, 1)] {
            let part = &bytes[start * format.bytes..(start + len) * format.bytes];
            let width = u32::try_from(len).unwrap();
            let stride = u32::try_from(part.len()).unwrap();
            let got = picture(&linear(format.fourcc, width, 1, stride), part);
            let want: Vec<u32> = part
                .chunks(format.bytes)
                .map(|bytes| pixel(format.fourcc, bytes))
                .collect();
            assert_eq!(got, want, "{} {start} {len}", format.name);
        }
    }
}

#[test]
fn the_table_has_each_code_once_and_says_which_have_opacity() {
    for format in FORMATS {
        assert_eq!(Format::find(format.fourcc), Some(format));
        let transparent = pixel(format.fourcc, &vec![0; format.bytes]) >> 24 == 0;
        assert_eq!(transparent, format.alpha, "{}", format.name);
    }
}

#[test]
fn pixels_leave_as_bytes_of_either_order() {
    let mut bytes = [0; 8];
    to_rgba(&[0x4433_2211, 0xFF01_0203], &mut bytes);
    assert_eq!(bytes, [0x33, 0x22, 0x11, 0x44, 1, 2, 3, 0xFF]);
    to_bgrx(&[0x4433_2211, 0xFF01_0203], &mut bytes);
    assert_eq!(bytes, [0x11, 0x22, 0x33, 0, 3, 2, 1, 0]);
}
