//! What a GPU shows now: between its queues, which say it, and those who look.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use linkspan_devices::gpu::{self, Config, EVENT_DISPLAY, Event, Format, HEADS_MAX, SIDE_MAX};
use linkspan_display::edid::Mode;
use linkspan_display::link::Told;
use linkspan_display::{
    BufferId, ExportError, Exports, FourCc, HotSpot, Kind, Loss, Modifier, Plane, Position,
    RECTANGLES_MAX, Rectangle, RefusedPlane, Surface,
};
use linkspan_sys::{EventFd, View};

use super::memory::{Backing, PictureMemory};
use super::source::{Change, Memory, Shown, Source, SourceError};

/// What makes a picture another one: its memory and its layout.
type Key = (Backing, Surface);

/// A picture that was shown: its memory, and where it begins there.
#[derive(Clone, Debug)]
struct Kept {
    backing: Backing,
    offset: u64,
}

/// A plane of a device that says all of them at once.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) head: u8,
    pub(super) kind: Kind,
    pub(super) surface: Surface,
    pub(super) backing: Backing,
    pub(super) position: Position,
    pub(super) hot_spot: Option<HotSpot>,
}

/// What is shown now.
#[derive(Debug)]
pub(super) struct Now {
    /// Why nothing is.
    pub(super) loss: Option<Loss>,
    /// The planes.
    pub(super) planes: Vec<Told>,
    /// Those that are on and not shown.
    pub(super) refused: Vec<RefusedPlane>,
}

/// A pointer.
#[derive(Clone, Debug, PartialEq)]
struct Pointer {
    shape: Option<(BufferId, Plane)>,
    place: Position,
}

#[derive(Debug)]
struct State {
    primary: [Option<(BufferId, Plane)>; HEADS_MAX],
    pointers: [Option<Pointer>; HEADS_MAX],
    /// Sprites by their screen and number.
    sprites: BTreeMap<(u8, u8), (BufferId, Plane)>,
    refused: Vec<RefusedPlane>,
    /// Counts the shapes of pointers.
    shapes: u32,
    exports: Exports<Key, Kept>,
    loss: Option<Loss>,
    modes: [(u32, u32); HEADS_MAX],
    config: Config,
    /// Front ends that show the screens too, and say how large they are.
    fronts: usize,
    watchers: Vec<Weak<Watcher>>,
}

/// What a GPU shows now.
#[derive(Debug)]
pub(super) struct Hub {
    heads: u8,
    /// Nobody hears of it when pixels change.
    silent: bool,
    /// Whether its screens can have another size.
    resizes: bool,
    state: Mutex<State>,
    /// Signalled when configuration space has changed.
    pub(super) config_changes: Arc<EventFd>,
}

/// Somebody who looks, and what he has not heard.
#[derive(Debug)]
pub(super) struct Watcher {
    wake: EventFd,
    news: Mutex<News>,
}

#[derive(Debug, Default)]
pub(super) struct News {
    /// Other planes are shown.
    pub(super) planes: bool,
    /// Parts of screens have changed.
    pub(super) parts: VecDeque<(u8, Rectangle)>,
}

