//! A device of VMBus that the kernel gives to a process (`uio_hv_generic`): finding
//! it, mapping its rings, waiting for its interrupts.
//!
//! Kernels before b15b7d2a1b09 set the interrupt mask in the ring with each
//! interrupt, later ones do not. Whoever waits clears it first and looks at the ring
//! once more; that is right on both.

mod bind;

pub use bind::bind;

use crate::acquire;
use linkspan_mem::Backing;
use linkspan_mem::fault::Site;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, read, write};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// What the rings are made of, whatever a page of the guest is.
const PAGE: u64 = 4096;

/// The driver that gives a device to a process.
pub const DRIVER: &str = "uio_hv_generic";

/// Bytes of rings at most: far more than any channel has.
const RINGS_MAX: u64 = 1 << 31;

/// Where the kernel shows its devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// Where sysfs is mounted.
    pub sysfs: PathBuf,
    /// Where device files are.
    pub dev: PathBuf,
    /// Bytes of a page: 4, 16 or 64 KiB.
    pub page: u64,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sysfs: "/sys".into(),
            dev: "/dev".into(),
            page: rustix::param::page_size() as u64,
        }
    }
}

/// A device that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its folder in sysfs.
    pub folder: PathBuf,
    /// Its file.
    pub file: PathBuf,
    /// Bytes of both rings.
    pub rings: u64,
    /// Bytes of each ring's header: a page of the machine.
    pub page: u64,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel has no VMBus.
    #[error("{} does not exist: no guest of Hyper-V, or a kernel without hv_vmbus", .0.display())]
    NoBus(PathBuf),
    /// The host offers no such device.
    #[error("the host offers no device of class {class}: its service is off")]
    NoDevice {
        /// The interface.
        class: String,
    },
    /// No driver gives the device to us.
    #[error("{} has no uio device: {}", .folder.display(), holder(.driver.as_deref()))]
    NotBound {
        /// The device.
        folder: PathBuf,
        /// The driver that it has.
        driver: Option<String>,
    },
    /// The driver is not there.
    #[error("this kernel has no {DRIVER}, or it is not loaded")]
    NoDriver,
    /// The driver does not take it.
    #[error("{DRIVER} does not take {}: {source}", .folder.display())]
    NotTaken {
        /// The device.
        folder: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel says something that cannot be.
    #[error("{} says {text:?}, which is no size of two rings", .file.display())]
    Size {
        /// Which file.
        file: PathBuf,
        /// What is in it.
        text: String,
    },
    /// The system refused.
    #[error("cannot {what} {}", .path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl Error {
    /// Whether the device may come later by itself.
    #[must_use]
    pub fn may_come(&self) -> bool {
        match self {
            Self::NoDevice { .. } => true,
            // Another driver keeps it.
            Self::NotBound { driver, .. } => driver.as_deref().is_none_or(|has| has == DRIVER),
            // Files come and go one after the other.
            Self::System { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::NoBus(_) | Self::Size { .. } | Self::NoDriver | Self::NotTaken { .. } => false,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoBus(_) => "run it in a guest of Hyper-V, or --connect to a host of ours",
            Self::NoDevice { .. } => {
                "enable Guest Services of this machine at its host (Enable-VMIntegrationService)"
            }
            Self::NoDriver => "modprobe uio_hv_generic; the kernel needs CONFIG_UIO_HV_GENERIC",
            Self::NotTaken { .. } => {
                "use Linux 6.10 or later: before, the driver takes only devices with monitor pages"
            }
            Self::NotBound { .. } => "linkspan fcopy bind, as root; Linux 6.10 binds it by itself",
            Self::Size { .. } => "update the kernel",
            Self::System { .. } => "run it as root, or give its user the file by a udev rule",
        }
    }
}

fn holder(driver: Option<&str>) -> String {
    match driver {
        None => "no driver has it".to_owned(),
        Some(DRIVER) => format!("{DRIVER} has only just got it"),
        Some(other) => format!("{other} has it"),
    }
}

/// The device of this interface, and of this instance if one is given. GUIDs are
/// written as sysfs does, braces or not.
///
/// # Errors
/// [`Error`]; nothing was opened.
pub fn find(roots: &Roots, class: &str, instance: Option<&str>) -> Result<Found, Error> {
    let folder = folder(roots, class, instance)?;
    let mut uio: Vec<(u32, PathBuf)> = entries(&folder.join("uio"))
        .unwrap_or_default()
        .into_iter()
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            let number = name.strip_prefix("uio")?.parse().ok()?;
            Some((number, path))
        })
        .collect();
    uio.sort();
    let Some((number, uio)) = uio.into_iter().next() else {
        let driver = driver(&folder);
        return Err(Error::NotBound { folder, driver });
    };
    Ok(Found {
        file: roots.dev.join(format!("uio{number}")),
        rings: rings(uio.join("maps/map0/size"))?,
        page: roots.page,
        folder,
    })
}

