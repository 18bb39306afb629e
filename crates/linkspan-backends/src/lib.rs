//! What devices stand on, and disks and network devices from their drivers' side.
#![forbid(unsafe_code)]

pub mod block;
pub mod disk;
pub mod image;
pub mod nic;
