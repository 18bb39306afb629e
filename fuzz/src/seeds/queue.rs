//! Seeds of `ring_memory` for the device's side of split rings: requests that are
//! right, and each kind of broken ring.

use super::{Expected, Seed};
use crate::ring_memory::step;

pub(super) const NEXT: u8 = 1;
pub(super) const WRITE: u8 = 2;
const INDIRECT: u8 = 4;

/// Features: indirect descriptors, event index.
const PLAIN: u8 = 0;
const ALL: u8 = 3;

/// Guest addresses: a request's header, its data, an indirect table.
const HEADER: u32 = 0x2000;
const DATA: u32 = 0x2400;
const STATUS: u32 = 0x2100;
const TABLE: u32 = 0x3000;

/// Kinds of request (virtio 1.3 5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

pub(super) fn seeds() -> Vec<Seed> {
    let served = |name: &str, answers, bytes| seed(name, answers, None, bytes);
    let broken = |name: &str, error, bytes| seed(name, 0, Some(error), bytes);
    let mut seeds = vec![
        served("read_write_flush_id", 4, four_requests(PLAIN)),
        served("with_event_index", 4, four_requests(ALL)),
        served("answered_out_of_order", 3, held()),
        served("saved_between_requests", 3, saved()),
        served("indirect_read", 1, indirect_read()),
        served("data_across_two_regions", 1, across()),
        served("outside_the_disk", 1, outside_the_disk()),
    ];
    seeds.extend(
        broken_chains()
            .into_iter()
            .map(|(name, error, chain)| broken(name, error, one_chain(ALL, &chain))),
    );
    let stray = |step: Vec<u8>| [start(ALL), step, pass()].concat();
    seeds.extend([
        broken(
            "head_out_of_range",
            "head 64 is outside",
            stray(available(64)),
        ),
        broken("available_jump", "index jumped to 65", stray(index(65))),
        broken(
            "available_back",
            "index jumped to 65535",
            stray(index(u16::MAX)),
        ),
        broken(
            "same_head_twice",
            "made available again while in flight",
            [
                start(ALL),
                request(IN, 0, 1),
                available(0),
                vec![step::PASS, 2, 0],
            ]
            .concat(),
        ),
        broken(
            "indirect_not_negotiated",
            "was not negotiated",
            one_chain(PLAIN, &[(TABLE, 32, INDIRECT, 0)]),
        ),
    ]);
    seeds.extend(broken_tables().map(|(name, error, table)| {
        let bytes = [
            start(ALL),
            write_table(&table),
            chain(&[(TABLE, table_len(&table), INDIRECT, 0)]),
            pass(),
        ];
        broken(name, error, bytes.concat())
    }));
    seeds
}

/// Address, length, flags, next.
type Piece = (u32, u16, u8, u8);

fn broken_chains() -> [(&'static str, &'static str, Vec<Piece>); 12] {
    let header = (HEADER, 16, NEXT, 1);
    let status = (STATUS, 1, WRITE, 0);
    [
        (
            "loop",
            "loops in a table of 64",
            vec![(HEADER, 0, NEXT, 1), (DATA, 0, NEXT, 0)],
        ),
        (
            "loop_of_one",
            "loops in a table of 64",
            vec![(HEADER, 0, NEXT, 0)],
        ),
        (
            "next_out_of_range",
            "goes on at descriptor 64",
            vec![(HEADER, 16, NEXT, 64)],
        ),
        (
            "outside_memory",
            "leaves the driver's memory",
            vec![header, (0x9000, 512, WRITE, 0)],
        ),
        (
            "end_outside_memory",
            "leaves the driver's memory",
            vec![(0x3FFF, 2, WRITE, 0)],
        ),
        (
            "wraps",
            "leaves the driver's memory",
            vec![(u32::MAX, 2, 0, 0)],
        ),
        (
            "readable_behind_writable",
            "readable descriptor behind a writable one",
            vec![header, (STATUS, 1, WRITE | NEXT, 2), (DATA, 512, 0, 0)],
        ),
        (
            "no_status",
            "device-writable bytes where 1",
            vec![(HEADER, 16, 0, 0)],
        ),
        (
            "no_header",
            "device-readable bytes where 16",
            vec![(HEADER, 15, NEXT, 1), status],
        ),
        (
            "indirect_empty",
            "an indirect table of 0 bytes",
            vec![(TABLE, 0, INDIRECT, 0)],
        ),
        (
            "indirect_part",
            "an indirect table of 24 bytes",
            vec![(TABLE, 24, INDIRECT, 0)],
        ),
        (
            "indirect_next",
            "goes on behind an indirect",
            vec![(TABLE, 32, INDIRECT | NEXT, 1)],
        ),
    ]
}

fn broken_tables() -> impl Iterator<Item = (&'static str, &'static str, Vec<Piece>)> {
    let many = vec![(DATA, 1, WRITE | NEXT, 1), (0x2FFF, 2, WRITE | NEXT, 0)];
    [
        (
            "indirect_nested",
            "inside an indirect table",
            vec![(TABLE, 16, INDIRECT, 0)],
        ),
        (
            "indirect_loop",
            "loops in a table of 2",
            vec![(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)],
        ),
        (
            "indirect_next_out",
            "descriptor 9 of a table of 1",
            vec![(DATA, 1, NEXT, 9)],
        ),
        (
            "too_many_segments",
            "more than 16 segments",
            (0..9)
                .flat_map(|_| many.clone())
                .zip(1..)
                .map(|((at, len, flags, _), next)| (at, len, flags, next))
                .collect(),
        ),
    ]
    .into_iter()
}

