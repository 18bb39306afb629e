//! Where a ring lies: from the addresses of its driver to windows onto memory.

use linkspan_mem::{GuestMemory, SpaceError, Window, WindowError};
use linkspan_vhost::backend::RingSetup;
use linkspan_virtio::{DeviceQueue, Features, InflightError, QueueLayout, QueueState, StartError};

use crate::inflight::{InflightArea, InflightAreaError};

/// Where a ring begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// Here.
    At(QueueState),
    /// Where its driver says.
    AsTold,
    /// Behind what was used, since the device loses nothing by doing things again.
    BehindUsed,
}

/// Why a ring cannot be where it is said to be, or cannot go on there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// A ring's address is outside the memory.
    #[error("ring address: {0}")]
    Address(#[from] SpaceError),
    /// A ring does not fit where it is said to be.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The ring cannot begin as its driver says.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The region of requests in flight.
    #[error(transparent)]
    Area(#[from] InflightAreaError),
    /// What the region of requests in flight says.
    #[error(transparent)]
    Inflight(#[from] InflightError),
}

impl PlaceError {
    /// Whether the system refused something, rather than the driver said what
    /// cannot be.
    pub(crate) fn is_system(&self) -> bool {
        match self {
            Self::Start(StartError::Refused(_)) | Self::Inflight(InflightError::Refused(_)) => true,
            Self::Area(error) => error.is_system(),
            _ => false,
        }
    }
}

/// The device's side of a ring in this memory. It finishes what the region of
/// requests in flight says an earlier life of the device began.
pub(crate) fn place_queue(
    index: u16,
    setup: &RingSetup,
    memory: &GuestMemory,
    inflight: Option<&InflightArea>,
    start: Start,
) -> Result<DeviceQueue<Window>, PlaceError> {
    let (size, features) = (setup.size, Features::from_bits_retain(setup.features));
    let layout = QueueLayout::of(features);
    let [descriptors, driver, device] = layout.part_lens(size);
    let space = &memory.front_end;
    // Used descriptors of a packed ring overwrite available ones.
    let packed = layout == QueueLayout::Packed;
    let parts = [
        space.window_for(setup.descriptor, descriptors, packed)?,
        space.window(setup.driver, driver)?,
        space.window_for(setup.device, device, true)?,
    ];
    let queue = match start {
        Start::At(state) => DeviceQueue::new(parts, size, features, state)?,
        Start::AsTold => DeviceQueue::with_base(parts, size, features, setup.base)?,
        Start::BehindUsed => DeviceQueue::behind_used(parts, size, features, setup.base)?,
    };
    match inflight {
        Some(area) if area.covers(index) => {
            Ok(queue.track(area.window(index, layout)?, area.queue_size())?)
        }
        _ => Ok(queue),
    }
}
