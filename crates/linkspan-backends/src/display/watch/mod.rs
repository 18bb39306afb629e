//! A screen on a web page: one thread, several viewers, each with damage of its own, which it
//! gets as PNG files over a WebSocket.
//!
//! A viewer has two messages on their way at most and says of each that it was seen, so one
//! that is slow gets the newest picture later, and nothing piles up for it. Every message is
//! bounded: what is too large for one is the rest for the next.
//!
//! Where there is a guest's keyboard and pointer, a viewer has them too ([`Said`]).
//!
//! A server has a door of its own, or viewers who were let in elsewhere ([`Usher`]).

mod entrance;
mod said;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use linkspan_display::{RECTANGLES_MAX, Rectangle, TILE, Tiles};
use linkspan_mem::fault;
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::tcp::TcpListener;
use serde_json::json;

use super::input::{Input, Seat};
use super::pace::Pace;
use super::picture::png;
use super::screen::{Screen, Update};
use super::vnc::ServeError;
use crate::web::{Event, Guest, Message, Page, Site, Web, new_token};

pub use entrance::{Entrance, Usher};
pub use said::Said;

/// Messages of a viewer that it has not seen.
const UNSEEN_MAX: u8 = 2;
/// Pixels of one message, but for at least a row of tiles.
const PIXELS_MAX: usize = 1 << 20;
/// How often a viewer hears that all is well, so that it knows within a second when not.
const BEAT: Duration = Duration::from_millis(300);

/// How long a server whose viewers were let in elsewhere waits for the next one.
const LINGER: Duration = Duration::from_secs(5);

const CANCEL: u64 = 0;
const WEB: u64 = 1;
const SOURCE: u64 = 2;
const ENTRANCE: u64 = 3;

/// The script that shows a screen, and what it looks like: for pages that have one.
pub const SCREEN_SCRIPT: Page = Page {
    path: "/screen.js",
    kind: "text/javascript; charset=utf-8",
    body: include_bytes!("screen.js"),
};

/// See [`SCREEN_SCRIPT`].
pub const SCREEN_STYLE: Page = Page {
    path: "/screen.css",
    kind: "text/css; charset=utf-8",
    body: include_bytes!("screen.css"),
};

const SITE: Site = Site {
    pages: &[
        Page {
            path: "/",
            kind: "text/html; charset=utf-8",
            body: include_bytes!("page.html"),
        },
        Page {
            path: "/page.css",
            kind: "text/css; charset=utf-8",
            body: include_bytes!("page.css"),
        },
        Page {
            path: "/page.js",
            kind: "text/javascript; charset=utf-8",
            body: include_bytes!("page.js"),
        },
        SCREEN_SCRIPT,
        SCREEN_STYLE,
    ],
    sockets: &["/screen"],
};

#[derive(Debug)]
struct Viewer {
    /// What it has not been sent.
    damage: Tiles,
    /// It has not been told the size, or why there is no picture.
    news: bool,
    /// Messages that it has not seen.
    unseen: u8,
    /// When it was told something last.
    told: Instant,
    /// Where its keys and pointer go, if anywhere.
    seat: Option<Seat>,
}

/// A server of a page with a screen.
#[derive(Debug)]
pub struct WatchServer {
    epoll: Epoll,
    web: Web,
    entrance: Option<Entrance>,
    screen: Screen,
    input: Option<Input>,
    viewers: BTreeMap<u64, Viewer>,
    /// When somebody looked last.
    looked_at: Instant,
    pace: Pace,
    /// Where the pointer was drawn.
    pointer: Rectangle,
}

impl WatchServer {
    /// A server for this screen, with a new token.
    ///
    /// # Errors
    /// The system refused.
    pub fn new(listener: TcpListener, screen: Screen) -> io::Result<Self> {
        Self::with(Web::new(listener, SITE, new_token()?)?, None, screen)
    }

    /// A server for those who come in here.
    ///
    /// # Errors
    /// The system refused.
    pub fn behind(entrance: Entrance, screen: Screen) -> io::Result<Self> {
        Self::with(Web::without_door(SITE)?, Some(entrance), screen)
    }

