//! The three messages of MS-SMBD 2.2, as they stand on the wire, and what each of
//! their fields may be.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::Error;

/// The only version that exists (`SMB_DIRECT_V1`).
pub const VERSION: u16 = 0x0100;

/// Bytes of a Negotiate Request.
pub const NEGOTIATE_REQUEST_LEN: usize = 20;

/// Bytes of a Negotiate Response.
pub const NEGOTIATE_RESPONSE_LEN: usize = 32;

/// Bytes of a Data Transfer without data.
pub const DATA_HEADER_LEN: usize = 20;

/// Where data begins in a Data Transfer of ours: the header and 4 bytes of padding.
pub const DATA_OFFSET: u32 = 24;

/// Alignment of `DataOffset`.
pub const DATA_ALIGNMENT: u32 = 8;

/// Bytes of an arrival that the core looks at.
pub const HEAD_LEN: usize = NEGOTIATE_RESPONSE_LEN;

/// Bytes of the receive that takes a negotiate message (MS-SMBD 3.1.7.2).
pub const NEGOTIATE_RECEIVE_LEN: u32 = 512;

/// The least that `MaxReceiveSize` may be.
pub const MAX_RECEIVE_SIZE_MIN: u32 = 128;

/// The least that `MaxFragmentedSize` may be.
pub const MAX_FRAGMENTED_SIZE_MIN: u32 = 131_072;

/// The sender wants an answer (`SMB_DIRECT_RESPONSE_REQUESTED`).
pub const RESPONSE_REQUESTED: u16 = 0x0001;

/// What a Negotiate Response says (`NTSTATUS`).
pub mod status {
    /// It is agreed.
    pub const SUCCESS: u32 = 0;
    /// No version in common.
    pub const NOT_SUPPORTED: u32 = 0xC000_00BB;
    /// No receive could be posted.
    pub const INSUFFICIENT_RESOURCES: u32 = 0xC000_009A;
}

/// MS-SMBD 2.2.1, from the initiator, the first message.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct NegotiateRequest {
    /// The oldest version.
    pub min_version: U16,
    /// The newest version.
    pub max_version: U16,
    /// 0; ignored.
    pub reserved: U16,
    /// Credits that the initiator wants to hold.
    pub credits_requested: U16,
    /// The most that it sends at once, in bytes.
    pub preferred_send_size: U32,
    /// The most that it receives at once, in bytes.
    pub max_receive_size: U32,
    /// The longest message that it receives in fragments, in bytes.
    pub max_fragmented_size: U32,
}

/// MS-SMBD 2.2.2, from the listener, the second message.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct NegotiateResponse {
    /// The oldest version.
    pub min_version: U16,
    /// The newest version.
    pub max_version: U16,
    /// The one that is spoken.
    pub negotiated_version: U16,
    /// 0; ignored.
    pub reserved: U16,
    /// Credits that the listener wants to hold.
    pub credits_requested: U16,
    /// Receives that it has posted.
    pub credits_granted: U16,
    /// [`status`].
    pub status: U32,
    /// The most that one RDMA transfer may carry, in bytes.
    pub max_read_write_size: U32,
    /// The most that it sends at once, in bytes.
    pub preferred_send_size: U32,
    /// The most that it receives at once, in bytes.
    pub max_receive_size: U32,
    /// The longest message that it receives in fragments, in bytes.
    pub max_fragmented_size: U32,
}

/// MS-SMBD 2.2.3 without padding and data: all other messages, of both sides.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct DataTransfer {
    /// Credits that the sender wants to hold in all.
    pub credits_requested: U16,
    /// Receives that it has posted since its last message.
    pub credits_granted: U16,
    /// [`RESPONSE_REQUESTED`] or 0.
    pub flags: U16,
    /// 0; ignored.
    pub reserved: U16,
    /// Bytes of the upper layer's message that come behind this segment.
    pub remaining_data_length: U32,
    /// Where data begins, from the start of this header; 0 without data.
    pub data_offset: U32,
    /// Bytes of data.
    pub data_length: U32,
}

const _: () = {
    assert!(size_of::<NegotiateRequest>() == NEGOTIATE_REQUEST_LEN);
    assert!(size_of::<NegotiateResponse>() == NEGOTIATE_RESPONSE_LEN);
    assert!(size_of::<DataTransfer>() == DATA_HEADER_LEN);
};

/// A view of the first bytes of `head` as a message of `want` bytes.
fn view<T: FromBytes + Copy>(message: &'static str, head: &[u8], want: usize) -> Result<T, Error> {
    let short = Error::Short {
        message,
        got: head.len(),
        want,
    };
    T::read_from_prefix(head)
        .map(|(view, _)| view)
        .map_err(|_| short)
}

