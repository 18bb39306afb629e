//! What an initiator of ours says first, and what it learns from the answer.
//!
//! The hello is an SMB2 NEGOTIATE request (MS-SMB2 2.2.3), so that every SMB server
//! understands it: such a server answers with its response, and whoever returns
//! messages returns it. A listener of ours knows it by the client's GUID and answers
//! with a *welcome*, which says what becomes of messages and, if the hello asked for it,
//! where memory is that the initiator may reach by RDMA.

use linkspan_smbdirect::Descriptor;
use linkspan_smbdirect::descriptor::{self, DESCRIPTOR_LEN};

/// Bytes of the header of SMB2, and of what stands before the dialects of a request.
const SMB2_HEADER: usize = 64;
const REQUEST: usize = 36;
/// Bytes of a response before its security buffer.
const RESPONSE: usize = 64;

const DIALECTS: [u16; 4] = [0x0202, 0x0210, 0x0300, 0x0302];

/// Bytes of a hello.
pub const HELLO_LEN: usize = SMB2_HEADER + REQUEST + 2 * DIALECTS.len();

/// The GUID of the client: this, what is asked for, and bytes in little-endian.
const NAME: [u8; 8] = *b"linkspan";
const VERSION: u16 = 1;
const GUID: usize = SMB2_HEADER + 12;

/// Bytes of a welcome before its descriptors.
const WELCOME_LEN: usize = 16;

/// What a listener does with messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each comes back as one message.
    Echo,
    /// They are counted.
    Sink,
}

impl Mode {
    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Sink => "sink",
        }
    }
}

/// What a hello asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Bytes of memory to reach by RDMA reads and writes; 0: none.
    pub memory: u32,
}

impl Hello {
    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, b"\xFESMB");
        put(4, &64_u16.to_le_bytes());
        // Credits of SMB2 that are asked for.
        put(14, &1_u16.to_le_bytes());
        put(SMB2_HEADER, &36_u16.to_le_bytes());
        put(SMB2_HEADER + 2, &[DIALECTS.len().to_le_bytes()[0], 0]);
        // Signing is possible.
        put(SMB2_HEADER + 4, &1_u16.to_le_bytes());
        put(GUID, &NAME);
        put(GUID + 8, &VERSION.to_le_bytes());
        put(GUID + 12, &self.memory.to_le_bytes());
        for (at, dialect) in (SMB2_HEADER + REQUEST..).step_by(2).zip(DIALECTS) {
            put(at, &dialect.to_le_bytes());
        }
        bytes
    }

    /// Reads a first message; `None` if it is something else.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let memory = u32::from_le_bytes(*bytes.get(GUID + 12..)?.first_chunk()?);
        let hello = Self { memory };
        (bytes == hello.to_bytes()).then_some(hello)
    }
}

/// A welcome to an initiator of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// What becomes of messages.
    pub mode: Mode,
    /// The memory that was asked for; none if it could not be had.
    pub memory: Vec<Descriptor>,
}

impl Welcome {
    /// Its bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(WELCOME_LEN + self.memory.len() * DESCRIPTOR_LEN);
        bytes.extend_from_slice(&NAME);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[u8::from(self.mode == Mode::Sink), 0]);
        let count = u32::try_from(self.memory.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&count.to_le_bytes());
        for descriptor in &self.memory {
            bytes.extend_from_slice(&descriptor.to_bytes());
        }
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&NAME)?;
        let rest = rest.strip_prefix(&VERSION.to_le_bytes())?;
        let (&[mode, 0], rest) = rest.split_first_chunk()? else {
            return None;
        };
        let mode = match mode {
            0 => Mode::Echo,
            1 => Mode::Sink,
            _ => return None,
        };
        let (&count, rest) = rest.split_first_chunk()?;
        let count = usize::try_from(u32::from_le_bytes(count)).ok()?;
        let memory = match count {
            0 if rest.is_empty() => Vec::new(),
            _ => descriptor::parse(rest).ok()?,
        };
        (memory.len() == count).then_some(Self { mode, memory })
    }
}

