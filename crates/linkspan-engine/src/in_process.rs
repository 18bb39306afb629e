//! The transport without a transport: driver and device in one process. For
//! tests, and as the upper bound that real transports are measured against.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::{EventFd, PeerEventFd};
use linkspan_virtio::{DeviceQueue, Features, QueueLayout};

use crate::counters::QueueCounters;
use crate::device::{ActiveRing, Device};
use crate::driver::{DriverMemory, QueueEvents};
use crate::worker::{EventSink, Notify, Ring, RingEvent, RingKey, Workers};

/// A device whose rings lie in a driver's memory of the same process.
#[derive(Debug)]
pub struct InProcess {
    workers: Arc<Workers>,
    keys: Vec<RingKey>,
    received: Receiver<RingEvent>,
    wake: Arc<EventFd>,
}

impl InProcess {
    /// Starts every ring of `memory` on `workers`; `events[i]` wakes queue `i`.
    ///
    /// # Errors
    /// When a resource cannot be had; no ring runs then.
    pub fn start(
        device: &dyn Device,
        workers: Arc<Workers>,
        memory: &DriverMemory,
        events: &[QueueEvents],
        features: Features,
    ) -> io::Result<Self> {
        let (sink, received, wake) = EventSink::new()?;
        let mut link = Self {
            workers,
            keys: Vec::new(),
            received,
            wake,
        };
        for (index, events) in (0..).zip(events) {
            let layout = QueueLayout::of(features);
            let (parts, size) = (memory.parts(index, layout), memory.size(index));
            let queue = DeviceQueue::new(parts, size, features, layout.start())
                .map_err(io::Error::other)?;
            let handler = device
                .open_queue(index, features)
                .map_err(io::Error::other)?;
            let ring = Box::new(Ring {
                index,
                lane: device.lane(index),
                active: ActiveRing {
                    queue,
                    memory: Arc::clone(memory.memory()),
                    log: None,
                },
                handler,
                kick: Some(peer(&events.kick)?),
                call: Some(Notify::Event(Arc::new(peer(&events.call)?))),
                err: None,
                enabled: true,
                retired: false,
                moves: false,
                counters: Arc::new(QueueCounters::default()),
            });
            link.keys.push(link.workers.start(ring, sink.clone()));
            match link.next_event()? {
                RingEvent::Done { .. } => {}
                RingEvent::Refused { error, .. } => {
                    link.keys.pop();
                    return Err(error);
                }
                other => panic!("a ring that starts says {other:?}"),
            }
        }
        Ok(link)
    }

    fn next_event(&self) -> io::Result<RingEvent> {
        loop {
            if let Ok(event) = self.received.try_recv() {
                return Ok(event);
            }
            self.wake.drain()?;
            if let Ok(event) = self.received.try_recv() {
                return Ok(event);
            }
            wait_for(self.wake.as_fd(), Direction::Read, None, None)?;
        }
    }
}

impl Drop for InProcess {
    /// Takes every ring back, so that nothing uses the memory afterwards.
    fn drop(&mut self) {
        for key in &self.keys {
            self.workers.stop(*key);
        }
        let mut left = self.keys.len();
        while left > 0 {
            match self.next_event() {
                Ok(RingEvent::Stopped { .. }) => left -= 1,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

fn peer(event: &EventFd) -> io::Result<PeerEventFd> {
    let fd = event.as_fd().try_clone_to_owned()?;
    PeerEventFd::check(fd).map_err(io::Error::other)
}
