//! How a request ended.

use core::fmt;

/// A status of Windows, as it stands in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

impl Status {
    /// `HV_S_OK`: done.
    pub const OK: Self = Self(0);
    /// `HV_S_CONT`: more is to come.
    pub const CONT: Self = Self(0x8007_0103);
    /// `HV_E_FAIL`: it could not be done.
    pub const FAIL: Self = Self(0x8000_4005);
    /// `HV_ERROR_ALREADY_EXISTS`: the file is there and is not to be replaced.
    pub const ALREADY_EXISTS: Self = Self(0x8007_0050);
    /// `HV_ERROR_DISK_FULL`: no space, no quota, or too large.
    pub const DISK_FULL: Self = Self(0x8007_0070);
    /// `HV_ERROR_NOT_SUPPORTED`: there is no such thing.
    pub const NOT_SUPPORTED: Self = Self(0x8007_0032);
    /// `HV_INVALIDARG`: the request contradicts itself or the one before.
    pub const INVALID_ARGUMENT: Self = Self(0x8007_0057);

    /// Whether it is done.
    #[must_use]
    pub fn is_ok(self) -> bool {
        self == Self::OK
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::OK => "done",
            Self::CONT => "to be continued",
            Self::FAIL => "failed",
            Self::ALREADY_EXISTS => "the file exists",
            Self::DISK_FULL => "the disk is full",
            Self::NOT_SUPPORTED => "not supported",
            Self::INVALID_ARGUMENT => "an invalid argument",
            Self(code) => return write!(f, "status {code:#x}"),
        };
        f.write_str(name)
    }
}
