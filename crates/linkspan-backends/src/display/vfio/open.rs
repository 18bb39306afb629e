//! Ways to a device: its node and an iommufd, its group and a container, a descriptor that
//! was passed, or one of a running process.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linkspan_sys::vfio::{Call, GROUP_VIABLE, Held, Kernel, Process, TYPE1_V2};
use rustix::io::Errno;

use super::device::Device;
use super::error::{VfioError, opening, system};
use super::sysfs::{Listed, Sysfs};

/// Which device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VfioSpec {
    /// By its name: the UUID of a mediated device, or a PCI address.
    Name(String),
    /// By its own node below `/dev/vfio/devices`, its group `/dev/vfio/N`, or its folder
    /// in sysfs.
    Path(PathBuf),
    /// One that a running process has: which process, and which of its descriptors.
    Process {
        /// Its number.
        pid: u32,
        /// Its descriptor; otherwise the first of a device.
        fd: Option<i32>,
    },
}

/// A device that is open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) device: Device,
    /// What people call it.
    pub(super) name: String,
    pub(super) driver: Option<String>,
    /// It is gone when this is.
    pub(super) place: Option<PathBuf>,
    /// Whose it is, if not ours.
    pub(super) process: Option<Process>,
    /// Whether somebody else may have it open too.
    pub(super) shared: bool,
}

/// Where nodes are.
const NODES: &str = "/dev/vfio";

pub(super) fn open(
    kernel: &Arc<dyn Kernel>,
    sysfs: &Sysfs,
    spec: &VfioSpec,
) -> Result<Opened, VfioError> {
    let (listed, way) = match spec {
        VfioSpec::Name(name) => (sysfs.named(name)?, Way::Any),
        VfioSpec::Path(path) => of_path(sysfs, path)?,
        VfioSpec::Process { pid, fd } => return attach(kernel, sysfs, *pid, *fd),
    };
    let device = match (way, &listed.node) {
        (Way::Node, Some(node)) => by_node(kernel, node)?,
        (Way::Any, Some(node)) if listed.group.is_none() => by_node(kernel, node)?,
        // A kernel may have the node and no iommufd, or only groups: then the other way.
        (Way::Any, Some(node)) => match by_node(kernel, node) {
            Err(VfioError::NoNode(_)) => by_group(kernel, &listed)?,
            device => device?,
        },
        _ => by_group(kernel, &listed)?,
    };
    Ok(Opened {
        device,
        place: sysfs.place(&listed),
        name: listed.name,
        driver: listed.driver,
        process: None,
        shared: false,
    })
}

/// How a device is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Any,
    Node,
    Group,
}

fn of_path(sysfs: &Sysfs, path: &Path) -> Result<(Listed, Way), VfioError> {
    let rest = path.strip_prefix(NODES).ok();
    if let Some(node) = rest.and_then(|rest| rest.strip_prefix("devices").ok()) {
        return Ok((sysfs.of_node(node.as_os_str())?, Way::Node));
    }
    let Some(group) = rest else {
        return Ok((sysfs.of_folder(path)?, Way::Any));
    };
    let number = group.to_str().and_then(|group| group.parse().ok());
    let group: u32 = number.ok_or_else(|| VfioError::NoDevice(path.display().to_string()))?;
    let mut devices = sysfs.of_group(group);
    match devices.pop() {
        Some(only) if devices.is_empty() => Ok((only, Way::Group)),
        last => {
            let devices = devices.into_iter().chain(last);
            let devices = devices.map(|listed| listed.name).collect();
            Err(VfioError::Group { group, devices })
        }
    }
}

/// The device's own node, bound to an iommufd. Nothing is mapped for it.
fn by_node(kernel: &Arc<dyn Kernel>, node: &Path) -> Result<Device, VfioError> {
    let iommu = PathBuf::from("/dev/iommu");
    let iommufd = kernel.open(&iommu);
    let iommufd = iommufd.map_err(opening(iommu, "cannot open /dev/iommu"))?;
    let fd = kernel.open(node);
    let fd = fd.map_err(opening(node.into(), "cannot open the device's node"))?;
    let call = Call::BindIommufd(iommufd.as_fd());
    let what = call.name();
    kernel
        .call(fd.as_fd(), call)
        .map_err(opening(node.into(), what))?;
    Ok(Device::new(Arc::clone(kernel), fd, vec![iommufd]))
}

