//! The commands of the program `linkspan`, as a library so that tests and
//! `xtask` reach what the program itself uses. Scripts use the program.
#![forbid(unsafe_code)]

pub mod blk;
pub mod cli;
pub mod conform;
mod control;
pub mod demo;
pub mod display;
pub mod doctor;
pub mod driver;
pub mod exit;
pub mod fcopy;
pub mod gpu;
pub mod ic;
pub mod inspect;
pub mod k8s;
pub mod limits;
mod log;
pub mod net;
pub mod outside;
mod page;
pub mod pages;
pub mod plane;
mod sandbox;
mod serving;
pub mod smb;
pub mod smbdirect;
pub mod supervisor;
mod tether;
pub mod upgrade;
pub mod vdpa;
mod vduse;
pub mod vm;
pub mod workers;
