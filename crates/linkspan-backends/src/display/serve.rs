//! The socket on which viewers look at a GPU: one thread for all of them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use linkspan_display::link::{Got, HEADER, LinkError, Message, Resized, VERSION};
use linkspan_display::{ExportError, Loss, RECTANGLES_MAX};
use linkspan_engine::LogLimit;
use linkspan_sys::poll::{Direction, Interest, Ready, Wake, wait_for};
use linkspan_sys::thread::spawn;
use linkspan_sys::{Epoll, EventFd, Listener, Stream, reaper};

use super::gpu::GpuDevice;
use super::hub::{Hub, News, Now, Watcher};
use super::pci::PciDisplay;
use crate::door::Door;

/// Viewers at a time.
const VIEWERS_MAX: usize = 32;
/// When a viewer that does not read is looked at again.
const STALL: Duration = Duration::from_millis(20);
/// The system counts time in these.
const TICK: Duration = Duration::from_millis(1);
/// Pieces of messages of one viewer in a row.
const TURN: usize = 16;

const CANCEL: u64 = 0;
const LISTENER: u64 = 1;
const FIRST: u64 = 2;

/// The thread that serves viewers; it ends with this.
#[derive(Debug)]
pub struct DisplayServer {
    cancel: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// Why a viewer is sent away.
#[derive(Debug, thiserror::Error)]
enum ViewerError {
    #[error("it left")]
    Closed,
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("it says what only a GPU says")]
    NotIts,
    #[error("it sends descriptors")]
    Descriptors,
    #[error(transparent)]
    Socket(#[from] io::Error),
}

struct Viewer {
    stream: Stream,
    watcher: Arc<Watcher>,
    bytes: Vec<u8>,
    news: News,
    /// Whether it is heard: not while it leaves its answers unread.
    heard: bool,
}

struct Server {
    epoll: Epoll,
    door: Door<Listener>,
    hub: Arc<Hub>,
    viewers: BTreeMap<u64, Viewer>,
    next: u64,
    sent_away: LogLimit,
}

impl DisplayServer {
    /// Serves the viewers of a GPU at this socket.
    ///
    /// # Errors
    /// A thread or descriptor cannot be had; nothing is left behind.
    pub fn start(device: &GpuDevice, listener: Listener) -> io::Result<Self> {
        Self::of(device.hub(), listener)
    }

    /// Serves the viewers of a PCI display at this socket.
    ///
    /// # Errors
    /// A thread or descriptor cannot be had; nothing is left behind.
    pub fn of_display(device: &PciDisplay, listener: Listener) -> io::Result<Self> {
        Self::of(device.hub(), listener)
    }

