//! The control queue's device side (virtio 1.3 5.1.6.5): what a driver has asked
//! for, kept as plain state of bounded size. Workers get copies of it.

mod command;
mod saved;

use linkspan_mem::{RegionTable, Span};
use linkspan_virtio::{Chain, Features, QueueError};

pub use command::{COMMAND_BYTES_MAX, Code, Command, HashConfig, MacList, RssConfig, accepted};
pub use saved::{CONTROL_SNAPSHOT_LEN, ControlRestoreError};

use super::features::{
    Offloads, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MQ, VIRTIO_NET_F_RSS,
};
use super::filter::{MAC_TABLE_MAX, MacTable, ReceiveFilter, ReceiveModes};
use super::flow::{HASH_KEY_MAX, HashReport, HashTypes, Toeplitz, flow_hash, steer};
use super::{Live, Mac, Net, RSS_TABLE_MAX};

/// `VIRTIO_NET_OK` and `VIRTIO_NET_ERR`.
const OK: u8 = 0;
const ERR: u8 = 1;

/// Why a command was refused: the driver is told `VIRTIO_NET_ERR`, and nothing
/// has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Not even class and command.
    #[error("a command of {len} bytes")]
    NoCode {
        /// Its bytes.
        len: usize,
    },
    /// A command that is cut off.
    #[error("class {} command {} is cut off", code.class, code.command)]
    Short {
        /// Which.
        code: Code,
    },
    /// A command that is not served here.
    #[error("class {} command {} is not known", code.class, code.command)]
    Unknown {
        /// Which.
        code: Code,
    },
    /// A command without its feature.
    #[error("class {} command {} was not negotiated", code.class, code.command)]
    NotNegotiated {
        /// Which.
        code: Code,
    },
    /// An address of a group, or none, as that of the device.
    #[error("{mac} cannot be the address of a device")]
    Mac {
        /// What the driver wants.
        mac: Mac,
    },
    /// A VLAN that there is not.
    #[error("VLAN {vlan} does not exist")]
    Vlan {
        /// What the driver wants.
        vlan: u16,
    },
    /// More queue pairs than there are, or none.
    #[error("{pairs} queue pairs of {max}")]
    Pairs {
        /// What the driver wants.
        pairs: u16,
        /// What the device has.
        max: u16,
    },
    /// A key that is too long.
    #[error("a hash key of {len} bytes")]
    HashKey {
        /// Its bytes.
        len: u8,
    },
    /// Hashes that are not offered, or hashes without a key.
    #[error("hash types {types:#x} with a key of {key_len} bytes")]
    HashTypes {
        /// What the driver wants.
        types: u32,
        /// Bytes of its key.
        key_len: usize,
    },
    /// A table of a size that cannot be.
    #[error("an indirection table of {entries} entries")]
    RssTable {
        /// How many.
        entries: usize,
    },
    /// A table that names a queue pair that there is not.
    #[error("an indirection table with queue pair {pair} of {max}")]
    RssQueue {
        /// What the driver wants.
        pair: u16,
        /// What the device has.
        max: u16,
    },
    /// Offloads that were not negotiated.
    #[error("offloads {offloads:#x} that were not negotiated")]
    Offloads {
        /// What the driver wants.
        offloads: u64,
    },
}

impl ControlError {
    /// What each kind of them is called where they are counted.
    pub const NAMES: [&'static str; 12] = [
        "no_code",
        "short",
        "unknown",
        "not_negotiated",
        "mac",
        "vlan",
        "pairs",
        "hash_key",
        "hash_types",
        "rss_table",
        "rss_queue",
        "offloads",
    ];

    /// The place of its kind in [`NAMES`](Self::NAMES).
    pub fn kind(&self) -> usize {
        match self {
            Self::NoCode { .. } => 0,
            Self::Short { .. } => 1,
            Self::Unknown { .. } => 2,
            Self::NotNegotiated { .. } => 3,
            Self::Mac { .. } => 4,
            Self::Vlan { .. } => 5,
            Self::Pairs { .. } => 6,
            Self::HashKey { .. } => 7,
            Self::HashTypes { .. } => 8,
            Self::RssTable { .. } => 9,
            Self::RssQueue { .. } => 10,
            Self::Offloads { .. } => 11,
        }
    }
}