/// All of any screen.
const WHOLE: Rectangle = Rectangle {
    x: 0,
    y: 0,
    width: SIDE_MAX,
    height: SIDE_MAX,
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watcher {
    fn tell(&self, what: impl FnOnce(&mut News)) {
        what(&mut lock(&self.news));
        // The counter of our own descriptor is drained by whoever looks.
        let _ = self.wake.signal();
    }

    /// What is new since this was last asked.
    pub(super) fn take(&self) -> News {
        let _ = self.wake.drain();
        std::mem::take(&mut lock(&self.news))
    }

    /// Becomes readable with news.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl News {
    pub(super) fn is_empty(&self) -> bool {
        !self.planes && self.parts.is_empty()
    }

    /// What is newer.
    pub(super) fn add(&mut self, newer: Self) {
        self.planes |= newer.planes;
        for (head, part) in newer.parts {
            self.part(head, part);
        }
    }

    /// A part has changed; many parts are as few as viewers are told.
    fn part(&mut self, head: u8, part: Rectangle) {
        if let Some((last, known)) = self.parts.back_mut()
            && *last == head
            && known.intersection(part) == part
        {
            return;
        }
        if self.parts.len() < RECTANGLES_MAX {
            self.parts.push_back((head, part));
            return;
        }
        // There are fewer screens than parts, so one has several, which become one.
        let mut hulls = [Rectangle::default(); HEADS_MAX];
        for (head, part) in self.parts.drain(..).chain([(head, part)]) {
            let hull = &mut hulls[usize::from(head)];
            *hull = hull.hull(part);
        }
        let hulls = (0..).zip(hulls).filter(|(_, hull)| !hull.is_empty());
        self.parts.extend(hulls);
    }
}

impl Hub {
    /// Of a GPU, which says when pixels change.
    pub(super) fn new(heads: u8, mode: (u32, u32)) -> io::Result<Arc<Self>> {
        Self::make(heads, mode, false, true)
    }

    /// Of a device whose memory is written to without a word, and which may have one size.
    pub(super) fn silent(heads: u8, mode: (u32, u32), resizes: bool) -> io::Result<Arc<Self>> {
        Self::make(heads, mode, true, resizes)
    }

    fn make(heads: u8, mode: (u32, u32), silent: bool, resizes: bool) -> io::Result<Arc<Self>> {
        let mut modes = [(0, 0); HEADS_MAX];
        modes[..usize::from(heads)].fill(mode);
        Ok(Arc::new(Self {
            heads,
            silent,
            resizes,
            config_changes: Arc::new(EventFd::new()?),
            state: Mutex::new(State {
                primary: [None; HEADS_MAX],
                pointers: [const { None }; HEADS_MAX],
                sprites: BTreeMap::new(),
                refused: Vec::new(),
                shapes: 0,
                exports: Exports::new(),
                loss: Some(Loss::Unused),
                modes,
                config: Config {
                    events: 0,
                    heads: heads.into(),
                },
                fronts: 0,
                watchers: Vec::new(),
            }),
        }))
    }

    pub(super) fn heads(&self) -> u8 {
        self.heads
    }

    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Somebody looks from now on; all is new to him.
    pub(super) fn watch(&self) -> io::Result<Arc<Watcher>> {
        let watcher = Arc::new(Watcher {
            wake: EventFd::new()?,
            news: Mutex::default(),
        });
        watcher.tell(|news| news.planes = true);
        let mut state = lock(&self.state);
        state.watchers.retain(|watcher| watcher.strong_count() > 0);
        state.watchers.push(Arc::downgrade(&watcher));
        Ok(watcher)
    }

    /// Whether a screen could be told this size, whoever has the say.
    pub(super) fn takes(&self, head: u8, (width, height): (u32, u32)) -> bool {
        self.resizes && head < self.heads && Mode::reduced(width, height, 60).is_ok()
    }

    /// What is shown now, or why nothing is.
    pub(super) fn now(&self) -> Now {
        let state = lock(&self.state);
        let mut planes = Vec::new();
        let told = |head, kind, (id, plane): (BufferId, Plane), content| Told {
            head,
            kind,
            id: id.0,
            content,
            plane,
        };
        for (head, (primary, pointer)) in (0..).zip(state.primary.iter().zip(&state.pointers)) {
            let sprites = state.sprites.range((head, 0)..=(head, u8::MAX));
            let sprites = sprites.map(|((_, number), shown)| (Kind::Sprite(*number), *shown));
            let primary = primary.map(|shown| (Kind::Primary, shown));
            let has_primary = primary.is_some();
            for (kind, shown) in primary.into_iter().chain(sprites) {
                planes.push(told(head, kind, shown, 0));
            }
            if let (true, Some(pointer)) = (has_primary, pointer)
                && let Some((id, plane)) = pointer.shape
            {
                let position = pointer.place;
                let content = if self.silent { 0 } else { state.shapes };
                let plane = Plane { position, ..plane };
                planes.push(told(head, Kind::Cursor, (id, plane), content));
            }
        }
        let refused = state.refused.clone();
        let nothing = planes.is_empty() && refused.is_empty();
        Now {
            loss: state.loss.filter(|_| nothing),
            planes,
            refused,
        }
    }

    /// What `make` makes of the memory of an id.
    pub(super) fn get<F>(
        &self,
        id: u32,
        make: impl FnOnce(&Backing) -> io::Result<F>,
    ) -> Result<F, ExportError<io::Error>> {
        self.get_at(id, |backing, _| make(backing))
    }

    /// The same, which is told where in its memory the picture begins.
    pub(super) fn get_at<F>(
        &self,
        id: u32,
        make: impl FnOnce(&Backing, u64) -> io::Result<F>,
    ) -> Result<F, ExportError<io::Error>> {
        let kept = lock(&self.state)
            .exports
            .get(BufferId(id), |kept| Ok::<_, io::Error>(kept.clone()))?;
        // Nobody waits for the system: what is kept stays for as long as it is used here.
        make(&kept.backing, kept.offset).map_err(ExportError::Make)
    }

    /// The device shows these planes and nothing else from now on, and refuses those.
    pub(super) fn put(&self, layers: Vec<Layer>, refused: Vec<RefusedPlane>) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let mut primary = [None; HEADS_MAX];
        let mut pointers = [const { None }; HEADS_MAX];
        let mut sprites = BTreeMap::new();
        for layer in layers {
            let head = usize::from(layer.head);
            let shown = state.keep(&layer.backing, layer.surface, layer.hot_spot);
            let Some((id, plane)) = shown else {
                continue;
            };
            let place = layer.position;
            let plane = Plane {
                position: place,
                ..plane
            };
            match layer.kind {
                Kind::Primary => primary[head] = Some((id, plane)),
                Kind::Sprite(number) => {
                    sprites.insert((layer.head, number), (id, plane));
                }
                Kind::Cursor => {
                    let shape = Some((id, plane));
                    pointers[head] = Some(Pointer { shape, place });
                }
            }
        }
        let same = (state.primary, &state.pointers) == (primary, &pointers)
            && (&state.sprites, &state.refused) == (&sprites, &refused);
        if same {
            return;
        }
        (state.primary, state.pointers) = (primary, pointers);
        (state.sprites, state.refused) = (sprites, refused);
        state.loss = Some(Loss::Off);
        Self::tell_all(state, |news| news.planes = true);
    }

    /// Ids of what is not shown are void from now on, and hold no memory: it may be taken back.
    pub(super) fn retire_hidden(&self) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let pointers = state.pointers.iter().flatten();
        let pointers = pointers.filter_map(|pointer| pointer.shape.as_ref());
        let shown = state.primary.iter().flatten().chain(pointers);
        let shown = shown.chain(state.sprites.values());
        let is_shown = |id: BufferId| shown.clone().any(|(shown, _)| *shown == id);
        state.exports.retire_hidden(is_shown);
    }

    fn tell_all(state: &State, what: impl Fn(&mut News)) {
        for watcher in state.watchers.iter().filter_map(Weak::upgrade) {
            watcher.tell(&what);
        }
    }

    /// All is gone, and this is why.
    pub(super) fn lose(&self, loss: Loss) {
        let mut state = lock(&self.state);
        state.primary = [None; HEADS_MAX];
        state.pointers = [const { None }; HEADS_MAX];
        state.sprites.clear();
        state.refused.clear();
        state.exports.retire();
        state.config.events = 0;
        // A device that nobody uses is reset without anybody's seeing it.
        if (loss, state.loss) != (Loss::Reset, Some(Loss::Unused)) {
            state.loss = Some(loss);
        }
        Self::tell_all(&state, |news| {
            news.parts.clear();
            news.planes = true;
        });
    }

    /// Takes in what a queue did.
    pub(super) fn event(&self, event: Event<Arc<PictureMemory>>) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        match event {
            Event::Flush { head, part } => {
                let part = Rectangle {
                    x: part.x,
                    y: part.y,
                    width: part.width,
                    height: part.height,
                };
                return Self::tell_all(state, |news| news.part(head, part));
            }
            Event::Scanout { head, picture } => {
                let shown = picture.and_then(|picture| state.export(&picture, None));
                let place = &mut state.primary[usize::from(head)];
                if *place == shown {
                    return;
                }
                *place = shown;
                state.loss = Some(Loss::Off);
                // What was drawn there while it was not shown was not told.
                return Self::tell_all(state, |news| {
                    news.planes = true;
                    news.part(head, WHOLE);
                });
            }
            Event::Cursor { head, place, shape } => {
                let shape = shape.and_then(|(picture, hot)| state.export(&picture, Some(hot)));
                state.shapes = state.shapes.wrapping_add(1).max(1);
                state.pointers[usize::from(head)] = Some(Pointer {
                    shape,
                    place: Position::from_wire(place.0, place.1),
                });
            }
            Event::Moved { head, place } => match &mut state.pointers[usize::from(head)] {
                Some(pointer) => pointer.place = Position::from_wire(place.0, place.1),
                None => return,
            },
            Event::Gone { memory } => {
                let gone = Backing::Whole(memory);
                state.exports.forget(|kept| kept.backing == gone);
                for pointer in state.pointers.iter_mut().flatten() {
                    let id = pointer.shape.map(|(id, _)| id);
                    let kept = id.map(|id| state.exports.get(id, |_| Ok::<_, ()>(())).is_ok());
                    if kept == Some(false) {
                        pointer.shape = None;
                    }
                }
            }
        }
        Self::tell_all(state, |news| news.planes = true);
    }

    /// The sizes that the guest is told, unless a front end tells them.
    pub(super) fn modes(&self) -> [(u32, u32); HEADS_MAX] {
        lock(&self.state).modes
    }

    /// The size of one screen.
    pub(super) fn mode(&self, head: u8) -> (u32, u32) {
        self.modes()[usize::from(head)]
    }

    /// A front end says how large screens are.
    pub(super) fn front_comes(&self) {
        lock(&self.state).fronts += 1;
    }

    /// It does not any more.
    pub(super) fn front_goes(&self) {
        lock(&self.state).fronts -= 1;
    }

    /// A viewer wants another size; `false` if a front end has the say.
    pub(super) fn set_mode(&self, head: u8, mode: (u32, u32)) -> bool {
        let mut state = lock(&self.state);
        if state.fronts > 0 {
            return false;
        }
        state.modes[usize::from(head)] = mode;
        state.config.events |= EVENT_DISPLAY;
        drop(state);
        let _ = self.config_changes.signal();
        true
    }

    /// Configuration space.
    pub(super) fn config<T>(&self, with: impl FnOnce(&mut Config) -> T) -> T {
        with(&mut lock(&self.state).config)
    }
}

