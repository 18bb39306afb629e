//! iWARP: RDMA over a stream of bytes (RFC 5040, 5041, 5044, 6581), as siw speaks it.
//!
//! [`Connection`] is one end. It reads and writes nothing itself: it says where the next
//! bytes of the stream go ([`Wanted`]), placed once and where they are wanted, and what
//! is to be written ([`Batch`]), as gather lists for one system call.

mod batch;
pub(crate) mod connection;
mod direct;
pub(crate) mod error;
mod feed;
mod incoming;
mod mpa;
mod options;
mod outgoing;
mod saved;
pub(crate) mod setup;
pub(crate) mod tags;
mod wire;

pub use batch::{Batch, Piece};
pub use connection::{Connection, Life, Wanted};
pub use error::{Layer, MEANINGS, Terminate, WireError};
pub use feed::feed;
pub use mpa::{PRIVATE_DATA_MAX, Ready};
pub use options::{FrameSize, OptionError, Options};
pub use saved::NotQuiet;
pub use tags::ENTROPY;
pub use wire::{OPCODES, Opcode};
