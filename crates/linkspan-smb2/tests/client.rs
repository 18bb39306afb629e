//! A client against a server that says what a test wants.

use linkspan_smb2::client::{Agreed, Client, Event, Options, Phase, Request, RequestId};
use linkspan_smb2::create::{CloseRequest, FileId};
use linkspan_smb2::header::{Compound, flags};
use linkspan_smb2::io::{
    Descriptor, ReadRequest, ReadResponse, WriteRequest, WriteResponse, channel,
};
use linkspan_smb2::ioctl::{IoctlRequest, IoctlResponse, ValidateResponse, code};
use linkspan_smb2::negotiate::{
    Contexts, NegotiateRequest, NegotiateResponse, Response as NegotiateFixed, SHA_512, Signing,
    dialect, security_mode,
};
use linkspan_smb2::security::{Keys, Preauth, Signer};
use linkspan_smb2::session::{Empty, SetupResponse, TreeConnectResponse, session_flags};
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{Command, Error, Header, status};
use zerocopy::IntoBytes as _;

const SESSION: u64 = 0x77;
const KEY: [u8; 16] = [3; 16];

fn options(dialect: u16) -> Options {
    let mut options = Options::new([1; 16], [2; 32]);
    options.dialects = vec![dialect];
    options.guest_allowed = true;
    options
}

/// A response to a request: its header with what a server changes, and a body.
fn answer(request: &Header, status: u32, body: &[u8]) -> Vec<u8> {
    let mut header = *request;
    header.flags = flags::RESPONSE.into();
    header.status = status.into();
    header.credits = request.credits.get().max(1).into();
    header.session_id = SESSION.into();
    header.signature = [0; 16];
    [header.as_bytes(), body].concat()
}

fn sent(client: &mut Client) -> (Header, Vec<u8>) {
    let message = client.poll_out().expect("a message");
    (Header::parse(&message).unwrap(), message.to_vec())
}

fn negotiate_body(dialect: u16, mode: u16) -> NegotiateFixed {
    NegotiateFixed {
        security_mode: mode.into(),
        dialect: dialect.into(),
        max_transact_size: (1 << 20).into(),
        max_read_size: (1 << 20).into(),
        max_write_size: (1 << 20).into(),
        capabilities: 4.into(),
        ..NegotiateFixed::new()
    }
}

/// The server's end: what it knows of a connection.
struct Server {
    preauth: Preauth,
    signer: Option<Signer>,
}

/// A client that negotiated, and its server.
fn negotiated(dialect: u16, mode: u16) -> (Client, Server) {
    negotiated_with(options(dialect), dialect, mode)
}

fn negotiated_with(options: Options, dialect: u16, mode: u16) -> (Client, Server) {
    let mut client = Client::new(options);
    let mut preauth = Preauth::default();
    client.negotiate().unwrap();
    let (header, message) = sent(&mut client);
    assert_eq!(
        NegotiateRequest::parse(&message).unwrap().dialects,
        [dialect]
    );
    preauth.update(&message);
    let response = NegotiateResponse {
        fixed: negotiate_body(dialect, mode),
        token: b"",
        contexts: Contexts {
            hashes: vec![SHA_512],
            salt: vec![5; 32],
            ciphers: vec![2],
            signings: vec![1],
        },
    };
    let response = answer(&header, 0, &response.body());
    preauth.update(&response);
    client.receive(response).unwrap();
    assert_eq!(client.poll_event(), Some(Event::Negotiated(vec![])));
    (
        client,
        Server {
            preauth,
            signer: None,
        },
    )
}

/// A client with a session: with a key, or as a guest.
fn ready(dialect: u16, mode: u16, guest: bool) -> (Client, Server) {
    let (mut client, mut server) = negotiated(dialect, mode);
    client.log_on(b"token", Some(KEY)).unwrap();
    let (header, message) = sent(&mut client);
    server.preauth.update(&message);
    let setup = SetupResponse {
        session_flags: if guest { session_flags::IS_GUEST } else { 0 }.into(),
        ..SetupResponse::new()
    };
    let mut response = answer(&header, 0, &setup.body(b"done").unwrap());
    if !guest {
        let keys = Keys::derive(dialect, KEY, &server.preauth, None);
        let signing = match dialect {
            dialect::SMB_2_1 => Signing::HmacSha256,
            _ => Signing::AesCmac,
        };
        let signer = Signer::new(signing, keys.signing);
        signer.sign(&mut response).unwrap();
        server.signer = Some(signer);
    }
    client.receive(response).unwrap();
    assert!(matches!(client.poll_event(), Some(Event::LoggedOn(_))));
    assert_eq!(client.phase(), Phase::Ready);
    (client, server)
}

