//! The block driver against the block device's own request logic.

use linkspan_devices::block::driver::{
    Answer, BlockDriver, Command, DiskInfo, DriverError, RangeLimits, SLOT_BYTES, WANTED,
};
use linkspan_devices::block::{
    Block, BlockOptions, CONFIG_LEN, Geometry, Operation, Ranges, Request, Status,
};
use linkspan_mem::{Gpa, GuestMemory, Region, Span, SplitRing, UserVa, Window};
use linkspan_virtio::split::{Buffer, SplitDevice, SplitDriver};
use linkspan_virtio::{Chain, DriverQueue, Features, QueueState};

const QUEUE: u16 = 8;
const SLOTS: u64 = 0x1000;
const DATA: u64 = 0x8000;

/// A disk of 64 sectors, a queue of 8, and the driver.
struct Rig {
    memory: GuestMemory,
    disk: Vec<u8>,
    block: Block,
    features: Features,
    device: SplitDevice<Window>,
    driver: BlockDriver<Window, Gpa>,
}

fn ring(memory: &GuestMemory) -> SplitRing<Window> {
    let window = |at, len| memory.guest.window(Gpa(at), len).unwrap();
    SplitRing::new(
        window(0, 16 * 8),
        window(0x100, 6 + 2 * 8),
        window(0x200, 6 + 8 * 8),
        QUEUE,
    )
    .unwrap()
}

fn span(memory: &GuestMemory, at: u64, len: u32) -> Span {
    let mut found = None;
    memory
        .guest
        .resolve(Gpa(at), len, |span| found = Some(span))
        .unwrap();
    found.unwrap()
}

impl Rig {
    fn new(features: Features) -> Self {
        let region = Region::heap(1 << 16).unwrap();
        let memory = GuestMemory::new(vec![(region, Gpa(0), UserVa(0))]).unwrap();
        let block = Block::new(BlockOptions {
            size_bytes: 64 * 512,
            block_size: 1024,
            physical_block_size: 4096,
            discard_granularity: 65536,
            queues: 3,
            queue_size: QUEUE,
            read_only: false,
            serial: *b"0123456789abcdefghij",
        })
        .unwrap();
        let queue = SplitDriver::new(ring(&memory), features, QueueState::default())
            .map(DriverQueue::Split)
            .unwrap();
        let slots = span(&memory, SLOTS, u32::from(QUEUE) * SLOT_BYTES);
        Self {
            device: SplitDevice::new(ring(&memory), features, QueueState::default()).unwrap(),
            driver: BlockDriver::new(queue, features, QUEUE, Gpa(SLOTS), slots).unwrap(),
            disk: (0..64 * 512_usize)
                .map(|i| (i / 512).to_le_bytes()[0])
                .collect(),
            memory,
            block,
            features,
        }
    }

    /// The device serves everything there is; its answers go out at the end.
    fn serve(&mut self) {
        let geometry = self.block.geometry(self.features);
        let mut chain = Chain::new(self.block.chain_segments()).unwrap();
        self.device.refresh().unwrap();
        while self.device.pop(&self.memory.guest, &mut chain).unwrap() {
            let table = self.memory.table();
            let request = Request::parse(&mut chain, table, &geometry).unwrap();
            let status = match request.operation {
                Operation::Read { offset } => {
                    let from = usize::try_from(offset).unwrap();
                    let len = usize::try_from(chain.writable_len()).unwrap();
                    let bytes = &self.disk[from..from + len];
                    table.scatter(chain.writable(), 0, bytes).unwrap();
                    Status::Ok
                }
                Operation::Write { offset, .. } => {
                    let from = usize::try_from(offset).unwrap();
                    let len = usize::try_from(chain.readable_len()).unwrap();
                    let bytes = &mut self.disk[from..from + len];
                    table.gather(chain.readable(), 0, bytes).unwrap();
                    Status::Ok
                }
                Operation::Discard | Operation::WriteZeroes { .. } => {
                    self.fill_ranges(request.operation, &mut chain, &geometry)
                }
                Operation::Flush => Status::Ok,
                Operation::Answer(status) => status,
            };
            let written = request.complete(self.memory.table(), status);
            self.device.push(&chain, written).unwrap();
        }
        self.device.publish().unwrap();
    }

