//! NTLM version 2, the client's part (MS-NLMP): three messages, and the key of the session.
//!
//! It proves that both know the password, with no more than what a server of files asks
//! for. Nothing older than version 2 is ever sent.

use alloc::string::String;
use alloc::vec::Vec;

use hmac::{Hmac, KeyInit, Mac};
use md4::Md4;
use md5::{Digest, Md5};
use rc4::{Rc4, StreamCipher};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use crate::error::Error;
use crate::wire::{self, part, slice, view};

/// What each message begins with.
pub const SIGNATURE: &[u8] = b"NTLMSSP\0";

/// `NegotiateFlags` (MS-NLMP 2.2.2.5).
mod flag {
    pub(super) const UNICODE: u32 = 0x0000_0001;
    pub(super) const REQUEST_TARGET: u32 = 0x0000_0004;
    pub(super) const SIGN: u32 = 0x0000_0010;
    pub(super) const SEAL: u32 = 0x0000_0020;
    pub(super) const NTLM: u32 = 0x0000_0200;
    pub(super) const ANONYMOUS: u32 = 0x0000_0800;
    pub(super) const ALWAYS_SIGN: u32 = 0x0000_8000;
    pub(super) const EXTENDED_SESSION_SECURITY: u32 = 0x0008_0000;
    pub(super) const TARGET_INFO: u32 = 0x0080_0000;
    pub(super) const VERSION: u32 = 0x0200_0000;
    pub(super) const BITS_128: u32 = 0x2000_0000;
    pub(super) const KEY_EXCHANGE: u32 = 0x4000_0000;
    pub(super) const BITS_56: u32 = 0x8000_0000;
}

/// What is wanted.
const WANTED: u32 = flag::UNICODE
    | flag::REQUEST_TARGET
    | flag::SIGN
    | flag::SEAL
    | flag::NTLM
    | flag::ALWAYS_SIGN
    | flag::EXTENDED_SESSION_SECURITY
    | flag::TARGET_INFO
    | flag::VERSION
    | flag::BITS_128
    | flag::KEY_EXCHANGE
    | flag::BITS_56;

/// Version 10.0, NTLM revision 15.
const VERSION: [u8; 8] = [10, 0, 0, 0, 0, 0, 0, 15];

part! {
    /// Where a part of a message is.
    Place {
        length: U16,
        max: U16,
        offset: U32,
    }
}

part! {
    /// MS-NLMP 2.2.1.1.
    Negotiate {
        signature: [u8; 8],
        kind: U32,
        flags: U32,
        domain: Place,
        workstation: Place,
        version: [u8; 8],
    }
}

part! {
    /// MS-NLMP 2.2.1.2, without the version, which is not always there.
    Challenge {
        signature: [u8; 8],
        kind: U32,
        target: Place,
        flags: U32,
        challenge: [u8; 8],
        reserved: [u8; 8],
        info: Place,
    }
}

part! {
    /// MS-NLMP 2.2.1.3.
    Authenticate {
        signature: [u8; 8],
        kind: U32,
        lm: Place,
        nt: Place,
        domain: Place,
        user: Place,
        workstation: Place,
        key: Place,
        flags: U32,
        version: [u8; 8],
        mic: [u8; 16],
    }
}

/// Who logs on. Without a name it is nobody.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The domain, or nothing.
    pub domain: String,
    /// The password.
    pub password: String,
}

impl core::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Credentials({:?}, {:?})", self.domain, self.user)
    }
}

/// What must not be known before: from the system's source of it.
#[derive(Clone, Copy, Debug)]
pub struct Nonces {
    /// The client's challenge.
    pub challenge: [u8; 8],
    /// The key of the session.
    pub key: [u8; 16],
}

/// The last message, and what comes of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// The message.
    pub token: Vec<u8>,
    /// The key of the session; nobody has none.
    pub key: Option<[u8; 16]>,
}

impl core::fmt::Debug for Answer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Answer({} bytes)", self.token.len())
    }
}

