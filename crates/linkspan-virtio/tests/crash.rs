//! A device that dies between any two of its stores, and the next one that goes
//! on: nothing is lost, nothing that was answered is done again, nothing is
//! answered twice.

mod rig;

use std::sync::Arc;

use linkspan_mem::{Life, Mortal, Window};
use linkspan_virtio::{Chain, DeviceQueue, DriverQueue, Features, QueueLayout, QueueState};
use rig::{ALL, BASE, PACKED, Rig, buffer, chain};

/// Requests of a run: descriptors are used again, positions wrap.
const REQUESTS: usize = 7;

const IN_ORDER: Features = Features::VIRTIO_F_IN_ORDER;

/// How a life works, and whether the driver looks at what it left.
#[derive(Clone, Copy)]
struct Habit {
    takes: usize,
    answers: usize,
    looks: bool,
}

const HABITS: [Habit; 4] = [
    habit(9, 2, false),
    habit(1, 1, true),
    habit(9, 3, true),
    habit(2, 1, false),
];

const fn habit(takes: usize, answers: usize, looks: bool) -> Habit {
    Habit {
        takes,
        answers,
        looks,
    }
}

/// What a run shares over all lives of the device.
struct World {
    rig: Rig,
    features: Features,
    driver: DriverQueue<Window>,
    /// Where the front end thinks that the device is: where it was at first.
    state: QueueState,
    next: usize,
    /// How often each request was done and answered.
    done: [u32; REQUESTS],
    answered: [u32; REQUESTS],
    /// By name of the chain.
    asked: Vec<Option<usize>>,
}

impl World {
    fn new(size: u16, features: Features, start: u16) -> Self {
        let rig = Rig::new(size);
        let (driver, device) = rig.queues(features, start);
        Self {
            rig,
            features,
            driver,
            state: device.state(),
            next: 0,
            done: [0; REQUESTS],
            answered: [0; REQUESTS],
            asked: vec![None; usize::from(size)],
        }
    }

    /// The driver takes answers and keeps the queue full, with chains of one and
    /// of two descriptors.
    fn drive(&mut self) {
        self.driver.refresh().unwrap();
        while let Some(used) = self.driver.pop().unwrap() {
            let request = self.asked[usize::from(used.id)].take().unwrap();
            assert!(self.done[request] > 0, "answered without being done");
            self.answered[request] += 1;
        }
        while self.next < REQUESTS {
            // Its length names the request.
            let len = u32::try_from(self.next + 1).unwrap();
            let place = buffer(BASE + 0x9000, len);
            let header = [buffer(BASE + 0x8000, 8)];
            let readable = &header[..self.next % 2];
            let Ok(id) = self.driver.add(readable, &[place], None) else {
                break;
            };
            self.asked[usize::from(id)] = Some(self.next);
            self.next += 1;
        }
        self.driver.publish().unwrap();
    }

    fn device(&self, life: &Arc<Life>) -> DeviceQueue<Mortal<Window>> {
        let mortal = |window| Mortal::new(window, Arc::clone(life));
        let size = self.rig.size();
        // Room for more than the queue needs, as where a guest makes it smaller.
        let room = size + 1;
        let region = QueueLayout::of(self.features).inflight_len(room);
        let parts = self.rig.parts(self.features).map(mortal);
        DeviceQueue::new(parts, size, self.features, self.state)
            .unwrap()
            .track(mortal(self.rig.region(region)), room)
            .unwrap()
    }

    /// One life: takes chains, does what they ask for, answers in batches.
    /// Whether it lived to the end of all work.
    fn live(&mut self, stores: u64, habit: Habit) -> bool {
        let life = Life::new(stores);
        let mut device = self.device(&life);
        let mut taken: Vec<Chain> = Vec::new();
        while !life.is_over() {
            self.drive();
            device.refresh().unwrap();
            let mut chain = chain();
            for _ in 0..habit.takes {
                if !device.pop(&self.rig.memory.guest, &mut chain).unwrap() {
                    break;
                }
                if life.is_over() {
                    break;
                }
                self.execute(&chain);
                taken.push(std::mem::replace(&mut chain, rig::chain()));
            }
            if taken.is_empty() && !life.is_over() {
                assert_eq!(device.snapshot().err(), None);
                return true;
            }
            for _ in 0..habit.answers.min(taken.len()) {
                // The last taken first, unless the order counts.
                let chain = if self.features.contains(IN_ORDER) {
                    taken.remove(0)
                } else {
                    taken.pop().unwrap()
                };
                device.push(&chain, chain.writable_total()).unwrap();
            }
            device.publish().unwrap();
        }
        // The driver may look before the next life begins, or not.
        if habit.looks {
            self.drive();
        }
        false
    }

    fn execute(&mut self, chain: &Chain) {
        let request = chain.writable_total() as usize - 1;
        let readable = 8 * (request % 2) as u64;
        assert_eq!(chain.readable_len(), readable, "another chain");
        self.done[request] += 1;
        assert!(
            self.asked.contains(&Some(request)),
            "done after it was answered"
        );
        assert_eq!(self.answered[request], 0, "done after it was answered");
    }

    fn finish(mut self) {
        self.drive();
        assert_eq!(self.answered, [1; REQUESTS]);
        let (free, size) = (self.driver.free(), self.rig.size());
        assert_eq!((self.driver.outstanding(), free), (0, size));
    }
}

/// Every point of the first life, and from each every point of the second.
fn all_crashes(size: u16, features: Features, start: u16, habits: [Habit; 3]) {
    let [one, two, three] = habits;
    for first in 0.. {
        let mut lived = false;
        for second in 0.. {
            let mut world = World::new(size, features, start);
            lived = world.live(first, one);
            let recovered = lived || world.live(second, two);
            if !recovered {
                assert!(world.live(u64::MAX, three));
            }
            world.finish();
            if recovered {
                break;
            }
        }
        if lived {
            break;
        }
    }
}

/// Starts at a beginning and shortly before positions wrap.
fn all_habits(sizes: [u16; 2], features: Features, starts: [u16; 2]) {
    for (turn, (size, start)) in sizes.into_iter().zip(starts).enumerate() {
        for shift in 0..HABITS.len() / 2 {
            let habit = |life: usize| HABITS[(2 * shift + turn + life) % HABITS.len()];
            all_crashes(size, features, start, [habit(0), habit(1), habit(2)]);
        }
    }
}

#[test]
fn a_split_device_may_die_between_any_two_stores() {
    all_habits([4, 4], ALL, [0, 65533]);
}

#[test]
fn a_packed_device_may_die_between_any_two_stores() {
    all_habits([4, 3], PACKED, [0, 5]);
}

#[test]
fn a_device_that_keeps_the_order_may_die_too() {
    all_crashes(4, ALL | IN_ORDER, 0, [HABITS[0], HABITS[1], HABITS[2]]);
    all_crashes(3, PACKED | IN_ORDER, 2, [HABITS[2], HABITS[3], HABITS[0]]);
}
