//! One life of a VDUSE device: the protocol core, and the memory, descriptors and
//! rings that its effects act on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use linkspan_mem::{Gpa, GuestMemory, SpaceError};
use linkspan_sys::vduse::{self, MESSAGE_BYTES, QueueInfo, VduseDevice};
use linkspan_sys::{EventFd, PeerEventFd};
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::backend::{Failure, RingSetup};
use linkspan_vhost::vduse::{self as protocol, Answer, Effect, RingInfo, State, Vduse};
use linkspan_virtio::{Features, QueueError};

use super::error::Reason;
use super::iova::{MapError, look_up, nothing};
use super::open::read_config;
use super::record::Record;
use crate::device::Device;
use crate::endpoint::{Endpoint, View};
use crate::inflight::InflightArea;
use crate::rings::{Ground, Rings, StartRingError};
use crate::worker::{Notify, Ring, RingEvent, RingFault};

/// Pauses between attempts to interrupt a driver that the kernel does not yet hold
/// for running: they grow from the first to the last.
const PROOF_PAUSE: Duration = Duration::from_millis(1);
const PROOF_PAUSE_MAX: Duration = Duration::from_millis(200);

/// What the effect taken last waits for.
enum Waiting {
    /// The event that follows the command to a ring.
    Ring,
    /// Running rings come to rest so that memory can change under them.
    Pause {
        left: usize,
        paused: Vec<(Box<Ring>, RingSetup)>,
        memory: Arc<GuestMemory>,
        why: Why,
    },
    /// They run again.
    Resume { left: usize, why: Why },
}

/// Who wants other memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The kernel.
    Asked,
    /// A ring that found something outside what is mapped.
    Missed,
}

/// Interrupts are to be let through.
struct Proof {
    rings: Vec<u16>,
    config: bool,
    at: Instant,
    pause: Duration,
}

/// A device that is served.
pub(super) struct DeviceSession {
    core: Vduse,
    link: Arc<VduseDevice>,
    device: Arc<dyn Device>,
    record: Record,
    inflight: InflightArea,
    rings: Rings,
    memory: Arc<GuestMemory>,
    events: Receiver<RingEvent>,
    wake: Arc<EventFd>,
    waiting: Option<Waiting>,
    /// Rings that found an address outside memory, and which.
    missed: Vec<(u16, SpaceError)>,
    /// What each ring missed last and was found since.
    found: Vec<Option<SpaceError>>,
    proof: Option<Proof>,
    /// Rings of an earlier process are being brought back.
    resuming: bool,
    closing: bool,
    endpoint: Arc<Endpoint>,
}

impl DeviceSession {
    /// The session of a device that was opened.
    pub(super) fn new(
        core: Vduse,
        link: VduseDevice,
        (record, inflight): (Record, InflightArea),
        device: Arc<dyn Device>,
        (rings, events, wake): (Rings, Receiver<RingEvent>, Arc<EventFd>),
        endpoint: Arc<Endpoint>,
    ) -> Self {
        let queues = usize::from(device.queues());
        Self {
            core,
            link: Arc::new(link),
            device,
            record,
            inflight,
            rings,
            memory: nothing(),
            events,
            wake,
            waiting: None,
            missed: Vec::new(),
            found: vec![None; queues],
            proof: None,
            resuming: true,
            closing: false,
            endpoint,
        }
    }

    /// For who looks at the endpoint.
    fn show(&self) {
        self.endpoint.set_view(View {
            features: self.is_live().then(|| self.core.features()),
            protocol_features: ProtocolFeatures::empty(),
            regions: Vec::new(),
            rings: self.rings.views(|_| true),
        });
    }

    /// Where requests come from.
    pub(super) fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Becomes readable when [`wake`](Self::wake) is due.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Whether a driver uses the device.
    pub(super) fn is_live(&self) -> bool {
        self.core.is_live()
    }

    /// Whether a request is wanted now.
    pub(super) fn wants_request(&self) -> bool {
        self.waiting.is_none() && self.core.is_idle()
    }

