//! One connection, of either role, as a state machine without I/O: what happened goes
//! in, what is to be done comes out.

mod ending;
mod names;
mod negotiation;
mod pump;
mod saved;
mod status;
mod timers;
mod upper;

use alloc::collections::VecDeque;

use linkspan_mem::fault::try_with_capacity;
use linkspan_rdma::verbs::{Depth, Key, Slice};

pub use names::{
    Arrival, Header, MessageId, News, Output, RegistrationId, Role, State, TransferId, WorkId,
};
pub(crate) use names::{Staged, Task};
pub use saved::NotQuiet;
pub use status::{Status, Traffic};

use crate::credits::Credits;
use crate::error::{Error, Refusal};
use crate::inbox::Inbox;
use crate::options::{Device, Options, OptionsError};
use crate::outbox::Outbox;
use crate::registrations::Registrations;
use crate::transfers::Transfers;
use crate::wire::{self, Bounds, DataTransfer};
use pump::Flight;
use timers::Timers;

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
    /// The last write that was refused, if the upper layer was not told of it yet.
    unheard: Option<(TransferId, Refusal)>,
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
    tasks: VecDeque<Task>,
    staged: Staged,
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
        let tasks = queue
            + usize::from(options.send_depth)
            + 2 * transfers
            + registrations
            + 2 * usize::from(capacity)
            + 8;
        let mut tasks: VecDeque<Task> = try_with_capacity(tasks)?.into();
        tasks.push_back(Task::PostReceives { count: 1 });
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
            unheard: None,
            next_transfer: 0,
            registrations: Registrations::new(registrations)?,
            flight: Flight::new(
                options.send_depth,
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
            tasks,
            staged: Staged::new(),
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

    /// Which end it is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// What went wrong first.
    #[must_use]
    pub fn first_error(&self) -> Option<Error> {
        self.first_error
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
                    self.retry_receives(now_ms);
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
        self.tasks.push_back(Task::Release { buffer });
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
        self.message_from(now_ms);
        let data = header.data_length.get();
        self.news |= held;
        self.traffic.bytes_received += u64::from(data);
        self.traffic.empty_receives += u64::from(data == 0);
        Ok(held)
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
