//! Commands of the control queue as they stand on the wire (virtio 1.3 5.1.6.5),
//! read and written.

use alloc::vec::Vec;

use virtio_bindings::virtio_net as bits;

use super::ControlError;
use crate::net::filter::{MAC_TABLE_MAX, ReceiveModes};
use crate::net::flow::HASH_KEY_MAX;
use crate::net::{Mac, RSS_TABLE_MAX};

/// Bytes of a command that are looked at: more than any has, except a table of
/// MAC addresses, which then counts as a table of all.
pub const COMMAND_BYTES_MAX: usize = 1024;

/// A command of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// `VIRTIO_NET_CTRL_RX`: switches one mode.
    Receive {
        /// Exactly one.
        mode: ReceiveModes,
        /// On or off.
        on: bool,
    },
    /// `VIRTIO_NET_CTRL_MAC_TABLE_SET`.
    MacTable {
        /// Addresses of stations.
        unicast: MacList<'a>,
        /// Addresses of groups.
        multicast: MacList<'a>,
    },
    /// `VIRTIO_NET_CTRL_MAC_ADDR_SET`.
    MacAddress(Mac),
    /// `VIRTIO_NET_CTRL_VLAN_ADD`.
    VlanAdd(u16),
    /// `VIRTIO_NET_CTRL_VLAN_DEL`.
    VlanDelete(u16),
    /// `VIRTIO_NET_CTRL_ANNOUNCE_ACK`.
    AnnounceAck,
    /// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`.
    Pairs(u16),
    /// `VIRTIO_NET_CTRL_MQ_RSS_CONFIG`.
    Rss(RssConfig<'a>),
    /// `VIRTIO_NET_CTRL_MQ_HASH_CONFIG`.
    Hash(HashConfig<'a>),
    /// `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET`: feature bits.
    GuestOffloads(u64),
}

/// Addresses in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacList<'a> {
    /// These.
    Listed(&'a [[u8; 6]]),
    /// More than are looked at.
    TooMany,
}

/// What a hash is of and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashConfig<'a> {
    /// `VIRTIO_NET_HASH_TYPE_*`.
    pub types: u32,
    /// The key of the Toeplitz hash.
    pub key: &'a [u8],
}

/// How receive-side scaling chooses a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RssConfig<'a> {
    /// The hash.
    pub hash: HashConfig<'a>,
    /// Entries of the table but one: that number is a power of two.
    pub mask: u16,
    /// The pair for frames without a hash.
    pub unclassified: u16,
    /// The pairs, 16 bits each, little endian.
    pub table: &'a [[u8; 2]],
    /// Transmit queues that the driver uses.
    pub max_tx_vq: u16,
}

/// Class and command, where they stand on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// `VIRTIO_NET_CTRL_*`.
    pub class: u8,
    /// Which one of the class.
    pub command: u8,
}

impl Code {
    pub(super) const fn new(class: u32, command: u32) -> Self {
        assert!(class < 256 && command < 256);
        #[expect(clippy::cast_possible_truncation, reason = "checked one line above")]
        Self {
            class: class as u8,
            command: command as u8,
        }
    }
}

pub(super) const MAC_TABLE_SET: Code = Code::new(
    bits::VIRTIO_NET_CTRL_MAC,
    bits::VIRTIO_NET_CTRL_MAC_TABLE_SET,
);
pub(super) const MAC_ADDR_SET: Code = Code::new(
    bits::VIRTIO_NET_CTRL_MAC,
    bits::VIRTIO_NET_CTRL_MAC_ADDR_SET,
);
pub(super) const VLAN_ADD: Code =
    Code::new(bits::VIRTIO_NET_CTRL_VLAN, bits::VIRTIO_NET_CTRL_VLAN_ADD);
pub(super) const VLAN_DEL: Code =
    Code::new(bits::VIRTIO_NET_CTRL_VLAN, bits::VIRTIO_NET_CTRL_VLAN_DEL);
pub(super) const ANNOUNCE_ACK: Code = Code::new(
    bits::VIRTIO_NET_CTRL_ANNOUNCE,
    bits::VIRTIO_NET_CTRL_ANNOUNCE_ACK,
);
pub(super) const VQ_PAIRS_SET: Code = Code::new(
    bits::VIRTIO_NET_CTRL_MQ,
    bits::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
);
pub(super) const RSS_CONFIG: Code = Code::new(
    bits::VIRTIO_NET_CTRL_MQ,
    bits::VIRTIO_NET_CTRL_MQ_RSS_CONFIG,
);
pub(super) const HASH_CONFIG: Code = Code::new(
    bits::VIRTIO_NET_CTRL_MQ,
    bits::VIRTIO_NET_CTRL_MQ_HASH_CONFIG,
);
pub(super) const GUEST_OFFLOADS_SET: Code = Code::new(
    bits::VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    bits::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
);

