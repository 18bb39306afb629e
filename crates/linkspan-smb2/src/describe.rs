//! Messages in words, for people who watch a connection: by the tables that both ends work by.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use crate::create::{CreateRequest, CreateResponse};
use crate::header::{COMPOUND_MAX, COMPRESSION_ID, Command, Header, TRANSFORM_ID, flags};
use crate::io::{
    Descriptor, ReadRequest, ReadResponse, WriteRequest, WriteResponse, channel, reach,
};
use crate::negotiate;
use crate::session::TreeConnectRequest;
use crate::status::STATUSES;
use crate::text::from_utf16;
use crate::wire::Body;

/// Messages of a compound that are put into words.
const COMPOUND_SEEN: usize = 8;

/// Whether a message is about the connection, its sessions and shares, and not about files.
#[must_use]
pub fn is_setup(message: &[u8]) -> bool {
    use Command as C;
    let all = [
        C::Negotiate,
        C::SessionSetup,
        C::Logoff,
        C::TreeConnect,
        C::TreeDisconnect,
    ];
    let command = Header::parse_any(message).and_then(|header| header.command());
    command.is_ok_and(|command| all.contains(&command))
}

/// A message of `len` bytes, or a compound of several, of which at least the first bytes are
/// given.
#[must_use]
pub fn describe(message: &[u8], len: usize) -> String {
    for (id, what) in [(TRANSFORM_ID, "encrypted"), (COMPRESSION_ID, "compressed")] {
        if message.starts_with(&id.to_le_bytes()) {
            return format!("{what}: {len} bytes");
        }
    }
    let (mut texts, mut rest, mut count) = (Vec::new(), message, 0);
    while let Ok(header) = Header::parse_any(rest) {
        count += 1;
        let next = header.next_command.get() as usize;
        let part = if next == 0 {
            rest
        } else {
            rest.get(..next).unwrap_or(rest)
        };
        if texts.len() < COMPOUND_SEEN {
            texts.push(one(&header, part));
        }
        rest = match next {
            0 => break,
            Header::LEN.. if count < COMPOUND_MAX => rest.get(next..).unwrap_or_default(),
            _ => break,
        };
    }
    let mut text = texts.join("; ");
    if count > texts.len() {
        let _ = write!(text, "; {} more", count - texts.len());
    }
    match count {
        0 => format!("no message of SMB2: {len} bytes"),
        _ => text + &format!(", {len} bytes"),
    }
}

fn one(header: &Header, message: &[u8]) -> String {
    let (id, credits) = (header.message_id.get(), header.credits.get());
    let command = header.command();
    let mut text = match command {
        Ok(command) => format!("{command:?} {id}"),
        Err(_) => format!("command {} {id}", header.command),
    };
    let is_response = header.is(flags::RESPONSE);
    let words = match (command, is_response) {
        (Ok(command), false) => asked(command, message),
        (Ok(command), true) => answered(command, message),
        (Err(_), _) => None,
    };
    if is_response {
        let status = header.status.get();
        let known = STATUSES.iter().find(|(code, ..)| *code == status);
        text += &known.map_or_else(
            || format!(" response: {status:#010x}"),
            |(_, name, _)| format!(" response: {name}"),
        );
    }
    if let Some(words) = words {
        let _ = write!(text, "{} {words}", if is_response { "," } else { ":" });
    }
    let verb = if is_response { "grants" } else { "wants" };
    let _ = write!(text, ", {verb} {credits} credits");
    if header.is(flags::SIGNED) {
        text += ", signed";
    }
    text
}

/// What is asked, of commands that have something to say.
fn asked(command: Command, message: &[u8]) -> Option<String> {
    Some(match command {
        Command::Negotiate => {
            let it = negotiate::Request::read(message).ok()?;
            format!("{} dialects", it.dialect_count)
        }
        Command::TreeConnect => {
            let it = TreeConnectRequest::read(message).ok()?;
            name(message, it.path_offset.get(), it.path_length.get())
        }
        Command::Create => {
            let it = CreateRequest::read(message).ok()?;
            let name = name(message, it.name_offset.get(), it.name_length.get());
            format!("{name:?}, access {:#x}", it.access)
        }
        Command::Read => {
            let it = ReadRequest::read(message).ok()?;
            let place = format!("{} bytes at {}", it.length, it.offset);
            place + &by_channel(it.channel.get(), it.descriptors(message))
        }
        Command::Write => {
            let it = WriteRequest::read(message).ok()?;
            let bytes = match it.channel.get() {
                channel::NONE => it.length,
                _ => it.remaining,
            };
            let place = format!("{bytes} bytes at {}", it.offset);
            place + &by_channel(it.channel.get(), it.descriptors(message))
        }
        _ => return None,
    })
}

fn by_channel(kind: u32, descriptors: Result<Vec<Descriptor>, crate::Error>) -> String {
    if kind == channel::NONE {
        return String::new();
    }
    let Ok(descriptors) = descriptors else {
        return format!(" by channel {kind}");
    };
    let bytes = reach(&descriptors).unwrap_or(0);
    let first = descriptors.first();
    let token = first.map_or(0, |first| first.token.get());
    let count = descriptors.len();
    format!(" by channel {kind}, {count} descriptors of {bytes} bytes from {token:#x} on")
}

