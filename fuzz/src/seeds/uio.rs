//! Seeds of `uio_file`.

use super::{Expected, Seed};
use crate::uio::Outcome;

const GETATTR: u8 = 3;
const SETATTR: u8 = 4;
const OPEN: u8 = 14;
const READ: u8 = 15;
const WRITE: u8 = 16;
const RELEASE: u8 = 18;
const INIT: u8 = 26;
const POLL: u8 = 40;

const INTERRUPT: &[u8] = &[2];
const RESCIND: &[u8] = &[3];

fn ask(opcode: u8, body: &[u8]) -> Vec<u8> {
    let len = u8::try_from(body.len()).expect("short");
    [&[1, opcode, len][..], body].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// READ or WRITE: file, offset, length, flags; and what is written.
fn io(opcode: u8, file: u32, len: u32, flags: u32, data: &[u8]) -> Vec<u8> {
    let head = words(&[file, 0, 0, 0, len, 0, 0, 0, flags, 0]);
    ask(opcode, &[&head, data].concat())
}

fn poll(file: u32, handle: u32) -> Vec<u8> {
    ask(POLL, &words(&[file, 0, handle, 0, 1, 1]))
}

/// It is opened, and the channel is there.
fn open() -> Vec<u8> {
    [ask(OPEN, &[0; 8]), vec![6]].concat()
}

fn again() -> Vec<u8> {
    ask(OPEN, &[0; 8])
}

fn release(file: u32) -> Vec<u8> {
    ask(RELEASE, &words(&[file, 0, 0, 0, 0, 0]))
}

fn init(flags: u32, flags2: u32) -> Vec<u8> {
    ask(INIT, &words(&[7, 40, 0, flags, flags2, 0]))
}

#[rustfmt::skip]
/// Name, counts of what comes of it, and messages.
type Row = (&'static str, [usize; 6], Vec<Vec<u8>>);

pub(super) fn seeds() -> Vec<Seed> {
    let outcome = |[done, refused, connects, disconnects, told, interrupts]: [usize; 6]| Outcome {
        done,
        refused,
        connects,
        disconnects,
        told,
        interrupts,
    };
    let one = 1_i32.to_ne_bytes();
    let nonblock = 0o4000;
    let rows: Vec<Row> = vec![
        ("init", [1, 0, 0, 0, 0, 0], vec![init(1 << 30, 1 << 5)]),
        ("init_old", [1, 0, 0, 0, 0, 0], vec![init(0, 0)]),
        ("init_short", [0, 1, 0, 0, 0, 0], vec![ask(INIT, &[7])]),
        (
            "attributes",
            [2, 1, 0, 0, 0, 0],
            vec![
                ask(GETATTR, &[0; 16]),
                ask(SETATTR, &[8; 88]),
                ask(SETATTR, &[1; 88]),
            ],
        ),
        (
            "open_and_close",
            [2, 0, 1, 1, 0, 0],
            vec![open(), release(1)],
        ),
        (
            "open_fails",
            [0, 1, 1, 0, 0, 0],
            vec![ask(OPEN, &[0; 8]), vec![1]],
        ),
        (
            "two_files",
            [4, 0, 1, 1, 0, 0],
            vec![open(), again(), release(1), release(2)],
        ),
        (
            "read_waits",
            [2, 0, 1, 0, 0, 0],
            vec![open(), io(READ, 1, 4, 0, &[]), INTERRUPT.to_vec()],
        ),
        (
            "read_at_once",
            [2, 1, 1, 0, 0, 0],
            vec![
                open(),
                INTERRUPT.to_vec(),
                io(READ, 1, 4, nonblock, &[]),
                io(READ, 1, 4, nonblock, &[]),
            ],
        ),
        (
            "read_of_other_sizes",
            [1, 2, 1, 0, 0, 0],
            vec![
                open(),
                io(READ, 1, 0, 0, &[]),
                io(READ, 1, u32::MAX, 0, &[]),
            ],
        ),
        (
            "read_is_interrupted",
            [1, 1, 1, 0, 0, 0],
            vec![open(), io(READ, 1, 4, 0, &[]), vec![4, 2], vec![4, 2]],
        ),
        (
            "write_signals",
            [3, 2, 1, 0, 0, 2],
            vec![
                open(),
                io(WRITE, 1, 4, 0, &one),
                io(WRITE, 1, 4, 0, &[0; 4]),
                io(WRITE, 1, 4, 0, &[]),
                io(WRITE, 1, 8, 0, &[0; 8]),
            ],
        ),
        (
            "poll_is_told",
            [3, 0, 1, 0, 1, 0],
            vec![open(), poll(1, 9), INTERRUPT.to_vec(), poll(1, 9)],
        ),
        (
            "rescind_ends_all",
            [3, 3, 1, 0, 1, 0],
            vec![
                open(),
                poll(1, 9),
                io(READ, 1, 4, 0, &[]),
                RESCIND.to_vec(),
                io(READ, 1, 4, 0, &[]),
                io(WRITE, 1, 4, 0, &one),
                poll(1, 9),
            ],
        ),
        (
            "no_file",
            [0, 3, 0, 0, 0, 0],
            vec![io(READ, 1, 4, 0, &[]), io(WRITE, 9, 4, 0, &one), poll(7, 1)],
        ),
        (
            "close_twice",
            [3, 0, 1, 1, 0, 0],
            vec![open(), release(1), release(1)],
        ),
        (
            "unknown",
            [0, 2, 0, 0, 0, 0],
            vec![ask(1, &[]), ask(255, &[0; 40])],
        ),
        (
            "bytes",
            [0, 0, 0, 0, 0, 0],
            vec![vec![0, 3, 0, 1, 2, 3], vec![0, 44, 0], vec![0xFF; 44]],
        ),
    ];
    let seed = |(name, want, parts): (&str, [usize; 6], Vec<Vec<u8>>)| Seed {
        target: "uio_file",
        name: name.to_owned(),
        bytes: parts.concat(),
        expected: Expected::Uio(outcome(want)),
    };
    rows.into_iter().map(seed).collect()
}
