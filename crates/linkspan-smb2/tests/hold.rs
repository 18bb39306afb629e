//! What holds an open file over a lost connection, against a server that grants what a test says.

use linkspan_smb2::create::{
    self, CreateRequest, CreateResponse, DurableReconnectV2, DurableRequestV2, DurableResponseV2,
    FileId, LeaseV2, context, lease, oplock,
};
use linkspan_smb2::hold::{Contexts, Hold};
use linkspan_smb2::negotiate::dialect;
use linkspan_smb2::notify::{ACK_REQUIRED, Break, LeaseAck, LeaseBreak};
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{Command, Error, Header, status};
use zerocopy::IntoBytes as _;

const KEY: [u8; 16] = [1; 16];
const GUID: [u8; 16] = [2; 16];
const ALL: u32 = lease::READ | lease::HANDLE;

/// The open file of a server, and what it grants.
#[derive(Clone, Copy)]
struct Server {
    key: [u8; 16],
    /// `None`: no lease.
    state: Option<u32>,
    durable: bool,
    persistent: u64,
    /// Another one on each connection.
    volatile: u64,
}

/// What is behind a header.
fn message(body: Vec<u8>) -> Vec<u8> {
    [Header::request(Command::Create).as_bytes(), &body].concat()
}

impl Server {
    fn new() -> Self {
        Self {
            key: KEY,
            state: Some(ALL),
            durable: true,
            persistent: 77,
            volatile: 1,
        }
    }

    fn file(self) -> FileId {
        FileId {
            persistent: self.persistent.into(),
            volatile: self.volatile.into(),
        }
    }

    /// What it answers to a CREATE with these contexts: a status, and the message.
    fn create(self, oplock: u8, asked: &Contexts) -> (u32, Vec<u8>) {
        let asked: Vec<_> = asked
            .iter()
            .map(|(name, data)| (&name[..], &data[..]))
            .collect();
        let request = message(CreateRequest::new().body("disk.img", &asked));
        let request = CreateRequest::read(&request)
            .unwrap()
            .contexts(&request)
            .unwrap();
        assert_eq!(oplock, oplock::LEASE);
        let wanted: LeaseV2 = create::find(&request, context::LEASE).expect("a lease is wanted");
        assert_eq!((wanted.key, wanted.state.get()), (KEY, ALL));
        let first: Option<DurableRequestV2> = create::find(&request, context::DURABLE_V2);
        let again: Option<DurableReconnectV2> = create::find(&request, context::RECONNECT_V2);
        match (first, again) {
            (Some(first), None) => assert_eq!(first.create_guid, GUID),
            (None, Some(again)) => {
                assert_eq!(again.create_guid, GUID);
                if again.file.persistent.get() != self.persistent || !self.durable {
                    return (status::OBJECT_NAME_NOT_FOUND, Vec::new());
                }
            }
            both => panic!("{both:?}"),
        }
        let lease = LeaseV2 {
            key: self.key,
            state: self.state.unwrap_or_default().into(),
            ..LeaseV2::default()
        };
        let mut contexts: Vec<create::Context<'_>> = Vec::new();
        if self.state.is_some() {
            contexts.push((&context::LEASE, lease.as_bytes()));
        }
        let granted = DurableResponseV2::default();
        // An answer to one that is taken up has none (MS-SMB2 3.3.5.9.12).
        if self.durable && again.is_none() {
            contexts.push((&context::DURABLE_V2, granted.as_bytes()));
        }
        let fixed = CreateResponse {
            oplock: self.state.map_or(oplock::NONE, |_| oplock::LEASE),
            file: self.file(),
            ..CreateResponse::new()
        };
        (status::SUCCESS, message(fixed.body(&contexts)))
    }

    fn open(self, hold: &mut Hold) -> Result<(), Error> {
        let (said, answer) = self.create(hold.oplock(), &hold.ask());
        assert_eq!(said, status::SUCCESS);
        let fixed = CreateResponse::read(&answer)?;
        hold.opened(&fixed, &fixed.contexts(&answer)?)
    }

    /// `None`: the server refuses.
    fn take_up(self, hold: &mut Hold) -> Option<Result<(), Error>> {
        let (said, answer) = self.create(hold.oplock(), &hold.ask_again().unwrap());
        let taken = || {
            let fixed = CreateResponse::read(&answer)?;
            hold.taken_up(&fixed, &fixed.contexts(&answer)?)
        };
        (said == status::SUCCESS).then(taken)
    }
}

fn hold() -> Hold {
    Hold::new(dialect::SMB_3_0, KEY, GUID).unwrap()
}

fn taken_back(new: u32, flags: u32) -> LeaseBreak {
    LeaseBreak {
        flags: flags.into(),
        key: KEY,
        current: ALL.into(),
        new: new.into(),
        ..LeaseBreak::new()
    }
}

