//! What each message does: the checks that its row in the table asks for, then
//! its own, then an effect or a reply. Nothing changes before its effect is
//! answered.

use alloc::vec::Vec;

use linkspan_mem::Gpa;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::device::Afterwards;
use super::{Answer, Backend, Effect, Failure, FdId, FdSlot, Misuse};
use crate::area::{self, Inflight, Log};
use crate::error::Cause;
use crate::features::{ProtocolFeatures, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES};
use crate::framing::Frame;
use crate::memory::{self, MemoryError, MemoryRegion};
use crate::message::{self, FRONTEND_REQUESTS, Gate, Message, Payload, Request, Scope, When};
use crate::ring::{End, Notifier, Ring, RingAddresses, RingError};
use crate::wire::{
    ConfigHeader, DEVICE_STATE_NOFD_MASK, InflightDescription, MAX_TABLE_REGIONS,
    MemoryRegionDescription, MemoryTableHeader, SingleMemoryRegion, VHOST_USER_VRING_IDX_MASK,
    VHOST_USER_VRING_NOFD_MASK, VringAddr, VringState,
};

/// Where a message goes from here.
#[derive(Debug)]
pub(super) enum Step {
    /// It is done; acknowledge it if that was asked for.
    Done,
    /// It is done, and this is its reply.
    Reply(Vec<u8>),
    /// The same with a descriptor.
    ReplyWith(Vec<u8>, FdId),
    /// It is half done, and no reply can say so: the session is over.
    Close(Cause),
    /// The effect first, then what follows from it.
    Ask(Effect, Commit),
}

/// What changes once an effect is carried out.
#[derive(Debug)]
pub(super) enum Commit {
    Nothing,
    Features(u64),
    /// One ring of those that `SET_FEATURES` enables.
    EnabledByFeatures {
        ring: u16,
        features: u64,
    },
    Regions(Vec<MemoryRegion>),
    Started {
        ring: u16,
        kick: Notifier,
    },
    Notifier {
        ring: u16,
        end: End,
        to: Notifier,
    },
    Enabled {
        ring: u16,
        enabled: bool,
    },
    RingLog {
        ring: u16,
        log: Option<Gpa>,
    },
    Stopped {
        ring: u16,
    },
    Config {
        header: ConfigHeader,
    },
    /// One of the rings that are stopped before this.
    Quiet {
        ring: u16,
        then: Afterwards,
    },
    Reset,
    Status(u8),
    Log(Log),
    LogFd,
    Requests,
    Created {
        request: InflightDescription,
        len: usize,
    },
    Adopted(Inflight),
    StateChannel,
    StateMoved,
}

