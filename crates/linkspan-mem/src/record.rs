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
    /// A number in them is impossible, or does not go with the rest.
    #[error("{what} makes no sense")]
    Nonsense {
        /// Which.
        what: &'static str,
    },
}

/// State on its way into bytes.
#[derive(Debug)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Bytes that begin with `magic`, which names what is saved and its version.
    #[must_use]
    pub fn new(magic: [u8; 8]) -> Self {
        Self(magic.to_vec())
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// 8 bits.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// 16 bits, little endian.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    /// 32 bits, little endian.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// 64 bits, little endian.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// How many of something follow; all lists have budgets far below this.
    ///
    /// # Panics
    /// Of more than a `u32` can say.
    pub fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("lists have budgets"));
    }

    /// All that was written.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// State on its way out of bytes. Each method has the errors of [`RestoreError`].
#[derive(Debug)]
pub struct Reader<'a> {
    all: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads what a [`Writer`] with this `magic` made; `what` is its name for people.
    ///
    /// # Errors
    /// [`RestoreError::Magic`].
    pub fn new(what: &'static str, magic: [u8; 8], bytes: &'a [u8]) -> Result<Self, RestoreError> {
        let rest = bytes.strip_prefix(&magic);
        Ok(Self {
            all: bytes.len(),
            rest: rest.ok_or(RestoreError::Magic { what })?,
        })
    }

    /// So many bytes.
    ///
    /// # Errors
    /// They end early.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        let (first, rest) = self.rest.split_first_chunk().ok_or(self.length())?;
        self.rest = rest;
        Ok(*first)
    }

    /// `len` bytes.
    ///
    /// # Errors
    /// They end early.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], RestoreError> {
        let (first, rest) = self.rest.split_at_checked(len).ok_or(self.length())?;
        self.rest = rest;
        Ok(first)
    }

    /// 8 bits.
    ///
    /// # Errors
    /// They end early.
    pub fn u8(&mut self) -> Result<u8, RestoreError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// 16 bits, little endian.
    ///
    /// # Errors
    /// They end early.
    pub fn u16(&mut self) -> Result<u16, RestoreError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// 32 bits, little endian.
    ///
    /// # Errors
    /// They end early.
    pub fn u32(&mut self) -> Result<u32, RestoreError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// 64 bits, little endian.
    ///
    /// # Errors
    /// They end early.
    pub fn u64(&mut self) -> Result<u64, RestoreError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A yes or no.
    ///
    /// # Errors
    /// It is neither, or they end early.
    pub fn flag(&mut self, what: &'static str) -> Result<bool, RestoreError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(RestoreError::Nonsense { what }),
        }
    }

    /// How many of something follow, each of at least `each` bytes and no more than
    /// a budget allows.
    ///
    /// # Errors
    /// There are more, or they end early.
    pub fn count(
        &mut self,
        what: &'static str,
        each: usize,
        max: usize,
    ) -> Result<usize, RestoreError> {
        let count = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if count > max {
            return Err(RestoreError::Nonsense { what });
        }
        if count.saturating_mul(each) > self.rest.len() {
            return Err(self.length());
        }
        Ok(count)
    }

    /// Nothing may follow.
    ///
    /// # Errors
    /// Something does.
    pub fn end(self) -> Result<(), RestoreError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.length())
    }

    fn length(&self) -> RestoreError {
        RestoreError::Length { got: self.all }
    }
}
