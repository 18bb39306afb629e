//! Where a ring lies: from the addresses of a front end to windows onto memory.

use linkspan_mem::{GuestMemory, Window};
use linkspan_vhost::backend::RingSetup;
use linkspan_virtio::{DeviceQueue, Features, QueueLayout, QueueState};

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
) -> Result<DeviceQueue<Window>, Reason> {
    let (size, features) = (setup.size, Features::from_bits_retain(setup.features));
    let layout = QueueLayout::of(features);
    let [descriptors, driver, device] = layout.part_lens(size);
    let space = &memory.front_end;
    let parts = [
        space.window(setup.descriptor, descriptors)?,
        space.window(setup.driver, driver)?,
        space.window(setup.device, device)?,
    ];
    let queue = match state {
        Some(state) => DeviceQueue::new(parts, size, features, state)?,
        None => DeviceQueue::with_base(parts, size, features, setup.base)?,
    };
    match inflight {
        Some(area) if area.covers(index) => {
            Ok(queue.track(area.window(index, layout)?, area.queue_size())?)
        }
        _ => Ok(queue),
    }
}