impl State {
    /// The plane of a picture, and its id; a pointer has a place that points.
    fn export(
        &mut self,
        picture: &gpu::Picture<Arc<PictureMemory>>,
        hot: Option<(u32, u32)>,
    ) -> Option<(BufferId, Plane)> {
        let part = picture.part;
        let pointer = hot.is_some();
        let surface = Surface {
            format: fourcc(picture.format, pointer),
            modifier: Modifier::LINEAR,
            width: part.width,
            height: part.height,
            stride: picture.stride,
            offset: u64::from(part.y) * u64::from(picture.stride) + u64::from(part.x) * 4,
            x: 0,
            y: 0,
        };
        let hot = hot.and_then(|(x, y)| HotSpot::from_wire(x, y, part.width, part.height));
        self.keep(&Backing::Whole(Arc::clone(&picture.memory)), surface, hot)
    }

    /// The plane of what lies so in this memory, and its id.
    fn keep(
        &mut self,
        backing: &Backing,
        surface: Surface,
        hot_spot: Option<HotSpot>,
    ) -> Option<(BufferId, Plane)> {
        let plane = Plane {
            surface,
            size: backing.len(),
            position: Position::default(),
            hot_spot,
        };
        let key = (backing.clone(), surface);
        let pointers = self.pointers.iter().flatten();
        let pointers = pointers.filter_map(|pointer| pointer.shape.as_ref());
        let shown = self.primary.iter().flatten().chain(pointers);
        let shown = shown.chain(self.sprites.values());
        // What a screen shows stays, however many pointers come and go.
        let is_shown = |id: BufferId| shown.clone().any(|(shown, _)| *shown == id);
        let id = self.exports.query(key, is_shown, || Kept {
            backing: backing.clone(),
            offset: surface.offset,
        });
        Some((id.ok()?, plane))
    }
}

