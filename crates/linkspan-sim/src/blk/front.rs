//! The side that drives the disk: front-end session, the link that reconnects,
//! and the queues with their users.

use std::collections::VecDeque;

use linkspan_devices::block::Status;
use linkspan_devices::block::driver::{BlockDriver, Command as DiskCommand};
use linkspan_mem::{Gpa, Window};
use linkspan_vhost::frontend::{
    Command, Effect, Event, FdId, FdSlot, Inflight, QueueUnit, RingStart,
};
use linkspan_vhost::{Frontend, ProtocolFeatures, Wish};
use linkspan_virtio::{DriverQueue, QueueLayout};

use super::plan::{BLOCKS_MAX, Plan};
use super::shared::{MEMORY_FD, Message, Shared};
use crate::history::{BLOCK, BLOCKS};
use crate::history::{Kind, bytes_of};

/// What the link is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Negotiating,
    /// Memory is shared and rings are started.
    Starting,
    Running,
    /// All rings are being stopped, to begin anew.
    Resetting,
    /// All rings are stopped, or about to be, for good.
    Stopping,
}

pub(crate) struct Front {
    core: Frontend,
    phase: Phase,
    commands: VecDeque<Command>,
    /// Descriptors of the message that is being received.
    fds: Vec<FdId>,
    inflight: Option<(Inflight, FdId)>,
    /// Whether the rings are empty and the queues do not know of it yet.
    fresh: bool,
    /// A ring that takes no requests for a while.
    disabled: Option<u16>,
    queues: Vec<Queue>,
}

struct Queue {
    driver: BlockDriver<Window, Gpa>,
    /// Whether its user must not touch it.
    parked: bool,
    again: bool,
    /// Buffers that are free, and who has the others, by token.
    buffers: Vec<u16>,
    users: Vec<(u64, u16)>,
}

fn wish(plan: &Plan) -> Wish {
    Wish {
        features: plan.features.bits(),
        required_features: 0,
        protocol_features: plan.protocol,
        required_protocol_features: ProtocolFeatures::empty(),
        queues: plan.queues,
        queue_unit: QueueUnit::Rings,
        config_size: 96,
        memory_slots: 1,
    }
}

fn kick_fd(queue: u16) -> FdId {
    FdId(10 + u64::from(queue))
}

fn call_fd(queue: u16) -> FdId {
    FdId(20 + u64::from(queue))
}

impl Front {
    pub(crate) fn new(shared: &mut Shared) -> Self {
        let plan = &shared.plan;
        let queues = (0..plan.queues).map(|queue| {
            let (address, span) = shared.slots(queue);
            let ring = new_queue(shared, queue);
            let driver = BlockDriver::new(ring, plan.features, plan.depth, address, span);
            Queue {
                driver: driver.expect("room for its slots"),
                parked: true,
                again: false,
                buffers: (0..plan.depth).collect(),
                users: Vec::new(),
            }
        });
        let mut front = Self {
            queues: queues.collect(),
            core: Frontend::new(wish(plan)).expect("a wish"),
            phase: Phase::Negotiating,
            commands: VecDeque::new(),
            fds: Vec::new(),
            inflight: None,
            fresh: true,
            disabled: None,
        };
        front.proceed(shared);
        front
    }

    pub(crate) fn wanted(&self) -> usize {
        self.core.wanted()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.phase == Phase::Running && self.core.is_idle() && self.commands.is_empty()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopping && self.core.is_idle() && self.commands.is_empty()
    }

    pub(crate) fn receive(&mut self, shared: &mut Shared) {
        let (bytes, fds) = shared.receive(false, self.core.wanted());
        self.fds.extend(&fds);
        let received = self.core.receive(&bytes, fds.len());
        received.expect("our own back end keeps to the protocol");
        self.proceed(shared);
    }

    fn proceed(&mut self, shared: &mut Shared) {
        loop {
            while let Some(effect) = self.core.poll_effect() {
                match effect {
                    Effect::Send { bytes, fds } => {
                        let arrived = 0;
                        let message = Message {
                            bytes,
                            fds,
                            arrived,
                        };
                        shared.wire.to_back.push_back(message);
                    }
                    Effect::Report(event) => self.hear(event, shared),
                }
            }
            if !self.core.is_mid_message() {
                self.fds.clear();
            }
            if !self.core.is_idle() {
                return;
            }
            match self.commands.pop_front() {
                Some(command) => self.core.command(command).expect("a command of ours"),
                None if self.advance(shared) => {}
                None => return,
            }
        }
    }

