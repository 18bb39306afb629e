//! Seeds of `ring_memory` for the device's side of packed rings, and for devices
//! of both layouts that die and find what they left in flight.

use super::Seed;
use super::queue::{NEXT, WRITE, available, descriptors, header, request, seed};
use crate::ring_memory::{INFLIGHT_AT, option, step};

/// Of a packed descriptor of the first round that is available.
const AVAIL: u8 = 0x80;

const PACKED: u8 = option::PACKED | option::INDIRECT | option::EVENT_IDX;
const HEADER: u32 = 0x2000;
const DATA: u32 = 0x2400;
const STATUS: u32 = 0x2100;
const TABLE: u32 = 0x3000;

/// Both wrap counters 1, both positions 0.
const BASE: u32 = 0x8000_8000;

pub(super) fn seeds() -> Vec<Seed> {
    let served = |name: &str, answers, bytes| seed(name, answers, None, bytes);
    let broken = |name: &str, error, bytes| seed(name, 0, Some(error), bytes);
    let chain = |pieces: &[(u32, u16, u8, u8)]| {
        [
            start(PACKED),
            descriptors(0, pieces),
            vec![step::PASS, 16, 16],
        ]
        .concat()
    };
    let mut seeds = vec![
        served("packed_reads", 2, reads(PACKED)),
        served("packed_reads_in_order", 2, reads(PACKED | option::IN_ORDER)),
        served("packed_saved", 2, saved()),
        broken("packed_overrun", "does not end within the 64", overrun()),
        broken(
            "packed_not_available",
            "which is not available",
            chain(&[(HEADER, 16, AVAIL | NEXT, 0)]),
        ),
        broken("packed_same_id_twice", "while in flight", same_id()),
        broken(
            "packed_outside",
            "leaves the driver's memory",
            chain(&[(0x9000, 1, AVAIL, 0)]),
        ),
        broken(
            "packed_indirect_part",
            "indirect table of 24 bytes",
            chain(&[(TABLE, 24, AVAIL | 4, 0)]),
        ),
    ];
    seeds.extend(deaths());
    seeds
}

/// Devices that die, and what the next one finds.
fn deaths() -> Vec<Seed> {
    let served = |name: &str, answers, bytes| seed(name, answers, None, bytes);
    let broken = |name: &str, error, bytes| seed(name, 0, Some(error), bytes);
    vec![
        served("packed_died", 2, died(PACKED | option::TRACKED, BASE, &[])),
        served("split_died", 2, died(option::TRACKED, 0, &[])),
        broken(
            "packed_died_free_list",
            "names entry 65",
            died(PACKED | option::TRACKED, BASE, &poke(12, &[65, 0, 65, 0])),
        ),
        broken(
            "packed_died_state",
            "state 9, neither",
            died(PACKED | option::TRACKED, BASE, &poke(32, &[9])),
        ),
        broken(
            "packed_died_position",
            "puts the device at 64",
            died(PACKED | option::TRACKED, BASE, &poke(16, &[64, 0, 64, 0])),
        ),
        broken(
            "split_died_state",
            "state 9, neither",
            died(option::TRACKED, 0, &poke(16, &[9])),
        ),
        broken(
            "split_died_version",
            "has version 7",
            died(option::TRACKED, 0, &poke(8, &[7])),
        ),
        broken(
            "split_died_batch",
            "were used since",
            died(option::TRACKED, 0, &poke(14, &[1, 0])),
        ),
        broken(
            "split_died_counter",
            "last possible counter",
            died(option::TRACKED, 0, &poke(24, &[0xFF; 8])),
        ),
        broken(
            "died_at_no_position",
            "has no position 100",
            died(PACKED, 100, &[]),
        ),
    ]
}

/// 64 entries, in either layout.
fn start(bits: u8) -> Vec<u8> {
    vec![bits, if bits & option::PACKED == 0 { 6 } else { 63 }]
}

/// A read of one sector in three packed descriptors.
fn read(first: u8, id: u8) -> Vec<u8> {
    let pieces = [
        (HEADER, 16, AVAIL | NEXT, id),
        (DATA, 512, AVAIL | WRITE | NEXT, id),
        (STATUS, 1, AVAIL | WRITE, id),
    ];
    [header(0, 1), descriptors(first, &pieces)].concat()
}

/// One direct, one through a table; the table's entries have ids where a split
/// one has flags, and flags where it has `next`.
fn reads(bits: u8) -> Vec<u8> {
    let entry = |address: u32, len: u32, flags: u16| {
        [
            &u64::from(address).to_le_bytes()[..],
            &len.to_le_bytes(),
            &[0, 0],
            &flags.to_le_bytes(),
        ]
        .concat()
    };
    let table = [
        entry(HEADER, 16, 0),
        entry(DATA, 512, WRITE.into()),
        entry(STATUS, 1, WRITE.into()),
    ];
    [
        start(bits),
        super::queue::write(TABLE, &table.concat()),
        read(0, 7),
        descriptors(3, &[(TABLE, 48, AVAIL | 4, 9)]),
        vec![step::PASS, 2, 0, step::ANSWER],
    ]
    .concat()
}

fn saved() -> Vec<u8> {
    let pass = [step::PASS, 9, 9, step::SAVE];
    [
        start(PACKED),
        read(0, 7),
        pass.to_vec(),
        read(3, 7),
        pass.to_vec(),
    ]
    .concat()
}

/// All 64 are linked.
fn overrun() -> Vec<u8> {
    let pieces = [(DATA, 0, AVAIL | NEXT, 0); 64];
    [
        start(PACKED),
        descriptors(0, &pieces),
        vec![step::PASS, 1, 1],
    ]
    .concat()
}

fn same_id() -> Vec<u8> {
    [
        start(PACKED),
        read(0, 7),
        read(3, 7),
        vec![step::PASS, 2, 0],
    ]
    .concat()
}

/// The device takes two requests, answers none, and dies; the next one does.
fn died(bits: u8, base: u32, between: &[u8]) -> Vec<u8> {
    let two = if bits & option::PACKED == 0 {
        let second = descriptors(
            8,
            &[
                (HEADER, 16, NEXT, 9),
                (DATA, 512, WRITE | NEXT, 10),
                (STATUS, 1, WRITE, 0),
            ],
        );
        [request(0, 1, 1), second, available(8)].concat()
    } else {
        [read(0, 7), read(3, 8)].concat()
    };
    [
        start(bits),
        two,
        vec![step::PASS, 2, 0],
        between.to_vec(),
        vec![step::DIE],
        base.to_le_bytes().to_vec(),
        vec![step::PASS, 9, 1, step::ANSWER],
    ]
    .concat()
}

/// Writes into the in-flight region.
fn poke(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let at = u16::try_from(INFLIGHT_AT + offset).expect("16 bits");
    let len = u8::try_from(bytes.len()).expect("short");
    [&[step::WRITE][..], &at.to_le_bytes(), &[len], bytes].concat()
}
