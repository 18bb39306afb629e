#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod announce;
pub mod client;
pub mod create;
mod credits;
pub mod describe;
mod error;
pub mod frame;
pub mod gateway;
pub mod header;
pub mod hold;
pub mod info;
pub mod io;
pub mod ioctl;
pub mod negotiate;
pub mod notify;
pub mod ntlm;
pub mod security;
pub mod session;
pub mod spnego;
pub mod status;
mod text;
pub mod wire;

pub use credits::Credits;
pub use error::{Blame, Error};
pub use header::{Command, Header};
pub use text::{from_utf16, to_utf16};
