//! Random work on both sides of a ring against queues of the obvious kind.

mod rig;

use std::collections::VecDeque;

use linkspan_mem::Window;
use linkspan_virtio::{AddError, Chain, DeviceQueue, DriverQueue, Features, QueueLayout, Used};
use proptest::prelude::*;
use rig::{ALL, BORDER, PACKED, Rig, buffer, chain};

/// What either side does next.
#[derive(Clone, Debug)]
enum Step {
    Add {
        readable: Vec<u32>,
        writable: Vec<u32>,
        indirect: bool,
    },
    Publish,
    DeviceTakes {
        most: usize,
    },
    DeviceUses {
        which: usize,
        part: u32,
    },
    DevicePutsBack,
    DevicePublishes,
    DriverTakes {
        most: usize,
    },
    DeviceSleeps,
    DriverSleeps,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = || prop::collection::vec(0_u32..300, 0..4);
    let step = prop_oneof![
        4 => (sizes(), sizes(), any::<bool>()).prop_map(|(readable, writable, indirect)| Step::Add {
            readable,
            writable,
            indirect,
        }),
        2 => Just(Step::Publish),
        3 => (0_usize..5).prop_map(|most| Step::DeviceTakes { most }),
        4 => (any::<usize>(), any::<u32>()).prop_map(|(which, part)| Step::DeviceUses { which, part }),
        1 => Just(Step::DevicePutsBack),
        2 => Just(Step::DevicePublishes),
        3 => (0_usize..9).prop_map(|most| Step::DriverTakes { most }),
        1 => Just(Step::DeviceSleeps),
        1 => Just(Step::DriverSleeps),
    ];
    prop::collection::vec(step, 0..200)
}

/// One chain of the model: its name and its bytes on either side.
#[derive(Clone, Debug, PartialEq)]
struct Request {
    id: u16,
    readable: u64,
    writable: u64,
}

/// Both sides of a ring, and beside it the same as plain queues.
struct Model {
    rig: Rig,
    driver: DriverQueue<Window>,
    device: DeviceQueue<Window>,
    added: VecDeque<Request>,
    available: VecDeque<Request>,
    taken: Vec<(Request, Chain)>,
    /// How many of the last ones taken were taken one after the other, up to now.
    newest: usize,
    used: VecDeque<Used>,
    returned: VecDeque<Used>,
    device_asleep: bool,
    driver_asleep: bool,
    in_order: bool,
}

impl Model {
    fn new(size: u16, features: Features, start: u16) -> Self {
        let rig = Rig::new(size);
        let (driver, device) = rig.queues(features, start);
        Self {
            rig,
            driver,
            device,
            added: VecDeque::new(),
            available: VecDeque::new(),
            taken: Vec::new(),
            newest: 0,
            used: VecDeque::new(),
            returned: VecDeque::new(),
            device_asleep: false,
            driver_asleep: false,
            in_order: features.contains(Features::VIRTIO_F_IN_ORDER),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add {
                readable,
                writable,
                indirect,
            } => self.add(&readable, &writable, indirect),
            Step::Publish => self.publish(),
            Step::DeviceTakes { most } => self.device_takes(most),
            Step::DeviceUses { which, part } => self.device_uses(which, part),
            Step::DevicePutsBack => self.device_puts_back(),
            Step::DevicePublishes => self.device_publishes(),
            Step::DriverTakes { most } => self.driver_takes(most),
            Step::DeviceSleeps => {
                self.device_asleep = !self.device.arm().unwrap();
                assert_eq!(self.device_asleep, self.available.is_empty());
            }
            Step::DriverSleeps => {
                self.driver_asleep = !self.driver.arm().unwrap();
                assert_eq!(self.driver_asleep, self.returned.is_empty());
            }
        }
        let outstanding = self.added.len()
            + self.available.len()
            + self.taken.len()
            + self.used.len()
            + self.returned.len();
        assert_eq!(usize::from(self.driver.outstanding()), outstanding);
        assert_eq!(usize::from(self.device.in_flight()), self.taken.len());
    }

