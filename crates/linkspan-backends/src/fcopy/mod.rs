//! Hyper-V's file copy with files and channels: the guest's end writes below folders
//! that are allowed, the host's end sends what programs ask it for.

mod active;
mod digest;
mod guest;
mod host;
mod tree;

pub use guest::{Guest, GuestEnd};
pub(crate) use guest::{Waiter, pass, reply};
pub use host::{Accepts, Host, HostEvent, HostOptions, OUTSTANDING, RING_MIN};
pub use tree::{FileError, Temporary, Tree, TreeOptions};
