//! What a device stands on: disk images and the block queue that serves them; ports
//! and the network between them.
#![forbid(unsafe_code)]

pub mod block;
pub mod disk;
pub mod image;
pub mod port;
