//! RDMA devices through rdma-core, which is loaded when it is first wanted.
//!
//! A [`Channel`] tells what happens to connections while they are made and when they end.
//! Each connection has an [`Identifier`]; once its device is known it gets a [`QueuePair`]
//! with all that belongs to it: its own protection domain, so that a key that one
//! peer was told means nothing on any other connection, its completions with a descriptor to
//! wait on, and the memory that the device may reach.
//!
//! Nothing here waits. Who finds nothing to do gets `WouldBlock`.
//!
//! A device reaches only registered memory, and each registration holds its
//! [`Region`](linkspan_mem::Region). So work that names a wrong address is an error of that
//! work, and safe code can post whatever it likes.

mod abi;
mod address;
mod channel;
mod library;
mod queue;

pub use channel::{Channel, ConnectionEvent, Happened, Identifier, IdentifierKey, Parameters};
pub use library::{Library, LoadError};
pub use queue::{
    Completion, DeviceLimits, Element, Operation, QueuePair, Registration, Rights, Sizes,
};

use std::ffi::c_int;
use std::io;

/// What `librdmacm` returns: 0, or -1 and the error of the thread.
fn check(result: c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What `libibverbs` returns: 0, or the number of the error; some drivers, -1 and the error of
/// the thread.
fn check_number(result: c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        number if number > 0 => Err(io::Error::from_raw_os_error(number)),
        _ => Err(io::Error::last_os_error()),
    }
}
