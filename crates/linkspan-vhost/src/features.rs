//! Feature bits that belong to vhost-user itself rather than to a device.

use bitflags::bitflags;

/// Virtio feature bit 30, which virtio leaves unused: the back end answers
/// `VHOST_USER_GET_PROTOCOL_FEATURES` (vhost-user: Communication).
pub const VHOST_USER_F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Virtio feature bit 26: writes to guest memory are logged for migration
/// (vhost-user: Migration).
pub const VHOST_F_LOG_ALL: u64 = 1 << 26;

/// Virtio 1.3, 6: `VIRTIO_F_RING_PACKED`; it decides which ring sizes and bases are legal.
pub(crate) const VIRTIO_F_RING_PACKED: u64 = 1 << 34;

/// Virtio 1.3, 6: `VIRTIO_F_ACCESS_PLATFORM`; it brings `VHOST_USER_IOTLB_MSG`.
pub(crate) const VIRTIO_F_ACCESS_PLATFORM: u64 = 1 << 33;

bitflags! {
    /// `VHOST_USER_PROTOCOL_F_*`: extensions of the protocol
    /// (vhost-user: Protocol features).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct ProtocolFeatures: u64 {
        /// Several queues; `VHOST_USER_GET_QUEUE_NUM`.
        const MQ = 1 << 0;
        /// The dirty log is a file descriptor.
        const LOG_SHMFD = 1 << 1;
        /// `VHOST_USER_SEND_RARP`.
        const RARP = 1 << 2;
        /// A sender may ask that a message be acknowledged.
        const REPLY_ACK = 1 << 3;
        /// `VHOST_USER_NET_SET_MTU`.
        const NET_MTU = 1 << 4;
        /// A second socket for requests of the back end.
        const BACKEND_REQ = 1 << 5;
        /// `VHOST_USER_SET_VRING_ENDIAN`.
        const CROSS_ENDIAN = 1 << 6;
        /// Crypto sessions.
        const CRYPTO_SESSION = 1 << 7;
        /// Postcopy migration through userfaultfd.
        const PAGEFAULT = 1 << 8;
        /// `VHOST_USER_GET_CONFIG` and `VHOST_USER_SET_CONFIG`.
        const CONFIG = 1 << 9;
        /// Requests of the back end may carry descriptors.
        const BACKEND_SEND_FD = 1 << 10;
        /// A queue's doorbell may be mapped from a descriptor.
        const HOST_NOTIFIER = 1 << 11;
        /// A region that records requests in flight.
        const INFLIGHT_SHMFD = 1 << 12;
        /// `VHOST_USER_RESET_DEVICE`.
        const RESET_DEVICE = 1 << 13;
        /// Kicks and calls as messages. Never offered: there are front ends
        /// that acknowledge it without having it.
        const INBAND_NOTIFICATIONS = 1 << 14;
        /// Memory regions are added and removed one by one.
        const CONFIGURE_MEM_SLOTS = 1 << 15;
        /// `VHOST_USER_SET_STATUS` and `VHOST_USER_GET_STATUS`.
        const STATUS = 1 << 16;
        /// Xen mapping fields in memory regions. Never offered: it changes the
        /// size of a message, and there are front ends that acknowledge it
        /// without having it.
        const XEN_MMAP = 1 << 17;
        /// `VHOST_USER_GET_SHARED_OBJECT`.
        const SHARED_OBJECT = 1 << 18;
        /// Transfer of the device's state.
        const DEVICE_STATE = 1 << 19;
        /// `VHOST_USER_GET_VRING_BASE` may leave requests in flight.
        const GET_VRING_BASE_INFLIGHT = 1 << 20;
        /// Ring addresses are guest addresses.
        const GPA_ADDRESSES = 1 << 21;
        /// Shared memory regions of the device.
        const SHMEM = 1 << 22;
    }
}
