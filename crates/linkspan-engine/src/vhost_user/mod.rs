//! vhost-user as a transport: a device offered on a Unix socket.

mod memory;
mod place;
mod server;
mod session;

pub use server::{Event, Server, StopError};
pub use session::{BackendSession, SessionError};
