//! Requests and answers as bytes (linux/vduse.h), in native order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::error::Refusal;

/// Bytes of a request, and of an answer.
pub const MESSAGE_BYTES: usize = 152;

const GET_VQ_STATE: u32 = 0;
const SET_STATUS: u32 = 1;
const UPDATE_IOTLB: u32 = 2;

const RESULT_OK: u32 = 0;
const RESULT_FAILED: u32 = 1;

/// `struct vduse_dev_request`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RequestRecord {
    kind: u32,
    id: u32,
    reserved: [u32; 4],
    /// The index of a ring, or a status in the first byte.
    first: [u8; 4],
    rest: [u8; 124],
}

/// `struct vduse_dev_response`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ResponseRecord {
    id: u32,
    result: u32,
    reserved: [u32; 4],
    ring: u32,
    state: [u16; 4],
    rest: [u8; 116],
}

const _: () = assert!(size_of::<RequestRecord>() == MESSAGE_BYTES);
const _: () = assert!(size_of::<ResponseRecord>() == MESSAGE_BYTES);

/// A request of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// What names it in its answer.
    pub(super) id: u32,
    /// What is asked.
    pub(super) ask: Ask,
}

/// What a request asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// `VDUSE_GET_VQ_STATE`: where a ring stands.
    RingState {
        /// Which; unchecked.
        ring: u32,
    },
    /// `VDUSE_SET_STATUS`: whether the status may become this.
    Status(u8),
    /// `VDUSE_UPDATE_IOTLB`: the driver's memory changed.
    Memory,
    /// Something else.
    Unknown {
        /// Its number.
        kind: u32,
    },
}

/// Where a ring stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `struct vduse_vq_state_split`.
    Split {
        /// The next available index.
        available: u16,
    },
    /// `struct vduse_vq_state_packed`; the counters are 0 or 1, the indices have
    /// 15 bits.
    Packed {
        /// Wrap counter of what is available next.
        available_counter: u16,
        /// What is available next.
        available: u16,
        /// Wrap counter of what is used next.
        used_counter: u16,
        /// What is used next.
        used: u16,
    },
}

impl State {
    /// In the form of [`RingSetup::base`](crate::backend::RingSetup::base).
    #[must_use]
    pub fn base(self) -> u32 {
        let place = |index: u16, counter: u16| u32::from(index & 0x7FFF | counter << 15);
        match self {
            Self::Split { available } => available.into(),
            Self::Packed {
                available_counter,
                available,
                used_counter,
                used,
            } => place(available, available_counter) | place(used, used_counter) << 16,
        }
    }

    /// From the form of [`RingSetup::base`](crate::backend::RingSetup::base).
    #[must_use]
    pub fn of(base: u32, packed: bool) -> Self {
        let [a, b, c, d] = base.to_le_bytes();
        let (available, used) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        if !packed {
            return Self::Split { available };
        }
        Self::Packed {
            available_counter: available >> 15,
            available: available & 0x7FFF,
            used_counter: used >> 15,
            used: used & 0x7FFF,
        }
    }

    /// From `struct vduse_vq_info`.
    #[must_use]
    pub fn from_words(words: [u16; 4], packed: bool) -> Self {
        let [available_counter, available, used_counter, used] = words;
        if !packed {
            // There the index comes first.
            return Self::Split {
                available: available_counter,
            };
        }
        Self::Packed {
            available_counter: available_counter & 1,
            available: available & 0x7FFF,
            used_counter: used_counter & 1,
            used: used & 0x7FFF,
        }
    }

    fn words(self) -> [u16; 4] {
        match self {
            Self::Split { available } => [available, 0, 0, 0],
            Self::Packed {
                available_counter,
                available,
                used_counter,
                used,
            } => [available_counter, available, used_counter, used],
        }
    }
}

impl Request {
    /// Reads a request. The reserved words may have a meaning one day and are not
    /// looked at; nor is the range of changed memory: all of it is looked up anew.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let got = bytes.len();
        let record = RequestRecord::read_from_bytes(bytes).map_err(|_| Refusal::Length { got })?;
        let ask = match record.kind {
            GET_VQ_STATE => Ask::RingState {
                ring: u32::from_ne_bytes(record.first),
            },
            SET_STATUS => Ask::Status(record.first[0]),
            UPDATE_IOTLB => Ask::Memory,
            kind => Ask::Unknown { kind },
        };
        Ok(Self { id: record.id, ask })
    }
}

/// The answer to the request `id`: whether it was done, and where a ring stands if
/// that was asked.
pub(super) fn response(id: u32, done: bool, ring: Option<(u16, State)>) -> [u8; MESSAGE_BYTES] {
    let record = ResponseRecord {
        id,
        result: if done { RESULT_OK } else { RESULT_FAILED },
        reserved: [0; 4],
        ring: ring.map_or(0, |(ring, _)| ring.into()),
        state: ring.map_or([0; 4], |(_, state)| state.words()),
        rest: [0; 116],
    };
    zerocopy::transmute!(record)
}
