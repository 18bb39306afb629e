//! READ, WRITE with channel information, LOCK (MS-SMB2 2.2.19 to 2.2.22, 2.2.26, 2.2.27).
//!
//! With a channel of RDMA the payload of a WRITE is not in the message: the server reads
//! it from the client's memory; and that of a READ is written there (MS-SMB2 3.2.4.6, 3.2.4.7).

use alloc::vec::Vec;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::create::FileId;
use crate::error::Error;
use crate::header::Header;
use crate::wire::{self, Body, body, part, slice, view};

/// `Channel`: how the payload travels.
pub mod channel {
    /// In the message.
    pub const NONE: u32 = 0;
    /// By RDMA, into or out of what descriptors say.
    pub const RDMA_V1: u32 = 1;
    /// As [`RDMA_V1`]; the server invalidates the first token with its answer. From 3.0.2 on.
    pub const RDMA_V1_INVALIDATE: u32 = 2;
}

/// Descriptors in one request that anybody needs: Windows sends up to 31.
pub const DESCRIPTORS_MAX: usize = 512;

/// `Flags` of a WRITE: on the disk when it is answered.
pub const WRITE_THROUGH: u32 = 1;

part! {
    /// Memory that the other end may reach (MS-SMBD 2.2.3.1).
    Descriptor {
        offset: U64,
        token: U32,
        length: U32,
    }
}

body! {
    /// The fixed part of a READ request.
    ReadRequest, 49, Read {
        padding: u8,
        flags: u8,
        length: U32,
        offset: U64,
        file: FileId,
        minimum: U32,
        channel: U32,
        remaining: U32,
        channel_offset: U16,
        channel_length: U16,
    }
}

body! {
    /// The fixed part of a READ response.
    ReadResponse, 17, Read {
        data_offset: u8,
        reserved: u8,
        data_length: U32,
        data_remaining: U32,
        flags: U32,
    }
}

body! {
    /// The fixed part of a WRITE request.
    WriteRequest, 49, Write {
        data_offset: U16,
        length: U32,
        offset: U64,
        file: FileId,
        channel: U32,
        remaining: U32,
        channel_offset: U16,
        channel_length: U16,
        flags: U32,
    }
}

body! {
    /// A WRITE response.
    WriteResponse, 17, Write {
        reserved: U16,
        count: U32,
        remaining: U32,
        channel_offset: U16,
        channel_length: U16,
    }
}

body! {
    /// The fixed part of a LOCK request.
    LockRequest, 48, Lock {
        count: U16,
        sequence: U32,
        file: FileId,
    }
}

part! {
    /// One range of a LOCK request.
    LockElement {
        offset: U64,
        length: U64,
        flags: U32,
        reserved: U32,
    }
}

/// `Flags` of a range.
pub mod lock {
    /// Others may lock it in this way too.
    pub const SHARED: u32 = 1;
    /// Nobody else may.
    pub const EXCLUSIVE: u32 = 2;
    /// Lets go of it.
    pub const UNLOCK: u32 = 4;
    /// Or an error at once.
    pub const FAIL_IMMEDIATELY: u32 = 0x10;
}

/// Reads the descriptors of a request.
fn descriptors(
    message: &[u8],
    from: usize,
    kind: u32,
    offset: U16,
    length: U16,
) -> Result<Vec<Descriptor>, Error> {
    match kind {
        channel::NONE => return Ok(Vec::new()),
        channel::RDMA_V1 | channel::RDMA_V1_INVALIDATE => {}
        _ => {
            return Err(Error::Field {
                field: "Channel",
                value: kind.into(),
            });
        }
    }
    let bytes = slice(
        "channel information",
        message,
        from,
        offset.get(),
        length.get(),
    )?;
    let (entries, rest) = bytes.as_chunks::<16>();
    if entries.is_empty() || !rest.is_empty() {
        return Err(Error::Field {
            field: "the length of channel information",
            value: bytes.len() as u64,
        });
    }
    if entries.len() > DESCRIPTORS_MAX {
        return Err(Error::TooMany {
            what: "memory descriptors",
            max: DESCRIPTORS_MAX,
        });
    }
    entries
        .iter()
        .map(|entry| view("a memory descriptor", entry))
        .collect()
}

/// What descriptors reach, in bytes: each has some, and the sum is a length.
///
/// # Errors
/// One is empty, goes past the end of addresses, or the sum is too much.
pub fn reach(descriptors: &[Descriptor]) -> Result<u32, Error> {
    let mut sum = 0_u32;
    for descriptor in descriptors {
        let (offset, length) = (descriptor.offset.get(), descriptor.length.get());
        let end = offset.checked_add(u64::from(length));
        let all = sum.checked_add(length);
        let (Some(_), Some(all), true) = (end, all, length > 0) else {
            return Err(Error::Field {
                field: "Length of a memory descriptor",
                value: length.into(),
            });
        };
        sum = all;
    }
    Ok(sum)
}

