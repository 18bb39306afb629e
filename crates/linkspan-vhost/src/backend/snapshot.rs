//! A session as bytes, for a successor process.
//!
//! The bytes hold what the front end said, not what the device did: the base
//! of a running ring is where it started, and the ring itself knows where it
//! is. They come from a file or another process and are checked like messages.

use alloc::vec::Vec;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Backend, Link, Offer, Turn};
use crate::features::{ProtocolFeatures, VHOST_F_LOG_ALL};
use crate::memory::{self, MemoryError};
use crate::record::{NotQuiet, RegionRecord, RestoreError, RingRecord, split};
use crate::ring::{Ring, RingError};
use crate::wire::MAX_TABLE_REGIONS;

const MAGIC: [u8; 8] = *b"LSvhubck";
const VERSION: u32 = 1;

const HAS_FEATURES: u32 = 1 << 0;

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
        let (region_bytes, ring_bytes) =
            split::<RegionRecord>(size_of::<SessionRecord>(), rest, regions, rings)?;
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
