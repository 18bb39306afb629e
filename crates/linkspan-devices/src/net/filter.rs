//! Which frames a driver wants to receive (virtio 1.3 5.1.6.5.1 to 5.1.6.5.3).

use bitflags::bitflags;

use super::mac::Mac;
use super::vlan::{VlanSet, vlan_tag};

/// Entries of a table of MAC addresses, unicast and multicast together, as QEMU
/// has it. With more the driver gets every frame of that kind.
pub const MAC_TABLE_MAX: usize = 64;

bitflags! {
    /// Receive modes: `VIRTIO_NET_CTRL_RX_*`, in the order of their commands.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ReceiveModes: u8 {
        /// Everything is received.
        const PROMISC = 1;
        /// All multicast frames are.
        const ALLMULTI = 1 << 1;
        /// All unicast frames are.
        const ALLUNI = 1 << 2;
        /// No multicast frame is.
        const NOMULTI = 1 << 3;
        /// No unicast frame is.
        const NOUNI = 1 << 4;
        /// No broadcast frame is.
        const NOBCAST = 1 << 5;
    }
}

/// Why a frame is not for this driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Its VLAN is not in the table.
    Vlan,
    /// Unicast to somebody else, or not wanted.
    Unicast,
    /// Multicast of a group that is not wanted.
    Multicast,
    /// Broadcast is not wanted.
    Broadcast,
}

/// What a driver wants to receive. At first that is everything, as QEMU has it:
/// drivers without `VIRTIO_NET_F_CTRL_RX` could not ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveFilter {
    /// The address of the device.
    pub(super) mac: Mac,
    pub(super) modes: ReceiveModes,
    /// Whether VLANs are filtered.
    pub(super) vlan_filter: bool,
    pub(super) vlans: VlanSet,
    pub(super) unicast: MacTable,
    pub(super) multicast: MacTable,
}

/// Addresses of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MacTable {
    entries: [u64; MAC_TABLE_MAX],
    len: usize,
    /// One bit for each entry, by its hash: most strangers are told by it.
    seen: u64,
    /// There were too many: every address is in it.
    pub(super) all: bool,
}

impl MacTable {
    const EMPTY: Self = Self {
        entries: [0; MAC_TABLE_MAX],
        len: 0,
        seen: 0,
        all: false,
    };

    /// A table of these addresses; of all if there are more than `room`.
    pub(super) fn new(macs: impl ExactSizeIterator<Item = Mac>, room: usize) -> Self {
        let mut table = Self::EMPTY;
        if macs.len() > room.min(MAC_TABLE_MAX) {
            table.all = true;
            return table;
        }
        for (entry, mac) in table.entries.iter_mut().zip(macs) {
            *entry = mac.bits();
            table.seen |= bit(mac);
            table.len += 1;
        }
        table
    }

    /// A table of every address.
    pub(super) fn of_all() -> Self {
        Self {
            all: true,
            ..Self::EMPTY
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn macs(&self) -> impl Iterator<Item = Mac> {
        self.entries[..self.len].iter().map(|bits| {
            let [_, _, mac @ ..] = bits.to_be_bytes();
            Mac(mac)
        })
    }

    #[inline]
    fn contains(&self, mac: Mac) -> bool {
        self.all || self.seen & bit(mac) != 0 && self.entries[..self.len].contains(&mac.bits())
    }
}

/// A bit that an address is likely to share with few.
#[inline]
fn bit(mac: Mac) -> u64 {
    1 << (mac.bits().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58)
}

impl ReceiveFilter {
    /// Everything is let through. VLANs are filtered once the driver could say
    /// which it wants (`VIRTIO_NET_F_CTRL_VLAN`).
    pub fn new(mac: Mac, vlan_filter: bool) -> Self {
        Self {
            mac,
            modes: ReceiveModes::PROMISC,
            vlan_filter,
            vlans: VlanSet::NONE,
            unicast: MacTable::EMPTY,
            multicast: MacTable::EMPTY,
        }
    }

    /// Whether a frame that begins with `head` is for this driver; 18 bytes are
    /// enough.
    ///
    /// # Errors
    /// When it is not.
    #[inline]
    pub fn check(&self, head: &[u8]) -> Result<(), Rejected> {
        if self.modes.contains(ReceiveModes::PROMISC) {
            return Ok(());
        }
        if self.vlan_filter && vlan_tag(head).is_some_and(|vlan| !self.vlans.contains(vlan)) {
            return Err(Rejected::Vlan);
        }
        let mac = Mac::destination(head);
        let (wanted, rejected) = if !mac.is_multicast() {
            let any = self.modes.contains(ReceiveModes::ALLUNI);
            let none = self.modes.contains(ReceiveModes::NOUNI);
            let listed = any || mac == self.mac || self.unicast.contains(mac);
            (!none && listed, Rejected::Unicast)
        } else if mac == Mac::BROADCAST {
            let none = self.modes.contains(ReceiveModes::NOBCAST);
            (!none, Rejected::Broadcast)
        } else {
            let any = self.modes.contains(ReceiveModes::ALLMULTI);
            let none = self.modes.contains(ReceiveModes::NOMULTI);
            let listed = any || self.multicast.contains(mac);
            (!none && listed, Rejected::Multicast)
        };
        if wanted { Ok(()) } else { Err(rejected) }
    }
}