impl ReadRequest {
    /// The memory that is to be written, with a channel of RDMA.
    ///
    /// # Errors
    /// The channel is unknown, or a descriptor not in the message.
    pub fn descriptors(self, message: &[u8]) -> Result<Vec<Descriptor>, Error> {
        let (offset, length) = (self.channel_offset, self.channel_length);
        descriptors(message, Self::end(), self.channel.get(), offset, length)
    }

    /// Its bytes behind the header, with these descriptors.
    #[must_use]
    pub fn body(mut self, descriptors: &[Descriptor]) -> Vec<u8> {
        // Where data should begin in the response: behind its fixed part.
        self.padding = DATA_BEGIN;
        if !descriptors.is_empty() {
            self.channel_offset = wire::len16(Self::end()).into();
            self.channel_length = wire::len16(size_of_val(descriptors)).into();
        }
        let mut out = self.as_bytes().to_vec();
        out.extend_from_slice(descriptors.as_bytes());
        if descriptors.is_empty() {
            out.push(0);
        }
        out
    }
}

/// Where data begins in a READ response of ours.
const DATA_BEGIN: u8 = 80;

impl ReadResponse {
    /// The data that is in the message.
    ///
    /// # Errors
    /// It is not all in the message.
    pub fn data(self, message: &[u8]) -> Result<&[u8], Error> {
        let (offset, length) = (self.data_offset, self.data_length.get());
        slice("data of a READ", message, Self::end(), offset, length)
    }

    /// Its bytes behind the header, with this data.
    #[must_use]
    pub fn body(mut self, data: &[u8]) -> Vec<u8> {
        self.data_offset = DATA_BEGIN;
        self.data_length = wire::len32(data.len()).into();
        let mut out = self.as_bytes().to_vec();
        out.extend_from_slice(data);
        if data.is_empty() {
            out.push(0);
        }
        out
    }
}

impl WriteRequest {
    /// The data that is in the message; none with a channel of RDMA.
    ///
    /// # Errors
    /// It is not all in the message.
    pub fn data(self, message: &[u8]) -> Result<&[u8], Error> {
        let (offset, length) = (self.data_offset.get(), self.length.get());
        slice("data of a WRITE", message, Self::end(), offset, length)
    }

    /// The memory that is to be read, with a channel of RDMA.
    ///
    /// # Errors
    /// The channel is unknown, or a descriptor not in the message.
    pub fn descriptors(self, message: &[u8]) -> Result<Vec<Descriptor>, Error> {
        let (offset, length) = (self.channel_offset, self.channel_length);
        descriptors(message, Self::end(), self.channel.get(), offset, length)
    }

    /// Its bytes behind the header: before `data`, which may follow from where it is.
    #[must_use]
    pub fn head(mut self, len: u32) -> Vec<u8> {
        self.data_offset = wire::len16(Self::end()).into();
        self.length = len.into();
        self.as_bytes().to_vec()
    }

    /// Its bytes behind the header, with memory that the server reads.
    #[must_use]
    pub fn body_with_memory(mut self, descriptors: &[Descriptor]) -> Vec<u8> {
        self.channel_offset = wire::len16(Self::end()).into();
        self.channel_length = wire::len16(size_of_val(descriptors)).into();
        let mut out = self.as_bytes().to_vec();
        out.extend_from_slice(descriptors.as_bytes());
        out
    }
}

impl LockRequest {
    /// The ranges.
    ///
    /// # Errors
    /// They are not all in the message, or there are none.
    pub fn elements(self, message: &[u8]) -> Result<Vec<LockElement>, Error> {
        let count = self.count.get();
        if count == 0 {
            return Err(Error::Field {
                field: "LockCount",
                value: 0,
            });
        }
        let length = u64::from(count) * size_of::<LockElement>() as u64;
        let bytes = slice(
            "ranges of a LOCK",
            message,
            Self::end(),
            Self::end() as u64,
            length,
        )?;
        bytes
            .chunks_exact(size_of::<LockElement>())
            .map(|element| view("a range", element))
            .collect()
    }

    /// Its bytes behind the header, for these ranges.
    #[must_use]
    pub fn body(mut self, elements: &[LockElement]) -> Vec<u8> {
        self.count = wire::len16(elements.len()).into();
        let mut out = self.as_bytes().to_vec();
        out.extend_from_slice(elements.as_bytes());
        out
    }
}

const _: () = assert!(Header::LEN + size_of::<ReadResponse>() == DATA_BEGIN as usize);
