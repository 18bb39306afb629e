//! The saved form of the control queue's state: a fixed number of bytes, little
//! endian, for live upgrade and migration. Whoever restores it does not trust it.

use linkspan_virtio::Features;

use super::{Control, Hash, RssTable, Steering};
use crate::net::features::Offloads;
use crate::net::filter::{MAC_TABLE_MAX, MacTable, ReceiveModes};
use crate::net::flow::{HASH_KEY_MAX, HashTypes};
use crate::net::vlan::VLANS;
use crate::net::{Mac, Net, RSS_TABLE_MAX};

/// Kind `N` and version 1 of this form.
const KIND: u16 = 0x4E01;

/// Bytes of a saved state.
pub const CONTROL_SNAPSHOT_LEN: usize = 2 // kind
    + 8 + 2 // features, queue pairs of the device
    + 6 + 1 + 1 // address, receive modes, switches
    + VLANS as usize / 8
    + 1 + 1 + 6 * MAC_TABLE_MAX // unicast and multicast addresses
    + 2 + 1 // queue pairs in use, offloads
    + 1 + 4 + 1 + HASH_KEY_MAX // steering, hash
    + 2 + 2 + 2 * RSS_TABLE_MAX; // indirection table

/// Switches, one bit each.
const ANNOUNCE: u8 = 1 << 1;
const ALL_UNICAST: u8 = 1 << 2;
const ALL_MULTICAST: u8 = 1 << 3;

/// Why saved bytes do not make the state of this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlRestoreError {
    /// Another number of bytes than this version writes.
    #[error("saved state has {len} bytes, not {CONTROL_SNAPSHOT_LEN}")]
    Length {
        /// Bytes there are.
        len: usize,
    },
    /// Written by something else, or by a version that is not known.
    #[error("saved state is of kind {kind:#06x}, not {KIND:#06x}")]
    Kind {
        /// What the bytes begin with.
        kind: u16,
    },
    /// Saved with other features.
    #[error("saved state is of a driver with features {saved:#x}, not {accepted:#x}")]
    Features {
        /// Those that were saved.
        saved: u64,
        /// Those that were negotiated.
        accepted: u64,
    },
    /// Saved of a device with more or fewer queue pairs.
    #[error("saved state is of a device with {saved} queue pairs, not {pairs}")]
    Pairs {
        /// Those of the saved device.
        saved: u16,
        /// Those of this one.
        pairs: u16,
    },
    /// A field holds what no device has.
    #[error("saved state has an impossible {field}")]
    Field {
        /// Which.
        field: &'static str,
    },
}

struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    /// The length is a sum of all that is written.
    fn put(&mut self, bytes: &[u8]) {
        let (here, rest) = core::mem::take(&mut self.0).split_at_mut(bytes.len());
        here.copy_from_slice(bytes);
        self.0 = rest;
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// The length was checked.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (first, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        *first
    }

    fn u8(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
}

impl Control {
    /// Saves the state.
    pub fn snapshot(&self) -> [u8; CONTROL_SNAPSHOT_LEN] {
        let mut bytes = [0; CONTROL_SNAPSHOT_LEN];
        let mut writer = Writer(&mut bytes);
        let filter = &self.filter;
        writer.put(&KIND.to_le_bytes());
        writer.put(&self.accepted.bits().to_le_bytes());
        writer.put(&self.max_pairs.to_le_bytes());
        writer.put(&filter.mac.0);
        writer.put(&[filter.modes.bits(), self.switches()]);
        for word in filter.vlans.words() {
            writer.put(&word.to_le_bytes());
        }
        for table in [&filter.unicast, &filter.multicast] {
            writer.put(&[u8::try_from(table.len()).unwrap_or(0)]);
        }
        let mut macs = [0; 6 * MAC_TABLE_MAX];
        let all = filter.unicast.macs().chain(filter.multicast.macs());
        for (entry, mac) in macs.as_chunks_mut().0.iter_mut().zip(all) {
            *entry = mac.0;
        }
        writer.put(&macs);
        writer.put(&self.pairs.to_le_bytes());
        writer.put(&[
            self.offloads.bits(),
            u8::from(self.steering == Steering::Rss),
        ]);
        writer.put(&self.hash.types.bits().to_le_bytes());
        writer.put(&[u8::try_from(self.hash.key_len).unwrap_or(0)]);
        writer.put(&self.hash.key);
        writer.put(&self.rss.mask.to_le_bytes());
        writer.put(&self.rss.unclassified.to_le_bytes());
        for pair in self.rss.pairs {
            writer.put(&pair.to_le_bytes());
        }
        assert!(
            writer.0.is_empty(),
            "the length is a sum of all that is written"
        );
        bytes
    }

