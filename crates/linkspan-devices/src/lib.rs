//! Virtio device logic without I/O: what each device makes of a descriptor chain.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
