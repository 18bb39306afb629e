//! Where a ring lies: from the addresses of a front end to windows onto memory.

use linkspan_mem::{GuestMemory, SplitRing, Window};
use linkspan_vhost::backend::RingSetup;
use linkspan_virtio::Features;
use linkspan_virtio::split::SplitDevice;

use super::session::Reason;

/// A quiet queue as it goes on in other memory.
pub(super) fn relocated(
    queue: &SplitDevice<Window>,
    setup: &RingSetup,
    memory: &GuestMemory,
) -> Result<SplitDevice<Window>, Reason> {
    let features = Features::from_bits_retain(setup.features);
    Ok(SplitDevice::new(
        split_ring(setup, memory)?,
        features,
        queue.state(),
    )?)
}

/// The available index in the base of a split ring: its low half.
pub(super) fn split_base(base: u32) -> u16 {
    let [low, high, ..] = base.to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// The ring in its memory.
pub(super) fn split_ring(
    setup: &RingSetup,
    memory: &GuestMemory,
) -> Result<SplitRing<Window>, Reason> {
    let size = setup.size;
    let space = &memory.front_end;
    Ok(SplitRing::new(
        space.window(setup.descriptor, SplitRing::<Window>::descriptors_len(size))?,
        space.window(setup.driver, SplitRing::<Window>::available_len(size))?,
        space.window(setup.device, SplitRing::<Window>::used_len(size))?,
        size,
    )?)
}
