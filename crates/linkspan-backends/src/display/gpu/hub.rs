//! What a GPU shows now: between its queues, which say it, and those who look.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use linkspan_devices::gpu::{self, Config, EVENT_DISPLAY, Event, Format, HEADS_MAX};
use linkspan_display::link::Told;
use linkspan_display::{
    BufferId, ExportError, Exports, FourCc, HotSpot, Kind, Loss, Modifier, Plane, Position,
    RECTANGLES_MAX, Rectangle, Surface,
};
use linkspan_sys::{EventFd, View};

use super::super::source::{Change, Memory, Shown, Source, SourceError};
use super::memory::PictureMemory;

/// What makes a picture another one: its memory, as long as it is kept, and its layout.
type Key = (usize, Surface);

/// A pointer.
#[derive(Clone, Debug)]
struct Pointer {
    shape: Option<(BufferId, Plane)>,
    place: Position,
}

#[derive(Debug)]
struct State {
    primary: [Option<(BufferId, Plane)>; HEADS_MAX],
    pointers: [Option<Pointer>; HEADS_MAX],
    /// Counts the shapes of pointers.
    shapes: u32,
    exports: Exports<Key, Arc<PictureMemory>>,
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
        let same = self.parts.iter_mut().find(|(known, _)| *known == head);
        match same {
            Some((_, known)) => *known = known.hull(part),
            None => self.planes = true,
        }
    }
}

impl Hub {
    pub(super) fn new(heads: u8, mode: (u32, u32)) -> io::Result<Arc<Self>> {
        let mut modes = [(0, 0); HEADS_MAX];
        modes[..usize::from(heads)].fill(mode);
        Ok(Arc::new(Self {
            heads,
            config_changes: Arc::new(EventFd::new()?),
            state: Mutex::new(State {
                primary: [None; HEADS_MAX],
                pointers: [const { None }; HEADS_MAX],
                shapes: 0,
                exports: Exports::new(),
                loss: Some(Loss::Off),
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

    /// What is shown now, or why nothing is.
    pub(super) fn planes(&self) -> (Option<Loss>, Vec<Told>) {
        let state = lock(&self.state);
        let mut planes = Vec::new();
        for (head, (primary, pointer)) in (0..).zip(state.primary.iter().zip(&state.pointers)) {
            let Some((id, plane)) = *primary else {
                continue;
            };
            planes.push(Told {
                head,
                kind: Kind::Primary,
                id: id.0,
                content: 0,
                plane,
            });
            if let Some(Pointer {
                shape: Some((id, plane)),
                place,
            }) = pointer
            {
                planes.push(Told {
                    head,
                    kind: Kind::Cursor,
                    id: id.0,
                    content: state.shapes,
                    plane: Plane {
                        position: *place,
                        ..*plane
                    },
                });
            }
        }
        let loss = state.loss.filter(|_| planes.is_empty());
        (loss, planes)
    }

    /// What `make` makes of the memory of an id.
    pub(super) fn get<F>(
        &self,
        id: u32,
        make: impl FnOnce(&PictureMemory) -> io::Result<F>,
    ) -> Result<F, ExportError<io::Error>> {
        let kept = lock(&self.state).exports.get(BufferId(id), |memory| {
            Ok::<_, io::Error>(Arc::clone(memory))
        })?;
        make(&kept).map_err(ExportError::Make)
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
        state.exports.retire();
        state.config.events = 0;
        state.loss = Some(loss);
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
                state.exports.forget(|kept| Arc::ptr_eq(kept, &memory));
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
        let plane = Plane {
            surface,
            size: picture.memory.len,
            position: Position::default(),
            hot_spot: hot.and_then(|(x, y)| HotSpot::from_wire(x, y, part.width, part.height)),
        };
        // An address is not used twice while its memory is among the exports.
        let key = (Arc::as_ptr(&picture.memory).addr(), surface);
        let id = self.exports.query(key, || Arc::clone(&picture.memory));
        Some((id.ok()?, plane))
    }
}

/// The kernel's name for a format. What a screen shows is opaque, whatever its pixels say.
fn fourcc(format: Format, alpha: bool) -> FourCc {
    match (format, alpha) {
        (Format::B8G8R8A8, true) => FourCc::ARGB8888,
        (Format::B8G8R8A8 | Format::B8G8R8X8, _) => FourCc::XRGB8888,
        (Format::A8R8G8B8, true) => FourCc::BGRA8888,
        (Format::A8R8G8B8 | Format::X8R8G8B8, _) => FourCc::BGRX8888,
        (Format::R8G8B8A8, true) => FourCc::ABGR8888,
        (Format::R8G8B8A8 | Format::R8G8B8X8, _) => FourCc::XBGR8888,
        (Format::A8B8G8R8, true) => FourCc::RGBA8888,
        (Format::A8B8G8R8 | Format::X8B8G8R8, _) => FourCc::RGBX8888,
    }
}

/// The GPU as a source, for those in this process who look.
#[derive(Debug)]
pub(super) struct OwnSource {
    hub: Arc<Hub>,
    watcher: Arc<Watcher>,
}

impl OwnSource {
    pub(super) fn new(hub: &Arc<Hub>) -> io::Result<Self> {
        Ok(Self {
            watcher: hub.watch()?,
            hub: Arc::clone(hub),
        })
    }
}

impl Source for OwnSource {
    fn name(&self) -> String {
        "gpu".into()
    }

    fn planes(&mut self) -> Result<Vec<Shown>, SourceError> {
        match self.hub.planes() {
            (Some(loss), _) => Err(SourceError::Lost(loss)),
            (None, planes) => Ok(planes.into_iter().map(Shown::from).collect()),
        }
    }

    fn memory(&mut self, shown: &Shown) -> Result<Memory, SourceError> {
        let id = shown.id;
        let fd: Result<OwnedFd, _> = self.hub.get(id, PictureMemory::to_look_at);
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
        if news.planes {
            return Change::Compare;
        }
        match news.parts.is_empty() {
            true => Change::None,
            false => Change::Parts(news.parts.into()),
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watcher.fd())
    }

    fn resize(&mut self, head: u8, width: u32, height: u32) -> Result<(), SourceError> {
        match self.hub.set_mode(head, (width, height)) {
            true => Ok(()),
            false => Err(SourceError::Unsupported("the front end has the say".into())),
        }
    }
}
