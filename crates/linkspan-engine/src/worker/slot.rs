//! What a worker has at one place: a ring or a task, with how it stands, and what one
//! pass of it comes to.

use std::time::Instant;

use super::neighbours::Fed;
use super::{EventSink, Neighbours, Ring, RingEvent, RingFault, Task};
use crate::device::{Budget, Progress};

/// What a slot serves.
pub(super) enum Work {
    /// A ring, and who hears of it.
    Ring(Box<Ring>, EventSink),
    Task(Box<dyn Task>),
}

pub(super) struct Slot {
    pub(super) number: u64,
    pub(super) work: Work,
    /// How others of this worker reach it. A ring that has one is filled by them
    /// and not looked at.
    pub(super) address: Option<u32>,
    /// For a ring that others filled: where it stood before.
    pub(super) fed: Option<Fed>,
    /// Whether it is in the list of those that have a pass next.
    pub(super) queued: bool,
    /// Whether it is in the list of those that are looked at.
    pub(super) awake: bool,
    /// Whether the driver was told not to kick.
    pub(super) disarmed: bool,
    /// It has a pass then, whatever happens before.
    pub(super) until: Option<Instant>,
    /// Whether the owner waits for it to become quiet.
    pub(super) stopping: bool,
}

/// What one pass of a slot came to.
pub(super) enum Outcome {
    /// Nothing to do until something happens.
    Rests,
    /// Nothing was left; more may come at any time.
    Awake,
    /// Something is left to do.
    Works,
    /// Something is left, for later.
    Waits(Instant),
    /// It is quiet, as its owner wants it.
    Quiet,
}

/// Gives a broken ring up and says so, once.
pub(super) fn retire(ring: &mut Ring, events: &EventSink, error: RingFault) {
    if !ring.retired {
        if ring.misses(error) {
            ring.retired = true;
        } else {
            ring.retire();
        }
        let ring = ring.index;
        events.send(RingEvent::Broken { ring, error });
    }
}

impl Slot {
    /// A slot that has done nothing yet.
    pub(super) fn new(number: u64, work: Work, address: Option<u32>) -> Self {
        Self {
            number,
            work,
            address,
            fed: None,
            queued: false,
            awake: false,
            disarmed: false,
            until: None,
            stopping: false,
        }
    }

    /// Whether it is looked at: new chains are taken from its ring.
    #[inline]
    pub(super) fn takes(&self) -> bool {
        !self.stopping
            && match &self.work {
                Work::Ring(ring, _) => ring.takes() && self.address.is_none(),
                Work::Task(_) => true,
            }
    }

    /// Asks to be woken; whether a pass has to follow all the same.
    pub(super) fn arm(&mut self) -> bool {
        self.disarmed = false;
        match &mut self.work {
            Work::Ring(ring, _) => !ring.retired && ring.arm(),
            Work::Task(task) => task.arm(),
        }
    }

    /// Looks whether a pass would find something.
    #[inline]
    pub(super) fn has_work(&mut self) -> bool {
        match &mut self.work {
            Work::Ring(ring, _) => ring.has_work(),
            Work::Task(task) => task.has_work(),
        }
    }

    /// Whether it makes sense to [look](Self::has_work) again and again.
    pub(super) fn can_see_work(&self) -> bool {
        match &self.work {
            Work::Ring(..) => true,
            Work::Task(task) => task.can_see_work(),
        }
    }

    /// Whether nothing says when there is something to do, so that one has to look.
    pub(super) fn is_polled(&self) -> bool {
        match &self.work {
            Work::Ring(ring, _) => ring.is_polled(),
            Work::Task(_) => false,
        }
    }

    /// Whether anything moved on, and what comes next.
    pub(super) fn pass(&mut self, neighbours: &mut Neighbours<'_>) -> (bool, Outcome) {
        let takes = self.takes();
        self.disarmed |= takes;
        let (worked, progress, quiet, moves) = match &mut self.work {
            Work::Ring(ring, events) => {
                let serves = ring.takes() && !self.stopping;
                let (worked, progress) = match self.address {
                    Some(_) => (false, ring.leave_to_others(serves)),
                    None => ring.pass(!takes, neighbours),
                };
                self.disarmed |= serves;
                if let Err(error) = progress {
                    retire(ring, events, error);
                }
                let quiet = ring.handler.in_flight() == 0;
                (worked, progress.ok(), quiet, ring.moves)
            }
            Work::Task(_) if self.stopping => (false, None, true, false),
            Work::Task(task) => {
                let (worked, progress) = task.run(Budget::default(), neighbours);
                self.stopping = task.is_over();
                (worked, Some(progress), true, false)
            }
        };
        let outcome = match progress {
            _ if self.stopping && quiet => Outcome::Quiet,
            _ if moves => Outcome::Works,
            Some(Progress::More) if !self.stopping => Outcome::Works,
            Some(Progress::Until(until)) if !self.stopping => Outcome::Waits(until),
            _ if self.takes() => Outcome::Awake,
            _ => Outcome::Rests,
        };
        (worked, outcome)
    }
}
