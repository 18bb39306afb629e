//! A viewer as bytes, and back, at a quiet point.

use alloc::vec::Vec;

use linkspan_mem::record::{Reader, RestoreError, Writer};
use thiserror::Error;

use super::deflate::{self, Deflate};
use super::encode::Encoding;
use super::handshake::Minor;
use super::message::{LEN_MAX, TEXT_MAX};
use super::pixel::{Painter, PixelFormat};
use super::viewer::{Abilities, Due, Flow, Stage, Viewer};
use super::{Options, SizeAnswer};
use crate::damage::Rectangle;
use crate::layout::{HEIGHT_MAX, PIXELS_MAX, WIDTH_MAX};

/// The state cannot be saved now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not quiet: {what}")]
pub struct NotQuiet {
    /// What is under way.
    pub what: &'static str,
}

const MAGIC: [u8; 8] = *b"LSrfbvw1";
const WHAT: &str = "viewer of RFB";

fn nonsense(what: &'static str) -> RestoreError {
    RestoreError::Nonsense { what }
}

impl Viewer {
    /// The connection as bytes. It is quiet when all output was sent; a message may have
    /// come in part.
    ///
    /// # Errors
    /// It is not quiet, or over.
    pub fn snapshot(&self) -> Result<Vec<u8>, NotQuiet> {
        if !self.out.is_empty() {
            return Err(NotQuiet {
                what: "output waits",
            });
        }
        let mut writer = Writer::new(MAGIC);
        writer.u8(match self.stage {
            Stage::Version => 0,
            Stage::Security(Minor::V7) => 1,
            // What speaks 3.3 is not asked.
            Stage::Security(_) => 2,
            Stage::Init => 3,
            Stage::Running => 4,
            Stage::Ended => {
                return Err(NotQuiet {
                    what: "the connection has ended",
                });
            }
        });
        writer.count(self.pending.len());
        writer.bytes(&self.pending);
        writer.u32(self.skip);
        for area in [self.screen, self.known] {
            writer.u32(area.width);
            writer.u32(area.height);
        }
        writer.count(self.damage.words().len());
        for word in self.damage.words() {
            writer.u64(*word);
        }
        let mut format = Vec::new();
        self.encoder.painter.format().write(&mut format);
        writer.bytes(&format);
        writer.bytes(&self.encoder.encoding.number().to_le_bytes());
        writer.u8(self.encoder.level);
        for stream in &self.encoder.streams {
            writer.u8(stream.begun().into());
        }
        for able in flags(&self.abilities) {
            writer.u8(able.into());
        }
        for area in [self.request, self.continuous, Some(self.drawn)] {
            writer.u8(area.is_some().into());
            let area = area.unwrap_or_default();
            for side in [area.x, area.y, area.width, area.height] {
                writer.u32(side);
            }
        }
        writer.u32(self.flow.sent);
        writer.u32(self.flow.seen);
        let shapes = [self.has_shape, self.has_cursor];
        for flag in [self.due.cursor, self.due.size, shapes[0], shapes[1]] {
            writer.u8(flag.into());
        }
        writer.u8(match self.due.size_answer {
            None => 0,
            Some(SizeAnswer::Done) => 1,
            Some(SizeAnswer::Prohibited) => 2,
            Some(SizeAnswer::NoResources) => 3,
            Some(SizeAnswer::Invalid) => 4,
        });
        let (x, y) = self.due.position.unwrap_or_default();
        writer.u8(self.due.position.is_some().into());
        writer.u16(x);
        writer.u16(y);
        Ok(writer.finish())
    }

