//! What a gateway between a client over SMB Direct and a server over TCP has to see of SMB2
//! and to change, without I/O.
//!
//! All messages go on as they are, but for READ and WRITE with channel information, since
//! a server over TCP cannot reach the client's memory. Such a WRITE becomes one with its data in
//! the message, which the gateway reads from the client's memory; such a READ becomes one
//! without a channel, and what comes back is written there, before the answer says that it
//! was. A gateway has no key, so what is signed is never changed: a signed request with
//! channel information ends its connection. What is encrypted or compressed is not seen.
//!
//! A message from the client is given whole; it is short, but for data that came in it. Of
//! one from the server the begin is enough ([`HEAD_MAX`]), so that data can stay where it arrived.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use thiserror::Error as ThisError;
use zerocopy::IntoBytes;

use crate::header::{COMPOUND_MAX, COMPRESSION_ID, Command, Header, TRANSFORM_ID, flags};
use crate::io::{
    self, Descriptor, ReadRequest, ReadResponse, WriteRequest, WriteResponse, channel,
};
use crate::negotiate::{self, dialect};
use crate::status;
use crate::wire::Body;

/// Bytes of a message from the server that have to be seen, if it has as many and is no
/// [compound](is_compound).
pub const HEAD_MAX: usize = 256;

/// Bytes of a READ without a channel.
pub const READ_LEN: usize = Header::LEN + size_of::<ReadRequest>() + 1;

/// Bytes of a WRITE before its data.
pub const WRITE_HEAD_LEN: usize = Header::LEN + size_of::<WriteRequest>();

/// Bytes of the answer to a READ whose data went another way: they end where data could begin, so
/// that it can be put together where the message lies.
pub const ANSWER_LEN: usize = Header::LEN + size_of::<ReadResponse>();

/// Requests with channels that may be unanswered: all the credits that Windows grants.
const PENDING_MAX: usize = 8192;

/// Memory descriptors of READs that may be unanswered: 8 for each of those requests, 1 MiB.
const DESCRIPTORS_PENDING_MAX: usize = 8 * PENDING_MAX;

/// `Flags` of a READ: the answer may be compressed.
const READ_COMPRESSED: u8 = 2;

/// Which end of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who came over SMB Direct.
    Client,
    /// Who is reached over TCP.
    Server,
}

/// Why a connection cannot go on through a gateway.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// The client's message is none of SMB2, or says what it may not.
    #[error("the client's message: {0}")]
    Client(crate::Error),
    /// The server's message is none of SMB2, or says what it may not.
    #[error("the server's message: {0}")]
    Server(crate::Error),
    /// A signature covers what would have to be changed.
    #[error(
        "{command:?} {message} is signed and has RDMA channel information: a gateway has no key to \
         sign what it has to change. Mount without signing, or without RDMA for data"
    )]
    Signed {
        /// READ or WRITE.
        command: Command,
        /// Its MessageId.
        message: u64,
    },
    /// The server signed the answer to what is not signed, and it would have to be changed.
    #[error("the server signed its answer to READ {message}, which a gateway has to change")]
    SignedAnswer {
        /// Its MessageId.
        message: u64,
    },
    /// Channel information in a compound, which no client is known to send.
    #[error("{command:?} {message} with RDMA channel information is in a compound")]
    Compound {
        /// READ or WRITE.
        command: Command,
        /// Its MessageId.
        message: u64,
    },
    /// Channel information before a dialect is chosen that has it (MS-SMB2 3.3.5.12).
    #[error("channel {channel} in dialect {dialect:#06x}, which does not have it")]
    Dialect {
        /// What was asked for.
        channel: u32,
        /// What the server chose; 0 before that.
        dialect: u16,
    },
    /// Channel information before anybody has logged on: nobody's data takes memory here.
    #[error("{command:?} {message} with RDMA channel information comes before there is a session")]
    NoSession {
        /// READ or WRITE.
        command: Command,
        /// Its MessageId.
        message: u64,
    },
    /// More data than the gateway carries at once.
    #[error("{command:?} {message} of {got} bytes, more than {max}")]
    Long {
        /// READ or WRITE.
        command: Command,
        /// Its MessageId.
        message: u64,
        /// Bytes.
        got: u32,
        /// Bytes that it may have.
        max: u32,
    },
    /// A number is used while it is.
    #[error("message {message} is sent for the second time before it is answered")]
    Twice {
        /// Its MessageId.
        message: u64,
    },
    /// Nobody has as many credits.
    #[error("more than {PENDING_MAX} requests with RDMA channel information are not answered")]
    TooMany,
    /// More memory is named than any client has requests for.
    #[error("READs with more than {DESCRIPTORS_PENDING_MAX} memory descriptors are not answered")]
    TooManyDescriptors,
}

