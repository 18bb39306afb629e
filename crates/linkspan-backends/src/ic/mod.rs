//! The small integration services on channels: heartbeat, shutdown, time. The guest's
//! end serves one service on one channel; a host offers several, each to one guest.

mod guest;
mod host;
mod talk;

pub use guest::{Guest, clock_offset};
pub use host::Host;
pub use talk::{HostEvent, HostOptions, Parting};
