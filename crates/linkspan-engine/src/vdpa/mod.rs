//! vhost-vdpa as a transport: a vDPA device of the kernel driven by this process,
//! or passed on to a VMM as a vhost-user device.

mod bridge;
mod control;
mod device;
mod error;
mod link;

pub use bridge::BridgedDevice;
pub use device::{Opener, VdpaDevice, survey};
pub use error::VdpaError;
pub use link::{Connection, VdpaOptions};

pub use crate::link::Link;
