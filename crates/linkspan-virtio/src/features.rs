//! Feature bits that belong to queues and transports and not to one device.

use bitflags::bitflags;

bitflags! {
    /// Feature bits of a device (virtio 1.3 6), named as there.
    ///
    /// Bits 0 to 23 and from 50 on belong to the device type and have no name
    /// here; they are kept, so that one value carries a whole negotiation.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Features: u64 {
        /// The driver may use indirect descriptors (2.7.5.3, 2.8.7).
        const VIRTIO_F_INDIRECT_DESC = 1 << 28;
        /// `used_event` and `avail_event` are used (2.7.7, 2.7.10).
        const VIRTIO_F_EVENT_IDX = 1 << 29;
        /// Not a legacy device (6.1).
        const VIRTIO_F_VERSION_1 = 1 << 32;
        /// The device reaches memory through an IOMMU (6.1).
        const VIRTIO_F_ACCESS_PLATFORM = 1 << 33;
        /// Packed virtqueues (2.8).
        const VIRTIO_F_RING_PACKED = 1 << 34;
        /// Buffers are used in the order in which they were made available (2.7.9).
        const VIRTIO_F_IN_ORDER = 1 << 35;
        /// Memory is ordered as the platform orders it, not as processors do (6.1).
        const VIRTIO_F_ORDER_PLATFORM = 1 << 36;
        /// Single root I/O virtualization (6.1).
        const VIRTIO_F_SR_IOV = 1 << 37;
        /// Notifications of the driver carry data (2.9).
        const VIRTIO_F_NOTIFICATION_DATA = 1 << 38;
        /// The device supplies what identifies a queue in notifications (6.1).
        const VIRTIO_F_NOTIF_CONFIG_DATA = 1 << 39;
        /// One queue can be reset on its own (2.6.1).
        const VIRTIO_F_RING_RESET = 1 << 40;
        /// The device has administration virtqueues (2.13).
        const VIRTIO_F_ADMIN_VQ = 1 << 41;
        const _ = !0;
    }
}

impl Features {
    /// What a [`SplitDevice`](crate::split::SplitDevice) serves: what a device
    /// offers beside the bits of its type.
    pub const SPLIT_QUEUE: Self = Self::VIRTIO_F_VERSION_1
        .union(Self::VIRTIO_F_INDIRECT_DESC)
        .union(Self::VIRTIO_F_EVENT_IDX);

    /// The same for a [`PackedDevice`](crate::packed::PackedDevice).
    pub const PACKED_QUEUE: Self = Self::SPLIT_QUEUE.union(Self::VIRTIO_F_RING_PACKED);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_a_device_type_survive() {
        let offered = Features::from_bits_retain(0x1244) | Features::SPLIT_QUEUE;
        assert_eq!(offered.bits(), 0x1_3000_1244);
        assert_eq!((offered & Features::from_bits_retain(0x40)).bits(), 0x40);
    }
}
