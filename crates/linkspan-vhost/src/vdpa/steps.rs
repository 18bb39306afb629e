//! The order of the calls that bring a device up and down, and what undoes each.
//!
//! [`Consumer`] takes one [`Command`] at a time and gives out [`Step`]s; each is
//! carried out and answered before the next. When one fails, whatever the command
//! has done before is undone in reverse order, and then the command has failed.
//! What a running device has, its stop undoes in reverse order too.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem;

use super::command::{Command, Failure, Mapping, Misuse, Outcome, Plan, Reply, Step, StepError};
use super::{backend, status};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Open,
    /// It runs.
    Live,
    /// It runs and is suspended.
    Paused,
    /// It was given back; an owner lasts as long as the descriptor, so this is over.
    Closed,
}

/// How failures of the steps of a command are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The first one fails the command.
    Forward,
    /// What was done is undone: failures are noted.
    Back,
}

/// The consumer of one device.
#[derive(Debug)]
pub struct Consumer {
    backend_features: u64,
    state: State,
    /// What is mapped.
    mapped: Vec<Mapping>,
    /// What is to be mapped with the next start, without `IOTLB_PERSIST`.
    memory: Vec<Mapping>,
    /// What undoes a running device, in the order in which it was done.
    standing: Vec<Step>,
    rings: Vec<u16>,
    mode: Mode,
    todo: VecDeque<Step>,
    asked: Option<Step>,
    /// What undoes the command under way.
    undo: Vec<Step>,
    /// The state after the command.
    then: Option<State>,
    was_reset: bool,
    suspended: bool,
    failed: Option<StepError>,
    outcome: Outcome,
}

impl Consumer {
    /// A device whose vhost side can do this.
    #[must_use]
    pub fn new(backend_features: u64) -> Self {
        Self {
            backend_features: backend_features & backend::WANTED,
            state: State::New,
            mapped: Vec::new(),
            memory: Vec::new(),
            standing: Vec::new(),
            rings: Vec::new(),
            mode: Mode::Forward,
            todo: VecDeque::new(),
            asked: None,
            undo: Vec::new(),
            then: None,
            was_reset: false,
            suspended: false,
            failed: None,
            outcome: Outcome::default(),
        }
    }

