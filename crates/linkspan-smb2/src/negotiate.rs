//! NEGOTIATE (MS-SMB2 2.2.3, 2.2.4): dialect, sizes, and what protects messages.

use alloc::vec::Vec;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::error::Error;
use crate::header::Header;
use crate::wire::{self, Body, body, part, slice, view};

/// Dialects, oldest first.
pub mod dialect {
    /// SMB 2.1.
    pub const SMB_2_1: u16 = 0x0210;
    /// SMB 3.0.
    pub const SMB_3_0: u16 = 0x0300;
    /// SMB 3.0.2.
    pub const SMB_3_0_2: u16 = 0x0302;
    /// SMB 3.1.1.
    pub const SMB_3_1_1: u16 = 0x0311;
    /// All of them.
    pub const ALL: &[u16] = &[SMB_2_1, SMB_3_0, SMB_3_0_2, SMB_3_1_1];

    /// As people write it.
    #[must_use]
    pub fn text(dialect: u16) -> &'static str {
        match dialect {
            SMB_2_1 => "2.1",
            SMB_3_0 => "3.0",
            SMB_3_0_2 => "3.0.2",
            SMB_3_1_1 => "3.1.1",
            _ => "unknown",
        }
    }
}

/// `SecurityMode`.
pub mod security_mode {
    /// Signs if the other end wants it.
    pub const SIGNING_ENABLED: u16 = 1;
    /// Everything is signed.
    pub const SIGNING_REQUIRED: u16 = 2;
}

/// `Capabilities` (MS-SMB2 2.2.3).
pub mod capabilities {
    /// Distributed file system.
    pub const DFS: u32 = 0x01;
    /// Leases.
    pub const LEASING: u32 = 0x02;
    /// Requests that cost more than one credit.
    pub const LARGE_MTU: u32 = 0x04;
    /// More than one connection for a session.
    pub const MULTI_CHANNEL: u32 = 0x08;
    /// Handles that outlive the server.
    pub const PERSISTENT_HANDLES: u32 = 0x10;
    /// Leases on folders.
    pub const DIRECTORY_LEASING: u32 = 0x20;
    /// Encryption, in dialects 3.0 and 3.0.2.
    pub const ENCRYPTION: u32 = 0x40;
}

/// What encrypts messages (MS-SMB2 2.2.3.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the algorithms")]
#[repr(u16)]
pub enum Cipher {
    Aes128Ccm = 1,
    Aes128Gcm = 2,
    Aes256Ccm = 3,
    Aes256Gcm = 4,
}

/// What signs messages (MS-SMB2 2.2.3.1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the algorithms")]
#[repr(u16)]
pub enum Signing {
    HmacSha256 = 0,
    AesCmac = 1,
    AesGmac = 2,
}

impl Cipher {
    /// All, best first.
    pub const ALL: [Self; 4] = [
        Self::Aes128Gcm,
        Self::Aes256Gcm,
        Self::Aes128Ccm,
        Self::Aes256Ccm,
    ];

    /// By its number.
    #[must_use]
    pub fn of(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| *cipher as u16 == id)
    }

    /// As people write it.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Aes128Ccm => "AES-128-CCM",
            Self::Aes128Gcm => "AES-128-GCM",
            Self::Aes256Ccm => "AES-256-CCM",
            Self::Aes256Gcm => "AES-256-GCM",
        }
    }
}

impl Signing {
    /// All, best first.
    pub const ALL: [Self; 3] = [Self::AesGmac, Self::AesCmac, Self::HmacSha256];

    /// By its number.
    #[must_use]
    pub fn of(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|signing| *signing as u16 == id)
    }

    /// As people write it.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::HmacSha256 => "HMAC-SHA256",
            Self::AesCmac => "AES-CMAC",
            Self::AesGmac => "AES-GMAC",
        }
    }
}

const PREAUTH_INTEGRITY: u16 = 1;
const ENCRYPTION: u16 = 2;
const SIGNING: u16 = 8;

/// The only hash that exists for preauthentication integrity.
pub const SHA_512: u16 = 1;

/// Bytes of the salt that goes with it.
pub const SALT_LEN: usize = 32;

/// Contexts in one message that anybody needs; there are 8 kinds.
const CONTEXTS_MAX: usize = 64;

