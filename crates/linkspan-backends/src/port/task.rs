//! What a worker does beside its queues.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use linkspan_engine::{Budget, Neighbours, Progress, Task};

use super::fabric::{Fabric, LANE, Mode};
use super::lane::Lane;

/// It has the [`Lane`] of its worker, and empties its mailbox.
pub(super) struct LaneTask {
    fabric: Arc<Fabric>,
    number: usize,
    /// Out of its place while something of this worker has a pass.
    lane: Option<Box<Lane>>,
    asleep: bool,
}

impl LaneTask {
    pub(super) fn new(fabric: &Arc<Fabric>, lane: Lane) -> Self {
        Self {
            fabric: Arc::clone(fabric),
            number: lane.number,
            lane: Some(Box::new(lane)),
            asleep: false,
        }
    }
}

/// The lane of this worker, for a pass of something else: it has to be given back. `None`
/// when it has none, since its fabric rests.
#[inline]
pub(super) fn take_lane(fabric: &Fabric, neighbours: &mut Neighbours<'_>) -> Option<Box<Lane>> {
    let mut lane = neighbours.task::<LaneTask>(LANE)?.lane.take()?;
    lane.begin(fabric, neighbours.now());
    Some(lane)
}

#[inline]
pub(super) fn give_lane_back(lane: Box<Lane>, neighbours: &mut Neighbours<'_>) {
    if let Some(task) = neighbours.task::<LaneTask>(LANE) {
        task.lane = Some(lane);
    }
}

impl Task for LaneTask {
    fn run(&mut self, budget: Budget, neighbours: &mut Neighbours<'_>) -> (bool, Progress) {
        if std::mem::take(&mut self.asleep) {
            self.fabric.mailboxes[self.number].wake_up();
        }
        let Some(lane) = &mut self.lane else {
            return (false, Progress::Idle);
        };
        let mailbox = &self.fabric.mailboxes[self.number];
        if mailbox.is_asked() {
            mailbox.answer(lane.stations(self.fabric.millis(neighbours.now())));
        }
        lane.begin(&self.fabric, neighbours.now());
        let taken = lane.take_parcels(&self.fabric, budget, neighbours);
        if self.fabric.mode != Mode::Source {
            return taken;
        }
        lane.make_frames(&self.fabric, neighbours)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fabric.mailboxes[self.number].wake.as_fd())
    }

    fn address(&self) -> Option<u32> {
        Some(LANE)
    }

    fn has_work(&mut self) -> bool {
        self.fabric.mailboxes[self.number].has_parcels()
    }

    fn can_see_work(&self) -> bool {
        // Other workers put it there.
        self.fabric.mailboxes.len() > 1
    }

    fn arm(&mut self) -> bool {
        let waits = self.fabric.mailboxes[self.number].sleep();
        self.asleep |= !waits;
        waits
    }
}
