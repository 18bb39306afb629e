//! What a request takes, step by step.

use alloc::vec::Vec;

use linkspan_mem::UserVa;

use super::effect::{Answer, Effect, RingInfo};
use super::error::{Misuse, Refusal};
use super::wire::{Ask, Request, State, response};
use super::{DRIVER_OK, FEATURES_OK, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, Vduse};
use crate::backend::{Failure, RingSetup};
use crate::ring::{Ring, RingError};

/// What is being done, with the request that it is the answer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Nothing.
    Idle,
    /// `FEATURES_OK` is new: the features are read.
    Accept { id: u32, status: u8 },
    /// The new status is written down.
    Remember { id: u32, status: u8 },
    /// A process that is gone had a driver: whether it still has is read.
    Resume,
    /// Rings are brought up: `DRIVER_OK` is new, or, without a request, a process
    /// that is gone had them.
    Bring {
        request: Option<(u32, u8)>,
        stage: Stage,
    },
    /// A ring did not start: those that run are stopped.
    Undo { id: u32, ring: u16 },
    /// A reset stops ring after ring.
    Reset { id: u32, ring: u16 },
    /// So many effects are left; then this is the answer, if there was a request.
    Finish {
        id: Option<u32>,
        left: u8,
        done: bool,
    },
    /// A ring is stopped to see where it stands.
    Ask { id: u32, ring: u16 },
    /// And started again.
    Restart { id: u32, ring: u16, base: u32 },
    /// The kernel is asked about a ring that does not run.
    Look { id: u32, ring: u16 },
    /// Memory is looked up anew.
    Update { id: u32 },
}

/// How far rings have come, and those that are to run by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Features,
    Memory,
    Forget,
    Read(Vec<Option<RingSetup>>),
    Remember(Vec<Option<RingSetup>>),
    Start(Vec<Option<RingSetup>>, u16),
}

impl Vduse {
    /// Begins with a request.
    pub(super) fn begin(&mut self, request: &Request) -> Result<(), Refusal> {
        let id = request.id;
        let begun = match request.ask {
            Ask::Status(0) => {
                self.stop_from(id, 0);
                Ok(())
            }
            Ask::Status(status) => self.begin_status(id, status),
            Ask::RingState { ring } => self.begin_state(id, ring),
            Ask::Memory if self.is_live() => {
                self.ask(Effect::UpdateMemory, Job::Update { id });
                Ok(())
            }
            // Before DRIVER_OK nothing is mapped.
            Ask::Memory => {
                self.respond(id, true, None);
                Ok(())
            }
            Ask::Unknown { kind } => Err(Refusal::Unknown { kind }),
        };
        self.or_refuse(id, begun)
    }

    fn begin_status(&mut self, id: u32, status: u8) -> Result<(), Refusal> {
        let (old, new) = (self.status, status);
        if old & !new != 0 {
            return Err(Refusal::StatusBack { old, new });
        }
        if new & DRIVER_OK != 0 && new & FEATURES_OK == 0 {
            return Err(Refusal::NoFeatures { status });
        }
        let added = new & !old;
        if added & DRIVER_OK != 0 {
            let stage = Stage::Features;
            let request = Some((id, status));
            self.ask(Effect::ReadFeatures, Job::Bring { request, stage });
        } else if added & FEATURES_OK != 0 {
            self.ask(Effect::ReadFeatures, Job::Accept { id, status });
        } else if added != 0 {
            self.remember(id, status);
        } else {
            // Asked again: the process that answered first is gone.
            self.respond(id, true, None);
        }
        Ok(())
    }

    fn begin_state(&mut self, id: u32, ring: u32) -> Result<(), Refusal> {
        let queues = self.offer.queues;
        let known = u16::try_from(ring).ok().filter(|ring| *ring < queues);
        let ring = known.ok_or(Refusal::NoRing { ring, queues })?;
        if self.running(ring).is_some() {
            self.ask(Effect::StopRing { ring }, Job::Ask { id, ring });
        } else {
            self.ask(Effect::ReadRing { ring }, Job::Look { id, ring });
        }
        Ok(())
    }

    /// Begins to bring back the rings of a process that is gone.
    pub(super) fn resume(&mut self) {
        self.ask(Effect::ReadFeatures, Job::Resume);
    }

