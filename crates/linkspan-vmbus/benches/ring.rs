//! How fast packets go through a ring from one thread to another, both polling, in
//! GB of payload a second: `cargo bench -p linkspan-vmbus`.
//!
//! The sender sends what there is room for and publishes once; the receiver takes
//! what there is and releases once. Each payload is copied into the ring and out.

use std::hint::{black_box, spin_loop};
use std::time::Instant;

use linkspan_mem::Region;
use linkspan_vmbus::packet::Header;
use linkspan_vmbus::{Incoming, Outgoing, Packet, SendError, Shape};

/// Bytes of a guest's page before each ring.
const HEADER: u64 = 4096;

/// Rounds of which the median counts.
const ROUNDS: usize = 5;

/// Payload of one round.
const ROUND_BYTES: usize = 2 << 30;

/// The most packets that one publication covers.
const BATCH: usize = 16;

fn main() {
    println!(
        "{:>10} {:>8} {:>12} {:>12} {:>14}",
        "ring", "payload", "median GB/s", "best GB/s", "ns a packet"
    );
    for (ring, payload) in [
        (16 << 10, 6224),
        (20 << 10, 6224),
        (68 << 10, 6224),
        (2 << 20, 6224),
        (2 << 20, 64),
        (2 << 20, 1504),
        (2 << 20, 65504),
    ] {
        let count = (ROUND_BYTES / payload).min(8_000_000);
        let mut times: Vec<f64> = (0..ROUNDS).map(|_| round(ring, payload, count)).collect();
        times.sort_by(f64::total_cmp);
        let speed = |time: f64| (count * payload) as f64 / time / 1e9;
        let median = times[ROUNDS / 2];
        println!(
            "{ring:>10} {payload:>8} {:>12.1} {:>12.1} {:>14.0}",
            speed(median),
            speed(times[0]),
            median * 1e9 / count as f64
        );
    }
}

/// Seconds for `count` packets.
fn round(ring: u64, payload: usize, count: usize) -> f64 {
    let region = Region::heap(usize::try_from(2 * ring).expect("fits")).expect("memory");
    let rings = || {
        Shape::halves(2 * ring, HEADER)
            .rings(&region, 0)
            .expect("rings")
    };
    let [there, _] = rings();
    let mut outgoing = Outgoing::new(there).expect("a new ring");
    let [there, _] = rings();
    let mut incoming = Incoming::new(there).expect("a new ring");
    incoming.disarm();
    let source = vec![0x5A; payload];
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut left = count;
            while left > 0 {
                let batch = left.min(BATCH);
                let mut sent = 0;
                while sent < batch {
                    match outgoing.send(Header::in_band(1), &[black_box(&source)]) {
                        Ok(()) => sent += 1,
                        Err(SendError::Full { .. }) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                if sent == 0 {
                    spin_loop();
                } else {
                    black_box(outgoing.publish().expect("a sound ring"));
                }
                left -= sent;
            }
        });
        let mut packet = Packet::new(incoming.packet_max()).expect("memory");
        let mut left = count;
        while left > 0 {
            if incoming.refresh().expect("a sound ring") == 0 {
                spin_loop();
                continue;
            }
            let mut taken = 0;
            while taken < BATCH && incoming.receive(&mut packet).expect("a sound ring") {
                black_box(packet.payload());
                taken += 1;
            }
            left -= taken;
            incoming.release().expect("a sound ring");
        }
    });
    start.elapsed().as_secs_f64()
}