/// The kernel's name for a format. What a screen shows is opaque, whatever its pixels say; a
/// pointer is not, whatever its format says: Linux has no other for what programs draw.
fn fourcc(format: Format, pointer: bool) -> FourCc {
    match (format, pointer) {
        (Format::B8G8R8A8 | Format::B8G8R8X8, true) => FourCc::ARGB8888,
        (Format::B8G8R8A8 | Format::B8G8R8X8, false) => FourCc::XRGB8888,
        (Format::A8R8G8B8 | Format::X8R8G8B8, true) => FourCc::BGRA8888,
        (Format::A8R8G8B8 | Format::X8R8G8B8, false) => FourCc::BGRX8888,
        (Format::R8G8B8A8 | Format::R8G8B8X8, true) => FourCc::ABGR8888,
        (Format::R8G8B8A8 | Format::R8G8B8X8, false) => FourCc::XBGR8888,
        (Format::A8B8G8R8 | Format::X8B8G8R8, true) => FourCc::RGBA8888,
        (Format::A8B8G8R8 | Format::X8B8G8R8, false) => FourCc::RGBX8888,
    }
}

/// The GPU as a source, for those in this process who look.
#[derive(Debug)]
pub(super) struct OwnSource {
    hub: Arc<Hub>,
    watcher: Arc<Watcher>,
    refused: Vec<RefusedPlane>,
}

