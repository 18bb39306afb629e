//! What is in a ring: descriptors, payload and the ranges that some packets name
//! (include/linux/hyperv.h: `struct vmpacket_descriptor` and those behind it).

use core::fmt;

use thiserror::Error;

/// Bytes of a descriptor.
pub const DESCRIPTOR_LEN: usize = 16;

/// Bytes behind each packet: zero, and where it began, 32 bits each. Nobody reads
/// them, and what nobody reads needs no check.
pub const TRAILER_LEN: usize = 8;

/// The same numbers as the ring counts.
pub(crate) const DESCRIPTOR_BYTES: u32 = 16;
pub(crate) const DESCRIPTOR_LEN8: u16 = 2;
pub(crate) const TRAILER_BYTES: u32 = 8;

/// Bytes of a page that ranges count in.
const PAGE: u64 = 4096;

/// Bytes of a packet without its trailer.
pub(crate) fn packet_len(payload: usize) -> usize {
    payload
        .saturating_add(DESCRIPTOR_LEN)
        .checked_next_multiple_of(8)
        .unwrap_or(usize::MAX)
}

/// `enum vmbus_packet_type`.
pub mod kind {
    /// Payload in the ring.
    pub const VM_PKT_DATA_INBAND: u16 = 6;
    /// Payload in ranges of a set of pages that was agreed upon.
    pub const VM_PKT_DATA_USING_XFER_PAGES: u16 = 7;
    /// Payload in a GPADL.
    pub const VM_PKT_DATA_USING_GPADL: u16 = 8;
    /// Payload in pages that the packet names.
    pub const VM_PKT_DATA_USING_GPA_DIRECT: u16 = 9;
    /// The answer to a packet that asked for one.
    pub const VM_PKT_COMP: u16 = 0xb;
    /// A GPADL comes.
    pub const VM_PKT_ESTABLISH_GPADL: u16 = 4;
    /// A GPADL goes.
    pub const VM_PKT_TEARDOWN_GPADL: u16 = 5;
}

/// Flag of a packet: it wants a completion with its transaction's number.
pub const COMPLETION_REQUESTED: u16 = 1;

/// The first 16 bytes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// One of [`kind`].
    pub kind: u16,
    /// Where the payload begins, in units of 8 bytes.
    pub data_offset8: u16,
    /// Length without the trailer, in units of 8 bytes.
    pub length8: u16,
    /// [`COMPLETION_REQUESTED`].
    pub flags: u16,
    /// The sender's name for it.
    pub transaction_id: u64,
}

impl Descriptor {
    /// From its little-endian bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; DESCRIPTOR_LEN]) -> Self {
        let [k0, k1, o0, o1, l0, l1, f0, f1, id @ ..] = bytes;
        Self {
            kind: u16::from_le_bytes([k0, k1]),
            data_offset8: u16::from_le_bytes([o0, o1]),
            length8: u16::from_le_bytes([l0, l1]),
            flags: u16::from_le_bytes([f0, f1]),
            transaction_id: u64::from_le_bytes(id),
        }
    }

    /// To its little-endian bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; DESCRIPTOR_LEN] {
        let mut bytes = [0; DESCRIPTOR_LEN];
        bytes[..2].copy_from_slice(&self.kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.data_offset8.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.length8.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..].copy_from_slice(&self.transaction_id.to_le_bytes());
        bytes
    }

    /// Bytes of the packet without its trailer.
    #[must_use]
    pub fn len(self) -> usize {
        usize::from(self.length8) * 8
    }

    /// Whether it says that it has no bytes, not even its own.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.length8 == 0
    }

    /// Where the payload begins, in bytes.
    #[must_use]
    pub fn payload_at(self) -> usize {
        usize::from(self.data_offset8) * 8
    }
}

/// What a sender chooses of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of [`kind`].
    pub kind: u16,
    /// [`COMPLETION_REQUESTED`], or nothing.
    pub flags: u16,
    /// The sender's name for it.
    pub transaction_id: u64,
}

impl Header {
    /// A packet whose payload is in the ring and that wants no completion.
    #[must_use]
    pub fn in_band(transaction_id: u64) -> Self {
        Self {
            kind: kind::VM_PKT_DATA_INBAND,
            flags: 0,
            transaction_id,
        }
    }

