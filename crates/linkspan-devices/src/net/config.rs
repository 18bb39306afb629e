//! Configuration space of the network device (virtio 1.3 5.1.4), written and read.

use core::mem::offset_of;

use linkspan_virtio::Features;
use virtio_bindings::virtio_net as bits;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::features::{
    VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_RSS, VIRTIO_NET_F_SPEED_DUPLEX, VIRTIO_NET_F_STATUS,
};
use super::flow::{HASH_KEY_MAX, HashTypes};
use super::{Mac, NetOptions, PAIRS_MAX, RSS_TABLE_MAX};

/// Size of the configuration space in bytes: everything up to the hash types, zero
/// where a feature is not offered.
pub const CONFIG_LEN: usize = size_of::<Config>();
const _: () = assert!(CONFIG_LEN == 24);

const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;
const _: () = assert!(
    bits::VIRTIO_NET_S_LINK_UP == LINK_UP as u32 && bits::VIRTIO_NET_S_ANNOUNCE == ANNOUNCE as u32
);

/// Whether a link carries both directions at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Duplex {
    /// One at a time.
    Half,
    /// Both.
    Full,
    /// Not known.
    #[default]
    Unknown,
}

/// What a device says of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Speed {
    /// In Mbit/s, if it is known.
    pub mbit: Option<u32>,
    /// In which directions.
    pub duplex: Duplex,
}

impl Speed {
    /// The largest number that means a speed.
    pub const MBIT_MAX: u32 = 0x7FFF_FFFF;

    fn from_wire(mbit: u32, duplex: u8) -> Self {
        Self {
            mbit: (mbit <= Self::MBIT_MAX).then_some(mbit),
            duplex: match duplex {
                0 => Duplex::Half,
                1 => Duplex::Full,
                _ => Duplex::Unknown,
            },
        }
    }
}

/// What of configuration space changes while a device runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Its address.
    pub mac: Mac,
    /// Whether the link is up.
    pub link_up: bool,
    /// Whether the driver shall announce itself.
    pub announce: bool,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Config {
    mac: [u8; 6],
    status: U16,
    max_virtqueue_pairs: U16,
    mtu: U16,
    speed: U32,
    duplex: u8,
    rss_max_key_size: u8,
    rss_max_indirection_table_length: U16,
    supported_hash_types: U32,
}

impl Config {
    pub(super) fn new(options: &NetOptions, live: &Live) -> Self {
        let link = if live.link_up { LINK_UP } else { 0 };
        let announce = if live.announce { ANNOUNCE } else { 0 };
        let hash = options.control_queue;
        Self {
            mac: live.mac.0,
            status: U16::new(link | announce),
            max_virtqueue_pairs: U16::new(options.pairs),
            mtu: U16::new(options.mtu),
            speed: U32::new(options.speed.mbit.unwrap_or(u32::MAX)),
            duplex: match options.speed.duplex {
                Duplex::Half => 0,
                Duplex::Full => 1,
                Duplex::Unknown => 0xFF,
            },
            rss_max_key_size: if hash { KEY_MAX } else { 0 },
            rss_max_indirection_table_length: U16::new(if hash { TABLE_MAX } else { 0 }),
            supported_hash_types: U32::new(if hash { HashTypes::all().bits() } else { 0 }),
        }
    }

    pub(super) fn read(&self, offset: usize, target: &mut [u8]) -> bool {
        crate::read_config(self.as_bytes(), offset, target)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "both are small constants")]
const KEY_MAX: u8 = HASH_KEY_MAX as u8;
#[expect(clippy::cast_possible_truncation, reason = "both are small constants")]
const TABLE_MAX: u16 = RSS_TABLE_MAX as u16;

/// What a driver knows of a network device before it uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetInfo {
    /// The address that it is to have, if it has one.
    pub mac: Option<Mac>,
    /// Whether the link is up.
    pub link_up: bool,
    /// Whether the driver is to announce itself.
    pub announce: bool,
    /// Queue pairs: 1 to 32768.
    pub pairs: u16,
    /// Bytes of a packet at most, without Ethernet header, if the device says so.
    pub mtu: Option<u16>,
    /// What is known of the link.
    pub speed: Speed,
    /// Bytes of a hash key at most; 0 where nothing is hashed.
    pub hash_key_max: u8,
    /// Entries of an indirection table at most; 0 without `VIRTIO_NET_F_RSS`.
    pub rss_table_max: u16,
    /// What hashes may be of.
    pub hash_types: HashTypes,
}

impl NetInfo {
    /// The queue pairs that configuration space names; `None` where it is too short, or
    /// the number cannot be. It means something where `VIRTIO_NET_F_MQ` or
    /// `VIRTIO_NET_F_RSS` is offered.
    pub fn pairs_in(config: &[u8]) -> Option<u16> {
        let at = offset_of!(Config, max_virtqueue_pairs);
        let pairs = config.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_le_bytes(pairs)).filter(|pairs| (1..=PAIRS_MAX).contains(pairs))
    }

    /// Reads configuration space under the features that were accepted. What is
    /// missing of it counts as zero, and a number of pairs that cannot be as 1.
    pub fn from_config(config: &[u8], accepted: Features) -> Self {
        let mut bytes = [0; CONFIG_LEN];
        let len = config.len().min(CONFIG_LEN);
        bytes[..len].copy_from_slice(&config[..len]);
        let [
            a,
            b,
            c,
            d,
            e,
            f,
            s0,
            s1,
            _,
            _,
            m0,
            m1,
            v0,
            v1,
            v2,
            v3,
            duplex,
            key,
            t0,
            t1,
            h @ ..,
        ] = bytes;
        let has = |bits| accepted.intersects(bits);
        let status = if has(VIRTIO_NET_F_STATUS) {
            u16::from_le_bytes([s0, s1])
        } else {
            LINK_UP
        };
        let many = has(VIRTIO_NET_F_MQ | VIRTIO_NET_F_RSS);
        let pairs = Self::pairs_in(config).filter(|_| many);
        let hash = has(VIRTIO_NET_F_RSS | VIRTIO_NET_F_HASH_REPORT);
        Self {
            mac: has(VIRTIO_NET_F_MAC).then_some(Mac([a, b, c, d, e, f])),
            link_up: status & LINK_UP != 0,
            announce: status & ANNOUNCE != 0,
            pairs: pairs.unwrap_or(1),
            mtu: has(VIRTIO_NET_F_MTU).then_some(u16::from_le_bytes([m0, m1])),
            speed: if has(VIRTIO_NET_F_SPEED_DUPLEX) {
                Speed::from_wire(u32::from_le_bytes([v0, v1, v2, v3]), duplex)
            } else {
                Speed::default()
            },
            hash_key_max: if hash { key } else { 0 },
            rss_table_max: if has(VIRTIO_NET_F_RSS) {
                u16::from_le_bytes([t0, t1])
            } else {
                0
            },
            hash_types: if hash {
                HashTypes::from_bits_truncate(u32::from_le_bytes(h))
            } else {
                HashTypes::empty()
            },
        }
    }
}