    fn switches(&self) -> u8 {
        let bit = |on, bit| if on { bit } else { 0 };
        bit(self.announce, ANNOUNCE)
            | bit(self.filter.unicast.all, ALL_UNICAST)
            | bit(self.filter.multicast.all, ALL_MULTICAST)
    }

    /// The state that [`snapshot`](Self::snapshot) saved, of the same device and
    /// with the same features.
    ///
    /// # Errors
    /// When the bytes are not those of such a state.
    pub fn restore(
        net: &Net,
        accepted: Features,
        bytes: &[u8],
    ) -> Result<Self, ControlRestoreError> {
        if bytes.len() != CONTROL_SNAPSHOT_LEN {
            return Err(ControlRestoreError::Length { len: bytes.len() });
        }
        let mut reader = Reader(bytes);
        let kind = reader.u16();
        if kind != KIND {
            return Err(ControlRestoreError::Kind { kind });
        }
        let (saved, accepted_bits) = (u64::from_le_bytes(reader.take()), accepted.bits());
        if saved != accepted_bits {
            return Err(ControlRestoreError::Features {
                saved,
                accepted: accepted_bits,
            });
        }
        let (saved, pairs) = (reader.u16(), net.options().pairs);
        if saved != pairs {
            return Err(ControlRestoreError::Pairs { saved, pairs });
        }
        let mut control = Self::new(net, accepted);
        control.restore_filter(&mut reader)?;
        control.restore_steering(&mut reader)?;
        Ok(control)
    }

    fn restore_filter(&mut self, reader: &mut Reader<'_>) -> Result<(), ControlRestoreError> {
        let wrong = |field| ControlRestoreError::Field { field };
        let filter = &mut self.filter;
        filter.mac = Mac(reader.take());
        if filter.mac.is_multicast() || filter.mac.is_zero() {
            return Err(wrong("address"));
        }
        let modes = ReceiveModes::from_bits(reader.u8());
        filter.modes = modes.ok_or(wrong("receive mode"))?;
        let switches = reader.u8();
        if switches & !(ANNOUNCE | ALL_UNICAST | ALL_MULTICAST) != 0 {
            return Err(wrong("switch"));
        }
        self.announce = switches & ANNOUNCE != 0;
        for word in filter.vlans.words_mut() {
            *word = u64::from_le_bytes(reader.take());
        }
        let (unicast, multicast) = (usize::from(reader.u8()), usize::from(reader.u8()));
        let macs: [u8; 6 * MAC_TABLE_MAX] = reader.take();
        let macs = macs.as_chunks().0;
        let listed = macs.get(..unicast + multicast);
        let listed = listed.ok_or(wrong("number of addresses"))?;
        let (unicast, multicast) = listed.split_at(unicast);
        let table = |macs: &[[u8; 6]], all| match (macs, all) {
            ([], true) => Ok(MacTable::of_all()),
            (_, true) => Err(wrong("number of addresses")),
            (macs, false) => Ok(MacTable::new(
                macs.iter().map(|mac| Mac(*mac)),
                MAC_TABLE_MAX,
            )),
        };
        filter.unicast = table(unicast, switches & ALL_UNICAST != 0)?;
        filter.multicast = table(multicast, switches & ALL_MULTICAST != 0)?;
        Ok(())
    }

    fn restore_steering(&mut self, reader: &mut Reader<'_>) -> Result<(), ControlRestoreError> {
        let wrong = |field| ControlRestoreError::Field { field };
        let pairs = reader.u16();
        self.set_pairs(pairs)
            .map_err(|_| wrong("number of queue pairs"))?;
        let offloads = Offloads::from_bits_retain(reader.u8());
        if !self.offloads.contains(offloads) {
            return Err(wrong("offload"));
        }
        self.offloads = offloads;
        self.steering = match reader.u8() {
            0 => Steering::Automatic,
            1 => Steering::Rss,
            _ => return Err(wrong("way to steer")),
        };
        let types = HashTypes::from_bits(u32::from_le_bytes(reader.take()));
        let types = types.ok_or(wrong("hash type"))?;
        let key_len = usize::from(reader.u8());
        let key: [u8; HASH_KEY_MAX] = reader.take();
        let key = key.get(..key_len).ok_or(wrong("hash key"))?;
        self.hash = Hash::new(types, key);
        let mut rss = RssTable {
            mask: reader.u16(),
            unclassified: reader.u16(),
            pairs: [0; RSS_TABLE_MAX],
        };
        for pair in &mut rss.pairs {
            *pair = reader.u16();
        }
        let mut named = rss.pairs.iter().chain([&rss.unclassified]);
        let entries = usize::from(rss.mask) + 1;
        if !entries.is_power_of_two()
            || entries > RSS_TABLE_MAX
            || named.any(|pair| *pair >= self.max_pairs)
        {
            return Err(wrong("indirection table"));
        }
        self.rss = rss;
        Ok(())
    }
}
