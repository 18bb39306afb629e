//! vfio-user with its resources: a PCI device of this process for a virtual machine
//! monitor.

mod connection;
mod error;
mod guest;
mod memory;
mod server;
mod session;

pub use crate::connecting::Event;
pub use connection::{Connection, ConnectionError};
pub use error::{Reason, Refused, SessionError};
pub use guest::{Device, Guest, Interrupts, PlaneFd, Raise};
pub use memory::{Mapped, Memory, MemoryError};
pub use server::serve;
pub use session::DeviceSession;
