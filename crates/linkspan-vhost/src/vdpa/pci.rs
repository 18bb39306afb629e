//! What becomes of each feature bit of a vDPA device that is shown as a PCI function.
//! Its driver is not ours and has all queues, so what belongs to the device type
//! passes; only what the function itself has to do with is here.

use super::features::{FeatureError, FeatureRow, Treatment, any};
use super::{Facts, features};

/// The whole policy. Bits that it does not name pass if they belong to the device type,
/// and are hidden if they belong to queues or transports.
pub const PCI_FEATURE_TABLE: &[FeatureRow] = &[
    any(
        24,
        "NOTIFY_ON_EMPTY",
        Treatment::Hidden,
        "legacy devices only",
    ),
    any(
        26,
        "LOG_ALL",
        Treatment::Hidden,
        "vDPA has no dirty log, so the device cannot be migrated",
    ),
    any(27, "ANY_LAYOUT", Treatment::Hidden, "legacy devices only"),
    any(
        28,
        "INDIRECT_DESC",
        Treatment::Passes,
        "between driver and device",
    ),
    any(
        29,
        "EVENT_IDX",
        Treatment::Passes,
        "between driver and device",
    ),
    any(
        30,
        "PROTOCOL_FEATURES",
        Treatment::Hidden,
        "it is about vhost-user",
    ),
    any(
        32,
        "VERSION_1",
        Treatment::Needed,
        "configuration space and rings are little-endian on any machine",
    ),
    any(
        33,
        "ACCESS_PLATFORM",
        Treatment::Taken,
        "the device sees memory through mappings, whether the driver knows it or not",
    ),
    any(
        34,
        "RING_PACKED",
        Treatment::Passes,
        "between driver and device",
    ),
    any(
        35,
        "IN_ORDER",
        Treatment::Passes,
        "between driver and device",
    ),
    any(
        36,
        "ORDER_PLATFORM",
        Treatment::Passes,
        "between driver and device",
    ),
    any(
        37,
        "SR_IOV",
        Treatment::Hidden,
        "the function has no others below it",
    ),
    any(
        38,
        "NOTIFICATION_DATA",
        Treatment::Hidden,
        "a kick is an eventfd and carries no data",
    ),
    any(
        39,
        "NOTIF_CONFIG_DATA",
        Treatment::Hidden,
        "a kick is an eventfd and carries no data",
    ),
    any(
        40,
        "RING_RESET",
        Treatment::Ours,
        "one queue is reset by a restart of the others, if the device can be suspended",
    ),
    any(41, "ADMIN_VQ", Treatment::Hidden, "the function has none"),
];

/// The table as a page of the book has it.
#[must_use]
pub fn pci_feature_markdown() -> alloc::string::String {
    features::markdown(PCI_FEATURE_TABLE, "the function")
}

/// How the features of a device are shown: decided once, when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciFeatures {
    device: u64,
    offer: u64,
}

impl PciFeatures {
    /// How a device with these facts is shown.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn new(facts: &Facts) -> Result<Self, FeatureError> {
        let device = facts.features;
        if device & 1 << 32 == 0 {
            return Err(FeatureError::LegacyDevice);
        }
        let has = |bit: u8| match treatment(bit) {
            Treatment::Passes | Treatment::Needed | Treatment::Taken => device & 1 << bit != 0,
            // It is the only one.
            Treatment::Ours => facts.can_suspend(),
            _ => false,
        };
        let offered = (0..64).filter(|bit| has(*bit));
        let offer = offered.fold(0, |offer, bit| offer | 1 << bit);
        Ok(Self { device, offer })
    }

    /// What the driver is offered.
    #[must_use]
    pub fn offer(&self) -> u64 {
        self.offer
    }

    /// What the device gets when the driver takes `accepted`.
    ///
    /// # Errors
    /// When that makes no sense.
    pub fn accept(&self, accepted: u64) -> Result<u64, FeatureError> {
        let extra = accepted & !self.offer;
        if extra != 0 {
            return Err(FeatureError::NotOffered { extra });
        }
        if accepted & 1 << 32 == 0 {
            return Err(FeatureError::LegacyDriver);
        }
        let of = |is: Treatment| {
            let bits = (0..64).filter(|bit| treatment(*bit) == is);
            bits.fold(0, |mask, bit| mask | 1 << bit)
        };
        Ok(accepted & !of(Treatment::Ours) | self.device & of(Treatment::Taken))
    }
}

fn treatment(bit: u8) -> Treatment {
    let row = PCI_FEATURE_TABLE.iter().find(|row| row.bit == bit);
    match row {
        Some(row) => row.treatment,
        None if (24..50).contains(&bit) => Treatment::Hidden,
        None => Treatment::Passes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdpa::{Raw, backend};
    use linkspan_mem::Iova;

    fn facts(features: u64, backend_features: u64) -> Facts {
        let raw = Raw {
            device_id: 1,
            features,
            queues: Some(3),
            queue_size_max: 256,
            iova: (Iova(0), Iova(u64::MAX)),
            backend_features,
            ..Raw::default()
        };
        Facts::check(raw).unwrap()
    }

    #[test]
    fn the_driver_has_all_of_the_type_and_its_control_queue() {
        let all = PciFeatures::new(&facts(u64::MAX, backend::WANTED)).unwrap();
        let hidden = [24, 25, 26, 27, 30, 31, 37, 38, 39, 41];
        for bit in 0..64 {
            let own = !(24..50).contains(&bit);
            let known = matches!(bit, 28 | 29 | 32..=36 | 40);
            assert_eq!(all.offer() & 1 << bit != 0, own || known, "bit {bit}");
            assert!(!hidden.contains(&bit) || all.offer() & 1 << bit == 0);
        }
        let device = all.accept(1 << 32 | 1 << 17 | 1 << 40).unwrap();
        // The ring is reset by us, and memory is reached through mappings.
        assert_eq!(device, 1 << 32 | 1 << 17 | 1 << 33);
    }

    #[test]
    fn one_ring_is_reset_only_where_others_say_where_they_are() {
        let none = PciFeatures::new(&facts(1 << 32, 0)).unwrap();
        assert_eq!(none.offer(), 1 << 32);
        let some = PciFeatures::new(&facts(1 << 32, backend::SUSPEND)).unwrap();
        assert_eq!(some.offer(), 1 << 32 | 1 << 40);
        assert_eq!(some.accept(1 << 32), Ok(1 << 32));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let legacy = PciFeatures::new(&facts(1 << 33, 0));
        assert_eq!(legacy, Err(FeatureError::LegacyDevice));
        let device = PciFeatures::new(&facts(1 << 32 | 1 << 33, 0)).unwrap();
        assert_eq!(device.accept(1 << 33), Err(FeatureError::LegacyDriver));
        let extra = 1 << 5;
        let refused = device.accept(1 << 32 | extra);
        assert_eq!(refused, Err(FeatureError::NotOffered { extra }));
    }
}