/// Dialects in one request that anybody needs.
const DIALECTS_MAX: usize = 64;

body! {
    /// The fixed part of a request.
    Request, 36, Negotiate {
        dialect_count: U16,
        security_mode: U16,
        reserved: U16,
        capabilities: U32,
        client_guid: [u8; 16],
        context_offset: U32,
        context_count: U16,
        reserved2: U16,
    }
}

body! {
    /// The fixed part of a response.
    Response, 65, Negotiate {
        security_mode: U16,
        dialect: U16,
        context_count: U16,
        server_guid: [u8; 16],
        capabilities: U32,
        max_transact_size: U32,
        max_read_size: U32,
        max_write_size: U32,
        system_time: U64,
        server_start_time: U64,
        security_offset: U16,
        security_length: U16,
        context_offset: U32,
    }
}

part! {
    /// What begins a negotiate context (MS-SMB2 2.2.3.1).
    ContextHeader {
        kind: U16,
        length: U16,
        reserved: U32,
    }
}

/// What the contexts of 3.1.1 say, of those that are known here: lists in a request,
/// lists of one in a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    /// Hashes for preauthentication integrity.
    pub hashes: Vec<u16>,
    /// Its salt.
    pub salt: Vec<u8>,
    /// Ciphers, best first.
    pub ciphers: Vec<u16>,
    /// Ways to sign, best first.
    pub signings: Vec<u16>,
}

impl Contexts {
    fn parse(message: &[u8], from: usize, offset: u32, count: u16) -> Result<Self, Error> {
        let count = usize::from(count);
        if count > CONTEXTS_MAX {
            return Err(Error::TooMany {
                what: "negotiate contexts",
                max: CONTEXTS_MAX,
            });
        }
        let mut contexts = Self::default();
        let mut at = u64::from(offset);
        for _ in 0..count {
            let head = slice("a negotiate context", message, from, at, 8_u8)?;
            let head: ContextHeader = view("a negotiate context", head)?;
            let length = head.length.get();
            let data = slice("a negotiate context", message, from, at + 8, length)?;
            contexts.add(head.kind.get(), data)?;
            at += u64::from(length).next_multiple_of(8) + 8;
        }
        Ok(contexts)
    }

    fn add(&mut self, kind: u16, data: &[u8]) -> Result<(), Error> {
        let count =
            |at: usize| view::<U16>("a negotiate context", data.get(at..).unwrap_or_default());
        let list = |at: usize, count: U16| {
            let length = u64::from(count.get()) * 2;
            let bytes = slice("a list of a negotiate context", data, at, at as u64, length)?;
            Ok(bytes
                .chunks_exact(2)
                .map(|id| u16::from_le_bytes([id[0], id[1]]))
                .collect())
        };
        match kind {
            PREAUTH_INTEGRITY => {
                let hashes = count(0)?;
                if hashes.get() == 0 {
                    // MS-SMB2 3.3.5.4.
                    return Err(Error::Field {
                        field: "HashAlgorithmCount",
                        value: 0,
                    });
                }
                let salt_len = count(2)?.get();
                self.hashes = list(4, hashes)?;
                let at = 4 + usize::from(hashes.get()) * 2;
                self.salt = slice("a salt", data, at, at as u64, salt_len)?.to_vec();
            }
            ENCRYPTION => self.ciphers = list(2, count(0)?)?,
            SIGNING => self.signings = list(2, count(0)?)?,
            // MS-SMB2 3.3.5.4: what is not known is ignored.
            _ => {}
        }
        Ok(())
    }

    /// Appends those that say something, and says how many.
    fn write(&self, out: &mut Vec<u8>) -> u16 {
        let mut count = 0;
        let mut add = |kind: u16, counts: &[u16], lists: [&[u16]; 1], tail: &[u8]| {
            let start = out.len();
            let mut data: Vec<u8> = Vec::new();
            for number in counts.iter().chain(lists[0]) {
                data.extend_from_slice(&number.to_le_bytes());
            }
            data.extend_from_slice(tail);
            let head = ContextHeader {
                kind: kind.into(),
                length: wire::len16(data.len()).into(),
                reserved: 0.into(),
            };
            debug_assert!(start.is_multiple_of(8));
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(&data);
            wire::align8(out, start);
            count += 1;
        };
        if !self.hashes.is_empty() {
            let counts = [wire::len16(self.hashes.len()), wire::len16(self.salt.len())];
            add(PREAUTH_INTEGRITY, &counts, [&self.hashes], &self.salt);
        }
        for (kind, list) in [(ENCRYPTION, &self.ciphers), (SIGNING, &self.signings)] {
            if !list.is_empty() {
                add(kind, &[wire::len16(list.len())], [list], &[]);
            }
        }
        count
    }
}

