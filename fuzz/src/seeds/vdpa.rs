//! Seeds of `vdpa`: a device that comes up and goes down, and each kind of failure.

use super::{Expected, Seed};
use crate::vdpa::Outcome;

/// IOTLB batches, address spaces, suspend, resume, late enable, mappings that stay.
const ALL: u8 = 0b1111_1111;
/// None of it.
const NONE: u8 = 0;

fn facts(backend: u8, device: u8, queues: u32) -> Vec<u8> {
    let mut bytes = vec![backend, device];
    bytes.extend(queues.to_le_bytes());
    bytes.extend(256_u16.to_le_bytes());
    // CTRL_VQ and MQ; VERSION_1 and ACCESS_PLATFORM.
    bytes.extend((1_u32 << 17 | 1 << 22).to_le_bytes());
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend([2, 1]);
    bytes.extend(u32::MAX.to_le_bytes());
    bytes
}

const OPEN: [u8; 3] = [0, 0, 0];
const START: [u8; 4] = [3, 0x43, 0, 0];
const STOP: [u8; 3] = [7, 0, 0];

fn memory(mask: u8, fail: u8) -> [u8; 4] {
    [1, mask, fail, 0]
}

fn seed(name: &str, head: Vec<u8>, steps: &[&[u8]], counts: (usize, usize, usize)) -> Seed {
    Seed {
        target: "vdpa",
        name: name.into(),
        bytes: [head, steps.concat()].concat(),
        expected: Expected::Vdpa(Outcome {
            usable: !name.starts_with("unusable"),
            done: counts.0,
            failed: counts.1,
            senseless: counts.2,
        }),
    }
}

fn disk(kind: u8) -> Vec<u8> {
    facts(kind, 2, 1)
}

pub(super) fn seeds() -> Vec<Seed> {
    let up: [&[u8]; 3] = [&OPEN, &memory(0x31, 0), &START];
    let life: [&[u8]; 4] = [up[0], up[1], up[2], &STOP];
    vec![
        seed("up_and_down", disk(ALL), &life, (4, 0, 0)),
        seed("up_and_down_of_little", disk(NONE), &life, (4, 0, 0)),
        seed(
            "card_with_control_queue",
            facts(ALL, 1, 3),
            &life,
            (4, 0, 0),
        ),
        seed(
            "unusable_without_queues",
            facts(ALL, 1, 0),
            &life,
            (4, 0, 0),
        ),
        seed(
            "unusable_with_too_many_queues",
            facts(ALL, 2, 1025),
            &life,
            (4, 0, 0),
        ),
        seed("left_running", disk(ALL), &up, (3, 0, 0)),
    ]
    .into_iter()
    .chain(failures(&up))
    .collect()
}

fn failures(up: &[&[u8]; 3]) -> Vec<Seed> {
    vec![
        seed("open_fails", disk(ALL), &[&[0, 2, 0], &OPEN], (0, 1, 1)),
        seed(
            "map_fails",
            disk(ALL),
            &[&OPEN, &memory(0x0f, 3)],
            (1, 1, 0),
        ),
        seed(
            "start_fails_at_a_ring",
            disk(NONE),
            &[up[0], up[1], &[3, 3, 14, 0], &START],
            (3, 1, 0),
        ),
        seed(
            "features_are_not_accepted",
            disk(ALL),
            &[&OPEN, &[2, 0, 8], &START],
            (2, 1, 0),
        ),
        seed(
            "device_breaks_at_its_start",
            disk(ALL),
            &[&OPEN, &[3, 1, 0, 0x40], &START],
            (2, 1, 0),
        ),
        seed(
            "undoing_fails_too",
            disk(ALL),
            &[&OPEN, &[3, 1, 16, 0x24], &START],
            (2, 1, 0),
        ),
        seed(
            "paused_remapped_and_resumed",
            disk(ALL),
            &[
                up[0],
                up[1],
                up[2],
                &[5, 0, 0],
                &memory(0x12, 0),
                &[6, 0, 0],
                &STOP,
            ],
            (7, 0, 0),
        ),
        seed(
            "suspend_fails",
            disk(ALL),
            &[up[0], up[1], up[2], &[5, 1, 0], &[7, 1, 0]],
            (4, 1, 0),
        ),
        seed(
            "nothing_makes_sense",
            disk(ALL),
            &[&STOP, &START, &[6, 0, 0]],
            (0, 0, 3),
        ),
    ]
}