/// What is answered, of commands that have something to say.
fn answered(command: Command, message: &[u8]) -> Option<String> {
    Some(match command {
        Command::Negotiate => {
            let it = negotiate::Response::read(message).ok()?;
            format!(
                "dialect {:#x}, reads {}, writes {}",
                it.dialect, it.max_read_size, it.max_write_size
            )
        }
        Command::Create => {
            let it = CreateResponse::read(message).ok()?;
            format!("{} bytes long", it.end_of_file)
        }
        Command::Read => {
            let it = ReadResponse::read(message).ok()?;
            format!("{} bytes, {} by RDMA", it.data_length, it.data_remaining)
        }
        Command::Write => {
            let it = WriteResponse::read(message).ok()?;
            format!("{} bytes", it.count)
        }
        _ => return None,
    })
}

/// A name that is in a message, as far as it is one.
fn name(message: &[u8], offset: u16, length: u16) -> String {
    let (offset, length) = (usize::from(offset), usize::from(length));
    let bytes = message.get(offset..offset + length);
    let text = bytes.and_then(|bytes| from_utf16("a name", bytes).ok());
    text.unwrap_or_else(|| "a name that is none".into())
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use zerocopy::IntoBytes;

    use super::*;
    use crate::header::compound;
    use crate::status;
    use crate::text::to_utf16;

    fn message(command: Command, id: u64, response: Option<u32>, body: &[u8]) -> Vec<u8> {
        let mut header = Header::request(command);
        header.message_id = id.into();
        header.credits = 5.into();
        if let Some(status) = response {
            header.flags = flags::RESPONSE.into();
            header.status = status.into();
        }
        [header.as_bytes(), body].concat()
    }

    fn said(message: &[u8]) -> String {
        describe(message, message.len())
    }

    #[test]
    fn messages_say_what_they_hold() {
        let read = ReadRequest {
            length: 4096.into(),
            offset: 8192.into(),
            channel: channel::RDMA_V1.into(),
            ..ReadRequest::new()
        };
        let memory = Descriptor {
            offset: 0.into(),
            token: 0x77.into(),
            length: 4096.into(),
        };
        let read = message(Command::Read, 7, None, &read.body(&[memory]));
        assert_eq!(
            said(&read),
            "Read 7: 4096 bytes at 8192 by channel 1, 1 descriptors of 4096 bytes from 0x77 on, \
             wants 5 credits, 128 bytes"
        );
        let path = to_utf16("\\\\s\\files");
        let connect = TreeConnectRequest {
            path_offset: 72.into(),
            path_length: u16::try_from(path.len()).unwrap().into(),
            ..TreeConnectRequest::new()
        };
        let connect = [connect.as_bytes(), &path].concat();
        let connect = message(Command::TreeConnect, 3, None, &connect);
        assert!(is_setup(&connect) && !is_setup(&read));
        assert_eq!(
            said(&connect),
            "TreeConnect 3: \\\\s\\files, wants 5 credits, 90 bytes"
        );
        let denied = message(Command::Create, 4, Some(status::ACCESS_DENIED), &[9, 0]);
        assert_eq!(
            said(&denied),
            "Create 4 response: ACCESS_DENIED, grants 5 credits, 66 bytes"
        );
        let both = compound(&[denied, read]);
        let text = said(&both);
        assert!(text.starts_with("Create 4 response") && text.contains("; Read 7"));
        let mut many = vec![message(Command::Echo, 1, None, &[4, 0, 0, 0]); 20];
        assert!(said(&compound(&many)).contains("; 12 more"));
        many.truncate(1);
        many[0][12] = 99;
        assert!(said(&many[0]).starts_with("command 99 1"));
        let secret = [&TRANSFORM_ID.to_le_bytes()[..], &[0; 60]].concat();
        assert_eq!(said(&secret), "encrypted: 64 bytes");
        assert_eq!(said(&[1, 2, 3]), "no message of SMB2: 3 bytes");
    }

    /// Whatever an end sends, it is said or left out.
    #[test]
    fn no_bytes_are_too_broken_to_watch() {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for _ in 0..20_000 {
            let command = Command::of(u16::try_from(next() % 19).unwrap()).unwrap();
            let body: Vec<u8> = (0..next() % 96).map(|_| next().to_le_bytes()[0]).collect();
            let answer = (next() & 1 == 0).then_some(status::SUCCESS);
            let mut bytes = message(command, 1, answer, &body);
            bytes[20] = next().to_le_bytes()[0] & 0x7f;
            let known = match Header::LEN < bytes.len() {
                true => Header::LEN,
                false => bytes.len(),
            };
            if next() & 3 == 0 {
                bytes.truncate(known);
            }
            assert!(!said(&bytes).is_empty());
        }
    }
}
