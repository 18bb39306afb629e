//! Every message of the control path in one table, and their bytes.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a message at most: what the hypervisor carries.
pub const MESSAGE_MAX: usize = 240;

/// Bytes of the header: number, padding.
pub const HEADER_LEN: usize = 8;

/// A version of the control path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtocolVersion(pub u32);

impl ProtocolVersion {
    const fn new(major: u32, minor: u32) -> Self {
        Self(major << 16 | minor)
    }

    /// Windows 8: the oldest that anybody here speaks.
    pub const WIN8: Self = Self::new(2, 4);
    /// From here on messages go to a connection of their own.
    pub const WIN10_V5: Self = Self::new(5, 0);
    /// From here on a change of a channel is answered.
    pub const WIN10_V5_3: Self = Self::new(5, 3);

    /// All that are spoken, the best one first, as Linux tries them.
    pub const ALL: [Self; 8] = [
        Self::WIN10_V5_3,
        Self::new(5, 2),
        Self::new(5, 1),
        Self::WIN10_V5,
        Self::new(4, 1),
        Self::new(4, 0),
        Self::new(3, 0),
        Self::WIN8,
    ];
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xFFFF)
    }
}

/// Who sends a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The host.
    Host,
    /// The guest.
    Guest,
}

/// One kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The message.
    pub kind: Kind,
    /// Its name in Linux.
    pub name: &'static str,
    /// Who sends it.
    pub from: End,
    /// Its least bytes, the header included.
    pub len: usize,
    /// The first version that has it.
    pub since: ProtocolVersion,
}

macro_rules! messages {
    ($($code:literal $kind:ident $name:ident $from:ident $len:expr, $since:ident;)*) => {
        /// What is sent, by number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the table has the name of each in Linux")]
        #[repr(u32)]
        pub enum Kind {
            $($kind = $code,)*
        }

        /// All messages.
        pub const MESSAGES: &[Message] = &[$(Message {
            kind: Kind::$kind,
            name: stringify!($name),
            from: End::$from,
            len: HEADER_LEN + $len,
            since: ProtocolVersion::$since,
        },)*];
    };
}

messages! {
    1 OfferChannel CHANNELMSG_OFFERCHANNEL Host size_of::<OfferBody>(), WIN8;
    2 RescindOffer CHANNELMSG_RESCIND_CHANNELOFFER Host 4, WIN8;
    3 RequestOffers CHANNELMSG_REQUESTOFFERS Guest 0, WIN8;
    4 AllOffersDelivered CHANNELMSG_ALLOFFERS_DELIVERED Host 0, WIN8;
    5 OpenChannel CHANNELMSG_OPENCHANNEL Guest size_of::<OpenBody>(), WIN8;
    6 OpenResult CHANNELMSG_OPENCHANNEL_RESULT Host 12, WIN8;
    7 CloseChannel CHANNELMSG_CLOSECHANNEL Guest 4, WIN8;
    8 GpadlHeader CHANNELMSG_GPADL_HEADER Guest size_of::<GpadlHeaderBody>(), WIN8;
    9 GpadlBody CHANNELMSG_GPADL_BODY Guest size_of::<GpadlBodyBody>(), WIN8;
    10 GpadlCreated CHANNELMSG_GPADL_CREATED Host 12, WIN8;
    11 GpadlTeardown CHANNELMSG_GPADL_TEARDOWN Guest 8, WIN8;
    12 GpadlTorndown CHANNELMSG_GPADL_TORNDOWN Host 4, WIN8;
    13 RelidReleased CHANNELMSG_RELID_RELEASED Guest 4, WIN8;
    14 InitiateContact CHANNELMSG_INITIATE_CONTACT Guest size_of::<ContactBody>(), WIN8;
    15 VersionResponse CHANNELMSG_VERSION_RESPONSE Host 1, WIN8;
    16 Unload CHANNELMSG_UNLOAD Guest 0, WIN8;
    17 UnloadResponse CHANNELMSG_UNLOAD_RESPONSE Host 0, WIN8;
    22 ModifyChannel CHANNELMSG_MODIFYCHANNEL Guest 8, WIN8;
    24 ModifyResponse CHANNELMSG_MODIFYCHANNEL_RESPONSE Host 8, WIN10_V5_3;
}

/// `struct vmbus_channel_offer_channel` behind its header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct OfferBody {
    pub(crate) interface: [u8; 16],
    pub(crate) instance: [u8; 16],
    pub(crate) reserved: [u8; 16],
    pub(crate) flags: U16,
    pub(crate) mmio_megabytes: U16,
    pub(crate) user_defined: [u8; 120],
    pub(crate) sub_channel: U16,
    pub(crate) reserved3: [u8; 2],
    pub(crate) relid: U32,
    pub(crate) monitor: u8,
    pub(crate) monitor_allocated: u8,
    pub(crate) dedicated_interrupt: U16,
    pub(crate) connection_id: U32,
}

