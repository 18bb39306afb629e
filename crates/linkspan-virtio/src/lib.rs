#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod chain;
mod features;
mod inflight;
pub mod limits;
mod queue;
pub mod split;

pub use chain::Chain;
pub use features::Features;
pub use inflight::InflightError;
pub use queue::{NotQuiet, QueueError, QueueState, RestoreError};
