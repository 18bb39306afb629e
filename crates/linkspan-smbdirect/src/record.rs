//! Saved state: bytes that begin with what they are, written and read in one order.

use alloc::vec::Vec;

use thiserror::Error;

/// Bytes that cannot be taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// They are something else, or of a version that is not known.
    #[error("this is no saved {what} of a known version")]
    Magic {
        /// What they should be.
        what: &'static str,
    },
    /// They end early, or go on.
    #[error("a saved state of {got} bytes ends early or goes on")]
    Length {
        /// Bytes given.
        got: usize,
    },
    /// A number in them is impossible, or does not go with the options.
    #[error("{what} makes no sense")]
    Nonsense {
        /// Which.
        what: &'static str,
    },
}

/// The state cannot be saved now: something is under way, or nothing is negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not quiet: {what}")]
pub struct NotQuiet {
    /// What is under way.
    pub what: &'static str,
}

#[derive(Debug)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(magic: [u8; 8]) -> Self {
        Self(magic.to_vec())
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[derive(Debug)]
pub(crate) struct Reader<'a> {
    all: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        what: &'static str,
        magic: [u8; 8],
        bytes: &'a [u8],
    ) -> Result<Self, RestoreError> {
        let rest = bytes.strip_prefix(&magic);
        Ok(Self {
            all: bytes.len(),
            rest: rest.ok_or(RestoreError::Magic { what })?,
        })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        let (first, rest) = self.rest.split_first_chunk().ok_or(self.length())?;
        self.rest = rest;
        Ok(*first)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, RestoreError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, RestoreError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, RestoreError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, RestoreError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn end(self) -> Result<(), RestoreError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.length())
    }

    fn length(&self) -> RestoreError {
        RestoreError::Length { got: self.all }
    }
}
