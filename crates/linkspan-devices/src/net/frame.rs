//! A host that is not there: answers to what a guest needs before it can talk to
//! anybody. ARP (RFC 826), echo (RFC 792), DHCP (RFC 2131) with one lease.
//!
//! A frame goes in, perhaps a frame comes out; nothing is remembered. Frames come
//! complete: a checksum that is left to others has been completed before.

use super::Mac;
use super::checksum::Sum;
use super::offload::pseudo_header_sum;
use super::packet::{
    ETHERNET_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ICMP, Network, Packet, UDP, be16, be32,
};

/// An IPv4 address.
pub type Ipv4 = [u8; 4];

/// Bytes of the longest answer: an Ethernet frame with 1500 bytes.
pub const RESPONSE_MAX: usize = ETHERNET_LEN + 1500;

const IPV4_LEN: usize = 20;
const UDP_LEN: usize = 8;
const ARP_LEN: usize = 28;

const BROADCAST: Ipv4 = [255; 4];
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// What the one client of a DHCP server gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub client: Ipv4,
    /// Bits of the network in it: 0 to 32.
    pub prefix_len: u8,
    /// The way out, if there is one.
    pub router: Option<Ipv4>,
    /// Who knows names, if anybody does.
    pub dns: Option<Ipv4>,
    /// How long it may keep all that, in seconds.
    pub seconds: u32,
    /// Bytes of a packet at most.
    pub mtu: u16,
}

/// The host that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Responder {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub address: Ipv4,
    /// What it leases, if it does.
    pub lease: Option<Lease>,
}

impl Responder {
    /// The answer to a frame, written into `out`: its number of bytes. `None` when
    /// nothing is to be answered, or the answer does not fit.
    pub fn respond(&self, frame: &[u8], out: &mut [u8]) -> Option<usize> {
        let destination = Mac::destination(frame);
        if destination != self.mac && destination != Mac::BROADCAST
            || Mac::source(frame).is_multicast()
        {
            return None;
        }
        match be16(frame, ETHERNET_LEN - 2)? {
            ETHERTYPE_ARP => self.arp_reply(frame, out),
            ETHERTYPE_IPV4 => {
                let echo = self.echo_reply(frame, out);
                echo.or_else(|| self.dhcp_reply(frame, out))
            }
            _ => None,
        }
    }

