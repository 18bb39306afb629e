//! vhost-user as a transport: a device offered on a Unix socket, and a device
//! driven over one.

mod asked;
mod channel;
mod config;
mod error;
mod frontend;
mod link;
mod log;
mod memory;
mod queues;
mod reach;
mod requests;
mod rings;
mod server;
mod session;
mod transfer;

pub use error::{Reason, SessionError};
pub use link::{Connection, Link, LinkError, LinkOptions};
pub use reach::Reach;
pub use server::{Event, Server, StopError};
pub use session::BackendSession;
