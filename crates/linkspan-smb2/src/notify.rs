//! What a server takes back (MS-SMB2 2.2.23 to 2.2.25): an oplock, a lease.

use zerocopy::little_endian::{U16, U32, U64};

use crate::create::FileId;
use crate::error::Error;
use crate::header::Header;
use crate::wire::{Body, body};

body! {
    /// An oplock is taken back, that is acknowledged, and that is answered: one form.
    OplockBreak, 24, OplockBreak {
        level: u8,
        reserved: u8,
        reserved2: U32,
        file: FileId,
    }
}

body! {
    /// A lease is taken back.
    LeaseBreak, 44, OplockBreak {
        epoch: U16,
        flags: U32,
        key: [u8; 16],
        current: U32,
        new: U32,
        reason: U32,
        access_mask: U32,
        share_mask: U32,
    }
}

body! {
    /// That is acknowledged, and that is answered: one form.
    LeaseAck, 36, OplockBreak {
        reserved: U16,
        flags: U32,
        key: [u8; 16],
        state: U32,
        duration: U64,
    }
}

/// `Flags` of a lease break: it has to be acknowledged.
pub const ACK_REQUIRED: u32 = 1;

/// A message about an oplock or a lease, by its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Of an oplock.
    Oplock(OplockBreak),
    /// Of a lease.
    Lease(LeaseBreak),
    /// Of a lease: the acknowledgement.
    LeaseAck(LeaseAck),
}

impl Break {
    /// Reads it from a whole message.
    ///
    /// # Errors
    /// It is none of the three, or short.
    pub fn parse(message: &[u8]) -> Result<Self, Error> {
        let size = message
            .get(Header::LEN..Header::LEN + 2)
            .unwrap_or_default();
        match size {
            [44, 0] => LeaseBreak::read(message).map(Self::Lease),
            [36, 0] => LeaseAck::read(message).map(Self::LeaseAck),
            _ => OplockBreak::read(message).map(Self::Oplock),
        }
    }
}
