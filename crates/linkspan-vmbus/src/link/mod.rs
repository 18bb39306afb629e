//! How programs of ours meet over a Unix socket: a guest asks a host for its channel,
//! and a sender asks it to send files.
//!
//! A frame is a header of 8 bytes (its number, zero, the length of its body; little
//! endian) and a body. Descriptors come with a frame's first byte. The host takes its
//! channel back by closing the socket, and the guest gives it up in the same way.

mod wire;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use thiserror::Error;

use crate::fcopy::Operation;
use crate::guid::Guid;
use crate::ic::Status;
use crate::ring::Shape;
use wire::{Fields, field, read, write};

/// The newest version of these frames, and the oldest that is spoken.
pub const VERSION: u16 = 1;
const OLDEST: u16 = 1;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 8;

/// Bytes of a name in SEND at most: 259 UTF-16 units take no more in UTF-8.
pub const NAME_MAX: usize = 777;

/// Who says a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Whoever connected.
    Client,
    /// Whoever listens.
    Host,
}

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A guest, which wants the channel.
    Guest,
    /// A sender of files.
    Sender,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was said.
    Fresh,
    /// The client has said what it is.
    Greeted(Role),
    /// The guest has the channel.
    Joined,
    /// The sender can send.
    Ready,
    /// A file is under way.
    Sending,
    /// The host refused the client.
    Over,
}

/// One kind of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kind {
    /// Its number.
    pub code: u16,
    /// Its name.
    pub name: &'static str,
    /// Who says it.
    pub from: Side,
    /// When.
    pub phases: &'static [Phase],
    /// Bytes of its body, the least and the most.
    pub len: [usize; 2],
    /// Descriptors with it.
    pub fds: usize,
}

const fn kind(
    code: u16,
    name: &'static str,
    from: Side,
    phases: &'static [Phase],
    len: [usize; 2],
    fds: usize,
) -> Kind {
    Kind {
        code,
        name,
        from,
        phases,
        len,
        fds,
    }
}

const GUEST: &[Phase] = &[Phase::Greeted(Role::Guest)];
const SENDER: &[Phase] = &[Phase::Greeted(Role::Sender)];
const CLIENT: &[Phase] = &[Phase::Greeted(Role::Guest), Phase::Greeted(Role::Sender)];
const SEND_MIN: usize = 20;

/// All frames.
pub const FRAMES: [Kind; 8] = [
    kind(1, "HELLO", Side::Client, &[Phase::Fresh], [8, 8], 0),
    kind(2, "CHANNEL", Side::Host, GUEST, [64, 64], 3),
    kind(3, "REFUSED", Side::Host, CLIENT, [4, 4], 0),
    kind(4, "WELCOME", Side::Host, SENDER, [4, 4], 0),
    kind(
        5,
        "SEND",
        Side::Client,
        &[Phase::Ready],
        [SEND_MIN, SEND_MIN + 2 * NAME_MAX],
        1,
    ),
    // It may cross a DONE.
    kind(
        6,
        "CANCEL",
        Side::Client,
        &[Phase::Sending, Phase::Ready],
        [0, 0],
        0,
    ),
    kind(7, "PROGRESS", Side::Host, &[Phase::Sending], [8, 8], 0),
    kind(8, "DONE", Side::Host, &[Phase::Sending], [12, 12], 0),
];

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Who is there, and the versions it speaks.
    Hello {
        /// The oldest one.
        oldest: u16,
        /// The newest one.
        newest: u16,
        /// What it is.
        role: Role,
    },
    /// The channel. With it: its memory, the eventfd that signals the host, the
    /// eventfd that signals the guest.
    Channel {
        /// The version that is spoken.
        version: u16,
        /// What the channel is for.
        interface: Guid,
        /// Which of them.
        instance: Guid,
        /// Where the rings are in the memory.
        shape: Shape,
    },
    /// The host does not want the client.
    Refused(Reason),
    /// Files can be sent.
    Welcome {
        /// The version that is spoken.
        version: u16,
    },
    /// A file is to be sent. With it: the file, open for reading.
    Send(Request),
    /// It is not to be sent any more.
    Cancel,
    /// How much of it was sent.
    Progress {
        /// Bytes.
        sent: u64,
    },
    /// The end of a file.
    Done(Outcome),
}

