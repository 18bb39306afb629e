//! vDPA devices of the kernel through their character device
//! (`/dev/vhost-vdpa-N`): the calls, each a method, and nothing of their order.
//!
//! [`Vdpa`] is what such a descriptor can be asked. [`KernelVdpa`] asks the
//! kernel; tests have a model of the kernel in its place, which answers errors.

mod doorbell;
mod kernel;
mod sysfs;
mod uapi;

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

use bitflags::bitflags;
use linkspan_mem::{Iova, Region};

pub use doorbell::Doorbell;
pub use kernel::{KernelVdpa, OpenError};
pub use sysfs::{Listed, devices, find};
pub(crate) use uapi::CALLS;

bitflags! {
    /// What the vhost side of a device can do (`VHOST_BACKEND_F_*` of
    /// linux/vhost_types.h; the numbers there are of bits).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BackendFeatures: u64 {
        /// Memory is mapped by messages of the second version.
        const IOTLB_MSG_V2 = 1 << 1;
        /// Many mappings take effect at once.
        const IOTLB_BATCH = 1 << 2;
        /// Groups of queues have address spaces of their own.
        const IOTLB_ASID = 1 << 3;
        /// The device can be suspended: it says truthfully where its queues are then.
        const SUSPEND = 1 << 4;
        /// And resumed.
        const RESUME = 1 << 5;
        /// A queue can be enabled after `DRIVER_OK`.
        const ENABLE_AFTER_DRIVER_OK = 1 << 6;
        /// Descriptors can be in another address space than buffers.
        const DESC_ASID = 1 << 7;
        /// Mappings outlive a reset.
        const IOTLB_PERSIST = 1 << 8;
        const _ = !0;
    }
}

/// Where the parts of a ring are for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddress {
    /// Descriptor area.
    pub descriptor: Iova,
    /// Driver area: the available ring.
    pub driver: Iova,
    /// Device area: the used ring.
    pub device: Iova,
}

/// Which descriptor of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFd {
    /// The driver made something available.
    Kick,
    /// The device used something.
    Call,
    /// The ring failed.
    Err,
}

/// Bytes of a page: what memory for a device is mapped in.
#[must_use]
pub fn page_size() -> u64 {
    u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}

