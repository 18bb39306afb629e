//! Messages over SMB Direct, and memory that the server reaches by RDMA.
//!
//! A message lies in buffers of one pool until it was sent. Data of READ and WRITE lies in
//! buffers of another one, each of which is registered for one request and one direction, and
//! is used again when that registration has ended: by the server with its answer, or here.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use linkspan_mem::SharedSlice;
use linkspan_rdma::Pool;
use linkspan_rdma::verbs::{Access, Slice};
use linkspan_smb2::client::{Client, Message};
use linkspan_smbdirect::{Descriptor, Misuse, Options, Refusal, RegistrationId, Role};
use linkspan_sys::EventFd;

use super::super::error::Error;
use crate::smbdirect::{Config, Endpoint, Happening, Id};

/// Bytes of the buffers in which messages wait to be sent.
const STAGE: u32 = 16 << 10;

/// Bytes of all of them.
const STAGES: usize = 2 << 20;

/// Buffers for data: all requests of a transfer, and as many of one before that ended early.
const LOANS: usize = 32;

/// The number of what is watched besides the connection.
const WATCHED: u32 = 0;

/// How long the end of a registration may take: nobody else is asked.
const END: Duration = Duration::from_secs(5);

/// A connection of SMB Direct.
pub(in super::super) struct Direct {
    endpoint: Endpoint,
    id: Id,
    stages: Pool,
    loans: Pool,
    /// A message for which there was no room.
    waiting: Option<Message>,
    /// The buffers of each message that is being sent.
    sending: VecDeque<Vec<Slice>>,
    /// Registrations that have ended, and whether in order.
    ended: Vec<(RegistrationId, Result<(), Refusal>)>,
    /// The longest message out and in.
    bounds: (u32, u32),
    /// The longest transfer.
    loan_max: u32,
}

/// Memory that the server may reach.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Lent {
    registration: RegistrationId,
    buffer: Slice,
    /// What the server has to be told.
    pub(in super::super) descriptor: Descriptor,
}

impl Lent {
    /// Its first bytes.
    pub(in super::super) fn first(self, len: u32) -> Self {
        Self {
            buffer: self.buffer.part(0, len),
            ..self
        }
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct")
            .field("id", &self.id)
            .field("bounds", &self.bounds)
            .finish_non_exhaustive()
    }
}

/// Parameters of a client that waits no longer than that.
fn options(patience: Duration) -> Options {
    let own = Options::of(Role::Initiator);
    let patience = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    Options {
        connect_timeout_ms: patience.clamp(100, own.connect_timeout_ms),
        negotiate_timeout_ms: patience.clamp(100, own.negotiate_timeout_ms),
        ..own
    }
}

