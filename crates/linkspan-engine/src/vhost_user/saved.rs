//! A link as bytes, for the process that takes it over: what its session agreed upon, where
//! its rings are, and which descriptors go with it.
//!
//! All numbers are little endian. A head of 72 bytes is followed by the session (as
//! [`Backend::snapshot`](linkspan_vhost::backend::Backend::snapshot) has it), the device's own
//! state, 8 bytes for each ring that runs (index, flags, next available, next used) and 4 for
//! each descriptor (kind, index). Who reads it believes nothing: the bytes are checked as those
//! of a peer are.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use linkspan_virtio::QueueState;

const MAGIC: [u8; 8] = *b"LSlinkup";

/// The form that is written, and the first one: a later release has to read it too.
pub(super) const VERSION: u32 = 1;

/// Bytes of a saved link at most.
pub(super) const SAVED_MAX: usize = 1 << 20;

/// Descriptors of a link at most: 3 for each of 256 rings, one for each region, and the rest.
pub(super) const FDS_MAX: usize = 1024;

const CONNECTED: u32 = 1 << 0;
const CHANGED: u32 = 1 << 1;
const FLAGS: u32 = (1 << 2) - 1;

const RETIRED: u16 = 1 << 0;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U32,
    flags: U32,
    device_id: U32,
    generation: U32,
    core: U32,
    device: U32,
    rings: U32,
    fds: U32,
    paused_at: U64,
    socket_device: U64,
    socket_inode: U64,
    reserved: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RingRecord {
    index: U16,
    flags: U16,
    next_available: U16,
    next_used: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FdRecord {
    kind: U16,
    index: U16,
}

/// A link that its process lets go of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedLink {
    /// The type of the device (virtio 1.3, 5).
    pub device_id: u32,
    /// How many front ends there have been.
    pub generation: u32,
    /// When its rings were stopped, in nanoseconds of the clock that all processes of the
    /// machine have (`CLOCK_MONOTONIC`).
    pub paused_at: u64,
    /// The device and the inode of the socket's path, if the path goes with the listener.
    pub socket: Option<(u64, u64)>,
    /// The session with the front end that is there.
    pub session: Option<SavedSession>,
    /// Which descriptors go with it, in order.
    pub fds: Vec<HandedFd>,
}

/// A session with a front end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedSession {
    /// The protocol's part.
    pub core: Vec<u8>,
    /// The device's part.
    pub device: Vec<u8>,
    /// Where the rings that run are.
    pub rings: Vec<SavedRing>,
    /// Configuration space changed, and the front end was not told yet.
    pub changed: bool,
}

/// Where a ring is that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedRing {
    /// Its index within the device.
    pub index: u16,
    /// Whether it was given up because its driver broke it.
    pub retired: bool,
    /// Its positions; nothing is in flight.
    pub state: QueueState,
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HandedFd {
    /// The socket that front ends connect to.
    Listener,
    /// The connection of the front end that is there.
    Connection,
    /// The file of this memory region.
    Region(u16),
    /// The kick of this ring.
    Kick(u16),
    /// The call of this ring.
    Call(u16),
    /// The err of this ring.
    Err(u16),
    /// The file of the in-flight region.
    Inflight,
    /// The file of the dirty log.
    Log,
    /// Who hears of changes of the log.
    LogTold,
    /// The socket for requests to the front end.
    Requests,
}

