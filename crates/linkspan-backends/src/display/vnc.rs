//! A VNC server for one screen: one thread, several viewers, each with damage of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use linkspan_display::rfb::{self, Event, Options, Security, SizeAnswer};
use linkspan_engine::LogLimit;
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::tcp::{Gather, TcpListener, TcpStream};

use super::input::{Input, Seat};
use super::pace::Pace;
use super::screen::{Screen, Update};
use super::source::SourceError;
use crate::door::Door;

/// Viewers at a time.
const VIEWERS_MAX: usize = 16;
/// Connections at a time that have not said what they are. The one that came first makes room.
const STRANGERS_MAX: usize = 16;
/// How long a guest has to take a size that a viewer asked for.
const RESIZE_LIMIT: Duration = Duration::from_secs(2);
/// How long a client has to say what it is.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// Bytes that are read of a client in a row.
const TURN: usize = 64 << 10;
/// How often in a row a client is sent all that there is for it, and heard again.
const ROUNDS: usize = 4;

const CANCEL: u64 = 0;
const LISTENER: u64 = 1;
const SOURCE: u64 = 2;
const FIRST: u64 = 3;

/// Why a server of viewers ends by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The source is gone for good.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The system failed in a way that no client can cause.
    #[error(transparent)]
    System(#[from] io::Error),
}

struct Client {
    stream: TcpStream,
    peer: String,
    viewer: rfb::Viewer,
    /// Where its keys and pointer go, if anywhere.
    seat: Option<Seat>,
    /// Bytes of it that were not taken.
    pending: Vec<u8>,
    came: Instant,
    /// What it is watched for.
    interest: Interest,
}

/// A VNC server.
pub struct VncServer {
    epoll: Epoll,
    door: Door<TcpListener>,
    screen: Screen,
    input: Option<Input>,
    clients: BTreeMap<u64, Client>,
    next: u64,
    pace: Pace,
    /// Who waits for another size, and until when.
    asked: Option<(u64, Instant)>,
    /// Somebody was heard who may want more than he was sent.
    more: bool,
    /// Sizes that were refused.
    refused: LogLimit,
}

impl std::fmt::Debug for VncServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VncServer")
            .field("screen", &self.screen)
            .field("clients", &self.clients.len())
            .finish_non_exhaustive()
    }
}

impl VncServer {
    /// A server for this screen.
    ///
    /// # Errors
    /// The system refused.
    pub fn new(listener: TcpListener, screen: Screen) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let door = Door::new(listener, LISTENER, &epoll)?;
        let pace = Pace::of(&screen, &epoll, SOURCE)?;
        Ok(Self {
            epoll,
            door,
            screen,
            input: None,
            clients: BTreeMap::new(),
            next: FIRST,
            pace,
            asked: None,
            more: false,
            refused: LogLimit::default(),
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
        self.door.listener().address()
    }

    /// Serves until `cancel` becomes readable.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn run(&mut self, cancel: BorrowedFd<'_>) -> Result<(), ServeError> {
        self.epoll.add(cancel, CANCEL, Interest::READ)?;
        let mut ready = Ready::with_capacity(32);
        loop {
            self.epoll.wait(&mut ready, self.pause())?;
            for event in ready.iter() {
                match event.token {
                    CANCEL => return Ok(()),
                    LISTENER => self.accept(),
                    SOURCE => self.pace.tell(),
                    token => self.hear(token),
                }
            }
            let now = Instant::now();
            if self.clients.is_empty() {
                self.pace.check(&mut self.screen, now)?;
            } else if let Some(update) = self.pace.look(&mut self.screen, now)? {
                self.spread(update);
            }
            self.door.open(&self.epoll, now);
            self.expire(now);
            self.more = false;
            let tokens: Vec<u64> = self.clients.keys().copied().collect();
            for token in tokens {
                self.send(token);
            }
        }
    }

    fn pause(&self) -> Option<Duration> {
        if self.more {
            return Some(Duration::ZERO);
        }
        // If nobody looks there is nothing to look at.
        let look = match self.clients.is_empty() {
            true => self.pace.check_due(&self.screen),
            false => self.pace.due(),
        };
        let fresh = self.clients.values();
        let fresh = fresh.filter(|client| !client.viewer.is_running());
        let hello = fresh.map(|client| client.came + HELLO_LIMIT).min();
        let asked = self.asked.map(|(_, until)| until);
        let all = look.into_iter().chain(hello).chain(asked);
        let first = all.chain(self.door.due()).min()?;
        let left = first.saturating_duration_since(Instant::now());
        // Not before it: the system counts whole milliseconds.
        Some(left + Duration::from_micros(100))
    }

