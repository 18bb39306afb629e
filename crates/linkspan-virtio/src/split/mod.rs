//! Split virtqueues (virtio 1.3 2.7), device side and driver side.

mod device;
mod driver;
mod inflight;
mod saved;
mod walk;

pub use device::SplitDevice;
pub use driver::{AddError, Buffer, IndirectTable, SplitDriver, Used, UsedError};
pub use saved::SNAPSHOT_LEN;

/// The chain goes on at `next` (virtio 1.3 2.7.5).
pub const VIRTQ_DESC_F_NEXT: u16 = 1;
/// The device writes the buffer; without it, it reads.
pub const VIRTQ_DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const VIRTQ_DESC_F_INDIRECT: u16 = 4;
/// `avail.flags`: the driver asks not to be notified (virtio 1.3 2.7.6).
pub const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device asks not to be notified (virtio 1.3 2.7.8).
pub const VIRTQ_USED_F_NO_NOTIFY: u16 = 1;

/// More entries than any event index can lag behind: what a side counts as
/// published before its first look, so that the answer is yes.
const FIRST_NOTIFY: u32 = 1 << 16;

/// Whether the peer asked to hear of any of the last `count` entries before
/// position `new` (virtio 1.3 2.7.10). `count` may exceed what 16 bits hold.
#[inline]
fn event_passed(event: u16, new: u16, count: u32) -> bool {
    u32::from(new.wrapping_sub(event).wrapping_sub(1)) < count
}
