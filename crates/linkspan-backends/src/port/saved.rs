//! What ports share, as bytes for the process that takes them over: what was counted of each,
//! which links are up, and which stations the switch knows.
//!
//! All numbers are little endian. A head of 40 bytes is followed by each port (8 bytes, and what
//! was counted, 8 bytes each) and each station (16 bytes). Who reads it believes nothing.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use linkspan_devices::net::Mac;
use linkspan_devices::net::switch::Station;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::counters::PortCounts;
use super::fabric::{Fabric, Mode, Side};

const MAGIC: [u8; 8] = *b"LSfabric";

/// The form that is written, and the first one: a later release has to read it too.
const VERSION: u32 = 1;

/// Stations that are handed on at most: as many as two tables hold.
const STATIONS_MAX: usize = 32768;

/// The largest count that is believed, so that sums of them are numbers too.
const COUNT_MAX: u64 = 1 << 56;

/// Nothing comes or goes.
const SHUT: u8 = 1 << 0;
/// Somebody is there to take frames.
const THERE: u8 = 1 << 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U32,
    mode: U32,
    ports: U32,
    stations: U32,
    /// Counts of each port for each reason to drop a frame, and to refuse a command.
    drops: U16,
    refused: U16,
    reserved: U32,
    millis: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct PortRecord {
    kind: u8,
    flags: u8,
    mtu: U16,
    pairs: U16,
    reserved: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct StationRecord {
    vlan: U16,
    mac: [u8; 6],
    seen_s: U32,
    port: U16,
    reserved: U16,
}

/// What a fabric was in another process.
#[derive(Debug)]
pub(super) struct Before {
    /// How long it has been there.
    pub(super) millis: u64,
    /// By port.
    pub(super) counts: Vec<PortCounts>,
    pub(super) stations: Vec<Station>,
}

/// Bytes that are no fabric as this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FabricRestoreError {
    /// They are something else.
    #[error("these are no saved ports")]
    Magic,
    /// They were written by a later version of this program.
    #[error("saved ports of format {got} are newer than this program, which knows {VERSION}")]
    Version {
        /// The version found.
        got: u32,
    },
    /// They end early, or go on.
    #[error("{got} bytes are not those of the saved ports that they begin with")]
    Length {
        /// Bytes given.
        got: usize,
    },
    /// The ports are joined in another way.
    #[error("the saved ports are joined in another way")]
    Mode,
    /// There are more ports, or fewer.
    #[error("{got} ports were saved, and {own} are here")]
    Ports {
        /// How many.
        got: u32,
        /// How many here.
        own: usize,
    },
    /// Something else is behind a port, or it has another number of queue pairs.
    #[error("port {port} was another one")]
    Port {
        /// Which.
        port: usize,
    },
    /// More than there can be.
    #[error("{stations} stations, {drops} reasons to drop a frame, {refused} to refuse a command")]
    TooMany {
        /// How many stations.
        stations: u32,
        /// Reasons to drop a frame.
        drops: u16,
        /// Reasons to refuse a command.
        refused: u16,
    },
    /// A port took over what was there before.
    #[error("this fabric goes on from something else already")]
    Twice,
}

fn mode(mode: Mode) -> u32 {
    match mode {
        Mode::Switch => 0,
        Mode::Pair => 1,
        Mode::Sink => 2,
        Mode::Source => 3,
        Mode::Echo => 4,
    }
}

/// What is behind a port, and its queues.
fn shape(side: &Side) -> (u8, u16) {
    match side {
        Side::Guest(pairs) => (0, pairs.count),
        Side::Tap(queues, _) => (1, u16::try_from(queues.len()).unwrap_or(u16::MAX)),
        Side::Responder(_) => (2, 0),
    }
}

