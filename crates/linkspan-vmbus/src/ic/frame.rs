//! The header of all messages: that of the pipe, and that of the services
//! (Linux: `struct vmbuspipe_hdr` and `struct icmsg_hdr`), and the negotiation.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::service::{Agreed, NEGOTIATION_VERSIONS_MAX, Service, Version};
use super::status::Status;

/// Bytes before the body of a message.
pub const HEADER_BYTES: usize = 28;

/// Bytes of the pipe's header.
const PIPE_BYTES: usize = 8;

/// Bytes that a message of a pipe has at most, its pipe header excluded.
pub const PIPE_MAX: usize = 16384;

/// `PIPE_PACKET_TYPE_DATA`: a whole message.
const PIPE_DATA: u32 = 1;

/// `ICMSGTYPE_NEGOTIATE`: what each conversation begins with.
pub(crate) const NEGOTIATE: u16 = 0;

/// Bytes of a negotiation before its versions.
const NEGOTIATION_BYTES: usize = 8;

/// Flags of a message (`icflags`).
pub mod flags {
    /// It has a number, which the reply repeats.
    pub const TRANSACTION: u8 = 1;
    /// It wants a reply.
    pub const REQUEST: u8 = 2;
    /// It is one.
    pub const RESPONSE: u8 = 4;
}

/// Both headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct IcHeader {
    /// Whether the message is whole.
    pub(crate) pipe_flags: U32,
    /// Bytes behind the pipe's header.
    pub(crate) pipe_len: U32,
    /// Version of the frame, major and minor.
    pub(crate) framework: [u8; 4],
    /// Which service, or [`NEGOTIATE`].
    pub(crate) kind: U16,
    /// Version of the service.
    pub(crate) version: [u8; 4],
    /// Bytes of the body.
    pub(crate) size: U16,
    /// How a request ended.
    pub(crate) status: U32,
    /// The host's number of the request.
    pub(crate) transaction: u8,
    /// [`flags`].
    pub(crate) flags: u8,
    /// Ignored.
    pub(crate) reserved: [u8; 2],
}

const _: () = assert!(size_of::<IcHeader>() == HEADER_BYTES);

/// A message whose frame makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// It ends within its header.
    #[error("a message of {got} bytes, less than its header of 28")]
    Short {
        /// Bytes there are.
        got: usize,
    },
    /// It is no whole message.
    #[error("a pipe message of kind {flags}, not data")]
    Pipe {
        /// What it says.
        flags: u32,
    },
    /// It says that it is longer than what came, or than a pipe takes.
    #[error("a pipe message of {len} bytes, of which {got} came")]
    PipeLength {
        /// What it says.
        len: u32,
        /// Bytes that came behind the pipe's header.
        got: usize,
    },
    /// Its body is longer than the message.
    #[error("a body of {size} bytes in a message with room for {room}")]
    Size {
        /// What it says.
        size: u16,
        /// Bytes that the body can have.
        room: usize,
    },
    /// A negotiation with more versions than are there, or than there can be.
    #[error("{frameworks} and {versions} versions in a negotiation of {got} bytes")]
    Versions {
        /// Versions of the frame.
        frameworks: u16,
        /// Versions of the service.
        versions: u16,
        /// Bytes there are.
        got: usize,
    },
}

impl IcHeader {
    /// The header of `payload`, not compared with anything.
    pub(crate) fn read(payload: &[u8]) -> Result<Self, FrameError> {
        let header = Self::read_from_prefix(payload);
        let (header, _) = header.map_err(|_| FrameError::Short { got: payload.len() })?;
        Ok(header)
    }

