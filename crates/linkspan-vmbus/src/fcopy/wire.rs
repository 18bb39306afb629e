//! The messages of file copy, as they stand in the body of a service's message.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Data bytes of one WRITE at most (`DATA_FRAGMENT`).
pub const FRAGMENT_MAX: usize = 6 * 1024;

/// UTF-16 units of a name, with the zero at its end (`W_MAX_PATH`).
pub const NAME_UNITS: usize = 260;

/// Bytes of the header that all have.
pub(crate) const HEAD_LEN: usize = 36;

/// Bytes of a START.
pub const START_LEN: usize = 1088;

/// Bytes of a WRITE before its data.
pub const WRITE_HEAD_LEN: usize = 52;

/// Bytes of a WRITE: there always is room for a whole fragment.
pub const WRITE_LEN: usize = WRITE_HEAD_LEN + FRAGMENT_MAX;

/// Flags of START.
pub mod copy_flags {
    /// A file that exists is replaced.
    pub const OVER_WRITE: u32 = 1;
    /// Folders that are missing are made.
    pub const CREATE_PATH: u32 = 2;
}

/// What a message asks for (`enum hv_fcopy_op`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Operation {
    /// A file begins.
    Start = 0,
    /// Some of its bytes.
    Write = 1,
    /// It is complete.
    Complete = 2,
    /// It is not wanted any more.
    Cancel = 3,
}

impl Operation {
    pub(crate) fn of(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::Start),
            1 => Some(Self::Write),
            2 => Some(Self::Complete),
            3 => Some(Self::Cancel),
            _ => None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "START",
            Self::Write => "WRITE",
            Self::Complete => "COMPLETE",
            Self::Cancel => "CANCEL",
        }
    }
}

/// What every message begins with.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Head {
    pub(crate) operation: U32,
    /// Two GUIDs that nobody uses.
    pub(crate) services: [u8; 32],
}

/// START.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Start {
    pub(crate) head: Head,
    /// The last part of the source's path.
    pub(crate) file: [U16; NAME_UNITS],
    /// Where it goes.
    pub(crate) path: [U16; NAME_UNITS],
    /// [`copy_flags`].
    pub(crate) flags: U32,
    pub(crate) size: U64,
}

/// WRITE, before its data.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Write {
    pub(crate) head: Head,
    pub(crate) padding: U32,
    pub(crate) offset: U64,
    pub(crate) size: U32,
}

const _: () = {
    assert!(size_of::<Head>() == HEAD_LEN);
    assert!(size_of::<Start>() == START_LEN);
    assert!(size_of::<Write>() == WRITE_HEAD_LEN);
};

impl Head {
    pub(crate) fn new(operation: Operation) -> Self {
        Self {
            operation: (operation as u32).into(),
            services: [0; 32],
        }
    }
}
