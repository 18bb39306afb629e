//! The server's end of RFB (VNC), without I/O: RFC 6143 and the extensions that viewers use.
//!
//! A [`Viewer`] is one connection. Bytes of the client go in and [`Event`]s come out; what is
//! to be sent is in [`output`](Viewer::output). All viewers of a screen share its
//! [`Frame`](crate::Frame), and each has its own damage: what it has not been sent yet.
//!
//! A client is not trusted. Every number of its messages is checked, nothing that it sends is
//! kept beyond one message, and while its answers are not taken away nothing more is read.
//! After an error a last message may be left to send; then the connection is to be closed.

use alloc::string::String;

use thiserror::Error;

mod deflate;
mod encode;
mod handshake;
mod message;
mod pixel;
mod saved;
mod tight;
mod update;
mod viewer;
mod zrle;

pub use encode::Encoding;
pub use pixel::PixelFormat;
pub use saved::NotQuiet;
pub use viewer::Viewer;

/// What a viewer is told when it comes, and whether it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The name of the screen.
    pub name: String,
    /// Who may look.
    pub security: Security,
    /// Whether a client may ask for another size.
    pub resizable: bool,
}

/// Who may look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Who can connect; a program restricts that, by loopback or by TLS.
    None,
    /// Nobody, and this is why.
    Refused(String),
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It has come, and shares the screen with others or does not want to.
    Joined {
        /// Whether others may stay.
        shared: bool,
    },
    /// A key.
    Key {
        /// Whether it goes down.
        down: bool,
        /// Which, as an X11 keysym.
        keysym: u32,
    },
    /// The pointer has moved, or a button of it.
    Pointer {
        /// A bit for each button that is down.
        buttons: u8,
        /// Pixels from the left, on the screen.
        x: u32,
        /// Pixels from the top, on the screen.
        y: u32,
    },
    /// It wants another size, and waits for [`Viewer::answer_size`].
    Resize {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
}

/// What is said to a client that wants another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeAnswer {
    /// The screen has it.
    Done,
    /// It may not.
    Prohibited,
    /// There is no memory for it.
    NoResources,
    /// It is not a size.
    Invalid,
}

/// Why a connection ends: all is the client's fault but for `Refused`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// It does not begin as RFB does.
    #[error("no RFB: it begins with {got:02x?}")]
    Version {
        /// Its first bytes.
        got: [u8; 12],
    },
    /// It wants a security type that is not offered.
    #[error("security type {kind} was not offered")]
    Security {
        /// Which; 2 is VNC's own.
        kind: u8,
    },
    /// Nobody may look.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// A message that there is not, or of an extension that was not offered.
    #[error("message {kind} is not known")]
    Message {
        /// Its number.
        kind: u8,
    },
    /// It wants colours by number.
    #[error("colour maps are not supported")]
    ColourMap,
    /// It wants pixels of another size.
    #[error("{bits} bits a pixel; 8, 16 and 32 are supported")]
    BitsPerPixel {
        /// What it wants.
        bits: u8,
    },
    /// A colour is not in the pixel, or has no number of bits.
    #[error("a colour of at most {max}, {shift} bits up in a pixel of {bits}")]
    Colour {
        /// Its highest value.
        max: u16,
        /// Where it begins.
        shift: u8,
        /// Bits of the pixel.
        bits: u8,
    },
    /// More encodings than there are.
    #[error("{count} encodings; the most is {max}")]
    Encodings {
        /// How many.
        count: u16,
        /// The most.
        max: u16,
    },
    /// A text is too long.
    #[error("a clipboard of {len} bytes; the most is {max}")]
    Text {
        /// Its bytes.
        len: u32,
        /// The most.
        max: u32,
    },
    /// A fence has too much in it.
    #[error("a fence with {len} bytes; the most is {max}")]
    Fence {
        /// Its bytes.
        len: u8,
        /// The most.
        max: u8,
    },
    /// A desktop has too many screens.
    #[error("a desktop of {count} screens; the most is {max}")]
    Screens {
        /// How many.
        count: u8,
        /// The most.
        max: u8,
    },
    /// It was over already.
    #[error("the connection has ended")]
    Ended,
}
