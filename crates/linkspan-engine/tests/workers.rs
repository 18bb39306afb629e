//! Workers: who is served where, what a worker does when there is nothing to do,
//! that no ring takes all of it, and limits.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{OpenOptions, RawImage};
use linkspan_engine::{
    ActiveRing, Budget, Device, OpenQueueError, Progress, QueueHandler, Rate, RateLimit,
    WorkerOptions, Workers,
};
use linkspan_sys::thread::allowed_cpus;
use linkspan_testkit::census::settled;
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::served::{content, write_image};
use linkspan_testkit::{Disk, DiskRing, Io, Options, Served};
use linkspan_virtio::{Features, QueueError};

/// Longer than any test runs: a worker that looks for work so long never sleeps.
const FOR_EVER: Duration = Duration::from_secs(3600);

fn workers(count: usize, poll: Duration) -> Arc<Workers> {
    let options = WorkerOptions {
        count,
        poll,
        ..WorkerOptions::default()
    };
    Arc::new(Workers::with(&options).unwrap())
}

fn serve(workers: &Arc<Workers>, queues: u16) -> Served {
    Served::disk_on(Arc::clone(workers), queues, |device| device)
}

fn read(sector: u64) -> Io<'static> {
    Io::Read {
        sector,
        len: SECTOR,
    }
}

/// Passes, polls, hits of polls, sleeps and wake-ups of a worker.
fn counts(workers: &Workers, number: usize) -> [u64; 5] {
    let of = workers.counters().nth(number).unwrap();
    [&of.passes, &of.polls, &of.poll_hits, &of.sleeps, &of.wakes].map(|counter| counter.value())
}

fn is_asleep(workers: &Workers, number: usize) -> bool {
    let [.., sleeps, wakes] = counts(workers, number);
    sleeps == wakes + 1
}

#[track_caller]
fn expect_asleep(workers: &Workers, number: usize) {
    assert!(
        settled(|| is_asleep(workers, number)),
        "worker {number} does not sleep: {:?}",
        counts(workers, number)
    );
}

#[test]
fn rings_are_spread_by_index_and_come_back_to_their_worker() {
    let workers = workers(2, Duration::ZERO);
    let served = serve(&workers, 4);
    let mut disk = served.drive(4);
    for round in 0..3 {
        for ring in 0..4 {
            let own = ring % 2;
            for worker in 0..2 {
                expect_asleep(&workers, worker);
            }
            let before = [0, 1].map(|worker| counts(&workers, worker));
            assert_eq!(disk.rings[ring].read(round, SECTOR), content(round));
            expect_asleep(&workers, own);
            let after = [0, 1].map(|worker| counts(&workers, worker));
            assert!(after[own][0] > before[own][0], "ring {ring}");
            assert_eq!(after[1 - own], before[1 - own], "ring {ring}");
        }
        // Restarted one by one, not all of them.
        for ring in [2, 1, 1, 0, 2] {
            disk.front.stop(ring).unwrap();
            disk.front.start(&disk.rings[usize::from(ring)]).unwrap();
        }
        disk.front.sync().unwrap();
    }
    disk.shut_down();
}

#[test]
fn worker_without_work_does_nothing_at_all() {
    let workers = workers(2, WorkerOptions::POLL);
    let served = serve(&workers, 2);
    let mut disk = served.drive(2);
    for round in 0..3 {
        for sector in 0..200 {
            assert_eq!(disk.rings[0].read(sector, SECTOR), content(sector));
        }
        expect_asleep(&workers, 0);
        let before = counts(&workers, 0);
        // However long it takes the other one to do this.
        for sector in 0..1000 {
            assert_eq!(disk.rings[1].read(sector, SECTOR), content(sector));
        }
        assert_eq!(counts(&workers, 0), before, "round {round}");
    }
    disk.shut_down();
}

#[test]
fn worker_that_may_not_poll_never_does() {
    let workers = workers(1, Duration::ZERO);
    let served = serve(&workers, 1);
    let mut disk = served.drive(1);
    for sector in 0..500 {
        assert_eq!(disk.rings[0].read(sector, SECTOR), content(sector));
    }
    disk.shut_down();
    assert_eq!(counts(&workers, 0)[1..3], [0, 0]);
}

