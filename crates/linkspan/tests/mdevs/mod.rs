//! A sample device of the kernel that this process has, as a monitor has one.
#![allow(dead_code, reason = "each test uses some of it")]

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use linkspan_backends::display::{VfioOptions, VfioSource, Way};
use linkspan_sys::vfio::{
    Call, DRM_PRIMARY, Kernel, Linux, PLANE_DMABUF, PlaneInfo, RegionInfo, TYPE1_V2,
};
use linkspan_testkit::lab::Mdev;

pub(crate) fn kernel() -> Arc<dyn Kernel> {
    Arc::new(Linux)
}

/// What mdpy makes: each line has one grey.
pub(crate) fn gradient() -> Vec<u32> {
    let lines = (0..480_u32).map(|y| y * 255 / 480);
    let lines = lines.flat_map(|grey| std::iter::repeat_n(grey << 16 | grey << 8 | grey, 640));
    lines.collect()
}

/// A device that this process has, as a virtual machine's monitor has one.
pub(crate) struct Machine {
    pub(crate) device: File,
    _through: [OwnedFd; 2],
}

impl Machine {
    pub(crate) fn new(mdev: &Mdev) -> Self {
        let group = Linux.open(&mdev.group()).unwrap();
        let container = Linux.open(Path::new("/dev/vfio/vfio")).unwrap();
        let set = Call::SetContainer(container.as_fd());
        Linux.call(group.as_fd(), set).unwrap();
        Linux
            .call(container.as_fd(), Call::SetIommu(TYPE1_V2))
            .unwrap();
        let name = CString::new(mdev.uuid()).unwrap();
        let device = Linux.call(group.as_fd(), Call::DeviceFd(&name)).unwrap();
        Self {
            device: device.unwrap().into(),
            _through: [group, container],
        }
    }

    /// Another descriptor of the same open file.
    pub(crate) fn pass(&self) -> OwnedFd {
        self.device.try_clone().unwrap().into()
    }

    pub(crate) fn source(&self, way: Option<Way>) -> VfioSource {
        // Nobody else asks for its planes.
        let force = true;
        VfioSource::passed(&kernel(), self.pass(), VfioOptions { force, way }).unwrap()
    }

    pub(crate) fn offset(&self, index: u32) -> u64 {
        let mut bytes = [0; RegionInfo::BYTES];
        let call = Call::RegionInfo(index, &mut bytes);
        Linux.call(self.device.as_fd(), call).unwrap();
        RegionInfo::from_bytes(&bytes).unwrap().offset
    }

    /// Writes a register of mbochs as its guest's driver does.
    pub(crate) fn register(&self, index: u64, value: u16) {
        let at = self.offset(2) + 0x500 + 2 * index;
        self.device.write_all_at(&value.to_le_bytes(), at).unwrap();
    }

    /// Shows 64x64 pixels that begin at line `line` of video memory.
    pub(crate) fn show(&self, line: u16) {
        let (width, height, bpp, enable) = (1, 2, 3, 4);
        self.register(enable, 0);
        self.register(width, 64);
        self.register(height, 64);
        self.register(bpp, 32);
        self.register(6, 64);
        self.register(9, line);
        self.register(enable, 0x41);
    }

    /// Fills these lines of video memory and gives what they are to show.
    pub(crate) fn paint(&self, line: u32, seed: u32) -> Vec<u32> {
        let pixels = (0..64 * 64).map(|at: u32| (at ^ seed).wrapping_mul(0x9E_3779) & 0xFF_FFFF);
        let pixels: Vec<u32> = pixels.collect();
        let bytes: Vec<u8> = pixels
            .iter()
            .flat_map(|pixel| pixel.to_le_bytes())
            .collect();
        // mbochs takes what is written by calls 0x2000 bytes further on.
        let at = self.offset(0) + u64::from(line) * 256 - 0x2000;
        self.device.write_all_at(&bytes, at).unwrap();
        pixels
    }

    pub(crate) fn query(&self) -> std::io::Result<PlaneInfo> {
        let mut info = PlaneInfo {
            argsz: 64,
            flags: PLANE_DMABUF,
            drm_plane_type: DRM_PRIMARY,
            ..PlaneInfo::default()
        };
        let call = Call::QueryPlane(&mut info);
        Linux.call(self.device.as_fd(), call).map(|_| info)
    }
}
