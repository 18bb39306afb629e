//! vhost-user as a transport: a device offered on a Unix socket, and a device
//! driven over one.

mod asked;
mod channel;
mod error;
mod frontend;
mod give;
mod handing;
mod lending;
mod link;
mod log;
pub(crate) mod memory;
mod reach;
mod requests;
mod rings;
mod saved;
mod serve;
mod server;
mod session;
mod take;
pub(crate) mod talk;
mod transfer;

pub use crate::connecting::Event;
pub use crate::link::Link;
pub use error::{Reason, SessionError};
pub use give::Giver;
pub use handing::{HandOverError, refuse};
pub use link::{Connection, LinkError, LinkOptions};
pub use reach::Reach;
pub use saved::{HandedFd, SavedError, SavedLink, SavedRing, SavedSession};
pub use server::{Heir, Place, bridge, connect, serve, take_over, take_over_all};
pub use session::BackendSession;
pub use take::Successor;