impl OwnSource {
    pub(super) fn new(hub: &Arc<Hub>) -> io::Result<Self> {
        Ok(Self {
            watcher: hub.watch()?,
            refused: Vec::new(),
            hub: Arc::clone(hub),
        })
    }
}

impl Source for OwnSource {
    fn name(&self) -> String {
        "gpu".into()
    }

    fn planes(&mut self) -> Result<Vec<Shown>, SourceError> {
        let now = self.hub.now();
        self.refused = now.refused;
        match now.loss {
            Some(loss) => Err(SourceError::Lost(loss)),
            None => Ok(now.planes.into_iter().map(Shown::from).collect()),
        }
    }

    fn refused(&self) -> &[RefusedPlane] {
        &self.refused
    }

    fn memory(&mut self, shown: &Shown) -> Result<Memory, SourceError> {
        let id = shown.id;
        let fd: Result<OwnedFd, _> = self.hub.get(id, Backing::to_look_at);
        let fd = fd.map_err(|error| match error {
            ExportError::Make(source) => SourceError::System {
                what: "no descriptor for a picture",
                source,
            },
            _ => SourceError::Retired { id },
        })?;
        let view = View::map(fd.as_fd(), 0, shown.plane.size)?;
        Ok(view.into())
    }

    fn change(&mut self) -> Change {
        let news = self.watcher.take();
        match news.is_empty() {
            true => Change::None,
            false => Change::Parts(news.parts.into()),
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watcher.fd())
    }

    fn resize(&mut self, head: u8, width: u32, height: u32) -> Result<(), SourceError> {
        let size = (width, height);
        if !self.hub.takes(head, size) {
            let why = format!("{width}x{height} is no size for this screen");
            return Err(SourceError::Unsupported(why));
        }
        match self.hub.set_mode(head, size) {
            true => Ok(()),
            false => Err(SourceError::Unsupported("the front end has the say".into())),
        }
    }
}