    /// Whether the device runs, suspended or not.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Live | State::Paused)
    }

    /// What is mapped.
    #[must_use]
    pub fn mapped(&self) -> &[Mapping] {
        &self.mapped
    }

    /// Begins a command.
    ///
    /// # Errors
    /// When it makes no sense now; nothing has changed then.
    pub fn begin(&mut self, command: Command) -> Result<(), Misuse> {
        if self.then.is_some() {
            return Err(Misuse::Busy);
        }
        let (steps, then) = match (command, self.state) {
            (Command::Open, State::New) => (self.open(), State::Open),
            (Command::SetMemory(memory), state @ (State::Open | State::Live | State::Paused)) => {
                (self.set_memory(memory), state)
            }
            (Command::TryFeatures(features), State::Open) => {
                let mut steps = agree(features);
                steps.push(Step::SetStatus(0));
                (steps, State::Open)
            }
            (Command::Start(plan), State::Open) => (self.start(plan), State::Live),
            (Command::Enable(rings), State::Live) => {
                let enable = |ring| Step::Enable { ring };
                (rings.into_iter().map(enable).collect(), State::Live)
            }
            (Command::Pause, State::Live) if self.has(backend::SUSPEND) => {
                (self.pause(), State::Paused)
            }
            (Command::Resume, State::Paused) if self.has(backend::RESUME) => {
                (Vec::from([Step::Resume]), State::Live)
            }
            (Command::Stop, State::Live | State::Paused) => (self.stop(), State::Open),
            (Command::Close, state) => (self.close(state), State::Closed),
            _ => return Err(Misuse::State),
        };
        self.todo = steps.into();
        self.then = Some(then);
        Ok(())
    }

    /// The next call to be made; `None` when the command has ended.
    pub fn next_step(&mut self) -> Option<Step> {
        if self.asked.is_some() {
            return self.asked.clone();
        }
        while let Some(step) = self.todo.pop_front() {
            // Once is enough on the way down.
            if self.mode == Mode::Back && step == Step::SetStatus(0) && self.was_reset {
                continue;
            }
            // Without it they are not true.
            if matches!(step, Step::ReadBase { .. }) && !self.suspended {
                self.note_base(&step, None);
                continue;
            }
            self.asked = Some(step);
            return self.asked.clone();
        }
        None
    }

    /// The answer to the step taken last; `Err` with the kernel's number.
    ///
    /// # Errors
    /// When no step waits for it, or it does not fit.
    pub fn answer(&mut self, answer: Result<Reply, i32>) -> Result<(), Misuse> {
        let step = self.asked.take().ok_or(Misuse::Answer)?;
        let failure = match (&step, answer) {
            (_, Err(errno)) => Some(Failure::Errno(errno)),
            (Step::CheckStatus(wanted), Ok(Reply::Status(now))) => judge(*wanted, now),
            (Step::ReadBase { .. }, Ok(Reply::Base(base))) => {
                self.note_base(&step, Some(base));
                None
            }
            (Step::CheckStatus(_) | Step::ReadBase { .. }, Ok(_)) => return self.unfit(step),
            (_, Ok(Reply::Done)) => None,
            (_, Ok(_)) => return self.unfit(step),
        };
        match failure {
            None => self.done(step),
            Some(failure) => self.failed(step, failure),
        }
        Ok(())
    }

    /// What the command came to, once it has ended.
    ///
    /// # Errors
    /// The step that failed, with everything before it undone.
    pub fn outcome(&mut self) -> Option<Result<Outcome, StepError>> {
        if self.asked.is_some() || !self.todo.is_empty() {
            return None;
        }
        let then = self.then.take()?;
        let mut outcome = mem::take(&mut self.outcome);
        self.mode = Mode::Forward;
        let undo = mem::take(&mut self.undo);
        let failed = self.failed.take();
        if failed.is_none() {
            match then {
                State::Live if self.state == State::Open => self.standing = undo,
                State::Open | State::Closed if self.is_live() => {
                    self.standing.clear();
                    self.rings.clear();
                }
                _ => {}
            }
            self.state = then;
        } else {
            outcome.bases.clear();
            match self.state {
                // A failed start leaves no ring.
                State::Open => self.rings.clear(),
                State::New => self.state = State::Closed,
                _ => {}
            }
        }
        self.was_reset = false;
        self.suspended = self.state == State::Paused;
        Some(match failed {
            None => Ok(outcome),
            Some(error) => Err(error),
        })
    }

    fn has(&self, feature: u64) -> bool {
        self.backend_features & feature != 0
    }

    /// QEMU sets backend features again and again (6aee7e4233); here it is once.
    fn open(&self) -> Vec<Step> {
        Vec::from([
            Step::SetOwner,
            Step::SetBackendFeatures(self.backend_features),
            Step::SetStatus(0),
        ])
    }

    /// Mappings that go first, so that what comes overlaps nothing (`EEXIST`).
    fn set_memory(&mut self, memory: Vec<Mapping>) -> Vec<Step> {
        if !self.has(backend::IOTLB_PERSIST) && !self.is_live() {
            self.memory = memory;
            return Vec::new();
        }
        let gone = self.mapped.iter().filter(|old| !memory.contains(old));
        let new = memory.iter().filter(|new| !self.mapped.contains(new));
        let (gone, new): (Vec<_>, Vec<_>) = (gone.copied().collect(), new.copied().collect());
        self.memory = memory;
        self.mapping_steps(&gone, &new)
    }

    fn mapping_steps(&self, gone: &[Mapping], new: &[Mapping]) -> Vec<Step> {
        let mut spaces: Vec<u32> = gone.iter().chain(new).map(|mapping| mapping.asid).collect();
        spaces.sort_unstable();
        spaces.dedup();
        let batches = self.has(backend::IOTLB_BATCH);
        let mut steps = Vec::new();
        for asid in spaces {
            let of = |mapping: &&Mapping| mapping.asid == asid;
            if batches {
                steps.push(Step::Batch { asid, begin: true });
            }
            steps.extend(gone.iter().filter(of).copied().map(Step::Unmap));
            steps.extend(new.iter().filter(of).copied().map(Step::Map));
            if batches {
                steps.push(Step::Batch { asid, begin: false });
            }
        }
        steps
    }

    /// Rings before `DRIVER_OK` (QEMU 2c66de61f8), and whatever needs features
    /// after they were agreed upon.
    fn start(&mut self, plan: Plan) -> Vec<Step> {
        self.rings = plan.rings.iter().map(|ring| ring.ring).collect();
        let mut steps = agree(plan.features);
        let spaces = plan.groups.iter();
        steps.extend(spaces.map(|(group, asid)| Step::SetGroupAsid {
            group: *group,
            asid: *asid,
        }));
        if !self.has(backend::IOTLB_PERSIST) {
            steps.extend(self.mapping_steps(&[], &self.memory));
        }
        for plan in &plan.rings {
            let ring = plan.ring;
            let (size, base, address) = (plan.size, plan.base, plan.address);
            steps.push(Step::SetSize { ring, size });
            steps.push(Step::SetBase { ring, base });
            steps.push(Step::SetAddress { ring, address });
            let bind = true;
            let wires = plan.wires.iter();
            steps.extend(wires.map(|wire| Step::Wire {
                ring,
                wire: *wire,
                bind,
            }));
        }
        if plan.config_call {
            steps.push(Step::ConfigCall { bind: true });
        }
        let enabled = plan.rings.iter().filter(|ring| ring.enabled);
        steps.extend(enabled.map(|ring| Step::Enable { ring: ring.ring }));
        steps.push(Step::SetStatus(RUNNING));
        steps.push(Step::CheckStatus(RUNNING));
        steps
    }

    fn pause(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.state == State::Live && self.has(backend::SUSPEND) {
            steps.push(Step::Suspend);
        }
        let rings = self.rings.iter();
        steps.extend(rings.map(|ring| Step::ReadBase { ring: *ring }));
        steps
    }

    /// Bases before the reset (QEMU c3716f260b), then all that stands in reverse order.
    fn stop(&mut self) -> Vec<Step> {
        self.mode = Mode::Back;
        let mut steps = self.pause();
        steps.push(Step::SetStatus(0));
        steps.extend(self.standing.iter().rev().cloned());
        if !self.has(backend::IOTLB_PERSIST) {
            // What was mapped while it ran is not among them.
            let stands = |mapping: &&Mapping| !self.standing.contains(&Step::Unmap(**mapping));
            let more = self.mapped.iter().filter(stands);
            steps.extend(more.copied().map(Step::Unmap));
        }
        steps
    }

    fn close(&mut self, state: State) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.is_live() {
            steps = self.stop();
        }
        self.mode = Mode::Back;
        if state != State::New {
            let left = self.mapped.iter().rev().copied().map(Step::Unmap);
            let left: Vec<_> = left.filter(|step| !steps.contains(step)).collect();
            steps.extend(left);
        }
        steps
    }

    fn done(&mut self, step: Step) {
        match &step {
            Step::Map(mapping) => self.mapped.push(*mapping),
            Step::Unmap(mapping) => self.mapped.retain(|known| known != mapping),
            Step::SetStatus(0) => self.was_reset = true,
            Step::Suspend => self.suspended = true,
            Step::Resume => self.suspended = false,
            _ => {}
        }
        if self.mode == Mode::Back {
            return;
        }
        match step {
            Step::SetStatus(0) => self.undo.retain(|step| *step != Step::SetStatus(0)),
            Step::Batch { asid, begin: false } => {
                let open = Step::Batch { asid, begin: false };
                self.undo.retain(|step| *step != open);
            }
            step => self.undo.extend(undo_of(&step)),
        }
    }

    fn failed(&mut self, step: Step, failure: Failure) {
        let error = StepError { step, failure };
        if self.mode == Mode::Back {
            // A mapping that is not to be had back is no mapping of ours any more.
            if let Step::Unmap(mapping) = &error.step {
                let mapping = *mapping;
                self.mapped.retain(|known| *known != mapping);
            }
            self.outcome.troubles.push(error);
            return;
        }
        // It may have been half done.
        if matches!(error.step, Step::SetStatus(_)) {
            self.undo.push(Step::SetStatus(0));
        }
        self.failed = Some(error);
        self.mode = Mode::Back;
        self.was_reset = false;
        self.todo = mem::take(&mut self.undo).into_iter().rev().collect();
    }

    fn note_base(&mut self, step: &Step, base: Option<u32>) {
        if let Step::ReadBase { ring } = step {
            self.outcome.bases.push((*ring, base));
        }
    }

    fn unfit(&mut self, step: Step) -> Result<(), Misuse> {
        self.asked = Some(step);
        Err(Misuse::Answer)
    }
}

