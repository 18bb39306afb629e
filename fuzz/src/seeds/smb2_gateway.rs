//! Seeds of `smb2_gateway`.

use linkspan_smb2::create::CloseRequest;
use linkspan_smb2::header::{COMPRESSION_ID, Command, Header, TRANSFORM_ID, compound, flags};
use linkspan_smb2::io::{
    Descriptor, ReadRequest, ReadResponse, WriteRequest, WriteResponse, channel,
};
use linkspan_smb2::ioctl::{Interface, IoctlRequest, IoctlResponse, code};
use linkspan_smb2::negotiate::{Contexts, NegotiateResponse, Response, dialect};
use linkspan_smb2::session::SetupResponse;
use linkspan_smb2::status;
use zerocopy::IntoBytes as _;

use super::{Expected, Seed};

/// From the client.
const UP: u8 = 0;

/// From the server.
const DOWN: u8 = 1;

type Message = (u8, Vec<u8>);

fn asked(command: Command, id: u64, body: &[u8]) -> Message {
    let mut header = Header::request(command);
    header.message_id = id.into();
    (UP, [header.as_bytes(), body].concat())
}

fn told(command: Command, id: u64, status: u32, body: &[u8]) -> Message {
    let mut header = Header::request(command);
    header.message_id = id.into();
    header.flags = flags::RESPONSE.into();
    header.status = status.into();
    (DOWN, [header.as_bytes(), body].concat())
}

fn with_flags((from, mut bytes): Message, flags: u32) -> Message {
    bytes[16..20].copy_from_slice(&flags.to_le_bytes());
    (from, bytes)
}

fn chosen(dialect: u16) -> Message {
    let response = NegotiateResponse {
        fixed: Response {
            dialect: dialect.into(),
            ..Response::new()
        },
        token: b"",
        contexts: Contexts::default(),
    };
    told(Command::Negotiate, 0, status::SUCCESS, &response.body())
}

/// The server takes a user.
fn session() -> Message {
    told(
        Command::SessionSetup,
        1,
        status::SUCCESS,
        SetupResponse::new().as_bytes(),
    )
}

fn memory() -> [Descriptor; 2] {
    [7, 8].map(|token: u32| Descriptor {
        offset: 4096.into(),
        token: token.into(),
        length: 60.into(),
    })
}

fn read(id: u64, len: u32, kind: u32) -> Message {
    let request = ReadRequest {
        length: len.into(),
        channel: kind.into(),
        ..ReadRequest::new()
    };
    asked(Command::Read, id, &request.body(&memory()))
}

fn write(id: u64, len: u32, kind: u32) -> Message {
    let request = WriteRequest {
        remaining: len.into(),
        channel: kind.into(),
        ..WriteRequest::new()
    };
    asked(Command::Write, id, &request.body_with_memory(&memory()))
}

fn data(id: u64, len: usize) -> Message {
    told(
        Command::Read,
        id,
        0,
        &ReadResponse::new().body(&vec![3; len]),
    )
}

fn written(id: u64, count: u32) -> Message {
    let response = WriteResponse {
        count: count.into(),
        ..WriteResponse::new()
    };
    told(Command::Write, id, 0, response.as_bytes())
}

fn both(first: &Message, second: &Message) -> Message {
    (first.0, compound(&[first.1.clone(), second.1.clone()]))
}

fn interfaces_asked(id: u64) -> Message {
    let request = IoctlRequest {
        code: code::QUERY_NETWORK_INTERFACE_INFO.into(),
        max_output: 65_536.into(),
        ..IoctlRequest::new()
    };
    asked(Command::Ioctl, id, &request.body(&[]))
}

fn interfaces(id: u64) -> Message {
    let response = IoctlResponse {
        code: code::QUERY_NETWORK_INTERFACE_INFO.into(),
        ..IoctlResponse::new()
    };
    let mut output = Interface::at([10, 0, 0, 9].into()).as_bytes().to_vec();
    // SockAddr_Storage is 128 bytes.
    output.resize(152, 0);
    told(Command::Ioctl, id, status::SUCCESS, &response.body(&output))
}

type Row = (&'static str, Vec<Message>, usize, Option<&'static str>);

