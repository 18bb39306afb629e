//! Why a session with a client ended, or a message of it was refused.

use std::io;

use linkspan_sys::{eventfd, mapping};
use linkspan_vfio::wire::errno;

use super::memory::MemoryError;

/// What a device does not do. The client is told the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (error {errno})")]
pub struct Refused {
    /// An error of Linux.
    pub errno: u32,
    /// What it was.
    pub what: &'static str,
}

impl Refused {
    /// The device does not have it.
    pub const UNSUPPORTED: Self = Self {
        errno: errno::EOPNOTSUPP,
        what: "the device does not have it",
    };

    /// Something that makes no sense.
    #[must_use]
    pub const fn invalid(what: &'static str) -> Self {
        let errno = errno::EINVAL;
        Self { errno, what }
    }
}

/// Why a session with a client ended, or a message of it was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The client broke the protocol.
    #[error("{0}")]
    Protocol(linkspan_vfio::Error),
    /// The client gave something that cannot be used, or a resource could not be had
    /// for it.
    #[error("{error}: {reason}")]
    Refused {
        /// What was refused.
        error: linkspan_vfio::Error,
        /// Why.
        reason: Reason,
    },
    /// The client took back memory that it had shared.
    #[error("the client took back memory that it had shared")]
    MemoryGone,
}

/// Why an effect could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A descriptor that is no eventfd.
    #[error(transparent)]
    EventFd(#[from] eventfd::Error),
    /// The device does not do it.
    #[error(transparent)]
    Device(#[from] Refused),
    /// A descriptor of ours was refused.
    #[error("the system: {0}")]
    System(#[from] io::Error),
    /// The message came without the descriptor that it needs.
    #[error("no descriptor came with the message")]
    NoDescriptor,
}

impl Reason {
    /// What the client is told.
    pub(super) fn errno(&self) -> u32 {
        match self {
            Self::Device(refused) => refused.errno,
            Self::Memory(MemoryError::AnotherFile { .. }) => errno::EEXIST,
            Self::Memory(MemoryError::Map(
                mapping::Error::System { .. } | mapping::Error::TooMany { .. },
            ))
            | Self::System(_) => errno::ENOMEM,
            _ => errno::EINVAL,
        }
    }
}
