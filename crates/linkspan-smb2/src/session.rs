//! SESSION_SETUP, LOGOFF, TREE_CONNECT, TREE_DISCONNECT, ECHO, CANCEL (MS-SMB2 2.2.5 to
//! 2.2.12, 2.2.28 to 2.2.30).

use alloc::vec::Vec;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::error::Error;
use crate::header::Header;
use crate::wire::{self, Body, body, slice};

/// `SessionFlags` of a response.
pub mod session_flags {
    /// The user is a guest: there is no key, and nothing is signed.
    pub const IS_GUEST: u16 = 1;
    /// The user is nobody: as for a guest.
    pub const IS_NULL: u16 = 2;
    /// All messages of the session have to be encrypted.
    pub const ENCRYPT_DATA: u16 = 4;
}

/// `ShareFlags` of a response.
pub mod share_flags {
    /// All messages to the share have to be encrypted.
    pub const ENCRYPT_DATA: u32 = 0x0000_8000;
}

/// `ShareType`: a share of files.
pub const DISK: u8 = 1;

/// `ShareType`: a share of pipes.
pub const PIPE: u8 = 2;

/// `ShareType`: a share of printers.
pub const PRINT: u8 = 3;

body! {
    /// The fixed part of a SESSION_SETUP request.
    SetupRequest, 25, SessionSetup {
        flags: u8,
        security_mode: u8,
        capabilities: U32,
        channel: U32,
        security_offset: U16,
        security_length: U16,
        previous_session: U64,
    }
}

body! {
    /// The fixed part of a SESSION_SETUP response.
    SetupResponse, 9, SessionSetup {
        session_flags: U16,
        security_offset: U16,
        security_length: U16,
    }
}

body! {
    /// The fixed part of a TREE_CONNECT request.
    TreeConnectRequest, 9, TreeConnect {
        flags: U16,
        path_offset: U16,
        path_length: U16,
    }
}

body! {
    /// A TREE_CONNECT response.
    TreeConnectResponse, 16, TreeConnect {
        share_type: u8,
        reserved: u8,
        share_flags: U32,
        capabilities: U32,
        maximal_access: U32,
    }
}

body! {
    /// What says nothing: LOGOFF, TREE_DISCONNECT, ECHO and CANCEL, and their responses.
    Empty, 4, Echo {
        reserved: U16,
    }
}

impl SetupRequest {
    /// The token of a request.
    ///
    /// # Errors
    /// It is not in the message.
    pub fn token(self, message: &[u8]) -> Result<&[u8], Error> {
        let (offset, length) = (self.security_offset.get(), self.security_length.get());
        slice("SecurityBuffer", message, Self::end(), offset, length)
    }

    /// Its bytes behind the header, with this token.
    ///
    /// # Errors
    /// The token is longer than a request can say.
    pub fn body(mut self, token: &[u8]) -> Result<Vec<u8>, Error> {
        self.security_offset = wire::len16(Self::end()).into();
        self.security_length = token_len(token)?.into();
        let mut out = self.as_bytes().to_vec();
        out.extend_from_slice(token);
        Ok(out)
    }
}

impl SetupResponse {
    /// The token of a response.
    ///
    /// # Errors
    /// It is not in the message.
    pub fn token(self, message: &[u8]) -> Result<&[u8], Error> {
        let (offset, length) = (self.security_offset.get(), self.security_length.get());
        slice("SecurityBuffer", message, Self::end(), offset, length)
    }

    /// Its bytes behind the header, with this token.
    ///
    /// # Errors
    /// The token is longer than a response can say.
    pub fn body(mut self, token: &[u8]) -> Result<Vec<u8>, Error> {
        self.security_offset = wire::len16(Self::end()).into();
        self.security_length = token_len(token)?.into();
        let mut out = self.as_bytes().to_vec();
        out.extend_from_slice(token);
        Ok(out)
    }
}

fn token_len(token: &[u8]) -> Result<u16, Error> {
    u16::try_from(token.len()).map_err(|_| Error::Long {
        what: "a token",
        got: token.len() as u64,
        max: u16::MAX.into(),
    })
}

impl TreeConnectRequest {
    /// The share that is asked for: `\\host\share` in UTF-16.
    ///
    /// # Errors
    /// It is not in the message.
    pub fn path(self, message: &[u8]) -> Result<&[u8], Error> {
        let (offset, length) = (self.path_offset.get(), self.path_length.get());
        slice("Path", message, Self::end(), offset, length)
    }

    /// Its bytes behind the header, for this share.
    #[must_use]
    pub fn body(mut self, path: &str) -> Vec<u8> {
        let path = crate::to_utf16(path);
        self.path_offset = wire::len16(Self::end()).into();
        self.path_length = wire::len16(path.len()).into();
        let mut out = self.as_bytes().to_vec();
        out.extend_from_slice(&path);
        out
    }
}

/// What an error response carries besides its status (MS-SMB2 2.2.2): nothing that is
/// needed here. It is at least 8 bytes, or an answer of its command.
pub const ERROR_STRUCTURE_SIZE: u16 = 9;

/// Whether a message has the body of an error response.
#[must_use]
pub fn is_error_body(message: &[u8]) -> bool {
    let size = message.get(Header::LEN..Header::LEN + 2);
    size.is_some_and(|size| size == ERROR_STRUCTURE_SIZE.to_le_bytes())
}
