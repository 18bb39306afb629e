//! vhost-user as state machines without I/O: message table, sessions of both ends.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
