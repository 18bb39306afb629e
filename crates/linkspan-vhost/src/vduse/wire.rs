//! Requests and answers as bytes (linux/vduse.h), in native order.

use alloc::format;
use alloc::string::String;

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
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
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

/// A request of the kernel in words.
#[must_use]
pub fn describe(bytes: &[u8]) -> String {
    match Request::parse(bytes) {
        Ok(Request { id, ask }) => match ask {
            Ask::RingState { ring } => format!("VDUSE_GET_VQ_STATE {id}: ring {ring}"),
            Ask::Status(status) => format!("VDUSE_SET_STATUS {id}: {status:#x}"),
            Ask::Memory => format!("VDUSE_UPDATE_IOTLB {id}"),
            Ask::Unknown { kind } => format!("request {kind} {id}"),
        },
        Err(refusal) => format!("{refusal}"),
    }
}

/// An answer of ours in words.
#[must_use]
pub fn describe_answer(bytes: &[u8; MESSAGE_BYTES]) -> String {
    let record: ResponseRecord = zerocopy::transmute!(*bytes);
    let (id, ring) = (record.id, record.ring);
    let done = match record.result {
        RESULT_OK => "done",
        _ => "failed",
    };
    match record.state {
        [0, 0, 0, 0] => format!("answer {id}: {done}"),
        state => format!("answer {id}: {done}, ring {ring} at {state:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_they_hold() {
        let request = |kind, first| {
            let record = RequestRecord {
                kind,
                id: 7,
                reserved: [0; 4],
                first,
                rest: [0; 124],
            };
            let bytes: [u8; MESSAGE_BYTES] = zerocopy::transmute!(record);
            describe(&bytes)
        };
        let three = 3_u32.to_ne_bytes();
        assert_eq!(request(0, three), "VDUSE_GET_VQ_STATE 7: ring 3");
        assert_eq!(request(1, [15, 0, 0, 0]), "VDUSE_SET_STATUS 7: 0xf");
        assert_eq!(request(2, three), "VDUSE_UPDATE_IOTLB 7");
        assert_eq!(request(9, three), "request 9 7");
        assert!(!describe(&[0; 5]).is_empty());
        let state = State::Split { available: 5 };
        let answer = |done, ring| describe_answer(&response(7, done, ring));
        assert_eq!(
            answer(true, Some((3, state))),
            "answer 7: done, ring 3 at [5, 0, 0, 0]"
        );
        assert_eq!(answer(false, None), "answer 7: failed");
    }
}
