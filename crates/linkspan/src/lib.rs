<<<<<<< HEAD
//! The commands of the program `linkspan`, as a library so that tests and
//! `xtask` reach what the program itself uses. Scripts use the program.
#![forbid(unsafe_code)]

pub mod blk;
pub mod cli;
pub mod demo;
pub mod exit;
=======
//! The program's parts that tests drive directly: see [`demo`].
#![forbid(unsafe_code)]

pub mod demo;
>>>>>>> 0d87f48 (linkspan demo: a guest in QEMU that checks a vhost-user disk)
