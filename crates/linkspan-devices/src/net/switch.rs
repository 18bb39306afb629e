//! A learning switch (IEEE 802.1Q): which port a frame goes to. Time is an input,
//! memory is fixed, and what a port can do to others is bounded: a port learns so
//! many stations and floods so many frames a second, and none of another port is
//! forgotten to make room. A station that is heard of at another port moves there,
//! unless it was configured.

use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};

use super::Mac;
use super::packet::ETHERNET_LEN;
use super::vlan::{VLANS, VlanSet, vlan_tag};

/// Stations in one bucket of the table: they share a cache line.
const WAYS: usize = 4;

/// What a switch is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchOptions {
    /// Ports, at least one and less than 65535.
    pub ports: u16,
    /// Stations that the table has room for; rounded up to a power of two.
    pub stations: u32,
    /// Stations that one port may have in the table without being configured.
    pub stations_per_port: u32,
    /// Seconds after which a station that sends nothing is forgotten.
    pub ageing_s: u32,
    /// How much one port may flood, if that is limited.
    pub flood: Option<FloodLimit>,
    /// Any number, so that nobody can choose addresses that share a bucket.
    pub seed: u64,
}

/// How many frames of a port may be flooded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodLimit {
    /// In a second.
    pub frames_per_s: u32,
    /// At once.
    pub burst: u32,
}

/// Options that make no switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// No ports, or too many.
    #[error("a switch of {ports} ports")]
    Ports {
        /// What was asked for.
        ports: u16,
    },
    /// No room, or more than can be counted.
    #[error("a table of {stations} stations")]
    Stations {
        /// What was asked for.
        stations: u32,
    },
    /// The machine refused memory.
    #[error(transparent)]
    Refused(#[from] Injected),
}

/// Which VLANs a port has to do with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a port has one and keeps it")]
pub enum PortVlans {
    /// None: tags are carried as they are. Such ports reach each other only.
    Unaware,
    /// One, without tags: 1 to 4094.
    Access(u16),
    /// Several, with tags; frames without go to `native`, if there is one.
    Trunk {
        /// The VLAN of frames without tag, either way.
        native: Option<u16>,
        /// The VLANs that are carried.
        allowed: VlanSet,
    },
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// To this port, unless that has no part in the [VLAN](Switch::egress).
    One {
        /// Which.
        port: u16,
        /// The VLAN of the frame; 0 without.
        vlan: u16,
    },
    /// To all ports that have a part in the VLAN, but the one that it came from.
    Flood {
        /// The VLAN of the frame; 0 without.
        vlan: u16,
    },
    /// Nowhere.
    Drop(DropReason),
}

/// Why a frame goes nowhere. Each is worth a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Not even an Ethernet header, or a port that there is not.
    Malformed,
    /// Its source is a group, or nobody.
    Source,
    /// Its source is configured for another port.
    Spoofed,
    /// For bridges, which do not pass it on (IEEE 802.1Q 8.6.3).
    Reserved,
    /// The port has no part in the VLAN.
    Vlan,
    /// Its destination is at the port that it came from.
    SamePort,
    /// The port has flooded too much.
    FloodLimit,
}

/// What is done to a frame before it leaves through a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Nothing.
    AsItIs,
    /// Its tag is taken off.
    Untag,
    /// It gets this tag, instead of the one that it has or none.
    Tag(u16),
}

/// A station that a switch has learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Station {
    /// Its VLAN; 0 without.
    pub vlan: u16,
    /// Its address.
    pub mac: Mac,
    /// When it was last heard of, in seconds of the switch's time.
    pub seen_s: u32,
    /// Where it is.
    pub port: u16,
}

/// A station. An entry without one has key 0, which no address gives: a source
/// is never zero.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// VLAN and address.
    key: u64,
    /// When it was last heard of.
    seen_s: u32,
    port: u16,
    is_static: bool,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Bucket([Entry; WAYS]);

#[derive(Debug)]
struct Port {
    vlans: PortVlans,
    /// Stations that were learned.
    learned: u32,
    /// Frames that it may still flood, in thousandths, and when that was.
    budget: u64,
    budget_ms: u64,
}

/// A learning switch.
#[derive(Debug)]
pub struct Switch {
    options: SwitchOptions,
    buckets: Vec<Bucket>,
    shift: u32,
    ports: Vec<Port>,
    moves: u64,
    news: u64,
}