/// A request, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NegotiateRequest {
    /// Its fixed part.
    pub fixed: Request,
    /// Which dialects the client speaks.
    pub dialects: Vec<u16>,
    /// What its contexts say, with 3.1.1 among the dialects.
    pub contexts: Contexts,
}

impl NegotiateRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// A part of it is not in the message, or there are too many.
    pub fn parse(message: &[u8]) -> Result<Self, Error> {
        let fixed = Request::read(message)?;
        let count = usize::from(fixed.dialect_count.get());
        if count == 0 || count > DIALECTS_MAX {
            return Err(Error::Field {
                field: "DialectCount",
                value: count as u64,
            });
        }
        let list = slice(
            "dialects",
            message,
            Request::end(),
            Request::end() as u64,
            count as u64 * 2,
        )?;
        let dialects: Vec<u16> = list
            .chunks_exact(2)
            .map(|id| u16::from_le_bytes([id[0], id[1]]))
            .collect();
        let contexts = if dialects.contains(&dialect::SMB_3_1_1) {
            let from = Request::end() + list.len();
            let (offset, count) = (fixed.context_offset.get(), fixed.context_count.get());
            Contexts::parse(message, from, offset, count)?
        } else {
            Contexts::default()
        };
        Ok(Self {
            fixed,
            dialects,
            contexts,
        })
    }

    /// Its bytes behind the header. Numbers and places are filled in.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let mut fixed = self.fixed;
        let mut out = fixed.as_bytes().to_vec();
        fixed.dialect_count = wire::len16(self.dialects.len()).into();
        for dialect in &self.dialects {
            out.extend_from_slice(&dialect.to_le_bytes());
        }
        if self.dialects.contains(&dialect::SMB_3_1_1) {
            // The header is a multiple of 8.
            wire::align8(&mut out, 0);
            fixed.context_offset = wire::len32(Header::LEN + out.len()).into();
            fixed.context_count = self.contexts.write(&mut out).into();
        }
        out[..size_of::<Request>()].copy_from_slice(fixed.as_bytes());
        out
    }
}

/// A response, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NegotiateResponse<'a> {
    /// Its fixed part.
    pub fixed: Response,
    /// The first token: what authentication the server knows.
    pub token: &'a [u8],
    /// What its contexts say, in 3.1.1.
    pub contexts: Contexts,
}

impl<'a> NegotiateResponse<'a> {
    /// Reads a response.
    ///
    /// # Errors
    /// A part of it is not in the message, or there are too many.
    pub fn parse(message: &'a [u8]) -> Result<Self, Error> {
        let fixed = Response::read(message)?;
        let (offset, length) = (fixed.security_offset.get(), fixed.security_length.get());
        let token = slice("SecurityBuffer", message, Response::end(), offset, length)?;
        let contexts = if fixed.dialect.get() == dialect::SMB_3_1_1 {
            let (offset, count) = (fixed.context_offset.get(), fixed.context_count.get());
            Contexts::parse(message, Response::end(), offset, count)?
        } else {
            Contexts::default()
        };
        Ok(Self {
            fixed,
            token,
            contexts,
        })
    }

    /// Its bytes behind the header. Numbers and places are filled in.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let mut fixed = self.fixed;
        let mut out = fixed.as_bytes().to_vec();
        fixed.security_offset = wire::len16(Response::end()).into();
        fixed.security_length = wire::len16(self.token.len()).into();
        out.extend_from_slice(self.token);
        if fixed.dialect.get() == dialect::SMB_3_1_1 {
            wire::align8(&mut out, 0);
            fixed.context_offset = wire::len32(Header::LEN + out.len()).into();
            fixed.context_count = self.contexts.write(&mut out).into();
        }
        out[..size_of::<Response>()].copy_from_slice(fixed.as_bytes());
        out
    }
}
