//! Memory of a peer, as MS-SMBD 2.2.3.1 describes it: arrays of descriptors that the
//! upper layer carries, and the part of such an array that a transfer is about.

use alloc::vec::Vec;

use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a descriptor.
pub const DESCRIPTOR_LEN: usize = 16;

/// Descriptors of one transfer at most. Windows sends up to 31.
pub const DESCRIPTORS_MAX: usize = 256;

/// A piece of memory that the other side can reach (Buffer Descriptor V1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Where it begins, in the address space of its provider.
    pub offset: u64,
    /// The name of its registration: a steering tag, or rkey.
    pub token: u32,
    /// Bytes.
    pub length: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    offset: U64,
    token: U32,
    length: U32,
}

const _: () = assert!(size_of::<Wire>() == DESCRIPTOR_LEN);

/// Descriptors that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// None, too many, or a part of one.
    #[error("{bytes} bytes of descriptors; 1 to {DESCRIPTORS_MAX} of 16 bytes are possible")]
    Count {
        /// Bytes of all.
        bytes: usize,
    },
    /// One describes nothing.
    #[error("descriptor {index} has no bytes")]
    Empty {
        /// Which.
        index: usize,
    },
    /// One goes beyond the end of all addresses.
    #[error("descriptor {index}: {length} bytes at {offset:#x} wrap around")]
    Wrap {
        /// Which.
        index: usize,
        /// Where it begins.
        offset: u64,
        /// Its bytes.
        length: u32,
    },
    /// The transfer is not inside of them.
    #[error("{len} bytes at {offset} are not inside the {total} bytes that are described")]
    Outside {
        /// Where the transfer begins.
        offset: u64,
        /// Its bytes.
        len: u64,
        /// Bytes of all descriptors.
        total: u64,
    },
}

impl Descriptor {
    /// Reads one.
    #[must_use]
    pub fn from_bytes(bytes: [u8; DESCRIPTOR_LEN]) -> Self {
        let wire: Wire = zerocopy::transmute!(bytes);
        Self {
            offset: wire.offset.get(),
            token: wire.token.get(),
            length: wire.length.get(),
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; DESCRIPTOR_LEN] {
        zerocopy::transmute!(Wire {
            offset: self.offset.into(),
            token: self.token.into(),
            length: self.length.into(),
        })
    }

    /// The first `len` bytes; the rest stays.
    pub(crate) fn split(&mut self, len: u32) -> Self {
        let first = Self {
            length: len,
            ..*self
        };
        // Within a range that was checked not to wrap.
        self.offset = self.offset.wrapping_add(u64::from(len));
        self.length -= len;
        first
    }
}

/// Reads an array, as an upper layer finds it in a request.
///
/// # Errors
/// It is none, or one of its elements cannot be.
pub fn parse(bytes: &[u8]) -> Result<Vec<Descriptor>, DescriptorError> {
    let (chunks, rest) = bytes.as_chunks::<DESCRIPTOR_LEN>();
    if !rest.is_empty() || chunks.is_empty() || chunks.len() > DESCRIPTORS_MAX {
        return Err(DescriptorError::Count { bytes: bytes.len() });
    }
    let all: Vec<_> = chunks
        .iter()
        .map(|chunk| Descriptor::from_bytes(*chunk))
        .collect();
    total(&all)?;
    Ok(all)
}

/// Bytes of all; each is one that can be.
fn total(descriptors: &[Descriptor]) -> Result<u64, DescriptorError> {
    if descriptors.is_empty() || descriptors.len() > DESCRIPTORS_MAX {
        let bytes = descriptors.len().saturating_mul(DESCRIPTOR_LEN);
        return Err(DescriptorError::Count { bytes });
    }
    let mut total = 0;
    for (index, descriptor) in descriptors.iter().enumerate() {
        let Descriptor { offset, length, .. } = *descriptor;
        if length == 0 {
            return Err(DescriptorError::Empty { index });
        }
        if offset.checked_add(u64::from(length)).is_none() {
            return Err(DescriptorError::Wrap {
                index,
                offset,
                length,
            });
        }
        // At most 256 times 32 bits.
        total += u64::from(length);
    }
    Ok(total)
}

/// The `len` bytes at `offset` of what an array describes: its elements, the first
/// and the last one cut to size (MS-SMBD 3.1.4.5).
///
/// # Errors
/// The array cannot be, or they are not inside.
pub fn part(
    descriptors: &[Descriptor],
    offset: u64,
    len: u64,
) -> Result<impl Iterator<Item = Descriptor>, DescriptorError> {
    let total = total(descriptors)?;
    if offset.checked_add(len).is_none_or(|end| end > total) {
        return Err(DescriptorError::Outside { offset, len, total });
    }
    let (mut skip, mut left) = (offset, len);
    Ok(descriptors.iter().filter_map(move |descriptor| {
        let skipped = skip.min(u64::from(descriptor.length));
        skip -= skipped;
        let mut part = *descriptor;
        // Both fit: they are at most a length.
        let _ = part.split(u32::try_from(skipped).unwrap_or(0));
        part.length = u32::try_from(left).map_or(part.length, |left| left.min(part.length));
        left -= u64::from(part.length);
        (part.length > 0).then_some(part)
    }))
}
