//! VFIO devices with a display, from who looks at them (linux/vfio.h): the calls, and
//! nothing of their order.
//!
//! What is asked of the kernel goes through [`Kernel`], of which [`Linux`] is the real one:
//! tests put a model in its place, since few machines have such devices, and since some
//! kernels have bugs that no test may meet.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

mod linux;
mod process;

pub(crate) use linux::CALLS;
pub use linux::Linux;
pub use process::{Held, Process};

/// `VFIO_TYPE1v2_IOMMU`: what a container is made for.
pub const TYPE1_V2: u32 = 3;
/// `VFIO_GROUP_FLAGS_VIABLE`: no device of the group belongs to a driver of the kernel.
pub const GROUP_VIABLE: u32 = 1;

/// `VFIO_GFX_PLANE_TYPE_PROBE`.
pub const PLANE_PROBE: u32 = 1;
/// `VFIO_GFX_PLANE_TYPE_DMABUF`.
pub const PLANE_DMABUF: u32 = 1 << 1;
/// `VFIO_GFX_PLANE_TYPE_REGION`.
pub const PLANE_REGION: u32 = 1 << 2;

/// `DRM_PLANE_TYPE_PRIMARY`.
pub const DRM_PRIMARY: u32 = 1;
/// `DRM_PLANE_TYPE_CURSOR`.
pub const DRM_CURSOR: u32 = 2;

/// `VFIO_REGION_INFO_FLAG_MMAP`.
pub const REGION_MMAP: u32 = 1 << 2;
/// `VFIO_REGION_INFO_FLAG_CAPS`.
pub const REGION_CAPS: u32 = 1 << 3;

/// What asks of a plane: `struct vfio_device_gfx_plane_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct PlaneInfo {
    /// Bytes of this.
    pub argsz: u32,
    /// `PLANE_*`.
    pub flags: u32,
    /// `DRM_*`: which plane.
    pub drm_plane_type: u32,
    /// Format of a pixel.
    pub drm_format: u32,
    /// Order of lines.
    pub drm_format_mod: u64,
    /// Pixels across.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bytes from line to line.
    pub stride: u32,
    /// Bytes of its memory.
    pub size: u32,
    /// Pixels from the left, with a sign.
    pub x_pos: u32,
    /// Pixels from the top, with a sign.
    pub y_pos: u32,
    /// Where a pointer points, or all ones.
    pub x_hot: u32,
    /// The same from its top.
    pub y_hot: u32,
    /// The region, or the id of the buffer.
    pub index_or_id: u32,
    /// Later kernels name it.
    pub reserved: u32,
}

/// `struct vfio_device_info` as far as all kernels have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DeviceInfo {
    /// Bytes of this.
    pub argsz: u32,
    /// Which kind of device.
    pub flags: u32,
    /// Regions that are numbered without a gap; others may follow.
    pub num_regions: u32,
    /// Interrupts.
    pub num_irqs: u32,
}

/// `struct vfio_region_info`; capabilities may follow it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RegionInfo {
    /// Bytes of this and of the capabilities.
    pub argsz: u32,
    /// `REGION_*`; bit 0 can be read, bit 1 can be written.
    pub flags: u32,
    /// Which.
    pub index: u32,
    /// Where the first capability is, in bytes from the start of this.
    pub cap_offset: u32,
    /// Its bytes.
    pub size: u64,
    /// Where it is in the file of the device.
    pub offset: u64,
}

impl RegionInfo {
    /// Bytes of it without capabilities.
    pub const BYTES: usize = size_of::<Self>();

    /// What is at the start of an answer.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.first_chunk()?;
        let (words, _) = bytes.as_chunks::<4>();
        let [argsz, flags, index, cap_offset, ..] = words else {
            return None;
        };
        let word = |bytes: &[u8; 4]| u32::from_ne_bytes(*bytes);
        let (longs, _) = bytes.as_chunks::<8>();
        Some(Self {
            argsz: word(argsz),
            flags: word(flags),
            index: word(index),
            cap_offset: word(cap_offset),
            size: u64::from_ne_bytes(*longs.get(2)?),
            offset: u64::from_ne_bytes(*longs.get(3)?),
        })
    }
}

