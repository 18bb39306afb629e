//! One process that serves the disk: back-end session, device queues, and the
//! requests that it has taken. When it is killed, all of this is gone.

use std::collections::VecDeque;
use std::sync::Arc;

use linkspan_devices::block::{Geometry, Operation, Request, Status};
use linkspan_mem::{GuestMemory, Life, Mortal, Region, Window};
use linkspan_vhost::backend::{Answer, Effect, RingSetup};
use linkspan_vhost::frontend::FdId;
use linkspan_vhost::{Backend, Offer};
use linkspan_virtio::{Chain, DeviceQueue, Features, NotQuiet, QueueLayout};

use super::plan::{Fault, Plan};
use super::shared::{Message, Shared};
use crate::history::BLOCK;

type Queue = DeviceQueue<Mortal<Window>>;

/// Stores of a short life at most.
const SHORT_LIFE: u64 = 400;

pub(crate) struct Back {
    /// Ends between any two stores to rings and in-flight regions.
    life: Arc<Life>,
    pub(crate) session: Option<Session>,
}

/// One connection.
pub(crate) struct Session {
    core: Backend,
    life: Arc<Life>,
    /// The number of its connection.
    pub(crate) wire: u64,
    /// Whether it knows that its connection is gone.
    pub(crate) lost: bool,
    fds: Vec<FdId>,
    memory: Option<Arc<GuestMemory>>,
    inflight: Option<Area>,
    pub(crate) rings: Vec<Option<Ring>>,
    /// The ring that is to stop before anything else is done.
    stopping: Option<u16>,
}

/// An in-flight region.
#[derive(Clone)]
struct Area {
    region: Region,
    queues: u16,
    queue_size: u16,
}

pub(crate) struct Ring {
    queue: Queue,
    geometry: Geometry,
    enabled: bool,
    /// Whether something is to be looked at, without a kick.
    again: bool,
    requests: VecDeque<Taken>,
    /// How many requests of an earlier life come again, and those that did: the
    /// place of each in the order in which they were taken.
    replays: u16,
    replayed: Vec<u64>,
    /// What was answered and is not published.
    answered: Vec<u64>,
}

/// A request that was taken and not answered.
struct Taken {
    chain: Chain,
    request: Request,
    header: u64,
    /// Blocks of it that are done.
    done: u64,
    finished: bool,
}

impl Back {
    pub(crate) fn new(shared: &mut Shared) -> Self {
        let stores = if shared.plan.mortal && shared.sim.rng.percent(50) {
            shared.sim.rng.below(SHORT_LIFE)
        } else {
            u64::MAX
        };
        Self {
            life: Life::new(stores),
            session: None,
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.life.is_over()
    }

    /// Takes the connection that waits.
    pub(crate) fn accept(&mut self, shared: &Shared) {
        let queues = usize::from(shared.plan.queues);
        self.session = Some(Session {
            core: Backend::new(offer(&shared.plan)).expect("an offer"),
            life: Arc::clone(&self.life),
            wire: shared.wire.number,
            lost: false,
            fds: Vec::new(),
            memory: None,
            inflight: None,
            rings: (0..queues).map(|_| None).collect(),
            stopping: None,
        });
    }
}

fn offer(plan: &Plan) -> Offer {
    Offer {
        features: plan.features.bits(),
        protocol_features: Backend::PROTOCOL_FEATURES,
        queues: plan.queues,
        queue_num: plan.queues.into(),
        queue_size_max: plan.size,
        config_size: 96,
        memory_slots: 8,
    }
}

impl Session {
    /// Whether it takes bytes now.
    pub(crate) fn wanted(&self) -> usize {
        self.core.wanted()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.core.is_over()
    }

    pub(crate) fn receive(&mut self, shared: &mut Shared) {
        let (bytes, fds) = shared.receive(true, self.core.wanted());
        self.fds.extend(&fds);
        let received = self.core.receive(&bytes, fds.len());
        received.expect("our own front end keeps to the protocol");
        self.proceed(shared);
    }

    /// The connection is lost.
    pub(crate) fn lose(&mut self, shared: &mut Shared) {
        self.lost = true;
        self.core.disconnect();
        self.proceed(shared);
    }

    fn proceed(&mut self, shared: &mut Shared) {
        while self.stopping.is_none() {
            let Some(effect) = self.core.poll_effect() else {
                if !self.core.is_mid_message() {
                    self.fds.clear();
                }
                return;
            };
            if let Some(answer) = self.carry_out(effect, shared) {
                self.core.answer(Ok(answer)).expect("the answer fits");
            }
        }
    }

