//! vhost-user as a transport: a device offered on a Unix socket, and a device
//! driven over one.

mod frontend;
mod inflight;
mod link;
mod memory;
mod place;
mod server;
mod session;

pub use link::{Connection, Link, LinkError, LinkOptions};
pub use server::{Event, Server, StopError};
pub use session::{BackendSession, SessionError};
