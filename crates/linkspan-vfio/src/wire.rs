//! The bytes of vfio-user messages (QEMU: docs/interop/vfio-user.rst).
//!
//! Both ends run on one machine, so all numbers are in its own byte order. Bytes
//! arrive without alignment: read the structures by copy, with `read_from_bytes`.

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = size_of::<Header>();

/// Bytes of a region that one message moves at most: the default of
/// `max_data_xfer_size`, and what we say.
pub const DATA_MAX: usize = 1 << 20;

/// The largest body that is received, in bytes. A longer one ends the connection
/// before anything is kept of it.
pub const BODY_MAX: usize = DATA_MAX + size_of::<Access>();

/// File descriptors that one message may carry, and what we say as `max_msg_fds`.
pub const FDS_MAX: usize = 8;

/// The version of the protocol: its major number, and the highest minor one.
pub const VERSION: (u16, u16) = (0, 2);

/// The one page size that memory is mapped by, in bytes.
pub const PAGE: u64 = 4096;

/// What precedes every body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// A number of the sender's, which comes back with the reply.
    pub id: u16,
    /// Which message this is.
    pub command: u16,
    /// Bytes of the message, this header included.
    pub size: u32,
    /// Type and [`NO_REPLY`](Self::NO_REPLY) and [`ERROR`](Self::ERROR).
    pub flags: u32,
    /// Of a reply with [`ERROR`](Self::ERROR): an errno, or 0.
    pub error: u32,
}

impl Header {
    /// The bits of `flags` that say which type of message it is.
    pub const TYPE_MASK: u32 = 0xF;
    /// Type: a command.
    pub const COMMAND: u32 = 0;
    /// Type: a reply.
    pub const REPLY: u32 = 1;
    /// The sender of a command wants no reply.
    pub const NO_REPLY: u32 = 1 << 4;
    /// The command failed.
    pub const ERROR: u32 = 1 << 5;
}

/// `VFIO_USER_VERSION`, before its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Version {
    /// Both ends have the same.
    pub major: u16,
    /// The lower one counts.
    pub minor: u16,
}

/// `VFIO_USER_DMA_MAP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMapBody {
    /// Bytes of this structure.
    pub argsz: u32,
    /// [`DMA_READ`], [`DMA_WRITE`], [`DMA_MMAP`], [`DMA_FILE_IO`].
    pub flags: u32,
    /// Where it begins in its file.
    pub offset: u64,
    /// The address that devices use.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// Bit of [`DmaMapBody::flags`]: the device may read it.
pub const DMA_READ: u32 = 1 << 0;
/// Bit of [`DmaMapBody::flags`]: the device may write it.
pub const DMA_WRITE: u32 = 1 << 1;
/// Bit of [`DmaMapBody::flags`] since version 0.2: its descriptor can be mapped.
pub const DMA_MMAP: u32 = 1 << 2;
/// Bit of [`DmaMapBody::flags`], which libvfio-user adds to version 0.2: the client would
/// have its descriptor read and written. Of the files that are taken that is the same as
/// to map it.
pub const DMA_FILE_IO: u32 = 1 << 3;

/// `VFIO_USER_DMA_UNMAP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmapBody {
    /// The most bytes of the reply.
    pub argsz: u32,
    /// [`UNMAP_ALL`] or nothing.
    pub flags: u32,
    /// The address of a map.
    pub address: u64,
    /// Its bytes.
    pub size: u64,
}

/// Bit of [`DmaUnmapBody::flags`] (`VFIO_DMA_UNMAP_FLAG_ALL`): all maps are meant.
pub const UNMAP_ALL: u32 = 1 << 1;

/// `VFIO_USER_DEVICE_GET_INFO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfo {
    /// The most bytes of the reply; in it, all that there are.
    pub argsz: u32,
    /// [`DEVICE_RESET`], [`DEVICE_PCI`].
    pub flags: u32,
    /// Regions, those included that the device does not have.
    pub num_regions: u32,
    /// Kinds of interrupts.
    pub num_irqs: u32,
}

/// Bit of [`DeviceInfo::flags`]: it can be reset.
pub const DEVICE_RESET: u32 = 1 << 0;
/// Bit of [`DeviceInfo::flags`]: it is a PCI device.
pub const DEVICE_PCI: u32 = 1 << 1;