    fn accept(&mut self) {
        let Some(stream) = self.door.accept(&self.epoll, TcpListener::accept) else {
            return;
        };
        let peer = stream
            .peer()
            .map_or_else(|_| "?".into(), |it| it.to_string());
        let strangers = self.clients.iter();
        let mut strangers = strangers.filter(|(_, client)| !client.viewer.is_running());
        let first = strangers.next().map(|(token, _)| *token);
        if let Some(first) = first
            && strangers.count() + 1 >= STRANGERS_MAX
        {
            self.remove(first, "others come, and it says nothing");
        }
        let security = match self.running() >= VIEWERS_MAX {
            true => Security::Refused(format!("{VIEWERS_MAX} viewers look already")),
            false => Security::None,
        };
        let options = Options {
            name: self.screen.source().name(),
            security,
            resizable: true,
        };
        let frame = self.screen.view().frame;
        let mut viewer = rfb::Viewer::new(&options, frame.width(), frame.height());
        viewer.pointed(self.screen.cursor(), true);
        let token = self.next;
        self.next += 1;
        if self.epoll.add(&stream, token, Interest::READ).is_ok() {
            tracing::debug!(peer, "a viewer connected");
            let client = Client {
                stream,
                peer,
                viewer,
                seat: self.input.as_ref().map(Input::seat),
                pending: Vec::new(),
                came: Instant::now(),
                interest: Interest::READ,
            };
            self.clients.insert(token, client);
        }
    }

    /// How many look.
    fn running(&self) -> usize {
        let clients = self.clients.values();
        clients.filter(|client| client.viewer.is_running()).count()
    }

    fn remove(&mut self, token: u64, why: &str) {
        if let Some(client) = self.clients.remove(&token) {
            let _ = self.epoll.delete(&client.stream);
            tracing::debug!(peer = client.peer, "a viewer left: {why}");
        }
        if self.asked.is_some_and(|(asker, _)| asker == token) {
            self.asked = None;
        }
    }

    fn hear(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        let mut events = Vec::new();
        let heard = client.hear(&mut events);
        for event in events {
            self.event(token, event);
        }
        if let Err(why) = heard {
            if let Some(client) = self.clients.get_mut(&token) {
                client.pending.clear();
            }
            // A last message, if there is room for it.
            self.send(token);
            self.remove(token, &why);
        }
    }

    fn event(&mut self, token: u64, event: Event) {
        let frame = self.screen.view().frame;
        let (width, height) = match event {
            Event::Resize { width, height } => (width, height),
            Event::Joined { .. } => {
                // Others may have been quicker since it came.
                if self.running() > VIEWERS_MAX {
                    self.remove(token, "too many look already");
                }
                return;
            }
            Event::Key { .. } | Event::Pointer { .. } => {
                let client = self.clients.get_mut(&token);
                // Without a seat it only looks.
                if let Some(seat) = client.and_then(|client| client.seat.as_mut()) {
                    feel(seat, event, (frame.width(), frame.height()));
                    self.pace.expect(Instant::now());
                }
                return;
            }
        };
        let same = (frame.width(), frame.height()) == (width, height);
        let (head, busy) = (self.screen.head(), self.asked.is_some());
        let answer = if same {
            Some(SizeAnswer::Done)
        } else if busy {
            Some(SizeAnswer::NoResources)
        } else {
            let resized = self.screen.source_mut().resize(head, width, height);
            // What was said before the answer is not told any more.
            if self.screen.source().has_news() {
                self.pace.tell();
            }
            match resized {
                Ok(()) => None,
                // Whoever has the say is asked.
                Err(SourceError::Unsupported(_))
                    if let Some(input) = &self.input
                        && input.resize(head, width, height) =>
                {
                    None
                }
                Err(error) => {
                    // It may ask as often as it likes.
                    if let Some(left_out) = self.refused.allow() {
                        tracing::info!(left_out, "a viewer does not get {width}x{height}: {error}");
                    }
                    Some(SizeAnswer::Prohibited)
                }
            }
        };
        match answer {
            Some(answer) => self.answer(token, answer),
            None => self.asked = Some((token, Instant::now() + RESIZE_LIMIT)),
        }
    }

