//! A front end's session as bytes, for a successor process that gets the socket.
//!
//! The bytes come from a file or another process and are checked like messages.

use alloc::vec::Vec;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::steps::Task;
use super::{FdId, Frontend, Inflight, MAX_CONFIG_BYTES, Negotiated, NotQuiet, RestoreError, Wish};
use crate::features::{ProtocolFeatures, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES};
use crate::memory::{self, MemoryError, MemoryRegion};
use crate::record::{RegionRecord, RingRecord, split};
use crate::ring::Ring;

const MAGIC: [u8; 8] = *b"LSvhufnt";
const VERSION: u32 = 2;

const HAS_FEATURES: u32 = 1 << 0;
const HAS_INFLIGHT: u32 = 1 << 1;
const HAS_PROMISED: u32 = 1 << 2;
const FLAGS: u32 = (1 << 3) - 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SessionRecord {
    magic: [u8; 8],
    version: U32,
    flags: U32,
    offered: U64,
    negotiated: U64,
    protocol_features: U64,
    queues_max: U64,
    memory_slots: U64,
    features: U64,
    promised: U64,
    inflight_size: U64,
    inflight_offset: U64,
    inflight_queues: U16,
    inflight_queue_size: U16,
    config: U32,
    regions: U32,
    rings: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SharedRecord {
    region: RegionRecord,
    fd: U64,
}

impl Frontend {
    /// The session as bytes, between two commands.
    ///
    /// # Errors
    /// The negotiation or a command is under way, effects wait, or the session is over.
    pub fn snapshot(&self) -> Result<Vec<u8>, NotQuiet> {
        if self.over {
            return Err(NotQuiet::Over);
        }
        if self.framing.begun() {
            return Err(NotQuiet::Receiving);
        }
        if !self.is_idle() {
            return Err(NotQuiet::Working);
        }
        let length = |len| U32::from(u32::try_from(len).expect("bounded"));
        let inflight = self.inflight.map_or(Default::default(), |inflight| {
            (
                inflight.size,
                inflight.offset,
                inflight.queues,
                inflight.queue_size,
            )
        });
        let mut flags = 0;
        flags |= self.features.map_or(0, |_| HAS_FEATURES);
        flags |= self.promised.map_or(0, |_| HAS_PROMISED);
        flags |= self.inflight.map_or(0, |_| HAS_INFLIGHT);
        let negotiated = &self.negotiated;
        let session = SessionRecord {
            magic: MAGIC,
            version: VERSION.into(),
            flags: flags.into(),
            offered: negotiated.offered.into(),
            negotiated: negotiated.features.into(),
            protocol_features: negotiated.protocol_features.bits().into(),
            queues_max: negotiated.queues_max.into(),
            memory_slots: negotiated.memory_slots.into(),
            features: self.features.unwrap_or(0).into(),
            promised: self.promised.unwrap_or(0).into(),
            inflight_size: inflight.0.into(),
            inflight_offset: inflight.1.into(),
            inflight_queues: inflight.2.into(),
            inflight_queue_size: inflight.3.into(),
            config: length(negotiated.config.len()),
            regions: length(self.regions.len()),
            rings: length(self.rings.len()),
        };
        let mut bytes = session.as_bytes().to_vec();
        bytes.extend_from_slice(&negotiated.config);
        for (region, fd) in &self.regions {
            let record = SharedRecord {
                region: RegionRecord::from(region.description()),
                fd: fd.0.into(),
            };
            bytes.extend_from_slice(record.as_bytes());
        }
        for ring in &self.rings {
            bytes.extend_from_slice(RingRecord::from(ring).as_bytes());
        }
        Ok(bytes)
    }

    /// The session that [`snapshot`](Self::snapshot) saved, on the same socket.
    /// The numbers of descriptors are those of before.
    ///
    /// # Errors
    /// `bytes` do not describe a session that `wish` could have led to, or no
    /// back end can fulfil it.
    pub fn restore(wish: Wish, bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut frontend = Self::new(wish)?;
        frontend.effects.clear();
        frontend.steps.clear();
        frontend.awaited = None;
        frontend.task = Task::Idle;
        let (session, rest) = session(bytes)?;
        frontend.restore_negotiated(&session)?;
        let config = usize::try_from(session.config.get())
            .ok()
            .filter(|len| *len <= rest.len() && session.config.get() <= MAX_CONFIG_BYTES);
        let Some(config) = config else {
            return Err(RestoreError::Length {
                got: bytes.len(),
                want: size_of::<SessionRecord>(),
            });
        };
        let (config, rest) = rest.split_at(config);
        frontend.negotiated.config = config.to_vec();
        let (want, got) = (frontend.wish.queues, session.rings.get());
        if got != u32::from(want) {
            return Err(RestoreError::Rings { got, want });
        }
        let (count, max) = (session.regions.get(), frontend.negotiated.memory_slots);
        if u64::from(count) > max {
            let count = count.into();
            return Err(MemoryError::TooMany { count, max }.into());
        }
        let head = size_of::<SessionRecord>() + config.len();
        let (regions, rings) = split::<SharedRecord>(head, rest, count, got)?;
        frontend.restore_regions(regions)?;
        let records = rings.chunks_exact(size_of::<RingRecord>());
        for (ring, bytes) in (0..want).zip(records) {
            let record = RingRecord::read_from_bytes(bytes).expect("the sizes are equal");
            frontend.rings[usize::from(ring)] = frontend.restore_ring(ring, &record)?;
        }
        Ok(frontend)
    }

    fn restore_negotiated(&mut self, session: &SessionRecord) -> Result<(), RestoreError> {
        let flags = session.flags.get();
        if flags & !FLAGS != 0 {
            return Err(RestoreError::Flags { flags });
        }
        let promised = (flags & HAS_PROMISED != 0).then_some(session.promised.get());
        let between_ends = VHOST_F_LOG_ALL | VHOST_USER_F_PROTOCOL_FEATURES;
        let kept = promised.unwrap_or(0) & !between_ends;
        let wanted = self.wish.features | self.wish.required_features | kept;
        let (offered, features) = (session.offered.get(), session.negotiated.get());
        let unknown = features & !(offered & wanted) | kept & !features;
        if unknown != 0 {
            return Err(RestoreError::Features { unknown });
        }
        let protocol = session.protocol_features.get();
        let unknown = protocol & !Self::PROTOCOL_FEATURES.bits();
        if unknown != 0 {
            return Err(RestoreError::ProtocolFeatures { unknown });
        }
        self.promised = promised;
        self.negotiated = Negotiated {
            offered,
            features,
            protocol_features: ProtocolFeatures::from_bits_retain(protocol),
            queues_max: session.queues_max.get(),
            memory_slots: session.memory_slots.get(),
            config: Vec::new(),
        };
        if flags & HAS_FEATURES != 0 {
            let bit_30 = VHOST_USER_F_PROTOCOL_FEATURES & offered;
            let unknown = session.features.get() & !(self.allowed_features() | bit_30);
            if unknown != 0 {
                return Err(RestoreError::Features { unknown });
            }
            self.features = Some(session.features.get());
        }
        if flags & HAS_INFLIGHT != 0 {
            let inflight = Inflight::new(
                session.inflight_size.get(),
                session.inflight_offset.get(),
                session.inflight_queues.get(),
                session.inflight_queue_size.get(),
            );
            self.inflight = Some(inflight?);
        }
        Ok(())
    }

    fn restore_regions(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut checked = Vec::new();
        for bytes in bytes.chunks_exact(size_of::<SharedRecord>()) {
            let record = SharedRecord::read_from_bytes(bytes).expect("the sizes are equal");
            let region = MemoryRegion::new(record.region.into())?;
            checked = memory::add(&checked, region, self.negotiated.memory_slots)?;
            self.regions.push((region, FdId(record.fd.get())));
        }
        Ok(())
    }

    fn restore_ring(&self, ring: u16, record: &RingRecord) -> Result<Ring, RestoreError> {
        let known = Ring::try_from(record)?;
        if known.running {
            let at_ring = |error| RestoreError::Ring { ring, error };
            known
                .setup(crate::backend::MAX_RING_SIZE, self.features)
                .map_err(at_ring)?;
        }
        Ok(known)
    }
}

fn session(bytes: &[u8]) -> Result<(SessionRecord, &[u8]), RestoreError> {
    let want = size_of::<SessionRecord>();
    let got = bytes.len();
    let (session, rest) =
        SessionRecord::read_from_prefix(bytes).map_err(|_| RestoreError::Length { got, want })?;
    if session.magic != MAGIC {
        return Err(RestoreError::Magic);
    }
    let got = session.version.get();
    if got != VERSION {
        return Err(RestoreError::Version { got });
    }
    Ok((session, rest))
}
