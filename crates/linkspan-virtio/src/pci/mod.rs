//! A virtio device as a PCI function (virtio 1.3, 4.1), without I/O: what is in its
//! configuration space and its BARs, and what a driver's accesses to them ask for.
//!
//! [`Layout`] says where everything is. [`Function`] has the registers: an access goes
//! in, and what it asks of the device comes out as an [`Effect`], which is carried out
//! and answered. The driver is a guest, so any access comes at any time, in any width.

mod access;
mod effect;
mod error;
mod function;
mod id;
mod layout;
mod registers;

pub use access::{Piece, pieces};
pub use effect::{Bytes, Effect, Offer, Queue, Read};
pub use error::{AccessError, Unasked};
pub use function::Function;
pub use id::{Identity, NoIdentity, SUBSYSTEM, VENDOR, identity};
pub use layout::{
    BAR_DOORBELLS, BAR_INTERRUPTS, BAR_REGISTERS, Capability, DOORBELL_LEN, Layout, WINDOW_LEN,
};

/// Stands for no interrupt in the registers of vectors.
pub const NO_VECTOR: u16 = 0xffff;

/// The most queues of a function: QEMU's own limit.
pub const QUEUES_MAX: u16 = 1024;

/// Bits of the device status (virtio 1.3, 2.1) that registers depend on.
pub mod status {
    /// It drives the device.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on without a reset.
    pub const NEEDS_RESET: u8 = 64;
}

/// Bits of the ISR status (virtio 1.3, 4.1.4.5).
pub mod isr {
    /// A queue was used.
    pub const QUEUE: u8 = 1;
    /// Configuration changed.
    pub const CONFIG: u8 = 2;
}
