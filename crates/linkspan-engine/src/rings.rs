//! The rings of a device as the thread that owns its link sees them. A ring that
//! runs is with its worker.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use linkspan_mem::GuestMemory;
use linkspan_sys::{EventFd, PeerEventFd};
use linkspan_vhost::backend::RingSetup;
use linkspan_virtio::Features;

use crate::counters::QueueCounters;
use crate::device::{ActiveRing, Device, NETWORK_DEVICE, OpenQueueError};
use crate::dirty::RingLog;
use crate::endpoint::RingView;
use crate::inflight::InflightArea;
use crate::place::{PlaceError, Start, place_queue};
use crate::worker::{EventSink, Notify, Ring, RingEvent, RingKey, Workers};

/// What is known of a ring.
#[derive(Default)]
pub(crate) struct RingSlot {
    /// Where its driver wants to be told of used buffers.
    pub(crate) call: Option<Notify>,
    /// Where it is reported as broken.
    pub(crate) err: Option<Arc<PeerEventFd>>,
    /// How it was started, if it runs.
    pub(crate) run: Option<Run>,
    counters: Arc<QueueCounters>,
}

#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) key: RingKey,
    pub(crate) setup: RingSetup,
}

/// What a ring is placed in.
#[derive(Clone)]
pub(crate) struct Ground<'a> {
    pub(crate) memory: &'a Arc<GuestMemory>,
    pub(crate) inflight: Option<&'a InflightArea>,
    pub(crate) log: Option<RingLog>,
}

/// All rings of a device.
pub(crate) struct Rings {
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    sink: EventSink,
    slots: Vec<RingSlot>,
}

/// Why a ring does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartRingError {
    /// It cannot be where it is said to be.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The device cannot serve it.
    #[error(transparent)]
    Device(#[from] OpenQueueError),
}

impl Rings {
    /// The rings of a device, none of which runs; and where their workers say
    /// what happens to them, with what wakes whoever listens.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub(crate) fn new(
        device: Arc<dyn Device>,
        workers: Arc<Workers>,
    ) -> io::Result<(Self, Receiver<RingEvent>, Arc<EventFd>)> {
        let (sink, events, wake) = EventSink::new()?;
        let slots = (0..device.queues()).map(|_| RingSlot::default()).collect();
        let rings = Self {
            device,
            workers,
            sink,
            slots,
        };
        Ok((rings, events, wake))
    }

    /// What is known of a ring.
    pub(crate) fn slot(&mut self, ring: u16) -> &mut RingSlot {
        &mut self.slots[usize::from(ring)]
    }

    /// What is known of each ring, in order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (u16, &RingSlot)> {
        (0..).zip(&self.slots)
    }

    /// The rings that run, in order.
    pub(crate) fn running(&self) -> impl Iterator<Item = (u16, Run)> {
        let slots = (0..).zip(&self.slots);
        slots.filter_map(|(ring, slot)| Some((ring, slot.run?)))
    }

    /// The rings that run, for who looks at them.
    pub(crate) fn views(&self, enabled: impl Fn(u16) -> bool) -> Vec<RingView> {
        let slots = (0..).zip(&self.slots);
        let views = slots.filter_map(|(index, slot)| {
            let setup = slot.run?.setup;
            Some(RingView {
                index,
                size: setup.size,
                enabled: enabled(index),
                counters: Some(Arc::clone(&slot.counters)),
            })
        });
        views.collect()
    }

    /// Whether no ring runs.
    pub(crate) fn are_stopped(&self) -> bool {
        self.running().next().is_none()
    }

    /// Sends a command to a ring that runs; its event follows. `false`: it does not
    /// run.
    pub(crate) fn command(&self, ring: u16, send: impl FnOnce(&Workers, RingKey)) -> bool {
        match self.slots[usize::from(ring)].run {
            Some(run) => {
                send(&self.workers, run.key);
                true
            }
            None => false,
        }
    }

    /// Has all rings that run stop; how many there are, each of which says
    /// [`RingEvent::Stopped`].
    pub(crate) fn stop_all(&self) -> usize {
        let stop = |(_, run): (u16, Run)| self.workers.stop(run.key);
        self.running().map(stop).count()
    }

    /// Has rings that were to stop go on; how many there are, each of which says
    /// [`RingEvent::Done`], or [`RingEvent::Stopped`] if it has stopped by now.
    pub(crate) fn stay_all(&self) -> usize {
        let stay = |(_, run): (u16, Run)| self.workers.stay(run.key);
        self.running().map(stay).count()
    }

    /// Starts a ring, once its worker says [`RingEvent::Done`].
    pub(crate) fn start(
        &mut self,
        index: u16,
        setup: RingSetup,
        kick: Option<PeerEventFd>,
        ground: Ground<'_>,
    ) -> Result<(), StartRingError> {
        let start = if self.device.device_id() == NETWORK_DEVICE {
            Start::BehindUsed
        } else {
            Start::AsTold
        };
        let ring = self.place(index, &setup, start, kick, ground)?;
        self.launch(ring, setup);
        Ok(())
    }

    /// A ring in its place, that does not run yet.
    pub(crate) fn place(
        &self,
        index: u16,
        setup: &RingSetup,
        start: Start,
        kick: Option<PeerEventFd>,
        ground: Ground<'_>,
    ) -> Result<Box<Ring>, StartRingError> {
        let features = Features::from_bits_retain(setup.features);
        let queue = place_queue(index, setup, ground.memory, ground.inflight, start)?;
        let handler = self.device.open_queue(index, features)?;
        let slot = &self.slots[usize::from(index)];
        Ok(Box::new(Ring {
            index,
            lane: self.device.lane(index),
            active: ActiveRing {
                queue,
                memory: Arc::clone(ground.memory),
                log: ground.log,
            },
            handler,
            kick,
            call: slot.call.clone(),
            err: slot.err.clone(),
            enabled: setup.enabled,
            retired: false,
            moves: false,
            counters: Arc::clone(&slot.counters),
        }))
    }

    /// Gives a ring in its place to its worker, which says [`RingEvent::Done`].
    pub(crate) fn launch(&mut self, ring: Box<Ring>, setup: RingSetup) {
        let index = usize::from(ring.index);
        let key = self.workers.start(ring, self.sink.clone());
        self.slots[index].run = Some(Run { key, setup });
    }

    /// A ring that came to rest goes on, in other memory perhaps, once its worker
    /// says [`RingEvent::Done`]. One whose driver took memory away from under it is
    /// retired, the others are not.
    ///
    /// # Errors
    /// When the system refuses something: the ring is lost.
    pub(crate) fn go_on(
        &mut self,
        mut ring: Box<Ring>,
        setup: RingSetup,
        ground: Ground<'_>,
    ) -> Result<(), PlaceError> {
        let start = Start::At(ring.active.queue.state());
        match place_queue(ring.index, &setup, ground.memory, ground.inflight, start) {
            Ok(queue) => {
                ring.active = ActiveRing {
                    queue,
                    memory: Arc::clone(ground.memory),
                    log: ground.log,
                };
            }
            Err(error) if error.is_system() => return Err(error),
            Err(error) => {
                tracing::warn!(ring = ring.index, "retired: {error}");
                ring.retire();
            }
        }
        self.launch(ring, setup);
        Ok(())
    }
}
