//! What a virtual GPU of ours and its viewers say to each other over a Unix socket.
//!
//! A message is its kind and the length of its body, both `u32`, then the body; all
//! numbers are little-endian. A viewer that connects is told [`Message::Hello`] and the
//! planes that are shown, and from then on what changes. It asks for the memory of an id
//! and gets a descriptor with the answer. It is only looked at: a viewer can write to no
//! picture.

use alloc::vec::Vec;

use thiserror::Error;

use crate::damage::{RECTANGLES_MAX, Rectangle};
use crate::fourcc::{FourCc, Modifier};
use crate::layout::Surface;
use crate::plane::{HotSpot, Kind, Loss, Plane, Position};

/// The version that is spoken.
pub const VERSION: u32 = 1;
/// What a conversation begins with.
const MAGIC: [u8; 8] = *b"LSDISPL\0";
/// Bytes of a header.
pub const HEADER: usize = 8;
/// The most planes at a time: a picture and a pointer for each of 16 screens.
pub const PLANES_MAX: usize = 32;
/// Bytes of a plane.
const PLANE: usize = 76;
/// Bytes of a rectangle.
const RECTANGLE: usize = 16;
/// The longest body.
pub const BODY_MAX: usize = 8 + PLANES_MAX * PLANE;
const NO_SPOT: u32 = u32::MAX;

/// A plane, as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which screen.
    pub head: u8,
    /// Which layer: a picture or a pointer.
    pub kind: Kind,
    /// The name of its memory.
    pub id: u32,
    /// Counts its pixels' changes.
    pub content: u32,
    /// The plane.
    pub plane: Plane,
}

/// What comes with the answer to [`Message::Get`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// A descriptor of a memory file.
    Memory,
    /// A descriptor of a dma-buf.
    DmaBuf,
    /// None: the id was never given out.
    Unknown,
    /// None: it is not shown any more.
    Retired,
    /// None: it could not be made.
    Failed,
}

/// What came of [`Message::Resize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resized {
    /// The guest was told.
    Told,
    /// There is no such screen, or no such size.
    Invalid,
    /// The virtual machine monitor has the say.
    NotOurs,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The first one of a GPU.
    Hello {
        /// The version that it speaks.
        version: u32,
    },
    /// All planes that are shown now.
    Planes {
        /// Why there are none, if all is gone.
        loss: Option<Loss>,
        /// They.
        planes: Vec<Told>,
    },
    /// Parts of a screen have changed.
    Damage {
        /// Which.
        head: u8,
        /// Where; at most [`RECTANGLES_MAX`].
        parts: Vec<Rectangle>,
    },
    /// The answer to [`Get`](Self::Get).
    Buffer {
        /// Which id was asked for.
        id: u32,
        /// What comes with it.
        got: Got,
    },
    /// The answer to [`Resize`](Self::Resize).
    Size {
        /// What came of it.
        resized: Resized,
    },
    /// A viewer asks for memory.
    Get {
        /// Its id.
        id: u32,
        /// Whether a dma-buf is wanted, in place of a memory file.
        dma_buf: bool,
    },
    /// A viewer asks for another size.
    Resize {
        /// Which screen.
        head: u8,
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// A kind that there is not.
    #[error("message {kind} is not known")]
    Kind {
        /// Which.
        kind: u32,
    },
    /// A length that the kind does not have.
    #[error("message {kind} with {len} bytes")]
    Length {
        /// Which.
        kind: u32,
        /// Bytes of its body.
        len: u32,
    },
    /// It does not begin as a conversation does.
    #[error("no display socket of Linkspan")]
    Magic,
    /// A field has a value that it cannot have.
    #[error("{what} is {value}")]
    Value {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u32,
    },
}

const HELLO: u32 = 1;
const PLANES: u32 = 2;
const DAMAGE: u32 = 3;
const BUFFER: u32 = 4;
const SIZE: u32 = 5;
const GET: u32 = 16;
const RESIZE: u32 = 17;