fn hmac_md5(key: &[u8; 16], parts: &[&[u8]]) -> [u8; 16] {
    let mut block = [0; 64];
    block[..16].copy_from_slice(key);
    let mut mac = <Hmac<Md5> as KeyInit>::new(&block.into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// The key that is made of the password (MS-NLMP 3.3.2, NTOWFv2).
fn password_key(credentials: &Credentials) -> [u8; 16] {
    let hash: [u8; 16] = Md4::digest(crate::to_utf16(&credentials.password)).into();
    let mut name = credentials.user.to_uppercase();
    name.push_str(&credentials.domain);
    hmac_md5(&hash, &[&crate::to_utf16(&name)])
}

/// The proof, and the key that comes of it (MS-NLMP 3.3.2).
fn prove(
    key: &[u8; 16],
    server: [u8; 8],
    client: [u8; 8],
    time: u64,
    info: &[u8],
) -> (Vec<u8>, [u8; 16]) {
    let mut blob = alloc::vec![1, 1, 0, 0, 0, 0, 0, 0];
    blob.extend_from_slice(&time.to_le_bytes());
    blob.extend_from_slice(&client);
    blob.extend_from_slice(&[0; 4]);
    blob.extend_from_slice(info);
    blob.extend_from_slice(&[0; 4]);
    let proof = hmac_md5(key, &[&server, &blob]);
    (([&proof[..], &blob].concat()), hmac_md5(key, &[&proof]))
}

fn rc4(key: &[u8; 16], data: &mut [u8]) {
    let mut cipher = Rc4::new_from_slice(key).expect("keys have 1 to 256 bytes");
    cipher.apply_keystream(data);
}

/// Facts about the server that are part of the proof (MS-NLMP 2.2.2.1).
mod fact {
    pub(super) const END: u16 = 0;
    pub(super) const FLAGS: u16 = 6;
    pub(super) const TIMESTAMP: u16 = 7;
    /// The message that follows has an integrity code.
    pub(super) const HAS_MIC: u32 = 2;
}

/// Splits the list of facts: it without its end and without flags, and the server's time.
fn facts(info: &[u8]) -> Result<(Vec<u8>, Option<u64>), Error> {
    let (mut out, mut time, mut at) = (Vec::new(), None, 0);
    while at < info.len() {
        let rest = &info[at..];
        let id = view::<U16>("a fact of the target", rest)?.get();
        if id == fact::END {
            break;
        }
        let length: U16 = view("a fact of the target", rest.get(2..).unwrap_or_default())?;
        let length = usize::from(length.get());
        let value = slice("a fact of the target", rest, 4, 4_u64, length as u64)?;
        if id == fact::TIMESTAMP {
            time = value.try_into().ok().map(u64::from_le_bytes);
        }
        if id != fact::FLAGS {
            out.extend_from_slice(&rest[..4 + length]);
        }
        at += 4 + length;
    }
    Ok((out, time))
}

/// The first message.
#[must_use]
pub fn negotiate() -> Vec<u8> {
    let mut message = Negotiate {
        kind: 1.into(),
        flags: WANTED.into(),
        version: VERSION,
        ..Negotiate::default()
    };
    message.signature.copy_from_slice(SIGNATURE);
    message.as_bytes().to_vec()
}

/// Answers the server's challenge. `first` is the first message, `now` the time in 100 ns
/// since 1601, which counts if the server does not say its own.
///
/// # Errors
/// The challenge is not whole, or asks for what is older than version 2.
pub fn authenticate(
    credentials: &Credentials,
    first: &[u8],
    challenge: &[u8],
    nonces: Nonces,
    now: u64,
) -> Result<Answer, Error> {
    let server: Challenge = view("an NTLM challenge", challenge)?;
    if server.signature != SIGNATURE || server.kind.get() != 2 {
        return Err(Error::Token {
            what: "it is no challenge of NTLM",
        });
    }
    let flags = WANTED & server.flags.get();
    let needed = flag::UNICODE | flag::EXTENDED_SESSION_SECURITY;
    if flags & needed != needed {
        return Err(Error::Token {
            what: "NTLM version 2 is not offered",
        });
    }
    if credentials.user.is_empty() {
        let nobody = [&[0][..], &[], &[], &[], &[]];
        let (message, _) = last_message(flags & !flag::KEY_EXCHANGE | flag::ANONYMOUS, nobody);
        return Ok(Answer {
            token: message,
            key: None,
        });
    }
    let from = size_of::<Challenge>();
    let (offset, length) = (server.info.offset.get(), server.info.length.get());
    let info = slice("TargetInfo", challenge, from, offset, length)?;
    let (mut info, time) = facts(info)?;
    if time.is_some() {
        info.extend_from_slice(&fact::FLAGS.to_le_bytes());
        info.extend_from_slice(&4_u16.to_le_bytes());
        info.extend_from_slice(&fact::HAS_MIC.to_le_bytes());
    }
    info.extend_from_slice(&[0; 4]);

    let key = password_key(credentials);
    let client = nonces.challenge;
    let (nt, base) = prove(&key, server.challenge, client, time.unwrap_or(now), &info);
    // A server that says its time gets nothing else (MS-NLMP 3.1.5.1.2).
    let lm = match time {
        Some(_) => alloc::vec![0; 24],
        None => [&hmac_md5(&key, &[&server.challenge, &client])[..], &client].concat(),
    };
    let (session, sealed) = if flags & flag::KEY_EXCHANGE == 0 {
        (base, Vec::new())
    } else {
        let mut sealed = nonces.key.to_vec();
        rc4(&base, &mut sealed);
        (nonces.key, sealed)
    };
    let domain = crate::to_utf16(&credentials.domain);
    let user = crate::to_utf16(&credentials.user);
    let (mut message, mic) = last_message(flags, [&lm, &nt, &domain, &user, &sealed]);
    if time.is_some() {
        let code = hmac_md5(&session, &[first, challenge, &message]);
        message[mic].copy_from_slice(&code);
    }
    Ok(Answer {
        token: message,
        key: Some(session),
    })
}

/// The last message, and where its integrity code goes.
fn last_message(flags: u32, parts: [&[u8]; 5]) -> (Vec<u8>, core::ops::Range<usize>) {
    let mut payload = Vec::new();
    let [lm, nt, domain, user, key] = parts.map(|part| {
        let offset = size_of::<Authenticate>() + payload.len();
        payload.extend_from_slice(part);
        let length = wire::len16(part.len()).into();
        Place {
            length,
            max: length,
            offset: wire::len32(offset).into(),
        }
    });
    let mut message = Authenticate {
        kind: 3.into(),
        lm,
        nt,
        domain,
        user,
        key,
        flags: flags.into(),
        version: VERSION,
        ..Authenticate::default()
    };
    message.signature.copy_from_slice(SIGNATURE);
    message.workstation.offset = key.offset;
    let mic = size_of::<Authenticate>() - 16..size_of::<Authenticate>();
    ([message.as_bytes(), &payload].concat(), mic)
}

/// The signature of the list of mechanisms (MS-NLMP 3.4.4.2, the first message that is signed).
#[must_use]
pub fn sign(key: [u8; 16], message: &[u8]) -> [u8; 16] {
    let derive = |magic: &[u8]| -> [u8; 16] {
        Md5::new()
            .chain_update(key)
            .chain_update(magic)
            .finalize()
            .into()
    };
    let signs = derive(b"session key to client-to-server signing key magic constant\0");
    let seals = derive(b"session key to client-to-server sealing key magic constant\0");
    let mut checksum = hmac_md5(&signs, &[&[0; 4], message]);
    rc4(&seals, &mut checksum[..8]);
    let mut out = [0; 16];
    out[0] = 1;
    out[4..12].copy_from_slice(&checksum[..8]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MS-NLMP 4.2.1: the names, the password, the challenges; and 4.2.4.
    #[test]
    fn published_example_of_version_2() {
        let credentials = Credentials {
            user: "User".into(),
            domain: "Domain".into(),
            password: "Password".into(),
        };
        let key = password_key(&credentials);
        assert_eq!(
            u128::from_be_bytes(key),
            0x0c86_8a40_3bfd_7a93_a300_1ef2_2ef0_2e3f
        );
        let mut info = Vec::new();
        for (id, name) in [(2_u16, "Domain"), (1, "Server")] {
            info.extend_from_slice(&id.to_le_bytes());
            info.extend_from_slice(&12_u16.to_le_bytes());
            info.extend_from_slice(&crate::to_utf16(name));
        }
        info.extend_from_slice(&[0; 4]);
        let server = 0x0123_4567_89ab_cdef_u64.to_be_bytes();
        let (nt, base) = prove(&key, server, [0xaa; 8], 0, &info);
        let proof: [u8; 16] = nt[..16].try_into().unwrap();
        assert_eq!(
            u128::from_be_bytes(proof),
            0x68cd_0ab8_51e5_1c96_aabc_927b_ebef_6a1c
        );
        assert_eq!(
            u128::from_be_bytes(base),
            0x8de4_0cca_dbc1_4a82_f15c_b0ad_0de9_5ca3
        );
        let mut session = [0x55; 16];
        rc4(&base, &mut session);
        assert_eq!(
            u128::from_be_bytes(session),
            0xc5da_d254_4fc9_7990_94ce_1ce9_0bc9_d03e
        );
    }

    /// From the example of SMB 3.1.1 that Microsoft published in 2017.
    #[test]
    fn published_signature_of_the_mechanisms() {
        let key = 0x270E_1BA8_9658_5EEB_7AF3_472D_3B4C_75A7_u128.to_be_bytes();
        let signature = sign(key, &crate::spnego::mechanisms());
        let want = 0x0100_0000_6377_5A9A_5FD9_7F06_0000_0000_u128;
        assert_eq!(u128::from_be_bytes(signature), want);
    }

    #[test]
    fn a_challenge_that_is_not_whole_is_named() {
        let someone = Credentials {
            user: "u".into(),
            ..Credentials::default()
        };
        let nonces = Nonces {
            challenge: [1; 8],
            key: [2; 16],
        };
        let mut challenge = Challenge {
            kind: 2.into(),
            flags: WANTED.into(),
            info: Place {
                length: 4.into(),
                max: 4.into(),
                offset: 48.into(),
            },
            ..Challenge::default()
        };
        challenge.signature.copy_from_slice(SIGNATURE);
        let answer = |bytes: &[u8]| authenticate(&someone, b"", bytes, nonces, 0);
        let whole = [challenge.as_bytes(), &[0; 4]].concat();
        assert!(answer(&whole).unwrap().key.is_some());
        for len in 0..whole.len() {
            assert!(answer(&whole[..len]).is_err(), "{len}");
        }
        challenge.flags = 1.into();
        assert!(answer(challenge.as_bytes()).is_err());
    }
}
