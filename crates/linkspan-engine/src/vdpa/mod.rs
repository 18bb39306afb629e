//! vhost-vdpa as a transport: a vDPA device of the kernel driven by this process,
//! passed on to a VMM as a vhost-user device, or shown to it as a PCI function.

mod bridge;
mod control;
mod device;
mod error;
mod kept;
mod link;
mod pci;
mod used;

pub use bridge::BridgedDevice;
pub use device::{Opener, VdpaDevice, survey};
pub use error::VdpaError;
pub use link::{Connection, VdpaOptions};
pub use pci::PciDevice;

pub use crate::link::Link;
