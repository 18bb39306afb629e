//! Where a ring lies: from the addresses of a front end to windows onto memory.

use linkspan_mem::{GuestMemory, Window};
use linkspan_vhost::backend::RingSetup;
use linkspan_virtio::{DeviceQueue, Features, QueueLayout, QueueState};

use super::error::Reason;
use super::inflight::InflightArea;

/// Where a ring begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// Here.
    At(QueueState),
    /// Where the front end says.
    AsTold,
    /// Behind what was used, since the device loses nothing by doing things again.
    BehindUsed,
}

/// The device's side of a ring in this memory. It finishes what the
/// region of requests in flight says an earlier back end began.
pub(super) fn place_queue(
    index: u16,
    setup: &RingSetup,
    memory: &GuestMemory,
    inflight: Option<&InflightArea>,
    start: Start,
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
