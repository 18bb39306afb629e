//! A session as bytes, for a successor process.
//!
//! The bytes hold what the front end said, not what the device did: the base
//! of a running ring is where it started, and the ring itself knows where it
//! is. They come from a file or another process and are checked like messages.

use alloc::vec::Vec;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Backend, Link, Offer, Turn};
use crate::area::{self, Inflight, Log};
use crate::features::{ProtocolFeatures, VHOST_F_LOG_ALL};
use crate::memory::{self, MemoryError};
use crate::record::{NotQuiet, RegionRecord, RestoreError, RingRecord, split};
use crate::ring::{Ring, RingError};
use crate::wire::MAX_TABLE_REGIONS;

const MAGIC: [u8; 8] = *b"LSvhubck";
const VERSION: u32 = 2;

/// Before a session had a log, an in-flight region, a status and a socket for requests.
const FIRST_VERSION: u32 = 1;

/// Bytes of the record in that version: up to the number of rings.
const FIRST_HEAD: usize = 40;

const HAS_FEATURES: u32 = 1 << 0;
const HAS_LOG: u32 = 1 << 1;
const HAS_LOG_FD: u32 = 1 << 2;
const HAS_INFLIGHT: u32 = 1 << 3;
const HAS_REQUEST_SOCKET: u32 = 1 << 4;
const NEEDS_RESET: u32 = 1 << 5;
const FLAGS: u32 = (1 << 6) - 1;

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
    log_size: U64,
    log_offset: U64,
    inflight_size: U64,
    inflight_offset: U64,
    inflight_queues: U16,
    inflight_queue_size: U16,
    status: u8,
    padding: [u8; 3],
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
        let session = self.record();
        let mut bytes = session.as_bytes().to_vec();
        for region in &self.regions {
            bytes.extend_from_slice(RegionRecord::from(region.description()).as_bytes());
        }
        for ring in &self.rings {
            bytes.extend_from_slice(RingRecord::from(ring).as_bytes());
        }
        Ok(bytes)
    }

    fn record(&self) -> SessionRecord {
        let marks = [
            (self.features.is_some(), HAS_FEATURES),
            (self.log.is_some(), HAS_LOG),
            (self.log_fd, HAS_LOG_FD),
            (self.inflight.is_some(), HAS_INFLIGHT),
            (self.request_socket, HAS_REQUEST_SOCKET),
            (self.needs_reset, NEEDS_RESET),
        ];
        let set = marks.iter().filter(|(set, _)| *set);
        let flags = set.fold(0, |flags, (_, mark)| flags | mark);
        let (log, inflight) = (self.log, self.inflight);
        SessionRecord {
            magic: MAGIC,
            version: VERSION.into(),
            flags: flags.into(),
            features: self.features.unwrap_or(0).into(),
            protocol_features: self.protocol_features.bits().into(),
            regions: u32::try_from(self.regions.len())
                .expect("slots are bounded")
                .into(),
            rings: u32::from(self.offer.queues).into(),
            log_size: log.map_or(0, |log| log.size).into(),
            log_offset: log.map_or(0, |log| log.offset).into(),
            inflight_size: inflight.map_or(0, |at| at.size).into(),
            inflight_offset: inflight.map_or(0, |at| at.offset).into(),
            inflight_queues: inflight.map_or(0, |at| at.queues).into(),
            inflight_queue_size: inflight.map_or(0, |at| at.queue_size).into(),
            status: self.status,
            padding: [0; 3],
        }
    }

    /// The session that [`snapshot`](Self::snapshot) saved. Memory, rings that
    /// run and their descriptors are to be brought back by the caller, from
    /// [`regions`](Self::regions), [`rings`](Self::rings) and
    /// [`running_setup`](Self::running_setup); so are the log, the in-flight
    /// region and the socket for requests.
    ///
    /// # Errors
    /// `bytes` do not describe a session that `offer` could have led to, or
    /// `offer` cannot be made.
    pub fn restore(offer: Offer, bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut backend = Self::new(offer)?;
        let (session, head, rest) = session(bytes)?;
        backend.restore_features(&session)?;
        backend.restore_device(&session)?;
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
        let (region_bytes, ring_bytes) = split::<RegionRecord>(head, rest, regions, rings)?;
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
        if flags & !FLAGS != 0 || (flags & HAS_FEATURES == 0 && features != 0) {
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

    fn restore_device(&mut self, session: &SessionRecord) -> Result<(), RestoreError> {
        let flags = session.flags.get();
        if flags & HAS_LOG != 0 {
            let log = Log::new(session.log_size.get(), session.log_offset.get())?;
            self.log = Some(log);
        }
        if flags & HAS_INFLIGHT != 0 {
            let queues = session.inflight_queues.get();
            let queue_size = session.inflight_queue_size.get();
            let max = self.offer.queue_size_max;
            area::check_rings(queues, self.offer.queues, queue_size, max)?;
            let (size, offset) = (session.inflight_size.get(), session.inflight_offset.get());
            self.inflight = Some(Inflight::new(size, offset, queues, queue_size)?);
        }
        self.log_fd = flags & HAS_LOG_FD != 0;
        self.request_socket = flags & HAS_REQUEST_SOCKET != 0;
        self.needs_reset = flags & NEEDS_RESET != 0;
        self.status = session.status;
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

/// The record of the session, how many bytes it has in its version, and what follows.
fn session(bytes: &[u8]) -> Result<(SessionRecord, usize, &[u8]), RestoreError> {
    let short = |want| RestoreError::Length {
        got: bytes.len(),
        want,
    };
    let (first, rest) = bytes
        .split_at_checked(FIRST_HEAD)
        .ok_or(short(FIRST_HEAD))?;
    let mut whole = [0; size_of::<SessionRecord>()];
    whole[..FIRST_HEAD].copy_from_slice(first);
    let session = SessionRecord::read_from_bytes(&whole).expect("the sizes are equal");
    if session.magic != MAGIC {
        return Err(RestoreError::Magic);
    }
    match session.version.get() {
        VERSION => {
            let want = size_of::<SessionRecord>();
            let (session, rest) =
                SessionRecord::read_from_prefix(bytes).map_err(|_| short(want))?;
            Ok((session, want, rest))
        }
        FIRST_VERSION if session.flags.get() & !HAS_FEATURES == 0 => {
            Ok((session, FIRST_HEAD, rest))
        }
        FIRST_VERSION => Err(RestoreError::Flags {
            flags: session.flags.get(),
        }),
        got => Err(RestoreError::Version { got }),
    }
}