fn guest() -> Client {
    ready(dialect::SMB_3_1_1, 1, true).0
}

fn read_request(length: u32) -> Request {
    let request = ReadRequest {
        length: length.into(),
        ..ReadRequest::new()
    };
    Request::new(Command::Read, request.body(&[]), length)
}

/// A READ whose data goes to memory.
fn read_to_memory(length: u32, kind: u32) -> Request {
    let request = ReadRequest {
        length: length.into(),
        channel: kind.into(),
        ..ReadRequest::new()
    };
    let memory = Descriptor {
        offset: 0.into(),
        token: 7.into(),
        length: length.into(),
    };
    Request::new(Command::Read, request.body(&[memory]), length)
}

fn echo() -> Request {
    Request::fixed(&Empty::new())
}

#[test]
fn what_was_chosen_has_to_have_been_offered() {
    let agreed = |change: fn(&mut NegotiateResponse<'_>)| -> Result<Agreed, Error> {
        let mut client = Client::new(options(dialect::SMB_3_1_1));
        client.negotiate()?;
        let (header, _) = sent(&mut client);
        let mut response = NegotiateResponse {
            fixed: negotiate_body(dialect::SMB_3_1_1, 1),
            token: b"",
            contexts: Contexts {
                hashes: vec![SHA_512],
                ..Contexts::default()
            },
        };
        change(&mut response);
        client.receive(answer(&header, 0, &response.body()))?;
        Ok(*client.agreed().unwrap())
    };
    let plain = agreed(|_| {}).unwrap();
    assert_eq!((plain.cipher, plain.signing), (None, Signing::AesCmac));
    let what = |change| agreed(change).unwrap_err().to_string();
    assert!(what(|r| r.fixed.dialect = 0x0202.into()).contains("dialect 0x0202"));
    assert!(what(|r| r.contexts.hashes = vec![2]).contains("hash 0x0002"));
    assert!(what(|r| r.contexts.hashes = vec![]).contains("hash"));
    assert!(what(|r| r.contexts.ciphers = vec![9]).contains("cipher 0x0009"));
    assert!(what(|r| r.contexts.signings = vec![7]).contains("signing algorithm 0x0007"));
    assert!(what(|r| r.fixed.max_read_size = 65_535.into()).contains("MaxReadSize"));
}

#[test]
fn without_large_mtu_a_request_carries_64_kib() {
    let mut client = Client::new(options(dialect::SMB_2_1));
    client.negotiate().unwrap();
    let (header, _) = sent(&mut client);
    let mut fixed = negotiate_body(dialect::SMB_2_1, 1);
    fixed.capabilities = 0.into();
    let response = NegotiateResponse {
        fixed,
        token: b"",
        contexts: Contexts::default(),
    };
    client
        .receive(answer(&header, 0, &response.body()))
        .unwrap();
    assert_eq!(client.agreed().unwrap().max_read, 65_536);
}

#[test]
fn responses_come_in_any_order_and_each_once() {
    let mut client = guest();
    let ids = [
        client.request(echo()).unwrap(),
        client.request(echo()).unwrap(),
    ];
    let (first, second) = (sent(&mut client).0, sent(&mut client).0);
    for header in [second, first] {
        client
            .receive(answer(&header, 0, Empty::new().as_bytes()))
            .unwrap();
    }
    for id in [ids[1], ids[0]] {
        let Some(Event::Response(response)) = client.poll_event() else {
            panic!()
        };
        assert_eq!(response.id, id);
    }
    let again = client.receive(answer(&first, 0, Empty::new().as_bytes()));
    assert_eq!(again, Err(Error::NotAwaited { message: ids[0].0 }));
    assert_eq!(client.phase(), Phase::Ended);
    assert!(client.request(echo()).is_err());
}