    /// Says who has our address (RFC 826).
    pub fn arp_reply(&self, frame: &[u8], out: &mut [u8]) -> Option<usize> {
        let arp = frame.get(ETHERNET_LEN..ETHERNET_LEN + ARP_LEN)?;
        // Ethernet and IPv4, addresses of 6 and 4 bytes, a request for us.
        let for_us = arp[..8] == [0, 1, 8, 0, 6, 4, 0, 1] && arp[24..28] == self.address;
        let out = out.get_mut(..ETHERNET_LEN + ARP_LEN)?;
        if !for_us {
            return None;
        }
        self.ethernet(Mac::source(frame), ETHERTYPE_ARP, out);
        let reply = &mut out[ETHERNET_LEN..];
        reply[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
        reply[8..14].copy_from_slice(&self.mac.0);
        reply[14..18].copy_from_slice(&self.address);
        reply[18..28].copy_from_slice(&arp[8..18]);
        Some(out.len())
    }

    /// Sends an echo back (RFC 792). Fragments are not answered.
    pub fn echo_reply(&self, frame: &[u8], out: &mut [u8]) -> Option<usize> {
        let (at, end) = ipv4_payload(frame, ICMP)?;
        let message = frame.get(at..end)?;
        if frame[30..34] != self.address
            || message.get(..2)? != [8, 0]
            || message.len() < 8
            || Sum::default().with(message).folded() != [0xFF, 0xFF]
        {
            return None;
        }
        let start = ETHERNET_LEN + IPV4_LEN;
        let out = out.get_mut(..start + message.len())?;
        let reply = &mut out[start..];
        reply.copy_from_slice(message);
        reply[0] = 0;
        reply[2..4].fill(0);
        let checksum = Sum::default().with(reply).checksum();
        reply[2..4].copy_from_slice(&checksum);
        let guest = *frame[26..].first_chunk()?;
        self.ipv4(Mac::source(frame), guest, ICMP, out);
        Some(out.len())
    }

    /// Leases an address: an offer, an acknowledgement, or a refusal (RFC 2131).
    pub fn dhcp_reply(&self, frame: &[u8], out: &mut [u8]) -> Option<usize> {
        let lease = self.lease.as_ref()?;
        let (at, end) = ipv4_payload(frame, UDP)?;
        let datagram = frame.get(at..end)?;
        if be16(datagram, 2)? != SERVER_PORT {
            return None;
        }
        let request = DhcpRequest::parse(datagram.get(UDP_LEN..)?)?;
        if request.server.is_some_and(|server| server != self.address) {
            return None;
        }
        let answer = match request.kind {
            DISCOVER => OFFER,
            // A client that knows its address says it in one place or the other.
            REQUEST if request.wanted == lease.client => ACK,
            REQUEST => NAK,
            _ => return None,
        };
        let start = ETHERNET_LEN + IPV4_LEN + UDP_LEN;
        let message = out.get_mut(start..)?;
        let len = request.answer(answer, self.address, lease, message)?;
        let out = &mut out[..start + len];
        let (mac, client) = if answer == NAK || request.broadcast {
            (Mac::BROADCAST, BROADCAST)
        } else {
            (Mac(request.client), lease.client)
        };
        self.udp(client, out);
        self.ipv4(mac, client, UDP, out);
        Some(out.len())
    }

    fn ethernet(&self, to: Mac, kind: u16, out: &mut [u8]) {
        out[..6].copy_from_slice(&to.0);
        out[6..12].copy_from_slice(&self.mac.0);
        out[12..14].copy_from_slice(&kind.to_be_bytes());
    }

    /// Headers before a payload that is there already.
    fn ipv4(&self, mac: Mac, to: Ipv4, protocol: u8, out: &mut [u8]) {
        self.ethernet(mac, ETHERTYPE_IPV4, out);
        let len = u16::try_from(out.len() - ETHERNET_LEN).unwrap_or(u16::MAX);
        let header = &mut out[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN];
        header.fill(0);
        header[0] = 0x45;
        header[2..4].copy_from_slice(&len.to_be_bytes());
        header[8..10].copy_from_slice(&[64, protocol]);
        header[12..16].copy_from_slice(&self.address);
        header[16..20].copy_from_slice(&to);
        let checksum = Sum::default().with(header).checksum();
        header[10..12].copy_from_slice(&checksum);
    }

    fn udp(&self, to: Ipv4, out: &mut [u8]) {
        let datagram = &mut out[ETHERNET_LEN + IPV4_LEN..];
        let len = u16::try_from(datagram.len()).unwrap_or(u16::MAX);
        datagram[..2].copy_from_slice(&SERVER_PORT.to_be_bytes());
        datagram[2..4].copy_from_slice(&CLIENT_PORT.to_be_bytes());
        datagram[4..6].copy_from_slice(&len.to_be_bytes());
        let pseudo = pseudo_header_sum(&self.address, &to, UDP, len);
        datagram[6..8].copy_from_slice(&pseudo);
        let checksum = Sum::default().with(datagram).transport_checksum();
        datagram[6..8].copy_from_slice(&checksum);
    }
}

/// Where the payload of a whole IPv4 packet of this protocol begins and ends.
fn ipv4_payload(frame: &[u8], protocol: u8) -> Option<(usize, usize)> {
    let packet = Packet::parse(frame);
    let wanted = packet.network == Network::Ipv4
        && packet.network_at == ETHERNET_LEN
        && packet.protocol == Some(protocol)
        && !packet.fragment;
    // Frames are padded: the packet says where it ends.
    let end = ETHERNET_LEN + usize::from(be16(frame, ETHERNET_LEN + 2)?);
    (wanted && end <= frame.len() && packet.transport_at <= end)
        .then_some((packet.transport_at, end))
}

/// Fields of a BOOTP message and options of DHCP (RFC 2131 2, RFC 2132).
const BOOTP_LEN: usize = 236;
const COOKIE: u32 = 0x6382_5363;
const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
const BROADCAST_FLAG: u16 = 0x8000;

const OPTION_MASK: u8 = 1;
const OPTION_ROUTER: u8 = 3;
const OPTION_DNS: u8 = 6;
const OPTION_MTU: u8 = 26;
const OPTION_WANTED: u8 = 50;
const OPTION_SECONDS: u8 = 51;
const OPTION_KIND: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_END: u8 = 255;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// What a client asks.
struct DhcpRequest<'a> {
    message: &'a [u8],
    client: [u8; 6],
    kind: u8,
    /// The address that it has or wants.
    wanted: Ipv4,
    server: Option<Ipv4>,
    broadcast: bool,
}