/// `struct vmbus_channel_open_channel` behind its header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct OpenBody {
    pub(crate) relid: U32,
    pub(crate) open_id: U32,
    pub(crate) gpadl: U32,
    pub(crate) target_vp: U32,
    pub(crate) second_page: U32,
    pub(crate) user_data: [u8; 120],
}

/// `struct vmbus_channel_gpadl_header` behind its header and before its ranges.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct GpadlHeaderBody {
    pub(crate) relid: U32,
    pub(crate) gpadl: U32,
    pub(crate) range_len: U16,
    pub(crate) ranges: U16,
}

/// `struct vmbus_channel_gpadl_body` behind its header and before its pages.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct GpadlBodyBody {
    /// Counts from 1; not everybody fills it in, so nobody looks.
    pub(crate) number: U32,
    pub(crate) gpadl: U32,
}

/// `struct vmbus_channel_initiate_contact` behind its header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ContactBody {
    pub(crate) version: U32,
    pub(crate) target_vp: U32,
    pub(crate) interrupt_page: U64,
    pub(crate) monitor_pages: [U64; 2],
}

/// Page numbers that a GPADL's first message has room for, with one range.
pub(crate) const HEADER_PAGES: usize = (MESSAGE_MAX - HEADER_LEN - 12 - 8) / 8;

/// Page numbers that each further one has room for.
pub(crate) const BODY_PAGES: usize = (MESSAGE_MAX - HEADER_LEN - 8) / 8;

const _: () = {
    assert!(size_of::<OfferBody>() + HEADER_LEN == 196);
    assert!(size_of::<OpenBody>() + HEADER_LEN == 148);
    assert!(size_of::<ContactBody>() + HEADER_LEN == 40);
    assert!(HEADER_PAGES == 26 && BODY_PAGES == 28);
};

/// A message that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MessageError {
    /// It ends early, or is longer than messages are.
    #[error("a message of {got} bytes, where {min} to 240 are possible")]
    Length {
        /// Bytes there are.
        got: usize,
        /// Bytes needed.
        min: usize,
    },
    /// There is no such message, or not from this side, or not in this version.
    #[error("message {code} does not come from this side in this version")]
    Unknown {
        /// Its number.
        code: u32,
    },
}

impl Kind {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The message with this body.
    pub(crate) fn encode(self, parts: &[&[u8]]) -> Vec<u8> {
        let mut bytes = self.code().to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        for part in parts {
            bytes.extend_from_slice(part);
        }
        debug_assert!(bytes.len() <= MESSAGE_MAX);
        bytes
    }
}

/// What `from` sent: its kind, and all behind its header, long enough for the kind.
pub(crate) fn check(
    bytes: &[u8],
    from: End,
    version: Option<ProtocolVersion>,
) -> Result<(Kind, &[u8]), MessageError> {
    let got = bytes.len();
    let (header, body) = bytes
        .split_first_chunk::<HEADER_LEN>()
        .filter(|_| got <= MESSAGE_MAX)
        .ok_or(MessageError::Length {
            got,
            min: HEADER_LEN,
        })?;
    let [a, b, c, d, ..] = *header;
    let code = u32::from_le_bytes([a, b, c, d]);
    let mut rows = MESSAGES.iter();
    let row = rows.find(|row| row.kind.code() == code && row.from == from);
    let known = version.unwrap_or(ProtocolVersion::WIN8);
    let row = row.filter(|row| row.since <= known);
    let row = row.ok_or(MessageError::Unknown { code })?;
    if got < row.len {
        return Err(MessageError::Length { got, min: row.len });
    }
    Ok((row.kind, body))
}

/// The first part of a body, which [`check`] found to be long enough.
pub(crate) fn read<T: FromBytes + KnownLayout + Immutable>(
    body: &[u8],
) -> Result<(T, &[u8]), MessageError> {
    T::read_from_prefix(body).map_err(|_| MessageError::Length {
        got: body.len() + HEADER_LEN,
        min: HEADER_LEN + size_of::<T>(),
    })
}

/// The same for numbers.
pub(crate) fn words<const N: usize>(body: &[u8]) -> Result<[u32; N], MessageError> {
    Ok(read::<[U32; N]>(body)?.0.map(U32::get))
}

/// Numbers as the bytes of a body.
pub(crate) fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The table as a page of the book has it.
#[must_use]
pub fn markdown() -> String {
    let mut page =
        String::from("| number | message | from | bytes | since |\n|---|---|---|---|---|\n");
    for row in MESSAGES {
        let from = match row.from {
            End::Host => "host",
            End::Guest => "guest",
        };
        page += &format!(
            "| {} | {} | {from} | {} | {} |\n",
            row.kind.code(),
            row.name,
            row.len,
            row.since
        );
    }
    page
}