impl Error {
    /// Who caused it.
    #[must_use]
    pub fn side(&self) -> Side {
        match self {
            Self::Server(_) | Self::SignedAnswer { .. } => Side::Server,
            _ => Side::Client,
        }
    }
}

/// What is to be done with a message from the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToServer {
    /// It goes on as it is.
    Pass,
    /// This goes on instead: a READ without channel.
    Read([u8; READ_LEN]),
    /// A WRITE with its data in the message.
    Write {
        /// Goes on, with the data behind it.
        head: [u8; WRITE_HEAD_LEN],
        /// Where in the client's memory the data is.
        from: Vec<Descriptor>,
        /// Its bytes, from where the memory begins.
        len: u32,
    },
}

/// What is to be done with a message from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToClient {
    /// It goes on as it is.
    Pass {
        /// The registration of the client's that ends with it.
        invalidate: Option<u32>,
    },
    /// Data of a READ is written into the client's memory, and the answer sent behind it.
    Place {
        /// Where in the message the data is: behind the first [`ANSWER_LEN`] bytes.
        at: usize,
        /// Its bytes.
        len: u32,
        /// Where in the client's memory they go, from its begin.
        to: Vec<Descriptor>,
        /// What is sent instead of the message.
        answer: [u8; ANSWER_LEN],
        /// The registration of the client's that ends with it.
        invalidate: Option<u32>,
    },
}

/// A request with channel information that was changed and is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pending {
    Read {
        to: Vec<Descriptor>,
        len: u32,
        invalidate: Option<u32>,
    },
    Write {
        len: u32,
        invalidate: Option<u32>,
    },
}

/// What one connection through a gateway remembers.
#[derive(Clone, Debug)]
pub struct Gateway {
    max: u32,
    /// What the server chose; 0 before that.
    dialect: u16,
    /// Whether the server has taken anybody.
    session: bool,
    pending: BTreeMap<u64, Pending>,
    /// Descriptors in them.
    descriptors: usize,
}

impl Pending {
    /// Memory descriptors that it keeps.
    fn descriptors(&self) -> usize {
        match self {
            Self::Read { to, .. } => to.len(),
            Self::Write { .. } => 0,
        }
    }
}

/// Whether a message that begins so has another one in it: all of it has to be seen.
#[must_use]
pub fn is_compound(head: &[u8]) -> bool {
    Header::parse_any(head).is_ok_and(|header| header.next_command.get() != 0)
}

/// Whether nobody without a key can see what is in a message.
fn is_opaque(head: &[u8]) -> bool {
    [TRANSFORM_ID, COMPRESSION_ID]
        .iter()
        .any(|id| head.starts_with(&id.to_le_bytes()))
}

