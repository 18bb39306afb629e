//! The network device (virtio 1.3 5.1): what it offers, its control queue, what
//! it makes of frames, and its driver's side. Where frames come from and go to is
//! the caller's.

mod checksum;
mod config;
pub mod control;
pub mod driver;
pub mod features;
mod filter;
mod flow;
pub mod frame;
pub mod header;
mod mac;
pub mod offload;
mod packet;
pub mod pcapng;
mod queue;
mod segment;
pub mod switch;
mod vlan;

use linkspan_virtio::Features;

pub use checksum::Sum;
use config::Config;
pub use config::{CONFIG_LEN, Duplex, Live, NetInfo, Speed};
use features::{
    MissingFeature, Offloads, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_RSS, VIRTIO_NET_F_SPEED_DUPLEX,
    VIRTIO_NET_F_STATUS,
};
pub use filter::{MAC_TABLE_MAX, ReceiveFilter, ReceiveModes, Rejected};
pub use flow::{HASH_KEY_MAX, HashReport, HashTypes, Toeplitz, flow_hash, steer};
pub use mac::Mac;
pub use packet::{ETHERNET_LEN, Network, Packet, VLAN_LEN};
pub use queue::{
    Body, Filled, Frame, FrameHead, HEAD_LEN, MERGE_MAX, ReceiveQueue, Transmitted, take_plain,
    take_transmit,
};
pub use segment::{
    SEGMENT_HEADERS_MAX, SEGMENTS_MAX, Segment, SegmentError, Segmentation, Segments,
};
pub use vlan::{VLANS, VlanSet, vlan_tag};

/// Queue pairs at most (5.1.4.1).
pub const PAIRS_MAX: u16 = 0x8000;

/// Entries of an indirection table for receive-side scaling at most: as many as a
/// device must have at least (5.1.4.1).
pub const RSS_TABLE_MAX: usize = 128;

/// What a network device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// Its address: unicast.
    pub mac: Mac,
    /// Bytes of a packet at most, without Ethernet header: at least 68.
    pub mtu: u16,
    /// Queue pairs: 1 to 32768.
    pub pairs: u16,
    /// Entries of each queue at most, at least one.
    pub queue_size: u16,
    /// What it says of its link.
    pub speed: Speed,
    /// What drivers may leave to the device.
    pub to_device: Offloads,
    /// What the device may leave to drivers.
    pub to_driver: Offloads,
    /// Whether the control queue reaches the device. Over vhost-user it mostly
    /// does not: QEMU keeps it to itself, and answers for queue pairs and
    /// announcements, while nothing else that needs the queue is offered.
    pub control_queue: bool,
}

/// Everything but fragmentation of datagrams, which no driver does any more and
/// which is not done in software here.
pub const OFFLOADS: Offloads = Offloads::all().difference(Offloads::UFO);

/// Options that make no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The address is one of a group, or none.
    #[error("{mac} cannot be the address of a device")]
    Mac {
        /// What was asked for.
        mac: Mac,
    },
    /// IPv4 needs 68 bytes.
    #[error("an MTU of {mtu} bytes is below 68")]
    Mtu {
        /// What was asked for, in bytes.
        mtu: u16,
    },
    /// A device has one pair at least and can number no more than so many.
    #[error("{pairs} queue pairs are not 1 to {PAIRS_MAX}")]
    Pairs {
        /// What was asked for.
        pairs: u16,
    },
    /// A queue without entries holds nothing.
    #[error("a queue needs at least one entry")]
    EmptyQueue,
    /// The number does not fit its field.
    #[error("a speed of {mbit} Mbit/s is too large")]
    Speed {
        /// What was asked for.
        mbit: u32,
    },
    /// Segmentation without checksums, or the like.
    #[error("offloads that need others: {0}")]
    Offloads(MissingFeature),
}

/// What a queue is for (virtio 1.3 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueRole {
    /// Receives of this pair, as the driver sees it.
    Receive(u16),
    /// Transmits of this pair, as the driver sees it.
    Transmit(u16),
    /// The control queue.
    Control,
}

/// A network device, apart from its queues and its state.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    options: NetOptions,
}

