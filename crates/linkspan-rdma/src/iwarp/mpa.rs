//! The frames of the set-up: request and reply (RFC 5044, 7.1; RFC 6581, 9).

use alloc::vec::Vec;

use super::error::WireError;
use super::wire::u16_at;

/// Bytes before the private data.
pub(super) const HEADER: usize = 20;
/// Private data of a frame at most (RFC 5044, 7.1).
const PRIVATE_MAX: u16 = 512;
/// The depths of the enhanced set-up stand before what upper layers say.
const ENHANCED: u16 = 4;
/// What upper layers can say: siw takes 256 bytes with the depths.
pub const PRIVATE_DATA_MAX: usize = 252;

/// The newest revision.
pub(super) const REVISION_MAX: u8 = 2;

/// A depth that its sender leaves open (RFC 6581, 9.1).
const OPEN: u16 = 0x3FFF;

const MARKERS: u8 = 0x80;
const CRC: u8 = 0x40;
const REJECT: u8 = 0x20;
const ENHANCED_BIT: u8 = 0x10;

const PEER_TO_PEER: u16 = 0x8000;
const READY_SEND: u16 = 0x4000;
const READY_WRITE: u16 = 0x8000;
const READY_READ: u16 = 0x4000;

/// Which of the two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Reply,
}

impl Kind {
    fn key(self) -> &'static [u8; 16] {
        match self {
            Self::Request => b"MPA ID Req Frame",
            Self::Reply => b"MPA ID Rep Frame",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Reply => "reply",
        }
    }
}

/// By what kinds of first frames an initiator may begin, or does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// A write without bytes.
    pub write: bool,
    /// A read of no bytes.
    pub read: bool,
    /// A message without bytes.
    pub send: bool,
}

impl Ready {
    /// The kinds that both have.
    pub(super) fn common(self, other: Self) -> Self {
        Self {
            write: self.write && other.write,
            read: self.read && other.read,
            send: self.send && other.send,
        }
    }

    /// One of them: the one that costs the least.
    pub(super) fn best(self) -> Option<Self> {
        let none = Self::default();
        match self {
            Self { write: true, .. } => Some(Self {
                write: true,
                ..none
            }),
            Self { read: true, .. } => Some(Self { read: true, ..none }),
            Self { send: true, .. } => Some(Self { send: true, ..none }),
            _ => None,
        }
    }
}

/// The depths of the enhanced set-up, as they stand in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Enhanced {
    /// Reads that the sender answers; `None` if it leaves that open.
    pub(super) inbound: Option<u16>,
    /// Reads that the sender wants answered.
    pub(super) outbound: Option<u16>,
    /// The sender wants, or takes, that the initiator begins with one of these.
    pub(super) ready: Option<Ready>,
}

/// A request or a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) revision: u8,
    pub(super) markers: bool,
    pub(super) crc: bool,
    pub(super) reject: bool,
    pub(super) enhanced: Option<Enhanced>,
    pub(super) private_data: Vec<u8>,
}

impl Frame {
    /// As bytes. Private data is no longer than [`PRIVATE_DATA_MAX`].
    pub(super) fn write(&self, kind: Kind) -> Vec<u8> {
        let mut flags = 0;
        for (set, bit) in [
            (self.markers, MARKERS),
            (self.crc, CRC),
            (self.reject, REJECT),
            (self.enhanced.is_some(), ENHANCED_BIT),
        ] {
            flags |= if set { bit } else { 0 };
        }
        let mut bytes = kind.key().to_vec();
        bytes.extend([flags, self.revision, 0, 0]);
        if let Some(enhanced) = self.enhanced {
            for word in enhanced.words() {
                bytes.extend(word.to_be_bytes());
            }
        }
        bytes.extend_from_slice(&self.private_data);
        let len = u16::try_from(bytes.len() - HEADER).unwrap_or(u16::MAX);
        bytes[18..HEADER].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    /// Bytes of a frame that begins with these; fails as soon as it cannot be one.
    pub(super) fn len(kind: Kind, begin: &[u8]) -> Result<usize, WireError> {
        let key = kind.key();
        let same = begin.len().min(key.len());
        if begin[..same] != key[..same] {
            return Err(WireError::NotMpa { what: kind.name() });
        }
        let Some([revision, high, low]) = begin.get(17..HEADER) else {
            return Ok(HEADER);
        };
        if !(1..=REVISION_MAX).contains(revision) {
            return Err(WireError::Revision {
                got: *revision,
                max: REVISION_MAX,
            });
        }
        let enhanced = *revision > 1 && begin[16] & ENHANCED_BIT != 0;
        let got = u16::from_be_bytes([*high, *low]);
        let min = if enhanced { ENHANCED } else { 0 };
        let max = PRIVATE_MAX;
        if !(min..=max).contains(&got) {
            return Err(WireError::PrivateData { got, min, max });
        }
        Ok(HEADER + usize::from(got))
    }

    /// The frame that is there as a whole, and of which [`Frame::len`] was asked.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let (flags, revision) = (bytes[16], bytes[17]);
        let has = |bit| flags & bit != 0;
        let mut private_data = &bytes[HEADER..];
        let mut enhanced = None;
        if revision > 1 && has(ENHANCED_BIT) {
            enhanced = Some(Enhanced::read([
                u16_at(private_data, 0),
                u16_at(private_data, 2),
            ]));
            private_data = &private_data[usize::from(ENHANCED)..];
        }
        Self {
            revision,
            markers: has(MARKERS),
            crc: has(CRC),
            reject: has(REJECT),
            enhanced,
            private_data: private_data.to_vec(),
        }
    }
}

