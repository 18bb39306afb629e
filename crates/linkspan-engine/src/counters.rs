//! Counters of queues and workers: written by one worker, read by anybody.

use std::sync::atomic::{AtomicU64, Ordering};

/// One count. Its writer is one thread, so adding is a load and a store and
/// costs no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the count. Call only from the thread that owns it.
    #[inline]
    pub fn add(&self, more: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(more),
            Ordering::Relaxed,
        );
    }

    /// Makes it this: for what is a place and no count.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The count.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a worker counts for each queue. Aligned so that two queues on two
/// workers never share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct QueueCounters {
    /// Wake-ups by the driver's kick.
    pub kicks: Counter,
    /// Passes over the ring.
    pub passes: Counter,
    /// Notifications sent to the driver.
    pub notifications: Counter,
    /// Times that the ring was retired because the peer broke it.
    pub ring_errors: Counter,
    /// The available index up to which requests were taken, after the last pass.
    pub available: Counter,
    /// The used index up to which they were answered, after the last pass.
    pub used: Counter,
    /// Requests that were taken and not answered, after the last pass.
    pub in_flight: Counter,
}

/// What a worker counts of itself.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Passes over any of its rings.
    pub passes: Counter,
    /// Looks at its rings when nothing was left to do, each in place of a sleep.
    pub polls: Counter,
    /// Times that looking found work, so that nobody had to wake it.
    pub poll_hits: Counter,
    /// Times that it went to sleep.
    pub sleeps: Counter,
    /// Times that it woke up. One less than `sleeps` while it is asleep.
    pub wakes: Counter,
}
