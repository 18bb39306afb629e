//! What a session knows of one ring, and when the ring may start.

use linkspan_mem::{Gpa, UserVa};
use thiserror::Error;

use crate::backend::RingSetup;
use crate::features::VIRTIO_F_RING_PACKED;
use crate::wire::{VHOST_VRING_F_LOG, VringAddr};

/// What a session knows of one ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ring {
    /// Its entries.
    pub size: Option<u16>,
    /// Where it is.
    pub addresses: Option<RingAddresses>,
    /// Where it starts, or went on when it was last stopped: see [`RingSetup::base`].
    pub base: u32,
    /// Whether it takes requests while it runs.
    pub enabled: bool,
    /// Whether it is started.
    pub running: bool,
    /// What wakes it.
    pub kick: Notifier,
    /// What its driver is notified by.
    pub call: Notifier,
    /// What a failure is signalled by.
    pub err: Notifier,
}

/// Where a ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RingAddresses {
    /// Descriptor area.
    pub descriptor: UserVa,
    /// Driver area: the available ring.
    pub driver: UserVa,
    /// Device area: the used ring.
    pub device: UserVa,
    /// Guest address under which writes to the used ring are logged.
    pub log: Option<Gpa>,
}

/// What a `VHOST_USER_SET_VRING_KICK`, `_CALL` or `_ERR` left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Notifier {
    /// It was not sent, or the ring was stopped since.
    #[default]
    Unset,
    /// It said that there is no descriptor.
    NoFd,
    /// It brought a descriptor.
    Fd,
}

/// Which of a ring's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Kick,
    Call,
    Err,
}

/// Why a ring is not what a message wants it to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RingError {
    /// It must be stopped first.
    #[error("it runs; VHOST_USER_GET_VRING_BASE has to stop it first")]
    Running,
    /// A size out of range.
    #[error("{size} entries; 1 to {max} are possible")]
    Size {
        /// The size asked for.
        size: u32,
        /// The largest size offered.
        max: u16,
    },
    /// A size that a split ring cannot have.
    #[error("{size} entries; a split ring needs a power of two")]
    SplitSize {
        /// The size asked for.
        size: u16,
    },
    /// A base that a split ring cannot have.
    #[error("base {base:#x}; that of a split ring has 16 bits")]
    SplitBase {
        /// The base asked for.
        base: u32,
    },
    /// It cannot start.
    #[error("it has no size yet")]
    NoSize,
    /// It cannot start.
    #[error("it has no addresses yet")]
    NoAddresses,
    /// It cannot start.
    #[error("no features were set yet")]
    NoFeatures,
    /// Bits that mean nothing.
    #[error("address flags {flags:#x} have bits that mean nothing")]
    AddressFlags {
        /// The flags.
        flags: u32,
    },
    /// It shall log although no log was offered.
    #[error("it shall log, but VHOST_F_LOG_ALL was not offered")]
    NoLog,
    /// Neither on nor off.
    #[error("{num} is neither 0 (disable) nor 1 (enable)")]
    Enable {
        /// What came instead.
        num: u32,
    },
    /// Bits above the index and the `NOFD` bit.
    #[error("{value:#x} has bits beside the ring and NOFD")]
    NotifierBits {
        /// The payload.
        value: u64,
    },
}

impl RingAddresses {
    /// `may_log`: `VHOST_F_LOG_ALL` was offered.
    pub(crate) fn new(wire: VringAddr, may_log: bool) -> Result<Self, RingError> {
        if wire.flags & !VHOST_VRING_F_LOG != 0 {
            return Err(RingError::AddressFlags { flags: wire.flags });
        }
        let logs = wire.flags & VHOST_VRING_F_LOG != 0;
        if logs && !may_log {
            return Err(RingError::NoLog);
        }
        Ok(Self {
            descriptor: UserVa(wire.descriptor),
            driver: UserVa(wire.available),
            device: UserVa(wire.used),
            log: logs.then_some(Gpa(wire.log)),
        })
    }

    /// Whether both name the same ring; what they log does not count.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        Self { log: None, ..*self }
            == Self {
                log: None,
                ..*other
            }
    }
}

impl Ring {
    /// vhost-user, `VHOST_USER_SET_VRING_NUM`. Before features are set the
    /// layout is unknown; then the start of the ring checks the rest.
    pub(crate) fn check_size(size: u32, max: u16, features: Option<u64>) -> Result<u16, RingError> {
        let Some(known) = u16::try_from(size)
            .ok()
            .filter(|size| (1..=max).contains(size))
        else {
            return Err(RingError::Size { size, max });
        };
        if features.is_some_and(is_split) && !known.is_power_of_two() {
            return Err(RingError::SplitSize { size: known });
        }
        Ok(known)
    }

    /// vhost-user, `VHOST_USER_SET_VRING_BASE`: bits 16 to 31 are 0 for a split ring.
    pub(crate) fn check_base(base: u32, features: Option<u64>) -> Result<u32, RingError> {
        if features.is_some_and(is_split) && base > u32::from(u16::MAX) {
            return Err(RingError::SplitBase { base });
        }
        Ok(base)
    }

    /// How the ring starts, if it can.
    pub(crate) fn setup(&self, max: u16, features: Option<u64>) -> Result<RingSetup, RingError> {
        let features = features.ok_or(RingError::NoFeatures)?;
        let size = self.size.ok_or(RingError::NoSize)?;
        let at = self.addresses.ok_or(RingError::NoAddresses)?;
        Ok(RingSetup {
            size: Self::check_size(size.into(), max, Some(features))?,
            descriptor: at.descriptor,
            driver: at.driver,
            device: at.device,
            base: Self::check_base(self.base, Some(features))?,
            log: at.log,
            enabled: self.enabled,
            features,
        })
    }

    /// vhost-user, `VHOST_USER_GET_VRING_BASE`: what told the ring where it is
    /// and whom to notify is forgotten, so that nothing stale is used between
    /// this and the next start. Size, enablement and err descriptor stay.
    pub(crate) fn stop(&mut self, base: u32) {
        self.running = false;
        self.base = base;
        self.addresses = None;
        self.kick = Notifier::Unset;
        self.call = Notifier::Unset;
    }
}

impl Ring {
    /// The ring without what only one connection knows of it.
    pub(crate) fn without_session(&self) -> Self {
        Self {
            running: false,
            enabled: false,
            kick: Notifier::Unset,
            call: Notifier::Unset,
            err: Notifier::Unset,
            ..*self
        }
    }
}

fn is_split(features: u64) -> bool {
    features & VIRTIO_F_RING_PACKED == 0
}
