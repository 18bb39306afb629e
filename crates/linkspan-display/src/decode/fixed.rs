//! A picture that never changes its place: the kernel's sample mdpy, and firmware
//! framebuffers.

use thiserror::Error;

use crate::fourcc::{FourCc, Modifier};
use crate::layout::{Layout, Refusal, Surface};

/// Where the vendor's capability of mdpy is in configuration space, in bytes.
const CAPABILITY: usize = 0x40;
/// A vendor's capability, and the length of this one.
const VENDOR: u8 = 0x09;
const LEN: u8 = 0x10;

/// Why configuration space says no picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FixedError {
    /// The capability is not there.
    #[error("no capability of mdpy: id {id:#04x}, {len} bytes")]
    Capability {
        /// What is there.
        id: u8,
        /// Its length.
        len: u8,
    },
    /// The picture is not one.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A picture line by line from the first byte of `memory` bytes on.
///
/// # Errors
/// What is wrong with it.
pub fn linear(
    format: FourCc,
    width: u32,
    height: u32,
    stride: u32,
    memory: u64,
) -> Result<Layout, Refusal> {
    let surface = Surface {
        format,
        modifier: Modifier::LINEAR,
        width,
        height,
        stride,
        offset: 0,
        x: 0,
        y: 0,
    };
    Layout::new(&surface, memory)
}

/// The picture of mdpy, which its configuration space describes; `memory` is the size of
/// its first region.
///
/// # Errors
/// What is wrong with it.
pub fn mdpy(config: &[u8; 256], memory: u64) -> Result<Layout, FixedError> {
    let (id, len) = (config[CAPABILITY], config[CAPABILITY + 2]);
    if (id, len) != (VENDOR, LEN) {
        return Err(FixedError::Capability { id, len });
    }
    let (words, _) = config[CAPABILITY..].as_chunks::<4>();
    let [_, format, width, height] = [0, 1, 2, 3].map(|at| u32::from_le_bytes(words[at]));
    let stride = width.saturating_mul(4);
    Ok(linear(FourCc(format), width, height, stride, memory)?)
}
