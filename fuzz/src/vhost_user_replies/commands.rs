//! Commands of a session's owner, out of bytes.

use linkspan_mem::{Gpa, UserVa};
use linkspan_vhost::backend::ConfigWriter;
use linkspan_vhost::frontend::{Command, Direction, FdId, Inflight, Log, RingStart};
use linkspan_vhost::wire::MemoryRegionDescription;
use linkspan_vhost::{MemoryRegion, VHOST_F_LOG_ALL};

use super::{FEATURES, RINGS};
use crate::input::Input;

/// Commands, the first byte of each; the others have no name and are the rest.
pub(crate) mod kind {
    /// Bits, 8: which features are left out, and whether writes are logged.
    pub(crate) const SET_FEATURES: u8 = 0;
    /// How many, 8 bits; for each place and descriptor, 8 bits.
    pub(crate) const SET_MEMORY: u8 = 1;
    /// How many, 8 bits; for each ring, size and flags, 8 bits each.
    pub(crate) const START: u8 = 2;
    /// How many, 8 bits; for each the ring, 8 bits.
    pub(crate) const STOP: u8 = 3;
    /// Ring and more, 8 bits each.
    pub(crate) const ENABLE: u8 = 4;
    pub(crate) const SET_KICK: u8 = 5;
    pub(crate) const SET_CALL: u8 = 6;
    pub(crate) const SET_ERR: u8 = 7;
    pub(crate) const SET_RING_LOG: u8 = 8;
    /// Offset and size, 16 bits each.
    pub(crate) const READ_CONFIG: u8 = 9;
    pub(crate) const WRITE_CONFIG: u8 = 10;
    /// Nothing more.
    pub(crate) const RESET: u8 = 11;
    pub(crate) const READ_STATUS: u8 = 12;
    pub(crate) const CHECK_STATE: u8 = 13;
    pub(crate) const LOG_FD: u8 = 14;
    pub(crate) const BACKEND_REQUESTS: u8 = 15;
    /// 8 bits.
    pub(crate) const WRITE_STATUS: u8 = 16;
    pub(crate) const MOVE_STATE: u8 = 17;
    /// Rings, 8 bits, and their entries, 16 bits.
    pub(crate) const CREATE_INFLIGHT: u8 = 18;
    pub(crate) const ADOPT_INFLIGHT: u8 = 19;
    /// Bytes, 16 bits.
    pub(crate) const SET_LOG: u8 = 20;
    pub(crate) const COUNT: u8 = 21;
}

/// The next command; nothing if the bytes end, or make none that can be said.
pub(super) fn command(input: &mut Input<'_>) -> Option<Command> {
    Some(match input.u8()? % kind::COUNT {
        kind::SET_FEATURES => {
            let bits = input.u8()?;
            let log = if bits & 4 != 0 { VHOST_F_LOG_ALL } else { 0 };
            Command::SetFeatures(FEATURES & !(u64::from(bits & 3) << 33) | log)
        }
        kind::SET_MEMORY => {
            let count = input.u8()? % 10;
            let regions = (0..count).map(|_| region(input));
            Command::SetMemory(regions.collect::<Option<_>>()?)
        }
        kind::START => {
            let count = input.u8()? % 6;
            let starts = (0..count).map(|_| start(input));
            Command::StartRings(starts.collect::<Option<_>>()?)
        }
        kind::STOP => {
            let count = input.u8()? % 6;
            let rings = (0..count).map(|_| ring(input));
            Command::StopRings(rings.collect::<Option<_>>()?)
        }
        named @ kind::ENABLE..=kind::SET_RING_LOG => of_ring(named, ring(input)?, input.u8()?),
        named @ (kind::READ_CONFIG | kind::WRITE_CONFIG) => {
            let (offset, size) = (input.u16()?.into(), input.u16()?);
            match named {
                kind::READ_CONFIG => Command::ReadConfig {
                    offset,
                    size: size.into(),
                },
                _ => Command::WriteConfig {
                    offset,
                    bytes: vec![7; size.into()],
                    writer: ConfigWriter::Driver,
                },
            }
        }
        kind::RESET => Command::ResetDevice,
        kind::READ_STATUS => Command::ReadStatus,
        kind::CHECK_STATE => Command::CheckState,
        kind::LOG_FD => Command::SetLogFd(FdId(50)),
        kind::BACKEND_REQUESTS => Command::SetBackendRequests(FdId(51)),
        kind::WRITE_STATUS => Command::WriteStatus(input.u8()?),
        kind::MOVE_STATE => Command::MoveState {
            direction: [Direction::Save, Direction::Load][usize::from(input.u8()? % 2)],
            fd: FdId(52),
        },
        kind::CREATE_INFLIGHT => Command::CreateInflight {
            queues: input.u8()?.into(),
            queue_size: input.u16()?,
        },
        kind::ADOPT_INFLIGHT => {
            let (queues, size) = (input.u8()?.into(), input.u16()?);
            Command::AdoptInflight {
                inflight: Inflight::new(0x3000, 0, queues, size).ok()?,
                fd: FdId(53),
            }
        }
        _ => Command::SetLog {
            log: Log::new(input.u16()?.into(), 0).ok()?,
            fd: FdId(54),
        },
    })
}

