//! The calls of VDUSE on this machine's kernel.

use std::ffi::c_void;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};

use super::name_bytes;
use super::{Call, DeviceConfig, Kernel, NAME_MAX, Name, QueueAlign, QueueInfo, RegionRecord};
use crate::seccomp::requests;

/// The kernel that this process runs on.
#[derive(Clone, Copy, Debug)]
pub struct Linux;

const SET_API_VERSION: libc::Ioctl = 0x4008_8101;
const CREATE_DEV: libc::Ioctl = 0x4150_8102;
const DESTROY_DEV: libc::Ioctl = 0x4100_8103;
const IOTLB_GET_FD: libc::Ioctl = 0xC020_8110_u32 as libc::Ioctl;
const DEV_GET_FEATURES: libc::Ioctl = 0x8008_8111_u32 as libc::Ioctl;
const DEV_SET_CONFIG: libc::Ioctl = 0x4008_8112;
const DEV_INJECT_CONFIG_IRQ: libc::Ioctl = 0x0000_8113;
const VQ_SETUP: libc::Ioctl = 0x4020_8114;
const VQ_GET_INFO: libc::Ioctl = 0xC030_8115_u32 as libc::Ioctl;
const VQ_SETUP_KICKFD: libc::Ioctl = 0x4008_8116;
const VQ_INJECT_IRQ: libc::Ioctl = 0x4004_8117;

/// All of them, for a filter of calls.
pub(crate) const CALLS: &[u32] = requests![
    SET_API_VERSION,
    CREATE_DEV,
    DESTROY_DEV,
    IOTLB_GET_FD,
    DEV_GET_FEATURES,
    DEV_SET_CONFIG,
    DEV_INJECT_CONFIG_IRQ,
    VQ_SETUP,
    VQ_GET_INFO,
    VQ_SETUP_KICKFD,
    VQ_INJECT_IRQ
];

/// `struct vduse_dev_config` without the configuration space behind it.
#[repr(C)]
struct ConfigHeader {
    name: [u8; NAME_MAX + 1],
    vendor_id: u32,
    device_id: u32,
    features: u64,
    queues: u32,
    queue_align: u32,
    reserved: [u32; 13],
    config_size: u32,
}

/// `struct vduse_vq_config`.
#[repr(C)]
struct QueueConfig {
    index: u32,
    size_max: u16,
    reserved: [u16; 13],
}

/// `struct vduse_vq_eventfd`.
#[repr(C)]
struct QueueEventFd {
    index: u32,
    fd: i32,
}

// The numbers above have the sizes in them.
const _: () = assert!(size_of::<ConfigHeader>() == 0x150);
const _: () = assert!(size_of::<QueueConfig>() == 0x20);
const _: () = assert!(size_of::<QueueEventFd>() == 8);
const _: () = assert!(size_of::<RegionRecord>() == 0x20);
const _: () = assert!(size_of::<QueueInfo>() == 0x30);

impl Kernel for Linux {
    fn open_control(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        Ok(open("/dev/vduse/control", flags, Mode::empty())?)
    }

    fn open_device(&self, name: &Name) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(open(format!("/dev/vduse/{name}"), flags, Mode::empty())?)
    }

    fn set_timeout(&self, name: &Name, seconds: u32) -> io::Result<()> {
        let path = format!("/sys/class/vduse/{name}/msg_timeout");
        fs::write(path, format!("{seconds}\n"))
    }

    fn call(&self, fd: BorrowedFd<'_>, call: Call<'_>) -> io::Result<Option<OwnedFd>> {
        match call {
            Call::SetVersion(mut version) => ioctl(fd, SET_API_VERSION, &raw mut version)?,
            Call::Create(config, align) => create(fd, config, align)?,
            Call::Destroy(name) => ioctl(fd, DESTROY_DEV, name_bytes(name).as_mut_ptr())?,
            Call::Region(record) => {
                let got = ioctl(fd, IOTLB_GET_FD, std::ptr::from_mut(record))?;
                // SAFETY: the kernel just made this descriptor for us, and nobody
                // else knows of it.
                let fd = unsafe { OwnedFd::from_raw_fd(got) };
                // It is made without the flag.
                rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
                return Ok(Some(fd));
            }
            Call::Features(features) => ioctl(fd, DEV_GET_FEATURES, std::ptr::from_mut(features))?,
            Call::SetConfig(offset, bytes) => set_config(fd, offset, bytes)?,
            Call::ConfigInterrupt => {
                ioctl(fd, DEV_INJECT_CONFIG_IRQ, std::ptr::null_mut::<c_void>())?
            }
            Call::SetupQueue(index, size_max) => {
                let reserved = [0; 13];
                let mut queue = QueueConfig {
                    index,
                    size_max,
                    reserved,
                };
                ioctl(fd, VQ_SETUP, &raw mut queue)?
            }
            Call::QueueInfo(info) => ioctl(fd, VQ_GET_INFO, std::ptr::from_mut(info))?,
            Call::SetKick(index, kick) => {
                let fd_number = kick.as_raw_fd();
                let mut event = QueueEventFd {
                    index,
                    fd: fd_number,
                };
                ioctl(fd, VQ_SETUP_KICKFD, &raw mut event)?
            }
            Call::Interrupt(mut index) => ioctl(fd, VQ_INJECT_IRQ, &raw mut index)?,
        };
        Ok(None)
    }
}

fn create(fd: BorrowedFd<'_>, config: &DeviceConfig, align: QueueAlign) -> io::Result<i32> {
    let header = ConfigHeader {
        name: name_bytes(&config.name),
        vendor_id: config.vendor_id,
        device_id: config.device_id,
        features: config.features,
        queues: config.queues.into(),
        queue_align: align.0,
        reserved: [0; 13],
        config_size: u32::try_from(config.config.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
    };
    let header = std::ptr::from_ref(&header).cast::<u8>();
    // SAFETY: the header has no padding: its parts add up to its size, which is
    // checked above, and each is aligned.
    let header = unsafe { std::slice::from_raw_parts(header, size_of::<ConfigHeader>()) };
    let mut bytes = [header, &config.config].concat();
    ioctl(fd, CREATE_DEV, bytes.as_mut_ptr())
}

fn set_config(fd: BorrowedFd<'_>, offset: u32, config: &[u8]) -> io::Result<i32> {
    let len = u32::try_from(config.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let words = [offset.to_ne_bytes(), len.to_ne_bytes()].concat();
    let mut bytes = [&words[..], config].concat();
    ioctl(fd, DEV_SET_CONFIG, bytes.as_mut_ptr())
}

fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: *mut T) -> io::Result<i32> {
    // SAFETY: every request here is made above, with an argument of the structure
    // that it names, and, of the two that have more behind it, with as many bytes as
    // the structure says.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, argument.cast::<c_void>()) } {
        got @ 0.. => Ok(got),
        _ => Err(io::Error::last_os_error()),
    }
}
