//! One connection: what was agreed upon, and what it has not been sent.

use alloc::vec::Vec;

use super::deflate;
use super::encode::{Encoder, Encoding};
use super::handshake::{self, Minor};
use super::message::{self, LEN_MAX, Message, Parsed};
use super::pixel::Painter;
use super::{Error, Event, Options, SizeAnswer};
use crate::cursor::Cursor;
use crate::damage::{Rectangle, Tiles};
use crate::plane::Position;

/// With so much to send, a client's messages wait.
const OUTPUT_MAX: usize = 4096;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its version is awaited.
    Version,
    /// Its choice among security types.
    Security(Minor),
    /// Whether it shares the screen.
    Init,
    /// Messages.
    Running,
    /// It is over.
    Ended,
}

/// What a client can do beyond RFC 6143, as it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Abilities {
    /// Draws the pointer.
    pub(super) cursor: bool,
    /// With degrees of opacity.
    pub(super) cursor_alpha: bool,
    /// Is told where the guest has put the pointer.
    pub(super) pointer_position: bool,
    /// Takes another size.
    pub(super) size: bool,
    /// And can ask for one.
    pub(super) extended_size: bool,
    /// Answers fences.
    pub(super) fence: bool,
    /// Takes updates without asking for each.
    pub(super) continuous: bool,
}

/// Pictures that were sent and not seen yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flow {
    /// The number of the latest fence.
    pub(super) sent: u32,
    /// The number of the latest one that was answered.
    pub(super) seen: u32,
}

impl Flow {
    /// The most pictures on their way.
    const MAX: u32 = 3;

    pub(super) const fn is_full(self) -> bool {
        self.sent.wrapping_sub(self.seen) >= Self::MAX
    }
}

/// What is due to be said beside pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// The shape of the pointer.
    pub(super) cursor: bool,
    /// The size of the screen.
    pub(super) size: bool,
    /// An answer to a client that wants another one.
    pub(super) size_answer: Option<SizeAnswer>,
    /// Where the guest has put the pointer.
    pub(super) position: Option<(u16, u16)>,
}

/// One connection with a client.
#[derive(Debug)]
pub struct Viewer {
    pub(super) options: Options,
    pub(super) stage: Stage,
    /// The beginning of a message.
    pub(super) pending: Vec<u8>,
    /// Bytes of a text that are still to come.
    pub(super) skip: u32,
    pub(super) out: Vec<u8>,
    /// Bytes at its beginning that were sent. All is forgotten when all were.
    sent: usize,
    pub(super) screen: Rectangle,
    /// The size that the client knows of.
    pub(super) known: Rectangle,
    pub(super) damage: Tiles,
    pub(super) abilities: Abilities,
    pub(super) encoder: Encoder,
    /// What the client has asked for.
    pub(super) request: Option<Rectangle>,
    /// What it wants without asking.
    pub(super) continuous: Option<Rectangle>,
    pub(super) flow: Flow,
    pub(super) due: Due,
    /// Whether there is a pointer that a client could draw.
    pub(super) has_shape: bool,
    /// Whether the client has a shape of the pointer from us.
    pub(super) has_cursor: bool,
    /// Where we drew the pointer for it.
    pub(super) drawn: Rectangle,
}

/// A side as RFB has it. Screens are never larger.
pub(super) fn side(length: u32) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

impl Viewer {
    /// A client has connected, to look at a screen of this size.
    #[must_use]
    pub fn new(options: &Options, width: u32, height: u32) -> Self {
        let mut damage = Tiles::new(width, height);
        damage.fill();
        let screen = damage.screen();
        Self {
            options: options.clone(),
            stage: Stage::Version,
            pending: Vec::new(),
            skip: 0,
            out: handshake::VERSION.to_vec(),
            sent: 0,
            screen,
            known: screen,
            damage,
            abilities: Abilities::default(),
            encoder: Encoder::new(),
            request: None,
            continuous: None,
            flow: Flow::default(),
            due: Due::default(),
            has_shape: false,
            has_cursor: false,
            drawn: Rectangle::default(),
        }
    }

    /// Takes bytes of the client, and adds what it does to `events`. Says how many were
    /// taken: not all if there is much to send, which has to be gone first.
    ///
    /// # Errors
    /// The connection ends, once [`output`](Self::output) was sent.
    pub fn input(&mut self, mut bytes: &[u8], events: &mut Vec<Event>) -> Result<usize, Error> {
        let all = bytes.len();
        while !bytes.is_empty() && self.output().len() < OUTPUT_MAX {
            if self.skip > 0 {
                let text = bytes.len().min(self.skip as usize);
                self.skip -= u32::try_from(text).unwrap_or(self.skip);
                bytes = &bytes[text..];
                continue;
            }
            let needed = match self.step(events) {
                Ok(needed) => needed,
                Err(error) => return Err(self.end(error)),
            };
            let more = needed.saturating_sub(self.pending.len()).min(bytes.len());
            let (taken, rest) = bytes.split_at(more);
            self.pending.extend_from_slice(taken);
            bytes = rest;
            // A message may be whole now, and its answer due.
            if let Err(error) = self.step(events) {
                return Err(self.end(error));
            }
        }
        Ok(all - bytes.len())
    }

