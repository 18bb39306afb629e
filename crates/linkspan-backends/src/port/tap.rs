//! A queue of a tap interface as part of a port: frames that the kernel sends go
//! into the fabric. What goes to the kernel is written by whoever has it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use linkspan_devices::net::features::Offloads;
use linkspan_devices::net::header::{Header, HeaderLayout};
use linkspan_engine::{Budget, Neighbours, Progress, Task};
use linkspan_sys::tap::{self, HEADER_LEN, TapQueue};

use super::counters::DropCause;
use super::fabric::{BYTES_MAX, Fabric};
use super::handing::HELD_LOOK;
use super::lane::{Came, Lane};
use super::mailbox::split;
use super::task::{give_lane_back, take_lane};

/// What the kernel does of frames that it gets.
pub(super) const TO_KERNEL: Offloads = Offloads::all().difference(Offloads::UFO);

/// What the kernel may leave to us.
pub fn from_kernel() -> tap::Offloads {
    tap::Offloads::all()
}

/// Frames in a pass: each is a system call.
const BATCH: u32 = 64;

/// Errors in a row after which the interface is given up.
const ERRORS_MAX: u32 = 64;

/// A queue of a tap interface, on the worker that reads it.
pub(super) struct TapTask {
    fabric: Arc<Fabric>,
    port: u16,
    queue: Arc<TapQueue>,
    bytes: Vec<u8>,
    errors: u32,
    over: bool,
}

impl TapTask {
    pub(super) fn new(fabric: &Arc<Fabric>, port: u16, queue: Arc<TapQueue>) -> Self {
        Self {
            fabric: Arc::clone(fabric),
            port,
            queue,
            bytes: vec![0; HEADER_LEN + BYTES_MAX],
            errors: 0,
            over: false,
        }
    }

    fn pass(
        &mut self,
        budget: Budget,
        lane: &mut Lane,
        neighbours: &mut Neighbours<'_>,
    ) -> (bool, Progress) {
        let fabric = &*self.fabric;
        let port = &fabric.ports[usize::from(self.port)];
        let (limit, shut) = (port.limit.as_ref(), port.is_shut());
        for taken in 0..BATCH.min(budget.chains) {
            if lane.cost >= budget.bytes {
                return (true, Progress::More);
            }
            let len = match self.queue.receive(&mut self.bytes) {
                Ok(Some(len)) => len,
                Ok(None) => return (taken > 0, Progress::Idle),
                Err(error) => {
                    self.failed(&error);
                    return (taken > 0, Progress::Idle);
                }
            };
            self.errors = 0;
            let counts = lane.counts(fabric, self.port);
            let Some(bytes) = self.bytes.get(HEADER_LEN..len) else {
                counts.dropped(DropCause::Malformed);
                continue;
            };
            if shut {
                counts.dropped(DropCause::Down);
                continue;
            }
            if let Some(limit) = limit {
                if limit.admit(lane.now()).is_err() {
                    counts.dropped(DropCause::Limit);
                    continue;
                }
                limit.charge(bytes.len() as u64, lane.now());
            }
            let header = self.bytes.first_chunk().expect("the buffer is longer");
            let header = Header::read(HeaderLayout::Buffers, header);
            match header.check(bytes.len() as u64, TO_KERNEL) {
                Ok(offload) => {
                    let came = Came {
                        port: self.port,
                        offload: &offload,
                        frame: split(bytes),
                    };
                    lane.forward(fabric, &came, neighbours);
                }
                Err(_) => counts.dropped(DropCause::Header),
            }
        }
        (true, Progress::More)
    }

    /// An interface that is down comes up again; one that was removed does not, and
    /// its descriptor would keep the worker awake for ever.
    fn failed(&mut self, error: &io::Error) {
        self.errors += 1;
        // `EBADFD`: the interface is gone.
        self.over = error.raw_os_error() == Some(77) || self.errors > ERRORS_MAX;
        if self.over {
            let name = self.fabric.name(self.port);
            tracing::error!("port {name}: the interface is gone: {error}");
        }
    }
}

impl Task for TapTask {
    fn run(&mut self, budget: Budget, neighbours: &mut Neighbours<'_>) -> (bool, Progress) {
        if self.fabric.is_held() {
            // Its descriptor wakes the worker all the time, for the milliseconds of a hand-over.
            return (false, Progress::Until(neighbours.now() + HELD_LOOK));
        }
        let Some(mut lane) = take_lane(&self.fabric, neighbours) else {
            // The fabric rests.
            return (false, Progress::Idle);
        };
        let done = self.pass(budget, &mut lane, neighbours);
        give_lane_back(lane, neighbours);
        done
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.as_fd())
    }

    fn is_over(&self) -> bool {
        self.over
    }
}
