//! Tap interfaces: a network card of the kernel whose other end is a descriptor,
//! with several queues, and with checksums and segmentation left to whoever can.
//!
//! Each frame is preceded by a header of virtio-net of 12 bytes in little-endian
//! order, as over a queue of virtio 1.x (virtio 1.3 5.1.6).

use std::ffi::{c_int, c_short};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use bitflags::bitflags;
use linkspan_mem::fault::Site;
use linkspan_mem::{RegionTable, Span};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::acquire;
use crate::seccomp::requests;
use crate::socket::inherit_any;

/// Bytes of the header before each frame.
pub const HEADER_LEN: usize = 12;

/// Bytes of an interface's name at most (`IFNAMSIZ` without its NUL).
pub const NAME_MAX: usize = 15;

/// Pieces of memory of one frame at most; with the header one system call.
const SLICES: usize = 64;

bitflags! {
    /// What the kernel may leave to us in frames that we receive
    /// (`TUN_F_*` of linux/if_tun.h).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Offloads: u32 {
        /// Checksums that are not there yet.
        const CHECKSUM = 0x01;
        /// Segments of TCP over IPv4 that are larger than the interface's MTU.
        const TSO4 = 0x02;
        /// The same over IPv6.
        const TSO6 = 0x04;
        /// The same with ECN.
        const TSO_ECN = 0x08;
        /// Datagrams of UDP over IPv4 that are to be cut.
        const USO4 = 0x20;
        /// The same over IPv6.
        const USO6 = 0x40;
    }
}

/// Why there is no tap interface.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// The name is too long or empty, or has characters that a name cannot have.
    #[error("`{0}` is no name of an interface: 1 to {NAME_MAX} bytes without `/` and blanks")]
    Name(String),
    /// The kernel has no tap interfaces.
    #[error("this kernel has no /dev/net/tun: load it with `modprobe tun`")]
    NoTun,
    /// Making an interface, or using somebody else's, is not allowed.
    #[error(
        "no permission for the tap interface `{0}`: run as root, or have root make it with `ip tuntap add dev {0} mode tap multi_queue user $USER`"
    )]
    Permission(String),
    /// Somebody else uses it, or it has fewer queues.
    #[error(
        "the tap interface `{0}` is in use, or was made without multi_queue; remove it with `ip tuntap del dev {0} mode tap`"
    )]
    Busy(String),
    /// A descriptor that was given is not a tap interface as it is needed here.
    #[error("descriptor is no tap interface with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    NotTap,
    /// Anything else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// One queue of a tap interface. The interface itself ends with its last queue,
/// unless it was made persistent.
#[derive(Debug)]
pub struct TapQueue {
    fd: OwnedFd,
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens `count` queues of the interface `name`, which is made if there is none;
/// a `%d` in the name becomes a number. Gives its name, too.
///
/// # Errors
/// [`TapError`]; nothing is left open then.
pub fn open_tap(
    name: &str,
    count: u16,
    offloads: Offloads,
) -> Result<(String, Vec<TapQueue>), TapError> {
    let mut request = Request::new(name)?;
    let mut queues = Vec::with_capacity(usize::from(count));
    let mut name = name.to_owned();
    for _ in 0..count {
        acquire(Site::Fd).map_err(system("a descriptor"))?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = open("/dev/net/tun", flags, Mode::empty()).map_err(|error| match error {
            Errno::NOENT | Errno::NXIO | Errno::NODEV => TapError::NoTun,
            Errno::ACCESS | Errno::PERM => TapError::Permission(name.clone()),
            error => system("/dev/net/tun")(error.into()),
        })?;
        request.0.ifr_ifru.ifru_flags = FLAGS;
        call(&fd, TUNSETIFF, (&raw mut request.0).cast()).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EPERM) => TapError::Permission(name.clone()),
                Some(libc::EBUSY | libc::EINVAL | libc::E2BIG) => TapError::Busy(name.clone()),
                _ => system("the tap interface")(error),
            }
        })?;
        name = request.name();
        queues.push(TapQueue::with(fd, offloads)?);
    }
    Ok((name, queues))
}

