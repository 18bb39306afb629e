//! A client's end of a connection with one session and one share, without I/O.
//!
//! Requests go in and messages come out; messages that arrive go in and [`Event`]s come
//! out. Requests in flight are known by their MessageId; each response is matched, its
//! signature or seal is checked before anything in it counts, and credits are kept. What is
//! in a response beyond that is checked by who reads it, with the types of this crate.

mod message;
mod options;
mod receive;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::mem;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use crate::credits::{CREDIT_BYTES, Credits};
use crate::error::Error;
use crate::header::{self, Command, Header, flags};
use crate::io::{ReadRequest, WriteRequest, channel};
use crate::ioctl::{self, IoctlRequest, IoctlResponse, ValidateRequest, ValidateResponse};
use crate::negotiate::{Contexts, NegotiateRequest, Request as NegotiateFixed, SHA_512, dialect};
use crate::notify::Break;
use crate::security::{Preauth, Sealer, Signer, TRANSFORM_LEN};
use crate::session::{Empty, SetupRequest, TreeConnectRequest};
use crate::wire::{self, Body};

pub use message::{Message, ROOM};
pub use options::{Agreed, Options, describe};

/// Bytes of messages besides their payload, at most: what is allowed on top of it.
const AROUND: usize = 65_536;

/// What protects the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// All requests are signed.
    pub signed: bool,
    /// All requests are encrypted.
    pub encrypted: bool,
    /// The server takes the user for a guest, or for nobody.
    pub guest: bool,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was said.
    Fresh,
    /// NEGOTIATE is under way.
    Negotiating,
    /// It is answered; the log-on may begin or go on.
    LoggingOn,
    /// There is a session.
    Ready,
    /// The server broke the protocol, or the session is over.
    Ended,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it is about.
    pub command: Command,
    /// [`ROOM`] bytes, and what stands behind the header.
    bytes: Vec<u8>,
    /// Bytes of data that it carries or asks for: what it costs, and the most that its
    /// response may have.
    pub payload: u32,
}

impl Request {
    fn is_remote(&self) -> bool {
        self.channel() != channel::NONE
    }

    /// One with a body that is all in its fixed part.
    #[must_use]
    pub fn fixed<T: Body>(body: &T) -> Self {
        Self::new(T::COMMAND, body.as_bytes().to_vec(), 0)
    }

    /// The channel that its payload takes: [`channel::NONE`] is the message itself.
    fn channel(&self) -> u32 {
        let channel = match self.command {
            Command::Read => {
                wire::view("a READ", self.body()).map(|read: ReadRequest| read.channel)
            }
            Command::Write => {
                wire::view("a WRITE", self.body()).map(|write: WriteRequest| write.channel)
            }
            _ => return channel::NONE,
        };
        channel.map_or(channel::NONE, U32::get)
    }

    /// One with this body and payload.
    #[must_use]
    pub fn new(command: Command, body: Vec<u8>, payload: u32) -> Self {
        Self::with_room(command, [&[0; ROOM][..], &body].concat(), payload)
    }

    /// The same, where `bytes` are [`ROOM`] bytes of any value and the body behind them: the
    /// message is made there, and its payload stays where it is.
    ///
    /// # Panics
    /// There is no room.
    #[must_use]
    pub fn with_room(command: Command, bytes: Vec<u8>, payload: u32) -> Self {
        assert!(bytes.len() >= ROOM, "there is no room for a header");
        Self {
            command,
            bytes,
            payload,
        }
    }

    /// What stands behind the header.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.bytes[ROOM..]
    }
}

/// The number of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// To which.
    pub id: RequestId,
    /// Its header.
    pub header: Header,
    bytes: Vec<u8>,
    start: usize,
}

impl Response {
    /// The message, header included, as the types of this crate read it.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// What the server says: [`crate::status`].
    #[must_use]
    pub fn status(&self) -> u32 {
        self.header.status.get()
    }
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// NEGOTIATE is answered: the server's first token.
    Negotiated(Vec<u8>),
    /// The server's token: the log-on goes on with another one.
    Token(Vec<u8>),
    /// There is a session.
    LoggedOn(Protection),
    /// A request is answered.
    Response(Response),
    /// An oplock or a lease is taken back.
    Break(Break),
}

/// A request in flight.
#[derive(Clone, Debug)]
struct Pending {
    command: Command,
    payload: u32,
    signed: bool,
    sealed: bool,
    /// Its payload does not come in a message.
    remote: bool,
    async_id: Option<u64>,
}

