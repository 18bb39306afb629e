//! The client of a vfio-user session: the side that has a guest.
//!
//! [`Client`] is one connection. Questions become messages, which the caller sends with
//! the descriptors that belong to them; bytes go in through [`Client::receive`], and what
//! the server says comes out. Several questions may wait, and answers may come in any
//! order. A server that breaks the protocol is left: every error ends the connection.

mod ask;

use alloc::vec::Vec;
use core::mem::size_of;

use linkspan_mem::Iova;
use thiserror::Error;

pub use ask::Ask;

use crate::framing::{Frame, Framing, FramingError, message};
use crate::message::{Command, Sender};
use crate::server::Agreed;
use crate::version::{self, Capabilities, Said, VersionError};
use crate::wire::{
    Access, DATA_MAX, DeviceInfo, DmaAccess, HEADER_BYTES, Header, IoEvent, IoFds, IrqInfo,
    PLANE_REFUSED, PlaneBuffer, PlaneInfo, RegionInfo, VERSION, errno, head,
};

/// Questions that wait for their answers at a time.
pub const WAITING_MAX: usize = 64;

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Heard {
    /// The version is agreed upon; from now on it may be asked.
    Agreed(Agreed),
    /// The answer to a question.
    Answer {
        /// The number of the question.
        id: u16,
        /// The answer.
        answer: Answer,
    },
    /// The server asks: to be answered with [`Client::answer`].
    Asked(Question),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// It is done.
    Done,
    /// It is not, with an error of Linux.
    Refused(u32),
    /// What the device is.
    Info(DeviceInfo),
    /// What a region is: all that was sent of it, capabilities included. Its descriptor is
    /// the message's.
    Region(RegionInfo, Vec<u8>),
    /// The parts of a region that are eventfds, which are the message's; none if there was
    /// too little room.
    Doorbells(Vec<IoEvent>),
    /// What a kind of interrupts is.
    Irq(IrqInfo),
    /// What was read.
    Bytes(Vec<u8>),
    /// What a plane shows; of format 0: nothing.
    Plane(PlaneInfo),
    /// A plane is on and not shown; why, in words of the server that nobody has checked.
    PlaneRefused(Vec<u8>),
    /// The memory of a plane, whose descriptor is the message's.
    Buffer(PlaneBuffer),
}

/// What the server asks of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its number.
    id: u16,
    command: Command,
    reply: bool,
    /// The first byte that is meant.
    pub address: Iova,
    /// How many are.
    pub count: u32,
    /// What is to be written; `None`: they are to be read.
    pub write: Option<Vec<u8>>,
}

/// A server that breaks the protocol, or a question that cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The stream makes no sense.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// There is nothing that both ends speak.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// The server does not want to speak.
    #[error("the server refuses the version with error {errno}")]
    Refused {
        /// Its reason.
        errno: u32,
    },
    /// It answers what was not asked.
    #[error("an answer with number {id} to message {command}, which was not asked")]
    Unasked {
        /// Its number.
        id: u16,
        /// Which message.
        command: u16,
    },
    /// An answer of the wrong length.
    #[error("an answer of {got} bytes to message {command} instead of {min} to {max}")]
    Length {
        /// Which message.
        command: u16,
        /// Bytes that came.
        got: usize,
        /// Fewest that make sense.
        min: usize,
        /// Most that make sense.
        max: usize,
    },
    /// Descriptors that do not belong to it.
    #[error("{got} file descriptors with message {command}; at most {max} come with it")]
    Fds {
        /// Which message.
        command: u16,
        /// Descriptors that came.
        got: usize,
        /// Most that make sense.
        max: usize,
    },
    /// An answer that speaks of something else than the question.
    #[error("an answer to message {command} that says {got:#x} where {want:#x} was asked")]
    Other {
        /// Which message.
        command: u16,
        /// What it says.
        got: u64,
        /// What was asked.
        want: u64,
    },
    /// The server asks for what it cannot ask for.
    #[error("the server sends message {command}")]
    NotIts {
        /// Which message.
        command: u16,
    },
    /// Nothing is agreed upon yet, or that message was not.
    #[error("message {command} was not agreed upon")]
    NotAgreed {
        /// Which message.
        command: u16,
    },
    /// More bytes at once than the server takes.
    #[error("{count} bytes at once; the server takes {max}")]
    Transfer {
        /// How many.
        count: u64,
        /// The most.
        max: u64,
    },
    /// Too many questions wait.
    #[error("{WAITING_MAX} questions wait for their answers")]
    Busy,
    /// More bytes were handed over than were wanted.
    #[error("{got} bytes were received where {wanted} were wanted")]
    Unwanted {
        /// Bytes handed over.
        got: usize,
        /// Bytes wanted.
        wanted: usize,
    },
    /// The connection is over.
    #[error("the connection is over")]
    Over,
}

/// A question that waits, and what its answer has to repeat.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: u16,
    command: Command,
    echo: Option<Access>,
    /// The most bytes of its answer.
    room: usize,
}