impl Message {
    /// The bytes of the message, its header included.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Out(Vec::new());
        out.numbers(&[self.kind(), 0]);
        match self {
            Self::Hello { version } => {
                out.0.extend(MAGIC);
                out.numbers(&[*version]);
            }
            Self::Planes { loss, planes } => {
                out.numbers(&[loss_number(*loss), length(planes.len())]);
                planes.iter().for_each(|told| out.plane(told));
            }
            Self::Damage { head, parts } => {
                out.numbers(&[(*head).into(), length(parts.len())]);
                for part in parts {
                    out.numbers(&[part.x, part.y, part.width, part.height]);
                }
            }
            Self::Buffer { id, got } => out.numbers(&[*id, *got as u32]),
            Self::Size { resized } => out.numbers(&[*resized as u32]),
            Self::Get { id, dma_buf } => out.numbers(&[*id, (*dma_buf).into()]),
            Self::Resize {
                head,
                width,
                height,
            } => out.numbers(&[(*head).into(), *width, *height]),
        }
        let len = length(out.0.len() - HEADER);
        out.0[4..8].copy_from_slice(&len.to_le_bytes());
        out.0
    }

    const fn kind(&self) -> u32 {
        match self {
            Self::Hello { .. } => HELLO,
            Self::Planes { .. } => PLANES,
            Self::Damage { .. } => DAMAGE,
            Self::Buffer { .. } => BUFFER,
            Self::Size { .. } => SIZE,
            Self::Get { .. } => GET,
            Self::Resize { .. } => RESIZE,
        }
    }

    /// How many bytes follow a header; at most [`BODY_MAX`].
    ///
    /// # Errors
    /// It is the header of no message.
    pub fn body_len(header: [u8; HEADER]) -> Result<usize, LinkError> {
        let [kind, len] = pair(header);
        let fits = match kind {
            HELLO | RESIZE => len == 12,
            PLANES => len >= 8 && (len as usize - 8).is_multiple_of(PLANE),
            DAMAGE => len >= 8 && (len as usize - 8).is_multiple_of(RECTANGLE),
            BUFFER | GET => len == 8,
            SIZE => len == 4,
            _ => return Err(LinkError::Kind { kind }),
        };
        match fits && len as usize <= BODY_MAX {
            true => Ok(len as usize),
            false => Err(LinkError::Length { kind, len }),
        }
    }

    /// The message with this header and body.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(header: [u8; HEADER], body: &[u8]) -> Result<Self, LinkError> {
        let [kind, len] = pair(header);
        if Self::body_len(header)? != body.len() {
            return Err(LinkError::Length { kind, len });
        }
        let mut input = In(body);
        Ok(match kind {
            HELLO => {
                if input.bytes() != MAGIC {
                    return Err(LinkError::Magic);
                }
                let version = input.number();
                Self::Hello { version }
            }
            PLANES => {
                let loss = known_loss(input.number())?;
                let count = counted(&mut input, PLANE, PLANES_MAX)?;
                let planes = (0..count).map(|_| input.plane());
                let planes = planes.collect::<Result<_, _>>()?;
                Self::Planes { loss, planes }
            }
            DAMAGE => {
                let head = head(input.number())?;
                let count = counted(&mut input, RECTANGLE, RECTANGLES_MAX)?;
                let part = |_| Rectangle {
                    x: input.number(),
                    y: input.number(),
                    width: input.number(),
                    height: input.number(),
                };
                let parts = (0..count).map(part).collect();
                Self::Damage { head, parts }
            }
            BUFFER => Self::Buffer {
                id: input.number(),
                got: known_got(input.number())?,
            },
            SIZE => Self::Size {
                resized: match input.number() {
                    0 => Resized::Told,
                    1 => Resized::Invalid,
                    2 => Resized::NotOurs,
                    value => return Err(value_of("the answer to a size", value)),
                },
            },
            GET => Self::Get {
                id: input.number(),
                dma_buf: match input.number() {
                    value @ 0..=1 => value == 1,
                    value => return Err(value_of("the wanted memory", value)),
                },
            },
            // `body_len` knows no other.
            _ => Self::Resize {
                head: head(input.number())?,
                width: input.number(),
                height: input.number(),
            },
        })
    }
}

fn pair(header: [u8; HEADER]) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = header;
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

const fn value_of(what: &'static str, value: u32) -> LinkError {
    LinkError::Value { what, value }
}

fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn head(value: u32) -> Result<u8, LinkError> {
    let known = u8::try_from(value).ok().filter(|head| *head < 16);
    known.ok_or(value_of("a screen", value))
}

fn counted(input: &mut In<'_>, unit: usize, max: usize) -> Result<usize, LinkError> {
    let value = input.number();
    let count = value as usize;
    match count <= max && input.0.len() == count * unit {
        true => Ok(count),
        false => Err(value_of("the count of a list", value)),
    }
}

const fn loss_number(loss: Option<Loss>) -> u32 {
    match loss {
        None => 0,
        Some(Loss::Reset) => 1,
        Some(Loss::Removed) => 2,
        Some(Loss::Ended) => 3,
        Some(Loss::Off) => 4,
    }
}

const fn known_loss(value: u32) -> Result<Option<Loss>, LinkError> {
    Ok(match value {
        0 => None,
        1 => Some(Loss::Reset),
        2 => Some(Loss::Removed),
        3 => Some(Loss::Ended),
        4 => Some(Loss::Off),
        value => return Err(value_of("a loss", value)),
    })
}

const fn known_got(value: u32) -> Result<Got, LinkError> {
    Ok(match value {
        0 => Got::Memory,
        1 => Got::DmaBuf,
        2 => Got::Unknown,
        3 => Got::Retired,
        4 => Got::Failed,
        value => return Err(value_of("what an id has", value)),
    })
}