    fn carry_out(&mut self, effect: Effect, shared: &mut Shared) -> Option<Answer> {
        match effect {
            Effect::Send { bytes, fds } => {
                let arrived = 0;
                let message = Message {
                    bytes,
                    fds,
                    arrived,
                };
                // A connection that the front end gave up takes nothing.
                if self.wire == shared.wire.number {
                    shared.wire.to_front.push_back(message);
                }
                return None;
            }
            Effect::SetMemory(_) | Effect::AddRegion(_) => self.memory = Some(shared.map()),
            Effect::RemoveRegion(_) => self.memory = None,
            Effect::CreateInflight {
                queues,
                queue_size,
                features,
            } => {
                let features = features.map(Features::from_bits_retain);
                let layout = features.map_or(QueueLayout::Packed, QueueLayout::of);
                let len = layout.inflight_len(queue_size) * usize::from(queues);
                let fd = shared.create_file(len);
                let region = shared.file(fd);
                self.inflight = Some(Area {
                    region,
                    queues,
                    queue_size,
                });
                let (size, offset) = (len as u64, 0);
                return Some(Answer::Inflight { size, offset, fd });
            }
            Effect::AdoptInflight { inflight, fd } => {
                self.inflight = Some(Area {
                    region: shared.file(self.fds[fd.0]),
                    queues: inflight.queues,
                    queue_size: inflight.queue_size,
                });
            }
            Effect::ResetDevice => self.inflight = None,
            Effect::StartRing { ring, setup, .. } => {
                shared
                    .sim
                    .note("ring starts", ring.into(), setup.base.into());
                self.rings[usize::from(ring)] = Some(self.start(ring, setup, shared));
            }
            Effect::StopRing { ring } => {
                self.stopping = Some(ring);
                self.stop_if_quiet(shared);
                return None;
            }
            Effect::SetKick { ring, .. } => self.running(ring, |ring| ring.again = true),
            // A notification may have gone to the one of before.
            Effect::SetCall { ring, .. } => shared.call(ring),
            Effect::EnableRing { ring, enabled } => self.running(ring, |ring| {
                ring.enabled = enabled;
                ring.again = true;
            }),
            Effect::ReadConfig { offset, size } => {
                let (mut bytes, at) = (vec![0; size as usize], offset as usize);
                assert!(shared.plan.block.read_config(at, &mut bytes));
                return Some(Answer::Config(bytes));
            }
            _ => {}
        }
        Some(Answer::Done)
    }

    fn running(&mut self, ring: u16, act: impl FnOnce(&mut Ring)) {
        if let Some(ring) = &mut self.rings[usize::from(ring)] {
            act(ring);
        }
    }

    fn start(&self, index: u16, setup: RingSetup, shared: &mut Shared) -> Ring {
        let (size, features) = (setup.size, Features::from_bits_retain(setup.features));
        let queue = Queue::with_base(self.parts(&setup), size, features, setup.base);
        let queue = queue.expect("a ring of our own driver");
        self.ring(index, setup, queue, shared)
    }

    /// A ring with its in-flight region, if there is one.
    fn ring(&self, index: u16, setup: RingSetup, queue: Queue, shared: &mut Shared) -> Ring {
        let features = Features::from_bits_retain(setup.features);
        let queue = match &self.inflight {
            Some(area) if shared.plan.fault != Fault::NoReplay => {
                assert!(index < area.queues);
                let len = QueueLayout::of(features).inflight_len(area.queue_size);
                let at = len as u64 * u64::from(index);
                let window = area.region.window(at, len).expect("room for each ring");
                let tracked = queue.track(self.mortal(window), area.queue_size);
                tracked.expect("a region that we left ourselves")
            }
            _ => queue,
        };
        let replays = match queue.snapshot() {
            Err(NotQuiet::InFlight { count }) => count,
            _ => 0,
        };
        shared
            .sim
            .note("it resubmits", index.into(), replays.into());
        shared.sim.counts.add("resubmits", replays.into());
        Ring {
            geometry: shared.plan.block.geometry(features),
            enabled: setup.enabled,
            queue,
            again: true,
            requests: VecDeque::new(),
            replays,
            replayed: Vec::new(),
            answered: Vec::new(),
        }
    }

    fn parts(&self, setup: &RingSetup) -> [Mortal<Window>; 3] {
        let memory = self.memory.as_ref().expect("memory comes before rings");
        let features = Features::from_bits_retain(setup.features);
        let [descriptors, driver, device] = QueueLayout::of(features).part_lens(setup.size);
        [
            (setup.descriptor, descriptors),
            (setup.driver, driver),
            (setup.device, device),
        ]
        .map(|(at, len)| {
            let window = memory.front_end.window(at, len);
            self.mortal(window.expect("inside the memory"))
        })
    }

    fn mortal(&self, window: Window) -> Mortal<Window> {
        Mortal::new(window, Arc::clone(&self.life))
    }