impl Net {
    /// A device of these options.
    ///
    /// # Errors
    /// When the options make none.
    pub fn new(options: NetOptions) -> Result<Self, OptionsError> {
        let NetOptions {
            mac, mtu, pairs, ..
        } = options;
        if mac.is_multicast() || mac.is_zero() {
            return Err(OptionsError::Mac { mac });
        }
        if mtu < 68 {
            return Err(OptionsError::Mtu { mtu });
        }
        if pairs == 0 || pairs > PAIRS_MAX {
            return Err(OptionsError::Pairs { pairs });
        }
        if options.queue_size == 0 {
            return Err(OptionsError::EmptyQueue);
        }
        match options.speed.mbit {
            Some(mbit) if mbit > Speed::MBIT_MAX => return Err(OptionsError::Speed { mbit }),
            _ => {}
        }
        let net = Self { options };
        net.settle(net.features()).map_err(OptionsError::Offloads)?;
        Ok(net)
    }

    /// What it is made of.
    pub fn options(&self) -> &NetOptions {
        &self.options
    }

    /// What is offered: the bits of the device type (5.1.3).
    pub fn features(&self) -> Features {
        let mut offered = VIRTIO_NET_F_MAC
            | VIRTIO_NET_F_MTU
            | VIRTIO_NET_F_STATUS
            | VIRTIO_NET_F_MRG_RXBUF
            | VIRTIO_NET_F_SPEED_DUPLEX
            | VIRTIO_NET_F_GUEST_ANNOUNCE
            // Frames neither wait for each other nor overtake.
            | Features::VIRTIO_F_IN_ORDER
            | self.options.to_device.offered_to_device()
            | self.options.to_driver.offered_to_driver();
        offered.set(VIRTIO_NET_F_MQ, self.options.pairs > 1);
        if self.options.control_queue {
            offered |= VIRTIO_NET_F_CTRL_VQ
                | VIRTIO_NET_F_CTRL_RX
                | VIRTIO_NET_F_CTRL_RX_EXTRA
                | VIRTIO_NET_F_CTRL_VLAN
                | VIRTIO_NET_F_CTRL_MAC_ADDR
                | VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
                | VIRTIO_NET_F_HASH_REPORT
                | VIRTIO_NET_F_RSS;
        }
        offered
    }

    /// The features that count when a driver accepted these.
    ///
    /// # Errors
    /// When one lacks what it needs.
    pub fn settle(&self, accepted: Features) -> Result<Features, MissingFeature> {
        features::settle(accepted, self.options.control_queue)
    }

    /// How many queues there are: pairs, and the control queue behind them.
    pub fn queues(&self) -> u32 {
        2 * u32::from(self.options.pairs) + u32::from(self.options.control_queue)
    }

    /// What queue `index` is for, for a driver that accepted these features: one
    /// that accepted a single pair has the control queue right behind it.
    pub fn role(&self, index: u32, accepted: Features) -> Option<QueueRole> {
        let pairs = if accepted.intersects(VIRTIO_NET_F_MQ | VIRTIO_NET_F_RSS) {
            self.options.pairs
        } else {
            1
        };
        let pair = u16::try_from(index / 2).ok()?;
        if pair < pairs {
            Some(if index.is_multiple_of(2) {
                QueueRole::Receive(pair)
            } else {
                QueueRole::Transmit(pair)
            })
        } else if index == 2 * u32::from(pairs)
            && accepted.contains(VIRTIO_NET_F_CTRL_VQ)
            && self.options.control_queue
        {
            Some(QueueRole::Control)
        } else {
            None
        }
    }

    /// Copies configuration space from `offset` on into `target`; `false`, and
    /// nothing is copied, when it is not all inside. None of it is writable.
    pub fn read_config(&self, live: &Live, offset: usize, target: &mut [u8]) -> bool {
        Config::new(&self.options, live).read(offset, target)
    }

    /// What a device shows of itself before any command, with its link up or not.
    pub fn live(&self, link_up: bool) -> Live {
        Live {
            mac: self.options.mac,
            link_up,
            announce: false,
        }
    }
}
