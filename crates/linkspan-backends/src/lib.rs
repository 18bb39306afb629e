//! What a device stands on: disk images and the block queue that serves them.
#![forbid(unsafe_code)]

pub mod block;
pub mod disk;
pub mod image;