    /// The completion of a packet.
    #[must_use]
    pub fn completion(of: Descriptor) -> Self {
        Self {
            kind: kind::VM_PKT_COMP,
            flags: 0,
            transaction_id: of.transaction_id,
        }
    }
}

/// A packet that makes no sense. Its lengths were sound, so the ring goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PacketError {
    /// A kind that nobody sends on a channel.
    #[error("packets of kind {kind:#x} are not known")]
    Kind {
        /// What it says.
        kind: u16,
    },
    /// Flags that mean nothing.
    #[error("a packet with flags {flags:#x}")]
    Flags {
        /// What it says.
        flags: u16,
    },
    /// Its payload begins before its own fields end.
    #[error("{got} bytes before the payload where its fields need {need}")]
    Head {
        /// Bytes there are, behind the descriptor.
        got: usize,
        /// Bytes needed.
        need: usize,
    },
    /// A range that begins behind its first page.
    #[error("range {range} begins at byte {offset} of its first page")]
    Offset {
        /// Which.
        range: u32,
        /// What it says.
        offset: u32,
    },
    /// A range whose pages are not all there.
    #[error("range {range} has {pages} pages and {got} bytes of page numbers")]
    Pages {
        /// Which.
        range: u32,
        /// Pages that its length spans.
        pages: u64,
        /// Bytes there are.
        got: usize,
    },
}

/// What a packet holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Contents<'a> {
    /// Payload in the ring.
    InBand {
        /// It, with up to 7 bytes of padding.
        payload: &'a [u8],
    },
    /// Payload in ranges of a set of pages.
    TransferPages {
        /// The set.
        set: u16,
        /// Whether the sender owns the set.
        sender_owns_set: bool,
        /// The ranges within it.
        ranges: TransferRanges<'a>,
        /// What is in the ring besides.
        payload: &'a [u8],
    },
    /// Payload in a GPADL.
    Gpadl {
        /// Which.
        gpadl: u32,
        /// What is in the ring besides.
        payload: &'a [u8],
    },
    /// Payload in pages.
    GpaDirect {
        /// The pages.
        ranges: GpaRanges<'a>,
        /// What is in the ring besides.
        payload: &'a [u8],
    },
    /// The answer to a packet with this transaction's number.
    Completion {
        /// The answer.
        payload: &'a [u8],
    },
    /// A GPADL comes.
    EstablishGpadl {
        /// Its name.
        gpadl: u32,
        /// Its pages.
        ranges: GpaRanges<'a>,
    },
    /// A GPADL goes.
    TeardownGpadl {
        /// Its name.
        gpadl: u32,
    },
}

/// The contents of a packet: `head` is what is between descriptor and payload.
pub(crate) fn parse<'a>(
    descriptor: Descriptor,
    head: &'a [u8],
    payload: &'a [u8],
) -> Result<Contents<'a>, PacketError> {
    let flags = descriptor.flags;
    if flags & !COMPLETION_REQUESTED != 0 {
        return Err(PacketError::Flags { flags });
    }
    match descriptor.kind {
        kind::VM_PKT_DATA_INBAND => Ok(Contents::InBand { payload }),
        kind::VM_PKT_COMP => Ok(Contents::Completion { payload }),
        kind::VM_PKT_DATA_USING_XFER_PAGES => {
            let ([first, count], rest) = fields(head)?;
            let need = u64::from(count) * 8;
            let bytes = usize::try_from(need).ok().and_then(|need| rest.get(..need));
            let bytes = bytes.ok_or(PacketError::Head {
                got: head.len(),
                need: usize::try_from(need.saturating_add(8)).unwrap_or(usize::MAX),
            })?;
            let [s0, s1, owner, _] = first.to_le_bytes();
            Ok(Contents::TransferPages {
                set: u16::from_le_bytes([s0, s1]),
                sender_owns_set: owner != 0,
                ranges: TransferRanges(bytes),
                payload,
            })
        }
        kind::VM_PKT_DATA_USING_GPADL => {
            let ([gpadl, _], _) = fields(head)?;
            Ok(Contents::Gpadl { gpadl, payload })
        }
        kind::VM_PKT_DATA_USING_GPA_DIRECT => {
            let ([_, count], rest) = fields(head)?;
            let ranges = GpaRanges::parse(count, rest)?;
            Ok(Contents::GpaDirect { ranges, payload })
        }
        // These have no payload, and say so or not.
        kind::VM_PKT_ESTABLISH_GPADL => {
            let body = if head.is_empty() { payload } else { head };
            let ([gpadl, count], rest) = fields(body)?;
            let ranges = GpaRanges::parse(count, rest)?;
            Ok(Contents::EstablishGpadl { gpadl, ranges })
        }
        kind::VM_PKT_TEARDOWN_GPADL => {
            let body = if head.is_empty() { payload } else { head };
            let ([gpadl, _], _) = fields(body)?;
            Ok(Contents::TeardownGpadl { gpadl })
        }
        kind => Err(PacketError::Kind { kind }),
    }
}

