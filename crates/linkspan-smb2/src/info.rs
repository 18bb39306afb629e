//! QUERY_DIRECTORY, QUERY_INFO, SET_INFO (MS-SMB2 2.2.33 to 2.2.40), and the classes of
//! information that are used (MS-FSCC 2.4, 2.5).

use alloc::string::String;
use alloc::vec::Vec;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::create::FileId;
use crate::error::Error;
use crate::wire::{self, Body, Chain, body, part, slice, view};

/// `InfoType`.
pub mod kind {
    /// Of a file.
    pub const FILE: u8 = 1;
    /// Of the file system.
    pub const FILE_SYSTEM: u8 = 2;
}

/// `FileInfoClass`.
pub mod class {
    /// [`super::Basic`].
    pub const BASIC: u8 = 4;
    /// [`super::Standard`].
    pub const STANDARD: u8 = 5;
    /// [`super::rename`].
    pub const RENAME: u8 = 10;
    /// One byte: 1 deletes the file when it is closed.
    pub const DISPOSITION: u8 = 13;
    /// Eight bytes: the size that is reserved.
    pub const ALLOCATION: u8 = 19;
    /// Eight bytes: where the file ends.
    pub const END_OF_FILE: u8 = 20;
    /// [`super::Entry`].
    pub const ID_BOTH_DIRECTORY: u8 = 37;
    /// Of the file system: [`super::FullSize`].
    pub const FS_FULL_SIZE: u8 = 7;
}

/// `Flags` of QUERY_DIRECTORY: from the first entry on.
pub const RESTART_SCANS: u8 = 1;

body! {
    /// The fixed part of a QUERY_DIRECTORY request.
    QueryDirectoryRequest, 33, QueryDirectory {
        class: u8,
        flags: u8,
        index: U32,
        file: FileId,
        name_offset: U16,
        name_length: U16,
        max_output: U32,
    }
}

body! {
    /// The fixed part of a QUERY_DIRECTORY response.
    QueryDirectoryResponse, 9, QueryDirectory {
        output_offset: U16,
        output_length: U32,
    }
}

body! {
    /// The fixed part of a QUERY_INFO request.
    QueryInfoRequest, 41, QueryInfo {
        kind: u8,
        class: u8,
        max_output: U32,
        input_offset: U16,
        reserved: U16,
        input_length: U32,
        additional: U32,
        flags: U32,
        file: FileId,
    }
}

body! {
    /// The fixed part of a QUERY_INFO response.
    QueryInfoResponse, 9, QueryInfo {
        output_offset: U16,
        output_length: U32,
    }
}

body! {
    /// The fixed part of a SET_INFO request.
    SetInfoRequest, 33, SetInfo {
        kind: u8,
        class: u8,
        input_length: U32,
        input_offset: U16,
        reserved: U16,
        additional: U32,
        file: FileId,
    }
}

part! {
    /// Times, in 100 ns since 1601, and attributes (MS-FSCC 2.4.7). 0 changes nothing.
    Basic {
        created: U64,
        accessed: U64,
        written: U64,
        changed: U64,
        attributes: U32,
        reserved: U32,
    }
}

part! {
    /// Sizes (MS-FSCC 2.4.41).
    Standard {
        allocation: U64,
        end_of_file: U64,
        links: U32,
        delete_pending: u8,
        directory: u8,
        reserved: U16,
    }
}

part! {
    /// Room on the disk, in units (MS-FSCC 2.5.4).
    FullSize {
        total: U64,
        caller_available: U64,
        available: U64,
        sectors_per_unit: U32,
        bytes_per_sector: U32,
    }
}

part! {
    /// The fixed part of a directory entry (MS-FSCC 2.4.17).
    EntryHeader {
        next: U32,
        index: U32,
        created: U64,
        accessed: U64,
        written: U64,
        changed: U64,
        end_of_file: U64,
        allocation: U64,
        attributes: U32,
        name_length: U32,
        ea_size: U32,
        short_name_length: u8,
        reserved: u8,
        short_name: [u8; 24],
        reserved2: U16,
        file: U64,
    }
}

impl FullSize {
    /// Reads it from an answer.
    ///
    /// # Errors
    /// It is not all there.
    pub fn parse(output: &[u8]) -> Result<Self, Error> {
        view("the size of the file system", output)
    }

    /// All bytes, and those that the user may still use, if there can be as many.
    #[must_use]
    pub fn bytes(&self) -> Option<(u64, u64)> {
        let unit = u64::from(self.sectors_per_unit.get()) * u64::from(self.bytes_per_sector.get());
        let bytes = |units: U64| units.get().checked_mul(unit);
        bytes(self.total).zip(bytes(self.caller_available))
    }
}

/// Bytes of a name at most: 255 units of UTF-16, as in every file system that servers have.
pub const NAME_MAX: u32 = 510;

/// What a folder has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// All but the name.
    pub fixed: EntryHeader,
    /// The name: no path, since a server is not trusted to give none.
    pub name: String,
}