/// The commands of `VIRTIO_NET_CTRL_RX` number the modes.
const RECEIVE: u8 = 0;
const _: () = assert!(
    bits::VIRTIO_NET_CTRL_RX == RECEIVE as u32
        && 1 << bits::VIRTIO_NET_CTRL_RX_PROMISC == ReceiveModes::PROMISC.bits()
        && 1 << bits::VIRTIO_NET_CTRL_RX_ALLMULTI == ReceiveModes::ALLMULTI.bits()
        && 1 << bits::VIRTIO_NET_CTRL_RX_ALLUNI == ReceiveModes::ALLUNI.bits()
        && 1 << bits::VIRTIO_NET_CTRL_RX_NOMULTI == ReceiveModes::NOMULTI.bits()
        && 1 << bits::VIRTIO_NET_CTRL_RX_NOUNI == ReceiveModes::NOUNI.bits()
        && 1 << bits::VIRTIO_NET_CTRL_RX_NOBCAST == ReceiveModes::NOBCAST.bits()
);

/// What is left of a command.
struct Reader<'a> {
    bytes: &'a [u8],
    code: Code,
    /// Bytes of the command that were not copied.
    cut_off: u64,
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ControlError> {
        match self.bytes.split_first_chunk() {
            Some((first, rest)) => {
                self.bytes = rest;
                Ok(*first)
            }
            None => Err(ControlError::Short { code: self.code }),
        }
    }

    fn many<const N: usize>(&mut self, count: usize) -> Result<&'a [[u8; N]], ControlError> {
        let len = count.saturating_mul(N);
        match self.bytes.split_at_checked(len) {
            Some((first, rest)) => {
                self.bytes = rest;
                Ok(first.as_chunks().0)
            }
            None => Err(ControlError::Short { code: self.code }),
        }
    }

    fn u16(&mut self) -> Result<u16, ControlError> {
        Ok(u16::from_le_bytes(self.take()?))
    }

    /// One of the two tables. If there are too many to be looked at, they must be
    /// in the command all the same.
    fn macs(&mut self) -> Result<MacList<'a>, ControlError> {
        if self.bytes.is_empty() && self.cut_off >= 4 {
            return Ok(MacList::TooMany);
        }
        let count = u32::from_le_bytes(self.take()?);
        let len = 6 * u64::from(count);
        match usize::try_from(count) {
            Ok(count) if count <= MAC_TABLE_MAX && len <= self.bytes.len() as u64 => {
                Ok(MacList::Listed(self.many(count)?))
            }
            _ if len > self.bytes.len() as u64 + self.cut_off => {
                Err(ControlError::Short { code: self.code })
            }
            _ => {
                let here = usize::try_from(len).unwrap_or(usize::MAX);
                let here = here.min(self.bytes.len());
                self.bytes = &self.bytes[here..];
                self.cut_off -= len - here as u64;
                Ok(MacList::TooMany)
            }
        }
    }

    fn hash_key(&mut self, types: u32) -> Result<HashConfig<'a>, ControlError> {
        let [len] = self.take()?;
        if usize::from(len) > HASH_KEY_MAX {
            return Err(ControlError::HashKey { len });
        }
        let key = self.many::<1>(len.into())?.as_flattened();
        Ok(HashConfig { types, key })
    }

    fn rss(&mut self) -> Result<RssConfig<'a>, ControlError> {
        let types = u32::from_le_bytes(self.take()?);
        let mask = self.u16()?;
        let entries = usize::from(mask) + 1;
        if !entries.is_power_of_two() || entries > RSS_TABLE_MAX {
            return Err(ControlError::RssTable { entries });
        }
        let unclassified = self.u16()?;
        let table = self.many(entries)?;
        let max_tx_vq = self.u16()?;
        Ok(RssConfig {
            hash: self.hash_key(types)?,
            mask,
            unclassified,
            table,
            max_tx_vq,
        })
    }
}

