//! What a virtual GPU of ours and its viewers say to each other over a Unix socket.
//!
//! A message is its kind and the length of its body, both `u32`, then the body; all
//! numbers are little-endian. A viewer that connects is told [`Message::Hello`] and the
//! planes that are shown, and from then on what changes: a picture that is shown anew has
//! changed as a whole, and where no damage is told none is. It asks for the memory of an id
//! and gets a descriptor with the answer. It is only looked at: a viewer can write to no
//! picture.

use alloc::vec::Vec;

use thiserror::Error;

use crate::damage::{RECTANGLES_MAX, Rectangle};
use crate::fourcc::{FourCc, Modifier};
use crate::layout::Surface;
use crate::plane::{HotSpot, Kind, Loss, Plane, Position, Reason, RefusedPlane, SPRITES_MAX};

/// The version that is spoken.
pub const VERSION: u32 = 2;
/// What a conversation begins with.
const MAGIC: [u8; 8] = *b"LSDISPL\0";
/// Bytes of a header.
pub const HEADER: usize = 8;
/// The most planes at a time: a picture, its sprites and a pointer for each of 16 screens.
pub const PLANES_MAX: usize = 16 * (2 + SPRITES_MAX as usize);
/// Bytes of a plane.
const PLANE: usize = 76;
/// Bytes of a plane that is refused.
const REFUSED: usize = 12 + Reason::MAX;
/// Bytes in front of both lists of planes.
const LISTS: usize = 12;
/// Bytes of a rectangle.
const RECTANGLE: usize = 16;
/// The longest body.
pub const BODY_MAX: usize = LISTS + PLANES_MAX * (PLANE + REFUSED);
const NO_SPOT: u32 = u32::MAX;

/// A plane, as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which screen.
    pub head: u8,
    /// Which layer.
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
    /// Pixels change without a word: a viewer looks as often as it likes.
    Silent,
    /// All planes that are shown now.
    Planes {
        /// Why there are none, if all is gone.
        loss: Option<Loss>,
        /// They.
        planes: Vec<Told>,
        /// Those that are on and not shown.
        refused: Vec<RefusedPlane>,
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
const SILENT: u32 = 6;
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
            Self::Silent => {}
            Self::Planes {
                loss,
                planes,
                refused,
            } => {
                let counts = [planes.len(), refused.len()].map(length);
                out.numbers(&[loss_number(*loss), counts[0], counts[1]]);
                planes.iter().for_each(|told| out.plane(told));
                refused.iter().for_each(|plane| out.refused(plane));
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
            Self::Silent => SILENT,
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
            PLANES => len as usize >= LISTS,
            DAMAGE => len >= 8 && (len as usize - 8).is_multiple_of(RECTANGLE),
            BUFFER | GET => len == 8,
            SIZE => len == 4,
            SILENT => len == 0,
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
            SILENT => Self::Silent,
            PLANES => input.planes()?,
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
        Some(Loss::Unused) => 5,
    }
}

const fn known_loss(value: u32) -> Result<Option<Loss>, LinkError> {
    Ok(match value {
        0 => None,
        1 => Some(Loss::Reset),
        2 => Some(Loss::Removed),
        3 => Some(Loss::Ended),
        4 => Some(Loss::Off),
        5 => Some(Loss::Unused),
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
        let kind = kind_number(told.kind);
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

    fn refused(&mut self, plane: &RefusedPlane) {
        let words = plane.why.as_str().as_bytes();
        let len = length(words.len());
        self.numbers(&[plane.head.into(), kind_number(plane.kind), len]);
        let mut padded = [0; Reason::MAX];
        padded[..words.len()].copy_from_slice(words);
        self.0.extend(padded);
    }
}

const fn kind_number(kind: Kind) -> u32 {
    match kind {
        Kind::Primary => 0,
        Kind::Cursor => 1,
        Kind::Sprite(number) => number as u32 + 1,
    }
}

fn known_kind(value: u32) -> Result<Kind, LinkError> {
    Ok(match value {
        0 => Kind::Primary,
        1 => Kind::Cursor,
        value => {
            let number = u8::try_from(value - 1).ok();
            let number = number.filter(|number| *number <= SPRITES_MAX);
            Kind::Sprite(number.ok_or(value_of("a layer", value))?)
        }
    })
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

    fn planes(&mut self) -> Result<Message, LinkError> {
        let loss = known_loss(self.number())?;
        let counts = [self.number(), self.number()];
        let [planes, refused] = counts.map(|count| count as usize);
        let few = planes <= PLANES_MAX && refused <= PLANES_MAX;
        if !few || self.0.len() != planes * PLANE + refused * REFUSED {
            return Err(value_of("the count of a list", counts[0].max(counts[1])));
        }
        let planes = (0..planes).map(|_| self.plane());
        let planes = planes.collect::<Result<_, _>>()?;
        let refused = (0..refused).map(|_| self.refused());
        let refused = refused.collect::<Result<_, _>>()?;
        Ok(Message::Planes {
            loss,
            planes,
            refused,
        })
    }

    fn refused(&mut self) -> Result<RefusedPlane, LinkError> {
        let head = head(self.number())?;
        let kind = known_kind(self.number())?;
        let len = self.number();
        let words: [u8; Reason::MAX] = self.bytes();
        let words = words.get(..len as usize);
        let why = words.and_then(Reason::from_bytes);
        let why = why.ok_or(value_of("the length of a reason, or a letter of it,", len))?;
        Ok(RefusedPlane { head, kind, why })
    }

    fn plane(&mut self) -> Result<Told, LinkError> {
        let head = head(self.number())?;
        let kind = known_kind(self.number())?;
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
mod tests;
