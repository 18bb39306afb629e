//! CREATE with its contexts, CLOSE, FLUSH (MS-SMB2 2.2.13 to 2.2.18).

use alloc::vec::Vec;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::error::Error;
use crate::header::Header;
use crate::wire::{self, Body, Chain, body, part, slice, view};

/// `DesiredAccess` (MS-SMB2 2.2.13.1).
pub mod access {
    /// Read data, or list a folder.
    pub const READ_DATA: u32 = 0x0000_0001;
    /// Write data.
    pub const WRITE_DATA: u32 = 0x0000_0002;
    /// Make a file longer (MS-SMB2 3.3.5.13).
    pub const APPEND_DATA: u32 = 0x0000_0004;
    /// Read attributes.
    pub const READ_ATTRIBUTES: u32 = 0x0000_0080;
    /// Write attributes.
    pub const WRITE_ATTRIBUTES: u32 = 0x0000_0100;
    /// Delete or rename.
    pub const DELETE: u32 = 0x0001_0000;
    /// Wait for it.
    pub const SYNCHRONIZE: u32 = 0x0010_0000;
}

/// `ShareAccess`: what others may do meanwhile.
pub mod share {
    /// Read.
    pub const READ: u32 = 1;
    /// Write.
    pub const WRITE: u32 = 2;
    /// Delete and rename.
    pub const DELETE: u32 = 4;
    /// All of it.
    pub const ALL: u32 = READ | WRITE | DELETE;
}

/// `CreateDisposition`.
pub mod disposition {
    /// What is there, or an error.
    pub const OPEN: u32 = 1;
    /// A new file, or an error.
    pub const CREATE: u32 = 2;
    /// What is there, or a new file.
    pub const OPEN_IF: u32 = 3;
    /// What is there, emptied, or a new file.
    pub const OVERWRITE_IF: u32 = 5;
}

/// `CreateOptions`.
pub mod options {
    /// It has to be a folder.
    pub const DIRECTORY_FILE: u32 = 0x0000_0001;
    /// Writes are on the disk when they are answered.
    pub const WRITE_THROUGH: u32 = 0x0000_0002;
    /// It may not be a folder.
    pub const NON_DIRECTORY_FILE: u32 = 0x0000_0040;
    /// It is gone when it is closed.
    pub const DELETE_ON_CLOSE: u32 = 0x0000_1000;
    /// A symbolic link itself, not what it leads to.
    pub const OPEN_REPARSE_POINT: u32 = 0x0020_0000;
}

/// `FileAttributes` (MS-FSCC 2.6).
pub mod attributes {
    /// Nobody may write.
    pub const READONLY: u32 = 0x0000_0001;
    /// A folder.
    pub const DIRECTORY: u32 = 0x0000_0010;
    /// Nothing else.
    pub const NORMAL: u32 = 0x0000_0080;
    /// It has holes.
    pub const SPARSE_FILE: u32 = 0x0000_0200;
    /// A symbolic link, or the like.
    pub const REPARSE_POINT: u32 = 0x0000_0400;
}

/// `RequestedOplockLevel` (MS-SMB2 2.2.13).
pub mod oplock {
    /// None.
    pub const NONE: u8 = 0x00;
    /// A batch oplock, which durable handles need if there is no lease.
    pub const BATCH: u8 = 0x09;
    /// What the lease context says.
    pub const LEASE: u8 = 0xFF;
}

/// `LeaseState` (MS-SMB2 2.2.13.2.8).
pub mod lease {
    /// Reads may be kept.
    pub const READ: u32 = 1;
    /// The handle may be kept.
    pub const HANDLE: u32 = 2;
    /// Writes may be kept.
    pub const WRITE: u32 = 4;
}

/// The name of an open file (MS-SMB2 2.2.14.1).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct FileId {
    /// What outlives a connection.
    pub persistent: U64,
    /// What does not.
    pub volatile: U64,
}

impl FileId {
    /// The file of the request before in a compound.
    pub const RELATED: Self = Self {
        persistent: U64::new(u64::MAX),
        volatile: U64::new(u64::MAX),
    };
}

