//! What is said before the first message: version, security, the screen (RFC 6143 7.1-7.3).

use alloc::string::String;
use alloc::vec::Vec;

use super::pixel::PixelFormat;
use super::{Error, Options, Security};

pub(super) const VERSION: &[u8; 12] = b"RFB 003.008\n";

/// The version that both speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Minor {
    /// 3.3: the server chooses the security type.
    V3,
    /// 3.7: a list of types, and no word on how it went without any.
    V7,
    /// 3.8.
    V8,
}

/// Security type: none.
const NONE: u8 = 1;
/// Security type: VNC's own.
const VNC: u8 = 2;

/// Reads a client's version. Those that were never published count as 3.3, and Apple's
/// 3.889 and everything later as 3.8.
pub(super) fn version(got: &[u8; 12]) -> Result<Minor, Error> {
    let bad = Error::Version { got: *got };
    let number = |digits: &[u8]| {
        digits.iter().try_fold(0u32, |number, digit| {
            digit
                .is_ascii_digit()
                .then(|| number * 10 + u32::from(digit - b'0'))
        })
    };
    let shaped = got.starts_with(b"RFB ") && got[7] == b'.' && got[11] == b'\n';
    let (Some(major), Some(minor), true) = (number(&got[4..7]), number(&got[8..11]), shaped) else {
        return Err(bad);
    };
    match (major, minor) {
        (0..=2, _) => Err(bad),
        (3, 7) => Ok(Minor::V7),
        (3, 0..=6) => Ok(Minor::V3),
        _ => Ok(Minor::V8),
    }
}

fn say(text: &str, out: &mut Vec<u8>) {
    let len = u32::try_from(text.len()).unwrap_or(0);
    out.extend(len.to_be_bytes());
    out.extend(&text.as_bytes()[..len as usize]);
}

/// What is offered.
///
/// # Errors
/// Nobody may look; why is in `out` too.
pub(super) fn offer(minor: Minor, security: &Security, out: &mut Vec<u8>) -> Result<(), Error> {
    match (security, minor) {
        (Security::None, Minor::V3) => out.extend(u32::from(NONE).to_be_bytes()),
        (Security::None, _) => out.extend([1, NONE]),
        (Security::Refused(reason), minor) => {
            match minor {
                Minor::V3 => out.extend(0u32.to_be_bytes()),
                Minor::V7 | Minor::V8 => out.push(0),
            }
            say(reason, out);
            let reason = reason.clone();
            return Err(Error::Refused { reason });
        }
    }
    Ok(())
}

/// A client's choice.
///
/// # Errors
/// It was not offered; that is in `out` too.
pub(super) fn choose(minor: Minor, kind: u8, out: &mut Vec<u8>) -> Result<(), Error> {
    if kind == NONE {
        if minor >= Minor::V8 {
            out.extend(0u32.to_be_bytes());
        }
        return Ok(());
    }
    out.extend(1u32.to_be_bytes());
    if minor >= Minor::V8 {
        say(
            match kind {
                VNC => "VNC authentication is not offered: its password is no protection",
                _ => "this security type is not offered",
            },
            out,
        );
    }
    Err(Error::Security { kind })
}

/// What a client is told of the screen.
pub(super) fn screen(width: u16, height: u16, options: &Options, out: &mut Vec<u8>) {
    out.extend(width.to_be_bytes());
    out.extend(height.to_be_bytes());
    PixelFormat::NATIVE.write(out);
    let name: String = options.name.chars().take(255).collect();
    say(&name, out);
}
