//! What a device asks of whoever runs it, and how that is answered.

use super::SNAPSHOT_BYTES;
use super::wire::{MESSAGE_BYTES, State};
use crate::backend::RingSetup;

/// What is to be done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answer with [`Answer::Features`]: `VDUSE_DEV_GET_FEATURES`.
    ReadFeatures,
    /// Answer with [`Answer::Ring`]: `VDUSE_VQ_GET_INFO`.
    ReadRing {
        /// The ring.
        ring: u16,
    },
    /// Look up the driver's memory anew (`VDUSE_IOTLB_GET_FD`). Rings may be
    /// running: they continue on the new memory or fail, and what used the old is
    /// over when this is answered.
    UpdateMemory,
    /// Let go of the driver's memory: no ring runs.
    DropMemory,
    /// Nothing is in flight in any ring, whatever was written down before.
    ForgetInflight,
    /// Write these bytes down where they survive this process: a successor
    /// [restores](super::Vduse::restore) them.
    Remember([u8; SNAPSHOT_BYTES]),
    /// Start a ring, with a kick descriptor that the kernel knows, and look for
    /// available buffers at once. It goes on from what was written down in
    /// flight, if anything was.
    StartRing {
        /// The ring.
        ring: u16,
        /// Where it is and how it goes on.
        setup: RingSetup,
    },
    /// Take no more from the ring, complete what was taken, then answer with
    /// [`Answer::RingStopped`].
    StopRing {
        /// The ring.
        ring: u16,
    },
    /// Interrupt the driver once for each running ring, and again until the
    /// kernel lets it through: for some time after the answer to `DRIVER_OK` it
    /// refuses interrupts, and what rings had to say meanwhile was lost. Goes on
    /// beside everything else; has no answer.
    ProveInterrupts,
    /// Write these bytes to the device.
    Send([u8; MESSAGE_BYTES]),
}

/// The answer to an effect that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// To [`Effect::ReadFeatures`].
    Features(u64),
    /// To [`Effect::ReadRing`].
    Ring(RingInfo),
    /// To [`Effect::StopRing`]: where it would go on, in the form of
    /// [`RingSetup::base`].
    RingStopped {
        /// That place.
        base: u32,
    },
}

/// What the kernel knows of a ring, unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingInfo {
    /// Its entries.
    pub size: u32,
    /// Address of the descriptor area.
    pub descriptor: u64,
    /// Address of the driver area.
    pub driver: u64,
    /// Address of the device area.
    pub device: u64,
    /// Where it starts.
    pub state: State,
    /// Whether the driver made it ready.
    pub ready: bool,
}

impl Effect {
    /// Whether [`Vduse::answer`](super::Vduse::answer) has to follow.
    #[must_use]
    pub fn needs_answer(&self) -> bool {
        !matches!(self, Self::Send(_) | Self::ProveInterrupts)
    }
}
