//! What the owner of a session can ask for, and the messages that it becomes.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use linkspan_mem::{Gpa, UserVa};
use zerocopy::IntoBytes;

use super::steps::{Step, Then};
use super::{CommandError, Direction, FdId, Frontend, Inflight, Log};
use crate::area;
use crate::backend::{ConfigWriter, MAX_RING_SIZE};
use crate::features::{ProtocolFeatures, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES};
use crate::memory::{self, MemoryRegion};
use crate::message::Request;
use crate::ring::{End, Notifier, Ring, RingAddresses, RingError};
use crate::wire::{
    ConfigHeader, DeviceStateParameters, InflightDescription, MAX_TABLE_REGIONS, MemoryTableHeader,
    SingleMemoryRegion, VHOST_USER_MAX_CONFIG_SIZE, VHOST_USER_VRING_NOFD_MASK, VHOST_VRING_F_LOG,
    VringAddr, VringState,
};

/// What the owner of a session asks for, one at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Acknowledge these virtio features: some of [`Negotiated::features`](super::Negotiated::features),
    /// and `VHOST_F_LOG_ALL` while a log is kept, which alone may change under
    /// running rings.
    SetFeatures(u64),
    /// Share exactly this memory, each region with its descriptor. With
    /// `CONFIGURE_MEM_SLOTS` what is new is added and what is gone removed;
    /// otherwise the whole table is sent.
    SetMemory(Vec<(MemoryRegion, FdId)>),
    /// Start these rings: all of them or, if one is refused, none. Notify
    /// each once after that, for what is available already.
    StartRings(Vec<RingStart>),
    /// Stop these rings. For each there is an [`Event::RingStopped`](super::Event::RingStopped)
    /// when its last request is done.
    StopRings(Vec<u16>),
    /// Let a ring take requests, or not. Without `VHOST_USER_F_PROTOCOL_FEATURES`
    /// rings always do.
    EnableRing {
        /// The ring.
        ring: u16,
        /// Whether it takes requests.
        enabled: bool,
    },
    /// Give a running ring another kick descriptor; `None`: let the back end poll.
    SetKick {
        /// The ring.
        ring: u16,
        /// What wakes the back end.
        kick: Option<FdId>,
    },
    /// Give a ring another call descriptor; `None`: the driver polls.
    SetCall {
        /// The ring.
        ring: u16,
        /// What notifies the driver.
        call: Option<FdId>,
    },
    /// Give a ring another err descriptor; `None`: nobody wants to know.
    SetErr {
        /// The ring.
        ring: u16,
        /// What signals that the ring failed.
        err: Option<FdId>,
    },
    /// Let a running ring log writes to its used ring at this guest address, or no longer.
    SetRingLog {
        /// The ring.
        ring: u16,
        /// Where the used ring starts in the log.
        log: Option<Gpa>,
    },
    /// Read configuration space; [`Event::Config`](super::Event::Config) has it.
    ReadConfig {
        /// First byte.
        offset: u32,
        /// Bytes, 1 to 256.
        size: u32,
    },
    /// Write configuration space.
    WriteConfig {
        /// First byte.
        offset: u32,
        /// 1 to 256 bytes.
        bytes: Vec<u8>,
        /// Who writes.
        writer: ConfigWriter,
    },
    /// Bring the device into its first state. Rings stop, features are to be
    /// set again; memory stays. If that is refused the session is over, since
    /// nobody knows what it left.
    ResetDevice,
    /// Read the device status; [`Event::Status`](super::Event::Status) has it.
    ReadStatus,
    /// Write the device status; 0, which resets, only when no ring runs.
    WriteStatus(u8),
    /// Have the back end make a region for requests in flight;
    /// [`Event::Inflight`](super::Event::Inflight) has it.
    CreateInflight {
        /// Rings that it covers.
        queues: u16,
        /// Entries of the largest.
        queue_size: u16,
    },
    /// Give the back end a region for requests in flight: the one of before.
    AdoptInflight {
        /// Where it is.
        inflight: Inflight,
        /// In what.
        fd: FdId,
    },
    /// Let writes to memory be logged here, with `VHOST_F_LOG_ALL`.
    SetLog {
        /// Where it is.
        log: Log,
        /// In what.
        fd: FdId,
    },
    /// Have this signalled when the log was written.
    SetLogFd(FdId),
    /// Give the back end its end of a socket for requests of its own; see
    /// [`Requests`](super::Requests) for the other end.
    SetBackendRequests(FdId),
    /// Begin to move the state of the device, with all rings stopped;
    /// [`Event::StateChannel`](super::Event::StateChannel) says through what.
    MoveState {
        /// Which way.
        direction: Direction,
        /// The back end's end of a channel.
        fd: FdId,
    },
    /// Learn whether the state was moved, after the end of file.
    CheckState,
}

