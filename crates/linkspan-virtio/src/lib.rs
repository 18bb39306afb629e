#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod chain;
mod descriptor;
mod driver;
mod features;
mod inflight;
mod layout;
pub mod limits;
mod order;
pub mod packed;
pub mod pci;
mod queue;
mod saved;
pub mod split;

pub use chain::Chain;
pub use driver::{AddError, Buffer, IndirectTable, Used, UsedError};
pub use features::Features;
pub use inflight::InflightError;
pub use layout::{DeviceQueue, DriverQueue, QueueLayout};
pub use queue::{NotQuiet, QueueError, QueueState, RestoreError, StartError};
pub use saved::SNAPSHOT_LEN;
