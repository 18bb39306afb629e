//! Names of interfaces and of their instances.

use core::fmt;

use thiserror::Error;

/// A GUID in the byte order of the wire: the first three groups little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Guid(pub [u8; 16]);

/// Text that is no GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a GUID is 32 hexadecimal digits as 8-4-4-4-12, with or without braces")]
pub struct NotAGuid;

/// Where each byte of the text stands on the wire.
const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// From 32 digits in the order in which they are written.
    pub(crate) const fn new(digits: u128) -> Self {
        let written = digits.to_be_bytes();
        let mut wire = [0; 16];
        let mut at = 0;
        while at < 16 {
            wire[ORDER[at]] = written[at];
            at += 1;
        }
        Self(wire)
    }

    /// From text as sysfs and PowerShell write it.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self, NotAGuid> {
        let inner = text
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'));
        let inner = inner.unwrap_or(text);
        let mut digits: u128 = 0;
        let mut groups = inner.split('-');
        for want in [8, 4, 4, 4, 12] {
            let group = groups.next().filter(|group| group.len() == want);
            for digit in group.ok_or(NotAGuid)?.chars() {
                let digit = digit.to_digit(16).ok_or(NotAGuid)?;
                digits = digits << 4 | u128::from(digit);
            }
        }
        if groups.next().is_some() {
            return Err(NotAGuid);
        }
        Ok(Self::new(digits))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, place) in ORDER.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0[*place])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    const TEXT: &str = "34d14be3-dee4-41c8-9ae7-6b174977c192";

    #[test]
    fn text_and_wire_agree() {
        let guid = Guid::parse(TEXT).unwrap();
        assert_eq!(guid.to_string(), TEXT);
        assert_eq!(
            guid.0[..8],
            [0xe3, 0x4b, 0xd1, 0x34, 0xe4, 0xde, 0xc8, 0x41]
        );
        assert_eq!(
            Guid::parse("{34D14BE3-DEE4-41C8-9AE7-6B174977C192}"),
            Ok(guid)
        );
        assert_eq!(Guid::new(0x34d14be3_dee4_41c8_9ae7_6b174977c192), guid);
    }

    #[test]
    fn other_text_is_no_guid() {
        for text in [
            "",
            "34d14be3",
            "{34d14be3-dee4-41c8-9ae7-6b174977c192",
            "34d14be3-dee4-41c8-9ae7-6b174977c192-",
            "34d14be3-dee4-41c8-9ae7-6b174977c19g",
            "34d14be3dee441c89ae76b174977c192",
            "34d14be3-dee4-41c8-9ae76-b174977c192",
        ] {
            assert_eq!(Guid::parse(text), Err(NotAGuid), "{text}");
        }
    }
}
