//! Seeds of `smb2`.

use linkspan_smb2::create::{CreateRequest, CreateResponse, LeaseV2, context};
use linkspan_smb2::header::{Command, Header, compound, flags};
use linkspan_smb2::info::{
    Entry, EntryHeader, QueryDirectoryRequest, QueryDirectoryResponse, SetInfoRequest, rename,
};
use linkspan_smb2::io::{
    Descriptor, LockElement, LockRequest, ReadRequest, ReadResponse, WriteRequest, channel,
};
use linkspan_smb2::ioctl::{IoctlRequest, IoctlResponse, Range};
use linkspan_smb2::negotiate::{
    Contexts, NegotiateRequest, NegotiateResponse, Request, Response, SHA_512, dialect,
};
use linkspan_smb2::session::{
    SetupRequest, SetupResponse, TreeConnectRequest, TreeConnectResponse,
};
use linkspan_smb2::{ntlm, spnego, status};
use zerocopy::IntoBytes as _;

use super::{Expected, Seed};

fn message(command: Command, body: &[u8]) -> Vec<u8> {
    [Header::request(command).as_bytes(), body].concat()
}

/// A response to the request of this number.
fn reply(command: Command, id: u64, status: u32, body: &[u8]) -> Vec<u8> {
    let mut header = Header::request(command);
    header.flags = flags::RESPONSE.into();
    header.status = status.into();
    header.message_id = id.into();
    header.credits = 1.into();
    header.session_id = 1.into();
    [header.as_bytes(), body].concat()
}

/// Messages, each after its length.
fn lengths(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        let len = u16::try_from(message.len()).expect("a short message");
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(message);
    }
    out
}

fn contexts() -> Contexts {
    Contexts {
        hashes: vec![SHA_512],
        salt: vec![7; 32],
        ciphers: vec![2],
        signings: vec![1],
    }
}

fn negotiate() -> Vec<u8> {
    let request = NegotiateRequest {
        fixed: Request::new(),
        dialects: dialect::ALL.to_vec(),
        contexts: contexts(),
    };
    message(Command::Negotiate, &request.body())
}

fn negotiated() -> Vec<u8> {
    let size = 1 << 20;
    let response = NegotiateResponse {
        fixed: Response {
            dialect: dialect::SMB_3_1_1.into(),
            max_transact_size: size.into(),
            max_read_size: size.into(),
            max_write_size: size.into(),
            ..Response::new()
        },
        token: &spnego::init(b""),
        contexts: contexts(),
    };
    reply(Command::Negotiate, 0, status::SUCCESS, &response.body())
}

fn memory(lengths: &[u32]) -> Vec<Descriptor> {
    let descriptor = |length: &u32| Descriptor {
        offset: 4096.into(),
        token: 7.into(),
        length: (*length).into(),
    };
    lengths.iter().map(descriptor).collect()
}

fn read_by_rdma(kind: u32, lengths: &[u32]) -> Vec<u8> {
    let request = ReadRequest {
        length: 4096.into(),
        channel: kind.into(),
        ..ReadRequest::new()
    };
    message(Command::Read, &request.body(&memory(lengths)))
}

fn listing(name: &str) -> Vec<u8> {
    let entry = |name: &str| Entry {
        fixed: EntryHeader::default(),
        name: name.into(),
    };
    let output = linkspan_smb2::info::write_entries(&[entry("."), entry(name)]);
    let body = QueryDirectoryResponse::new().body(&output);
    reply(Command::QueryDirectory, 0, status::SUCCESS, &body)
}

fn created() -> Vec<u8> {
    let lease = LeaseV2::default();
    let contexts = [
        (&context::LEASE[..], lease.as_bytes()),
        (&context::MAXIMAL_ACCESS[..], &[0; 8]),
    ];
    message(
        Command::Create,
        &CreateRequest::new().body("a\\b", &contexts),
    )
}

fn write_by_rdma() -> Vec<u8> {
    let request = WriteRequest {
        channel: channel::RDMA_V1_INVALIDATE.into(),
        remaining: 8192.into(),
        ..WriteRequest::new()
    };
    message(
        Command::Write,
        &request.body_with_memory(&memory(&[4096, 4096])),
    )
}

