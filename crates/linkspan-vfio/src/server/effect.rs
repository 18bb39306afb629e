//! What a session wants done, and how that is answered.

use alloc::string::String;
use alloc::vec::Vec;

use crate::dma::DmaMap;
use crate::fd::{FdId, FdSlot};
use crate::irq::SetIrqs;
use crate::wire::{PlaneBuffer, PlaneInfo};

/// What is to be done next. Each but [`Send`](Self::Send) and [`Told`](Self::Told) is
/// answered through [`Server::answer`](super::Server::answer).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// Write this message to the socket. Needs no answer.
    Send {
        /// The whole message.
        bytes: Vec<u8>,
        /// The descriptors that go with its first byte.
        fds: Vec<FdId>,
    },
    /// Memory is shared from now on. With a failure it is not.
    Map {
        /// Where it is.
        map: DmaMap,
        /// Its descriptor; `None`: it can only be reached by messages.
        fd: Option<FdSlot>,
    },
    /// Memory that is shared already was named again: say whether it is this file's. With
    /// a failure the client is told so, and nothing has changed.
    MapAgain {
        /// Where it is.
        map: DmaMap,
        /// Its descriptor.
        fd: FdSlot,
    },
    /// Memory is not shared any more, and nothing of it is used once this is answered.
    /// Cannot fail.
    Unmap(Vec<DmaMap>),
    /// Read these bytes of a region: [`Answer::Bytes`].
    Read {
        /// Which region.
        region: u32,
        /// The first byte; all are inside.
        offset: u64,
        /// How many, at least 1.
        count: u32,
    },
    /// Write these bytes to a region.
    Write {
        /// Which region.
        region: u32,
        /// The first byte; all are inside.
        offset: u64,
        /// They, at least 1.
        bytes: Vec<u8>,
    },
    /// A descriptor of a region that can be mapped: [`Answer::Fd`].
    RegionFd {
        /// Which region.
        region: u32,
    },
    /// The eventfds of the first parts of a region that are written by them:
    /// [`Answer::Fds`].
    DoorbellFds {
        /// Which region.
        region: u32,
        /// How many, at least 1 and no more than there are.
        count: usize,
    },
    /// Interrupts are told otherwise, or happen.
    SetIrqs(SetIrqs),
    /// Reset the device.
    Reset,
    /// Say what a plane shows: [`Answer::Plane`].
    QueryPlane {
        /// Which kind of plane (`DRM_PLANE_TYPE_*`).
        kind: u32,
    },
    /// A descriptor of a plane: [`Answer::Buffer`].
    GetPlane {
        /// The id that a query named.
        id: u32,
    },
    /// The client has answered [`Server::ask_read`](super::Server::ask_read) or
    /// [`Server::ask_write`](super::Server::ask_write). Needs no answer.
    Told {
        /// The number of the question.
        id: u16,
        /// The bytes that were read, none after a write; or the client's error.
        result: Result<Vec<u8>, u32>,
    },
}

impl Effect {
    /// Whether it is to be answered.
    #[must_use]
    pub const fn needs_answer(&self) -> bool {
        !matches!(self, Self::Send { .. } | Self::Told { .. })
    }
}

/// What a plane shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaneState {
    /// Nothing: it is off.
    Off,
    /// This.
    Shown(PlaneInfo),
    /// Nothing, since it would be shown wrong, and why in words.
    Refused(String),
}

/// How an effect went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// It is done.
    Done,
    /// What was read, as many bytes as were asked for.
    Bytes(Vec<u8>),
    /// The descriptor.
    Fd(FdId),
    /// Descriptors, as many as were asked for.
    Fds(Vec<FdId>),
    /// What the plane shows.
    Plane(PlaneState),
    /// The descriptor of a plane, and what it is.
    Buffer(PlaneBuffer, FdId),
}
