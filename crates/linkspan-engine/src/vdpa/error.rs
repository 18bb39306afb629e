//! Why a vDPA device cannot be used.

use std::io;

use linkspan_sys::vdpa::OpenError;
use linkspan_vhost::vdpa::{FactsError, Failure, FeatureError, Step, StepError, Wire};
use linkspan_virtio::pci::NoIdentity;

/// Why a vDPA device cannot be used, or not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VdpaError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It does not answer a question.
    #[error("the vDPA device does not answer {what}")]
    Probe {
        /// The question.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// It cannot be used as it is, or not as it is wanted.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// A call failed; all before it was undone.
    #[error("{what}")]
    Step {
        /// The call.
        what: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The device did not take the features.
    #[error(
        "the vDPA device does not accept the features {features:#x}; its status is {status:#x}"
    )]
    Refused {
        /// The features.
        features: u64,
        /// Its status.
        status: u8,
    },
    /// The device did not start.
    #[error("the vDPA device did not start; its status is {status:#x}")]
    NotStarted {
        /// Its status.
        status: u8,
    },
    /// Features that are needed are not there.
    #[error("the vDPA device does not have the features {missing:#x}")]
    Missing {
        /// Those.
        missing: u64,
    },
    /// Fewer queues than wanted.
    #[error("{wanted} queues were wanted, the vDPA device has {max}")]
    Queues {
        /// Queues wanted.
        wanted: u16,
        /// Queues that there are.
        max: u16,
    },
    /// Features that do not go together.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// No driver would look for it on a PCI bus.
    #[error(transparent)]
    Identity(#[from] NoIdentity),
    /// A ring that ran cannot go on.
    #[error("the device does not say where ring {ring} was, so it cannot go on")]
    NoBase {
        /// The ring.
        ring: u16,
    },
    /// Memory that the VMM does not let the device use.
    #[error("{len:#x} bytes of memory at address {iova:#x} did not come with a file to be written")]
    NotShared {
        /// Where it would be.
        iova: u64,
        /// How much.
        len: u64,
    },
    /// A ring cannot be where the driver says.
    #[error("ring {ring} at address {address:#x} is outside the memory that is shared")]
    Address {
        /// The ring.
        ring: u16,
        /// The address.
        address: u64,
    },
    /// Memory that lies otherwise in its page here than for the device.
    #[error(
        "{len:#x} bytes of memory at address {iova:#x} do not lie in their pages as they do here"
    )]
    NoPages {
        /// Where it would be.
        iova: u64,
        /// How much.
        len: u64,
    },
    /// The device refused a command on its control queue.
    #[error("the vDPA device refused {command} on its control queue: {reason}")]
    Control {
        /// The command.
        command: String,
        /// Why.
        reason: String,
    },
    /// A resource cannot be had.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// We were asked to end.
    #[error("stopped")]
    Cancelled,
}

impl VdpaError {
    pub(super) fn of_step(error: &StepError, features: u64) -> Self {
        match error.failure {
            Failure::Features { status } => Self::Refused { features, status },
            Failure::NotStarted { status } => Self::NotStarted { status },
            Failure::Errno(errno) => Self::Step {
                what: name(&error.step),
                source: io::Error::from_raw_os_error(errno),
            },
            _ => Self::Step {
                what: name(&error.step),
                source: io::ErrorKind::Other.into(),
            },
        }
    }

    /// What to try, if there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Step { what, source }
                if matches!(source.raw_os_error(), Some(ENOMEM | EFAULT))
                    && what.starts_with("VHOST_IOTLB_UPDATE") =>
            {
                Some(
                    "the device may pin memory: raise RLIMIT_MEMLOCK above what it is to use, for \
                     root too (`ulimit -l unlimited`, LimitMEMLOCK= of systemd), and take huge \
                     pages, since the kernel takes no more than 2048 contiguous pieces",
                )
            }
            Self::Step { what, source }
                if source.kind() == io::ErrorKind::ResourceBusy && what == "VHOST_SET_OWNER" =>
            {
                Some(
                    "the descriptor belongs to the process that used it first; open the device anew",
                )
            }
            _ => None,
        }
    }
}

/// What the kernel has for memory that cannot be pinned,
const ENOMEM: i32 = 12;
/// and what it says instead, of every message for an IOTLB that fails
/// (`vhost_chr_write_iter` of Linux 6.12).
const EFAULT: i32 = 14;

/// A call as people know it.
pub(super) fn name(step: &Step) -> String {
    match step {
        Step::SetOwner => "VHOST_SET_OWNER".into(),
        Step::SetBackendFeatures(features) => {
            format!("VHOST_SET_BACKEND_FEATURES of {features:#x}")
        }
        Step::SetStatus(status) => format!("VHOST_VDPA_SET_STATUS to {status:#x}"),
        Step::CheckStatus(_) => "VHOST_VDPA_GET_STATUS".into(),
        Step::SetFeatures(features) => format!("VHOST_SET_FEATURES of {features:#x}"),
        Step::SetGroupAsid { group, asid } => {
            format!("VHOST_VDPA_SET_GROUP_ASID of group {group} to {asid}")
        }
        Step::Batch { asid, begin } => {
            let which = if *begin { "BEGIN" } else { "END" };
            format!("VHOST_IOTLB_BATCH_{which} in address space {asid}")
        }
        Step::Map(mapping) => format!(
            "VHOST_IOTLB_UPDATE of {:#x} bytes at {:#x} in address space {}",
            mapping.len, mapping.iova.0, mapping.asid
        ),
        Step::Unmap(mapping) => format!(
            "VHOST_IOTLB_INVALIDATE of {:#x} bytes at {:#x} in address space {}",
            mapping.len, mapping.iova.0, mapping.asid
        ),
        Step::SetSize { ring, size } => format!("VHOST_SET_VRING_NUM of ring {ring} to {size}"),
        Step::SetBase { ring, base } => format!("VHOST_SET_VRING_BASE of ring {ring} to {base:#x}"),
        Step::SetAddress { ring, .. } => format!("VHOST_SET_VRING_ADDR of ring {ring}"),
        Step::Wire { ring, wire, .. } => {
            let wire = match wire {
                Wire::Kick => "KICK",
                Wire::Call => "CALL",
                Wire::Err => "ERR",
            };
            format!("VHOST_SET_VRING_{wire} of ring {ring}")
        }
        Step::ConfigCall { .. } => "VHOST_VDPA_SET_CONFIG_CALL".into(),
        Step::Enable { ring } => format!("VHOST_VDPA_SET_VRING_ENABLE of ring {ring}"),
        Step::Suspend => "VHOST_VDPA_SUSPEND".into(),
        Step::Resume => "VHOST_VDPA_RESUME".into(),
        Step::ReadBase { ring } => format!("VHOST_GET_VRING_BASE of ring {ring}"),
    }
}