/// Which rings run when it is done.
pub(super) fn rings_after(
    command: &Command,
    mut runs: [bool; RINGS as usize],
) -> [bool; RINGS as usize] {
    let mut set = |ring: u16, value| {
        if let Some(runs) = runs.get_mut(usize::from(ring)) {
            *runs = value;
        }
    };
    match command {
        Command::StartRings(starts) => starts.iter().for_each(|start| set(start.ring, true)),
        Command::StopRings(rings) => rings.iter().for_each(|ring| set(*ring, false)),
        Command::ResetDevice => (0..RINGS).for_each(|ring| set(ring, false)),
        _ => {}
    }
    runs
}

fn of_ring(named: u8, ring: u16, more: u8) -> Command {
    let fd = (more & 1 != 0).then_some(FdId(more.into()));
    match named {
        kind::ENABLE => Command::EnableRing {
            ring,
            enabled: fd.is_some(),
        },
        kind::SET_KICK => Command::SetKick { ring, kick: fd },
        kind::SET_CALL => Command::SetCall { ring, call: fd },
        kind::SET_ERR => Command::SetErr { ring, err: fd },
        _ => Command::SetRingLog {
            ring,
            log: fd.map(|_| Gpa(0x1000)),
        },
    }
}

/// One ring more than there are.
fn ring(input: &mut Input<'_>) -> Option<u16> {
    Some(u16::from(input.u8()?) % (RINGS + 1))
}

/// Regions that may overlap: each 16 pages from one of 16 places on.
fn region(input: &mut Input<'_>) -> Option<(MemoryRegion, FdId)> {
    let (place, fd) = (u64::from(input.u8()?), input.u8()?);
    let region = MemoryRegion::new(MemoryRegionDescription {
        guest_address: place << 12,
        size: 0x1_0000,
        user_address: (1 << 40) + (place << 12),
        mmap_offset: 0,
    });
    Some((region.ok()?, FdId(fd.into())))
}

/// Entries are 256, or what is not a power of two.
fn start(input: &mut Input<'_>) -> Option<RingStart> {
    let (ring, size, flags) = (ring(input)?, input.u8()?, input.u8()?);
    let at = (1 << 40) + (u64::from(ring) << 12);
    let fd = |bit: u8| (flags & bit != 0).then_some(FdId(u64::from(bit) << 8 | u64::from(ring)));
    Some(RingStart {
        ring,
        size: if size == 0 { 256 } else { size.into() },
        base: if flags & 16 != 0 { 0x8003_8003 } else { 3 },
        descriptor: UserVa(at),
        driver: UserVa(at + 0x400),
        device: UserVa(at + 0x800),
        log: (flags & 32 != 0).then_some(Gpa(0)),
        kick: fd(1),
        call: fd(2),
        err: fd(4),
        enabled: flags & 8 != 0,
    })
}
