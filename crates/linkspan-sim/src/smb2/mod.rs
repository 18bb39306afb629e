//! A file on an SMB share through a gateway: the client's end of SMB2 with memory that may be
//! reached by RDMA, the gateway, and a model of a server without RDMA that answers in any order
//! and grants what credits it likes.

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use linkspan_smb2::gateway::{ANSWER_LEN, Gateway, HEAD_MAX, ToClient, ToServer};
use linkspan_smb2::negotiate::dialect;

use crate::history::History;
use crate::{Link, Mishap, Rest, Rng, Sim};
use client::Client;
use server::Server;

/// The longest request, in bytes.
const IO_MAX: u32 = 1 << 20;

/// A fault of the model, to see that the simulation finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Now and then a write is answered and not done.
    LosesWrite,
    /// Now and then a message is not delivered.
    LosesMessage,
    /// Data of a read is not placed in the client's memory.
    ForgetsData,
    /// Now and then an answer grants one credit less than its header says.
    LosesCredit,
}

/// What a seed decides.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    fault: Fault,
    dialect: u16,
    requests: u64,
    depth: usize,
    /// How many of a hundred requests name memory.
    remote: u64,
}

impl Plan {
    fn new(rng: &mut Rng, fault: Fault) -> Self {
        let dialects = [
            dialect::SMB_2_1,
            dialect::SMB_3_0,
            dialect::SMB_3_0_2,
            dialect::SMB_3_1_1,
        ];
        Self {
            fault,
            dialect: dialects[rng.index(dialects.len())],
            requests: 20 + rng.below(100),
            depth: 1 + rng.index(12),
            remote: rng.below(101),
        }
    }
}

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Connect,
    /// The client hands out a message, or asks for something.
    Send,
    Ask,
    /// A message arrives at the gateway, the server, the gateway, and the client.
    ToGateway,
    ToServer,
    BackToGateway,
    ToClient,
    /// The server does something that it was asked for, or says that it takes time.
    Work,
    Interim,
    /// It grants credits again.
    Grant,
    /// The client notices that its connection is gone.
    Lose,
}

/// Both ends, and the gateway between them.
pub(crate) struct Share {
    plan: Plan,
    sim: Sim,
    history: History,
    client: Option<Client>,
    gateway: Gateway,
    server: Server,
    to_gateway: VecDeque<Vec<u8>>,
    to_server: VecDeque<Vec<u8>>,
    back: VecDeque<Vec<u8>>,
    to_client: VecDeque<Vec<u8>>,
    /// The session of the connection before.
    previous: u64,
    /// Requests that were not answered by a connection before.
    again: Vec<u64>,
    cut: bool,
}

impl Link for Share {
    type Step = Step;
    type Fault = Fault;

    const NAME: &'static str = "smb2";
    const MISHAPS: &'static [Mishap] = &[
        Mishap::Cut,
        Mishap::ServerDies,
        Mishap::ClientDies,
        Mishap::Starve,
        Mishap::Refuse,
    ];
    const CHANCE: u64 = 20;
    const HAPPENS: &'static [&'static str] = &[
        "connections",
        "requests",
        "reads to memory",
        "writes from memory",
        "invalidations",
        "interim answers",
        "requests refused",
        "requests asked again",
    ];

    fn new(seed: u64, fault: Fault) -> Self {
        let mut sim = Sim::new(seed);
        let plan = Plan::new(&mut sim.rng, fault);
        sim.mishaps = match fault {
            Fault::None => sim.rng.below(10),
            _ => 0,
        };
        Self {
            history: History::new(),
            client: None,
            gateway: Gateway::new(IO_MAX),
            server: Server::new(),
            to_gateway: VecDeque::new(),
            to_server: VecDeque::new(),
            back: VecDeque::new(),
            to_client: VecDeque::new(),
            previous: 0,
            again: Vec::new(),
            cut: false,
            plan,
            sim,
        }
    }

    fn sim(&mut self) -> &mut Sim {
        &mut self.sim
    }

    fn plan(&self) -> String {
        format!("{:#?}", self.plan)
    }

    fn possible(&self, steps: &mut Vec<Step>) {
        let mut add = |step, possible| {
            if possible {
                steps.push(step);
            }
        };
        add(Step::Work, self.server.has_work());
        add(Step::Grant, self.server.starves);
        let Some(client) = &self.client else {
            return add(Step::Connect, true);
        };
        add(Step::Lose, self.cut);
        if self.cut {
            return;
        }
        add(Step::Interim, self.server.may_wait());
        add(Step::Send, client.may_send);
        let more = !self.again.is_empty() || self.history.submitted() < self.plan.requests;
        add(Step::Ask, more && client.may_ask(&self.plan));
        add(Step::ToGateway, !self.to_gateway.is_empty());
        add(Step::ToServer, !self.to_server.is_empty());
        add(Step::BackToGateway, !self.back.is_empty());
        add(Step::ToClient, !self.to_client.is_empty());
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Connect => self.connect(),
            Step::Lose => self.lose(),
            Step::Send => {
                let Some(client) = &mut self.client else {
                    return;
                };
                self.to_gateway.extend(client.send());
            }
            Step::Ask => self.ask(),
            Step::ToGateway => self.reaches_gateway(),
            Step::ToServer => {
                if let Some(message) = self.to_server.pop_front() {
                    self.back
                        .extend(self.server.receive(&message, &self.plan, &mut self.sim));
                }
            }
            Step::BackToGateway => self.back_to_gateway(),
            Step::ToClient => self.reaches_client(),
            Step::Work => {
                let (history, plan) = (&mut self.history, &self.plan);
                let answer = self.server.work(history, plan, &mut self.sim);
                self.back.extend(answer.filter(|_| !self.cut));
            }
            Step::Interim => self.back.push_back(self.server.wait(&mut self.sim)),
            Step::Grant => self.server.starves = false,
        }
    }

    fn mishap(&mut self, mishap: Mishap) -> bool {
        match mishap {
            Mishap::Cut => self.cut = true,
            Mishap::ServerDies => {
                self.server.dies();
                self.cut = true;
            }
            Mishap::ClientDies => {
                let connected = self.client.is_some();
                self.lose();
                return connected;
            }
            Mishap::Starve => self.server.starves = true,
            _ => self.server.refuses += 1,
        }
        true
    }

    fn rest(&mut self) -> Rest {
        let outstanding = self.history.outstanding();
        assert!(
            outstanding == 0 && self.again.is_empty(),
            "nothing is left to do, with {outstanding} requests outstanding"
        );
        assert_eq!(self.history.submitted(), self.plan.requests);
        self.history.check_end();
        let client = self.client.as_ref().expect("somebody is connected");
        assert_eq!(self.gateway.pending(), 0, "the gateway keeps a request");
        client.check_rest(self.server.held());
        self.sim.counts.add("requests", self.plan.requests);
        Rest::Over
    }
}

