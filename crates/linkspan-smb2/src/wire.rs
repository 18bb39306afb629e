//! Fixed parts of messages as tables of fields, and checked ways to the variable ones.
//!
//! Offsets in SMB2 count from the header of their message, so everything here takes the
//! whole message, header included.

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::error::Error;
use crate::header::{Command, Header};

/// The fixed part of the body of a message.
pub trait Body: FromBytes + IntoBytes + Immutable + Copy {
    /// Its name in MS-SMB2.
    const NAME: &'static str;
    /// What its first field says.
    const STRUCTURE_SIZE: u16;
    /// Which command it belongs to.
    const COMMAND: Command;

    /// Reads it from a whole message.
    ///
    /// # Errors
    /// It is not all there, or its `StructureSize` is another one.
    fn read(message: &[u8]) -> Result<Self, Error> {
        let body = message.get(Header::LEN..).unwrap_or_default();
        let fixed: Self = view(Self::NAME, body)?;
        let got = u16::from_le_bytes([body[0], body[1]]);
        if got != Self::STRUCTURE_SIZE {
            return Err(Error::StructureSize {
                what: Self::NAME,
                got,
                want: Self::STRUCTURE_SIZE,
            });
        }
        Ok(fixed)
    }

    /// Where the variable part begins in a message.
    #[must_use]
    fn end() -> usize {
        Header::LEN + size_of::<Self>()
    }
}

/// A table of fields becomes a structure: the name in MS-SMB2, its `StructureSize`, its command.
macro_rules! body {
    ($(#[$doc:meta])* $name:ident, $size:literal, $command:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
            zerocopy::KnownLayout, zerocopy::Unaligned,
        )]
        #[repr(C)]
        #[allow(missing_docs, reason = "the fields are those of MS-SMB2, by its names")]
        pub struct $name {
            pub structure_size: zerocopy::little_endian::U16,
            $(pub $field: $type,)*
        }

        impl $crate::wire::Body for $name {
            const NAME: &'static str = stringify!($name);
            const STRUCTURE_SIZE: u16 = $size;
            const COMMAND: $crate::Command = $crate::Command::$command;
        }

        impl $name {
            /// One that says its size and nothing else.
            #[must_use]
            pub fn new() -> Self {
                Self { structure_size: $size.into(), ..Self::default() }
            }
        }
    };
}

/// A table of fields becomes a structure that is part of a body.
macro_rules! part {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
            zerocopy::KnownLayout, zerocopy::Unaligned,
        )]
        #[repr(C)]
        #[allow(missing_docs, reason = "the fields are those of the specification, by its names")]
        pub struct $name {
            $(pub $field: $type,)*
        }
    };
}

pub(crate) use {body, part};

/// The first bytes as a structure.
pub(crate) fn view<T: FromBytes>(what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    T::read_from_prefix(bytes)
        .map(|(view, _)| view)
        .map_err(|_| Error::Short {
            what,
            got: bytes.len(),
            want: size_of::<T>(),
        })
}

/// The part of a message that begins at `offset` and has `length` bytes; nothing if it has
/// none, wherever that is said to be. It may not begin before `from`.
pub(crate) fn slice<'a>(
    what: &'static str,
    message: &'a [u8],
    from: usize,
    offset: impl Into<u64>,
    length: impl Into<u64>,
) -> Result<&'a [u8], Error> {
    let (offset, length) = (offset.into(), length.into());
    if length == 0 {
        return Ok(&[]);
    }
    let outside = Error::Outside {
        what,
        offset,
        length,
        from,
        len: message.len(),
    };
    let range = usize::try_from(offset)
        .ok()
        .filter(|offset| *offset >= from)
        .zip(usize::try_from(length).ok())
        .and_then(|(offset, length)| Some(offset..offset.checked_add(length)?));
    range.and_then(|range| message.get(range)).ok_or(outside)
}

/// Fills up with zeroes to a multiple of 8.
pub(crate) fn align8(out: &mut Vec<u8>, start: usize) {
    let len = out.len() - start;
    out.resize(start + len.next_multiple_of(8), 0);
}

/// A length that fits by the bounds of who made it; what does not fit is more than any
/// server takes, and is refused there.
pub(crate) fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// As [`len16`].
pub(crate) fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A list whose entries begin with the distance to the next one, 0 in the last. Each
/// entry is what is from its begin to that of the next one, or to the end.
#[derive(Clone, Debug)]
pub struct Chain<'a> {
    what: &'static str,
    rest: Option<&'a [u8]>,
    align: usize,
    left: usize,
}

/// Entries of a chain that anybody needs: a directory answer of 8 MiB has fewer.
const CHAIN_MAX: usize = 100_000;

impl<'a> Chain<'a> {
    /// The list in `bytes`, whose entries are at multiples of `align`.
    pub(crate) fn new(what: &'static str, bytes: &'a [u8], align: usize) -> Self {
        Self {
            what,
            rest: (!bytes.is_empty()).then_some(bytes),
            align,
            left: CHAIN_MAX,
        }
    }

    fn step(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Error> {
        let next: zerocopy::little_endian::U32 = view(self.what, bytes)?;
        self.left = self.left.checked_sub(1).ok_or(Error::TooMany {
            what: self.what,
            max: CHAIN_MAX,
        })?;
        let next = next.get() as usize;
        if next == 0 {
            return Ok(bytes);
        }
        // An entry has more than its link.
        if next < 8 || !next.is_multiple_of(self.align) || next >= bytes.len() {
            return Err(Error::Outside {
                what: self.what,
                offset: next as u64,
                length: 1,
                from: 8,
                len: bytes.len(),
            });
        }
        let (entry, rest) = bytes.split_at(next);
        self.rest = Some(rest);
        Ok(entry)
    }
}

impl<'a> Iterator for Chain<'a> {
    type Item = Result<&'a [u8], Error>;

    fn next(&mut self) -> Option<Self::Item> {
        // After an error there is no more.
        let bytes = self.rest.take()?;
        Some(self.step(bytes))
    }
}
