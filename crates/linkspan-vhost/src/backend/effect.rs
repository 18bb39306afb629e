//! What a back end asks of whoever drives it, and how that is answered.

use alloc::vec::Vec;

use linkspan_mem::{Gpa, UserVa};
use thiserror::Error;

use crate::area::{Direction, Inflight, Log};
use crate::error::Fault;
use crate::fd::{FdId, FdSlot};
use crate::memory::MemoryRegion;

/// What is to be done, in order.
///
/// Every effect but [`Send`](Self::Send) is a question: do it, then call
/// [`Backend::answer`](crate::Backend::answer). Nothing is received until then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write these bytes to the socket.
    Send {
        /// A whole message.
        bytes: Vec<u8>,
        /// What goes with the first byte: what the answer to the effect
        /// before named, or nothing.
        fds: Vec<FdId>,
    },
    /// These virtio features hold from now on. Rings run only if nothing but
    /// `VHOST_F_LOG_ALL` changed.
    SetFeatures(u64),
    /// These regions replace all others. Region `i` is in descriptor `i`.
    /// Rings may be running: they continue on the new memory or fail.
    SetMemory(Vec<MemoryRegion>),
    /// This region joins the others. It is in descriptor 0.
    AddRegion(MemoryRegion),
    /// This region goes; answer when nothing uses it any more. The value is
    /// what was added, with its offset, whatever the message said.
    RemoveRegion(MemoryRegion),
    /// Start a ring, with the call and err descriptors that are kept for it,
    /// and look for available buffers at once.
    StartRing {
        /// The ring.
        ring: u16,
        /// Where it is and how it goes on.
        setup: RingSetup,
        /// What wakes it; `None`: nothing does, it has to be polled.
        kick: Option<FdSlot>,
    },
    /// A running ring gets another kick descriptor. Look for available
    /// buffers at once: a kick of the old one may have been missed.
    SetKick {
        /// The ring.
        ring: u16,
        /// As for [`StartRing`](Self::StartRing).
        kick: Option<FdSlot>,
    },
    /// Keep this to notify the driver of the ring; a running ring uses it from
    /// now on.
    SetCall {
        /// The ring.
        ring: u16,
        /// `None`: the driver polls.
        call: Option<FdSlot>,
    },
    /// Keep this to signal that the ring failed.
    SetErr {
        /// The ring.
        ring: u16,
        /// `None`: nobody wants to know.
        err: Option<FdSlot>,
    },
    /// A running ring begins or ceases to take requests. On begin look for
    /// available buffers at once.
    EnableRing {
        /// The ring.
        ring: u16,
        /// Whether it takes requests.
        enabled: bool,
    },
    /// A running ring logs writes to its used ring here, or no longer.
    SetRingLog {
        /// The ring.
        ring: u16,
        /// Where the used ring starts in the log.
        log: Option<Gpa>,
    },
    /// Take no more from the ring, complete what was taken, close its kick
    /// and call descriptors, then answer with [`Answer::RingStopped`].
    StopRing {
        /// The ring.
        ring: u16,
    },
    /// Answer with [`Answer::Config`] of exactly `size` bytes.
    ReadConfig {
        /// First byte of the configuration space.
        offset: u32,
        /// How many, 1 to 256.
        size: u32,
    },
    /// Write configuration space.
    WriteConfig {
        /// First byte.
        offset: u32,
        /// What to write, 1 to 256 bytes.
        bytes: Vec<u8>,
        /// Who writes. Fields that a driver may not write are refused unless
        /// it is live migration.
        writer: ConfigWriter,
    },
    /// Log writes to guest memory here while `VHOST_F_LOG_ALL` is set. It
    /// replaces the log of before, if there was one; rings may be running.
    SetLog {
        /// Where it is in the file.
        log: Log,
        /// The file.
        fd: FdSlot,
    },
    /// Signal this after writes to the log.
    SetLogFd {
        /// An eventfd.
        fd: FdSlot,
    },
    /// Make a region in which the requests in flight of these rings are
    /// recorded, use it when they start, and answer with [`Answer::Inflight`].
    /// After a [`Failure`] the front end goes on without one.
    CreateInflight {
        /// How many rings, from ring 0 on.
        queues: u16,
        /// Entries of the largest.
        queue_size: u16,
        /// The virtio features, if they were set: they tell split rings from packed.
        features: Option<u64>,
    },
    /// Record requests in flight in this region, which may hold those that a
    /// predecessor left: they are to be done again when their ring starts.
    /// Peer memory like any other: what it says is to be checked.
    AdoptInflight {
        /// Where it is in the file.
        inflight: Inflight,
        /// The file.
        fd: FdSlot,
    },
    /// Bring the device into its first state. All rings are stopped; the
    /// in-flight region and the descriptors of the rings are forgotten;
    /// memory and log stay.
    ResetDevice,
    /// The driver wrote the device status. For 0 all rings are stopped.
    SetStatus(u8),
    /// Show the screen over this socket ([`gpu`](crate::gpu)); it replaces the one of before.
    SetGpuSocket {
        /// A connected socket.
        fd: FdSlot,
    },
    /// Keep this socket for [`Requests`](super::Requests) to the front end; it
    /// replaces the one of before.
    SetRequestSocket {
        /// The back end's end of it.
        fd: FdSlot,
    },
    /// Begin to write the state of the device to this descriptor, or to read
    /// it, up to the end of file. Answer at once: with [`Answer::Done`], or
    /// with [`Answer::StateChannel`] to use another channel.
    MoveState {
        /// Which way.
        direction: Direction,
        /// The channel.
        fd: FdSlot,
    },
    /// Announce that a guest with this address is here now: nobody else does.
    SendRarp {
        /// Its Ethernet address; unchecked.
        mac: [u8; 6],
    },
    /// The guest is to send no longer packets than this. Refuse what the device
    /// cannot do.
    SetMtu {
        /// Bytes without the Ethernet header, at least 68.
        mtu: u16,
    },
    /// Answer when the state was moved whole; a [`Failure`] if it was not.
    CheckState,
}

