//! What becomes of a frame between two ports: it goes on as it is where the
//! receiver does what is left to do, else checksum or segmentation are done here.

use super::checksum::Sum;
use super::features::Offloads;
use super::header::{Checksum, FRAME_LEN_MIN, Gso, GsoKind, Offload, PartialChecksum};
use super::packet::{ETHERNET_LEN, ETHERTYPE_VLAN, Network, Packet, TCP, VLAN_LEN, be16};
use super::segment::{SegmentError, Segmentation};

/// The receiving end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receiver {
    /// What it does itself.
    pub offloads: Offloads,
    /// Bytes of its packets at most, without Ethernet header.
    pub mtu: u16,
}

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing; its header says this.
    Forward(Offload),
    /// Complete the checksum with [`complete_checksum`]; nothing else is left then.
    Checksum(PartialChecksum),
    /// Cut it into frames that leave nothing to do.
    Segment(Segmentation),
    /// It cannot reach this receiver.
    Drop(PlanError),
}

/// Why a frame cannot reach a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Longer than the receiver's packets.
    #[error("a frame of {len} bytes for a receiver whose longest has {max}")]
    TooLong {
        /// Its bytes.
        len: u32,
        /// Bytes that the receiver takes.
        max: u32,
    },
    /// Datagrams are not fragmented here.
    #[error("a datagram to be fragmented for a receiver that does not do it")]
    Fragmentation,
    /// It cannot be cut.
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

/// Decides about a frame of `frame_len` bytes that begins with `head`.
#[inline]
pub fn plan(offload: &Offload, head: &[u8], frame_len: u32, receiver: &Receiver) -> Plan {
    match *offload {
        Offload::Whole(checksum) => {
            let max = u32::from(receiver.mtu) + FRAME_LEN_MIN;
            if frame_len > max {
                let max = max_frame(head, receiver);
                if frame_len > max {
                    return Plan::Drop(PlanError::TooLong {
                        len: frame_len,
                        max,
                    });
                }
            }
            match checksum {
                Checksum::Unknown => Plan::Forward(Offload::NONE),
                Checksum::Valid if receiver.offloads.contains(Offloads::VALIDATED) => {
                    Plan::Forward(*offload)
                }
                Checksum::Valid => Plan::Forward(Offload::NONE),
                Checksum::Partial(_) if receiver.offloads.contains(Offloads::CHECKSUM) => {
                    Plan::Forward(*offload)
                }
                Checksum::Partial(partial) => Plan::Checksum(partial),
            }
        }
        Offload::Segments(gso) => plan_gso(&gso, head, frame_len, receiver),
    }
}

fn plan_gso(gso: &Gso, head: &[u8], frame_len: u32, receiver: &Receiver) -> Plan {
    let mut need = Offloads::CHECKSUM
        | match gso.kind {
            GsoKind::Tcp4 => Offloads::TSO4,
            GsoKind::Tcp6 => Offloads::TSO6,
            GsoKind::UdpFragments => Offloads::UFO,
            GsoKind::UdpSegments => match Packet::parse(head).network {
                Network::Ipv4 => Offloads::USO4,
                _ => Offloads::USO6,
            },
        };
    need.set(Offloads::ECN, gso.ecn);
    if receiver.offloads.contains(need) {
        return Plan::Forward(Offload::Segments(Gso {
            header_len: header_len(gso, head, frame_len),
            ..*gso
        }));
    }
    if gso.kind == GsoKind::UdpFragments {
        return Plan::Drop(PlanError::Fragmentation);
    }
    match Segmentation::new(gso, head, frame_len, max_frame(head, receiver)) {
        Ok(segmentation) => Plan::Segment(segmentation),
        Err(error) => Plan::Drop(error.into()),
    }
}

/// Bytes of headers, as the frame has it and not as its sender says.
fn header_len(gso: &Gso, head: &[u8], frame_len: u32) -> u16 {
    let start = usize::from(gso.checksum.start);
    let transport = match gso.kind {
        GsoKind::Tcp4 | GsoKind::Tcp6 => head.get(start + 12).map_or(20, |byte| {
            // In words of 4 bytes.
            u16::from(byte >> 4) * 4
        }),
        GsoKind::UdpFragments | GsoKind::UdpSegments => 8,
    };
    let len = gso.checksum.start.saturating_add(transport);
    u16::try_from(frame_len).map_or(len, |most| len.min(most))
}

/// The longest frame for a receiver: a tag does not count (IEEE 802.1Q).
fn max_frame(head: &[u8], receiver: &Receiver) -> u32 {
    let tagged = be16(head, ETHERNET_LEN - 2) == Some(ETHERTYPE_VLAN);
    let headers = ETHERNET_LEN + if tagged { VLAN_LEN } else { 0 };
    u32::from(receiver.mtu) + u32::try_from(headers).unwrap_or(0)
}

/// Completes a checksum whose field has the sum of the pseudo header. Where the
/// places are not inside `frame`, nothing is done.
pub fn complete_checksum(frame: &mut [u8], partial: PartialChecksum) {
    let start = usize::from(partial.start);
    let at = start + usize::from(partial.offset);
    let Some(bytes) = frame.get(start..) else {
        return;
    };
    let checksum = Sum::default().with(bytes).transport_checksum();
    if let Some(field) = frame.get_mut(at..at + 2) {
        field.copy_from_slice(&checksum);
    }
}

/// The field that a checksum is computed from, for a sender that leaves it to
/// others: the sum of the pseudo header (RFC 9293 3.1, RFC 768, RFC 8200 8.1).
pub fn pseudo_header_sum(source: &[u8], destination: &[u8], protocol: u8, len: u16) -> [u8; 2] {
    let sum = Sum::default().with(source).with(destination);
    sum.with_u16(u16::from(protocol)).with_u16(len).folded()
}

/// Where TCP and UDP have their checksum.
pub(super) const fn checksum_offset(protocol: u8) -> u16 {
    if protocol == TCP { 16 } else { 6 }
}