/// The entries in an answer to QUERY_DIRECTORY for [`class::ID_BOTH_DIRECTORY`]; the
/// folder itself and the one above are left out.
///
/// # Errors
/// An entry is not all there, or its name cannot be one.
pub fn entries(output: &[u8]) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    for entry in Chain::new("a directory entry", output, 8) {
        let entry = entry?;
        let fixed: EntryHeader = view("a directory entry", entry)?;
        let from = size_of::<EntryHeader>();
        let length = fixed.name_length.get();
        if length > NAME_MAX {
            return Err(Error::Long {
                what: "the name of an entry",
                got: length.into(),
                max: NAME_MAX.into(),
            });
        }
        let name = slice("the name of an entry", entry, from, from as u64, length)?;
        let name = crate::from_utf16("the name of an entry", name)?;
        if matches!(name.as_str(), "." | "..") {
            continue;
        }
        // It becomes a part of a path here, and must stay in its folder.
        if name.is_empty() || name.contains(['/', '\\', '\0']) {
            return Err(Error::Field {
                field: "a character in the name of an entry",
                value: name
                    .chars()
                    .find(|c| "/\\\0".contains(*c))
                    .map_or(0, u64::from),
            });
        }
        entries.push(Entry { fixed, name });
    }
    Ok(entries)
}

/// A directory answer with these entries.
#[must_use]
pub fn write_entries(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let start = out.len();
        let name = crate::to_utf16(&entry.name);
        let whole = (size_of::<EntryHeader>() + name.len()).next_multiple_of(8);
        let mut fixed = entry.fixed;
        let last = index + 1 == entries.len();
        fixed.next = if last {
            0.into()
        } else {
            wire::len32(whole).into()
        };
        fixed.name_length = wire::len32(name.len()).into();
        out.extend_from_slice(fixed.as_bytes());
        out.extend_from_slice(&name);
        if !last {
            wire::align8(&mut out, start);
        }
    }
    out
}

/// What [`class::RENAME`] says (MS-FSCC 2.4.42.2): the new path from the root of the share.
#[must_use]
pub fn rename(path: &str, replace: bool) -> Vec<u8> {
    let path = crate::to_utf16(path);
    let mut out = alloc::vec![0; 16];
    out[0] = replace.into();
    out.extend_from_slice(&wire::len32(path.len()).to_le_bytes());
    out.extend_from_slice(&path);
    // The structure has 24 bytes at least.
    out.resize(out.len().max(24), 0);
    out
}

impl QueryDirectoryRequest {
    /// The pattern, in UTF-16.
    ///
    /// # Errors
    /// It is not in the message.
    pub fn pattern(self, message: &[u8]) -> Result<&[u8], Error> {
        let (offset, length) = (self.name_offset.get(), self.name_length.get());
        slice("a pattern", message, Self::end(), offset, length)
    }

    /// Its bytes behind the header, for this pattern.
    #[must_use]
    pub fn body(mut self, pattern: &str) -> Vec<u8> {
        let pattern = crate::to_utf16(pattern);
        self.name_offset = wire::len16(Self::end()).into();
        self.name_length = wire::len16(pattern.len()).into();
        let mut out = self.as_bytes().to_vec();
        out.extend_from_slice(&pattern);
        out
    }
}

impl QueryInfoRequest {
    /// What goes to the server.
    ///
    /// # Errors
    /// It is not in the message.
    pub fn input(self, message: &[u8]) -> Result<&[u8], Error> {
        let (offset, length) = (self.input_offset.get(), self.input_length.get());
        slice("the input of a query", message, Self::end(), offset, length)
    }

    /// Its bytes behind the header.
    #[must_use]
    pub fn body(self) -> Vec<u8> {
        let mut out = self.as_bytes().to_vec();
        out.push(0);
        out
    }
}

impl SetInfoRequest {
    /// What is to be set.
    ///
    /// # Errors
    /// It is not in the message.
    pub fn input(self, message: &[u8]) -> Result<&[u8], Error> {
        let (offset, length) = (self.input_offset.get(), self.input_length.get());
        slice("what is to be set", message, Self::end(), offset, length)
    }

    /// Its bytes behind the header, with this input.
    #[must_use]
    pub fn body(mut self, input: &[u8]) -> Vec<u8> {
        self.input_offset = wire::len16(Self::end()).into();
        self.input_length = wire::len32(input.len()).into();
        let mut out = self.as_bytes().to_vec();
        out.extend_from_slice(input);
        out
    }
}

macro_rules! output {
    ($($name:ident)*) => {$(
        impl $name {
            /// What the server says.
            ///
            /// # Errors
            /// It is not in the message.
            pub fn output(self, message: &[u8]) -> Result<&[u8], Error> {
                let (offset, length) = (self.output_offset.get(), self.output_length.get());
                slice("the output of a query", message, Self::end(), offset, length)
            }

            /// Its bytes behind the header, with this output.
            #[must_use]
            pub fn body(mut self, output: &[u8]) -> Vec<u8> {
                self.output_offset = wire::len16(Self::end()).into();
                self.output_length = wire::len32(output.len()).into();
                let mut out = self.as_bytes().to_vec();
                out.extend_from_slice(output);
                out
            }
        }
    )*};
}

output! { QueryDirectoryResponse QueryInfoResponse }
