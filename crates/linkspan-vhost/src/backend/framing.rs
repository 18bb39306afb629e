//! Bytes of the socket become messages, however they were split.

use alloc::vec::Vec;

use thiserror::Error;
use zerocopy::FromBytes;

use crate::wire::{HEADER_BYTES, Header, MAX_BODY_BYTES, MAX_FDS};

/// After one of these the start of the next message is unknown, or the peer
/// speaks something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FramingError {
    /// Not version 1.
    #[error("version {got} of the protocol; only version 1 exists")]
    Version {
        /// The two version bits.
        got: u32,
    },
    /// A reply, although nothing was asked.
    #[error("a reply to nothing")]
    Reply,
    /// Bits of the header that mean nothing.
    #[error("flags {flags:#x} have bits that mean nothing")]
    Flags {
        /// The flags.
        flags: u32,
    },
    /// A body that no message has.
    #[error("a body of {got} bytes; the limit is {max}")]
    BodyTooLong {
        /// Bytes announced.
        got: u32,
        /// Most that are received.
        max: usize,
    },
    /// More descriptors than any message has.
    #[error("{got} file descriptors; the limit is {max}")]
    TooManyFds {
        /// Descriptors that came.
        got: usize,
        /// Most that are received.
        max: usize,
    },
    /// Descriptors that did not come with the first byte of a message.
    #[error("{got} file descriptors in the middle of a message")]
    LateFds {
        /// Descriptors that came.
        got: usize,
    },
}

/// A whole message.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
    pub(super) fds: usize,
}

/// The message that is being received.
#[derive(Debug, Default)]
pub(super) struct Framing {
    head: [u8; HEADER_BYTES],
    head_bytes: usize,
    /// Read from `head` once that is whole.
    header: Option<Header>,
    body: Vec<u8>,
    body_bytes: usize,
    fds: usize,
}

impl Framing {
    pub(super) fn wanted(&self) -> usize {
        match self.header {
            None => HEADER_BYTES - self.head_bytes,
            Some(_) => self.body_bytes - self.body.len(),
        }
    }

    /// Whether a message has begun.
    pub(super) fn begun(&self) -> bool {
        self.head_bytes > 0
    }

    /// The number of the message, once it is known.
    pub(super) fn request(&self) -> Option<u32> {
        self.header.map(|header| header.request)
    }

    /// Takes at most [`wanted`](Self::wanted) bytes, and `fds` descriptors that came with them.
    pub(super) fn push(&mut self, bytes: &[u8], fds: usize) -> Result<Option<Frame>, FramingError> {
        if fds > 0 {
            if self.begun() || bytes.is_empty() {
                return Err(FramingError::LateFds { got: fds });
            }
            if fds > MAX_FDS {
                return Err(FramingError::TooManyFds {
                    got: fds,
                    max: MAX_FDS,
                });
            }
            self.fds = fds;
        }
        match self.header {
            Some(_) => self.body.extend_from_slice(bytes),
            None => {
                self.head[self.head_bytes..self.head_bytes + bytes.len()].copy_from_slice(bytes);
                self.head_bytes += bytes.len();
                if self.head_bytes < HEADER_BYTES {
                    return Ok(None);
                }
                let header = Header::read_from_bytes(&self.head).expect("the sizes are equal");
                self.header = Some(header);
                self.body_bytes = check(header)?;
                self.body = Vec::with_capacity(self.body_bytes);
            }
        }
        if self.body.len() < self.body_bytes {
            return Ok(None);
        }
        let whole = core::mem::take(self);
        Ok(whole.header.map(|header| Frame {
            header,
            body: whole.body,
            fds: whole.fds,
        }))
    }
}

/// The length of the body that follows.
fn check(header: Header) -> Result<usize, FramingError> {
    let version = header.flags & Header::VERSION_MASK;
    if version != Header::VERSION {
        return Err(FramingError::Version { got: version });
    }
    if header.flags & Header::REPLY != 0 {
        return Err(FramingError::Reply);
    }
    if header.flags & !(Header::VERSION_MASK | Header::NEED_REPLY) != 0 {
        return Err(FramingError::Flags {
            flags: header.flags,
        });
    }
    match usize::try_from(header.size) {
        Ok(size) if size <= MAX_BODY_BYTES => Ok(size),
        _ => Err(FramingError::BodyTooLong {
            got: header.size,
            max: MAX_BODY_BYTES,
        }),
    }
}
