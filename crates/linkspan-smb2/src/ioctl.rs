//! IOCTL (MS-SMB2 2.2.31, 2.2.32): what is asked of a server or a file by a code.

use alloc::vec::Vec;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::create::FileId;
use crate::error::Error;
use crate::wire::{self, Body, Chain, body, part, slice, view};

/// `CtlCode`.
pub mod code {
    /// What was negotiated, to be confirmed under a signature.
    pub const VALIDATE_NEGOTIATE_INFO: u32 = 0x0014_0204;
    /// The server's interfaces.
    pub const QUERY_NETWORK_INTERFACE_INFO: u32 = 0x0014_01FC;
    /// Holes are kept as such.
    pub const SET_SPARSE: u32 = 0x0009_00C4;
    /// Zeroes, or a hole.
    pub const SET_ZERO_DATA: u32 = 0x0009_80C8;
    /// Where data is, and no hole.
    pub const QUERY_ALLOCATED_RANGES: u32 = 0x0009_40CF;
}

/// `Flags`: a code of the file system.
pub const IS_FSCTL: u32 = 1;

/// The file of what is asked of the server itself.
pub const NO_FILE: FileId = FileId::RELATED;

body! {
    /// The fixed part of a request.
    IoctlRequest, 57, Ioctl {
        reserved: U16,
        code: U32,
        file: FileId,
        input_offset: U32,
        input_length: U32,
        max_input: U32,
        output_offset: U32,
        output_length: U32,
        max_output: U32,
        flags: U32,
        reserved2: U32,
    }
}

body! {
    /// The fixed part of a response.
    IoctlResponse, 49, Ioctl {
        reserved: U16,
        code: U32,
        file: FileId,
        input_offset: U32,
        input_length: U32,
        output_offset: U32,
        output_length: U32,
        flags: U32,
        reserved2: U32,
    }
}

part! {
    /// What a client says it negotiated (MS-SMB2 2.2.31.4), before the dialects.
    ValidateRequest {
        capabilities: U32,
        guid: [u8; 16],
        security_mode: U16,
        dialect_count: U16,
    }
}

part! {
    /// What a server says it negotiated (MS-SMB2 2.2.32.6).
    ValidateResponse {
        capabilities: U32,
        guid: [u8; 16],
        security_mode: U16,
        dialect: U16,
    }
}

part! {
    /// A range of a file (MS-FSCC 2.3.49).
    Range {
        offset: U64,
        length: U64,
    }
}

part! {
    /// A range of zeroes (MS-FSCC 2.3.85): from here to there.
    ZeroData {
        from: U64,
        to: U64,
    }
}

part! {
    /// An interface of the server (MS-SMB2 2.2.32.5).
    Interface {
        next: U32,
        index: U32,
        capability: U32,
        reserved: U32,
        link_speed: U64,
        family: U16,
        address: [u8; 26],
    }
}

impl ZeroData {
    /// What is asked for with [`code::SET_ZERO_DATA`].
    #[must_use]
    pub fn of(range: core::ops::Range<u64>) -> Vec<u8> {
        let fixed = Self {
            from: range.start.into(),
            to: range.end.into(),
        };
        fixed.as_bytes().to_vec()
    }
}

/// `Capability` of an interface: it has RDMA.
pub const RDMA_CAPABLE: u32 = 2;

/// `SockAddr_Storage` is 128 bytes: what [`Interface`] does not show of it.
pub(crate) const INTERFACE_LEN: usize = 152;

/// `Family`: IPv4.
pub const INTERNETWORK: u16 = 0x0002;

/// `Family`: IPv6.
pub const INTERNETWORK_V6: u16 = 0x0017;

impl Interface {
    /// One with this address that has RDMA, and nothing else that is known.
    #[must_use]
    pub fn at(address: core::net::IpAddr) -> Self {
        let mut interface = Self {
            capability: RDMA_CAPABLE.into(),
            ..Self::default()
        };
        match address {
            core::net::IpAddr::V4(ip) => {
                interface.family = INTERNETWORK.into();
                interface.address[2..6].copy_from_slice(&ip.octets());
            }
            core::net::IpAddr::V6(ip) => {
                interface.family = INTERNETWORK_V6.into();
                interface.address[6..22].copy_from_slice(&ip.octets());
            }
        }
        interface
    }

