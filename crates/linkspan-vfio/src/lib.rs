#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod client;
pub mod describe;
mod dma;
mod error;
mod fd;
mod framing;
mod irq;
pub mod message;
pub mod pci;
mod region;
pub mod server;
mod version;
pub mod wire;

pub use client::Client;
pub use dma::{DmaError, DmaMap};
pub use error::{Cause, Disposition, Error, Misuse};
pub use fd::{FdId, FdSlot};
pub use framing::FramingError;
pub use irq::{IRQS_MAX, Irq, IrqAction, IrqData, IrqError, SetIrqs};
pub use region::Region;
pub use server::{Offer, Server};
pub use version::{Capabilities, VersionError};
