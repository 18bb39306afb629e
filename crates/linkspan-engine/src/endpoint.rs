//! The life of what connects: one picture for every kind of link.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Where an endpoint is in its life. An end that is not wanted leads back to
/// waiting: there is no dead end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nobody is connected yet.
    Idle,
    /// A peer is connected and says what it can.
    Negotiating,
    /// Everything is agreed, no queue runs.
    Ready,
    /// At least one queue runs.
    Running,
    /// The end is near: work in flight is being finished.
    Draining,
    /// The peer is gone and may come back.
    Reconnecting,
    /// Ended on request.
    Stopped,
}

const PHASES: [Phase; 7] = [
    Phase::Idle,
    Phase::Negotiating,
    Phase::Ready,
    Phase::Running,
    Phase::Draining,
    Phase::Reconnecting,
    Phase::Stopped,
];

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Negotiating => "negotiating",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Reconnecting => "reconnecting",
            Self::Stopped => "stopped",
        })
    }
}

/// An endpoint as anybody may look at it. One thread moves it on.
#[derive(Debug)]
pub struct Endpoint {
    phase: AtomicU8,
    generation: AtomicU32,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Idle as u8),
            generation: AtomicU32::new(0),
        }
    }
}

impl Endpoint {
    /// Where it is.
    pub fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// How many peers it has had: marks what belongs to an earlier life.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Moves on.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// A new peer is there: begins the next generation and returns its number.
    pub fn begin(&self) -> u32 {
        self.enter(Phase::Negotiating);
        self.generation.fetch_add(1, Ordering::AcqRel) + 1
    }
}