/// Bytes that are not a saved link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SavedError {
    /// They are something else.
    #[error("this is no saved link")]
    Magic,
    /// They were written by a later version of this program.
    #[error("a saved link of format {got} is newer than this program, which knows {VERSION}")]
    Version {
        /// The version found.
        got: u32,
    },
    /// They end early, or go on.
    #[error("{got} bytes instead of {want}")]
    Length {
        /// Bytes given.
        got: usize,
        /// Bytes that their head promises.
        want: usize,
    },
    /// Bits that mean nothing, or contradict the rest.
    #[error("flags {flags:#x} make no sense")]
    Flags {
        /// They.
        flags: u32,
    },
    /// More than a link has.
    #[error("{count} {what}; {max} are possible")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u32,
        /// The most.
        max: usize,
    },
    /// A ring that is there twice.
    #[error("ring {ring} is there twice, or not in order")]
    Rings {
        /// The ring.
        ring: u16,
    },
    /// No descriptor has this kind.
    #[error("descriptor {position} is of kind {kind} with index {index}, which means nothing")]
    FdKind {
        /// Which one.
        position: usize,
        /// Its kind.
        kind: u16,
        /// Its index.
        index: u16,
    },
    /// A descriptor that is there twice.
    #[error("{fd:?} is there twice")]
    FdTwice {
        /// What it is.
        fd: HandedFd,
    },
}

impl HandedFd {
    fn record(self) -> FdRecord {
        let (kind, index) = match self {
            Self::Listener => (1, 0),
            Self::Connection => (2, 0),
            Self::Region(index) => (3, index),
            Self::Kick(index) => (4, index),
            Self::Call(index) => (5, index),
            Self::Err(index) => (6, index),
            Self::Inflight => (7, 0),
            Self::Log => (8, 0),
            Self::LogTold => (9, 0),
            Self::Requests => (10, 0),
        };
        FdRecord {
            kind: U16::new(kind),
            index: index.into(),
        }
    }

    fn of(record: &FdRecord) -> Option<Self> {
        Some(match (record.kind.get(), record.index.get()) {
            (1, 0) => Self::Listener,
            (2, 0) => Self::Connection,
            (3, index) => Self::Region(index),
            (4, index) => Self::Kick(index),
            (5, index) => Self::Call(index),
            (6, index) => Self::Err(index),
            (7, 0) => Self::Inflight,
            (8, 0) => Self::Log,
            (9, 0) => Self::LogTold,
            (10, 0) => Self::Requests,
            _ => return None,
        })
    }
}

impl SavedLink {
    /// The link as bytes.
    ///
    /// # Panics
    /// When it has more than 4 Gi of anything.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let empty = SavedSession::default();
        let session = self.session.as_ref();
        let marks = [
            (session.is_some(), CONNECTED),
            (session.is_some_and(|it| it.changed), CHANGED),
        ];
        let flags = marks.iter().filter(|(set, _)| *set);
        let flags = flags.fold(0, |flags, (_, mark)| flags | mark);
        let session = session.unwrap_or(&empty);
        let count = |count: usize| U32::new(u32::try_from(count).expect("few"));
        let (socket_device, socket_inode) = self.socket.unwrap_or_default();
        let head = Head {
            magic: MAGIC,
            version: VERSION.into(),
            flags: flags.into(),
            device_id: self.device_id.into(),
            generation: self.generation.into(),
            core: count(session.core.len()),
            device: count(session.device.len()),
            rings: count(session.rings.len()),
            fds: count(self.fds.len()),
            paused_at: self.paused_at.into(),
            socket_device: socket_device.into(),
            socket_inode: socket_inode.into(),
            reserved: 0.into(),
        };
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend_from_slice(&session.core);
        bytes.extend_from_slice(&session.device);
        for ring in &session.rings {
            let record = RingRecord {
                index: ring.index.into(),
                flags: if ring.retired { RETIRED } else { 0 }.into(),
                next_available: ring.state.next_available.into(),
                next_used: ring.state.next_used.into(),
            };
            bytes.extend_from_slice(record.as_bytes());
        }
        for fd in &self.fds {
            bytes.extend_from_slice(fd.record().as_bytes());
        }
        bytes
    }

    /// The link that these bytes are of.
    ///
    /// # Errors
    /// They are none. That a session is among them is not looked at.
    pub fn parse(bytes: &[u8]) -> Result<Self, SavedError> {
        let (head, rest) = Head::read_from_prefix(bytes).map_err(|_| SavedError::Length {
            got: bytes.len(),
            want: size_of::<Head>(),
        })?;
        if head.magic != MAGIC {
            return Err(SavedError::Magic);
        }
        if head.version.get() != VERSION {
            let got = head.version.get();
            return Err(SavedError::Version { got });
        }
        let flags = head.flags.get();
        let connected = flags & CONNECTED != 0;
        let parts = [head.core.get(), head.device.get(), head.rings.get()];
        if flags & !FLAGS != 0 || (!connected && (flags != 0 || parts != [0; 3])) {
            return Err(SavedError::Flags { flags });
        }
        let [core, device, rings, fds] = sections(&head, rest)?;
        let socket = (head.socket_device.get(), head.socket_inode.get());
        let session = connected.then(|| -> Result<_, SavedError> {
            Ok(SavedSession {
                core: core.to_vec(),
                device: device.to_vec(),
                rings: read_rings(rings)?,
                changed: flags & CHANGED != 0,
            })
        });
        Ok(Self {
            device_id: head.device_id.get(),
            generation: head.generation.get(),
            paused_at: head.paused_at.get(),
            socket: Some(socket).filter(|socket| *socket != (0, 0)),
            session: session.transpose()?,
            fds: read_fds(fds)?,
        })
    }
}

