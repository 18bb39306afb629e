//! One message after the other: what is sent, what its reply has to be, and
//! what follows from it.

use alloc::vec::Vec;

use zerocopy::FromBytes;
use zerocopy::IntoBytes;

use super::command::read_config;
use super::{Effect, Error, Event, FdId, FdSlot, Frontend, Inflight, Misfit, QueueUnit};
use crate::area;
use crate::features::{ProtocolFeatures, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES};
use crate::framing::Frame;
use crate::memory::MemoryRegion;
use crate::message::{Payload, Reply, Request};
use crate::ring::{End, Notifier, Ring, RingAddresses};
use crate::wire::{
    self, ConfigHeader, DEVICE_STATE_ERROR_MASK, DEVICE_STATE_NOFD_MASK, Header,
    VHOST_USER_MAX_CONFIG_SIZE, VringState,
};

/// Protocol features that each connection agrees on anew, whatever an earlier
/// one had: nothing of them outlives it, and no driver is promised them.
const ANEW: ProtocolFeatures = ProtocolFeatures::BACKEND_REQ;

/// One message to send.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) request: Request,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<FdId>,
    pub(super) then: Then,
}

/// What follows from a message that was not refused.
#[derive(Debug)]
pub(super) enum Then {
    Nothing,
    Offered,
    OfferedProtocol,
    Protocol(ProtocolFeatures),
    QueueNum,
    MemorySlots,
    Features(u64),
    Table(Vec<(MemoryRegion, FdId)>),
    Added(MemoryRegion, FdId),
    Removed(MemoryRegion),
    Size { ring: u16, size: u16 },
    Base { ring: u16, base: u32 },
    At { ring: u16, at: RingAddresses },
    Notifier { ring: u16, end: End, to: Notifier },
    Enabled { ring: u16, enabled: bool },
    Stopped { ring: u16 },
    Config { offset: u32, size: u32 },
    Reset,
    Status,
    Created { queues: u16, queue_size: u16 },
    Adopted(Inflight),
    Channel,
    Checked,
}

/// What the steps under way belong to.
#[derive(Debug)]
pub(super) enum Task {
    Negotiation,
    Command {
        /// Rings that it has started, which are stopped if it is refused.
        started: Vec<u16>,
        refused: Option<(Request, u64)>,
    },
    Idle,
}

impl Task {
    pub(super) const fn command() -> Self {
        Self::Command {
            started: Vec::new(),
            refused: None,
        }
    }
}

impl Step {
    pub(super) fn new(request: Request, body: &[u8], then: Then) -> Self {
        Self {
            request,
            body: body.to_vec(),
            fds: Vec::new(),
            then,
        }
    }

    pub(super) fn with(mut self, fd: FdId) -> Self {
        self.fds.push(fd);
        self
    }

    /// The message that every session begins with.
    pub(super) fn first() -> Self {
        Self::new(Request::GetFeatures, &[], Then::Offered)
    }

    pub(super) fn stop(ring: u16) -> Self {
        let index = ring.into();
        let body = VringState { index, num: 0 };
        Self::new(
            Request::GetVringBase,
            body.as_bytes(),
            Then::Stopped { ring },
        )
    }
}

impl Frontend {
    /// Sends until a reply is awaited or nothing is left to send.
    pub(super) fn proceed(&mut self) {
        while self.awaited.is_none() {
            let Some(step) = self.next_step() else {
                return self.finish();
            };
            let acknowledges = self
                .negotiated
                .protocol_features
                .contains(ProtocolFeatures::REPLY_ACK);
            let asks = step.request.message().reply == Reply::Ack && acknowledges;
            let flags = if asks { Header::NEED_REPLY } else { 0 };
            self.effects.push_back(Effect::Send {
                bytes: wire::encode(step.request.code(), flags, &step.body),
                fds: step.fds.clone(),
            });
            if step.request.message().reply == Reply::Ack && !asks {
                self.unconfirmed = true;
                self.conclude(step.then);
            } else {
                self.awaited = Some(step);
            }
        }
    }

    /// Messages are handled in order, so after the reply to a message all
    /// before it are known to be done. Where the back end does not acknowledge,
    /// a question that every back end answers stands in for that: without it
    /// an enabled ring or a replaced call descriptor could come too late.
    fn next_step(&mut self) -> Option<Step> {
        let step = self.steps.pop_front();
        if step.is_some() || !self.unconfirmed {
            return step;
        }
        self.unconfirmed = false;
        let barrier = matches!(self.task, Task::Command { .. });
        barrier.then(|| Step::new(Request::GetFeatures, &[], Then::Nothing))
    }

