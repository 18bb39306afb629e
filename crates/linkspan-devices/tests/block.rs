//! The block device behind a real ring: its configuration, and what becomes of
//! every kind of chain.

use linkspan_devices::block::{
    Block, BlockOptions, CONFIG_LEN, Geometry, Operation, OptionsError, Ranges, Request, SECTOR,
    Status,
};
use linkspan_mem::{Gpa, GuestMemory, Region, Span, SplitRing, UserVa, Window};
use linkspan_virtio::split::{Buffer, SplitDevice, SplitDriver};
use linkspan_virtio::{Chain, Features, QueueError, QueueState};
use proptest::prelude::*;

const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

const IN: u32 = 0;
const OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;
const GET_ID: u32 = 8;

/// A disk of 100 sectors.
fn options() -> BlockOptions {
    BlockOptions {
        size_bytes: 100 * SECTOR + 511,
        block_size: 2048,
        physical_block_size: 4096,
        discard_granularity: 65536,
        queues: 4,
        queue_size: 128,
        read_only: false,
        serial: *b"linkspan-0123456789a",
    }
}

fn block() -> Block {
    Block::new(options()).unwrap()
}

fn geometry() -> Geometry {
    block().geometry(Features::from_bits_retain(FLUSH | DISCARD | WRITE_ZEROES))
}

/// Guest memory with a ring at its start; requests lie behind it.
struct Guest {
    memory: GuestMemory,
    driver: SplitDriver<Window>,
    device: SplitDevice<Window>,
    chain: Chain,
}

const RING_BYTES: u64 = 0x4000;
const HEADER: u64 = RING_BYTES;
const DATA: u64 = 0x8000;
const STATUS: u64 = 0x7000;
const MEMORY: usize = 0x2_0000;
/// What stands in memory that nobody has written.
const UNWRITTEN: u8 = 0xEE;

impl Guest {
    fn new() -> Self {
        let region = Region::heap(MEMORY).unwrap();
        region
            .slice(RING_BYTES, MEMORY as u64 - RING_BYTES)
            .unwrap()
            .write(&[UNWRITTEN; MEMORY]);
        let memory = GuestMemory::new(vec![(region, Gpa(0), UserVa(0))]).unwrap();
        let ring = || {
            let [descriptors, available, used] = [(0, 4096), (0x1000, 1024), (0x2000, 4096)]
                .map(|(at, len)| memory.guest.window(Gpa(at), len).unwrap());
            SplitRing::new(descriptors, available, used, 128).unwrap()
        };
        let (features, state) = (Features::SPLIT_QUEUE, QueueState::default());
        Self {
            driver: SplitDriver::new(ring(), features, state).unwrap(),
            device: SplitDevice::new(ring(), features, state).unwrap(),
            chain: Chain::new(block().chain_segments()).unwrap(),
            memory,
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let region = &self.memory.table().regions()[0];
        assert_eq!(
            region.slice(at, bytes.len() as u64).unwrap().write(bytes),
            bytes.len()
        );
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let region = &self.memory.table().regions()[0];
        assert_eq!(region.slice(at, N as u64).unwrap().read(&mut bytes), N);
        bytes
    }

    fn write_header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.write(HEADER, &header);
    }

    /// Sends a chain through the ring and parses what arrives.
    fn send(
        &mut self,
        geometry: &Geometry,
        readable: &[(u64, u32)],
        writable: &[(u64, u32)],
    ) -> Result<Request, QueueError> {
        let buffers = |list: &[(u64, u32)]| -> Vec<Buffer<Gpa>> {
            let buffer = |&(at, len): &(u64, u32)| Buffer {
                address: Gpa(at),
                len,
            };
            list.iter().map(buffer).collect()
        };
        let added = self
            .driver
            .add(&buffers(readable), &buffers(writable), None);
        added.unwrap();
        self.driver.publish().unwrap();
        assert_eq!(self.device.refresh(), Ok(1));
        assert_eq!(
            self.device.pop(&self.memory.guest, &mut self.chain),
            Ok(true)
        );
        Request::parse(&mut self.chain, self.memory.table(), geometry)
    }

    /// A request of the usual form: header, data, status, each in a descriptor.
    fn request(&mut self, geometry: &Geometry, kind: u32, sector: u64, len: u32) -> Request {
        self.write_header(kind, sector);
        let data = if len == 0 { &[][..] } else { &[(DATA, len)] };
        let (header, status) = ((HEADER, 16), (STATUS, 1));
        let request = if kind == OUT {
            self.send(geometry, &[&[header], data].concat(), &[status])
        } else {
            self.send(geometry, &[header], &[data, &[status]].concat())
        };
        request.unwrap()
    }

