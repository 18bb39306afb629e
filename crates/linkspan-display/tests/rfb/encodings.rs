//! Every encoding in every format of pixels.

use linkspan_display::rfb::PixelFormat;

use super::{Pair, area};

const WIDTH: u32 = 300;
const HEIGHT: u32 = 200;

/// Formats that clients use, and some that none does.
fn formats() -> Vec<PixelFormat> {
    let native = PixelFormat::NATIVE;
    let mut formats = vec![
        native,
        // Red lowest; the highest three bytes; in the middle; all 32 bits deep.
        PixelFormat {
            shift: [0, 8, 16],
            ..native
        },
        PixelFormat {
            shift: [24, 16, 8],
            ..native
        },
        PixelFormat {
            shift: [20, 12, 4],
            max: [15, 15, 15],
            ..native
        },
        PixelFormat {
            depth: 32,
            ..native
        },
        PixelFormat {
            depth: 30,
            max: [1023; 3],
            shift: [20, 10, 0],
            ..native
        },
        PixelFormat {
            bits: 16,
            depth: 16,
            max: [31, 63, 31],
            shift: [11, 5, 0],
            ..native
        },
        PixelFormat {
            bits: 16,
            depth: 15,
            max: [31, 31, 31],
            shift: [0, 5, 10],
            ..native
        },
        PixelFormat {
            bits: 8,
            depth: 8,
            max: [7, 7, 3],
            shift: [0, 3, 6],
            ..native
        },
        PixelFormat {
            bits: 8,
            depth: 6,
            max: [3, 3, 3],
            shift: [4, 2, 0],
            ..native
        },
    ];
    let big: Vec<_> = formats
        .iter()
        .map(|format| PixelFormat {
            big_endian: true,
            ..*format
        })
        .collect();
    formats.extend(big);
    formats
}

fn set_format(pair: &mut Pair, format: PixelFormat) {
    let mut message = vec![
        0,
        0,
        0,
        0,
        format.bits,
        format.depth,
        format.big_endian.into(),
        1,
    ];
    for max in format.max {
        message.extend(max.to_be_bytes());
    }
    message.extend(format.shift);
    message.extend([0; 3]);
    pair.say(&message);
    pair.client.format = format;
}

/// Areas of one colour, of few colours, with runs, and noise.
fn paint(pair: &mut Pair, seed: u32) {
    let mut state = seed | 1;
    let mut noise = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let colours = |count: u32| move |value: u32| (value % count) * 0x0012_3457;
    pair.draw(area(0, 0, WIDTH, HEIGHT), |_, _| 0xFF20_4060);
    for (at, count) in [2, 3, 4, 5, 16, 17].into_iter().enumerate() {
        let x = 30 * u32::try_from(at).unwrap();
        let colour = colours(count);
        pair.draw(area(x, 3, 29, 70), |_, _| colour(noise()));
        pair.draw(area(x, 80, 29, 40), |x, y| colour((x + y * 29) / 37 + seed));
    }
    pair.draw(area(200, 0, 100, 64), |_, _| noise());
    pair.draw(area(0, 130, 300, 1), |_, _| 0xFFFF_FFFF);
    pair.draw(area(128, 140, 64, 60), |x, y| {
        (x * 60 + y) / 11 * 0x0001_0203
    });
}

#[test]
fn pictures_arrive_in_every_encoding_and_format() {
    for encoding in [0, 6, 7, 16] {
        for format in formats() {
            let mut pair = Pair::new(WIDTH, HEIGHT);
            pair.encodings(&[encoding]);
            set_format(&mut pair, format);
            for seed in [1, 77] {
                paint(&mut pair, seed);
                pair.ask(false, area(0, 0, WIDTH, HEIGHT));
                assert!(pair.update());
                assert!(pair.sees(), "encoding {encoding}, {format:?}");
            }
        }
    }
}

#[test]
fn sizes_that_are_no_multiple_of_anything() {
    for encoding in [0, 6, 7, 16] {
        for (width, height) in [(1, 1), (3, 1), (1, 70), (65, 63), (129, 33), (4100, 3)] {
            let mut pair = Pair::new(width, height);
            pair.encodings(&[encoding]);
            for modulus in [1, 2, 7, 0xFF_FFFF] {
                pair.draw(area(0, 0, width, height), |x, y| {
                    ((x * 7919 + y * 104_729) % modulus).wrapping_mul(4099)
                });
                pair.ask(true, area(0, 0, width, height));
                assert!(pair.update());
                assert!(
                    pair.sees(),
                    "encoding {encoding}, {width}x{height}, {modulus}"
                );
            }
        }
    }
}

#[test]
fn what_is_simple_is_short() {
    for (encoding, most) in [(6, 10_000), (7, 500), (16, 500)] {
        let mut pair = Pair::new(640, 480);
        pair.encodings(&[encoding]);
        pair.ask(false, area(0, 0, 640, 480));
        assert!(pair.update());
        assert!(pair.sees());
        assert!(
            pair.client.bytes < most,
            "{encoding}: {}",
            pair.client.bytes
        );
    }
}

#[test]
fn the_first_known_encoding_is_what_the_client_likes_best() {
    for (list, encoding) in [
        (&[5, 1, 16, 7, 0][..], 16),
        (&[7, 16], 7),
        (&[2, 15], 0),
        (&[], 0),
        (&[-239, 6], 6),
    ] {
        let mut pair = Pair::new(64, 64);
        pair.encodings(list);
        pair.ask(false, area(0, 0, 64, 64));
        let scene = linkspan_display::Scene::of(&pair.frame);
        assert!(pair.viewer.update(&scene));
        let out = pair.taken();
        assert_eq!(out[12..16], i32::to_be_bytes(encoding), "{list:?}");
    }
}

/// The stream of zlib goes on from update to update whatever effort the client wants.
#[test]
fn efforts_may_change_within_a_stream() {
    let mut pair = Pair::new(WIDTH, HEIGHT);
    for level in [-256, -247, -251, -247, -256] {
        pair.encodings(&[16, level]);
        for seed in [3, 9] {
            paint(&mut pair, seed);
            pair.ask(true, area(0, 0, WIDTH, HEIGHT));
            assert!(pair.update() && pair.sees(), "{level}");
        }
    }
}
