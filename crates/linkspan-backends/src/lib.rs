//! What devices stand on: disk images and the block queue that serves them, ports and
//! the network between them; and disks and network devices from their drivers' side.
#![forbid(unsafe_code)]

pub mod block;
pub mod disk;
pub mod fcopy;
pub mod image;
pub mod nic;
pub mod port;
