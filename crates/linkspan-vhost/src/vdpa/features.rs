//! What a bridge from a vDPA device to vhost-user makes of each feature bit.
//!
//! One table says it. Bits that it does not name pass if they belong to the device
//! type, and are hidden if they belong to queues or transports: nobody knows yet
//! what those would ask of a bridge.

use alloc::format;
use alloc::string::String;

use thiserror::Error;

use super::{Facts, control_ring, device};

/// What a bridge does with a feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// The VMM sees it if the device has it, and the device gets it if the VMM takes it.
    Passes,
    /// The same, and without it nothing works.
    Needed,
    /// Neither end sees it.
    Hidden,
    /// The device gets it if it has it; the VMM does not see it.
    Device,
    /// As [`Passes`](Self::Passes), and the device gets it all the same if the other end
    /// does not take it.
    Taken,
    /// The bridge's own; the device does not get it.
    Ours,
    /// As [`Passes`](Self::Passes), where the bridge drives the control queue.
    Control,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureRow {
    /// The device type that it is about; `None`: all.
    pub device: Option<u32>,
    /// The bit.
    pub bit: u8,
    /// Its name.
    pub name: &'static str,
    /// What becomes of it.
    pub treatment: Treatment,
    /// Why.
    pub why: &'static str,
}

pub(super) const fn any(
    bit: u8,
    name: &'static str,
    treatment: Treatment,
    why: &'static str,
) -> FeatureRow {
    FeatureRow {
        device: None,
        bit,
        name,
        treatment,
        why,
    }
}

const fn net(bit: u8, name: &'static str, treatment: Treatment, why: &'static str) -> FeatureRow {
    FeatureRow {
        device: Some(device::NET),
        bit,
        name,
        treatment,
        why,
    }
}

/// The whole policy.
pub const FEATURE_TABLE: &[FeatureRow] = &[
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
        Treatment::Ours,
        "it is about vhost-user itself",
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
        Treatment::Device,
        "the device sees memory through mappings of the bridge, and the monitor is not asked for translations",
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
    any(37, "SR_IOV", Treatment::Hidden, "of the PCI transport"),
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
        Treatment::Passes,
        "the bridge stops one ring by a restart with the others",
    ),
    any(41, "ADMIN_VQ", Treatment::Hidden, "of the PCI transport"),
    net(
        2,
        "CTRL_GUEST_OFFLOADS",
        Treatment::Hidden,
        "its commands stay in the monitor",
    ),
    net(
        17,
        "CTRL_VQ",
        Treatment::Control,
        "the bridge drives the control queue in an address space of its own",
    ),
    net(
        18,
        "CTRL_RX",
        Treatment::Hidden,
        "its commands stay in the monitor",
    ),
    net(
        19,
        "CTRL_VLAN",
        Treatment::Hidden,
        "its commands stay in the monitor",
    ),
    net(
        20,
        "CTRL_RX_EXTRA",
        Treatment::Hidden,
        "its commands stay in the monitor",
    ),
    net(
        21,
        "GUEST_ANNOUNCE",
        Treatment::Hidden,
        "its commands stay in the monitor",
    ),
    net(
        22,
        "MQ",
        Treatment::Control,
        "VHOST_USER_SET_VRING_ENABLE becomes a command",
    ),
    net(
        23,
        "CTRL_MAC_ADDR",
        Treatment::Control,
        "the monitor's address becomes a command",
    ),
    net(
        52,
        "VQ_NOTF_COAL",
        Treatment::Hidden,
        "its commands stay in the monitor",
    ),
    net(
        53,
        "NOTF_COAL",
        Treatment::Hidden,
        "its commands stay in the monitor",
    ),
    net(
        57,
        "HASH_REPORT",
        Treatment::Hidden,
        "its commands stay in the monitor",
    ),
    net(
        60,
        "RSS",
        Treatment::Hidden,
        "its commands stay in the monitor",
    ),
    net(
        62,
        "STANDBY",
        Treatment::Hidden,
        "the monitor alone knows of the other device",
    ),
];

/// The table as a page of the book has it.
#[must_use]
pub fn feature_markdown() -> String {
    markdown(FEATURE_TABLE, "the bridge")
}

pub(super) fn markdown(rows: &[FeatureRow], who: &str) -> String {
    let mut text = format!("| device | bit | feature | {who} | because |\n|---|---|---|---|---|\n");
    for row in rows {
        let device = row.device.map_or("any", super::device_type);
        let does = match row.treatment {
            Treatment::Passes => "passes it",
            Treatment::Needed => "passes and needs it",
            Treatment::Hidden => "hides it",
            Treatment::Device => "gives it to the device alone",
            Treatment::Taken => "passes it, and gives it to the device in any case",
            Treatment::Ours => "adds it",
            Treatment::Control => "passes it if it drives the control queue",
        };
        text += &format!(
            "| {device} | {} | {} | {does} | {} |\n",
            row.bit, row.name, row.why
        );
    }
    text
}

