//! What is wanted of a device, the calls that it takes, and what they come to.

use alloc::vec::Vec;

use linkspan_mem::Iova;
use thiserror::Error;

/// Memory that the device may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// In which address space.
    pub asid: u32,
    /// From where on.
    pub iova: Iova,
    /// How many bytes.
    pub len: u64,
    /// Which memory it is, by a number of whoever drives the consumer: another file
    /// at the same addresses is another mapping.
    pub id: u64,
}

/// One of the descriptors of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// From the driver.
    Kick,
    /// To the driver.
    Call,
    /// For a failure.
    Err,
}

/// How a ring starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingPlan {
    /// The ring.
    pub ring: u16,
    /// Its entries.
    pub size: u16,
    /// Where it goes on.
    pub base: u32,
    /// Descriptor, driver and device area.
    pub address: [Iova; 3],
    /// Its descriptors.
    pub wires: Vec<Wire>,
    /// Whether it is enabled before `DRIVER_OK`. Those that are not wait for
    /// [`Command::Enable`].
    pub enabled: bool,
}

/// How a device starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Virtio features.
    pub features: u64,
    /// Groups of queues that are not in address space 0: group and address space.
    pub groups: Vec<(u32, u32)>,
    /// The rings. All that will ever run have to be here.
    pub rings: Vec<RingPlan>,
    /// Whether changes of configuration space are to be told of.
    pub config_call: bool,
}

/// What is to be done with a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Take it into possession.
    Open,
    /// These mappings replace all others. Without `IOTLB_PERSIST` they take
    /// effect with the next start, unless it runs.
    SetMemory(Vec<Mapping>),
    /// See whether it accepts these features.
    TryFeatures(u64),
    /// Bring it up.
    Start(Plan),
    /// Enable rings of a device that runs.
    Enable(Vec<u16>),
    /// Suspend it, and say where its rings are.
    Pause,
    /// Let it go on.
    Resume,
    /// Say where its rings are, and bring it down.
    Stop,
    /// Give everything back.
    Close,
}

/// A call to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `VHOST_SET_OWNER`.
    SetOwner,
    /// `VHOST_SET_BACKEND_FEATURES`.
    SetBackendFeatures(u64),
    /// `VHOST_VDPA_SET_STATUS`.
    SetStatus(u8),
    /// `VHOST_VDPA_GET_STATUS`; these bits have to be set, and none that says that
    /// the device is broken. Answered with [`Reply::Status`].
    CheckStatus(u8),
    /// `VHOST_SET_FEATURES`.
    SetFeatures(u64),
    /// `VHOST_VDPA_SET_GROUP_ASID`.
    SetGroupAsid {
        /// The group.
        group: u32,
        /// The address space.
        asid: u32,
    },
    /// `VHOST_IOTLB_BATCH_BEGIN` and `_END`.
    Batch {
        /// In which address space.
        asid: u32,
        /// Which of the two.
        begin: bool,
    },
    /// `VHOST_IOTLB_UPDATE`.
    Map(Mapping),
    /// `VHOST_IOTLB_INVALIDATE`.
    Unmap(Mapping),
    /// `VHOST_SET_VRING_NUM`.
    SetSize {
        /// The ring.
        ring: u16,
        /// Its entries.
        size: u16,
    },
    /// `VHOST_SET_VRING_BASE`.
    SetBase {
        /// The ring.
        ring: u16,
        /// Where it goes on.
        base: u32,
    },
    /// `VHOST_SET_VRING_ADDR`.
    SetAddress {
        /// The ring.
        ring: u16,
        /// Descriptor, driver and device area.
        address: [Iova; 3],
    },
    /// `VHOST_SET_VRING_KICK`, `_CALL`, `_ERR` with the ring's descriptor, or
    /// with none.
    Wire {
        /// The ring.
        ring: u16,
        /// Which.
        wire: Wire,
        /// Whether it is given or taken away.
        bind: bool,
    },
    /// `VHOST_VDPA_SET_CONFIG_CALL`.
    ConfigCall {
        /// Whether it is given or taken away.
        bind: bool,
    },
    /// `VHOST_VDPA_SET_VRING_ENABLE` with 1.
    Enable {
        /// The ring.
        ring: u16,
    },
    /// `VHOST_VDPA_SUSPEND`.
    Suspend,
    /// `VHOST_VDPA_RESUME`.
    Resume,
    /// `VHOST_GET_VRING_BASE`, answered with [`Reply::Base`].
    ReadBase {
        /// The ring.
        ring: u16,
    },
}

/// The answer to a step that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is done.
    Done,
    /// To [`Step::CheckStatus`].
    Status(u8),
    /// To [`Step::ReadBase`].
    Base(u32),
}

/// What a command came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// After [`Command::Pause`] and [`Command::Stop`]: where each ring would go on.
    /// `None`: the device cannot say truthfully, as it cannot be suspended.
    pub bases: Vec<(u16, Option<u32>)>,
    /// What went wrong on the way down, and changes nothing.
    pub troubles: Vec<StepError>,
}

/// Why a step failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Failure {
    /// The kernel said no.
    #[error("error {0}")]
    Errno(i32),
    /// The device does not take the features.
    #[error("the device does not accept the features, its status is {status:#x}")]
    Features {
        /// Its status.
        status: u8,
    },
    /// The device does not run.
    #[error("the device did not start, its status is {status:#x}")]
    NotStarted {
        /// Its status.
        status: u8,
    },
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{step:?}: {failure}")]
pub struct StepError {
    /// Which.
    pub step: Step,
    /// Why.
    pub failure: Failure,
}

/// Whoever drives the consumer called it wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Misuse {
    /// A command before the last one has ended.
    #[error("a command is under way")]
    Busy,
    /// A command that means nothing now.
    #[error("the device is not in a state for this command")]
    State,
    /// An answer to nothing, or one that does not fit.
    #[error("an answer that does not fit its step")]
    Answer,
}
