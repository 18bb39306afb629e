//! A gateway: what it changes, what it passes on, and what ends a connection.

use linkspan_smb2::create::{CloseRequest, FileId};
use linkspan_smb2::gateway::{
    ANSWER_LEN, Error, Gateway, HEAD_MAX, READ_LEN, Side, ToClient, ToServer, WRITE_HEAD_LEN,
    is_compound,
};
use linkspan_smb2::header::{COMPRESSION_ID, TRANSFORM_ID, compound, flags};
use linkspan_smb2::io::{
    Descriptor, ReadRequest, ReadResponse, WriteRequest, WriteResponse, channel,
};
use linkspan_smb2::negotiate::{Contexts, NegotiateResponse, Response, dialect};
use linkspan_smb2::session::{Empty, SetupResponse};
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{Command, Header, status};
use proptest::prelude::*;
use zerocopy::IntoBytes as _;

const MAX: u32 = 1 << 20;
const FILE: FileId = FileId {
    persistent: zerocopy::little_endian::U64::new(3),
    volatile: zerocopy::little_endian::U64::new(4),
};

fn message(command: Command, id: u64, body: &[u8]) -> Vec<u8> {
    let mut header = Header::request(command);
    header.message_id = id.into();
    header.session_id = 9.into();
    header.credit_charge = 1.into();
    [header.as_bytes(), body].concat()
}

fn answer(command: Command, id: u64, status: u32, body: &[u8]) -> Vec<u8> {
    let mut message = message(command, id, body);
    change(&mut message, |header| {
        header.flags = flags::RESPONSE.into();
        header.status = status.into();
        header.credits = 7.into();
    });
    message
}

fn change(message: &mut [u8], how: impl FnOnce(&mut Header)) {
    let mut header = Header::parse_any(message).unwrap();
    how(&mut header);
    message[..Header::LEN].copy_from_slice(header.as_bytes());
}

fn memory(lengths: &[u32]) -> Vec<Descriptor> {
    let descriptor = |(index, length): (usize, &u32)| Descriptor {
        offset: (4096 * index as u64).into(),
        token: (70 + u32::try_from(index).unwrap()).into(),
        length: (*length).into(),
    };
    lengths.iter().enumerate().map(descriptor).collect()
}

fn read(id: u64, len: u32, channel: u32, memory: &[Descriptor]) -> Vec<u8> {
    let request = ReadRequest {
        length: len.into(),
        offset: 512.into(),
        file: FILE,
        flags: 3,
        channel: channel.into(),
        ..ReadRequest::new()
    };
    message(Command::Read, id, &request.body(memory))
}

fn write(id: u64, len: u32, channel: u32, memory: &[Descriptor]) -> Vec<u8> {
    let request = WriteRequest {
        offset: 512.into(),
        file: FILE,
        channel: channel.into(),
        remaining: len.into(),
        flags: 1.into(),
        ..WriteRequest::new()
    };
    message(Command::Write, id, &request.body_with_memory(memory))
}

fn data(id: u64, data: &[u8]) -> Vec<u8> {
    answer(Command::Read, id, 0, &ReadResponse::new().body(data))
}

/// A server that has chosen a dialect and taken a user.
fn negotiated(chosen: u16) -> Gateway {
    let mut gateway = Gateway::new(MAX);
    choose(&mut gateway, chosen);
    log_on(&mut gateway, status::SUCCESS);
    gateway
}

fn log_on(gateway: &mut Gateway, status: u32) {
    let body = SetupResponse::new().body(b"token").unwrap();
    let setup = answer(Command::SessionSetup, 1, status, &body);
    assert_eq!(from_server(gateway, &setup), PASS);
}

fn choose(gateway: &mut Gateway, chosen: u16) {
    let response = NegotiateResponse {
        fixed: Response {
            dialect: chosen.into(),
            ..Response::new()
        },
        token: b"token",
        contexts: Contexts::default(),
    };
    let message = answer(Command::Negotiate, 0, 0, &response.body());
    assert_eq!(gateway.from_server(&message, message.len()), PASS);
}

const PASS: Result<ToClient, Error> = Ok(ToClient::Pass { invalidate: None });