    fn hear(&mut self, event: Event, shared: &mut Shared) {
        match event {
            Event::Refused { request, code } => panic!("{request:?} refused with {code}"),
            Event::Inflight(Some((inflight, FdSlot(slot)))) => {
                self.inflight = Some((inflight, self.fds[slot]));
            }
            // It goes on where it stopped.
            Event::RingStopped { ring, base } if self.phase == Phase::Running => {
                let start = Command::StartRings(vec![ring_start(ring, base, shared)]);
                self.commands.push_back(start);
            }
            _ => {}
        }
    }

    /// All commands are done: what comes next, if anything does.
    fn advance(&mut self, shared: &mut Shared) -> bool {
        match self.phase {
            Phase::Negotiating | Phase::Resetting => {
                if self.fresh {
                    (0..shared.plan.queues).for_each(|queue| shared.clear_ring(queue));
                }
                self.script(shared);
                self.phase = Phase::Starting;
                true
            }
            Phase::Starting => {
                self.phase = Phase::Running;
                self.resume(shared);
                false
            }
            Phase::Running | Phase::Stopping => false,
        }
    }

    /// The commands that bring all rings up.
    fn script(&mut self, shared: &Shared) {
        let plan = &shared.plan;
        let negotiated = self.core.negotiated().expect("negotiated");
        let features = negotiated.features;
        assert_eq!(features, plan.features.bits());
        let (queues, queue_size) = (plan.queues, plan.size);
        let region = match self.inflight {
            Some((inflight, fd)) => Some(Command::AdoptInflight { inflight, fd }),
            None if plan.protocol.contains(ProtocolFeatures::INFLIGHT_SHMFD) => {
                Some(Command::CreateInflight { queues, queue_size })
            }
            None => None,
        };
        let start = |queue| {
            let base = match shared.layout() {
                // For what is not in the in-flight region the ring says where
                // it goes on; a packed ring does not.
                QueueLayout::Split => shared.used_index(queue).into(),
                layout => layout.base(layout.start()),
            };
            ring_start(queue, base, shared)
        };
        self.commands.extend(
            [
                Some(Command::SetFeatures(features)),
                Some(Command::SetMemory(vec![(shared.table(), MEMORY_FD)])),
                region,
                Some(Command::StartRings((0..queues).map(start).collect())),
            ]
            .into_iter()
            .flatten(),
        );
    }

    /// The queues have a device again.
    fn resume(&mut self, shared: &mut Shared) {
        let fresh = std::mem::take(&mut self.fresh);
        shared.sim.note("queues go on", fresh.into(), 0);
        for index in 0..shared.plan.queues {
            let ring = fresh.then(|| new_queue(shared, index));
            let queue = &mut self.queues[usize::from(index)];
            if let Some(ring) = ring {
                let again = queue.driver.resubmit(shared.memory.table(), ring);
                again.expect("the same number of descriptors");
                queue.driver.queue().publish().expect("a new queue");
            }
            queue.parked = false;
            queue.again = true;
            // The new device has not seen any kick.
            shared.kick(index);
        }
    }

    fn park(&mut self) {
        for queue in &mut self.queues {
            queue.parked = true;
        }
    }

    /// The connection is lost; another one is asked for.
    pub(crate) fn lose(&mut self, shared: &mut Shared) {
        self.core.disconnect();
        self.park();
        self.commands.clear();
        self.disabled = None;
        if self.fresh {
            // Rings that are empty without their queues knowing of it have to
            // begin anew, whatever was made for them.
            self.inflight = None;
        }
        self.fresh = self.inflight.is_none();
        let wish = wish(&shared.plan);
        let core = match self.core.saved() {
            Some(saved) => Frontend::resume(wish, saved),
            None => Frontend::new(wish),
        };
        self.core = core.expect("the same wish");
        self.phase = Phase::Negotiating;
        self.fds.clear();
        shared.wire = super::shared::Wire {
            number: shared.wire.number + 1,
            ..Default::default()
        };
        shared.sim.count("reconnects");
        shared.sim.counts.add("rings begun anew", self.fresh.into());
        shared.sim.note(
            "front end reconnects",
            shared.wire.number,
            self.fresh.into(),
        );
        self.proceed(shared);
    }