fn requests() -> Vec<(&'static str, Vec<u8>, usize, Option<&'static str>)> {
    let write = [WriteRequest::new().head(4), b"data".to_vec()].concat();
    let mut outside = message(Command::Write, &write);
    outside.pop();
    let lock = LockRequest::new().body(&[LockElement::default(); 2]);
    let token = SetupRequest::new()
        .body(&spnego::init(b""))
        .expect("a short token");
    let pair = compound(&[created(), message(Command::Echo, &[4, 0, 0, 0])]);
    vec![
        ("negotiate", negotiate(), 1, None),
        ("create_with_contexts", created(), 1, None),
        ("compound", pair, 2, None),
        ("write", message(Command::Write, &write), 1, None),
        ("write_outside", outside, 0, Some("data of a WRITE")),
        ("write_by_rdma", write_by_rdma(), 1, None),
        (
            "read_by_rdma",
            read_by_rdma(channel::RDMA_V1, &[4096]),
            1,
            None,
        ),
        (
            "read_of_nothing",
            read_by_rdma(channel::RDMA_V1, &[0]),
            0,
            Some("descriptor"),
        ),
        (
            "read_by_another_channel",
            read_by_rdma(9, &[4096]),
            0,
            Some("Channel is 0x9"),
        ),
        ("lock", message(Command::Lock, &lock), 1, None),
        (
            "tree",
            message(
                Command::TreeConnect,
                &TreeConnectRequest::new().body("\\\\a\\b"),
            ),
            1,
            None,
        ),
        (
            "setup_of_another_kind",
            message(Command::SessionSetup, &token),
            0,
            Some("kind"),
        ),
        (
            "ioctl",
            message(Command::Ioctl, &IoctlRequest::new().body(b"in")),
            1,
            None,
        ),
        (
            "rename",
            message(
                Command::SetInfo,
                &SetInfoRequest::new().body(&rename("new", true)),
            ),
            1,
            None,
        ),
        (
            "query",
            message(
                Command::QueryDirectory,
                &QueryDirectoryRequest::new().body("*"),
            ),
            1,
            None,
        ),
    ]
}

fn responses() -> Vec<(&'static str, Vec<u8>, usize, Option<&'static str>)> {
    let ranges = IoctlResponse::new().body([Range::default(); 2].as_bytes());
    let read = reply(Command::Read, 0, 0, &ReadResponse::new().body(b"data"));
    vec![
        ("negotiated", negotiated(), 1, None),
        ("listing", listing("file"), 1, None),
        (
            "listing_that_climbs",
            listing("../../etc"),
            0,
            Some("character in the name"),
        ),
        (
            "created",
            reply(Command::Create, 0, 0, &CreateResponse::new().body(&[])),
            1,
            None,
        ),
        ("ranges", reply(Command::Ioctl, 0, 0, &ranges), 1, None),
        ("read", read, 1, None),
    ]
}

/// A name, which client, what it gets, what is done of it, and why not all.
type ClientRow = (&'static str, u8, Vec<u8>, usize, Option<&'static str>);

fn clients() -> Vec<ClientRow> {
    let setup = SetupResponse::new().body(b"").expect("a short token");
    let read = |len: usize| {
        reply(
            Command::Read,
            2,
            0,
            &ReadResponse::new().body(&vec![1; len]),
        )
    };
    let tree = reply(
        Command::TreeConnect,
        5,
        0,
        TreeConnectResponse::new().as_bytes(),
    );
    let setup = reply(Command::SessionSetup, 1, 0, &setup);
    vec![
        ("client_negotiates", 4, lengths(&[negotiated()]), 1, None),
        (
            "client_hears_it_twice",
            4,
            lengths(&[negotiated(), negotiated()]),
            1,
            Some("not awaited"),
        ),
        (
            "client_needs_a_signature",
            5,
            lengths(&[setup]),
            0,
            Some("not signed"),
        ),
        ("client_reads", 6, lengths(&[read(100), tree]), 2, None),
        (
            "client_reads_too_much",
            6,
            lengths(&[read(101)]),
            0,
            Some("more than 100"),
        ),
        (
            "client_is_signed",
            7,
            lengths(&[read(100)]),
            0,
            Some("not signed"),
        ),
    ]
}

pub(super) fn seeds() -> Vec<Seed> {
    let seed = |name: &str, kind: u8, bytes: &[u8], done, error| Seed {
        target: "smb2",
        name: name.to_owned(),
        bytes: [&[kind], bytes].concat(),
        expected: Expected::Smb2 { done, error },
    };
    let mut seeds = Vec::new();
    for (name, bytes, done, error) in requests() {
        seeds.push(seed(name, 0, &bytes, done, error));
    }
    for (name, bytes, done, error) in responses() {
        seeds.push(seed(name, 1, &bytes, done, error));
    }
    for (name, kind, bytes, done, error) in clients() {
        seeds.push(seed(name, kind, &bytes, done, error));
    }
    seeds.push(seed(
        "token",
        2,
        &spnego::init(&ntlm::negotiate()),
        1,
        Some("another kind"),
    ));
    let framed = [&[2, 0, 0, 0, 3], &b"abc"[..], &[0, 0, 0, 1], b"d"].concat();
    seeds.push(seed("stream", 3, &framed, 2, None));
    seeds.push(seed(
        "stream_too_long",
        3,
        &[0, 0, 1, 0, 0],
        0,
        Some("more than 1000"),
    ));
    seeds
}
