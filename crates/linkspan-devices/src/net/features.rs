//! Feature bits of the network device and what each of them needs (virtio 1.3
//! 5.1.3, 5.1.3.1).

use bitflags::bitflags;
use linkspan_virtio::Features;
use virtio_bindings::virtio_net as bits;

const fn feature(bit: u32) -> Features {
    Features::from_bits_retain(1 << bit)
}

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $($(#[$doc])* pub const $name: Features = feature(bits::$name);)*
    };
}

features! {
    /// The device completes checksums of what the driver sends.
    VIRTIO_NET_F_CSUM,
    /// The driver takes frames whose checksum is not complete.
    VIRTIO_NET_F_GUEST_CSUM,
    /// The driver may switch the `GUEST_` offloads while it runs.
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    /// `mtu` is there.
    VIRTIO_NET_F_MTU,
    /// `mac` is valid.
    VIRTIO_NET_F_MAC,
    /// The driver takes large TCP segments over IPv4.
    VIRTIO_NET_F_GUEST_TSO4,
    /// The same over IPv6.
    VIRTIO_NET_F_GUEST_TSO6,
    /// The driver takes large TCP segments that carry congestion notification.
    VIRTIO_NET_F_GUEST_ECN,
    /// The driver takes large UDP datagrams that are to be fragmented.
    VIRTIO_NET_F_GUEST_UFO,
    /// The driver takes runs of UDP datagrams over IPv4.
    VIRTIO_NET_F_GUEST_USO4,
    /// The same over IPv6.
    VIRTIO_NET_F_GUEST_USO6,
    /// The device takes large TCP segments over IPv4.
    VIRTIO_NET_F_HOST_TSO4,
    /// The same over IPv6.
    VIRTIO_NET_F_HOST_TSO6,
    /// The device takes large TCP segments that carry congestion notification.
    VIRTIO_NET_F_HOST_ECN,
    /// The device takes large UDP datagrams that are to be fragmented.
    VIRTIO_NET_F_HOST_UFO,
    /// The device takes runs of UDP datagrams.
    VIRTIO_NET_F_HOST_USO,
    /// A frame may take several receive buffers.
    VIRTIO_NET_F_MRG_RXBUF,
    /// `status` is there.
    VIRTIO_NET_F_STATUS,
    /// There is a control queue.
    VIRTIO_NET_F_CTRL_VQ,
    /// Receive modes and tables of MAC addresses.
    VIRTIO_NET_F_CTRL_RX,
    /// A table of VLANs.
    VIRTIO_NET_F_CTRL_VLAN,
    /// More receive modes.
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    /// The driver announces itself when asked.
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    /// Several queue pairs with automatic receive steering.
    VIRTIO_NET_F_MQ,
    /// The MAC address can be set through the control queue.
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    /// The device says the hash of each frame.
    VIRTIO_NET_F_HASH_REPORT,
    /// Several queue pairs with receive steering as the driver configures it.
    VIRTIO_NET_F_RSS,
    /// `speed` and `duplex` are there.
    VIRTIO_NET_F_SPEED_DUPLEX,
}

/// A feature, and those of which it needs at least one.
const REQUIREMENTS: &[(Features, Features)] = &[
    (VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_CSUM),
    (VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_CSUM),
    (
        VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_GUEST_TSO4.union(VIRTIO_NET_F_GUEST_TSO6),
    ),
    (VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_CSUM),
    (VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_CSUM),
    (VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_GUEST_CSUM),
    (VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_CSUM),
    (VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_CSUM),
    (
        VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_TSO4.union(VIRTIO_NET_F_HOST_TSO6),
    ),
    (VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_CSUM),
    (VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_CSUM),
    (VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ),
    (VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ),
    (VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_CTRL_VQ),
    (VIRTIO_NET_F_MQ, VIRTIO_NET_F_CTRL_VQ),
    (VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ),
    (VIRTIO_NET_F_RSS, VIRTIO_NET_F_CTRL_VQ),
];

/// Features that are of no use without the control queue but that a driver only
/// SHOULD not accept without it (5.1.4.2), or that the list of 5.1.3.1 lacks: they
/// are dropped, the driver is not refused. `VIRTIO_NET_F_HASH_REPORT` stays: no hash
/// is ever reported then, but the header has room for one.
const DROPPED_WITHOUT_CTRL_VQ: Features =
    VIRTIO_NET_F_CTRL_RX_EXTRA.union(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);

/// A feature that was accepted without what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the driver accepted feature bit {bit}, which needs one of the bits {needs:#x}")]
pub struct MissingFeature {
    /// Number of the bit that was accepted.
    pub bit: u32,
    /// The bits of which at least one is needed.
    pub needs: u64,
}