    fn finish(&mut self) {
        let event = match core::mem::replace(&mut self.task, Task::Idle) {
            Task::Idle => return,
            Task::Negotiation => Event::Negotiated(self.negotiated.clone()),
            Task::Command { refused: None, .. } => Event::Done,
            Task::Command {
                refused: Some((request, code)),
                ..
            } => Event::Refused { request, code },
        };
        self.report(event);
    }

    fn report(&mut self, event: Event) {
        self.effects.push_back(Effect::Report(event));
    }

    /// A whole message of the back end.
    pub(super) fn accept(&mut self, frame: &Frame) -> Result<(), Error> {
        let code = frame.header.request;
        let Some(step) = self.awaited.take() else {
            return Err(Error::Unasked { code });
        };
        let request = step.request;
        if code != request.code() {
            return Err(Error::WrongReply { request, got: code });
        }
        self.unconfirmed = false;
        let row = request.message();
        let (sizes, may_be_empty) = match row.reply {
            Reply::Ack | Reply::Code => (Payload::U64.sizes(), false),
            Reply::Always(payload) => (payload.sizes(), false),
            Reply::OrEmpty(payload) => (payload.sizes(), true),
        };
        let (got, min, max) = (frame.body.len(), *sizes.start(), *sizes.end());
        let failed = may_be_empty && got == 0;
        if !failed && !sizes.contains(&got) {
            return Err(Error::ReplySize {
                request,
                got,
                min,
                max,
            });
        }
        check_fds(request, frame.fds, 0, row.reply_fds)?;
        if failed {
            return self.refused(request, 1, &step.then);
        }
        match row.reply {
            Reply::Ack => match number(&frame.body) {
                0 => self.conclude(step.then),
                code => return self.refused(request, code, &step.then),
            },
            _ => return self.answered(step, frame),
        }
        Ok(())
    }

    /// The back end did not do it. Rings that the command has started are
    /// stopped, and nothing else of it is sent.
    fn refused(&mut self, request: Request, code: u64, then: &Then) -> Result<(), Error> {
        if matches!(then, Then::Reset) {
            // What runs after half a reset is not known.
            return Err(Error::Refused { request, code });
        }
        match &mut self.task {
            Task::Command { started, refused } => {
                self.steps = started.drain(..).map(Step::stop).collect();
                *refused = Some((request, code));
                Ok(())
            }
            _ => Err(match *then {
                Then::Config { offset, size } => Misfit::Config { offset, size }.into(),
                _ => Error::Refused { request, code },
            }),
        }
    }

    /// A reply that says more than that it is done.
    fn answered(&mut self, step: Step, frame: &Frame) -> Result<(), Error> {
        let (request, body) = (step.request, frame.body.as_slice());
        match step.then {
            Then::Offered => self.offered(number(body)),
            Then::OfferedProtocol => self.offered_protocol(number(body)),
            Then::QueueNum => self.queue_num(number(body)),
            Then::MemorySlots => self.memory_slots(number(body)),
            Then::Config { offset, size } => self.config(offset, size, body),
            Then::Stopped { ring } => self.stopped(ring, body),
            Then::Created { queues, queue_size } => self.created(queues, queue_size, frame),
            Then::Channel => {
                let value = number(body);
                if value & !(DEVICE_STATE_ERROR_MASK | DEVICE_STATE_NOFD_MASK) != 0 {
                    return Err(Error::ReplyValue { request, value });
                }
                let code = value & DEVICE_STATE_ERROR_MASK;
                let fds = usize::from(code == 0 && value & DEVICE_STATE_NOFD_MASK == 0);
                check_fds(request, frame.fds, fds, fds)?;
                if code != 0 {
                    return self.refused(request, code, &Then::Channel);
                }
                self.report(Event::StateChannel((fds > 0).then_some(FdSlot(0))));
                Ok(())
            }
            Then::Checked => match number(body) {
                0 => Ok(()),
                code => self.refused(request, code, &Then::Checked),
            },
            Then::Status => {
                let value = number(body);
                let Ok(status) = u8::try_from(value) else {
                    return Err(Error::ReplyValue { request, value });
                };
                self.report(Event::Status(status));
                Ok(())
            }
            then => {
                self.conclude(then);
                Ok(())
            }
        }
    }

