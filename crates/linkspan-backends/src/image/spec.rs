//! What a person writes for an image: `disk.img`, `file:PATH`, `mem:1G`, `null:1T`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

/// Which image is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// A file or a block device; what its bytes mean is the [`Format`].
    File(PathBuf),
    /// Memory of ours.
    Memory {
        /// Size in bytes.
        bytes: u64,
    },
    /// Nothing.
    Null {
        /// Size in bytes.
        bytes: u64,
        /// Whether reads give zeroes.
        read_zeroes: bool,
    },
}

/// What the bytes of a file mean. Never guessed: a guest writes what it likes
/// into a raw image, and could make one look like another format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// They are the bytes of the disk.
    #[default]
    Raw,
    /// QEMU's qcow2, version 2 or 3.
    Qcow2,
}

/// Text that names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// Nothing was given.
    #[error("an image without a name; give a path, mem:SIZE or null:SIZE")]
    Empty,
    /// A beginning that means nothing.
    #[error(
        "`{kind}:` is no kind of image; there are file:PATH, mem:SIZE and null:SIZE, and a file of this name is file:{kind}:…"
    )]
    Kind {
        /// What stands before the colon.
        kind: String,
    },
    /// A size that is none.
    #[error("{kind}:{text}: {error}")]
    Size {
        /// What stands before the colon.
        kind: &'static str,
        /// What stands behind it.
        text: String,
        /// What is wrong with that.
        error: SizeError,
    },
    /// A size that no disk has.
    #[error("{kind}:{text}: a disk has a whole number of sectors of 512 bytes, and at least one")]
    Sectors {
        /// What stands before the colon.
        kind: &'static str,
        /// What stands behind it.
        text: String,
    },
    /// A null disk has one option.
    #[error("null: the option `{option}` means nothing; there is read-zeroes")]
    Option {
        /// What was given.
        option: String,
    },
}

/// Text that is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number, or an unknown suffix.
    #[error("a number of bytes such as 4096, 64K or 1G")]
    Number,
    /// Above 2^64.
    #[error("more bytes than there are")]
    TooLarge,
}

/// A number of bytes with an optional suffix K, M, G or T, powers of 1024.
///
/// # Errors
/// [`SizeError`].
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        Some((at, 't' | 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    // `parse` takes a sign, which no size has.
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SizeError::Number);
    }
    let number: u64 = match digits.parse() {
        Ok(number) => number,
        Err(_) if digits.is_empty() => return Err(SizeError::Number),
        Err(_) => return Err(SizeError::TooLarge),
    };
    number.checked_mul(1 << shift).ok_or(SizeError::TooLarge)
}

impl Spec {
    /// Reads what a person wrote. What stands before the first colon is the kind of
    /// image, unless it has a slash: then, and without a colon, it is a path.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn parse(text: &OsStr) -> Result<Self, SpecError> {
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err(SpecError::Empty);
        }
        let kind_len = bytes
            .iter()
            .position(|byte| *byte == b':')
            .filter(|at| !bytes[..*at].contains(&b'/'));
        let Some(kind_len) = kind_len else {
            return Ok(Self::File(text.into()));
        };
        let rest = &bytes[kind_len + 1..];
        match &bytes[..kind_len] {
            b"file" if rest.is_empty() => Err(SpecError::Empty),
            b"file" => Ok(Self::File(OsString::from_vec(rest.to_vec()).into())),
            b"mem" => {
                let bytes = disk_size("mem", &String::from_utf8_lossy(rest))?;
                Ok(Self::Memory { bytes })
            }
            b"null" => {
                let rest = String::from_utf8_lossy(rest);
                let (size, option) = match rest.split_once(',') {
                    Some((size, option)) => (size, Some(option)),
                    None => (&*rest, None),
                };
                if let Some(option) = option.filter(|option| *option != "read-zeroes") {
                    return Err(SpecError::Option {
                        option: option.to_owned(),
                    });
                }
                Ok(Self::Null {
                    bytes: disk_size("null", size)?,
                    read_zeroes: option.is_some(),
                })
            }
            kind => Err(SpecError::Kind {
                kind: String::from_utf8_lossy(kind).into_owned(),
            }),
        }
    }
}

fn disk_size(kind: &'static str, text: &str) -> Result<u64, SpecError> {
    let bytes = parse_size(text).map_err(|error| SpecError::Size {
        kind,
        text: text.to_owned(),
        error,
    })?;
    if bytes == 0 || !bytes.is_multiple_of(512) {
        return Err(SpecError::Sectors {
            kind,
            text: text.to_owned(),
        });
    }
    Ok(bytes)
}

/// A name that is no format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("raw or qcow2")]
pub struct FormatError;

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(FormatError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Spec, SpecError> {
        Spec::parse(OsStr::new(text))
    }

    #[test]
    fn sizes_have_suffixes() {
        for (text, size) in [
            ("512", 512),
            ("4k", 4096),
            ("3M", 3 << 20),
            ("1G", 1 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(size));
        }
        for text in ["", "K", "1X", "+1", "-1", "1.5G", "1é", "0x10"] {
            assert_eq!(parse_size(text), Err(SizeError::Number), "{text}");
        }
        for text in ["99999999999T", "99999999999999999999"] {
            assert_eq!(parse_size(text), Err(SizeError::TooLarge), "{text}");
        }
    }

    #[test]
    fn paths_are_files() {
        for (text, path) in [
            ("disk.img", "disk.img"),
            (
                "/dev/disk/by-path/pci-0000:00:1f.2",
                "/dev/disk/by-path/pci-0000:00:1f.2",
            ),
            ("./mem:1G", "./mem:1G"),
            ("file:a:b", "a:b"),
            ("file:/dev/sda", "/dev/sda"),
            ("file:file:x", "file:x"),
        ] {
            assert_eq!(parse(text), Ok(Spec::File(path.into())), "{text}");
        }
        let odd = OsStr::from_bytes(b"file:\xFF");
        let path = PathBuf::from(OsStr::from_bytes(b"\xFF"));
        assert_eq!(Spec::parse(odd), Ok(Spec::File(path)));
    }

    #[test]
    fn memory_and_nothing_have_sizes() {
        assert_eq!(parse("mem:64M"), Ok(Spec::Memory { bytes: 64 << 20 }));
        let null = |read_zeroes| Spec::Null {
            bytes: 1 << 40,
            read_zeroes,
        };
        assert_eq!(parse("null:1T"), Ok(null(false)));
        assert_eq!(parse("null:1T,read-zeroes"), Ok(null(true)));
        assert!(matches!(parse("mem:"), Err(SpecError::Size { .. })));
        assert!(matches!(parse("null:1Q"), Err(SpecError::Size { .. })));
        assert!(matches!(parse("mem:0"), Err(SpecError::Sectors { .. })));
        assert!(matches!(parse("mem:1000"), Err(SpecError::Sectors { .. })));
        assert!(matches!(parse("null:1T,x"), Err(SpecError::Option { .. })));
    }

    #[test]
    fn what_is_no_image_says_what_there_is() {
        assert_eq!(parse(""), Err(SpecError::Empty));
        assert_eq!(parse("file:"), Err(SpecError::Empty));
        let error = parse("memory:1G").unwrap_err();
        assert!(error.to_string().contains("file:memory:"), "{error}");
        assert!(matches!(parse("C:disk"), Err(SpecError::Kind { .. })));
    }
}
