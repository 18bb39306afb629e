//! Where a ring lies: from the addresses of a front end to windows onto memory.

use linkspan_mem::{GuestMemory, SplitRing, Window};
use linkspan_vhost::backend::RingSetup;
use linkspan_virtio::split::SplitDevice;
use linkspan_virtio::{Features, QueueState};

use super::error::Reason;
use super::inflight::InflightArea;

/// The device's side of a ring in this memory. It goes on from `state`, or from
/// what the front end says of a ring that starts; and it finishes what the
/// region of requests in flight says an earlier back end began.
pub(super) fn place_queue(
    index: u16,
    setup: &RingSetup,
    memory: &GuestMemory,
    inflight: Option<&InflightArea>,
    state: Option<QueueState>,
) -> Result<SplitDevice<Window>, Reason> {
    let ring = split_ring(setup, memory)?;
    let state = state.unwrap_or_else(|| QueueState {
        next_available: split_base(setup.base),
        // The base says nothing of the used ring: its state is in the ring.
        next_used: ring.used_index(),
    });
    let queue = SplitDevice::new(ring, Features::from_bits_retain(setup.features), state)?;
    match inflight {
        Some(area) if area.covers(index) => Ok(queue.track(area.split(index)?)?),
        _ => Ok(queue),
    }
}

/// The available index in the base of a split ring: its low half.
fn split_base(base: u32) -> u16 {
    let [low, high, ..] = base.to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// The ring in its memory.
fn split_ring(setup: &RingSetup, memory: &GuestMemory) -> Result<SplitRing<Window>, Reason> {
    let size = setup.size;
    let space = &memory.front_end;
    Ok(SplitRing::new(
        space.window(setup.descriptor, SplitRing::<Window>::descriptors_len(size))?,
        space.window(setup.driver, SplitRing::<Window>::available_len(size))?,
        space.window(setup.device, SplitRing::<Window>::used_len(size))?,
        size,
    )?)
}
