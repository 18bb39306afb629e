//! Segmentation in software: one large frame in private memory becomes frames
//! that fit a receiver. What is copied is headers; payload is lent.

use super::checksum::Sum;
use super::header::{Gso, GsoKind};
use super::offload::checksum_offset;
use super::packet::{Network, Packet, TCP, UDP, be16, be32};

/// Bytes of headers of a frame that is cut here: Ethernet, two tags, IPv6 with
/// extension headers, TCP with options.
pub const SEGMENT_HEADERS_MAX: usize = 256;

/// Frames that one becomes at most: what 64 KiB make with the smallest segments
/// that Linux takes (48 bytes), and more.
pub const SEGMENTS_MAX: u32 = 1536;

/// Flags of TCP (RFC 9293 3.1, RFC 3168).
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Why a frame cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// It is not a whole packet of the protocol that the header names.
    #[error("the frame is no packet of the kind that its segmentation is for")]
    Protocol,
    /// The checksum is not where the protocol has it.
    #[error(
        "a checksum at {start} + {offset}, where the protocol has it at {want_start} + {want_offset}"
    )]
    Checksum {
        /// Where the header says the transport header is.
        start: u16,
        /// Where in it the checksum is.
        offset: u16,
        /// Where the transport header is.
        want_start: u16,
        /// Where in it the checksum is.
        want_offset: u16,
    },
    /// Headers that are cut off, or too long.
    #[error("{len} bytes of headers in a frame of {frame_len} bytes")]
    Headers {
        /// Bytes of the headers.
        len: usize,
        /// Bytes of the frame.
        frame_len: u32,
    },
    /// A segment does not fit the receiver.
    #[error("segments of {len} bytes for a receiver whose longest frame has {max}")]
    TooLong {
        /// Bytes of a whole segment.
        len: usize,
        /// Bytes that the receiver takes.
        max: u32,
    },
    /// Too many segments.
    #[error("a frame would become {count} frames")]
    TooMany {
        /// How many.
        count: u32,
    },
}

/// How a frame is cut: checked, and a plain copy of what was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    network: Network,
    network_at: usize,
    transport_at: usize,
    protocol: u8,
    headers: usize,
    frame_len: usize,
    /// Bytes of payload in each segment but the last.
    size: usize,
}

impl Segmentation {
    /// How to cut a frame of `frame_len` bytes, whose headers are in `head`, into
    /// frames of at most `max_frame` bytes.
    ///
    /// # Errors
    /// When it cannot be cut. TCP is cut into smaller segments than asked for if
    /// need be; datagrams must stay what they are.
    pub fn new(
        gso: &Gso,
        head: &[u8],
        frame_len: u32,
        max_frame: u32,
    ) -> Result<Self, SegmentError> {
        let packet = Packet::parse(head);
        let (network, protocol) = match gso.kind {
            GsoKind::Tcp4 => (Network::Ipv4, TCP),
            GsoKind::Tcp6 => (Network::Ipv6, TCP),
            GsoKind::UdpSegments => (packet.network, UDP),
            GsoKind::UdpFragments => return Err(SegmentError::Protocol),
        };
        if packet.network != network || packet.protocol != Some(protocol) || packet.fragment {
            return Err(SegmentError::Protocol);
        }
        let at = packet.transport_at;
        let want_start = u16::try_from(at).map_err(|_| SegmentError::Protocol)?;
        let want_offset = checksum_offset(protocol);
        let (start, offset) = (gso.checksum.start, gso.checksum.offset);
        if (start, offset) != (want_start, want_offset) {
            return Err(SegmentError::Checksum {
                start,
                offset,
                want_start,
                want_offset,
            });
        }
        let transport = match protocol {
            TCP => usize::from(head.get(at + 12).map_or(0, |byte| byte >> 4)) * 4,
            _ => 8,
        };
        let headers = at + transport;
        let least = if protocol == TCP { 20 } else { 8 };
        let whole = usize::try_from(frame_len).unwrap_or(usize::MAX);
        if transport < least || headers > head.len().min(whole).min(SEGMENT_HEADERS_MAX) {
            return Err(SegmentError::Headers {
                len: headers,
                frame_len,
            });
        }
        let segmentation = Self {
            network,
            network_at: packet.network_at,
            transport_at: at,
            protocol,
            headers,
            frame_len: whole,
            size: usize::from(gso.size.get()),
        };
        segmentation.fit(max_frame)
    }

    fn fit(mut self, max_frame: u32) -> Result<Self, SegmentError> {
        // What the fields for lengths can say counts as well.
        let most = self.network_at + usize::from(u16::MAX);
        let max = usize::try_from(max_frame).unwrap_or(usize::MAX).min(most);
        let room = max.saturating_sub(self.headers);
        let payload = self.frame_len - self.headers;
        if self.size.min(payload) > room {
            if self.protocol != TCP || room == 0 {
                return Err(SegmentError::TooLong {
                    len: self.headers + self.size.min(payload),
                    max: max_frame,
                });
            }
            self.size = room;
        }
        let count = self.count();
        if count > SEGMENTS_MAX {
            return Err(SegmentError::TooMany { count });
        }
        Ok(self)
    }

