//! What messages about the whole device do beyond features, memory and
//! configuration: dirty log, in-flight region, reset, status, state transfer.

use super::dispatch::{Commit, Step};
use super::{Backend, Effect, FdId, FdSlot, Misuse};
use crate::area::{self, AreaError, Direction, Inflight, Log};
use crate::error::Cause;
use crate::ring::Ring;
use crate::wire::{DeviceStateParameters, InflightDescription, LogDescription};

/// Virtio 1.3, 2.1: `DEVICE_NEEDS_RESET`, which the device sets.
const DEVICE_NEEDS_RESET: u8 = 64;

/// What waits until all rings are stopped.
#[derive(Clone, Copy, Debug)]
pub(super) enum Afterwards {
    Reset,
    Status(u8),
}

impl Backend {
    /// The device status as its driver would read it.
    #[must_use]
    pub fn status(&self) -> u8 {
        let broken = if self.needs_reset {
            DEVICE_NEEDS_RESET
        } else {
            0
        };
        self.status | broken
    }

    /// The device cannot go on until it is reset: its status says so from now
    /// on (virtio 1.3, 2.1.2).
    pub fn set_needs_reset(&mut self) {
        self.needs_reset = true;
    }

    /// The dirty log, if there is one.
    #[must_use]
    pub fn log(&self) -> Option<Log> {
        self.log
    }

    /// Whether somebody wants to know when the log was written.
    #[must_use]
    pub fn has_log_fd(&self) -> bool {
        self.log_fd
    }

    /// The in-flight region, if there is one.
    #[must_use]
    pub fn inflight(&self) -> Option<Inflight> {
        self.inflight
    }

    /// Whether there is a socket for requests to the front end.
    #[must_use]
    pub fn has_request_socket(&self) -> bool {
        self.request_socket
    }

    /// vhost-user, `VHOST_USER_SET_LOG_BASE`. DPDK unmaps the log of before;
    /// so do we, and a second one does no harm.
    pub(super) fn set_log_base(wire: LogDescription) -> Result<Step, Cause> {
        let log = Log::new(wire.mmap_size, wire.mmap_offset)?;
        let fd = FdSlot(0);
        Ok(Step::Ask(Effect::SetLog { log, fd }, Commit::Log(log)))
    }

    /// vhost-user, `VHOST_USER_GET_INFLIGHT_FD`.
    pub(super) fn inflight_fd(&self, body: &[u8]) -> Result<Step, Cause> {
        let wire = area::read_inflight(body);
        self.check_inflight(wire)?;
        let request = InflightDescription {
            mmap_size: 0,
            mmap_offset: 0,
            ..wire
        };
        let effect = Effect::CreateInflight {
            queues: wire.num_queues,
            queue_size: wire.queue_size,
            features: self.features,
        };
        let len = body.len();
        Ok(Step::Ask(effect, Commit::Created { request, len }))
    }

    /// The answer has as many bytes as the question: some leave the padding out.
    pub(super) fn created(
        &mut self,
        request: InflightDescription,
        len: usize,
        size: u64,
        offset: u64,
        fd: FdId,
    ) -> Result<Step, Cause> {
        let inflight = Inflight::new(size, offset, request.num_queues, request.queue_size)
            .map_err(|_| Misuse::WrongAnswer)?;
        self.inflight = Some(inflight);
        let body = area::write_inflight(inflight.description(), len);
        Ok(Step::ReplyWith(body, fd))
    }

    /// vhost-user, `VHOST_USER_SET_INFLIGHT_FD`.
    pub(super) fn set_inflight_fd(&self, body: &[u8]) -> Result<Step, Cause> {
        let wire = area::read_inflight(body);
        self.check_inflight(wire)?;
        let (queues, size) = (wire.num_queues, wire.queue_size);
        let inflight = Inflight::new(wire.mmap_size, wire.mmap_offset, queues, size)?;
        let fd = FdSlot(0);
        let effect = Effect::AdoptInflight { inflight, fd };
        Ok(Step::Ask(effect, Commit::Adopted(inflight)))
    }

    /// What is in flight already cannot be recorded somewhere else.
    fn check_inflight(&self, wire: InflightDescription) -> Result<(), AreaError> {
        let (queues, size) = (self.offer.queues, self.offer.queue_size_max);
        area::check_rings(wire.num_queues, queues, wire.queue_size, size)?;
        match self.first_ring(|ring| ring.running) {
            Some(ring) => Err(AreaError::Running { ring }),
            None => Ok(()),
        }
    }

    /// Virtio 1.3, 2.1: 0 resets the device.
    pub(super) fn set_status(&mut self, value: u64) -> Result<Step, Cause> {
        let status = u8::try_from(value).map_err(|_| Cause::Status { value })?;
        if status == 0 {
            return Ok(self.quiesce(Afterwards::Status(0)));
        }
        Ok(Step::Ask(Effect::SetStatus(status), Commit::Status(status)))
    }

    /// Stops all rings, one after the other, and goes on after that.
    pub(super) fn quiesce(&mut self, then: Afterwards) -> Step {
        if let Some(ring) = self.first_ring(|ring| ring.running) {
            return Step::Ask(Effect::StopRing { ring }, Commit::Quiet { ring, then });
        }
        match then {
            Afterwards::Reset => Step::Ask(Effect::ResetDevice, Commit::Reset),
            Afterwards::Status(status) => {
                Step::Ask(Effect::SetStatus(status), Commit::Status(status))
            }
        }
    }

    /// vhost-user, `VHOST_USER_RESET_DEVICE`: rings and device are as in the
    /// beginning. Front ends that add memory region by region do not add it
    /// again, so memory stays, and with it what belongs to the connection.
    pub(super) fn reset(&mut self) {
        self.features = None;
        self.rings.fill(Ring::default());
        self.status = 0;
        self.needs_reset = false;
        self.inflight = None;
    }

    /// vhost-user, `VHOST_USER_SET_DEVICE_STATE_FD`.
    pub(super) fn set_device_state_fd(&self, wire: DeviceStateParameters) -> Result<Step, Cause> {
        let direction = match (wire.direction, wire.phase) {
            (0, 0) => Direction::Save,
            (1, 0) => Direction::Load,
            (direction, phase) => return Err(Cause::DeviceState { direction, phase }),
        };
        if let Some(ring) = self.first_ring(|ring| ring.running) {
            return Err(Cause::StateOfRunning { ring });
        }
        let fd = FdSlot(0);
        let effect = Effect::MoveState { direction, fd };
        Ok(Step::Ask(effect, Commit::StateChannel))
    }
}