/// The device's folder.
fn folder(roots: &Roots, class: &str, instance: Option<&str>) -> Result<PathBuf, Error> {
    let devices = roots.sysfs.join("bus/vmbus/devices");
    if !devices.is_dir() {
        return Err(Error::NoBus(devices));
    }
    let mut folders = entries(&devices)?;
    folders.sort();
    let is = |folder: &Path, file: &str, wanted: &str| {
        // One that goes away meanwhile is not it.
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        bare(&text) == bare(wanted)
    };
    let folder = folders.into_iter().find(|folder| {
        is(folder, "class_id", class)
            && instance.is_none_or(|instance| is(folder, "device_id", instance))
    });
    folder.ok_or_else(|| Error::NoDevice { class: bare(class) })
}

/// The driver that has the device.
fn driver(folder: &Path) -> Option<String> {
    let link = fs::read_link(folder.join("driver")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

/// Bytes of the rings, as the driver maps them.
fn rings(file: PathBuf) -> Result<u64, Error> {
    let text = fs::read_to_string(&file).map_err(system("read", &file))?;
    let digits = text.trim().strip_prefix("0x");
    let size = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let possible = |size: &u64| (4 * PAGE..=RINGS_MAX).contains(size);
    let size = size.filter(|size| size.is_multiple_of(2 * PAGE) && possible(size));
    size.ok_or(Error::Size { file, text })
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = fs::read_dir(folder).map_err(system("list", folder))?;
    Ok(list.flatten().map(|entry| entry.path()).collect())
}

fn bare(guid: &str) -> String {
    let guid = guid.trim();
    guid.trim_matches(['{', '}']).to_ascii_lowercase()
}

fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::System { what, path, source }
}

/// An open device: the host has its channel open for as long.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
    rings: Arc<Rings>,
    page: u64,
}

impl Device {
    /// Opens the device, which opens its channel, and maps its rings.
    ///
    /// # Errors
    /// [`Error::System`]; nothing stays open.
    pub fn open(found: &Found) -> Result<Self, Error> {
        let path = &found.file;
        acquire(Site::Fd).map_err(system("open", path))?;
        // Reads do not wait: what waits is `poll`, which can be stopped.
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = openat(CWD, path, flags, Mode::empty());
        let fd = fd.map_err(|errno| system("open", path)(errno.into()))?;
        let rings = Rings::map(fd.as_fd(), found.rings).map_err(system("map", path))?;
        Ok(Self {
            fd,
            rings: Arc::new(rings),
            page: found.page,
        })
    }

    /// The rings: the one from the guest to the host, then the other.
    #[must_use]
    pub fn rings(&self) -> Arc<dyn Backing> {
        Arc::clone(&self.rings) as Arc<dyn Backing>
    }

    /// Bytes of each ring's header: a page of the machine.
    #[must_use]
    pub fn page(&self) -> u64 {
        self.page
    }

    /// Signals the host. That clears the interrupt mask as well.
    ///
    /// # Errors
    /// `EIO` once the host has taken the device back.
    pub fn signal(&self) -> io::Result<()> {
        loop {
            match write(&self.fd, &1_i32.to_ne_bytes()) {
                Ok(4) => return Ok(()),
                Ok(_) => return Err(Errno::IO.into()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Takes the interrupts that came; many may be one. Whether there were any.
    /// Never waits.
    ///
    /// # Errors
    /// `EIO` once the host has taken the device back.
    pub fn take(&self) -> io::Result<bool> {
        let mut count = [0; 4];
        loop {
            match read(&self.fd, &mut count) {
                Ok(4) => return Ok(true),
                Ok(_) => return Err(Errno::IO.into()),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Readable when there is an interrupt, or when the device is gone.
impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Rings of a device, unmapped on drop.
#[derive(Debug)]
struct Rings {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: the pages belong to no thread, and nothing here refers to their content.
unsafe impl Send for Rings {}
// SAFETY: as above; the fields never change.
unsafe impl Sync for Rings {}

impl Rings {
    fn map(fd: BorrowedFd<'_>, len: u64) -> io::Result<Self> {
        acquire(Site::Map)?;
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // The offset is the number of the map, in pages: map 0 has the rings.
        // SAFETY: the kernel chooses a free address range.
        let start = unsafe { mmap(null_mut(), len, access, MapFlags::SHARED, fd, 0)? };
        let start = NonNull::new(start).expect("the kernel never maps address zero unasked");
        Ok(Self { start, len })
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by `map`, and whoever used it held this value.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

// SAFETY: a readable and writable mapping that lives as long as the value. It is
// memory of the kernel, which does not shrink when the device goes away.
unsafe impl Backing for Rings {
    fn base(&self) -> NonNull<u8> {
        self.start.cast()
    }

    fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests;