impl Backend {
    pub(super) fn dispatch(&mut self, frame: &Frame) -> Result<Step, Cause> {
        let row =
            message::find(&FRONTEND_REQUESTS, frame.header.request).ok_or(Cause::UnknownRequest)?;
        let ring = self.check(row, frame)?;
        let body = frame.body.as_slice();
        match row.request {
            Request::GetFeatures => Ok(number(self.offer.features)),
            Request::SetFeatures => self.set_features(read(body)?),
            // vhost-user: RESET_OWNER is deprecated and best ignored.
            Request::SetOwner | Request::ResetOwner => Ok(Step::Done),
            Request::SetMemTable => Self::set_mem_table(body, frame.fds),
            Request::SetVringNum => self.set_vring_num(ring, read(body)?),
            Request::SetVringAddr => self.set_vring_addr(ring, read(body)?),
            Request::SetVringBase => self.set_vring_base(ring, read(body)?),
            Request::GetVringBase => Ok(self.vring_base(ring)),
            Request::SetVringKick => self.set_vring_fd(ring, End::Kick, read(body)?, frame.fds),
            Request::SetVringCall => self.set_vring_fd(ring, End::Call, read(body)?, frame.fds),
            Request::SetVringErr => self.set_vring_fd(ring, End::Err, read(body)?, frame.fds),
            Request::GetProtocolFeatures => Ok(number(self.offer.protocol_features.bits())),
            Request::SetProtocolFeatures => self.set_protocol_features(read(body)?),
            Request::GetQueueNum => Ok(number(self.offer.queue_num)),
            Request::SetVringEnable => self.set_vring_enable(ring, read(body)?),
            Request::GetConfig => self.config(body),
            Request::SetConfig => self.set_config(body),
            Request::GetMaxMemSlots => Ok(number(self.offer.memory_slots)),
            Request::AddMemReg => self.add_mem_reg(read(body)?),
            Request::RemMemReg => self.rem_mem_reg(read(body)?),
            Request::SetLogBase => Self::set_log_base(read(body)?),
            Request::SetLogFd => Ok(Step::Ask(Effect::SetLogFd { fd: FdSlot(0) }, Commit::LogFd)),
            Request::SetBackendReqFd => Ok(Step::Ask(
                Effect::SetRequestSocket { fd: FdSlot(0) },
                Commit::Requests,
            )),
            Request::GpuSetSocket => Ok(Step::Ask(
                Effect::SetGpuSocket { fd: FdSlot(0) },
                Commit::Nothing,
            )),
            Request::GetInflightFd => self.inflight_fd(body),
            Request::SetInflightFd => self.set_inflight_fd(body),
            Request::ResetDevice => Ok(self.quiesce(Afterwards::Reset)),
            Request::SetStatus => self.set_status(read(body)?),
            Request::GetStatus => Ok(number(self.status().into())),
            Request::SetDeviceStateFd => self.set_device_state_fd(read(body)?),
            Request::SendRarp => Ok(Self::send_rarp(read(body)?)),
            Request::NetSetMtu => Self::set_mtu(read(body)?),
            Request::CheckDeviceState => Ok(Step::Ask(Effect::CheckState, Commit::StateMoved)),
            _ => Err(Cause::Unsupported),
        }
    }

    /// What the table says about the message. Returns the ring that it names,
    /// 0 if it names none.
    fn check(&self, row: &Message<Request>, frame: &Frame) -> Result<u16, Cause> {
        if !self.is_open(row.gate) {
            return Err(Cause::NotNegotiated { needs: row.gate });
        }
        let sizes = row.payload.sizes();
        let (got, min, max) = (frame.body.len(), *sizes.start(), *sizes.end());
        if !sizes.contains(&got) {
            return Err(Cause::BodySize { got, min, max });
        }
        let (got, min, max) = (frame.fds, row.min_fds, row.max_fds);
        if got < min || got > max {
            return Err(Cause::FdCount { got, min, max });
        }
        if row.scope == Scope::Device {
            return Ok(0);
        }
        let index = ring_of(row.payload, &frame.body)?;
        let rings = self.offer.queues;
        let Some(ring) = u16::try_from(index).ok().filter(|ring| *ring < rings) else {
            return Err(Cause::RingIndex { index, rings });
        };
        if row.when == When::Stopped && self.ring(ring).running {
            return Err(Cause::Ring {
                ring,
                error: RingError::Running,
            });
        }
        Ok(ring)
    }

    fn is_open(&self, gate: Gate) -> bool {
        match gate {
            Gate::Open => true,
            Gate::ProtocolFeatures => self.offer.features & VHOST_USER_F_PROTOCOL_FEATURES != 0,
            Gate::Offered(features) => self.offer.protocol_features.contains(features),
            Gate::Negotiated(features) => self.protocol_features.contains(features),
            Gate::Feature(bits) => self.offer.features & bits != 0,
            Gate::Device(kind) => self.kind == Some(kind),
        }
    }