    fn end(&mut self, error: Error) -> Error {
        self.stage = Stage::Ended;
        self.pending.clear();
        error
    }

    /// Carries out what `pending` has; says how many bytes are needed to go on.
    fn step(&mut self, events: &mut Vec<Event>) -> Result<usize, Error> {
        loop {
            let needed = match self.stage {
                Stage::Version => handshake::VERSION.len(),
                Stage::Security(_) | Stage::Init => 1,
                Stage::Running => match message::parse(&self.pending)? {
                    Parsed::Needs(needed) => return Ok(needed.min(LEN_MAX)),
                    Parsed::Whole(_) => return self.messages(events),
                },
                Stage::Ended => return Err(Error::Ended),
            };
            if self.pending.len() < needed {
                return Ok(needed);
            }
            self.shake(events)?;
            self.pending.clear();
        }
    }

    /// One step of what comes before messages; `pending` has all of it.
    fn shake(&mut self, events: &mut Vec<Event>) -> Result<(), Error> {
        let first = self.pending.first().copied().unwrap_or(0);
        self.stage = match self.stage {
            Stage::Version => {
                let mut got = [0; 12];
                got.copy_from_slice(&self.pending);
                let minor = handshake::version(&got)?;
                handshake::offer(minor, &self.options.security, &mut self.out)?;
                match minor {
                    Minor::V3 => Stage::Init,
                    Minor::V7 | Minor::V8 => Stage::Security(minor),
                }
            }
            Stage::Security(minor) => {
                handshake::choose(minor, first, &mut self.out)?;
                Stage::Init
            }
            Stage::Init => {
                self.known = self.screen;
                let (width, height) = (side(self.known.width), side(self.known.height));
                handshake::screen(width, height, &self.options, &mut self.out);
                events.push(Event::Joined { shared: first != 0 });
                Stage::Running
            }
            stage => stage,
        };
        Ok(())
    }

    /// The message in `pending`, which is whole; nothing is behind it, since no more is
    /// taken than is needed.
    fn messages(&mut self, events: &mut Vec<Event>) -> Result<usize, Error> {
        let pending = core::mem::take(&mut self.pending);
        if let Parsed::Whole(message) = message::parse(&pending)? {
            self.carry_out(message, events);
        }
        // Its memory is kept.
        self.pending = pending;
        self.pending.clear();
        Ok(1)
    }

    fn carry_out(&mut self, message: Message<'_>, events: &mut Vec<Event>) {
        match message {
            Message::PixelFormat(format) => {
                self.encoder.painter = Painter::new(format);
                // A pointer has pixels too.
                self.due.cursor |= self.has_cursor;
            }
            Message::Encodings(list) => self.encodings(list),
            Message::Request { incremental, area } => self.ask(incremental, area),
            Message::Key { down, keysym } => events.push(Event::Key { down, keysym }),
            Message::Pointer { buttons, x, y } => {
                let last = |length: u32| length.saturating_sub(1);
                events.push(Event::Pointer {
                    buttons,
                    x: u32::from(x).min(last(self.screen.width)),
                    y: u32::from(y).min(last(self.screen.height)),
                });
            }
            Message::Text { len } => self.skip = len,
            Message::Continuous { enable, area } => self.set_continuous(enable, area),
            Message::Fence { flags, payload } => self.fence(flags, payload),
            Message::Size { width, height } => {
                if self.options.resizable && width > 0 && height > 0 {
                    events.push(Event::Resize {
                        width: width.into(),
                        height: height.into(),
                    });
                } else {
                    self.answer_size(match self.options.resizable {
                        true => SizeAnswer::Invalid,
                        false => SizeAnswer::Prohibited,
                    });
                }
            }
        }
    }

    fn encodings(&mut self, list: &[u8]) {
        let before = self.abilities;
        let mut abilities = Abilities::default();
        let mut chosen = None;
        let mut level = deflate::LEVEL;
        for number in list.as_chunks::<4>().0 {
            let number = i32::from_be_bytes(*number);
            match number {
                -239 => abilities.cursor = true,
                -314 => abilities.cursor_alpha = true,
                -232 => abilities.pointer_position = true,
                -223 => abilities.size = true,
                -308 => abilities.extended_size = true,
                -312 => abilities.fence = true,
                -313 => abilities.continuous = true,
                -256..=-247 => {
                    let wanted = u8::try_from(number + 256).unwrap_or(0);
                    level = wanted.clamp(deflate::LEVEL, deflate::LEVEL_MAX);
                }
                // The first that we have is what the client likes best.
                number => chosen = chosen.or(Encoding::find(number)),
            }
        }
        self.encoder.encoding = chosen.unwrap_or(Encoding::Raw);
        self.encoder.level = level;
        self.abilities = abilities;
        let draws = |abilities: Abilities| (abilities.cursor, abilities.cursor_alpha);
        if draws(before) != draws(abilities) {
            self.due.cursor = true;
            self.damage.mark(self.drawn);
        }
        if !abilities.pointer_position {
            self.due.position = None;
        }
        // Whoever can do these is told that we can.
        self.due.size |= abilities.extended_size && !before.extended_size;
        if abilities.continuous && !before.continuous {
            self.out.push(150);
        }
        if abilities.fence && !before.fence {
            self.say_fence(FENCE_REQUEST, &[]);
        }
        if !abilities.continuous {
            self.continuous = None;
        }
    }