    /// Goes on with the answer to the effect taken last.
    pub(super) fn go_on(&mut self, done: Result<Answer, Failure>) -> Result<(), Refusal> {
        match core::mem::replace(&mut self.job, Job::Idle) {
            Job::Idle => Err(Misuse::NotAsked.into()),
            Job::Accept { id, status } => {
                let accepted = features(done);
                let accepted = accepted.and_then(|features| self.check_features(features));
                self.features = self.or_refuse(id, accepted)?;
                self.remember(id, status);
                Ok(())
            }
            Job::Remember { id, status } => {
                let done = self.or_refuse(id, finished(done));
                if done.is_ok() {
                    self.status = status;
                    self.respond(id, true, None);
                } else if self.status & FEATURES_OK == 0 {
                    self.features = 0;
                }
                done
            }
            Job::Resume => self.resumed(features(done)),
            Job::Bring { request, stage } => self.bring(request, stage, done),
            Job::Undo { id, ring } => {
                // One that cannot be stopped holds up nothing: it is gone.
                self.ring_lost(ring);
                self.undo_from(id, ring + 1);
                finished(done)
            }
            Job::Reset { id, ring } => {
                self.ring_lost(ring);
                self.stop_from(id, ring + 1);
                finished(done)
            }
            Job::Finish { id, left, done: ok } => {
                if left > 1 {
                    let left = left - 1;
                    self.job = Job::Finish { id, left, done: ok };
                } else if let Some(id) = id {
                    self.respond(id, ok, None);
                }
                finished(done)
            }
            Job::Ask { id, ring } => self.stopped(id, ring, done),
            Job::Restart { id, ring, base } => {
                if done.is_err() {
                    self.ring_lost(ring);
                }
                self.or_refuse(id, finished(done))?;
                self.respond_state(id, ring, base);
                Ok(())
            }
            Job::Look { id, ring } => {
                let info = self.or_refuse(id, ring_info(done))?;
                self.respond_state(id, ring, info.state.base());
                Ok(())
            }
            Job::Update { id } => {
                self.or_refuse(id, finished(done))?;
                self.respond(id, true, None);
                Ok(())
            }
        }
    }

    /// What the driver accepted is 0 after a reset: perhaps one of which the
    /// process that is gone did not hear.
    fn resumed(&mut self, accepted: Result<u64, Refusal>) -> Result<(), Refusal> {
        if accepted? == self.features {
            let (request, stage) = (None, Stage::Memory);
            self.ask(Effect::UpdateMemory, Job::Bring { request, stage });
        } else {
            self.clean(None, true);
        }
        Ok(())
    }

    /// The next stage of bringing rings up.
    fn bring(
        &mut self,
        request: Option<(u32, u8)>,
        stage: Stage,
        done: Result<Answer, Failure>,
    ) -> Result<(), Refusal> {
        let next = match stage {
            Stage::Features => features(done)
                .and_then(|features| self.check_features(features))
                .and_then(|features| self.keep_features(features))
                .map(|()| Some((Effect::UpdateMemory, Stage::Memory))),
            Stage::Memory if request.is_some() => {
                finished(done).map(|()| Some((Effect::ForgetInflight, Stage::Forget)))
            }
            Stage::Memory | Stage::Forget => {
                let (effect, stage) = (Effect::ReadRing { ring: 0 }, Stage::Read(Vec::new()));
                finished(done).map(|()| Some((effect, stage)))
            }
            Stage::Read(found) => return self.read(request, found, ring_info(done)),
            Stage::Remember(found) => finished(done).map(|()| {
                self.status = request.map_or(self.status, |(_, status)| status);
                self.start_from(request, found, 0);
                None
            }),
            Stage::Start(found, ring) => return self.started(request, found, ring, done),
        };
        match next {
            Ok(None) => Ok(()),
            Ok(Some((effect, stage))) => {
                self.ask(effect, Job::Bring { request, stage });
                Ok(())
            }
            Err(refusal) => {
                self.give_up(request);
                Err(refusal)
            }
        }
    }

