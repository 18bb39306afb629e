//! A device of VFIO that is open: what it is asked, each question by the rules that are
//! safe with every driver.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_display::region::{Capability, ChainError, capabilities};
use linkspan_mem::fault;
use linkspan_sys::vfio::{
    Call, DRM_CURSOR, DRM_PRIMARY, DeviceInfo, Kernel, PLANE_PROBE, PlaneInfo, REGION_CAPS,
    REGION_MMAP, RegionInfo,
};
use rustix::io::Errno;

/// The most bytes of a region's information with its capabilities.
const REGION_INFO_MAX: usize = 64 << 10;
/// The most regions that are looked at.
const REGIONS_MAX: u32 = 256;

/// A device that is open. What it is open through comes after it, so that it is closed
/// first.
#[derive(Debug)]
pub(super) struct Device {
    kernel: Arc<dyn Kernel>,
    fd: OwnedFd,
    /// A group and its container, or an iommufd.
    _through: Vec<OwnedFd>,
}

/// What a device says of one of its regions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its number.
    pub index: u32,
    /// `VFIO_REGION_INFO_FLAG_*`: 1 read, 2 write, 4 map, 8 capabilities.
    pub flags: u32,
    /// Its bytes.
    pub size: u64,
    /// Where it is in the file of the device.
    pub offset: u64,
    /// Its capabilities, or what is wrong with them.
    pub capabilities: Result<Vec<Capability>, ChainError>,
}

impl Region {
    /// Its type and subtype, if it is one of those that a driver made up.
    #[must_use]
    pub fn kind(&self) -> Option<(u32, u32)> {
        let capabilities = self.capabilities.as_ref().ok()?;
        capabilities.iter().find_map(|capability| match capability {
            Capability::Type { kind, subtype } => Some((*kind, *subtype)),
            _ => None,
        })
    }

    /// Whether its first `len` bytes can be mapped.
    #[must_use]
    pub fn maps(&self, len: u64) -> bool {
        let sparse = self.capabilities.iter().flatten().find_map(|it| match it {
            Capability::SparseMmap(parts) => Some(parts),
            _ => None,
        });
        let whole = sparse.is_none_or(|parts| {
            let mut parts = parts.iter();
            parts.any(|part| part.start == 0 && part.end >= len)
        });
        self.flags & REGION_MMAP != 0 && len <= self.size && whole
    }
}

/// Which plane a driver is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Primary,
    Cursor,
}

impl Which {
    const fn number(self) -> u32 {
        match self {
            Self::Primary => DRM_PRIMARY,
            Self::Cursor => DRM_CURSOR,
        }
    }
}

impl Device {
    pub(super) fn new(kernel: Arc<dyn Kernel>, fd: OwnedFd, through: Vec<OwnedFd>) -> Self {
        Self {
            kernel,
            fd,
            _through: through,
        }
    }

    pub(super) fn info(&self) -> io::Result<DeviceInfo> {
        let mut info = DeviceInfo::default();
        self.kernel.call(self.fd(), Call::DeviceInfo(&mut info))?;
        Ok(info)
    }

    /// Whether planes of a kind are there at all.
    pub(super) fn probe(&self, kind: u32) -> io::Result<()> {
        let mut info = PlaneInfo {
            argsz: PLANE_BYTES,
            flags: PLANE_PROBE | kind,
            drm_plane_type: DRM_PRIMARY,
            ..PlaneInfo::default()
        };
        self.kernel.call(self.fd(), Call::QueryPlane(&mut info))?;
        Ok(())
    }

    /// A plane as it is now; nothing if the guest has none. What is asked with is cleared,
    /// since a driver may leave it as it was, and a failure is asked again once, since a
    /// driver may fail the first time it meets a mode.
    pub(super) fn query(&self, kind: u32, which: Which) -> io::Result<Option<PlaneInfo>> {
        let query = || {
            let mut info = PlaneInfo {
                argsz: PLANE_BYTES,
                flags: kind,
                drm_plane_type: which.number(),
                ..PlaneInfo::default()
            };
            self.kernel.call(self.fd(), Call::QueryPlane(&mut info))?;
            Ok(info)
        };
        let info = query().or_else(|_: io::Error| query())?;
        let outputs = [info.drm_format, info.width, info.height, info.size];
        Ok((outputs != [0; 4]).then_some(info))
    }

    /// The dma-buf of an id. Nobody asks for one that is held.
    pub(super) fn dma_buf(&self, id: u32) -> io::Result<OwnedFd> {
        let got = self.kernel.call(self.fd(), Call::DmaBuf(id))?;
        got.ok_or(Errno::BADF.into())
    }

    pub(super) fn reset(&self) -> io::Result<()> {
        self.kernel.call(self.fd(), Call::Reset).map(drop)
    }

    /// What it says of a region. The kernel is asked again with exactly the size that it
    /// wants, since an older mbochs refuses any other.
    pub(super) fn region(&self, index: u32) -> io::Result<Region> {
        let mut bytes = vec![0; RegionInfo::BYTES];
        let ask = |bytes: &mut Vec<u8>| -> io::Result<RegionInfo> {
            let call = Call::RegionInfo(index, bytes);
            self.kernel.call(self.fd(), call)?;
            RegionInfo::from_bytes(bytes).ok_or(Errno::INVAL.into())
        };
        let mut info = ask(&mut bytes)?;
        let want = usize::try_from(info.argsz).unwrap_or(usize::MAX);
        let mut chain = Ok(Vec::new());
        if info.flags & REGION_CAPS != 0 && want > RegionInfo::BYTES {
            if want > REGION_INFO_MAX {
                return Err(Errno::TOOBIG.into());
            }
            bytes = fault::try_with_capacity(want).map_err(|_| Errno::NOMEM)?;
            bytes.resize(want, 0);
            info = ask(&mut bytes)?;
            if info.flags & REGION_CAPS != 0 {
                chain = capabilities(&bytes, info.cap_offset);
            }
        }
        Ok(Region {
            index,
            flags: info.flags,
            size: info.size,
            offset: info.offset,
            capabilities: chain,
        })
    }

    /// All regions that it says it has. One that it does not tell is left out: those of a
    /// PCI device are numbered whether they are there or not.
    pub(super) fn regions(&self) -> io::Result<Vec<Region>> {
        let count = self.info()?.num_regions.min(REGIONS_MAX);
        let regions = (0..count).filter_map(|index| self.region(index).ok());
        Ok(regions.collect())
    }

    /// Reads from a region, all of it.
    pub(super) fn read(&self, region: &Region, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let offset = region.offset.checked_add(at).ok_or(Errno::OVERFLOW)?;
        match rustix::io::pread(&self.fd, &mut *bytes, offset)? {
            got if got == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Reads a word of a region.
    pub(super) fn read_word(&self, region: &Region, at: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.read(region, at, &mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    /// Writes a word of a region.
    pub(super) fn write_word(&self, region: &Region, at: u64, word: u32) -> io::Result<()> {
        let offset = region.offset.checked_add(at).ok_or(Errno::OVERFLOW)?;
        match rustix::io::pwrite(&self.fd, &word.to_ne_bytes(), offset)? {
            4 => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "64")]
const PLANE_BYTES: u32 = size_of::<PlaneInfo>() as u32;