impl Switch {
    /// A switch of these options, all of whose ports are [`PortVlans::Unaware`].
    ///
    /// # Errors
    /// When the options make none, or the memory cannot be had.
    pub fn new(options: SwitchOptions) -> Result<Self, SwitchError> {
        let (ports, stations) = (options.ports, options.stations);
        if ports == 0 || ports == u16::MAX {
            return Err(SwitchError::Ports { ports });
        }
        if stations == 0 || stations > 1 << 24 {
            return Err(SwitchError::Stations { stations });
        }
        // At least two buckets, so that the hash is shifted by less than 64.
        let count = (stations as usize)
            .div_ceil(WAYS)
            .next_power_of_two()
            .max(2);
        let mut buckets = fault::try_with_capacity(count)?;
        buckets.resize(count, Bucket::default());
        let mut list = fault::try_with_capacity(usize::from(ports))?;
        let budget = options
            .flood
            .map_or(0, |flood| u64::from(flood.burst) * 1000);
        list.resize_with(usize::from(ports), || Port {
            vlans: PortVlans::Unaware,
            learned: 0,
            budget,
            budget_ms: 0,
        });
        Ok(Self {
            options,
            shift: 64 - count.trailing_zeros(),
            buckets,
            ports: list,
            moves: 0,
            news: 0,
        })
    }

    /// Ports there are.
    pub fn ports(&self) -> u16 {
        self.options.ports
    }

    /// How often a station was heard of at another port than before.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// How often something was learned that other tables of the same ports should
    /// [hear](Self::note): a station that is new or has moved, or that would be
    /// forgotten there although it is heard of here.
    #[inline]
    pub fn news(&self) -> u64 {
        self.news
    }

    /// Takes over what another table has learned: this station is at `port`.
    pub fn note(&mut self, port: u16, vlan: u16, mac: Mac, now_ms: u64) {
        if port < self.options.ports && vlan < VLANS && !mac.is_multicast() && !mac.is_zero() {
            let now_s = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
            self.learn(port, key(vlan, mac), now_s);
        }
    }

    /// All stations that were learned and are remembered now.
    pub fn stations(&self, now_ms: u64) -> impl Iterator<Item = Station> {
        let now_s = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
        let entries = self.buckets.iter().flat_map(|bucket| &bucket.0);
        let learned = entries
            .filter(move |entry| entry.key != 0 && !entry.is_static && self.is_live(entry, now_s));
        learned.map(|entry| Station {
            port: entry.port,
            // What `key` made of them.
            vlan: u16::try_from(entry.key >> 48).unwrap_or(0),
            mac: Mac::of_bits(entry.key),
            seen_s: entry.seen_s,
        })
    }

    /// Stations that a port has in the table without being configured.
    pub fn learned(&self, port: u16) -> u32 {
        self.ports
            .get(usize::from(port))
            .map_or(0, |port| port.learned)
    }

    /// Sets which VLANs a port has to do with, and forgets what it learned; `false`
    /// when there is no such port or VLAN.
    pub fn set_vlans(&mut self, port: u16, vlans: PortVlans) -> bool {
        let possible = |vlan: &u16| (1..VLANS - 1).contains(vlan);
        let known = match &vlans {
            PortVlans::Unaware => true,
            PortVlans::Access(vlan) => possible(vlan),
            PortVlans::Trunk { native, .. } => native.iter().all(possible),
        };
        if port >= self.options.ports || !known {
            return false;
        }
        self.forget(port);
        self.ports[usize::from(port)].vlans = vlans;
        true
    }

