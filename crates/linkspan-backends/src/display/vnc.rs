//! A VNC server for one screen: one thread, several viewers, each with damage of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use linkspan_display::rfb::{self, Event, Options, Security, SizeAnswer};
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::tcp::{Gather, TcpListener, TcpStream};

use super::pace::Pace;
use super::screen::{Screen, Update};
use super::source::SourceError;

/// Viewers at a time.
const VIEWERS_MAX: usize = 16;
/// How long a guest has to take a size that a viewer asked for.
const RESIZE_LIMIT: Duration = Duration::from_secs(2);
/// How long a client has to say what it is.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// Bytes that are read of a client in a row.
const TURN: usize = 64 << 10;

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
    /// Bytes of it that were not taken.
    pending: Vec<u8>,
    came: Instant,
    /// What it is watched for.
    interest: Interest,
}

/// A VNC server.
pub struct VncServer {
    epoll: Epoll,
    listener: TcpListener,
    screen: Screen,
    clients: BTreeMap<u64, Client>,
    next: u64,
    pace: Pace,
    /// Who waits for another size, and until when.
    asked: Option<(u64, Instant)>,
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
        epoll.add(&listener, LISTENER, Interest::READ)?;
        let wake = screen.source().wake_fd();
        if let Some(wake) = wake {
            epoll.add(wake, SOURCE, Interest::READ)?;
        }
        let pace = Pace::new(wake.is_some(), Instant::now());
        Ok(Self {
            epoll,
            listener,
            screen,
            clients: BTreeMap::new(),
            next: FIRST,
            pace,
            asked: None,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.address()
    }

    /// Serves until `cancel` becomes readable.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn run(&mut self, cancel: BorrowedFd<'_>) -> Result<(), ServeError> {
        self.epoll.add(cancel, CANCEL, Interest::READ)?;
        let mut ready = Ready::with_capacity(32);
        loop {
            self.watch_source()?;
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
            let due = self.pace.due().is_some_and(|due| due <= now);
            if due && !self.clients.is_empty() {
                let update = self.screen.look()?;
                self.pace.looked(now, !update.is_empty());
                self.spread(update);
            }
            self.expire(now);
            let tokens: Vec<u64> = self.clients.keys().copied().collect();
            for token in tokens {
                self.send(token);
            }
        }
    }

    /// A source that has told something is not watched until it was looked at.
    fn watch_source(&self) -> io::Result<()> {
        let Some(wake) = self.screen.source().wake_fd() else {
            return Ok(());
        };
        let interest = match self.pace.is_told() {
            true => Interest::NONE,
            false => Interest::READ,
        };
        self.epoll.modify(wake, SOURCE, interest)
    }

    fn pause(&self) -> Option<Duration> {
        // Nobody looks, so there is nothing to look at.
        let look = self.pace.due().filter(|_| !self.clients.is_empty());
        let fresh = self.clients.values();
        let fresh = fresh.filter(|client| !client.viewer.is_running());
        let hello = fresh.map(|client| client.came + HELLO_LIMIT).min();
        let asked = self.asked.map(|(_, until)| until);
        let first = look.into_iter().chain(hello).chain(asked).min()?;
        let left = first.saturating_duration_since(Instant::now());
        // Not before it: the system counts whole milliseconds.
        Some(left + Duration::from_micros(100))
    }

    fn accept(&mut self) {
        let Ok(stream) = self.listener.accept() else {
            return;
        };
        let peer = stream
            .peer()
            .map_or_else(|_| "?".into(), |it| it.to_string());
        let full = self.clients.len() >= VIEWERS_MAX;
        if full && self.clients.len() >= 2 * VIEWERS_MAX {
            return;
        }
        let security = match full {
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
                pending: Vec::new(),
                came: Instant::now(),
                interest: Interest::READ,
            };
            self.clients.insert(token, client);
        }
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
        // Keys and pointers are not for a screen that is only looked at.
        let Event::Resize { width, height } = event else {
            return;
        };
        let frame = self.screen.view().frame;
        let same = (frame.width(), frame.height()) == (width, height);
        let (head, busy) = (self.screen.head(), self.asked.is_some());
        let answer = if same {
            Some(SizeAnswer::Done)
        } else if busy {
            Some(SizeAnswer::NoResources)
        } else {
            match self.screen.source_mut().resize(head, width, height) {
                Ok(()) => None,
                Err(error) => {
                    tracing::info!("a viewer does not get {width}x{height}: {error}");
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

    /// Sends a viewer what it wants, as far as there is room.
    fn send(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        let sent = loop {
            if client.viewer.wants_update() {
                client.viewer.update(&self.screen.view());
            }
            if client.viewer.output().is_empty() {
                break Ok(false);
            }
            let mut gather = Gather::new();
            gather.push(client.viewer.output());
            match client.stream.write(&mut gather) {
                Ok(len) => client.viewer.sent(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(true),
                Err(error) => break Err(error),
            }
        };
        match sent {
            Ok(full) => {
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
                if !full && !client.pending.is_empty() {
                    self.hear(token);
                }
            }
            Err(error) => self.remove(token, &error.to_string()),
        }
    }
}

impl Client {
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
