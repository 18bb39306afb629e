//! SMB2: messages of both directions against the parser, and a server against a client.
//!
//! The first byte says which: 0 is a request, 1 a response, 2 a token of the log-on, 3 a
//! stream over TCP; from 4 on a client that nothing was said to, that negotiated, that
//! has a session of a guest, and one that is signed, to which messages come, each after its length in
//! 16 bits.

use linkspan_smb2::client::{Client, Event, Options, Request};
use linkspan_smb2::create::{self, CloseRequest, CreateRequest, CreateResponse, FlushRequest};
use linkspan_smb2::describe::describe;
use linkspan_smb2::frame::Framer;
use linkspan_smb2::header::{Command, Compound, Header, flags};
use linkspan_smb2::hold::Hold;
use linkspan_smb2::info::{
    self, QueryDirectoryRequest, QueryDirectoryResponse, QueryInfoRequest, QueryInfoResponse,
    SetInfoRequest,
};
use linkspan_smb2::io::{
    self, LockRequest, ReadRequest, ReadResponse, WriteRequest, WriteResponse,
};
use linkspan_smb2::ioctl::{self, IoctlRequest, IoctlResponse};
use linkspan_smb2::negotiate::{
    Contexts, NegotiateRequest, NegotiateResponse, Response as NegotiateFixed, SHA_512, dialect,
};
use linkspan_smb2::notify::{Break, LeaseBreak};
use linkspan_smb2::ntlm::{self, Credentials, Nonces};
use linkspan_smb2::security::Transform;
use linkspan_smb2::session::{SetupRequest, SetupResponse, TreeConnectRequest, session_flags};
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{Error, from_utf16, spnego, status};
use zerocopy::IntoBytes as _;

use crate::input::Input;

/// What came of an input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Messages that were taken, or events.
    pub done: usize,
    /// Why the last one was not.
    pub error: Option<String>,
}

/// The target `smb2`.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// What comes of it.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut outcome = Outcome::default();
    let Some((&kind, rest)) = bytes.split_first() else {
        return outcome;
    };
    let result = match kind {
        0 => all(rest, request, &mut outcome.done),
        1 => all(rest, response, &mut outcome.done),
        2 => token(rest, &mut outcome.done),
        3 => stream(rest, &mut outcome.done),
        _ => client(kind - 4, rest, &mut outcome.done),
    };
    outcome.error = result.err().map(|error| error.to_string());
    outcome
}

fn all(
    bytes: &[u8],
    read: impl Fn(Command, &[u8]) -> Result<(), Error>,
    done: &mut usize,
) -> Result<(), Error> {
    assert!(!describe(bytes, bytes.len()).is_empty());
    if Transform::parse(bytes).is_ok() {
        *done += 1;
        return Ok(());
    }
    for part in Compound::new(bytes) {
        let (header, message) = part?;
        read(header.command()?, message)?;
        *done += 1;
    }
    Ok(())
}

/// Reads all parts of a request.
fn request(command: Command, message: &[u8]) -> Result<(), Error> {
    match command {
        Command::Negotiate => {
            let request = NegotiateRequest::parse(message)?;
            // What was read and written again is the same.
            let again = [&message[..Header::LEN], &request.body()].concat();
            let again = NegotiateRequest::parse(&again).expect("what was written is read");
            assert_eq!(
                (again.dialects, again.contexts),
                (request.dialects, request.contexts)
            );
        }
        Command::SessionSetup => {
            spnego::token(SetupRequest::read(message)?.token(message)?)?;
        }
        Command::TreeConnect => {
            from_utf16("Path", TreeConnectRequest::read(message)?.path(message)?)?;
        }
        Command::Create => {
            let request = CreateRequest::read(message)?;
            from_utf16("Name", request.name(message)?)?;
            let contexts = request.contexts(message)?;
            let _: Option<create::LeaseV2> = create::find(&contexts, create::context::LEASE);
        }
        Command::Close => drop(CloseRequest::read(message)?),
        Command::Flush => drop(FlushRequest::read(message)?),
        Command::Read => {
            let memory = ReadRequest::read(message)?.descriptors(message)?;
            io::reach(&memory)?;
        }
        Command::Write => {
            let request = WriteRequest::read(message)?;
            let data = request.data(message)?;
            assert!(data.len() <= message.len());
            io::reach(&request.descriptors(message)?)?;
        }
        Command::Lock => drop(LockRequest::read(message)?.elements(message)?),
        Command::Ioctl => drop(IoctlRequest::read(message)?.input(message)?),
        Command::QueryDirectory => {
            from_utf16(
                "a pattern",
                QueryDirectoryRequest::read(message)?.pattern(message)?,
            )?;
        }
        Command::QueryInfo => drop(QueryInfoRequest::read(message)?.input(message)?),
        Command::SetInfo => drop(SetInfoRequest::read(message)?.input(message)?),
        Command::OplockBreak => drop(Break::parse(message)?),
        _ => {}
    }
    Ok(())
}

