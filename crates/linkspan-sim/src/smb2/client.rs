//! The client: its end of the protocol, its requests, and its memory.

use std::collections::BTreeMap;

use linkspan_smb2::client::{self, Event, Options, Phase, Request, RequestId};
use linkspan_smb2::io::{
    Descriptor, ReadRequest, ReadResponse, WriteRequest, WriteResponse, channel,
};
use linkspan_smb2::session::Empty;
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{Command, status};

use super::Plan;
use crate::Sim;
use crate::history::{BLOCK, BLOCKS, History, Kind, bytes_of};

/// Blocks of one request at most.
const BLOCKS_MAX: u64 = 4;

/// A request that is not answered.
struct Waiting {
    token: u64,
    /// Its memory, if it named any.
    memory: Option<u32>,
}

/// Memory that the gateway may reach.
struct Registered {
    bytes: Vec<u8>,
    valid: bool,
}

pub(crate) struct Client {
    core: client::Client,
    pub(crate) may_send: bool,
    waiting: BTreeMap<RequestId, Waiting>,
    memory: BTreeMap<u32, Registered>,
    next: u32,
}

/// A new request of some user.
pub(crate) fn submit(history: &mut History, sim: &mut Sim) -> u64 {
    let kind = match sim.rng.below(10) {
        0..5 => Kind::Write,
        5..9 => Kind::Read,
        _ => Kind::Flush,
    };
    let count = 1 + sim.rng.below(BLOCKS_MAX);
    let first = sim.rng.below(BLOCKS - count + 1);
    history.submit(kind, first, count)
}

impl Client {
    pub(crate) fn new(plan: &Plan, previous: u64) -> Self {
        let mut options = Options::new([1; 16], [2; 32]);
        options.dialects = vec![plan.dialect];
        options.guest_allowed = true;
        options.previous_session = previous;
        options.credits = 16;
        options.max_io = super::IO_MAX;
        let mut core = client::Client::new(options);
        core.negotiate().expect("nothing was said");
        Self {
            core,
            may_send: true,
            waiting: BTreeMap::new(),
            memory: BTreeMap::new(),
            next: 1,
        }
    }

    pub(crate) fn session(&self) -> u64 {
        self.core.session()
    }

    /// What it hands out.
    pub(crate) fn send(&mut self) -> Option<Vec<u8>> {
        let message = self.core.poll_out();
        self.may_send = message.is_some();
        message.map(|message| message.to_vec())
    }

    pub(crate) fn may_ask(&self, plan: &Plan) -> bool {
        let ready = self.core.phase() == Phase::Ready && self.waiting.len() < plan.depth;
        ready && self.core.affordable() > 0
    }

    /// Asks for what this request is about; says whether there were credits for it.
    pub(crate) fn ask(
        &mut self,
        token: u64,
        history: &History,
        plan: &Plan,
        sim: &mut Sim,
    ) -> bool {
        let asked = history.asked(token).clone();
        let len = u32::try_from(asked.count).expect("few") * 512;
        let remote = self.core.channel().filter(|_| sim.rng.percent(plan.remote));
        let number = self.next;
        let memory = Descriptor {
            offset: 0.into(),
            token: number.into(),
            length: len.into(),
        };
        let kind = remote.unwrap_or(channel::NONE);
        let offset = asked.first * BLOCK as u64;
        let (request, bytes) = match asked.kind {
            Kind::Flush => (Request::fixed(&Empty::new()), None),
            Kind::Read => {
                let read = ReadRequest {
                    length: len.into(),
                    offset: offset.into(),
                    channel: kind.into(),
                    ..ReadRequest::new()
                };
                let memory: &[Descriptor] = if remote.is_some() { &[memory] } else { &[] };
                let request = Request::new(Command::Read, read.body(memory), len);
                (request, Some(vec![0; len as usize]))
            }
            Kind::Write => {
                let data = bytes_of(token).repeat(usize::try_from(asked.count).expect("few"));
                let write = WriteRequest {
                    offset: offset.into(),
                    channel: kind.into(),
                    remaining: remote.map_or(0, |_| len).into(),
                    ..WriteRequest::new()
                };
                let body = match remote {
                    Some(_) => write.body_with_memory(&[memory]),
                    None => [write.head(len), data.clone()].concat(),
                };
                (Request::new(Command::Write, body, len), Some(data))
            }
        };
        let Ok(id) = self.core.request(request) else {
            sim.count("waits for credits");
            return false;
        };
        let registered = bytes.filter(|_| remote.is_some());
        let memory = registered.map(|bytes| {
            let valid = true;
            self.memory.insert(number, Registered { bytes, valid });
            self.next += 1;
            number
        });
        if memory.is_some() {
            sim.count(match asked.kind {
                Kind::Read => "reads to memory",
                _ => "writes from memory",
            });
        }
        self.waiting.insert(id, Waiting { token, memory });
        self.may_send = true;
        true
    }

