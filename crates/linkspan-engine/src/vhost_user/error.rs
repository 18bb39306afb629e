//! Why a session with a front end ended, or a message of it was refused.

use std::io;
use std::time::Duration;

use linkspan_mem::fault::Injected;
use linkspan_sys::{eventfd, mapping};
use linkspan_vhost::backend::Failure;

use super::log::LogError;
use super::memory::MemoryError;
use super::transfer::TransferError;
use crate::device::OpenQueueError;
use crate::inflight::InflightAreaError;
use crate::place::PlaceError;
use crate::rings::StartRingError;
use crate::vdpa::VdpaError;

/// Why a session with a front end ended, or a message of it was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The front end broke the protocol.
    #[error("{0}")]
    Protocol(linkspan_vhost::Error),
    /// The front end gave something that cannot be used, or a resource could
    /// not be had for it.
    #[error("{error}: {reason}")]
    Refused {
        /// What was refused.
        error: linkspan_vhost::Error,
        /// Why.
        reason: Reason,
    },
    /// The front end took back memory that it had shared.
    #[error("the front end took back memory that it had shared")]
    MemoryGone,
    /// The vDPA device that is passed on broke.
    #[error(
        "the vDPA device is broken, its status is {status:#x}; it is opened anew for the next front end"
    )]
    DeviceLost {
        /// Its status.
        status: u8,
    },
    /// The front end waited for requests in flight, which did not end. They are
    /// stuck in the system, and so would be the front end.
    #[error("requests in flight did not end within {} seconds", limit.as_secs())]
    NotQuiet {
        /// How long they had.
        limit: Duration,
    },
    /// A ring that was brought to rest could not go on, for want of a resource
    /// of ours. The next connection starts it anew.
    #[error("ring {ring} could not go on after a change of memory")]
    RingLost {
        /// The ring.
        ring: u16,
        /// What could not be had.
        #[source]
        reason: Reason,
    },
}

/// Why an effect could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Memory for a queue was refused.
    #[error(transparent)]
    Refused(#[from] Injected),
    /// A descriptor that is no eventfd.
    #[error(transparent)]
    EventFd(#[from] eventfd::Error),
    /// A ring cannot start.
    #[error(transparent)]
    Ring(#[from] StartRingError),
    /// A ring cannot go on.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A worker could not take it.
    #[error("worker: {0}")]
    Worker(io::Error),
    /// A descriptor of ours was refused.
    #[error("the system: {0}")]
    System(#[source] io::Error),
    /// The region of requests in flight.
    #[error(transparent)]
    InflightArea(#[from] InflightAreaError),
    /// The dirty log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The device's state.
    #[error(transparent)]
    State(#[from] TransferError),
    /// The message came without the descriptor that it needs.
    #[error("no descriptor came with the message")]
    NoDescriptor,
    /// The socket for requests to the front end.
    #[error("the socket for requests: {0}")]
    Socket(#[source] io::Error),
    /// The device cannot have this MTU.
    #[error("the device cannot have an MTU of {mtu} bytes")]
    Mtu {
        /// What was asked for.
        mtu: u16,
    },
    /// Nobody has such an address.
    #[error("a guest cannot have the address {mac:02x?}")]
    Mac {
        /// What was asked for.
        mac: [u8; 6],
    },
    /// Configuration space.
    #[error(transparent)]
    Config(#[from] crate::device::ConfigRange),
    /// The vDPA device that is passed on.
    #[error("{}", crate::limit::chain(.0))]
    Vdpa(#[from] VdpaError),
    /// A bridge has no part in the data path, so it cannot poll.
    #[error("a ring without a kick descriptor; the vDPA device does not poll")]
    NoKick,
    /// Nothing of the kind is offered.
    #[error("this is not offered")]
    NotOffered,
}

impl Reason {
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::Vdpa(VdpaError::Step { .. } | VdpaError::System { .. }) => Failure::System,
            Self::NoKick | Self::NotOffered => Failure::Unsupported,
            Self::Memory(MemoryError::Map(error)) | Self::Log(LogError::Map(error))
                if matches!(
                    error,
                    mapping::Error::System { .. } | mapping::Error::TooMany { .. }
                ) =>
            {
                Failure::System
            }
            Self::InflightArea(error) if error.is_system() => Failure::System,
            Self::Place(error) | Self::Ring(StartRingError::Place(error)) if error.is_system() => {
                Failure::System
            }
            Self::Ring(StartRingError::Device(OpenQueueError::Features { .. })) => {
                Failure::Rejected
            }
            Self::Ring(StartRingError::Device(_)) | Self::Worker(_) | Self::Refused(_) => {
                Failure::System
            }
            Self::Socket(error) if error.kind() != io::ErrorKind::InvalidInput => Failure::System,
            Self::System(_) => Failure::System,
            Self::State(TransferError::System(_) | TransferError::TooMany { .. }) => {
                Failure::System
            }
            _ => Failure::Rejected,
        }
    }
}