    /// How many frames come of it, at least one.
    pub fn count(&self) -> u32 {
        let payload = self.frame_len - self.headers;
        u32::try_from(payload.div_ceil(self.size).max(1)).unwrap_or(u32::MAX)
    }

    /// Cuts the frame, which is the one that this was made for.
    ///
    /// # Panics
    /// When it has another number of bytes.
    pub fn cut<'a>(&self, frame: &'a [u8]) -> Segments<'a> {
        assert_eq!(frame.len(), self.frame_len, "another frame");
        let mut headers = [0; SEGMENT_HEADERS_MAX];
        headers[..self.headers].copy_from_slice(&frame[..self.headers]);
        let length = self.frame_len - self.transport_at;
        let field = self.transport_at + usize::from(checksum_offset(self.protocol));
        // The field has the sum of the pseudo header with the length of all: take
        // that out again, which in ones' complement is to add its complement.
        let [low, high, ..] = length.to_le_bytes();
        let pseudo = Sum::default()
            .with(&headers[field..field + 2])
            .with_u16(!u16::from_le_bytes([low, high]));
        headers[field..field + 2].fill(0);
        Segments {
            how: *self,
            payload: &frame[self.headers..],
            at: 0,
            index: 0,
            pseudo,
            identification: be16(&headers, self.network_at + 4).unwrap_or(0),
            sequence: be32(&headers, self.transport_at + 4).unwrap_or(0),
            flags: headers.get(self.transport_at + 13).copied().unwrap_or(0),
            headers,
            done: false,
        }
    }
}

/// The frames that one frame becomes.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    how: Segmentation,
    headers: [u8; SEGMENT_HEADERS_MAX],
    payload: &'a [u8],
    at: usize,
    index: u16,
    pseudo: Sum,
    /// Fields of the large frame.
    identification: u16,
    sequence: u32,
    flags: u8,
    done: bool,
}

/// One of the frames: headers, and payload right behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// All headers, complete.
    pub headers: &'a [u8],
    /// What follows them.
    pub payload: &'a [u8],
}

impl Segments<'_> {
    /// The next frame; `None` at the end.
    #[expect(clippy::should_implement_trait, reason = "it lends its own headers")]
    pub fn next(&mut self) -> Option<Segment<'_>> {
        if self.done {
            return None;
        }
        let rest = &self.payload[self.at..];
        let payload = &rest[..rest.len().min(self.how.size)];
        let last = payload.len() == rest.len();
        self.write_network(payload.len());
        if self.how.protocol == TCP {
            self.write_tcp(last);
        }
        self.write_transport_checksum(payload);
        self.at += payload.len();
        self.index = self.index.wrapping_add(1);
        self.done = last;
        Some(Segment {
            headers: &self.headers[..self.how.headers],
            payload,
        })
    }

    fn write_network(&mut self, payload: usize) {
        let at = self.how.network_at;
        let packet = self.how.headers - at + payload;
        if self.how.network == Network::Ipv4 {
            self.set_u16(at + 2, packet);
            let id = self.identification.wrapping_add(self.index);
            self.set_u16(at + 4, usize::from(id));
            self.set_u16(at + 10, 0);
            // Options included, but not what lies between headers: there is nothing.
            let header = &self.headers[at..self.how.transport_at];
            let checksum = Sum::default().with(header).checksum();
            self.headers[at + 10..at + 12].copy_from_slice(&checksum);
        } else {
            self.set_u16(at + 4, packet - 40);
        }
    }

    /// Only the last segment ends or pushes, only the first says that the window
    /// was reduced (RFC 3168 6.1.2).
    fn write_tcp(&mut self, last: bool) {
        let at = self.how.transport_at;
        // A frame has less than 2^32 bytes.
        let done = u32::try_from(self.at).unwrap_or(0);
        let sequence = self.sequence.wrapping_add(done);
        self.headers[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
        let mut flags = self.flags;
        if !last {
            flags &= !(FIN | PSH);
        }
        if self.index > 0 {
            flags &= !CWR;
        }
        self.headers[at + 13] = flags;
    }

    fn write_transport_checksum(&mut self, payload: &[u8]) {
        let at = self.how.transport_at;
        let length = self.how.headers - at + payload.len();
        if self.how.protocol == UDP {
            self.set_u16(at + 4, length);
        }
        let field = at + usize::from(checksum_offset(self.how.protocol));
        self.headers[field..field + 2].fill(0);
        let [low, high, ..] = length.to_le_bytes();
        let sum = self.pseudo.with_u16(u16::from_le_bytes([low, high]));
        // Transport headers have an even number of bytes, so that payload adds on.
        let sum = sum.with(&self.headers[at..self.how.headers]).with(payload);
        self.headers[field..field + 2].copy_from_slice(&sum.transport_checksum());
    }

    /// Lengths fit 16 bits: the plan has seen to it.
    fn set_u16(&mut self, at: usize, value: usize) {
        let [low, high, ..] = value.to_le_bytes();
        self.headers[at..at + 2].copy_from_slice(&[high, low]);
    }
}
