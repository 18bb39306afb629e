//! What both ends agree on at first (vfio-user: `VFIO_USER_VERSION`).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use serde_json::Value;
use thiserror::Error;

use crate::wire::{self, DATA_MAX, FDS_MAX, PAGE, VERSION, Version};

/// What one end can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// `max_msg_fds`: descriptors that it takes with one message.
    pub msg_fds: u64,
    /// `max_data_xfer_size`: bytes of a region or of memory that it takes with one message.
    pub data_xfer_size: u64,
    /// `max_dma_maps`: maps at once.
    pub dma_maps: u64,
    /// `pgsizes`: a bit for each size of pages that memory is mapped by.
    pub pgsizes: u64,
    /// `write_multiple`: `VFIO_USER_REGION_WRITE_MULTI`.
    pub write_multiple: bool,
    /// `gfx_plane`, which is ours: the two messages for planes.
    pub gfx_plane: bool,
}

impl Default for Capabilities {
    /// What is meant by an end that says nothing.
    fn default() -> Self {
        Self {
            msg_fds: 1,
            data_xfer_size: 1 << 20,
            dma_maps: 65535,
            pgsizes: PAGE,
            write_multiple: false,
            gfx_plane: false,
        }
    }
}

impl Capabilities {
    /// What we can do.
    pub(crate) fn ours(dma_maps: u64, gfx_plane: bool) -> Self {
        Self {
            msg_fds: FDS_MAX as u64,
            data_xfer_size: DATA_MAX as u64,
            dma_maps,
            pgsizes: PAGE,
            write_multiple: true,
            gfx_plane,
        }
    }
}

/// What is wrong with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VersionError {
    /// Another protocol.
    #[error("version {major}.{minor} of the protocol; only version {} exists", VERSION.0)]
    Major {
        /// Its major number.
        major: u16,
        /// Its minor number.
        minor: u16,
    },
    /// A reply with a higher version than was proposed.
    #[error("version {major}.{minor} is the answer to {}.{}", VERSION.0, VERSION.1)]
    Newer {
        /// Its major number.
        major: u16,
        /// Its minor number.
        minor: u16,
    },
    /// Text that does not end with a zero.
    #[error("{len} bytes of version data without a zero at their end")]
    Unterminated {
        /// Its bytes.
        len: usize,
    },
    /// It is no JSON.
    #[error("no JSON at line {line}, column {column}")]
    Json {
        /// Counted from 1.
        line: usize,
        /// The same.
        column: usize,
    },
    /// A capability has the wrong type or a value that it cannot have.
    #[error("the capability {name} has a value that it cannot have")]
    Value {
        /// Which.
        name: &'static str,
    },
    /// A message that asks for no reply cannot agree on anything.
    #[error("a version that asks for no reply")]
    NoReply,
}

/// Version data, as it was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) capabilities: Capabilities,
    /// Which of them were named, as bits in the order of [`NAMES`].
    named: u8,
}

const NAMES: [&str; 6] = [
    "max_msg_fds",
    "max_data_xfer_size",
    "max_dma_maps",
    "pgsizes",
    "write_multiple",
    "gfx_plane",
];

impl Said {
    /// Reads the data behind a version.
    pub(crate) fn read(data: &[u8]) -> Result<Self, VersionError> {
        let mut said = Self::default();
        if data.is_empty() {
            return Ok(said);
        }
        // The text is what stands before the first zero, as in C.
        let text = data.iter().position(|byte| *byte == 0);
        let len = data.len();
        let text = &data[..text.ok_or(VersionError::Unterminated { len })?];
        if text.is_empty() {
            return Ok(said);
        }
        let value: Value = serde_json::from_slice(text).map_err(|error| VersionError::Json {
            line: error.line(),
            column: error.column(),
        })?;
        let Some(capabilities) = value.get("capabilities") else {
            return Ok(said);
        };
        let is = |name| move || VersionError::Value { name };
        if !capabilities.is_object() {
            return Err(is("capabilities")());
        }
        let known = &mut said.capabilities;
        let numbers = [
            &mut known.msg_fds,
            &mut known.data_xfer_size,
            &mut known.dma_maps,
            &mut known.pgsizes,
        ];
        for ((bit, name), place) in NAMES.into_iter().enumerate().zip(numbers) {
            let Some(value) = capabilities.get(name) else {
                continue;
            };
            *place = value.as_u64().ok_or_else(is(name))?;
            said.named |= 1 << bit;
        }
        let truths = [&mut known.write_multiple, &mut known.gfx_plane];
        for ((bit, name), place) in NAMES.into_iter().enumerate().skip(4).zip(truths) {
            let Some(value) = capabilities.get(name) else {
                continue;
            };
            *place = value.as_bool().ok_or_else(is(name))?;
            said.named |= 1 << bit;
        }
        // Pages of 4 KiB are those that everybody has.
        if known.pgsizes & PAGE == 0 {
            return Err(is("pgsizes")());
        }
        Ok(said)
    }

    /// All of these are named.
    pub(crate) fn all(capabilities: Capabilities) -> Self {
        Self {
            capabilities,
            named: 0x3F,
        }
    }

