#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod channel;
pub mod describe;
pub mod fcopy;
mod guid;
pub mod ic;
pub mod link;
pub mod packet;
pub mod ring;

pub use guid::{Guid, NotAGuid};
pub use linkspan_mem::record::RestoreError;
pub use ring::{Incoming, Outgoing, Packet, RingError, SendError, Shape, StartError};

/// The state cannot be saved now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an effect waits to be carried out")]
pub struct NotQuiet;
