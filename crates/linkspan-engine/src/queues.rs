//! The queues of a link, and where each of them stands while devices come and go.
//!
//! A queue's ring belongs to the thread that drives it until that thread says
//! that it does not touch it any more: it *parks*. Nobody waits for that. A new
//! device gets the rings of the queues that have parked, and the others one by
//! one when they do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use linkspan_sys::EventFd;
use linkspan_sys::vdpa::Doorbell;

use crate::driver::{DriverMemory, QueueEvents, QueueHandle, Resumed};

/// All queues of a link, with the memory that their rings are in.
pub(crate) struct Queues {
    memory: Arc<DriverMemory>,
    /// Signalled when a queue parks.
    bell: Arc<EventFd>,
    list: Vec<Queue>,
}

struct Queue {
    handle: QueueHandle,
    standing: Standing,
    /// How it is to go on when it gets a device again.
    next: Resumed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It has a device, as far as it knows.
    Driving,
    /// It was told that its device is gone, and may still touch its ring.
    Told,
    /// It waits for a device.
    Parked,
}

impl Queues {
    /// The queues, none of which was told anything yet; `handles[i]` has ring `i`
    /// of the memory.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub(crate) fn new(memory: Arc<DriverMemory>, handles: Vec<QueueHandle>) -> io::Result<Self> {
        let bell = Arc::new(EventFd::new()?);
        let list = handles.into_iter().map(|handle| {
            handle.signal_when_parked(&bell);
            Queue {
                handle,
                standing: Standing::Driving,
                next: Resumed::Fresh,
            }
        });
        let list = list.collect();
        Ok(Self { memory, bell, list })
    }

    pub(crate) fn memory(&self) -> &Arc<DriverMemory> {
        &self.memory
    }

    /// Becomes readable when a queue has parked.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The descriptors of a ring.
    pub(crate) fn events(&self, ring: usize) -> Option<&QueueEvents> {
        Some(&self.list.get(ring)?.handle.events)
    }

    /// All rings.
    pub(crate) fn all(&self) -> Vec<u16> {
        (0..).zip(&self.list).map(|(ring, _)| ring).collect()
    }

    /// Where a ring is kicked until the device is gone.
    pub(crate) fn give_doorbell(&self, ring: u16, doorbell: &Arc<Doorbell>) {
        self.list[usize::from(ring)].handle.give_doorbell(doorbell);
    }

    /// The device is gone.
    pub(crate) fn lost(&mut self) {
        for queue in &mut self.list {
            if queue.standing == Standing::Driving {
                queue.standing = Standing::Told;
                queue.handle.lost();
            }
        }
    }

    /// Takes in which queues have parked.
    pub(crate) fn listen(&mut self) {
        if let Err(error) = self.bell.drain() {
            panic!("our own eventfd cannot be read: {error}");
        }
        for queue in &mut self.list {
            if queue.standing == Standing::Told && queue.handle.has_parked() {
                queue.standing = Standing::Parked;
            }
        }
    }

    /// The rings whose queues wait for a device, with zeroes in those that begin
    /// anew.
    pub(crate) fn waiting(&self) -> Vec<u16> {
        let parked = (0..).zip(&self.list);
        let parked = parked.filter(|(_, queue)| queue.standing == Standing::Parked);
        let begin = |(ring, queue): (u16, &Queue)| {
            if queue.next == Resumed::Fresh {
                self.memory.clear_ring(ring);
            }
            ring
        };
        parked.map(begin).collect()
    }

    /// How a ring goes on at its next start.
    pub(crate) fn next(&self, ring: u16) -> Resumed {
        self.list[usize::from(ring)].next
    }

    /// The device knows nothing of what is under way, and neither will later ones.
    pub(crate) fn forget(&mut self) {
        for queue in &mut self.list {
            queue.next = Resumed::Fresh;
        }
    }

    /// Whether no ring ever ran on a device that could write down what is under way.
    pub(crate) fn nothing_is_known(&self) -> bool {
        self.list.iter().all(|queue| queue.next == Resumed::Fresh)
    }

    /// These rings run. What they have under way from now on is in the in-flight
    /// region, if there is one.
    pub(crate) fn started(&mut self, rings: &[u16]) {
        for ring in rings {
            let queue = &mut self.list[usize::from(*ring)];
            let resumed = std::mem::replace(&mut queue.next, Resumed::Continued);
            if queue.standing == Standing::Parked {
                queue.standing = Standing::Driving;
                queue.handle.resumed(resumed);
            }
        }
    }
}
