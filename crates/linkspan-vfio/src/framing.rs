//! Bytes of the socket become messages, however they were split.

use alloc::vec::Vec;
use core::mem;

use thiserror::Error;
use zerocopy::FromBytes as _;

use crate::wire::{BODY_MAX, FDS_MAX, HEADER_BYTES, Header};

/// After one of these the start of the next message is unknown, or the peer
/// speaks something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FramingError {
    /// A message that is shorter than its header, or longer than any.
    #[error("a message of {got} bytes; {HEADER_BYTES} to {max} are possible")]
    Size {
        /// Bytes announced.
        got: u32,
        /// The most.
        max: usize,
    },
    /// Neither a command nor a reply, or flags that mean nothing with it.
    #[error("flags {flags:#x} are those of no message")]
    Flags {
        /// The flags.
        flags: u32,
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

impl Frame {
    pub(crate) fn is_reply(&self) -> bool {
        self.header.flags & Header::TYPE_MASK == Header::REPLY
    }
}

/// The message that is being received.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    head: [u8; HEADER_BYTES],
    head_bytes: usize,
    /// Read from `head` once that is whole.
    header: Option<Header>,
    /// Grows with what comes, not with what is announced.
    body: Vec<u8>,
    body_bytes: usize,
    fds: usize,
}

impl Framing {
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
    pub(crate) fn command(&self) -> Option<u16> {
        self.header.map(|header| header.command)
    }

    /// Takes at most [`wanted`](Self::wanted) bytes, and `fds` descriptors that came with them.
    pub(crate) fn push(&mut self, bytes: &[u8], fds: usize) -> Result<Option<Frame>, FramingError> {
        if fds > 0 {
            if self.begun() || bytes.is_empty() {
                return Err(FramingError::LateFds { got: fds });
            }
            if fds > FDS_MAX {
                let max = FDS_MAX;
                return Err(FramingError::TooManyFds { got: fds, max });
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
            }
        }
        if self.body.len() < self.body_bytes {
            return Ok(None);
        }
        let whole = mem::take(self);
        Ok(whole.header.map(|header| Frame {
            header,
            body: whole.body,
            fds: whole.fds,
        }))
    }
}

/// The length of the body that follows.
fn check(header: Header) -> Result<usize, FramingError> {
    let flags = header.flags;
    let legal = match flags & Header::TYPE_MASK {
        Header::COMMAND => Header::NO_REPLY,
        // libvfio-user leaves the bit of the command in its replies.
        Header::REPLY => Header::NO_REPLY | Header::ERROR,
        _ => return Err(FramingError::Flags { flags }),
    };
    if flags & !(legal | Header::TYPE_MASK) != 0 {
        return Err(FramingError::Flags { flags });
    }
    let body = usize::try_from(header.size).ok();
    let body = body.and_then(|size| size.checked_sub(HEADER_BYTES));
    body.filter(|body| *body <= BODY_MAX)
        .ok_or(FramingError::Size {
            got: header.size,
            max: BODY_MAX + HEADER_BYTES,
        })
}

/// A message of these parts.
pub(crate) fn message(id: u16, command: u16, flags: u32, error: u32, parts: &[&[u8]]) -> Vec<u8> {
    let len: usize = HEADER_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
    let header = Header {
        id,
        command,
        size: u32::try_from(len).unwrap_or(u32::MAX),
        flags,
        error,
    };
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(zerocopy::IntoBytes::as_bytes(&header));
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes
}
