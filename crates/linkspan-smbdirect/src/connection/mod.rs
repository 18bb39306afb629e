//! One connection, of either role, as a state machine without I/O: what happened goes
//! in, what is to be done comes out.

mod names;
mod negotiation;
mod pump;
mod saved;
mod status;

use alloc::collections::VecDeque;

use linkspan_mem::fault::try_with_capacity;
use linkspan_rdma::verbs::{Depth, Key, PostError, Remote, Slice};

pub use names::{
    Arrival, Header, MessageId, Output, RegistrationId, Role, State, TransferId, WorkId,
};
pub use saved::NotQuiet;
pub use status::{Status, Traffic};

use crate::credits::Credits;
use crate::descriptor::Descriptor;
use crate::error::{Error, Misuse, Refusal};
use crate::gather;
use crate::inbox::{Inbox, Message, Piece};
use crate::options::{Device, Options, OptionsError};
use crate::outbox::Outbox;
use crate::registrations::{End, RegistrationState, Registrations};
use crate::transfers::Transfers;
use crate::wire::{self, Bounds, DataTransfer};
use pump::Flight;

/// How long nothing is tried again that the provider refused, in milliseconds.
const RETRY_MS: u64 = 100;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The receive of the negotiation is being posted, the transport is being connected.
    Opening {
        posted: bool,
        established: bool,
    },
    /// The initiator's request is to be sent.
    Request,
    /// The peer's message is awaited.
    Awaiting,
    /// It is agreed; receives are being posted.
    Posting,
    /// The listener's response is to be sent.
    Response,
    /// The listener refuses with this status; it is to be sent.
    Refuse(u32),
    /// It was sent; when it is done, the connection ends.
    Refusing(WorkId),
    Ready,
    Ending,
    Ended,
}

/// Whether the peer was asked for a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeepAlive {
    None,
    Pending,
    Sent,
}

/// What was agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    send: u32,
    receive: u32,
    fragmented_send: u32,
    read_write: u32,
}

/// When something is due, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Timers {
    /// The transport is to be connected, or the negotiation over.
    connect: Option<u64>,
    negotiate: Option<u64>,
    idle: Option<u64>,
    /// What was refused is tried again.
    retry: Option<u64>,
}

/// A connection of SMB Direct.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    /// With what the device cannot do taken off.
    options: Options,
    device: Device,
    phase: Phase,
    sizes: Sizes,
    depth: Depth,
    credits: Credits,
    /// Buffers that may be in use at once: posted as receives, or held.
    capacity: u16,
    inbox: Inbox,
    outbox: Outbox,
    writes: Transfers,
    reads: Transfers,
    next_transfer: u64,
    registrations: Registrations,
    flight: Flight,
    keepalive: KeepAlive,
    /// A message is due whether there is data or not.
    immediate: bool,
    /// Something arrived that the upper layer was not told of.
    news: bool,
    timers: Timers,
    /// An arrival before the transport said that it is established.
    early: Option<Early>,
    outputs: VecDeque<Output>,
    first_error: Option<Error>,
    traffic: Traffic,
}

/// A private copy of what came too early.
#[derive(Clone, Copy, Debug)]
struct Early {
    buffer: Slice,
    len: usize,
    head: [u8; wire::HEAD_LEN],
}