    /// What is discarded becomes 0xDD; zeroes that may be unmapped become 0xEE.
    fn fill_ranges(
        &mut self,
        operation: Operation,
        chain: &mut Chain,
        geometry: &Geometry,
    ) -> Status {
        let mut ranges = Ranges::new();
        if let Err(status) = ranges.read(operation, chain, self.memory.table(), geometry) {
            return status;
        }
        while let Some((range, _)) = ranges.next_slice() {
            let from = usize::try_from(range.offset).unwrap();
            let len = usize::try_from(range.len).unwrap();
            self.disk[from..from + len].fill(match operation {
                Operation::Discard => 0xDD,
                _ if range.unmap => 0xEE,
                _ => 0,
            });
        }
        Status::Ok
    }

    fn submit(&mut self, command: Command<Gpa>, token: u64) -> bool {
        self.driver
            .submit(self.memory.table(), command, token)
            .unwrap()
    }

    fn answers(&mut self) -> Vec<Answer> {
        self.driver.queue().refresh().unwrap();
        let table = self.memory.table();
        std::iter::from_fn(|| self.driver.answer(table).unwrap()).collect()
    }

    fn ask(&mut self, command: Command<Gpa>) -> Status {
        assert!(self.submit(command, 99));
        self.driver.queue().publish().unwrap();
        self.serve();
        let answers = self.answers();
        assert_eq!((answers.len(), answers[0].token), (1, 99));
        answers[0].status
    }

    fn data(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let slice = self.memory.table().regions()[0].slice(DATA, len as u64);
        slice.unwrap().read(&mut bytes);
        bytes
    }
}

fn data(len: u32) -> Buffer<Gpa> {
    Buffer {
        address: Gpa(DATA),
        len,
    }
}

fn both_forms() -> [Features; 2] {
    let direct = WANTED | Features::VIRTIO_F_VERSION_1;
    [direct, direct | Features::VIRTIO_F_INDIRECT_DESC]
}

#[test]
fn commands_do_what_they_say_with_and_without_indirect_tables() {
    for features in both_forms() {
        let mut rig = Rig::new(features);
        assert_eq!(
            rig.ask(Command::Read {
                sector: 5,
                data: data(1024)
            }),
            Status::Ok
        );
        let read = rig.data(1024);
        assert!(read[..512].iter().all(|byte| *byte == 5));
        assert!(read[512..].iter().all(|byte| *byte == 6));
        assert_eq!(
            rig.ask(Command::Write {
                sector: 63,
                data: data(512)
            }),
            Status::Ok
        );
        assert!(rig.disk[63 * 512..].iter().all(|byte| *byte == 5));
        assert_eq!(rig.ask(Command::Flush), Status::Ok);
        assert_eq!(rig.ask(Command::Serial { data: data(20) }), Status::Ok);
        assert_eq!(rig.data(20), b"0123456789abcdefghij");
        assert_eq!(
            rig.ask(Command::Read {
                sector: 64,
                data: data(512)
            }),
            Status::IoErr
        );
    }
}

#[test]
fn ranges_reach_the_disk_as_they_were_asked_for() {
    for features in both_forms() {
        let mut rig = Rig::new(features);
        let untouched = rig.disk.clone();
        let zeroes = |sector, sectors, unmap| Command::WriteZeroes {
            sector,
            sectors,
            unmap,
        };
        for command in [
            Command::Discard {
                sector: 5,
                sectors: 3,
            },
            zeroes(10, 1, false),
            zeroes(62, 2, true),
            zeroes(64, 0, false),
        ] {
            assert_eq!(rig.ask(command), Status::Ok, "{command:?}");
        }
        let mut want = untouched;
        want[5 * 512..8 * 512].fill(0xDD);
        want[10 * 512..11 * 512].fill(0);
        want[62 * 512..].fill(0xEE);
        assert!(rig.disk == want);
        let outside = Command::Discard {
            sector: 63,
            sectors: 2,
        };
        assert_eq!(rig.ask(outside), Status::IoErr);
        assert_eq!(rig.ask(zeroes(u64::MAX, 1, true)), Status::IoErr);
        assert!(rig.disk == want);
    }
}