impl NegotiateRequest {
    /// Reads a request and checks what MS-SMBD 3.1.5.6 says. More bytes than a request has are fine.
    ///
    /// # Errors
    /// [`Error::VersionRange`] is to be answered with [`status::NOT_SUPPORTED`]; after any
    /// other one the connection ends without an answer.
    pub fn parse(head: &[u8]) -> Result<Self, Error> {
        let request: Self = view("Negotiate Request", head, NEGOTIATE_REQUEST_LEN)?;
        let (min, max) = (request.min_version.get(), request.max_version.get());
        if !(min..=max).contains(&VERSION) {
            return Err(Error::VersionRange { min, max });
        }
        let credits = request.credits_requested.get();
        at_least("CreditsRequested", u32::from(credits), 1)?;
        at_least(
            "MaxReceiveSize",
            request.max_receive_size.get(),
            MAX_RECEIVE_SIZE_MIN,
        )?;
        at_least(
            "MaxFragmentedSize",
            request.max_fragmented_size.get(),
            MAX_FRAGMENTED_SIZE_MIN,
        )?;
        Ok(request)
    }
}

impl NegotiateResponse {
    /// The response that refuses: all that it says is why (MS-SMBD 3.1.5.3).
    #[must_use]
    pub fn refusal(status: u32) -> Self {
        Self {
            min_version: VERSION.into(),
            max_version: VERSION.into(),
            negotiated_version: 0.into(),
            reserved: 0.into(),
            credits_requested: 0.into(),
            credits_granted: 0.into(),
            status: status.into(),
            max_read_write_size: 0.into(),
            preferred_send_size: 0.into(),
            max_receive_size: 0.into(),
            max_fragmented_size: 0.into(),
        }
    }

    /// Reads a response and checks what MS-SMBD 3.1.5.7 says, for an initiator that
    /// receives `own_receive_size` bytes at once.
    ///
    /// # Errors
    /// The connection ends.
    pub fn parse(head: &[u8], own_receive_size: u32) -> Result<Self, Error> {
        let response: Self = view("Negotiate Response", head, NEGOTIATE_RESPONSE_LEN)?;
        // First of all, since a refusal has zeroes everywhere else.
        let status = response.status.get();
        if status != status::SUCCESS {
            return Err(Error::Refused { status });
        }
        let version = response.negotiated_version.get();
        if version != VERSION {
            return Err(Error::Version { version });
        }
        let receive_size = response.max_receive_size.get();
        at_least("MaxReceiveSize", receive_size, MAX_RECEIVE_SIZE_MIN)?;
        at_least(
            "MaxFragmentedSize",
            response.max_fragmented_size.get(),
            MAX_FRAGMENTED_SIZE_MIN,
        )?;
        let credits = [
            ("CreditsGranted", response.credits_granted),
            ("CreditsRequested", response.credits_requested),
        ];
        for (field, credits) in credits {
            at_least(field, u32::from(credits.get()), 1)?;
        }
        let size = response.preferred_send_size.get();
        if size > own_receive_size {
            return Err(Error::PreferredSendSize {
                size,
                max: own_receive_size,
            });
        }
        Ok(response)
    }
}

/// Sizes that a Data Transfer has to fit into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of one receive.
    pub receive_size: u32,
    /// Bytes of the longest message.
    pub fragmented_size: u32,
}

impl DataTransfer {
    /// Reads the header of an arrival of `len` bytes, whose first ones are `head`, and
    /// checks what MS-SMBD 3.1.5.8 says, and that data does not begin in the header.
    ///
    /// # Errors
    /// The connection ends.
    pub fn parse(head: &[u8], len: u32, bounds: Bounds) -> Result<Self, Error> {
        let header: Self = view("Data Transfer", head, DATA_HEADER_LEN)?;
        // A provider in software might have let it pass.
        if len > bounds.receive_size {
            return Err(Error::TooLong {
                len,
                max: bounds.receive_size,
            });
        }
        let credits = header.credits_requested.get();
        at_least("CreditsRequested", u32::from(credits), 1)?;
        let (offset, length) = (header.data_offset.get(), header.data_length.get());
        if !offset.is_multiple_of(DATA_ALIGNMENT) {
            return Err(Error::DataOffset { offset });
        }
        if length > 0 && offset < DATA_OFFSET {
            return Err(Error::DataInHeader { offset });
        }
        if u64::from(offset) + u64::from(length) > u64::from(len) {
            return Err(Error::DataOutside {
                offset,
                length,
                len,
            });
        }
        let remaining = header.remaining_data_length.get();
        if u64::from(length) + u64::from(remaining) > u64::from(bounds.fragmented_size) {
            return Err(Error::MessageTooLong {
                length,
                remaining,
                max: bounds.fragmented_size,
            });
        }
        Ok(header)
    }
}

fn at_least(field: &'static str, value: u32, min: u32) -> Result<(), Error> {
    if value < min {
        return Err(Error::Field { field, value, min });
    }
    Ok(())
}