#[test]
fn what_is_no_answer_ends_the_connection_with_a_name() {
    let fails = |change: fn(&mut Header)| {
        let mut client = guest();
        client.request(echo()).unwrap();
        let (header, _) = sent(&mut client);
        let message = answer(&header, 0, Empty::new().as_bytes());
        let mut header = Header::parse(&message).unwrap();
        change(&mut header);
        let message = [header.as_bytes(), &message[Header::LEN..]].concat();
        client.receive(message).unwrap_err().to_string()
    };
    assert!(fails(|h| h.flags = 0.into()).contains("Flags"));
    assert!(fails(|h| h.command = 8.into()).contains("Read"));
    assert!(fails(|h| h.command = 99.into()).contains("Command is 0x63"));
    assert!(fails(|h| h.message_id = 99.into()).contains("99"));
    assert!(fails(|h| h.next_command = 8.into()).contains("NextCommand is 8"));
    assert!(fails(|h| h.next_command = u32::MAX.into()).contains("NextCommand"));
    assert!(fails(|h| h.structure_size = 63.into()).contains("63"));
    assert!(fails(|h| h.protocol_id = 0x424D_53FD.into()).contains("encrypted"));
}

#[test]
fn more_data_than_was_asked_for_is_not_taken() {
    let mut client = guest();
    client.request(read_request(10)).unwrap();
    let (header, _) = sent(&mut client);
    let body = ReadResponse::new().body(&[0; 11]);
    let error = client.receive(answer(&header, 0, &body)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "data of a READ of 11 bytes, more than 10"
    );

    let mut client = guest();
    let body = [WriteRequest::new().head(3), b"abc".to_vec()].concat();
    client
        .request(Request::new(Command::Write, body, 3))
        .unwrap();
    let (header, _) = sent(&mut client);
    let response = WriteResponse {
        count: 4.into(),
        ..WriteResponse::new()
    };
    assert!(
        client
            .receive(answer(&header, 0, response.as_bytes()))
            .is_err()
    );
}

/// Fault 29 (m:1422bba9b, m:53d7f0700): what has to be signed or encrypted went in plain by RDMA.
#[test]
fn cifs_rdma_offload_of_what_is_protected_is_not_sent() {
    let rows = [
        (dialect::SMB_2_1, 1, None),
        (dialect::SMB_3_0, 1, Some(channel::RDMA_V1)),
        (dialect::SMB_3_0_2, 1, Some(channel::RDMA_V1_INVALIDATE)),
        (dialect::SMB_3_1_1, 1, Some(channel::RDMA_V1_INVALIDATE)),
        // The server requires signatures.
        (dialect::SMB_3_1_1, 3, None),
    ];
    for (chosen, mode, kind) in rows {
        let (mut client, _) = ready(chosen, mode, false);
        assert_eq!(client.channel(), kind, "{chosen:#x} {mode}");
        for asked in [channel::RDMA_V1, channel::RDMA_V1_INVALIDATE] {
            let sent = client.request(read_to_memory(10, asked));
            assert_eq!(sent.is_ok(), kind.is_some_and(|kind| asked <= kind));
            assert_eq!(client.poll_out().is_some(), sent.is_ok());
        }
    }
    // A share that is encrypted.
    let (mut client, server) = ready(dialect::SMB_3_1_1, 1, false);
    client.connect("share").unwrap();
    let (header, _) = sent(&mut client);
    let tree = TreeConnectResponse {
        share_flags: 0x8000.into(),
        ..TreeConnectResponse::new()
    };
    let mut message = answer(&header, 0, tree.as_bytes());
    server.signer.unwrap().sign(&mut message).unwrap();
    client.receive(message).unwrap();
    assert!(client.protection().encrypted);
    assert_eq!(client.channel(), None);
    assert!(client.request(read_to_memory(10, 1)).is_err());
}

#[test]
fn data_that_goes_by_rdma_is_in_no_answer_and_no_more_than_asked_for() {
    let answered = |remaining: u32, data: &[u8]| {
        let mut client = guest();
        client
            .request(read_to_memory(10, channel::RDMA_V1))
            .unwrap();
        let (header, _) = sent(&mut client);
        let response = ReadResponse {
            data_remaining: remaining.into(),
            ..ReadResponse::new()
        };
        client.receive(answer(&header, 0, &response.body(data)))
    };
    assert_eq!(answered(10, b""), Ok(()));
    assert_eq!(answered(0, b""), Ok(()));
    let what = |result: Result<(), Error>| result.unwrap_err().to_string();
    assert_eq!(
        what(answered(11, b"")),
        "data of a READ of 11 bytes, more than 10"
    );
    assert!(what(answered(4, b"data")).contains("goes by RDMA is 0x4"));
}

