//! Ports: guests, interfaces of this machine and a host that is not there, joined
//! into a network.
//!
//! Worker `w` has queue pair `w` of every port, modulo their number, so a frame that
//! a guest sends is copied once: from its buffers into those of the guest that
//! receives it. Only a frame for a guest that has no queue enabled on that worker
//! goes through memory of ours to another. A receiver that has no room loses
//! frames, which are counted, and keeps nobody else from theirs.

mod capture;
mod control;
mod counters;
mod ends;
mod fabric;
mod guest;
mod handing;
mod lane;
mod link;
mod mailbox;
mod retag;
mod saved;
mod tap;
mod task;
mod transmit;

pub use capture::{Capture, CaptureFile, SNAP_LENGTH_MAX};
pub use counters::{DropCause, PairCounts, PortCounts};
pub use fabric::{
    Fabric, FabricError, FabricOptions, Kind, Mode, PAIRS_MAX, PORTS_MAX, PortOptions, Running,
};
pub use guest::{Count, NetDevice, NetDeviceError};
pub use handing::SharedFabric;
pub use saved::FabricRestoreError;
pub use tap::from_kernel;
