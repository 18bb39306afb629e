//! What a function is called on the bus (virtio 1.3, 4.1.2).

use thiserror::Error;

/// The vendor of all virtio devices.
pub const VENDOR: u16 = 0x1af4;

/// The subsystem of devices that are not transitional: 0x40 or more.
pub const SUBSYSTEM: u16 = 0x40;

/// The first device identifier, to which the device type is added.
const DEVICES: u16 = 0x1040;

/// Drivers take no identifier beyond 0x107f for a virtio device.
const TYPE_MAX: u32 = 0x3f;

/// A class that says nothing.
const OTHER: u32 = 0xff_0000;

/// Identifier and class of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The device identifier.
    pub device: u16,
    /// Base class, subclass and interface, from the highest byte on.
    pub class: u32,
}

/// A device type that PCI has no identifier for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "devices of type {device_type} have no PCI identifier; those of types 1 to {TYPE_MAX} have"
)]
pub struct NoIdentity {
    /// The virtio device type.
    pub device_type: u32,
}

/// Classes by device type (virtio 1.3, 5; PCI Code and ID Assignment 1.11).
const CLASSES: &[(u32, u32)] = &[
    (1, 0x02_0000),  // network: Ethernet
    (2, 0x01_8000),  // block: mass storage
    (3, 0x07_8000),  // console: communication
    (8, 0x01_0000),  // SCSI host
    (9, 0x01_8000),  // 9P transport: mass storage
    (16, 0x03_8000), // GPU: display
    (18, 0x09_8000), // input
    (19, 0x07_8000), // socket: communication
    (20, 0x10_8000), // crypto: encryption
    (23, 0x08_0600), // IOMMU
    (24, 0x05_0000), // memory: RAM
    (25, 0x04_0100), // sound: audio
    (26, 0x01_8000), // file system: mass storage
    (27, 0x05_8000), // persistent memory
];

/// What a device of this type is called.
///
/// # Errors
/// When no driver would know it for a virtio device.
pub fn identity(device_type: u32) -> Result<Identity, NoIdentity> {
    let number = u16::try_from(device_type)
        .ok()
        .filter(|_| (1..=TYPE_MAX).contains(&device_type))
        .ok_or(NoIdentity { device_type })?;
    let known = CLASSES.iter().find(|(known, _)| *known == device_type);
    Ok(Identity {
        device: DEVICES + number,
        class: known.map_or(OTHER, |(_, class)| *class),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_identifiers_and_classes() {
        let of = |device, class| Ok(Identity { device, class });
        assert_eq!(identity(1), of(0x1041, 0x02_0000));
        assert_eq!(identity(2), of(0x1042, 0x01_8000));
        // Entropy has no class, and nobody knows type 63.
        assert_eq!(identity(4), of(0x1044, OTHER));
        assert_eq!(identity(63), of(0x107f, OTHER));
    }

    #[test]
    fn types_that_no_driver_would_look_for_are_refused() {
        for device_type in [0, 64, 0xefc0, u32::MAX] {
            assert_eq!(identity(device_type), Err(NoIdentity { device_type }));
        }
    }
}