pub(super) fn seed(
    name: &str,
    answers: usize,
    retired: Option<&'static str>,
    bytes: Vec<u8>,
) -> Seed {
    Seed {
        target: "ring_memory",
        name: name.to_owned(),
        bytes,
        expected: Expected::Queue { answers, retired },
    }
}

/// Features and 64 entries.
fn start(features: u8) -> Vec<u8> {
    vec![features, 6]
}

fn pass() -> Vec<u8> {
    vec![step::PASS, 16, 16]
}

pub(super) fn available(head: u16) -> Vec<u8> {
    [&[step::AVAILABLE][..], &head.to_le_bytes()].concat()
}

fn index(index: u16) -> Vec<u8> {
    [&[step::INDEX][..], &index.to_le_bytes()].concat()
}

pub(super) fn write(guest: u32, bytes: &[u8]) -> Vec<u8> {
    // Places count from the first region.
    let at = u16::try_from(guest - 0x1000).expect("in the first two regions");
    let len = u8::try_from(bytes.len()).expect("short");
    [&[step::WRITE][..], &at.to_le_bytes(), &[len], bytes].concat()
}

fn write_table(table: &[Piece]) -> Vec<u8> {
    let entries = (0..)
        .zip(table)
        .map(|(entry, (address, len, flags, next))| {
            let bytes = [
                &u64::from(*address).to_le_bytes()[..],
                &u32::from(*len).to_le_bytes(),
                &u16::from(*flags).to_le_bytes(),
                &u16::from(*next).to_le_bytes(),
            ];
            write(TABLE + 16 * entry, &bytes.concat())
        });
    entries.flatten().collect()
}

fn table_len(table: &[Piece]) -> u16 {
    u16::try_from(16 * table.len()).expect("short")
}

pub(super) fn descriptors(first: u8, chain: &[Piece]) -> Vec<u8> {
    let pieces = (first..)
        .zip(chain)
        .map(|(at, (address, len, flags, next))| {
            [
                &[step::DESCRIPTOR, at][..],
                &address.to_le_bytes(),
                &len.to_le_bytes(),
                &[*flags, *next],
            ]
            .concat()
        });
    pieces.flatten().collect()
}

/// A chain from index 0 on, made available.
fn chain(chain: &[Piece]) -> Vec<u8> {
    [descriptors(0, chain), available(0)].concat()
}

fn one_chain(features: u8, pieces: &[Piece]) -> Vec<u8> {
    [start(features), chain(pieces), pass()].concat()
}

pub(super) fn header(kind: u32, sector: u64) -> Vec<u8> {
    let bytes = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()];
    write(HEADER, &bytes.concat())
}

/// A request in descriptors 0 to 2, made available.
pub(super) fn request(kind: u32, sector: u64, sectors: u16) -> Vec<u8> {
    let way = if kind == OUT { 0 } else { WRITE };
    let len = if kind == GET_ID { 20 } else { 512 * sectors };
    let pieces = [
        (HEADER, 16, NEXT, 1),
        (DATA, len, way | NEXT, 2),
        (STATUS, 1, WRITE, 0),
    ];
    [header(kind, sector), chain(&pieces)].concat()
}

fn four_requests(features: u8) -> Vec<u8> {
    let requests = [(IN, 1, 4), (OUT, 2, 2), (FLUSH, 0, 0), (GET_ID, 0, 0)];
    let steps = requests
        .into_iter()
        .map(|(kind, sector, sectors)| [request(kind, sector, sectors), pass()].concat());
    std::iter::once(start(features))
        .chain(steps)
        .flatten()
        .collect()
}

/// Three requests at heads 0, 8 and 16, answered the last first.
fn held() -> Vec<u8> {
    let chains = [0, 8, 16].map(|first| {
        let pieces = [
            (HEADER, 16, NEXT, first + 1),
            (DATA, 512, WRITE | NEXT, first + 2),
            (STATUS, 1, WRITE, 0),
        ];
        [descriptors(first, &pieces), available(first.into())].concat()
    });
    let end = vec![step::PASS, 3, 0, step::SAVE, step::ANSWER];
    [start(PLAIN), header(IN, 0), chains.concat(), end].concat()
}

fn saved() -> Vec<u8> {
    let one = [request(IN, 0, 1), pass(), vec![step::SAVE]].concat();
    [start(PLAIN), one.repeat(3)].concat()
}

fn indirect_read() -> Vec<u8> {
    let table = [
        (HEADER, 16, NEXT, 1),
        (DATA, 512, WRITE | NEXT, 2),
        (STATUS, 1, WRITE, 0),
    ];
    let steps = [
        start(ALL),
        header(IN, 3),
        write_table(&table),
        chain(&[(TABLE, 48, INDIRECT, 0)]),
        pass(),
    ];
    steps.concat()
}

/// The data begins in the first region and ends in the second.
fn across() -> Vec<u8> {
    let pieces = [
        (HEADER + 0x800, 16, NEXT, 1),
        (0x1F00, 512, WRITE | NEXT, 2),
        (STATUS, 1, WRITE, 0),
    ];
    one_chain(PLAIN, &pieces)
}

fn outside_the_disk() -> Vec<u8> {
    [start(PLAIN), request(IN, u64::MAX / 512, 1), pass()].concat()
}