/// What a vhost-vdpa descriptor can be asked (linux/vhost.h). What a method is
/// named after is in capital letters there; errors are the kernel's own.
///
/// Queries work at any time; whatever is about rings or memory needs
/// [`set_owner`](Self::set_owner) first (`EPERM`).
#[expect(clippy::missing_errors_doc, reason = "the kernel's own, see above")]
pub trait Vdpa: Debug + Send + Sync {
    /// `VHOST_VDPA_GET_DEVICE_ID`: the virtio device type.
    fn device_id(&self) -> io::Result<u32>;
    /// `VHOST_GET_FEATURES`.
    fn features(&self) -> io::Result<u64>;
    /// `VHOST_SET_FEATURES`; `EBUSY` once `FEATURES_OK` is set.
    fn set_features(&self, features: u64) -> io::Result<()>;
    /// `VHOST_GET_BACKEND_FEATURES`.
    fn backend_features(&self) -> io::Result<u64>;
    /// `VHOST_SET_BACKEND_FEATURES`.
    fn set_backend_features(&self, features: u64) -> io::Result<()>;
    /// `VHOST_SET_OWNER`.
    fn set_owner(&self) -> io::Result<()>;
    /// `VHOST_VDPA_GET_STATUS`.
    fn status(&self) -> io::Result<u8>;
    /// `VHOST_VDPA_SET_STATUS`: 0 resets; else no bit that is set can go.
    fn set_status(&self, status: u8) -> io::Result<()>;
    /// `VHOST_VDPA_GET_CONFIG_SIZE`.
    fn config_size(&self) -> io::Result<u32>;
    /// `VHOST_VDPA_GET_CONFIG`: all of `bytes`, from `offset` on.
    fn read_config(&self, offset: u32, bytes: &mut [u8]) -> io::Result<()>;
    /// `VHOST_VDPA_SET_CONFIG`: these bytes and no others.
    fn write_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()>;
    /// `VHOST_VDPA_SET_CONFIG_CALL`: signalled when configuration space changed.
    fn set_config_call(&self, fd: Option<BorrowedFd<'_>>) -> io::Result<()>;
    /// `VHOST_VDPA_GET_VQS_COUNT`; Linux 5.18.
    fn queues(&self) -> io::Result<u32>;
    /// `VHOST_VDPA_GET_VRING_NUM`: the largest size of any queue. 16 bits.
    fn queue_size_max(&self) -> io::Result<u16>;
    /// `VHOST_VDPA_GET_VRING_SIZE`: the largest size of one queue; many devices
    /// do not say (`EOPNOTSUPP`).
    fn queue_size(&self, ring: u16) -> io::Result<u32>;
    /// `VHOST_VDPA_GET_IOVA_RANGE`: the first and the last address that can be mapped.
    fn iova_range(&self) -> io::Result<(Iova, Iova)>;
    /// `VHOST_VDPA_GET_GROUP_NUM`.
    fn groups(&self) -> io::Result<u32>;
    /// `VHOST_VDPA_GET_AS_NUM`.
    fn address_spaces(&self) -> io::Result<u32>;
    /// `VHOST_VDPA_GET_VRING_GROUP`.
    fn ring_group(&self, ring: u16) -> io::Result<u32>;
    /// `VHOST_VDPA_SET_GROUP_ASID`. Linux checks the group against the number of
    /// queues first (`ENOBUFS`).
    fn set_group_asid(&self, group: u32, asid: u32) -> io::Result<()>;
    /// `VHOST_SET_VRING_NUM`.
    fn set_ring_size(&self, ring: u16, size: u16) -> io::Result<()>;
    /// `VHOST_SET_VRING_ADDR`.
    fn set_ring_address(&self, ring: u16, address: RingAddress) -> io::Result<()>;
    /// `VHOST_SET_VRING_BASE`: a split ring's next available index; a packed
    /// ring's two indices, each with its wrap counter in bit 15.
    fn set_ring_base(&self, ring: u16, base: u32) -> io::Result<()>;
    /// `VHOST_GET_VRING_BASE`.
    fn ring_base(&self, ring: u16) -> io::Result<u32>;
    /// `VHOST_SET_VRING_KICK`, `_CALL` and `_ERR`; `None` takes it away.
    fn set_ring_fd(&self, ring: u16, which: RingFd, fd: Option<BorrowedFd<'_>>) -> io::Result<()>;
    /// `mmap(2)` of the page on which a ring is kicked without a system call. Few
    /// devices have one, and then the eventfd is another way.
    fn doorbell(&self, ring: u16) -> io::Result<Doorbell>;
    /// The file whose page `ring` that is, for whoever maps it elsewhere.
    fn file(&self) -> Option<BorrowedFd<'_>>;
    /// `VHOST_VDPA_SET_VRING_ENABLE`.
    fn enable_ring(&self, ring: u16, enabled: bool) -> io::Result<()>;
    /// `VHOST_VDPA_SUSPEND`. Succeeds and does nothing before `DRIVER_OK`.
    fn suspend(&self) -> io::Result<()>;
    /// `VHOST_VDPA_RESUME`, likewise.
    fn resume(&self) -> io::Result<()>;
    /// `VHOST_IOTLB_UPDATE`: the device may read and write `region` from `iova` on.
    /// The region stays mapped in this process until [`unmap`](Self::unmap), or
    /// until the descriptor is closed. `EEXIST` where anything is mapped already.
    fn map(&self, asid: u32, iova: Iova, region: &Region) -> io::Result<()>;
    /// `VHOST_IOTLB_INVALIDATE` of what one [`map`](Self::map) mapped.
    fn unmap(&self, asid: u32, iova: Iova, len: u64) -> io::Result<()>;
    /// `VHOST_IOTLB_BATCH_BEGIN` and `_END`: what is mapped in between takes
    /// effect at once.
    fn batch(&self, asid: u32, begin: bool) -> io::Result<()>;
}
