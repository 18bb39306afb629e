//! Why something on a share did not work.

use std::io;
use std::time::Duration;

use linkspan_mem::fault::Injected;
use linkspan_smb2::{Blame, status};
use linkspan_smbdirect::Refusal;
use thiserror::Error as ThisError;

use crate::smbdirect::{EndpointError, Gone};

/// Why something on a share did not work.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// The name of the server is unknown.
    #[error("cannot find {host}: {error}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        error: io::Error,
    },
    /// Nobody answers at any address of the server.
    #[error("cannot connect to {host}:{port}: {error}")]
    Connect {
        /// The name.
        host: String,
        /// The port.
        port: u16,
        /// Why, at the last address.
        error: io::Error,
    },
    /// The connection is over.
    #[error("the connection is lost: {0}")]
    Lost(io::Error),
    /// The server said nothing for too long.
    #[error("the server has not answered for {0:?}")]
    Silent(Duration),
    /// The server broke the protocol, or does not have what is needed.
    #[error("{0}")]
    Protocol(#[from] linkspan_smb2::Error),
    /// The server does not log anybody on by NTLM.
    #[error("the server does not know NTLM, and Kerberos is not supported here")]
    KerberosOnly,
    /// The server refused the log-on.
    #[error("cannot log on as {user}: {} ({status:#010x})", status::text(*status))]
    LogOn {
        /// Who.
        user: String,
        /// Its NTSTATUS.
        status: u32,
    },
    /// The server refused a request.
    #[error("{what}: {} ({status:#010x})", status::text(*status))]
    Refused {
        /// Which, and about what.
        what: String,
        /// Its NTSTATUS.
        status: u32,
    },
    /// What is no file was to be read or written as one.
    #[error("{0}")]
    Kind(String),
    /// The connection of SMB Direct is over, or never was.
    #[error("SMB Direct: {0}")]
    Ended(Gone),
    /// SMB Direct did not do what it was asked for.
    #[error("SMB Direct: {0}")]
    Rdma(Refusal),
    /// There is no SMB Direct at this end.
    #[error("SMB Direct: {0}")]
    Endpoint(#[from] EndpointError),
    /// There is no memory for something that has to be sent.
    #[error("no room for {what} of {bytes} bytes")]
    Room {
        /// What.
        what: &'static str,
        /// Its bytes.
        bytes: usize,
    },
    /// Something at this end.
    #[error("{0}")]
    Here(io::Error),
    /// Something could not be had at this end.
    #[error("{0}")]
    Injected(#[from] Injected),
}

impl Error {
    /// The server's NTSTATUS, if it said one.
    #[must_use]
    pub fn status(&self) -> Option<u32> {
        match self {
            Self::LogOn { status, .. } | Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether nobody is there, or not any more: another attempt may do.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Connect { .. } | Self::Lost(_) | Self::Silent(_) => true,
            Self::Ended(over) => !over.is_broken(),
            Self::Rdma(why) => matches!(why, Refusal::Ended(_)),
            _ => false,
        }
    }

    /// Whether the server broke a protocol.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        match self {
            Self::Protocol(error) => error.blame() == Blame::Peer,
            Self::Ended(over) => over.is_broken(),
            _ => false,
        }
    }
}
