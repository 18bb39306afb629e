//! The header before each frame, `struct virtio_net_hdr` (virtio 1.3 5.1.6), and
//! what of a peer's header is believed.

use core::num::NonZeroU16;

use linkspan_virtio::Features;
use virtio_bindings::virtio_net as bits;

use super::features::{Offloads, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MRG_RXBUF};

/// Bytes of the longest header.
pub const HEADER_LEN_MAX: usize = HeaderLayout::Hash.len();

/// Bytes of the longest frame: Ethernet and IPv6 header and the largest payload
/// (5.1.6.3), and two VLAN tags.
pub const FRAME_LEN_MAX: u32 = 65589 + 8;

/// Bytes of the shortest frame: an Ethernet header.
pub const FRAME_LEN_MIN: u32 = 14;

/// How long the header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderLayout {
    /// Without `num_buffers`: legacy devices that do not merge buffers.
    Short,
    /// With `num_buffers`.
    Buffers,
    /// With `num_buffers` and the hash of the frame.
    Hash,
}

impl HeaderLayout {
    /// The layout that goes with these accepted features.
    pub fn of(accepted: Features) -> Self {
        if accepted.contains(VIRTIO_NET_F_HASH_REPORT) {
            Self::Hash
        } else if accepted.intersects(Features::VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF) {
            Self::Buffers
        } else {
            Self::Short
        }
    }

    /// Size in bytes.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::Short => 10,
            Self::Buffers => 12,
            Self::Hash => 20,
        }
    }
}

/// A header as it stands on the wire: nothing of it has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Bytes of headers; a hint only.
    pub hdr_len: u16,
    /// Bytes of payload in each segment.
    pub gso_size: u16,
    /// Where in the frame the bytes begin that the checksum is of.
    pub csum_start: u16,
    /// Where the checksum goes, from there on.
    pub csum_offset: u16,
    /// Receive buffers that hold the frame.
    pub num_buffers: u16,
    /// Hash of the frame.
    pub hash_value: u32,
    /// What the hash is of: `VIRTIO_NET_HASH_REPORT_*`.
    pub hash_report: u16,
}

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_ECN`.
const GSO_ECN: u8 = 0x80;

const _: () = assert!(
    bits::VIRTIO_NET_HDR_F_NEEDS_CSUM == NEEDS_CSUM as u32
        && bits::VIRTIO_NET_HDR_F_DATA_VALID == DATA_VALID as u32
        && bits::VIRTIO_NET_HDR_GSO_ECN == GSO_ECN as u32
);

/// A segmentation that is left to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GsoKind {
    /// `VIRTIO_NET_HDR_GSO_TCPV4`.
    Tcp4 = 1,
    /// `VIRTIO_NET_HDR_GSO_UDP`: one datagram to be fragmented.
    UdpFragments = 3,
    /// `VIRTIO_NET_HDR_GSO_TCPV6`.
    Tcp6 = 4,
    /// `VIRTIO_NET_HDR_GSO_UDP_L4`: a run of datagrams.
    UdpSegments = 5,
}

/// What is left to do about a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checksum {
    /// Nothing is known.
    #[default]
    Unknown,
    /// It was checked and is right.
    Valid,
    /// The field has the sum of the pseudo header; that of the rest is missing.
    Partial(PartialChecksum),
}

/// A checksum that is not complete: its places are inside the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte that it is of.
    pub start: u16,
    /// Its place, from there on.
    pub offset: u16,
}

/// A frame that is to be cut into several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// How.
    pub kind: GsoKind,
    /// Whether it is TCP with congestion notification.
    pub ecn: bool,
    /// Bytes of payload in each segment.
    pub size: NonZeroU16,
    /// Bytes of headers as the sender says; a hint only.
    pub header_len: u16,
    /// Where the transport header is, and the checksum in it.
    pub checksum: PartialChecksum,
}

/// What a frame leaves to its receiver: a header that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Nothing but perhaps a checksum.
    Whole(Checksum),
    /// Segmentation, and so all checksums.
    Segments(Gso),
}

impl Default for Offload {
    fn default() -> Self {
        Self::NONE
    }
}

impl Offload {
    /// A frame as it goes over a wire.
    pub const NONE: Self = Self::Whole(Checksum::Unknown);
}

/// Why a frame is dropped whose header does not fit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Shorter than an Ethernet header, or longer than any frame.
    #[error("a frame of {len} bytes")]
    FrameLength {
        /// Its bytes.
        len: u64,
    },
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM` without the feature.
    #[error("a checksum is left to us although that was not negotiated")]
    ChecksumNotNegotiated,
    /// The checksum is not inside the frame.
    #[error("a checksum at {start} + {offset} in a frame of {len} bytes")]
    ChecksumOutside {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// Bytes of the frame.
        len: u32,
    },
    /// A `gso_type` that there is not.
    #[error("segmentation of type {gso_type:#x} does not exist")]
    UnknownGso {
        /// What the header says.
        gso_type: u8,
    },
    /// A `gso_type` without its feature.
    #[error("segmentation of type {gso_type:#x} was not negotiated")]
    GsoNotNegotiated {
        /// What the header says.
        gso_type: u8,
    },
    /// `VIRTIO_NET_HDR_GSO_ECN` without a TCP type.
    #[error("congestion notification with segmentation of type {gso_type:#x}")]
    EcnWithoutTcp {
        /// What the header says.
        gso_type: u8,
    },
    /// Segments of no bytes.
    #[error("segmentation into segments without bytes")]
    GsoSize,
    /// Segmentation without a partial checksum (5.1.6.2.1).
    #[error("segmentation of a frame that needs no checksum")]
    GsoWithoutChecksum,
    /// Headers longer than the frame.
    #[error("{hdr_len} bytes of headers in a frame of {len} bytes")]
    HeaderLength {
        /// `hdr_len`.
        hdr_len: u16,
        /// Bytes of the frame.
        len: u32,
    },
}