fn field(result: Result<(), Error>) -> &'static str {
    match result {
        Err(Error::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_durable_is_taken_up_on_each_connection() {
    assert_eq!(Hold::new(dialect::SMB_2_1, KEY, GUID), None);
    let (mut server, mut hold) = (Server::new(), hold());
    assert_eq!(hold.ask_again(), None, "nothing was granted yet");
    server.open(&mut hold).unwrap();
    for volatile in 2..5 {
        server.volatile = volatile;
        assert_eq!(server.take_up(&mut hold), Some(Ok(())));
    }
    // A server that was restarted does not know it, and it is opened anew.
    server.durable = false;
    assert_eq!(server.take_up(&mut hold), None);
    let mut other = self::hold();
    server.open(&mut other).unwrap();
    assert_eq!(other.ask_again(), None);
}

#[test]
fn a_server_that_grants_less_is_as_one_that_grants_nothing() {
    for (state, durable, taken_up) in [
        (None, false, false),
        // MS-SMB2 3.3.5.9.10: durable only with a handle lease.
        (None, true, false),
        (Some(lease::READ), true, false),
        (Some(0), true, false),
        (Some(ALL), false, false),
        (Some(lease::HANDLE), true, true),
        (Some(ALL), true, true),
    ] {
        let server = Server {
            state,
            durable,
            ..Server::new()
        };
        let mut hold = hold();
        server.open(&mut hold).unwrap();
        assert_eq!(hold.ask_again().is_some(), taken_up, "{state:?} {durable}");
    }
}

#[test]
fn what_was_not_asked_for_is_refused_by_name() {
    let good = Server::new();
    let other_key = Server {
        key: [9; 16],
        ..good
    };
    assert!(field(other_key.open(&mut hold())).starts_with("LeaseKey"));
    let more = Server {
        state: Some(ALL | lease::WRITE),
        ..good
    };
    assert!(field(more.open(&mut hold())).starts_with("LeaseState"));
    let mut held = hold();
    good.open(&mut held).unwrap();
    assert!(field(other_key.take_up(&mut held).unwrap()).starts_with("LeaseKey"));
    // Another open file in the place of this one.
    let fixed = CreateResponse {
        file: Server {
            persistent: 78,
            ..good
        }
        .file(),
        ..CreateResponse::new()
    };
    assert!(field(held.taken_up(&fixed, &[])).contains("FileId"));
    // The lease is gone: it is open, and not held any more.
    let bare = Server {
        state: None,
        ..good
    };
    assert_eq!(bare.take_up(&mut held), Some(Ok(())));
    assert_eq!(held.ask_again(), None);
}

#[test]
fn what_is_taken_back_is_let_go_once() {
    let mut hold = hold();
    assert!(
        hold.broken(&taken_back(0, 0)).is_err(),
        "nothing was granted"
    );
    Server::new().open(&mut hold).unwrap();
    let stranger = LeaseBreak {
        key: [9; 16],
        ..taken_back(0, 0)
    };
    assert_eq!(hold.broken(&stranger), Err(Error::Unasked));
    assert!(hold.broken(&taken_back(ALL, ACK_REQUIRED)).is_err());
    assert!(
        hold.broken(&taken_back(lease::WRITE, ACK_REQUIRED))
            .is_err()
    );
    assert!(hold.ask_again().is_some());
    let ack = hold
        .broken(&taken_back(lease::READ, ACK_REQUIRED))
        .unwrap()
        .unwrap();
    assert_eq!((ack.key, ack.state.get()), (KEY, lease::READ));
    let bytes = [
        Header::request(Command::OplockBreak).as_bytes(),
        ack.as_bytes(),
    ]
    .concat();
    assert_eq!(Break::parse(&bytes), Ok(Break::LeaseAck(ack)));
    // Not durable any more, and nobody waits for an answer to the rest.
    assert_eq!(hold.ask_again(), None);
    assert_eq!(hold.broken(&taken_back(0, 0)), Ok(None::<LeaseAck>));
    assert!(hold.broken(&taken_back(0, 0)).is_err(), "for ever");
}

#[test]
fn an_answer_cut_anywhere_is_an_error_or_grants_nothing() {
    let (_, whole) = Server::new().create(oplock::LEASE, &hold().ask());
    for len in 0..whole.len() {
        let mut hold = hold();
        let cut = &whole[..len];
        let opened = CreateResponse::read(cut).and_then(|fixed| {
            fixed
                .contexts(cut)
                .and_then(|them| hold.opened(&fixed, &them))
        });
        assert!(opened.is_err() || hold.ask_again().is_none(), "{len}");
    }
}