    fn registered(&mut self, of: &[Descriptor]) -> &mut Registered {
        let [descriptor] = of else {
            panic!("one piece of memory was named, and not {}", of.len());
        };
        let token = descriptor.token.get();
        let memory = self.memory.get_mut(&token).filter(|it| it.valid);
        memory.unwrap_or_else(|| panic!("memory {token} is reached, and not registered"))
    }

    /// The gateway reads the client's memory.
    pub(crate) fn fetch(&self, from: &[Descriptor], len: u32) -> Vec<u8> {
        let token = from[0].token.get();
        let memory = self.memory.get(&token).filter(|it| it.valid);
        let memory = memory.unwrap_or_else(|| panic!("memory {token} is not registered"));
        memory.bytes[..len as usize].to_vec()
    }

    /// The gateway writes it.
    pub(crate) fn place(&mut self, to: &[Descriptor], data: &[u8]) {
        self.registered(to).bytes[..data.len()].copy_from_slice(data);
    }

    /// The gateway ends a registration.
    pub(crate) fn invalidate(&mut self, token: u32) {
        let memory = self.memory.get_mut(&token).filter(|it| it.valid);
        memory.expect("a registration ends once").valid = false;
    }

    /// What arrived; requests that are to be asked for again.
    pub(crate) fn receive(
        &mut self,
        message: Vec<u8>,
        history: &mut History,
        sim: &mut Sim,
    ) -> Vec<u64> {
        let received = self.core.receive(message);
        received.expect("a server of ours keeps to the protocol");
        let mut again = Vec::new();
        while let Some(event) = self.core.poll_event() {
            match event {
                Event::Negotiated(_) => {
                    self.core
                        .log_on(b"token", Some([3; 16]))
                        .expect("it is time");
                }
                Event::LoggedOn(protection) => assert!(protection.guest),
                Event::Response(response) => {
                    again.extend(self.answered(&response, history, sim));
                }
                other => panic!("{other:?}"),
            }
            self.may_send = true;
        }
        again
    }

    /// Gives the request back if it was refused.
    fn answered(
        &mut self,
        response: &client::Response,
        history: &mut History,
        sim: &mut Sim,
    ) -> Option<u64> {
        let waiting = self.waiting.remove(&response.id);
        let Waiting { token, memory } = waiting.expect("an answer comes once");
        let registered = memory.map(|memory| self.memory.remove(&memory).expect("registered"));
        let ends = self.core.channel() == Some(channel::RDMA_V1_INVALIDATE);
        if let Some(memory) = &registered {
            assert_eq!(memory.valid, !ends, "the registration of {token}");
        }
        if response.status() != status::SUCCESS {
            sim.count("requests refused");
            return Some(token);
        }
        let asked = history.asked(token).clone();
        let len = usize::try_from(asked.count).expect("few") * BLOCK;
        let data = match asked.kind {
            Kind::Read => {
                let read = ReadResponse::read(response.message()).expect("it was checked");
                match registered {
                    Some(memory) => {
                        assert_eq!(read.data_remaining.get() as usize, len);
                        memory.bytes
                    }
                    None => read.data(response.message()).expect("checked").to_vec(),
                }
            }
            Kind::Write => {
                let written = WriteResponse::read(response.message()).expect("it was checked");
                assert_eq!(written.count.get() as usize, len);
                Vec::new()
            }
            Kind::Flush => Vec::new(),
        };
        history.answer(token, &data);
        None
    }

    /// What nobody has answered when the connection is gone.
    pub(crate) fn unanswered(self) -> impl Iterator<Item = u64> {
        self.waiting.into_values().map(|waiting| waiting.token)
    }

    /// Nothing is under way: all memory is free, and it has the credits that it was granted.
    pub(crate) fn check_rest(&self, held: u64) {
        assert_eq!(self.core.in_flight(), 0);
        assert!(
            self.waiting.is_empty() && self.memory.is_empty(),
            "memory stays"
        );
        let affordable = u64::from(self.core.affordable()) / 65_536;
        assert_eq!(affordable, held, "credits are lost");
    }
}
