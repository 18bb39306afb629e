//! Seeds of `virtio_pci`: a driver that brings the device up, and what no driver does.

use super::{Expected, Seed};
use crate::virtio_pci::Outcome;

/// Three queues, and one can be reset alone.
const KIND: u8 = 0x12;

/// Writes a register of common configuration.
fn set(at: u8, bytes: &[u8]) -> Vec<u8> {
    let len = u8::try_from(bytes.len()).unwrap_or(0);
    [&[0x10, at, len], bytes].concat()
}

fn get(at: u8, len: u8) -> Vec<u8> {
    vec![0, at, len]
}

/// Kicks a queue.
fn kick(queue: u8) -> Vec<u8> {
    vec![0x12, 0x80 | queue, 0, 2, queue, 0]
}

/// An access to the device's own configuration.
fn config(write: bool, at: u8, len: u8) -> Vec<u8> {
    let code = if write { 0x10 } else { 0 };
    let mut bytes = vec![code, 0x82, at, len];
    bytes.extend((0..if write { len } else { 0 }).map(|byte| byte + 1));
    bytes
}

const DONE: [u8; 1] = [0x21];
const FAILED: [u8; 1] = [0x20];

fn status(value: u8) -> Vec<u8> {
    set(20, &[value])
}

/// Accepts features: of the second half, with VERSION_1 or without.
fn accept(low: u8, high: [u8; 4]) -> Vec<u8> {
    [
        set(8, &[0; 4]),
        set(12, &[low, 0, 0, 0]),
        set(8, &[1, 0, 0, 0]),
        set(12, &high),
    ]
    .concat()
}

fn queue(queue: u8) -> Vec<u8> {
    [
        set(22, &[queue, 0]),
        set(24, &[16, 0]),
        set(26, &[queue + 1, 0]),
        set(32, &[0, 0x10, 0, 0]),
        set(36, &[1, 0, 0, 0]),
        set(40, &[0, 0x20, 0, 0, 1, 0, 0, 0]),
        set(48, &[0, 0x30, 0, 0, 1, 0, 0, 0]),
        set(28, &[1, 0]),
    ]
    .concat()
}

/// Up to a device that runs, with two of its queues: three things asked.
fn up() -> Vec<u8> {
    [
        vec![KIND],
        status(0),
        DONE.to_vec(),
        status(1),
        status(3),
        accept(0x40, [1, 1, 0, 0]),
        status(11),
        DONE.to_vec(),
        queue(0),
        queue(1),
        status(15),
        DONE.to_vec(),
    ]
    .concat()
}

fn seed(name: &str, parts: &[Vec<u8>], effects: usize, strays: usize, status: u8) -> Seed {
    Seed {
        target: "virtio_pci",
        name: name.into(),
        bytes: parts.concat(),
        expected: Expected::VirtioPci(Outcome {
            effects,
            strays,
            status,
        }),
    }
}

pub(super) fn seeds() -> Vec<Seed> {
    let fresh = || vec![KIND];
    let everything = vec![0, 0, 64];
    vec![
        seed(
            "up_and_kicked",
            &[up(), kick(0), kick(1), everything],
            5,
            0,
            15,
        ),
        seed("up_and_reset", &[up(), status(0), DONE.to_vec()], 4, 0, 0),
        seed(
            "written_while_it_resets",
            &[up(), status(0), kick(0), status(1), DONE.to_vec()],
            4,
            2,
            0,
        ),
        seed(
            "queue_left_out_is_kicked",
            &[up(), kick(2), kick(3)],
            3,
            2,
            15,
        ),
        seed(
            "one_queue_is_reset",
            &[
                up(),
                set(22, &[0, 0]),
                set(58, &[1, 0]),
                get(58, 2),
                DONE.to_vec(),
                kick(0),
                queue(0),
                DONE.to_vec(),
                kick(0),
            ],
            6,
            1,
            15,
        ),
        seed(
            "one_queue_cannot_be_reset",
            &[up(), set(58, &[1, 0]), FAILED.to_vec()],
            4,
            0,
            15 | 64,
        ),
        seed(
            "started_before_features",
            &[fresh(), status(3), status(7)],
            0,
            1,
            3,
        ),
        seed(
            "features_not_offered",
            &[
                fresh(),
                status(3),
                accept(2, [1, 0, 0, 0]),
                status(11),
                get(20, 1),
            ],
            0,
            0,
            3,
        ),
        seed(
            "legacy_driver",
            &[fresh(), status(3), accept(1, [0; 4]), status(11)],
            0,
            0,
            3,
        ),
        seed(
            "features_are_not_accepted",
            &[
                fresh(),
                status(3),
                accept(1, [1, 0, 0, 0]),
                status(11),
                FAILED.to_vec(),
                status(15),
            ],
            1,
            1,
            3,
        ),
        seed(
            "start_fails",
            &[
                fresh(),
                status(3),
                accept(1, [1, 0, 0, 0]),
                status(11),
                DONE.to_vec(),
                status(15),
                FAILED.to_vec(),
                vec![0, 0x81, 0, 1],
            ],
            2,
            0,
            15 | 64,
        ),
        seed("bits_taken_back", &[up(), status(11), status(7)], 3, 2, 15),
        seed(
            "widths",
            &[
                fresh(),
                set(24, &[1]),
                set(24, &[1; 4]),
                set(33, &[1; 4]),
                set(20, &[1; 2]),
                get(1, 63),
            ],
            0,
            6,
            0,
        ),
        seed(
            "no_such_queue",
            &[
                fresh(),
                set(22, &[3, 0]),
                set(24, &[16, 0]),
                set(28, &[1, 0]),
                get(24, 8),
            ],
            0,
            2,
            0,
        ),
        seed(
            "configuration",
            &[
                up(),
                config(false, 0, 64),
                config(true, 32, 8),
                config(true, 60, 1),
                vec![0x23, 0, 21, 1],
            ],
            4,
            1,
            15,
        ),
        seed(
            "breaks_while_it_runs",
            &[up(), vec![0x24], kick(0), status(0), DONE.to_vec()],
            5,
            0,
            0,
        ),
        seed(
            "interrupts_by_the_line",
            &[up(), vec![0x22, 0, 0x81, 0, 4, 0x22, 0x23, 0, 0x81, 0, 1]],
            3,
            0,
            15,
        ),
        seed(
            "through_the_window",
            &[
                up(),
                vec![0x26, 2, 0, 0x10, 0, 0, 2, 0, 0, 0],
                vec![0x26, 0, 20, 0, 0, 0, 1, 0, 0, 0],
                vec![0x26, 7, 0, 0, 0, 0, 4, 0, 0, 0],
            ],
            4,
            0,
            191,
        ),
        seed(
            "nowhere",
            &[
                up(),
                [
                    &[3, 0xff][..],
                    &[0xff; 8],
                    &[9],
                    &[0x13, 0xff],
                    &[0xff; 8],
                    &[2, 1, 1],
                ]
                .concat(),
            ],
            3,
            4,
            15,
        ),
        seed(
            "reset_behind_its_back",
            &[up(), status(0), vec![0x25], kick(0)],
            4,
            1,
            0,
        ),
    ]
}
