//! What a kick of a vDPA device shown as a PCI function costs its client, by each way that
//! vfio-user has: a message and its reply, a message without one, an eventfd.
//!
//! The device is the model of a kernel's, which is woken by an eventfd in each case. Each
//! round has all ways, one after the other; medians of the rounds are printed.
//!
//! ```sh
//! cargo run --release -p linkspan-testkit --example doorbells
//! ```

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::vdpa::{Machine, Quirks};
use linkspan_testkit::{DiskRing, Io, Served, VirtioPci};

const ROUNDS: usize = 9;
const KICKS: u32 = 10_000;
const REQUESTS: u32 = 2_000;

/// One way to kick.
struct Way {
    name: &'static str,
    kick: fn(&VirtioPci, (u32, u64), &mut File),
    /// Nanoseconds of a kick, and of a request with it, by round.
    kicks: Vec<u128>,
    requests: Vec<u128>,
}

fn way(name: &'static str, kick: fn(&VirtioPci, (u32, u64), &mut File)) -> Way {
    let (kicks, requests) = (Vec::new(), Vec::new());
    Way {
        name,
        kick,
        kicks,
        requests,
    }
}

fn each(took: Duration, count: u32) -> u128 {
    took.as_nanos() / u128::from(count)
}

fn median(of: &mut [u128]) -> u128 {
    of.sort_unstable();
    of[of.len() / 2]
}

fn turn(way: &mut Way, driver: &VirtioPci, ring: &mut DiskRing, event: &mut File) {
    let place = driver.doorbell(0);
    let begin = Instant::now();
    for _ in 0..KICKS {
        (way.kick)(driver, place, event);
    }
    // Whatever was posted is done when this is answered.
    driver.status();
    way.kicks.push(each(begin.elapsed(), KICKS));
    let begin = Instant::now();
    for _ in 0..REQUESTS {
        let (sector, len) = (0, SECTOR);
        ring.add(Io::Read { sector, len });
        (way.kick)(driver, place, event);
        assert_eq!(ring.wait().status, 0);
    }
    way.requests.push(each(begin.elapsed(), REQUESTS));
}

fn main() {
    let machine = Machine::disk(1, Quirks::default());
    let served = Served::function(&machine, |_| {}).expect("a function");
    let mut driver = VirtioPci::connect(&served.socket()).expect("a driver");
    let mut ring = driver.bring_up(1).remove(0);
    let (_, fds) = driver.client.doorbells(2).expect("eventfds");
    let mut event = File::from(fds.into_iter().next().expect("one"));
    let mut ways = [
        way("message and reply", |driver, (bar, at), _| {
            driver.client.write(bar, at, &[0, 0]).expect("a doorbell");
        }),
        way("message alone", |driver, (bar, at), _| {
            driver.client.post_write(bar, at, &[0, 0]).expect("sent");
        }),
        way("eventfd", |_, _, event| {
            let done = event.write_all(&1_u64.to_ne_bytes());
            done.expect("a counter with room");
        }),
    ];
    for _ in 0..ROUNDS {
        for way in &mut ways {
            turn(way, &driver, &mut ring, &mut event);
        }
    }
    println!("a kick by           ns of a kick   ns of a request of 512 bytes");
    for way in &mut ways {
        let (kick, request) = (median(&mut way.kicks), median(&mut way.requests));
        println!("{:<19} {kick:>12}   {request:>12}", way.name);
    }
    drop(driver);
    served.stop();
}
