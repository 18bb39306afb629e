//! iWARP: RDMA over a stream of bytes (RFC 5040, 5041, 5044, 6581), as siw speaks it.

mod error;
mod wire;

pub use error::{Layer, MEANINGS, Terminate, WireError};
pub use wire::{OPCODES, Opcode};
