//! Seeds of `gpu_commands`, `gpu_front` and `display_link`.

use linkspan_display::link::{Got, Message, Resized, VERSION};
use linkspan_display::{Kind, Loss, Reason, Rectangle, RefusedPlane};

use super::Seed;
use super::display::seed;
use crate::display::gpu::{ASK, COMMANDS, GUEST, RAW};

pub(super) fn seeds() -> Vec<Seed> {
    [commands(), front(), link()].concat()
}

/// A command of these words.
fn say(kind: u32, words: &[u32]) -> Vec<u8> {
    let number = COMMANDS.iter().position(|(known, _)| *known == kind);
    let number = number.and_then(|at| u8::try_from(at).ok()).unwrap_or(RAW);
    let words = words.iter().flat_map(|word| word.to_le_bytes());
    [number].into_iter().chain(words).collect()
}

fn commands() -> Vec<Seed> {
    let create = || say(0x101, &[1, 2, 64, 32]);
    let attach = || say(0x106, &[1, 1, GUEST + 0x8000, 0, 8192, 0]);
    let show = || say(0x103, &[0, 0, 64, 32, 0, 1]);
    let transfer = || say(0x105, &[0, 0, 64, 32, 0, 0, 1, 0]);
    let flush = || say(0x104, &[0, 0, 64, 32, 1, 0]);
    let drawn = || [create(), attach(), show(), transfer(), flush()].concat();
    let of = |name: &str, bytes: Vec<u8>, counts, error| {
        seed("gpu_commands", name, bytes, counts, error)
    };
    vec![
        of("draw", drawn(), (5, 0), None),
        of(
            "ask",
            [say(0x100, &[]), say(0x10A, &[1, 0])].concat(),
            (2, 0),
            None,
        ),
        of(
            "unref_shown",
            [drawn(), say(0x102, &[1, 0]), flush()].concat(),
            (6, 1),
            Some("0x1203"),
        ),
        of(
            "detach",
            [drawn(), say(0x107, &[1, 0]), transfer()].concat(),
            (6, 1),
            Some("0x1200"),
        ),
        of(
            "attach_twice",
            [create(), attach(), attach()].concat(),
            (2, 1),
            Some("0x1200"),
        ),
        of(
            "attach_outside",
            [create(), say(0x106, &[1, 1, 0, 0, 8192, 0])].concat(),
            (1, 1),
            Some("0x1205"),
        ),
        of(
            "attach_too_many",
            [create(), say(0x106, &[1, u32::MAX, 0, 0, 0, 0])].concat(),
            (1, 1),
            Some("0x1205"),
        ),
        of(
            "transfer_behind",
            [drawn(), say(0x105, &[0, 0, 64, 32, 4, 0, 1, 0])].concat(),
            (5, 1),
            Some("0x1205"),
        ),
        of(
            "transfer_round_the_end",
            [drawn(), say(0x105, &[0, 0, 1, 1, u32::MAX, u32::MAX, 1, 0])].concat(),
            (5, 1),
            Some("0x1205"),
        ),
        of(
            "create_huge",
            say(0x101, &[1, 2, 7680, 4320]),
            (0, 1),
            Some("0x1201"),
        ),
        of(
            "create_round",
            say(0x101, &[1, 2, u32::MAX, u32::MAX]),
            (0, 1),
            Some("0x1205"),
        ),
        of(
            "pointer",
            [
                create(),
                say(0x300, &[1, 5, 6, 0, 1, 3, 4, 0]),
                say(0x301, &[1, 7, 8]),
            ]
            .concat(),
            (3, 0),
            None,
        ),
        of("blob", say(0x10C, &[0, 0]), (0, 1), Some("0x1200")),
        of("no_header", vec![RAW, 8, 1, 2, 3], (0, 1), None),
    ]
}

/// An answer: its request, flags and size, then zeroes.
fn answer(request: u32, flags: u32, size: u32) -> Vec<u8> {
    let body = usize::try_from(size).unwrap_or(0) + 12;
    // A piece has eight times as many bytes as its first byte says.
    let len = u8::try_from(body.div_ceil(8).max(3)).unwrap_or(u8::MAX);
    let words = [request, flags, size];
    let mut bytes = vec![len];
    bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    bytes
}