    /// Whether a pass over this ring has something to do.
    pub(crate) fn has_pass(&self, index: u16, shared: &Shared) -> bool {
        let Some(ring) = &self.rings[usize::from(index)] else {
            return false;
        };
        ring.again || shared.is_kicked(index) || ring.may_answer(&shared.plan)
    }

    /// One pass of a worker.
    pub(crate) fn pass(&mut self, index: u16, shared: &mut Shared) {
        let (Some(memory), Some(ring)) = (&self.memory, &mut self.rings[usize::from(index)]) else {
            return;
        };
        shared.take_kick(index);
        ring.again = false;
        let takes = ring.enabled && self.stopping != Some(index);
        ring.pass(index, takes, memory, &self.life, shared);
        if !self.life.is_over() {
            self.stop_if_quiet(shared);
        }
    }

    /// The ring that is to stop has nothing left to do.
    fn stop_if_quiet(&mut self, shared: &mut Shared) {
        let Some(index) = self.stopping else { return };
        let slot = &mut self.rings[usize::from(index)];
        let ring = slot.as_ref().expect("a ring that runs");
        if !ring.requests.is_empty() {
            return;
        }
        let base = ring.queue.base();
        *slot = None;
        self.stopping = None;
        shared.sim.note("ring stopped", index.into(), base.into());
        let answered = self.core.answer(Ok(Answer::RingStopped { base }));
        answered.expect("the answer fits");
        self.proceed(shared);
    }

    /// Whether the disk has something to do for this ring.
    pub(crate) fn has_work(&self, index: u16) -> bool {
        let ring = self.rings[usize::from(index)].as_ref();
        ring.is_some_and(|ring| ring.requests.iter().any(|taken| !taken.finished))
    }

    /// The disk does a piece of some request.
    pub(crate) fn work(&mut self, index: u16, shared: &mut Shared) {
        let (Some(memory), Some(ring)) = (&self.memory, &mut self.rings[usize::from(index)]) else {
            return;
        };
        let mut open: Vec<_> = ring
            .requests
            .iter_mut()
            .filter(|taken| !taken.finished)
            .collect();
        let at = shared.sim.rng.index(open.len());
        open[at].work(memory, shared);
    }

    /// What has begun to be written: the blocks that are left.
    pub(crate) fn half_written(&self) -> Vec<(u64, [u8; BLOCK])> {
        let Some(memory) = &self.memory else {
            return Vec::new();
        };
        let rings = self.rings.iter().flatten();
        let requests = rings.flat_map(|ring| &ring.requests);
        requests
            .flat_map(|taken| taken.blocks_left(memory))
            .collect()
    }

    /// Another process takes over, with the socket and all memory: what was taken
    /// is done first, then session and queues are saved and restored. Says whether that was possible.
    pub(crate) fn hand_over(&mut self, shared: &mut Shared) -> bool {
        let Ok(saved) = self.core.snapshot() else {
            return false;
        };
        shared.sim.note("back end hands over", 0, 0);
        for index in 0..shared.plan.queues {
            while self.has_work(index) {
                self.work(index, shared);
            }
            let (Some(memory), Some(ring)) = (&self.memory, &mut self.rings[usize::from(index)])
            else {
                continue;
            };
            ring.pass(index, false, memory, &self.life, shared);
            if self.life.is_over() {
                return true;
            }
        }
        let core = Backend::restore(offer(&shared.plan), &saved).expect("its own bytes");
        assert_eq!(core.snapshot(), Ok(saved));
        self.core = core;
        for index in 0..shared.plan.queues {
            let Some(ring) = self.rings[usize::from(index)].take() else {
                continue;
            };
            let setup = self.core.running_setup(index).expect("it runs");
            assert_eq!(setup.enabled, ring.enabled);
            let ring = match ring.queue.snapshot() {
                Ok(saved) => {
                    let layout = ring.queue.layout();
                    let queue = Queue::restore(self.parts(&setup), setup.size, layout, &saved);
                    self.ring(index, setup, queue.expect("its own bytes"), shared)
                }
                // It has not taken everything of an earlier life: it stays, and looks again, as
                // nobody else heard a kick meanwhile.
                Err(_) => Ring {
                    again: true,
                    ..ring
                },
            };
            self.rings[usize::from(index)] = Some(ring);
        }
        true
    }
}

impl Ring {
    /// Whether a request is done, and the order lets it be answered.
    fn may_answer(&self, plan: &Plan) -> bool {
        let mut done = self.requests.iter().map(|taken| taken.finished);
        if plan.has(Features::VIRTIO_F_IN_ORDER) {
            done.next() == Some(true)
        } else {
            done.any(|finished| finished)
        }
    }