impl Enhanced {
    fn words(self) -> [u16; 2] {
        let mut words = [self.inbound, self.outbound].map(|depth| match depth {
            Some(depth) => depth.min(OPEN - 1),
            None => OPEN,
        });
        if let Some(ready) = self.ready {
            words[0] |= PEER_TO_PEER;
            words[0] |= if ready.send { READY_SEND } else { 0 };
            words[1] |= if ready.write { READY_WRITE } else { 0 };
            words[1] |= if ready.read { READY_READ } else { 0 };
        }
        words
    }

    fn read(words: [u16; 2]) -> Self {
        let depth = |word| Some(word & OPEN).filter(|depth| *depth != OPEN);
        let ready = Ready {
            write: words[1] & READY_WRITE != 0,
            read: words[1] & READY_READ != 0,
            send: words[0] & READY_SEND != 0,
        };
        Self {
            inbound: depth(words[0]),
            outbound: depth(words[1]),
            ready: (words[0] & PEER_TO_PEER != 0).then_some(ready),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    fn frame() -> Frame {
        Frame {
            revision: 2,
            markers: false,
            crc: false,
            reject: false,
            enhanced: Some(Enhanced {
                inbound: Some(32),
                outbound: Some(1),
                ready: None,
            }),
            private_data: b"\0\0\0\x20\0\0\0\x01".to_vec(),
        }
    }

    /// What Linux's cifs sends over siw.
    #[test]
    fn the_request_of_cifs_over_siw() {
        let bytes = b"MPA ID Req Frame\x10\x02\x00\x0c\x00\x20\x00\x01\0\0\0\x20\0\0\0\x01";
        assert_eq!(frame().write(Kind::Request), bytes);
        assert_eq!(Frame::len(Kind::Request, bytes), Ok(bytes.len()));
        assert_eq!(Frame::read(bytes), frame());
    }

    /// What ksmbd answers over siw to 16 and 16 with the bit for peers.
    #[test]
    fn the_reply_of_ksmbd_over_siw() {
        let bytes = b"MPA ID Rep Frame\x10\x02\x00\x04\x80\x10\x80\x08";
        let read = Frame::read(bytes);
        let enhanced = read.enhanced.unwrap();
        assert_eq!((enhanced.inbound, enhanced.outbound), (Some(16), Some(8)));
        let ready = enhanced.ready.unwrap();
        assert!(ready.write && !ready.read && !ready.send);
        assert_eq!(read.write(Kind::Reply), bytes);
    }

    #[test]
    fn every_flag_goes_there_and_back() {
        for bits in 0..256_u16 {
            let bit = |at: u16| bits >> at & 1 == 1;
            let frame = Frame {
                revision: 1 + u8::from(bit(0)),
                markers: bit(1),
                crc: bit(2),
                reject: bit(3),
                enhanced: bit(0).then_some(Enhanced {
                    inbound: bit(4).then_some(bits),
                    outbound: bit(5).then_some(0x3FFE),
                    ready: bit(6).then_some(Ready {
                        write: bit(7),
                        read: bit(1),
                        send: bit(2),
                    }),
                }),
                private_data: std::vec![7; usize::from(bits)],
            };
            let bytes = frame.write(Kind::Reply);
            assert_eq!(Frame::len(Kind::Reply, &bytes), Ok(bytes.len()));
            assert_eq!(Frame::read(&bytes), frame);
        }
    }

    #[test]
    fn what_cannot_be_a_frame_is_known_at_once() {
        let good = frame().write(Kind::Request);
        for len in 0..HEADER {
            assert_eq!(Frame::len(Kind::Request, &good[..len]), Ok(HEADER));
            assert_eq!(
                Frame::len(Kind::Reply, &good[..len]).is_err(),
                len > 9,
                "{len}"
            );
        }
        let with = |at: usize, byte| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Frame::len(Kind::Request, &bytes)
        };
        assert_eq!(with(0, b'm'), Err(WireError::NotMpa { what: "request" }));
        for got in [0, 3, 255] {
            assert_eq!(with(17, got), Err(WireError::Revision { got, max: 2 }));
        }
        let limits = |got| WireError::PrivateData {
            got,
            min: 4,
            max: 512,
        };
        assert_eq!(with(19, 3), Err(limits(3)));
        assert_eq!(with(18, 2), Err(limits(0x20C)));
        assert_eq!(with(19, 4), Ok(HEADER + 4));
    }
}