/// A client's end.
#[derive(Debug)]
pub struct Client {
    options: Options,
    phase: Phase,
    credits: Credits,
    pending: BTreeMap<u64, Pending>,
    agreed: Option<Agreed>,
    preauth: Preauth,
    /// The key of the authentication, from its last token until it is answered.
    key: Option<[u8; 16]>,
    session: u64,
    tree: u32,
    protection: Protection,
    signer: Option<Signer>,
    sealer: Option<Sealer>,
    out: VecDeque<Message>,
    events: VecDeque<Event>,
}

impl Client {
    /// A connection on which nothing was said.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            credits: Credits::new(options.credits),
            options,
            phase: Phase::Fresh,
            pending: BTreeMap::new(),
            agreed: None,
            preauth: Preauth::default(),
            key: None,
            session: 0,
            tree: 0,
            protection: Protection::default(),
            signer: None,
            sealer: None,
            out: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// How far it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What was agreed upon, once it was.
    #[must_use]
    pub fn agreed(&self) -> Option<&Agreed> {
        self.agreed.as_ref()
    }

    /// What protects the session, and the share.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// The number of the session; 0 while there is none.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Requests that are not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// The first request that is not answered, and whether the server has said that it takes time.
    #[must_use]
    pub fn oldest(&self) -> Option<(RequestId, bool)> {
        let (id, pending) = self.pending.first_key_value()?;
        Some((RequestId(*id), pending.async_id.is_some()))
    }

    /// The most that one request may carry or ask for with the credits that are held, in
    /// bytes.
    #[must_use]
    pub fn affordable(&self) -> u32 {
        self.credits.held().saturating_mul(CREDIT_BYTES)
    }

    /// The longest message that the server may send now.
    #[must_use]
    pub fn message_max(&self) -> usize {
        let agreed = self
            .agreed
            .map_or(0, |agreed| agreed.max_read.max(agreed.max_transact));
        agreed as usize + AROUND
    }

    /// The next message that is to be sent.
    pub fn poll_out(&mut self) -> Option<Message> {
        self.out.pop_front()
    }

