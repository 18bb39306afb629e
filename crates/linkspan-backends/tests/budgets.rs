//! What one pass of a disk's queue may take, by requests and by bytes, and what it
//! says of the rest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_backends::block::BlockDevice;
use linkspan_backends::disk::{DiskQueue, DiskQueueLayout};
use linkspan_backends::image::{OpenOptions, RawImage};
use linkspan_devices::block::driver::Command;
use linkspan_engine::{
    ActiveRing, Budget, Device, DriverMemory, Progress, QueueHandle, QueueHandler, Rate, RateLimit,
    queue_link,
};
use linkspan_virtio::{DeviceQueue, Features, QueueLayout};

const DISK_BYTES: u64 = 8 << 20;
const DEPTH: u16 = 200;

/// Both ends of a queue, and nobody between.
struct Rig {
    driver: DiskQueue,
    handler: Box<dyn QueueHandler>,
    ring: ActiveRing,
    _link: QueueHandle,
    _file: tempfile::NamedTempFile,
}

fn rig(limit: Option<RateLimit>) -> Rig {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(DISK_BYTES).unwrap();
    let image = RawImage::open(file.path(), &OpenOptions::default()).unwrap();
    let mut device = BlockDevice::new(Arc::new(image), 1, 1024).unwrap();
    if let Some(limit) = limit {
        device = device.with_limit(limit);
    }
    let layout = DiskQueueLayout {
        depth: DEPTH,
        buffer_bytes: DISK_BYTES,
    };
    let features = device.features() | Features::SPLIT_QUEUE;
    let memory = Arc::new(DriverMemory::new(1, 1024, layout.bytes()).unwrap());
    let (link, handle) = queue_link().unwrap();
    let driver = DiskQueue::new(Arc::clone(&memory), 0, layout, features, link).unwrap();
    let place = QueueLayout::of(features);
    let (parts, size) = (memory.parts(0, place), memory.size(0));
    Rig {
        driver,
        handler: device.open_queue(0, features).unwrap(),
        ring: ActiveRing {
            queue: DeviceQueue::new(parts, size, features, place.start()).unwrap(),
            memory: Arc::clone(memory.memory()),
            log: None,
        },
        _link: handle,
        _file: file,
    }
}

impl Rig {
    fn submit(&mut self, count: u16, bytes: u32) {
        for number in 0..count {
            let (data, _) = self.driver.buffer(0, bytes).unwrap();
            let read = Command::Read { sector: 0, data };
            assert!(self.driver.submit(read, number.into()).unwrap());
        }
        self.driver.kick().unwrap();
    }

    /// What a worker does: how many requests one pass answered, and what is left.
    fn pass(&mut self) -> (u16, Progress) {
        let before = self.ring.queue.state().next_used;
        self.ring.queue.refresh().unwrap();
        let progress = self.handler.run(&mut self.ring, Budget::default());
        self.ring.queue.publish().unwrap();
        let after = self.ring.queue.state().next_used;
        (after - before, progress.unwrap())
    }
}

#[test]
fn pass_takes_as_many_requests_as_its_budget_and_the_next_one_the_rest() {
    let mut rig = rig(None);
    rig.submit(DEPTH, 512);
    assert_eq!(rig.pass(), (128, Progress::More));
    assert_eq!(rig.pass(), (DEPTH - 128, Progress::Idle));
    assert_eq!(rig.pass(), (0, Progress::Idle));
}

#[test]
fn pass_moves_as_many_bytes_as_its_budget_and_one_request_over() {
    let mut rig = rig(None);
    rig.submit(6, 1 << 20);
    assert_eq!(rig.pass(), (4, Progress::More));
    assert_eq!(rig.pass(), (2, Progress::Idle));
    rig.submit(4, 3 << 20);
    assert_eq!(rig.pass(), (2, Progress::More));
    assert_eq!(rig.pass(), (2, Progress::More));
    assert_eq!(rig.pass(), (0, Progress::Idle));
}

#[test]
fn limit_of_bytes_says_when_the_next_request_passes() {
    let start = Instant::now();
    let month = Duration::from_secs(30 * 86_400);
    let rate = Rate {
        tokens: 512,
        per: month,
        burst: 1024,
    };
    let mut rig = rig(RateLimit::new(start, None, Some(rate)));
    rig.submit(8, 512);
    let (count, progress) = rig.pass();
    assert_eq!(count, 2);
    // One byte has to be there; the rest of the next one is owed.
    let Progress::Until(until) = progress else {
        panic!("{progress:?}")
    };
    let left = until - start;
    assert!(left > Duration::ZERO && left <= month / 512 + Duration::from_nanos(1));
    assert_eq!(rig.pass(), (0, Progress::Until(until)));
}

#[test]
fn a_driver_that_looks_sees_answers_before_the_pass_is_over() {
    let mut rig = rig(None);
    rig.submit(20, 512);
    rig.ring.queue.refresh().unwrap();
    let progress = rig.handler.run(&mut rig.ring, Budget::default());
    assert_eq!(progress.unwrap(), Progress::Idle);
    let mut seen = 0;
    while rig.driver.answer().unwrap().is_some() {
        seen += 1;
    }
    // In groups of eight; the rest comes with the end of the pass.
    assert_eq!(seen, 16);
    rig.ring.queue.publish().unwrap();
    while rig.driver.answer().unwrap().is_some() {
        seen += 1;
    }
    assert_eq!(seen, 20);
}
