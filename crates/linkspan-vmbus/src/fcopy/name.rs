//! Names as the host sends them: UTF-16 with a zero at the end.

use alloc::string::String;

use thiserror::Error;
use zerocopy::little_endian::U16;

/// Bytes of one part of a path at most (`NAME_MAX`).
pub(crate) const PART_MAX: usize = 255;

/// A name that no file can have, or that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// There is no zero behind it.
    #[error("a name that does not end")]
    Endless,
    /// There is nothing before the zero.
    #[error("a name of no characters")]
    Empty,
    /// Half of a character.
    #[error("unit {unit:#x} at {at} is half a character")]
    Unpaired {
        /// The unit.
        unit: u16,
        /// Its place.
        at: usize,
    },
    /// A file's name with a folder in it.
    #[error("the file's name {name:?} is a path")]
    Path {
        /// It.
        name: String,
    },
    /// `.` or `..`, where they cannot be.
    #[error("{name:?} leads elsewhere")]
    Dots {
        /// It.
        name: String,
    },
    /// A part that no file system takes.
    #[error("a name of {len} bytes in UTF-8, where 255 are the most")]
    TooLong {
        /// Its bytes.
        len: usize,
    },
    /// Windows writes environment variables into paths; this guest has none for it.
    #[error("the environment variable {name} in a path")]
    Variable {
        /// It, as it stands there.
        name: String,
    },
    /// A drive of Windows.
    #[error("the drive {name} in a path")]
    Drive {
        /// It.
        name: String,
    },
    /// A place that is in no root.
    #[error("{path:?} is not within a folder that may be written to")]
    Outside {
        /// It.
        path: String,
    },
}

/// The text before the first zero; what is behind it is whatever the host had there.
pub(crate) fn decode(units: &[U16]) -> Result<String, NameError> {
    let end = units.iter().position(|unit| unit.get() == 0);
    let units = &units[..end.ok_or(NameError::Endless)?];
    if units.is_empty() {
        return Err(NameError::Empty);
    }
    let mut text = String::with_capacity(units.len());
    let mut at = 0;
    for character in char::decode_utf16(units.iter().map(|unit| unit.get())) {
        let character = character.map_err(|error| NameError::Unpaired {
            unit: error.unpaired_surrogate(),
            at,
        })?;
        at += character.len_utf16();
        text.push(character);
    }
    Ok(text)
}

/// The text as the host sends it, or `None` if it is too long or has a zero.
pub(crate) fn encode(text: &str) -> Option<[U16; super::NAME_UNITS]> {
    let mut units = [U16::ZERO; super::NAME_UNITS];
    // The last one stays zero.
    let mut places = units.iter_mut().take(super::NAME_UNITS - 1);
    for unit in text.encode_utf16() {
        *places.next()? = U16::new(unit);
    }
    (!text.contains('\0')).then_some(units)
}

/// A file's name, which is one part of a path.
pub(crate) fn leaf(name: String) -> Result<String, NameError> {
    if name.contains(['/', '\\']) {
        return Err(NameError::Path { name });
    }
    part(&name)?;
    Ok(name)
}

/// One part of a path.
pub(crate) fn part(name: &str) -> Result<(), NameError> {
    if matches!(name, "." | "..") {
        return Err(NameError::Dots { name: name.into() });
    }
    if name.len() > PART_MAX {
        return Err(NameError::TooLong { len: name.len() });
    }
    Ok(())
}

/// An environment variable in `path`, as Windows or as a shell writes it: `%NAME%`
/// anywhere, `$NAME` and `${NAME}` where a part begins.
pub(crate) fn variable(path: &str) -> Option<&str> {
    let is_name = |name: &str| {
        let mut characters = name.chars();
        characters
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && characters.all(|next| next.is_ascii_alphanumeric() || "_()".contains(next))
    };
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let begin = &rest[at..];
        let len = begin[1..].find('%').map(|len| len + 2);
        if let Some(found) = len.map(|len| &begin[..len])
            && is_name(&found[1..found.len() - 1])
        {
            return Some(found);
        }
        rest = &begin[1..];
    }
    path.split('/').find(|part| {
        part.strip_prefix('$').is_some_and(|name| {
            let inner = name
                .strip_prefix('{')
                .and_then(|name| name.strip_suffix('}'));
            is_name(inner.unwrap_or(name))
        })
    })
}