    /// What the kernel says of a ring; after the last one they start.
    fn read(
        &mut self,
        request: Option<(u32, u8)>,
        mut found: Vec<Option<RingSetup>>,
        info: Result<RingInfo, Refusal>,
    ) -> Result<(), Refusal> {
        let ring = index(found.len());
        let setup = info.and_then(|info| self.setup(ring, &info));
        let (setup, wrong) = match setup {
            Ok(setup) => (setup, Ok(())),
            // Its driver would wait for ever.
            Err(refusal) if request.is_some() => {
                self.give_up(request);
                return Err(refusal);
            }
            // The others go on.
            Err(refusal) => (None, Err(refusal)),
        };
        found.push(setup);
        let ring = index(found.len());
        if ring < self.offer.queues {
            let stage = Stage::Read(found);
            self.ask(Effect::ReadRing { ring }, Job::Bring { request, stage });
        } else if let Some((_, status)) = request {
            // Before any of them takes something: a successor must not forget
            // what is in flight then.
            let saved = self.record_with(status);
            let stage = Stage::Remember(found);
            self.ask(Effect::Remember(saved), Job::Bring { request, stage });
        } else {
            self.start_from(request, found, 0);
        }
        wrong
    }

    /// Starts the first ring from `ring` on that is to run; all run after the last.
    fn start_from(&mut self, request: Option<(u32, u8)>, found: Vec<Option<RingSetup>>, ring: u16) {
        let rest = found.iter().enumerate().skip(ring.into());
        let next = rest
            .filter_map(|(at, setup)| Some((index(at), (*setup)?)))
            .next();
        let Some((ring, setup)) = next else {
            if let Some((id, _)) = request {
                self.respond(id, true, None);
            }
            self.effects.push_back(Effect::ProveInterrupts);
            return;
        };
        let stage = Stage::Start(found, ring);
        let effect = Effect::StartRing { ring, setup };
        self.ask(effect, Job::Bring { request, stage });
    }

    fn started(
        &mut self,
        request: Option<(u32, u8)>,
        found: Vec<Option<RingSetup>>,
        ring: u16,
        done: Result<Answer, Failure>,
    ) -> Result<(), Refusal> {
        let done = finished(done);
        match (&done, request) {
            (Ok(()), _) => {
                self.running[usize::from(ring)] = found[usize::from(ring)];
                self.start_from(request, found, ring + 1);
            }
            (Err(_), None) => self.start_from(request, found, ring + 1),
            (Err(_), Some((id, _))) => {
                self.status &= !DRIVER_OK;
                self.undo_from(id, 0);
            }
        }
        done
    }

    /// The driver does not get its rings.
    fn give_up(&mut self, request: Option<(u32, u8)>) {
        if let Some((id, _)) = request {
            self.undo_from(id, 0);
        } else {
            self.job = Job::Idle;
        }
    }

    /// Stops rings from `ring` on, and refuses what they were started for.
    fn undo_from(&mut self, id: u32, ring: u16) {
        if let Some(ring) = self.next_running(ring) {
            return self.ask(Effect::StopRing { ring }, Job::Undo { id, ring });
        }
        // A status with both bits was refused as a whole.
        if self.status & FEATURES_OK == 0 {
            self.features = 0;
        }
        let saved = self.snapshot();
        let effects = [Effect::DropMemory, Effect::Remember(saved)];
        self.finish(Some(id), false, effects);
    }

    /// Stops rings from `ring` on, and resets the device after the last.
    fn stop_from(&mut self, id: u32, ring: u16) {
        match self.next_running(ring) {
            Some(ring) => self.ask(Effect::StopRing { ring }, Job::Reset { id, ring }),
            None => self.clean(Some(id), true),
        }
    }

    /// The device is as in the beginning.
    fn clean(&mut self, id: Option<u32>, done: bool) {
        self.status = 0;
        self.features = 0;
        let saved = self.snapshot();
        self.finish(id, done, [Effect::DropMemory, Effect::Remember(saved)]);
    }

    fn finish(&mut self, id: Option<u32>, done: bool, effects: [Effect; 2]) {
        self.effects.extend(effects);
        let left = 2;
        self.job = Job::Finish { id, left, done };
    }

    fn stopped(
        &mut self,
        id: u32,
        ring: u16,
        done: Result<Answer, Failure>,
    ) -> Result<(), Refusal> {
        let base = match done {
            Ok(Answer::RingStopped { base }) => Ok(base),
            other => Err(finished(other).err().unwrap_or(Misuse::WrongAnswer.into())),
        };
        let was = self.running(ring);
        if base.is_err() {
            self.ring_lost(ring);
        }
        let base = self.or_refuse(id, base)?;
        // Only a reset ends a ring: it goes on, which a driver that rests does
        // not notice.
        let Some(setup) = was else {
            self.respond_state(id, ring, base);
            return Ok(());
        };
        let setup = RingSetup { base, ..setup };
        self.running[usize::from(ring)] = Some(setup);
        let effect = Effect::StartRing { ring, setup };
        self.ask(effect, Job::Restart { id, ring, base });
        Ok(())
    }

