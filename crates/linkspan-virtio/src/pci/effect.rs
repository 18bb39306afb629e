//! What a function is made of, and what its driver's accesses ask for.

use alloc::vec::Vec;

use super::NO_VECTOR;

/// What a device offers its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Features.
    pub features: u64,
    /// The largest size of each queue, at most 1024 queues.
    pub queue_sizes: Vec<u16>,
    /// Bytes of device configuration.
    pub config_len: u32,
}

/// What the driver says of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its entries.
    pub size: u16,
    /// Its interrupt, or [`NO_VECTOR`].
    pub vector: u16,
    /// Whether it takes part.
    pub enabled: bool,
    /// Descriptor, driver and device area.
    pub areas: [u64; 3],
}

impl Queue {
    pub(super) fn unused(size: u16) -> Self {
        Self {
            size,
            vector: NO_VECTOR,
            enabled: false,
            areas: [0; 3],
        }
    }
}

/// Up to 8 bytes that were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    bytes: [u8; 8],
    len: usize,
}

impl Bytes {
    pub(super) fn new(source: &[u8]) -> Option<Self> {
        let mut bytes = [0; 8];
        bytes.get_mut(..source.len())?.copy_from_slice(source);
        let len = source.len();
        Some(Self { bytes, len })
    }
}

impl core::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What a driver's write asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Accept these features, of those that were offered. To be answered.
    Agree {
        /// The features.
        features: u64,
    },
    /// Run, with the queues that are enabled. To be answered.
    Start,
    /// Forget everything. To be answered.
    Reset,
    /// Let go of one queue (virtio 1.3, 2.6.1) that takes no part any more. To be answered.
    /// Drivers wait for it, so it comes also while the device needs a reset: then none of
    /// its queues goes on.
    ResetQueue {
        /// The queue.
        queue: u16,
    },
    /// Let a queue of a device that runs take part again. To be answered.
    EnableQueue {
        /// The queue.
        queue: u16,
    },
    /// Look at a queue.
    Kick {
        /// The queue.
        queue: u16,
    },
    /// Write device configuration.
    WriteConfig {
        /// From this byte on.
        offset: u32,
        /// These bytes.
        bytes: Bytes,
    },
    /// A queue has another interrupt.
    Vector {
        /// The queue.
        queue: u16,
    },
}

/// What is read, once the access is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// It is there.
    Done,
    /// So many bytes of device configuration from this byte on, and zeroes behind them.
    Config {
        /// The first byte.
        offset: u32,
        /// How many.
        len: usize,
    },
}