/// The headers of a compound that are in `bytes`, each with what follows it; as
/// [`crate::header::Compound`], of whatever command.
fn each(
    mut bytes: &[u8],
    mut part: impl FnMut(&Header, &[u8]) -> Result<(), Error>,
    wrong: impl Fn(crate::Error) -> Error,
) -> Result<(), Error> {
    for _ in 0..COMPOUND_MAX {
        let header = Header::parse_any(bytes).map_err(&wrong)?;
        let next = header.next_command.get();
        let at = next as usize;
        if next == 0 {
            return part(&header, bytes);
        }
        if at < Header::LEN || !at.is_multiple_of(8) || at >= bytes.len() {
            let len = bytes.len();
            return Err(wrong(crate::Error::NextCommand { next, len }));
        }
        part(&header, &bytes[..at])?;
        bytes = &bytes[at..];
    }
    Err(wrong(crate::Error::TooMany {
        what: "messages in a compound",
        max: COMPOUND_MAX,
    }))
}

/// What a READ or WRITE says of channels.
fn channel_of(command: u16, message: &[u8]) -> Result<Option<(Command, u32)>, Error> {
    let (command, channel) = match Command::of(command) {
        Ok(Command::Read) => {
            let read = ReadRequest::read(message).map_err(Error::Client)?;
            (Command::Read, read.channel.get())
        }
        Ok(Command::Write) => {
            let write = WriteRequest::read(message).map_err(Error::Client)?;
            (Command::Write, write.channel.get())
        }
        _ => return Ok(None),
    };
    Ok((channel != channel::NONE).then_some((command, channel)))
}

impl Gateway {
    /// A connection on which nothing was said. READ and WRITE have `max` bytes at most.
    #[must_use]
    pub fn new(max: u32) -> Self {
        Self {
            max,
            dialect: 0,
            session: false,
            pending: BTreeMap::new(),
            descriptors: 0,
        }
    }

    /// Requests with channel information that are not answered.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Takes a message from the client, whole.
    ///
    /// # Errors
    /// The connection has to end.
    pub fn from_client(&mut self, message: &[u8]) -> Result<ToServer, Error> {
        if is_opaque(message) {
            return Ok(ToServer::Pass);
        }
        if is_compound(message) {
            each(message, refuse_channel, Error::Client)?;
            return Ok(ToServer::Pass);
        }
        let header = Header::parse_any(message).map_err(Error::Client)?;
        let Some((command, channel)) = channel_of(header.command.get(), message)? else {
            return Ok(ToServer::Pass);
        };
        let id = header.message_id.get();
        if header.is(flags::SIGNED) {
            return Err(Error::Signed {
                command,
                message: id,
            });
        }
        self.may_have(channel)?;
        if !self.session {
            return Err(Error::NoSession {
                command,
                message: id,
            });
        }
        if self.pending.contains_key(&id) {
            return Err(Error::Twice { message: id });
        }
        if self.pending.len() >= PENDING_MAX {
            return Err(Error::TooMany);
        }
        let (pending, to_server) = match command {
            Command::Read => self.read(&header, message)?,
            _ => self.write(&header, message)?,
        };
        let descriptors = self.descriptors + pending.descriptors();
        if descriptors > DESCRIPTORS_PENDING_MAX {
            return Err(Error::TooManyDescriptors);
        }
        self.descriptors = descriptors;
        self.pending.insert(id, pending);
        Ok(to_server)
    }

    /// Whether the dialect has this channel: what is unknown is refused with its descriptors.
    fn may_have(&self, channel: u32) -> Result<(), Error> {
        let since = match channel {
            channel::RDMA_V1_INVALIDATE => dialect::SMB_3_0_2,
            _ => dialect::SMB_3_0,
        };
        match self.dialect >= since {
            true => Ok(()),
            false => Err(Error::Dialect {
                channel,
                dialect: self.dialect,
            }),
        }
    }

    /// The client's memory, which has to have room for `len` bytes.
    fn memory(
        &self,
        command: Command,
        header: &Header,
        memory: Result<Vec<Descriptor>, crate::Error>,
        len: u32,
    ) -> Result<Vec<Descriptor>, Error> {
        let memory = memory.map_err(Error::Client)?;
        let reach = io::reach(&memory).map_err(Error::Client)?;
        let max = self.max.min(reach);
        if len > max {
            let message = header.message_id.get();
            return Err(Error::Long {
                command,
                message,
                got: len,
                max,
            });
        }
        Ok(memory)
    }

