//! Virtqueues, device side and driver side, and the formats of virtio 1.3.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
