//! A device that dies between any two of its stores, and the next one that goes
//! on: nothing is lost, nothing that was answered is done again, nothing is
//! answered twice.

mod rig;

use std::sync::Arc;

use linkspan_mem::{InflightSplit, Life, Mortal, RingMemory, SplitRing, Window};
use linkspan_virtio::split::{SplitDevice, SplitDriver};
use linkspan_virtio::{Chain, Features, QueueState};
use rig::{ALL, BASE, Rig, buffer, chain};

const SIZE: u16 = 4;
/// Requests of a run: descriptors are used again, positions wrap.
const REQUESTS: usize = 11;

/// What a run shares over all lives of the device.
struct World {
    rig: Rig,
    features: Features,
    driver: SplitDriver<Window>,
    next: usize,
    /// How often each request was done and answered.
    done: [u32; REQUESTS],
    answered: [u32; REQUESTS],
    /// By name of the chain.
    asked: Vec<Option<usize>>,
}

impl World {
    fn new(features: Features, start: u16) -> Self {
        let rig = Rig::new(SIZE);
        let (driver, _) = rig.pair(features, start);
        Self {
            rig,
            features,
            driver,
            next: 0,
            done: [0; REQUESTS],
            answered: [0; REQUESTS],
            asked: vec![None; usize::from(SIZE)],
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

    fn device(&self, life: &Arc<Life>) -> SplitDevice<Mortal<Window>> {
        let ring = self.rig.ring();
        let [descriptors, available, used] = ring.windows().map(|window| mortal(window, life));
        let ring = SplitRing::new(descriptors, available, used, SIZE).unwrap();
        let region = mortal(
            &self.rig.region(InflightSplit::<Window>::region_len(SIZE)),
            life,
        );
        // As QEMU gives it after a crash: where the used ring stands.
        let state = QueueState {
            next_available: ring.used_index(),
            next_used: ring.used_index(),
        };
        let device = SplitDevice::new(ring, self.features, state).unwrap();
        let region = InflightSplit::new(region, SIZE).unwrap();
        device.track(region).unwrap()
    }

    /// One life: takes what there is, does it, and answers in batches of up to
    /// two, the last taken first. Whether it lived to the end of all work.
    fn live(&mut self, stores: u64) -> bool {
        let life = Life::new(stores);
        let mut device = self.device(&life);
        let mut taken: Vec<Chain> = Vec::new();
        while !life.is_over() {
            self.drive();
            device.refresh().unwrap();
            let mut chain = chain();
            while device.pop(&self.rig.memory.guest, &mut chain).unwrap() {
                if life.is_over() {
                    return false;
                }
                self.execute(&chain);
                taken.push(std::mem::replace(&mut chain, rig::chain()));
            }
            if taken.is_empty() {
                assert_eq!(device.snapshot().err(), None);
                return true;
            }
            for chain in taken.drain(taken.len().saturating_sub(2)..).rev() {
                device.push(&chain, chain.writable_total()).unwrap();
            }
            device.publish().unwrap();
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
        assert_eq!((self.driver.outstanding(), self.driver.free()), (0, SIZE));
    }
}

fn mortal<M: RingMemory + Clone>(memory: &M, life: &Arc<Life>) -> Mortal<M> {
    Mortal::new(memory.clone(), Arc::clone(life))
}

/// Every point of the first life, and from each every point of the second.
#[test]
fn a_crash_between_any_two_stores_loses_and_repeats_nothing() {
    for start in [0, 65533] {
        for first in 0.. {
            let mut lived = false;
            for second in 0.. {
                let mut world = World::new(ALL, start);
                lived = world.live(first);
                let recovered = lived || world.live(second);
                if !recovered {
                    assert!(world.live(u64::MAX));
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
}
