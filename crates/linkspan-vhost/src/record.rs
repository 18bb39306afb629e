//! Regions and rings as saved bytes, and what is wrong with bytes that are none.

use linkspan_mem::{Gpa, UserVa};
use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::area::AreaError;
use crate::backend::OfferError;
use crate::frontend::WishError;
use crate::memory::MemoryError;
use crate::ring::{Notifier, Ring, RingAddresses, RingError};
use crate::wire::MemoryRegionDescription;

const ADDRESSES: u16 = 1 << 0;
const LOG: u16 = 1 << 1;
const ENABLED: u16 = 1 << 2;
const RUNNING: u16 = 1 << 3;
const KICK_SHIFT: u16 = 4;
const CALL_SHIFT: u16 = 6;
const ERR_SHIFT: u16 = 8;
const RING_FLAGS: u16 = (1 << 10) - 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RegionRecord {
    pub(crate) guest_address: U64,
    pub(crate) size: U64,
    pub(crate) user_address: U64,
    pub(crate) mmap_offset: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RingRecord {
    pub(crate) descriptor: U64,
    pub(crate) driver: U64,
    pub(crate) device: U64,
    pub(crate) log: U64,
    pub(crate) base: U32,
    pub(crate) size: U16,
    pub(crate) flags: U16,
}

/// The session cannot be saved now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NotQuiet {
    /// Part of a message was received.
    #[error("a message is half received")]
    Receiving,
    /// An effect waits to be taken or answered.
    #[error("an effect waits to be carried out")]
    Working,
    /// There is nothing to go on with.
    #[error("the session is over")]
    Over,
}

/// Bytes that are not a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// They are something else.
    #[error("this is no saved vhost-user session")]
    Magic,
    /// They were written by a later version of this crate.
    #[error("format {got} is not known")]
    Version {
        /// The version found.
        got: u32,
    },
    /// They end early, or go on.
    #[error("{got} bytes instead of {want}")]
    Length {
        /// Bytes given.
        got: usize,
        /// Bytes that a session of this kind has.
        want: usize,
    },
    /// What is offered cannot be.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// What is wanted cannot be.
    #[error(transparent)]
    Wish(#[from] WishError),
    /// Virtio features that are not offered any more.
    #[error("features {unknown:#x} are not offered")]
    Features {
        /// The bits too many.
        unknown: u64,
    },
    /// Protocol features that are not offered any more.
    #[error("protocol features {unknown:#x} are not offered")]
    ProtocolFeatures {
        /// The bits too many.
        unknown: u64,
    },
    /// Another number of rings.
    #[error("{got} rings where {want} are offered")]
    Rings {
        /// Rings saved.
        got: u32,
        /// Rings offered.
        want: u16,
    },
    /// Memory that cannot be.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// An in-flight region or a log that cannot be.
    #[error(transparent)]
    Area(#[from] AreaError),
    /// A ring that cannot be.
    #[error("ring {ring}: {error}")]
    Ring {
        /// The ring.
        ring: u16,
        /// Why not.
        error: RingError,
    },
    /// Bits that mean nothing, or contradict each other.
    #[error("flags {flags:#x} make no sense")]
    Flags {
        /// The flags of the session or of a ring.
        flags: u32,
    },
}

/// The records of regions and of rings in `rest`, which follows `head` bytes
/// and holds nothing else.
pub(crate) fn split<Region>(
    head: usize,
    rest: &[u8],
    regions: u32,
    rings: u32,
) -> Result<(&[u8], &[u8]), RestoreError> {
    let bytes = |count: u32, each: usize| usize::try_from(count).ok()?.checked_mul(each);
    let regions = bytes(regions, size_of::<Region>());
    let want = regions
        .zip(bytes(rings, size_of::<RingRecord>()))
        .and_then(|(regions, rings)| regions.checked_add(rings));
    match (regions, want) {
        (Some(regions), Some(want)) if want == rest.len() => Ok(rest.split_at(regions)),
        _ => Err(RestoreError::Length {
            got: rest.len().saturating_add(head),
            want: want.unwrap_or(usize::MAX).saturating_add(head),
        }),
    }
}

impl From<MemoryRegionDescription> for RegionRecord {
    fn from(region: MemoryRegionDescription) -> Self {
        Self {
            guest_address: region.guest_address.into(),
            size: region.size.into(),
            user_address: region.user_address.into(),
            mmap_offset: region.mmap_offset.into(),
        }
    }
}

impl From<RegionRecord> for MemoryRegionDescription {
    fn from(record: RegionRecord) -> Self {
        Self {
            guest_address: record.guest_address.get(),
            size: record.size.get(),
            user_address: record.user_address.get(),
            mmap_offset: record.mmap_offset.get(),
        }
    }
}

impl From<&Ring> for RingRecord {
    fn from(ring: &Ring) -> Self {
        let at = ring.addresses;
        let log = at.and_then(|at| at.log);
        let mut flags = notifier_bits(ring.kick) << KICK_SHIFT
            | notifier_bits(ring.call) << CALL_SHIFT
            | notifier_bits(ring.err) << ERR_SHIFT;
        let marks = [
            (at.is_some(), ADDRESSES),
            (log.is_some(), LOG),
            (ring.enabled, ENABLED),
            (ring.running, RUNNING),
        ];
        for (_, mark) in marks.iter().filter(|(set, _)| *set) {
            flags |= mark;
        }
        Self {
            descriptor: at.map_or(0, |at| at.descriptor.0).into(),
            driver: at.map_or(0, |at| at.driver.0).into(),
            device: at.map_or(0, |at| at.device.0).into(),
            log: log.map_or(0, |log| log.0).into(),
            base: ring.base.into(),
            size: ring.size.unwrap_or(0).into(),
            flags: flags.into(),
        }
    }
}

impl TryFrom<&RingRecord> for Ring {
    type Error = RestoreError;

    fn try_from(record: &RingRecord) -> Result<Self, RestoreError> {
        let flags = record.flags.get();
        let nonsense = RestoreError::Flags {
            flags: flags.into(),
        };
        if flags & !RING_FLAGS != 0 || flags & (ADDRESSES | LOG) == LOG {
            return Err(nonsense);
        }
        let addresses = RingAddresses {
            descriptor: UserVa(record.descriptor.get()),
            driver: UserVa(record.driver.get()),
            device: UserVa(record.device.get()),
            log: (flags & LOG != 0).then_some(Gpa(record.log.get())),
        };
        let kick = notifier(flags >> KICK_SHIFT).ok_or(nonsense)?;
        let running = flags & RUNNING != 0;
        // A kick starts a ring, and stopping it forgets the kick.
        if running != (kick != Notifier::Unset) {
            return Err(nonsense);
        }
        Ok(Self {
            size: Some(record.size.get()).filter(|size| *size > 0),
            addresses: (flags & ADDRESSES != 0).then_some(addresses),
            base: record.base.get(),
            enabled: flags & ENABLED != 0,
            running,
            kick,
            call: notifier(flags >> CALL_SHIFT).ok_or(nonsense)?,
            err: notifier(flags >> ERR_SHIFT).ok_or(nonsense)?,
        })
    }
}

fn notifier_bits(notifier: Notifier) -> u16 {
    match notifier {
        Notifier::Unset => 0,
        Notifier::NoFd => 1,
        Notifier::Fd => 2,
    }
}

fn notifier(bits: u16) -> Option<Notifier> {
    match bits & 0b11 {
        0 => Some(Notifier::Unset),
        1 => Some(Notifier::NoFd),
        2 => Some(Notifier::Fd),
        _ => None,
    }
}