/// `VFIO_USER_DEVICE_GET_REGION_INFO`, before capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionInfo {
    /// The most bytes of the reply; in it, all that there are.
    pub argsz: u32,
    /// [`REGION_READ`] and the others.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Where the first capability is, from the begin of this structure; or 0.
    pub cap_offset: u32,
    /// Bytes of the region; 0: it does not exist.
    pub size: u64,
    /// Where it begins in the file that comes with the reply.
    pub offset: u64,
}

/// Bit of [`RegionInfo::flags`]: it can be read.
pub const REGION_READ: u32 = 1 << 0;
/// Bit of [`RegionInfo::flags`]: it can be written.
pub const REGION_WRITE: u32 = 1 << 1;
/// Bit of [`RegionInfo::flags`]: it can be mapped.
pub const REGION_MMAP: u32 = 1 << 2;
/// Bit of [`RegionInfo::flags`]: capabilities follow.
pub const REGION_CAPS: u32 = 1 << 3;

/// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.
pub const CAP_SPARSE_MMAP: u16 = 1;
/// `VFIO_REGION_INFO_CAP_TYPE`.
pub const CAP_TYPE: u16 = 2;

/// What every capability of a region begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapHeader {
    /// Which capability.
    pub id: u16,
    /// Its version.
    pub version: u16,
    /// Where the next one is, from the begin of [`RegionInfo`]; or 0.
    pub next: u32,
}

/// `VFIO_USER_DEVICE_GET_REGION_IO_FDS`, before the parts of the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoFds {
    /// The most bytes of the reply; in it, all that there are.
    pub argsz: u32,
    /// Nothing.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Parts of the reply, also if there is no room for them.
    pub count: u32,
}

/// A part of a region that an eventfd stands for. The specification has it without the three
/// parts of shadow memory, 40 bytes; libvfio-user, and whoever follows it, sends 48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoEvent {
    /// Its first byte within the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Which descriptor of the message.
    pub fd_index: u32,
    /// [`IO_EVENT`].
    pub kind: u32,
    /// Whether only writes of `value` are meant.
    pub flags: u32,
    /// Which descriptor has shadow memory.
    pub shadow_fd_index: u32,
    /// Where in it.
    pub shadow_offset: u64,
    /// The value that is meant.
    pub value: u64,
}

/// Kind of [`IoEvent::kind`] (`VFIO_USER_IO_FD_TYPE_IOEVENTFD`): an eventfd.
pub const IO_EVENT: u32 = 0;

/// `VFIO_USER_DEVICE_GET_IRQ_INFO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqInfo {
    /// The most bytes of the reply; in it, all that there are.
    pub argsz: u32,
    /// [`IRQ_EVENTFD`] and the others.
    pub flags: u32,
    /// Which kind.
    pub index: u32,
    /// How many there are of it.
    pub count: u32,
}

/// Bit of [`IrqInfo::flags`]: it is told by an eventfd.
pub const IRQ_EVENTFD: u32 = 1 << 0;
/// Bit of [`IrqInfo::flags`]: it can be masked.
pub const IRQ_MASKABLE: u32 = 1 << 1;
/// Bit of [`IrqInfo::flags`]: it masks itself when it happens.
pub const IRQ_AUTOMASKED: u32 = 1 << 2;
/// Bit of [`IrqInfo::flags`]: how many there are is said once.
pub const IRQ_NORESIZE: u32 = 1 << 3;

/// `VFIO_USER_DEVICE_SET_IRQS`, before its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqSet {
    /// Bytes of this structure and its data.
    pub argsz: u32,
    /// One bit of data and one of action.
    pub flags: u32,
    /// Which kind.
    pub index: u32,
    /// The first that is meant.
    pub start: u32,
    /// How many are.
    pub count: u32,
}

/// Data of [`IrqSet::flags`]: none.
pub const IRQ_DATA_NONE: u32 = 1 << 0;
/// Data of [`IrqSet::flags`]: a byte for each.
pub const IRQ_DATA_BOOL: u32 = 1 << 1;
/// Data of [`IrqSet::flags`]: an eventfd for each.
pub const IRQ_DATA_EVENTFD: u32 = 1 << 2;
/// Action of [`IrqSet::flags`]: mask.
pub const IRQ_ACTION_MASK: u32 = 1 << 3;
/// Action of [`IrqSet::flags`]: unmask.
pub const IRQ_ACTION_UNMASK: u32 = 1 << 4;
/// Action of [`IrqSet::flags`]: trigger.
pub const IRQ_ACTION_TRIGGER: u32 = 1 << 5;