    fn offered(&mut self, offered: u64) -> Result<(), Error> {
        let before = self.previous.as_ref();
        let acknowledged = before.and_then(|saved| saved.features).unwrap_or(0);
        // Whether writes are logged is between the ends: it was not promised to the driver.
        let acknowledged = acknowledged & !VHOST_F_LOG_ALL;
        let required = self.wish.required_features | acknowledged;
        let missing = required & !offered & !VHOST_USER_F_PROTOCOL_FEATURES;
        if missing != 0 {
            return Err(Misfit::Features { missing }.into());
        }
        let wanted = self.wish.features | self.wish.required_features | acknowledged;
        self.negotiated.offered = offered;
        self.negotiated.features = offered & wanted & !VHOST_USER_F_PROTOCOL_FEATURES;
        if self.is_bit_30_offered() {
            let then = Then::OfferedProtocol;
            self.steps
                .push_back(Step::new(Request::GetProtocolFeatures, &[], then));
            return Ok(());
        }
        self.agree(ProtocolFeatures::empty(), ProtocolFeatures::empty())
    }

    fn offered_protocol(&mut self, offered: u64) -> Result<(), Error> {
        let offered = ProtocolFeatures::from_bits_retain(offered);
        let wished = self.wish.protocol_features | self.wish.required_protocol_features;
        let wanted = match &self.previous {
            Some(saved) => {
                saved.negotiated.protocol_features.difference(ANEW) | wished.intersection(ANEW)
            }
            None => wished,
        };
        self.agree(offered, offered & wanted)
    }