    /// How a ring is to start, if it is ready.
    ///
    /// One without addresses was never set up: a guest uses as many as it likes, and
    /// QEMU's vhost-vdpa-device makes all of them ready.
    fn setup(&self, ring: u16, info: &RingInfo) -> Result<Option<RingSetup>, Refusal> {
        if !info.ready || (info.descriptor, info.driver, info.device) == (0, 0, 0) {
            return Ok(None);
        }
        let wrong = |error| Refusal::Ring { ring, error };
        let (max, features) = (self.offer.queue_size_max, Some(self.features));
        if info.size == 0 {
            return Err(wrong(RingError::NoSize));
        }
        let size = Ring::check_size(info.size, max, features).map_err(wrong)?;
        Ok(Some(RingSetup {
            size,
            descriptor: UserVa(info.descriptor),
            driver: UserVa(info.driver),
            device: UserVa(info.device),
            base: info.state.base(),
            log: None,
            enabled: true,
            features: self.features,
        }))
    }

    /// Virtio 1.3, 6: what the driver accepted is what was offered, or less. A
    /// driver without `VIRTIO_F_VERSION_1` has other layouts. One without
    /// `VIRTIO_F_ACCESS_PLATFORM` gives the same addresses as any other: that it
    /// has to be offered is a rule of the kernel, and there are drivers in user
    /// space that do not know it.
    pub(super) fn check_features(&self, accepted: u64) -> Result<u64, Refusal> {
        let offered = self.offer.features;
        let (unknown, missing) = (accepted & !offered, VIRTIO_F_VERSION_1 & !accepted);
        if unknown | missing != 0 {
            return Err(Refusal::Features {
                accepted,
                offered,
                unknown,
                missing,
            });
        }
        Ok(accepted)
    }

    fn keep_features(&mut self, new: u64) -> Result<(), Refusal> {
        let old = self.features;
        if self.status & FEATURES_OK != 0 && old != new {
            return Err(Refusal::FeaturesChanged { old, new });
        }
        self.features = new;
        Ok(())
    }

    fn next_running(&self, from: u16) -> Option<u16> {
        let rings = self.running.iter().enumerate().skip(from.into());
        let mut running = rings.filter(|(_, setup)| setup.is_some());
        running.next().map(|(at, _)| index(at))
    }

    fn remember(&mut self, id: u32, status: u8) {
        let saved = self.record_with(status);
        self.ask(Effect::Remember(saved), Job::Remember { id, status });
    }

    fn ask(&mut self, effect: Effect, job: Job) {
        self.effects.push_back(effect);
        self.job = job;
    }

    fn respond(&mut self, id: u32, done: bool, ring: Option<(u16, State)>) {
        let bytes = response(id, done, ring);
        self.effects.push_back(Effect::Send(bytes));
    }

    fn respond_state(&mut self, id: u32, ring: u16, base: u32) {
        let packed = self.features & VIRTIO_F_RING_PACKED != 0;
        self.respond(id, true, Some((ring, State::of(base, packed))));
    }

    /// Tells the kernel of a refusal.
    fn or_refuse<T>(&mut self, id: u32, result: Result<T, Refusal>) -> Result<T, Refusal> {
        if result.is_err() {
            self.respond(id, false, None);
        }
        result
    }
}

/// Queues are counted in 16 bits.
fn index(at: usize) -> u16 {
    u16::try_from(at).expect("the offer has a number of queues in 16 bits")
}

fn features(done: Result<Answer, Failure>) -> Result<u64, Refusal> {
    match done.map_err(Refusal::Failed)? {
        Answer::Features(features) => Ok(features),
        _ => Err(Misuse::WrongAnswer.into()),
    }
}

fn ring_info(done: Result<Answer, Failure>) -> Result<RingInfo, Refusal> {
    match done.map_err(Refusal::Failed)? {
        Answer::Ring(info) => Ok(info),
        _ => Err(Misuse::WrongAnswer.into()),
    }
}

fn finished(done: Result<Answer, Failure>) -> Result<(), Refusal> {
    match done.map_err(Refusal::Failed)? {
        Answer::Done | Answer::RingStopped { .. } => Ok(()),
        Answer::Features(_) | Answer::Ring(_) => Err(Misuse::WrongAnswer.into()),
    }
}
