//! A kernel with one VFIO device, as wrong as a test wants it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use linkspan_backends::display::{Sysfs, VfioError, VfioOptions, VfioSource, VfioSpec};
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::vfio::{
    Call, DRM_CURSOR, GROUP_VIABLE, Kernel, PLANE_DMABUF, PLANE_PROBE, PlaneInfo, RegionInfo,
};
use rustix::io::Errno;

pub(crate) const UUID: &str = "c0ffee00-1234-5678-9abc-def012345678";
pub(crate) const XR24: u32 = u32::from_le_bytes(*b"XR24");

/// A region: its flags, size and offset, and its capabilities.
#[derive(Clone, Debug, Default)]
pub(crate) struct Region {
    pub(crate) flags: u32,
    pub(crate) size: u64,
    pub(crate) offset: u64,
    pub(crate) chain: Vec<u8>,
    /// What it says its information has, if that is not so.
    pub(crate) argsz: Option<u32>,
}

/// What a query answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    Plane(PlaneInfo),
    /// Success, and what was asked with stays as it was.
    Untouched,
    Fails(Errno),
}

#[derive(Debug)]
pub(crate) struct State {
    /// Which kinds of planes there are.
    pub(crate) kinds: u32,
    pub(crate) primary: Answer,
    pub(crate) cursor: Answer,
    /// Errors of the next queries.
    pub(crate) errors: Vec<Errno>,
    pub(crate) regions: BTreeMap<u32, Region>,
    pub(crate) num_regions: u32,
    /// What opening fails with, by a part of the path.
    pub(crate) closed: BTreeMap<&'static str, Errno>,
    /// What calls fail with, by their names.
    pub(crate) refused: BTreeMap<&'static str, Errno>,
    pub(crate) viable: bool,
    /// dma-bufs that cannot be mapped.
    pub(crate) unmappable: bool,
    /// Bytes of a dma-buf.
    pub(crate) buffer: u64,
    /// Every call and every path that was opened.
    pub(crate) log: Vec<String>,
    /// Ids that were asked for.
    pub(crate) gets: Vec<u32>,
    pub(crate) queries: Vec<PlaneInfo>,
}

/// The kernel.
#[derive(Debug)]
pub(crate) struct Model {
    state: Mutex<State>,
    /// All regions lie in it.
    pub(crate) device: File,
}