/// The client of one connection.
#[derive(Debug)]
pub struct Client {
    wish: Capabilities,
    framing: Framing,
    agreed: Option<Agreed>,
    waiting: Vec<Waiting>,
    next: u16,
    over: bool,
}

impl Client {
    /// A session, and its first message. The numbers of `wish` say what this end takes.
    #[must_use]
    pub fn new(wish: Capabilities) -> (Self, Vec<u8>) {
        let command = Command::Version;
        let waiting = Waiting {
            id: 0,
            command,
            echo: None,
            room: command.message().reply_max,
        };
        let client = Self {
            wish,
            framing: Framing::default(),
            agreed: None,
            waiting: alloc::vec![waiting],
            next: 1,
            over: false,
        };
        let body = crate::server::version_body(VERSION, &Said::all(wish).to_bytes());
        let first = message(0, command.code(), Header::COMMAND, 0, &[&body]);
        (client, first)
    }

    /// What was agreed upon, once it was.
    #[must_use]
    pub fn agreed(&self) -> Option<Agreed> {
        self.agreed
    }

    /// Bytes to read next from the socket; never read more, since descriptors belong to
    /// the message whose first byte they come with. 0 after the end.
    #[must_use]
    pub fn wanted(&self) -> usize {
        match self.over {
            true => 0,
            false => self.framing.wanted(),
        }
    }

    /// Takes bytes of the socket, at most [`wanted`](Self::wanted), and the number of
    /// descriptors that came with them.
    ///
    /// # Errors
    /// [`ClientError`]: the connection is over.
    pub fn receive(&mut self, bytes: &[u8], fds: usize) -> Result<Option<Heard>, ClientError> {
        let heard = self.hear(bytes, fds);
        self.over |= heard.is_err();
        heard
    }

    fn hear(&mut self, bytes: &[u8], fds: usize) -> Result<Option<Heard>, ClientError> {
        if self.over {
            return Err(ClientError::Over);
        }
        let (got, wanted) = (bytes.len(), self.wanted());
        if got > wanted {
            return Err(ClientError::Unwanted { got, wanted });
        }
        if bytes.is_empty() && fds == 0 {
            return Ok(None);
        }
        let Some(frame) = self.framing.push(bytes, fds)? else {
            return Ok(None);
        };
        match frame.is_reply() {
            true => self.answered(&frame).map(Some),
            false => asked(frame).map(|question| Some(Heard::Asked(question))),
        }
    }

    fn answered(&mut self, frame: &Frame) -> Result<Heard, ClientError> {
        let Header {
            id, command, flags, ..
        } = frame.header;
        let waits = |waiting: &Waiting| (waiting.id, waiting.command.code()) == (id, command);
        let at = self.waiting.iter().position(waits);
        let at = at.ok_or(ClientError::Unasked { id, command })?;
        let waiting = self.waiting.swap_remove(at);
        let row = waiting.command.message();
        let failed = flags & Header::ERROR != 0;
        let (got, max) = (frame.fds, if failed { 0 } else { row.reply_fds });
        if got > max {
            return Err(ClientError::Fds { command, got, max });
        }
        let (min, max) = match failed {
            // Some servers send more.
            true => (0, row.reply_max),
            false => (row.reply_min, waiting.room),
        };
        let got = frame.body.len();
        if !(min..=max).contains(&got) {
            return Err(ClientError::Length {
                command,
                got,
                min,
                max,
            });
        }
        if failed {
            let errno = match frame.header.error {
                0 => errno::EIO,
                number => number,
            };
            if waiting.command == Command::Version {
                return Err(ClientError::Refused { errno });
            }
            let answer = Answer::Refused(errno);
            return Ok(Heard::Answer { id, answer });
        }
        if waiting.command == Command::Version {
            return self.agree(&frame.body);
        }
        let answer = answer(&waiting, &frame.body)?;
        Ok(Heard::Answer { id, answer })
    }

    fn agree(&mut self, body: &[u8]) -> Result<Heard, ClientError> {
        let (version, said) = version::agree(body)?;
        let (proposed, _) = head::<crate::wire::Version>(body).unwrap_or((version, &[]));
        if proposed.minor > VERSION.1 {
            let crate::wire::Version { major, minor } = proposed;
            return Err(VersionError::Newer { major, minor }.into());
        }
        let theirs = said.capabilities;
        let agreed = Agreed {
            version: (version.major, version.minor),
            capabilities: Capabilities {
                write_multiple: self.wish.write_multiple && theirs.write_multiple,
                gfx_plane: self.wish.gfx_plane && theirs.gfx_plane,
                ..theirs
            },
        };
        self.agreed = Some(agreed);
        Ok(Heard::Agreed(agreed))
    }

