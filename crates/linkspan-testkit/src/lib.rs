//! What the tests of Linkspan share: a front end and a back end that can say
//! anything, a block driver on the front end,
//! a network card, networks of the kernel, a host of VMBus, a disk that is driven over a link, devices served in this process, a browser, a census of what the process
//! holds, Samba, tshark, and a sweep that makes each step of a bring-up fail in turn.
//!
//! Everything here fails by panicking with what was expected. Every wait has
//! the deadline [`PATIENCE`], so a test that would hang fails instead.
#![forbid(unsafe_code)]

use std::time::Duration;

pub mod back_end;
pub mod browser;
pub mod census;
pub mod disk;
pub mod driven;
pub mod front_end;
pub mod gated;
pub mod lab;
pub mod logs;
pub mod memory;
pub mod namespace;
pub mod net;
pub mod pci;
pub mod program;
pub mod samba;
pub mod served;
pub mod sweep;
pub mod tshark;
pub mod vdpa;
pub mod vduse;
pub mod vmbus;

pub use back_end::BackEnd;
pub use browser::Browser;
pub use census::Census;
pub use disk::{Disk, DiskRing, Io};
pub use driven::Driven;
pub use front_end::{FrontEnd, Options, Refused};
pub use gated::GatedImage;
pub use memory::SharedMemory;
pub use namespace::Namespace;
pub use pci::VirtioPci;
pub use program::program;
pub use served::Served;
pub use vduse::ModelKernel;
pub use vmbus::VmbusHost;

/// How long anything may take that is bound to happen. Far more than it needs on
/// the slowest machine: only a test that fails waits for so long.
pub const PATIENCE: Duration = Duration::from_secs(60);
