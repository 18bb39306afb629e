//! Names: UTF-16, little-endian, without an end mark.

use alloc::string::String;
use alloc::vec::Vec;

use crate::error::Error;

/// As it stands on the wire.
#[must_use]
pub fn to_utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// From the wire.
///
/// # Errors
/// An odd number of bytes, or half of a pair.
pub fn from_utf16(what: &'static str, bytes: &[u8]) -> Result<String, Error> {
    if !bytes.len().is_multiple_of(2) {
        return Err(Error::Utf16 { what });
    }
    let units = bytes
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    char::decode_utf16(units)
        .collect::<Result<_, _>>()
        .map_err(|_| Error::Utf16 { what })
}
