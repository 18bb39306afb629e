//! The front end of a vhost-user session: the side that drives a device.
//!
//! [`Frontend`] is one connection. It negotiates by itself; then whoever owns
//! it gives one [`Command`] at a time. Bytes go in through
//! [`Frontend::receive`], and what is to be sent or known comes out of
//! [`Frontend::poll_effect`]. At most one reply is awaited at any time, and
//! only if its message asked for one: so nobody ever waits for a reply to what
//! was not sent.

mod command;
mod error;
mod requests;
mod snapshot;
mod steps;

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use thiserror::Error as ThisError;

pub use command::{Command, RingStart};
pub use error::{CommandError, Error, Misfit};
pub use requests::{RequestError, RequestEvent, Requests};

pub use crate::area::{AreaError, Direction, Inflight, Log};
use crate::backend::MAX_RINGS;
pub use crate::backend::Misuse;
pub use crate::fd::{FdId, FdSlot};
use crate::features::{
    ProtocolFeatures, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_ACCESS_PLATFORM,
};
pub use crate::framing::FramingError;
use crate::framing::{Carries, Framing};
use crate::memory::MemoryRegion;
use crate::message::{Gate, Request};
pub use crate::record::{NotQuiet, RestoreError};
use crate::ring::Ring;
use crate::wire::MAX_TABLE_REGIONS;
use steps::{Step, Task};

/// The most bytes of configuration space that are read at the start. The
/// largest that virtio 1.3 knows has some hundred.
pub const MAX_CONFIG_BYTES: u32 = 4096;

/// What a driver wants of a back end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Virtio features that the driver has; those that are offered too are negotiated.
    pub features: u64,
    /// Virtio features without which it does not work.
    pub required_features: u64,
    /// Protocol features to use if they are offered, of [`Frontend::PROTOCOL_FEATURES`].
    pub protocol_features: ProtocolFeatures,
    /// Protocol features without which it does not work.
    pub required_protocol_features: ProtocolFeatures,
    /// Rings, 1 to [`MAX_RINGS`].
    pub queues: u16,
    /// What the back end counts.
    pub queue_unit: QueueUnit,
    /// Bytes of configuration space to read at the start, with
    /// `VHOST_USER_PROTOCOL_F_CONFIG`; at most [`MAX_CONFIG_BYTES`].
    pub config_size: u32,
    /// Memory regions at once. Without `CONFIGURE_MEM_SLOTS` 8 fit.
    pub memory_slots: u64,
}

/// What a back end counts in its answer to `VHOST_USER_GET_QUEUE_NUM`, which
/// the specification leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueUnit {
    /// Rings: block devices, and all devices of rust-vmm.
    Rings,
    /// Pairs of rings, and an odd last ring for control comes for free:
    /// network devices of QEMU, DPDK and passt.
    Pairs,
}

/// A wish that no back end can fulfil.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum WishError {
    /// No ring, or more than the messages that carry descriptors can name.
    #[error("{queues} rings; 1 to {max} are possible")]
    Queues {
        /// Rings wanted.
        queues: u16,
        /// The most.
        max: u16,
    },
    /// Virtio features that the session itself would have to have.
    #[error("features {extra:#x} are not implemented")]
    Features {
        /// Those.
        extra: u64,
    },
    /// Protocol features beyond [`Frontend::PROTOCOL_FEATURES`].
    #[error("protocol features {extra:?} are not implemented")]
    ProtocolFeatures {
        /// Those.
        extra: ProtocolFeatures,
    },
    /// More configuration space than devices have.
    #[error("{size} bytes of configuration space; the limit is {max}")]
    Config {
        /// Bytes wanted.
        size: u32,
        /// The most.
        max: u32,
    },
    /// A session to go on with that had other rings.
    #[error("{queues} rings where {had} were before")]
    OtherQueues {
        /// Rings wanted now.
        queues: u16,
        /// Rings wanted before.
        had: u16,
    },
}

/// What the negotiation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Virtio features that the back end offers.
    pub offered: u64,
    /// Those that the driver has too. [`Command::SetFeatures`] chooses among them.
    pub features: u64,
    /// Protocol features in use.
    pub protocol_features: ProtocolFeatures,
    /// Rings that the back end has.
    pub queues_max: u64,
    /// Memory regions at once.
    pub memory_slots: u64,
    /// The start of configuration space, or nothing without
    /// `VHOST_USER_PROTOCOL_F_CONFIG`.
    pub config: Vec<u8>,
}

