//! Frames on the wire (FPDUs): what stands before the payload and behind it.
//!
//! All numbers are big-endian, but for the CRC.

/// Bytes of the length of a frame and of its control word.
pub(super) const PREFIX: usize = 4;
/// Bytes before the payload of a tagged frame, its length included (RFC 5041, 4.2).
pub(super) const TAGGED: usize = 16;
/// Bytes before the payload of an untagged frame, its length included (RFC 5041, 4.3).
pub(super) const UNTAGGED: usize = 20;
/// A read request, its length included (RFC 5040, 4.4).
pub(super) const READ_REQUEST: usize = UNTAGGED + 28;
/// A terminate message without the headers that it may repeat (RFC 5040, 4.8).
pub(super) const TERMINATE: usize = UNTAGGED + 4;
/// The longest of them: with length, DDP header and RDMAP header of what was wrong.
pub(super) const TERMINATE_MAX: usize = TERMINATE + 2 + 18 + 28;
/// Bytes of the CRC.
pub(super) const CRC: usize = 4;
/// Padding and CRC at most.
pub(super) const TRAILER_MAX: usize = 3 + CRC;
/// Bytes of a header at most, what a terminate message repeats included.
pub(super) const HEADER_MAX: usize = TERMINATE_MAX;

const _: () = assert!(HEADER_MAX >= READ_REQUEST);

/// Queues of untagged messages (RFC 5040, 4.1).
pub(super) const QUEUE_SEND: u32 = 0;
pub(super) const QUEUE_READ: u32 = 1;
pub(super) const QUEUE_TERMINATE: u32 = 2;

const TAGGED_BIT: u16 = 0x8000;
const LAST_BIT: u16 = 0x4000;
const DDP_VERSION_SHIFT: u16 = 8;
const RDMAP_VERSION_SHIFT: u16 = 6;
const VERSION: u16 = 1;

/// What a frame carries (RFC 5040, 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// RDMA Write.
    Write,
    /// RDMA Read Request.
    ReadRequest,
    /// RDMA Read Response.
    ReadResponse,
    /// Send.
    Send,
    /// Send with Invalidate.
    SendInvalidate,
    /// Send with Solicited Event.
    SendSolicited,
    /// Send with Solicited Event and Invalidate.
    SendSolicitedInvalidate,
    /// Terminate.
    Terminate,
}

/// All opcodes, by their number.
pub const OPCODES: [Opcode; 8] = [
    Opcode::Write,
    Opcode::ReadRequest,
    Opcode::ReadResponse,
    Opcode::Send,
    Opcode::SendInvalidate,
    Opcode::SendSolicited,
    Opcode::SendSolicitedInvalidate,
    Opcode::Terminate,
];

impl Opcode {
    /// Whether its frames name a place.
    #[must_use]
    pub fn is_tagged(self) -> bool {
        matches!(self, Self::Write | Self::ReadResponse)
    }

    pub(super) fn send(invalidate: bool, solicited: bool) -> Self {
        match (solicited, invalidate) {
            (false, false) => Self::Send,
            (false, true) => Self::SendInvalidate,
            (true, false) => Self::SendSolicited,
            (true, true) => Self::SendSolicitedInvalidate,
        }
    }

    pub(super) fn invalidates(self) -> bool {
        matches!(self, Self::SendInvalidate | Self::SendSolicitedInvalidate)
    }

    pub(super) fn solicits(self) -> bool {
        matches!(self, Self::SendSolicited | Self::SendSolicitedInvalidate)
    }

    /// Bytes before the payload, the length included.
    pub(super) fn header_len(self) -> usize {
        match self {
            Self::Write | Self::ReadResponse => TAGGED,
            Self::ReadRequest => READ_REQUEST,
            Self::Terminate => TERMINATE,
            _ => UNTAGGED,
        }
    }

    /// Where it stands in [`OPCODES`].
    fn number(self) -> u16 {
        self as u16
    }
}

/// The control word, as it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Control(pub(super) u16);

impl Control {
    #[inline]
    pub(super) fn new(opcode: Opcode, last: bool) -> Self {
        let tagged = if opcode.is_tagged() { TAGGED_BIT } else { 0 };
        let last = if last { LAST_BIT } else { 0 };
        let versions = VERSION << DDP_VERSION_SHIFT | VERSION << RDMAP_VERSION_SHIFT;
        Self(tagged | last | versions | opcode.number())
    }

    pub(super) fn is_tagged(self) -> bool {
        self.0 & TAGGED_BIT != 0
    }

    pub(super) fn is_last(self) -> bool {
        self.0 & LAST_BIT != 0
    }

    pub(super) fn ddp_version(self) -> u16 {
        self.0 >> DDP_VERSION_SHIFT & 3
    }