    /// The connection that [`snapshot`](Self::snapshot) saved, with the same options.
    ///
    /// # Errors
    /// `bytes` are not that.
    pub fn restore(options: &Options, bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut reader = Reader::new(WHAT, MAGIC, bytes)?;
        let stage = match reader.u8()? {
            0 => Stage::Version,
            1 => Stage::Security(Minor::V7),
            2 => Stage::Security(Minor::V8),
            3 => Stage::Init,
            4 => Stage::Running,
            _ => return Err(nonsense("a stage")),
        };
        let pending = reader.count("a message", 1, LEN_MAX)?;
        let pending = reader.bytes(pending)?;
        let skip = reader.u32()?;
        if skip > TEXT_MAX {
            return Err(nonsense("a text"));
        }
        let mut size = || -> Result<(u32, u32), RestoreError> {
            let (width, height) = (reader.u32()?, reader.u32()?);
            let fits = width <= WIDTH_MAX && height <= HEIGHT_MAX && width * height <= PIXELS_MAX;
            fits.then_some((width, height)).ok_or(nonsense("a size"))
        };
        let ((width, height), known) = (size()?, size()?);
        let mut this = Self::new(options, width, height);
        this.out.clear();
        this.stage = stage;
        this.pending.extend_from_slice(pending);
        this.skip = skip;
        this.known = Rectangle {
            width: known.0,
            height: known.1,
            ..Rectangle::default()
        };
        let words = this.damage.words().len();
        if reader.count("damage", 8, words)? != words {
            return Err(nonsense("damage"));
        }
        let words: Result<Vec<u64>, _> = (0..words).map(|_| reader.u64()).collect();
        this.damage.set_words(words?.into_iter());
        this.read_encoder(&mut reader)?;
        this.read_rest(&mut reader)?;
        reader.end()?;
        Ok(this)
    }

    fn read_encoder(&mut self, reader: &mut Reader<'_>) -> Result<(), RestoreError> {
        let format = PixelFormat::read(&reader.array()?).map_err(|_| nonsense("a format"))?;
        self.encoder.painter = Painter::new(format);
        let number = i32::from_le_bytes(reader.array()?);
        self.encoder.encoding = Encoding::find(number).ok_or(nonsense("an encoding"))?;
        self.encoder.level = reader.u8()?;
        if !(deflate::LEVEL..=deflate::LEVEL_MAX).contains(&self.encoder.level) {
            return Err(nonsense("an effort"));
        }
        for stream in &mut self.encoder.streams {
            *stream = Deflate::resumed(reader.flag("a stream")?);
        }
        let abilities = &mut self.abilities;
        for able in flags_mut(abilities) {
            *able = reader.flag("an ability")?;
        }
        Ok(())
    }

    fn read_rest(&mut self, reader: &mut Reader<'_>) -> Result<(), RestoreError> {
        let mut area = || -> Result<Option<Rectangle>, RestoreError> {
            let is_some = reader.flag("an area")?;
            let area = Rectangle {
                x: reader.u32()?,
                y: reader.u32()?,
                width: reader.u32()?,
                height: reader.u32()?,
            };
            let most = area
                .right()
                .max(area.bottom())
                .max(area.width)
                .max(area.height);
            if most > 2 * u32::from(u16::MAX) {
                return Err(nonsense("an area"));
            }
            Ok(is_some.then_some(area))
        };
        self.request = area()?;
        self.continuous = area()?;
        self.drawn = area()?.unwrap_or_default();
        self.flow = Flow {
            sent: reader.u32()?,
            seen: reader.u32()?,
        };
        self.due = Due {
            cursor: reader.flag("a pointer")?,
            size: reader.flag("a size")?,
            ..Due::default()
        };
        self.has_shape = reader.flag("a pointer")?;
        self.has_cursor = reader.flag("a pointer")?;
        self.due.size_answer = match reader.u8()? {
            0 => None,
            1 => Some(SizeAnswer::Done),
            2 => Some(SizeAnswer::Prohibited),
            3 => Some(SizeAnswer::NoResources),
            4 => Some(SizeAnswer::Invalid),
            _ => return Err(nonsense("an answer")),
        };
        let is_some = reader.flag("a place")?;
        let place = (reader.u16()?, reader.u16()?);
        self.due.position = is_some.then_some(place);
        Ok(())
    }
}

fn flags(abilities: &Abilities) -> [bool; 7] {
    let &Abilities {
        cursor,
        cursor_alpha,
        pointer_position,
        size,
        extended_size,
        fence,
        continuous,
    } = abilities;
    [
        cursor,
        cursor_alpha,
        pointer_position,
        size,
        extended_size,
        fence,
        continuous,
    ]
}

fn flags_mut(abilities: &mut Abilities) -> [&mut bool; 7] {
    let Abilities {
        cursor,
        cursor_alpha,
        pointer_position,
        size,
        extended_size,
        fence,
        continuous,
    } = abilities;
    [
        cursor,
        cursor_alpha,
        pointer_position,
        size,
        extended_size,
        fence,
        continuous,
    ]
}