    fn of(hub: &Arc<Hub>, listener: Listener) -> io::Result<Self> {
        let cancel = Arc::new(EventFd::new()?);
        let epoll = Epoll::new()?;
        epoll.add(&*cancel, CANCEL, Interest::READ)?;
        let door = Door::new(listener, LISTENER, &epoll)?;
        let mut server = Server {
            epoll,
            door,
            hub: Arc::clone(hub),
            viewers: BTreeMap::new(),
            next: FIRST,
            sent_away: LogLimit::default(),
        };
        let kept = Arc::clone(&cancel);
        let thread = spawn("gpu-viewers", move || {
            if let Err(error) = server.run() {
                tracing::error!("viewers are served no more: {error}");
            }
            drop(kept);
        })?;
        Ok(Self {
            cancel,
            thread: Some(thread),
        })
    }
}

impl Drop for DisplayServer {
    fn drop(&mut self) {
        let _ = self.cancel.signal();
        if let Some(thread) = self.thread.take() {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Server {
    fn run(&mut self) -> io::Result<()> {
        let mut ready = Ready::with_capacity(16);
        loop {
            self.epoll.wait(&mut ready, self.pause())?;
            for event in ready.iter() {
                match event.token {
                    CANCEL => return Ok(()),
                    LISTENER => self.accept(),
                    // Even tokens are sockets, odd ones the news for them.
                    token if token % 2 == 0 => self.hear(token),
                    _ => {}
                }
            }
            self.door.open(&self.epoll, Instant::now());
            let tokens: Vec<u64> = self.viewers.keys().copied().collect();
            for token in tokens {
                self.tell(token);
            }
        }
    }

    fn pause(&self) -> Option<Duration> {
        let stalled = |viewer: &Viewer| !viewer.heard || !viewer.news.is_empty();
        let stalled = self.viewers.values().any(stalled).then_some(STALL);
        let rest = self.door.due();
        // Not before it: the system counts whole milliseconds.
        let rest = rest.map(|due| due.saturating_duration_since(Instant::now()) + TICK);
        stalled.into_iter().chain(rest).min()
    }

    fn accept(&mut self) {
        let Some(stream) = self.door.accept(&self.epoll, Listener::accept) else {
            return;
        };
        if self.viewers.len() >= VIEWERS_MAX {
            if let Some(left_out) = self.sent_away.allow() {
                tracing::warn!(left_out, "a viewer more than {VIEWERS_MAX} is sent away");
            }
            return;
        }
        let Ok(watcher) = self.hub.watch() else {
            return;
        };
        let mut hello = Message::Hello { version: VERSION }.to_bytes();
        if self.hub.is_silent() {
            hello.extend(Message::Silent.to_bytes());
        }
        let token = self.next;
        let said = stream.send(&hello, &[], Instant::now()).is_ok()
            && self.epoll.add(&stream, token, Interest::READ).is_ok()
            && self
                .epoll
                .add(watcher.fd(), token + 1, Interest::READ.edge())
                .is_ok();
        if said {
            self.next += 2;
            let viewer = Viewer {
                stream,
                watcher,
                bytes: Vec::new(),
                news: News::default(),
                heard: true,
            };
            self.viewers.insert(token, viewer);
        }
    }

    fn hear(&mut self, token: u64) {
        let Some(viewer) = self.viewers.get_mut(&token) else {
            return;
        };
        let heard = viewer.hear(&self.hub);
        if !viewer.heard {
            let _ = self.epoll.modify(&viewer.stream, token, Interest::NONE);
        }
        if let Err(error) = heard {
            self.remove(token, &error);
        }
    }

    fn tell(&mut self, token: u64) {
        let Some(viewer) = self.viewers.get_mut(&token) else {
            return;
        };
        let mut told = viewer.tell(&self.hub);
        if told.is_ok() && !viewer.heard {
            match viewer.has_room() {
                Ok(true) => {
                    viewer.heard = true;
                    let _ = self.epoll.modify(&viewer.stream, token, Interest::READ);
                }
                Ok(false) => {}
                Err(error) => told = Err(error.into()),
            }
        }
        if let Err(error) = told {
            self.remove(token, &error);
        }
    }

    fn remove(&mut self, token: u64, why: &ViewerError) {
        match why {
            ViewerError::Closed => tracing::debug!("a viewer left"),
            why => {
                if let Some(left_out) = self.sent_away.allow() {
                    tracing::info!(left_out, "a viewer is sent away: {why}");
                }
            }
        }
        if let Some(viewer) = self.viewers.remove(&token) {
            let _ = self.epoll.delete(&viewer.stream);
            let _ = self.epoll.delete(viewer.watcher.fd());
        }
    }
}

impl Viewer {
    /// Whether a message fits into the socket, which has room for several then.
    fn has_room(&self) -> io::Result<bool> {
        let room = wait_for(
            self.stream.as_fd(),
            Direction::Write,
            None,
            Some(Instant::now()),
        )?;
        Ok(room == Wake::Ready)
    }

    fn say(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<(), ViewerError> {
        let sent = self.stream.send(&message.to_bytes(), fds, Instant::now());
        sent.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ViewerError::Closed,
            _ => error.into(),
        })
    }

    /// Carries out what it asks. One that does not read its answers is not heard.
    fn hear(&mut self, hub: &Hub) -> Result<(), ViewerError> {
        for _ in 0..TURN {
            if !self.has_room()? {
                self.heard = false;
                return Ok(());
            }
            let mut buffer = [0; 256];
            let room = (self.wanted()? - self.bytes.len()).min(buffer.len());
            let mut fds: Vec<OwnedFd> = Vec::new();
            let received = match self.stream.receive(&mut buffer[..room], &mut fds, 0) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(ViewerError::Closed);
                }
                Err(error) => return Err(error.into()),
            };
            fds.into_iter().for_each(reaper::dispose);
            if received.surplus > 0 {
                return Err(ViewerError::Descriptors);
            }
            if received.bytes == 0 {
                return Err(ViewerError::Closed);
            }
            self.bytes.extend_from_slice(&buffer[..received.bytes]);
            // At once: the socket does not tell of it again.
            if let Some((header, body)) = self.bytes.split_first_chunk::<HEADER>()
                && self.bytes.len() == self.wanted()?
            {
                let message = Message::parse(*header, body)?;
                self.bytes.clear();
                self.carry_out(&message, hub)?;
            }
        }
        Ok(())
    }

    /// Bytes of the message that has begun, as far as that is known.
    fn wanted(&self) -> Result<usize, LinkError> {
        match self.bytes.first_chunk::<HEADER>() {
            None => Ok(HEADER),
            Some(header) => Ok(HEADER + Message::body_len(*header)?),
        }
    }

    fn carry_out(&self, message: &Message, hub: &Hub) -> Result<(), ViewerError> {
        match *message {
            Message::Get { id, dma_buf } => {
                let made = hub.get(id, |backing| backing.give(dma_buf));
                let (got, fd) = match made {
                    Ok((got, fd)) => (got, Some(fd)),
                    Err(ExportError::Unknown { .. }) => (Got::Unknown, None),
                    Err(ExportError::Retired { .. }) => (Got::Retired, None),
                    Err(_) => (Got::Failed, None),
                };
                // Nothing can fail after it was made but the connection itself.
                let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
                self.say(&Message::Buffer { id, got }, &fds)
            }
            Message::Resize {
                head,
                width,
                height,
            } => {
                let resized = match hub.takes(head, (width, height)) {
                    false => Resized::Invalid,
                    true if hub.set_mode(head, (width, height)) => Resized::Told,
                    true => Resized::NotOurs,
                };
                self.say(&Message::Size { resized }, &[])
            }
            _ => Err(ViewerError::NotIts),
        }
    }

    /// Tells what is new, as far as there is room.
    fn tell(&mut self, hub: &Hub) -> Result<(), ViewerError> {
        self.news.add(self.watcher.take());
        if self.news.is_empty() || !self.has_room()? {
            return Ok(());
        }
        let news = std::mem::take(&mut self.news);
        if news.planes {
            let Now {
                loss,
                planes,
                refused,
            } = hub.now();
            let nothing = planes.is_empty() && refused.is_empty();
            let loss = loss.or(nothing.then_some(Loss::Off));
            let told = Message::Planes {
                loss,
                planes,
                refused,
            };
            self.say(&told, &[])?;
        }
        for head in 0..hub.heads() {
            let of_head = news.parts.iter().filter(|(known, _)| *known == head);
            let parts: Vec<_> = of_head
                .map(|(_, part)| *part)
                .take(RECTANGLES_MAX)
                .collect();
            if !parts.is_empty() {
                self.say(&Message::Damage { head, parts }, &[])?;
            }
        }
        Ok(())
    }
}
