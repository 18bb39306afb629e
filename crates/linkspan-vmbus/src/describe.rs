//! Messages of integration services in words, for people who watch a channel: by the tables
//! that both ends work by.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use zerocopy::FromBytes as _;
use zerocopy::little_endian::U16;

use crate::fcopy::Operation;
use crate::fcopy::wire::{Head, Start, Write};
use crate::ic::frame::{IcHeader, NEGOTIATE, versions};
use crate::ic::{FILE_COPY, HEADER_BYTES, SERVICES, Status, Version, flags};

/// Versions of a negotiation that are said.
const VERSIONS_SAID: usize = 8;

/// Whether a message negotiates versions.
#[must_use]
pub fn is_setup(payload: &[u8]) -> bool {
    IcHeader::read(payload).is_ok_and(|header| header.kind.get() == NEGOTIATE)
}

/// A message, of which at least the first bytes are given.
#[must_use]
pub fn describe(payload: &[u8]) -> String {
    let Ok(header) = IcHeader::read(payload) else {
        return format!("no message: {} bytes", payload.len());
    };
    let body = payload.get(HEADER_BYTES..).unwrap_or_default();
    let (kind, number) = (header.kind.get(), header.transaction);
    let is_response = header.flags & flags::RESPONSE != 0;
    let mut text = match kind {
        NEGOTIATE => "NEGOTIATE".into(),
        kind => match SERVICES.iter().find(|service| service.kind == kind) {
            Some(service) => String::from(service.name),
            None => format!("message {kind}"),
        },
    };
    let _ = write!(text, " {number}");
    if is_response {
        let status = Status(header.status.get());
        let _ = write!(text, " response: {status}");
    }
    let words = match kind {
        NEGOTIATE => negotiation(body),
        kind if kind == FILE_COPY.kind => file_copy(body),
        _ => None,
    };
    match words {
        Some(words) => text + if is_response { ", " } else { ": " } + &words,
        None => text + &format!(", {} bytes", header.size),
    }
}

fn negotiation(body: &[u8]) -> Option<String> {
    let (frameworks, services) = versions(body).ok()?;
    let list = |list: &[[u8; 4]]| {
        let list = list.iter().take(VERSIONS_SAID);
        let list = list.map(|bytes| format!("{}", Version::from_bytes(*bytes)));
        list.collect::<Vec<_>>().join(" ")
    };
    Some(format!(
        "frame {}, service {}",
        list(frameworks),
        list(services)
    ))
}

fn file_copy(body: &[u8]) -> Option<String> {
    let (head, _) = Head::read_from_prefix(body).ok()?;
    let operation = head.operation.get();
    let operation = Operation::of(operation)?;
    let name = operation.name();
    Some(match operation {
        Operation::Start => match Start::read_from_prefix(body) {
            Ok((start, _)) => format!(
                "{name} of {:?} to {:?}, {} bytes, flags {:#x}",
                text(&start.file),
                text(&start.path),
                start.size,
                start.flags
            ),
            Err(_) => name.into(),
        },
        Operation::Write => match Write::read_from_prefix(body) {
            Ok((write, _)) => format!("{name} of {} bytes at {}", write.size, write.offset),
            Err(_) => name.into(),
        },
        Operation::Complete | Operation::Cancel => name.into(),
    })
}

/// A name up to its zero.
fn text(units: &[U16]) -> String {
    let units = units.iter().map(|unit| unit.get());
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::fcopy::{Job, Options, Output, Sender};

    /// What a sender says to a guest that answers as it should.
    #[test]
    fn messages_say_what_they_hold() {
        let mut sender = Sender::new(Options { outstanding: 1 }).unwrap();
        let Some(Output::Send(first)) = sender.poll_output() else {
            panic!("a negotiation");
        };
        assert!(is_setup(&first));
        let text = describe(&first);
        assert!(
            text.starts_with("NEGOTIATE ") && text.ends_with(": frame 1.0 3.0, service 1.1"),
            "{text}"
        );
        let policy = crate::fcopy::Policy {
            roots: crate::fcopy::Roots::new(&["/srv"]).unwrap(),
            max_size: 1 << 20,
        };
        let receiver = crate::fcopy::Receiver::new(policy);
        let mut guest = crate::fcopy::Guest::new(receiver, crate::ic::Echo::Full);
        let mut answer = first.to_vec();
        guest.receive(&mut answer).unwrap();
        let text = describe(&answer);
        assert!(
            text.ends_with(" response: done, frame 3.0, service 1.1"),
            "{text}"
        );
        sender.receive(&answer);
        let job = Job {
            file: "a".into(),
            path: "/srv/".into(),
            overwrite: true,
            create_path: false,
            size: 5,
        };
        assert!((0..4).any(|_| matches!(sender.poll_output(), Some(Output::Ready))));
        sender.send(&job).unwrap();
        let Some(Output::Send(start)) = sender.poll_output() else {
            panic!("a START");
        };
        let text = describe(&start);
        assert!(text.starts_with("file copy "), "{text}");
        assert!(
            text.contains(": START of \"a\" to \"/srv/\", 5 bytes, flags 0x1"),
            "{text}"
        );
        assert!(!is_setup(&start));
        // What a guest sends back may be its header alone.
        assert!(describe(&start[..HEADER_BYTES]).ends_with(" bytes"));
    }

    /// Whatever a peer sends, it is said or left out.
    #[test]
    fn no_bytes_are_too_broken_to_watch() {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        for len in 0..3000_usize {
            let mut bytes = vec![0; len % 1200];
            for byte in &mut bytes {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                *byte = (random & 0x07) as u8;
            }
            assert!(!describe(&bytes).is_empty());
            let _ = is_setup(&bytes);
        }
    }
}
