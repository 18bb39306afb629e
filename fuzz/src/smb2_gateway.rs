//! A client's and a server's messages against a gateway between them, and against what it tells
//! clients over TCP.
//!
//! Each message comes after a byte that says who sends it, 0 for the client, and its length
//! in 16 bits.

use linkspan_smb2::announce::{ASK_LEN, Announce};
use linkspan_smb2::describe::{describe, is_setup};
use linkspan_smb2::gateway::{Error, Gateway, HEAD_MAX, Side, ToClient, ToServer, is_compound};
use linkspan_smb2::header::{Command, Compound, Header};
use linkspan_smb2::io::{ReadRequest, ReadResponse, WriteRequest, channel, reach};
use linkspan_smb2::ioctl::{self, IoctlResponse};
use linkspan_smb2::wire::Body as _;

use crate::input::Input;
use crate::smb2::Outcome;

/// What the gateway carries at once.
const MAX: u32 = 10_000;

/// The target `smb2_gateway`.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// What comes of it: messages that go on.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut gateway = Gateway::new(MAX);
    let mut announce = Announce::new([127, 0, 0, 1].into());
    let mut input = Input::new(bytes);
    while let (Some(from), Some(len)) = (input.u8(), input.u16()) {
        let message = input.bytes(len.into());
        watch(from, message);
        over_tcp(&mut announce, from, message);
        let (side, result) = match from {
            0 => (Side::Client, client(&mut gateway, message)),
            _ => (Side::Server, server(&mut gateway, message)),
        };
        if let Err(error) = result {
            assert_eq!(error.side(), side);
            outcome.error = Some(error.to_string());
            break;
        }
        outcome.done += 1;
    }
    outcome
}

/// Whatever is said can be put into words, by as much of it as is seen.
fn watch(from: u8, message: &[u8]) {
    let head = match from == 0 || is_compound(message) {
        true => message,
        false => &message[..message.len().min(HEAD_MAX)],
    };
    assert!(!describe(head, message.len()).is_empty());
    assert!(!is_setup(head) || message.len() >= Header::LEN);
}

/// Whatever is told is a list of interfaces again.
fn over_tcp(announce: &mut Announce, from: u8, message: &[u8]) {
    if from == 0 {
        announce.from_client(&message[..message.len().min(ASK_LEN)]);
        return;
    }
    if !announce.wants(&message[..message.len().min(Header::LEN)], message.len()) {
        return;
    }
    let before = announce.asked();
    if let Some(told) = announce.from_server(message) {
        assert_eq!(told[..Header::LEN], message[..Header::LEN]);
        let response = IoctlResponse::read(&told).expect("an IOCTL response");
        let output = response.output(&told).expect("its output");
        assert!(!ioctl::interfaces(output).expect("interfaces").is_empty());
    }
    assert_eq!(announce.asked(), before - 1);
}

fn client(gateway: &mut Gateway, message: &[u8]) -> Result<(), Error> {
    let before = gateway.pending();
    let result = gateway.from_client(message);
    let changed = matches!(result, Ok(ToServer::Read(_) | ToServer::Write { .. }));
    assert_eq!(gateway.pending(), before + usize::from(changed));
    match result? {
        ToServer::Pass => has_no_channel(message),
        ToServer::Read(bytes) => {
            assert_eq!(bytes[..Header::LEN], message[..Header::LEN]);
            has_no_channel(&bytes);
        }
        ToServer::Write { head, from, len } => {
            assert_eq!(head[..Header::LEN], message[..Header::LEN]);
            assert!(len <= MAX && len <= reach(&from).expect("memory"));
            let whole = [&head[..], &vec![0; len as usize]].concat();
            let write = WriteRequest::read(&whole).expect("a WRITE");
            assert_eq!(write.data(&whole).map(<[u8]>::len), Ok(len as usize));
            has_no_channel(&whole);
        }
    }
    Ok(())
}

/// A server over TCP never hears of memory.
fn has_no_channel(message: &[u8]) {
    for part in Compound::new(message) {
        let Ok((header, part)) = part else {
            return;
        };
        let channel = match header.command() {
            Ok(Command::Read) => ReadRequest::read(part).expect("a READ").channel,
            Ok(Command::Write) => WriteRequest::read(part).expect("a WRITE").channel,
            _ => continue,
        };
        assert_eq!(channel.get(), channel::NONE);
    }
}

fn server(gateway: &mut Gateway, message: &[u8]) -> Result<(), Error> {
    let before = gateway.pending();
    let head = match is_compound(message) {
        true => message,
        false => &message[..message.len().min(HEAD_MAX)],
    };
    let result = gateway.from_server(head, message.len());
    assert!(gateway.pending() <= before);
    let ToClient::Place {
        at,
        len,
        to,
        answer,
        ..
    } = result?
    else {
        return Ok(());
    };
    let end = at + len as usize;
    assert!(len == 0 || end <= message.len());
    assert!(len <= MAX && len <= reach(&to).expect("memory"));
    let told = ReadResponse::read(&answer).expect("a READ response");
    assert_eq!(told.data(&answer), Ok(&[][..]));
    assert_eq!(told.data_remaining.get(), len);
    Ok(())
}