/// What follows the head, in its parts.
fn sections<'a>(head: &Head, rest: &'a [u8]) -> Result<[&'a [u8]; 4], SavedError> {
    let limits = [
        ("bytes of a session", head.core, 1, SAVED_MAX),
        ("bytes of a device", head.device, 1, SAVED_MAX),
        ("rings", head.rings, size_of::<RingRecord>(), 256),
        ("descriptors", head.fds, size_of::<FdRecord>(), FDS_MAX),
    ];
    let mut lens = [0; 4];
    for ((what, count, each, max), len) in limits.into_iter().zip(&mut lens) {
        let count = count.get();
        let known = usize::try_from(count).ok().filter(|count| *count <= max);
        *len = known.ok_or(SavedError::TooMany { what, count, max })? * each;
    }
    let want: usize = lens.iter().sum();
    if want != rest.len() {
        let head = size_of::<Head>();
        let (got, want) = (head + rest.len(), head + want);
        return Err(SavedError::Length { got, want });
    }
    let mut rest = rest;
    Ok(lens.map(|len| {
        let (part, more) = rest.split_at(len);
        rest = more;
        part
    }))
}

fn read_rings(bytes: &[u8]) -> Result<Vec<SavedRing>, SavedError> {
    let mut rings: Vec<SavedRing> = Vec::new();
    for record in bytes.chunks_exact(size_of::<RingRecord>()) {
        let record = RingRecord::read_from_bytes(record).expect("the sizes are equal");
        let (index, flags) = (record.index.get(), record.flags.get());
        if flags & !RETIRED != 0 {
            let flags = flags.into();
            return Err(SavedError::Flags { flags });
        }
        if rings.last().is_some_and(|last| last.index >= index) {
            return Err(SavedError::Rings { ring: index });
        }
        rings.push(SavedRing {
            index,
            retired: flags & RETIRED != 0,
            state: QueueState {
                next_available: record.next_available.get(),
                next_used: record.next_used.get(),
            },
        });
    }
    Ok(rings)
}

fn read_fds(bytes: &[u8]) -> Result<Vec<HandedFd>, SavedError> {
    let records = bytes.chunks_exact(size_of::<FdRecord>()).enumerate();
    let fds = records.map(|(position, record)| {
        let record = FdRecord::read_from_bytes(record).expect("the sizes are equal");
        let (kind, index) = (record.kind.get(), record.index.get());
        HandedFd::of(&record).ok_or(SavedError::FdKind {
            position,
            kind,
            index,
        })
    });
    let fds: Vec<_> = fds.collect::<Result<_, _>>()?;
    let mut sorted = fds.clone();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(SavedError::FdTwice { fd: pair[0] }),
        None => Ok(fds),
    }
}