impl Direct {
    /// Tries all addresses of a server, one after the other. `max_io`: bytes of one READ or
    /// WRITE.
    pub(super) fn open(
        host: &str,
        port: u16,
        max_io: u32,
        patience: Duration,
    ) -> Result<Self, Error> {
        let addresses = super::addresses(host, port)?;
        let config = Config::new(Role::Initiator, options(patience));
        let mut endpoint = Endpoint::new(config)?;
        let mut last = None;
        for address in addresses {
            let id = endpoint.connect(address)?;
            match connected(&mut endpoint, id)? {
                Ok((bounds, transfer)) => {
                    let max = max_io.min(transfer);
                    // A buffer may be a bit longer.
                    let size = Pool::new(max, 0).size() as usize;
                    return Ok(Self {
                        endpoint,
                        id,
                        stages: Pool::new(STAGE, STAGES),
                        loans: Pool::new(max, LOANS * size),
                        waiting: None,
                        sending: VecDeque::new(),
                        ended: Vec::new(),
                        bounds,
                        loan_max: max,
                    });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::Connect {
            host: host.into(),
            port,
            error: std::io::ErrorKind::NotFound.into(),
        }))
    }

    pub(super) fn bounds(&self) -> (u32, u32) {
        self.bounds
    }

    pub(super) fn loan_max(&self) -> u32 {
        self.loan_max
    }

    pub(super) fn send(&mut self, client: &mut Client) -> Result<(), Error> {
        while let Some(message) = self.waiting.take().or_else(|| client.poll_out()) {
            let Some(buffers) = self.stage(&message) else {
                self.no_room(message)?;
                return Ok(());
            };
            let mut session = self.endpoint.session(self.id).ok_or_else(gone)?;
            match session.send(&buffers) {
                Ok(_) => self.sending.push_back(buffers),
                Err(why) => {
                    self.unstage(buffers);
                    if !matches!(why, Misuse::Full { .. }) {
                        return Err(Error::Rdma(why.into()));
                    }
                    self.no_room(message)?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// It goes when one before it has gone.
    fn no_room(&mut self, message: Message) -> Result<(), Error> {
        if self.sending.is_empty() {
            // None will.
            return Err(Error::Room {
                what: "a message over SMB Direct",
                bytes: message.len(),
            });
        }
        self.waiting = Some(message);
        Ok(())
    }

    /// Copies a message to where it lies until it was sent.
    fn stage(&mut self, message: &[u8]) -> Option<Vec<Slice>> {
        let mut buffers = Vec::with_capacity(message.len().div_ceil(STAGE as usize));
        for piece in message.chunks(STAGE as usize) {
            let Some(buffer) = self.endpoint.buffer(&mut self.stages) else {
                self.unstage(buffers);
                return None;
            };
            // A piece has at most the length of a buffer.
            let len = u32::try_from(piece.len()).unwrap_or(STAGE);
            self.endpoint.fill(buffer.memory, buffer.offset, piece);
            buffers.push(buffer.part(0, len));
        }
        Some(buffers)
    }

    fn unstage(&mut self, buffers: Vec<Slice>) {
        for buffer in buffers {
            self.stages.put(buffer);
        }
    }

    pub(super) fn receive(&mut self, max: usize) -> Result<Option<Vec<u8>>, Error> {
        let mut session = self.endpoint.session(self.id).ok_or_else(gone)?;
        let Some(message) = session.take() else {
            return Ok(None);
        };
        if message.len() > max {
            return Err(Error::Protocol(linkspan_smb2::Error::Long {
                what: "a message",
                got: message.len() as u64,
                max: max as u64,
            }));
        }
        Ok(Some(message))
    }

    /// Bytes of messages that went either way. What goes by RDMA counts with its answer.
    pub(super) fn moved(&mut self) -> u64 {
        let status = self.endpoint.session(self.id).map(|it| it.status());
        status.map_or(0, |status| {
            status.traffic.bytes_sent + status.traffic.bytes_received
        })
    }

    pub(super) fn watch(&mut self, source: &EventFd) -> Result<(), Error> {
        self.endpoint.watch(source, WATCHED).map_err(Error::Here)
    }

    pub(super) fn wait(&mut self, left: Option<Duration>) -> Result<(), Error> {
        self.endpoint.wait(left).map_err(Error::Here)?;
        // Whoever watches it looks for themselves.
        while self.endpoint.watched().is_some() {}
        self.heed()
    }

    /// Takes note of what has happened, up to a message. What comes behind a message, the end
    /// of the connection too, is heard of when it was taken.
    fn heed(&mut self) -> Result<(), Error> {
        while let Some((_, happening)) = self.endpoint.poll() {
            match happening {
                Happening::Received => return Ok(()),
                Happening::Sent(count, Ok(())) => {
                    for _ in 0..count {
                        let buffers = self.sending.pop_front().unwrap_or_default();
                        self.unstage(buffers);
                    }
                }
                // Others that were sent earlier may still be under way.
                Happening::Sent(_, Err(why)) => return Err(Error::Rdma(why)),
                Happening::Deregistered(id, result) => self.ended.push((id, result)),
                Happening::Ended(over) => return Err(Error::Ended(over)),
                Happening::Connected | Happening::Transferred(..) => {}
            }
        }
        Ok(())
    }

    pub(super) fn lend(&mut self, access: Access, len: u32) -> Result<Option<Lent>, Error> {
        if len > self.loans.size() {
            return Ok(None);
        }
        let Some(buffer) = self.endpoint.buffer(&mut self.loans) else {
            return Ok(None);
        };
        let buffer = buffer.part(0, len);
        let mut session = self.endpoint.session(self.id).ok_or_else(gone)?;
        match session.register(&[buffer], access) {
            Ok((registration, descriptor)) => Ok(Some(Lent {
                registration,
                buffer,
                descriptor,
            })),
            Err(why) => {
                self.loans.put(buffer);
                match why {
                    Refusal::Misuse(Misuse::Full { .. }) => Ok(None),
                    why => Err(Error::Rdma(why)),
                }
            }
        }
    }

    pub(super) fn place(&self, lent: &Lent) -> Option<SharedSlice<'_>> {
        self.endpoint.memories().slice(lent.buffer)
    }

    pub(super) fn put_back(&mut self, lent: &Lent) {
        self.loans.put(lent.buffer);
    }

    pub(super) fn take_back(&mut self, lent: &Lent) -> Result<(), Error> {
        let mut session = self.endpoint.session(self.id).ok_or_else(gone)?;
        let asked = session.deregister(lent.registration);
        asked.map_err(|why| Error::Rdma(why.into()))?;
        let begin = Instant::now();
        loop {
            let mine = |(id, _): &(RegistrationId, _)| *id == lent.registration;
            if let Some(at) = self.ended.iter().position(mine) {
                return self.ended.swap_remove(at).1.map_err(Error::Rdma);
            }
            let left = END.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Err(Error::Silent(END));
            }
            self.wait(Some(left))?;
        }
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        // What goes wrong here is of no interest any more.
        let _ = self.endpoint.stop();
    }
}

fn gone() -> Error {
    Error::Lost(std::io::ErrorKind::NotConnected.into())
}

/// Longest messages out and in, and the longest transfer.
type Sizes = ((u32, u32), u32);

/// Waits until SMB Direct has negotiated, or says why not.
fn connected(endpoint: &mut Endpoint, id: Id) -> Result<Result<Sizes, Error>, Error> {
    loop {
        // The protocol has its own time limits.
        endpoint.wait(None).map_err(Error::Here)?;
        while let Some((whose, happening)) = endpoint.poll() {
            match happening {
                Happening::Connected if whose == id => {
                    let status = endpoint.session(id).ok_or_else(gone)?.status();
                    let bounds = (
                        status.max_fragmented_send_size,
                        status.max_fragmented_receive_size,
                    );
                    return Ok(Ok((bounds, status.max_read_write_size)));
                }
                Happening::Ended(over) if whose == id => return Ok(Err(Error::Ended(over))),
                _ => {}
            }
        }
    }
}
