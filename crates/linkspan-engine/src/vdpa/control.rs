//! The control queue of a network device, driven by the bridge in an address
//! space of its own: the VMM's memory is not in it, nor this in the VMM's.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use linkspan_mem::{Iova, Region};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_vhost::vdpa::{ControlCommand, RingPlan, Wire};
use linkspan_virtio::{Buffer, DriverQueue, Features, QueueLayout};

use super::error::VdpaError;
use crate::driver::{DriverMemory, QueueEvents};

/// The address space of the control queue.
pub(super) const ASID: u32 = 1;

/// How long a device may take for a command.
const LIMIT: Duration = Duration::from_secs(5);

/// Entries; a command takes two.
const SIZE: u16 = 16;

/// The queue, while the device runs or not.
#[derive(Debug)]
pub(super) struct ControlQueue {
    memory: DriverMemory,
    pub(super) events: QueueEvents,
    queue: Option<DriverQueue<linkspan_mem::Window>>,
}

impl ControlQueue {
    pub(super) fn new(size_max: u16) -> io::Result<Self> {
        Ok(Self {
            memory: DriverMemory::new(1, SIZE.min(size_max), 4096)?,
            events: QueueEvents::new()?,
            queue: None,
        })
    }

    /// Where it is for the device, and what is there.
    pub(super) fn mapping(&self) -> (u32, Iova, Region) {
        let region = self.memory.memory().table().regions()[0].clone();
        (ASID, Iova(self.memory.guest_base().0), region)
    }

    /// An empty ring for a device that starts.
    pub(super) fn begin(&mut self, ring: u16, features: u64) -> Result<RingPlan, VdpaError> {
        self.memory.clear_ring(0);
        let features = Features::from_bits_retain(features);
        let layout = QueueLayout::of(features);
        let queue = self.memory.new_queue(0, features);
        self.queue = Some(queue.map_err(|error| VdpaError::System {
            what: "no memory for the control queue",
            source: io::Error::other(error),
        })?);
        let (place, base) = (self.memory.rings()[0], self.memory.guest_base().0);
        Ok(RingPlan {
            ring,
            size: place.size,
            base: layout.base(layout.start()),
            address: [place.descriptor, place.driver, place.device].map(|at| Iova(base + at)),
            wires: vec![Wire::Call, Wire::Kick],
            enabled: true,
        })
    }

    /// Whether it was given up, as a command of before may be answered yet. Another
    /// [`begin`](Self::begin) is needed, for a device that was reset.
    pub(super) fn is_lost(&self) -> bool {
        self.queue.is_none()
    }

    /// Gives the device a command and waits for its answer.
    pub(super) fn command(&mut self, command: ControlCommand) -> Result<(), VdpaError> {
        let refused = |reason: String| VdpaError::Control {
            command: format!("{command:?}"),
            reason,
        };
        let answer = self.ask(&command.bytes());
        if answer.is_err() {
            // An answer that comes late is not to be taken for that of another command.
            self.queue = None;
        }
        answer
            .map_err(|error| refused(error.to_string()))
            .and_then(|answer| match answer {
                0 => Ok(()),
                code => Err(refused(format!("it answered {code}"))),
            })
    }

    fn ask(&mut self, bytes: &[u8]) -> io::Result<u8> {
        let queue = self.queue.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let table = self.memory.memory().table();
        let place = |at, len| self.memory.rest(at, len).ok_or(io::ErrorKind::InvalidInput);
        let (command, command_place) = place(0, len)?;
        let (answer, answer_place) = place(64, 1)?;
        table.slice(command_place).write(bytes);
        table.slice(answer_place).write(&[0xff]);
        let buffer = |address, len| Buffer { address, len };
        queue
            .add(&[buffer(command, len)], &[buffer(answer, 1)], None)
            .map_err(io::Error::other)?;
        queue.publish().map_err(io::Error::other)?;
        self.events.kick.signal()?;
        let deadline = Instant::now() + LIMIT;
        loop {
            self.events.call.drain()?;
            queue.refresh().map_err(io::Error::other)?;
            if queue.pop().map_err(io::Error::other)?.is_some() {
                break;
            }
            if queue.arm().map_err(io::Error::other)? {
                continue;
            }
            let call = self.events.call.as_fd();
            if wait_for(call, Direction::Read, None, Some(deadline))? == Wake::Deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let mut byte = [0xff];
        table.slice(answer_place).read(&mut byte);
        Ok(byte[0])
    }
}
