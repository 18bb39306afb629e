//! What devices stand on: disk images and the block queue that serves them, ports and
//! the network between them; disks and network devices from their drivers' side; file copy
//! and the small services of VMBus, and a device of it as a guest's kernel shows it; a guest's
//! screen; files on SMB shares.
#![forbid(unsafe_code)]

pub mod block;
mod clients;
pub mod disk;
pub mod display;
mod door;
pub mod fcopy;
pub mod ic;
pub mod image;
pub mod nic;
pub mod port;
pub mod rdma;
pub mod smb;
pub mod smbdirect;
pub mod uio;
pub mod web;