    pub(super) fn rdmap_version(self) -> u16 {
        self.0 >> RDMAP_VERSION_SHIFT & 3
    }

    pub(super) fn opcode_number(self) -> u16 {
        self.0 & 0xF
    }

    pub(super) fn opcode(self) -> Option<Opcode> {
        OPCODES.get(usize::from(self.opcode_number())).copied()
    }
}

/// Bytes of zero that bring a frame without its CRC to a multiple of 4.
#[inline]
pub(super) fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}

#[inline]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

/// What is between the control word and the payload of a tagged frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tagged {
    pub(super) key: u32,
    pub(super) address: u64,
}

impl Tagged {
    #[inline]
    pub(super) fn read(header: &[u8]) -> Self {
        Self {
            key: u32_at(header, 4),
            address: u64_at(header, 8),
        }
    }
}

/// The same of an untagged frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Untagged {
    pub(super) invalidate: u32,
    pub(super) queue: u32,
    pub(super) number: u32,
    pub(super) offset: u32,
}

impl Untagged {
    #[inline]
    pub(super) fn read(header: &[u8]) -> Self {
        Self {
            invalidate: u32_at(header, 4),
            queue: u32_at(header, 8),
            number: u32_at(header, 12),
            offset: u32_at(header, 16),
        }
    }
}

/// What a read request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadRequest {
    pub(super) sink: Tagged,
    pub(super) len: u32,
    pub(super) source: Tagged,
}

impl ReadRequest {
    #[inline]
    pub(super) fn read(header: &[u8]) -> Self {
        Self {
            sink: Tagged {
                key: u32_at(header, 20),
                address: u64_at(header, 24),
            },
            len: u32_at(header, 32),
            source: Tagged {
                key: u32_at(header, 36),
                address: u64_at(header, 40),
            },
        }
    }
}

/// A header that is being written; its length is filled in at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    bytes: [u8; READ_REQUEST],
    len: usize,
}

impl Header {
    fn new(opcode: Opcode, last: bool) -> Self {
        let mut bytes = [0; READ_REQUEST];
        bytes[2..PREFIX].copy_from_slice(&Control::new(opcode, last).0.to_be_bytes());
        Self { bytes, len: PREFIX }
    }

    pub(super) fn tagged(opcode: Opcode, last: bool, to: Tagged) -> Self {
        let mut header = Self::new(opcode, last);
        header.bytes[4..8].copy_from_slice(&to.key.to_be_bytes());
        header.bytes[8..TAGGED].copy_from_slice(&to.address.to_be_bytes());
        Self {
            len: TAGGED,
            ..header
        }
    }

    pub(super) fn untagged(opcode: Opcode, last: bool, fields: Untagged) -> Self {
        let mut header = Self::new(opcode, last);
        header.bytes[4..8].copy_from_slice(&fields.invalidate.to_be_bytes());
        header.bytes[8..12].copy_from_slice(&fields.queue.to_be_bytes());
        header.bytes[12..16].copy_from_slice(&fields.number.to_be_bytes());
        header.bytes[16..UNTAGGED].copy_from_slice(&fields.offset.to_be_bytes());
        Self {
            len: UNTAGGED,
            ..header
        }
    }

    pub(super) fn read_request(number: u32, request: &ReadRequest) -> Self {
        let fields = Untagged {
            invalidate: 0,
            queue: QUEUE_READ,
            number,
            offset: 0,
        };
        let mut header = Self::untagged(Opcode::ReadRequest, true, fields);
        header.put(&request.sink.key.to_be_bytes());
        header.put(&request.sink.address.to_be_bytes());
        header.put(&request.len.to_be_bytes());
        header.put(&request.source.key.to_be_bytes());
        header.put(&request.source.address.to_be_bytes());
        header
    }

    pub(super) fn terminate(layer_and_kind: u8, code: u8) -> Self {
        let fields = Untagged {
            invalidate: 0,
            queue: QUEUE_TERMINATE,
            number: 1,
            offset: 0,
        };
        let mut header = Self::untagged(Opcode::Terminate, true, fields);
        header.put(&[layer_and_kind, code, 0, 0]);
        header
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }

    /// Says how long the frame is that has so much payload.
    pub(super) fn finish(&mut self, payload: u32) {
        let all = self.len - 2 + payload as usize;
        // The sizes of frames are chosen such that it fits.
        let all = u16::try_from(all).unwrap_or(u16::MAX);
        self.bytes[..2].copy_from_slice(&all.to_be_bytes());
    }

    /// Puts its bytes to the begin of so much room, and others behind them.
    #[inline]
    pub(super) fn put_to(&self, room: &mut [u8]) {
        room.copy_from_slice(&self.bytes);
    }

    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
