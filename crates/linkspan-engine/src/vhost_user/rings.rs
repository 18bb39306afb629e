//! The rings of a session: started, stopped, commanded, and brought to rest when
//! memory changes under them. The running ring itself is with its worker.

use std::sync::Arc;

use linkspan_mem::{DirtyLog, Gpa, GuestMemory};
use linkspan_sys::PeerEventFd;
use linkspan_vhost::backend::{Answer, Failure, FdSlot, RingSetup};
use linkspan_virtio::Features;

use super::error::{Reason, SessionError};
use super::log::{covers, reaches};
use super::memory::MemoryTable;
use super::place::{Start, place_queue};
use super::session::BackendSession;
use crate::counters::QueueCounters;
use crate::device::ActiveRing;
use crate::worker::{Ring, RingEvent, RingFault, RingKey, Workers};

/// What the session knows of a ring; the running ring itself is with its worker.
#[derive(Default)]
pub(super) struct RingSlot {
    pub(super) call: Option<Arc<PeerEventFd>>,
    pub(super) err: Option<Arc<PeerEventFd>>,
    pub(super) run: Option<Run>,
    pub(super) counters: Arc<QueueCounters>,
}

#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) key: RingKey,
    pub(super) setup: RingSetup,
}

/// What the effect taken last waits for.
pub(super) enum Waiting {
    /// The event that follows the command to a ring.
    Ring,
    /// The device's state is moved.
    State,
    /// Running rings come to rest so that memory can change under them.
    Pause {
        left: usize,
        paused: Vec<(Box<Ring>, RingSetup)>,
        change: MemoryTable,
    },
    /// They run again, or take note of another log; then this is the answer,
    /// unless one was lost.
    Resume {
        left: usize,
        answer: Result<Answer, Reason>,
        lost: Option<SessionError>,
    },
}

impl BackendSession {
    /// Sends a command to a running ring and waits for its event; on a ring that
    /// does not run there is nothing to wait for.
    pub(super) fn command(
        &mut self,
        ring: u16,
        send: impl FnOnce(&Workers, RingKey),
    ) -> Option<Answer> {
        match self.rings[usize::from(ring)].run {
            Some(run) => {
                send(&self.workers, run.key);
                self.waiting = Some(Waiting::Ring);
                None
            }
            None => Some(Answer::Done),
        }
    }

    pub(super) fn start_ring(
        &mut self,
        index: u16,
        setup: RingSetup,
        kick: Option<FdSlot>,
    ) -> Result<Option<Answer>, Reason> {
        let kick = self.take_event(kick)?;
        let features = Features::from_bits_retain(setup.features);
        self.logging.check_ring(&setup)?;
        let start = if self.device.is_network() {
            Start::BehindUsed
        } else {
            Start::AsTold
        };
        let queue = place_queue(index, &setup, &self.memory, self.inflight.as_ref(), start)?;
        let handler = self.device.open_queue(index, features)?;
        let slot = &mut self.rings[usize::from(index)];
        let ring = Box::new(Ring {
            index,
            lane: self.device.lane(index),
            active: ActiveRing {
                queue,
                memory: Arc::clone(&self.memory),
                log: self.logging.of_ring(&setup),
            },
            handler,
            kick,
            call: slot.call.clone(),
            err: slot.err.clone(),
            enabled: setup.enabled,
            retired: false,
            moves: false,
            counters: Arc::clone(&slot.counters),
        });
        let key = self.workers.start(ring, self.sink.clone());
        slot.run = Some(Run { key, setup });
        self.waiting = Some(Waiting::Ring);
        Ok(None)
    }

    pub(super) fn stop_ring(&mut self, ring: u16) -> Option<Answer> {
        self.begin_to_drain();
        self.command(ring, |workers, key| workers.stop(key))
    }

    pub(super) fn set_kick(
        &mut self,
        ring: u16,
        kick: Option<FdSlot>,
    ) -> Result<Option<Answer>, Reason> {
        let kick = self.take_event(kick)?;
        Ok(self.command(ring, |workers, key| workers.set_kick(key, kick)))
    }