    /// Its address, if it is one of IPv4 or IPv6.
    #[must_use]
    pub fn ip(&self) -> Option<core::net::IpAddr> {
        match self.family.get() {
            INTERNETWORK => {
                let address: [u8; 4] = self.address[2..6].try_into().ok()?;
                Some(core::net::Ipv4Addr::from(address).into())
            }
            INTERNETWORK_V6 => {
                let address: [u8; 16] = self.address[6..22].try_into().ok()?;
                Some(core::net::Ipv6Addr::from(address).into())
            }
            _ => None,
        }
    }
}

/// The interfaces in the answer to [`code::QUERY_NETWORK_INTERFACE_INFO`].
///
/// # Errors
/// One of them is not all there.
pub fn interfaces(output: &[u8]) -> Result<Vec<Interface>, Error> {
    Chain::new("a network interface", output, 8)
        .map(|entry| {
            let entry = entry?;
            if entry.len() < INTERFACE_LEN {
                return Err(Error::Short {
                    what: "a network interface",
                    got: entry.len(),
                    want: INTERFACE_LEN,
                });
            }
            view("a network interface", entry)
        })
        .collect()
}

/// The ranges in the answer to [`code::QUERY_ALLOCATED_RANGES`]: each after the one before.
///
/// # Errors
/// A part of one, an order that cannot be, or an end beyond that of numbers.
pub fn ranges(output: &[u8]) -> Result<Vec<Range>, Error> {
    let (entries, rest) = output.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(Error::Field {
            field: "the length of allocated ranges",
            value: output.len() as u64,
        });
    }
    let mut end = 0;
    let mut ranges = Vec::with_capacity(entries.len());
    for entry in entries {
        let range: Range = view("an allocated range", entry)?;
        let (offset, length) = (range.offset.get(), range.length.get());
        let next = offset.checked_add(length).filter(|_| offset >= end);
        end = next.ok_or(Error::Field {
            field: "FileOffset of an allocated range",
            value: offset,
        })?;
        ranges.push(range);
    }
    Ok(ranges)
}

impl IoctlRequest {
    /// What goes to the server.
    ///
    /// # Errors
    /// It is not in the message.
    pub fn input(self, message: &[u8]) -> Result<&[u8], Error> {
        let (offset, length) = (self.input_offset.get(), self.input_length.get());
        slice(
            "the input of an IOCTL",
            message,
            Self::end(),
            offset,
            length,
        )
    }

    /// Its bytes behind the header, with this input.
    #[must_use]
    pub fn body(mut self, input: &[u8]) -> Vec<u8> {
        self.input_offset = wire::len32(Self::end()).into();
        self.output_offset = self.input_offset;
        self.input_length = wire::len32(input.len()).into();
        self.flags = IS_FSCTL.into();
        let mut out = self.as_bytes().to_vec();
        out.extend_from_slice(input);
        if input.is_empty() {
            out.push(0);
        }
        out
    }
}

impl IoctlResponse {
    /// What comes back.
    ///
    /// # Errors
    /// It is not in the message.
    pub fn output(self, message: &[u8]) -> Result<&[u8], Error> {
        let (offset, length) = (self.output_offset.get(), self.output_length.get());
        slice(
            "the output of an IOCTL",
            message,
            Self::end(),
            offset,
            length,
        )
    }

    /// Its bytes behind the header, with this output.
    #[must_use]
    pub fn body(mut self, output: &[u8]) -> Vec<u8> {
        self.input_offset = wire::len32(Self::end()).into();
        self.output_offset = self.input_offset;
        self.output_length = wire::len32(output.len()).into();
        let mut out = self.as_bytes().to_vec();
        out.extend_from_slice(output);
        out
    }
}