    /// Protocol features are known, so the rest of the negotiation is.
    fn agree(&mut self, offered: ProtocolFeatures, use_: ProtocolFeatures) -> Result<(), Error> {
        let before = self.previous.as_ref();
        let before = before.map(|saved| saved.negotiated.protocol_features.difference(ANEW));
        let required = self.wish.required_protocol_features | before.unwrap_or_default();
        let missing = required.difference(offered);
        if !missing.is_empty() {
            return Err(Misfit::ProtocolFeatures { missing }.into());
        }
        if self.is_bit_30_offered() {
            self.steps.push_back(Step::new(
                Request::SetProtocolFeatures,
                use_.bits().as_bytes(),
                Then::Protocol(use_),
            ));
        }
        if use_.contains(ProtocolFeatures::MQ) {
            self.steps
                .push_back(Step::new(Request::GetQueueNum, &[], Then::QueueNum));
        } else {
            self.queue_num(1)?;
        }
        if use_.contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            self.steps
                .push_back(Step::new(Request::GetMaxMemSlots, &[], Then::MemorySlots));
        } else {
            self.memory_slots(self.negotiated.memory_slots)?;
        }
        self.steps
            .push_back(Step::new(Request::SetOwner, &[], Then::Nothing));
        if use_.contains(ProtocolFeatures::CONFIG) {
            let all = self.wish.config_size;
            let most = u32::try_from(VHOST_USER_MAX_CONFIG_SIZE).expect("256");
            for offset in (0..all).step_by(VHOST_USER_MAX_CONFIG_SIZE) {
                let size = (all - offset).min(most);
                self.steps
                    .extend(read_config(offset, size).expect("a size in range"));
            }
        }
        Ok(())
    }

    fn queue_num(&mut self, value: u64) -> Result<(), Error> {
        let wanted = self.wish.queues;
        let max = match self.wish.queue_unit {
            QueueUnit::Rings => value,
            QueueUnit::Pairs if value == 0 => 0,
            QueueUnit::Pairs => value.saturating_mul(2).saturating_add(1),
        };
        if u64::from(wanted) > max {
            return Err(Misfit::Queues { wanted, max }.into());
        }
        self.negotiated.queues_max = max;
        Ok(())
    }

    fn memory_slots(&mut self, max: u64) -> Result<(), Error> {
        let before = self.previous.as_ref();
        let before = before.map_or(0, |saved| saved.negotiated.memory_slots);
        let wanted = self.wish.memory_slots.max(before).max(1);
        if wanted > max {
            return Err(Misfit::MemorySlots { wanted, max }.into());
        }
        self.negotiated.memory_slots = max;
        Ok(())
    }

    fn config(&mut self, offset: u32, size: u32, body: &[u8]) -> Result<(), Error> {
        let (header, bytes) = ConfigHeader::read_from_prefix(body).expect("12 bytes at least");
        let (got_offset, got_size) = (header.offset, header.size);
        let whole = usize::try_from(size) == Ok(bytes.len());
        if (got_offset, got_size) != (offset, size) || !whole {
            return Err(Error::ReplyConfig {
                offset,
                size,
                got_offset,
                got_size,
            });
        }
        match self.task {
            Task::Negotiation => self.negotiated.config.extend_from_slice(bytes),
            _ => self.report(Event::Config {
                offset,
                bytes: bytes.to_vec(),
            }),
        }
        Ok(())
    }

    fn stopped(&mut self, ring: u16, body: &[u8]) -> Result<(), Error> {
        let state = VringState::read_from_bytes(body).expect("8 bytes");
        if state.index != u32::from(ring) {
            let got = state.index;
            return Err(Error::ReplyRing { ring, got });
        }
        let base = Ring::check_base(state.num, self.features)
            .map_err(|error| Error::ReplyBase { ring, error })?;
        self.rings[usize::from(ring)].stop(base);
        self.report(Event::RingStopped { ring, base });
        Ok(())
    }

    fn created(&mut self, queues: u16, queue_size: u16, frame: &Frame) -> Result<(), Error> {
        let request = Request::GetInflightFd;
        let got = area::read_inflight(&frame.body);
        let fds = usize::from(got.mmap_size > 0);
        check_fds(request, frame.fds, fds, fds)?;
        if got.mmap_size == 0 {
            self.inflight = None;
            self.report(Event::Inflight(None));
            return Ok(());
        }
        area::check_rings(got.num_queues, queues, got.queue_size, queue_size)?;
        if (got.num_queues, got.queue_size) != (queues, queue_size) {
            let value = u64::from(got.num_queues) << 16 | u64::from(got.queue_size);
            return Err(Error::ReplyValue { request, value });
        }
        let inflight = Inflight::new(got.mmap_size, got.mmap_offset, queues, queue_size)?;
        self.inflight = Some(inflight);
        self.report(Event::Inflight(Some((inflight, FdSlot(0)))));
        Ok(())
    }

    /// The message is done: what is known from now on.
    fn conclude(&mut self, then: Then) {
        match then {
            Then::Protocol(features) => self.negotiated.protocol_features = features,
            Then::Features(features) => self.features = Some(features),
            Then::Table(regions) => self.regions = regions,
            Then::Added(region, fd) => self.regions.push((region, fd)),
            Then::Removed(region) => self.regions.retain(|(old, _)| *old != region),
            Then::Size { ring, size } => self.ring_mut(ring).size = Some(size),
            Then::Base { ring, base } => self.ring_mut(ring).base = base,
            Then::At { ring, at } => self.ring_mut(ring).addresses = Some(at),
            Then::Notifier { ring, end, to } => self.notified(ring, end, to),
            Then::Enabled { ring, enabled } => self.ring_mut(ring).enabled = enabled,
            Then::Adopted(inflight) => self.inflight = Some(inflight),
            Then::Reset => {
                self.features = None;
                self.rings.fill(Ring::default());
            }
            _ => {}
        }
    }

    fn notified(&mut self, ring: u16, end: End, to: Notifier) {
        let always_enabled = !self.is_bit_30_offered();
        let known = self.ring_mut(ring);
        match end {
            End::Call => known.call = to,
            End::Err => known.err = to,
            End::Kick => {
                known.kick = to;
                if !core::mem::replace(&mut known.running, true) {
                    known.enabled |= always_enabled;
                    if let Task::Command { started, .. } = &mut self.task {
                        started.push(ring);
                    }
                }
            }
        }
    }

    fn ring_mut(&mut self, ring: u16) -> &mut Ring {
        &mut self.rings[usize::from(ring)]
    }
}

fn check_fds(request: Request, got: usize, min: usize, max: usize) -> Result<(), Error> {
    if (min..=max).contains(&got) {
        return Ok(());
    }
    Err(Error::ReplyFds {
        request,
        got,
        min,
        max,
    })
}

/// A body that the table says is a `u64`.
fn number(body: &[u8]) -> u64 {
    u64::read_from_bytes(body).expect("the length is checked")
}