impl Share {
    fn strikes(&mut self, fault: Fault) -> bool {
        self.plan.fault == fault && self.sim.rng.percent(5)
    }

    fn connect(&mut self) {
        self.sim.count("connections");
        for queue in [
            &mut self.to_gateway,
            &mut self.to_server,
            &mut self.back,
            &mut self.to_client,
        ] {
            queue.clear();
        }
        self.cut = false;
        self.gateway = Gateway::new(IO_MAX);
        self.server.connect();
        self.client = Some(Client::new(&self.plan, self.previous));
    }

    fn lose(&mut self) {
        let Some(client) = self.client.take() else {
            return;
        };
        if client.session() != 0 {
            self.previous = client.session();
        }
        self.again.extend(client.unanswered());
        self.cut = true;
    }

    fn ask(&mut self) {
        let Some(client) = &mut self.client else {
            return;
        };
        if let Some(token) = self.again.pop() {
            if client.ask(token, &self.history, &self.plan, &mut self.sim) {
                self.sim.count("requests asked again");
            } else {
                self.again.push(token);
            }
            return;
        }
        let token = client::submit(&mut self.history, &mut self.sim);
        if !client.ask(token, &self.history, &self.plan, &mut self.sim) {
            self.history.take_back();
        }
    }

    fn reaches_gateway(&mut self) {
        let Some(message) = self.to_gateway.pop_front() else {
            return;
        };
        let lost = self.strikes(Fault::LosesMessage);
        let passed = self.gateway.from_client(&message);
        let message = match passed.expect("a client of ours keeps to the protocol") {
            ToServer::Pass => message,
            ToServer::Read(bytes) => bytes.to_vec(),
            ToServer::Write { head, from, len } => {
                let client = self.client.as_ref().expect("it asked a moment ago");
                let data = client.fetch(&from, len);
                [&head[..], &data].concat()
            }
        };
        if !lost {
            self.to_server.push_back(message);
        }
    }

    fn back_to_gateway(&mut self) {
        let Some(message) = self.back.pop_front() else {
            return;
        };
        let head = &message[..message.len().min(HEAD_MAX)];
        let passed = self.gateway.from_server(head, message.len());
        let client = self.client.as_mut().expect("somebody is connected");
        let (message, ends) = match passed.expect("a server of ours keeps to the protocol") {
            ToClient::Pass { invalidate } => (message, invalidate),
            ToClient::Place {
                at,
                len,
                to,
                answer,
                invalidate,
            } => {
                assert_eq!(answer.len(), ANSWER_LEN);
                let data = &message[at..at + len as usize];
                if self.plan.fault != Fault::ForgetsData {
                    client.place(&to, data);
                }
                (answer.to_vec(), invalidate)
            }
        };
        if let Some(token) = ends {
            self.sim.count("invalidations");
            client.invalidate(token);
        }
        self.to_client.push_back(message);
    }

    fn reaches_client(&mut self) {
        let Some(message) = self.to_client.pop_front() else {
            return;
        };
        let mut message = message;
        if self.strikes(Fault::LosesCredit) && message[14] > 1 {
            message[14] -= 1;
        }
        let Some(client) = &mut self.client else {
            return;
        };
        let refused = client.receive(message, &mut self.history, &mut self.sim);
        self.again.extend(refused);
    }
}
