//! The rings of a session: started, stopped, commanded, and brought to rest when
//! memory changes under them. The running ring itself is with its worker.

use std::sync::Arc;

use linkspan_mem::{Gpa, GuestMemory};
use linkspan_vhost::backend::{Answer, FdSlot, RingSetup};

use super::error::{Reason, SessionError};
use super::log::{MappedLog, covers, reaches};
use super::memory::MemoryTable;
use super::session::BackendSession;
use crate::rings::Ground;
use crate::worker::{Notify, Ring, RingEvent, RingFault, RingKey, Workers};

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
    /// Running rings come to rest so that another process can take them over.
    Lend {
        left: usize,
        rings: Vec<(Box<Ring>, RingSetup)>,
    },
    /// It did not, or did: so many rings do not go on yet.
    Return {
        left: usize,
        lost: Option<SessionError>,
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
        if !self.rings.command(ring, send) {
            return Some(Answer::Done);
        }
        self.waiting = Some(Waiting::Ring);
        None
    }

    pub(super) fn start_ring(
        &mut self,
        index: u16,
        setup: RingSetup,
        kick: Option<FdSlot>,
    ) -> Result<Option<Answer>, Reason> {
        let kick = self.talk.take_event(kick)?;
        self.logging.check_ring(&setup, &self.memory)?;
        let ground = Ground {
            memory: &self.memory,
            inflight: self.inflight.as_ref(),
            log: self.logging.of_ring(&setup, &self.memory),
        };
        self.rings.start(index, setup, kick, ground)?;
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
        let kick = self.talk.take_event(kick)?;
        Ok(self.command(ring, |workers, key| workers.set_kick(key, kick)))
    }

    pub(super) fn set_call(
        &mut self,
        ring: u16,
        call: Option<FdSlot>,
    ) -> Result<Option<Answer>, Reason> {
        let call = self.talk.take_event(call)?.map(Arc::new).map(Notify::Event);
        self.rings.slot(ring).call.clone_from(&call);
        Ok(self.command(ring, |workers, key| workers.set_call(key, call)))
    }

    pub(super) fn set_err(
        &mut self,
        ring: u16,
        err: Option<FdSlot>,
    ) -> Result<Option<Answer>, Reason> {
        let err = self.talk.take_event(err)?.map(Arc::new);
        self.rings.slot(ring).err.clone_from(&err);
        Ok(self.command(ring, |workers, key| workers.set_err(key, err)))
    }

    /// Installs another memory table. Rings that run are brought to rest first:
    /// until the last request that uses the old memory is done, it stays mapped
    /// and the front end gets no answer.
    pub(super) fn change_memory(&mut self, change: MemoryTable) -> Result<Option<Answer>, Reason> {
        if self.rings.are_stopped() {
            self.memory = self.resolve(&change)?;
            self.table = change;
            return Ok(Some(Answer::Done));
        }
        let (left, paused) = (self.rings.stop_all(), Vec::new());
        self.begin_to_drain();
        self.waiting = Some(Waiting::Pause {
            left,
            paused,
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
    pub(super) fn set_log(&mut self, log: MappedLog) -> Result<Option<Answer>, Reason> {
        covers(&log.log, &self.memory)?;
        for (_, run) in self.rings.running() {
            reaches(&log.log, &run.setup, &self.memory)?;
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
        let Some(run) = &mut self.rings.slot(ring).run else {
            return Ok(Some(Answer::Done));
        };
        let setup = RingSetup { log, ..run.setup };
        self.logging.check_ring(&setup, &self.memory)?;
        run.setup = setup;
        let log = self.logging.of_ring(&setup, &self.memory);
        Ok(self.command(ring, |workers, key| workers.set_log(key, log)))
    }

    /// Tells all running rings what they log from now on.
    pub(super) fn relog(&mut self) -> Option<Answer> {
        let mut left = 0;
        for (ring, run) in self.rings.running() {
            let log = self.logging.of_ring(&run.setup, &self.memory);
            self.rings
                .command(ring, |workers, key| workers.set_log(key, log));
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
        let (left, lost) = self.go_on(paused);
        self.resumed(left, answer, lost)
    }

    /// Rings at rest go on: how many are started, and the last one that cannot be.
    pub(super) fn go_on(
        &mut self,
        paused: Vec<(Box<Ring>, RingSetup)>,
    ) -> (usize, Option<SessionError>) {
        let (mut left, mut lost) = (0, None);
        for (ring, setup) in paused {
            let ground = Ground {
                memory: &self.memory,
                inflight: self.inflight.as_ref(),
                // New regions are logged as the old ones were.
                log: self.logging.of_ring(&setup, &self.memory),
            };
            let index = ring.index;
            match self.rings.go_on(ring, setup, ground) {
                Ok(()) => left += 1,
                Err(error) => {
                    let (ring, reason) = (index, error.into());
                    lost = Some(SessionError::RingLost { ring, reason });
                }
            }
        }
        (left, lost)
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
            Some(lost) if !self.talk.is_closing() => self.answer(answer).and(Err(lost)),
            _ => self.answer(answer),
        }
    }

    /// Takes in one event of a worker.
    pub(super) fn ring_event(&mut self, event: RingEvent) -> Result<(), SessionError> {
        match event {
            RingEvent::Broken { ring, error } => {
                tracing::warn!(ring, "retired: {error}");
                if error == RingFault::MemoryGone && !self.talk.is_closing() {
                    return Err(SessionError::MemoryGone);
                }
                Ok(())
            }
            RingEvent::Done { .. } => self.ring_done(Ok(Answer::Done)),
            RingEvent::Refused { ring, error, lost } => {
                if lost {
                    self.rings.slot(ring).run = None;
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
            Some(Waiting::Return { left, lost }) => {
                let refused = result.err();
                let refused = refused.map(|(ring, reason)| SessionError::RingLost { ring, reason });
                self.returned(left - 1, refused.or(lost))
            }
            _ => self.answer(result.map_err(|(_, reason)| reason)),
        }
    }

    fn ring_stopped(&mut self, ring: Box<Ring>) -> Result<(), SessionError> {
        let slot = self.rings.slot(ring.index);
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
            (Some(Waiting::Lend { left, mut rings }), Some(run)) => {
                rings.push((ring, run.setup));
                let left = left - 1;
                self.waiting = Some(Waiting::Lend { left, rings });
                Ok(())
            }
            (Some(Waiting::Return { left, lost }), Some(run)) => {
                let (started, missing) = self.go_on(vec![(ring, run.setup)]);
                self.returned(left - 1 + started, missing.or(lost))
            }
            _ => {
                slot.call = None;
                let base = ring.active.queue.base();
                // Before the answer: the next who serves this disk may start upon it.
                drop(ring);
                self.answer(Ok(Answer::RingStopped { base }))
            }
        }
    }
}
