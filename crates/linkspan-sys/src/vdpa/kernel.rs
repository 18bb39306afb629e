//! The kernel's own answers.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use linkspan_mem::fault::Site;
use linkspan_mem::{Iova, Region};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::ioctl::Opcode;

use super::uapi::{self, ConfigHead, IovaRange, MsgV2, VringAddr, VringFile, VringState};
use super::{Doorbell, RingAddress, RingFd, Vdpa};
use crate::acquire;
use crate::socket::inherit_any;

/// More than any configuration space has.
const CONFIG_MAX: usize = 64 << 10;

/// Why a vDPA device cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such device.
    #[error("{path}: there is no such device", path = .0.display())]
    Absent(PathBuf),
    /// It is not for us.
    #[error("{path}: no permission", path = .0.display())]
    Permission(PathBuf),
    /// Only one process can have it.
    #[error("{path}: another process uses the device", path = .0.display())]
    Busy(PathBuf),
    /// It is something else.
    #[error("{0} is no vhost-vdpa device")]
    NotVdpa(String),
    /// Anything else.
    #[error("{path}: {source}", path = path.display())]
    System {
        /// The device.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A vDPA device that this process has for itself. Opening and closing it reset it.
#[derive(Debug)]
pub struct KernelVdpa {
    // Before the memory: once it is closed the kernel uses none of it.
    fd: OwnedFd,
    /// What the device may use, as it stays mapped here for as long.
    held: Mutex<Vec<Held>>,
}

#[derive(Debug)]
struct Held {
    asid: u32,
    iova: Iova,
    region: Region,
}

impl KernelVdpa {
    /// Opens a device.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let system = |source| OpenError::System {
            path: path.to_owned(),
            source,
        };
        acquire(Site::Fd).map_err(system)?;
        // A FIFO of that name would hold up whoever opens it.
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT | Errno::NXIO | Errno::NODEV => OpenError::Absent(path.to_owned()),
            Errno::ACCESS | Errno::PERM => OpenError::Permission(path.to_owned()),
            Errno::BUSY => OpenError::Busy(path.to_owned()),
            errno => system(errno.into()),
        })?;
        Self::of(fd).ok_or_else(|| OpenError::NotVdpa(path.display().to_string()))
    }

    /// A device that another process opened and started us with (`--fd N`).
    ///
    /// # Errors
    /// When nothing was inherited under that number, or it is something else.
    pub fn inherit(number: RawFd) -> Result<Self, OpenError> {
        let name = format!("descriptor {number}");
        let fd = inherit_any(number).map_err(|source| OpenError::System {
            path: name.clone().into(),
            source,
        })?;
        let device = Self::of(fd).ok_or(OpenError::NotVdpa(name))?;
        // Whoever had it before may have left anything.
        device.set_status(0).map_err(|source| OpenError::System {
            path: format!("descriptor {number}").into(),
            source,
        })?;
        Ok(device)
    }

    /// Only a vhost-vdpa device answers this number with a device type.
    fn of(fd: OwnedFd) -> Option<Self> {
        let kind = fstat(&fd).ok()?;
        if FileType::from_raw_mode(kind.st_mode) != FileType::CharacterDevice {
            return None;
        }
        let device = Self {
            fd,
            held: Mutex::default(),
        };
        device.device_id().ok()?;
        Some(device)
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks with a structure that the kernel reads, writes, or both.
    ///
    /// `T` has the size in `code`, and any bytes make one.
    fn ask<T: Plain>(&self, code: Opcode, mut value: T) -> io::Result<T> {
        // SAFETY: the kernel reads and writes as many bytes as `code` says,
        // which was made of `T`, and all of them are there.
        unsafe { self.call(code, (&raw mut value).cast()) }?;
        Ok(value)
    }

    /// # Safety
    /// `argument` is what `code` asks for, valid for reads and writes.
    unsafe fn call(&self, code: Opcode, argument: *mut c_void) -> io::Result<()> {
        loop {
            // C libraries differ in the type of the same 32 bits.
            let request = code as libc::Ioctl;
            // SAFETY: see above; what the kernel keeps beyond the call it counts itself.
            let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, argument) };
            if done >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn none(&self, code: Opcode) -> io::Result<()> {
        // SAFETY: these calls have no argument.
        unsafe { self.call(code, std::ptr::null_mut()) }
    }

    fn ring(&self, code: Opcode, index: impl Into<u32>, num: u32) -> io::Result<u32> {
        let index = index.into();
        Ok(self.ask(code, VringState { index, num })?.num)
    }

    /// A call with configuration space behind its head.
    fn config(&self, code: Opcode, offset: u32, bytes: &mut [u8]) -> io::Result<()> {
        const HEAD: usize = size_of::<ConfigHead>();
        let len = u32::try_from(bytes.len())
            .ok()
            .filter(|_| bytes.len() <= CONFIG_MAX);
        let len = len.ok_or(Errno::INVAL)?;
        let mut buffer = Vec::with_capacity(HEAD + bytes.len());
        buffer.extend(offset.to_ne_bytes());
        buffer.extend(len.to_ne_bytes());
        buffer.extend_from_slice(bytes);
        // SAFETY: `len` bytes follow the head, and the kernel uses no more.
        unsafe { self.call(code, buffer.as_mut_ptr().cast()) }?;
        bytes.copy_from_slice(&buffer[HEAD..]);
        Ok(())
    }

    /// Writes an IOTLB message.
    ///
    /// # Safety
    /// Memory that it lets the device use stays mapped until it is taken back.
    unsafe fn tell(&self, message: MsgV2) -> io::Result<()> {
        let len = size_of::<MsgV2>();
        loop {
            // SAFETY: so many bytes are there, padding included, and all are set.
            let done =
                unsafe { libc::write(self.fd.as_raw_fd(), (&raw const message).cast(), len) };
            if usize::try_from(done) == Ok(len) {
                return Ok(());
            }
            if done >= 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// Structures without padding of which any bytes make one.
trait Plain {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for c_int {}
impl Plain for VringState {}
impl Plain for VringFile {}
impl Plain for VringAddr {}
impl Plain for IovaRange {}

fn number(fd: Option<BorrowedFd<'_>>) -> c_int {
    // `VHOST_FILE_UNBIND`.
    fd.map_or(-1, |fd| fd.as_raw_fd())
}

fn message(asid: u32, what: u8) -> MsgV2 {
    MsgV2 {
        kind: uapi::IOTLB_MSG_V2,
        asid,
        iova: 0,
        size: 0,
        address: 0,
        access: 0,
        what,
        padding: [0; 38],
    }
}

impl Vdpa for KernelVdpa {
    fn device_id(&self) -> io::Result<u32> {
        self.ask(uapi::GET_DEVICE_ID, 0)
    }

    fn features(&self) -> io::Result<u64> {
        self.ask(uapi::GET_FEATURES, 0)
    }

    fn set_features(&self, features: u64) -> io::Result<()> {
        self.ask(uapi::SET_FEATURES, features).map(drop)
    }

    fn backend_features(&self) -> io::Result<u64> {
        self.ask(uapi::GET_BACKEND_FEATURES, 0)
    }

    fn set_backend_features(&self, features: u64) -> io::Result<()> {
        self.ask(uapi::SET_BACKEND_FEATURES, features).map(drop)
    }

    fn set_owner(&self) -> io::Result<()> {
        self.none(uapi::SET_OWNER)
    }

    fn status(&self) -> io::Result<u8> {
        self.ask(uapi::GET_STATUS, 0)
    }

    fn set_status(&self, status: u8) -> io::Result<()> {
        self.ask(uapi::SET_STATUS, status).map(drop)
    }

    fn config_size(&self) -> io::Result<u32> {
        self.ask(uapi::GET_CONFIG_SIZE, 0)
    }

    fn read_config(&self, offset: u32, bytes: &mut [u8]) -> io::Result<()> {
        self.config(uapi::GET_CONFIG, offset, bytes)
    }

    fn write_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.config(uapi::SET_CONFIG, offset, &mut bytes.to_vec())
    }

    fn set_config_call(&self, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.ask(uapi::SET_CONFIG_CALL, number(fd)).map(drop)
    }

    fn queues(&self) -> io::Result<u32> {
        self.ask(uapi::GET_VQS_COUNT, 0)
    }

    fn queue_size_max(&self) -> io::Result<u16> {
        self.ask(uapi::GET_VRING_NUM, 0)
    }

    fn queue_size(&self, ring: u16) -> io::Result<u32> {
        self.ring(uapi::GET_VRING_SIZE, ring, 0)
    }

    fn iova_range(&self) -> io::Result<(Iova, Iova)> {
        let range = self.ask(uapi::GET_IOVA_RANGE, IovaRange::default())?;
        Ok((Iova(range.first), Iova(range.last)))
    }

    fn groups(&self) -> io::Result<u32> {
        self.ask(uapi::GET_GROUP_NUM, 0)
    }

    fn address_spaces(&self) -> io::Result<u32> {
        self.ask(uapi::GET_AS_NUM, 0)
    }

    fn ring_group(&self, ring: u16) -> io::Result<u32> {
        self.ring(uapi::GET_VRING_GROUP, ring, 0)
    }

    fn set_group_asid(&self, group: u32, asid: u32) -> io::Result<()> {
        self.ring(uapi::SET_GROUP_ASID, group, asid).map(drop)
    }

    fn set_ring_size(&self, ring: u16, size: u16) -> io::Result<()> {
        self.ring(uapi::SET_VRING_NUM, ring, size.into()).map(drop)
    }

    fn set_ring_address(&self, ring: u16, address: RingAddress) -> io::Result<()> {
        let address = VringAddr {
            index: ring.into(),
            flags: 0,
            descriptor: address.descriptor.0,
            used: address.device.0,
            available: address.driver.0,
            log: 0,
        };
        self.ask(uapi::SET_VRING_ADDR, address).map(drop)
    }

    fn set_ring_base(&self, ring: u16, base: u32) -> io::Result<()> {
        self.ring(uapi::SET_VRING_BASE, ring, base).map(drop)
    }

    fn ring_base(&self, ring: u16) -> io::Result<u32> {
        self.ring(uapi::GET_VRING_BASE, ring, 0)
    }

    fn set_ring_fd(&self, ring: u16, which: RingFd, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let code = match which {
            RingFd::Kick => uapi::SET_VRING_KICK,
            RingFd::Call => uapi::SET_VRING_CALL,
            RingFd::Err => uapi::SET_VRING_ERR,
        };
        let file = VringFile {
            index: ring.into(),
            fd: number(fd),
        };
        self.ask(code, file).map(drop)
    }

    fn doorbell(&self, ring: u16) -> io::Result<Doorbell> {
        Doorbell::map(&self.fd, ring)
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn enable_ring(&self, ring: u16, enabled: bool) -> io::Result<()> {
        self.ring(uapi::SET_VRING_ENABLE, ring, enabled.into())
            .map(drop)
    }

    fn suspend(&self) -> io::Result<()> {
        self.none(uapi::SUSPEND)
    }

    fn resume(&self) -> io::Result<()> {
        self.none(uapi::RESUME)
    }

    fn map(&self, asid: u32, iova: Iova, region: &Region) -> io::Result<()> {
        acquire(Site::Map)?;
        let len = region.len() as u64;
        let bytes = region.slice(0, len).map_err(io::Error::other)?;
        let update = MsgV2 {
            iova: iova.0,
            size: len,
            address: bytes.as_ptr() as u64,
            access: uapi::ACCESS_RW,
            ..message(asid, uapi::UPDATE)
        };
        let mut held = self.held();
        // SAFETY: the region is held from here on until it is unmapped or the
        // descriptor closed, and it is memory that others write at any moment.
        unsafe { self.tell(update) }?;
        held.push(Held {
            asid,
            iova,
            region: region.clone(),
        });
        Ok(())
    }

    fn unmap(&self, asid: u32, iova: Iova, len: u64) -> io::Result<()> {
        let mut held = self.held();
        let Some(at) = held
            .iter()
            .position(|held| (held.asid, held.iova) == (asid, iova))
        else {
            return Err(Errno::NOENT.into());
        };
        if held[at].region.len() as u64 != len {
            return Err(Errno::INVAL.into());
        }
        let invalidate = MsgV2 {
            iova: iova.0,
            size: len,
            ..message(asid, uapi::INVALIDATE)
        };
        // SAFETY: it lets the device use nothing.
        unsafe { self.tell(invalidate) }?;
        held.swap_remove(at);
        Ok(())
    }

    fn batch(&self, asid: u32, begin: bool) -> io::Result<()> {
        let what = if begin {
            uapi::BATCH_BEGIN
        } else {
            uapi::BATCH_END
        };
        // SAFETY: it lets the device use nothing.
        unsafe { self.tell(message(asid, what)) }
    }
}

impl AsFd for KernelVdpa {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for KernelVdpa {
    fn drop(&mut self) {
        // A descriptor that was inherited may be open elsewhere, so that closing
        // it here ends nothing.
        let _ = self.set_status(0);
        for held in std::mem::take(&mut *self.held()) {
            let invalidate = MsgV2 {
                iova: held.iova.0,
                size: held.region.len() as u64,
                ..message(held.asid, uapi::INVALIDATE)
            };
            // SAFETY: it lets the device use nothing.
            let _ = unsafe { self.tell(invalidate) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_vdpa_device_is_named() {
        let error = KernelVdpa::open(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, OpenError::NotVdpa(_)), "{error}");
        let error = KernelVdpa::open(Path::new("/dev/vhost-vdpa-none")).unwrap_err();
        assert!(matches!(error, OpenError::Absent(_)), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let error = KernelVdpa::open(&file).unwrap_err();
        assert!(matches!(error, OpenError::NotVdpa(_)), "{error}");
        let error = KernelVdpa::inherit(2).unwrap_err();
        assert!(error.to_string().contains("descriptor 2"), "{error}");
    }
}