body! {
    /// The fixed part of a CREATE request.
    CreateRequest, 57, Create {
        security_flags: u8,
        oplock: u8,
        impersonation: U32,
        create_flags: U64,
        reserved: U64,
        access: U32,
        attributes: U32,
        share: U32,
        disposition: U32,
        options: U32,
        name_offset: U16,
        name_length: U16,
        contexts_offset: U32,
        contexts_length: U32,
    }
}

body! {
    /// The fixed part of a CREATE response.
    CreateResponse, 89, Create {
        oplock: u8,
        flags: u8,
        action: U32,
        created: U64,
        accessed: U64,
        written: U64,
        changed: U64,
        allocation: U64,
        end_of_file: U64,
        attributes: U32,
        reserved: U32,
        file: FileId,
        contexts_offset: U32,
        contexts_length: U32,
    }
}

body! {
    /// A CLOSE request.
    CloseRequest, 24, Close {
        flags: U16,
        reserved: U32,
        file: FileId,
    }
}

body! {
    /// A CLOSE response.
    CloseResponse, 60, Close {
        flags: U16,
        reserved: U32,
        created: U64,
        accessed: U64,
        written: U64,
        changed: U64,
        allocation: U64,
        end_of_file: U64,
        attributes: U32,
    }
}

body! {
    /// A FLUSH request.
    FlushRequest, 24, Flush {
        reserved: U16,
        reserved2: U32,
        file: FileId,
    }
}

part! {
    /// What begins a create context (MS-SMB2 2.2.13.2).
    ContextHeader {
        next: U32,
        name_offset: U16,
        name_length: U16,
        reserved: U16,
        data_offset: U16,
        data_length: U32,
    }
}

part! {
    /// A lease, asked for or granted (MS-SMB2 2.2.13.2.10): context `RqLs`, version 2.
    LeaseV2 {
        key: [u8; 16],
        state: U32,
        flags: U32,
        duration: U64,
        parent_key: [u8; 16],
        epoch: U16,
        reserved: U16,
    }
}

part! {
    /// A durable handle is asked for (MS-SMB2 2.2.13.2.11): context `DH2Q`.
    DurableRequestV2 {
        timeout: U32,
        flags: U32,
        reserved: U64,
        create_guid: [u8; 16],
    }
}

part! {
    /// A durable handle was granted (MS-SMB2 2.2.14.2.12).
    DurableResponseV2 {
        timeout: U32,
        flags: U32,
    }
}

part! {
    /// A durable handle is taken up again (MS-SMB2 2.2.13.2.12): context `DH2C`.
    DurableReconnectV2 {
        file: FileId,
        create_guid: [u8; 16],
        flags: U32,
    }
}

part! {
    /// What may be done with a file (MS-SMB2 2.2.14.2.5): context `MxAc`.
    MaximalAccess {
        status: U32,
        access: U32,
    }
}

part! {
    /// The name of a file on its disk (MS-SMB2 2.2.14.2.9): context `QFid`.
    DiskId {
        file: U64,
        volume: U64,
        reserved: [U64; 2],
    }
}

/// Names of contexts.
pub mod context {
    /// [`super::LeaseV2`].
    pub const LEASE: [u8; 4] = *b"RqLs";
    /// [`super::DurableRequestV2`].
    pub const DURABLE_V2: [u8; 4] = *b"DH2Q";
    /// [`super::DurableReconnectV2`].
    pub const RECONNECT_V2: [u8; 4] = *b"DH2C";
    /// [`super::MaximalAccess`].
    pub const MAXIMAL_ACCESS: [u8; 4] = *b"MxAc";
    /// [`super::DiskId`].
    pub const DISK_ID: [u8; 4] = *b"QFid";
}

/// One create context: its name and what it says.
pub type Context<'a> = (&'a [u8], &'a [u8]);

/// Reads the contexts of a request or response.
fn contexts<'a>(
    message: &'a [u8],
    from: usize,
    offset: U32,
    length: U32,
) -> Result<Vec<Context<'a>>, Error> {
    let bytes = slice("create contexts", message, from, offset.get(), length.get())?;
    Chain::new("a create context", bytes, 8)
        .map(|entry| {
            let entry = entry?;
            let head: ContextHeader = view("a create context", entry)?;
            let from = size_of::<ContextHeader>();
            let (offset, length) = (head.name_offset.get(), head.name_length.get());
            let name = slice("the name of a context", entry, from, offset, length)?;
            let (offset, length) = (head.data_offset.get(), head.data_length.get());
            let data = slice("the data of a context", entry, from, offset, length)?;
            Ok((name, data))
        })
        .collect()
}

