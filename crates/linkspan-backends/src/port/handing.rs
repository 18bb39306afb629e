//! A fabric that another process takes over, with all of its ports at once. Its guests'
//! rings and sessions go with their links; here is what they share.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use linkspan_devices::net::switch::Station;
use linkspan_engine::{NotLent, Shared, Workers};

use super::fabric::{Fabric, FabricError, Running, Side};
use super::saved::{Before, FabricRestoreError};

/// How often a queue looks whether it may go on while its fabric is held.
pub(super) const HELD_LOOK: Duration = Duration::from_millis(1);

/// How long workers have to say which stations they know: they do nothing else then.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

impl Fabric {
    /// All that its ports share, as bytes, with the stations that its switch knows.
    pub fn saved(&self, stations: Vec<Station>) -> Vec<u8> {
        Before::of(self, stations).bytes(self)
    }

    /// Goes on from what another one of the same ports [saved](Self::saved), once; to be called
    /// before it [runs](Self::run).
    ///
    /// # Errors
    /// The bytes are of another one, or of none. Nothing has changed then.
    pub fn go_on_from(&self, saved: &[u8]) -> Result<(), FabricRestoreError> {
        Before::load(self, saved)
    }
}

/// A fabric on its workers, as [`Shared`] by the links of its guests.
#[derive(Debug)]
pub struct SharedFabric {
    fabric: Arc<Fabric>,
    workers: Arc<Workers>,
    running: Mutex<Option<Running>>,
}

impl SharedFabric {
    /// Has the fabric run on these workers; one that is [held](super::FabricOptions::held) does
    /// once it knows what it is to go on from.
    ///
    /// # Errors
    /// As [`Fabric::run`].
    pub fn new(fabric: &Arc<Fabric>, workers: &Arc<Workers>) -> Result<Arc<Self>, FabricError> {
        let running = match fabric.is_held() {
            true => None,
            false => Some(fabric.run(workers)?),
        };
        Ok(Arc::new(Self {
            fabric: Arc::clone(fabric),
            workers: Arc::clone(workers),
            running: Mutex::new(running),
        }))
    }

    /// Has it rest, as when a [`Running`] is dropped.
    pub fn stop(&self) {
        *self.running() = None;
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all frames that were taken in have arrived by then.
    fn arrived(&self, until: Instant) -> bool {
        let left = || until.saturating_duration_since(Instant::now());
        let mailboxes = &self.fabric.mailboxes;
        // What waits for one worker may make work for another one, once.
        let idle = || (0..2).all(|_| mailboxes.iter().all(|mailbox| mailbox.is_idle()));
        // From the first round on all see that it is held.
        while !left().is_zero() && self.workers.come_round(left()) {
            if idle() {
                return true;
            }
        }
        false
    }
}

impl Shared for SharedFabric {
    /// The queues of interfaces, in the order of ports.
    fn lend(&self) -> Result<Vec<OwnedFd>, NotLent> {
        if self.fabric.capture.is_some() {
            return Err(NotLent(
                "a network whose frames are captured cannot be taken over while it runs: the \
                 capture would end in the middle; restart its link instead"
                    .to_owned(),
            ));
        }
        let taps = self.fabric.ports.iter().flat_map(|port| match &port.kind {
            Side::Tap(queues, _) => &queues[..],
            Side::Guest(_) | Side::Responder(_) => &[],
        });
        let lent = taps.map(|queue| queue.dup());
        let lent = lent.collect::<Result<_, _>>();
        lent.map_err(|error| NotLent(format!("a queue of an interface: {error}")))
    }

    fn hold(&self, limit: Duration) -> Result<(), NotLent> {
        // Whoever holds it would release it in the middle of this.
        if self.fabric.is_held() {
            let why = "its ports are still on their way back from another hand-over";
            return Err(NotLent(why.to_owned()));
        }
        self.fabric.hold();
        if self.arrived(Instant::now() + limit) {
            return Ok(());
        }
        self.fabric.release();
        Err(NotLent(format!(
            "frames between workers did not arrive within {} ms",
            limit.as_millis()
        )))
    }

    fn save(&self) -> Result<Vec<u8>, NotLent> {
        let mailboxes = &self.fabric.mailboxes;
        mailboxes.iter().for_each(|mailbox| mailbox.ask());
        let until = Instant::now() + ANSWER_LIMIT;
        let mut stations = Vec::new();
        for mailbox in mailboxes {
            let mut said = mailbox.answered();
            while said.is_none() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() || !self.workers.come_round(left) {
                    return Err(NotLent("a worker does not answer".to_owned()));
                }
                said = mailbox.answered();
            }
            stations.extend(said.into_iter().flatten());
        }
        Ok(self.fabric.saved(stations))
    }

    fn load(&self, saved: &[u8]) -> Result<(), NotLent> {
        let refused = |error: &dyn std::fmt::Display| NotLent(format!("the network: {error}"));
        let known = self.fabric.go_on_from(saved);
        known.map_err(|error| refused(&error))?;
        let running = self.fabric.run(&self.workers);
        *self.running() = Some(running.map_err(|error| refused(&error))?);
        Ok(())
    }

    fn release(&self) {
        self.fabric.release();
    }
}