    fn pass(
        &mut self,
        index: u16,
        takes: bool,
        memory: &GuestMemory,
        life: &Life,
        shared: &mut Shared,
    ) {
        if takes {
            self.queue.disarm().expect("a driver of ours");
            self.queue.refresh().expect("a driver of ours");
        }
        self.answer(index, memory, life, shared);
        let mut more = takes;
        for _ in 0..1 + shared.sim.rng.below(6) {
            more = more && self.take(index, memory, shared);
            if life.is_over() {
                return;
            }
        }
        self.queue.publish().expect("a driver of ours");
        if life.is_over() {
            // Whether the driver sees it nobody knows.
            return;
        }
        for header in self.answered.drain(..) {
            shared.forget_taken(index, header);
        }
        if self.queue.notify_wanted().expect("a driver of ours") {
            shared.call(index);
        }
        self.again = takes && (more || self.queue.arm().expect("a driver of ours"));
    }

    /// Answers what is done.
    fn answer(&mut self, index: u16, memory: &GuestMemory, life: &Life, shared: &mut Shared) {
        while self.may_answer(&shared.plan) && !life.is_over() {
            let at = self.requests.iter().position(|taken| taken.finished);
            let taken = at
                .and_then(|at| self.requests.remove(at))
                .expect("one is done");
            let written = taken.request.complete(memory.table(), Status::Ok);
            self.queue
                .push(&taken.chain, written)
                .expect("a driver of ours");
            self.answered.push(taken.header);
            shared
                .sim
                .note("back end answers", index.into(), taken.header);
        }
    }

    /// Takes one request; whether there was one.
    fn take(&mut self, index: u16, memory: &GuestMemory, shared: &mut Shared) -> bool {
        let mut chain = Chain::new(shared.plan.block.chain_segments()).expect("memory");
        let popped = self.queue.pop(&memory.guest, &mut chain);
        if !popped.expect("a driver of ours") {
            return false;
        }
        // Even if it died of it: its last store may have been the one that counts.
        let first = chain.readable().first().expect("a header");
        let header = memory.guest.address(*first).expect("guest memory").0;
        shared.sim.note("back end takes", index.into(), header);
        if self.replays == 0 {
            shared.take(index, header);
        } else {
            self.replays -= 1;
            self.replayed.push(shared.taken_as(index, header));
            self.check_order(shared.plan.fault);
        }
        let request = Request::parse(&mut chain, memory.table(), &self.geometry);
        let request = request.expect("a request of our driver");
        self.requests.push_back(Taken {
            chain,
            request,
            header,
            done: 0,
            finished: false,
        });
        true
    }

    /// What was taken comes again in the order in which it was taken.
    fn check_order(&self, fault: Fault) {
        let mut order = self.replayed.clone();
        if fault == Fault::ReplayOutOfOrder {
            order.reverse();
        }
        assert!(order.is_sorted(), "taken again in another order: {order:?}");
    }
}

impl Taken {
    /// One block, or the whole of what has none.
    fn work(&mut self, memory: &GuestMemory, shared: &mut Shared) {
        let at = self.done * BLOCK as u64;
        let (offset, len) = match self.request.operation {
            Operation::Read { offset } => (offset, self.chain.writable_len()),
            Operation::Write { offset, .. } => (offset, self.chain.readable_len()),
            Operation::Flush => {
                shared.history.flush();
                self.finished = true;
                return;
            }
            Operation::Discard | Operation::WriteZeroes { .. } => {
                panic!("the drivers here ask for neither")
            }
            Operation::Answer(status) => panic!("answered with {status:?}"),
        };
        let block = (offset + at) / BLOCK as u64;
        if let Operation::Read { .. } = self.request.operation {
            let bytes = shared.history.read_block(block);
            let table = memory.table();
            table
                .scatter(self.chain.writable(), at, &bytes)
                .expect("room");
        } else {
            let lost = shared.plan.fault == Fault::LosesBlock && shared.sim.rng.percent(3);
            if !lost {
                shared.sim.note("block written", block, self.header);
                shared
                    .history
                    .write_block(block, &self.block(memory, self.done));
            }
        }
        self.done += 1;
        self.finished = self.done * BLOCK as u64 == len;
    }

    fn block(&self, memory: &GuestMemory, number: u64) -> [u8; BLOCK] {
        let mut bytes = [0; BLOCK];
        let (table, at) = (memory.table(), number * BLOCK as u64);
        table
            .gather(self.chain.readable(), at, &mut bytes)
            .expect("data");
        bytes
    }

    fn blocks_left(&self, memory: &GuestMemory) -> Vec<(u64, [u8; BLOCK])> {
        let Operation::Write { offset, .. } = self.request.operation else {
            return Vec::new();
        };
        let all = self.chain.readable_len() / BLOCK as u64;
        (self.done..all)
            .map(|number| (offset / BLOCK as u64 + number, self.block(memory, number)))
            .collect()
    }
}
