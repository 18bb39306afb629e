#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod backend;
mod error;
mod features;
mod memory;
pub mod message;
pub mod wire;

pub use backend::{Backend, Offer};
pub use error::{Cause, Disposition, Error, Fault};
pub use features::{ProtocolFeatures, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES};
pub use memory::{MemoryError, MemoryRegion};
