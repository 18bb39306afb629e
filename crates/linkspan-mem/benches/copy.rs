//! How fast shared memory is copied, as a ratio to `memcpy` measured in the same
//! alternating run: `cargo bench -p linkspan-mem`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use linkspan_mem::Region;

/// Alternations of which the median counts.
const ROUNDS: usize = 9;

/// Bytes copied in one round of one side.
const ROUND_BYTES: usize = 256 << 20;

fn main() {
    println!(
        "{:>8} {:>12} {:>12} {:>12} {:>10} {:>10}",
        "bytes", "memcpy GB/s", "read GB/s", "write GB/s", "read", "write"
    );
    for len in [
        8,
        16,
        64,
        128,
        256,
        512,
        1024,
        1504,
        2048,
        4096,
        16384,
        65536,
        1 << 20,
    ] {
        let region = Region::heap(len).expect("memory");
        let shared = region.slice(0, len as u64).expect("inside");
        let source = vec![1_u8; len];
        let mut target = vec![0_u8; len];
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            times[0].push(time(len, || {
                black_box(&mut target).copy_from_slice(black_box(&source))
            }));
            times[1].push(time(len, || {
                shared.read(black_box(&mut target));
            }));
            times[2].push(time(len, || {
                shared.write(black_box(&source));
            }));
        }
        let [memcpy, read, write] = times.map(median);
        let speed = |time: f64| 1.0 / time;
        println!(
            "{len:>8} {:>12.1} {:>12.1} {:>12.1} {:>10.2} {:>10.2}",
            speed(memcpy),
            speed(read),
            speed(write),
            memcpy / read,
            memcpy / write
        );
    }
}

/// Nanoseconds a byte.
fn time(len: usize, mut copy: impl FnMut()) -> f64 {
    let count = (ROUND_BYTES / len).min(4_000_000);
    let start = Instant::now();
    for _ in 0..count {
        copy();
    }
    let elapsed: Duration = start.elapsed();
    elapsed.as_secs_f64() * 1e9 / (count as f64 * len as f64)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