    fn answer(&mut self, token: u64, answer: SizeAnswer) {
        if let Some(client) = self.clients.get_mut(&token) {
            client.viewer.answer_size(answer);
        }
    }

    /// Tells all viewers what a look brought.
    fn spread(&mut self, update: Update) {
        if update.is_empty() {
            return;
        }
        let (frame, cursor) = (self.screen.view().frame, self.screen.cursor());
        for client in self.clients.values_mut() {
            if update.resized {
                client.viewer.resized(frame.width(), frame.height());
            } else if update.damaged {
                client.viewer.damaged(self.screen.damage());
            }
            if update.pointed || update.reshaped || update.resized {
                client.viewer.pointed(cursor, update.reshaped);
            }
        }
        if update.resized
            && let Some((token, _)) = self.asked.take()
        {
            self.answer(token, SizeAnswer::Done);
        }
    }

    fn expire(&mut self, now: Instant) {
        if let Some((token, until)) = self.asked
            && until <= now
        {
            self.asked = None;
            self.answer(token, SizeAnswer::Prohibited);
        }
        let late =
            |client: &Client| !client.viewer.is_running() && client.came + HELLO_LIMIT <= now;
        let late = self.clients.iter().filter(|(_, client)| late(client));
        let late: Vec<u64> = late.map(|(token, _)| *token).collect();
        for token in late {
            self.remove(token, "it says nothing");
        }
    }

    /// Sends a viewer what it wants, as far as there is room. What it said while there was
    /// none is carried out after that, and may want to be sent something too.
    fn send(&mut self, token: u64) {
        for _ in 0..ROUNDS {
            if !self.empty(token) {
                return;
            }
            self.hear(token);
        }
        // The others come first.
        self.more = true;
    }

    /// Sends a viewer what there is for it; whether all is gone, and it has said something
    /// that was not carried out.
    fn empty(&mut self, token: u64) -> bool {
        let Some(client) = self.clients.get_mut(&token) else {
            return false;
        };
        let full = match client.empty(&self.screen) {
            Ok(full) => full,
            Err(error) => {
                self.remove(token, &error.to_string());
                return false;
            }
        };
        // One that does not take its answers is not heard.
        let interest = match (full, client.pending.is_empty()) {
            (false, _) => Interest::READ,
            (true, true) => Interest::READ_WRITE,
            (true, false) => Interest::WRITE,
        };
        if interest != client.interest {
            let _ = self.epoll.modify(&client.stream, token, interest);
            client.interest = interest;
        }
        !full && !client.pending.is_empty()
    }
}

/// Passes a key or the pointer on to the guest, whose screen has this size.
fn feel(seat: &mut Seat, event: Event, size: (u32, u32)) {
    match event {
        Event::Key { down, keysym } => seat.keysym(down, keysym),
        Event::Pointer { buttons, x, y } => seat.pointer(buttons.into(), (x, y), size),
        Event::Joined { .. } | Event::Resize { .. } => {}
    }
}

impl Client {
    /// Writes what it wants; whether there is no room for more.
    fn empty(&mut self, screen: &Screen) -> io::Result<bool> {
        loop {
            if self.viewer.wants_update() {
                self.viewer.update(&screen.view());
            }
            if self.viewer.output().is_empty() {
                return Ok(false);
            }
            let mut gather = Gather::new();
            gather.push(self.viewer.output());
            match self.stream.write(&mut gather) {
                Ok(len) => self.viewer.sent(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes in what it says; an error is its end.
    fn hear(&mut self, events: &mut Vec<Event>) -> Result<(), String> {
        let mut buffer = [0; 4096];
        for _ in 0..TURN / buffer.len() {
            if !self.pending.is_empty() {
                let taken = self.viewer.input(&self.pending, events);
                let taken = taken.map_err(|error| error.to_string())?;
                self.pending.drain(..taken);
                if !self.pending.is_empty() {
                    return Ok(());
                }
            }
            match self.stream.read_bytes(&mut buffer) {
                Ok(0) => return Err("it closed the connection".into()),
                Ok(len) => self.pending.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }
}