    fn with(web: Web, entrance: Option<Entrance>, screen: Screen) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(&web, WEB, Interest::READ)?;
        if let Some(entrance) = &entrance {
            entrance.watch(&epoll, ENTRANCE)?;
        }
        let pace = Pace::of(&screen, &epoll, SOURCE)?;
        Ok(Self {
            epoll,
            web,
            entrance,
            screen,
            input: None,
            viewers: BTreeMap::new(),
            looked_at: Instant::now(),
            pace,
            pointer: Rectangle::default(),
        })
    }

    /// Passes keys and the pointer of viewers that come from now on to a guest.
    pub fn set_input(&mut self, input: Input) {
        self.input = Some(input);
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.web.address()
    }

    /// What who looks has to know: it goes behind the # of the page's address.
    #[must_use]
    pub fn token(&self) -> &str {
        self.web.token()
    }

    /// Serves until `cancel` becomes readable; who has no door of its own, also until nobody
    /// has looked for a while.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn run(&mut self, cancel: BorrowedFd<'_>) -> Result<(), ServeError> {
        self.epoll.add(cancel, CANCEL, Interest::READ)?;
        let served = self.serve();
        match &served {
            Ok(()) => self.web.farewell("linkspan was stopped"),
            Err(error) => {
                self.lost(&error.to_string());
                self.web.farewell(&error.to_string());
            }
        }
        served
    }

    fn serve(&mut self) -> Result<(), ServeError> {
        let mut ready = Ready::with_capacity(8);
        let mut events = Vec::new();
        loop {
            self.epoll.wait(&mut ready, self.pause())?;
            for event in ready.iter() {
                match event.token {
                    CANCEL => return Ok(()),
                    SOURCE => self.pace.tell(),
                    ENTRANCE => {
                        let come = self.entrance.as_ref().map(Entrance::come);
                        come.into_iter().flatten().for_each(|it| self.take_in(it));
                    }
                    _ => {}
                }
            }
            self.web.turn(&mut ready, &mut events)?;
            for event in events.drain(..) {
                self.event(event);
            }
            let now = Instant::now();
            if !self.viewers.is_empty() {
                self.looked_at = now;
            } else if self.entrance.is_some() && self.looked_at + LINGER <= now {
                return Ok(());
            }
            if self.viewers.is_empty() {
                self.pace.check(&mut self.screen, now)?;
            } else if let Some(update) = self.pace.look(&mut self.screen, now)? {
                self.spread(update);
            }
            for (id, viewer) in &mut self.viewers {
                show(&mut self.web, *id, viewer, &self.screen, now);
            }
        }
    }

    fn pause(&self) -> Option<Duration> {
        // If nobody looks there is nothing to look at.
        let look = match self.viewers.is_empty() {
            true => self.pace.check_due(&self.screen),
            false => self.pace.due(),
        };
        let idle = self.viewers.values().filter(|viewer| viewer.unseen == 0);
        let beat = idle.map(|viewer| viewer.told + BEAT).min();
        let waits = self.entrance.is_some() && self.viewers.is_empty();
        let end = waits.then(|| self.looked_at + LINGER);
        let due = look.into_iter().chain(beat).chain(self.web.due());
        let first = due.chain(end).min()?;
        let left = first.saturating_duration_since(Instant::now());
        // Not before it: the system counts whole milliseconds.
        Some(left + Duration::from_micros(100))
    }

    fn take_in(&mut self, guest: Guest) {
        if let Some(id) = self.web.take_in(guest) {
            self.welcome(id);
        }
    }

    fn welcome(&mut self, id: u64) {
        tracing::debug!(id, "a viewer connected");
        let viewer = Viewer {
            damage: whole(&self.screen),
            news: true,
            unseen: 0,
            told: Instant::now(),
            seat: self.input.as_ref().map(Input::seat),
        };
        self.viewers.insert(id, viewer);
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Opened { id, .. } => self.welcome(id),
            Event::Said { id, text } => {
                let frame = self.screen.view().frame;
                let size = (frame.width(), frame.height());
                let viewer = self.viewers.get_mut(&id);
                let said = Said::parse(&text);
                if !viewer.is_some_and(|viewer| viewer.hear(said, size)) {
                    self.web.close(id, "this is not what a page of ours says");
                } else if said != Some(Said::Seen) {
                    self.pace.expect(Instant::now());
                }
            }
            Event::Left { id } => {
                tracing::debug!(id, "a viewer left");
                self.viewers.remove(&id);
            }
        }
    }

    /// Tells all viewers what a look brought.
    fn spread(&mut self, update: Update) {
        let area = self.screen.view().frame.area();
        let before = std::mem::take(&mut self.pointer);
        if let Some((cursor, place)) = self.screen.cursor() {
            self.pointer = cursor.covers(place, area);
        }
        for viewer in self.viewers.values_mut() {
            if update.resized {
                viewer.damage = whole(&self.screen);
                viewer.news = true;
                continue;
            }
            if update.damaged {
                viewer.damage.unite(self.screen.damage());
            }
            if update.pointed || update.reshaped {
                viewer.damage.mark(before);
                viewer.damage.mark(self.pointer);
            }
        }
    }

    /// The source is gone for good, and that is the last thing that viewers hear.
    fn lost(&mut self, why: &str) {
        for id in self.viewers.keys() {
            self.web.send(*id, state(&self.screen, Some(why), false));
        }
    }
}