    /// Forgets what a port has learned, as when its link went down.
    pub fn forget(&mut self, port: u16) {
        for entry in self.buckets.iter_mut().flat_map(|bucket| &mut bucket.0) {
            if entry.key != 0 && entry.port == port && !entry.is_static {
                *entry = Entry::default();
            }
        }
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.learned = 0;
        }
    }

    /// Configures a station: it is at this port for ever, and frames of it from
    /// another are dropped. `false` when there is no such port, station or VLAN, or
    /// no room for it.
    pub fn add_static(&mut self, port: u16, vlan: u16, mac: Mac) -> bool {
        if port >= self.options.ports || mac.is_multicast() || mac.is_zero() || vlan >= VLANS {
            return false;
        }
        let key = key(vlan, mac);
        let bucket = self.bucket(key);
        let entries = &mut self.buckets[bucket].0;
        let own = entries.iter().position(|entry| entry.key == key);
        let room = own.or_else(|| entries.iter().position(|entry| entry.key == 0));
        // What was only learned gives way.
        let room = room.or_else(|| entries.iter().position(|entry| !entry.is_static));
        let Some(at) = room else {
            return false;
        };
        let before = core::mem::replace(
            &mut entries[at],
            Entry {
                key,
                seen_s: 0,
                port,
                is_static: true,
            },
        );
        if before.key != 0 && !before.is_static {
            self.ports[usize::from(before.port)].learned -= 1;
        }
        true
    }

    /// Takes away a configured station; `false` when it was not configured.
    pub fn remove_static(&mut self, vlan: u16, mac: Mac) -> bool {
        let key = key(vlan, mac);
        let bucket = self.bucket(key);
        let mut entries = self.buckets[bucket].0.iter_mut();
        match entries.find(|entry| key != 0 && entry.key == key && entry.is_static) {
            Some(entry) => {
                *entry = Entry::default();
                true
            }
            None => false,
        }
    }

    /// Decides where a frame goes that begins with `head` and came from `port`, and
    /// learns its source. `now_ms` never goes back; 18 bytes are enough.
    #[inline]
    pub fn forward(&mut self, port: u16, head: &[u8], now_ms: u64) -> Forward {
        let Some(from) = self.ports.get(usize::from(port)) else {
            return Forward::Drop(DropReason::Malformed);
        };
        if head.len() < ETHERNET_LEN {
            return Forward::Drop(DropReason::Malformed);
        }
        let Some(vlan) = ingress(&from.vlans, head) else {
            return Forward::Drop(DropReason::Vlan);
        };
        let (source, destination) = (Mac::source(head), Mac::destination(head));
        if source.is_multicast() || source.is_zero() {
            return Forward::Drop(DropReason::Source);
        }
        // Seconds of the life of a machine fit 32 bits.
        let now_s = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
        if !self.learn(port, key(vlan, source), now_s) {
            return Forward::Drop(DropReason::Spoofed);
        }
        if destination.is_multicast() {
            if matches!(destination.0, [0x01, 0x80, 0xC2, 0, 0, 0..=0xF]) {
                return Forward::Drop(DropReason::Reserved);
            }
        } else if let Some(to) = self.find(key(vlan, destination), now_s) {
            return if to == port {
                Forward::Drop(DropReason::SamePort)
            } else {
                Forward::One { port: to, vlan }
            };
        }
        if self.may_flood(port, now_ms) {
            Forward::Flood { vlan }
        } else {
            Forward::Drop(DropReason::FloodLimit)
        }
    }

    /// How a frame of this VLAN that begins with `head` leaves through `port`;
    /// `None` when the port has no part in the VLAN.
    #[inline]
    pub fn egress(&self, port: u16, vlan: u16, head: &[u8]) -> Option<Egress> {
        let tagged = || vlan_tag(head).is_some();
        let untag = || {
            if tagged() {
                Egress::Untag
            } else {
                Egress::AsItIs
            }
        };
        match &self.ports.get(usize::from(port))?.vlans {
            PortVlans::Unaware => (vlan == 0).then_some(Egress::AsItIs),
            PortVlans::Access(own) => (vlan == *own).then(untag),
            PortVlans::Trunk { native, .. } if *native == Some(vlan) => Some(untag()),
            PortVlans::Trunk { allowed, .. } => {
                (vlan != 0 && allowed.contains(vlan)).then(|| match vlan_tag(head) {
                    Some(tag) if tag == vlan => Egress::AsItIs,
                    _ => Egress::Tag(vlan),
                })
            }
        }
    }

    #[inline]
    fn bucket(&self, key: u64) -> usize {
        // Both halves of a product of 128 bits, so that every bit of the key counts.
        let product = u128::from(key ^ self.options.seed) * 0x9E37_79B9_7F4A_7C15;
        let [low, high] = [product, product >> 64].map(|half| half & u128::from(u64::MAX));
        let hash = u64::try_from(low ^ high).unwrap_or(0);
        // Below the number of buckets, by the shift.
        usize::try_from(hash >> self.shift).unwrap_or(0)
    }

    #[inline]
    fn find(&self, key: u64, now_s: u32) -> Option<u16> {
        let entries = &self.buckets[self.bucket(key)].0;
        let entry = entries.iter().find(|entry| entry.key == key)?;
        // Nobody is at address zero, which is what free entries look like.
        (key != 0 && self.is_live(entry, now_s)).then_some(entry.port)
    }

    #[inline]
    fn is_live(&self, entry: &Entry, now_s: u32) -> bool {
        entry.is_static || now_s.saturating_sub(entry.seen_s) <= self.options.ageing_s
    }

    /// Notes that a station is at `port`; `false` when it is configured elsewhere.
    #[inline]
    fn learn(&mut self, port: u16, key: u64, now_s: u32) -> bool {
        let bucket = self.bucket(key);
        let entries = &mut self.buckets[bucket].0;
        let Some(entry) = entries.iter_mut().find(|entry| entry.key == key) else {
            self.learn_new(port, key, bucket, now_s);
            return true;
        };
        if entry.port == port {
            // A line that nobody changes stays with whoever reads it.
            if entry.seen_s != now_s && !entry.is_static {
                // Other tables hear of it a few times while they would remember it.
                let period = (self.options.ageing_s / 4).max(1);
                self.news += u64::from(entry.seen_s / period != now_s / period);
                entry.seen_s = now_s;
            }
            return true;
        }
        if entry.is_static {
            return false;
        }
        self.move_station(port, key, bucket, now_s);
        true
    }

    /// The station is at another port now. One that may have no more keeps nobody
    /// from being forgotten at the old one.
    #[cold]
    fn move_station(&mut self, port: u16, key: u64, bucket: usize, now_s: u32) {
        let room = self.ports[usize::from(port)].learned < self.options.stations_per_port;
        let mut entries = self.buckets[bucket].0.iter_mut();
        let Some(entry) = entries.find(|entry| entry.key == key) else {
            return;
        };
        self.ports[usize::from(entry.port)].learned -= 1;
        self.moves += 1;
        self.news += 1;
        if room {
            (entry.port, entry.seen_s) = (port, now_s);
            self.ports[usize::from(port)].learned += 1;
        } else {
            *entry = Entry::default();
        }
    }

    /// Takes a free or outdated place. A port at its limit, or in a full bucket,
    /// gives up the one of its own that was silent longest, and no other.
    #[cold]
    fn learn_new(&mut self, port: u16, key: u64, bucket: usize, now_s: u32) {
        let entries = &self.buckets[bucket].0;
        let free = entries
            .iter()
            .position(|entry| entry.key == 0 || !self.is_live(entry, now_s));
        let oldest_own = || {
            let own = entries.iter().enumerate();
            let own = own.filter(|(_, entry)| entry.port == port && !entry.is_static);
            own.filter(|(_, entry)| entry.key != 0)
                .min_by_key(|(_, entry)| entry.seen_s)
                .map(|(at, _)| at)
        };
        let at_limit = self.ports[usize::from(port)].learned >= self.options.stations_per_port;
        let place = if at_limit {
            oldest_own()
        } else {
            free.or_else(oldest_own)
        };
        let Some(at) = place else {
            return;
        };
        let before = core::mem::replace(
            &mut self.buckets[bucket].0[at],
            Entry {
                key,
                seen_s: now_s,
                port,
                is_static: false,
            },
        );
        if before.key != 0 {
            self.ports[usize::from(before.port)].learned -= 1;
        }
        self.news += 1;
        self.ports[usize::from(port)].learned += 1;
    }

    /// A bucket of tokens that fills up with time.
    #[inline]
    fn may_flood(&mut self, port: u16, now_ms: u64) -> bool {
        let Some(limit) = self.options.flood else {
            return true;
        };
        let port = &mut self.ports[usize::from(port)];
        let passed = now_ms.saturating_sub(port.budget_ms);
        port.budget_ms = port.budget_ms.max(now_ms);
        // Frames in a second are thousandths of a frame in a millisecond.
        let earned = passed.saturating_mul(limit.frames_per_s.into());
        let most = u64::from(limit.burst) * 1000;
        port.budget = port.budget.saturating_add(earned).min(most);
        match port.budget.checked_sub(1000) {
            Some(left) => {
                port.budget = left;
                true
            }
            None => false,
        }
    }
}

/// Never 0 for an address that is not zero.
#[inline]
fn key(vlan: u16, mac: Mac) -> u64 {
    u64::from(vlan) << 48 | mac.bits()
}

/// The VLAN of a frame that comes in; `None` when the port does not take it. A tag
/// with VLAN 0 says only a priority.
#[inline]
fn ingress(vlans: &PortVlans, head: &[u8]) -> Option<u16> {
    match vlans {
        PortVlans::Unaware => Some(0),
        PortVlans::Access(own) => match vlan_tag(head) {
            None | Some(0) => Some(*own),
            Some(_) => None,
        },
        PortVlans::Trunk { native, allowed } => match vlan_tag(head) {
            None | Some(0) => *native,
            Some(vlan) => allowed.contains(vlan).then_some(vlan),
        },
    }
}