fn from_server(gateway: &mut Gateway, message: &[u8]) -> Result<ToClient, Error> {
    let head = match is_compound(message) {
        true => message,
        false => &message[..message.len().min(HEAD_MAX)],
    };
    gateway.from_server(head, message.len())
}

#[test]
fn a_read_goes_without_its_channel_and_its_data_to_the_memory() {
    let mut gateway = negotiated(dialect::SMB_3_1_1);
    let target = memory(&[600, 424]);
    let asked = read(5, 1000, channel::RDMA_V1_INVALIDATE, &target);
    let Ok(ToServer::Read(bytes)) = gateway.from_client(&asked) else {
        panic!("a READ");
    };
    assert_eq!(bytes.len(), READ_LEN);
    // The header is that of the client: number, credits and session are the server's business.
    assert_eq!(bytes[..Header::LEN], asked[..Header::LEN]);
    let plain = ReadRequest::read(&bytes).unwrap();
    assert_eq!((plain.length.get(), plain.offset.get()), (1000, 512));
    assert_eq!((plain.file, plain.channel.get()), (FILE, channel::NONE));
    assert_eq!(plain.descriptors(&bytes), Ok(vec![]));
    // Data may not come compressed, since then nobody here could see it.
    assert_eq!(plain.flags, 1);

    let came = data(5, &[8; 900]);
    let Ok(ToClient::Place {
        at,
        len,
        to,
        answer,
        invalidate,
    }) = from_server(&mut gateway, &came)
    else {
        panic!("data");
    };
    assert_eq!((at, len, invalidate), (80, 900, Some(70)));
    assert_eq!(to, target);
    assert_eq!(answer.len(), ANSWER_LEN);
    assert_eq!(answer[..Header::LEN], came[..Header::LEN]);
    let told = ReadResponse::read(&answer).unwrap();
    assert_eq!(
        (told.data_length.get(), told.data_remaining.get()),
        (0, 900)
    );
    assert_eq!(gateway.pending(), 0);
}

#[test]
fn a_write_gets_its_data_from_the_memory() {
    let mut gateway = negotiated(dialect::SMB_3_0);
    let source = memory(&[4096, 4096]);
    let asked = write(6, 5000, channel::RDMA_V1, &source);
    let Ok(ToServer::Write { head, from, len }) = gateway.from_client(&asked) else {
        panic!("a WRITE");
    };
    assert_eq!((from, len), (source, 5000));
    assert_eq!(head.len(), WRITE_HEAD_LEN);
    let whole = [&head[..], &[1; 5000]].concat();
    let plain = WriteRequest::read(&whole).unwrap();
    assert_eq!(plain.data(&whole).unwrap(), [1; 5000]);
    assert_eq!((plain.remaining.get(), plain.channel.get()), (0, 0));
    assert_eq!((plain.flags.get(), plain.offset.get()), (1, 512));

    let written = WriteResponse {
        count: 5000.into(),
        ..WriteResponse::new()
    };
    let came = answer(Command::Write, 6, 0, written.as_bytes());
    assert_eq!(from_server(&mut gateway, &came), PASS);
    assert_eq!(gateway.pending(), 0);
}

/// Faults 29 (m:1422bba9b, m:53d7f0700): what has to be protected does not go by RDMA.
#[test]
fn cifs_rdma_offload_of_what_is_signed_ends_by_its_name() {
    for mut asked in [
        read(5, 10, channel::RDMA_V1, &memory(&[10])),
        write(5, 10, channel::RDMA_V1, &memory(&[10])),
    ] {
        change(&mut asked, |header| header.flags = flags::SIGNED.into());
        let error = negotiated(dialect::SMB_3_1_1)
            .from_client(&asked)
            .unwrap_err();
        assert!(matches!(error, Error::Signed { message: 5, .. }));
        assert!(error.to_string().contains("no key"), "{error}");
        assert_eq!(error.side(), Side::Client);
    }
    // Without channels it is passed on, signature and all.
    let mut gateway = negotiated(dialect::SMB_3_1_1);
    let mut asked = read(5, 10, channel::NONE, &[]);
    change(&mut asked, |header| header.flags = flags::SIGNED.into());
    assert_eq!(gateway.from_client(&asked), Ok(ToServer::Pass));
    assert_eq!(from_server(&mut gateway, &data(5, &[1; 10])), PASS);
}