    /// What has happened since.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn is_in(&self, phase: Phase, what: &'static str) -> Result<(), Error> {
        if self.phase == phase {
            return Ok(());
        }
        Err(Error::State { what })
    }

    /// Begins.
    ///
    /// # Errors
    /// It has begun.
    pub fn negotiate(&mut self) -> Result<(), Error> {
        self.is_in(Phase::Fresh, "NEGOTIATE")?;
        let newest = self.options.dialects.contains(&dialect::SMB_3_1_1);
        let ciphers = self.options.ciphers.iter().map(|cipher| *cipher as u16);
        let signings = self.options.signings.iter().map(|signing| *signing as u16);
        let request = NegotiateRequest {
            fixed: NegotiateFixed {
                security_mode: self.options.security_mode().into(),
                capabilities: self.options.capabilities().into(),
                client_guid: self.options.guid,
                ..NegotiateFixed::new()
            },
            dialects: self.options.dialects.clone(),
            contexts: match newest {
                false => Contexts::default(),
                true => Contexts {
                    hashes: alloc::vec![SHA_512],
                    salt: self.options.salt.to_vec(),
                    ciphers: ciphers.collect(),
                    signings: signings.collect(),
                },
            },
        };
        self.phase = Phase::Negotiating;
        let request = Request::new(Command::Negotiate, request.body(), 0);
        self.send(&mut [request]).map(drop)
    }

    /// A step of the log-on. With the last token comes the key of the session, if the
    /// authentication has one.
    ///
    /// # Errors
    /// It is not the time, or the token is too long.
    pub fn log_on(&mut self, token: &[u8], key: Option<[u8; 16]>) -> Result<(), Error> {
        self.is_in(Phase::LoggingOn, "SESSION_SETUP")?;
        if !self.pending.is_empty() {
            return Err(Error::State {
                what: "SESSION_SETUP before the one before is answered",
            });
        }
        self.key = key;
        let [mode, _] = self.options.security_mode().to_le_bytes();
        let fixed = SetupRequest {
            security_mode: mode,
            previous_session: self.options.previous_session.into(),
            ..SetupRequest::new()
        };
        let request = Request::new(Command::SessionSetup, fixed.body(token)?, 0);
        self.send(&mut [request]).map(drop)
    }

    /// How READ and WRITE may name memory that the server reaches by RDMA: [`channel`]; not at
    /// all where messages are signed or encrypted, since payload that goes another way is
    /// neither (MS-SMB2 3.2.4.6; m:1422bba9b), nor before there is a session.
    #[must_use]
    pub fn channel(&self) -> Option<u32> {
        let agreed = self.agreed.filter(|_| self.phase == Phase::Ready)?;
        if self.protection.signed || self.protection.encrypted {
            return None;
        }
        match agreed.dialect {
            dialect::SMB_2_1 => None,
            dialect::SMB_3_0 => Some(channel::RDMA_V1),
            _ => Some(channel::RDMA_V1_INVALIDATE),
        }
    }

    /// Asks for a share: `\\host\share`.
    ///
    /// # Errors
    /// There is no session.
    pub fn connect(&mut self, share: &str) -> Result<RequestId, Error> {
        let body = TreeConnectRequest::new().body(share);
        self.request(Request::new(Command::TreeConnect, body, 0))
    }

    /// Ends the session.
    ///
    /// # Errors
    /// There is none.
    pub fn log_off(&mut self) -> Result<RequestId, Error> {
        self.request(Request::new(
            Command::Logoff,
            Empty::new().as_bytes().to_vec(),
            0,
        ))
    }

    /// One request.
    ///
    /// # Errors
    /// There is no session, or there are not enough credits.
    pub fn request(&mut self, request: Request) -> Result<RequestId, Error> {
        let ids = self.requests(&mut [request])?;
        Ok(ids[0])
    }

    /// Several requests in one compound, each about the file of the one before. None is
    /// sent, and all are as they were, if there are no credits for one; else what was in them
    /// may be taken.
    ///
    /// # Errors
    /// There is no session, there are not enough credits, or there is no request.
    pub fn requests(&mut self, requests: &mut [Request]) -> Result<Vec<RequestId>, Error> {
        self.is_in(Phase::Ready, "a request")?;
        self.send(requests)
    }

    /// Has a request cancelled. It is answered all the same, one way or the other.
    ///
    /// # Errors
    /// There is no session.
    pub fn cancel(&mut self, id: RequestId) -> Result<(), Error> {
        self.is_in(Phase::Ready, "CANCEL")?;
        let Some(pending) = self.pending.get(&id.0) else {
            return Ok(());
        };
        let mut header = Header::request(Command::Cancel);
        header.message_id = id.0.into();
        header.session_id = self.session.into();
        header.tree_id = self.tree.into();
        if let Some(number) = pending.async_id {
            let bytes = number.to_le_bytes();
            let half =
                |at: usize| U32::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            header.flags |= U32::new(flags::ASYNC);
            (header.process_id, header.tree_id) = (half(0), half(4));
        }
        let (signed, sealed) = (pending.signed, pending.sealed);
        let mut message = [&[0; ROOM][..], Empty::new().as_bytes()].concat();
        message[ROOM - Header::LEN..ROOM].copy_from_slice(header.as_bytes());
        self.protect(message, signed, sealed)
    }

    /// Whether what was negotiated has yet to be confirmed under a signature: all dialects
    /// before 3.1.1, with a key (MS-SMB2 3.2.5.5). What to ask for that.
    #[must_use]
    pub fn validation(&self) -> Option<Request> {
        let agreed = self.agreed?;
        if agreed.dialect == dialect::SMB_3_1_1 || self.signer.is_none() {
            return None;
        }
        let fixed = ValidateRequest {
            capabilities: self.options.capabilities().into(),
            guid: self.options.guid,
            security_mode: self.options.security_mode().into(),
            dialect_count: wire::len16(self.options.dialects.len()).into(),
        };
        let mut input = fixed.as_bytes().to_vec();
        for dialect in &self.options.dialects {
            input.extend_from_slice(&dialect.to_le_bytes());
        }
        let output = wire::len32(size_of::<ValidateResponse>());
        let request = IoctlRequest {
            code: ioctl::code::VALIDATE_NEGOTIATE_INFO.into(),
            file: ioctl::NO_FILE,
            max_output: output.into(),
            ..IoctlRequest::new()
        };
        Some(Request::new(Command::Ioctl, request.body(&input), output))
    }

    /// Whether the answer to [`Client::validation`] says what was negotiated. A server that
    /// does not know the question says so in a signed answer, and that is fine.
    ///
    /// # Errors
    /// [`Error::Downgraded`], and the connection has to end.
    pub fn validated(&self, response: &Response) -> Result<(), Error> {
        let agreed = self.agreed.ok_or(Error::State {
            what: "a validation",
        })?;
        if crate::status::is_error(response.status()) {
            return Ok(());
        }
        let output = IoctlResponse::read(response.message())?.output(response.message())?;
        let said: ValidateResponse = wire::view("what was negotiated", output)?;
        let rows = [
            (
                "the capabilities",
                said.capabilities.get() == agreed.capabilities,
            ),
            ("the server's GUID", said.guid == agreed.server_guid),
            (
                "the security mode",
                said.security_mode.get() == agreed.security_mode,
            ),
            ("the dialect", said.dialect.get() == agreed.dialect),
        ];
        match rows.iter().find(|row| !row.1) {
            Some((what, _)) => Err(Error::Downgraded { what }),
            None => Ok(()),
        }
    }

    /// Whether this command is signed though others are not: what confirms a negotiation.
    fn always_signed(&self, request: &Request) -> bool {
        let newest = self
            .agreed
            .is_some_and(|agreed| agreed.dialect == dialect::SMB_3_1_1);
        match request.command {
            Command::TreeConnect => newest,
            Command::Ioctl => {
                let code = request.body().get(4..8).unwrap_or_default();
                code == ioctl::code::VALIDATE_NEGOTIATE_INFO.to_le_bytes()
            }
            _ => false,
        }
    }

    /// Gives requests their headers and sends them.
    fn send(&mut self, requests: &mut [Request]) -> Result<Vec<RequestId>, Error> {
        if requests.is_empty() || requests.len() > header::COMPOUND_MAX {
            return Err(Error::State {
                what: "a compound of so many requests",
            });
        }
        // The channels are in the order of their dialects.
        let most = self.channel().unwrap_or(channel::NONE);
        if requests.iter().any(|request| request.channel() > most) {
            return Err(Error::State {
                what: "payload by RDMA, where it is signed or encrypted or the dialect has no such thing,",
            });
        }
        let ready = self.phase == Phase::Ready;
        let sealed = ready && self.protection.encrypted;
        let always = requests.iter().any(|request| self.always_signed(request));
        let signed =
            ready && !sealed && self.signer.is_some() && (self.protection.signed || always);
        // All or none is sent, so credits are taken from a copy.
        let mut credits = self.credits;
        let mut charged = Vec::with_capacity(requests.len());
        for request in requests.iter() {
            let charge = Credits::charge(request.payload)?;
            charged.push((charge, credits.take(charge)?));
        }
        for (index, (request, (charge, id))) in requests.iter_mut().zip(&charged).enumerate() {
            let mut header = Header::request(request.command);
            header.credit_charge = (*charge).into();
            header.credits = credits.request(*charge).into();
            header.message_id = (*id).into();
            header.session_id = self.session.into();
            header.tree_id = self.tree.into();
            if index > 0 {
                header.flags |= U32::new(flags::RELATED);
            }
            request.bytes[ROOM - Header::LEN..ROOM].copy_from_slice(header.as_bytes());
        }
        let remotes: Vec<bool> = requests.iter().map(Request::is_remote).collect();
        self.protect(join(requests), signed, sealed)?;
        self.credits = credits;
        for ((request, remote), (_, id)) in requests.iter().zip(remotes).zip(&charged) {
            let pending = Pending {
                command: request.command,
                payload: request.payload,
                signed,
                sealed,
                remote,
                async_id: None,
            };
            self.pending.insert(*id, pending);
        }
        Ok(charged.iter().map(|(_, id)| RequestId(*id)).collect())
    }

    /// Signs or encrypts what stands behind [`ROOM`] without its header, and puts it out.
    fn protect(&mut self, mut bytes: Vec<u8>, signed: bool, sealed: bool) -> Result<(), Error> {
        let mut start = ROOM - Header::LEN;
        if let (true, Some(signer)) = (signed, &self.signer) {
            let mut at = start;
            while at < bytes.len() {
                let next = Header::parse(&bytes[at..])?.next_command.get() as usize;
                let end = if next == 0 { bytes.len() } else { at + next };
                signer.sign(&mut bytes[at..end])?;
                at = end;
            }
        }
        if sealed {
            let sealer = self
                .sealer
                .as_mut()
                .ok_or(Error::State { what: "encryption" })?;
            start -= TRANSFORM_LEN;
            sealer.seal(&mut bytes[start..])?;
        } else if self.phase != Phase::Ready {
            // Over all that is said before there is a session.
            self.preauth.update(&bytes[start..]);
        }
        self.out.push_back(Message { bytes, start });
        Ok(())
    }
}

/// The bytes of requests whose headers are written: those of one as they are.
fn join(requests: &mut [Request]) -> Vec<u8> {
    if let [request] = requests {
        return mem::take(&mut request.bytes);
    }
    let start = ROOM - Header::LEN;
    let messages = requests
        .iter()
        .map(|request| request.bytes[start..].to_vec());
    let compound = header::compound(&messages.collect::<Vec<_>>());
    [&[0; ROOM - Header::LEN][..], &compound].concat()
}
