//! Seeds of `vduse`: drivers as kernels have them, and what none of them should say.

use super::{Expected, Seed};
use crate::vduse::step;

/// Requests of the driver that behaves at the end, all done: resets, status, memory, a
/// ring's place.
const END: usize = 8;
/// Rings that it starts: four, and one again.
const END_STARTS: usize = 5;

pub(super) fn seeds() -> Vec<Seed> {
    let up = [status(1), status(3), status(11), status(15)].concat();
    let join = |parts: &[&[u8]]| parts.concat();
    let down = status(0);
    let replace = [step::REPLACE];
    vec![
        seed("nothing", 0, 0, 0, 0, vec![]),
        seed("up", 4, 0, 4, 0, up.clone()),
        seed("up_and_down", 5, 0, 4, 0, join(&[&up, &down])),
        seed("all_at_once", 1, 0, 4, 0, status(15)),
        seed("replaced", 5, 0, 8, 1, join(&[&up, &replace, &status(15)])),
        seed(
            "replaced_before_features",
            4,
            0,
            4,
            1,
            join(&[&status(3), &replace, &status(3), &status(11), &status(15)]),
        ),
        seed(
            "replaced_after_a_reset_unseen",
            4,
            0,
            4,
            1,
            join(&[&up, &features(0), &replace]),
        ),
        seed(
            "replaced_by_a_stranger",
            4,
            0,
            4,
            0,
            join(&[&up, &[step::SPOIL, 9, 1], &replace]),
        ),
        seed(
            "features_not_offered",
            2,
            2,
            0,
            0,
            join(&[&features(1 << 32 | 1), &up]),
        ),
        seed(
            "packed",
            4,
            0,
            4,
            0,
            join(&[
                &features(1 << 32 | 1 << 34),
                &ring(0, 1, 100, [1, 5, 0, 7]),
                &up,
            ]),
        ),
        seed(
            "odd_size",
            3,
            1,
            0,
            0,
            join(&[&ring(2, 1, 100, [0; 4]), &up]),
        ),
        seed(
            "huge_size",
            3,
            1,
            0,
            0,
            join(&[&ring(3, 1, u32::MAX, [0; 4]), &up]),
        ),
        seed(
            "one_not_ready",
            4,
            0,
            3,
            0,
            join(&[&ring(1, 0, 0, [0; 4]), &up]),
        ),
        seed(
            "places",
            5,
            1,
            5,
            0,
            join(&[&up, &request(0, &[2]), &request(0, &[9])]),
        ),
        seed(
            "memory",
            6,
            0,
            4,
            0,
            join(&[&request(2, &[]), &up, &request(2, &[0; 16])]),
        ),
        seed("bits_taken_back", 4, 1, 4, 0, join(&[&up, &status(3)])),
        seed("driver_ok_alone", 0, 1, 0, 0, status(7)),
        seed("unknown", 0, 1, 0, 0, request(9, &[])),
        seed("short", 0, 0, 0, 0, vec![step::RAW, 3, 1, 2, 3]),
        seed("start_fails", 3, 1, 0, 0, failing(&up, 0x80)),
        seed("memory_fails", 3, 1, 0, 0, failing(&up, 0x02)),
    ]
}

/// The last status of `up` with these effects failing.
fn failing(up: &[u8], bits: u8) -> Vec<u8> {
    let last = up.len() - status(15).len();
    [&up[..last], &[step::FAIL, bits], &up[last..]].concat()
}

fn request(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u8::try_from(body.len()).expect("short");
    [&[step::REQUEST, kind, len], body].concat()
}

fn status(status: u8) -> Vec<u8> {
    request(1, &[status])
}

fn features(features: u64) -> Vec<u8> {
    [&[step::FEATURES][..], &features.to_le_bytes()].concat()
}

fn ring(index: u8, ready: u8, size: u32, words: [u16; 4]) -> Vec<u8> {
    let words = words.map(u16::to_le_bytes).concat();
    [&[step::RING, index, ready], &size.to_le_bytes()[..], &words].concat()
}

fn seed(
    name: &str,
    done: usize,
    refused: usize,
    starts: usize,
    restores: usize,
    bytes: Vec<u8>,
) -> Seed {
    Seed {
        target: "vduse",
        name: name.into(),
        bytes,
        expected: Expected::Vduse {
            done: done + END,
            refused,
            starts: starts + END_STARTS,
            restores,
        },
    }
}