/// Appends contexts, each 8-byte aligned, and gives where they begin and their length.
fn write_contexts(out: &mut Vec<u8>, contexts: &[Context<'_>]) -> (U32, U32) {
    if contexts.is_empty() {
        return (0.into(), 0.into());
    }
    wire::align8(out, 0);
    let begin = out.len();
    for (index, (name, data)) in contexts.iter().enumerate() {
        let start = out.len();
        let name_offset = size_of::<ContextHeader>();
        let data_offset = (name_offset + name.len()).next_multiple_of(8);
        let whole = (data_offset + data.len()).next_multiple_of(8);
        let last = index + 1 == contexts.len();
        let head = ContextHeader {
            next: if last {
                0.into()
            } else {
                wire::len32(whole).into()
            },
            name_offset: wire::len16(name_offset).into(),
            name_length: wire::len16(name.len()).into(),
            reserved: 0.into(),
            data_offset: if data.is_empty() {
                0.into()
            } else {
                wire::len16(data_offset).into()
            },
            data_length: wire::len32(data.len()).into(),
        };
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(name);
        wire::align8(out, start);
        out.extend_from_slice(data);
        if !last {
            wire::align8(out, start);
        }
    }
    let offset = wire::len32(Header::LEN + begin);
    (offset.into(), wire::len32(out.len() - begin).into())
}

/// What a context of this name says, if it is there and long enough.
#[must_use]
pub fn find<T: zerocopy::FromBytes>(contexts: &[Context<'_>], name: [u8; 4]) -> Option<T> {
    let mut contexts = contexts.iter();
    let (_, data) = contexts.find(|(known, _)| *known == name)?;
    view("a create context", data).ok()
}

impl CreateRequest {
    /// The name, in UTF-16, from the root of the share on.
    ///
    /// # Errors
    /// It is not in the message.
    pub fn name(self, message: &[u8]) -> Result<&[u8], Error> {
        let (offset, length) = (self.name_offset.get(), self.name_length.get());
        slice("Name", message, Self::end(), offset, length)
    }

    /// The contexts.
    ///
    /// # Errors
    /// One of them is not in the message.
    pub fn contexts(self, message: &[u8]) -> Result<Vec<Context<'_>>, Error> {
        contexts(
            message,
            Self::end(),
            self.contexts_offset,
            self.contexts_length,
        )
    }

    /// Its bytes behind the header, for this name and with these contexts.
    #[must_use]
    pub fn body(mut self, name: &str, contexts: &[Context<'_>]) -> Vec<u8> {
        let name = crate::to_utf16(name);
        self.name_offset = wire::len16(Self::end()).into();
        self.name_length = wire::len16(name.len()).into();
        let mut out = self.as_bytes().to_vec();
        out.extend_from_slice(&name);
        if name.is_empty() {
            // The body has at least one byte behind its fixed part.
            out.push(0);
        }
        (self.contexts_offset, self.contexts_length) = write_contexts(&mut out, contexts);
        out[..size_of::<Self>()].copy_from_slice(self.as_bytes());
        out
    }
}

impl CreateResponse {
    /// The contexts.
    ///
    /// # Errors
    /// One of them is not in the message.
    pub fn contexts(self, message: &[u8]) -> Result<Vec<Context<'_>>, Error> {
        contexts(
            message,
            Self::end(),
            self.contexts_offset,
            self.contexts_length,
        )
    }

    /// Its bytes behind the header, with these contexts.
    #[must_use]
    pub fn body(mut self, contexts: &[Context<'_>]) -> Vec<u8> {
        let mut out = self.as_bytes().to_vec();
        (self.contexts_offset, self.contexts_length) = write_contexts(&mut out, contexts);
        out[..size_of::<Self>()].copy_from_slice(self.as_bytes());
        out
    }
}