/// What outlives a connection, for [`Frontend::resume`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Saved {
    /// What was negotiated.
    pub negotiated: Negotiated,
    /// The virtio features that were acknowledged for all rings, if they were.
    pub features: Option<u64>,
    /// The in-flight region in use.
    pub inflight: Option<Inflight>,
    /// The rings as they were last set up; the base of one that ran is where
    /// it was started.
    pub rings: Vec<Ring>,
}

/// What is to be done or known, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write these bytes to the socket.
    Send {
        /// A whole message.
        bytes: Vec<u8>,
        /// What goes with the first byte, in this order.
        fds: Vec<FdId>,
    },
    /// Something is known. Take the descriptors that it names before the next
    /// bytes are received.
    Report(Event),
}

/// What is known. Each command ends with one [`Done`](Self::Done) or
/// [`Refused`](Self::Refused); its results come before that.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The session is negotiated and takes commands.
    Negotiated(Negotiated),
    /// The command is done, and the back end has seen all of it.
    Done,
    /// The back end refused the command. What it had begun is undone where
    /// rings are concerned; otherwise it is done up to the message named.
    Refused {
        /// The message that was refused.
        request: Request,
        /// What the back end said: not 0. 1 where it can only say that it failed.
        code: u64,
    },
    /// A ring is stopped.
    RingStopped {
        /// The ring.
        ring: u16,
        /// Where it goes on, as in [`RingStart::base`].
        base: u32,
    },
    /// Configuration space, as asked for.
    Config {
        /// First byte.
        offset: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The device status.
    Status(u8),
    /// The in-flight region, and the descriptor that it is in; `None`: the
    /// back end could not make one and goes on without.
    Inflight(Option<(Inflight, FdSlot)>),
    /// The channel for the state of the device: the descriptor that came, in
    /// place of the one that was given, or `None`: the one that was given.
    StateChannel(Option<FdSlot>),
}

/// The front end of one connection.
#[derive(Debug)]
pub struct Frontend {
    wish: Wish,
    previous: Option<Saved>,
    negotiated: Negotiated,
    /// With `VHOST_USER_F_PROTOCOL_FEATURES` where it was offered.
    features: Option<u64>,
    /// Those of the session before, which hold for the driver until `features`
    /// are set.
    promised: Option<u64>,
    regions: Vec<(MemoryRegion, FdId)>,
    rings: Vec<Ring>,
    inflight: Option<Inflight>,
    framing: Framing,
    over: bool,
    task: Task,
    steps: VecDeque<Step>,
    awaited: Option<Step>,
    /// Something was sent that the back end did not confirm.
    unconfirmed: bool,
    effects: VecDeque<Effect>,
}

impl Frontend {
    /// The protocol features that this state machine has.
    pub const PROTOCOL_FEATURES: ProtocolFeatures = ProtocolFeatures::MQ
        .union(ProtocolFeatures::LOG_SHMFD)
        .union(ProtocolFeatures::REPLY_ACK)
        .union(ProtocolFeatures::BACKEND_REQ)
        .union(ProtocolFeatures::CONFIG)
        .union(ProtocolFeatures::INFLIGHT_SHMFD)
        .union(ProtocolFeatures::RESET_DEVICE)
        .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
        .union(ProtocolFeatures::STATUS)
        .union(ProtocolFeatures::DEVICE_STATE);

    /// A session with a back end that nobody knows yet. Its first message is
    /// waiting to be sent.
    ///
    /// # Errors
    /// No back end can fulfil the wish.
    pub fn new(wish: Wish) -> Result<Self, WishError> {
        Self::begin(wish, None)
    }

    /// A session with a back end that takes the place of one that is gone, or
    /// the same one on another connection.
    ///
    /// What was acknowledged to the driver cannot be taken back: the protocol
    /// features are those of before, and if the back end no longer has them,
    /// the acknowledged features, the rings, the configuration space or the
    /// memory slots of before, the negotiation ends with a [`Misfit`]. Only
    /// `BACKEND_REQ` is agreed anew: its socket ended with the connection.
    ///
    /// # Errors
    /// No back end can fulfil the wish, or it is about other rings than before.
    pub fn resume(wish: Wish, saved: Saved) -> Result<Self, WishError> {
        Self::begin(wish, Some(saved))
    }