impl<'a> DhcpRequest<'a> {
    fn parse(message: &'a [u8]) -> Option<Self> {
        // Ethernet, with addresses of 6 bytes.
        if message.get(..3)? != [BOOTREQUEST, 1, 6] || be32(message, BOOTP_LEN)? != COOKIE {
            return None;
        }
        let mut request = Self {
            message,
            client: *message[28..].first_chunk()?,
            kind: 0,
            wanted: *message[12..].first_chunk()?,
            server: None,
            broadcast: be16(message, 10)? & BROADCAST_FLAG != 0,
        };
        let mut options = &message[BOOTP_LEN + 4..];
        while let Some((&code, rest)) = options.split_first() {
            match code {
                0 => {
                    options = rest;
                    continue;
                }
                OPTION_END => break,
                _ => {}
            }
            let (&len, rest) = rest.split_first()?;
            let (value, rest) = rest.split_at_checked(len.into())?;
            match code {
                OPTION_KIND => request.kind = *value.first()?,
                OPTION_WANTED => request.wanted = *value.first_chunk()?,
                OPTION_SERVER => request.server = Some(*value.first_chunk()?),
                _ => {}
            }
            options = rest;
        }
        Some(request)
    }

    /// Writes the answer; its number of bytes, if it fits.
    fn answer(&self, kind: u8, server: Ipv4, lease: &Lease, out: &mut [u8]) -> Option<usize> {
        let mut options = Options {
            bytes: [0; OPTIONS_MAX],
            len: 0,
        };
        options.put(OPTION_KIND, &[kind]);
        options.put(OPTION_SERVER, &server);
        if kind != NAK {
            let host_bits = 32 - u32::from(lease.prefix_len.min(32));
            let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
            options.put(OPTION_SECONDS, &lease.seconds.to_be_bytes());
            options.put(OPTION_MASK, &mask.to_be_bytes());
            options.put(OPTION_MTU, &lease.mtu.to_be_bytes());
            for (code, address) in [(OPTION_ROUTER, lease.router), (OPTION_DNS, lease.dns)] {
                if let Some(address) = address {
                    options.put(code, &address);
                }
            }
        }
        options.bytes[options.len] = OPTION_END;
        // Never shorter than BOOTP has it (RFC 1542 2.1).
        let len = BOOTP_LEN + 4 + OPTIONS_MAX;
        let out = out.get_mut(..len)?;
        out.fill(0);
        out[..3].copy_from_slice(&[BOOTREPLY, 1, 6]);
        // Transaction and flags as asked.
        out[4..8].copy_from_slice(&self.message[4..8]);
        out[10..12].copy_from_slice(&self.message[10..12]);
        if kind != NAK {
            out[16..20].copy_from_slice(&lease.client);
            out[20..24].copy_from_slice(&server);
        }
        out[28..44].copy_from_slice(&self.message[28..44]);
        out[BOOTP_LEN..BOOTP_LEN + 4].copy_from_slice(&COOKIE.to_be_bytes());
        out[BOOTP_LEN + 4..].copy_from_slice(&options.bytes);
        Some(len)
    }
}

const OPTIONS_MAX: usize = 64;

struct Options {
    bytes: [u8; OPTIONS_MAX],
    len: usize,
}

impl Options {
    /// All options together, of at most 4 bytes each, have room.
    fn put(&mut self, code: u8, value: &[u8]) {
        let end = self.len + 2 + value.len();
        self.bytes[self.len] = code;
        self.bytes[self.len + 1] = u8::try_from(value.len()).unwrap_or(0);
        self.bytes[self.len + 2..end].copy_from_slice(value);
        self.len = end;
    }
}
