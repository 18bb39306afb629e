//! Where messages begin and end.
//!
//! Over TCP each message has a length before it (MS-SMB2 2.1): a zero byte, and 24 bits,
//! big-endian. Over SMB Direct a message is a message, and nothing stands before it.

use alloc::vec::Vec;

use crate::error::Error;

/// Bytes before a message over TCP.
pub const PREFIX_LEN: usize = 4;

/// The longest message that 24 bits can say.
pub const MESSAGE_MAX: usize = 0x00FF_FFFF;

/// What stands before a message over TCP.
///
/// # Errors
/// It is longer than can be said.
pub fn prefix(len: usize) -> Result<[u8; PREFIX_LEN], Error> {
    match u32::try_from(len) {
        Ok(length) if len <= MESSAGE_MAX => Ok(length.to_be_bytes()),
        _ => Err(Error::Long {
            what: "a message",
            got: len as u64,
            max: MESSAGE_MAX as u64,
        }),
    }
}

/// The length that a prefix says, which may be `max` at most.
///
/// # Errors
/// The first byte is not 0, or the message is too long, or empty.
pub fn length(prefix: [u8; PREFIX_LEN], max: usize) -> Result<usize, Error> {
    if prefix[0] != 0 {
        return Err(Error::Field {
            field: "the first byte of a direct TCP prefix",
            value: prefix[0].into(),
        });
    }
    let len = u32::from_be_bytes(prefix) as usize;
    if len == 0 {
        return Err(Error::Short {
            what: "a message",
            got: 0,
            want: 1,
        });
    }
    if len > max {
        return Err(Error::Long {
            what: "a message",
            got: len as u64,
            max: max as u64,
        });
    }
    Ok(len)
}

/// Puts messages together from the bytes of a stream. It says how many bytes it wants
/// next, so that a payload is read to where it stays.
#[derive(Debug)]
pub struct Framer {
    max: usize,
    prefix: [u8; PREFIX_LEN],
    got: usize,
    message: Vec<u8>,
    filled: usize,
}

impl Framer {
    /// For messages of `max` bytes at most.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max: max.min(MESSAGE_MAX),
            prefix: [0; PREFIX_LEN],
            got: 0,
            message: Vec::new(),
            filled: 0,
        }
    }

    /// The longest message is another one from the next message on.
    pub fn allow(&mut self, max: usize) {
        self.max = max.min(MESSAGE_MAX);
    }

    /// Where the next bytes go. It is never empty.
    pub fn room(&mut self) -> &mut [u8] {
        if self.got < PREFIX_LEN {
            return &mut self.prefix[self.got..];
        }
        &mut self.message[self.filled..]
    }

    /// So many bytes were put into [`Framer::room`]. A message, if that was its end.
    ///
    /// # Errors
    /// What the prefix says cannot be; nothing more is to be read.
    pub fn filled(&mut self, len: usize) -> Result<Option<Vec<u8>>, Error> {
        if self.got < PREFIX_LEN {
            self.got = PREFIX_LEN.min(self.got + len);
            if self.got < PREFIX_LEN {
                return Ok(None);
            }
            let length = length(self.prefix, self.max)?;
            // All of it at once: `max` bounds it, and there is one for a connection.
            self.message = alloc::vec![0; length];
            self.filled = 0;
        } else {
            self.filled = self.message.len().min(self.filled + len);
        }
        if self.filled < self.message.len() {
            return Ok(None);
        }
        self.got = 0;
        Ok(Some(core::mem::take(&mut self.message)))
    }
}
