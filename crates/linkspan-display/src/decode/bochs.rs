//! The Bochs display interface (VBE DISPI), as QEMU's standard VGA, bochs-drm and the
//! kernel's sample mbochs have it.

use crate::fourcc::{FourCc, Modifier};
use crate::layout::{Layout, Refusal, Surface};
use thiserror::Error;

/// How many registers of 16 bits there are.
pub const REGISTERS: usize = 11;
/// Where they are in the second memory region, in bytes; register i at twice i.
pub const OFFSET: u64 = 0x500;

/// Register: which interface this is.
pub const ID: usize = 0;
/// Register: pixels across.
pub const XRES: usize = 1;
/// Register: lines.
pub const YRES: usize = 2;
/// Register: bits of a pixel.
pub const BPP: usize = 3;
/// Register: whether a picture is shown, and how.
pub const ENABLE: usize = 4;
/// Register: the window of old programs.
pub const BANK: usize = 5;
/// Register: pixels of a line, those that are not shown included.
pub const VIRT_WIDTH: usize = 6;
/// Register: lines, those that are not shown included.
pub const VIRT_HEIGHT: usize = 7;
/// Register: pixels that are left of the picture.
pub const X_OFFSET: usize = 8;
/// Register: lines that are above the picture.
pub const Y_OFFSET: usize = 9;

/// The lowest ID, and the highest that is known.
const IDS: core::ops::RangeInclusive<u16> = 0xB0C0..=0xB0C5;
const ENABLED: u16 = 1;

/// Why there is no picture although one is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BochsError {
    /// Not this interface.
    #[error("no Bochs display: its ID is {id:#06x}")]
    Id {
        /// What it says.
        id: u16,
    },
    /// Not a depth that there is.
    #[error("{bpp} bits a pixel")]
    Depth {
        /// What it says.
        bpp: u16,
    },
    /// The picture is not one.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Whether a write to register `index` is where a picture may begin: drivers write the
/// others one by one, and what is between is not to be shown.
#[must_use]
pub const fn shows(index: usize) -> bool {
    matches!(index, ENABLE | X_OFFSET | Y_OFFSET)
}

/// The picture that these registers show, in video memory of `memory` bytes; nothing if it
/// is switched off.
///
/// # Errors
/// What is wrong with them.
pub fn decode(registers: &[u16; REGISTERS], memory: u64) -> Result<Option<Layout>, BochsError> {
    let id = registers[ID];
    if !IDS.contains(&id) {
        return Err(BochsError::Id { id });
    }
    if registers[ENABLE] & ENABLED == 0 {
        return Ok(None);
    }
    let (format, bytes) = match registers[BPP] {
        8 => (FourCc::C8, 1),
        15 => (FourCc::XRGB1555, 2),
        16 => (FourCc::RGB565, 2),
        24 => (FourCc::RGB888, 3),
        32 => (FourCc::XRGB8888, 4),
        bpp => return Err(BochsError::Depth { bpp }),
    };
    let width = registers[XRES];
    let stride = u32::from(registers[VIRT_WIDTH].max(width)) * bytes;
    // The picture may begin anywhere, at the end of a line too: where it does is an offset
    // of its memory and not a place in a larger picture.
    let offset = u64::from(registers[X_OFFSET]) * u64::from(bytes)
        + u64::from(registers[Y_OFFSET]) * u64::from(stride);
    let surface = Surface {
        format,
        modifier: Modifier::LINEAR,
        width: width.into(),
        height: registers[YRES].into(),
        stride,
        offset,
        x: 0,
        y: 0,
    };
    Ok(Some(Layout::new(&surface, memory)?))
}
