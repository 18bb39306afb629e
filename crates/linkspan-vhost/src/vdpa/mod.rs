//! A vDPA device of the kernel from its consumer's side, without I/O: what it
//! says of itself, checked; the order of the calls that bring it up and down; and what
//! a bridge to vhost-user, and a function on a PCI bus, make of its features.

mod command;
mod control;
mod facts;
mod features;
mod names;
mod pci;
mod steps;

pub use command::{
    Command, Failure, Mapping, Misuse, Outcome, Plan, Reply, RingPlan, Step, StepError, Wire,
};
pub use control::{ControlCommand, PAIRS_MAX, control_ring};
pub use facts::{Facts, FactsError, MAX_QUEUES, Raw};
pub use features::{Bridge, FEATURE_TABLE, FeatureError, FeatureRow, Treatment, feature_markdown};
pub use names::{device_type, feature_name};
pub use pci::{PCI_FEATURE_TABLE, PciFeatures, pci_feature_markdown};
pub use steps::Consumer;

/// Bits of the device status (virtio 1.3, 2.1).
pub mod status {
    /// The driver saw the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// It knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// It drives it.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on without a reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
}

/// Virtio device types that something here knows more about.
pub mod device {
    /// Network.
    pub const NET: u32 = 1;
    /// Block.
    pub const BLOCK: u32 = 2;
    /// Entropy.
    pub const ENTROPY: u32 = 4;
}

/// Bits of `VHOST_GET_BACKEND_FEATURES` that the order of the calls depends on.
pub(crate) mod backend {
    pub(crate) const IOTLB_MSG_V2: u64 = 1 << 1;
    pub(crate) const IOTLB_BATCH: u64 = 1 << 2;
    pub(crate) const IOTLB_ASID: u64 = 1 << 3;
    pub(crate) const SUSPEND: u64 = 1 << 4;
    pub(crate) const RESUME: u64 = 1 << 5;
    pub(crate) const ENABLE_AFTER_DRIVER_OK: u64 = 1 << 6;
    pub(crate) const IOTLB_PERSIST: u64 = 1 << 8;
    /// Those that are used where they are offered.
    pub(crate) const WANTED: u64 = IOTLB_MSG_V2
        | IOTLB_BATCH
        | IOTLB_ASID
        | SUSPEND
        | RESUME
        | ENABLE_AFTER_DRIVER_OK
        | IOTLB_PERSIST;
}