    /// Something that a driver or an operator does to a link that runs.
    pub(crate) fn disturb(&mut self, shared: &mut Shared) {
        let queue = u16::try_from(shared.sim.rng.below(shared.plan.queues.into())).expect("few");
        let kind = shared.sim.rng.below(7);
        shared.sim.note("front end disturbs", kind, queue.into());
        match kind {
            0 => {
                shared.sim.count("restarts of a ring");
                self.commands.push_back(Command::StopRings(vec![queue]));
            }
            1 if self.disabled.is_none() => {
                self.disabled = Some(queue);
                let enabled = false;
                let ring = queue;
                self.commands
                    .push_back(Command::EnableRing { ring, enabled });
            }
            2 => {
                let (ring, call) = (queue, Some(call_fd(queue)));
                self.commands.push_back(Command::SetCall { ring, call });
            }
            3 => {
                let (ring, kick) = (queue, Some(kick_fd(queue)));
                self.commands.push_back(Command::SetKick { ring, kick });
            }
            4 => self.save(shared),
            5 => self.save_queue(queue, shared),
            _ => {
                shared.sim.count("resets");
                self.reset(shared);
            }
        }
        self.proceed(shared);
    }

    /// The device is reset: what is not answered by then is asked again.
    fn reset(&mut self, shared: &Shared) {
        self.park();
        self.phase = Phase::Resetting;
        self.fresh = true;
        self.inflight = None;
        self.disabled = None;
        self.commands
            .push_back(Command::StopRings((0..shared.plan.queues).collect()));
        if shared
            .plan
            .protocol
            .contains(ProtocolFeatures::RESET_DEVICE)
        {
            self.commands.push_back(Command::ResetDevice);
        }
    }

    /// Another process takes over, with the socket and all memory.
    fn save(&mut self, shared: &Shared) {
        let saved = self.core.snapshot().expect("idle");
        let core = Frontend::restore(wish(&shared.plan), &saved).expect("its own bytes");
        assert_eq!(core.snapshot(), Ok(saved));
        assert_eq!(core.saved(), self.core.saved());
        self.core = core;
    }

    fn save_queue(&mut self, index: u16, shared: &mut Shared) {
        let queue = &mut self.queues[usize::from(index)];
        let Ok(saved) = queue.driver.queue().snapshot() else {
            return;
        };
        let (parts, size) = (shared.parts(index), shared.plan.size);
        let ring = DriverQueue::restore(parts, size, shared.layout(), &saved);
        let table = shared.memory.table();
        let done = queue.driver.resubmit(table, ring.expect("its own bytes"));
        done.expect("nothing is outstanding");
        shared.sim.count("driver queues saved");
        queue.again = true;
    }

    /// Whether a ring waits to be enabled again.
    pub(crate) fn has_disabled(&self) -> bool {
        self.is_running() && self.disabled.is_some()
    }

    pub(crate) fn enable(&mut self, shared: &mut Shared) {
        if let Some(ring) = self.disabled.take() {
            let enabled = true;
            self.commands
                .push_back(Command::EnableRing { ring, enabled });
            self.proceed(shared);
        }
    }

    /// All rings are stopped, for good.
    pub(crate) fn stop(&mut self, shared: &mut Shared) {
        let rings = (0..shared.plan.queues).collect();
        self.phase = Phase::Stopping;
        self.commands.push_back(Command::StopRings(rings));
        self.park();
        self.proceed(shared);
    }

    /// Whether a queue's user has answers to look at.
    pub(crate) fn has_answers(&self, index: u16, shared: &Shared) -> bool {
        let queue = &self.queues[usize::from(index)];
        !queue.parked && (queue.again || shared.is_called(index))
    }