/// The features that count when a driver accepted these (5.1.3.1). Where the
/// control queue does not reach the device (`control_queue` is false), whoever has
/// it answers for what needs it: QEMU keeps `VIRTIO_NET_F_CTRL_VQ` to itself and
/// passes on `VIRTIO_NET_F_MQ`.
///
/// # Errors
/// When a feature lacks what it needs; the device refuses the whole set then.
pub fn settle(accepted: Features, control_queue: bool) -> Result<Features, MissingFeature> {
    let without = |needs: Features| !accepted.intersects(needs);
    for &(feature, needs) in REQUIREMENTS {
        let elsewhere = needs == VIRTIO_NET_F_CTRL_VQ && !control_queue;
        if accepted.contains(feature) && without(needs) && !elsewhere {
            return Err(MissingFeature {
                bit: feature.bits().trailing_zeros(),
                needs: needs.bits(),
            });
        }
    }
    Ok(if without(VIRTIO_NET_F_CTRL_VQ) {
        accepted - DROPPED_WITHOUT_CTRL_VQ
    } else {
        accepted
    })
}

bitflags! {
    /// Offloads that one side of a link takes from the other.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Offloads: u8 {
        /// Checksums that are not complete.
        const CHECKSUM = 1;
        /// Large TCP segments over IPv4.
        const TSO4 = 1 << 1;
        /// Large TCP segments over IPv6.
        const TSO6 = 1 << 2;
        /// Large TCP segments with congestion notification.
        const ECN = 1 << 3;
        /// UDP datagrams to be fragmented.
        const UFO = 1 << 4;
        /// Runs of UDP datagrams over IPv4.
        const USO4 = 1 << 5;
        /// Runs of UDP datagrams over IPv6.
        const USO6 = 1 << 6;
        /// The other side may say that it has checked a checksum.
        const VALIDATED = 1 << 7;
    }
}

/// Which features let a driver send what.
const TO_DEVICE: &[(Features, Offloads)] = &[
    (VIRTIO_NET_F_CSUM, Offloads::CHECKSUM),
    (VIRTIO_NET_F_HOST_TSO4, Offloads::TSO4),
    (VIRTIO_NET_F_HOST_TSO6, Offloads::TSO6),
    (VIRTIO_NET_F_HOST_ECN, Offloads::ECN),
    (VIRTIO_NET_F_HOST_UFO, Offloads::UFO),
    (VIRTIO_NET_F_HOST_USO, Offloads::USO4.union(Offloads::USO6)),
];

/// Which features let a device deliver what: those that
/// `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET` switches (5.1.6.5.7).
const TO_DRIVER: &[(Features, Offloads)] = &[
    (
        VIRTIO_NET_F_GUEST_CSUM,
        Offloads::CHECKSUM.union(Offloads::VALIDATED),
    ),
    (VIRTIO_NET_F_GUEST_TSO4, Offloads::TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, Offloads::TSO6),
    (VIRTIO_NET_F_GUEST_ECN, Offloads::ECN),
    (VIRTIO_NET_F_GUEST_UFO, Offloads::UFO),
    (VIRTIO_NET_F_GUEST_USO4, Offloads::USO4),
    (VIRTIO_NET_F_GUEST_USO6, Offloads::USO6),
];

impl Offloads {
    /// What a driver with these features may ask of the device.
    pub fn to_device(accepted: Features) -> Self {
        Self::of(TO_DEVICE, accepted)
    }

    /// What a device may ask of a driver with these features.
    pub fn to_driver(accepted: Features) -> Self {
        Self::of(TO_DRIVER, accepted)
    }

    /// The features by which a device takes these from drivers.
    pub(super) fn offered_to_device(self) -> Features {
        self.features(TO_DEVICE)
    }

    /// The features by which a device takes drivers that take these.
    pub(super) fn offered_to_driver(self) -> Features {
        self.features(TO_DRIVER)
    }

    fn features(self, table: &[(Features, Self)]) -> Features {
        // That a checksum was checked goes without a feature of its own.
        let rows = table
            .iter()
            .filter(|(_, offload)| self.contains(*offload - Self::VALIDATED));
        rows.fold(Features::empty(), |all, (bit, _)| all | *bit)
    }

    fn of(table: &[(Features, Self)], accepted: Features) -> Self {
        let rows = table.iter().filter(|(bit, _)| accepted.contains(*bit));
        rows.fold(Self::empty(), |all, (_, offload)| all | *offload)
    }
}
