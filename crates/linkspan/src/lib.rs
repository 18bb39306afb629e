//! The commands of the program `linkspan`, as a library so that tests and
//! `xtask` reach what the program itself uses. Scripts use the program.
#![forbid(unsafe_code)]

pub mod blk;
pub mod cli;
pub mod demo;
pub mod display;
pub mod driver;
pub mod exit;
pub mod fcopy;
pub mod gpu;
pub mod ic;
pub mod limits;
mod log;
pub mod net;
mod serving;
pub mod smbdirect;
pub mod vdpa;
mod vduse;
pub mod workers;