    pub(super) fn set_call(
        &mut self,
        ring: u16,
        call: Option<FdSlot>,
    ) -> Result<Option<Answer>, Reason> {
        let call = self.take_event(call)?.map(Arc::new);
        self.rings[usize::from(ring)].call.clone_from(&call);
        Ok(self.command(ring, |workers, key| workers.set_call(key, call)))
    }

    pub(super) fn set_err(
        &mut self,
        ring: u16,
        err: Option<FdSlot>,
    ) -> Result<Option<Answer>, Reason> {
        let err = self.take_event(err)?.map(Arc::new);
        self.rings[usize::from(ring)].err.clone_from(&err);
        Ok(self.command(ring, |workers, key| workers.set_err(key, err)))
    }

    /// Installs another memory table. Rings that run are brought to rest first:
    /// until the last request that uses the old memory is done, it stays mapped
    /// and the front end gets no answer.
    pub(super) fn change_memory(&mut self, change: MemoryTable) -> Result<Option<Answer>, Reason> {
        let running: Vec<RingKey> = self
            .rings
            .iter()
            .filter_map(|slot| Some(slot.run?.key))
            .collect();
        if running.is_empty() {
            self.memory = self.resolve(&change)?;
            self.table = change;
            return Ok(Some(Answer::Done));
        }
        for key in &running {
            self.workers.stop(*key);
        }
        self.begin_to_drain();
        self.waiting = Some(Waiting::Pause {
            left: running.len(),
            paused: Vec::new(),
            change,
        });
        Ok(None)
    }

    /// Memory of this table, all of which can be logged if it has to be.
    fn resolve(&self, table: &MemoryTable) -> Result<Arc<GuestMemory>, Reason> {
        let memory = table.resolve()?;
        self.logging.check_memory(&memory)?;
        Ok(memory)
    }

    /// `VHOST_USER_SET_FEATURES` says whether writes to buffers are logged.
    pub(super) fn log_all(&mut self, all: bool) -> Result<Option<Answer>, Reason> {
        let before = std::mem::replace(&mut self.logging.all, all);
        if let Err(error) = self.logging.check_memory(&self.memory) {
            self.logging.all = before;
            return Err(error.into());
        }
        Ok(self.relog())
    }

    /// `VHOST_USER_SET_LOG_BASE`. The log of before is mapped until no ring uses it.
    pub(super) fn set_log(&mut self, log: DirtyLog) -> Result<Option<Answer>, Reason> {
        covers(&log, &self.memory)?;
        for run in self.rings.iter().filter_map(|slot| slot.run) {
            reaches(&log, &run.setup)?;
        }
        self.logging.replace(log);
        Ok(self.relog())
    }

    /// `VHOST_USER_SET_VRING_ADDR` of a running ring.
    pub(super) fn set_ring_log(
        &mut self,
        ring: u16,
        log: Option<Gpa>,
    ) -> Result<Option<Answer>, Reason> {
        let Some(run) = &mut self.rings[usize::from(ring)].run else {
            return Ok(Some(Answer::Done));
        };
        let setup = RingSetup { log, ..run.setup };
        self.logging.check_ring(&setup)?;
        run.setup = setup;
        let log = self.logging.of_ring(&setup);
        Ok(self.command(ring, |workers, key| workers.set_log(key, log)))
    }

    /// Tells all running rings what they log from now on.
    pub(super) fn relog(&mut self) -> Option<Answer> {
        let mut left = 0;
        for run in self.rings.iter().filter_map(|slot| slot.run) {
            let log = self.logging.of_ring(&run.setup);
            self.workers.set_log(run.key, log);
            left += 1;
        }
        if left == 0 {
            return Some(Answer::Done);
        }
        let (answer, lost) = (Ok(Answer::Done), None);
        self.waiting = Some(Waiting::Resume { left, answer, lost });
        None
    }