/// How a ring starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingStart {
    /// The ring.
    pub ring: u16,
    /// Its entries: 1 to 32768; a power of two unless it is packed.
    pub size: u16,
    /// Where it goes on: for a split ring the next available index; for a
    /// packed ring that index with its wrap counter in bit 15, and the used
    /// index with its wrap counter in the upper half.
    pub base: u32,
    /// Descriptor area.
    pub descriptor: UserVa,
    /// Driver area: the available ring.
    pub driver: UserVa,
    /// Device area: the used ring.
    pub device: UserVa,
    /// Guest address under which writes to the used ring are logged.
    pub log: Option<Gpa>,
    /// What wakes the back end; `None`: it has to poll.
    pub kick: Option<FdId>,
    /// What notifies the driver; `None`: it polls.
    pub call: Option<FdId>,
    /// What signals that the ring failed; `None`: nobody wants to know.
    pub err: Option<FdId>,
    /// Whether it takes requests at once.
    pub enabled: bool,
}

type Plan = Result<VecDeque<Step>, CommandError>;

impl Frontend {
    /// The messages of a command, if all is well with it.
    pub(super) fn plan(&self, command: Command) -> Plan {
        use Command as C;
        match command {
            C::SetFeatures(features) => self.plan_features(features),
            C::SetMemory(regions) => self.plan_memory(regions),
            C::StartRings(starts) => self.plan_start(&starts),
            C::StopRings(rings) => self.plan_stop(&rings),
            C::EnableRing { ring, enabled } => {
                self.check_ring(ring)?;
                Ok(one(enable(ring, enabled)))
            }
            C::SetKick { ring, kick } => {
                self.check_running(ring)?;
                Ok(one(notifier(ring, End::Kick, kick)))
            }
            C::SetCall { ring, call } => {
                self.check_ring(ring)?;
                Ok(one(notifier(ring, End::Call, call)))
            }
            C::SetErr { ring, err } => {
                self.check_ring(ring)?;
                Ok(one(notifier(ring, End::Err, err)))
            }
            C::SetRingLog { ring, log } => self.plan_ring_log(ring, log),
            C::ReadConfig { offset, size } => read_config(offset, size),
            C::WriteConfig {
                offset,
                bytes,
                writer,
            } => write_config(offset, &bytes, writer),
            C::ResetDevice => Ok(one(bare(Request::ResetDevice, Then::Reset))),
            C::ReadStatus => Ok(one(bare(Request::GetStatus, Then::Status))),
            C::WriteStatus(status) => self.plan_status(status),
            C::CreateInflight { queues, queue_size } => self.plan_inflight(queues, queue_size),
            C::AdoptInflight { inflight, fd } => self.plan_adoption(inflight, fd),
            C::SetLog { log, fd } => {
                let body = log.description();
                let step = Step::new(Request::SetLogBase, body.as_bytes(), Then::Nothing);
                Ok(one(step.with(fd)))
            }
            C::SetLogFd(fd) => Ok(one(bare(Request::SetLogFd, Then::Nothing).with(fd))),
            C::SetBackendRequests(fd) => {
                Ok(one(bare(Request::SetBackendReqFd, Then::Nothing).with(fd)))
            }
            C::MoveState { direction, fd } => self.plan_state(direction, fd),
            C::CheckState => Ok(one(bare(Request::CheckDeviceState, Then::Checked))),
        }
    }

