//! One connection: what carries it, time limit, log-on, and memory that is lent to the server.

mod lending;
mod log_on;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use linkspan_rdma::verbs::Access;
use linkspan_smb2::client::{
    Agreed, Client, Event, Options, Phase, Protection, ROOM, Request, RequestId, Response,
};
use linkspan_smb2::io::{ReadRequest, ReadResponse, WriteRequest};
use linkspan_smb2::notify::{Break, LeaseAck, LeaseBreak};
use linkspan_smb2::ntlm::Credentials;
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{Command, status};
use linkspan_sys::EventFd;
use rustix::rand::{GetRandomFlags, getrandom};

use super::data::{Data, Room};
use super::error::Error;
use super::transfer::CREDIT;
use super::transport::{Lent, Transport, Wanted};
use crate::smbdirect;
use lending::{no_memory, wire};

/// Where SMB servers listen.
pub const PORT: u16 = 445;

/// What of a message over SMB Direct is not payload, at most: headers, names, a seal.
const AROUND: u32 = 8192;

/// Bytes that have to go one way or the other for a peer not to be silent: less than any
/// network carries in the time that it has.
const PROGRESS: u64 = 65_536;

/// What may be taken back of a lease before anybody looks: reads and the handle, one by one.
const BREAKS: usize = 2;

/// How many times as long a request may take of which the server says that it takes time.
const PATIENCE_ASYNC: u32 = 10;

/// Who logs on.
pub type Login = Credentials;

/// What is wanted of a connection.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Dialects, of `linkspan_smb2::negotiate::dialect::ALL`.
    pub dialects: Vec<u16>,
    /// Nothing goes unsigned.
    pub require_signing: bool,
    /// Nothing goes unencrypted.
    pub require_encryption: bool,
    /// The longest READ or WRITE, in bytes.
    pub max_io: u32,
    /// How long the server may answer nothing, and take or send less than 64 KiB, while
    /// something is asked.
    pub patience: Duration,
    /// What is to carry the messages.
    pub transport: Wanted,
    /// Where the server has SMB Direct, over iWARP.
    pub rdma_port: u16,
    /// A session without a key will do where the server takes the user for a guest.
    pub guest_allowed: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            dialects: linkspan_smb2::negotiate::dialect::ALL.to_vec(),
            require_signing: false,
            require_encryption: false,
            max_io: 1 << 20,
            patience: Duration::from_secs(30),
            transport: Wanted::default(),
            rdma_port: smbdirect::PORT_IWARP,
            guest_allowed: false,
        }
    }
}

/// A connection with a session.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    transport: Transport,
    /// Why it is not SMB Direct, if that was tried.
    instead: Option<String>,
    /// Answers that nobody has asked for yet.
    answers: BTreeMap<RequestId, Response>,
    /// Memory that the server may reach until it has answered.
    lent: BTreeMap<RequestId, Lent>,
    /// Memory that is ours again, with data of answers that came by RDMA.
    placed: BTreeMap<RequestId, Lent>,
    /// Requests whose answers nobody wants any more.
    forgotten: BTreeSet<RequestId>,
    /// The key of the lease that may have been granted, and what was taken back of it.
    lease: Option<[u8; 16]>,
    broken: VecDeque<LeaseBreak>,
    /// Since when the server says nothing though something is asked, and the bytes that had
    /// moved then.
    silent: Option<(Instant, u64)>,
    /// The first request without an answer, since one that was asked later was answered.
    overtaken: Option<(RequestId, Instant)>,
    patience: Duration,
    /// When the server said what time it is.
    timed: Instant,
}

/// Random bytes of the system.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let got = getrandom(&mut bytes[filled..], GetRandomFlags::empty());
        filled += got.map_err(|error| Error::Here(error.into()))?;
    }
    Ok(bytes)
}

impl Connection {
    /// Connects, negotiates and logs on.
    ///
    /// # Errors
    /// Whatever the first step is that does not work; nothing is left then.
    pub fn open(host: &str, port: u16, login: &Login, settings: &Settings) -> Result<Self, Error> {
        Self::open_after(host, port, login, settings, (random()?, 0))
    }

