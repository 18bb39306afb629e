//! The frame around tokens of an authentication (RFC 4178, MS-SPNG): which mechanisms a
//! server knows, and NTLM's messages in it.

use alloc::vec::Vec;

use crate::error::Error;

/// 1.3.6.1.4.1.311.2.2.10: NTLM.
const NTLM: &[u8] = &[0x06, 0x0A, 0x2B, 6, 1, 4, 1, 0x82, 0x37, 2, 2, 0x0A];

/// 1.3.6.1.5.5.2: SPNEGO.
const SPNEGO: &[u8] = &[0x06, 6, 0x2B, 6, 1, 5, 5, 2];

const SEQUENCE: u8 = 0x30;
const OCTETS: u8 = 0x04;
const APPLICATION: u8 = 0x60;

/// A tag of a field.
const fn field(number: u8) -> u8 {
    0xA0 + number
}

/// One element: its tag, its length, its content.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = alloc::vec![tag];
    let len = content.len().to_be_bytes();
    let significant = len
        .iter()
        .position(|byte| *byte != 0)
        .unwrap_or(len.len() - 1);
    let len = &len[significant..];
    if len.len() > 1 || len[0] >= 0x80 {
        // At most 8.
        out.push(0x80 | u8::try_from(len.len()).unwrap_or(8));
    }
    out.extend_from_slice(len);
    out.extend_from_slice(content);
    out
}

/// Takes the first element off: its tag and its content.
fn take<'a>(bytes: &mut &'a [u8]) -> Result<(u8, &'a [u8]), Error> {
    let broken = |what| Error::Token { what };
    let [tag, first, rest @ ..] = *bytes else {
        return Err(broken("an element is not whole"));
    };
    let (len, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let count = usize::from(first & 0x7F);
        let (len, rest) = rest
            .split_at_checked(count)
            .filter(|_| (1..=3).contains(&count))
            .ok_or(broken("a length cannot be"))?;
        (
            len.iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
            rest,
        )
    };
    let (content, rest) = rest
        .split_at_checked(len)
        .ok_or(broken("an element is not whole"))?;
    *bytes = rest;
    Ok((*tag, content))
}

/// The content of the one element that has to be of this kind.
fn inside(bytes: &[u8], tag: u8) -> Result<&[u8], Error> {
    match take(&mut &*bytes)? {
        (got, content) if got == tag => Ok(content),
        _ => Err(Error::Token {
            what: "an element is of another kind",
        }),
    }
}

/// The mechanisms that the client names, as the signature at the end covers them.
#[must_use]
pub fn mechanisms() -> Vec<u8> {
    element(SEQUENCE, NTLM)
}

/// The first message: NTLM is what is named, and begun with.
#[must_use]
pub fn init(token: &[u8]) -> Vec<u8> {
    let mechanisms = element(field(0), &mechanisms());
    let token = element(field(2), &element(OCTETS, token));
    let init = element(SEQUENCE, &[mechanisms, token].concat());
    let all = [SPNEGO.to_vec(), element(field(0), &init)].concat();
    element(APPLICATION, &all)
}

/// A later message, with a signature of the mechanisms if there is a key.
#[must_use]
pub fn response(token: &[u8], signature: Option<&[u8]>) -> Vec<u8> {
    let mut parts = element(field(2), &element(OCTETS, token));
    if let Some(signature) = signature {
        parts.extend(element(field(3), &element(OCTETS, signature)));
    }
    element(field(1), &element(SEQUENCE, &parts))
}

/// The mechanism's token in a server's message; NTLM's without a frame are taken too.
///
/// # Errors
/// It is no such message, or there is no token in it.
pub fn token(message: &[u8]) -> Result<&[u8], Error> {
    if message.starts_with(crate::ntlm::SIGNATURE) {
        return Ok(message);
    }
    let mut fields = inside(inside(message, field(1))?, SEQUENCE)?;
    while !fields.is_empty() {
        let (tag, content) = take(&mut fields)?;
        if tag == field(2) {
            return inside(content, OCTETS);
        }
    }
    Err(Error::Token {
        what: "it has no token of the mechanism",
    })
}

/// Whether a server's first token, in its NEGOTIATE response, names NTLM. One that names
/// nothing leaves it to the client.
///
/// # Errors
/// It is no such token.
pub fn names_ntlm(token: &[u8]) -> Result<bool, Error> {
    if token.is_empty() {
        return Ok(true);
    }
    let content = inside(token, APPLICATION)?;
    let init = content.strip_prefix(SPNEGO).ok_or(Error::Token {
        what: "it is not of SPNEGO",
    })?;
    let mut fields = inside(inside(init, field(0))?, SEQUENCE)?;
    while !fields.is_empty() {
        let (tag, content) = take(&mut fields)?;
        if tag != field(0) {
            continue;
        }
        let mut mechanisms = inside(content, SEQUENCE)?;
        while !mechanisms.is_empty() {
            let (tag, content) = take(&mut mechanisms)?;
            if tag == NTLM[0] && content == &NTLM[2..] {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    Ok(true)
}
