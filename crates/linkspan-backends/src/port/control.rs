//! The control queue of a guest at a port: its commands are served here, and what
//! the driver has asked for is seen by the workers that deliver frames.
//!
//! There is one only where the front end starts the ring behind the queue pairs.
//! Most front ends keep that queue to themselves, and enable rings instead.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use linkspan_devices::net::control::{Change, Control, ControlRestoreError};
use linkspan_devices::net::features::Offloads;
use linkspan_devices::net::{HashReport, Live, Net};
use linkspan_engine::{ActiveRing, Budget, LogLimit, Progress, QueueHandler};
use linkspan_sys::EventFd;
use linkspan_virtio::{Chain, Features, QueueError};

use super::fabric::{Fabric, Side};

/// Commands in a pass: each makes a copy of the whole state.
const COMMANDS: u32 = 8;

/// What the driver of a guest has asked for, as far as there is a control queue.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// 0 without a control queue, and another number after each change.
    generation: AtomicU32,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    changes: u32,
    control: Option<Arc<Control>>,
}

impl Current {
    /// The state, to be changed.
    fn copy(&self) -> Option<Control> {
        self.control.as_deref().cloned()
    }
}

/// What a worker keeps of it.
pub(super) type Known = Option<(u32, Arc<Control>)>;

impl Asked {
    /// Whether anything is asked for; one load, for each frame.
    #[inline]
    pub(super) fn is_there(&self) -> bool {
        self.generation.load(Ordering::Relaxed) != 0
    }

    /// The state as it is now; `known` is what was seen of it last. `None` when there
    /// is none any more.
    #[inline]
    pub(super) fn see<'a>(&self, known: &'a mut Known) -> Option<&'a Control> {
        let generation = self.generation.load(Ordering::Acquire);
        if !matches!(known, Some((seen, _)) if *seen == generation) {
            *known = self.look();
        }
        known.as_ref().map(|(_, control)| &**control)
    }

    #[cold]
    fn look(&self) -> Known {
        let current = self.lock();
        let control = current.control.as_ref()?;
        Some((current.changes, Arc::clone(control)))
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, current: &mut Current, control: Option<Control>) {
        current.control = control.map(Arc::new);
        let generation = if current.control.is_some() {
            // Never 0.
            current.changes = current.changes.wrapping_add(2) | 1;
            current.changes
        } else {
            0
        };
        self.generation.store(generation, Ordering::Release);
    }

    /// Whatever was asked for is forgotten.
    pub(super) fn forget(&self) {
        self.put(&mut self.lock(), None);
    }

    /// The same if it was asked for by a driver with other features: a queue of
    /// another one starts.
    pub(super) fn expect(&self, accepted: Features) {
        let mut current = self.lock();
        let control = current.control.as_ref();
        if control.is_some_and(|control| control.accepted() != accepted) {
            self.put(&mut current, None);
        }
    }

    /// A control queue starts. One that was stopped before, as when a machine is
    /// paused, goes on with what was asked for.
    fn begin(&self, net: &Net, accepted: Features) {
        let mut current = self.lock();
        if current.control.is_none() {
            self.put(&mut current, Some(Control::new(net, accepted)));
        }
    }

    /// What configuration space shows.
    pub(super) fn live(&self, link_up: bool) -> Option<Live> {
        let current = self.lock();
        let control = current.control.as_ref();
        control.map(|control| control.live(link_up))
    }

    /// What was asked for, for another process; nothing without a control queue.
    pub(super) fn save(&self) -> Vec<u8> {
        let current = self.lock();
        let Some(control) = &current.control else {
            return Vec::new();
        };
        let features = control.accepted().bits().to_le_bytes();
        [&features[..], &control.snapshot()].concat()
    }

    /// Goes on from what [`save`](Self::save) said.
    pub(super) fn load(&self, net: &Net, saved: &[u8]) -> Result<(), ControlRestoreError> {
        let control = match saved.split_first_chunk() {
            None if saved.is_empty() => None,
            None => return Err(ControlRestoreError::Length { len: saved.len() }),
            Some((features, state)) => {
                let accepted = Features::from_bits_retain(u64::from_le_bytes(*features));
                Some(Control::restore(net, accepted, state)?)
            }
        };
        self.put(&mut self.lock(), control);
        Ok(())
    }

    /// Asks the driver to announce itself; `false` when it cannot.
    pub(super) fn ask_to_announce(&self) -> bool {
        let mut current = self.lock();
        let Some(mut control) = current.copy() else {
            return false;
        };
        let can = control.ask_to_announce();
        self.put(&mut current, Some(control));
        can
    }
}

/// What a guest's driver has to say about the frame that it is to get.
#[derive(Clone, Copy, Default)]
pub(super) struct Terms {
    /// What may be left to it, if that is not what it negotiated.
    pub(super) offloads: Option<Offloads>,
    /// The hash that it wants to know.
    pub(super) hash: Option<HashReport>,
}

/// Serves a control queue.
pub(super) struct ControlQueue {
    fabric: Arc<Fabric>,
    port: u16,
    chain: Chain,
    changes: Arc<EventFd>,
    refusals: LogLimit,
}

impl ControlQueue {
    /// For a driver with these features.
    pub(super) fn new(
        (fabric, port): (Arc<Fabric>, u16),
        (net, accepted): (&Net, Features),
        chain: Chain,
        changes: Arc<EventFd>,
    ) -> Self {
        if let Side::Guest(pairs) = &fabric.ports[usize::from(port)].kind {
            pairs.asked.begin(net, accepted);
        }
        Self {
            fabric,
            port,
            chain,
            changes,
            refusals: LogLimit::default(),
        }
    }
}

impl QueueHandler for ControlQueue {
    fn run(&mut self, ring: &mut ActiveRing, budget: Budget) -> Result<Progress, QueueError> {
        let fabric = Arc::clone(&self.fabric);
        let port = &fabric.ports[usize::from(self.port)];
        let Side::Guest(pairs) = &port.kind else {
            return Ok(Progress::Idle);
        };
        for _ in 0..budget.chains.min(COMMANDS) {
            if !ring.queue.pop(&ring.memory.guest, &mut self.chain)? {
                return Ok(Progress::Idle);
            }
            let mut current = pairs.asked.lock();
            let Some(mut control) = current.copy() else {
                // The driver begins anew, and this ring is about to stop.
                return Ok(Progress::Idle);
            };
            let served = control
                .serve(&mut self.chain, ring.memory.table())
                .map_err(|error| ring.queue.retire(error))?;
            if served.outcome.is_ok() {
                // Seen by all workers before the driver sees that it is done.
                pairs.asked.put(&mut current, Some(control));
            }
            drop(current);
            ring.log_write(served.answer);
            ring.queue.push(&self.chain, served.written)?;
            match served.outcome {
                Ok(change) => {
                    port.control.count(Ok(()));
                    if matches!(change, Change::Mac(_) | Change::Announced)
                        && let Err(error) = self.changes.signal()
                    {
                        panic!("our own eventfd cannot be signalled: {error}");
                    }
                }
                Err(error) => {
                    port.control.count(Err(&error));
                    if let Some(more) = self.refusals.allow() {
                        let name = &port.name;
                        tracing::debug!(more, "port {name}: a control command is refused: {error}");
                    }
                }
            }
        }
        Ok(Progress::More)
    }
}