    /// Answers and has the driver take it; gives the used length.
    fn complete(&mut self, request: &Request, status: Status) -> u32 {
        let written = request.complete(self.memory.table(), status);
        self.device.push(&self.chain, written).unwrap();
        self.device.publish().unwrap();
        assert_eq!(self.driver.refresh(), Ok(1));
        let used = self.driver.pop().unwrap().unwrap();
        assert_eq!(used.written, written);
        written
    }
}

fn bytes_of(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.len())).sum()
}

#[test]
fn the_configuration_has_its_fields_in_their_places() {
    let block = block();
    let mut config = [0xFF; CONFIG_LEN];
    assert!(block.read_config(0, &mut config));
    let mut want = [0; CONFIG_LEN];
    want[0] = 100; // capacity
    want[12] = 126; // seg_max
    want[21] = 0x08; // blk_size
    want[24] = 1; // physical_block_exp
    want[26] = 2; // min_io_size
    want[34] = 4; // num_queues
    want[38] = 0x40; // max_discard_sectors
    want[40] = 32; // max_discard_seg
    want[44] = 128; // discard_sector_alignment
    want[50] = 0x04; // max_write_zeroes_sectors
    want[52] = 32; // max_write_zeroes_seg
    want[56] = 1; // write_zeroes_may_unmap
    assert_eq!(config, want);
    assert_eq!(block.queues(), 4);
    // SEG_MAX, BLK_SIZE, TOPOLOGY, MQ, but not CONFIG_WCE.
    let always = 1 << 2 | 1 << 6 | FLUSH | 1 << 10 | 1 << 12;
    assert_eq!(block.features().bits(), always | DISCARD | WRITE_ZEROES);
    let read_only = Block::new(BlockOptions {
        read_only: true,
        ..options()
    })
    .unwrap();
    assert_eq!(read_only.features().bits(), always | 1 << 5);
    assert!(read_only.read_config(0, &mut config));
    want[36..60].fill(0);
    assert_eq!(config, want);
}

/// QEMU 99bfc1c754: an optimal I/O size of one block makes Windows slow.
#[test]
fn the_optimal_io_size_is_not_one_block() {
    let mut size = [0xFF; 4];
    assert!(block().read_config(28, &mut size));
    assert_ne!(u32::from_le_bytes(size), 1);
}

#[test]
fn configuration_is_read_inside_its_bounds_only() {
    let block = block();
    for (offset, len, inside) in [
        (0, 0, true),
        (CONFIG_LEN, 0, true),
        (CONFIG_LEN - 1, 1, true),
        (CONFIG_LEN, 1, false),
        (0, CONFIG_LEN + 1, false),
        (usize::MAX, 1, false),
        (usize::MAX, 0, false),
    ] {
        let mut target = vec![0xAA; len];
        assert_eq!(
            block.read_config(offset, &mut target),
            inside,
            "{offset} {len}"
        );
        assert!(inside || target.iter().all(|byte| *byte == 0xAA));
    }
}

#[test]
fn seg_max_fits_the_queue() {
    for (queue_size, seg_max) in [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 2),
        (128, 126),
        (256, 126),
        (32768, 126),
    ] {
        let block = Block::new(BlockOptions {
            queue_size,
            ..options()
        })
        .unwrap();
        let mut bytes = [0; 4];
        assert!(block.read_config(12, &mut bytes));
        assert_eq!(u32::from_le_bytes(bytes), seg_max);
        assert!(block.chain_segments() >= seg_max as usize + 2);
    }
}

#[test]
fn options_that_make_no_device_are_refused() {
    for block_size in [0, 256, 513, 65536] {
        let error = Block::new(BlockOptions {
            block_size,
            ..options()
        })
        .unwrap_err();
        assert_eq!(error, OptionsError::BlockSize { block_size });
    }
    for physical in [0, 1024, 4097, 65536] {
        let error = Block::new(BlockOptions {
            physical_block_size: physical,
            ..options()
        })
        .unwrap_err();
        let block_size = 2048;
        assert_eq!(
            error,
            OptionsError::PhysicalBlock {
                physical,
                block_size
            }
        );
    }
    for granularity in [0, 256, 513] {
        let error = Block::new(BlockOptions {
            discard_granularity: granularity,
            ..options()
        })
        .unwrap_err();
        assert_eq!(error, OptionsError::Granularity { granularity });
    }
    let error = Block::new(BlockOptions {
        queues: 0,
        ..options()
    })
    .unwrap_err();
    assert_eq!(error, OptionsError::NoQueue);
    let error = Block::new(BlockOptions {
        queue_size: 0,
        ..options()
    })
    .unwrap_err();
    assert_eq!(error, OptionsError::EmptyQueue);
}

