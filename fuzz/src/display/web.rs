//! What a client says to the server of pages (`web_input`), from its first byte on.
//!
//! Each step is a byte: what is done; some take more. The client begins with room for
//! everything that it is sent.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::rc::Rc;

use linkspan_backends::display::Said;
use linkspan_backends::web::{MESSAGE_MAX, Message, News, Page, Peer, Site};

use super::Outcome;
use crate::input::Input;

/// The client says so many bytes, which follow.
pub const SAY: u8 = 0;
/// It says a byte, so many times 64.
pub const REPEAT: u8 = 1;
/// It asks for the WebSocket as a page of ours does.
pub const SOCKET: u8 = 2;
/// It says a frame: the first byte of its head, its length, and that.
pub const FRAME: u8 = 3;
/// It says the token.
pub const TOKEN: u8 = 4;
/// It takes so many bytes from now on, times 16.
pub const ROOM: u8 = 5;
/// It is sent a message of so many bytes, times 16.
pub const SEND: u8 = 6;
/// It says nothing more.
pub const END: u8 = 7;

const SECRET: &str = "a token that is not to be guessed";
const SITE: Site = Site {
    pages: &[Page {
        path: "/",
        kind: "text/html",
        body: b"a page",
    }],
    sockets: &["/screen"],
};
const ASK: &str = "GET /screen HTTP/1.1\r\nHost: localhost:80\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: k\r\nOrigin: http://localhost:80\r\n\r\n";
/// More than whoever does not know the token is ever sent.
const STRANGERS_BYTES: usize = 4096;

/// Both directions of a connection.
#[derive(Debug, Default)]
struct Wire {
    said: VecDeque<u8>,
    ended: bool,
    room: usize,
    sent: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Stream(Rc<RefCell<Wire>>);

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        if wire.said.is_empty() && !wire.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        wire.said.read(bytes)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        let len = bytes.len().min(wire.room);
        if len == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        wire.room -= len;
        wire.sent.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The target.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// Runs a script. What is done are the news, and the error is the status that the client
/// gets, unless that is a WebSocket.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut input = Input::new(bytes);
    let wire = Rc::new(RefCell::new(Wire {
        room: usize::MAX,
        ..Wire::default()
    }));
    let mut peer = Peer::new(Stream(Rc::clone(&wire)));
    let mut outcome = Outcome::default();
    let mut told = false;
    while let Some(step) = input.u8() {
        let said = match step % 8 {
            SAY => {
                let len = usize::from(input.u8().unwrap_or(0));
                input.bytes(len).to_vec()
            }
            REPEAT => {
                let byte = input.u8().unwrap_or(0);
                vec![byte; usize::from(input.u8().unwrap_or(0)) * 64]
            }
            SOCKET => ASK.as_bytes().to_vec(),
            FRAME => {
                let first = input.u8().unwrap_or(0);
                let len = usize::from(input.u8().unwrap_or(0));
                frame(first, input.bytes(len))
            }
            TOKEN => frame(0x81, SECRET.as_bytes()),
            step => {
                let count = usize::from(input.u8().unwrap_or(0)) * 16;
                match step {
                    ROOM => wire.borrow_mut().room = count,
                    SEND if peer.is_known() => {
                        let sent = peer.send(Message::binary(vec![0; count]));
                        outcome.refused += usize::from(sent.is_err());
                    }
                    SEND => {}
                    _ => wire.borrow_mut().ended = true,
                }
                Vec::new()
            }
        };
        told |= step % 8 == TOKEN || has(&said, SECRET.as_bytes());
        wire.borrow_mut().said.extend(said);
        if !turn(&mut peer, &mut outcome) {
            break;
        }
        assert!(told || !peer.is_known(), "nobody has said the token");
        assert!(peer.is_known() || wire.borrow().sent.len() < STRANGERS_BYTES);
    }
    let wire = wire.borrow();
    let line = wire.sent.split(|byte| *byte == b'\r').next();
    let line = String::from_utf8_lossy(line.unwrap_or_default()).into_owned();
    outcome.error = Some(line).filter(|it| it.starts_with("HTTP/1.1 ") && !it.contains(" 101 "));
    outcome
}

/// Hears the client until it has said everything; whether it is still there.
fn turn(peer: &mut Peer<Stream>, outcome: &mut Outcome) -> bool {
    let mut news = Vec::new();
    let over = loop {
        let heard = match peer.flush() {
            Ok(true) => peer.hear(&SITE, SECRET, &mut news),
            // One that does not take what it is sent is not heard.
            Ok(false) => Ok(false),
            Err(over) => Err(over),
        };
        match heard {
            Ok(true) => {}
            Ok(false) => break false,
            Err(_) => break true,
        }
    };
    for news in news {
        outcome.done += 1;
        match news {
            News::Opened(number) => assert_eq!(number, 0),
            News::Said(text) => {
                assert!(text.len() <= MESSAGE_MAX);
                heard(&text);
            }
        }
    }
    outcome.refused += usize::from(over);
    !over
}

/// What the page of a screen says means the same when it is said again.
fn heard(text: &str) {
    if let Some(said) = Said::parse(text) {
        let again = said.to_string();
        assert!(again.len() <= text.len());
        assert_eq!(Said::parse(&again), Some(said));
    }
}

fn has(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|it| it == word)
}

/// A frame of a client, with a mask that changes nothing (RFC 6455, 5.2).
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u8::try_from(payload.len()) {
        Ok(len) if len < 126 => frame.push(0x80 | len),
        _ => {
            frame.push(0x80 | 126);
            let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
            frame.extend(len.to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}
