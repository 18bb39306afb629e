//! What is wrong with a request, or with what the kernel says of a driver.

use thiserror::Error;

use super::wire::MESSAGE_BYTES;
use crate::backend::Failure;
use crate::ring::RingError;

/// Why a request was answered with a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Too few bytes for a request, or too many.
    #[error("a request of {got} bytes instead of {MESSAGE_BYTES}")]
    Length {
        /// How many.
        got: usize,
    },
    /// A number that names no request.
    #[error("request {kind} is not known")]
    Unknown {
        /// The number.
        kind: u32,
    },
    /// There is no such ring.
    #[error("there is no ring {ring}; there are {queues}")]
    NoRing {
        /// The ring asked for.
        ring: u32,
        /// How many there are.
        queues: u16,
    },
    /// A status bit was taken back other than by a reset (virtio 1.3, 2.1.1).
    #[error("status {new:#04x} takes back bits of {old:#04x} and is no reset")]
    StatusBack {
        /// Before.
        old: u8,
        /// What came.
        new: u8,
    },
    /// `DRIVER_OK` without `FEATURES_OK` (virtio 1.3, 3.1.1).
    #[error("status {status:#04x} has DRIVER_OK without FEATURES_OK")]
    NoFeatures {
        /// What came.
        status: u8,
    },
    /// The driver accepted what was not offered, or lacks what the device needs:
    /// `VIRTIO_F_VERSION_1`.
    #[error(
        "the driver accepted features {accepted:#x} of {offered:#x}: {unknown:#x} was not offered, {missing:#x} is missing"
    )]
    Features {
        /// What it accepted.
        accepted: u64,
        /// What was offered.
        offered: u64,
        /// Accepted and not offered.
        unknown: u64,
        /// Needed and not accepted.
        missing: u64,
    },
    /// The driver accepted other features than before.
    #[error("the driver accepted features {new:#x} after {old:#x}")]
    FeaturesChanged {
        /// With `FEATURES_OK`.
        old: u64,
        /// With `DRIVER_OK`.
        new: u64,
    },
    /// A ring that cannot be.
    #[error("ring {ring}: {error}")]
    Ring {
        /// The ring.
        ring: u16,
        /// Why not.
        error: RingError,
    },
    /// Whoever runs the device could not do what was asked of it.
    #[error("{0}")]
    Failed(Failure),
    /// A mistake of whoever runs the device.
    #[error(transparent)]
    Misuse(#[from] Misuse),
}

/// A mistake of whoever runs the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Misuse {
    /// No effect waits for an answer.
    #[error("no effect waits for an answer")]
    NotAsked,
    /// An answer of the wrong kind.
    #[error("that is no answer to the effect")]
    WrongAnswer,
}
