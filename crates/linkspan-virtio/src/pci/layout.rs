//! Where the parts of a function are, and the capabilities that say so (virtio 1.3,
//! 4.1.4).
//!
//! Registers, interrupts and doorbells have a BAR each, so that each doorbell can be
//! mapped from the file of a device in which it has the same place.

use super::QUEUES_MAX;

/// The BAR of common configuration, ISR status and device configuration.
pub const BAR_REGISTERS: u8 = 0;
/// The BAR of the MSI-X table and its pending bits.
pub const BAR_INTERRUPTS: u8 = 1;
/// The BAR in which each queue has a page that is written to kick it.
pub const BAR_DOORBELLS: u8 = 2;

/// Bytes from one doorbell to the next: `notify_off_multiplier`.
pub const DOORBELL_LEN: u32 = 0x1000;

/// Where registers are in their BAR, a page each.
pub(super) const COMMON_AT: u64 = 0;
pub(super) const ISR_AT: u64 = 0x1000;
pub(super) const CONFIG_AT: u64 = 0x2000;
const REGISTERS_LEN: u64 = 0x4000;

/// Bytes of common configuration, with all that virtio 1.3 has.
pub(super) const COMMON_LEN: u32 = 0x40;
/// Bytes of the ISR status.
pub(super) const ISR_LEN: u32 = 4;
/// Bytes of device configuration that there is room for.
pub(super) const CONFIG_LEN: u32 = 0x1000;

/// Bytes of an entry of the MSI-X table.
const ENTRY_LEN: u64 = 16;

/// `cfg_type` of a capability.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;
const PCI: u8 = 5;

/// Bytes of the capability through which BARs are reached from configuration space,
/// with its two of identifier and link.
pub const WINDOW_LEN: usize = 20;

/// Where the parts of a function with so many queues are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    queues: u16,
    config_len: u32,
}

impl Layout {
    /// Of a device with `queues` queues, at least one, and `config_len` bytes of
    /// configuration; more than there is room for are left out.
    #[must_use]
    pub fn new(queues: u16, config_len: u32) -> Self {
        Self {
            queues: queues.clamp(1, QUEUES_MAX),
            config_len: config_len.min(CONFIG_LEN),
        }
    }

    /// Interrupts: one for each queue, and one for configuration.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.queues + 1
    }

    /// Bytes of a BAR, a power of two; 0: there is none.
    #[must_use]
    pub fn bar_len(&self, bar: u8) -> u64 {
        match bar {
            BAR_REGISTERS => REGISTERS_LEN,
            BAR_INTERRUPTS => (self.pending_at() + 0x1000).next_power_of_two(),
            BAR_DOORBELLS => {
                let pages = u64::from(self.queues) * u64::from(DOORBELL_LEN);
                pages.next_power_of_two()
            }
            _ => 0,
        }
    }

    /// Where the pending bits are behind the MSI-X table, which begins the BAR.
    #[must_use]
    pub fn pending_at(&self) -> u64 {
        (u64::from(self.vectors()) * ENTRY_LEN).next_multiple_of(0x1000)
    }

    /// The capabilities of virtio, each without the two bytes of identifier and link
    /// that begin it. The last one is that of [`Function::window`](super::Function::window).
    /// A device without configuration has none for it, as drivers take none that leads to
    /// no bytes.
    pub fn capabilities(&self) -> impl Iterator<Item = Capability> {
        let doorbells = u32::from(self.queues) * DOORBELL_LEN;
        let at = |offset: u64| u32::try_from(offset).unwrap_or(0);
        let (common, isr, config) = (at(COMMON_AT), at(ISR_AT), at(CONFIG_AT));
        let len = self.config_len;
        [
            Capability::new(COMMON, BAR_REGISTERS, common, COMMON_LEN, None),
            Capability::new(NOTIFY, BAR_DOORBELLS, 0, doorbells, Some(DOORBELL_LEN)),
            Capability::new(ISR, BAR_REGISTERS, isr, ISR_LEN, None),
            Capability::new(DEVICE, BAR_REGISTERS, config, len, None),
            Capability::new(PCI, 0, 0, 0, Some(0)),
        ]
        .into_iter()
        .filter(move |one| one.bytes[1] != DEVICE || len > 0)
    }
}

/// A capability of virtio: `struct virtio_pci_cap` from its third byte on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    bytes: [u8; WINDOW_LEN - 2],
    len: usize,
}

impl Capability {
    fn new(kind: u8, bar: u8, offset: u32, length: u32, more: Option<u32>) -> Self {
        let mut bytes = [0; WINDOW_LEN - 2];
        let len = if more.is_some() { 18 } else { 14 };
        bytes[0] = if more.is_some() { 20 } else { 16 };
        bytes[1] = kind;
        bytes[2] = bar;
        bytes[6..10].copy_from_slice(&offset.to_le_bytes());
        bytes[10..14].copy_from_slice(&length.to_le_bytes());
        bytes[14..].copy_from_slice(&more.unwrap_or(0).to_le_bytes());
        Self { bytes, len }
    }

    /// Its bytes behind identifier and link.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn bars_have_room_for_everything() {
        for (queues, lens) in [
            (0, [0x4000, 0x2000, 0x1000]),
            (1, [0x4000, 0x2000, 0x1000]),
            (3, [0x4000, 0x2000, 0x4000]),
            (255, [0x4000, 0x2000, 0x10_0000]),
            (256, [0x4000, 0x4000, 0x10_0000]),
            (QUEUES_MAX, [0x4000, 0x8000, 0x40_0000]),
            (u16::MAX, [0x4000, 0x8000, 0x40_0000]),
        ] {
            let layout = Layout::new(queues, 60);
            assert_eq!([0, 1, 2].map(|bar| layout.bar_len(bar)), lens);
            assert_eq!(layout.bar_len(3), 0);
            let table = u64::from(layout.vectors()) * ENTRY_LEN;
            let pending = u64::from(layout.vectors()).div_ceil(64) * 8;
            assert!(table <= layout.pending_at());
            assert!(layout.pending_at() + pending <= layout.bar_len(BAR_INTERRUPTS));
        }
    }

    /// Virtio 1.3, 4.1.4: each lies in its BAR, and says its length.
    #[test]
    fn capabilities_say_where_parts_are() {
        let layout = Layout::new(2, 60);
        for (capability, kind) in layout.capabilities().zip(1..) {
            let bytes = capability.bytes();
            assert_eq!(usize::from(bytes[0]), bytes.len() + 2);
            assert_eq!(bytes[1], kind);
            let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let (offset, length) = (number(6), number(10));
            assert!(u64::from(offset) + u64::from(length) <= layout.bar_len(bytes[2]));
            match kind {
                2 => assert_eq!((length, number(14)), (0x2000, DOORBELL_LEN)),
                4 => assert_eq!(length, 60),
                _ => {}
            }
        }
    }

    /// Linux takes no capability that leads to no bytes ("bad capability len 0").
    #[test]
    fn a_device_without_configuration_has_no_capability_for_it() {
        let lens = |config_len| {
            let number = |at: &[u8]| u32::from_le_bytes(at.try_into().unwrap());
            let layout = Layout::new(2, config_len);
            let all = layout.capabilities();
            all.map(|one| (one.bytes()[1], number(&one.bytes()[10..14])))
                .collect::<Vec<_>>()
        };
        // What is written of the last one says how long it is.
        assert_eq!(lens(0), [(1, 0x40), (2, 0x2000), (3, 4), (5, 0)]);
        assert_eq!(lens(1)[3], (4, 1));
    }
}
