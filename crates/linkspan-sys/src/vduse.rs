//! VDUSE: devices of this process that the kernel takes for vDPA devices
//! (linux/vduse.h).
//!
//! A [`Control`] makes and ends devices, a [`VduseDevice`] is one of them. What
//! they ask of the kernel goes through [`Kernel`], of which [`Linux`] is the real
//! one: tests put a model in its place, since few machines have VDUSE.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_mem::fault::Site;
use rustix::io::Errno;

use crate::{EventFd, acquire};

mod linux;

pub(crate) use linux::CALLS;
pub use linux::Linux;

/// Bytes of a device's name at most (`VDUSE_NAME_MAX` with its NUL).
pub const NAME_MAX: usize = 255;

/// Bytes of a request of the kernel (`struct vduse_dev_request`), and of an
/// answer to it (`struct vduse_dev_response`).
pub const MESSAGE_BYTES: usize = 152;

/// The largest configuration space that the kernel takes, in bytes: a page.
pub const CONFIG_BYTES_MAX: usize = 4096;

/// What a queue's areas are aligned to when the kernel allocates them, in bytes.
/// With less than a page the areas of a small queue would share one.
const QUEUE_ALIGN: u32 = 4096;

/// What a device is from its beginning to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// How the kernel calls it: `/dev/vduse/NAME`, and `vdpa dev add name NAME`.
    pub name: Name,
    /// Virtio device type; the kernel takes 1 (network) and 2 (block).
    pub device_id: u32,
    /// Virtio vendor.
    pub vendor_id: u32,
    /// Virtio features; `VIRTIO_F_ACCESS_PLATFORM` must be among them.
    pub features: u64,
    /// Number of queues.
    pub queues: u16,
    /// The configuration space, which drivers can only read.
    pub config: Vec<u8>,
}

/// A name that a VDUSE device can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

/// A text that is no name of a VDUSE device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no name of a VDUSE device: 1 to {NAME_MAX} letters, digits, `-`, `_` and `.`, not \
     beginning with a dot, and not `control`"
)]
pub struct BadName(pub String);