    /// The message that answers a question of the server: with the bytes that were read
    /// (none after a write), or an error of Linux. `None` if it wants no answer.
    #[must_use]
    pub fn answer(&self, question: &Question, result: Result<&[u8], u32>) -> Option<Vec<u8>> {
        if !question.reply {
            return None;
        }
        let (id, code) = (question.id, question.command.code());
        let access = DmaAccess {
            address: question.address.0,
            count: question.count.into(),
        };
        let access = zerocopy::IntoBytes::as_bytes(&access);
        Some(match result {
            Ok(bytes) => message(id, code, Header::REPLY, 0, &[access, bytes]),
            Err(number) => message(id, code, Header::REPLY | Header::ERROR, number, &[]),
        })
    }
}

/// What an answer says that was not an error.
fn answer(waiting: &Waiting, body: &[u8]) -> Result<Answer, ClientError> {
    let command = waiting.command.code();
    let short = ClientError::Length {
        command,
        got: body.len(),
        min: waiting.command.message().reply_min,
        max: waiting.room,
    };
    let same = |got: u64, want: u64| match got == want {
        true => Ok(()),
        false => Err(ClientError::Other { command, got, want }),
    };
    // What an answer has to repeat: region, offset and count, or an index.
    let echo = waiting.echo.unwrap_or(Access {
        offset: 0,
        region: 0,
        count: 0,
    });
    Ok(match waiting.command {
        Command::DeviceGetInfo => {
            let (info, _) = head::<DeviceInfo>(body).ok_or(short)?;
            Answer::Info(info)
        }
        Command::DeviceGetRegionInfo => {
            let (info, _) = head::<RegionInfo>(body).ok_or(short)?;
            same(info.index.into(), echo.region.into())?;
            Answer::Region(info, body.to_vec())
        }
        Command::DeviceGetRegionIoFds => {
            let (info, rest) = head::<IoFds>(body).ok_or(short)?;
            same(info.index.into(), echo.region.into())?;
            let parts = rest.chunks_exact(size_of::<IoEvent>());
            same(parts.remainder().len() as u64, 0)?;
            let parts: Vec<_> = parts.filter_map(|part| head(part).map(|it| it.0)).collect();
            if !parts.is_empty() {
                same(parts.len() as u64, info.count.into())?;
            }
            Answer::Doorbells(parts)
        }
        Command::DeviceGetIrqInfo => {
            let (info, _) = head::<IrqInfo>(body).ok_or(short)?;
            same(info.index.into(), echo.region.into())?;
            Answer::Irq(info)
        }
        Command::RegionRead | Command::RegionWrite => {
            let (access, data) = head::<Access>(body).ok_or(short)?;
            same(access.region.into(), echo.region.into())?;
            same(access.offset, echo.offset)?;
            same(access.count.into(), echo.count.into())?;
            if waiting.command == Command::RegionWrite {
                return Ok(Answer::Done);
            }
            same(data.len() as u64, echo.count.into())?;
            Answer::Bytes(data.to_vec())
        }
        Command::RegionWriteMulti => {
            let (count, _) = head::<u64>(body).ok_or(short)?;
            same(count, echo.count.into())?;
            Answer::Done
        }
        Command::QueryGfxPlane => {
            let (info, words) = head::<PlaneInfo>(body).ok_or(short)?;
            same(info.plane_type.into(), echo.region.into())?;
            match info.flags & PLANE_REFUSED {
                0 => Answer::Plane(info),
                _ => Answer::PlaneRefused(words.to_vec()),
            }
        }
        Command::GetGfxDmabuf => {
            let (buffer, _) = head::<PlaneBuffer>(body).ok_or(short)?;
            same(buffer.id.into(), echo.region.into())?;
            Answer::Buffer(buffer)
        }
        _ => Answer::Done,
    })
}

/// What a server asks.
fn asked(frame: Frame) -> Result<Question, ClientError> {
    let Header {
        id, command, flags, ..
    } = frame.header;
    let row = Command::row(command).filter(|row| row.sender == Sender::Server);
    let row = row.ok_or(ClientError::NotIts { command })?;
    let (got, max) = (frame.fds, row.fds_max);
    if got > max {
        return Err(ClientError::Fds { command, got, max });
    }
    let (got, min, max) = (frame.body.len(), row.body_min, row.body_max);
    let length = ClientError::Length {
        command,
        got,
        min,
        max,
    };
    if !(min..=max).contains(&got) {
        return Err(length);
    }
    let (access, data) = head::<DmaAccess>(&frame.body).ok_or(length)?;
    let max = DATA_MAX as u64;
    let count = u32::try_from(access.count)
        .ok()
        .filter(|_| access.count <= max);
    let count = count.ok_or(ClientError::Transfer {
        count: access.count,
        max,
    })?;
    let write = match row.command {
        Command::DmaWrite if data.len() as u64 != access.count => {
            let (got, want) = (data.len() as u64, access.count);
            return Err(ClientError::Other { command, got, want });
        }
        Command::DmaWrite => Some(data.to_vec()),
        _ => None,
    };
    Ok(Question {
        id,
        command: row.command,
        reply: flags & Header::NO_REPLY == 0,
        address: Iova(access.address),
        count,
        write,
    })
}

const _: () = assert!(HEADER_BYTES == 16 && size_of::<PlaneInfo>() == 64);
