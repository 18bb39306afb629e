//! Lists of ranges: what is taken, what is refused and how, and their slices.

use linkspan_devices::block::{
    Block, BlockOptions, DISCARD_SECTORS_MAX, Geometry, Operation, RANGES_MAX, Range, Ranges,
    Request, SECTOR, Status, WRITE_ZEROES_SECTORS_MAX,
};
use linkspan_mem::{Gpa, GuestMemory, Region, SplitRing, UserVa};
use linkspan_virtio::split::{Buffer, SplitDevice, SplitDriver};
use linkspan_virtio::{Chain, Features, QueueState};
use proptest::prelude::*;

const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const UNMAP: u32 = 1;

const HEADER: u64 = 0x4000;
const LIST: u64 = 0x5000;
const STATUS: u64 = 0x7000;

/// A disk of 1 TiB and 5 sectors.
const SECTORS: u64 = (1 << 31) + 5;

fn geometry(accepted: u64) -> Geometry {
    let block = Block::new(BlockOptions {
        size_bytes: SECTORS * SECTOR,
        block_size: 512,
        physical_block_size: 4096,
        discard_granularity: 4096,
        queues: 1,
        queue_size: 128,
        read_only: false,
        serial: [0; 20],
    });
    block
        .unwrap()
        .geometry(Features::from_bits_retain(accepted))
}

fn accepted() -> Geometry {
    geometry(1 << 9 | 1 << 13 | 1 << 14)
}

