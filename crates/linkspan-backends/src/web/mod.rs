//! Pages for people at this machine, and the WebSockets that feed them: a small server that
//! whoever has something to show puts into its own loop, without a thread of its own.
//!
//! Pages are the same for all and hold no secret. What is shown comes over a WebSocket, and
//! its first message has to be the token, which pages have from behind the # of their
//! address: browsers do not send that, so it is in no log and in no request. Requests for a
//! name that leads here and pages of other servers are refused ([`http`]).
//!
//! Who says nothing, or asks forever, is in nobody's way: strangers have a limit of time and
//! of number, and the one that came first makes room.
//!
//! Who is known can go on to another server, on another thread ([`Guest`]).

pub mod http;
mod peer;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::tcp::{Gather, TcpListener, TcpStream};

use crate::door::Door;

pub use peer::{MESSAGE_MAX, News, Over, Peer};
pub use tungstenite::Message;

/// Open WebSockets at a time.
const KNOWN_MAX: usize = 16;
/// Connections at a time that have not said the token.
const STRANGERS_MAX: usize = 32;
/// How long such a one may last.
const STRANGER_LIMIT: Duration = Duration::from_secs(10);
/// How long who is sent away may take to go.
const FAREWELL: Duration = Duration::from_millis(300);
/// Bytes of a token. It is written with two digits for each.
const TOKEN_LEN: usize = 32;

const LISTENER: u64 = 0;
const FIRST: u64 = 1;

/// What there is.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Pages and what they need, the same for all.
    pub pages: &'static [Page],
    /// Paths of WebSockets.
    pub sockets: &'static [&'static str],
}

/// A file that is served.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Its path.
    pub path: &'static str,
    /// Its media type.
    pub kind: &'static str,
    /// What is in it.
    pub body: &'static [u8],
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody who knows the token has opened a WebSocket.
    Opened {
        /// What he is called from now on.
        id: u64,
        /// Which, of [`Site::sockets`].
        socket: usize,
    },
    /// He says something.
    Said {
        /// Who.
        id: u64,
        /// What.
        text: String,
    },
    /// He is gone.
    Left {
        /// Who.
        id: u64,
    },
}

/// The socket as a stream of the standard library.
#[derive(Debug)]
struct Socket(TcpStream);

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read_bytes(bytes)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut gather = Gather::new();
        gather.push(bytes);
        self.0.write(&mut gather)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Connection {
    peer: Peer<Socket>,
    came: Instant,
    interest: Interest,
    /// There may be more of it than the system knows.
    more: bool,
    over: bool,
}

/// A server of pages. It is readable, as a descriptor, when [`turn`](Self::turn) has
/// something to do.
#[derive(Debug)]
pub struct Web {
    epoll: Epoll,
    /// `None`: it has guests of other servers alone.
    door: Option<Door<TcpListener>>,
    site: Site,
    token: String,
    connections: BTreeMap<u64, Connection>,
    next: u64,
}

/// Somebody who has said the token, on the way from one server to another.
#[derive(Debug)]
pub struct Guest(Connection);

