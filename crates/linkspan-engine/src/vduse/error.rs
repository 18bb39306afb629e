//! Why a VDUSE device is not served, or a request for it was refused.

use std::io;

use linkspan_sys::eventfd;
use linkspan_sys::vduse::{self, Name};
use linkspan_vhost::backend::Failure;
use linkspan_vhost::vduse::RestoreError;

use super::iova::MapError;
use super::record::RecordError;
use crate::device::{ConfigRange, OpenQueueError};
use crate::rings::StartRingError;

/// Why a device cannot be offered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] vduse::Error),
    /// A driver uses the device of that name, which an earlier process made, and
    /// we cannot go on for that process.
    #[error(
        "a driver uses the VDUSE device `{name}`, and this process cannot go on with it: {reason}"
    )]
    CannotGoOn {
        /// The device.
        name: Name,
        /// Why not.
        reason: RestoreError,
    },
    /// What is in flight cannot be written down.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Configuration space cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigRange),
    /// The system refused a resource.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Why an effect could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] vduse::Error),
    /// Memory of the driver.
    #[error(transparent)]
    Memory(#[from] MapError),
    /// A ring cannot start.
    #[error(transparent)]
    Ring(#[from] StartRingError),
    /// What is in flight cannot be written down.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A worker could not take it.
    #[error("worker: {0}")]
    Worker(#[source] io::Error),
    /// A descriptor was refused.
    #[error("the system: {0}")]
    System(#[from] io::Error),
    /// A descriptor of ours is not what it should be.
    #[error(transparent)]
    EventFd(#[from] eventfd::Error),
}

impl Reason {
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::Memory(error) if !error.is_system() => Failure::Rejected,
            Self::Ring(StartRingError::Device(OpenQueueError::Features { .. })) => {
                Failure::Rejected
            }
            Self::Ring(StartRingError::Place(error)) if !error.is_system() => Failure::Rejected,
            _ => Failure::System,
        }
    }
}
