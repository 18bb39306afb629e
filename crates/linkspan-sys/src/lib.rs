//! The Linux calls that Linkspan needs, each owned by a value that gives back
//! what it took.
//!
//! This crate holds no policy except one: **the peer is hostile**. A descriptor
//! that came over a socket may belong to a file system whose server never
//! answers, so none of the functions that judge one can enter that file system
//! ([`PeerMemory::check`], [`PeerEventFd::check`]), and what fails its check is
//! closed on a thread that nobody waits for ([`reaper`]).
//!
//! Every function that acquires something asks
//! [`linkspan_mem::fault::point`] first, so that tests can make each step of a
//! bring-up fail in turn.

mod anonymous;
pub mod capabilities;
pub mod clock;
pub mod daemon;
pub mod dmabuf;
pub mod eventfd;
pub mod file;
pub mod filemap;
pub mod fuse;
pub mod interface;
pub mod kept;
pub mod lock;
pub mod mapping;
pub mod memfd;
pub mod mounts;
pub mod poll;
pub mod reaper;
pub mod sandbox;
pub mod seccomp;
mod sigbus;
pub mod signals;
pub mod socket;
pub mod storage;
pub mod tap;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod thread;
pub mod udmabuf;
pub mod uio;
pub mod uring;
pub mod vdpa;
pub mod vduse;
pub mod verbs;
pub mod vfio;
mod view;

pub use anonymous::AnonymousMemory;
pub use eventfd::{EventFd, PeerEventFd};
pub use mapping::{Mapping, PeerMemory};
pub use poll::Epoll;
pub use socket::{Listener, Stream};
pub use view::{OutsideView, View};

use linkspan_mem::fault::{self, Site};
use rustix::io::Errno;
use std::io;

/// Asks the fault seam before something is acquired, and fails as the kernel
/// would if that thing ran out.
fn acquire(site: Site) -> io::Result<()> {
    fault::point(site).map_err(|_| {
        io::Error::from(match site {
            Site::Alloc | Site::Map => Errno::NOMEM,
            Site::Fd => Errno::MFILE,
            Site::Thread => Errno::AGAIN,
        })
    })
}

/// The example of the README runs with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