#[test]
fn a_driver_that_cannot_flush_gets_durable_writes() {
    let flush = Features::from_bits_retain(FLUSH) | Features::SPLIT_QUEUE;
    assert!(!block().geometry(flush).write_through);
    assert!(block().geometry(Features::SPLIT_QUEUE).write_through);
}

#[test]
fn a_read_gives_the_writable_bytes_before_the_status() {
    let mut guest = Guest::new();
    let request = guest.request(&geometry(), IN, 98, 1024);
    assert_eq!(
        request.operation,
        Operation::Read {
            offset: 98 * SECTOR
        }
    );
    assert_eq!(bytes_of(guest.chain.writable()), 1024);
    assert_eq!(bytes_of(guest.chain.readable()), 0);
    let spans = guest.chain.writable().to_vec();
    guest.memory.table().scatter(&spans, 0, &[7; 1024]).unwrap();
    assert_eq!(guest.complete(&request, Status::Ok), 1025);
    assert_eq!(guest.read(DATA), [7; 1024]);
    assert_eq!(guest.read(STATUS), [0, UNWRITTEN]);
}

#[test]
fn a_write_gives_the_readable_bytes_behind_the_header() {
    let mut guest = Guest::new();
    guest.write(DATA, &[9; 512]);
    let request = guest.request(&geometry(), OUT, 3, 512);
    let operation = Operation::Write {
        offset: 3 * SECTOR,
        durable: false,
    };
    assert_eq!(request.operation, operation);
    let mut data = [0; 512];
    guest
        .memory
        .table()
        .gather(guest.chain.readable(), 0, &mut data)
        .unwrap();
    assert_eq!(data, [9; 512]);
    assert_eq!(guest.chain.readable_len(), 512);
    assert_eq!(guest.complete(&request, Status::Ok), 1);
}

/// Without FLUSH the driver cannot ask for durability later (5.2.6.2).
#[test]
fn writes_are_durable_when_flush_was_not_negotiated() {
    let mut guest = Guest::new();
    let request = guest.request(&block().geometry(Features::SPLIT_QUEUE), OUT, 0, 512);
    let operation = Operation::Write {
        offset: 0,
        durable: true,
    };
    assert_eq!(request.operation, operation);
}

#[test]
fn a_flush_is_a_flush() {
    let mut guest = Guest::new();
    let request = guest.request(&geometry(), T_FLUSH, 0, 0);
    assert_eq!(request.operation, Operation::Flush);
    assert_eq!(guest.complete(&request, Status::Ok), 1);
}

/// A shorter buffer gets the beginning, a longer one stays untouched behind it.
#[test]
fn the_serial_number_fits_any_buffer() {
    for (room, used) in [(0, 1), (1, 2), (19, 20), (20, 21), (21, 20), (64, 20)] {
        let mut guest = Guest::new();
        let request = guest.request(&geometry(), GET_ID, 0, room);
        assert_eq!(request.operation, Operation::Answer(Status::Ok));
        assert_eq!(guest.complete(&request, Status::Ok), used, "{room}");
        let serial: [u8; 20] = guest.read(DATA);
        let filled = 20.min(room as usize);
        assert_eq!(serial[..filled], options().serial[..filled]);
        assert!(serial[filled..].iter().all(|byte| *byte == UNWRITTEN));
        assert_eq!(guest.read(DATA + 20), [UNWRITTEN]);
        assert_eq!(guest.read(STATUS), [0]);
    }
}

