//! What a Linux guest starts from: an archive of its first files, and a busybox.
//!
//! The program's demo and the project's tasks both make guests. This crate uses
//! nothing, so that the tasks build without the project.
#![forbid(unsafe_code)]

mod archive;
pub mod busybox;

pub use archive::Archive;