/// What a server grants of a lease and a durable handle, and takes back of it.
fn hold(fixed: &CreateResponse, contexts: &[create::Context<'_>]) {
    let Some(mut hold) = Hold::new(dialect::SMB_3_0, [0; 16], [0; 16]) else {
        return;
    };
    if hold.opened(fixed, contexts).is_err() {
        return;
    }
    if hold.ask_again().is_some() {
        // It is the same open file, and the same lease.
        assert_eq!(hold.taken_up(fixed, contexts), Ok(()));
    }
    let said = LeaseBreak::new();
    // Whatever it granted, it takes all of that back once at most.
    let _ = hold.broken(&said);
    assert!(hold.ask_again().is_none() && hold.broken(&said).is_err());
}

/// Reads all parts of a response.
fn response(command: Command, message: &[u8]) -> Result<(), Error> {
    match command {
        Command::Negotiate => {
            let response = NegotiateResponse::parse(message)?;
            spnego::names_ntlm(response.token)?;
            let again = [&message[..Header::LEN], &response.body()].concat();
            let again = NegotiateResponse::parse(&again).expect("what was written is read");
            assert_eq!(
                (again.token, again.contexts),
                (response.token, response.contexts)
            );
        }
        Command::SessionSetup => drop(SetupResponse::read(message)?.token(message)?),
        Command::Create => {
            let fixed = CreateResponse::read(message)?;
            hold(&fixed, &fixed.contexts(message)?);
        }
        Command::Read => drop(ReadResponse::read(message)?.data(message)?),
        Command::Write => drop(WriteResponse::read(message)?),
        Command::Ioctl => {
            let output = IoctlResponse::read(message)?.output(message)?;
            for interface in ioctl::interfaces(output).into_iter().flatten() {
                let _ = interface.ip();
            }
            let _ = ioctl::ranges(output);
        }
        Command::QueryDirectory => {
            let output = QueryDirectoryResponse::read(message)?.output(message)?;
            for entry in info::entries(output)? {
                assert!(!entry.name.contains(['/', '\\']) && entry.name != "..");
            }
        }
        Command::QueryInfo => {
            let output = QueryInfoResponse::read(message)?.output(message)?;
            if let Ok(size) = info::FullSize::parse(output) {
                let _ = size.bytes();
            }
        }
        Command::OplockBreak => drop(Break::parse(message)?),
        _ => {}
    }
    Ok(())
}

fn token(bytes: &[u8], done: &mut usize) -> Result<(), Error> {
    *done += usize::from(spnego::names_ntlm(bytes).is_ok());
    let challenge = spnego::token(bytes)?;
    let user = Credentials {
        user: "user".into(),
        ..Credentials::default()
    };
    let nonces = Nonces {
        challenge: [1; 8],
        key: [2; 16],
    };
    ntlm::authenticate(&user, b"", challenge, nonces, 0)?;
    *done += 1;
    Ok(())
}

/// Any pieces give the same messages: the first byte says how long they are.
fn stream(bytes: &[u8], done: &mut usize) -> Result<(), Error> {
    const MAX: usize = 1000;
    let Some((&piece, mut bytes)) = bytes.split_first() else {
        return Ok(());
    };
    let mut framer = Framer::new(MAX);
    while !bytes.is_empty() {
        let room = framer.room();
        let len = room.len().min(usize::from(piece) + 1).min(bytes.len());
        assert!(len > 0 && room.len() <= MAX);
        room[..len].copy_from_slice(&bytes[..len]);
        bytes = &bytes[len..];
        *done += usize::from(framer.filled(len)?.is_some());
    }
    Ok(())
}

/// A response with this status and body to what the client sent last.
fn answer(client: &mut Client, body: &[u8]) {
    let message = client.poll_out().expect("a request");
    let mut header = Header::parse(&message).expect("a header");
    header.flags = flags::RESPONSE.into();
    header.status = status::SUCCESS.into();
    header.credits = 100.into();
    header.session_id = 1.into();
    let message = [header.as_bytes(), body].concat();
    client.receive(message).expect("a right answer");
}

/// A client that is so far: see the module.
fn begun(stage: u8) -> Client {
    let mut options = Options::new([1; 16], [2; 32]);
    // In 2.1 the last answer of a log-on need not be signed.
    options.dialects = vec![if stage == 3 {
        dialect::SMB_2_1
    } else {
        dialect::SMB_3_1_1
    }];
    options.require_signing = stage == 3;
    options.guest_allowed = stage != 3;
    let chosen = options.dialects[0];
    let mut client = Client::new(options);
    client.negotiate().expect("the begin");
    if stage == 0 {
        return client;
    }
    let size = 1 << 20;
    let response = NegotiateResponse {
        fixed: NegotiateFixed {
            dialect: chosen.into(),
            max_transact_size: size.into(),
            max_read_size: size.into(),
            max_write_size: size.into(),
            ..NegotiateFixed::new()
        },
        token: b"",
        contexts: Contexts {
            hashes: vec![SHA_512],
            ..Contexts::default()
        },
    };
    answer(&mut client, &response.body());
    client.log_on(b"token", Some([3; 16])).expect("a log-on");
    if stage == 1 {
        return client;
    }
    let guest = if stage == 3 {
        0
    } else {
        session_flags::IS_GUEST
    };
    let setup = SetupResponse {
        session_flags: guest.into(),
        ..SetupResponse::new()
    };
    answer(&mut client, &setup.body(b"").expect("a short token"));
    for request in [
        Request::new(Command::Read, ReadRequest::new().body(&[]), 100),
        Request::new(Command::Write, WriteRequest::new().head(0), 100),
        Request::fixed(&CloseRequest::new()),
    ] {
        client.request(request).expect("credits");
    }
    client.connect(r"\\host\share").expect("credits");
    client
}

fn client(stage: u8, bytes: &[u8], done: &mut usize) -> Result<(), Error> {
    let mut client = begun(stage.min(3));
    while client.poll_event().is_some() {}
    let mut input = Input::new(bytes);
    while let Some(len) = input.u16() {
        let before = client.in_flight();
        let result = client.receive(input.bytes(len.into()).to_vec());
        assert!(client.in_flight() <= before);
        while let Some(event) = client.poll_event() {
            if let Event::Response(response) = &event {
                assert!(Header::parse(response.message()).is_ok());
            }
            *done += 1;
        }
        result?;
    }
    Ok(())
}