#[test]
fn requests_that_cannot_be_done_are_answered() {
    let read_only = Geometry {
        read_only: true,
        ..geometry()
    };
    let ok = geometry();
    let plain = block().geometry(Features::from_bits_retain(FLUSH));
    for (geometry, kind, sector, len, status) in [
        // Ranges.
        (&ok, IN, 100, 512, Status::IoErr),
        (&ok, IN, 99, 1024, Status::IoErr),
        (&ok, OUT, 100, 512, Status::IoErr),
        (&ok, IN, u64::MAX, 512, Status::IoErr),
        (&ok, OUT, u64::MAX / 512 + 1, 512, Status::IoErr),
        // Not whole sectors.
        (&ok, IN, 0, 511, Status::IoErr),
        (&ok, OUT, 0, 513, Status::IoErr),
        // Nothing to do, inside and outside.
        (&ok, IN, 100, 0, Status::Ok),
        (&ok, OUT, 0, 0, Status::Ok),
        (&ok, IN, 101, 0, Status::IoErr),
        // Writes to a disk that is not written.
        (&read_only, OUT, 0, 512, Status::IoErr),
        (&read_only, OUT, 0, 0, Status::IoErr),
        (&read_only, T_DISCARD, 0, 0, Status::IoErr),
        (&read_only, T_WRITE_ZEROES, 0, 0, Status::IoErr),
        // Discard and write zeroes that were not negotiated.
        (&plain, T_DISCARD, 0, 16, Status::Unsupp),
        (&plain, T_WRITE_ZEROES, 0, 16, Status::Unsupp),
        // SCSI commands, secure erase, unknown, barrier.
        (&ok, 2, 0, 512, Status::Unsupp),
        (&ok, 14, 0, 16, Status::Unsupp),
        (&ok, 5, 0, 0, Status::Unsupp),
        (&ok, 0x8000_0000, 0, 512, Status::Unsupp),
    ] {
        let mut guest = Guest::new();
        let request = guest.request(geometry, kind, sector, len);
        let what = format!("type {kind} sector {sector} len {len}");
        assert_eq!(request.operation, Operation::Answer(status), "{what}");
        guest.complete(&request, status);
        assert_eq!(guest.read(STATUS), [status.byte()], "{what}");
        assert_eq!(guest.read(DATA), [UNWRITTEN; 1024], "{what}");
    }
}

/// QEMU 8e7fd6f623: wrong used length. Of a failed read nothing was written
/// before the status byte.
#[test]
fn the_used_length_never_exceeds_what_was_written() {
    let mut guest = Guest::new();
    let request = guest.request(&geometry(), IN, 0, 512);
    assert_eq!(guest.complete(&request, Status::IoErr), 0);
    assert_eq!(guest.read(STATUS), [1]);
    let request = guest.request(&geometry(), OUT, 0, 512);
    assert_eq!(guest.complete(&request, Status::IoErr), 1);
    // A write whose driver left room before the status byte.
    guest.write_header(OUT, 0);
    let (header, data) = ((HEADER, 16), (DATA, 512));
    let request = guest.send(&geometry(), &[header, data], &[(STATUS - 4, 5)]);
    assert_eq!(guest.complete(&request.unwrap(), Status::Ok), 0);
    assert_eq!(
        guest.read(STATUS - 4),
        [UNWRITTEN, UNWRITTEN, UNWRITTEN, UNWRITTEN, 0]
    );
}

#[test]
fn the_header_may_be_split_at_every_byte() {
    for split in 0..=16 {
        let mut guest = Guest::new();
        guest.write_header(OUT, 5);
        guest.write(HEADER + 16, &[3; 512]);
        // The second part holds the rest of the header and the data as well.
        let readable = [
            (HEADER, split),
            (HEADER + u64::from(split), 16 + 512 - split),
        ];
        let request = guest.send(&geometry(), &readable, &[(STATUS, 1)]).unwrap();
        let operation = Operation::Write {
            offset: 5 * SECTOR,
            durable: false,
        };
        assert_eq!(request.operation, operation);
        let mut data = [0; 512];
        guest
            .memory
            .table()
            .gather(guest.chain.readable(), 0, &mut data)
            .unwrap();
        assert_eq!(data, [3; 512]);
    }
    let mut guest = Guest::new();
    guest.write_header(T_FLUSH, 0);
    let bytes: Vec<_> = (0..16).map(|at| (HEADER + at, 1)).collect();
    let request = guest.send(&geometry(), &bytes, &[(STATUS, 1)]).unwrap();
    assert_eq!(request.operation, Operation::Flush);
}

#[test]
fn the_status_byte_may_share_a_descriptor_with_data() {
    for split in [0, 1, 511, 512, 513] {
        let mut guest = Guest::new();
        guest.write_header(IN, 0);
        let writable = [(DATA, split), (DATA + u64::from(split), 513 - split)];
        let request = guest.send(&geometry(), &[(HEADER, 16)], &writable).unwrap();
        assert_eq!(request.operation, Operation::Read { offset: 0 });
        assert_eq!(bytes_of(guest.chain.writable()), 512);
        assert_eq!(guest.complete(&request, Status::Ok), 513);
        assert_eq!(guest.read(DATA + 511), [UNWRITTEN, 0, UNWRITTEN]);
    }
}