/// The first two fields, 32 bits each, and what follows.
fn fields(head: &[u8]) -> Result<([u32; 2], &[u8]), PacketError> {
    let short = PacketError::Head {
        got: head.len(),
        need: 8,
    };
    let (bytes, rest) = head.split_first_chunk::<8>().ok_or(short)?;
    Ok((pair(*bytes), rest))
}

fn pair(bytes: [u8; 8]) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = bytes;
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

/// Ranges of a set of transfer pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferRanges<'a>(&'a [u8]);

/// A range of a set of transfer pages, not compared with the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferRange {
    /// Its length in bytes.
    pub len: u32,
    /// Where it begins in the set.
    pub offset: u32,
}

impl TransferRanges<'_> {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = TransferRange> + '_ {
        self.0.as_chunks().0.iter().map(|bytes| {
            let [len, offset] = pair(*bytes);
            TransferRange { len, offset }
        })
    }
}

/// Ranges of guest memory (`struct gpa_range`), checked to be all there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GpaRanges<'a>(&'a [u8]);

/// A range of guest memory; its pages are not compared with the memory there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaRange<'a> {
    /// Its length in bytes.
    pub len: u32,
    /// Where it begins in its first page.
    pub offset: u32,
    pages: &'a [[u8; 8]],
}

impl GpaRange<'_> {
    /// Numbers of its pages of 4 KiB.
    pub fn pages(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.pages.iter().map(|page| u64::from_le_bytes(*page))
    }
}

impl<'a> GpaRanges<'a> {
    pub(crate) fn parse(count: u32, bytes: &'a [u8]) -> Result<Self, PacketError> {
        let mut rest = bytes;
        for range in 0..count {
            rest = split_range(range, rest)?.1;
        }
        Ok(Self(&bytes[..bytes.len() - rest.len()]))
    }

    /// Bytes that they take, all together.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Pages of all of them.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.iter().map(|range| range.pages.len()).sum()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = GpaRange<'a>> + use<'a> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            // All were there when it was parsed; the number is of no use any more.
            let (range, behind) = split_range(0, rest).ok()?;
            rest = behind;
            Some(range)
        })
    }
}

impl fmt::Debug for GpaRanges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// How many pages `len` bytes from `offset` on lie in.
pub(crate) fn pages_of(len: u32, offset: u32) -> u64 {
    (u64::from(len) + u64::from(offset)).div_ceil(PAGE)
}

fn split_range(range: u32, bytes: &[u8]) -> Result<(GpaRange<'_>, &[u8]), PacketError> {
    let ([len, offset], rest) = fields(bytes)?;
    if u64::from(offset) >= PAGE {
        return Err(PacketError::Offset { range, offset });
    }
    let pages = pages_of(len, offset);
    let all = rest.as_chunks::<8>().0;
    let count = usize::try_from(pages)
        .ok()
        .filter(|count| *count <= all.len());
    let count = count.ok_or(PacketError::Pages {
        range,
        pages,
        got: rest.len(),
    })?;
    let range = GpaRange {
        len,
        offset,
        pages: &all[..count],
    };
    Ok((range, &rest[count * 8..]))
}
