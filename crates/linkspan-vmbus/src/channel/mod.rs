//! The control path: how a guest learns of channels, shares memory for them, opens
//! and closes them (Linux: drivers/hv/connection.c and channel.c).
//!
//! Both ends are state machines of [`message::MESSAGES`]: messages and commands go in,
//! [`host::Output`] and [`guest::Output`] come out, in order.

pub mod guest;
pub mod host;
pub mod message;
mod offer;

pub use guest::Guest;
pub use host::Host;
pub use message::{End, Message, MessageError, ProtocolVersion};
pub use offer::{Offer, PIPE_MODE_MESSAGE};

/// `STATUS_UNSUCCESSFUL`: what a host answers that would not. Guests look whether it
/// is 0.
pub const STATUS_UNSUCCESSFUL: u32 = 0xC000_0001;