    /// Virtio 1.3, 2.1: 0 resets, which would stop rings that are believed to run.
    fn plan_status(&self, status: u8) -> Plan {
        if status == 0 {
            self.check_all_stopped()?;
        }
        let body = u64::from(status);
        Ok(one(Step::new(
            Request::SetStatus,
            body.as_bytes(),
            Then::Nothing,
        )))
    }

    fn plan_adoption(&self, inflight: Inflight, fd: FdId) -> Plan {
        let (rings, size) = (self.wish.queues, inflight.queue_size);
        area::check_rings(inflight.queues, rings, size, MAX_RING_SIZE)?;
        self.check_all_stopped()?;
        let body = inflight.description();
        let then = Then::Adopted(inflight);
        Ok(one(Step::new(
            Request::SetInflightFd,
            body.as_bytes(),
            then,
        )
        .with(fd)))
    }

    fn plan_state(&self, direction: Direction, fd: FdId) -> Plan {
        self.check_all_stopped()?;
        let direction = match direction {
            Direction::Save => 0,
            Direction::Load => 1,
        };
        let body = DeviceStateParameters {
            direction,
            phase: 0,
        };
        let step = Step::new(Request::SetDeviceStateFd, body.as_bytes(), Then::Channel);
        Ok(one(step.with(fd)))
    }

    fn plan_features(&self, features: u64) -> Plan {
        let unknown = features & !self.allowed_features();
        if unknown != 0 {
            return Err(CommandError::Features { unknown });
        }
        let bit_30 = VHOST_USER_F_PROTOCOL_FEATURES & self.negotiated.offered;
        let features = features | bit_30;
        if let Some(ring) = self.first_running() {
            let changed = (features ^ self.features.unwrap_or(0)) & !VHOST_F_LOG_ALL;
            if changed != 0 {
                return Err(CommandError::FeaturesWhileRunning { changed, ring });
            }
        }
        Ok(one(Step::new(
            Request::SetFeatures,
            features.as_bytes(),
            Then::Features(features),
        )))
    }

    fn plan_memory(&self, regions: Vec<(MemoryRegion, FdId)>) -> Plan {
        if regions.is_empty() {
            return Err(CommandError::Nothing);
        }
        let mut checked = Vec::new();
        for (region, _) in &regions {
            checked = memory::add(&checked, *region, self.negotiated.memory_slots)?;
        }
        let slots = ProtocolFeatures::CONFIGURE_MEM_SLOTS;
        if !self.negotiated.protocol_features.contains(slots) {
            return Ok(one(table(regions)));
        }
        let single = |request, region: &MemoryRegion, then| {
            let region = region.description();
            Step::new(
                request,
                SingleMemoryRegion { padding: 0, region }.as_bytes(),
                then,
            )
        };
        let gone = self.regions.iter().filter(|old| !regions.contains(old));
        let mut steps: VecDeque<Step> = gone
            .map(|(region, _)| single(Request::RemMemReg, region, Then::Removed(*region)))
            .collect();
        let new = regions.iter().filter(|new| !self.regions.contains(new));
        steps.extend(new.map(|&(region, fd)| {
            single(Request::AddMemReg, &region, Then::Added(region, fd)).with(fd)
        }));
        Ok(steps)
    }

    /// All rings are set up before the first is started, and all are started
    /// before the first takes requests.
    fn plan_start(&self, starts: &[RingStart]) -> Plan {
        self.check_list(starts.iter().map(|start| start.ring))?;
        if self.regions.is_empty() {
            return Err(CommandError::NoMemory);
        }
        let mut steps = VecDeque::new();
        for start in starts {
            self.plan_ring(start, &mut steps)?;
        }
        for start in starts {
            steps.push_back(notifier(start.ring, End::Kick, start.kick));
        }
        if self.is_bit_30_offered() {
            for start in starts.iter().filter(|start| start.enabled) {
                steps.push_back(enable(start.ring, true));
            }
        }
        Ok(steps)
    }

