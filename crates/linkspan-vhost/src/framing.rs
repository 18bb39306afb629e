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
    /// A request where only replies belong.
    #[error("a request where only replies belong")]
    Request,
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
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: usize,
}

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    Requests,
    Replies,
}

/// The message that is being received.
#[derive(Debug)]
pub(crate) struct Framing {
    carries: Carries,
    head: [u8; HEADER_BYTES],
    head_bytes: usize,
    /// Read from `head` once that is whole.
    header: Option<Header>,
    body: Vec<u8>,
    body_bytes: usize,
    fds: usize,
}

impl Framing {
    pub(crate) const fn new(carries: Carries) -> Self {
        Self {
            carries,
            head: [0; HEADER_BYTES],
            head_bytes: 0,
            header: None,
            body: Vec::new(),
            body_bytes: 0,
            fds: 0,
        }
    }

    pub(crate) fn wanted(&self) -> usize {
        match self.header {
            None => HEADER_BYTES - self.head_bytes,
            Some(_) => self.body_bytes - self.body.len(),
        }
    }

    /// Whether a message has begun.
    pub(crate) fn begun(&self) -> bool {
        self.head_bytes > 0
    }

    /// The number of the message, once it is known.
    pub(crate) fn request(&self) -> Option<u32> {
        self.header.map(|header| header.request)
    }

    /// Takes at most [`wanted`](Self::wanted) bytes, and `fds` descriptors that came with them.
    pub(crate) fn push(&mut self, bytes: &[u8], fds: usize) -> Result<Option<Frame>, FramingError> {
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
                self.body_bytes = check(header, self.carries)?;
                self.body = Vec::with_capacity(self.body_bytes);
            }
        }
        if self.body.len() < self.body_bytes {
            return Ok(None);
        }
        let whole = core::mem::replace(self, Self::new(self.carries));
        Ok(whole.header.map(|header| Frame {
            header,
            body: whole.body,
            fds: whole.fds,
        }))
    }
}

/// The length of the body that follows.
fn check(header: Header, carries: Carries) -> Result<usize, FramingError> {
    let flags = header.flags;
    let version = flags & Header::VERSION_MASK;
    if version != Header::VERSION {
        return Err(FramingError::Version { got: version });
    }
    // A reply never asks for one: QEMU too compares the flags of replies as a whole.
    let legal = match (carries, flags & Header::REPLY != 0) {
        (Carries::Requests, true) => return Err(FramingError::Reply),
        (Carries::Replies, false) => return Err(FramingError::Request),
        (Carries::Requests, false) => Header::VERSION_MASK | Header::NEED_REPLY,
        (Carries::Replies, true) => Header::VERSION_MASK | Header::REPLY,
    };
    if flags & !legal != 0 {
        return Err(FramingError::Flags { flags });
    }
    match usize::try_from(header.size) {
        Ok(size) if size <= MAX_BODY_BYTES => Ok(size),
        _ => Err(FramingError::BodyTooLong {
            got: header.size,
            max: MAX_BODY_BYTES,
        }),
    }
}