impl TapQueue {
    /// A queue of a tap interface that somebody else opened.
    ///
    /// # Errors
    /// [`TapError::NotTap`] when it is something else.
    pub fn from_fd(fd: OwnedFd, offloads: Offloads) -> Result<Self, TapError> {
        let mut request = Request::zeroed();
        call(&fd, TUNGETIFF, (&raw mut request.0).cast()).map_err(|_| TapError::NotTap)?;
        // SAFETY: the kernel wrote the flags.
        let flags = unsafe { request.0.ifr_ifru.ifru_flags };
        let need = short(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
        if flags & need != need {
            return Err(TapError::NotTap);
        }
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|error| system("fcntl")(error.into()))?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)
            .map_err(|error| system("fcntl")(error.into()))?;
        Self::with(fd, offloads)
    }

    /// A queue of a tap interface whose descriptor this process was started with.
    ///
    /// # Errors
    /// [`TapError::System`] when it was not, else as [`from_fd`](Self::from_fd).
    pub fn inherit(fd: RawFd, offloads: Offloads) -> Result<Self, TapError> {
        let fd = inherit_any(fd).map_err(system("the tap interface"))?;
        Self::from_fd(fd, offloads)
    }

    fn with(fd: OwnedFd, offloads: Offloads) -> Result<Self, TapError> {
        let mut len = c_int::try_from(HEADER_LEN).expect("12");
        let mut little = c_int::from(cfg!(target_endian = "big"));
        call(&fd, TUNSETVNETHDRSZ, (&raw mut len).cast()).map_err(system("TUNSETVNETHDRSZ"))?;
        if little != 0 {
            call(&fd, TUNSETVNETLE, (&raw mut little).cast()).map_err(system("TUNSETVNETLE"))?;
        }
        let queue = Self { fd };
        queue.set_offloads(offloads)?;
        Ok(queue)
    }

    /// The same queue once more, for another process.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn dup(&self) -> io::Result<OwnedFd> {
        acquire(Site::Fd)?;
        self.fd.try_clone()
    }

    /// Says anew what the kernel may leave to us. Kernels before 6.2 do not know
    /// UDP's segmentation, which is left out for them.
    ///
    /// # Errors
    /// When the kernel does not take the rest.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), TapError> {
        let try_these = |offloads: Offloads| {
            // The argument is the value itself.
            let value = usize::try_from(offloads.bits()).expect("32 bits");
            call(
                &self.fd,
                TUNSETOFFLOAD,
                std::ptr::without_provenance_mut(value),
            )
        };
        let uso = Offloads::USO4 | Offloads::USO6;
        try_these(offloads)
            .or_else(|error| match offloads.intersects(uso) {
                true => try_these(offloads.difference(uso)),
                false => Err(error),
            })
            .map_err(system("TUNSETOFFLOAD"))
    }

    /// The name that the interface has now.
    ///
    /// # Errors
    /// `EBADFD` when it is gone.
    pub fn name(&self) -> io::Result<String> {
        let mut request = Request::zeroed();
        call(&self.fd, TUNGETIFF, (&raw mut request.0).cast())?;
        Ok(request.name())
    }

    /// Whether the interface has a carrier, as its users see it. The kernel takes a lock
    /// for that, so this may wait.
    ///
    /// # Errors
    /// `EBADFD` when the interface is gone.
    pub fn set_carrier(&self, on: bool) -> io::Result<()> {
        let mut on = c_int::from(on);
        call(&self.fd, TUNSETCARRIER, (&raw mut on).cast())
    }

    /// Takes the next frame with its header; how many bytes it has, or `None` when
    /// there is none now. A frame larger than `target` is cut off by the kernel.
    ///
    /// # Errors
    /// What `read(2)` reports, `EIO` when the interface is down or gone.
    #[inline]
    pub fn receive(&self, target: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.fd, target) {
            Ok(len) => Ok(Some(len)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a frame that lies in private memory, its first bytes apart from the rest;
    /// `false` when the interface takes none now.
    ///
    /// # Errors
    /// `EINVAL` for a frame that the kernel finds wrong, `EIO` when the interface is
    /// down or gone.
    #[inline]
    pub fn send(
        &self,
        header: &[u8; HEADER_LEN],
        (head, rest): (&[u8], &[u8]),
    ) -> io::Result<bool> {
        let parts = [&header[..], head, rest].map(io::IoSlice::new);
        match rustix::io::writev(&self.fd, &parts) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a frame whose first bytes, `head`, lie in private memory, and the others
    /// in shared memory, straight out of it: in `spans`, of which `skip` bytes are
    /// left out.
    ///
    /// # Errors
    /// As [`send`](Self::send); `InvalidInput` for a frame of more than 63 pieces.
    #[inline]
    pub fn send_spans(
        &self,
        header: &[u8; HEADER_LEN],
        head: &[u8],
        table: &RegionTable,
        (spans, skip): (&[Span], u64),
    ) -> io::Result<bool> {
        let mut slices = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; SLICES];
        let [first, second, rest @ ..] = &mut slices;
        first.iov_base = header.as_ptr().cast_mut().cast();
        first.iov_len = HEADER_LEN;
        second.iov_base = head.as_ptr().cast_mut().cast();
        second.iov_len = head.len();
        let (mut skip, mut used) = (skip, 0);
        for span in spans {
            let cut = u32::try_from(skip).map_or(span.len(), |skip| skip.min(span.len()));
            skip -= u64::from(cut);
            if cut == span.len() {
                continue;
            }
            let bytes = table.slice(span.part(cut, span.len() - cut));
            let slice: &mut libc::iovec = rest.get_mut(used).ok_or(io::ErrorKind::InvalidInput)?;
            slice.iov_base = bytes.as_ptr().cast();
            slice.iov_len = bytes.len();
            used += 1;
        }
        let count = c_int::try_from(used + 2).expect("64 at most");
        // SAFETY: the kernel only reads; header and head are borrowed, the table keeps
        // the spans mapped, and `count` of the slices are filled in.
        let sent = unsafe { libc::writev(self.fd.as_raw_fd(), slices.as_ptr(), count) };
        if sent >= 0 {
            return Ok(true);
        }
        match io::Error::last_os_error() {
            error
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS)
                ) =>
            {
                Ok(false)
            }
            error => Err(error),
        }
    }
}

