//! Seeds of `display_planes` and `rfb_input`.

use super::{Expected, Seed};
use crate::display::planes::{BOCHS, EDID, GEN8, GEN9, GTT, MDPY, OPREGION, REGION, SURFACE};
use crate::display::rfb::{ANSWER, DRAW, POINT, REPLACE, RESIZE, RUNNING, SAY, TAKE, UPDATE};

pub(super) fn seed(
    target: &'static str,
    name: &str,
    bytes: Vec<u8>,
    counts: (usize, usize),
    error: Option<&'static str>,
) -> Seed {
    Seed {
        target,
        name: name.into(),
        bytes,
        expected: Expected::Display {
            done: counts.0,
            refused: counts.1,
            error,
        },
    }
}

pub(super) fn seeds() -> Vec<Seed> {
    [planes(), rfb()].concat()
}

fn planes() -> Vec<Seed> {
    let plane = |name: &str, kind: u8, rest: Vec<u8>, counts, error| {
        seed(
            "display_planes",
            name,
            [vec![kind], rest].concat(),
            counts,
            error,
        )
    };
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let halves = |halves: &[u16]| {
        halves
            .iter()
            .flat_map(|half| half.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    const ON: u32 = 1 << 31;
    // 128x16: pipe A, its size, control, stride, surface.
    let gen8 = [
        0x70008,
        ON,
        0x6001C,
        127 << 16 | 15,
        0x70180,
        ON | 6 << 26 | 1 << 10,
        0x70188,
        512,
        0x7019C,
        0x4000,
    ];
    let gen9 = [
        0x70008,
        ON,
        0x70180,
        ON | 4 << 24 | 4 << 10,
        0x70188,
        4,
        0x70190,
        31 << 16 | 127,
        0x7019C,
        0x4000,
    ];
    let with = |base: &[u32], more: &[u32]| words(&[base, more].concat());
    let bochs = |more: [u16; 10]| halves(&[&[0xB0C5][..], &more].concat());
    let mode = linkspan_display::edid::Mode::reduced(1024, 768, 60).expect("a mode");
    let edid = linkspan_display::edid::make(&mode, "seed", 1);
    let mut bad_edid = edid;
    bad_edid[30] ^= 1;
    let mut opregion = words(&[0x8000_8086, 1]);
    opregion.extend(b"IntelGraphicsMem");
    opregion.extend([8, 0, 0, 0]);
    opregion.resize(8 + 256, 0);
    opregion.extend([0, 0x20]);
    let mut short = opregion.clone();
    short[265] = 1;
    let pages = |more: &[u32]| words(&[&[0, 0x2000, 0, 0x2000, 0, 16][..], more].concat());
    let linear = [0, 0, 0, 64, 48, 256, 8, 0, 0];
    vec![
        plane("gen8_x_tiles", GEN8, words(&gen8), (1, 0), None),
        plane(
            "gen8_format",
            GEN8,
            with(&gen8, &[0x70180, ON | 3 << 26]),
            (0, 1),
            Some("pixel format 0x3"),
        ),
        plane(
            "gen8_sprite",
            GEN8,
            with(
                &gen8,
                &[0x70280, ON | 2 << 25, 0x70290, 7 << 16 | 15, 0x70288, 64],
            ),
            (2, 0),
            None,
        ),
        plane("gen9_y_tiles", GEN9, words(&gen9), (1, 0), None),
        plane(
            "gen9_pointer_left_of_the_screen",
            GEN9,
            with(&gen9, &[0x70080, 0x27, 0x70088, 0x8000_8005]),
            (2, 0),
            None,
        ),
        plane(
            "gen9_offset",
            GEN9,
            with(&gen9, &[0x701A4, 3 << 16 | 4, 0x70188, 8]),
            (1, 0),
            None,
        ),
        plane(
            "gen9_offset_too_far",
            GEN9,
            with(&gen9, &[0x701A4, 1]),
            (0, 1),
            Some("a stride of 512 bytes for lines of 516"),
        ),
        plane(
            "gen9_yf",
            GEN9,
            with(&gen9, &[0x70180, ON | 4 << 24 | 5 << 10]),
            (0, 1),
            Some("Intel Yf"),
        ),
        plane(
            "gen9_scaled",
            GEN9,
            with(&gen9, &[0x68180, ON | 1 << 25]),
            (0, 1),
            Some("scaling"),
        ),
        plane(
            "gen9_embedded_panel",
            GEN9,
            with(&gen9, &[0x70008, 0, 0x7F008, ON, 0x6F400, ON]),
            (1, 0),
            None,
        ),
        plane(
            "bochs_16",
            BOCHS,
            bochs([100, 80, 16, 0x41, 0, 128, 0, 3, 5, 0]),
            (1, 0),
            None,
        ),
        plane(
            "bochs_palette",
            BOCHS,
            bochs([100, 80, 8, 0x41, 0, 128, 0, 0, 0, 0]),
            (0, 1),
            Some("palette"),
        ),
        plane(
            "bochs_outside",
            BOCHS,
            bochs([100, 80, 32, 1, 0, 0, 0, 0, 0xFFFF, 0]),
            (0, 1),
            Some("memory of 65536"),
        ),
        plane(
            "mdpy",
            MDPY,
            [&[9, 0, 16, 0][..], b"XR24", &[64, 0, 0, 0, 48, 0, 0, 0]].concat(),
            (1, 0),
            None,
        ),
        plane("table", GTT, pages(&[0, 0x5001, 0, 0x6001]), (1, 0), None),
        plane(
            "table_absent",
            GTT,
            pages(&[0, 0x5001, 0, 0x6000]),
            (0, 1),
            Some("is not mapped"),
        ),
        plane(
            "table_no_memory",
            GTT,
            pages(&[1, 1, 0, 1]),
            (0, 1),
            Some("has no memory"),
        ),
        plane(
            "table_outside",
            GTT,
            words(&[0, 0x2000, 0, 0xF000, 0, 16]),
            (0, 1),
            Some("outside of a table"),
        ),
        plane("edid", EDID, edid.to_vec(), (1, 0), None),
        plane(
            "edid_checksum",
            EDID,
            bad_edid.to_vec(),
            (0, 1),
            Some("wrong checksum"),
        ),
        plane("opregion", OPREGION, opregion, (1, 0), None),
        plane(
            "opregion_short",
            OPREGION,
            short,
            (0, 1),
            Some("less than 8192"),
        ),
        plane(
            "region",
            REGION,
            // A type, one that is not known, and a part that can be mapped.
            words(&[
                32, 2048, 128, 0, 1920, 1200, 1, 0x1_0002, 48, 1, 1, 0x1_0007, 56, 0x1_0001, 0, 1,
                0, 0, 0, 4096, 0,
            ]),
            (2, 0),
            None,
        ),
        plane(
            "region_endless",
            REGION,
            words(&[32, 4, 128, 0, 0, 0, 1, 0x1_0007, 32]),
            (0, 2),
            Some("its EDID at byte 4"),
        ),
        plane("surface", SURFACE, words(&linear), (1, 0), None),
        plane(
            "surface_of_24_bits",
            SURFACE,
            words(&[12, 0, 0, 50, 48, 151, 3, 0, 0]),
            (1, 0),
            None,
        ),
        plane(
            "surface_without_end",
            SURFACE,
            words(&[0, 0, 0, 64, 48, u32::MAX, 0, 0, u32::MAX]),
            (0, 1),
            Some("ends at byte 18446744073709551615 of memory of 65536"),
        ),
        plane(
            "surface_tiled_elsewhere",
            SURFACE,
            words(&[0, 0x0300_0000, 0x10, 64, 48, 256, 0, 0, 0]),
            (0, 1),
            Some("NVIDIA"),
        ),
    ]
}

fn rfb() -> Vec<Seed> {
    let client = |name: &str, first: u8, steps: &[&[u8]], counts, error| {
        seed(
            "rfb_input",
            name,
            [&[first][..], &steps.concat()].concat(),
            counts,
            error,
        )
    };
    let say = |bytes: &[u8]| {
        let len = u8::try_from(bytes.len()).expect("seeds are small");
        [&[SAY, len][..], bytes].concat()
    };
    let encodings = |list: &[i32]| {
        let count = u8::try_from(list.len()).expect("seeds are small");
        let numbers: Vec<u8> = list
            .iter()
            .flat_map(|number| number.to_be_bytes())
            .collect();
        say(&[&[2, 0, 0, count][..], &numbers].concat())
    };
    let ask = say(&[3, 1, 0, 0, 0, 0, 0, 64, 0, 48]);
    let draw = [DRAW, 5, 6, 77];
    let sent = [UPDATE, TAKE, 255, TAKE, 255, TAKE, 255, TAKE, 255];
    let picture = |name: &str, list: &[i32]| {
        let steps: [&[u8]; 9] = [
            &encodings(list),
            &[TAKE, 255],
            &draw,
            &ask,
            &sent,
            &[REPLACE],
            &draw,
            &ask,
            &sent,
        ];
        client(name, RUNNING, &steps, (2, 0), None)
    };
    let continuous = say(&[150, 1, 0, 0, 0, 0, 0, 64, 0, 48]);
    let format = |bytes: [u8; 13]| say(&[&[0, 0, 0, 0][..], &bytes, &[0; 3]].concat());
    let grey = format([8, 8, 0, 1, 0, 7, 0, 7, 0, 3, 5, 2, 0]);
    let palette = format([8, 8, 0, 0, 0, 7, 0, 7, 0, 3, 5, 2, 0]);
    let wide = format([16, 16, 1, 1, 0, 31, 0, 63, 0, 31, 12, 5, 0]);
    let key = say(&[4, 1, 0, 0, 0, 0, 0xFF, 0x0D]);
    let pointer = say(&[5, 1, 0, 9, 0, 9]);
    let fence = say(&[248, 0, 0, 0, 0x80, 0, 0, 3, 2, 8, 9]);
    vec![
        client(
            "version_3_8",
            0,
            &[
                &[TAKE, 1],
                &say(b"RFB 003.008\n\x01\x01"),
                &[TAKE, 9],
                &ask,
                &sent,
            ],
            (2, 0),
            None,
        ),
        client(
            "version_3_3",
            0,
            &[
                &say(b"RFB 003.003\n"),
                &[REPLACE, TAKE, 9, REPLACE],
                &say(&[0]),
            ],
            (1, 1),
            None,
        ),
        client(
            "version_none",
            0,
            &[&say(b"GET / HTTP/1.1\r\n")],
            (0, 0),
            Some("no RFB"),
        ),
        client(
            "security_vnc",
            0,
            &[&say(b"RFB 003.008\n\x02")],
            (0, 0),
            Some("security type 2"),
        ),
        picture("raw", &[0]),
        picture("zlib", &[6, -247]),
        picture("tight", &[7]),
        picture("zrle", &[16]),
        client(
            "eight_bits",
            RUNNING,
            &[&encodings(&[16]), &grey, &draw, &ask, &sent],
            (1, 0),
            None,
        ),
        client(
            "colour_map",
            RUNNING,
            &[&palette],
            (0, 0),
            Some("colour maps"),
        ),
        client(
            "colour_outside",
            RUNNING,
            &[&wide],
            (0, 0),
            Some("12 bits up"),
        ),
        client("input_events", RUNNING, &[&key, &pointer], (2, 0), None),
        client(
            "continuous_with_fences",
            RUNNING,
            &[
                &encodings(&[16, -312, -313]),
                &[TAKE, 9],
                &continuous,
                &sent,
                &draw,
                &sent,
                &draw,
                &sent,
                &draw,
                &sent,
            ],
            (3, 0),
            None,
        ),
        client(
            "fence_is_answered",
            RUNNING,
            &[&fence, &[TAKE, 9]],
            (0, 0),
            None,
        ),
        client(
            "fence_too_long",
            RUNNING,
            &[&say(&[248, 0, 0, 0, 0, 0, 0, 0, 200])],
            (0, 0),
            Some("a fence with 200"),
        ),
        client(
            "another_size",
            RUNNING,
            &[
                &encodings(&[0, -308]),
                &ask,
                &sent,
                &[RESIZE, 80, 20],
                &ask,
                &sent,
                &ask,
                &sent,
            ],
            (3, 0),
            None,
        ),
        client(
            "size_asked_for",
            RUNNING,
            &[
                &encodings(&[0, -308]),
                &say(&[251, 0, 0, 50, 0, 50, 0, 0]),
                &[ANSWER, 1],
                &ask,
                &sent,
            ],
            (2, 0),
            None,
        ),
        client(
            "size_that_is_not_known",
            RUNNING,
            &[&[RESIZE, 5, 90], &ask, &sent, &draw, &ask, &sent],
            (2, 0),
            None,
        ),
        client(
            "pointer_drawn_there",
            RUNNING,
            &[
                &encodings(&[0, -239, -232]),
                &[POINT, 40, 40, 1],
                &ask,
                &sent,
                &[POINT, 9, 9, 0],
                &ask,
                &sent,
            ],
            (2, 0),
            None,
        ),
        client(
            "pointer_drawn_here",
            RUNNING,
            &[
                &[POINT, 40, 40, 1],
                &ask,
                &sent,
                &[POINT, 9, 9, 0],
                &ask,
                &sent,
            ],
            (2, 0),
            None,
        ),
        client(
            "text_is_skipped",
            RUNNING,
            &[
                &say(&[6, 0, 0, 0, 0, 0, 0, 3, 1, 2]),
                &[REPLACE],
                &say(&[3]),
                &key,
            ],
            (1, 0),
            None,
        ),
        client(
            "text_too_long",
            RUNNING,
            &[&say(&[6, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xF0])],
            (0, 0),
            Some("a clipboard of 4294967280"),
        ),
        client(
            "message_unknown",
            RUNNING,
            &[&say(&[99])],
            (0, 0),
            Some("message 99"),
        ),
    ]
}
