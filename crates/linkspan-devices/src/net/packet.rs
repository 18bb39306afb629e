//! Where the headers of a frame are: Ethernet, VLAN tags, IPv4 or IPv6 with its
//! extension headers, and what lies behind them.

/// `EtherType` of IPv4.
pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
/// `EtherType` of ARP.
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
/// `EtherType` of IPv6.
pub(super) const ETHERTYPE_IPV6: u16 = 0x86DD;
/// `EtherType` of a VLAN tag (IEEE 802.1Q).
pub(super) const ETHERTYPE_VLAN: u16 = 0x8100;
/// `EtherType` of an outer VLAN tag (IEEE 802.1ad).
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88A8;

/// Bytes of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// Bytes of a VLAN tag.
pub const VLAN_LEN: usize = 4;

/// IP protocol numbers.
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// VLAN tags that are looked through.
const TAGS_MAX: usize = 2;
/// IPv6 extension headers that are looked through.
const EXTENSIONS_MAX: usize = 8;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// An IPv4 packet.
    Ipv4,
    /// An IPv6 packet.
    Ipv6,
    /// Something else, or a packet that is cut off.
    Other,
}

/// The places of a frame's headers, all inside the bytes that were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What is behind the Ethernet header and its tags.
    pub network: Network,
    /// Where that begins.
    pub network_at: usize,
    /// The protocol behind the network header, if it is known.
    pub protocol: Option<u8>,
    /// Where that begins; perhaps the end of what was looked at.
    pub transport_at: usize,
    /// Whether it is a part of a packet. Only the first has a transport header.
    pub fragment: bool,
}

impl Packet {
    /// Looks at the first bytes of a frame.
    #[inline]
    pub fn parse(head: &[u8]) -> Self {
        let mut at = ETHERNET_LEN;
        let mut kind = be16(head, at - 2);
        for _ in 0..TAGS_MAX {
            match kind {
                Some(ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN) => {
                    at += VLAN_LEN;
                    kind = be16(head, at - 2);
                }
                _ => break,
            }
        }
        let packet = match kind {
            Some(ETHERTYPE_IPV4) => Self::ipv4(head, at),
            Some(ETHERTYPE_IPV6) => Self::ipv6(head, at),
            _ => None,
        };
        packet.unwrap_or(Self {
            network: Network::Other,
            network_at: at.min(head.len()),
            protocol: None,
            transport_at: at.min(head.len()),
            fragment: false,
        })
    }

    #[inline]
    fn ipv4(head: &[u8], at: usize) -> Option<Self> {
        let header: &[u8; 20] = head.get(at..)?.first_chunk()?;
        let len = usize::from(header[0] & 0xF) * 4;
        if header[0] >> 4 != 4 || len < 20 {
            return None;
        }
        let inside = at + len <= head.len();
        Some(Self {
            network: Network::Ipv4,
            network_at: at,
            protocol: inside.then_some(header[9]),
            transport_at: (at + len).min(head.len()),
            // More fragments, or not the first.
            fragment: u16::from_be_bytes([header[6], header[7]]) & 0x3FFF != 0,
        })
    }

    #[inline]
    fn ipv6(head: &[u8], at: usize) -> Option<Self> {
        let header: &[u8; 40] = head.get(at..)?.first_chunk()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let mut packet = Self {
            network: Network::Ipv6,
            network_at: at,
            protocol: Some(header[6]),
            transport_at: at + 40,
            fragment: false,
        };
        if matches!(header[6], 0 | 43 | 44 | 51 | 60) {
            packet.skip_extensions(head);
        }
        Some(packet)
    }

    /// RFC 8200 4: each says what follows it and how long it is.
    fn skip_extensions(&mut self, head: &[u8]) {
        for _ in 0..EXTENSIONS_MAX {
            let Some(kind @ (0 | 43 | 44 | 51 | 60)) = self.protocol else {
                return;
            };
            let Some(&[next, len, a, b]) = head
                .get(self.transport_at..)
                .and_then(|rest| rest.first_chunk())
            else {
                break;
            };
            let len = match kind {
                44 => {
                    // More fragments, or not the first.
                    self.fragment |= u16::from_be_bytes([a, b]) & 0xFFF9 != 0;
                    8
                }
                // The authentication header counts words of 4 bytes.
                51 => (usize::from(len) + 2) * 4,
                _ => (usize::from(len) + 1) * 8,
            };
            let end = self.transport_at + len;
            if end > head.len() {
                break;
            }
            self.transport_at = end;
            self.protocol = Some(next);
        }
        // Cut off, or too many.
        if matches!(self.protocol, Some(0 | 43 | 44 | 51 | 60)) {
            self.protocol = None;
        }
    }
}

/// A number on the wire, if it is all inside.
#[inline]
pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*field))
}

/// A number on the wire, if it is all inside.
#[inline]
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*field))
}
