//! One screen of a source as viewers share it: its picture in one format, its pointer, and
//! what has changed since they looked.

use std::fmt;

use linkspan_display::{
    Cursor, Frame, Held, Kind, Layout, Loss, Needed, Position, Refusal, Scene, Tiles,
};
use linkspan_mem::fault::Injected;

use super::card::card;
use super::source::{Change, Memory, Shown, Source, SourceError};

/// Why there is no picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSignal {
    /// The guest shows nothing on this screen.
    Nothing,
    /// All is gone.
    Lost(Loss),
    /// The picture is one that is not shown.
    Refused(Refusal),
    /// The source failed.
    Failed(String),
}

impl fmt::Display for NoSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("the guest shows nothing on this screen"),
            Self::Lost(loss) => loss.fmt(f),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// What a look brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// The picture has another size, or is there again or not any more.
    pub resized: bool,
    /// Pixels of it have changed: see [`Screen::damage`].
    pub damaged: bool,
    /// The pointer has another place, or is gone, or there.
    pub pointed: bool,
    /// The pointer has another shape.
    pub reshaped: bool,
}

impl Update {
    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// A plane whose memory is held.
#[derive(Debug, Default)]
struct Layer {
    held: Held<Memory>,
    shown: Option<Shown>,
}

/// One screen of a source.
pub struct Screen {
    source: Box<dyn Source>,
    head: u8,
    primary: Layer,
    pointer: Layer,
    frame: Option<Frame>,
    damage: Tiles,
    cursor: Option<(Cursor, Position)>,
    no_signal: Option<NoSignal>,
    /// What is seen without a picture.
    card: Frame,
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen")
            .field("source", &self.source.name())
            .field("head", &self.head)
            .field("no_signal", &self.no_signal)
            .finish_non_exhaustive()
    }
}

impl Screen {
    /// Screen `head` of a source; nothing was looked at.
    ///
    /// # Errors
    /// There is no memory for a picture.
    pub fn new(source: Box<dyn Source>, head: u8) -> Result<Self, Injected> {
        Ok(Self {
            source,
            head,
            primary: Layer::default(),
            pointer: Layer::default(),
            frame: None,
            damage: Tiles::new(0, 0),
            cursor: None,
            no_signal: Some(NoSignal::Nothing),
            card: card(&format!("No signal: {}", NoSignal::Nothing))?,
        })
    }

    /// Which screen of the source it is.
    #[must_use]
    pub fn head(&self) -> u8 {
        self.head
    }

    /// The source, to wait for it or to ask it for another size.
    #[must_use]
    pub fn source(&self) -> &dyn Source {
        &*self.source
    }

    /// The same, to ask.
    pub fn source_mut(&mut self) -> &mut dyn Source {
        &mut *self.source
    }