impl Connection {
    /// A new connection, of which nothing is known yet: the first output is the
    /// receive of the negotiation. Then the transport is connected, or accepted.
    ///
    /// # Errors
    /// An option is out of its bounds, the device is too small, or the machine refused
    /// memory.
    pub fn new(
        role: Role,
        options: &Options,
        device: &Device,
        now_ms: u64,
    ) -> Result<Self, OptionsError> {
        let options = options.fit(device)?;
        let capacity = Credits::capacity(options.receive_credit_max);
        let transfers = usize::from(options.queue / 4);
        let registrations = usize::from(options.registrations);
        let queue = usize::from(options.queue);
        // Each message, transfer and registration ends once, and each buffer is given back once.
        let outputs = queue
            + usize::from(options.send_depth)
            + 2 * transfers
            + registrations
            + 2 * usize::from(capacity)
            + 8;
        let mut outputs: VecDeque<Output> = try_with_capacity(outputs)?.into();
        outputs.push_back(Output::PostReceives { count: 1 });
        let timeout = match role {
            Role::Initiator => options.connect_timeout_ms,
            Role::Listener => options.negotiate_timeout_ms,
        };
        let deadline = Some(now_ms.saturating_add(u64::from(timeout)));
        Ok(Self {
            role,
            options,
            device: *device,
            phase: Phase::Opening {
                posted: false,
                established: false,
            },
            sizes: Sizes {
                send: options.max_send_size,
                receive: options.max_receive_size,
                fragmented_send: 0,
                read_write: options.max_read_write_size,
            },
            depth: Depth {
                inbound: 0,
                outbound: 0,
            },
            credits: Credits::new(options.send_credit_target, options.receive_credit_max),
            capacity,
            inbox: Inbox::new(usize::from(capacity))?,
            outbox: Outbox::new(queue)?,
            writes: Transfers::new(transfers),
            reads: Transfers::new(transfers),
            next_transfer: 0,
            registrations: Registrations::new(registrations)?,
            flight: Flight::new(
                usize::from(options.send_depth),
                usize::from(options.transfer_depth),
                registrations,
            )?,
            keepalive: KeepAlive::None,
            immediate: false,
            news: false,
            timers: Timers {
                connect: deadline.filter(|_| role == Role::Initiator),
                negotiate: deadline.filter(|_| role == Role::Listener),
                ..Timers::default()
            },
            early: None,
            outputs,
            first_error: None,
            traffic: Traffic::default(),
        })
    }

