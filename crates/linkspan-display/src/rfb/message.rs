//! Messages of a client, from bytes.

use super::Error;
use super::pixel::PixelFormat;
use crate::damage::Rectangle;

/// The most encodings that a client may list.
pub(super) const ENCODINGS_MAX: u16 = 1024;
/// The longest text of a clipboard, which is read and forgotten.
pub(super) const TEXT_MAX: u32 = 16 << 20;
/// The most bytes in a fence.
pub(super) const FENCE_MAX: u8 = 64;
/// The most screens of a desktop.
pub(super) const SCREENS_MAX: u8 = 64;
/// The longest message that is looked at as a whole.
pub(super) const LEN_MAX: usize = 4 + 4 * ENCODINGS_MAX as usize;

/// A message, checked but for what depends on the screen.
#[derive(Debug)]
pub(super) enum Message<'a> {
    PixelFormat(PixelFormat),
    /// Four bytes for each encoding.
    Encodings(&'a [u8]),
    Request {
        incremental: bool,
        area: Rectangle,
    },
    Key {
        down: bool,
        keysym: u32,
    },
    Pointer {
        buttons: u8,
        x: u16,
        y: u16,
    },
    /// So many bytes of text follow.
    Text {
        len: u32,
    },
    Continuous {
        enable: bool,
        area: Rectangle,
    },
    Fence {
        flags: u32,
        payload: &'a [u8],
    },
    Size {
        width: u16,
        height: u16,
    },
}

/// What the bytes at hand are.
#[derive(Debug)]
pub(super) enum Parsed<'a> {
    /// A beginning: so many bytes are needed.
    Needs(usize),
    /// All of a message; what is behind it is not looked at.
    Whole(Message<'a>),
}

fn area([x, y, width, height]: [u16; 4]) -> Rectangle {
    Rectangle {
        x: x.into(),
        y: y.into(),
        width: width.into(),
        height: height.into(),
    }
}

/// Reads the first message in `bytes`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed<'_>, Error> {
    let Some(&kind) = bytes.first() else {
        return Ok(Parsed::Needs(1));
    };
    // The length of what is always there.
    let fixed = match kind {
        0 => 20,
        2 => 4,
        3 | 150 => 10,
        4 | 6 | 251 => 8,
        5 => 6,
        248 => 9,
        kind => return Err(Error::Message { kind }),
    };
    if bytes.len() < fixed {
        return Ok(Parsed::Needs(fixed));
    }
    let u16_at = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from(u16_at(at)) << 16 | u32::from(u16_at(at + 2));
    let four = |at: usize| [0, 2, 4, 6].map(|more| u16_at(at + more));
    // What follows it.
    let more = match kind {
        2 => usize::from(encodings(u16_at(2))?) * 4,
        248 => usize::from(at_most_fence(bytes[8])?),
        251 => usize::from(screens(bytes[6])?) * 16,
        _ => 0,
    };
    let len = fixed + more;
    let Some(whole) = bytes.get(..len) else {
        return Ok(Parsed::Needs(len));
    };
    let message = match kind {
        0 => {
            let mut format = [0; PixelFormat::LEN];
            format.copy_from_slice(&whole[4..20]);
            Message::PixelFormat(PixelFormat::read(&format)?)
        }
        2 => Message::Encodings(&whole[4..]),
        3 => Message::Request {
            incremental: bytes[1] != 0,
            area: area(four(2)),
        },
        4 => Message::Key {
            down: bytes[1] != 0,
            keysym: u32_at(4),
        },
        5 => Message::Pointer {
            buttons: bytes[1],
            x: u16_at(2),
            y: u16_at(4),
        },
        6 => Message::Text {
            len: text(u32_at(4))?,
        },
        150 => Message::Continuous {
            enable: bytes[1] != 0,
            area: area(four(2)),
        },
        248 => Message::Fence {
            flags: u32_at(4),
            payload: &whole[9..],
        },
        // 251, as everything else is refused above.
        _ => Message::Size {
            width: u16_at(2),
            height: u16_at(4),
        },
    };
    Ok(Parsed::Whole(message))
}

fn encodings(count: u16) -> Result<u16, Error> {
    let max = ENCODINGS_MAX;
    if count > max {
        return Err(Error::Encodings { count, max });
    }
    Ok(count)
}

fn at_most_fence(len: u8) -> Result<u8, Error> {
    let max = FENCE_MAX;
    if len > max {
        return Err(Error::Fence { len, max });
    }
    Ok(len)
}

fn screens(count: u8) -> Result<u8, Error> {
    let max = SCREENS_MAX;
    if count > max {
        return Err(Error::Screens { count, max });
    }
    Ok(count)
}

fn text(len: u32) -> Result<u32, Error> {
    let max = TEXT_MAX;
    if len > max {
        return Err(Error::Text { len, max });
    }
    Ok(len)
}
