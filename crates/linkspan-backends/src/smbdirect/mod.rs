//! SMB Direct over iWARP over TCP, or over RDMA devices: many connections of this process, of either role, in
//! one thread that waits in one place.
//!
//! An [`Endpoint`] has the provider and the connections, [`Service`] is a listener made of
//! it. What an idle connection holds is its state: a receive that is posted is a count, and
//! buffers come from what all share when a message comes.

mod classes;
mod config;
mod endpoint;
mod hello;
mod log;
mod service;
mod session;

pub use classes::{Classes, NoClass};
pub use config::{Config, PORT, PORT_IWARP};
pub use endpoint::{Endpoint, EndpointError, Gone, Happening, Id};
pub use hello::{HELLO_LEN, Hello, Mode, Peer, Welcome};
pub use service::{ConnectionReport, Ended, Happened, Service, Summary};
pub use session::Session;
