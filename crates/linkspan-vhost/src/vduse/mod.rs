//! VDUSE, the side of the device: what the kernel asks, and the order in which a
//! device does what that needs (Linux, Documentation/userspace-api/vduse.rst).
//!
//! The kernel keeps what drivers say: status, features, where rings are. It asks
//! for three things: that a change of the status is accepted, where a ring
//! stands, and that memory is looked up anew. Requests are answered one by one.
//!
//! A [`Vduse`] takes a request with [`receive`](Vduse::receive), gives effects
//! with [`poll_effect`](Vduse::poll_effect), and wants an
//! [`answer`](Vduse::answer) to each but [`Effect::Send`] and
//! [`Effect::ProveInterrupts`]. What the kernel says is checked as if it were
//! hostile: most of it comes from the driver.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::backend::{Failure, RingSetup};
use crate::features::VIRTIO_F_RING_PACKED;

mod effect;
mod error;
mod saved;
mod steps;
mod wire;

pub use effect::{Answer, Effect, RingInfo};
pub use error::{Misuse, Refusal};
pub use saved::{RestoreError, SNAPSHOT_BYTES};
use wire::Request;
pub use wire::{MESSAGE_BYTES, State, describe, describe_answer};

use steps::Job;

/// Virtio 1.3, 2.1.
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;

/// Virtio 1.3, 6.
const VIRTIO_F_VERSION_1: u64 = 1 << 32;

/// What the device is. It cannot change while the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Virtio device type.
    pub device_id: u32,
    /// Virtio features.
    pub features: u64,
    /// Number of queues.
    pub queues: u16,
    /// The largest size of a queue.
    pub queue_size_max: u16,
    /// Bytes of configuration space.
    pub config_size: u32,
}

/// One VDUSE device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vduse {
    offer: Offer,
    /// The last status that was accepted.
    status: u8,
    /// What the driver accepted, from `FEATURES_OK` on.
    features: u64,
    /// How each ring was started, if it runs.
    running: Vec<Option<RingSetup>>,
    job: Job,
    effects: VecDeque<Effect>,
    /// Whether the effect taken last waits for its answer.
    asked: bool,
}

impl Vduse {
    /// A device that no driver has touched yet.
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        Self {
            status: 0,
            features: 0,
            running: (0..offer.queues).map(|_| None).collect(),
            job: Job::Idle,
            effects: VecDeque::new(),
            asked: false,
            offer,
        }
    }

    /// The last status that was accepted.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.status
    }

    /// What the driver accepted; 0 before it did.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether the driver uses the device (`DRIVER_OK`).
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// How a ring was started, if it runs.
    #[must_use]
    pub fn running(&self, ring: u16) -> Option<RingSetup> {
        *self.running.get(usize::from(ring))?
    }

    /// Whether a request can be received: none is being answered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.job, Job::Idle) && self.effects.is_empty() && !self.asked
    }

    /// Takes a request, as it was read from the device.
    ///
    /// # Errors
    /// [`Refusal`], for the log: the kernel is told that the request failed,
    /// unless the bytes are none.
    ///
    /// # Panics
    /// When the device is not [idle](Self::is_idle).
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        assert!(self.is_idle(), "requests are answered one by one");
        let request = Request::parse(bytes)?;
        self.begin(&request)
    }

    /// What is to be done next. Nothing, while an answer is due.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if self.asked {
            return None;
        }
        let effect = self.effects.pop_front()?;
        self.asked = effect.needs_answer();
        Some(effect)
    }

    /// The effect taken last was carried out, or was not. What the driver did
    /// wrong is the error, if it did; the kernel is told then.
    ///
    /// # Errors
    /// [`Refusal`]: for the log.
    pub fn answer(&mut self, done: Result<Answer, Failure>) -> Result<(), Refusal> {
        if !core::mem::take(&mut self.asked) {
            return Err(Misuse::NotAsked.into());
        }
        self.go_on(done)
    }

    /// A ring does not run any more.
    fn ring_lost(&mut self, ring: u16) {
        if let Some(running) = self.running.get_mut(usize::from(ring)) {
            *running = None;
        }
    }
}