#[test]
fn what_takes_time_is_answered_later_and_can_be_cancelled() {
    let mut client = guest();
    let id = client.request(read_request(10)).unwrap();
    let (header, _) = sent(&mut client);
    let mut interim = Header::parse(&answer(&header, status::PENDING, &[])).unwrap();
    interim.flags = (flags::RESPONSE | flags::ASYNC).into();
    (interim.process_id, interim.tree_id) = (7.into(), 8.into());
    let message = [interim.as_bytes(), &[9, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    client.receive(message.clone()).unwrap();
    assert_eq!((client.poll_event(), client.in_flight()), (None, 1));
    client.cancel(id).unwrap();
    let (cancel, _) = sent(&mut client);
    assert_eq!(cancel.command(), Ok(Command::Cancel));
    assert_eq!(cancel.async_id(), Some(8 << 32 | 7));
    client
        .receive(answer(
            &header,
            status::CANCELLED,
            &[9, 0, 0, 0, 0, 0, 0, 0, 0],
        ))
        .unwrap();
    let Some(Event::Response(response)) = client.poll_event() else {
        panic!()
    };
    assert_eq!(response.status(), status::CANCELLED);
    // Cancelled once more it is nothing.
    client.cancel(RequestId(header.message_id.get())).unwrap();
    assert_eq!(client.poll_out(), None);

    // Nobody says it again and again.
    let mut client = guest();
    client.request(read_request(10)).unwrap();
    client.receive(message.clone()).unwrap();
    assert!(
        client
            .receive(message)
            .unwrap_err()
            .to_string()
            .contains("AsyncId")
    );
}

#[test]
fn a_server_that_grants_nothing_is_named() {
    let mut client = guest();
    let mut last = None;
    loop {
        match client.request(echo()) {
            Ok(_) => last = client.poll_out(),
            Err(error) => {
                assert!(
                    matches!(error, Error::Credits { need: 1, have: 0 }),
                    "{error}"
                );
                break;
            }
        }
        let header = Header::parse(last.as_ref().unwrap()).unwrap();
        let message = answer(&header, 0, Empty::new().as_bytes());
        let mut header = Header::parse(&message).unwrap();
        header.credits = 0.into();
        match client.receive([header.as_bytes(), &message[Header::LEN..]].concat()) {
            Ok(()) => assert!(client.poll_event().is_some()),
            Err(error) => {
                assert_eq!(error, Error::NoCredits);
                break;
            }
        }
    }
    assert!(last.is_some());
}

#[test]
fn a_compound_is_one_message_with_its_own_numbers_and_signatures() {
    let (mut client, server) = ready(dialect::SMB_3_1_1, security_mode::SIGNING_REQUIRED, false);
    let close = Request::fixed(&CloseRequest {
        file: FileId::RELATED,
        ..CloseRequest::new()
    });
    let ids = client
        .requests(&mut [read_request(200_000), close])
        .unwrap();
    let message = client.poll_out().unwrap();
    assert_eq!(client.poll_out(), None);
    let parts: Vec<_> = Compound::new(&message).map(Result::unwrap).collect();
    assert_eq!(parts.len(), 2);
    assert!(!parts[0].0.is(flags::RELATED) && parts[1].0.is(flags::RELATED));
    // 200,000 bytes cost 4 credits, and 4 numbers.
    assert_eq!(parts[0].0.credit_charge.get(), 4);
    assert_eq!(
        (ids[1].0, parts[1].0.message_id.get()),
        (ids[0].0 + 4, ids[0].0 + 4)
    );
    let signer = server.signer.unwrap();
    for (_, bytes) in &parts {
        signer.verify(&mut bytes.to_vec()).unwrap();
    }
}

#[test]
fn an_unsigned_or_changed_answer_to_a_signed_request_is_not_taken() {
    for dialect in dialect::ALL {
        let fails = |change: fn(&mut Vec<u8>, &Signer)| {
            let mode = security_mode::SIGNING_REQUIRED;
            let (mut client, server) = ready(*dialect, mode, false);
            client.request(echo()).unwrap();
            let (header, message) = sent(&mut client);
            let signer = server.signer.unwrap();
            signer.verify(&mut message.clone()).unwrap();
            let mut message = answer(&header, 0, Empty::new().as_bytes());
            change(&mut message, &signer);
            client.receive(message).err()
        };
        assert_eq!(fails(|message, signer| signer.sign(message).unwrap()), None);
        assert!(matches!(fails(|_, _| {}), Some(Error::NotSigned { .. })));
        let changed = fails(|message, signer| {
            signer.sign(message).unwrap();
            message[66] ^= 1;
        });
        assert!(matches!(changed, Some(Error::Signature { .. })));
    }
}

#[test]
fn the_last_answer_of_a_log_on_in_3_1_1_has_to_be_signed() {
    let (mut client, _) = negotiated(dialect::SMB_3_1_1, 1);
    client.log_on(b"token", Some(KEY)).unwrap();
    let (header, _) = sent(&mut client);
    let body = SetupResponse::new().body(b"").unwrap();
    let error = client.receive(answer(&header, 0, &body)).unwrap_err();
    assert!(matches!(error, Error::NotSigned { .. }), "{error}");
}

#[test]
fn a_negotiation_that_was_changed_in_between_is_found_out_before_3_1_1() {
    let older = &dialect::ALL[..3];
    for (chosen, changed) in older.iter().flat_map(|it| [(*it, false), (*it, true)]) {
        let (mut client, server) = ready(chosen, 1, false);
        let request = client.validation().unwrap();
        let id = client.request(request).unwrap();
        let (header, message) = sent(&mut client);
        assert!(header.is(flags::SIGNED), "signed though nothing else is");
        let asked = IoctlRequest::read(&message).unwrap();
        assert_eq!(asked.code.get(), code::VALIDATE_NEGOTIATE_INFO);
        let said = ValidateResponse {
            capabilities: 4.into(),
            guid: [0; 16],
            security_mode: 1.into(),
            dialect: if changed { 0x0311 } else { chosen }.into(),
        };
        let body = IoctlResponse::new().body(said.as_bytes());
        let mut message = answer(&header, 0, &body);
        server.signer.unwrap().sign(&mut message).unwrap();
        client.receive(message).unwrap();
        let Some(Event::Response(response)) = client.poll_event() else {
            panic!()
        };
        assert_eq!(response.id, id);
        let expected = if changed {
            Err(Error::Downgraded {
                what: "the dialect",
            })
        } else {
            Ok(())
        };
        assert_eq!(client.validated(&response), expected);
    }
}

/// Ours: whoever was in between said that the user is a guest, and had a session in which
/// nothing was signed.
#[test]
fn a_user_who_is_taken_for_a_guest_is_told_so_and_has_no_session() {
    for (flag, key, allowed, taken) in [
        (session_flags::IS_GUEST, Some(KEY), false, false),
        (session_flags::IS_NULL, Some(KEY), false, false),
        (session_flags::IS_GUEST, Some(KEY), true, true),
        // Nobody logs on.
        (session_flags::IS_NULL, None, false, true),
    ] {
        let mut options = options(dialect::SMB_3_1_1);
        options.guest_allowed = allowed;
        let (mut client, _) = negotiated_with(options, dialect::SMB_3_1_1, 1);
        client.log_on(b"token", key).unwrap();
        let (header, _) = sent(&mut client);
        let setup = SetupResponse {
            session_flags: flag.into(),
            ..SetupResponse::new()
        };
        let result = client.receive(answer(&header, 0, &setup.body(b"").unwrap()));
        let expected = if taken { Ok(()) } else { Err(Error::Guest) };
        assert_eq!(result, expected);
        assert_eq!(client.phase() == Phase::Ready, taken);
    }
}

#[test]
fn a_share_that_has_to_be_encrypted_is_refused_without_a_cipher() {
    let (mut client, _) = ready(dialect::SMB_2_1, 1, false);
    client.connect(r"\\host\share").unwrap();
    let (header, _) = sent(&mut client);
    let tree = TreeConnectResponse {
        share_flags: 0x8000.into(),
        ..TreeConnectResponse::new()
    };
    let error = client
        .receive(answer(&header, 0, tree.as_bytes()))
        .unwrap_err();
    assert!(error.to_string().contains("encryption"), "{error}");
}

#[test]
fn a_message_cut_anywhere_is_an_error_and_never_more() {
    let mut client = guest();
    client.request(read_request(100)).unwrap();
    let (header, _) = sent(&mut client);
    let message = answer(&header, 0, &ReadResponse::new().body(b"some data"));
    for len in 0..message.len() {
        let mut client = guest();
        client.request(read_request(100)).unwrap();
        assert!(client.receive(message[..len].to_vec()).is_err(), "{len}");
    }
    client.receive(message).unwrap();
}