impl Model {
    pub(crate) fn new(kinds: u32) -> Arc<Self> {
        let device = memfd::create("device", 16 << 20, Sealing::Open).unwrap();
        let off = Answer::Plane(PlaneInfo::default());
        Arc::new(Self {
            device: device.into(),
            state: Mutex::new(State {
                kinds,
                primary: off,
                cursor: off,
                errors: Vec::new(),
                regions: BTreeMap::new(),
                num_regions: 9,
                closed: BTreeMap::new(),
                refused: BTreeMap::new(),
                viable: true,
                unmappable: false,
                buffer: 64 * 64 * 4,
                log: Vec::new(),
                gets: Vec::new(),
                queries: Vec::new(),
            }),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A device whose descriptor was passed, and which nobody else asks.
    pub(crate) fn source(self: &Arc<Self>) -> Result<VfioSource, VfioError> {
        self.passed(true)
    }

    /// A device whose descriptor was passed.
    pub(crate) fn passed(self: &Arc<Self>, force: bool) -> Result<VfioSource, VfioError> {
        let fd = self.device.try_clone().unwrap().into();
        let options = VfioOptions { force, way: None };
        VfioSource::passed(&self.kernel(), fd, options)
    }

    pub(crate) fn kernel(self: &Arc<Self>) -> Arc<dyn Kernel> {
        Arc::clone(self) as Arc<dyn Kernel>
    }

    /// A device that is opened by its name.
    pub(crate) fn open(self: &Arc<Self>, sysfs: &Sysfs) -> Result<VfioSource, VfioError> {
        let spec = VfioSpec::Name(UUID.into());
        VfioSource::open(&self.kernel(), sysfs, &spec, VfioOptions::default())
    }

    /// Shows a plane of 64 by 64.
    pub(crate) fn show(&self, id: u32) {
        self.state().primary = Answer::Plane(plane(id));
    }

    /// Writes into the device's file.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.device.write_all_at(bytes, at).unwrap();
    }
}

pub(crate) fn plane(index_or_id: u32) -> PlaneInfo {
    PlaneInfo {
        drm_format: XR24,
        width: 64,
        height: 64,
        stride: 256,
        size: 64 * 64 * 4,
        x_hot: u32::MAX,
        y_hot: u32::MAX,
        index_or_id,
        ..PlaneInfo::default()
    }
}

/// A device in a folder that stands for sysfs: by its group alone, or with a node.
pub(crate) fn sysfs(root: &Path, node: bool) -> Sysfs {
    let folder = root.join("devices/parent").join(UUID);
    let group = root.join("kernel/iommu_groups/7");
    for folder in [
        &folder,
        &group.join("devices"),
        &root.join("bus/mdev/devices"),
    ] {
        fs::create_dir_all(folder).unwrap();
    }
    let driver = root.join("bus/mdev/drivers/model");
    fs::create_dir_all(&driver).unwrap();
    symlink(&driver, folder.join("driver")).unwrap();
    symlink(&group, folder.join("iommu_group")).unwrap();
    symlink(&folder, group.join("devices").join(UUID)).unwrap();
    symlink(&folder, root.join("bus/mdev/devices").join(UUID)).unwrap();
    if node {
        fs::create_dir_all(folder.join("vfio-dev/vfio3")).unwrap();
        fs::create_dir_all(root.join("class/vfio-dev/vfio3")).unwrap();
        symlink(&folder, root.join("class/vfio-dev/vfio3/device")).unwrap();
    }
    Sysfs::at(root.into())
}

/// What a descriptor of ours is of.
fn name(fd: BorrowedFd<'_>) -> String {
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    link.to_string_lossy().into_owned()
}

impl Kernel for Model {
    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut state = self.state();
        let path = path.to_str().unwrap();
        state.log.push(format!("open {path}"));
        let mut closed = state.closed.iter();
        if let Some((_, error)) = closed.find(|(part, _)| path.ends_with(*part)) {
            return Err((*error).into());
        }
        drop(state);
        if path.starts_with("/dev/vfio/devices") {
            return self.duplicate();
        }
        memfd::create(path.trim_start_matches("/dev/"), 0, Sealing::Open)
    }

    fn call(&self, fd: BorrowedFd<'_>, call: Call<'_>) -> io::Result<Option<OwnedFd>> {
        let mut state = self.state();
        state.log.push(call.name().into());
        // Each call on the descriptor that it is for: some numbers are of two calls.
        let on = name(fd);
        let wanted = match &call {
            Call::ApiVersion(_) | Call::SetIommu(_) => "memfd:vfio/vfio",
            Call::GroupStatus(_) | Call::SetContainer(_) | Call::DeviceFd(_) => "memfd:vfio/7",
            _ => "memfd:device",
        };
        assert!(on.contains(wanted), "{call:?} on {on}");
        if let Some(error) = state.refused.get(call.name()) {
            return Err((*error).into());
        }
        match call {
            Call::DeviceFd(name) => {
                assert_eq!(name.to_str().unwrap(), UUID);
                drop(state);
                return self.duplicate().map(Some);
            }
            Call::GroupStatus(flags) => *flags = if state.viable { GROUP_VIABLE } else { 0 },
            Call::DeviceInfo(info) => info.num_regions = state.num_regions,
            Call::RegionInfo(index, bytes) => state.region(index, bytes)?,
            Call::QueryPlane(info) => state.query(info)?,
            Call::DmaBuf(id) => return state.buffer(id).map(Some),
            _ => {}
        }
        Ok(None)
    }

    fn is_device(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(name(fd).contains("memfd:device"))
    }
}

impl Model {
    fn duplicate(&self) -> io::Result<OwnedFd> {
        linkspan_mem::fault::point(linkspan_mem::fault::Site::Fd).map_err(io::Error::other)?;
        Ok(self.device.try_clone()?.into())
    }
}

impl State {
    fn query(&mut self, info: &mut PlaneInfo) -> io::Result<()> {
        if info.flags & PLANE_PROBE != 0 {
            let kind = info.flags & !PLANE_PROBE;
            return if kind & self.kinds != 0 {
                Ok(())
            } else {
                Err(Errno::INVAL.into())
            };
        }
        self.queries.push(*info);
        if !self.errors.is_empty() {
            return Err(self.errors.remove(0).into());
        }
        let answer = match info.drm_plane_type {
            DRM_CURSOR => self.cursor,
            _ => self.primary,
        };
        match answer {
            Answer::Fails(error) => return Err(error.into()),
            Answer::Untouched => {}
            Answer::Plane(plane) => {
                *info = PlaneInfo {
                    argsz: info.argsz,
                    flags: info.flags,
                    drm_plane_type: info.drm_plane_type,
                    ..plane
                };
            }
        }
        Ok(())
    }

    /// As strict as an older mbochs: it takes 32 bytes, or exactly as many as it has.
    fn region(&self, index: u32, bytes: &mut [u8]) -> io::Result<()> {
        let region = self.regions.get(&index).ok_or(Errno::INVAL)?;
        let all = RegionInfo::BYTES + region.chain.len();
        let argsz = region.argsz.unwrap_or(u32::try_from(all).unwrap());
        if bytes.len() != RegionInfo::BYTES && bytes.len() != argsz as usize {
            return Err(Errno::INVAL.into());
        }
        let flags = region.flags | u32::from(argsz > 32) << 3;
        let first = if argsz > 32 && bytes.len() > 32 {
            32
        } else {
            0
        };
        let words = [argsz, flags, index, first];
        let words = words.iter().flat_map(|word| word.to_ne_bytes());
        let longs = [region.size, region.offset];
        let longs = longs.iter().flat_map(|long| long.to_ne_bytes());
        let answer = words.chain(longs).chain(region.chain.iter().copied());
        for (byte, answer) in bytes.iter_mut().zip(answer) {
            *byte = answer;
        }
        Ok(())
    }

    fn buffer(&mut self, id: u32) -> io::Result<OwnedFd> {
        assert_ne!(self.kinds & PLANE_DMABUF, 0);
        self.gets.push(id);
        let file = memfd::create("dmabuf", self.buffer, Sealing::Open)?;
        rustix::io::pwrite(&file, &[u8::try_from(id % 251).unwrap(); 64], 0)?;
        if self.unmappable {
            // It can be written and not read.
            let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
            return Ok(File::options().write(true).open(path)?.into());
        }
        Ok(file)
    }
}