#[test]
fn what_cannot_be_seen_and_what_is_not_known_goes_on() {
    let mut gateway = negotiated(dialect::SMB_3_1_1);
    for id in [TRANSFORM_ID, COMPRESSION_ID] {
        let bytes = [&id.to_le_bytes()[..], &[0xFF; 100]].concat();
        assert_eq!(gateway.from_client(&bytes), Ok(ToServer::Pass));
        assert_eq!(from_server(&mut gateway, &bytes), PASS);
    }
    // SMB2 SERVER_TO_CLIENT_NOTIFICATION of newer servers, and whatever comes after it.
    for command in [0x13, 0xFFFF] {
        let mut bytes = message(Command::Echo, u64::MAX, Empty::new().as_bytes());
        change(&mut bytes, |header| header.command = command.into());
        assert_eq!(gateway.from_client(&bytes), Ok(ToServer::Pass));
        assert_eq!(from_server(&mut gateway, &bytes), PASS);
    }
}

#[test]
fn a_compound_goes_on_but_with_a_channel() {
    let mut gateway = negotiated(dialect::SMB_3_1_1);
    let close = message(Command::Close, 8, CloseRequest::new().as_bytes());
    let plain = read(7, 10, channel::NONE, &[]);
    let both = compound(&[plain, close.clone()]);
    assert_eq!(gateway.from_client(&both), Ok(ToServer::Pass));
    let channels = read(7, 10, channel::RDMA_V1, &memory(&[10]));
    for both in [
        compound(&[channels.clone(), close.clone()]),
        compound(&[close.clone(), channels.clone()]),
    ] {
        let error = gateway.from_client(&both).unwrap_err();
        assert!(
            matches!(error, Error::Compound { message: 7, .. }),
            "{error}"
        );
    }
    // What was asked for alone is not answered in one.
    gateway.from_client(&channels).unwrap();
    let closed = answer(Command::Close, 8, 0, &[60; 60]);
    let both = compound(&[closed.clone(), data(7, &[1; 10])]);
    assert_eq!(
        from_server(&mut gateway, &both).unwrap_err().side(),
        Side::Server
    );
    let other = compound(&[closed.clone(), closed]);
    assert_eq!(from_server(&mut gateway, &other), PASS);
}

