//! What sysfs shows of a device that uio_hv_generic has.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use linkspan_vmbus::Guid;

/// What is offered to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What the device is for.
    pub interface: Guid,
    /// Which one of its kind it is.
    pub instance: Guid,
    /// Number of its channel.
    pub relid: u32,
    /// Bytes of each of its two rings, their headers included.
    pub ring: u64,
    /// Whether the kernel masks interrupts when the device is opened and with each one,
    /// as Linux did before b15b7d2a1b09.
    pub masks: bool,
}

/// Number of the device's file, /dev/uio0.
pub(super) const NUMBER: u32 = 0;

/// Writes the tree of the device into the folder that is /sys/bus/vmbus.
pub(super) fn write(vmbus: &Path, offer: &Offer) -> io::Result<()> {
    let device = vmbus.join("devices").join(offer.instance.to_string());
    let uio = device.join(format!("uio/uio{NUMBER}"));
    let map = uio.join("maps/map0");
    let channel = device.join(format!("channels/{}", offer.relid));
    fs::create_dir_all(&map)?;
    fs::create_dir_all(&channel)?;
    fs::create_dir_all(vmbus.join("drivers/uio_hv_generic"))?;
    symlink("../../drivers/uio_hv_generic", device.join("driver"))?;
    let both = offer.ring * 2;
    let relid = offer.relid.to_string();
    let (class, instance) = (
        format!("{{{}}}", offer.interface),
        format!("{{{}}}", offer.instance),
    );
    for (folder, name, text) in [
        (&device, "class_id", class.as_str()),
        (&device, "device_id", &instance),
        (&device, "id", &relid),
        (&device, "state", "3"),
        (&device, "monitor_id", "255"),
        (&device, "driver_override", "(null)"),
        (
            &device,
            "modalias",
            &format!("vmbus:{}", plain(offer.interface)),
        ),
        (&uio, "name", &class),
        (&uio, "version", "0.02.1"),
        (&map, "name", "txrx_rings"),
        (&map, "addr", "0x0000000000000000"),
        (&map, "size", &format!("{both:#018x}")),
        (&map, "offset", "0x0"),
        (&channel, "subchannel_id", "0"),
        (&channel, "monitor_id", "255"),
        (&channel, "cpu", "0"),
    ] {
        fs::write(folder.join(name), format!("{text}\n"))?;
    }
    // Its size says how large the rings are; to be mapped is the device's file.
    let ring = File::create(channel.join("ring"))?;
    ring.set_len(both)?;
    ring.set_permissions(Permissions::from_mode(0o600))
}

/// The digits of a GUID as the wire has them.
fn plain(guid: Guid) -> String {
    guid.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_vmbus::ic::FILE_COPY;

    #[test]
    fn the_tree_is_that_of_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let offer = Offer {
            interface: FILE_COPY.interface,
            instance: FILE_COPY.instance.unwrap(),
            relid: 11,
            ring: 20480,
            masks: false,
        };
        write(dir.path(), &offer).unwrap();
        let device = dir
            .path()
            .join("devices/eb765408-105f-49b6-b4aa-c123b64d17d4");
        for (name, text) in [
            ("class_id", "{34d14be3-dee4-41c8-9ae7-6b174977c192}\n"),
            ("device_id", "{eb765408-105f-49b6-b4aa-c123b64d17d4}\n"),
            ("id", "11\n"),
            ("modalias", "vmbus:e34bd134e4dec8419ae76b174977c192\n"),
            ("uio/uio0/maps/map0/name", "txrx_rings\n"),
            ("uio/uio0/maps/map0/size", "0x000000000000a000\n"),
            ("uio/uio0/maps/map0/offset", "0x0\n"),
        ] {
            assert_eq!(
                fs::read_to_string(device.join(name)).unwrap(),
                text,
                "{name}"
            );
        }
        let driver = fs::canonicalize(device.join("driver")).unwrap();
        assert!(driver.ends_with("drivers/uio_hv_generic"));
        let ring = fs::metadata(device.join("channels/11/ring")).unwrap();
        assert_eq!(
            (ring.len(), ring.permissions().mode() & 0o777),
            (40960, 0o600)
        );
    }
}