impl Header {
    /// From the wire; bytes that the layout does not have are zero.
    #[inline]
    pub const fn from_bytes(bytes: &[u8; HEADER_LEN_MAX]) -> Self {
        let [
            f,
            g,
            l0,
            l1,
            s0,
            s1,
            c0,
            c1,
            o0,
            o1,
            n0,
            n1,
            h0,
            h1,
            h2,
            h3,
            r0,
            r1,
            _,
            _,
        ] = *bytes;
        Self {
            flags: f,
            gso_type: g,
            hdr_len: u16::from_le_bytes([l0, l1]),
            gso_size: u16::from_le_bytes([s0, s1]),
            csum_start: u16::from_le_bytes([c0, c1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
            hash_value: u32::from_le_bytes([h0, h1, h2, h3]),
            hash_report: u16::from_le_bytes([r0, r1]),
        }
    }

    /// From bytes that begin with a header of this layout; the others do not count.
    #[inline]
    pub const fn read(layout: HeaderLayout, bytes: &[u8; HEADER_LEN_MAX]) -> Self {
        let mut header = Self::from_bytes(bytes);
        if !matches!(layout, HeaderLayout::Hash) {
            header.hash_value = 0;
            header.hash_report = 0;
        }
        if matches!(layout, HeaderLayout::Short) {
            header.num_buffers = 0;
        }
        header
    }

    /// As it stands on the wire; a layout takes as many of the first bytes as it has.
    #[inline]
    pub const fn to_bytes(&self) -> [u8; HEADER_LEN_MAX] {
        // In words, so that it can be read in words right afterwards.
        let [l0, l1] = self.hdr_len.to_le_bytes();
        let [s0, s1] = self.gso_size.to_le_bytes();
        let [c0, c1] = self.csum_start.to_le_bytes();
        let first = u64::from_ne_bytes([self.flags, self.gso_type, l0, l1, s0, s1, c0, c1]);
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        let second = u32::from_ne_bytes([o0, o1, n0, n1]);
        let [r0, r1] = self.hash_report.to_le_bytes();
        let third = u32::from_ne_bytes([r0, r1, 0, 0]);
        let mut bytes = [0; HEADER_LEN_MAX];
        let (place, rest) = bytes.split_at_mut(8);
        place.copy_from_slice(&first.to_ne_bytes());
        let (place, rest) = rest.split_at_mut(4);
        place.copy_from_slice(&second.to_ne_bytes());
        let (place, rest) = rest.split_at_mut(4);
        place.copy_from_slice(&self.hash_value.to_le_bytes());
        rest.copy_from_slice(&third.to_ne_bytes());
        bytes
    }

    /// A header of 12 bytes: one without a hash.
    #[inline]
    pub(super) const fn from_12(bytes: [u8; 12]) -> Self {
        let [f, g, l0, l1, s0, s1, c0, c1, o0, o1, n0, n1] = bytes;
        Self {
            flags: f,
            gso_type: g,
            hdr_len: u16::from_le_bytes([l0, l1]),
            gso_size: u16::from_le_bytes([s0, s1]),
            csum_start: u16::from_le_bytes([c0, c1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
            hash_value: 0,
            hash_report: 0,
        }
    }

    /// Whether this header, one without a hash, may stand before a frame of `len` bytes and
    /// leaves nothing to be done, so that [`check`](Self::check) finds [`Offload::NONE`].
    #[inline(always)]
    pub(super) fn leaves_nothing(bytes: [u8; 12], len: u32) -> bool {
        let [flags, gso_type, ..] = bytes;
        (flags & (NEEDS_CSUM | DATA_VALID)) | gso_type == 0
            && (FRAME_LEN_MIN..=FRAME_LEN_MAX).contains(&len)
    }

    /// The same before a frame in so many buffers.
    #[inline]
    pub(super) fn in_buffers(&self, num_buffers: u16) -> Self {
        Self {
            num_buffers,
            ..*self
        }
    }

    /// What stands before a frame in one buffer that leaves nothing to its receiver, as
    /// most do.
    pub(super) const PLAIN: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

    /// The header of a frame that leaves this to its receiver.
    #[inline]
    pub fn of(offload: &Offload) -> Self {
        match *offload {
            Offload::Whole(Checksum::Unknown) => Self::default(),
            Offload::Whole(Checksum::Valid) => Self {
                flags: DATA_VALID,
                ..Self::default()
            },
            Offload::Whole(Checksum::Partial(PartialChecksum { start, offset })) => Self {
                flags: NEEDS_CSUM,
                csum_start: start,
                csum_offset: offset,
                ..Self::default()
            },
            Offload::Segments(gso) => Self {
                flags: NEEDS_CSUM,
                gso_type: gso.kind as u8 | if gso.ecn { GSO_ECN } else { 0 },
                hdr_len: gso.header_len,
                gso_size: gso.size.get(),
                csum_start: gso.checksum.start,
                csum_offset: gso.checksum.offset,
                ..Self::default()
            },
        }
    }

    /// What a frame of `frame_len` bytes leaves to us, who take `offloads` from
    /// its sender. Flags that mean nothing to us are ignored (5.1.6.2.2).
    ///
    /// # Errors
    /// When the header is not one that the sender may put before such a frame.
    #[inline]
    pub fn check(&self, frame_len: u64, offloads: Offloads) -> Result<Offload, HeaderError> {
        let len = match u32::try_from(frame_len) {
            Ok(len) if (FRAME_LEN_MIN..=FRAME_LEN_MAX).contains(&len) => len,
            _ => return Err(HeaderError::FrameLength { len: frame_len }),
        };
        if (self.flags & (NEEDS_CSUM | DATA_VALID)) | self.gso_type == 0 {
            return Ok(Offload::NONE);
        }
        self.check_offload(len, offloads)
    }

    fn check_offload(&self, len: u32, offloads: Offloads) -> Result<Offload, HeaderError> {
        if self.flags & NEEDS_CSUM == 0 {
            return match self.gso_type {
                0 if offloads.contains(Offloads::VALIDATED) => Ok(Offload::Whole(Checksum::Valid)),
                0 => Ok(Offload::NONE),
                _ => Err(HeaderError::GsoWithoutChecksum),
            };
        }
        if !offloads.contains(Offloads::CHECKSUM) {
            return Err(HeaderError::ChecksumNotNegotiated);
        }
        let (start, offset) = (self.csum_start, self.csum_offset);
        if u32::from(start) + u32::from(offset) + 2 > len {
            return Err(HeaderError::ChecksumOutside { start, offset, len });
        }
        let checksum = PartialChecksum { start, offset };
        if self.gso_type == 0 {
            return Ok(Offload::Whole(Checksum::Partial(checksum)));
        }
        self.check_gso(len, offloads, checksum)
    }

    fn check_gso(
        &self,
        len: u32,
        offloads: Offloads,
        checksum: PartialChecksum,
    ) -> Result<Offload, HeaderError> {
        let gso_type = self.gso_type;
        let ecn = gso_type & GSO_ECN != 0;
        let (kind, any_of) = match gso_type & !GSO_ECN {
            1 => (GsoKind::Tcp4, Offloads::TSO4),
            3 => (GsoKind::UdpFragments, Offloads::UFO),
            4 => (GsoKind::Tcp6, Offloads::TSO6),
            5 => (GsoKind::UdpSegments, Offloads::USO4.union(Offloads::USO6)),
            _ => return Err(HeaderError::UnknownGso { gso_type }),
        };
        if ecn && !matches!(kind, GsoKind::Tcp4 | GsoKind::Tcp6) {
            return Err(HeaderError::EcnWithoutTcp { gso_type });
        }
        if !offloads.intersects(any_of) || ecn && !offloads.contains(Offloads::ECN) {
            return Err(HeaderError::GsoNotNegotiated { gso_type });
        }
        let Some(size) = NonZeroU16::new(self.gso_size) else {
            return Err(HeaderError::GsoSize);
        };
        if u32::from(self.hdr_len) > len {
            let hdr_len = self.hdr_len;
            return Err(HeaderError::HeaderLength { hdr_len, len });
        }
        Ok(Offload::Segments(Gso {
            kind,
            ecn,
            size,
            header_len: self.hdr_len,
            checksum,
        }))
    }
}