/// `VFIO_USER_REGION_READ` and `VFIO_USER_REGION_WRITE`, before data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Access {
    /// First byte within the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

/// One write of `VFIO_USER_REGION_WRITE_MULTI`, after a `u64` that says how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MultiWrite {
    /// Where.
    pub access: Access,
    /// Its bytes, the first `count` of these.
    pub data: [u8; 8],
}

/// The most writes of `VFIO_USER_REGION_WRITE_MULTI`.
pub const WRITES_MAX: usize = 1024;

/// `VFIO_USER_DMA_READ` and `VFIO_USER_DMA_WRITE`, before data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaAccess {
    /// The address that devices use.
    pub address: u64,
    /// Bytes.
    pub count: u64,
}

/// `struct vfio_device_gfx_plane_info`: what is asked and what is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PlaneInfo {
    /// Bytes of this structure, at least [`PlaneInfo::MIN`].
    pub argsz: u32,
    /// [`PLANE_PROBE`], [`PLANE_DMABUF`], [`PLANE_REGION`].
    pub flags: u32,
    /// Which plane is asked for (`DRM_PLANE_TYPE_*`).
    pub plane_type: u32,
    /// Pixels, a fourcc; 0: nothing is shown.
    pub format: u32,
    /// How they lie in memory.
    pub modifier: u64,
    /// Pixels of a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bytes from one line to the next.
    pub stride: u32,
    /// Bytes of all.
    pub size: u32,
    /// Where it is on the screen.
    pub x: u32,
    /// Where it is on the screen.
    pub y: u32,
    /// Of a pointer, the pixel that points, or all ones.
    pub x_hot: u32,
    /// Of a pointer, the pixel that points, or all ones.
    pub y_hot: u32,
    /// The region, or the id of a dma-buf.
    pub handle: u32,
    /// Nothing.
    pub reserved: u32,
}

impl PlaneInfo {
    /// Bytes that every driver wants at least: all but `reserved`.
    pub const MIN: u32 = 60;
    /// Bytes.
    pub const BYTES: u32 = 64;
}

/// Bit of [`PlaneInfo::flags`]: only whether that can be asked.
pub const PLANE_PROBE: u32 = 1 << 0;
/// Bit of [`PlaneInfo::flags`]: planes by descriptor.
pub const PLANE_DMABUF: u32 = 1 << 1;
/// Bit of [`PlaneInfo::flags`]: planes within a region.
pub const PLANE_REGION: u32 = 1 << 2;
/// Bit of [`PlaneInfo::flags`], of ours: the plane is on and not shown, and behind the
/// structure stands why, in words. Only who has room for words is told so.
pub const PLANE_REFUSED: u32 = 1 << 31;
/// The most bytes of those words.
pub const PLANE_WORDS_MAX: usize = 160;

/// The answer to `LINKSPAN_GET_GFX_DMABUF`, which comes with a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PlaneBuffer {
    /// The id that was asked for.
    pub id: u32,
    /// [`BUFFER_MEMORY`] or [`BUFFER_DMABUF`].
    pub kind: u32,
    /// Where the plane begins in what the descriptor has, in bytes.
    pub offset: u64,
    /// Bytes that the descriptor has.
    pub len: u64,
}

/// Kind of [`PlaneBuffer::kind`]: a memory file that can only be read.
pub const BUFFER_MEMORY: u32 = 0;
/// Kind of [`PlaneBuffer::kind`]: a dma-buf.
pub const BUFFER_DMABUF: u32 = 1;

/// The errors of replies, as numbers of Linux.
pub mod errno {
    /// `ENOENT`.
    pub const ENOENT: u32 = 2;
    /// `EIO`.
    pub const EIO: u32 = 5;
    /// `ENOMEM`.
    pub const ENOMEM: u32 = 12;
    /// `EACCES`.
    pub const EACCES: u32 = 13;
    /// `EEXIST`.
    pub const EEXIST: u32 = 17;
    /// `EINVAL`.
    pub const EINVAL: u32 = 22;
    /// `ENOSPC`.
    pub const ENOSPC: u32 = 28;
    /// `EPROTO`.
    pub const EPROTO: u32 = 71;
    /// `EOPNOTSUPP`.
    pub const EOPNOTSUPP: u32 = 95;
}

/// A structure at the begin of `bytes`, and what follows it.
pub(crate) fn head<T: FromBytes>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(bytes).ok()
}