    /// The answer to this: what `ours` and it have in common, and nothing that it does
    /// not name. Numbers that say what we take are ours.
    pub(crate) fn answer(&self, ours: Capabilities) -> Self {
        let theirs = self.capabilities;
        Self {
            capabilities: Capabilities {
                dma_maps: ours.dma_maps.min(theirs.dma_maps),
                write_multiple: ours.write_multiple && theirs.write_multiple,
                gfx_plane: ours.gfx_plane && theirs.gfx_plane,
                ..ours
            },
            named: self.named,
        }
    }

    /// The data behind a version.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let known = self.capabilities;
        let numbers = [
            known.msg_fds,
            known.data_xfer_size,
            known.dma_maps,
            known.pgsizes,
        ];
        let numbers = numbers.map(Value::from);
        let truths = [known.write_multiple, known.gfx_plane].map(Value::from);
        let mut text = String::from("{\"capabilities\":{");
        let mut separator = "";
        for (bit, (name, value)) in NAMES
            .into_iter()
            .zip(numbers.iter().chain(&truths))
            .enumerate()
        {
            // A truth that does not hold is not said: QEMU warns of names that it does
            // not know.
            if self.named & 1 << bit == 0 || *value == Value::Bool(false) {
                continue;
            }
            let _ = write!(text, "{separator}\"{name}\":{value}");
            separator = ",";
        }
        text.push_str("}}\0");
        text.into_bytes()
    }
}

/// The version that a proposal leads to.
pub(crate) fn agree(body: &[u8]) -> Result<(Version, Said), VersionError> {
    // The table has the length checked.
    let (Version { major, minor }, data) = wire::head(body).unwrap_or((
        Version {
            major: u16::MAX,
            minor: 0,
        },
        &[],
    ));
    if major != VERSION.0 {
        return Err(VersionError::Major { major, minor });
    }
    let minor = minor.min(VERSION.1);
    Ok((Version { major, minor }, Said::read(data)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn said(text: &str) -> Result<Said, VersionError> {
        Said::read(format!("{text}\0").as_bytes())
    }

    fn text(said: Said) -> String {
        let mut bytes = said.to_bytes();
        assert_eq!(bytes.pop(), Some(0));
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_answer_names_nothing_that_was_not_proposed() {
        let ours = Capabilities::ours(100, true);
        // QEMU 11.1.
        let qemu = said(
            r#"{"capabilities": {"max_msg_fds": 16, "max_dma_maps": 65535, "pgsizes": 4096,
                "max_data_xfer_size": 1048576, "write_multiple": true}}"#,
        );
        assert_eq!(
            text(qemu.unwrap().answer(ours)),
            r#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,"max_dma_maps":100,"pgsizes":4096,"write_multiple":true}}"#
        );
        // libvfio-user 0.2, with a part that is not in the specification.
        let samples = said(
            r#"{"capabilities":{"max_msg_fds":8,"migration":{"pgsize":4096},"twin_socket":{"supported":true}}}"#,
        );
        assert_eq!(
            text(samples.unwrap().answer(ours)),
            r#"{"capabilities":{"max_msg_fds":8}}"#
        );
        assert_eq!(text(Said::default().answer(ours)), r#"{"capabilities":{}}"#);
        assert_eq!(
            text(
                said(r#"{"capabilities":{"gfx_plane":true}}"#)
                    .unwrap()
                    .answer(ours)
            ),
            r#"{"capabilities":{"gfx_plane":true}}"#
        );
    }

    #[test]
    fn an_end_that_says_nothing_has_the_defaults() {
        for text in ["", "{}", r#"{"capabilities":{}}"#] {
            assert_eq!(said(text), Ok(Said::default()), "{text}");
        }
        assert_eq!(Said::read(b""), Ok(Said::default()));
    }

    /// vfio_user 0.1.7: a version without a zero at its end is a panic of the server.
    #[test]
    fn vfio_user_text_without_an_end_is_an_error() {
        assert_eq!(
            Said::read(b"{}"),
            Err(VersionError::Unterminated { len: 2 })
        );
        let wrong = |name| Err(VersionError::Value { name });
        assert_eq!(said(r#"{"capabilities":1}"#), wrong("capabilities"));
        assert_eq!(
            said(r#"{"capabilities":{"pgsizes":8192}}"#),
            wrong("pgsizes")
        );
        assert_eq!(
            said(r#"{"capabilities":{"max_msg_fds":-1}}"#),
            wrong("max_msg_fds")
        );
        assert_eq!(
            said(r#"{"capabilities":{"write_multiple":1}}"#),
            wrong("write_multiple")
        );
        assert_eq!(said("{"), Err(VersionError::Json { line: 1, column: 1 }));
        let deep = "[".repeat(4096);
        assert!(matches!(said(&deep), Err(VersionError::Json { .. })));
        let old = Version { major: 1, minor: 0 };
        let error = agree(zerocopy::IntoBytes::as_bytes(&old)).unwrap_err();
        assert_eq!(error, VersionError::Major { major: 1, minor: 0 });
    }
}