    /// The same, as the client with this GUID, in the place of a connection with this
    /// [session](Self::session): what is under way there is over before this one is there, or
    /// the server does not know that.
    ///
    /// # Errors
    /// As for [`Connection::open`].
    pub fn open_after(
        host: &str,
        port: u16,
        login: &Login,
        settings: &Settings,
        (guid, session): ([u8; 16], u64),
    ) -> Result<Self, Error> {
        let (transport, instead) = Transport::open(host, port, settings)?;
        let mut options = Options::new(guid, random()?);
        options.dialects.clone_from(&settings.dialects);
        options.require_signing = settings.require_signing;
        options.require_encryption = settings.require_encryption;
        options.max_io = settings.max_io;
        options.guest_allowed = settings.guest_allowed;
        options.previous_session = session;
        let client = Client::new(options);
        let mut connection = Self {
            client,
            transport,
            instead,
            answers: BTreeMap::new(),
            lent: BTreeMap::new(),
            placed: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            lease: None,
            broken: VecDeque::new(),
            silent: None,
            overtaken: None,
            patience: settings.patience,
            timed: Instant::now(),
        };
        connection.log_on(login)?;
        Ok(connection)
    }

    /// What was agreed upon.
    #[must_use]
    pub fn agreed(&self) -> Option<&Agreed> {
        self.client.agreed()
    }