/// The device's group in a container of its own.
fn by_group(kernel: &Arc<dyn Kernel>, listed: &Listed) -> Result<Device, VfioError> {
    let no_driver = || VfioError::NoDriver {
        name: listed.name.clone(),
    };
    let number = listed.group.ok_or_else(no_driver)?;
    let path = Path::new(NODES).join(number.to_string());
    let group = kernel.open(&path);
    let group = group.map_err(opening(path.clone(), "cannot open the device's group"))?;
    let mut flags = 0;
    let call = Call::GroupStatus(&mut flags);
    let what = call.name();
    kernel.call(group.as_fd(), call).map_err(system(what))?;
    if flags & GROUP_VIABLE == 0 {
        return Err(VfioError::NotViable { group: number });
    }
    let place = Path::new(NODES).join("vfio");
    let container = kernel.open(&place);
    let container = container.map_err(opening(place, "cannot open a container"))?;
    let set = Call::SetContainer(container.as_fd());
    let what = set.name();
    kernel
        .call(group.as_fd(), set)
        .map_err(opening(path.clone(), what))?;
    // Before that no device is given.
    let set = Call::SetIommu(TYPE1_V2);
    let what = set.name();
    kernel.call(container.as_fd(), set).map_err(system(what))?;
    let name = CString::new(listed.name.as_str()).map_err(|_| no_driver())?;
    let call = Call::DeviceFd(&name);
    let what = call.name();
    let fd = kernel.call(group.as_fd(), call).map_err(|source| {
        match Errno::from_io_error(&source) {
            // GVT-g, which looks for the virtual machine of the group.
            Some(Errno::SRCH) => VfioError::NeedsMachine {
                name: listed.name.clone(),
            },
            _ => opening(path, what)(source),
        }
    })?;
    let fd = fd.ok_or_else(|| system(what)(Errno::BADF.into()))?;
    Ok(Device::new(Arc::clone(kernel), fd, vec![group, container]))
}

/// A descriptor of a device that somebody passed.
pub(super) fn passed(kernel: &Arc<dyn Kernel>, fd: OwnedFd) -> Result<Opened, VfioError> {
    let number = fd.as_raw_fd();
    let is_device = kernel.is_device(fd.as_fd());
    // The numbers of its calls mean something else to others.
    if !is_device.map_err(system("cannot find out what the descriptor is"))? {
        linkspan_sys::reaper::dispose(fd);
        return Err(VfioError::NotDevice { fd: number });
    }
    Ok(Opened {
        device: Device::new(Arc::clone(kernel), fd, Vec::new()),
        name: format!("fd:{number}"),
        driver: None,
        place: None,
        process: None,
        shared: true,
    })
}

/// A device that a process has: the same open file, so what happens to it there happens
/// here.
fn attach(
    kernel: &Arc<dyn Kernel>,
    sysfs: &Sysfs,
    pid: u32,
    wanted: Option<i32>,
) -> Result<Opened, VfioError> {
    let denied = |what| {
        move |source: io::Error| match Errno::from_io_error(&source) {
            Some(Errno::SRCH | Errno::NOENT) => VfioError::NoProcess { pid },
            Some(Errno::PERM | Errno::ACCESS) => VfioError::Process { pid },
            _ => VfioError::System { what, source },
        }
    };
    let process = Process::open(pid).map_err(denied("pidfd_open"))?;
    let held = Process::held(pid).map_err(denied("cannot see what the process has"))?;
    let devices = held.iter().filter_map(|held| match held {
        Held::Device { fd, link } => Some((*fd, link.as_path())),
        Held::Group(_) => None,
    });
    let mut devices = devices.filter(|(fd, _)| wanted.is_none_or(|wanted| wanted == *fd));
    let (number, link) = devices.next().ok_or(VfioError::NoneHeld { pid })?;
    let fd = process.take(number).map_err(denied("pidfd_getfd"))?;
    // It may have closed that and opened something else meanwhile.
    let is_device = kernel.is_device(fd.as_fd());
    if !is_device.map_err(system("cannot find out what the descriptor is"))? {
        linkspan_sys::reaper::dispose(fd);
        return Err(VfioError::NoneHeld { pid });
    }
    let listed = identify(sysfs, pid, number, link, &held);
    Ok(Opened {
        device: Device::new(Arc::clone(kernel), fd, Vec::new()),
        name: match &listed {
            Some(listed) => format!("{} of process {pid}", listed.name),
            None => format!("descriptor {number} of process {pid}"),
        },
        place: listed.as_ref().and_then(|listed| sysfs.place(listed)),
        driver: listed.and_then(|listed| listed.driver),
        process: Some(process),
        shared: true,
    })
}

/// Which device a process's descriptor is of, if that can be said for sure: newer kernels
/// tell it, a node has its name, and a process with one group of one device has that.
fn identify(sysfs: &Sysfs, pid: u32, fd: i32, link: &Path, held: &[Held]) -> Option<Listed> {
    let told = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    let told = told
        .lines()
        .find_map(|line| line.strip_prefix("vfio-device-syspath:"));
    if let Some(folder) = told {
        return sysfs.of_folder(Path::new(folder.trim())).ok();
    }
    if let Ok(node) = link.strip_prefix("/dev/vfio/devices") {
        return sysfs.of_node(node.as_os_str()).ok();
    }
    let groups = held.iter().filter_map(|held| match held {
        Held::Group(group) => Some(*group),
        Held::Device { .. } => None,
    });
    let mut devices: Vec<Listed> = groups.flat_map(|group| sysfs.of_group(group)).collect();
    devices.pop().filter(|_| devices.is_empty())
}