/// How a ring starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSetup {
    /// Its entries: 1 to the size offered; a power of two unless it is packed.
    pub size: u16,
    /// Descriptor area.
    pub descriptor: UserVa,
    /// Driver area: the available ring.
    pub driver: UserVa,
    /// Device area: the used ring.
    pub device: UserVa,
    /// Where it goes on, as in `VHOST_USER_SET_VRING_BASE`: for a split ring
    /// the next available index in 16 bits; for a packed ring that index with
    /// its wrap counter in bit 15, and the used index with its wrap counter
    /// in the upper half.
    pub base: u32,
    /// Guest address under which writes to the used ring are logged.
    pub log: Option<Gpa>,
    /// Whether it takes requests; if not, wait for [`Effect::EnableRing`].
    pub enabled: bool,
    /// The virtio features that were acknowledged.
    pub features: u64,
}

/// Who writes configuration space (vhost-user: virtio device config space, flags).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigWriter {
    /// The driver in the guest.
    Driver,
    /// Live migration, which may write everything.
    Migration,
}

/// The answer to an effect that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// To [`Effect::StopRing`].
    RingStopped {
        /// Where the ring would go on, in the form of [`RingSetup::base`].
        base: u32,
    },
    /// To [`Effect::ReadConfig`].
    Config(Vec<u8>),
    /// To [`Effect::CreateInflight`].
    Inflight {
        /// Bytes of the region, at least 1.
        size: u64,
        /// Where it starts in the file, in bytes.
        offset: u64,
        /// The file, to be sent.
        fd: FdId,
    },
    /// To [`Effect::MoveState`].
    StateChannel {
        /// The front end's end of another channel, to be sent.
        fd: FdId,
    },
}

/// The answer to an effect that was not carried out. Nothing of it may remain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Failure {
    /// It is legal, but not done here; a ring that has to be polled, perhaps.
    #[error("whoever runs the device does not do this")]
    Unsupported,
    /// What the peer gave cannot be used: a descriptor of the wrong kind, an
    /// address outside its memory, a field that is read-only.
    #[error("what the front end gave cannot be used")]
    Rejected,
    /// The operating system refused.
    #[error("the operating system refused a resource")]
    System,
}

impl Effect {
    /// Whether [`Backend::answer`](crate::Backend::answer) has to follow.
    #[must_use]
    pub fn needs_answer(&self) -> bool {
        !matches!(self, Self::Send { .. })
    }
}

impl Failure {
    /// Whose fault it is.
    #[must_use]
    pub fn fault(self) -> Fault {
        match self {
            Self::Unsupported => Fault::Us,
            Self::Rejected => Fault::Peer,
            Self::System => Fault::System,
        }
    }
}
