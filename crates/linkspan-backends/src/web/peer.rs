//! One connection, from its first byte on: a request, and then a page or a WebSocket whose
//! first message is the token. It knows no socket, so fuzzers and tests are its peer too.

use std::io::{self, Read, Write};

use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

use super::Site;
use super::http::{self, Request};

/// The longest message that is taken.
pub const MESSAGE_MAX: usize = 1024;
/// What a socket reads at a time; there is one for each.
const READ_BUFFER: usize = 4096;
/// Pieces that are taken in before others have their turn.
const TURN: usize = 32;

/// It is over: the connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over;

/// What a peer brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It has said the token, and this WebSocket is open for it.
    Opened(usize),
    /// It says something on it.
    Said(String),
}

/// A connection.
#[derive(Debug)]
pub struct Peer<S>(Stage<S>);

#[derive(Debug)]
enum Stage<S> {
    /// Its request is awaited.
    Asking {
        stream: S,
        head: Vec<u8>,
    },
    /// The answer goes out.
    Answering {
        stream: S,
        left: Vec<u8>,
        then: Then,
    },
    /// Its end is awaited: whoever closes first, while bytes are underway to him, takes
    /// away what he has sent.
    Answered {
        stream: S,
    },
    /// A WebSocket.
    Open {
        socket: Box<WebSocket<S>>,
        number: usize,
        /// It has said the token.
        known: bool,
    },
    Over,
}

/// What comes when an answer is out.
#[derive(Clone, Copy, Debug)]
enum Then {
    End,
    Socket(usize),
}

impl<S: Read + Write> Peer<S> {
    /// One that has said nothing yet.
    pub fn new(stream: S) -> Self {
        let head = Vec::new();
        Self(Stage::Asking { stream, head })
    }

    /// Whether it has said the token.
    pub fn is_known(&self) -> bool {
        matches!(self.0, Stage::Open { known: true, .. })
    }

    /// Whether it has its answer, and nothing more comes.
    pub fn is_answered(&self) -> bool {
        matches!(self.0, Stage::Answered { .. })
    }

    /// Its stream, until it is over.
    pub fn stream(&self) -> Option<&S> {
        match &self.0 {
            Stage::Asking { stream, .. }
            | Stage::Answering { stream, .. }
            | Stage::Answered { stream } => Some(stream),
            Stage::Open { socket, .. } => Some(socket.get_ref()),
            Stage::Over => None,
        }
    }

