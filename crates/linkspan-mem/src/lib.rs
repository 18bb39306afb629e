//! Memory shared with an untrusted peer: regions, address spaces, copies, ring windows and barriers.
#![no_std]

extern crate alloc;

mod addr;

pub use addr::{Address, Gpa, Iova, RegionOffset, UserVa};