/// Why a client is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    /// No version in common.
    #[error("no version in common")]
    Version,
    /// Another guest has the channel, or there are too many clients.
    #[error("the host is busy")]
    Busy,
    /// This socket is for others.
    #[error("this socket is for others")]
    Role,
}

/// A file to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The last part of its path here.
    pub file: String,
    /// Where it goes in the guest.
    pub path: String,
    /// Whether a file that is there is replaced.
    pub overwrite: bool,
    /// Whether folders that are missing are made.
    pub create_path: bool,
    /// Its bytes.
    pub size: u64,
    /// Milliseconds after which a guest that does not answer is given up.
    pub patience: u32,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Outcome {
    /// The guest has it.
    #[error("the guest has it")]
    Done,
    /// The guest would not.
    #[error("the guest refused {}: {status}", .operation.name())]
    Refused {
        /// What it refused.
        operation: Operation,
        /// Why.
        status: Status,
    },
    /// The guest broke the protocol.
    #[error("the guest broke the protocol")]
    Protocol,
    /// The guest did not answer in time.
    #[error("the guest does not answer")]
    Silent,
    /// It was cancelled.
    #[error("stopped")]
    Stopped,
    /// The file could not be read, or changed its size.
    #[error("the file could not be read, or became shorter")]
    Source,
    /// No guest came in time.
    #[error("there is no guest")]
    NoGuest,
    /// The guest went away.
    #[error("the guest went away")]
    Lost,
    /// A name that cannot be sent.
    #[error("a name of more than 259 UTF-16 units, or with a zero in it, or empty")]
    Name,
}

/// A frame that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// No frame has this number.
    #[error("there is no frame {code}")]
    Code {
        /// It.
        code: u16,
    },
    /// It comes from the wrong side or at the wrong time.
    #[error("{frame} does not come in phase {phase:?}")]
    Phase {
        /// Which.
        frame: &'static str,
        /// How far the connection is.
        phase: Phase,
    },
    /// Its body is too short or too long.
    #[error("{frame} with a body of {len} bytes")]
    Length {
        /// Which.
        frame: &'static str,
        /// Bytes of it.
        len: usize,
    },
    /// Too few or too many descriptors, or not with the first byte.
    #[error("{frame} with {got} descriptors where {want} belong")]
    Descriptors {
        /// Which.
        frame: &'static str,
        /// How many came.
        got: usize,
        /// How many belong to it.
        want: usize,
    },
    /// A field that makes no sense.
    #[error("{frame}: {field} makes no sense")]
    Field {
        /// Which frame.
        frame: &'static str,
        /// Which field.
        field: &'static str,
    },
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    us: Side,
    phase: Phase,
    bytes: Vec<u8>,
    /// The frame whose body is awaited, and its length.
    body: Option<(&'static Kind, usize)>,
    fds: usize,
}

impl Conversation {
    /// A connection that was just made.
    #[must_use]
    pub fn new(us: Side) -> Self {
        Self {
            us,
            phase: Phase::Fresh,
            bytes: Vec::new(),
            body: None,
            fds: 0,
        }
    }