    /// A queue's user takes some answers, and sleeps if there are no more.
    pub(crate) fn take_answers(&mut self, index: u16, shared: &mut Shared) {
        shared.take_call(index);
        let queue = &mut self.queues[usize::from(index)];
        let table = shared.memory.table().clone();
        queue.driver.queue().disarm().expect("a device of ours");
        queue.driver.queue().refresh().expect("a device of ours");
        let most = 1 + shared.sim.rng.below(8);
        for _ in 0..most {
            let answer = queue.driver.answer(&table).expect("a device of ours");
            let Some(answer) = answer else { break };
            assert_eq!(answer.status, Status::Ok, "request {}", answer.token);
            let at = queue
                .users
                .iter()
                .position(|(token, _)| *token == answer.token);
            let (token, buffer) = queue.users.swap_remove(at.expect("it was submitted"));
            let asked = shared.history.asked(token).clone();
            let (_, span) = shared.buffer(index, buffer, asked.count);
            let mut data = vec![0; span.len() as usize];
            table.slice(span).read(&mut data);
            shared.sim.note("answered", index.into(), token);
            shared.history.answer(token, &data);
            queue.buffers.push(buffer);
        }
        let more = queue.driver.queue().arm();
        queue.again = more.expect("a device of ours");
    }

    pub(crate) fn may_submit(&self, index: u16, shared: &Shared) -> bool {
        let queue = &self.queues[usize::from(index)];
        let left = shared.history.submitted() < shared.plan.requests;
        left && !queue.parked && !queue.buffers.is_empty()
    }

    /// Some user of a queue asks for something, and perhaps for more.
    pub(crate) fn submit(&mut self, index: u16, shared: &mut Shared) {
        while self.may_submit(index, shared) && self.submit_one(index, shared) {
            if shared.sim.rng.percent(50) {
                break;
            }
        }
        let queue = self.queues[usize::from(index)].driver.queue();
        queue.publish().expect("a device of ours");
        if queue.kick_wanted().expect("a device of ours") {
            shared.kick(index);
        }
    }

    /// Whether there was room.
    fn submit_one(&mut self, index: u16, shared: &mut Shared) -> bool {
        let queue = &mut self.queues[usize::from(index)];
        let buffer = *queue.buffers.last().expect("one is free");
        let kind = match shared.sim.rng.below(10) {
            0..5 => Kind::Write,
            5..9 => Kind::Read,
            _ => Kind::Flush,
        };
        let count = 1 + shared.sim.rng.below(BLOCKS_MAX);
        let first = shared.sim.rng.below(BLOCKS - count + 1);
        let token = shared.history.submit(kind, first, count);
        let (data, span) = shared.buffer(index, buffer, count);
        let fill = if kind == Kind::Write { token } else { u64::MAX };
        let bytes = bytes_of(fill).repeat(span.len() as usize / BLOCK);
        let table = shared.memory.table();
        table.slice(span).write(&bytes);
        let sector = first;
        let command = match kind {
            Kind::Read => DiskCommand::Read { sector, data },
            Kind::Write => DiskCommand::Write { sector, data },
            Kind::Flush => DiskCommand::Flush,
        };
        if !queue
            .driver
            .submit(table, command, token)
            .expect("a device of ours")
        {
            shared.history.take_back();
            return false;
        }
        queue.buffers.pop();
        queue.users.push((token, buffer));
        shared.sim.note(
            ["reads", "writes", "flushes"][kind as usize],
            index.into(),
            token,
        );
        true
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.queues
            .iter()
            .map(|queue| queue.driver.outstanding())
            .sum()
    }
}

fn new_queue(shared: &Shared, queue: u16) -> DriverQueue<Window> {
    let (size, features) = (shared.plan.size, shared.plan.features);
    let state = shared.layout().start();
    let queue = DriverQueue::new(shared.parts(queue), size, features, state);
    queue.expect("an empty ring")
}

fn ring_start(ring: u16, base: u32, shared: &Shared) -> RingStart {
    let [descriptor, driver, device] = Shared::part_addresses(ring);
    RingStart {
        ring,
        size: shared.plan.size,
        base,
        descriptor,
        driver,
        device,
        log: None,
        kick: Some(kick_fd(ring)),
        call: Some(call_fd(ring)),
        err: None,
        enabled: true,
    }
}