/// A new token.
///
/// # Errors
/// The system has no random numbers.
pub fn new_token() -> io::Result<String> {
    let mut secret = [0; TOKEN_LEN];
    let filled = rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())?;
    if filled != secret.len() {
        return Err(io::Error::other("the system has no random numbers"));
    }
    Ok(secret.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl AsFd for Web {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Web {
    /// A server of this site; who says this token is known.
    ///
    /// # Errors
    /// The system refused.
    pub fn new(listener: TcpListener, site: Site, token: String) -> io::Result<Self> {
        let mut web = Self::without_door(site)?;
        web.door = Some(Door::new(listener, LISTENER, &web.epoll)?);
        web.token = token;
        Ok(web)
    }

    /// A server to which nobody can come but who is [taken in](Self::take_in).
    ///
    /// # Errors
    /// The system refused.
    pub fn without_door(site: Site) -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            door: None,
            site,
            token: String::new(),
            connections: BTreeMap::new(),
            next: FIRST,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        let door = self.door.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        door.listener().address()
    }

    /// What who opens a WebSocket has to know.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// When [`turn`](Self::turn) has something to do that is no event of the descriptor.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let due = |connection: &Connection| {
            let at_once = connection.more || connection.over;
            let is_known = connection.peer.is_known();
            match at_once {
                true => Some(connection.came),
                false => (!is_known).then_some(connection.came + STRANGER_LIMIT),
            }
        };
        let due = self.connections.values().filter_map(due);
        due.chain(self.door.as_ref().and_then(Door::due)).min()
    }

    /// Does what there is to do without waiting, and says what happened. `ready` is room.
    ///
    /// # Errors
    /// The system failed in a way that no client can cause.
    pub fn turn(&mut self, ready: &mut Ready, events: &mut Vec<Event>) -> io::Result<()> {
        if let Some(door) = &mut self.door {
            door.open(&self.epoll, Instant::now());
        }
        self.epoll.wait(ready, Some(Duration::ZERO))?;
        let more = self.connections.iter().filter(|(_, it)| it.more);
        let mut tokens: Vec<u64> = more.map(|(id, _)| *id).collect();
        tokens.extend(ready.iter().map(|event| event.token));
        for token in tokens {
            match token {
                LISTENER => self.accept(),
                id => self.hear(id, events),
            }
        }
        self.sweep(events);
        Ok(())
    }

    fn accept(&mut self) {
        let Some(door) = &mut self.door else {
            return;
        };
        let Some(stream) = door.accept(&self.epoll, TcpListener::accept) else {
            return;
        };
        let strangers = self.connections.iter();
        let strangers = strangers.filter(|(_, it)| !it.peer.is_known());
        let (first, count) = (
            strangers.clone().map(|(id, _)| *id).next(),
            strangers.count(),
        );
        if count >= STRANGERS_MAX
            && let Some(first) = first
        {
            self.remove(first);
        }
        let id = self.next;
        self.next += 1;
        if self.epoll.add(&stream, id, Interest::READ).is_err() {
            return;
        }
        let connection = Connection {
            peer: Peer::new(Socket(stream)),
            came: Instant::now(),
            interest: Interest::READ,
            more: false,
            over: false,
        };
        self.connections.insert(id, connection);
    }

    fn hear(&mut self, id: u64, events: &mut Vec<Event>) {
        let full = self.known() >= KNOWN_MAX;
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        // Who does not take what he is sent is not heard.
        let out = connection.peer.flush();
        let mut news = Vec::new();
        let heard = match out {
            Ok(true) => connection.peer.hear(&self.site, &self.token, &mut news),
            Ok(false) => Ok(false),
            Err(over) => Err(over),
        };
        connection.more = heard == Ok(true);
        connection.over |= heard.is_err();
        for news in news {
            match news {
                News::Opened(_) if full => {
                    connection.peer.close("too many look already");
                    connection.over = true;
                }
                News::Opened(socket) => events.push(Event::Opened { id, socket }),
                News::Said(text) => events.push(Event::Said { id, text }),
            }
        }
        self.watch(id);
    }

    /// Watches a connection for what it is to do next.
    fn watch(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Connection { peer, interest, .. } = connection;
        let wanted = match peer.flush() {
            Ok(true) => Interest::READ,
            Ok(false) => Interest::WRITE,
            Err(Over) => {
                connection.over = true;
                return;
            }
        };
        let Some(Socket(stream)) = peer.stream() else {
            return;
        };
        if peer.is_answered() {
            // Nothing more comes; the rest is up to the client.
            let _ = stream.shut_down();
        }
        if wanted != *interest {
            connection.over |= self.epoll.modify(stream, id, wanted).is_err();
            *interest = wanted;
        }
    }

    /// Lets go who is over, or has taken too long.
    fn sweep(&mut self, events: &mut Vec<Event>) {
        let now = Instant::now();
        let ends =
            |it: &Connection| it.over || (!it.peer.is_known() && it.came + STRANGER_LIMIT <= now);
        let over = self.connections.iter().filter(|(_, it)| ends(it));
        let over: Vec<u64> = over.map(|(id, _)| *id).collect();
        for id in over {
            if self.remove(id) {
                events.push(Event::Left { id });
            }
        }
    }

    /// Whether it was known.
    fn remove(&mut self, id: u64) -> bool {
        let Some(connection) = self.connections.remove(&id) else {
            return false;
        };
        if let Some(Socket(stream)) = connection.peer.stream() {
            let _ = self.epoll.delete(stream);
        }
        connection.peer.is_known()
    }

    /// Lets somebody who is known go to another server: he is not heard of here any more.
    pub fn let_go(&mut self, id: u64) -> Option<Guest> {
        let goes = self.connections.get(&id);
        goes.filter(|it| it.peer.is_known() && !it.over)?;
        let connection = self.connections.remove(&id)?;
        if let Some(Socket(stream)) = connection.peer.stream() {
            let _ = self.epoll.delete(stream);
        }
        Some(Guest(connection))
    }

    /// Takes in who comes from another server, as this id; `None` where there is no room.
    pub fn take_in(&mut self, Guest(mut connection): Guest) -> Option<u64> {
        if self.known() >= KNOWN_MAX {
            connection.peer.close("too many look already");
            return None;
        }
        let id = self.next;
        self.next += 1;
        let Socket(stream) = connection.peer.stream()?;
        self.epoll.add(stream, id, Interest::READ).ok()?;
        connection.interest = Interest::READ;
        // What he has said already may not be with the system any more.
        connection.more = true;
        self.connections.insert(id, connection);
        Some(id)
    }

    /// How many have opened a WebSocket.
    fn known(&self) -> usize {
        let known = self.connections.values().filter(|it| it.peer.is_known());
        known.count()
    }

    /// Says something to somebody. What finds no room is kept, so whoever sends more waits
    /// until he has answered.
    pub fn send(&mut self, id: u64, message: Message) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.over |= connection.peer.send(message).is_err();
            self.watch(id);
        }
    }

    /// Sends somebody away. [`Event::Left`] comes when he is gone.
    pub fn close(&mut self, id: u64, why: &str) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.peer.close(why);
            connection.over = true;
        }
    }

    /// Sends all away with the reason, and waits for a moment, so that they hear it.
    pub fn farewell(&mut self, why: &str) {
        if let Some(door) = &self.door {
            let _ = self.epoll.delete(door.listener());
        }
        for connection in self.connections.values_mut() {
            connection.peer.close(why);
            let shut = connection.peer.stream().map(|it| it.0.shut_down());
            connection.over |= shut.is_none_or(|it| it.is_err());
        }
        let until = Instant::now() + FAREWELL;
        let mut ready = Ready::with_capacity(STRANGERS_MAX);
        let mut events = Vec::new();
        while self.known() > 0 {
            let left = until.saturating_duration_since(Instant::now());
            let waited = self.epoll.wait(&mut ready, Some(left));
            if left.is_zero() || waited.is_err() || self.turn(&mut ready, &mut events).is_err() {
                return;
            }
        }
    }
}
