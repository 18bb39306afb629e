//! One screen of a source as viewers share it: its picture in one format, its pointer, and
//! what has changed since they looked.

use std::fmt;

use linkspan_display::{
    Cursor, Frame, Held, Kind, Layout, Loss, Needed, Position, RECTANGLES_MAX, Reason, SPRITES_MAX,
    Scene, Sprite, Tiles,
};
use linkspan_engine::LogLimit;
use linkspan_mem::fault::Injected;

use super::card::card;
use super::no_signal::NoSignal;
use super::source::{Change, Memory, Shown, Source, SourceError};

/// Lines of the log at once. A guest may change what it shows, and whether it can be shown,
/// with each look.
const LINES_MAX: u32 = 32;

fn failed(error: &dyn fmt::Display) -> NoSignal {
    NoSignal::Failed(error.to_string())
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
    /// Whether sprites are drawn over the picture.
    composes: bool,
    layers: [Layer; SPRITES_MAX as usize],
    /// Sprites are on and nobody wants to see them.
    left_out: bool,
    frame: Option<Frame>,
    damage: Tiles,
    sprites: Vec<Sprite>,
    cursor: Option<(Cursor, Position)>,
    no_signal: Option<NoSignal>,
    /// What is seen without a picture.
    card: Frame,
    lines: LogLimit,
    /// Glances until now.
    glances: usize,
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
            composes: false,
            layers: Default::default(),
            left_out: false,
            frame: None,
            damage: Tiles::new(0, 0),
            sprites: Vec::new(),
            cursor: None,
            no_signal: Some(NoSignal::Nothing),
            card: card(&format!("No signal: {}", NoSignal::Nothing))?,
            lines: LogLimit::burst(LINES_MAX),
            glances: 0,
        })
    }

    /// Draws sprites over the picture from now on. Then a sprite that is refused is a reason
    /// to show nothing: the whole would be wrong without it.
    pub fn compose(&mut self) {
        self.composes = true;
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

    /// What is seen, with sprites if they are to be drawn and the pointer; `None` without a
    /// picture.
    #[must_use]
    pub fn scene(&self) -> Option<Scene<'_>> {
        let frame = self.frame.as_ref()?;
        let cursor = self.cursor.as_ref();
        Some(Scene {
            frame,
            sprites: &self.sprites,
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

    /// Whether the last look did not find what is shown, for a reason that may pass: looking
    /// again is worth it although nothing changes.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        match &self.no_signal {
            Some(why) => matches!(why, NoSignal::Failed(_)),
            None => self.primary.shown.is_none(),
        }
    }

    /// Why a plane of this screen is not shown that is on, as its source found last.
    #[must_use]
    pub fn refused(&self, kind: Kind) -> Option<&Reason> {
        let mut refused = self.source.refused().iter();
        let found = refused.find(|plane| (plane.head, plane.kind) == (self.head, kind));
        found.map(|plane| &plane.why)
    }

    /// Reads one plane alone; nothing if it is off.
    ///
    /// # Errors
    /// Why it cannot be seen.
    pub fn plane(&mut self, kind: Kind) -> Result<Option<Frame>, NoSignal> {
        let planes = self.source.planes().map_err(|error| match error {
            SourceError::Lost(loss) => NoSignal::Lost(loss),
            error => NoSignal::from(&error),
        })?;
        if let Some(why) = self.refused(kind) {
            return Err(NoSignal::Refused(why.clone()));
        }
        match find(&planes, self.head, kind) {
            None => Ok(None),
            Some(shown) => {
                let mut held = Held::new();
                let source = &mut *self.source;
                read_plane(&mut held, source, &shown, None).map(|(frame, _)| Some(frame))
            }
        }
    }

    /// Looks at the source.
    ///
    /// # Errors
    /// The source has ended and will not come back.
    pub fn look(&mut self) -> Result<Update, SourceError> {
        self.look_at_lines(1)
    }

    /// The same for less work while nothing changes: of a picture whose source does not say what has changed, one
    /// line in `step` (or row of tiles, or of lines that are read together as they are short) is compared,
    /// another one each time, and all of them once one has changed. What is less than `step` of them high may be
    /// seen only after as many glances.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    ///
    /// # Panics
    /// If `step` is 0.
    pub fn glance(&mut self, step: usize) -> Result<Update, SourceError> {
        self.glances = self.glances.wrapping_add(1);
        self.look_at_lines(step)
    }

    fn look_at_lines(&mut self, step: usize) -> Result<Update, SourceError> {
        self.damage.clear();
        let change = self.source.change();
        if change == Change::None && self.no_signal.is_none() && !self.has_failed() {
            return Ok(Update::default());
        }
        let planes = match self.source.planes() {
            Ok(planes) => planes,
            Err(SourceError::Lost(Loss::Ended)) => return Err(SourceError::Lost(Loss::Ended)),
            Err(SourceError::Lost(loss)) => return Ok(self.lose(NoSignal::Lost(loss))),
            Err(error) => return Ok(self.lose(NoSignal::from(&error))),
        };
        let looked = match find(&planes, self.head, Kind::Primary) {
            Some(primary) => self.look_at_picture(primary, &change, step),
            None => {
                let why = self.refused(Kind::Primary).cloned();
                Err(why.map_or(NoSignal::Nothing, NoSignal::Refused))
            }
        };
        let looked = looked.and_then(|update| self.look_at_sprites(&planes, update));
        let mut update = match looked {
            Ok(update) => self.show(update),
            Err(why) => self.lose(why),
        };
        self.look_at_pointer(find(&planes, self.head, Kind::Cursor), &mut update);
        Ok(update)
    }

    /// Lets go of a source that is not there any more, while nobody looks.
    ///
    /// # Errors
    /// The source has ended and will not come back.
    pub(super) fn check(&mut self) -> Result<(), SourceError> {
        match self.source.check() {
            Err(SourceError::Lost(loss)) if loss != Loss::Ended => {
                // A mapping holds a device as an open one does.
                self.lose(NoSignal::Lost(loss));
                Ok(())
            }
            checked => checked,
        }
    }

    /// A line of the log, for a change.
    fn log(&mut self, what: &dyn fmt::Display) {
        let Some(left_out) = self.lines.allow() else {
            return;
        };
        let name = self.source.name();
        match left_out {
            0 => tracing::info!("{name}: {what}"),
            left_out => tracing::info!(left_out, "{name}: {what}"),
        }
    }

    /// There is no picture.
    fn lose(&mut self, why: NoSignal) -> Update {
        let news = self.no_signal.as_ref() != Some(&why);
        if news {
            self.log(&format_args!("no signal: {why}"));
            // Without memory for another one the old one stays.
            if let Ok(card) = card(&format!("No signal: {why}")) {
                self.card = card;
            }
        }
        self.primary = Layer::default();
        self.pointer = Layer::default();
        self.layers = Default::default();
        self.sprites.clear();
        self.frame = None;
        self.damage = Tiles::new(0, 0);
        self.no_signal = Some(why);
        Update {
            resized: news,
            pointed: self.cursor.take().is_some(),
            ..Update::default()
        }
    }

    /// There is one.
    fn show(&mut self, update: Update) -> Update {
        let is_there = self.no_signal.take().is_none();
        if let (Some(frame), true) = (&self.frame, update.resized || !is_there) {
            let (width, height) = (frame.width(), frame.height());
            self.log(&format_args!("a picture of {width}x{height}"));
        }
        update
    }

    fn look_at_picture(
        &mut self,
        shown: Shown,
        change: &Change,
        step: usize,
    ) -> Result<Update, NoSignal> {
        let layout = Layout::new(&shown.plane.surface, shown.plane.size)?;
        let other = self.primary.shown.replace(shown).is_none_or(|before| {
            (before.id, before.plane, before.content) != (shown.id, shown.plane, shown.content)
        });
        let (width, height) = (layout.surface().width, layout.surface().height);
        let size = |frame: &Frame| (frame.width(), frame.height());
        let resized = self.frame.as_ref().map(size) != Some((width, height));
        // Where something may have changed; all of it, if nobody says.
        let marked = match change {
            Change::Parts(parts) if !other && !resized => {
                let mut marked = Tiles::new(width, height);
                let ours = parts.iter().filter(|(head, _)| *head == self.head);
                ours.for_each(|(_, part)| marked.mark(*part));
                if marked.is_empty() {
                    return Ok(Update::default());
                }
                Some(marked)
            }
            _ => None,
        };
        let memory = match memory(&mut self.primary.held, &mut *self.source, &shown) {
            Ok(memory) => memory.clone(),
            // It shows another one by now, and says so: until then nothing has changed.
            Err(SourceError::Retired { .. }) if self.no_signal.is_none() => {
                self.primary.shown = None;
                return Ok(Update::default());
            }
            Err(error) => return Err(NoSignal::from(&error)),
        };
        if resized {
            let frame = Frame::new(width, height);
            self.frame = Some(frame.map_err(|error| failed(&error))?);
            self.damage = Tiles::new(width, height);
        }
        let Some(frame) = &mut self.frame else {
            return Ok(Update::default());
        };
        let reading = memory.reading().map_err(|error| NoSignal::from(&error))?;
        let read = |offset: u64, band: &mut [u8]| reading.read(offset, band);
        let damage = &mut self.damage;
        let all = step == 1 || other || resized;
        let read = match &marked {
            Some(marked) => frame.update_within(&layout, marked, damage, read),
            None if all => frame.update(&layout, damage, read),
            None => {
                let some = (self.glances % step, step);
                let some = frame.update_some(&layout, some, damage, read);
                some.and_then(|()| match damage.is_empty() {
                    true => Ok(()),
                    false => frame.update(&layout, damage, read),
                })
            }
        };
        read.map_err(|error| failed(&error))?;
        if resized {
            self.damage.fill();
        }
        Ok(Update {
            resized,
            damaged: !self.damage.is_empty(),
            ..Update::default()
        })
    }

    fn look_at_pointer(&mut self, shown: Option<Shown>, update: &mut Update) {
        let Some(shown) = shown.filter(|_| self.no_signal.is_none()) else {
            self.pointer.shown = None;
            update.pointed |= self.cursor.take().is_some();
            return;
        };
        if self.primary.shown.is_none() {
            return;
        }
        let position = self.seen_from_picture(shown.plane.position);
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

    /// A place on the screen, as seen from where the picture begins.
    fn seen_from_picture(&self, Position { x, y }: Position) -> Position {
        let origin = self.primary.shown.map(|shown| shown.plane.position);
        let origin = origin.unwrap_or_default();
        Position {
            x: x.saturating_sub(origin.x),
            y: y.saturating_sub(origin.y),
        }
    }

    /// Brings the sprites up to date, if they are to be drawn, or says once that they are not.
    fn look_at_sprites(
        &mut self,
        planes: &[Shown],
        mut update: Update,
    ) -> Result<Update, NoSignal> {
        if self.primary.shown.is_none() {
            return Ok(update);
        }
        if !self.composes {
            let mut ours = planes.iter().filter(|shown| shown.head == self.head);
            let left_out = ours.any(|shown| matches!(shown.kind, Kind::Sprite(_)));
            if left_out && !self.left_out {
                self.log(&"sprites are on and left out: nobody asks for them");
            }
            self.left_out = left_out;
            return Ok(update);
        }
        for number in 1..=SPRITES_MAX {
            let kind = Kind::Sprite(number);
            let shown = find(planes, self.head, kind);
            match self.refused(kind).cloned() {
                Some(why) => Err(NoSignal::Refused(why)),
                None => self.look_at_sprite(number, shown),
            }
            .map_err(|why| why.of(kind))?;
        }
        update.damaged |= !self.damage.is_empty();
        Ok(update)
    }

    fn look_at_sprite(&mut self, number: u8, shown: Option<Shown>) -> Result<(), NoSignal> {
        let at = self.sprites.iter().position(|it| it.number == number);
        let before = at.map(|at| self.sprites.remove(at));
        let area = self.damage.screen();
        let Some(shown) = shown else {
            if let Some(before) = before {
                self.damage.mark(before.covers(before.frame.area(), area));
            }
            return Ok(());
        };
        let position = self.seen_from_picture(shown.plane.position);
        let old = before.as_ref().map(|it| {
            (
                it.position,
                it.frame.area(),
                it.covers(it.frame.area(), area),
            )
        });
        let held = &mut self.layers[usize::from(number - 1)].held;
        let frame = before.map(|it| it.frame);
        let (frame, changed) = read_plane(held, &mut *self.source, &shown, frame)?;
        let sprite = Sprite {
            number,
            frame,
            position,
        };
        match old {
            Some((place, size, _)) if (place, size) == (position, sprite.frame.area()) => {
                for part in changed.rectangles(RECTANGLES_MAX) {
                    self.damage.mark(sprite.covers(part, area));
                }
            }
            old => {
                self.damage.mark(sprite.covers(sprite.frame.area(), area));
                let (_, _, covered) = old.unwrap_or_default();
                self.damage.mark(covered);
            }
        }
        let above = self.sprites.iter().position(|it| it.number > number);
        let at = above.unwrap_or(self.sprites.len());
        self.sprites.insert(at, sprite);
        Ok(())
    }

    fn read_pointer(&mut self, shown: &Shown) -> Option<Cursor> {
        let (width, height) = (shown.plane.surface.width, shown.plane.surface.height);
        if width > Cursor::MAX || height > Cursor::MAX {
            return None;
        }
        let read = read_plane(&mut self.pointer.held, &mut *self.source, shown, None);
        let (frame, _) = read.ok()?;
        Cursor::new(&frame, shown.plane.hot_spot)
    }
}

/// A plane of a screen, if it is shown.
fn find(planes: &[Shown], head: u8, kind: Kind) -> Option<Shown> {
    let mut planes = planes.iter();
    let found = planes.find(|shown| (shown.head, shown.kind) == (head, kind));
    found.copied()
}

/// What a plane shows, and what of it is other than `before`; all of it, if that is none or
/// has another size.
fn read_plane(
    held: &mut Held<Memory>,
    source: &mut dyn Source,
    shown: &Shown,
    before: Option<Frame>,
) -> Result<(Frame, Tiles), NoSignal> {
    let layout = Layout::new(&shown.plane.surface, shown.plane.size)?;
    let (width, height) = (layout.surface().width, layout.surface().height);
    let memory = memory(held, source, shown).map_err(|error| NoSignal::from(&error))?;
    let fits = |frame: &Frame| (frame.width(), frame.height()) == (width, height);
    let before = before.filter(fits);
    let is_new = before.is_none();
    let mut frame = match before {
        Some(frame) => frame,
        None => Frame::new(width, height).map_err(|error| failed(&error))?,
    };
    let mut damage = Tiles::new(width, height);
    let reading = memory.reading().map_err(|error| NoSignal::from(&error))?;
    let read = |offset: u64, band: &mut [u8]| reading.read(offset, band);
    let read = frame.update(&layout, &mut damage, read);
    read.map_err(|error| failed(&error))?;
    if is_new {
        damage.fill();
    }
    Ok((frame, damage))
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
