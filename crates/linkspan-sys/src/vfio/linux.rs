//! The calls of VFIO on this machine's kernel.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use linkspan_mem::fault::Site;
use rustix::fs::{FileType, Mode, OFlags, fstat, open, readlink};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

use super::{Call, Kernel, RegionInfo};
use crate::acquire;
use crate::seccomp::requests;

/// The kernel that this process runs on.
#[derive(Clone, Copy, Debug)]
pub struct Linux;

const GET_API_VERSION: libc::Ioctl = 0x3B64;
const SET_IOMMU: libc::Ioctl = 0x3B66;
const GROUP_GET_STATUS: libc::Ioctl = 0x3B67;
const GROUP_SET_CONTAINER: libc::Ioctl = 0x3B68;
const GROUP_GET_DEVICE_FD: libc::Ioctl = 0x3B6A;
const DEVICE_GET_INFO: libc::Ioctl = 0x3B6B;
const DEVICE_GET_REGION_INFO: libc::Ioctl = 0x3B6C;
const DEVICE_RESET: libc::Ioctl = 0x3B6F;
const DEVICE_QUERY_GFX_PLANE: libc::Ioctl = 0x3B72;
const DEVICE_GET_GFX_DMABUF: libc::Ioctl = 0x3B73;
const DEVICE_BIND_IOMMUFD: libc::Ioctl = 0x3B76;

/// All of them, for a filter of calls.
pub(crate) const CALLS: &[u32] = requests![
    GET_API_VERSION,
    SET_IOMMU,
    GROUP_GET_STATUS,
    GROUP_SET_CONTAINER,
    GROUP_GET_DEVICE_FD,
    DEVICE_GET_INFO,
    DEVICE_GET_REGION_INFO,
    DEVICE_RESET,
    DEVICE_QUERY_GFX_PLANE,
    DEVICE_GET_GFX_DMABUF,
    DEVICE_BIND_IOMMUFD
];

/// `struct vfio_group_status`.
#[repr(C)]
struct GroupStatus {
    argsz: u32,
    flags: u32,
}

/// `struct vfio_device_bind_iommufd` as all kernels have it.
#[repr(C)]
struct Bind {
    argsz: u32,
    flags: u32,
    iommufd: i32,
    out_devid: u32,
}

const _: () = assert!(size_of::<GroupStatus>() == 8);
const _: () = assert!(size_of::<Bind>() == 16);

const fn argsz<T>() -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "structures are small")]
    let bytes = size_of::<T>() as u32;
    bytes
}

impl Kernel for Linux {
    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        acquire(Site::Fd)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        Ok(open(path, flags, Mode::empty())?)
    }

    fn call(&self, fd: BorrowedFd<'_>, call: Call<'_>) -> io::Result<Option<OwnedFd>> {
        match call {
            Call::ApiVersion(version) => {
                let got = ioctl(fd, GET_API_VERSION, std::ptr::null_mut::<c_void>())?;
                *version = got.cast_unsigned();
            }
            Call::SetIommu(kind) => {
                // The argument is the number itself.
                let kind = std::ptr::without_provenance_mut::<c_void>(kind as usize);
                ioctl(fd, SET_IOMMU, kind)?;
            }
            Call::GroupStatus(flags) => {
                let mut status = GroupStatus {
                    argsz: argsz::<GroupStatus>(),
                    flags: 0,
                };
                ioctl(fd, GROUP_GET_STATUS, &raw mut status)?;
                *flags = status.flags;
            }
            Call::SetContainer(container) => {
                let mut number = container.as_raw_fd();
                ioctl(fd, GROUP_SET_CONTAINER, &raw mut number)?;
            }
            Call::DeviceFd(name) => {
                acquire(Site::Fd)?;
                return owned(ioctl(fd, GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut())?).map(Some);
            }
            Call::BindIommufd(iommufd) => {
                let mut bind = Bind {
                    argsz: argsz::<Bind>(),
                    flags: 0,
                    iommufd: iommufd.as_raw_fd(),
                    out_devid: 0,
                };
                ioctl(fd, DEVICE_BIND_IOMMUFD, &raw mut bind)?;
            }
            Call::DeviceInfo(info) => {
                info.argsz = argsz::<super::DeviceInfo>();
                ioctl(fd, DEVICE_GET_INFO, std::ptr::from_mut(info))?;
            }
            Call::RegionInfo(index, bytes) => region_info(fd, index, bytes)?,
            Call::Reset => {
                ioctl(fd, DEVICE_RESET, std::ptr::null_mut::<c_void>())?;
            }
            Call::QueryPlane(info) => {
                ioctl(fd, DEVICE_QUERY_GFX_PLANE, std::ptr::from_mut(info))?;
            }
            Call::DmaBuf(mut id) => {
                acquire(Site::Fd)?;
                return owned(ioctl(fd, DEVICE_GET_GFX_DMABUF, &raw mut id)?).map(Some);
            }
        }
        Ok(None)
    }

    fn is_device(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        let link = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
        Ok(is_device_link(link.as_bytes()) && !is_path_to_no_node(fd, link.as_bytes())?)
    }
}

/// What `/proc/PID/fd/N` says of the descriptor of a VFIO device: of one that a group gave,
/// or of a node of its own.
pub(super) fn is_device_link(link: &[u8]) -> bool {
    link == b"anon_inode:[vfio-device]" || link.starts_with(b"/dev/vfio/devices/vfio")
}

/// A path may be that of anything; a node is a character device.
fn is_path_to_no_node(fd: BorrowedFd<'_>, link: &[u8]) -> io::Result<bool> {
    let kind = FileType::from_raw_mode(fstat(fd)?.st_mode);
    Ok(link.starts_with(b"/") && kind != FileType::CharacterDevice)
}

fn region_info(fd: BorrowedFd<'_>, index: u32, bytes: &mut [u8]) -> io::Result<()> {
    let too_short = || io::Error::from(Errno::INVAL);
    let len = u32::try_from(bytes.len()).map_err(|_| too_short())?;
    let head: &mut [u8; RegionInfo::BYTES] = bytes.first_chunk_mut().ok_or_else(too_short)?;
    head.fill(0);
    head[..4].copy_from_slice(&len.to_ne_bytes());
    head[8..12].copy_from_slice(&index.to_ne_bytes());
    // The kernel writes at most as many bytes as the first word says.
    ioctl(fd, DEVICE_GET_REGION_INFO, bytes.as_mut_ptr())?;
    Ok(())
}

/// A descriptor that the kernel just made; not every driver sets the flag.
fn owned(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: the kernel made it for us, and nobody else knows of it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// One call on a descriptor of the right kind.
fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: *mut T) -> io::Result<i32> {
    // SAFETY: each call above passes the structure of its number, which is as large as it
    // says and lives through the call.
    let got = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(got)
}