    /// How far it is.
    #[must_use]
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Opening { .. } => State::Connecting,
            Phase::Request => State::NegotiateNeeded,
            Phase::Awaiting if self.role == Role::Listener => State::NegotiateNeeded,
            Phase::Awaiting | Phase::Posting | Phase::Response => State::NegotiateRunning,
            Phase::Refuse(_) | Phase::Refusing(_) => State::NegotiateFailed,
            Phase::Ready => State::Connected,
            Phase::Ending => State::Disconnecting,
            Phase::Ended => State::Disconnected,
        }
    }

    /// What went wrong first.
    #[must_use]
    pub fn first_error(&self) -> Option<Error> {
        self.first_error
    }

    /// Takes a message: header, data and pages as slices of any number and size, sent in
    /// their order and as one. What it names stays as it is until [`Output::Sent`] says
    /// that it was sent. It goes behind all [`write`](Self::write)s before it.
    /// `invalidate`: a token of the peer's that it does not need any more.
    ///
    /// # Errors
    /// Not connected, or not such a message, or too many wait.
    pub fn send(&mut self, data: &[Slice], invalidate: Option<Key>) -> Result<MessageId, Misuse> {
        self.connected()?;
        let len = checked_len(data, self.sizes.fragmented_send)?;
        self.outbox.push(data, len, invalidate, self.writes.taken())
    }

    /// Writes `local` into memory of the peer's, at `offset` of what `remote` describes
    /// (MS-SMBD 3.1.4.5). [`Output::Transferred`] says when it is done.
    ///
    /// # Errors
    /// Not connected, or not such a transfer, or too many wait.
    pub fn write(
        &mut self,
        local: &[Slice],
        remote: &[Descriptor],
        offset: u64,
    ) -> Result<TransferId, Misuse> {
        self.transfer(local, remote, offset, |this| &mut this.writes)
    }

    /// Reads memory of the peer's into `local` (MS-SMBD 3.1.4.6), like
    /// [`write`](Self::write).
    ///
    /// # Errors
    /// As for a write; and the peer answers no reads.
    pub fn read(
        &mut self,
        local: &[Slice],
        remote: &[Descriptor],
        offset: u64,
    ) -> Result<TransferId, Misuse> {
        self.connected()?;
        if self.depth.outbound == 0 {
            return Err(Misuse::NoReads);
        }
        self.transfer(local, remote, offset, |this| &mut this.reads)
    }

    fn transfer(
        &mut self,
        local: &[Slice],
        remote: &[Descriptor],
        offset: u64,
        queue: impl FnOnce(&mut Self) -> &mut Transfers,
    ) -> Result<TransferId, Misuse> {
        self.connected()?;
        let len = checked_len(local, self.sizes.read_write)?;
        let id = TransferId(self.next_transfer);
        queue(self).push(id, local, len, remote, offset)?;
        self.next_transfer += 1;
        Ok(id)
    }

    /// Registers `len` bytes for the peer, which `expose` makes known to the provider: a
    /// registration is there with its descriptor, or nothing has happened. The memory is
    /// the peer's until [`deregister`](Self::deregister) has its end.
    ///
    /// # Errors
    /// Not connected, none is free, or what `expose` says.
    pub fn register(
        &mut self,
        len: u32,
        expose: impl FnOnce() -> Result<Remote, PostError>,
    ) -> Result<(RegistrationId, Descriptor), Refusal> {
        self.connected()?;
        let full = Misuse::Full {
            what: "registrations",
            max: self.registrations.len(),
        };
        if len == 0 {
            return Err(Misuse::Empty.into());
        }
        let index = self.registrations.free().ok_or(full)?;
        let remote = expose()?;
        let id = self.registrations.begin(index, remote.key);
        let descriptor = Descriptor {
            offset: remote.address,
            token: remote.key.0,
            length: len,
        };
        Ok((id, descriptor))
    }

    /// What state a registration is in; nothing if it has ended.
    #[must_use]
    pub fn registration(&self, id: RegistrationId) -> Option<RegistrationState> {
        self.registrations.state(id)
    }

    /// Ends a registration, by an invalidation unless the peer did that.
    /// [`Output::Deregistered`] says when the memory is its owner's again.
    ///
    /// # Errors
    /// There is no such registration, it is being ended, or the connection is over, with
    /// which it ends by itself.
    pub fn deregister(&mut self, id: RegistrationId) -> Result<(), Misuse> {
        self.connected()?;
        let result = Ok(());
        match self.registrations.end(id).ok_or(Misuse::Registration)? {
            End::Done => self.outputs.push_back(Output::Deregistered { id, result }),
            End::Invalidate(key) => {
                let work = self.flight.invalidate(id);
                self.outputs.push_back(Output::Invalidate { work, key });
            }
        }
        Ok(())
    }

    /// Asks the peer for a sign of life, as after a long silence (MS-SMBD 3.1.6.2). It is
    /// awaited as long as [`Status::awaits_sign_of_life`] says.
    ///
    /// # Errors
    /// Not connected.
    pub fn ask(&mut self, now_ms: u64) -> Result<(), Misuse> {
        self.connected()?;
        if self.keepalive == KeepAlive::None {
            self.keepalive = KeepAlive::Pending;
            self.immediate = true;
            self.idle_from(now_ms, self.options.keepalive_wait_ms);
        }
        Ok(())
    }

    /// Ends the connection; whoever waits is told. [`Output::Ended`] is the last one.
    pub fn disconnect(&mut self) {
        self.fail(Error::Disconnected);
    }

    /// The first message that can be read, whole or in part.
    #[must_use]
    pub fn message(&self) -> Option<Message> {
        self.inbox.message()
    }

    /// What of it has arrived, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.inbox.pieces()
    }

    /// So many bytes of the first message were read; what is behind its end stays.
    /// Buffers that are not needed any more are given back.
    pub fn consume(&mut self, bytes: u32) {
        let outputs = &mut self.outputs;
        self.inbox.consume(bytes, |buffer| {
            outputs.push_back(Output::Release { buffer });
        });
    }

    /// The transport is connected, with so many reads at a time.
    pub fn established(&mut self, now_ms: u64, depth: Depth) {
        let Phase::Opening { posted, .. } = self.phase else {
            return;
        };
        self.depth = depth;
        self.timers.connect = None;
        if self.role == Role::Initiator {
            let timeout = u64::from(self.options.negotiate_timeout_ms);
            self.timers.negotiate = Some(now_ms.saturating_add(timeout));
        }
        self.open(posted, true);
    }

    /// Receives were posted, of those that [`Output::PostReceives`] asked for.
    pub fn receives_posted(&mut self, now_ms: u64, count: u32) {
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        match self.phase {
            Phase::Opening { established, .. } if count > 0 => {
                self.open(true, established);
            }
            Phase::Opening { .. } => self.fail(Error::NoReceives),
            Phase::Posting => {
                self.credits.have_posted(count);
                self.receives_ready(now_ms);
            }
            Phase::Ready => {
                if count < self.credits.asked {
                    self.traffic.refused += 1;
                    self.retry(now_ms);
                }
                self.credits.have_posted(count);
            }
            _ => {}
        }
    }

    /// A message arrived. Its buffer is lent until [`Output::Release`] gives it back.
    pub fn received(&mut self, now_ms: u64, arrival: Arrival<'_>) {
        let Arrival {
            buffer,
            len,
            head,
            invalidated,
        } = arrival;
        let head = &head[..head.len().min(wire::HEAD_LEN)];
        match self.phase {
            Phase::Opening {
                posted: true,
                established: false,
            } if self.early.is_none() => {
                // The transport will say so in a moment (some devices are late).
                let mut copy = [0; wire::HEAD_LEN];
                copy[..head.len()].copy_from_slice(head);
                self.early = Some(Early {
                    buffer,
                    len: head.len(),
                    head: copy,
                });
                return;
            }
            Phase::Awaiting => self.negotiate(head),
            Phase::Ready => match self.data(now_ms, head, len, buffer, invalidated) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => self.fail(error),
            },
            Phase::Ending | Phase::Ended => {}
            _ => self.fail(Error::NoCredit),
        }
        self.outputs.push_back(Output::Release { buffer });
    }

    /// Takes a Data Transfer; whether its buffer is held now.
    fn data(
        &mut self,
        now_ms: u64,
        head: &[u8],
        len: u32,
        buffer: Slice,
        invalidated: Option<Key>,
    ) -> Result<bool, Error> {
        self.credits.used()?;
        let bounds = Bounds {
            receive_size: self.sizes.receive,
            fragmented_size: self.options.max_fragmented_receive_size,
        };
        let header = DataTransfer::parse(head, len, bounds)?;
        self.traffic.receives += 1;
        // Any message is a sign of life (MS-SMBD 3.1.5.5).
        self.keepalive = KeepAlive::None;
        self.idle_from(now_ms, self.options.keepalive_interval_ms);
        self.credits.peer_target = header.credits_requested.get();
        self.credits.gain(header.credits_granted.get())?;
        // The specification would have the answer ask for an answer; that never ends.
        self.immediate |= header.flags.get() & wire::RESPONSE_REQUESTED != 0;
        if let Some(key) = invalidated {
            self.registrations.invalidated(key)?;
        }
        let held = self.inbox.arrive(&header, buffer, invalidated)?;
        let data = header.data_length.get();
        self.news |= held;
        self.traffic.bytes_received += u64::from(data);
        self.traffic.empty_receives += u64::from(data == 0);
        Ok(held)
    }

    /// The provider says that the connection is at its end, or that the peer is gone. It
    /// will say [`ended`](Self::ended).
    pub fn lost(&mut self) {
        self.fail(Error::Lost);
    }

    /// The connection is over: nothing is under way any more, every receive and every
    /// registration is gone.
    pub fn ended(&mut self) {
        if self.phase == Phase::Ended {
            return;
        }
        self.fail(Error::Lost);
        self.phase = Phase::Ended;
        // It is too late to ask for it.
        self.outputs
            .retain(|output| !matches!(output, Output::Disconnect));
        let error = self.first_error.unwrap_or(Error::Lost);
        let why = Refusal::Ended(error);
        self.credits.end();
        while let Some(message) = self.flight.end() {
            let result = Err(why);
            self.outputs.push_back(Output::Sent { message, result });
        }
        if let Some(message) = self.outbox.drop_begun() {
            let result = Err(why);
            self.outputs.push_back(Output::Sent { message, result });
        }
        self.end_transfers(why, true);
        while let Some(id) = self.registrations.disable() {
            let result = Err(why);
            self.outputs.push_back(Output::Deregistered { id, result });
        }
        self.outputs.push_back(Output::Ended(error));
    }

    /// Something is wrong, the first time: what was not begun is given up at once, what
    /// is under way when the provider has let go of it.
    fn fail(&mut self, error: Error) {
        if matches!(self.phase, Phase::Ending | Phase::Ended) {
            return;
        }
        self.phase = Phase::Ending;
        let error = *self.first_error.get_or_insert(error);
        let why = Refusal::Ended(error);
        self.timers = Timers::default();
        self.immediate = false;
        // What was not taken yet is not done any more; what is over stays over.
        let flight = &mut self.flight;
        self.outputs.retain(|output| match output {
            Output::PostReceives { .. } => false,
            Output::Invalidate { work, .. } => {
                flight.not_posted(*work);
                false
            }
            _ => true,
        });
        if let Some(early) = self.early.take() {
            let buffer = early.buffer;
            self.outputs.push_back(Output::Release { buffer });
        }
        let outputs = &mut self.outputs;
        self.inbox
            .cut(|buffer| outputs.push_back(Output::Release { buffer }));
        while let Some(message) = self.outbox.drop_waiting() {
            let result = Err(why);
            self.outputs.push_back(Output::Sent { message, result });
        }
        self.end_transfers(why, false);
        self.outputs.push_back(Output::Disconnect);
    }

    fn end_transfers(&mut self, why: Refusal, all: bool) {
        self.writes.end(why, all);
        self.reads.end(why, all);
        self.tell_transfers();
    }

    fn tell_transfers(&mut self) {
        for queue in [&mut self.writes, &mut self.reads] {
            while let Some((transfer, refused)) = queue.finished() {
                let result = refused.map_or(Ok(()), Err);
                self.outputs
                    .push_back(Output::Transferred { transfer, result });
            }
        }
    }

    fn connected(&self) -> Result<(), Misuse> {
        match self.phase {
            Phase::Ready => Ok(()),
            _ => Err(Misuse::NotConnected {
                state: self.state(),
            }),
        }
    }

    fn idle_from(&mut self, now_ms: u64, ms: u32) {
        self.timers.idle = Some(now_ms.saturating_add(u64::from(ms)));
    }

    fn retry(&mut self, now_ms: u64) {
        self.timers.retry = Some(now_ms.saturating_add(RETRY_MS));
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        let Timers {
            connect,
            negotiate,
            idle,
            retry,
        } = self.timers;
        [connect, negotiate, idle, retry]
            .into_iter()
            .flatten()
            .min()
    }

    /// It is `now_ms`; does what is due by then, if anything is.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        let due = |timer: Option<u64>| timer.is_some_and(|at| at <= now_ms);
        if due(self.timers.connect) {
            let ms = u64::from(self.options.connect_timeout_ms);
            self.fail(Error::ConnectTimer { ms });
        }
        if due(self.timers.negotiate) {
            let ms = u64::from(self.options.negotiate_timeout_ms);
            self.fail(Error::NegotiationTimer { ms });
        }
        if due(self.timers.retry) {
            self.timers.retry = None;
        }
        if due(self.timers.idle) {
            self.idle(now_ms);
        }
    }

    /// The peer was silent (MS-SMBD 3.1.6.2).
    fn idle(&mut self, now_ms: u64) {
        // A peer without a credit cannot speak, and has none since nobody here reads.
        let mute = self.credits.posted() == 0 && self.room() == 0;
        if mute {
            self.idle_from(now_ms, self.options.keepalive_interval_ms);
        } else if self.keepalive == KeepAlive::None {
            self.keepalive = KeepAlive::Pending;
            self.immediate = true;
            self.idle_from(now_ms, self.options.keepalive_wait_ms);
        } else {
            self.fail(Error::KeepAlive {
                idle_ms: u64::from(self.options.keepalive_interval_ms),
                wait_ms: u64::from(self.options.keepalive_wait_ms),
            });
        }
    }

    /// Buffers that may still be posted as receives.
    fn room(&self) -> usize {
        let used = self.inbox.held() + usize::from(self.credits.posted());
        usize::from(self.capacity).saturating_sub(used)
    }

    /// Its options, with what the device cannot do taken off.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Headers that may be in use at once: [`Header::slot`] is below it.
    #[must_use]
    pub fn header_slots(&self) -> usize {
        usize::from(self.options.send_depth)
    }
}

/// Bytes of slices, at least one and at most `max`.
fn checked_len(slices: &[Slice], max: u32) -> Result<u32, Misuse> {
    let len = gather::total(slices).unwrap_or(u64::MAX);
    match u32::try_from(len) {
        Ok(0) => Err(Misuse::Empty),
        Ok(len) if len <= max => Ok(len),
        _ => Err(Misuse::TooLong { len, max }),
    }
}