const AGREED: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
const RUNNING: u8 = AGREED | status::DRIVER_OK;

/// Virtio 1.3, 3.1.1, steps 2 to 6: the status is read back.
fn agree(features: u64) -> Vec<Step> {
    Vec::from([
        Step::SetStatus(status::ACKNOWLEDGE),
        Step::SetStatus(status::ACKNOWLEDGE | status::DRIVER),
        Step::SetFeatures(features),
        Step::SetStatus(AGREED),
        Step::CheckStatus(AGREED),
    ])
}

fn judge(wanted: u8, now: u8) -> Option<Failure> {
    let broken = now & (status::NEEDS_RESET | status::FAILED) != 0;
    if now & wanted == wanted && !broken {
        return None;
    }
    Some(match wanted & status::DRIVER_OK {
        0 => Failure::Features { status: now },
        _ => Failure::NotStarted { status: now },
    })
}

fn undo_of(step: &Step) -> Option<Step> {
    match step {
        Step::SetStatus(_) => Some(Step::SetStatus(0)),
        Step::SetGroupAsid { group, .. } => Some(Step::SetGroupAsid {
            group: *group,
            asid: 0,
        }),
        Step::Batch { asid, .. } => Some(Step::Batch {
            asid: *asid,
            begin: false,
        }),
        Step::Map(mapping) => Some(Step::Unmap(*mapping)),
        Step::Unmap(mapping) => Some(Step::Map(*mapping)),
        Step::Wire { ring, wire, .. } => Some(Step::Wire {
            ring: *ring,
            wire: *wire,
            bind: false,
        }),
        Step::ConfigCall { .. } => Some(Step::ConfigCall { bind: false }),
        Step::Suspend => None,
        // A reset undoes the rest, and an owner lasts as long as the descriptor.
        _ => None,
    }
}
