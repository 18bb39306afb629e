//! Names of device types and features, as the specification has them.

/// The name of a virtio device type (virtio 1.3, 5).
#[must_use]
pub fn device_type(id: u32) -> &'static str {
    match id {
        1 => "network",
        2 => "block",
        3 => "console",
        4 => "entropy",
        5 => "memory balloon",
        8 => "SCSI host",
        9 => "9P transport",
        16 => "GPU",
        18 => "input",
        19 => "socket",
        20 => "crypto",
        23 => "IOMMU",
        24 => "memory",
        25 => "sound",
        26 => "file system",
        27 => "persistent memory",
        28 => "RPMB",
        32 => "SCMI",
        34 => "I2C",
        36 => "CAN",
        39 => "parameter server",
        40 => "audio policy",
        41 => "GPIO",
        42 => "RDMA",
        _ => "unknown",
    }
}

const TRANSPORT: &[(u8, &str)] = &[
    (24, "NOTIFY_ON_EMPTY"),
    (26, "LOG_ALL"),
    (27, "ANY_LAYOUT"),
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (30, "PROTOCOL_FEATURES"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (37, "SR_IOV"),
    (38, "NOTIFICATION_DATA"),
    (39, "NOTIF_CONFIG_DATA"),
    (40, "RING_RESET"),
    (41, "ADMIN_VQ"),
];

const NET: &[(u8, &str)] = &[
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (2, "CTRL_GUEST_OFFLOADS"),
    (3, "MTU"),
    (5, "MAC"),
    (6, "GSO"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (10, "GUEST_UFO"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (14, "HOST_UFO"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (18, "CTRL_RX"),
    (19, "CTRL_VLAN"),
    (20, "CTRL_RX_EXTRA"),
    (21, "GUEST_ANNOUNCE"),
    (22, "MQ"),
    (23, "CTRL_MAC_ADDR"),
    (51, "DEVICE_STATS"),
    (52, "VQ_NOTF_COAL"),
    (53, "NOTF_COAL"),
    (54, "GUEST_USO4"),
    (55, "GUEST_USO6"),
    (56, "HOST_USO"),
    (57, "HASH_REPORT"),
    (59, "GUEST_HDRLEN"),
    (60, "RSS"),
    (61, "RSC_EXT"),
    (62, "STANDBY"),
    (63, "SPEED_DUPLEX"),
];

const BLOCK: &[(u8, &str)] = &[
    (0, "BARRIER"),
    (1, "SIZE_MAX"),
    (2, "SEG_MAX"),
    (4, "GEOMETRY"),
    (5, "RO"),
    (6, "BLK_SIZE"),
    (7, "SCSI"),
    (9, "FLUSH"),
    (10, "TOPOLOGY"),
    (11, "CONFIG_WCE"),
    (12, "MQ"),
    (13, "DISCARD"),
    (14, "WRITE_ZEROES"),
    (15, "LIFETIME"),
    (16, "SECURE_ERASE"),
    (17, "ZONED"),
];

/// The name of a feature bit of a device of this type, if it has one.
#[must_use]
pub fn feature_name(device_id: u32, bit: u8) -> Option<&'static str> {
    let own: &[(u8, &str)] = match device_id {
        super::device::NET => NET,
        super::device::BLOCK => BLOCK,
        _ => &[],
    };
    let known = TRANSPORT.iter().chain(own).find(|(known, _)| *known == bit);
    known.map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_means_what_its_device_type_says() {
        assert_eq!(feature_name(1, 22), Some("MQ"));
        assert_eq!(feature_name(2, 12), Some("MQ"));
        assert_eq!(feature_name(4, 12), None);
        assert_eq!(feature_name(4, 33), Some("ACCESS_PLATFORM"));
        assert_eq!((device_type(4), device_type(4711)), ("entropy", "unknown"));
    }
}
