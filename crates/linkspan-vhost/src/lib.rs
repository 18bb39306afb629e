#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod area;
pub mod backend;
pub mod describe;
mod error;
mod fd;
mod features;
mod framing;
pub mod frontend;
pub mod gpu;
mod memory;
pub mod message;
mod record;
mod ring;
pub mod vdpa;
pub mod vduse;
pub mod wire;

pub use area::{AreaError, Direction, Inflight, Log};
pub use backend::{Backend, Offer};
pub use error::{Cause, Disposition, Error, Fault};
pub use fd::{FdId, FdSlot};
pub use features::{ProtocolFeatures, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES};
pub use frontend::{Frontend, Wish};
pub use memory::{MemoryError, MemoryRegion};