/// Counts of a port in the order in which they are written.
fn numbers(counts: &mut PortCounts) -> impl Iterator<Item = &mut u64> {
    let own = [
        &mut counts.frames_in,
        &mut counts.bytes_in,
        &mut counts.frames_out,
        &mut counts.bytes_out,
        &mut counts.flooded,
        &mut counts.commands,
    ];
    let pairs = counts.pairs.iter_mut();
    let pairs = pairs.flat_map(|pair| [&mut pair.frames_in, &mut pair.frames_out]);
    own.into_iter().chain(pairs)
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl Before {
    /// What it is now, with the stations that all workers know.
    pub(super) fn of(fabric: &Fabric, stations: Vec<Station>) -> Self {
        let mut newest = BTreeMap::new();
        for it in stations {
            let known = newest.entry((it.vlan, it.mac)).or_insert(it);
            if known.seen_s < it.seen_s {
                *known = it;
            }
        }
        let counts = (0..fabric.ports()).filter_map(|port| fabric.counts(port));
        Self {
            millis: fabric.millis(std::time::Instant::now()),
            counts: counts.collect(),
            stations: newest.into_values().take(STATIONS_MAX).collect(),
        }
    }

    /// All of it as bytes.
    pub(super) fn bytes(mut self, fabric: &Fabric) -> Vec<u8> {
        let (drops, refused) = kinds();
        let head = Head {
            magic: MAGIC,
            version: VERSION.into(),
            mode: mode(fabric.mode).into(),
            ports: count(self.counts.len()).into(),
            stations: count(self.stations.len()).into(),
            drops: drops.into(),
            refused: refused.into(),
            reserved: 0.into(),
            millis: self.millis.into(),
        };
        let mut bytes = head.as_bytes().to_vec();
        for (port, counts) in fabric.ports.iter().zip(&mut self.counts) {
            let (kind, pairs) = shape(&port.kind);
            let there = port.was_there.load(Ordering::Acquire);
            let marks = [(port.is_shut(), SHUT), (there, THERE)];
            let set = marks.iter().filter(|(set, _)| *set);
            let record = PortRecord {
                kind,
                flags: set.fold(0, |flags, (_, mark)| flags | mark),
                mtu: port.mtu.load(Ordering::Relaxed).into(),
                pairs: pairs.into(),
                reserved: 0.into(),
            };
            bytes.extend_from_slice(record.as_bytes());
            let causes = counts.drops.iter().chain(&counts.refused);
            bytes.extend(causes.flat_map(|count| count.to_le_bytes()));
            bytes.extend(numbers(counts).flat_map(|count| count.to_le_bytes()));
        }
        for it in &self.stations {
            let record = StationRecord {
                vlan: it.vlan.into(),
                mac: it.mac.0,
                seen_s: it.seen_s.into(),
                port: it.port.into(),
                reserved: 0.into(),
            };
            bytes.extend_from_slice(record.as_bytes());
        }
        bytes
    }

    /// A fabric goes on from what these bytes are of; it does not run yet.
    ///
    /// # Errors
    /// They are of another one, or of none.
    pub(super) fn load(fabric: &Fabric, bytes: &[u8]) -> Result<(), FabricRestoreError> {
        let short = FabricRestoreError::Length { got: bytes.len() };
        let (head, rest) = Head::read_from_prefix(bytes).map_err(|_| short)?;
        check(fabric, &head)?;
        let mut reader = Reader { rest, short };
        let mut marks = Vec::new();
        let mut before = Self {
            millis: head.millis.get(),
            counts: Vec::new(),
            stations: Vec::new(),
        };
        for (number, port) in fabric.ports.iter().enumerate() {
            let record: PortRecord = reader.take()?;
            let (kind, pairs) = shape(&port.kind);
            if (record.kind, record.pairs.get()) != (kind, pairs)
                || record.flags & !(SHUT | THERE) != 0
            {
                return Err(FabricRestoreError::Port { port: number });
            }
            before.counts.push(reader.counts(fabric, number, &head)?);
            marks.push((record.flags, record.mtu.get()));
        }
        for _ in 0..head.stations.get() {
            let record: StationRecord = reader.take()?;
            // What is no station here is not learned.
            before.stations.push(Station {
                vlan: record.vlan.get(),
                mac: Mac(record.mac),
                seen_s: record.seen_s.get(),
                port: record.port.get(),
            });
        }
        if !reader.rest.is_empty() {
            return Err(short);
        }
        let set = fabric.before.set(before);
        set.map_err(|_| FabricRestoreError::Twice)?;
        for (port, (flags, mtu)) in fabric.ports.iter().zip(marks) {
            port.mtu.store(mtu, Ordering::Relaxed);
            port.shut(flags & SHUT != 0);
            let there = flags & THERE != 0;
            port.was_there.store(there, Ordering::Release);
            if let Side::Tap(_, up) = &port.kind
                && flags & SHUT == 0
            {
                // Whoever watches the interface looks later than its link is seen.
                up.store(there, Ordering::Release);
            }
        }
        Ok(())
    }
}

/// How many reasons there are to drop a frame, and to refuse a command.
fn kinds() -> (u16, u16) {
    let none = PortCounts::default();
    let [drops, refused] = [none.drops.len(), none.refused.len()];
    let count = |len| u16::try_from(len).unwrap_or(u16::MAX);
    (count(drops), count(refused))
}

fn check(fabric: &Fabric, head: &Head) -> Result<(), FabricRestoreError> {
    if head.magic != MAGIC {
        return Err(FabricRestoreError::Magic);
    }
    let got = head.version.get();
    if got != VERSION {
        return Err(FabricRestoreError::Version { got });
    }
    if head.mode.get() != mode(fabric.mode) {
        return Err(FabricRestoreError::Mode);
    }
    let (got, own) = (head.ports.get(), fabric.ports.len());
    if got != count(own) {
        return Err(FabricRestoreError::Ports { got, own });
    }
    let (stations, drops, refused) = (head.stations.get(), head.drops.get(), head.refused.get());
    // An earlier release knew fewer reasons.
    let (known_drops, known_refused) = kinds();
    if stations > count(STATIONS_MAX) || drops > known_drops || refused > known_refused {
        return Err(FabricRestoreError::TooMany {
            stations,
            drops,
            refused,
        });
    }
    Ok(())
}

struct Reader<'a> {
    rest: &'a [u8],
    short: FabricRestoreError,
}

impl Reader<'_> {
    fn take<T: FromBytes>(&mut self) -> Result<T, FabricRestoreError> {
        let (value, rest) = T::read_from_prefix(self.rest).map_err(|_| self.short)?;
        self.rest = rest;
        Ok(value)
    }

    fn counts(
        &mut self,
        fabric: &Fabric,
        port: usize,
        head: &Head,
    ) -> Result<PortCounts, FabricRestoreError> {
        let mut counts = PortCounts::default();
        if let Side::Guest(pairs) = &fabric.ports[port].kind {
            counts
                .pairs
                .resize_with(pairs.count.into(), Default::default);
        }
        let drops = counts.drops.iter_mut().take(head.drops.get().into());
        let refused = counts.refused.iter_mut().take(head.refused.get().into());
        for count in drops.chain(refused) {
            *count = self.take::<U64>()?.get().min(COUNT_MAX);
        }
        for count in numbers(&mut counts) {
            *count = self.take::<U64>()?.get().min(COUNT_MAX);
        }
        Ok(counts)
    }
}