/// A driver is not asked for kicks by a worker that looks; commands are heard.
#[test]
fn worker_that_looks_needs_no_kick_and_obeys() {
    let workers = workers(1, FOR_EVER);
    let served = serve(&workers, 3);
    let mut disk = served.drive(3);
    // Work soon after work: from now on it looks.
    for sector in 0..2 {
        assert_eq!(disk.rings[0].read(sector, SECTOR), content(sector));
    }
    let sleeps = counts(&workers, 0)[3];
    for sector in 0..100 {
        disk.rings[0].add(read(sector));
        assert_eq!(disk.rings[0].wait_polling().data, content(sector));
        // One that was not looked at since the worker last slept is heard as well.
        if sector == 50 {
            assert_eq!(disk.rings[2].read(sector, SECTOR), content(sector));
        }
    }
    disk.front.enable(0, false).unwrap();
    disk.rings[0].add(read(7));
    disk.front.sync().unwrap();
    assert_eq!(disk.rings[0].poll(), None);
    disk.front.enable(0, true).unwrap();
    assert_eq!(disk.rings[0].wait_polling().data, content(7));
    for _ in 0..10 {
        disk.front.stop(0).unwrap();
        disk.front.start(&disk.rings[0]).unwrap();
        disk.rings[0].add(read(9));
        assert_eq!(disk.rings[0].wait_polling().data, content(9));
    }
    let after = counts(&workers, 0);
    assert_eq!(after[3], sleeps, "it slept");
    assert!(after[1] > 0 && after[2] >= 100, "{after:?}");
    disk.shut_down();
}

/// Whoever serves a ring next may expect that its driver kicks.
#[test]
fn stopped_ring_asks_for_kicks() {
    for event_idx in [false, true] {
        let workers = workers(1, FOR_EVER);
        let served = serve(&workers, 1);
        let event_idx_bit = Features::VIRTIO_F_EVENT_IDX.bits();
        let options = Options {
            without: if event_idx { 0 } else { event_idx_bit },
            ..Options::default()
        };
        let mut disk = Disk::bring_up(served.connect(), &options, 1, 64).unwrap();
        for sector in 0..5 {
            assert_eq!(disk.rings[0].read(sector, SECTOR), content(sector));
        }
        let base = disk.front.stop(0).unwrap();
        let ring = disk.rings[0].raw();
        assert_eq!(ring.used_flags(), 0);
        if event_idx {
            assert_eq!(ring.available_event(), base);
        }
        disk.shut_down();
    }
}

/// A disk whose ring 0 always says that something is left.
struct Endless(BlockDevice);

struct EndlessQueue(Box<dyn QueueHandler>);

impl QueueHandler for EndlessQueue {
    fn run(&mut self, ring: &mut ActiveRing, budget: Budget) -> Result<Progress, QueueError> {
        self.0.run(ring, budget)?;
        Ok(Progress::More)
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.completion_fd()
    }
}

impl Device for Endless {
    fn name(&self) -> &'static str {
        "endless"
    }

    fn device_id(&self) -> u32 {
        0
    }

    fn features(&self) -> Features {
        self.0.features()
    }

    fn queues(&self) -> u16 {
        self.0.queues()
    }

    fn queue_size_max(&self) -> u16 {
        self.0.queue_size_max()
    }

    fn open_queue(
        &self,
        index: u16,
        features: Features,
    ) -> Result<Box<dyn QueueHandler>, OpenQueueError> {
        let queue = self.0.open_queue(index, features)?;
        if index == 0 {
            return Ok(Box::new(EndlessQueue(queue)));
        }
        Ok(queue)
    }
}

#[test]
fn ring_that_never_ends_starves_neither_rings_nor_commands() {
    for poll in [Duration::ZERO, WorkerOptions::POLL, FOR_EVER] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        write_image(&path);
        let image = RawImage::open(&path, &OpenOptions::default()).unwrap();
        let device = BlockDevice::new(Arc::new(image), 3, 256).unwrap();
        let workers = workers(1, poll);
        let served = Served::device(folder, Arc::new(Endless(device)), Arc::clone(&workers));
        let mut disk = served.drive(3);
        for sector in 0..100 {
            // One that was told not to kick and, at times, one that sleeps.
            disk.rings[1].submit(read(sector));
            disk.rings[2].submit(read(sector + 1));
            assert_eq!(disk.rings[1].wait().data, content(sector));
            assert_eq!(disk.rings[2].wait().data, content(sector + 1));
            assert_eq!(disk.rings[0].read(sector, SECTOR), content(sector));
        }
        for _ in 0..10 {
            disk.front.enable(0, false).unwrap();
            if poll != FOR_EVER {
                expect_asleep(&workers, 0);
            }
            disk.front.enable(0, true).unwrap();
            let base = disk.front.stop(0).unwrap();
            assert_eq!(base, disk.rings[0].base());
            disk.front.start(&disk.rings[0]).unwrap();
            assert_eq!(disk.rings[0].read(3, SECTOR), content(3));
            disk.front.stop(1).unwrap();
            disk.front.start(&disk.rings[1]).unwrap();
            assert_eq!(disk.rings[1].read(4, SECTOR), content(4));
        }
        disk.shut_down();
    }
}

fn limited(workers: &Arc<Workers>, queues: u16, rate: Rate) -> Served {
    let limit = RateLimit::new(Instant::now(), Some(rate), None).unwrap();
    Served::disk_on(Arc::clone(workers), queues, |device| {
        device.with_limit(limit)
    })
}

fn answers(ring: &mut DiskRing) -> usize {
    std::iter::from_fn(|| ring.poll()).count()
}