    /// The number of its session.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.client.session()
    }

    /// What protects it.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.client.protection()
    }

    /// What carries it.
    #[must_use]
    pub fn transport(&self) -> &'static str {
        self.transport.text()
    }

    /// Whether that is SMB Direct.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.transport.bounds().is_some()
    }

    /// Why it is not SMB Direct, if that was tried.
    #[must_use]
    pub fn instead(&self) -> Option<&str> {
        self.instead.as_deref()
    }

    /// The server's clock now: 100 ns since 1601; 0 if it does not say.
    pub(super) fn server_time(&self) -> u64 {
        let then = self.client.agreed().map_or(0, |agreed| agreed.system_time);
        let since = u64::try_from(self.timed.elapsed().as_nanos() / 100).unwrap_or(0);
        if then == 0 {
            0
        } else {
            then.saturating_add(since)
        }
    }

    /// Bytes of one READ and one WRITE, at most: what the server takes, and, over SMB Direct, what
    /// fits into one message or can be lent.
    pub(super) fn io_max(&self) -> (u32, u32) {
        let agreed = self.client.agreed();
        let (read, write) = agreed.map_or((0, 0), |agreed| (agreed.max_read, agreed.max_write));
        match self.transport.bounds() {
            // SMB Direct has at least 128 KiB.
            Some((out, into)) if self.client.channel().is_none() => {
                (read.min(into - AROUND), write.min(out - AROUND))
            }
            // Less than any server may take is refused when it is to be lent.
            _ => {
                let loan = self.transport.loan_max().max(CREDIT);
                (read.min(loan), write.min(loan))
            }
        }
    }

    /// The protocol's end, for what is asked of it alone.
    pub(super) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// The most that one request may carry or ask for with the credits that are there.
    pub(super) fn affordable(&self) -> u32 {
        self.client.affordable()
    }

    /// Sends a request as soon as there are credits for it.
    pub(super) fn submit(&mut self, request: Request) -> Result<RequestId, Error> {
        let ids = self.submit_all(&mut [request])?;
        Ok(ids[0])
    }

    /// Sends a compound as soon as there are credits for it.
    pub(super) fn submit_all(&mut self, requests: &mut [Request]) -> Result<Vec<RequestId>, Error> {
        loop {
            match self.client.requests(requests) {
                Err(linkspan_smb2::Error::Credits { .. }) if self.client.in_flight() > 0 => {
                    self.wait()?;
                }
                result => return Ok(result?),
            }
        }
    }

    /// Asks for data of a file: [`Self::data`] has it.
    pub(super) fn read(&mut self, request: ReadRequest, len: u32) -> Result<RequestId, Error> {
        let Some((channel, lent)) = self.lend(Access::WRITE, len)? else {
            return self.submit(Request::new(Command::Read, request.body(&[]), len));
        };
        let request = ReadRequest {
            channel: channel.into(),
            ..request
        };
        let body = request.body(&[wire(&lent)]);
        self.submit_lent(Request::new(Command::Read, body, len), lent)
    }

    /// Sends data of a file, which `source` puts where it is sent from.
    pub(super) fn write(
        &mut self,
        request: WriteRequest,
        len: u32,
        source: impl FnOnce(Room<'_>) -> io::Result<()>,
    ) -> Result<RequestId, Error> {
        let Some((channel, lent)) = self.lend(Access::READ, len)? else {
            let head = request.head(len);
            let begin = ROOM + head.len();
            let mut bytes = self.transport.spare();
            bytes.resize(begin + len as usize, 0);
            bytes[ROOM..begin].copy_from_slice(&head);
            source(Room::Message(&mut bytes[begin..])).map_err(Error::Here)?;
            return self.submit(Request::with_room(Command::Write, bytes, len));
        };
        let place = self.transport.place(&lent);
        let filled = match place.map(|place| source(Room::Lent(place))) {
            Some(filled) => filled.map_err(Error::Here),
            None => Err(no_memory(len)),
        };
        if let Err(error) = filled {
            self.unlend(&lent);
            return Err(error);
        }
        let request = WriteRequest {
            channel: channel.into(),
            remaining: len.into(),
            ..request
        };
        let body = request.body_with_memory(&[wire(&lent)]);
        self.submit_lent(Request::new(Command::Write, body, len), lent)
    }

    /// Gives `take` the data of a READ that was answered; once.
    pub(super) fn data<R>(
        &mut self,
        response: &Response,
        take: impl FnOnce(Data<'_>) -> R,
    ) -> Result<R, Error> {
        let Some(lent) = self.placed.remove(&response.id) else {
            let message = response.message();
            let data = ReadResponse::read(message)?.data(message)?;
            return Ok(take(Data::Message(data)));
        };
        let place = self.transport.place(&lent).ok_or_else(|| no_memory(0))?;
        let taken = take(Data::Placed(place));
        self.transport.put_back(&lent);
        Ok(taken)
    }

    /// Nobody wants the answers to these any more.
    pub(super) fn forget(&mut self, ids: impl Iterator<Item = RequestId>) {
        for id in ids {
            if let Some(lent) = self.placed.remove(&id) {
                self.transport.put_back(&lent);
            }
            if self.answers.remove(&id).is_none() {
                self.forgotten.insert(id);
            }
        }
    }

    /// Waits until one of these is answered, and gives it.
    pub(super) fn any(&mut self, wanted: impl Fn(RequestId) -> bool) -> Result<Response, Error> {
        loop {
            let first = self.answers.keys().copied().find(|id| wanted(*id));
            if let Some(response) = first.and_then(|id| self.answers.remove(&id)) {
                return Ok(response);
            }
            self.wait()?;
        }
    }

    /// Asks and waits for the answer.
    pub(super) fn call(&mut self, request: Request) -> Result<Response, Error> {
        let id = self.submit(request)?;
        self.any(|answered| answered == id)
    }

    /// Waits until something was answered.
    fn wait(&mut self) -> Result<(), Error> {
        loop {
            self.exchange()?;
            if self.heed()? {
                return Ok(());
            }
        }
    }

    /// Takes note of what messages said; whether something was answered.
    fn heed(&mut self) -> Result<bool, Error> {
        let mut answered = false;
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Response(response) => {
                    self.answered(response)?;
                    answered = true;
                }
                Event::Break(Break::Lease(said))
                    if self.lease == Some(said.key) && self.broken.len() < BREAKS =>
                {
                    self.broken.push_back(said);
                }
                // No other lease and no oplock is ever asked for here.
                _ => return Err(linkspan_smb2::Error::Unasked.into()),
            }
        }
        Ok(answered)
    }

    /// The server may grant a lease with this key, and take it back.
    pub(super) fn expect_lease(&mut self, key: [u8; 16]) {
        self.lease = Some(key);
    }

    /// What of the lease was taken back.
    pub(super) fn broken(&mut self) -> Option<LeaseBreak> {
        self.broken.pop_front()
    }

    /// Says that it is not used any more.
    pub(super) fn acknowledge(&mut self, ack: &LeaseAck) -> Result<(), Error> {
        let id = self.submit(Request::fixed(ack))?;
        self.forget(std::iter::once(id));
        Ok(())
    }

    /// Has [`turn`](Self::turn) end when this is readable, too.
    pub(super) fn watch(&mut self, source: &EventFd) -> Result<(), Error> {
        self.transport.watch(source)
    }

    /// Requests that are not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.client.in_flight()
    }

    /// Whether the protocol was broken on it, or the session is over.
    pub(super) fn is_over(&self) -> bool {
        self.client.phase() == Phase::Ended
    }

    /// An answer that has come, to whatever.
    pub(super) fn answer(&mut self) -> Option<Response> {
        self.answers.pop_first().map(|(_, response)| response)
    }

    /// Sends what there is, and takes what has come. If that is nothing, waits until there is
    /// something, or what is watched is readable.
    pub(super) fn turn(&mut self) -> Result<(), Error> {
        self.transport.send(&mut self.client)?;
        let mut heard = false;
        while let Some(message) = self.transport.receive(self.client.message_max())? {
            self.client.receive(message)?;
            self.heed()?;
            heard = true;
        }
        if heard || self.client.in_flight() == 0 {
            self.silent = None;
        }
        let left_of_oldest = self.left_of_oldest()?;
        if heard || !self.answers.is_empty() {
            return Ok(());
        }
        if self.client.in_flight() == 0 {
            return self.transport.wait(None);
        }
        let moved = self.transport.moved();
        let now = Instant::now();
        let (since, before) = self.silent.get_or_insert((now, moved));
        if moved.saturating_sub(*before) >= PROGRESS {
            (*since, *before) = (now, moved);
        }
        let left = self.patience.saturating_sub(since.elapsed());
        if left.is_zero() {
            return Err(Error::Silent(self.patience));
        }
        let left = left_of_oldest.map_or(left, |other| other.min(left));
        self.transport.wait(Some(left))
    }

    /// How long the first request may still be without an answer, if others overtook it. A server
    /// that answers others and never this one would hold it for ever.
    fn left_of_oldest(&mut self) -> Result<Option<Duration>, Error> {
        let Some((oldest, takes_time)) = self.client.oldest() else {
            return Ok(None);
        };
        let Some((_, since)) = self.overtaken.filter(|(id, _)| *id == oldest) else {
            return Ok(None);
        };
        let patience = match takes_time {
            true => self.patience.saturating_mul(PATIENCE_ASYNC),
            false => self.patience,
        };
        let left = patience.saturating_sub(since.elapsed());
        if left.is_zero() {
            return Err(Error::Silent(patience));
        }
        Ok(Some(left))
    }

    /// Takes note of an answer: whether a request that was asked before has none.
    fn overtake(&mut self, answered: RequestId) {
        if let Some((oldest, _)) = self.client.oldest()
            && oldest < answered
            && self.overtaken.is_none_or(|(id, _)| id != oldest)
        {
            self.overtaken = Some((oldest, Instant::now()));
        }
    }

    /// What was lent for a request is ours again before anybody hears that it is answered.
    fn answered(&mut self, response: Response) -> Result<(), Error> {
        self.overtake(response.id);
        let wanted = !self.forgotten.remove(&response.id);
        if let Some(lent) = self.lent.remove(&response.id) {
            let is_data = response.header.command() == Ok(Command::Read)
                && response.status() == status::SUCCESS;
            self.transport.take_back(&lent)?;
            if is_data && wanted {
                let len = ReadResponse::read(response.message())?.data_remaining.get();
                self.placed.insert(response.id, lent.first(len));
            } else {
                self.transport.put_back(&lent);
            }
        }
        if wanted {
            self.answers.insert(response.id, response);
        }
        Ok(())
    }

    /// Sends and receives until a message has come. It is an answer, or says once that one
    /// takes time.
    fn exchange(&mut self) -> Result<(), Error> {
        let mut silent_since = Instant::now();
        let mut before = self.transport.moved();
        loop {
            self.transport.send(&mut self.client)?;
            let left_of_oldest = self.left_of_oldest()?;
            let max = self.client.message_max();
            if let Some(message) = self.transport.receive(max)? {
                self.client.receive(message)?;
                return Ok(());
            }
            // A byte now and then is silence, too.
            let moved = self.transport.moved();
            if moved.saturating_sub(before) >= PROGRESS {
                (silent_since, before) = (Instant::now(), moved);
            }
            let left = self.patience.saturating_sub(silent_since.elapsed());
            if left.is_zero() {
                return Err(Error::Silent(self.patience));
            }
            let left = left_of_oldest.map_or(left, |other| other.min(left));
            self.transport.wait(Some(left))?;
        }
    }
}