    fn begin(wish: Wish, previous: Option<Saved>) -> Result<Self, WishError> {
        let queues = wish.queues;
        if !(1..=MAX_RINGS).contains(&queues) {
            let max = MAX_RINGS;
            return Err(WishError::Queues { queues, max });
        }
        let wanted = wish.features | wish.required_features;
        let extra = wanted & (VIRTIO_F_ACCESS_PLATFORM | VHOST_USER_F_PROTOCOL_FEATURES);
        if extra != 0 {
            return Err(WishError::Features { extra });
        }
        let wanted = wish.protocol_features | wish.required_protocol_features;
        let extra = wanted.difference(Self::PROTOCOL_FEATURES);
        if !extra.is_empty() {
            return Err(WishError::ProtocolFeatures { extra });
        }
        if wish.config_size > MAX_CONFIG_BYTES {
            return Err(WishError::Config {
                size: wish.config_size,
                max: MAX_CONFIG_BYTES,
            });
        }
        let rings = match &previous {
            None => vec![Ring::default(); queues.into()],
            Some(saved) => {
                let had = u16::try_from(saved.rings.len()).unwrap_or(u16::MAX);
                if had != queues {
                    return Err(WishError::OtherQueues { queues, had });
                }
                saved.rings.iter().map(Ring::without_session).collect()
            }
        };
        let mut frontend = Self {
            promised: previous.as_ref().and_then(|saved| saved.features),
            inflight: previous.as_ref().and_then(|saved| saved.inflight),
            negotiated: Negotiated {
                offered: 0,
                features: 0,
                protocol_features: ProtocolFeatures::empty(),
                queues_max: 0,
                memory_slots: MAX_TABLE_REGIONS as u64,
                config: Vec::new(),
            },
            wish,
            previous,
            features: None,
            regions: Vec::new(),
            rings,
            framing: Framing::new(Carries::Replies),
            over: false,
            task: Task::Negotiation,
            steps: VecDeque::from([Step::first()]),
            awaited: None,
            unconfirmed: false,
            effects: VecDeque::new(),
        };
        frontend.proceed();
        Ok(frontend)
    }

    /// Wishes for so many rings instead, and gives up these features, before the
    /// first command: what the configuration space says may decide about both.
    ///
    /// # Errors
    /// When the back end has fewer rings, or messages cannot name them.
    pub fn revise(&mut self, queues: u16, without: u64) -> Result<(), Misfit> {
        let max = self.negotiated.queues_max.min(MAX_RINGS.into());
        if queues == 0 || u64::from(queues) > max {
            return Err(Misfit::Queues {
                wanted: queues,
                max,
            });
        }
        self.wish.queues = queues;
        self.rings.resize(queues.into(), Ring::default());
        self.wish.features &= !without;
        self.negotiated.features &= !without;
        Ok(())
    }

    /// Bytes to read next from the socket: what is missing of a header, then
    /// of its body. Never read more, since descriptors belong to the message
    /// whose first byte they come with. 0 while effects wait to be taken, and
    /// after the end of the session.
    #[must_use]
    pub fn wanted(&self) -> usize {
        if self.over || !self.effects.is_empty() {
            return 0;
        }
        self.framing.wanted()
    }

