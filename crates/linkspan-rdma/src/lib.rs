#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod depth;
pub mod iwarp;
pub mod local;
mod memory;
pub mod verbs;

pub use memory::{Memories, Pool};