/// Who answered a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A listener of ours.
    Ours(Welcome),
    /// A server of SMB, such as ksmbd: the dialect that it chose, 0 if none, and its
    /// status.
    Smb {
        /// `DialectRevision`.
        dialect: u16,
        /// `NTSTATUS`.
        status: u32,
    },
    /// Somebody who returns messages.
    Echo,
    /// Somebody else.
    Other,
}

impl Peer {
    /// Reads the answer to `hello`.
    #[must_use]
    pub fn of(hello: Hello, answer: &[u8]) -> Self {
        if answer == hello.to_bytes() {
            return Self::Echo;
        }
        if let Some(welcome) = Welcome::parse(answer) {
            return Self::Ours(welcome);
        }
        let word = |at: usize| answer.get(at..)?.first_chunk().copied();
        let header = answer.starts_with(b"\xFESMB\x40\0")
            // A response, of NEGOTIATE.
            && word(12) == Some([0, 0])
            && answer.get(16).is_some_and(|flags| flags & 1 == 1);
        let status = answer.get(8..).and_then(|rest| rest.first_chunk());
        match (header, status) {
            (true, Some(status)) => {
                let whole = answer.len() >= SMB2_HEADER + RESPONSE;
                let dialect = word(SMB2_HEADER + 4).filter(|_| whole);
                Self::Smb {
                    dialect: dialect.map_or(0, u16::from_le_bytes),
                    status: u32::from_le_bytes(*status),
                }
            }
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_known_and_nothing_else_is_one() {
        let hello = Hello { memory: 1 << 20 };
        let bytes = hello.to_bytes();
        assert_eq!(Hello::parse(&bytes), Some(hello));
        assert_eq!(&bytes[..6], b"\xFESMB\x40\0");
        for at in 0..bytes.len() {
            assert_eq!(Hello::parse(&bytes[..at]), None);
            let mut other = bytes;
            other[at] ^= 1;
            let parsed = Hello::parse(&other);
            let in_memory = (GUID + 12..GUID + 16).contains(&at);
            assert_eq!(parsed.is_some(), in_memory, "byte {at}");
        }
        let mut long = bytes.to_vec();
        long.push(0);
        assert_eq!(Hello::parse(&long), None);
    }

    #[test]
    fn who_answered_is_told() {
        let hello = Hello { memory: 4096 };
        let descriptor = Descriptor {
            offset: 1 << 16,
            token: 7,
            length: 4096,
        };
        for (mode, memory) in [(Mode::Echo, vec![]), (Mode::Sink, vec![descriptor; 3])] {
            let welcome = Welcome { mode, memory };
            let bytes = welcome.to_bytes();
            assert_eq!(Peer::of(hello, &bytes), Peer::Ours(welcome));
            for len in 0..bytes.len() {
                assert_eq!(Peer::of(hello, &bytes[..len]), Peer::Other);
            }
            let long = [&bytes[..], &[0]].concat();
            assert_eq!(Peer::of(hello, &long), Peer::Other);
        }
        let bytes = hello.to_bytes();
        assert_eq!(Peer::of(hello, &bytes), Peer::Echo);
        assert_eq!(Peer::of(Hello::default(), &bytes), Peer::Other);
        let mut response = [0; SMB2_HEADER + RESPONSE];
        response[..6].copy_from_slice(b"\xFESMB\x40\0");
        response[16] = 1;
        response[SMB2_HEADER + 4..SMB2_HEADER + 6].copy_from_slice(&[0x02, 0x03]);
        let smb = |dialect, status| Peer::Smb { dialect, status };
        assert_eq!(Peer::of(hello, &response), smb(0x0302, 0));
        response[8] = 0xBB;
        assert_eq!(Peer::of(hello, &response[..SMB2_HEADER + 9]), smb(0, 0xBB));
    }
}