    fn read(&self, header: &Header, message: &[u8]) -> Result<(Pending, ToServer), Error> {
        let read = ReadRequest::read(message).map_err(Error::Client)?;
        let len = read.length.get();
        let to = self.memory(Command::Read, header, read.descriptors(message), len)?;
        let plain = ReadRequest {
            flags: read.flags & !READ_COMPRESSED,
            channel: channel::NONE.into(),
            remaining: 0.into(),
            channel_offset: 0.into(),
            channel_length: 0.into(),
            ..read
        };
        let mut bytes = [0; READ_LEN];
        bytes[..Header::LEN].copy_from_slice(header.as_bytes());
        bytes[Header::LEN..READ_LEN - 1].copy_from_slice(plain.as_bytes());
        let invalidate = invalidated(read.channel.get(), &to);
        let pending = Pending::Read {
            to,
            len,
            invalidate,
        };
        Ok((pending, ToServer::Read(bytes)))
    }

    fn write(&self, header: &Header, message: &[u8]) -> Result<(Pending, ToServer), Error> {
        let write = WriteRequest::read(message).map_err(Error::Client)?;
        let len = write.remaining.get();
        // The data is in one place (MS-SMB2 3.2.4.7), and there is some.
        let inline = write.length.get();
        if inline != 0 || len == 0 {
            let (field, value) = match inline {
                0 => ("RemainingBytes of a WRITE with a channel", 0),
                _ => ("Length of a WRITE with a channel", inline.into()),
            };
            return Err(Error::Client(crate::Error::Field { field, value }));
        }
        let from = self.memory(Command::Write, header, write.descriptors(message), len)?;
        let plain = WriteRequest {
            channel: channel::NONE.into(),
            remaining: 0.into(),
            channel_offset: 0.into(),
            channel_length: 0.into(),
            ..write
        };
        let mut head = [0; WRITE_HEAD_LEN];
        head[..Header::LEN].copy_from_slice(header.as_bytes());
        head[Header::LEN..].copy_from_slice(&plain.head(len));
        let invalidate = invalidated(write.channel.get(), &from);
        let pending = Pending::Write { len, invalidate };
        Ok((pending, ToServer::Write { head, from, len }))
    }

    /// Takes a message of `len` bytes from the server, which begins with `head`: all of it, or
    /// [`HEAD_MAX`] bytes of one that is no [compound](is_compound).
    ///
    /// # Errors
    /// The connection has to end.
    pub fn from_server(&mut self, head: &[u8], len: usize) -> Result<ToClient, Error> {
        if is_opaque(head) {
            return Ok(ToClient::Pass { invalidate: None });
        }
        if is_compound(head) {
            let pending = &self.pending;
            let known =
                |header: &Header, _: &[u8]| match pending.contains_key(&header.message_id.get()) {
                    // Nothing that was asked for alone is answered so.
                    true => Err(Error::Server(crate::Error::NotAwaited {
                        message: header.message_id.get(),
                    })),
                    false => Ok(()),
                };
            each(head, known, Error::Server)?;
            return Ok(ToClient::Pass { invalidate: None });
        }
        let header = Header::parse_any(head).map_err(Error::Server)?;
        let has_succeeded = header.status.get() == status::SUCCESS;
        if has_succeeded && header.command.get() == Command::Negotiate as u16 {
            let chosen = negotiate::Response::read(head).map_err(Error::Server)?;
            self.dialect = chosen.dialect.get();
        }
        self.session |= has_succeeded && header.command.get() == Command::SessionSetup as u16;
        let id = header.message_id.get();
        let is_interim = header.status.get() == status::PENDING && header.is(flags::ASYNC);
        if is_interim || !header.is(flags::RESPONSE) {
            return Ok(ToClient::Pass { invalidate: None });
        }
        let pending = self.pending.remove(&id);
        self.descriptors -= pending.as_ref().map_or(0, Pending::descriptors);
        match pending {
            None => Ok(ToClient::Pass { invalidate: None }),
            Some(Pending::Read {
                to,
                len: max,
                invalidate,
            }) => {
                same_command(&header, Command::Read)?;
                answered_read(&header, head, len, (to, max, invalidate))
            }
            Some(Pending::Write {
                len: max,
                invalidate,
            }) => {
                same_command(&header, Command::Write)?;
                if header.status.get() == status::SUCCESS {
                    let count = WriteResponse::read(head)
                        .map_err(Error::Server)?
                        .count
                        .get();
                    at_most("what was written", count, max)?;
                }
                Ok(ToClient::Pass { invalidate })
            }
        }
    }
}

