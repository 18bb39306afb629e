//! Access to configuration space.

use thiserror::Error;

use super::dispatch::{Commit, Step, read_prefix};
use super::{Backend, ConfigWriter, Effect};
use crate::error::Cause;
use crate::wire::ConfigHeader;

/// Why an access to configuration space is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It leaves the space, or is empty.
    #[error("{size} bytes from {offset} of a configuration space of {config_size}")]
    Range {
        /// First byte.
        offset: u32,
        /// How many.
        size: u32,
        /// How many there are.
        config_size: u32,
    },
    /// Neither the driver nor migration writes.
    #[error("flags {flags:#x} are neither 0 (driver) nor 1 (migration)")]
    Writer {
        /// What came instead.
        flags: u32,
    },
}

impl Backend {
    pub(super) fn config(&self, body: &[u8]) -> Result<Step, Cause> {
        let (header, _) = self.config_access(body)?;
        let ConfigHeader { offset, size, .. } = header;
        Ok(Step::Ask(
            Effect::ReadConfig { offset, size },
            Commit::Config { header },
        ))
    }

    pub(super) fn set_config(&self, body: &[u8]) -> Result<Step, Cause> {
        let (header, bytes) = self.config_access(body)?;
        let writer = match header.flags {
            0 => ConfigWriter::Driver,
            1 => ConfigWriter::Migration,
            flags => return Err(ConfigError::Writer { flags }.into()),
        };
        let effect = Effect::WriteConfig {
            offset: header.offset,
            bytes: bytes.to_vec(),
            writer,
        };
        Ok(Step::Ask(effect, Commit::Nothing))
    }

    fn config_access<'a>(&self, body: &'a [u8]) -> Result<(ConfigHeader, &'a [u8]), Cause> {
        let (header, bytes) = read_prefix::<ConfigHeader>(body)?;
        let ConfigHeader { offset, size, .. } = header;
        let config_size = self.offer.config_size;
        let end = offset
            .checked_add(size)
            .filter(|end| size > 0 && *end <= config_size);
        if end.is_none() {
            return Err(ConfigError::Range {
                offset,
                size,
                config_size,
            }
            .into());
        }
        let exact = usize::try_from(size)
            .ok()
            .and_then(|size| size.checked_add(12));
        match exact {
            Some(exact) if exact == body.len() => Ok((header, bytes)),
            exact => {
                let exact = exact.unwrap_or(usize::MAX);
                Err(Cause::BodySize {
                    got: body.len(),
                    min: exact,
                    max: exact,
                })
            }
        }
    }
}
