//! A model of a server: what a gateway needs of one. It checks numbers and credits.

use std::collections::BTreeSet;

use linkspan_smb2::header::flags;
use linkspan_smb2::io::{ReadRequest, ReadResponse, WriteRequest, WriteResponse};
use linkspan_smb2::negotiate::{Contexts, NegotiateResponse, Response as NegotiateFixed, SHA_512};
use linkspan_smb2::session::{Empty, SetupRequest, SetupResponse, session_flags};
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{Command, Header, status};
use zerocopy::IntoBytes as _;

use super::{Fault, Plan};
use crate::Sim;
use crate::history::{BLOCK, History};

/// A request that was taken and not answered.
struct Taken {
    header: Header,
    message: Vec<u8>,
    /// Of which connection.
    of: u64,
    waits: bool,
}

pub(crate) struct Server {
    /// The number of the connection, which is that of its session.
    connection: u64,
    taken: Vec<Taken>,
    granted: u64,
    used: BTreeSet<u64>,
    /// It grants no more than it has to.
    pub(crate) starves: bool,
    /// Requests that are refused.
    pub(crate) refuses: u64,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self {
            connection: 0,
            taken: Vec::new(),
            granted: 1,
            used: BTreeSet::new(),
            starves: false,
            refuses: 0,
        }
    }

    pub(crate) fn connect(&mut self) {
        self.connection += 1;
        (self.granted, self.used) = (1, BTreeSet::new());
    }

    /// It is started again: nothing of what it was asked for is done.
    pub(crate) fn dies(&mut self) {
        self.taken.clear();
    }

    /// Credits that the client has.
    pub(crate) fn held(&self) -> u64 {
        self.granted - self.used.len() as u64
    }

    pub(crate) fn has_work(&self) -> bool {
        !self.taken.is_empty()
    }

    /// Whether it may say of a request that it takes time.
    pub(crate) fn may_wait(&self) -> bool {
        self.taken.iter().any(|it| self.may_say(it))
    }

    fn may_say(&self, taken: &Taken) -> bool {
        taken.of == self.connection && !taken.waits
    }

    fn take_credits(&mut self, header: &Header) {
        let first = header.message_id.get();
        let charge = u64::from(header.credit_charge.get().max(1));
        for id in first..first + charge {
            assert!(id < self.granted, "number {id} was not granted");
            assert!(self.used.insert(id), "number {id} is used twice");
        }
    }

    /// An answer to a request, with credits.
    fn answer(&mut self, request: &Header, status: u32, body: &[u8], sim: &mut Sim) -> Vec<u8> {
        let wanted = u64::from(request.credits.get());
        // Whoever has none and awaits nothing could not go on.
        let least = u64::from(self.held() == 0);
        let granted = match self.starves {
            true => least,
            false => (1 + sim.rng.below(wanted.clamp(1, 8))).max(least),
        };
        // No more than a window.
        let granted = granted.min(64_u64.saturating_sub(self.held())).max(least);
        self.granted += granted;
        let mut header = *request;
        header.flags = flags::RESPONSE.into();
        header.status = status.into();
        header.credits = u16::try_from(granted).expect("few").into();
        header.session_id = self.connection.into();
        header.signature = [0; 16];
        [header.as_bytes(), body].concat()
    }

    /// Takes a message; what has no work in it is answered at once.
    pub(crate) fn receive(
        &mut self,
        message: &[u8],
        plan: &Plan,
        sim: &mut Sim,
    ) -> Option<Vec<u8>> {
        let header = Header::parse(message).expect("a message of our client");
        self.take_credits(&header);
        match header.command().expect("a command") {
            Command::Negotiate => {
                let body = negotiated(plan);
                Some(self.answer(&header, status::SUCCESS, &body, sim))
            }
            Command::SessionSetup => {
                let setup = SetupRequest::read(message).expect("a message of our client");
                let previous = setup.previous_session.get();
                // What the session before had asked for is not done any more.
                assert!(
                    self.taken.is_empty() || previous != 0,
                    "whose work is this?"
                );
                self.taken.clear();
                let setup = SetupResponse {
                    session_flags: session_flags::IS_GUEST.into(),
                    ..SetupResponse::new()
                };
                let body = setup.body(b"done").expect("short");
                Some(self.answer(&header, status::SUCCESS, &body, sim))
            }
            _ => {
                self.taken.push(Taken {
                    header,
                    message: message.to_vec(),
                    of: self.connection,
                    waits: false,
                });
                None
            }
        }
    }

    /// Says of some request that it takes time.
    pub(crate) fn wait(&mut self, sim: &mut Sim) -> Vec<u8> {
        let waiting: Vec<usize> = (0..self.taken.len())
            .filter(|at| self.may_say(&self.taken[*at]))
            .collect();
        let at = waiting[sim.rng.index(waiting.len())];
        self.taken[at].waits = true;
        sim.count("interim answers");
        let header = self.taken[at].header;
        let body = [9, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut message = self.answer(&header, status::PENDING, &body, sim);
        let mut header = Header::parse(&message).expect("ours");
        header.flags = (flags::RESPONSE | flags::ASYNC).into();
        message[..Header::LEN].copy_from_slice(header.as_bytes());
        message
    }

    /// Does some request; its answer, if there is somebody to hear it.
    pub(crate) fn work(
        &mut self,
        history: &mut History,
        plan: &Plan,
        sim: &mut Sim,
    ) -> Option<Vec<u8>> {
        let at = sim.rng.index(self.taken.len());
        let taken = self.taken.remove(at);
        let refused = self.refuses > 0;
        self.refuses -= u64::from(refused);
        let (status, body) = match refused {
            true => (
                status::INSUFFICIENT_RESOURCES,
                vec![9, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            false => (status::SUCCESS, done(&taken, history, plan, sim)),
        };
        let heard = taken.of == self.connection;
        heard.then(|| self.answer(&taken.header, status, &body, sim))
    }
}

/// Does what a request asks for; the body of its answer.
fn done(taken: &Taken, history: &mut History, plan: &Plan, sim: &mut Sim) -> Vec<u8> {
    let message = &taken.message;
    match taken.header.command().expect("a command") {
        Command::Read => {
            let read = ReadRequest::read(message).expect("a message of our client");
            let first = read.offset.get() / BLOCK as u64;
            let count = u64::from(read.length.get()) / BLOCK as u64;
            let blocks = (first..first + count).flat_map(|block| history.read_block(block));
            ReadResponse::new().body(&blocks.collect::<Vec<_>>())
        }
        Command::Write => {
            let write = WriteRequest::read(message).expect("a message of our client");
            let data = write.data(message).expect("data stands in the message");
            let first = write.offset.get() / BLOCK as u64;
            let lost = plan.fault == Fault::LosesWrite && sim.rng.percent(5);
            for (block, bytes) in (first..).zip(data.chunks_exact(BLOCK)) {
                if !lost {
                    history.write_block(block, bytes);
                }
            }
            let written = WriteResponse {
                count: u32::try_from(data.len()).expect("short").into(),
                ..WriteResponse::new()
            };
            written.as_bytes().to_vec()
        }
        // An ECHO stands for what makes all durable.
        _ => {
            history.flush();
            Empty::new().as_bytes().to_vec()
        }
    }
}

fn negotiated(plan: &Plan) -> Vec<u8> {
    let response = NegotiateResponse {
        fixed: NegotiateFixed {
            security_mode: 1.into(),
            dialect: plan.dialect.into(),
            max_transact_size: (1 << 20).into(),
            max_read_size: (1 << 20).into(),
            max_write_size: (1 << 20).into(),
            capabilities: 4.into(),
            ..NegotiateFixed::new()
        },
        token: b"",
        contexts: Contexts {
            hashes: vec![SHA_512],
            salt: vec![5; 32],
            ciphers: vec![2],
            signings: vec![1],
        },
    };
    response.body()
}