    /// The room that a body can have: whatever the pipe says there is. The size of
    /// the body lies within it.
    pub(crate) fn room(&self, payload: &[u8]) -> Result<usize, FrameError> {
        let flags = self.pipe_flags.get();
        if flags != PIPE_DATA {
            return Err(FrameError::Pipe { flags });
        }
        let got = payload.len() - PIPE_BYTES;
        let len = self.pipe_len.get();
        let wrong = FrameError::PipeLength { len, got };
        let whole = usize::try_from(len).map_err(|_| wrong)?;
        let most = got.min(PIPE_MAX);
        let room = whole.checked_sub(HEADER_BYTES - PIPE_BYTES);
        let room = room.filter(|_| whole <= most).ok_or(wrong)?;
        let size = self.size.get();
        if usize::from(size) > room {
            return Err(FrameError::Size { size, room });
        }
        Ok(room)
    }

    /// The header of a request with a body of `len` bytes.
    pub(crate) fn request(kind: u16, agreed: Agreed, len: u16, transaction: u8) -> Self {
        let size = u32::from(len) + 20;
        Self {
            pipe_flags: PIPE_DATA.into(),
            pipe_len: size.into(),
            framework: agreed.framework.to_bytes(),
            kind: kind.into(),
            version: agreed.service.to_bytes(),
            size: len.into(),
            status: 0.into(),
            transaction,
            flags: flags::TRANSACTION | flags::REQUEST,
            reserved: [0; 2],
        }
    }

    /// Turns the request in `payload` into its reply, in place.
    pub(crate) fn reply(mut self, payload: &mut [u8], status: Status) {
        self.status = status.0.into();
        self.flags = flags::TRANSACTION | flags::RESPONSE;
        payload[..HEADER_BYTES].copy_from_slice(self.as_bytes());
    }
}

/// Versions of the frame, and versions of the service.
pub(crate) type Lists<'a> = (&'a [[u8; 4]], &'a [[u8; 4]]);

/// The lists of versions in a negotiation, or in the answer to one.
pub(crate) fn versions(body: &[u8]) -> Result<Lists<'_>, FrameError> {
    let Some(([f0, f1, v0, v1, ..], lists)) = body.split_first_chunk::<NEGOTIATION_BYTES>() else {
        return Err(FrameError::Versions {
            frameworks: 0,
            versions: 0,
            got: body.len(),
        });
    };
    let (frameworks, versions) = (
        u16::from_le_bytes([*f0, *f1]),
        u16::from_le_bytes([*v0, *v1]),
    );
    let wrong = FrameError::Versions {
        frameworks,
        versions,
        got: body.len(),
    };
    if frameworks.max(versions) > NEGOTIATION_VERSIONS_MAX {
        return Err(wrong);
    }
    let lists = lists.as_chunks().0;
    let both = usize::from(frameworks) + usize::from(versions);
    let lists = lists.get(..both).ok_or(wrong)?;
    Ok(lists.split_at(frameworks.into()))
}

/// The best versions that the host's negotiation and the service have in common.
pub(crate) fn choose(service: &Service, body: &[u8]) -> Result<Option<Agreed>, FrameError> {
    let (frameworks, offered) = versions(body)?;
    let best = |ours: &[Version], theirs: &[[u8; 4]]| {
        let mut ours = ours.iter().copied();
        ours.find(|version| theirs.contains(&version.to_bytes()))
    };
    let framework = best(service.frameworks, frameworks);
    Ok(framework
        .zip(best(service.versions, offered))
        .map(|(framework, service)| Agreed { framework, service }))
}

/// Writes the guest's answer over the host's negotiation.
pub(crate) fn answer_negotiation(body: &mut [u8], agreed: Option<Agreed>) {
    let count = u16::from(agreed.is_some()).to_le_bytes();
    if let Some(counts) = body.first_chunk_mut::<4>() {
        *counts = [count[0], count[1], count[0], count[1]];
    }
    if let Some((agreed, lists)) = agreed.zip(body.get_mut(8..16)) {
        lists[..4].copy_from_slice(&agreed.framework.to_bytes());
        lists[4..].copy_from_slice(&agreed.service.to_bytes());
    }
}

/// Bytes of the answer: two counts, a reserved word and two versions (Linux sends
/// 0x10, whatever the pipe says).
pub(crate) const ANSWER_BYTES: u16 = 16;