// The calls have no sizes in their numbers: the kernel goes by `argsz`.
const _: () = assert!(size_of::<PlaneInfo>() == 64 && align_of::<PlaneInfo>() == 8);
const _: () = assert!(std::mem::offset_of!(PlaneInfo, index_or_id) == 56);
const _: () = assert!(size_of::<DeviceInfo>() == 16);
const _: () = assert!(size_of::<RegionInfo>() == 32);

/// The calls that a viewer makes. Which descriptor they are for matters: the numbers of
/// [`QueryPlane`](Self::QueryPlane) and [`DmaBuf`](Self::DmaBuf) unmap memory on a container.
#[derive(Debug)]
pub enum Call<'a> {
    /// `VFIO_GET_API_VERSION` of a container.
    ApiVersion(&'a mut u32),
    /// `VFIO_SET_IOMMU` of a container.
    SetIommu(u32),
    /// `VFIO_GROUP_GET_STATUS`: its flags.
    GroupStatus(&'a mut u32),
    /// `VFIO_GROUP_SET_CONTAINER`
    SetContainer(BorrowedFd<'a>),
    /// `VFIO_GROUP_GET_DEVICE_FD` with the device's name in sysfs.
    DeviceFd(&'a CStr),
    /// `VFIO_DEVICE_BIND_IOMMUFD`
    BindIommufd(BorrowedFd<'a>),
    /// `VFIO_DEVICE_GET_INFO`
    DeviceInfo(&'a mut DeviceInfo),
    /// `VFIO_DEVICE_GET_REGION_INFO` of a region; the answer has as many bytes as fit.
    RegionInfo(u32, &'a mut [u8]),
    /// `VFIO_DEVICE_RESET`
    Reset,
    /// `VFIO_DEVICE_QUERY_GFX_PLANE`
    QueryPlane(&'a mut PlaneInfo),
    /// `VFIO_DEVICE_GET_GFX_DMABUF` of an id.
    DmaBuf(u32),
}

impl Call<'_> {
    /// What the kernel calls it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ApiVersion(_) => "VFIO_GET_API_VERSION",
            Self::SetIommu(_) => "VFIO_SET_IOMMU",
            Self::GroupStatus(_) => "VFIO_GROUP_GET_STATUS",
            Self::SetContainer(_) => "VFIO_GROUP_SET_CONTAINER",
            Self::DeviceFd(_) => "VFIO_GROUP_GET_DEVICE_FD",
            Self::BindIommufd(_) => "VFIO_DEVICE_BIND_IOMMUFD",
            Self::DeviceInfo(_) => "VFIO_DEVICE_GET_INFO",
            Self::RegionInfo(..) => "VFIO_DEVICE_GET_REGION_INFO",
            Self::Reset => "VFIO_DEVICE_RESET",
            Self::QueryPlane(_) => "VFIO_DEVICE_QUERY_GFX_PLANE",
            Self::DmaBuf(_) => "VFIO_DEVICE_GET_GFX_DMABUF",
        }
    }
}

/// What a viewer asks of a kernel.
pub trait Kernel: Send + Sync + fmt::Debug {
    /// Opens a node below `/dev` for reading and writing.
    ///
    /// # Errors
    /// What `open(2)` reports.
    fn open(&self, path: &Path) -> io::Result<OwnedFd>;

    /// One `ioctl(2)`. Only [`Call::DeviceFd`] and [`Call::DmaBuf`] give a descriptor.
    ///
    /// # Errors
    /// What the kernel reports.
    fn call(&self, fd: BorrowedFd<'_>, call: Call<'_>) -> io::Result<Option<OwnedFd>>;

    /// Whether a descriptor that somebody else opened is one of a VFIO device.
    ///
    /// # Errors
    /// It cannot be found out.
    fn is_device(&self, fd: BorrowedFd<'_>) -> io::Result<bool>;
}