impl<'a> Command<'a> {
    /// Reads a command of `len` bytes that begins with `bytes`, all of them or the
    /// first [`COMMAND_BYTES_MAX`]. What lies behind it is not looked at, as in QEMU.
    ///
    /// # Errors
    /// When there is no such command, or it is cut off, or too large.
    pub fn parse(bytes: &'a [u8], len: u64) -> Result<Self, ControlError> {
        let Some((&[class, command], rest)) = bytes.split_first_chunk() else {
            return Err(ControlError::NoCode { len: bytes.len() });
        };
        let code = Code { class, command };
        let mut reader = Reader {
            bytes: rest,
            code,
            cut_off: len.saturating_sub(bytes.len() as u64),
        };
        if class == RECEIVE {
            let mode = 1_u8.checked_shl(command.into()).unwrap_or(0);
            let Some(mode) = ReceiveModes::from_bits(mode).filter(|mode| !mode.is_empty()) else {
                return Err(ControlError::Unknown { code });
            };
            let [on] = reader.take()?;
            return Ok(Self::Receive { mode, on: on != 0 });
        }
        Ok(match code {
            MAC_TABLE_SET => Self::MacTable {
                unicast: reader.macs()?,
                multicast: reader.macs()?,
            },
            MAC_ADDR_SET => Self::MacAddress(Mac(reader.take()?)),
            VLAN_ADD => Self::VlanAdd(reader.u16()?),
            VLAN_DEL => Self::VlanDelete(reader.u16()?),
            ANNOUNCE_ACK => Self::AnnounceAck,
            VQ_PAIRS_SET => Self::Pairs(reader.u16()?),
            RSS_CONFIG => Self::Rss(reader.rss()?),
            HASH_CONFIG => {
                let types = u32::from_le_bytes(reader.take()?);
                let _reserved: [u8; 8] = reader.take()?;
                Self::Hash(reader.hash_key(types)?)
            }
            GUEST_OFFLOADS_SET => Self::GuestOffloads(u64::from_le_bytes(reader.take()?)),
            code => return Err(ControlError::Unknown { code }),
        })
    }

    /// What it is called on the wire.
    pub fn code(&self) -> Code {
        match self {
            Self::Receive { mode, .. } => Code {
                class: RECEIVE,
                command: mode.bits().trailing_zeros().try_into().unwrap_or(u8::MAX),
            },
            Self::MacTable { .. } => MAC_TABLE_SET,
            Self::MacAddress(_) => MAC_ADDR_SET,
            Self::VlanAdd(_) => VLAN_ADD,
            Self::VlanDelete(_) => VLAN_DEL,
            Self::AnnounceAck => ANNOUNCE_ACK,
            Self::Pairs(_) => VQ_PAIRS_SET,
            Self::Rss(_) => RSS_CONFIG,
            Self::Hash(_) => HASH_CONFIG,
            Self::GuestOffloads(_) => GUEST_OFFLOADS_SET,
        }
    }

    /// The command as it stands on the wire, for a driver: what the device reads.
    /// Behind it one byte is for the answer, which [`accepted`] reads. A list of too
    /// many addresses has none.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Code { class, command } = self.code();
        let mut bytes = alloc::vec![class, command];
        match *self {
            Self::Receive { on, .. } => bytes.push(u8::from(on)),
            Self::MacTable { unicast, multicast } => {
                for list in [unicast, multicast] {
                    let macs = match list {
                        MacList::Listed(macs) => macs,
                        MacList::TooMany => &[],
                    };
                    let count = u32::try_from(macs.len()).unwrap_or(u32::MAX);
                    bytes.extend(count.to_le_bytes());
                    bytes.extend(macs.as_flattened());
                }
            }
            Self::MacAddress(mac) => bytes.extend(mac.0),
            Self::VlanAdd(vlan) | Self::VlanDelete(vlan) => bytes.extend(vlan.to_le_bytes()),
            Self::AnnounceAck => {}
            Self::Pairs(pairs) => bytes.extend(pairs.to_le_bytes()),
            Self::Rss(rss) => {
                bytes.extend(rss.hash.types.to_le_bytes());
                bytes.extend(rss.mask.to_le_bytes());
                bytes.extend(rss.unclassified.to_le_bytes());
                bytes.extend(rss.table.as_flattened());
                bytes.extend(rss.max_tx_vq.to_le_bytes());
                push_key(&mut bytes, rss.hash.key);
            }
            Self::Hash(hash) => {
                bytes.extend(hash.types.to_le_bytes());
                bytes.extend([0; 8]);
                push_key(&mut bytes, hash.key);
            }
            Self::GuestOffloads(offloads) => bytes.extend(offloads.to_le_bytes()),
        }
        bytes
    }
}

fn push_key(bytes: &mut Vec<u8>, key: &[u8]) {
    bytes.push(u8::try_from(key.len()).unwrap_or(u8::MAX));
    bytes.extend(key);
}

/// Whether a device's answer says that it did what was asked: `VIRTIO_NET_OK`.
pub const fn accepted(ack: u8) -> bool {
    ack == 0
}