    fn ask(&mut self, incremental: bool, area: Rectangle) {
        let area = area.intersection(self.known);
        if !incremental {
            self.damage.mark(area);
        }
        let asked = self.request.unwrap_or_default();
        self.request = Some(asked.hull(area));
    }

    fn set_continuous(&mut self, enable: bool, area: Rectangle) {
        if enable {
            self.continuous = Some(area);
            self.flow = Flow::default();
        } else if self.continuous.take().is_some() {
            self.out.push(150);
        }
    }

    fn fence(&mut self, flags: u32, payload: &[u8]) {
        if flags & FENCE_REQUEST != 0 {
            // All that came before was carried out, and nothing that comes after.
            self.say_fence(flags & (FENCE_BLOCK_BEFORE | FENCE_BLOCK_AFTER), payload);
        } else if let Ok(number) = payload.try_into().map(u32::from_be_bytes) {
            let flow = &mut self.flow;
            // A client may answer what was never asked.
            if number.wrapping_sub(flow.seen) <= flow.sent.wrapping_sub(flow.seen) {
                flow.seen = number;
            }
        }
    }

    pub(super) fn say_fence(&mut self, flags: u32, payload: &[u8]) {
        self.out.extend([248, 0, 0, 0]);
        self.out.extend(flags.to_be_bytes());
        self.out.push(u8::try_from(payload.len()).unwrap_or(0));
        self.out.extend(payload);
    }

    /// What is to be sent.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.out[self.sent..]
    }

    /// So many bytes of it were sent.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn sent(&mut self, len: usize) {
        assert!(len <= self.output().len(), "more than there was");
        self.sent += len;
        // What is left is moved once it is the smaller part, so that costs no more than sending.
        if self.sent >= self.out.len() - self.sent {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Whether messages are exchanged.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// The screen has changed there.
    ///
    /// # Panics
    /// If the damage is of another size than the screen.
    pub fn damaged(&mut self, damage: &Tiles) {
        self.damage.unite(damage);
    }

    /// The screen has another size.
    pub fn resized(&mut self, width: u32, height: u32) {
        self.damage = Tiles::new(width, height);
        self.damage.fill();
        self.screen = self.damage.screen();
        self.due.size = true;
    }

    /// What came of an [`Event::Resize`]; after [`resized`](Self::resized) if it was done.
    pub fn answer_size(&mut self, answer: SizeAnswer) {
        self.due.size_answer = Some(answer);
    }

    /// Whether the client draws this pointer. It does not if nobody knows where the pointer
    /// points: then it is part of the picture, at its place.
    #[must_use]
    pub fn draws(&self, cursor: &Cursor) -> bool {
        let able = self.abilities.cursor || self.abilities.cursor_alpha;
        able && cursor.hot_spot().is_some()
    }

    /// The pointer has another shape, another place, or is gone. Has to be told before the
    /// update that shows it.
    pub fn pointed(&mut self, cursor: Option<(&Cursor, Position)>, reshaped: bool) {
        self.has_shape = cursor.is_some_and(|(cursor, _)| cursor.hot_spot().is_some());
        let ours = cursor.filter(|(cursor, _)| !self.draws(cursor));
        let area = ours.map_or(Rectangle::default(), |(cursor, position)| {
            cursor.covers(position, self.screen)
        });
        if area != self.drawn || (reshaped && ours.is_some()) {
            self.damage.mark(self.drawn);
            self.damage.mark(area);
            self.drawn = area;
        }
        let theirs = cursor.is_some() && ours.is_none();
        self.due.cursor |=
            (theirs && (reshaped || !self.has_cursor)) || (!theirs && self.has_cursor);
    }

    /// The guest has put the pointer there, by itself.
    pub fn put(&mut self, x: u32, y: u32) {
        if self.abilities.pointer_position {
            self.due.position = Some((side(x), side(y)));
        }
    }
}

/// The next messages wait for what came before.
pub(super) const FENCE_BLOCK_BEFORE: u32 = 1;
/// What comes after waits for the answer.
pub(super) const FENCE_BLOCK_AFTER: u32 = 2;
/// An answer is asked for.
pub(super) const FENCE_REQUEST: u32 = 1 << 31;