    fn add(&mut self, readable: &[u32], writable: &[u32], indirect: bool) {
        let buffers = |lens: &[u32]| -> Vec<_> {
            let crossing = |len: &u32| buffer(BORDER - 100, *len);
            lens.iter().map(crossing).collect()
        };
        let (read, write) = (buffers(readable), buffers(writable));
        // A table for each chain that may wait: 256 tables of 8 entries.
        let slot = u64::from(self.driver.state().next_available % 256);
        let table = self.rig.table(0x8000 + slot * 128, 8);
        let need = if indirect {
            1
        } else {
            read.len() + write.len()
        };
        let free = self.driver.free();
        let added = match (&read[..], &write[..]) {
            ([one], []) if !indirect => self.driver.add_one(*one, false),
            ([], [one]) if !indirect => self.driver.add_one(*one, true),
            _ => self.driver.add(&read, &write, indirect.then_some(table)),
        };
        match added {
            Ok(id) => self.added.push_back(Request {
                id,
                readable: readable.iter().map(|len| u64::from(*len)).sum(),
                writable: writable.iter().map(|len| u64::from(*len)).sum(),
            }),
            Err(AddError::Full { .. }) => assert!(need > usize::from(free)),
            Err(AddError::Buffers { count }) => {
                assert_eq!((count, read.len() + write.len()), (0, 0));
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn publish(&mut self) {
        self.driver.publish().unwrap();
        let kicked = self.driver.kick_wanted().unwrap();
        let asleep_over = self.device_asleep && !self.added.is_empty();
        assert!(kicked || !asleep_over, "a kick was lost");
        self.device_asleep &= !asleep_over;
        self.available.append(&mut self.added);
    }

    fn device_takes(&mut self, most: usize) {
        self.device_asleep = false;
        self.device.disarm().unwrap();
        let waiting = self.device.refresh().unwrap();
        self.check_waiting(waiting, self.available.len());
        let space = &self.rig.memory.guest;
        let mut chains: Vec<Chain> = (0..most).map(|_| chain()).collect();
        let count = if most.is_multiple_of(2) {
            self.device.pop_many(space, &mut chains).unwrap()
        } else {
            let mut pop = |chain| self.device.pop(space, chain).unwrap();
            let refused = chains.iter_mut().position(|chain| !pop(chain));
            refused.unwrap_or(most)
        };
        assert_eq!(count, most.min(self.available.len()));
        for chain in chains.into_iter().take(count) {
            let request = self.available.pop_front().unwrap();
            assert_eq!(chain.id(), request.id);
            assert_eq!(chain.readable_len(), request.readable);
            assert_eq!(chain.writable_len(), request.writable);
            self.taken.push((request, chain));
            self.newest += 1;
        }
    }

    fn device_puts_back(&mut self) {
        if self.newest > 0 {
            self.newest -= 1;
            let (request, chain) = self.taken.pop().unwrap();
            self.device.put_back(&chain).unwrap();
            self.available.push_front(request);
        }
    }

    fn device_uses(&mut self, which: usize, part: u32) {
        if self.taken.is_empty() {
            return;
        }
        // In order if need be, and often with all bytes written, which lets the
        // device leave out used elements.
        let which = if self.in_order { 0 } else { which };
        let which = which % self.taken.len();
        let (request, chain) = self.taken.remove(which);
        self.newest = self.newest.min(self.taken.len() - which);
        let total = chain.writable_total();
        let written = match part % 3 {
            0 => part % (total + 1),
            _ => total,
        };
        self.device.push(&chain, written).unwrap();
        let id = request.id;
        self.used.push_back(Used { id, written });
    }

    fn device_uses_all(&mut self) {
        let whole = |(_, chain): &(Request, Chain)| chain.writable_total();
        let written: Vec<u32> = self.taken.iter().map(whole).collect();
        let chains = self.taken.iter().map(|(_, chain)| chain);
        let all = chains.zip(written.iter().copied());
        self.device.push_many(all).unwrap();
        for ((request, _), written) in self.taken.drain(..).zip(written) {
            let id = request.id;
            self.used.push_back(Used { id, written });
        }
    }

    fn device_publishes(&mut self) {
        self.device.publish().unwrap();
        let notified = self.device.notify_wanted().unwrap();
        let asleep_over = self.driver_asleep && !self.used.is_empty();
        assert!(notified || !asleep_over, "a notification was lost");
        self.driver_asleep &= !asleep_over;
        self.returned.append(&mut self.used);
    }

    /// A packed ring does not say how many wait, but whether.
    fn check_waiting(&self, waiting: u16, queued: usize) {
        let most = match self.device.layout() {
            QueueLayout::Split => usize::MAX,
            QueueLayout::Packed => 1,
        };
        assert_eq!(usize::from(waiting), queued.min(most));
    }

    fn driver_takes(&mut self, most: usize) {
        self.driver_asleep = false;
        self.driver.disarm().unwrap();
        let waiting = self.driver.refresh().unwrap();
        self.check_waiting(waiting, self.returned.len());
        if most.is_multiple_of(2) {
            let returned = &mut self.returned;
            let (waiting, most) = (returned.len(), u16::try_from(most).unwrap());
            let each = |used| assert_eq!(Some(used), returned.pop_front());
            let count = self.driver.pop_each(most, each).unwrap();
            assert_eq!(usize::from(count), waiting.min(most.into()));
            return;
        }
        for _ in 0..most {
            let Some(used) = self.driver.pop().unwrap() else {
                break;
            };
            assert_eq!(Some(used), self.returned.pop_front());
        }
    }
}

/// Nothing is lost, doubled or changed, nobody sleeps over work, and in the end
/// every descriptor is free again.
fn run(size: u16, features: Features, start: u16, steps: Vec<Step>) {
    let mut model = Model::new(size, features, start);
    for step in steps {
        model.step(step);
    }
    model.step(Step::Publish);
    model.step(Step::DeviceTakes { most: 256 });
    model.device_uses_all();
    model.step(Step::DevicePublishes);
    model.step(Step::DriverTakes { most: 256 });
    assert_eq!((model.driver.free(), model.driver.outstanding()), (size, 0));
    let parts = || model.rig.parts(features);
    let layout = QueueLayout::of(features);
    let saved = model.driver.snapshot().unwrap();
    let driver = DriverQueue::restore(parts(), size, layout, &saved).unwrap();
    assert_eq!(driver.base(), model.driver.base());
    let saved = model.device.snapshot().unwrap();
    let device = DeviceQueue::restore(parts(), size, layout, &saved).unwrap();
    assert_eq!(device.base(), model.device.base());
    let device = DeviceQueue::with_base(parts(), size, features, device.base()).unwrap();
    assert_eq!(device.state(), model.device.state());
}

proptest! {
    #[test]
    fn a_split_pair_agrees_with_a_naive_model(
        steps in steps(),
        log_size in 0_u32..=8,
        event_idx in any::<bool>(),
        in_order in any::<bool>(),
        start in prop_oneof![Just(0), Just(65500), any::<u16>()],
    ) {
        let mut features = ALL;
        features.set(Features::VIRTIO_F_EVENT_IDX, event_idx);
        features.set(Features::VIRTIO_F_IN_ORDER, in_order);
        run(1 << log_size, features, start, steps);
    }

    #[test]
    fn a_packed_pair_agrees_with_a_naive_model(
        steps in steps(),
        size in prop_oneof![1_u16..=9, 1_u16..=256],
        event_idx in any::<bool>(),
        in_order in any::<bool>(),
        start in 0_u16..1024,
    ) {
        let mut features = PACKED;
        features.set(Features::VIRTIO_F_EVENT_IDX, event_idx);
        features.set(Features::VIRTIO_F_IN_ORDER, in_order);
        run(size, features, start, steps);
    }
}