    /// vhost-user, `VHOST_USER_SET_FEATURES`. Several devices of one front end
    /// may share the connection, so the same features come again while rings
    /// run.
    fn set_features(&mut self, features: u64) -> Result<Step, Cause> {
        let unknown = features & !self.offer.features;
        if unknown != 0 {
            return Err(Cause::Features { unknown });
        }
        if let Some(ring) = self.first_ring(|ring| ring.running) {
            let changed = features ^ self.features.unwrap_or(0);
            if changed & !VHOST_F_LOG_ALL != 0 {
                return Err(Cause::FeaturesWhileRunning { changed, ring });
            }
            if changed == 0 {
                return Ok(self.enable_by(features));
            }
        }
        Ok(Step::Ask(
            Effect::SetFeatures(features),
            Commit::Features(features),
        ))
    }

    /// vhost-user, Ring states: features without `VHOST_USER_F_PROTOCOL_FEATURES`
    /// enable all rings at once.
    fn enable_by(&mut self, features: u64) -> Step {
        if features & VHOST_USER_F_PROTOCOL_FEATURES != 0 {
            return Step::Done;
        }
        for ring in self.rings.iter_mut().filter(|ring| !ring.running) {
            ring.enabled = true;
        }
        match self.first_ring(|ring| ring.running && !ring.enabled) {
            None => Step::Done,
            Some(ring) => Step::Ask(
                Effect::EnableRing {
                    ring,
                    enabled: true,
                },
                Commit::EnabledByFeatures { ring, features },
            ),
        }
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<Step, Cause> {
        let unknown = bits & !self.offer.protocol_features.bits();
        if unknown != 0 {
            return Err(Cause::ProtocolFeatures { unknown });
        }
        self.protocol_features = ProtocolFeatures::from_bits_retain(bits);
        Ok(Step::Done)
    }

    /// vhost-user, `VHOST_USER_SEND_RARP`: the address is in the first 6 bytes.
    fn send_rarp(payload: u64) -> Step {
        let [a, b, c, d, e, f, _, _] = payload.to_ne_bytes();
        let mac = [a, b, c, d, e, f];
        Step::Ask(Effect::SendRarp { mac }, Commit::Nothing)
    }

    /// vhost-user, `VHOST_USER_NET_SET_MTU`. The field of configuration space has
    /// 16 bits, and less than 68 is no MTU (virtio 1.3 5.1.4).
    fn set_mtu(payload: u64) -> Result<Step, Cause> {
        let mtu = u16::try_from(payload).ok().filter(|mtu| *mtu >= 68);
        let mtu = mtu.ok_or(Cause::Mtu { mtu: payload })?;
        Ok(Step::Ask(Effect::SetMtu { mtu }, Commit::Nothing))
    }

    fn set_mem_table(body: &[u8], fds: usize) -> Result<Step, Cause> {
        let (header, rest) = read_prefix::<MemoryTableHeader>(body)?;
        let count = usize::try_from(header.num_regions).unwrap_or(usize::MAX);
        if count > MAX_TABLE_REGIONS {
            let (count, max) = (header.num_regions.into(), MAX_TABLE_REGIONS as u64);
            return Err(MemoryError::TooMany { count, max }.into());
        }
        let exact = size_of::<MemoryTableHeader>() + count * size_of::<MemoryRegionDescription>();
        if body.len() != exact {
            return Err(Cause::BodySize {
                got: body.len(),
                min: exact,
                max: exact,
            });
        }
        if fds != count {
            return Err(Cause::FdCount {
                got: fds,
                min: count,
                max: count,
            });
        }
        let regions = memory::table(
            rest.chunks_exact(size_of::<MemoryRegionDescription>())
                .map(|bytes| {
                    MemoryRegionDescription::read_from_bytes(bytes).expect("the sizes are equal")
                }),
            MAX_TABLE_REGIONS as u64,
        )?;
        Ok(Step::Ask(
            Effect::SetMemory(regions.clone()),
            Commit::Regions(regions),
        ))
    }

    fn add_mem_reg(&self, single: SingleMemoryRegion) -> Result<Step, Cause> {
        let new = MemoryRegion::new(single.region)?;
        if self.repeats() && self.regions.contains(&new) {
            return Ok(Step::Done);
        }
        let regions = memory::add(&self.regions, new, self.offer.memory_slots)?;
        Ok(Step::Ask(Effect::AddRegion(new), Commit::Regions(regions)))
    }

    /// Whether the front end says what concerns the memory once for each queue pair, as
    /// QEMU 7.2 does for network devices; it gives up when the second time is refused.
    fn repeats(&self) -> bool {
        self.protocol_features.contains(ProtocolFeatures::NET_MTU)
    }

    fn rem_mem_reg(&self, single: SingleMemoryRegion) -> Result<Step, Cause> {
        let old = MemoryRegion::new(MemoryRegionDescription {
            mmap_offset: 0,
            ..single.region
        })?;
        let (regions, removed) = match memory::remove(&self.regions, old) {
            Err(MemoryError::Absent { .. }) if self.repeats() => return Ok(Step::Done),
            result => result?,
        };
        Ok(Step::Ask(
            Effect::RemoveRegion(removed),
            Commit::Regions(regions),
        ))
    }

    fn set_vring_num(&mut self, ring: u16, state: VringState) -> Result<Step, Cause> {
        let size = Ring::check_size(state.num, self.offer.queue_size_max, self.features)
            .map_err(|error| Cause::Ring { ring, error })?;
        self.ring_mut(ring).size = Some(size);
        Ok(Step::Done)
    }

    fn set_vring_base(&mut self, ring: u16, state: VringState) -> Result<Step, Cause> {
        let base = Ring::check_base(state.num, self.features)
            .map_err(|error| Cause::Ring { ring, error })?;
        self.ring_mut(ring).base = base;
        Ok(Step::Done)
    }

    /// vhost-user, Migration: on a running ring this switches logging and nothing else.
    fn set_vring_addr(&mut self, ring: u16, wire: VringAddr) -> Result<Step, Cause> {
        let may_log = self.offer.features & VHOST_F_LOG_ALL != 0;
        let new = RingAddresses::new(wire, may_log).map_err(|error| Cause::Ring { ring, error })?;
        let known = self.ring_mut(ring);
        if !known.running {
            known.addresses = Some(new);
            return Ok(Step::Done);
        }
        match known.addresses {
            Some(old) if old == new => Ok(Step::Done),
            Some(old) if old.same_place(&new) => Ok(Step::Ask(
                Effect::SetRingLog { ring, log: new.log },
                Commit::RingLog { ring, log: new.log },
            )),
            _ => Err(Cause::Ring {
                ring,
                error: RingError::Running,
            }),
        }
    }

    /// vhost-user, `VHOST_USER_GET_VRING_BASE`: it stops the ring, and is
    /// answered when the ring has stopped.
    fn vring_base(&self, ring: u16) -> Step {
        if self.ring(ring).running {
            Step::Ask(Effect::StopRing { ring }, Commit::Stopped { ring })
        } else {
            base_of(ring, self.ring(ring).base)
        }
    }

    /// vhost-user, `VHOST_USER_SET_VRING_KICK` (which starts the ring), `_CALL` and `_ERR`.
    fn set_vring_fd(&self, ring: u16, end: End, value: u64, fds: usize) -> Result<Step, Cause> {
        let at_ring = |error| Cause::Ring { ring, error };
        if value & !(VHOST_USER_VRING_IDX_MASK | VHOST_USER_VRING_NOFD_MASK) != 0 {
            return Err(at_ring(RingError::NotifierBits { value }));
        }
        let (fd, to, count) = match value & VHOST_USER_VRING_NOFD_MASK {
            0 => (Some(FdSlot(0)), Notifier::Fd, 1),
            _ => (None, Notifier::NoFd, 0),
        };
        if fds != count {
            return Err(Cause::FdCount {
                got: fds,
                min: count,
                max: count,
            });
        }
        let known = self.ring(ring);
        Ok(match end {
            End::Kick if !known.running => {
                let setup = known
                    .setup(self.offer.queue_size_max, self.features)
                    .map_err(at_ring)?;
                let commit = Commit::Started { ring, kick: to };
                Step::Ask(
                    Effect::StartRing {
                        ring,
                        setup,
                        kick: fd,
                    },
                    commit,
                )
            }
            End::Kick => Step::Ask(
                Effect::SetKick { ring, kick: fd },
                Commit::Notifier { ring, end, to },
            ),
            End::Call => Step::Ask(
                Effect::SetCall { ring, call: fd },
                Commit::Notifier { ring, end, to },
            ),
            End::Err => Step::Ask(
                Effect::SetErr { ring, err: fd },
                Commit::Notifier { ring, end, to },
            ),
        })
    }

    /// vhost-user, Ring states: enablement is remembered while the ring is stopped.
    fn set_vring_enable(&mut self, ring: u16, state: VringState) -> Result<Step, Cause> {
        let enabled = match state.num {
            0 => false,
            1 => true,
            num => {
                return Err(Cause::Ring {
                    ring,
                    error: RingError::Enable { num },
                });
            }
        };
        let known = self.ring_mut(ring);
        if known.running && known.enabled != enabled {
            let effect = Effect::EnableRing { ring, enabled };
            return Ok(Step::Ask(effect, Commit::Enabled { ring, enabled }));
        }
        known.enabled = enabled;
        Ok(Step::Done)
    }

    /// The effect was carried out: what follows from it.
    pub(super) fn commit(&mut self, commit: Commit, answer: Answer) -> Result<Step, Cause> {
        match (commit, answer) {
            (Commit::Stopped { ring }, Answer::RingStopped { base })
                if Ring::check_base(base, self.features).is_ok() =>
            {
                self.ring_mut(ring).stop(base);
                Ok(base_of(ring, base))
            }
            (Commit::Config { header }, Answer::Config(bytes))
                if u32::try_from(bytes.len()) == Ok(header.size) =>
            {
                let mut body = header.as_bytes().to_vec();
                body.extend_from_slice(&bytes);
                Ok(Step::Reply(body))
            }
            (Commit::Quiet { ring, then }, Answer::RingStopped { base })
                if Ring::check_base(base, self.features).is_ok() =>
            {
                self.ring_mut(ring).stop(base);
                Ok(self.quiesce(then))
            }
            (Commit::Created { request, len }, Answer::Inflight { size, offset, fd }) => {
                self.created(request, len, size, offset, fd)
            }
            (Commit::StateChannel, Answer::StateChannel { fd }) => {
                Ok(Step::ReplyWith(0u64.as_bytes().to_vec(), fd))
            }
            (Commit::StateChannel, Answer::Done) => Ok(number(DEVICE_STATE_NOFD_MASK)),
            (Commit::StateMoved, Answer::Done) => Ok(number(0)),
            (
                commit @ (Commit::Stopped { .. }
                | Commit::Quiet { .. }
                | Commit::Config { .. }
                | Commit::Created { .. }),
                _,
            ) => self.abandon(&commit, Misuse::WrongAnswer.into()),
            (commit, Answer::Done) => Ok(self.commit_done(commit)),
            _ => Err(Misuse::WrongAnswer.into()),
        }
    }

    fn commit_done(&mut self, commit: Commit) -> Step {
        match commit {
            Commit::Features(features) => {
                self.features = Some(features);
                return self.enable_by(features);
            }
            Commit::EnabledByFeatures { ring, features } => {
                self.ring_mut(ring).enabled = true;
                return self.enable_by(features);
            }
            Commit::Regions(regions) => self.regions = regions,
            Commit::Started { ring, kick } => {
                let known = self.ring_mut(ring);
                known.running = true;
                known.kick = kick;
            }
            Commit::Notifier { ring, end, to } => {
                let known = self.ring_mut(ring);
                match end {
                    End::Kick => known.kick = to,
                    End::Call => known.call = to,
                    End::Err => known.err = to,
                }
            }
            Commit::Enabled { ring, enabled } => self.ring_mut(ring).enabled = enabled,
            Commit::RingLog { ring, log } => {
                if let Some(addresses) = &mut self.ring_mut(ring).addresses {
                    addresses.log = log;
                }
            }
            Commit::Reset => self.reset(),
            Commit::Status(status) => {
                self.status = status;
                self.needs_reset &= status != 0;
            }
            Commit::Log(log) => {
                self.log = Some(log);
                return Step::Reply(log.description().as_bytes().to_vec());
            }
            Commit::LogFd => self.log_fd = true,
            Commit::Requests => self.request_socket = true,
            Commit::Adopted(inflight) => self.inflight = Some(inflight),
            Commit::Nothing
            | Commit::Stopped { .. }
            | Commit::Quiet { .. }
            | Commit::Config { .. }
            | Commit::Created { .. }
            | Commit::StateChannel
            | Commit::StateMoved => {}
        }
        Step::Done
    }

    /// The effect was not carried out. Only a ring that did not stop is
    /// changed by that: nobody may wait for it again.
    fn abandon(&mut self, commit: &Commit, cause: Cause) -> Result<Step, Cause> {
        if let Commit::Stopped { ring } | Commit::Quiet { ring, .. } = *commit {
            let known = self.ring_mut(ring);
            known.stop(known.base);
        }
        match commit {
            // Rings were stopped that the front end believes to run.
            Commit::Quiet { .. } | Commit::Reset | Commit::Status(0) => Ok(Step::Close(cause)),
            _ => Err(cause),
        }
    }

    /// The driver could not carry the effect out. As for QEMU, an in-flight
    /// region of no bytes says that there is none, and is no error.
    pub(super) fn give_up(&mut self, commit: &Commit, failure: Failure) -> Result<Step, Cause> {
        if let Commit::Created { request, len } = *commit {
            self.inflight = None;
            return Ok(Step::Reply(area::write_inflight(request, len)));
        }
        self.abandon(commit, failure.into())
    }

    pub(super) fn ring(&self, ring: u16) -> &Ring {
        &self.rings[usize::from(ring)]
    }

    pub(super) fn ring_mut(&mut self, ring: u16) -> &mut Ring {
        &mut self.rings[usize::from(ring)]
    }
}

fn number(value: u64) -> Step {
    Step::Reply(value.as_bytes().to_vec())
}

fn base_of(ring: u16, base: u32) -> Step {
    Step::Reply(
        VringState {
            index: ring.into(),
            num: base,
        }
        .as_bytes()
        .to_vec(),
    )
}

/// The ring that a body starts with.
fn ring_of(payload: Payload, body: &[u8]) -> Result<u32, Cause> {
    match payload {
        Payload::VringFd => {
            let (value, _) = read_prefix::<u64>(body)?;
            let index = value & VHOST_USER_VRING_IDX_MASK;
            Ok(u32::try_from(index).expect("8 bits"))
        }
        _ => Ok(read_prefix::<u32>(body)?.0),
    }
}

fn read<T: FromBytes + KnownLayout + Immutable>(body: &[u8]) -> Result<T, Cause> {
    let (min, max) = (size_of::<T>(), size_of::<T>());
    T::read_from_bytes(body).map_err(|_| Cause::BodySize {
        got: body.len(),
        min,
        max,
    })
}

pub(super) fn read_prefix<T: FromBytes + KnownLayout + Immutable>(
    body: &[u8],
) -> Result<(T, &[u8]), Cause> {
    let (got, min) = (body.len(), size_of::<T>());
    T::read_from_prefix(body).map_err(|_| Cause::BodySize { got, min, max: got })
}