fn rows() -> Vec<Row> {
    let newest = || chosen(dialect::SMB_3_1_1);
    let v1 = channel::RDMA_V1;
    let invalidate = channel::RDMA_V1_INVALIDATE;
    let close = asked(Command::Close, 9, CloseRequest::new().as_bytes());
    let error = [9, 0, 0, 0, 0, 0, 0, 0, 0];
    let interim = with_flags(
        told(Command::Read, 5, status::PENDING, &error),
        flags::RESPONSE | flags::ASYNC,
    );
    let opaque = |id: u32| (UP, [&id.to_le_bytes()[..], &[1; 60]].concat());
    let signed = with_flags(write(6, 100, v1), flags::SIGNED);
    vec![
        (
            "read",
            vec![newest(), read(5, 120, invalidate), data(5, 100)],
            3,
            None,
        ),
        (
            "write",
            vec![newest(), write(6, 120, v1), written(6, 120)],
            3,
            None,
        ),
        (
            "read_takes_time",
            vec![newest(), read(5, 9, invalidate), interim, data(5, 9)],
            4,
            None,
        ),
        (
            "read_refused",
            vec![
                newest(),
                read(5, 9, v1),
                told(Command::Read, 5, status::END_OF_FILE, &error),
            ],
            3,
            None,
        ),
        (
            "in_the_message",
            vec![newest(), read(5, 9, channel::NONE), data(5, 100)],
            3,
            None,
        ),
        (
            "opaque",
            vec![opaque(TRANSFORM_ID), opaque(COMPRESSION_ID)],
            2,
            None,
        ),
        ("compound", vec![newest(), both(&close, &close)], 2, None),
        (
            "compound_with_a_channel",
            vec![newest(), both(&close, &read(5, 9, v1))],
            1,
            Some("is in a compound"),
        ),
        (
            "answered_in_a_compound",
            vec![newest(), read(5, 9, v1), both(&data(4, 1), &data(5, 1))],
            2,
            Some("not awaited"),
        ),
        ("signed", vec![newest(), signed], 1, Some("no key")),
        (
            "no_dialect",
            vec![read(5, 9, v1)],
            0,
            Some("in dialect 0x0000"),
        ),
        (
            "no_session",
            vec![close.clone(), newest(), read(5, 9, v1)],
            2,
            Some("before there is a session"),
        ),
        (
            "no_invalidation_in_3_0",
            vec![chosen(dialect::SMB_3_0), write(5, 9, invalidate)],
            1,
            Some("channel 2 in dialect 0x0300"),
        ),
        (
            "beyond_the_memory",
            vec![newest(), read(5, 121, v1)],
            1,
            Some("more than 120"),
        ),
        (
            "unknown_channel",
            vec![newest(), write(5, 9, 3)],
            1,
            Some("Channel is 0x3"),
        ),
        (
            "twice",
            vec![newest(), read(5, 9, v1), write(5, 9, v1)],
            2,
            Some("for the second time"),
        ),
        (
            "more_than_asked",
            vec![newest(), read(5, 9, v1), data(5, 10)],
            2,
            Some("data of a READ of 10 bytes"),
        ),
        (
            "more_written_than_asked",
            vec![newest(), write(5, 9, v1), written(5, 10)],
            2,
            Some("what was written of 10 bytes"),
        ),
        (
            "interfaces",
            vec![newest(), interfaces_asked(5), interfaces(5)],
            3,
            None,
        ),
        (
            "another_command",
            vec![newest(), write(5, 9, v1), data(5, 9)],
            2,
            Some("its response Read"),
        ),
        (
            "no_smb",
            vec![(UP, b"\xFFSMB and more".repeat(8))],
            0,
            Some("is no SMB2"),
        ),
    ]
}

pub(super) fn seeds() -> Vec<Seed> {
    let seed = |(name, mut messages, mut done, error): Row| {
        // Whoever begins with a dialect has a session, too.
        if messages[0].0 == DOWN {
            messages.insert(1, session());
            done += 1;
        }
        let mut bytes = Vec::new();
        for (from, message) in messages {
            let len = u16::try_from(message.len()).expect("a short message");
            bytes.push(from);
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&message);
        }
        Seed {
            target: "smb2_gateway",
            name: name.to_owned(),
            bytes,
            expected: Expected::Smb2 { done, error },
        }
    };
    rows().into_iter().map(seed).collect()
}
