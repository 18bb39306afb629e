//! Which queue pair a frame goes to: a hash of its flow, either our own, which is
//! cheap and the same in both directions, or the one of receive-side scaling
//! (virtio 1.3 5.1.6.4.3, 5.1.6.5.6).

use bitflags::bitflags;

use super::packet::{Network, Packet, TCP, UDP};

/// Bytes of a key for the Toeplitz hash that we take.
pub const HASH_KEY_MAX: usize = 40;

/// Bytes that a hash is of at most: two IPv6 addresses and two ports.
const INPUT_MAX: usize = 36;

/// Odd numbers without pattern, as multipliers.
const K1: u64 = 0x9E37_79B9_7F4A_7C15;
const K2: u64 = 0xD6E8_FEB8_6659_FD93;

/// A hash of the flow of a frame, the same in both directions. Fragments and what
/// is not IP have no ports; what is not IP goes by its Ethernet addresses.
#[inline]
pub fn flow_hash(head: &[u8]) -> u32 {
    let packet = Packet::parse(head);
    let (source, destination, protocol) = match packet.network {
        Network::Ipv4 => {
            let [source, destination] = addresses::<4>(head, packet.network_at + 12);
            (
                u64::from(u32::from_ne_bytes(source)),
                u64::from(u32::from_ne_bytes(destination)),
                packet.protocol,
            )
        }
        Network::Ipv6 => {
            let [source, destination] = addresses::<16>(head, packet.network_at + 8);
            (fold(source), fold(destination), packet.protocol)
        }
        Network::Other => {
            let [destination, source] = addresses::<6>(head, 0);
            let bits = |mac: [u8; 6]| {
                let [a, b, c, d, e, f] = mac;
                u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
            };
            (bits(source), bits(destination), None)
        }
    };
    let [from, to] = ports(head, &packet).unwrap_or_default();
    // Each end by itself, then a sum, which does not say which is which.
    let end = |address: u64, port: [u8; 2]| {
        let mixed = (address ^ u64::from(u16::from_ne_bytes(port)) << 40).wrapping_mul(K1);
        mixed ^ mixed >> 32
    };
    let sum = end(source, from).wrapping_add(end(destination, to));
    let mixed = (sum ^ u64::from(protocol.unwrap_or(0))).wrapping_mul(K2);
    // The upper half is the better one.
    u32::try_from(mixed >> 32).unwrap_or(0)
}

/// Spreads hashes evenly over `pairs` queue pairs, of which there is at least one.
#[inline]
pub fn steer(hash: u32, pairs: u16) -> u16 {
    // The product is below `pairs` times 2^32.
    u16::try_from((u64::from(hash) * u64::from(pairs)) >> 32).unwrap_or(0)
}

#[inline]
fn fold(address: [u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, low @ ..] = address;
    let high = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    high.wrapping_mul(K2) ^ u64::from_ne_bytes(low)
}

/// Two addresses one behind the other; zero where they are cut off.
#[inline]
fn addresses<const N: usize>(head: &[u8], at: usize) -> [[u8; N]; 2] {
    let rest = head.get(at..).unwrap_or_default();
    let second = rest.get(N..).unwrap_or_default();
    [rest, second].map(|bytes| bytes.first_chunk().copied().unwrap_or([0; N]))
}

/// Source and destination port, where there are any.
#[inline]
fn ports(head: &[u8], packet: &Packet) -> Option<[[u8; 2]; 2]> {
    if packet.fragment || !matches!(packet.protocol, Some(TCP | UDP)) {
        return None;
    }
    let &[a, b, c, d] = head.get(packet.transport_at..)?.first_chunk()?;
    Some([[a, b], [c, d]])
}

bitflags! {
    /// What a hash may be of: `VIRTIO_NET_HASH_TYPE_*` (5.1.6.4.3.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct HashTypes: u32 {
        /// IPv4 addresses.
        const IPV4 = 1;
        /// IPv4 addresses and TCP ports.
        const TCPV4 = 1 << 1;
        /// IPv4 addresses and UDP ports.
        const UDPV4 = 1 << 2;
        /// IPv6 addresses.
        const IPV6 = 1 << 3;
        /// IPv6 addresses and TCP ports.
        const TCPV6 = 1 << 4;
        /// IPv6 addresses and UDP ports.
        const UDPV6 = 1 << 5;
    }
}

/// A hash, and what it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashReport {
    /// The hash.
    pub value: u32,
    /// `VIRTIO_NET_HASH_REPORT_*`.
    pub report: u16,
}

/// The Toeplitz hash with one key, as tables of what each half byte of the input adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toeplitz {
    tables: [[u32; 16]; 2 * INPUT_MAX],
}

impl Toeplitz {
    /// With a key, which is padded with zero.
    pub fn new(key: &[u8]) -> Self {
        let byte = |at: usize| u64::from(key.get(at).copied().unwrap_or(0));
        let mut tables = [[0; 16]; 2 * INPUT_MAX];
        for (half, table) in tables.iter_mut().enumerate() {
            // The 40 bits of the key from this byte on hold the 32 that each of its
            // bits is for.
            let window = (0..5).fold(0, |window, i| window << 8 | byte(half / 2 + i));
            let shift = 8 - 4 * (half % 2);
            // Each value adds one bit to a smaller one.
            for value in 1..16_usize {
                let bit = value.trailing_zeros() as usize;
                let [a, b, c, d, ..] = (window >> (shift - 3 + bit)).to_le_bytes();
                table[value] = table[value & (value - 1)] ^ u32::from_le_bytes([a, b, c, d]);
            }
        }
        Self { tables }
    }

    /// The hash of at most 36 bytes; what is behind them does not count.
    #[inline]
    pub fn hash(&self, input: &[u8]) -> u32 {
        let mut hash = 0;
        for (byte, tables) in input.iter().zip(self.tables.as_chunks::<2>().0) {
            hash ^= tables[0][usize::from(byte >> 4)] ^ tables[1][usize::from(byte & 0xF)];
        }
        hash
    }

    /// The hash of a frame, of what `enabled` says; `None` when that says nothing
    /// of such a frame. Extension headers of IPv6 are skipped.
    #[inline]
    pub fn hash_frame(&self, head: &[u8], enabled: HashTypes) -> Option<HashReport> {
        let packet = Packet::parse(head);
        let (address_at, len, types, first_report) = match packet.network {
            Network::Ipv4 => (
                12,
                8,
                [HashTypes::IPV4, HashTypes::TCPV4, HashTypes::UDPV4],
                1,
            ),
            Network::Ipv6 => (
                8,
                32,
                [HashTypes::IPV6, HashTypes::TCPV6, HashTypes::UDPV6],
                4,
            ),
            Network::Other => return None,
        };
        let at = packet.network_at + address_at;
        let addresses = head.get(at..at + len)?;
        let mut input = [0; INPUT_MAX];
        input[..len].copy_from_slice(addresses);
        let transport = match packet.protocol {
            Some(TCP) => 1,
            Some(UDP) => 2,
            _ => 0,
        };
        let with_ports = transport != 0 && enabled.contains(types[usize::from(transport)]);
        if with_ports && let Some(ports) = ports(head, &packet) {
            input[len..len + 4].copy_from_slice(ports.as_flattened());
            return Some(HashReport {
                value: self.hash(&input[..len + 4]),
                report: first_report + transport,
            });
        }
        enabled.contains(types[0]).then(|| HashReport {
            value: self.hash(&input[..len]),
            report: first_report,
        })
    }
}