    /// Takes in what there is. Whether there may be more at once: others have their turn
    /// before.
    ///
    /// # Errors
    /// [`Over`]: it went, it did what nobody may, or its token is wrong.
    pub fn hear(&mut self, site: &Site, token: &str, news: &mut Vec<News>) -> Result<bool, Over> {
        for _ in 0..TURN {
            let more = match &mut self.0 {
                Stage::Asking { stream, head } => {
                    let Some(answer) = ask(stream, head, site)? else {
                        return Ok(false);
                    };
                    self.answer(answer)?;
                    true
                }
                // It has one request; what it says before the answer is out can wait.
                Stage::Answering { .. } => false,
                Stage::Answered { stream } => read(stream, &mut [0; 1024])?.is_some(),
                Stage::Open {
                    socket,
                    number,
                    known,
                } => match message(socket)? {
                    None => false,
                    Some(text) if *known => {
                        news.push(News::Said(text));
                        true
                    }
                    Some(text) if same(text.as_bytes(), token.as_bytes()) => {
                        *known = true;
                        news.push(News::Opened(*number));
                        true
                    }
                    Some(_) => {
                        self.close("the token is wrong: use the whole address that was printed");
                        return Err(Over);
                    }
                },
                Stage::Over => return Err(Over),
            };
            if !more {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn answer(&mut self, (left, then): (Vec<u8>, Then)) -> Result<(), Over> {
        if let Stage::Asking { stream, .. } = std::mem::replace(&mut self.0, Stage::Over) {
            self.0 = Stage::Answering { stream, left, then };
        }
        self.flush().map(drop)
    }

    /// Says something on its WebSocket. What finds no room is kept, so whoever sends
    /// waits for answers.
    ///
    /// # Errors
    /// [`Over`].
    pub fn send(&mut self, message: Message) -> Result<(), Over> {
        let Stage::Open { socket, .. } = &mut self.0 else {
            return Err(Over);
        };
        match socket.write(message) {
            Ok(()) => self.flush().map(drop),
            Err(error) if is_full(&error) => Ok(()),
            Err(_) => Err(Over),
        }
    }

    /// Sends what was kept; whether that was all.
    ///
    /// # Errors
    /// [`Over`].
    pub fn flush(&mut self) -> Result<bool, Over> {
        match &mut self.0 {
            Stage::Asking { .. } | Stage::Answered { .. } => return Ok(true),
            Stage::Answering { stream, left, .. } => {
                while !left.is_empty() {
                    match stream.write(left) {
                        Ok(0) => return Err(Over),
                        Ok(len) => drop(left.drain(..len)),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            return Ok(false);
                        }
                        Err(_) => return Err(Over),
                    }
                }
            }
            Stage::Open { socket, .. } => {
                return match socket.flush() {
                    Ok(()) => Ok(true),
                    Err(error) if is_full(&error) => Ok(false),
                    Err(_) => Err(Over),
                };
            }
            Stage::Over => return Err(Over),
        }
        if let Stage::Answering { stream, then, .. } = std::mem::replace(&mut self.0, Stage::Over) {
            self.0 = match then {
                Then::End => Stage::Answered { stream },
                Then::Socket(number) => Stage::Open {
                    socket: Box::new(WebSocket::from_raw_socket(
                        stream,
                        Role::Server,
                        Some(config()),
                    )),
                    number,
                    known: false,
                },
            };
        }
        Ok(true)
    }

    /// Ends its WebSocket with the reason, as far as there is room.
    pub fn close(&mut self, why: &str) {
        if let Stage::Open { socket, known, .. } = &mut self.0 {
            let code = match known {
                true => CloseCode::Away,
                false => CloseCode::Policy,
            };
            let mut end = why.len().min(REASON_MAX);
            while !why.is_char_boundary(end) {
                end -= 1;
            }
            let reason = why[..end].to_owned().into();
            let _ = socket.close(Some(CloseFrame { code, reason }));
        }
    }
}

/// Bytes of the reason in a frame (RFC 6455, 5.5).
const REASON_MAX: usize = 123;

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX))
}

/// Reads of a request, and answers it when it is whole. `None`: that is all there is now.
fn ask(
    stream: &mut (impl Read + Write),
    head: &mut Vec<u8>,
    site: &Site,
) -> Result<Option<(Vec<u8>, Then)>, Over> {
    let mut buffer = [0; 1024];
    while let Some(len) = read(stream, &mut buffer)? {
        head.extend_from_slice(&buffer[..len]);
        let answer = match http::parse(head, site) {
            Ok(None) => continue,
            Ok(Some(Request::Page(number))) => {
                let page = &site.pages[number];
                (http::page(page.kind, page.body), Then::End)
            }
            Ok(Some(Request::Socket { number, key })) => {
                let accept = derive_accept_key(key.as_bytes());
                (http::upgrade(&accept), Then::Socket(number))
            }
            Err(refusal) => (refusal.answer(), Then::End),
        };
        return Ok(Some(answer));
    }
    Ok(None)
}

/// Reads what there is; `None` if that is nothing now.
fn read(stream: &mut impl Read, buffer: &mut [u8]) -> Result<Option<usize>, Over> {
    match stream.read(buffer) {
        Ok(0) => Err(Over),
        Ok(len) => Ok(Some(len)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(_) => Err(Over),
    }
}

/// The next message, which is text. Pages cannot send anything else but an end, and answers
/// to whoever only asks (pings) would pile up.
fn message<S: Read + Write>(socket: &mut WebSocket<S>) -> Result<Option<String>, Over> {
    match socket.read() {
        Ok(Message::Text(text)) => Ok(Some(text.as_str().to_owned())),
        Ok(_) => Err(Over),
        Err(error) if is_full(&error) => Ok(None),
        Err(_) => Err(Over),
    }
}

/// Whether that is no error, and there is nothing to read or no room now.
fn is_full(error: &tungstenite::Error) -> bool {
    matches!(error, tungstenite::Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Whether two words are the same, in a time that does not tell where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    let differs = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == other.len() && differs == 0
}
