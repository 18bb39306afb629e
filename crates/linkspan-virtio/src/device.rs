//! What a transport needs to know of a device, whatever its type.

use core::fmt;

use crate::features::Features;

/// The type of a device (virtio 1.3 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

impl DeviceId {
    /// Network card (5.1).
    pub const NET: Self = Self(1);
    /// Block device (5.2).
    pub const BLOCK: Self = Self(2);
    /// Entropy source (5.4).
    pub const ENTROPY: Self = Self(4);
    /// GPU (5.7).
    pub const GPU: Self = Self(16);
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NET => f.write_str("network device"),
            Self::BLOCK => f.write_str("block device"),
            Self::ENTROPY => f.write_str("entropy device"),
            Self::GPU => f.write_str("GPU"),
            Self(other) => write!(f, "device of type {other}"),
        }
    }
}

/// A device as its transport sees it: no queue, no I/O.
///
/// A trait, since a transport serves every type and knows none.
pub trait Device: Send {
    /// The type of the device.
    fn id(&self) -> DeviceId;

    /// What is offered: the bits of the type. The transport adds those of its
    /// queues ([`Features::SPLIT_QUEUE`]) and its own.
    fn features(&self) -> Features;

    /// What the driver accepted, as a subset of all that was offered; queues are
    /// stopped meanwhile.
    fn set_features(&mut self, accepted: Features);

    /// How many queues there are.
    fn queues(&self) -> u16;

    /// Size of the configuration space in bytes.
    fn config_len(&self) -> usize;

    /// Copies configuration space from `offset` on into `target`; `false`, and
    /// nothing is copied, when it is not all inside.
    fn read_config(&self, offset: usize, target: &mut [u8]) -> bool;

    /// Writes configuration space; `false`, and nothing is written, when any of
    /// it is not there or not writable.
    fn write_config(&mut self, offset: usize, source: &[u8]) -> bool;
}