#[test]
fn a_registration_ends_with_the_last_answer_whatever_it_says() {
    let mut gateway = negotiated(dialect::SMB_3_0_2);
    let target = memory(&[10, 20]);
    let asked = read(5, 30, channel::RDMA_V1_INVALIDATE, &target);
    gateway.from_client(&asked).unwrap();
    let error = [9, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut interim = answer(Command::Read, 5, status::PENDING, &error);
    change(&mut interim, |header| {
        header.flags = (flags::RESPONSE | flags::ASYNC).into();
    });
    assert_eq!(from_server(&mut gateway, &interim), PASS);
    let refused = answer(Command::Read, 5, status::END_OF_FILE, &error);
    let last = Ok(ToClient::Pass {
        invalidate: Some(70),
    });
    assert_eq!(from_server(&mut gateway, &refused), last);
    // The number is free again.
    gateway.from_client(&asked).unwrap();
}

#[test]
fn channels_need_a_dialect_that_has_them() {
    let asked = |kind| write(5, 10, kind, &memory(&[10]));
    let rows = [
        (dialect::SMB_2_1, channel::RDMA_V1, false),
        (dialect::SMB_3_0, channel::RDMA_V1, true),
        (dialect::SMB_3_0, channel::RDMA_V1_INVALIDATE, false),
        (dialect::SMB_3_0_2, channel::RDMA_V1_INVALIDATE, true),
        // Several dialects of SMB 2 for a client of SMB 1, which then negotiates again.
        (0x02FF, channel::RDMA_V1, false),
        // A transform, which nobody here knows.
        (dialect::SMB_3_1_1, 3, false),
    ];
    for (chosen, kind, can) in rows {
        let result = negotiated(chosen).from_client(&asked(kind));
        assert_eq!(result.is_ok(), can, "{chosen:#x} {kind}");
    }
    let error = Gateway::new(MAX).from_client(&asked(1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "channel 1 in dialect 0x0000, which does not have it"
    );
}

/// Ours: whoever came had the gateway fetch data, and keep memory for it.
#[test]
fn channels_need_a_session() {
    let mut gateway = Gateway::new(MAX);
    choose(&mut gateway, dialect::SMB_3_1_1);
    log_on(&mut gateway, status::MORE_PROCESSING_REQUIRED);
    for asked in [read, write].map(|it| it(5, 10, channel::RDMA_V1, &memory(&[10]))) {
        let error = gateway.from_client(&asked).unwrap_err();
        assert!(
            matches!(error, Error::NoSession { message: 5, .. }),
            "{error}"
        );
        assert_eq!(error.side(), Side::Client);
    }
    log_on(&mut gateway, status::LOGON_FAILURE);
    let asked = write(5, 10, channel::RDMA_V1, &memory(&[10]));
    assert!(gateway.from_client(&asked).is_err());
    log_on(&mut gateway, status::SUCCESS);
    gateway.from_client(&asked).unwrap();
}

#[test]
fn ksmbd_lengths_of_a_client_fit_its_memory_and_the_gateway() {
    let v1 = channel::RDMA_V1;
    let big = memory(&[MAX, 1]);
    let mut gateway = negotiated(dialect::SMB_3_1_1);
    for (asked, why) in [
        (read(5, 11, v1, &memory(&[10])), "READ"),
        (
            write(5, 11, v1, &memory(&[10])),
            "Write 5 of 11 bytes, more than 10",
        ),
        (write(5, MAX + 1, v1, &big), "more than 1048576"),
        (
            write(5, 0, v1, &big),
            "RemainingBytes of a WRITE with a channel is 0x0",
        ),
        (
            write(5, 10, v1, &memory(&[10, 0])),
            "Length of a memory descriptor is 0x0",
        ),
        (write(5, 10, v1, &[]), "channel information"),
    ] {
        let error = gateway.from_client(&asked).unwrap_err().to_string();
        assert!(
            error.to_lowercase().contains(&why.to_lowercase()),
            "{error}"
        );
    }
    // In the message and in memory at once.
    let request = WriteRequest {
        length: 4.into(),
        channel: v1.into(),
        remaining: 4.into(),
        ..WriteRequest::new()
    };
    let both = message(Command::Write, 5, &request.body_with_memory(&big));
    assert!(gateway.from_client(&both).is_err());
    assert_eq!(gateway.pending(), 0);
    gateway.from_client(&write(5, MAX, v1, &big)).unwrap();
}

#[test]
fn a_number_is_used_once_and_numbers_end() {
    let mut gateway = negotiated(dialect::SMB_3_1_1);
    let asked = |id| read(id, 10, channel::RDMA_V1, &memory(&[10]));
    for id in 1..=8192 {
        gateway.from_client(&asked(id)).unwrap();
    }
    assert_eq!(
        gateway.from_client(&asked(9)),
        Err(Error::Twice { message: 9 })
    );
    assert_eq!(gateway.from_client(&asked(0)), Err(Error::TooMany));
}

/// Ours: 64 MiB of them stayed for each connection.
#[test]
fn memory_descriptors_that_are_kept_end_too() {
    let mut gateway = negotiated(dialect::SMB_3_1_1);
    let most = memory(&[1; 512]);
    let asked = |id| read(id, 512, channel::RDMA_V1, &most);
    for id in 1..=128 {
        gateway.from_client(&asked(id)).unwrap();
    }
    let refused = Err(Error::TooManyDescriptors);
    assert_eq!(gateway.from_client(&asked(129)), refused);
    // A WRITE keeps none, and what is answered neither.
    gateway
        .from_client(&write(130, 512, channel::RDMA_V1, &most))
        .unwrap();
    assert_eq!(gateway.pending(), 129);
    from_server(&mut gateway, &data(1, &[1; 512])).unwrap();
    gateway.from_client(&asked(129)).unwrap();
    assert_eq!(gateway.from_client(&asked(131)), refused);
}

#[test]
fn a_server_gives_no_more_than_was_asked_for_and_says_where_it_is() {
    let begun = || {
        let mut gateway = negotiated(dialect::SMB_3_1_1);
        gateway
            .from_client(&read(5, 10, channel::RDMA_V1, &memory(&[100])))
            .unwrap();
        gateway
            .from_client(&write(6, 10, channel::RDMA_V1, &memory(&[100])))
            .unwrap();
        gateway
    };
    let refused = |message: &[u8], why: &str| {
        let error = from_server(&mut begun(), message).unwrap_err();
        assert_eq!(error.side(), Side::Server);
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(
        &data(5, &[1; 11]),
        "data of a READ of 11 bytes, more than 10",
    );
    let written = WriteResponse {
        count: 11.into(),
        ..WriteResponse::new()
    };
    refused(
        &answer(Command::Write, 6, 0, written.as_bytes()),
        "what was written of 11 bytes",
    );
    refused(
        &answer(Command::Read, 6, 0, &ReadResponse::new().body(&[1])),
        "its response Read",
    );
    for (offset, len) in [(0, 10), (79, 10), (81, 10), (255, 1)] {
        let mut message = data(5, &[1; 10]);
        message[Header::LEN + 2] = offset;
        message[Header::LEN + 4] = len;
        refused(&message, "data of a READ at");
    }
    let mut signed = data(5, &[1; 10]);
    change(&mut signed, |header| {
        header.flags = (flags::RESPONSE | flags::SIGNED).into()
    });
    refused(&signed, "signed its answer to READ 5");
    // Nothing, or less, is fine; and a pipe may have more.
    for message in [
        data(5, &[]),
        answer(
            Command::Read,
            5,
            status::BUFFER_OVERFLOW,
            &ReadResponse::new().body(&[1; 4]),
        ),
    ] {
        let placed = from_server(&mut begun(), &message);
        assert!(matches!(placed, Ok(ToClient::Place { .. })), "{placed:?}");
    }
}

#[test]
fn malformed_headers_through_a_gateway_have_names() {
    let mut gateway = negotiated(dialect::SMB_3_1_1);
    let asked = write(5, 10, channel::RDMA_V1, &memory(&[10]));
    for len in 0..asked.len() {
        assert!(gateway.from_client(&asked[..len]).is_err(), "{len}");
    }
    let came = data(5, &[]);
    gateway
        .from_client(&read(5, 10, channel::RDMA_V1, &memory(&[10])))
        .unwrap();
    for len in 0..came.len() - 1 {
        assert!(
            gateway.clone().from_server(&came[..len], len).is_err(),
            "{len}"
        );
    }
    let mut old = asked.clone();
    old[0] = 0xFF;
    let error = gateway.from_client(&old).unwrap_err().to_string();
    assert!(
        error.starts_with("the client's message: the message begins with"),
        "{error}"
    );
    // A compound that goes nowhere, and one without end.
    for next in [8_u32, 65, 4096] {
        let mut message = asked.clone();
        message[20..24].copy_from_slice(&next.to_le_bytes());
        assert!(gateway.from_client(&message).is_err(), "{next}");
    }
    let echo = message(Command::Echo, 1, Empty::new().as_bytes());
    assert!(
        gateway
            .from_client(&compound(&vec![echo.clone(); 64]))
            .is_ok()
    );
    assert!(gateway.from_client(&compound(&vec![echo; 65])).is_err());
}

proptest! {
    /// What comes back is what a model of a server has, whatever the pieces of memory are.
    #[test]
    fn bytes_are_those_of_a_server_with_rdma(
        lengths in prop::collection::vec(1_u32..2000, 1..6),
        asked in 0_u32..12_000,
        file in prop::collection::vec(any::<u8>(), 0..8000),
    ) {
        let target = memory(&lengths);
        let reach: u32 = lengths.iter().sum();
        let mut gateway = negotiated(dialect::SMB_3_1_1);
        let request = read(5, asked, channel::RDMA_V1, &target);
        match gateway.from_client(&request) {
            Ok(ToServer::Read(bytes)) => {
                prop_assert!(asked <= reach);
                let want = ReadRequest::read(&bytes).unwrap().length.get() as usize;
                let given = &file[..want.min(file.len())];
                let message = data(5, given);
                let placed = from_server(&mut gateway, &message);
                let Ok(ToClient::Place { at, len, to, .. }) = placed else {
                    return Err(TestCaseError::fail(format!("{placed:?}")));
                };
                prop_assert_eq!(&message[at..at + len as usize], given);
                prop_assert_eq!(to, target);
            }
            other => {
                prop_assert!(asked > reach, "{other:?}");
            }
        }
    }
}