/// Nothing could tell the driver of these, so they are the queue's errors.
#[test]
fn a_chain_that_cannot_be_answered_is_an_error_of_the_queue() {
    let no_room = |side, need, have| QueueError::NoRoom {
        head: 0,
        side,
        need,
        have,
    };
    let readable = [(HEADER, 16), (DATA, 512)];
    let error = Guest::new().send(&geometry(), &readable, &[]).unwrap_err();
    assert_eq!(error, no_room("device-writable", 1, 0));
    let error = Guest::new().send(&geometry(), &[(HEADER, 16)], &[(STATUS, 0)]);
    assert_eq!(error.unwrap_err(), no_room("device-writable", 1, 0));
    let error = Guest::new().send(&geometry(), &[(HEADER, 15)], &[(STATUS, 1)]);
    assert_eq!(error.unwrap_err(), no_room("device-readable", 16, 15));
    let error = Guest::new().send(&geometry(), &[], &[(DATA, 512), (STATUS, 1)]);
    assert_eq!(error.unwrap_err(), no_room("device-readable", 16, 0));
}

proptest! {
    /// Whatever the chain is: either the queue is broken, or the request names
    /// work inside the disk, gets its status byte, and claims no byte too many.
    #[test]
    fn every_chain_ends_in_a_queue_error_or_a_status(
        readable in prop::collection::vec(0_u32..1200, 0..6),
        writable in prop::collection::vec(0_u32..1200, 0..6),
        kind in prop_oneof![0_u32..20, any::<u32>()],
        sector in prop_oneof![0_u64..110, any::<u64>()],
        read_only in any::<bool>(),
        succeeds in any::<bool>(),
    ) {
        prop_assume!(!readable.is_empty() || !writable.is_empty());
        let geometry = Geometry { read_only, ..geometry() };
        let mut guest = Guest::new();
        guest.write_header(kind, sector);
        let mut at = HEADER;
        let mut place = |lens: &[u32]| -> Vec<(u64, u32)> {
            let one = |len: &u32| {
                at += u64::from(*len);
                (at - u64::from(*len), *len)
            };
            lens.iter().map(one).collect()
        };
        let (readable, writable) = (place(&readable), place(&writable));
        let sum = |list: &[(u64, u32)]| list.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
        let (read, written) = (sum(&readable), sum(&writable));

        match guest.send(&geometry, &readable, &writable) {
            Err(error) => {
                prop_assert!(read < 16 || written == 0, "{}", error);
                let named = matches!(error, QueueError::NoRoom { .. });
                prop_assert!(named);
            }
            Ok(request) => {
                prop_assert!(read >= 16 && written > 0);
                let capacity = geometry.capacity_sectors * SECTOR;
                let status = match request.operation {
                    Operation::Read { offset } => {
                        prop_assert!(offset + guest.chain.writable_len() <= capacity);
                        prop_assert_eq!(guest.chain.writable_len(), written - 1);
                        if succeeds { Status::Ok } else { Status::IoErr }
                    }
                    Operation::Write { offset, .. } => {
                        prop_assert!(!read_only);
                        prop_assert!(offset + guest.chain.readable_len() <= capacity);
                        prop_assert_eq!(guest.chain.readable_len(), read - 16);
                        if succeeds { Status::Ok } else { Status::IoErr }
                    }
                    Operation::Discard | Operation::WriteZeroes { .. } => {
                        prop_assert!(!read_only);
                        let mut ranges = Ranges::new();
                        let table = guest.memory.table();
                        let list = ranges.read(request.operation, &mut guest.chain, table, &geometry);
                        while let Some((range, _)) = ranges.next_slice() {
                            prop_assert!(list.is_ok() && range.offset + range.len <= capacity);
                        }
                        list.err().unwrap_or(Status::Ok)
                    }
                    Operation::Flush => Status::Ok,
                    Operation::Answer(status) => status,
                };
                let used = guest.complete(&request, status);
                prop_assert!(u64::from(used) <= written);
                prop_assert_eq!(guest.read(HEADER + read + written - 1), [status.byte()]);
            }
        }
    }
}
