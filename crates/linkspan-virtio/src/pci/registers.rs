//! The registers of common configuration (virtio 1.3, 4.1.4.3), in one table.

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    QueueCount,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    /// Descriptor, driver and device area.
    QueueArea(usize),
    QueueNotifyData,
    QueueReset,
    AdminQueueIndex,
    AdminQueueCount,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) at: u64,
    pub(super) len: usize,
    pub(super) name: &'static str,
    pub(super) register: Register,
    /// Whether a driver writes it.
    pub(super) written: bool,
}

const fn row(at: u64, len: usize, name: &'static str, register: Register, written: bool) -> Row {
    Row {
        at,
        len,
        name,
        register,
        written,
    }
}

/// All registers, without a gap.
pub(super) const TABLE: [Row; 20] = [
    row(
        0,
        4,
        "device_feature_select",
        Register::DeviceFeatureSelect,
        true,
    ),
    row(4, 4, "device_feature", Register::DeviceFeature, false),
    row(
        8,
        4,
        "driver_feature_select",
        Register::DriverFeatureSelect,
        true,
    ),
    row(12, 4, "driver_feature", Register::DriverFeature, true),
    row(16, 2, "config_msix_vector", Register::ConfigVector, true),
    row(18, 2, "num_queues", Register::QueueCount, false),
    row(20, 1, "device_status", Register::Status, true),
    row(21, 1, "config_generation", Register::Generation, false),
    row(22, 2, "queue_select", Register::QueueSelect, true),
    row(24, 2, "queue_size", Register::QueueSize, true),
    row(26, 2, "queue_msix_vector", Register::QueueVector, true),
    row(28, 2, "queue_enable", Register::QueueEnable, true),
    row(
        30,
        2,
        "queue_notify_off",
        Register::QueueNotifyOffset,
        false,
    ),
    row(32, 8, "queue_desc", Register::QueueArea(0), true),
    row(40, 8, "queue_driver", Register::QueueArea(1), true),
    row(48, 8, "queue_device", Register::QueueArea(2), true),
    row(
        56,
        2,
        "queue_notif_config_data",
        Register::QueueNotifyData,
        false,
    ),
    row(58, 2, "queue_reset", Register::QueueReset, true),
    row(60, 2, "admin_queue_index", Register::AdminQueueIndex, false),
    row(62, 2, "admin_queue_num", Register::AdminQueueCount, false),
];

/// The register that has this byte.
pub(super) fn find(offset: u64) -> Option<&'static Row> {
    TABLE
        .iter()
        .find(|row| offset >= row.at && offset - row.at < row.len as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::layout::COMMON_LEN;

    #[test]
    fn registers_follow_each_other() {
        let mut at = 0;
        for row in &TABLE {
            assert_eq!(row.at, at, "{}", row.name);
            assert!(row.at.is_multiple_of(row.len as u64));
            at += row.len as u64;
        }
        assert_eq!(at, u64::from(COMMON_LEN));
        assert!(find(at).is_none() && find(at - 1).is_some());
    }
}
