//! Passes the channel of a host of file copy on to a guest, by the first version of the link,
//! in which a guest sends back all that it was sent, as Linux's daemon does. `cargo xtask
//! bench fcopy` compares the two so.
//!
//! ```text
//! cargo run --release -p linkspan-engine --example first_link -- HOST GUEST
//! ```
//!
//! HOST is the host's socket, and GUEST the one that is made for the guest. The memory and the
//! eventfds are the host's: what the ends say to each other does not come by here.

use std::error::Error;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use linkspan_engine::vmbus::Framed;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::{EventFd, Listener};
use linkspan_vmbus::link::Frame;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, guest] = &arguments[..] else {
        return Err("usage: first_link HOST GUEST".into());
    };
    let never = EventFd::new()?;
    let listener = Listener::bind(Path::new(guest))?;
    wait_for(listener.as_fd(), Direction::Read, None, None)?;
    let mut guest = Framed::accepted(listener.accept()?);
    guest.await_frame(never.as_fd(), None)?;
    let mut host = Framed::connect_with(Path::new(host), &Frame::hello_unasked())?;
    let (channel, fds) = host.await_frame(never.as_fd(), None)?;
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(OwnedFd::as_fd).collect();
    guest.say(&channel, &borrowed)?;
    // Until one of them goes: nothing more is said by this version.
    let _ = guest.await_frame(host.as_fd(), None);
    Ok(())
}