impl std::str::FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let fits = (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(sound);
        if !fits || text.starts_with('.') || text == "control" {
            return Err(BadName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Name {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the kernel makes no VDUSE device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel has no VDUSE.
    #[error("there is no /dev/vduse/control: this kernel lacks VDUSE, or its module is not loaded")]
    NoVduse,
    /// Not allowed.
    #[error("no permission to make a VDUSE device: {what}")]
    Permission {
        /// What was tried.
        what: &'static str,
    },
    /// There is such a device already.
    #[error("there is a VDUSE device `{0}` already")]
    Exists(Name),
    /// Another process serves the device.
    #[error("the VDUSE device `{0}` is served by another process")]
    Served(Name),
    /// The device is on the vDPA bus, and stays as long as it is.
    #[error("the VDUSE device `{0}` is on the vDPA bus")]
    Attached(Name),
    /// The kernel gave the device up, since it was not answered in time.
    #[error("the kernel has marked the VDUSE device `{0}` broken")]
    Broken(Name),
    /// Anything else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// What VDUSE asks of a kernel.
pub trait Kernel: Send + Sync + fmt::Debug {
    /// Opens `/dev/vduse/control`.
    ///
    /// # Errors
    /// What `open(2)` reports.
    fn open_control(&self) -> io::Result<OwnedFd>;

    /// Opens `/dev/vduse/NAME`: requests are read from it and answered by writes.
    ///
    /// # Errors
    /// What `open(2)` reports: `EBUSY` when another process has it open.
    fn open_device(&self, name: &Name) -> io::Result<OwnedFd>;

    /// Sets how many seconds the kernel waits for an answer; 0: for ever.
    ///
    /// # Errors
    /// What writing the attribute `msg_timeout` reports.
    fn set_timeout(&self, name: &Name, seconds: u32) -> io::Result<()>;

    /// One `ioctl(2)`. Only [`Call::Region`] gives a descriptor.
    ///
    /// # Errors
    /// What the kernel reports.
    fn call(&self, fd: BorrowedFd<'_>, call: Call<'_>) -> io::Result<Option<OwnedFd>>;
}

/// The calls of VDUSE; the first three are for the control device.
#[derive(Debug)]
pub enum Call<'a> {
    /// `VDUSE_SET_API_VERSION`
    SetVersion(u64),
    /// `VDUSE_CREATE_DEV`
    Create(&'a DeviceConfig, QueueAlign),
    /// `VDUSE_DESTROY_DEV`
    Destroy(&'a Name),
    /// `VDUSE_IOTLB_GET_FD`
    Region(&'a mut RegionRecord),
    /// `VDUSE_DEV_GET_FEATURES`
    Features(&'a mut u64),
    /// `VDUSE_DEV_SET_CONFIG` with an offset
    SetConfig(u32, &'a [u8]),
    /// `VDUSE_DEV_INJECT_CONFIG_IRQ`
    ConfigInterrupt,
    /// `VDUSE_VQ_SETUP` with an index and a size
    SetupQueue(u32, u16),
    /// `VDUSE_VQ_GET_INFO`
    QueueInfo(&'a mut QueueInfo),
    /// `VDUSE_VQ_SETUP_KICKFD` with an index
    SetKick(u32, BorrowedFd<'a>),
    /// `VDUSE_VQ_INJECT_IRQ` with an index
    Interrupt(u32),
}

/// What queues are aligned to, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAlign(pub u32);

/// `struct vduse_iotlb_entry`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RegionRecord {
    /// Where the region begins in its file, in bytes.
    pub offset: u64,
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// `VDUSE_ACCESS_*`: 1 read, 2 write.
    pub access: u8,
    /// Padding.
    pub reserved: [u8; 7],
}

/// `struct vduse_vq_info`: what the kernel knows of a queue, unchecked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct QueueInfo {
    /// Which queue.
    pub index: u32,
    /// Its entries.
    pub size: u32,
    /// Address of the descriptor area.
    pub descriptor: u64,
    /// Address of the driver area.
    pub driver: u64,
    /// Address of the device area.
    pub device: u64,
    /// Where it starts. Of a split queue the first word, the next available
    /// index; of a packed one the available wrap counter and index, and the used
    /// wrap counter and index.
    pub state: [u16; 4],
    /// Whether the driver made it ready.
    pub ready: u8,
    /// Padding.
    pub reserved: [u8; 7],
}

/// A piece of the address space of a device's driver.
#[derive(Debug)]
pub struct Region {
    /// The file that it is in.
    pub fd: OwnedFd,
    /// Where, and what may be done.
    pub record: RegionRecord,
}

/// Makes and ends devices.
#[derive(Debug)]
pub struct Control {
    kernel: Arc<dyn Kernel>,
    fd: OwnedFd,
}

impl Control {
    /// Opens VDUSE's control device.
    ///
    /// # Errors
    /// [`Error::NoVduse`], [`Error::Permission`], or what the system reports.
    pub fn open(kernel: Arc<dyn Kernel>) -> Result<Self, Error> {
        acquire(Site::Fd).map_err(system("a descriptor"))?;
        let fd = kernel.open_control().map_err(|error| match errno(&error) {
            Some(Errno::NOENT | Errno::NXIO | Errno::NODEV | Errno::NOTDIR) => Error::NoVduse,
            Some(Errno::ACCESS | Errno::PERM) => Error::Permission {
                what: "opening /dev/vduse/control",
            },
            _ => system("/dev/vduse/control")(error),
        })?;
        let call = Call::SetVersion(0);
        kernel
            .call(fd.as_fd(), call)
            .map_err(system("VDUSE_SET_API_VERSION"))?;
        Ok(Self { kernel, fd })
    }

    /// Makes a device. It stays, whatever becomes of this process, until it is
    /// [destroyed](Self::destroy).
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Permission`], or what the system reports.
    pub fn create(&self, config: &DeviceConfig) -> Result<(), Error> {
        acquire(Site::Alloc).map_err(system("a device"))?;
        let call = Call::Create(config, QueueAlign(QUEUE_ALIGN));
        let created = self.kernel.call(self.fd.as_fd(), call);
        created.map(drop).map_err(|error| match errno(&error) {
            Some(Errno::EXIST) => Error::Exists(config.name.clone()),
            Some(Errno::PERM) => Error::Permission {
                what: "a network device needs CAP_NET_ADMIN",
            },
            _ => system("VDUSE_CREATE_DEV")(error),
        })
    }

    /// Ends a device that nobody has open and that is not on the vDPA bus.
    ///
    /// # Errors
    /// [`Error::Attached`] when it is on the bus, or open; what the system reports.
    pub fn destroy(&self, name: &Name) -> Result<(), Error> {
        let destroyed = self.kernel.call(self.fd.as_fd(), Call::Destroy(name));
        destroyed.map(drop).map_err(|error| match errno(&error) {
            Some(Errno::BUSY) => Error::Attached(name.clone()),
            _ => system("VDUSE_DESTROY_DEV")(error),
        })
    }

    /// Opens a device, to serve it.
    ///
    /// # Errors
    /// [`Error::Served`] when another process does, or what the system reports.
    pub fn device(&self, name: &Name) -> Result<VduseDevice, Error> {
        acquire(Site::Fd).map_err(system("a descriptor"))?;
        let opened = self.kernel.open_device(name);
        let fd = opened.map_err(|error| match errno(&error) {
            Some(Errno::BUSY) => Error::Served(name.clone()),
            Some(Errno::ACCESS | Errno::PERM) => Error::Permission {
                what: "opening the device below /dev/vduse",
            },
            _ => system("the device below /dev/vduse")(error),
        })?;
        Ok(VduseDevice {
            kernel: Arc::clone(&self.kernel),
            fd,
            name: name.clone(),
        })
    }

    /// Sets how many seconds the kernel waits for an answer before it marks the
    /// device broken; 0: for ever.
    ///
    /// # Errors
    /// What the system reports.
    pub fn set_timeout(&self, name: &Name, seconds: u32) -> Result<(), Error> {
        acquire(Site::Fd).map_err(system("a descriptor"))?;
        let set = self.kernel.set_timeout(name, seconds);
        set.map_err(system("the attribute msg_timeout of the device"))
    }
}

/// A device that this process serves. Nobody else can open it meanwhile.
#[derive(Debug)]
pub struct VduseDevice {
    kernel: Arc<dyn Kernel>,
    fd: OwnedFd,
    name: Name,
}

impl AsFd for VduseDevice {
    /// Readable when there is a request, in error when the device is broken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl VduseDevice {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    fn call(&self, what: &'static str, call: Call<'_>) -> Result<Option<OwnedFd>, Error> {
        let called = self.kernel.call(self.fd.as_fd(), call);
        called.map_err(|error| match errno(&error) {
            // The kernel answers every call on a broken device so, and no other.
            Some(Errno::PERM) => Error::Broken(self.name.clone()),
            _ => system(what)(error),
        })
    }

    /// The features that the driver accepted; 0 before it did.
    ///
    /// # Errors
    /// [`Error::Broken`], as from every call.
    pub fn features(&self) -> Result<u64, Error> {
        let mut features = 0;
        self.call("VDUSE_DEV_GET_FEATURES", Call::Features(&mut features))?;
        Ok(features)
    }

    /// Says how large a queue may be. Every queue needs that before the device can
    /// go on the vDPA bus.
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn setup_queue(&self, index: u16, size_max: u16) -> Result<(), Error> {
        acquire(Site::Alloc).map_err(system("a queue"))?;
        let call = Call::SetupQueue(index.into(), size_max);
        self.call("VDUSE_VQ_SETUP", call).map(drop)
    }

    /// What the kernel knows of a queue.
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn queue_info(&self, index: u16) -> Result<QueueInfo, Error> {
        let mut info = QueueInfo {
            index: index.into(),
            ..QueueInfo::default()
        };
        self.call("VDUSE_VQ_GET_INFO", Call::QueueInfo(&mut info))?;
        Ok(info)
    }

    /// Has the kernel signal `kick` for what the driver makes available, until
    /// the driver resets the device.
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn set_kick(&self, index: u16, kick: &EventFd) -> Result<(), Error> {
        acquire(Site::Alloc).map_err(system("a kick descriptor"))?;
        let call = Call::SetKick(index.into(), kick.as_fd());
        self.call("VDUSE_VQ_SETUP_KICKFD", call).map(drop)
    }

    /// Interrupts the driver for a queue.
    ///
    /// # Errors
    /// `EINVAL` while the kernel does not hold the device for running: up to some
    /// time *after* it was told that `DRIVER_OK` is accepted.
    pub fn interrupt(&self, index: u16) -> io::Result<()> {
        let call = Call::Interrupt(index.into());
        self.kernel.call(self.fd.as_fd(), call).map(drop)
    }

    /// Tells the driver that configuration space changed.
    ///
    /// # Errors
    /// As [`interrupt`](Self::interrupt).
    pub fn config_interrupt(&self) -> io::Result<()> {
        let call = Call::ConfigInterrupt;
        self.kernel.call(self.fd.as_fd(), call).map(drop)
    }

    /// Writes configuration space, from `offset` on.
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn set_config(&self, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        let call = Call::SetConfig(offset, bytes);
        self.call("VDUSE_DEV_SET_CONFIG", call).map(drop)
    }

    /// The first region of the driver's address space that has an address from
    /// `first` on; `None` when there is none.
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn region(&self, first: u64) -> Result<Option<Region>, Error> {
        acquire(Site::Fd).map_err(system("a descriptor"))?;
        let mut record = RegionRecord {
            first,
            last: u64::MAX,
            ..RegionRecord::default()
        };
        match self.call("VDUSE_IOTLB_GET_FD", Call::Region(&mut record)) {
            Ok(Some(fd)) => Ok(Some(Region { fd, record })),
            Ok(None) => Ok(None),
            Err(Error::System { source, .. }) if errno(&source) == Some(Errno::INVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the next request into `target`; `None` when there is none now.
    ///
    /// # Errors
    /// [`Error::Broken`] when there will be none any more.
    pub fn receive(&self, target: &mut [u8; MESSAGE_BYTES]) -> Result<Option<usize>, Error> {
        match rustix::io::read(&self.fd, target.as_mut_slice()) {
            // No read of a device that works is empty.
            Ok(0) => Err(Error::Broken(self.name.clone())),
            Ok(len) => Ok(Some(len)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(system("reading a request of VDUSE")(error.into())),
        }
    }

    /// Answers a request; `false` when the kernel does not wait for it any more.
    ///
    /// # Errors
    /// What `write(2)` reports.
    pub fn respond(&self, response: &[u8; MESSAGE_BYTES]) -> Result<bool, Error> {
        loop {
            match rustix::io::write(&self.fd, response) {
                Ok(_) => return Ok(true),
                Err(Errno::NOENT) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(system("answering a request of VDUSE")(error.into())),
            }
        }
    }
}

fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

fn system(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// A name with its NUL, in the room that the kernel has for it.
fn name_bytes(name: &Name) -> [u8; NAME_MAX + 1] {
    let mut bytes = [0; NAME_MAX + 1];
    let text = CString::new(name.as_str()).expect("a name has no NUL");
    let text = text.as_bytes();
    bytes[..text.len()].copy_from_slice(text);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_a_device_node_can_have() {
        for name in ["a", "disk-0", "x.y_Z9", &"n".repeat(NAME_MAX)] {
            assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
        }
        for name in [
            "",
            "control",
            ".",
            "..",
            ".x",
            "a/b",
            "a b",
            "ä",
            &"n".repeat(256),
        ] {
            assert_eq!(name.parse::<Name>(), Err(BadName(name.to_owned())));
        }
    }

    #[test]
    fn a_kernel_without_vduse_is_told_from_one_that_refuses() {
        match Control::open(Arc::new(Linux)) {
            Err(error @ (Error::NoVduse | Error::Permission { .. })) => {
                assert!(error.to_string().contains("/dev/vduse/control"), "{error}");
            }
            Ok(control) => {
                let name = "linkspan-no-such-device".parse().unwrap();
                assert!(control.destroy(&name).is_err());
            }
            Err(error) => panic!("{error}"),
        }
    }
}