/// What a command has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Which frames are received.
    Filter,
    /// The address in configuration space too.
    Mac(Mac),
    /// The driver has announced itself.
    Announced,
    /// How many queue pairs are used, and how frames are spread over them.
    Steering,
    /// What may be left to the driver.
    Offloads(Offloads),
}

/// How received frames are spread over queue pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Steering {
    /// By their flow.
    Automatic,
    /// As the driver's table says.
    Rss,
}

/// The hash that a driver has configured.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hash {
    types: HashTypes,
    key: [u8; HASH_KEY_MAX],
    key_len: usize,
    toeplitz: Toeplitz,
}

impl Hash {
    fn new(types: HashTypes, key: &[u8]) -> Self {
        let key_len = key.len().min(HASH_KEY_MAX);
        let mut padded = [0; HASH_KEY_MAX];
        padded[..key_len].copy_from_slice(&key[..key_len]);
        Self {
            types,
            key: padded,
            key_len,
            toeplitz: Toeplitz::new(&padded),
        }
    }
}

/// The table of receive-side scaling. `mask` plus one entries count, each below
/// the number of queue pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RssTable {
    mask: u16,
    unclassified: u16,
    pairs: [u16; RSS_TABLE_MAX],
}

/// What a driver has asked for through the control queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    accepted: Features,
    max_pairs: u16,
    filter: ReceiveFilter,
    announce: bool,
    pairs: u16,
    offloads: Offloads,
    steering: Steering,
    hash: Hash,
    rss: RssTable,
}

/// A command that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// What it did.
    pub outcome: Result<Change, ControlError>,
    /// The used length, for [`push`](linkspan_virtio::DeviceQueue::push).
    pub written: u32,
    /// Where the answer is.
    pub answer: Span,
}

impl Control {
    /// The state of a device whose driver accepted these features, before any
    /// command: one queue pair, and every frame is received.
    pub fn new(net: &Net, accepted: Features) -> Self {
        Self {
            accepted,
            max_pairs: net.options().pairs,
            filter: ReceiveFilter::new(
                net.options().mac,
                accepted.contains(VIRTIO_NET_F_CTRL_VLAN),
            ),
            announce: false,
            pairs: 1,
            offloads: Offloads::to_driver(accepted),
            steering: Steering::Automatic,
            hash: Hash::new(HashTypes::empty(), &[]),
            rss: RssTable {
                mask: 0,
                unclassified: 0,
                pairs: [0; RSS_TABLE_MAX],
            },
        }
    }

    /// What configuration space shows of a device whose link is up, or not.
    pub fn live(&self, link_up: bool) -> Live {
        Live {
            mac: self.filter.mac,
            link_up,
            announce: self.announce,
        }
    }

    /// Which frames are received.
    #[inline]
    pub fn filter(&self) -> &ReceiveFilter {
        &self.filter
    }

    /// Queue pairs in use.
    #[inline]
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// The features that the driver accepted.
    pub fn accepted(&self) -> Features {
        self.accepted
    }

    /// The pair that the driver's own table has for a frame, if it configured one; by
    /// its flow it may go to any of the first [`pairs`](Self::pairs) otherwise. And its
    /// hash, if the driver wants to know it.
    #[inline]
    pub fn placed(&self, head: &[u8]) -> (Option<u16>, Option<HashReport>) {
        if self.hash.types.is_empty() && self.steering == Steering::Automatic {
            return (None, None);
        }
        let (pair, hash) = self.steer_by_hash(head);
        ((self.steering == Steering::Rss).then_some(pair), hash)
    }

    /// Whether receive queue `pair` may get frames.
    #[inline]
    pub fn receives(&self, pair: u16) -> bool {
        match self.steering {
            Steering::Automatic => pair < self.pairs,
            Steering::Rss => pair < self.max_pairs,
        }
    }

    /// What may be left to the driver now.
    #[inline]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Asks the driver to announce itself, as after a migration; `true` when it can
    /// and is then told by a change of configuration.
    pub fn ask_to_announce(&mut self) -> bool {
        self.announce = self.accepted.contains(VIRTIO_NET_F_GUEST_ANNOUNCE);
        self.announce
    }