#[test]
fn a_full_queue_says_so_and_goes_on() {
    for (features, depth) in both_forms().into_iter().zip([2, 8]) {
        let mut rig = Rig::new(features);
        let read = |sector| Command::Read {
            sector,
            data: data(512),
        };
        for round in 0..20 {
            let submitted = (0..)
                .take_while(|token| rig.submit(read(*token), *token))
                .count();
            assert_eq!(
                (submitted, rig.driver.outstanding()),
                (depth, depth),
                "round {round}"
            );
            rig.driver.queue().publish().unwrap();
            rig.serve();
            let tokens: Vec<u64> = rig.answers().iter().map(|answer| answer.token).collect();
            assert_eq!(tokens, (0..depth as u64).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_status_that_was_never_written_is_a_failure() {
    let mut rig = Rig::new(both_forms()[0]);
    assert!(rig.submit(Command::Flush, 1));
    rig.driver.queue().publish().unwrap();
    let mut chain = Chain::new(8).unwrap();
    rig.device.refresh().unwrap();
    assert!(rig.device.pop(&rig.memory.guest, &mut chain).unwrap());
    rig.device.push(&chain, 0).unwrap();
    rig.device.publish().unwrap();
    assert_eq!(
        rig.answers(),
        [Answer {
            token: 1,
            status: Status::IoErr
        }]
    );
}

#[test]
fn what_was_not_answered_is_asked_again_of_a_new_device() {
    let mut rig = Rig::new(both_forms()[1]);
    for token in 0..5 {
        assert!(rig.submit(
            Command::Read {
                sector: token,
                data: data(512)
            },
            token
        ));
    }
    rig.driver.queue().publish().unwrap();
    rig.memory.table().regions()[0]
        .slice(0, 0x300)
        .unwrap()
        .write(&[0; 0x300]);
    let queue = SplitDriver::new(ring(&rig.memory), rig.features, QueueState::default())
        .map(DriverQueue::Split)
        .unwrap();
    rig.driver.resubmit(rig.memory.table(), queue).unwrap();
    rig.driver.queue().publish().unwrap();
    rig.device = SplitDevice::new(ring(&rig.memory), rig.features, QueueState::default()).unwrap();
    rig.serve();
    let mut tokens: Vec<u64> = rig.answers().iter().map(|answer| answer.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, [0, 1, 2, 3, 4]);
    assert_eq!(rig.driver.outstanding(), 0);
}

#[test]
fn slots_that_do_not_fit_are_refused() {
    let rig = Rig::new(both_forms()[0]);
    let queue = SplitDriver::new(ring(&rig.memory), rig.features, QueueState::default())
        .map(DriverQueue::Split)
        .unwrap();
    let memory = span(&rig.memory, SLOTS, 3 * SLOT_BYTES - 1);
    let error = BlockDriver::new(queue, rig.features, 3, Gpa(SLOTS), memory).unwrap_err();
    assert_eq!(error, DriverError::TooSmall { len: 383, slots: 3 });
}

#[test]
fn disk_info_reads_what_the_device_offers() {
    let rig = Rig::new(both_forms()[0]);
    let mut config = [0; CONFIG_LEN];
    assert!(rig.block.read_config(0, &mut config));
    let info = DiskInfo::from_config(&config, rig.block.features());
    assert_eq!(
        info,
        DiskInfo {
            size_bytes: 64 * 512,
            block_size: 1024,
            queues: 3,
            read_only: false,
            flush: true,
            physical_block_size: 4096,
            discard: Some(RangeLimits {
                sectors_max: 1 << 22,
                ranges_max: 32,
                alignment: 65536,
                may_unmap: false,
            }),
            write_zeroes: Some(RangeLimits {
                sectors_max: 1 << 18,
                ranges_max: 32,
                alignment: 512,
                may_unmap: true,
            }),
        }
    );
    let plain = DiskInfo::from_config(&config[..8], Features::empty());
    assert_eq!(
        plain,
        DiskInfo {
            size_bytes: 64 * 512,
            block_size: 512,
            queues: 1,
            read_only: false,
            flush: false,
            physical_block_size: 512,
            discard: None,
            write_zeroes: None,
        }
    );
}