#[test]
fn limit_lets_through_what_it_says_and_holds_no_command() {
    // What comes after the burst comes tomorrow.
    let rate = Rate {
        tokens: 1,
        per: Duration::from_secs(86_400),
        burst: 8,
    };
    for poll in [Duration::ZERO, FOR_EVER] {
        let workers = workers(1, poll);
        let served = limited(&workers, 2, rate);
        let mut disk = served.drive(2);
        for sector in 0..5 {
            disk.rings[0].submit(read(sector));
        }
        // Of any kind.
        disk.rings[1].submit(Io::Flush);
        disk.rings[1].submit(Io::GetId);
        for sector in 2..10 {
            disk.rings[1].submit(read(sector));
        }
        let mut count = 0;
        let through = settled(|| {
            count += answers(&mut disk.rings[0]) + answers(&mut disk.rings[1]);
            count == 8
        });
        assert!(through, "{count} of 8");
        // Waiting for tomorrow takes no time.
        if poll.is_zero() {
            expect_asleep(&workers, 0);
        }
        for sector in 10..13 {
            disk.rings[0].submit(read(sector));
            disk.rings[0].kick();
        }
        // Each stops where it stands, with what was not taken.
        let mut left = 0;
        for ring in 0..2 {
            let base = disk.front.stop(ring).unwrap();
            let ring = &mut disk.rings[usize::from(ring)];
            assert_eq!(base, ring.base());
            left += usize::from(ring.outstanding());
            count += answers(ring);
        }
        assert_eq!((count, left), (8, 18 - 8));
        disk.front.start(&disk.rings[0]).unwrap();
        disk.front.sync().unwrap();
        disk.front.stop(0).unwrap();
        assert_eq!(answers(&mut disk.rings[0]), 0);
        disk.shut_down();
        served.stop();
    }
}

#[test]
fn what_a_limit_held_back_goes_on_by_itself() {
    let workers = workers(2, WorkerOptions::POLL);
    let served = limited(&workers, 2, Rate::per_second(2000, Some(1)));
    let mut disk = served.drive(2);
    for round in 0..4 {
        for ring in &mut disk.rings {
            for sector in 0..10 {
                ring.submit(read(round + sector));
            }
        }
        for ring in &mut disk.rings {
            for sector in 0..10 {
                assert_eq!(ring.wait().data, content(round + sector));
            }
        }
    }
    disk.shut_down();
}

#[test]
fn pinned_workers_run_where_they_are_told() {
    let Ok(mut cpus) = allowed_cpus() else {
        println!("SKIP: this machine has more processors than a list can be had of");
        return;
    };
    cpus.reverse();
    let options = WorkerOptions {
        count: cpus.len() + 1,
        cpus: cpus.clone(),
        ..WorkerOptions::default()
    };
    let workers = Arc::new(Workers::with(&options).unwrap());
    let rings = u16::try_from(workers.count()).unwrap();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let folder = tempfile::tempdir().unwrap();
    let device = Places {
        queues: rings,
        seen: Arc::clone(&seen),
    };
    let served = Served::device(folder, Arc::new(device), Arc::clone(&workers));
    let disk = served.drive(rings);
    let count = || seen.lock().unwrap().len();
    assert!(settled(|| count() >= usize::from(rings)), "{}", count());
    disk.shut_down();
    let seen = seen.lock().unwrap();
    for (index, places) in seen.iter() {
        let own = cpus.get(usize::from(*index));
        let own = own.map_or_else(|| allowed_cpus().unwrap(), |cpu| vec![*cpu]);
        assert_eq!(*places, own, "worker {index}");
    }
    let nowhere = WorkerOptions {
        cpus: vec![1023],
        ..WorkerOptions::default()
    };
    let error = Workers::with(&nowhere).unwrap_err().to_string();
    assert!(error.contains("CPU 1023"), "{error}");
}

/// Index of each ring that was run, with the processors of its thread.
type Seen = Arc<std::sync::Mutex<Vec<(u16, Vec<u32>)>>>;

/// A device that notes where its queues run.
struct Places {
    queues: u16,
    seen: Seen,
}

struct PlaceQueue(u16, Seen);

impl QueueHandler for PlaceQueue {
    fn run(&mut self, _: &mut ActiveRing, _: Budget) -> Result<Progress, QueueError> {
        let mut seen = self.1.lock().unwrap();
        if seen.iter().all(|(index, _)| *index != self.0) {
            seen.push((self.0, allowed_cpus().unwrap()));
        }
        Ok(Progress::Idle)
    }
}

impl Device for Places {
    fn name(&self) -> &'static str {
        "places"
    }

    fn device_id(&self) -> u32 {
        0
    }

    fn features(&self) -> Features {
        Features::empty()
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn queue_size_max(&self) -> u16 {
        256
    }

    fn open_queue(&self, index: u16, _: Features) -> Result<Box<dyn QueueHandler>, OpenQueueError> {
        Ok(Box::new(PlaceQueue(index, Arc::clone(&self.seen))))
    }
}