struct Out(Vec<u8>);

impl Out {
    fn numbers(&mut self, numbers: &[u32]) {
        for number in numbers {
            self.0.extend(number.to_le_bytes());
        }
    }

    fn plane(&mut self, told: &Told) {
        let Plane {
            surface,
            size,
            position,
            hot_spot,
        } = &told.plane;
        let kind = match told.kind {
            Kind::Primary => 0,
            Kind::Cursor => 1,
            Kind::Sprite(number) => u32::from(number) + 1,
        };
        self.numbers(&[told.head.into(), kind, told.id, told.content]);
        self.numbers(&[
            surface.format.0,
            surface.width,
            surface.height,
            surface.stride,
        ]);
        for wide in [surface.modifier.0, surface.offset, *size] {
            self.0.extend(wide.to_le_bytes());
        }
        self.numbers(&[position.x.cast_unsigned(), position.y.cast_unsigned()]);
        let (x, y) = hot_spot.map_or((NO_SPOT, NO_SPOT), |spot| (spot.x, spot.y));
        self.numbers(&[x, y, surface.x << 16 | surface.y & 0xFFFF]);
    }
}

/// Bytes that are known to be enough.
struct In<'a>(&'a [u8]);

impl In<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (bytes, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        *bytes
    }

    fn number(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn plane(&mut self) -> Result<Told, LinkError> {
        let head = head(self.number())?;
        let kind = match self.number() {
            0 => Kind::Primary,
            1 => Kind::Cursor,
            value => return Err(value_of("a layer", value)),
        };
        let (id, content) = (self.number(), self.number());
        let [format, width, height, stride] = [(); 4].map(|()| self.number());
        let [modifier, offset, size] = [(); 3].map(|()| u64::from_le_bytes(self.bytes()));
        let position = Position::from_wire(self.number(), self.number());
        let hot_spot = HotSpot::from_wire(self.number(), self.number(), width, height);
        let corner = self.number();
        let surface = Surface {
            format: FourCc(format),
            modifier: Modifier(modifier),
            width,
            height,
            stride,
            offset,
            x: corner >> 16,
            y: corner & 0xFFFF,
        };
        let plane = Plane {
            surface,
            size,
            position,
            hot_spot,
        };
        Ok(Told {
            head,
            kind,
            id,
            content,
            plane,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn told() -> Told {
        Told {
            head: 3,
            kind: Kind::Cursor,
            id: 7,
            content: 9,
            plane: Plane {
                surface: Surface {
                    format: FourCc::ARGB8888,
                    modifier: Modifier::LINEAR,
                    width: 64,
                    height: 64,
                    stride: 256,
                    offset: 4096,
                    x: 3,
                    y: 5,
                },
                size: 16384,
                position: Position { x: -3, y: 700 },
                hot_spot: Some(HotSpot { x: 1, y: 2 }),
            },
        }
    }

    fn split(bytes: &[u8]) -> ([u8; HEADER], &[u8]) {
        let (header, body) = bytes.split_first_chunk().unwrap();
        (*header, body)
    }

    fn all() -> Vec<Message> {
        let part = Rectangle {
            x: 1,
            y: 2,
            width: 3,
            height: 4,
        };
        vec![
            Message::Hello { version: VERSION },
            Message::Planes {
                loss: None,
                planes: vec![told(); PLANES_MAX],
            },
            Message::Planes {
                loss: Some(Loss::Off),
                planes: vec![],
            },
            Message::Damage {
                head: 15,
                parts: vec![part; RECTANGLES_MAX],
            },
            Message::Buffer {
                id: 7,
                got: Got::Retired,
            },
            Message::Size {
                resized: Resized::NotOurs,
            },
            Message::Get {
                id: 7,
                dma_buf: true,
            },
            Message::Resize {
                head: 0,
                width: 1920,
                height: 1080,
            },
        ]
    }

    #[test]
    fn what_is_said_is_heard() {
        for message in all() {
            let bytes = message.to_bytes();
            let (header, body) = split(&bytes);
            assert_eq!(Message::body_len(header), Ok(body.len()));
            assert_eq!(Message::parse(header, body), Ok(message));
        }
    }

    #[test]
    fn any_byte_may_be_another_one() {
        for message in all() {
            let bytes = message.to_bytes();
            for at in 0..bytes.len() {
                for value in [0, 1, 0x7F, 0xFF] {
                    let mut bytes = bytes.clone();
                    bytes[at] = value;
                    let (header, body) = split(&bytes);
                    // Whatever comes of it, it ends.
                    if let Ok(message) = Message::parse(header, body) {
                        assert_eq!(split(&message.to_bytes()).1.len(), body.len());
                    }
                }
            }
        }
    }
}
