//! What a chain costs on either side of a queue, in nanoseconds, on one thread:
//! `cargo bench -p linkspan-virtio`.

use std::time::Instant;

use linkspan_mem::{Gpa, GuestMemory, Region, UserVa};
use linkspan_virtio::{Buffer, Chain, DeviceQueue, DriverQueue, Features, QueueLayout, QueueState};

const SIZE: u16 = 256;
const BATCH: u16 = 32;
const BATCHES: u32 = 200_000;
const DATA: u64 = 0x8000;

fn main() {
    println!(
        "{:28} {:>8} {:>8} {:>8} {:>8}",
        "one readable buffer", "add", "pop", "push", "answer"
    );
    let in_order = Features::VIRTIO_F_IN_ORDER;
    for (name, features) in [
        ("split", Features::VIRTIO_F_VERSION_1),
        ("split, event index", Features::SPLIT_QUEUE),
        ("split, in order", Features::SPLIT_QUEUE | in_order),
        (
            "packed",
            Features::VIRTIO_F_VERSION_1 | Features::VIRTIO_F_RING_PACKED,
        ),
        ("packed, in order", Features::PACKED_QUEUE | in_order),
    ] {
        let [add, pop, push, answer] = run(features);
        println!("{name:28} {add:>8.1} {pop:>8.1} {push:>8.1} {answer:>8.1}");
    }
}

/// Nanoseconds a chain for each of the four steps.
fn run(features: Features) -> [f64; 4] {
    let region = Region::heap(1 << 16).expect("memory");
    let memory = GuestMemory::new(vec![(region, Gpa(0x1_0000), UserVa(0))]).expect("memory");
    let layout = QueueLayout::of(features);
    let lens = layout.part_lens(SIZE);
    let parts = || {
        let at = [0, 0x2000, 0x4000].map(|at| Gpa(0x1_0000 + at));
        std::array::from_fn(|part| memory.guest.window(at[part], lens[part]).expect("inside"))
    };
    let state: QueueState = layout.start();
    let mut driver = DriverQueue::new(parts(), SIZE, features, state).expect("a driver");
    let mut device = DeviceQueue::new(parts(), SIZE, features, state).expect("a device");
    let mut chains: Vec<Chain> = (0..BATCH)
        .map(|_| Chain::new(8).expect("a chain"))
        .collect();
    let mut times = [0_u128; 4];
    for _ in 0..BATCHES {
        let start = Instant::now();
        for number in 0..u64::from(BATCH) {
            let buffer = Buffer {
                address: Gpa(0x1_0000 + DATA + number * 64),
                len: 64,
            };
            driver.add(&[buffer], &[], None).expect("room");
        }
        driver.publish().expect("published");
        let added = Instant::now();
        device.refresh().expect("a sound ring");
        for chain in &mut chains {
            assert!(device.pop(&memory.guest, chain).expect("a sound chain"));
        }
        let popped = Instant::now();
        for chain in &chains {
            device.push(chain, 0).expect("pushed");
        }
        device.publish().expect("published");
        let pushed = Instant::now();
        driver.refresh().expect("a sound ring");
        for _ in 0..BATCH {
            driver.pop().expect("a sound ring").expect("an answer");
        }
        let answered = Instant::now();
        for (total, (from, to)) in times.iter_mut().zip([
            (start, added),
            (added, popped),
            (popped, pushed),
            (pushed, answered),
        ]) {
            *total += to.duration_since(from).as_nanos();
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    times.map(|time| time as f64 / f64::from(BATCHES) / f64::from(BATCH))
}
