//! Split virtqueues (virtio 1.3 2.7), device side and driver side.

mod device;
mod driver;
mod inflight;
mod walk;

pub use crate::descriptor::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
pub use crate::driver::{AddError, Buffer, IndirectTable, Used, UsedError};
pub use device::SplitDevice;
pub use driver::SplitDriver;

/// `avail.flags`: the driver asks not to be notified (virtio 1.3 2.7.6).
pub const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device asks not to be notified (virtio 1.3 2.7.8).
pub const VIRTQ_USED_F_NO_NOTIFY: u16 = 1;

/// Whether the peer asked to hear of any of the last `count` entries before
/// position `new` (virtio 1.3 2.7.10). `count` may exceed what 16 bits hold.
#[inline]
fn event_passed(event: u16, new: u16, count: u32) -> bool {
    u32::from(new.wrapping_sub(event).wrapping_sub(1)) < count
}