    /// What is seen, with the pointer; `None` without a picture.
    #[must_use]
    pub fn scene(&self) -> Option<Scene<'_>> {
        let frame = self.frame.as_ref()?;
        let cursor = self.cursor.as_ref();
        Some(Scene {
            frame,
            cursor: cursor.map(|(cursor, position)| (cursor, *position)),
        })
    }

    /// The same, and why there is none where there is no picture.
    #[must_use]
    pub fn view(&self) -> Scene<'_> {
        self.scene().unwrap_or(Scene::of(&self.card))
    }

    /// The pointer and where it is.
    #[must_use]
    pub fn cursor(&self) -> Option<(&Cursor, Position)> {
        let cursor = self.cursor.as_ref()?;
        Some((&cursor.0, cursor.1))
    }

    /// What has changed with the last look.
    #[must_use]
    pub fn damage(&self) -> &Tiles {
        &self.damage
    }

    /// Why there is no picture, if there is none.
    #[must_use]
    pub fn no_signal(&self) -> Option<&NoSignal> {
        self.no_signal.as_ref()
    }

    /// The planes of this screen, as they were looked at last.
    pub fn shown(&self) -> impl Iterator<Item = &Shown> {
        self.primary.shown.iter().chain(&self.pointer.shown)
    }

    /// Looks at the source.
    ///
    /// # Errors
    /// The source has ended and will not come back.
    pub fn look(&mut self) -> Result<Update, SourceError> {
        self.damage.clear();
        let change = self.source.change();
        if change == Change::None && self.no_signal.is_none() {
            return Ok(Update::default());
        }
        let planes = match self.source.planes() {
            Ok(planes) => planes,
            Err(SourceError::Lost(Loss::Ended)) => return Err(SourceError::Lost(Loss::Ended)),
            Err(SourceError::Lost(loss)) => return Ok(self.lose(NoSignal::Lost(loss))),
            Err(error) => return Ok(self.lose(NoSignal::Failed(error.to_string()))),
        };
        let of = |kind| {
            let mut planes = planes.iter();
            planes.find(|shown| shown.head == self.head && shown.kind == kind)
        };
        let (primary, pointer) = (of(Kind::Primary).copied(), of(Kind::Cursor).copied());
        let mut update = match primary {
            Some(primary) => self.look_at_picture(primary, &change),
            None => self.lose(NoSignal::Nothing),
        };
        self.look_at_pointer(pointer, &mut update);
        Ok(update)
    }

    /// There is no picture.
    fn lose(&mut self, why: NoSignal) -> Update {
        let news = self.no_signal.as_ref() != Some(&why);
        if news {
            tracing::info!("no signal: {why}");
            // Without memory for another one the old one stays.
            if let Ok(card) = card(&format!("No signal: {why}")) {
                self.card = card;
            }
        }
        self.primary = Layer::default();
        self.frame = None;
        self.damage = Tiles::new(0, 0);
        self.no_signal = Some(why);
        Update {
            resized: news,
            pointed: self.cursor.take().is_some(),
            ..Update::default()
        }
    }

    fn look_at_picture(&mut self, shown: Shown, change: &Change) -> Update {
        let layout = match Layout::new(&shown.plane.surface, shown.plane.size) {
            Ok(layout) => layout,
            Err(refusal) => return self.lose(NoSignal::Refused(refusal)),
        };
        let other = self.primary.shown.replace(shown).is_none_or(|before| {
            (before.id, before.plane, before.content) != (shown.id, shown.plane, shown.content)
        });
        let (width, height) = (layout.surface().width, layout.surface().height);
        let size = |frame: &Frame| (frame.width(), frame.height());
        let resized = self.frame.as_ref().map(size) != Some((width, height));
        if !other
            && !resized
            && let Change::Parts(parts) = change
            && !parts.iter().any(|(head, _)| *head == self.head)
        {
            return Update::default();
        }
        if resized {
            match Frame::new(width, height) {
                Ok(frame) => self.frame = Some(frame),
                Err(error) => return self.lose(NoSignal::Failed(error.to_string())),
            }
            self.damage = Tiles::new(width, height);
        }
        let memory = match memory(&mut self.primary.held, &mut *self.source, &shown) {
            Ok(memory) => memory.clone(),
            Err(error) => return self.lose(NoSignal::Failed(error.to_string())),
        };
        let Some(frame) = &mut self.frame else {
            return Update::default();
        };
        let reading = match memory.reading() {
            Ok(reading) => reading,
            Err(error) => return self.lose(NoSignal::Failed(error.to_string())),
        };
        let read = |offset: u64, band: &mut [u8]| reading.read(offset, band);
        if let Err(error) = frame.update(&layout, &mut self.damage, read) {
            drop(reading);
            return self.lose(NoSignal::Failed(error.to_string()));
        }
        if resized {
            self.damage.fill();
        }
        if self.no_signal.take().is_some() {
            tracing::info!("a picture of {width}x{height}");
        }
        Update {
            resized,
            damaged: !self.damage.is_empty(),
            ..Update::default()
        }
    }

    fn look_at_pointer(&mut self, shown: Option<Shown>, update: &mut Update) {
        let Some(shown) = shown.filter(|_| self.no_signal.is_none()) else {
            self.pointer.shown = None;
            update.pointed |= self.cursor.take().is_some();
            return;
        };
        let position = shown.plane.position;
        let before = self.pointer.shown.replace(shown);
        // One whose pixels may change unnoticed is read each time: it is small.
        let same = before.is_some_and(|before| {
            let shape = |shown: &Shown| (shown.id, shown.content, shown.plane.hot_spot);
            shape(&before) == shape(&shown) && shown.content != 0
        });
        if let (true, Some((_, place))) = (same, &mut self.cursor) {
            update.pointed |= *place != position;
            *place = position;
            return;
        }
        let cursor = self.read_pointer(&shown);
        let now = cursor.map(|cursor| (cursor, position));
        let shape = |cursor: &Option<(Cursor, Position)>| cursor.as_ref().map(|it| it.0.clone());
        update.reshaped |= shape(&now) != shape(&self.cursor);
        update.pointed |= now != self.cursor;
        self.cursor = now;
    }

    fn read_pointer(&mut self, shown: &Shown) -> Option<Cursor> {
        let layout = Layout::new(&shown.plane.surface, shown.plane.size).ok()?;
        let (width, height) = (layout.surface().width, layout.surface().height);
        if width > Cursor::MAX || height > Cursor::MAX {
            return None;
        }
        let memory = memory(&mut self.pointer.held, &mut *self.source, shown).ok()?;
        let mut frame = Frame::new(width, height).ok()?;
        let mut damage = Tiles::new(width, height);
        let reading = memory.reading().ok()?;
        let read = |offset: u64, band: &mut [u8]| reading.read(offset, band);
        frame.update(&layout, &mut damage, read).ok()?;
        drop(reading);
        Cursor::new(&frame, shown.plane.hot_spot)
    }
}

/// The memory of a plane, asked for if it is not held.
fn memory<'a>(
    held: &'a mut Held<Memory>,
    source: &mut dyn Source,
    shown: &Shown,
) -> Result<&'a Memory, SourceError> {
    if matches!(held.shown(shown.id, &shown.plane), Needed::Memory) {
        let memory = source.memory(shown)?;
        return Ok(held.keep(shown.id, &shown.plane, memory));
    }
    match held.shown(shown.id, &shown.plane) {
        Needed::Nothing(memory) => Ok(memory),
        Needed::Memory => unreachable!("it is held, as was just said"),
    }
}
