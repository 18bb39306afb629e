//! How what runs on a worker reaches what else runs there.
//!
//! A worker owns its rings, so one that runs can be lent all others, without a
//! lock: a frame that one ring sends goes into the ring that receives it at once.

use std::any::Any;
use std::time::Instant;

use super::Task;
use super::slot::{Slot, Work};
use crate::device::{ActiveRing, QueueHandler};

/// Places of a worker by address. Addresses are small numbers.
#[derive(Default)]
pub(super) struct Addresses {
    places: Vec<usize>,
}

/// No place at all.
const NOWHERE: usize = usize::MAX;

impl Addresses {
    pub(super) fn set(&mut self, address: u32, place: usize) {
        let at = address as usize;
        if at >= self.places.len() {
            self.places.resize(at + 1, NOWHERE);
        }
        self.places[at] = place;
    }

    /// Unless the address belongs to somebody else by now.
    pub(super) fn remove(&mut self, address: u32, place: usize) {
        if let Some(at) = self.places.get_mut(address as usize)
            && *at == place
        {
            *at = NOWHERE;
        }
    }

    #[inline]
    fn get(&self, address: u32) -> usize {
        self.places.get(address as usize).map_or(NOWHERE, |at| *at)
    }
}

/// Where a ring stood before others filled it.
pub(super) struct Fed {
    /// The position of the next used element.
    pub(super) before: u16,
}

/// All others on the worker of a ring or task that has a pass.
pub struct Neighbours<'a> {
    pub(super) slots: &'a mut [Option<Slot>],
    pub(super) addresses: &'a Addresses,
    pub(super) fed: &'a mut Vec<usize>,
    pub(super) now: Instant,
}

impl Neighbours<'_> {
    /// When the worker's round began, in which each of them has one pass: nobody looks at
    /// the clock for one of these.
    #[inline]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The ring at `address` and what serves it, for chains to be taken and pushed.
    /// The worker publishes them, and notifies, when the pass is over. `None` when no
    /// such ring runs here, is enabled and is sound.
    #[inline]
    pub fn ring<H: QueueHandler>(&mut self, address: u32) -> Option<(&mut ActiveRing, &mut H)> {
        let place = self.addresses.get(address);
        let slot = self.slots.get_mut(place)?.as_mut()?;
        let Work::Ring(ring, _) = &mut slot.work else {
            return None;
        };
        if !ring.takes() || slot.stopping {
            return None;
        }
        if slot.fed.is_none() {
            let before = ring.active.queue.state().next_used;
            slot.fed = Some(Fed { before });
            self.fed.push(place);
            // What is wrong with it shows when it is published.
            ring.active.queue.refresh().ok()?;
        }
        let handler: &mut dyn Any = &mut *ring.handler;
        Some((&mut ring.active, handler.downcast_mut()?))
    }

    /// The task at `address`, if one runs here.
    #[inline]
    pub fn task<T: Task>(&mut self, address: u32) -> Option<&mut T> {
        let place = self.addresses.get(address);
        match &mut self.slots.get_mut(place)?.as_mut()?.work {
            Work::Task(task) => {
                let task: &mut dyn Any = &mut **task;
                task.downcast_mut()
            }
            Work::Ring(..) => None,
        }
    }
}

impl std::fmt::Debug for Neighbours<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Neighbours").finish_non_exhaustive()
    }
}