    fn plan_ring(&self, start: &RingStart, steps: &mut VecDeque<Step>) -> Result<(), CommandError> {
        let ring = start.ring;
        let at_ring = |error| CommandError::Ring { ring, error };
        if self.rings[usize::from(ring)].running {
            return Err(CommandError::Running { ring });
        }
        let features = self.features.ok_or(at_ring(RingError::NoFeatures))?;
        Ring::check_size(start.size.into(), MAX_RING_SIZE, Some(features)).map_err(at_ring)?;
        Ring::check_base(start.base, Some(features)).map_err(at_ring)?;
        let at = RingAddresses {
            descriptor: start.descriptor,
            driver: start.driver,
            device: start.device,
            log: start.log,
        };
        let (request, then) = (
            Request::SetVringNum,
            Then::Size {
                ring,
                size: start.size,
            },
        );
        steps.push_back(state(request, ring, start.size.into(), then));
        let then = Then::Base {
            ring,
            base: start.base,
        };
        steps.push_back(state(Request::SetVringBase, ring, start.base, then));
        steps.push_back(self.addresses(ring, at)?);
        if start.err.is_some() {
            steps.push_back(notifier(ring, End::Err, start.err));
        }
        steps.push_back(notifier(ring, End::Call, start.call));
        Ok(())
    }

    fn plan_ring_log(&self, ring: u16, log: Option<Gpa>) -> Plan {
        self.check_running(ring)?;
        let at = self.rings[usize::from(ring)].addresses;
        let at = at.ok_or(CommandError::NotRunning { ring })?;
        Ok(one(self.addresses(ring, RingAddresses { log, ..at })?))
    }

    fn addresses(&self, ring: u16, at: RingAddresses) -> Result<Step, CommandError> {
        if at.log.is_some() && self.negotiated.offered & VHOST_F_LOG_ALL == 0 {
            let error = RingError::NoLog;
            return Err(CommandError::Ring { ring, error });
        }
        let body = VringAddr {
            index: ring.into(),
            flags: at.log.map_or(0, |_| VHOST_VRING_F_LOG),
            descriptor: at.descriptor.0,
            used: at.device.0,
            available: at.driver.0,
            log: at.log.map_or(0, |log| log.0),
        };
        let then = Then::At { ring, at };
        Ok(Step::new(Request::SetVringAddr, body.as_bytes(), then))
    }

    fn plan_stop(&self, rings: &[u16]) -> Plan {
        self.check_list(rings.iter().copied())?;
        for ring in rings {
            self.check_running(*ring)?;
        }
        Ok(rings.iter().map(|ring| Step::stop(*ring)).collect())
    }

    fn plan_inflight(&self, queues: u16, queue_size: u16) -> Plan {
        area::check_rings(queues, self.wish.queues, queue_size, MAX_RING_SIZE)?;
        self.check_all_stopped()?;
        let body = InflightDescription {
            mmap_size: 0,
            mmap_offset: 0,
            num_queues: queues,
            queue_size,
            padding: 0,
        };
        let then = Then::Created { queues, queue_size };
        Ok(one(Step::new(
            Request::GetInflightFd,
            body.as_bytes(),
            then,
        )))
    }

    fn check_ring(&self, ring: u16) -> Result<(), CommandError> {
        let rings = self.wish.queues;
        if ring >= rings {
            return Err(CommandError::RingIndex { ring, rings });
        }
        Ok(())
    }

    fn check_running(&self, ring: u16) -> Result<(), CommandError> {
        self.check_ring(ring)?;
        if !self.rings[usize::from(ring)].running {
            return Err(CommandError::NotRunning { ring });
        }
        Ok(())
    }