    /// Sets the number of queue pairs in use, where the front end has the control
    /// queue and enables rings instead.
    ///
    /// # Errors
    /// When there are not so many, or it is none.
    pub fn set_pairs(&mut self, pairs: u16) -> Result<(), ControlError> {
        let max = self.max_pairs;
        if pairs == 0 || pairs > max {
            return Err(ControlError::Pairs { pairs, max });
        }
        self.pairs = pairs;
        Ok(())
    }

    /// The queue pair that a frame beginning with `head` goes to, and its hash if the
    /// driver wants to know it.
    #[inline]
    pub fn steer(&self, head: &[u8]) -> (u16, Option<HashReport>) {
        if self.hash.types.is_empty() && self.steering == Steering::Automatic {
            let pair = if self.pairs == 1 {
                0
            } else {
                steer(flow_hash(head), self.pairs)
            };
            return (pair, None);
        }
        self.steer_by_hash(head)
    }

    fn steer_by_hash(&self, head: &[u8]) -> (u16, Option<HashReport>) {
        let hash = self.hash.toeplitz.hash_frame(head, self.hash.types);
        let pair = match (self.steering, hash) {
            (Steering::Automatic, _) => steer(flow_hash(head), self.pairs),
            (Steering::Rss, None) => self.rss.unclassified,
            (Steering::Rss, Some(hash)) => {
                let at = usize::try_from(hash.value & u32::from(self.rss.mask)).unwrap_or(0);
                self.rss.pairs[at % RSS_TABLE_MAX]
            }
        };
        let reported = self.accepted.contains(VIRTIO_NET_F_HASH_REPORT);
        (pair, hash.filter(|_| reported))
    }

    /// Does what a chain of the control queue asks for and answers it.
    ///
    /// # Errors
    /// When the chain has no byte for the answer: the queue must be retired.
    pub fn serve(&mut self, chain: &mut Chain, table: &RegionTable) -> Result<Served, QueueError> {
        // The answer is the first writable byte (5.1.6.5); results that some
        // commands have lie behind it.
        let ack = chain.writable().iter().find(|span| !span.is_empty());
        let ack = ack.map(|span| span.part(0, 1)).unwrap_or_default();
        chain.cut_writable_front(1)?;
        let len = chain.readable_len();
        let mut bytes = [0; COMMAND_BYTES_MAX];
        let here = usize::try_from(len).map_or(bytes.len(), |len| len.min(bytes.len()));
        let whole = table
            .gather(chain.readable(), 0, &mut bytes[..here])
            .is_ok();
        assert!(whole, "a chain holds the bytes it counts");
        let outcome = Command::parse(&bytes[..here], len).and_then(|command| self.apply(&command));
        let answer = if outcome.is_ok() { OK } else { ERR };
        table.slice(ack).write(&[answer]);
        Ok(Served {
            outcome,
            written: 1,
            answer: ack,
        })
    }

    /// Does what a command asks for.
    ///
    /// # Errors
    /// When it cannot be done; then nothing has changed.
    pub fn apply(&mut self, command: &Command<'_>) -> Result<Change, ControlError> {
        if !self.accepted.intersects(needs(command)) {
            let code = command.code();
            return Err(ControlError::NotNegotiated { code });
        }
        match *command {
            Command::Receive { mode, on } => {
                self.filter.modes.set(mode, on);
                Ok(Change::Filter)
            }
            Command::MacTable { unicast, multicast } => {
                self.filter.unicast = mac_table(unicast, MAC_TABLE_MAX);
                let left = MAC_TABLE_MAX - self.filter.unicast.len();
                self.filter.multicast = mac_table(multicast, left);
                Ok(Change::Filter)
            }
            Command::MacAddress(mac) => {
                if mac.is_multicast() || mac.is_zero() {
                    return Err(ControlError::Mac { mac });
                }
                self.filter.mac = mac;
                Ok(Change::Mac(mac))
            }
            Command::VlanAdd(vlan) => self.set_vlan(vlan, true),
            Command::VlanDelete(vlan) => self.set_vlan(vlan, false),
            Command::AnnounceAck => {
                self.announce = false;
                Ok(Change::Announced)
            }
            Command::Pairs(pairs) => {
                self.set_pairs(pairs)?;
                self.steering = Steering::Automatic;
                Ok(Change::Steering)
            }
            Command::Rss(rss) => self.set_rss(&rss),
            Command::Hash(hash) => {
                self.hash = checked_hash(&hash)?;
                self.steering = Steering::Automatic;
                Ok(Change::Steering)
            }
            Command::GuestOffloads(wanted) => self.set_offloads(wanted),
        }
    }