    /// How far it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Bytes that belong to the frame that comes, at least one.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.body.map_or(HEADER_LEN, |(_, len)| len) - self.bytes.len()
    }

    /// Takes bytes, no more than are wanted, and how many descriptors came with
    /// them; gives the frame if it is whole. Its descriptors are the ones that came
    /// since the last.
    ///
    /// # Errors
    /// It is none. The connection is to be closed.
    pub fn receive(&mut self, bytes: &[u8], fds: usize) -> Result<Option<Frame>, LinkError> {
        debug_assert!(bytes.len() <= self.wanted());
        // Descriptors in the middle of a frame belong to none.
        let begins = self.body.is_none() && self.bytes.is_empty();
        self.fds = if begins || fds == 0 {
            self.fds + fds
        } else {
            usize::MAX
        };
        self.bytes.extend_from_slice(bytes);
        if self.wanted() > 0 {
            return Ok(None);
        }
        if self.body.is_none() {
            let (kind, len) = self.header()?;
            self.body = Some((kind, len));
            self.bytes.clear();
            if len > 0 {
                return Ok(None);
            }
        }
        let Some((kind, _)) = self.body.take() else {
            return Ok(None);
        };
        let body = core::mem::take(&mut self.bytes);
        let (got, want) = (core::mem::take(&mut self.fds), kind.fds);
        if got != want {
            let frame = kind.name;
            return Err(LinkError::Descriptors { frame, got, want });
        }
        let frame = read(kind, &body)?;
        self.passed(&frame);
        Ok(Some(frame))
    }

    fn header(&self) -> Result<(&'static Kind, usize), LinkError> {
        let mut fields = Fields(&self.bytes);
        let (code, zero, len) = (fields.u16(), fields.u16(), fields.u32());
        let code = code.unwrap_or(0);
        let kind = FRAMES.iter().find(|kind| kind.code == code);
        let kind = kind.ok_or(LinkError::Code { code })?;
        if kind.from == self.us || !kind.phases.contains(&self.phase) {
            return Err(LinkError::Phase {
                frame: kind.name,
                phase: self.phase,
            });
        }
        if zero != Some(0) {
            return Err(field(kind, "reserved field"));
        }
        let len = len.and_then(|len| usize::try_from(len).ok());
        let len = len.unwrap_or(usize::MAX);
        if !(kind.len[0]..=kind.len[1]).contains(&len) {
            let frame = kind.name;
            return Err(LinkError::Length { frame, len });
        }
        Ok((kind, len))
    }

    /// The bytes of a frame of ours.
    ///
    /// # Panics
    /// When it is not our turn to say it, or it has longer names than [`NAME_MAX`].
    pub fn say(&mut self, frame: &Frame) -> Vec<u8> {
        let kind = frame.kind();
        assert!(
            kind.from == self.us && kind.phases.contains(&self.phase),
            "{} in {:?}",
            kind.name,
            self.phase
        );
        let body = write(frame);
        assert!((kind.len[0]..=kind.len[1]).contains(&body.len()));
        self.passed(frame);
        let mut bytes = kind.code.to_le_bytes().to_vec();
        bytes.extend([0; 2]);
        bytes.extend(u32::try_from(body.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    /// A frame was said by either side.
    fn passed(&mut self, frame: &Frame) {
        self.phase = match frame {
            Frame::Hello { role, .. } => Phase::Greeted(*role),
            Frame::Channel { .. } => Phase::Joined,
            Frame::Refused(_) => Phase::Over,
            Frame::Welcome { .. } | Frame::Done(_) => Phase::Ready,
            Frame::Send(_) => Phase::Sending,
            Frame::Cancel | Frame::Progress { .. } => self.phase,
        };
    }
}

/// The version to speak with a client that speaks these.
#[must_use]
pub fn choose(oldest: u16, newest: u16) -> Option<u16> {
    let version = newest.min(VERSION);
    (version >= oldest.max(OLDEST)).then_some(version)
}

impl Frame {
    /// What a client says first.
    #[must_use]
    pub fn hello(role: Role) -> Self {
        Self::Hello {
            oldest: OLDEST,
            newest: VERSION,
            role,
        }
    }

    fn kind(&self) -> &'static Kind {
        let index = match self {
            Self::Hello { .. } => 0,
            Self::Channel { .. } => 1,
            Self::Refused(_) => 2,
            Self::Welcome { .. } => 3,
            Self::Send(_) => 4,
            Self::Cancel => 5,
            Self::Progress { .. } => 6,
            Self::Done(_) => 7,
        };
        &FRAMES[index]
    }
}

/// The table as a page of the book has it.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "| number | frame | from | bytes of its body | descriptors |\n|---|---|---|---|---|\n",
    );
    for kind in FRAMES {
        let from = match kind.from {
            Side::Client => "client",
            Side::Host => "host",
        };
        let [least, most] = kind.len;
        let len = if least == most {
            format!("{least}")
        } else {
            format!("{least} to {most}")
        };
        let (code, name, fds) = (kind.code, kind.name, kind.fds);
        page += &format!("| {code} | {name} | {from} | {len} | {fds} |\n");
    }
    page
}
