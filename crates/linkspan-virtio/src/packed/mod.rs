//! Packed virtqueues (virtio 1.3 2.8), device side and driver side.

mod device;
mod driver;
mod inflight;
mod position;
mod walk;

pub use device::PackedDevice;
pub use driver::PackedDriver;

use linkspan_mem::EventSuppression;

use crate::queue::QueueState;
use position::Position;

/// With [`VIRTQ_DESC_F_USED`]: to whom a descriptor belongs (virtio 1.3 2.8.1).
pub const VIRTQ_DESC_F_AVAIL: u16 = 1 << 7;
/// See [`VIRTQ_DESC_F_AVAIL`].
pub const VIRTQ_DESC_F_USED: u16 = 1 << 15;
/// Notify always (virtio 1.3 2.8.10).
pub const RING_EVENT_FLAGS_ENABLE: u16 = 0;
/// Notify never.
pub const RING_EVENT_FLAGS_DISABLE: u16 = 1;
/// Notify when a certain descriptor is passed.
pub const RING_EVENT_FLAGS_DESC: u16 = 2;

/// Where both sides of a packed ring begin: at its first descriptor, with wrap
/// counters of 1 (virtio 1.3 2.8.1).
pub const START: QueueState = QueueState {
    next_available: 1 << 15,
    next_used: 1 << 15,
};

/// Whether the peer asked to hear of any of the last `count` descriptors before
/// `new` (virtio 1.3 2.8.10). What it must not say, it is taken to want.
#[inline]
fn wanted(event: EventSuppression, event_idx: bool, new: Position, count: u32, size: u16) -> bool {
    match event.flags & 3 {
        RING_EVENT_FLAGS_DISABLE => false,
        RING_EVENT_FLAGS_DESC if event_idx => {
            let since = new.since(Position::from_bits(event.position), size);
            since != 0 && since <= count
        }
        _ => true,
    }
}