    fn check_all_stopped(&self) -> Result<(), CommandError> {
        match self.first_running() {
            Some(ring) => Err(CommandError::Running { ring }),
            None => Ok(()),
        }
    }

    /// Rings that exist, each once, and at least one.
    fn check_list(&self, rings: impl Iterator<Item = u16>) -> Result<(), CommandError> {
        let mut named = vec![false; self.rings.len()];
        for ring in rings {
            self.check_ring(ring)?;
            if core::mem::replace(&mut named[usize::from(ring)], true) {
                return Err(CommandError::Twice { ring });
            }
        }
        if named.contains(&true) {
            Ok(())
        } else {
            Err(CommandError::Nothing)
        }
    }
}

fn one(step: Step) -> VecDeque<Step> {
    VecDeque::from([step])
}

fn bare(request: Request, then: Then) -> Step {
    Step::new(request, &[], then)
}

fn state(request: Request, ring: u16, num: u32, then: Then) -> Step {
    let index = ring.into();
    Step::new(request, VringState { index, num }.as_bytes(), then)
}

fn enable(ring: u16, enabled: bool) -> Step {
    let then = Then::Enabled { ring, enabled };
    state(Request::SetVringEnable, ring, enabled.into(), then)
}

fn notifier(ring: u16, end: End, fd: Option<FdId>) -> Step {
    let request = match end {
        End::Kick => Request::SetVringKick,
        End::Call => Request::SetVringCall,
        End::Err => Request::SetVringErr,
    };
    let (flag, to) = match fd {
        Some(_) => (0, Notifier::Fd),
        None => (VHOST_USER_VRING_NOFD_MASK, Notifier::NoFd),
    };
    let body = u64::from(ring) | flag;
    let mut step = Step::new(request, body.as_bytes(), Then::Notifier { ring, end, to });
    step.fds.extend(fd);
    step
}

fn table(regions: Vec<(MemoryRegion, FdId)>) -> Step {
    assert!(
        regions.len() <= MAX_TABLE_REGIONS,
        "the slots are checked before"
    );
    let header = MemoryTableHeader {
        num_regions: u32::try_from(regions.len()).expect("few"),
        padding: 0,
    };
    let mut body = header.as_bytes().to_vec();
    for (region, _) in &regions {
        body.extend_from_slice(region.description().as_bytes());
    }
    let fds = regions.iter().map(|(_, fd)| *fd).collect();
    Step {
        fds,
        ..Step::new(Request::SetMemTable, &body, Then::Table(regions))
    }
}

/// One message about this part of configuration space.
pub(super) fn read_config(offset: u32, size: u32) -> Plan {
    let zeroes = [0; VHOST_USER_MAX_CONFIG_SIZE];
    let len = usize::try_from(size).unwrap_or(usize::MAX);
    let bytes = zeroes.get(..len).unwrap_or(&[]);
    let header = config_header(offset, len, 0)?;
    let body = [header.as_bytes(), bytes].concat();
    let then = Then::Config { offset, size };
    Ok(one(Step::new(Request::GetConfig, &body, then)))
}

fn write_config(offset: u32, bytes: &[u8], writer: ConfigWriter) -> Plan {
    let flags = match writer {
        ConfigWriter::Driver => 0,
        ConfigWriter::Migration => 1,
    };
    let header = config_header(offset, bytes.len(), flags)?;
    let body = [header.as_bytes(), bytes].concat();
    Ok(one(Step::new(Request::SetConfig, &body, Then::Nothing)))
}

fn config_header(offset: u32, len: usize, flags: u32) -> Result<ConfigHeader, CommandError> {
    let max = VHOST_USER_MAX_CONFIG_SIZE;
    let size = u32::try_from(len)
        .ok()
        .filter(|size| (1..=max).contains(&len) && offset.checked_add(*size).is_some())
        .ok_or(CommandError::Config {
            offset,
            size: len,
            max,
        })?;
    Ok(ConfigHeader {
        offset,
        size,
        flags,
    })
}
