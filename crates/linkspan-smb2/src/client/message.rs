//! A message that is to be sent: it is made once, in the memory that its payload came in.

use alloc::vec::Vec;
use core::ops::Deref;

use crate::error::Error;
use crate::frame::{self, PREFIX_LEN};
use crate::header::Header;
use crate::security::TRANSFORM_LEN;

/// Bytes before a request's body: its length over TCP, a transform header, its own header.
pub const ROOM: usize = PREFIX_LEN + TRANSFORM_LEN + Header::LEN;

/// A message that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub(super) bytes: Vec<u8>,
    /// Where it begins: there is room for its length before it.
    pub(super) start: usize,
}

impl Message {
    /// As it goes over TCP: from this byte on.
    ///
    /// # Errors
    /// It is longer than can be said.
    pub fn framed(mut self) -> Result<(Vec<u8>, usize), Error> {
        let at = self.start - PREFIX_LEN;
        let prefix = frame::prefix(self.len())?;
        self.bytes[at..self.start].copy_from_slice(&prefix);
        Ok((self.bytes, at))
    }
}

impl Deref for Message {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}