    fn set_vlan(&mut self, vlan: u16, member: bool) -> Result<Change, ControlError> {
        if self.filter.vlans.set(vlan, member) {
            Ok(Change::Filter)
        } else {
            Err(ControlError::Vlan { vlan })
        }
    }

    fn set_rss(&mut self, config: &RssConfig<'_>) -> Result<Change, ControlError> {
        let max = self.max_pairs;
        let hash = checked_hash(&config.hash)?;
        let entries = config.table.len();
        let of_mask = usize::from(config.mask) + 1;
        if entries != of_mask || !entries.is_power_of_two() || entries > RSS_TABLE_MAX {
            return Err(ControlError::RssTable { entries });
        }
        let mut rss = RssTable {
            mask: config.mask,
            unclassified: config.unclassified,
            pairs: [0; RSS_TABLE_MAX],
        };
        for (pair, bytes) in rss.pairs.iter_mut().zip(config.table) {
            *pair = u16::from_le_bytes(*bytes);
        }
        let mut named = rss.pairs.iter().chain([&rss.unclassified]);
        if let Some(&pair) = named.find(|pair| **pair >= max) {
            return Err(ControlError::RssQueue { pair, max });
        }
        self.set_pairs(config.max_tx_vq)?;
        self.hash = hash;
        self.rss = rss;
        self.steering = Steering::Rss;
        Ok(Change::Steering)
    }

    /// Offloads that depend on others fall with them, as in negotiation.
    fn set_offloads(&mut self, wanted: u64) -> Result<Change, ControlError> {
        let (refused, offloads) = (
            ControlError::Offloads { offloads: wanted },
            Features::from_bits_retain(wanted),
        );
        let known = Offloads::all().offered_to_driver();
        let negotiated = known & self.accepted;
        if !negotiated.contains(offloads) {
            return Err(refused);
        }
        self.offloads = Offloads::to_driver(offloads);
        Ok(Change::Offloads(self.offloads))
    }
}

/// Features of which a command needs at least one.
fn needs(command: &Command<'_>) -> Features {
    match command {
        Command::Receive { mode, .. } => {
            let basic = ReceiveModes::PROMISC | ReceiveModes::ALLMULTI;
            if basic.contains(*mode) {
                VIRTIO_NET_F_CTRL_RX
            } else {
                VIRTIO_NET_F_CTRL_RX_EXTRA
            }
        }
        Command::MacTable { .. } => VIRTIO_NET_F_CTRL_RX,
        Command::MacAddress(_) => VIRTIO_NET_F_CTRL_MAC_ADDR | VIRTIO_NET_F_CTRL_RX,
        Command::VlanAdd(_) | Command::VlanDelete(_) => VIRTIO_NET_F_CTRL_VLAN,
        Command::AnnounceAck => VIRTIO_NET_F_GUEST_ANNOUNCE,
        Command::Pairs(_) => VIRTIO_NET_F_MQ,
        Command::Rss(_) => VIRTIO_NET_F_RSS,
        Command::Hash(_) => VIRTIO_NET_F_HASH_REPORT,
        Command::GuestOffloads(_) => VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    }
}

fn mac_table(list: MacList<'_>, room: usize) -> MacTable {
    match list {
        MacList::Listed(macs) => MacTable::new(macs.iter().map(|mac| Mac(*mac)), room),
        MacList::TooMany => MacTable::of_all(),
    }
}

fn checked_hash(config: &HashConfig<'_>) -> Result<Hash, ControlError> {
    let key_len = config.key.len();
    let refused = ControlError::HashTypes {
        types: config.types,
        key_len,
    };
    let types = HashTypes::from_bits(config.types).ok_or(refused)?;
    if key_len > HASH_KEY_MAX || !types.is_empty() && key_len == 0 {
        return Err(refused);
    }
    Ok(Hash::new(types, config.key))
}
