//! The life of what connects: one picture for every kind of link.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use linkspan_vhost::{MemoryRegion, ProtocolFeatures};

use crate::counters::QueueCounters;
use crate::messages::Messages;

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

/// What was agreed upon with a peer, as anybody may look at it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The features that the driver accepted, once it did.
    pub features: Option<u64>,
    /// What was agreed upon of the protocol.
    pub protocol_features: ProtocolFeatures,
    /// The peer's memory that is mapped.
    pub regions: Vec<MemoryRegion>,
    /// The rings that run.
    pub rings: Vec<RingView>,
}

/// A ring that runs.
#[derive(Clone, Debug)]
pub struct RingView {
    /// Index within its device.
    pub index: u16,
    /// Its entries.
    pub size: u16,
    /// Whether it takes requests.
    pub enabled: bool,
    /// What its worker counts; none if a device of the kernel has it.
    pub counters: Option<Arc<QueueCounters>>,
}

/// An endpoint as anybody may look at it. One thread moves it on.
#[derive(Debug)]
pub struct Endpoint {
    phase: AtomicU8,
    generation: AtomicU32,
    messages: Arc<Messages>,
    /// Changed with the peer's messages, never with requests.
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    view: View,
    last_error: Option<String>,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Idle as u8),
            generation: AtomicU32::new(0),
            messages: Arc::default(),
            seen: Mutex::default(),
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

    /// What was agreed upon with the peer that is there.
    pub fn view(&self) -> View {
        self.seen().view.clone()
    }

    /// Why the last life ended that ended by a fault.
    pub fn last_error(&self) -> Option<String> {
        self.seen().last_error.clone()
    }

    /// The messages that go by.
    pub fn messages(&self) -> &Arc<Messages> {
        &self.messages
    }

    /// Shows what was agreed upon, and enters the phase that goes with it.
    pub(crate) fn show(&self, view: View) {
        self.enter(match view.features {
            _ if !view.rings.is_empty() => Phase::Running,
            Some(_) => Phase::Ready,
            None => Phase::Negotiating,
        });
        self.set_view(view);
    }

    /// Shows what was agreed upon; the phase is somebody else's business.
    pub(crate) fn set_view(&self, view: View) {
        self.seen().view = view;
    }

    /// Something went wrong: it is the last error until the next one.
    pub fn fault(&self, fault: &str) {
        self.seen().last_error = Some(fault.to_owned());
    }

    /// The peer is gone, by a fault perhaps, and with it what was agreed upon.
    pub(crate) fn lose(&self, fault: Option<&str>) {
        self.enter(Phase::Reconnecting);
        let mut seen = self.seen();
        seen.view = View::default();
        if let Some(fault) = fault {
            seen.last_error = Some(fault.to_owned());
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // What is within is whole after each change.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves on.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// There have been so many peers in the processes before this one.
    pub(crate) fn resume(&self, generation: u32) {
        self.generation.store(generation, Ordering::Release);
    }

    /// A new peer is there: begins the next generation and returns its number.
    pub fn begin(&self) -> u32 {
        self.enter(Phase::Negotiating);
        self.generation.fetch_add(1, Ordering::AcqRel) + 1
    }
}