    /// All rings are at rest: swaps the memory and starts them again. A change
    /// that makes no sense leaves the old memory in place.
    fn resume(
        &mut self,
        paused: Vec<(Box<Ring>, RingSetup)>,
        change: MemoryTable,
    ) -> Result<(), SessionError> {
        let answer = match self.resolve(&change) {
            Ok(memory) => {
                self.memory = memory;
                self.table = change;
                Ok(Answer::Done)
            }
            Err(reason) => Err(reason),
        };
        let (mut left, mut lost) = (0, None);
        for (mut ring, setup) in paused {
            let state = Start::At(ring.active.queue.state());
            let inflight = self.inflight.as_ref();
            match place_queue(ring.index, &setup, &self.memory, inflight, state) {
                Ok(queue) => {
                    ring.active = ActiveRing {
                        queue,
                        memory: Arc::clone(&self.memory),
                        // New regions are logged as the old ones were.
                        log: self.logging.of_ring(&setup),
                    };
                }
                Err(reason) if reason.failure() == Failure::System => {
                    let ring = ring.index;
                    lost = Some(SessionError::RingLost { ring, reason });
                    continue;
                }
                // The front end removed memory under a ring that runs: that
                // ring is lost, the others are not.
                Err(reason) => {
                    tracing::warn!(ring = ring.index, "retired: {reason}");
                    ring.retire();
                }
            }
            let slot = &mut self.rings[usize::from(ring.index)];
            let key = self.workers.start(ring, self.sink.clone());
            slot.run = Some(Run { key, setup });
            left += 1;
        }
        self.resumed(left, answer, lost)
    }

    /// `left` rings do not run again yet.
    fn resumed(
        &mut self,
        left: usize,
        answer: Result<Answer, Reason>,
        lost: Option<SessionError>,
    ) -> Result<(), SessionError> {
        if left > 0 {
            self.quiet_by = None;
            self.waiting = Some(Waiting::Resume { left, answer, lost });
            return Ok(());
        }
        match lost {
            // Whatever the answer is, it cannot say that a ring is gone.
            Some(lost) if !self.closing => self.answer(answer).and(Err(lost)),
            _ => self.answer(answer),
        }
    }

    /// Takes in one event of a worker.
    pub(super) fn ring_event(&mut self, event: RingEvent) -> Result<(), SessionError> {
        match event {
            RingEvent::Broken { ring, error } => {
                tracing::warn!(ring, "retired: {error}");
                if error == RingFault::MemoryGone && !self.closing {
                    return Err(SessionError::MemoryGone);
                }
                Ok(())
            }
            RingEvent::Done { .. } => self.ring_done(Ok(Answer::Done)),
            RingEvent::Refused { ring, error, lost } => {
                if lost {
                    self.rings[usize::from(ring)].run = None;
                }
                self.ring_done(Err((ring, Reason::Worker(error))))
            }
            RingEvent::Stopped { ring } => self.ring_stopped(ring),
        }
    }

    /// A command to a ring has ended: one of several, or the one waited for.
    fn ring_done(&mut self, result: Result<Answer, (u16, Reason)>) -> Result<(), SessionError> {
        match self.waiting.take() {
            Some(Waiting::Resume { left, answer, lost }) => {
                let refused = result.err();
                let refused = refused.map(|(ring, reason)| SessionError::RingLost { ring, reason });
                self.resumed(left - 1, answer, refused.or(lost))
            }
            _ => self.answer(result.map_err(|(_, reason)| reason)),
        }
    }

    fn ring_stopped(&mut self, ring: Box<Ring>) -> Result<(), SessionError> {
        let slot = &mut self.rings[usize::from(ring.index)];
        let run = slot.run.take();
        match (self.waiting.take(), run) {
            (
                Some(Waiting::Pause {
                    left,
                    mut paused,
                    change,
                }),
                Some(run),
            ) => {
                paused.push((ring, run.setup));
                if left > 1 {
                    self.waiting = Some(Waiting::Pause {
                        left: left - 1,
                        paused,
                        change,
                    });
                    return Ok(());
                }
                self.resume(paused, change)
            }
            _ => {
                slot.call = None;
                let base = ring.active.queue.base();
                self.answer(Ok(Answer::RingStopped { base }))
            }
        }
    }
}
