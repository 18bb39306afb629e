//! A session as bytes, for a successor process.
//!
//! The bytes hold what the front end said, not what the device did: the base
//! of a running ring is where it started, and the ring itself knows where it
//! is. They come from a file or another process and are checked like messages.

use alloc::vec::Vec;

use linkspan_mem::{Gpa, UserVa};
use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ring::{Notifier, Ring, RingAddresses, RingError};
use super::{Backend, Link, Offer, Turn};
use crate::features::{ProtocolFeatures, VHOST_F_LOG_ALL};
use crate::memory::{self, MemoryError};
use crate::wire::{MAX_TABLE_REGIONS, MemoryRegionDescription};

const MAGIC: [u8; 8] = *b"LSvhubck";
const VERSION: u32 = 1;

const HAS_FEATURES: u32 = 1 << 0;

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
struct SessionRecord {
    magic: [u8; 8],
    version: U32,
    flags: U32,
    features: U64,
    protocol_features: U64,
    regions: U32,
    rings: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RegionRecord {
    guest_address: U64,
    size: U64,
    user_address: U64,
    mmap_offset: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RingRecord {
    descriptor: U64,
    driver: U64,
    device: U64,
    log: U64,
    base: U32,
    size: U16,
    flags: U16,
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
    #[error("format {got} is not known; format {VERSION} is")]
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

impl Backend {
    /// The session as bytes, between two messages.
    ///
    /// # Errors
    /// A message is being received or handled, or the session is over.
    pub fn snapshot(&self) -> Result<Vec<u8>, NotQuiet> {
        if self.link != Link::Open {
            return Err(NotQuiet::Over);
        }
        if self.framing.begun() {
            return Err(NotQuiet::Receiving);
        }
        if self.outbox.is_some() || !matches!(self.turn, Turn::Idle) {
            return Err(NotQuiet::Working);
        }
        let session = SessionRecord {
            magic: MAGIC,
            version: VERSION.into(),
            flags: if self.features.is_some() {
                HAS_FEATURES
            } else {
                0
            }
            .into(),
            features: self.features.unwrap_or(0).into(),
            protocol_features: self.protocol_features.bits().into(),
            regions: u32::try_from(self.regions.len())
                .expect("slots are bounded")
                .into(),
            rings: u32::from(self.offer.queues).into(),
        };
        let mut bytes = session.as_bytes().to_vec();
        for region in &self.regions {
            bytes.extend_from_slice(RegionRecord::from(region.description()).as_bytes());
        }
        for ring in &self.rings {
            bytes.extend_from_slice(RingRecord::from(ring).as_bytes());
        }
        Ok(bytes)
    }

    /// The session that [`snapshot`](Self::snapshot) saved. Memory, rings that
    /// run and their descriptors are to be brought back by the caller, from
    /// [`regions`](Self::regions), [`rings`](Self::rings) and
    /// [`running_setup`](Self::running_setup).
    ///
    /// # Errors
    /// `bytes` do not describe a session that `offer` could have led to.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn restore(offer: Offer, bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut backend = Self::new(offer);
        let (session, rest) = session(bytes)?;
        backend.restore_features(&session)?;
        let rings = session.rings.get();
        if rings != u32::from(backend.offer.queues) {
            return Err(RestoreError::Rings {
                got: rings,
                want: backend.offer.queues,
            });
        }
        let slots = backend.offer.memory_slots.max(MAX_TABLE_REGIONS as u64);
        let regions = session.regions.get();
        if u64::from(regions) > slots {
            return Err(MemoryError::TooMany {
                count: regions.into(),
                max: slots,
            }
            .into());
        }
        let (region_bytes, ring_bytes) = split(bytes.len(), rest, regions, rings)?;
        backend.regions = memory::table(
            region_bytes
                .chunks_exact(size_of::<RegionRecord>())
                .map(|bytes| {
                    RegionRecord::read_from_bytes(bytes)
                        .expect("the sizes are equal")
                        .into()
                }),
            slots,
        )?;
        let records = ring_bytes.chunks_exact(size_of::<RingRecord>());
        for (ring, bytes) in (0..backend.offer.queues).zip(records) {
            let record = RingRecord::read_from_bytes(bytes).expect("the sizes are equal");
            backend.rings[usize::from(ring)] = backend.restore_ring(ring, &record)?;
        }
        Ok(backend)
    }

    fn restore_features(&mut self, session: &SessionRecord) -> Result<(), RestoreError> {
        let flags = session.flags.get();
        let features = session.features.get();
        if flags & !HAS_FEATURES != 0 || (flags == 0 && features != 0) {
            return Err(RestoreError::Flags { flags });
        }
        let unknown = features & !self.offer.features;
        if unknown != 0 {
            return Err(RestoreError::Features { unknown });
        }
        let protocol_features = session.protocol_features.get();
        let unknown = protocol_features & !self.offer.protocol_features.bits();
        if unknown != 0 {
            return Err(RestoreError::ProtocolFeatures { unknown });
        }
        self.features = (flags & HAS_FEATURES != 0).then_some(features);
        self.protocol_features = ProtocolFeatures::from_bits_retain(protocol_features);
        Ok(())
    }

    /// A ring may be what messages could have made it: a stopped one half set
    /// up, a running one complete.
    fn restore_ring(&self, ring: u16, record: &RingRecord) -> Result<Ring, RestoreError> {
        let at_ring = |error| RestoreError::Ring { ring, error };
        let max = self.offer.queue_size_max;
        let known = Ring::try_from(record)?;
        if let Some(size) = known.size {
            Ring::check_size(size.into(), max, None).map_err(at_ring)?;
        }
        let logs = known
            .addresses
            .is_some_and(|addresses| addresses.log.is_some());
        if logs && self.offer.features & VHOST_F_LOG_ALL == 0 {
            return Err(at_ring(RingError::NoLog));
        }
        if known.running {
            known.setup(max, self.features).map_err(at_ring)?;
        }
        Ok(known)
    }
}

fn session(bytes: &[u8]) -> Result<(SessionRecord, &[u8]), RestoreError> {
    let want = size_of::<SessionRecord>();
    let (session, rest) =
        SessionRecord::read_from_prefix(bytes).map_err(|_| RestoreError::Length {
            got: bytes.len(),
            want,
        })?;
    if session.magic != MAGIC {
        return Err(RestoreError::Magic);
    }
    if session.version.get() != VERSION {
        return Err(RestoreError::Version {
            got: session.version.get(),
        });
    }
    Ok((session, rest))
}

/// The records of regions and of rings in `rest`, which has no other bytes.
fn split(
    got: usize,
    rest: &[u8],
    regions: u32,
    rings: u32,
) -> Result<(&[u8], &[u8]), RestoreError> {
    let bytes = |count: u32, each: usize| usize::try_from(count).ok()?.checked_mul(each);
    let regions = bytes(regions, size_of::<RegionRecord>());
    let rings = bytes(rings, size_of::<RingRecord>());
    let want = regions
        .zip(rings)
        .and_then(|(regions, rings)| regions.checked_add(rings));
    match (regions, want) {
        (Some(regions), Some(want)) if want == rest.len() => Ok(rest.split_at(regions)),
        _ => {
            let want = want
                .unwrap_or(usize::MAX)
                .saturating_add(size_of::<SessionRecord>());
            Err(RestoreError::Length { got, want })
        }
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
