//! What a client offers, what was agreed upon, and how a person reads it.

use alloc::string::String;
use alloc::vec::Vec;

use super::Protection;
use crate::negotiate::{Cipher, SALT_LEN, Signing, capabilities, dialect, security_mode};

/// What a client wants and offers.
#[derive(Clone, Debug)]
pub struct Options {
    /// Dialects, of [`dialect::ALL`].
    pub dialects: Vec<u16>,
    /// Ciphers, best first; none is no encryption.
    pub ciphers: Vec<Cipher>,
    /// Ways to sign in 3.1.1, best first.
    pub signings: Vec<Signing>,
    /// Nothing goes unsigned.
    pub require_signing: bool,
    /// Nothing goes unencrypted once there is a session.
    pub require_encryption: bool,
    /// Whoever logs on with a key goes on without one if the server takes them for a guest.
    pub guest_allowed: bool,
    /// Who the client is: random, once for a process.
    pub guid: [u8; 16],
    /// The session of a connection before, which the server ends with all that is under way in
    /// it before there is another one of the same user (MS-SMB2 3.3.5.5.3); 0 if there was none.
    pub previous_session: u64,
    /// Random, for each connection.
    pub salt: [u8; SALT_LEN],
    /// Credits that are wanted.
    pub credits: u16,
    /// The longest READ, WRITE or query, in bytes.
    pub max_io: u32,
}

impl Options {
    /// All that is known here, with these random numbers.
    #[must_use]
    pub fn new(guid: [u8; 16], salt: [u8; SALT_LEN]) -> Self {
        Self {
            dialects: dialect::ALL.to_vec(),
            ciphers: Cipher::ALL.to_vec(),
            signings: Signing::ALL.to_vec(),
            require_signing: false,
            require_encryption: false,
            guest_allowed: false,
            guid,
            previous_session: 0,
            salt,
            credits: 256,
            max_io: 1 << 20,
        }
    }

    pub(super) fn capabilities(&self) -> u32 {
        let newer = self
            .dialects
            .iter()
            .any(|dialect| *dialect >= dialect::SMB_3_0);
        let encryption = if newer && !self.ciphers.is_empty() {
            capabilities::ENCRYPTION
        } else {
            0
        };
        capabilities::LARGE_MTU | capabilities::LEASING | encryption
    }

    pub(super) fn security_mode(&self) -> u16 {
        match self.require_signing {
            true => security_mode::SIGNING_ENABLED | security_mode::SIGNING_REQUIRED,
            false => security_mode::SIGNING_ENABLED,
        }
    }
}

/// What was agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// [`dialect`].
    pub dialect: u16,
    /// [`capabilities`] of the server.
    pub capabilities: u32,
    /// Who the server is.
    pub server_guid: [u8; 16],
    /// [`security_mode`] of the server.
    pub security_mode: u16,
    /// The longest query, in bytes.
    pub max_transact: u32,
    /// The longest READ, in bytes.
    pub max_read: u32,
    /// The longest WRITE, in bytes.
    pub max_write: u32,
    /// The server's clock then: 100 ns since 1601, or 0 if it does not say.
    pub system_time: u64,
    /// What signs.
    pub signing: Signing,
    /// What encrypts, if anything can.
    pub cipher: Option<Cipher>,
}

/// What a person reads about a connection: dialect, and what protects it.
#[must_use]
pub fn describe(agreed: &Agreed, protection: Protection) -> String {
    let mut text = alloc::format!("SMB {}", dialect::text(agreed.dialect));
    text.push_str(match (protection.encrypted, agreed.cipher) {
        (true, Some(cipher)) => {
            return text + ", encrypted with " + cipher.text() + guest(protection);
        }
        _ => ", not encrypted",
    });
    match protection.signed {
        true => {
            text.push_str(", signed with ");
            text.push_str(agreed.signing.text());
        }
        false => text.push_str(", not signed"),
    }
    text + guest(protection)
}

fn guest(protection: Protection) -> &'static str {
    if protection.guest { ", as a guest" } else { "" }
}