/// `VIRTIO_NET_F_CTRL_VQ`.
const CTRL_VQ: u64 = 1 << 17;
/// `VIRTIO_NET_F_MQ`.
const MQ: u64 = 1 << 22;
/// `VIRTIO_NET_F_CTRL_MAC_ADDR`.
const CTRL_MAC_ADDR: u64 = 1 << 23;

/// Why features do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FeatureError {
    /// The device is a legacy device.
    #[error("the device does not offer VIRTIO_F_VERSION_1")]
    LegacyDevice,
    /// The driver is a legacy driver.
    #[error("the driver does not accept VIRTIO_F_VERSION_1")]
    LegacyDriver,
    /// Nobody offered this.
    #[error("features {extra:#x} were not offered")]
    NotOffered {
        /// Those.
        extra: u64,
    },
}

/// How a device is bridged: decided once, when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    device_id: u32,
    device: u64,
    /// Rings that the VMM has; the bridge has the others.
    data_rings: u16,
    /// Queue pairs of a network device.
    pairs: u16,
    control: bool,
}

/// `VIRTIO_F_RING_PACKED`.
const RING_PACKED: u64 = 1 << 34;

impl Bridge {
    /// How a device with these facts is bridged. `pairs` is what its configuration
    /// space says of queue pairs, for a network device.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn new(facts: &Facts, pairs: u16) -> Result<Self, FeatureError> {
        if facts.features & 1 << 32 == 0 {
            return Err(FeatureError::LegacyDevice);
        }
        let mut bridge = Self {
            device_id: facts.device_id,
            device: facts.features,
            data_rings: facts.queues,
            pairs: 1,
            control: false,
        };
        // Nothing but the device says where a packed ring is.
        if !facts.can_suspend() {
            bridge.device &= !RING_PACKED;
        }
        if facts.device_id == device::NET {
            let mq = facts.features & MQ != 0;
            let all = if mq { pairs.max(1) } else { 1 };
            // Never more than there are queues for.
            let all = all.min((facts.queues / 2).max(1));
            // The device gets MQ whenever it has it, so the queue is in one place.
            bridge.control = facts.features & CTRL_VQ != 0 && facts.is_alone(control_ring(mq, all));
            bridge.pairs = if bridge.control { all } else { 1 };
            bridge.data_rings = (2 * bridge.pairs).min(facts.queues);
        }
        Ok(bridge)
    }

    /// Rings that the VMM has.
    #[must_use]
    pub fn data_rings(&self) -> u16 {
        self.data_rings
    }

    /// Queue pairs of a network device that the VMM can have.
    #[must_use]
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// Whether the bridge drives the control queue of a network device.
    #[must_use]
    pub fn drives_control(&self) -> bool {
        self.control
    }

    /// What becomes of a bit.
    #[must_use]
    pub fn treatment(&self, bit: u8) -> Treatment {
        let row = FEATURE_TABLE
            .iter()
            .find(|row| row.bit == bit && row.device.is_none_or(|device| device == self.device_id));
        match row {
            Some(row) => row.treatment,
            None if (24..50).contains(&bit) => Treatment::Hidden,
            None => Treatment::Passes,
        }
    }

    /// What the VMM is offered; bit 30 is the session's own.
    #[must_use]
    pub fn offer(&self) -> u64 {
        self.device
            & self.mask(|treatment| match treatment {
                Treatment::Passes | Treatment::Needed => true,
                Treatment::Control => self.control,
                _ => false,
            })
    }

    /// What the device gets when the VMM takes `accepted`.
    ///
    /// # Errors
    /// When that makes no sense.
    pub fn accept(&self, accepted: u64) -> Result<u64, FeatureError> {
        let ours = self.mask(|treatment| treatment == Treatment::Ours);
        let accepted = accepted & !ours;
        let extra = accepted & !self.offer();
        if extra != 0 {
            return Err(FeatureError::NotOffered { extra });
        }
        if accepted & 1 << 32 == 0 {
            return Err(FeatureError::LegacyDriver);
        }
        let mut features = accepted | self.device & self.mask(|it| it == Treatment::Device);
        if self.control {
            features |= self.device & (CTRL_VQ | MQ | CTRL_MAC_ADDR);
        }
        Ok(features)
    }

    /// The control queue that the bridge drives with these features of the device.
    #[must_use]
    pub fn control_ring(&self, features: u64) -> Option<u16> {
        self.control
            .then(|| control_ring(features & MQ != 0, self.pairs))
    }

    /// Whether several pairs are in use with these features.
    #[must_use]
    pub fn has_pairs(&self, features: u64) -> bool {
        self.control && features & MQ != 0
    }

    /// Whether the address of a network device can be set by a command.
    #[must_use]
    pub fn sets_mac(&self, features: u64) -> bool {
        self.control && features & CTRL_MAC_ADDR != 0
    }

    fn mask(&self, is: impl Fn(Treatment) -> bool) -> u64 {
        (0..64)
            .filter(|bit| is(self.treatment(*bit)))
            .fold(0, |mask, bit| mask | 1 << bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdpa::{Raw, backend};
    use alloc::vec;
    use alloc::vec::Vec;
    use linkspan_mem::Iova;

    fn facts(device_id: u32, features: u64, queues: u32, groups: Vec<Option<u32>>) -> Facts {
        Facts::check(Raw {
            device_id,
            features,
            queues: Some(queues),
            queue_size_max: 256,
            iova: (Iova(0), Iova(u64::MAX)),
            groups: 2,
            address_spaces: 2,
            backend_features: backend::WANTED,
            ring_groups: groups,
            ..Raw::default()
        })
        .unwrap()
    }

    #[test]
    fn no_bit_is_there_twice_and_rows_are_in_order() {
        let keys: Vec<_> = FEATURE_TABLE
            .iter()
            .map(|row| (row.device, row.bit))
            .collect();
        assert!(keys.is_sorted());
        for pair in keys.windows(2) {
            assert_ne!(pair[0], pair[1]);
        }
    }

    #[test]
    fn every_bit_of_a_block_device_is_accounted_for() {
        let bridge = Bridge::new(&facts(device::BLOCK, u64::MAX, 4, vec![]), 0).unwrap();
        assert_eq!(bridge.data_rings(), 4);
        let offer = bridge.offer();
        // Those of the device type, and of the rings what both ends have.
        let own = 0x00ff_ffff | !0 << 50;
        let rings = 0b1_0001_1101_0011 << 28;
        assert_eq!(offer, own | rings, "{offer:#x}");
        // vdpa_sim requires it, and the VMM need not know.
        let accepted = bridge.accept(1 << 32 | 1 << 30 | 1 << 9).unwrap();
        assert_eq!(accepted, 1 << 33 | 1 << 32 | 1 << 9);
    }

    #[test]
    fn what_was_not_offered_is_refused_by_name() {
        let bridge = Bridge::new(&facts(device::BLOCK, 1 << 32, 1, vec![]), 0).unwrap();
        for (accepted, error) in [
            (
                1 << 32 | 1 << 26,
                FeatureError::NotOffered { extra: 1 << 26 },
            ),
            (
                1 << 32 | 1 << 34,
                FeatureError::NotOffered { extra: 1 << 34 },
            ),
            (1 << 30, FeatureError::LegacyDriver),
        ] {
            assert_eq!(bridge.accept(accepted), Err(error));
        }
        let legacy = Bridge::new(&facts(device::BLOCK, 1 << 27, 1, vec![]), 0);
        assert_eq!(legacy, Err(FeatureError::LegacyDevice));
    }

    #[test]
    fn a_control_queue_is_driven_where_it_is_alone() {
        let all = 1 << 32 | CTRL_VQ | MQ | CTRL_MAC_ADDR | 1 << 18;
        let groups = vec![Some(0), Some(0), Some(0), Some(0), Some(1)];
        let bridge = Bridge::new(&facts(device::NET, all, 5, groups), 2).unwrap();
        assert_eq!((bridge.data_rings(), bridge.pairs()), (4, 2));
        // Also if the VMM wants one pair, the device has its queue behind both.
        let features = bridge.accept(1 << 32).unwrap();
        assert_eq!(bridge.control_ring(features), Some(4));
        let all = all & !MQ;
        // Like vdpa_sim_net.
        let groups = vec![Some(0), Some(0), Some(1)];
        let bridge = Bridge::new(&facts(device::NET, all, 3, groups), 1).unwrap();
        assert_eq!((bridge.data_rings(), bridge.pairs()), (2, 1));
        assert_eq!(bridge.offer(), 1 << 32 | CTRL_VQ | CTRL_MAC_ADDR);
        let features = bridge.accept(1 << 32).unwrap();
        assert_eq!(features, 1 << 32 | CTRL_VQ | CTRL_MAC_ADDR);
        assert_eq!(bridge.control_ring(features), Some(2));
        assert!(bridge.sets_mac(features) && !bridge.has_pairs(features));
    }

    #[test]
    fn without_an_address_space_of_its_own_it_is_masked_with_mq() {
        let all = 1 << 32 | CTRL_VQ | MQ | CTRL_MAC_ADDR;
        let bridge = Bridge::new(&facts(device::NET, all, 3, vec![Some(0); 3]), 1).unwrap();
        assert!(!bridge.drives_control());
        assert_eq!(bridge.offer(), 1 << 32);
        assert_eq!(bridge.accept(1 << 32), Ok(1 << 32));
        assert_eq!(bridge.control_ring(1 << 32), None);
    }
}