    /// Whether a message has begun and is not all there: its descriptors are to
    /// be kept.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        self.framing.begun()
    }

    /// Takes bytes of the socket, at most [`wanted`](Self::wanted), and the
    /// number of descriptors that came with them.
    ///
    /// # Errors
    /// The back end broke the protocol or does not fit: the session is over.
    pub fn receive(&mut self, bytes: &[u8], fds: usize) -> Result<(), Error> {
        let (wanted, got) = (self.wanted(), bytes.len());
        if self.over {
            return Err(Misuse::Over.into());
        }
        if got > wanted {
            return Err(self.fail(Misuse::Unwanted { got, wanted }.into()));
        }
        if bytes.is_empty() && fds == 0 {
            return Ok(());
        }
        let frame = match self.framing.push(bytes, fds) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(()),
            Err(error) => return Err(self.fail(error.into())),
        };
        match self.accept(&frame) {
            Ok(()) => {
                self.proceed();
                Ok(())
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Begins a command.
    ///
    /// # Errors
    /// It was not begun: nothing is sent and nothing has changed.
    pub fn command(&mut self, command: Command) -> Result<(), CommandError> {
        if self.over {
            return Err(CommandError::Over);
        }
        if !self.is_idle() {
            return Err(CommandError::Busy);
        }
        let steps = self.plan(command)?;
        if let Some(needs) = self.closed_gate(&steps) {
            return Err(CommandError::NotNegotiated { needs });
        }
        self.steps = steps;
        self.task = Task::command();
        self.proceed();
        Ok(())
    }

    /// What is to be done next, if anything is.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether a command may be given: the negotiation and the last command
    /// are over and their effects taken.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.over && matches!(self.task, Task::Idle) && self.effects.is_empty()
    }

    /// The message whose reply is awaited, for a limit on how long.
    #[must_use]
    pub fn awaited(&self) -> Option<Request> {
        self.awaited.as_ref().map(|step| step.request)
    }

    /// Ends the session: the peer is gone, or will not be waited for. Nothing
    /// is left to send. A ring that ran has no base: its driver finds out
    /// from the ring, or from the in-flight region, where it goes on.
    pub fn disconnect(&mut self) {
        self.over = true;
        self.effects.clear();
        self.steps.clear();
        self.awaited = None;
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// What the negotiation came to, once it is over.
    #[must_use]
    pub fn negotiated(&self) -> Option<&Negotiated> {
        match self.task {
            Task::Negotiation => None,
            _ => Some(&self.negotiated),
        }
    }

    /// The virtio features that were acknowledged, if they were; with
    /// `VHOST_USER_F_PROTOCOL_FEATURES` where it was offered.
    #[must_use]
    pub fn features(&self) -> Option<u64> {
        self.features
    }

    /// The memory regions that the back end has.
    #[must_use]
    pub fn regions(&self) -> &[(MemoryRegion, FdId)] {
        &self.regions
    }

    /// All rings, by index.
    #[must_use]
    pub fn rings(&self) -> &[Ring] {
        &self.rings
    }

    /// What a later connection goes on with; also after the end of this one.
    /// If this one was not negotiated, what it was to go on with itself.
    #[must_use]
    pub fn saved(&self) -> Option<Saved> {
        let Some(negotiated) = self.negotiated() else {
            return self.previous.clone();
        };
        Some(Saved {
            negotiated: negotiated.clone(),
            features: self.features.or(self.promised),
            inflight: self.inflight,
            rings: self.rings.clone(),
        })
    }

    fn fail(&mut self, error: Error) -> Error {
        self.disconnect();
        error
    }

    fn first_running(&self) -> Option<u16> {
        (0..self.wish.queues)
            .zip(&self.rings)
            .find(|(_, ring)| ring.running)
            .map(|(index, _)| index)
    }

    /// Whether bit 30 is acknowledged, or will be with the next features:
    /// whoever is offered it acknowledges it.
    fn is_bit_30_offered(&self) -> bool {
        self.negotiated.offered & VHOST_USER_F_PROTOCOL_FEATURES != 0
    }

    fn is_open(&self, gate: Gate) -> bool {
        let protocol = self.negotiated.protocol_features;
        match gate {
            Gate::Open => true,
            Gate::ProtocolFeatures => self.is_bit_30_offered(),
            Gate::Offered(features) | Gate::Negotiated(features) => protocol.contains(features),
            Gate::Feature(bits) => self.negotiated.offered & bits != 0,
            Gate::Device(_) => false,
        }
    }

    fn closed_gate(&self, steps: &VecDeque<Step>) -> Option<Gate> {
        steps
            .iter()
            .map(|step| step.request.message().gate)
            .find(|gate| !self.is_open(*gate))
    }

    /// Virtio features that may be acknowledged.
    fn allowed_features(&self) -> u64 {
        let log = VHOST_F_LOG_ALL & self.negotiated.offered;
        self.negotiated.features | log
    }
}
