//! Integration services: small conversations over a channel in message mode, each
//! begun by the host, all with one header and one negotiation.
//!
//! [`SERVICES`] is the table of them. A service of the guest's end is a
//! [`GuestService`] in a [`Guest`]; the host's ends are built on [`Host`].

pub(crate) mod frame;
mod guest;
pub mod heartbeat;
mod host;
mod service;
pub mod shutdown;
mod single;
mod status;
#[cfg(test)]
mod tests;
pub mod timesync;

pub use frame::{FrameError, HEADER_BYTES, PIPE_MAX, flags};
pub use guest::{Echo, Guest, GuestError, GuestService, Handled, Reaction};
pub use host::{Host, HostError, HostEvent};
pub use service::{
    Agreed, FILE_COPY, HEARTBEAT, NEGOTIATION_VERSIONS_MAX, SERVICES, SHUTDOWN, Service, TIME_SYNC,
    Version, markdown,
};
pub use status::Status;

pub(crate) use guest::{Loader, Saver};
