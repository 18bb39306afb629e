//! Seeds of `ring_memory` for the driver's side, of either layout: devices that
//! keep to the rules, and each way to break a used ring.

use super::Seed;
use super::queue::seed;
use crate::ring_memory::{PARTS, driver_step as step, option};

const SPLIT: u8 = option::DRIVER | option::INDIRECT | option::EVENT_IDX;
const PACKED: u8 = SPLIT | option::PACKED;

/// Where a split ring has its used elements, and a packed one its descriptors.
const USED: u64 = PARTS[2] + 4;

pub(super) fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (layout, bits) in [("split", SPLIT), ("packed", PACKED)] {
        let plain = bits & !(option::INDIRECT | option::EVENT_IDX);
        let ordered = bits | option::IN_ORDER;
        for (name, taken, bytes) in [
            ("driver", 6, rounds(bits, 2)),
            ("driver_plain", 6, rounds(plain, 2)),
            ("driver_out_of_order", 3, out_of_order(bits)),
            ("driver_in_order", 3, in_order(ordered)),
            ("driver_full", 0, full(bits)),
        ] {
            seeds.push(seed(&format!("{layout}_{name}"), taken, None, bytes));
        }
        for (name, taken, error, bytes) in [
            ("used_twice", 1, "which it does not have", twice(bits)),
            ("used_unpublished", 0, "", unpublished(bits)),
            (
                "used_too_long",
                0,
                "which has 32 writable ones",
                too_long(bits),
            ),
        ] {
            seeds.push(seed(&format!("{layout}_{name}"), taken, Some(error), bytes));
        }
    }
    let jump = |index: u16| {
        [
            start(SPLIT),
            given(),
            vec![step::INDEX],
            index.to_le_bytes().to_vec(),
            take(),
        ]
        .concat()
    };
    let error = "used index jumped";
    seeds.extend([
        seed("used_jump", 0, Some(error), jump(4)),
        seed("used_back", 0, Some(error), jump(u16::MAX)),
        seed("used_foreign", 0, Some("which it does not have"), foreign()),
        seed(
            "used_ahead",
            0,
            Some("chain 2, which it does not have"),
            ahead(),
        ),
        seed(
            "used_changes_while_read",
            1,
            Some("which it does not have"),
            raced(),
        ),
    ]);
    seeds
}

/// 8 entries, in either layout.
fn start(bits: u8) -> Vec<u8> {
    vec![bits, if bits & option::PACKED == 0 { 3 } else { 7 }]
}

fn add(readable: u8, writable: u8) -> Vec<u8> {
    vec![step::ADD, readable, writable, 16, 0]
}

fn use_chain(which: u8, written: u8) -> Vec<u8> {
    vec![step::USE, which, written, 0]
}

fn take() -> Vec<u8> {
    vec![step::TAKE, 9]
}

/// Three chains, of 2, 1 and 3 descriptors, the last with 32 writable bytes.
fn given() -> Vec<u8> {
    [add(1, 1), add(1, 0), add(1, 2), vec![step::PUBLISH]].concat()
}

fn rounds(bits: u8, count: usize) -> Vec<u8> {
    let round = [
        given(),
        use_chain(0, 16),
        take(),
        use_chain(0, 0),
        use_chain(0, 5),
        take(),
        vec![step::SAVE],
    ];
    [start(bits), round.concat().repeat(count)].concat()
}

fn out_of_order(bits: u8) -> Vec<u8> {
    let uses = [
        use_chain(2, 32),
        take(),
        use_chain(1, 0),
        use_chain(0, 1),
        take(),
    ];
    [start(bits), given(), uses.concat()].concat()
}

/// One used element for all three.
fn in_order(bits: u8) -> Vec<u8> {
    let last = if bits & option::PACKED == 0 {
        // Head 3, at the third element, and the index that covers three.
        let element = [
            &[step::WRITE][..],
            &place(USED + 16),
            &[8, 3, 0, 0, 0, 32, 0, 0, 0],
        ];
        let first = [
            &[step::WRITE][..],
            &place(USED),
            &[8, 3, 0, 0, 0, 32, 0, 0, 0],
        ];
        [first.concat(), element.concat(), vec![step::INDEX, 3, 0]].concat()
    } else {
        use_chain(2, 32)
    };
    [start(bits), given(), last, take()].concat()
}

fn full(bits: u8) -> Vec<u8> {
    let direct = add(2, 2).repeat(3);
    [
        start(bits),
        direct,
        add(0x84, 4),
        add(0, 0),
        vec![step::PUBLISH],
    ]
    .concat()
}

/// The one that was used comes again in its next place.
fn twice(bits: u8) -> Vec<u8> {
    let again = if bits & option::PACKED == 0 {
        [
            &[step::WRITE][..],
            &place(USED + 8),
            &[4, 0, 0, 0, 0],
            &[step::INDEX, 2, 0],
        ]
        .concat()
    } else {
        // Its id and flags where the next used descriptor is expected.
        [
            &[step::WRITE][..],
            &place(2 * 16 + 12),
            &[4, 0, 0, 0x82, 0x80],
        ]
        .concat()
    };
    [start(bits), given(), use_chain(0, 0), take(), again, take()].concat()
}

/// A chain that the device cannot know of yet.
fn unpublished(bits: u8) -> Vec<u8> {
    let early = if bits & option::PACKED == 0 {
        vec![step::INDEX, 1, 0]
    } else {
        [&[step::WRITE][..], &place(12), &[4, 0, 0, 0x82, 0x80]].concat()
    };
    [start(bits), add(1, 1), early, take()].concat()
}

fn too_long(bits: u8) -> Vec<u8> {
    [start(bits), given(), use_chain(2, 33), take()].concat()
}

fn foreign() -> Vec<u8> {
    let element = [&[step::WRITE][..], &place(USED), &[4, 1, 0, 0, 0]].concat();
    [
        start(SPLIT),
        given(),
        element,
        vec![step::INDEX, 1, 0],
        take(),
    ]
    .concat()
}

/// The index covers what is published, and the element names what is not.
fn ahead() -> Vec<u8> {
    let element = [&[step::WRITE][..], &place(USED), &[4, 2, 0, 0, 0]].concat();
    let steps = [
        add(1, 1),
        vec![step::PUBLISH],
        add(1, 0),
        element,
        vec![step::INDEX, 1, 0],
    ];
    [start(SPLIT), steps.concat(), take()].concat()
}

/// The second used element becomes another one when the index was read already:
/// loads are the index, the two halves of the first element, and so on.
fn raced() -> Vec<u8> {
    let later = [&[step::LATER, 2][..], &place(USED + 8), &[4, 9, 0, 0, 0]].concat();
    [
        start(SPLIT),
        given(),
        use_chain(0, 0),
        use_chain(0, 0),
        later,
        take(),
    ]
    .concat()
}

fn place(at: u64) -> [u8; 2] {
    u16::try_from(at).expect("16 bits").to_le_bytes()
}