fn front() -> Vec<Seed> {
    let of =
        |name: &str, bytes: Vec<u8>, counts, error| seed("gpu_front", name, bytes, counts, error);
    let asked = |which: u8, rest: Vec<u8>| [vec![which], rest].concat();
    let [features, info, edid] = ASK;
    let mut seeds = vec![
        of("features", asked(features, answer(1, 4, 8)), (1, 0), None),
        of("info", asked(info, answer(3, 4, 408)), (1, 0), None),
        of("edid", asked(edid, answer(11, 4, 1056)), (1, 0), None),
        of(
            "unasked",
            answer(1, 4, 8),
            (0, 1),
            Some("was not asked for"),
        ),
        of(
            "other",
            asked(info, answer(11, 4, 1056)),
            (0, 1),
            Some("where the answer to"),
        ),
        of(
            "no_answer",
            asked(info, answer(3, 0, 408)),
            (0, 1),
            Some("is no answer"),
        ),
        of(
            "long",
            asked(info, answer(3, 4, 409)),
            (0, 1),
            Some("408 are right"),
        ),
        of(
            "short",
            asked(info, answer(3, 4, 0)),
            (0, 1),
            Some("408 are right"),
        ),
        of(
            "huge",
            asked(edid, answer(11, 4, u32::MAX)),
            (0, 1),
            Some("1056 are right"),
        ),
        of("many", vec![info; 40], (0, 0), None),
        of("nothing", vec![], (0, 0), None),
    ];
    let twice = [vec![features, info], answer(1, 4, 8), answer(3, 4, 408)].concat();
    // Pieces are of whole words of eight, so what is too much comes before the next.
    seeds.push(of("too_much", twice, (1, 1), Some("message 0 where")));
    seeds
}

fn link() -> Vec<Seed> {
    let of = |name: &str, bytes: Vec<u8>, counts, error| {
        seed("display_link", name, bytes, counts, error)
    };
    let part = Rectangle {
        x: 1,
        y: 2,
        width: 3,
        height: 4,
    };
    let one = |message: Message| message.to_bytes();
    let words =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    // A picture on screen 0, and a pointer.
    let plane = |kind: u32| {
        [
            0,
            kind,
            7,
            1,
            0x3432_5258,
            64,
            64,
            256,
            0,
            0,
            0,
            0,
            16384,
            0,
            5,
            6,
            1,
            2,
            0,
        ]
    };
    let planes = [
        vec![2, 12 + 228, 0, 3, 0],
        plane(0).to_vec(),
        plane(1).to_vec(),
        plane(3).to_vec(),
    ]
    .concat();
    let layer = [vec![2, 12 + 76, 0, 1, 0], plane(4).to_vec()].concat();
    let loss = Some(Loss::Reset);
    let planes_of = |loss| Message::Planes {
        loss,
        planes: vec![],
        refused: vec![],
    };
    let refused = |kind| RefusedPlane {
        head: 2,
        kind,
        why: Reason::new("scaling is not supported"),
    };
    let not_shown = Message::Planes {
        loss: None,
        planes: vec![],
        refused: vec![refused(Kind::Primary), refused(Kind::Sprite(2))],
    };
    // A reason that would write to a terminal, and one that is longer than its room.
    let told = |word: u32| {
        let mut bytes = words(&[2, 12 + 172, 0, 0, 1, 0, 0, 4]);
        bytes.extend(word.to_le_bytes());
        bytes.resize(8 + 12 + 172, 0);
        bytes
    };
    let escape = told(u32::from_le_bytes(*b"\x1B[2J"));
    let mut endless = told(0x2020_2020);
    endless[28] = 0xFF;
    let damage = Message::Damage {
        head: 0,
        parts: vec![part; 64],
    };
    vec![
        of(
            "hello",
            one(Message::Hello { version: VERSION }),
            (1, 0),
            None,
        ),
        of("planes", words(&planes), (1, 0), None),
        of("lost", one(planes_of(loss)), (1, 0), None),
        of("refused", one(not_shown), (1, 0), None),
        of("layer", words(&layer), (0, 1), Some("a layer is 4")),
        of("escape", escape, (0, 1), Some("the length of a reason")),
        of("endless", endless, (0, 1), Some("the length of a reason")),
        of("damage", one(damage), (1, 0), None),
        of(
            "get",
            one(Message::Get {
                id: 7,
                dma_buf: true,
            }),
            (1, 0),
            None,
        ),
        of(
            "buffer",
            one(Message::Buffer {
                id: 7,
                got: Got::Retired,
            }),
            (1, 0),
            None,
        ),
        of(
            "size",
            [
                one(Message::Resize {
                    head: 1,
                    width: 800,
                    height: 600,
                }),
                one(Message::Size {
                    resized: Resized::Told,
                }),
            ]
            .concat(),
            (2, 0),
            None,
        ),
        of(
            "unknown",
            words(&[99, 0]),
            (0, 1),
            Some("message 99 is not known"),
        ),
        of(
            "too_long",
            words(&[2, u32::MAX]),
            (0, 1),
            Some("message 2 with 4294967295 bytes"),
        ),
        of(
            "count",
            words(&[3, 24, 0, 2, 1, 1, 1, 1]),
            (0, 1),
            Some("the count of a list is 2"),
        ),
        of(
            "head",
            words(&[17, 12, 16, 1, 1]),
            (0, 1),
            Some("a screen is 16"),
        ),
        of(
            "magic",
            words(&[1, 12, 0, 0, 1]),
            (0, 1),
            Some("no display socket"),
        ),
        of(
            "loss",
            words(&[2, 12, 9, 0, 0]),
            (0, 1),
            Some("a loss is 9"),
        ),
    ]
}