const FLAGS: c_short =
    short(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE);

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNGETIFF: libc::Ioctl = 0x8004_54d2_u32 as libc::Ioctl;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const TUNSETVNETLE: libc::Ioctl = 0x4004_54dc;
const TUNSETCARRIER: libc::Ioctl = 0x4004_54e2;

/// What is asked of an interface once it is set up, for a filter of calls.
pub(crate) const CALLS: &[u32] = requests![TUNGETIFF, TUNSETCARRIER];

/// Flags of interfaces fit into 16 bits, of which the upper one is no sign.
#[expect(clippy::cast_possible_truncation, reason = "16 bits on the wire")]
pub(crate) const fn short(flags: c_int) -> c_short {
    flags as c_short
}

fn system(what: &'static str) -> impl Fn(io::Error) -> TapError {
    move |source| TapError::System { what, source }
}

fn call(fd: &OwnedFd, request: libc::Ioctl, argument: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: each request here reads or writes no more than what its caller points
    // at: an `ifreq`, an `int`, or nothing.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What is asked of an interface with a name.
pub(crate) struct Request(pub(crate) libc::ifreq);

impl Request {
    fn zeroed() -> Self {
        // SAFETY: zeroes are a valid `ifreq`.
        Self(unsafe { std::mem::zeroed() })
    }

    pub(crate) fn new(name: &str) -> Result<Self, TapError> {
        let mut request = Self::zeroed();
        let bytes = name.as_bytes();
        let sound = |byte: &u8| byte.is_ascii_graphic() && !b"/:".contains(byte);
        if bytes.is_empty() || bytes.len() > NAME_MAX || !bytes.iter().all(sound) {
            return Err(TapError::Name(name.to_owned()));
        }
        for (target, byte) in request.0.ifr_name.iter_mut().zip(bytes) {
            *target = libc::c_char::from_ne_bytes([*byte]);
        }
        Ok(request)
    }

    fn name(&self) -> String {
        let bytes = self.0.ifr_name.iter().map(|byte| byte.to_ne_bytes()[0]);
        let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_has_are_refused_before_anything_is_opened() {
        for name in ["", "sixteen-bytes-xx", "a/b", "a b", "a:b"] {
            let result = open_tap(name, 1, Offloads::empty());
            assert!(matches!(result, Err(TapError::Name(_))), "{name}");
        }
    }

    #[test]
    fn what_is_no_tap_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let result = TapQueue::from_fd(file.into(), Offloads::empty());
        assert!(matches!(result, Err(TapError::NotTap)));
    }

    #[test]
    fn several_queues_of_one_interface_take_frames() {
        let offloads = Offloads::CHECKSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::USO4;
        let (name, queues) = match open_tap("lstest%d", 2, offloads) {
            Ok(opened) => opened,
            Err(error @ (TapError::NoTun | TapError::Permission(_))) => {
                eprintln!("SKIP a tap interface: {error}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        assert!(name.starts_with("lstest") && !name.contains('%'));
        assert_eq!(queues.len(), 2);
        // It is down, and says so.
        let error = queues[0]
            .send(&[0; HEADER_LEN], (&[0; 14], &[0; 46]))
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert!(matches!(
            queues[1].receive(&mut [0; 2048]),
            Ok(None) | Err(_)
        ));
        let again = TapQueue::from_fd(queues[0].fd.try_clone().unwrap(), offloads);
        assert!(again.is_ok());
        drop((again, queues));
        assert!(!std::path::Path::new("/sys/class/net").join(name).exists());
    }
}
