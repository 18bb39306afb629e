#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod channel;
pub mod fcopy;
mod guid;
pub mod ic;
pub mod link;
pub mod packet;
mod record;
pub mod ring;

pub use guid::{Guid, NotAGuid};
pub use record::{NotQuiet, RestoreError};
pub use ring::{Incoming, Outgoing, Packet, RingError, SendError, Shape, StartError};