impl Viewer {
    /// Carries out what it says, on a screen of this size; whether a page of ours says that
    /// now. It was told whether there are keys.
    fn hear(&mut self, said: Option<Said<'_>>, size: (u32, u32)) -> bool {
        match (said, &mut self.seat) {
            (Some(Said::Seen), _) if self.unseen > 0 => self.unseen -= 1,
            (Some(Said::Key { down, code }), Some(seat)) => seat.code(down, code),
            (Some(Said::Pointer { place, buttons }), Some(seat)) => {
                seat.pointer(buttons, (place.0.into(), place.1.into()), size);
            }
            (Some(Said::Free), Some(seat)) => seat.let_go(),
            _ => return false,
        }
        true
    }
}

/// All of a picture, or nothing where there is none.
fn whole(screen: &Screen) -> Tiles {
    let Some(scene) = screen.scene() else {
        return Tiles::new(0, 0);
    };
    let mut tiles = Tiles::new(scene.frame.width(), scene.frame.height());
    tiles.fill();
    tiles
}

/// Sends a viewer what it wants, as far as it has seen what was sent.
fn show(web: &mut Web, id: u64, viewer: &mut Viewer, screen: &Screen, now: Instant) {
    while viewer.unseen < UNSEEN_MAX {
        let message = if std::mem::take(&mut viewer.news) {
            let why = screen.no_signal().map(ToString::to_string);
            state(screen, why.as_deref(), viewer.seat.is_some())
        } else if !viewer.damage.is_empty() {
            match update(screen, &mut viewer.damage) {
                Ok(update) => Message::binary(update),
                Err(error) => {
                    web.close(id, &error.to_string());
                    return;
                }
            }
        } else {
            break;
        };
        viewer.unseen += 1;
        viewer.told = now;
        web.send(id, message);
    }
    if viewer.unseen == 0 && viewer.told + BEAT <= now {
        viewer.told = now;
        web.send(id, Message::text("{}"));
    }
}

/// The size, why there is no picture if there is none, and whether keys go anywhere.
fn state(screen: &Screen, why: Option<&str>, keys: bool) -> Message {
    let frame = screen.view().frame;
    let (width, height) = (frame.width(), frame.height());
    let name = screen.source().name();
    let state =
        json!({ "name": name, "width": width, "height": height, "lost": why, "keys": keys });
    Message::text(state.to_string())
}

/// The first parts of the damage, which are forgotten there: of each its place, the length of
/// a PNG file, and that. Numbers are little-endian, of 16 and 32 bits.
fn update(screen: &Screen, damage: &mut Tiles) -> io::Result<Vec<u8>> {
    let scene = screen.view();
    let mut message = Vec::new();
    let mut left = PIXELS_MAX;
    for mut part in damage.rectangles(RECTANGLES_MAX) {
        let rows = left / part.width.max(1) as usize / TILE * TILE;
        let rows = if message.is_empty() {
            rows.max(TILE)
        } else {
            rows
        };
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        part.height = part.height.min(rows);
        if part.is_empty() {
            break;
        }
        let count = part.width as usize * part.height as usize;
        let mut pixels = fault::try_with_capacity(count).map_err(io::Error::other)?;
        for y in part.y..part.bottom() {
            scene.append(y, part.x, part.width, &mut pixels);
        }
        for side in [part.x, part.y] {
            let side = u16::try_from(side).map_err(io::Error::other)?;
            message.extend(side.to_le_bytes());
        }
        let start = message.len();
        message.extend([0; 4]);
        png(part.width, part.height, &pixels, false, true, &mut message)?;
        let len = u32::try_from(message.len() - start - 4).map_err(io::Error::other)?;
        message[start..start + 4].copy_from_slice(&len.to_le_bytes());
        damage.forget(part);
        left = left.saturating_sub(count);
    }
    Ok(message)
}
