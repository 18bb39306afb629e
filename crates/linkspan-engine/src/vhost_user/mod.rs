//! vhost-user as a transport: a device offered on a Unix socket, and a device
//! driven over one.

mod asked;
mod channel;
mod error;
mod frontend;
mod link;
mod log;
pub(crate) mod memory;
mod reach;
mod requests;
mod rings;
mod server;
mod session;
pub(crate) mod talk;
mod transfer;

pub use crate::connecting::Event;
pub use crate::link::Link;
pub use error::{Reason, SessionError};
pub use link::{Connection, LinkError, LinkOptions};
pub use reach::Reach;
pub use server::{bridge, connect, serve};
pub use session::BackendSession;
