//! Which VFIO devices there are, and who has them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use linkspan_sys::vfio::{Held, Process};

use super::error::VfioError;

/// A device that VFIO has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name: a UUID, or a PCI address.
    pub name: String,
    /// The driver that has it.
    pub driver: Option<String>,
    /// The type of a mediated device, as its driver calls it.
    pub mdev_type: Option<String>,
    /// Its group.
    pub group: Option<u32>,
    /// Its own node.
    pub node: Option<PathBuf>,
    /// Its folder in sysfs.
    pub folder: PathBuf,
}

/// A process that has VFIO devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its number.
    pub pid: u32,
    /// What it is called.
    pub name: String,
    /// What it has.
    pub held: Vec<Held>,
}

/// Where sysfs is.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/sys".into())
    }
}

impl Sysfs {
    /// Another place, for tests.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// All mediated devices, and all PCI devices that a driver of VFIO has, by name.
    #[must_use]
    pub fn devices(&self) -> Vec<Listed> {
        let mut devices = Vec::new();
        for bus in ["mdev", "pci"] {
            for name in names(&self.root.join("bus").join(bus).join("devices")) {
                let place = self.root.join("bus").join(bus).join("devices").join(name);
                if let Some(listed) = self.listed(&place)
                    && (bus == "mdev" || listed.is_vfio())
                {
                    devices.push(listed);
                }
            }
        }
        devices
    }

    fn listed(&self, place: &Path) -> Option<Listed> {
        let name = place.file_name()?.to_str()?.to_owned();
        let folder = fs::canonicalize(place).ok()?;
        let nodes = names(&folder.join("vfio-dev"));
        let mdev_type = folder.join("mdev_type/name");
        Some(Listed {
            name,
            driver: link_name(&folder.join("driver")),
            mdev_type: fs::read_to_string(mdev_type)
                .ok()
                .map(|name| name.trim().to_owned())
                .or_else(|| link_name(&folder.join("mdev_type"))),
            group: link_name(&folder.join("iommu_group")).and_then(|name| name.parse().ok()),
            node: nodes
                .first()
                .map(|node| Path::new("/dev/vfio/devices").join(node)),
            folder,
        })
    }

    /// A device by its name: a UUID or a PCI address.
    pub(super) fn named(&self, name: &str) -> Result<Listed, VfioError> {
        // It becomes a part of a path.
        let sound = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
        let buses = ["mdev", "pci"].into_iter().filter(|_| sound);
        let mut places = buses.map(|bus| self.bus(bus, name));
        let place = places.find(|place| place.exists());
        place
            .and_then(|place| self.listed(&place))
            .ok_or_else(|| VfioError::NoDevice(name.into()))
    }

    fn bus(&self, bus: &str, name: &str) -> PathBuf {
        self.root.join("bus").join(bus).join("devices").join(name)
    }

    /// The device of a node `/dev/vfio/devices/NODE`.
    pub(super) fn of_node(&self, node: &OsStr) -> Result<Listed, VfioError> {
        let link = self.root.join("class/vfio-dev").join(node).join("device");
        let no_device = || VfioError::NoDevice(node.to_string_lossy().into_owned());
        let folder = fs::canonicalize(link).map_err(|_| no_device())?;
        self.listed(&folder).ok_or_else(no_device)
    }

    /// The devices of a group.
    pub(super) fn of_group(&self, group: u32) -> Vec<Listed> {
        let folder = self.root.join("kernel/iommu_groups");
        let folder = folder.join(group.to_string()).join("devices");
        let names = names(&folder);
        let devices = names.iter().map(|name| self.listed(&folder.join(name)));
        devices.flatten().collect()
    }

    /// The device of such a folder.
    pub(super) fn of_folder(&self, folder: &Path) -> Result<Listed, VfioError> {
        let no_device = || VfioError::NoDevice(folder.display().to_string());
        let folder = fs::canonicalize(folder).map_err(|_| no_device())?;
        self.listed(&folder).ok_or_else(no_device)
    }

    /// The link to a device's driver, from its place on its bus: the kernel takes one of them
    /// away first when it takes the device or its driver away, and then waits for who has
    /// it open.
    pub(super) fn place(&self, listed: &Listed) -> Option<PathBuf> {
        let places = ["mdev", "pci"].map(|bus| self.bus(bus, &listed.name).join("driver"));
        places.into_iter().find(|place| place.exists())
    }
}

impl Listed {
    /// Whether a driver of VFIO has it.
    fn is_vfio(&self) -> bool {
        let driver = self.driver.as_deref().unwrap_or_default();
        self.node.is_some() || driver.contains("vfio")
    }
}

/// All processes that have something of VFIO, of those that may be looked at.
#[must_use]
pub fn owners() -> Vec<Owner> {
    let pids = names(Path::new("/proc"));
    let pids = pids.iter().filter_map(|name| name.to_str()?.parse().ok());
    let owner = |pid: u32| {
        let held = Process::held(pid).ok().filter(|held| !held.is_empty())?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = name.trim().to_owned();
        Some(Owner { pid, name, held })
    };
    let mut owners: Vec<Owner> = pids.filter_map(owner).collect();
    owners.sort_by_key(|owner| owner.pid);
    owners
}

/// The sockets at which virtual GPUs of ours can be looked at, as their command lines say.
#[must_use]
pub fn gpus() -> Vec<(u32, PathBuf)> {
    let pids = names(Path::new("/proc"));
    let pids = pids.iter().filter_map(|name| name.to_str()?.parse().ok());
    let mut gpus: Vec<(u32, PathBuf)> = pids.filter_map(gpu).collect();
    gpus.sort();
    gpus
}

fn gpu(pid: u32) -> Option<(u32, PathBuf)> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    if program.file_name()? != "linkspan" {
        return None;
    }
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0);
    words.find(|word| *word == b"gpu")?;
    let path = loop {
        let word = words.next()?;
        match word.strip_prefix(b"--display") {
            Some(b"") => break words.next()?,
            Some([b'=', path @ ..]) => break path,
            _ => {}
        }
    };
    let path = Path::new(OsStr::from_bytes(path));
    // A relative one is meant from where that process is.
    let folder = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    Some((pid, folder.join(path)))
}

/// Names in a folder, sorted; none of one that is not there.
fn names(folder: &Path) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

fn link_name(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}
