//! Which vDPA devices there are, and what sysfs says of them.

use std::io;
use std::path::{Path, PathBuf};

/// Where the kernel lists devices of the vdpa bus.
const BUS: &str = "/sys/bus/vdpa/devices";

/// A device of the vdpa bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name on the bus: what `vdpa dev add name` gave it.
    pub name: String,
    /// The driver that has it: `vhost_vdpa`, or `virtio_vdpa` for the kernel's own use.
    pub driver: Option<String>,
    /// Its character device, if `vhost_vdpa` has it.
    pub node: Option<PathBuf>,
    /// The device that it was made of, such as that of a PCI slot; the simulators
    /// have none.
    pub management: Option<String>,
}

/// All devices of the vdpa bus, by name; `None` when this kernel has no such bus.
///
/// # Errors
/// When the list cannot be read.
pub fn devices() -> io::Result<Option<Vec<Listed>>> {
    list(Path::new(BUS))
}

/// The device whose character device this is.
pub fn find(node: &Path) -> Option<Listed> {
    let devices = devices().ok()??;
    devices
        .into_iter()
        .find(|listed| listed.node.as_deref() == Some(node))
}

fn list(bus: &Path) -> io::Result<Option<Vec<Listed>>> {
    let entries = match std::fs::read_dir(bus) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut devices = Vec::new();
    for entry in entries {
        let entry = entry?;
        let place = entry.path();
        let driver = std::fs::read_link(place.join("driver")).ok();
        let real = std::fs::canonicalize(&place).ok();
        devices.push(Listed {
            name: entry.file_name().to_string_lossy().into_owned(),
            driver: driver.as_deref().and_then(last),
            node: node(&place),
            management: real
                .as_deref()
                .and_then(Path::parent)
                .filter(|parent| !parent.ends_with("sys/devices"))
                .and_then(last),
        });
    }
    devices.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Some(devices))
}

fn last(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

/// The character device has a folder of its name below its vDPA device.
fn node(place: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(place).ok()?;
    let mut names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let name = names.find(|name| name.starts_with("vhost-vdpa-"))?;
    Some(Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_is_listed_with_drivers_and_nodes() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(list(&folder.path().join("none")).unwrap(), None);
        let bus = folder.path().join("bus");
        let devices = folder.path().join("devices/vdpasim_blk");
        for name in ["net0", "blk0"] {
            std::fs::create_dir_all(devices.join(name)).unwrap();
        }
        std::fs::create_dir_all(folder.path().join("drivers/vhost_vdpa")).unwrap();
        std::fs::create_dir(&bus).unwrap();
        for name in ["net0", "blk0"] {
            std::os::unix::fs::symlink(devices.join(name), bus.join(name)).unwrap();
        }
        std::fs::create_dir(devices.join("blk0/vhost-vdpa-3")).unwrap();
        let driver = folder.path().join("drivers/vhost_vdpa");
        std::os::unix::fs::symlink(driver, devices.join("blk0/driver")).unwrap();
        let listed = list(&bus).unwrap().unwrap();
        assert_eq!(listed.len(), 2);
        assert_eq!(
            listed[0],
            Listed {
                name: "blk0".into(),
                driver: Some("vhost_vdpa".into()),
                node: Some("/dev/vhost-vdpa-3".into()),
                management: Some("vdpasim_blk".into()),
            }
        );
        assert_eq!(
            (listed[1].driver.as_deref(), listed[1].node.as_deref()),
            (None, None)
        );
    }
}
