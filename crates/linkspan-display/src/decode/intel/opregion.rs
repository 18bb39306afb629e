//! Intel's OpRegion: what firmware tells the graphics driver, which VFIO shows as a region
//! of its own.

use thiserror::Error;

/// The type of the VFIO region: a PCI vendor's (bit 31), Intel.
pub const OPREGION_TYPE: u32 = 0x8000_8086;
/// Its subtype.
pub const OPREGION_SUBTYPE: u32 = 1;

const SIGNATURE: &[u8; 16] = b"IntelGraphicsMem";
/// Bytes up to the end of the header, and of the smallest one.
const HEADER: usize = 0x100;
const SIZE_MIN: u64 = 8 << 10;
const SIZE_MAX: u64 = 1 << 20;
const VBT: usize = 0x400;

/// What an OpRegion says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpRegion {
    /// Its bytes.
    pub size: u64,
    /// Its version: major, minor, revision.
    pub version: (u8, u8, u8),
    /// A bit for each mailbox that it has.
    pub mailboxes: u32,
    /// Whether a table of the video BIOS is in its fourth mailbox.
    pub has_vbt: bool,
}

/// Why a region is not an OpRegion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpRegionError {
    /// Another region.
    #[error("a region of type {kind:#x}, subtype {subtype}, is no OpRegion")]
    Kind {
        /// Its type.
        kind: u32,
        /// Its subtype.
        subtype: u32,
    },
    /// It ends early.
    #[error("an OpRegion of {got} bytes, less than {want}")]
    Short {
        /// Bytes there are.
        got: u64,
        /// Bytes that it should have.
        want: u64,
    },
    /// It does not begin as one does.
    #[error("no OpRegion: it begins otherwise")]
    Signature,
    /// It says an impossible size.
    #[error("an OpRegion that says {size} bytes, not 8 KiB to 1 MiB")]
    Size {
        /// What it says.
        size: u64,
    },
}

/// Checks a region of VFIO with this type and subtype, whose bytes are these.
///
/// # Errors
/// What is wrong with it.
pub fn opregion(kind: u32, subtype: u32, bytes: &[u8]) -> Result<OpRegion, OpRegionError> {
    if (kind, subtype) != (OPREGION_TYPE, OPREGION_SUBTYPE) {
        return Err(OpRegionError::Kind { kind, subtype });
    }
    let got = bytes.len() as u64;
    let header: &[u8; HEADER] = bytes.first_chunk().ok_or(OpRegionError::Short {
        got,
        want: HEADER as u64,
    })?;
    if !header.starts_with(SIGNATURE) {
        return Err(OpRegionError::Signature);
    }
    let word = |at: usize| {
        let (words, _) = header.as_chunks::<4>();
        u32::from_le_bytes(words[at / 4])
    };
    let size = u64::from(word(16)) * 1024;
    if !(SIZE_MIN..=SIZE_MAX).contains(&size) {
        return Err(OpRegionError::Size { size });
    }
    if got < size {
        return Err(OpRegionError::Short { got, want: size });
    }
    Ok(OpRegion {
        size,
        version: (header[23], header[22], header[21]),
        mailboxes: word(88),
        has_vbt: bytes[VBT..].starts_with(b"$VBT"),
    })
}