    /// When [`wake`](Self::wake) is due at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.proof.as_ref().map(|proof| proof.at)
    }

    /// Takes the next request, if there is one.
    ///
    /// # Errors
    /// When the device is broken, or the system does not let us read.
    pub(super) fn hear(&mut self) -> Result<(), Reason> {
        let mut bytes = [0; MESSAGE_BYTES];
        let Some(len) = self.link.receive(&mut bytes)? else {
            return Ok(());
        };
        let messages = self.endpoint.messages();
        messages.pass(true, protocol::describe(&bytes[..len]));
        if let Err(refusal) = self.core.receive(&bytes[..len]) {
            tracing::warn!("a request of the kernel is refused: {refusal}");
        }
        self.proceed()
    }

    /// Carries out effects until one has to wait or none is left.
    ///
    /// # Errors
    /// When the device is broken.
    pub(super) fn proceed(&mut self) -> Result<(), Reason> {
        while self.waiting.is_none() {
            let Some(effect) = self.core.poll_effect() else {
                self.resuming = false;
                return self.settle_misses();
            };
            match self.carry_out(effect) {
                Ok(None) => {}
                Ok(Some(answer)) => self.answer(Ok(answer)),
                Err(reason) if self.ends(&reason) => return Err(reason),
                Err(reason) => self.answer(Err(reason)),
            }
        }
        Ok(())
    }

    /// Whether this ends the session. While rings of an earlier process are brought
    /// back, anything that another attempt may have does: nobody asked for it, so
    /// nobody can be told that it failed.
    fn ends(&self, reason: &Reason) -> bool {
        matches!(reason, Reason::Kernel(vduse::Error::Broken(_)))
            || self.resuming && reason.failure() == Failure::System
    }

    fn answer(&mut self, done: Result<Answer, Reason>) {
        self.waiting = None;
        let done = done.map_err(|reason| {
            tracing::warn!("what the driver wants cannot be done: {reason}");
            reason.failure()
        });
        if let Err(refusal) = self.core.answer(done) {
            tracing::warn!("a request of the kernel is refused: {refusal}");
        }
    }

    /// Begins an effect. `None`: it needs no answer, or its answer comes later.
    fn carry_out(&mut self, effect: Effect) -> Result<Option<Answer>, Reason> {
        match effect {
            Effect::ReadFeatures => {
                return Ok(Some(Answer::Features(self.link.features()?)));
            }
            Effect::ReadRing { ring } => {
                let info = self.link.queue_info(ring)?;
                return Ok(Some(Answer::Ring(self.ring_info(&info)?)));
            }
            Effect::UpdateMemory => return self.update_memory(Why::Asked),
            // No ring runs, and the next driver begins anew.
            Effect::DropMemory => {
                self.device.reset();
                self.memory = nothing();
                self.missed.clear();
                self.found.fill(None);
                self.proof = None;
            }
            Effect::ForgetInflight => self.record.forget()?,
            Effect::Remember(bytes) => self.record.write(&bytes)?,
            Effect::StartRing { ring, setup } => return self.start_ring(ring, setup),
            Effect::StopRing { ring } => {
                if !self.rings.command(ring, |workers, key| workers.stop(key)) {
                    return Ok(Some(Answer::RingStopped { base: 0 }));
                }
                self.waiting = Some(Waiting::Ring);
                return Ok(None);
            }
            Effect::ProveInterrupts => {
                self.prove();
                return Ok(None);
            }
            Effect::Send(bytes) => {
                let messages = self.endpoint.messages();
                messages.pass(false, protocol::describe_answer(&bytes));
                self.show();
                if !self.link.respond(&bytes)? {
                    tracing::debug!("the kernel does not wait for this answer any more");
                }
                return Ok(None);
            }
        }
        Ok(Some(Answer::Done))
    }

    /// What the kernel says of a ring. The layout of its state goes with the
    /// features that the kernel has by now, which may be none.
    fn ring_info(&self, info: &QueueInfo) -> Result<RingInfo, Reason> {
        let features = Features::from_bits_retain(self.link.features()?);
        let packed = features.contains(Features::VIRTIO_F_RING_PACKED);
        Ok(RingInfo {
            size: info.size,
            descriptor: info.descriptor,
            driver: info.driver,
            device: info.device,
            state: State::from_words(info.state, packed),
            ready: info.ready != 0,
        })
    }

    fn start_ring(&mut self, ring: u16, setup: RingSetup) -> Result<Option<Answer>, Reason> {
        let kick = EventFd::new()?;
        self.link.set_kick(ring, &kick)?;
        let kick = PeerEventFd::check(kick.into())?;
        self.rings.slot(ring).call = Some(Notify::Interrupt(Arc::clone(&self.link), ring));
        let ground = Ground {
            memory: &self.memory,
            inflight: Some(&self.inflight),
            log: None,
        };
        self.rings.start(ring, setup, Some(kick), ground)?;
        self.waiting = Some(Waiting::Ring);
        Ok(None)
    }

    /// Looks up the driver's memory anew. Rings that run are brought to rest first:
    /// until the last request that uses the old memory is done, it stays mapped and
    /// the kernel gets no answer.
    fn update_memory(&mut self, why: Why) -> Result<Option<Answer>, Reason> {
        let memory = look_up(&self.link, &self.wake)?;
        self.found.fill(None);
        if self.rings.are_stopped() {
            self.memory = memory;
            return Ok(Some(Answer::Done));
        }
        self.pause(memory, why);
        Ok(None)
    }

    fn pause(&mut self, memory: Arc<GuestMemory>, why: Why) {
        self.waiting = Some(Waiting::Pause {
            left: self.rings.stop_all(),
            paused: Vec::new(),
            memory,
            why,
        });
    }

    /// Rings that found something outside memory: a driver in the kernel maps its
    /// first buffer only after the rings run, and nobody says so. If it is there by
    /// now they go on, else they stay as they are: broken.
    fn settle_misses(&mut self) -> Result<(), Reason> {
        if self.missed.is_empty() || self.closing {
            return Ok(());
        }
        let memory = match look_up(&self.link, &self.wake) {
            Ok(memory) => memory,
            Err(MapError::Kernel(error @ vduse::Error::Broken(_))) => return Err(error.into()),
            Err(error) => {
                tracing::warn!("the driver's memory cannot be mapped: {error}");
                self.missed.clear();
                return Ok(());
            }
        };
        let there = |at: &SpaceError| {
            // Ranges of buffers have 32 bits.
            let len = u32::try_from(at.len).unwrap_or(u32::MAX);
            let found = memory
                .guest
                .resolve_for(Gpa(at.address), len, at.write, |_| {});
            found.is_ok()
        };
        let found = &mut self.found;
        self.missed.retain(|(ring, at)| {
            // Found once and missed again is not to be had.
            let there = found[usize::from(*ring)] != Some(*at) && there(at);
            if there {
                found[usize::from(*ring)] = Some(*at);
            } else {
                tracing::warn!(ring, "retired: {at}");
            }
            there
        });
        if !self.missed.is_empty() {
            self.pause(memory, Why::Missed);
        }
        Ok(())
    }

    /// All rings are at rest: swaps the memory and starts them again.
    fn resume(
        &mut self,
        paused: Vec<(Box<Ring>, RingSetup)>,
        memory: Arc<GuestMemory>,
        why: Why,
    ) -> Result<(), Reason> {
        self.memory = memory;
        let mut left = 0;
        for (mut ring, setup) in paused {
            let index = ring.index;
            let missed = self.missed.iter().any(|(missed, _)| *missed == index);
            if missed {
                ring.retired = false;
            }
            let ground = Ground {
                memory: &self.memory,
                inflight: Some(&self.inflight),
                log: None,
            };
            // One that cannot go on ends this session: the next one brings it back,
            // with what it has in flight.
            self.rings
                .go_on(ring, setup, ground)
                .map_err(StartRingError::from)?;
            left += 1;
        }
        self.missed.clear();
        self.resumed(left, why)
    }

    /// `left` rings do not run again yet.
    fn resumed(&mut self, left: usize, why: Why) -> Result<(), Reason> {
        if left > 0 {
            self.waiting = Some(Waiting::Resume { left, why });
            return Ok(());
        }
        self.waiting = None;
        if why == Why::Asked {
            self.answer(Ok(Answer::Done));
        }
        self.proceed()
    }

    /// Takes in what workers and others have for the session.
    ///
    /// # Errors
    /// When the device is broken.
    pub(super) fn wake(&mut self) -> Result<(), Reason> {
        if let Err(error) = self.wake.drain() {
            panic!("our own eventfd cannot be read: {error}");
        }
        while let Ok(event) = self.events.try_recv() {
            self.ring_event(event)?;
        }
        self.continue_proof();
        Ok(())
    }

    fn ring_event(&mut self, event: RingEvent) -> Result<(), Reason> {
        match event {
            RingEvent::Broken {
                ring,
                error: RingFault::Queue(QueueError::OutsideMemory { source, .. }),
            } => {
                tracing::debug!(ring, "{source}: looking whether it is there by now");
                self.missed.push((ring, source));
                if self.waiting.is_none() {
                    return self.proceed();
                }
                Ok(())
            }
            RingEvent::Broken { ring, error } => {
                tracing::warn!(ring, "retired: {error}");
                Ok(())
            }
            RingEvent::Done { .. } => self.ring_done(Ok(Answer::Done)),
            RingEvent::Refused { ring, error, .. } => {
                // Only a start is refused.
                self.rings.slot(ring).run = None;
                self.ring_done(Err(error))
            }
            RingEvent::Stopped { ring } => self.ring_stopped(ring),
        }
    }

    /// A command to a ring has ended: one of several, or the one waited for.
    fn ring_done(&mut self, result: io::Result<Answer>) -> Result<(), Reason> {
        match self.waiting.take() {
            Some(Waiting::Resume { left, why }) => {
                result.map_err(Reason::Worker)?;
                self.resumed(left - 1, why)
            }
            Some(Waiting::Ring) => {
                let result = result.map_err(Reason::Worker);
                match result {
                    Err(reason) if self.ends(&reason) => return Err(reason),
                    result => self.answer(result),
                }
                self.proceed()
            }
            other => {
                self.waiting = other;
                Ok(())
            }
        }
    }

    fn ring_stopped(&mut self, ring: Box<Ring>) -> Result<(), Reason> {
        let run = self.rings.slot(ring.index).run.take();
        match (self.waiting.take(), run) {
            (
                Some(Waiting::Pause {
                    left,
                    mut paused,
                    memory,
                    why,
                }),
                Some(run),
            ) if !self.closing => {
                paused.push((ring, run.setup));
                if left == 1 {
                    return self.resume(paused, memory, why);
                }
                let left = left - 1;
                self.waiting = Some(Waiting::Pause {
                    left,
                    paused,
                    memory,
                    why,
                });
                Ok(())
            }
            (Some(Waiting::Ring), _) if !self.closing => {
                let index = ring.index;
                let base = ring.active.queue.base();
                // With it goes what it holds of memory.
                drop(ring);
                self.missed.retain(|(missed, _)| *missed != index);
                self.answer(Ok(Answer::RingStopped { base }));
                self.proceed()
            }
            _ => Ok(()),
        }
    }

    /// The device's configuration space changed.
    ///
    /// # Errors
    /// When the device is broken.
    pub(super) fn config_changed(&mut self) -> Result<(), Reason> {
        match read_config(&*self.device) {
            Ok(config) if config.is_empty() => return Ok(()),
            Ok(config) => self.link.set_config(0, &config)?,
            Err(error) => {
                tracing::warn!("configuration space keeps its content: {error}");
                return Ok(());
            }
        }
        // A driver that is not there yet reads it when it comes.
        if self.is_live() && self.link.config_interrupt().is_err() {
            match &mut self.proof {
                Some(proof) => proof.config = true,
                None => self.prove_these(Vec::new(), true),
            }
        }
        Ok(())
    }

    fn prove(&mut self) {
        let rings = self.rings.running().map(|(ring, _)| ring).collect();
        let config = self.proof.take().is_some_and(|proof| proof.config);
        self.prove_these(rings, config);
    }

    fn prove_these(&mut self, rings: Vec<u16>, config: bool) {
        self.proof = Some(Proof {
            rings,
            config,
            at: Instant::now(),
            pause: PROOF_PAUSE,
        });
    }

    /// Interrupts rings that may have been refused before, until the kernel lets
    /// all through.
    fn continue_proof(&mut self) {
        let now = Instant::now();
        let Some(proof) = self.proof.as_mut().filter(|proof| proof.at <= now) else {
            return;
        };
        let link = &self.link;
        proof.rings.retain(|ring| link.interrupt(*ring).is_err());
        proof.config = proof.config && link.config_interrupt().is_err();
        if proof.rings.is_empty() && !proof.config {
            self.proof = None;
        } else {
            proof.at = now + proof.pause;
            proof.pause = (2 * proof.pause).min(PROOF_PAUSE_MAX);
        }
    }

    /// Begins to end: rings finish what is in flight.
    pub(super) fn close(&mut self) {
        self.closing = true;
        self.proof = None;
        self.missed.clear();
        self.waiting = None;
        self.rings.stop_all();
    }

    /// Whether everything that was begun has ended, after [`close`](Self::close).
    pub(super) fn is_quiet(&self) -> bool {
        self.rings.are_stopped()
    }

    /// What was written down, once the session is quiet; the device is not open any
    /// more then.
    pub(super) fn into_record(self) -> Record {
        self.record
    }
}