/// No part of a compound may have a channel.
fn refuse_channel(header: &Header, message: &[u8]) -> Result<(), Error> {
    match channel_of(header.command.get(), message)? {
        Some((command, _)) => Err(Error::Compound {
            command,
            message: header.message_id.get(),
        }),
        None => Ok(()),
    }
}

/// The token that ends with the answer (MS-SMB2 3.3.4.1): the first one.
fn invalidated(channel: u32, memory: &[Descriptor]) -> Option<u32> {
    let first = memory.first().map(|first| first.token.get());
    first.filter(|_| channel == channel::RDMA_V1_INVALIDATE)
}

fn same_command(header: &Header, want: Command) -> Result<(), Error> {
    let got = Command::of(header.command.get()).map_err(Error::Server)?;
    if got == want {
        return Ok(());
    }
    let message = header.message_id.get();
    Err(Error::Server(crate::Error::OtherCommand {
        message,
        want,
        got,
    }))
}

fn at_most(what: &'static str, got: u32, max: u32) -> Result<(), Error> {
    if got <= max {
        return Ok(());
    }
    let (got, max) = (got.into(), max.into());
    Err(Error::Server(crate::Error::Long { what, got, max }))
}

/// The answer to a READ that was changed: its data goes to the client's memory.
fn answered_read(
    header: &Header,
    head: &[u8],
    len: usize,
    (to, max, invalidate): (Vec<Descriptor>, u32, Option<u32>),
) -> Result<ToClient, Error> {
    // A pipe says that there is more, and gives some all the same.
    let has_data = matches!(
        header.status.get(),
        status::SUCCESS | status::BUFFER_OVERFLOW
    );
    if !has_data {
        return Ok(ToClient::Pass { invalidate });
    }
    if header.is(flags::SIGNED) {
        let message = header.message_id.get();
        return Err(Error::SignedAnswer { message });
    }
    // An error's body says so by its size.
    let read = match ReadResponse::read(head) {
        Err(_) if header.status.get() != status::SUCCESS => {
            return Ok(ToClient::Pass { invalidate });
        }
        read => read.map_err(Error::Server)?,
    };
    let (at, length) = (usize::from(read.data_offset), read.data_length.get());
    at_most("data of a READ", length, max)?;
    let end = at as u64 + u64::from(length);
    if length > 0 && (at < ReadResponse::end() || end > len as u64) {
        return Err(Error::Server(crate::Error::Outside {
            what: "data of a READ",
            offset: at as u64,
            length: length.into(),
            from: ReadResponse::end(),
            len,
        }));
    }
    let told = ReadResponse {
        data_offset: 0,
        data_length: 0.into(),
        data_remaining: length.into(),
        ..read
    };
    let mut answer = [0; ANSWER_LEN];
    answer[..Header::LEN].copy_from_slice(header.as_bytes());
    answer[Header::LEN..].copy_from_slice(told.as_bytes());
    Ok(ToClient::Place {
        at,
        len: length,
        to,
        answer,
        invalidate,
    })
}