fn entry(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &count.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

/// Sends a list, in pieces of `piece` bytes, and reads it into `ranges`.
fn read_in(
    geometry: &Geometry,
    kind: u32,
    list: &[u8],
    piece: usize,
    ranges: &mut Ranges,
) -> Result<Operation, Status> {
    let region = Region::heap(0x8000).unwrap();
    let header = [&kind.to_le_bytes()[..], &[0; 12]].concat();
    for (at, bytes) in [(HEADER, &header[..]), (LIST, list)] {
        region.slice(at, bytes.len() as u64).unwrap().write(bytes);
    }
    let memory = GuestMemory::new(vec![(region, Gpa(0), UserVa(0))]).unwrap();
    let ring = || {
        let [descriptors, available, used] = [(0, 4096), (0x1000, 1024), (0x2000, 4096)]
            .map(|(at, len)| memory.guest.window(Gpa(at), len).unwrap());
        SplitRing::new(descriptors, available, used, 128).unwrap()
    };
    let (features, state) = (Features::SPLIT_QUEUE, QueueState::default());
    let mut driver = SplitDriver::new(ring(), features, state).unwrap();
    let mut device = SplitDevice::new(ring(), features, state).unwrap();
    let buffer = |at, len: usize| Buffer {
        address: Gpa(at),
        len: u32::try_from(len).unwrap(),
    };
    let mut readable = vec![buffer(HEADER, 16)];
    for at in (0..list.len()).step_by(piece) {
        readable.push(buffer(LIST + at as u64, piece.min(list.len() - at)));
    }
    driver.add(&readable, &[buffer(STATUS, 1)], None).unwrap();
    driver.publish().unwrap();
    device.refresh().unwrap();
    let mut chain = Chain::new(200).unwrap();
    assert!(device.pop(&memory.guest, &mut chain).unwrap());
    let request = Request::parse(&mut chain, memory.table(), geometry).unwrap();
    // A driver that changes the list after it was read changes nothing.
    let read = ranges.read(request.operation, &mut chain, memory.table(), geometry);
    let region = &memory.table().regions()[0];
    region.slice(LIST, 512).unwrap().write(&[0xFF; 512]);
    read.map(|()| request.operation)
}

fn read(kind: u32, list: &[u8]) -> (Result<Operation, Status>, Vec<Range>) {
    let mut ranges = Ranges::new();
    let result = read_in(&accepted(), kind, list, 512, &mut ranges);
    (result, all(&mut ranges))
}

fn all(ranges: &mut Ranges) -> Vec<Range> {
    let mut slices = Vec::new();
    while let Some((slice, last)) = ranges.next_slice() {
        assert_eq!(last, ranges.is_empty());
        slices.push(slice);
    }
    slices
}

#[test]
fn every_range_is_read_in_its_order() {
    let list = [entry(8, 2, 0), entry(0, 0, 0), entry(SECTORS - 1, 1, 0)].concat();
    let bytes = |offset, len, unmap| Range {
        offset: offset * SECTOR,
        len: len * SECTOR,
        unmap,
    };
    let want = [bytes(8, 2, false), bytes(SECTORS - 1, 1, false)];
    for piece in [1, 5, 16, 48] {
        let mut ranges = Ranges::new();
        let operation = read_in(&accepted(), DISCARD, &list, piece, &mut ranges);
        assert_eq!(operation, Ok(Operation::Discard));
        assert_eq!(all(&mut ranges), want, "pieces of {piece}");
    }
    let list = [entry(3, 1, UNMAP), entry(1, 1, 0)].concat();
    let mut kept = Ranges::new();
    read_in(&accepted(), WRITE_ZEROES, &list, 512, &mut kept).unwrap();
    assert_eq!(kept.kept_bytes(), SECTOR);
    let (operation, ranges) = read(WRITE_ZEROES, &list);
    assert_eq!(operation, Ok(Operation::WriteZeroes { durable: false }));
    assert_eq!(ranges, [bytes(3, 1, true), bytes(1, 1, false)]);
    // Nothing but empty ranges is nothing to do.
    assert!(read(DISCARD, &entry(0, 0, 0)).1.is_empty());
}

#[test]
fn zeroes_are_durable_when_flush_was_not_negotiated() {
    let mut ranges = Ranges::new();
    let operation = read_in(
        &geometry(1 << 14),
        WRITE_ZEROES,
        &entry(0, 1, 0),
        16,
        &mut ranges,
    );
    assert_eq!(operation, Ok(Operation::WriteZeroes { durable: true }));
}

#[test]
fn what_cannot_be_done_is_refused_as_a_whole() {
    let good = entry(0, 1, 0);
    let many = good.repeat(RANGES_MAX as usize + 1);
    for (kind, list, status) in [
        // Flags (virtio 1.3 5.2.6.2): unknown ones, and UNMAP where it is none.
        (DISCARD, entry(0, 1, UNMAP), Status::Unsupp),
        (DISCARD, entry(0, 1, 2), Status::Unsupp),
        (WRITE_ZEROES, entry(0, 1, 2), Status::Unsupp),
        (WRITE_ZEROES, entry(0, 1, 0x8000_0001), Status::Unsupp),
        (WRITE_ZEROES, entry(u64::MAX, 1, 4), Status::Unsupp),
        // Ranges outside, and such that wrap.
        (DISCARD, entry(SECTORS, 1, 0), Status::IoErr),
        (DISCARD, entry(SECTORS - 1, 2, 0), Status::IoErr),
        (DISCARD, entry(SECTORS + 1, 0, 0), Status::IoErr),
        (WRITE_ZEROES, entry(u64::MAX, 1, 0), Status::IoErr),
        (WRITE_ZEROES, entry(u64::MAX / 512 + 1, 1, 0), Status::IoErr),
        // Longer than the device says it takes.
        (DISCARD, entry(0, DISCARD_SECTORS_MAX + 1, 0), Status::IoErr),
        (DISCARD, entry(0, u32::MAX, 0), Status::IoErr),
        (
            WRITE_ZEROES,
            entry(0, WRITE_ZEROES_SECTORS_MAX + 1, 0),
            Status::IoErr,
        ),
        // Lists that are none.
        (DISCARD, vec![], Status::IoErr),
        (DISCARD, good[..15].to_vec(), Status::IoErr),
        (DISCARD, [&good[..], &[0]].concat(), Status::IoErr),
        (WRITE_ZEROES, many, Status::IoErr),
        // One bad range is enough.
        (
            DISCARD,
            [good.clone(), entry(SECTORS, 1, 0)].concat(),
            Status::IoErr,
        ),
        (
            DISCARD,
            [good.clone(), entry(1, 1, 8)].concat(),
            Status::Unsupp,
        ),
    ] {
        let (result, ranges) = read(kind, &list);
        assert_eq!(result, Err(status), "type {kind}: {list:?}");
        assert!(ranges.is_empty(), "type {kind}: {list:?}");
    }
}

#[test]
fn as_many_ranges_as_promised_are_taken() {
    let list = entry(7, DISCARD_SECTORS_MAX, 0).repeat(RANGES_MAX as usize);
    let (result, slices) = read(DISCARD, &list);
    assert_eq!(result, Ok(Operation::Discard));
    let bytes: u64 = slices.iter().map(|slice| slice.len).sum();
    let all = u64::from(RANGES_MAX) * u64::from(DISCARD_SECTORS_MAX);
    assert_eq!(bytes, all * SECTOR);
    // None of them holds a worker for long.
    assert!(slices.iter().all(|slice| slice.len <= 16 << 20));
}

#[test]
fn a_list_takes_the_place_of_what_was_left() {
    let mut ranges = Ranges::new();
    let big = entry(0, DISCARD_SECTORS_MAX, 0);
    read_in(&accepted(), DISCARD, &big, 16, &mut ranges).unwrap();
    ranges.next_slice();
    assert!(!ranges.is_empty());
    let bad = entry(0, 1, 2);
    let result = read_in(&accepted(), DISCARD, &bad, 16, &mut ranges);
    assert_eq!(result, Err(Status::Unsupp));
    assert!(ranges.next_slice().is_none());
}

proptest! {
    /// Whatever a driver lists: what is taken lies inside the disk and is what it
    /// asked for, piece by piece without a gap.
    #[test]
    fn slices_cover_what_was_listed(
        kind in prop_oneof![Just(DISCARD), Just(WRITE_ZEROES)],
        entries in prop::collection::vec(
            (
                prop_oneof![0..SECTORS + 3, any::<u64>()],
                prop_oneof![0..70_000_u32, any::<u32>()],
                prop_oneof![4 => Just(0_u32), 1 => Just(UNMAP), 1 => any::<u32>()],
            ),
            0..4,
        ),
    ) {
        let list: Vec<u8> = entries.iter().flat_map(|&(s, n, f)| entry(s, n, f)).collect();
        let (result, slices) = read(kind, &list);
        if result.is_err() {
            prop_assert!(slices.is_empty());
        } else {
            let mut slices = slices.into_iter();
            for (sector, count, flags) in entries {
                prop_assert!(sector + u64::from(count) <= SECTORS);
                let (mut at, end) = (sector * SECTOR, (sector + u64::from(count)) * SECTOR);
                while at < end {
                    let slice = slices.next().unwrap();
                    prop_assert_eq!((slice.offset, slice.unmap), (at, flags == UNMAP));
                    prop_assert!(slice.len > 0);
                    at += slice.len;
                }
                prop_assert_eq!(at, end);
            }
            prop_assert!(slices.next().is_none());
        }
    }
}
