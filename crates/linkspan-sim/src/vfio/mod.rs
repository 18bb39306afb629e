//! A PCI device over vfio-user: client and server with a model of a device, whose answers take
//! time, and which asks for the client's memory itself. Bytes arrive in pieces, descriptors with
//! the first of them.

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use linkspan_vfio::{Irq, Offer, Region, wire::IRQ_EVENTFD};

use crate::{Link, Mishap, Rest, Rng, Sim};
use client::Client;
use server::Server;

/// Bytes of the region that is written and read.
const REGION: usize = 256;

/// A fault of the model, to see that the simulation finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Now and then a write is answered and not done.
    LosesWrite,
    /// Now and then a write is done twice, the second time after the next one.
    RepeatsWrite,
    /// Now and then a message is not delivered.
    LosesMessage,
    /// A device that is lost does what it had been asked for later.
    ActsAfterDeath,
    /// Now and then memory that the device reads is another one.
    ChangesMemory,
}

/// What a seed decides.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    fault: Fault,
    /// Questions of the client in all, and at a time.
    asks: u64,
    depth: usize,
    /// Maps at once.
    maps: usize,
    write_multiple: bool,
}

impl Plan {
    fn new(rng: &mut Rng, fault: Fault) -> Self {
        Self {
            fault,
            asks: 20 + rng.below(100),
            depth: 1 + rng.index(8),
            maps: 1 + rng.index(4),
            write_multiple: rng.percent(70),
        }
    }

    fn offer(&self) -> Offer {
        Offer {
            regions: vec![Region::of(REGION as u64)],
            irqs: vec![Irq {
                count: 4,
                flags: IRQ_EVENTFD,
            }],
            reset: true,
            dma_maps: self.maps as u64,
            planes: false,
        }
    }
}

/// One message under way: its bytes, its descriptors, and how much of it arrived.
#[derive(Debug)]
struct Message {
    bytes: Vec<u8>,
    fds: usize,
    arrived: usize,
}

/// What is under way to one end.
#[derive(Debug, Default)]
struct Pipe(VecDeque<Message>);

impl Pipe {
    fn put(&mut self, bytes: Vec<u8>, fds: usize) {
        let arrived = 0;
        self.0.push_back(Message {
            bytes,
            fds,
            arrived,
        });
    }

    /// A piece of the next message, and the descriptors that come with it.
    fn take(&mut self, wanted: usize, rng: &mut Rng) -> (Vec<u8>, usize) {
        let message = self.0.front_mut().expect("bytes are under way");
        let most = wanted.min(message.bytes.len() - message.arrived);
        let count = if rng.percent(70) {
            most
        } else {
            1 + rng.index(most)
        };
        let fds = if message.arrived == 0 { message.fds } else { 0 };
        let bytes = message.bytes[message.arrived..][..count].to_vec();
        message.arrived += count;
        if message.arrived == message.bytes.len() {
            self.0.pop_front();
        }
        (bytes, fds)
    }
}

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A new connection.
    Connect,
    /// Bytes arrive.
    ToServer,
    ToClient,
    /// An end notices that its connection is gone.
    ServerLoses,
    ClientLoses,
    /// The device does what it was asked for.
    Work,
    /// The device asks for memory.
    Question,
    /// The client answers one of these questions, or asks something itself.
    Reply,
    Ask,
}

/// Both ends, and what is between them.
pub(crate) struct Pci {
    plan: Plan,
    sim: Sim,
    client: Option<Client>,
    server: Option<Server>,
    to_server: Pipe,
    to_client: Pipe,
    /// The connection is gone; whoever has not noticed will.
    cut: bool,
    /// The region of the device.
    region: Vec<u8>,
    /// The same with what was answered alone.
    acknowledged: Vec<u8>,
    /// Writes of a connection that is gone, of which nobody was told: a first part of them was
    /// done.
    unknown: Vec<(usize, Vec<u8>)>,
    /// What a device that died does later, as a fault of the model.
    ghosts: Vec<(usize, Vec<u8>)>,
    left: u64,
}

impl Link for Pci {
    type Step = Step;
    type Fault = Fault;

    const NAME: &'static str = "vfio-user";
    const MISHAPS: &'static [Mishap] = &[
        Mishap::Cut,
        Mishap::Disconnect,
        Mishap::ServerDies,
        Mishap::ClientDies,
        Mishap::HandOver,
        Mishap::HandOver,
        Mishap::Refuse,
    ];
    const CHANCE: u64 = 30;
    const HAPPENS: &'static [&'static str] = &[
        "connections",
        "reads",
        "writes",
        "maps",
        "maps taken back",
        "maps refused",
        "interrupts set",
        "memory read",
        "memory written",
    ];

    fn new(seed: u64, fault: Fault) -> Self {
        let mut sim = Sim::new(seed);
        let plan = Plan::new(&mut sim.rng, fault);
        sim.mishaps = match fault {
            Fault::None | Fault::ActsAfterDeath => sim.rng.below(12),
            _ => 0,
        };
        Self {
            client: None,
            server: None,
            to_server: Pipe::default(),
            to_client: Pipe::default(),
            cut: false,
            region: vec![0; REGION],
            acknowledged: vec![0; REGION],
            unknown: Vec::new(),
            ghosts: Vec::new(),
            left: plan.asks,
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
        let (client, server) = (self.client.as_ref(), self.server.as_ref());
        add(Step::Connect, client.is_none() && server.is_none());
        if let Some(server) = server {
            add(Step::ServerLoses, self.cut);
            let bytes = !self.cut && !self.to_server.0.is_empty();
            add(Step::ToServer, bytes && server.core.wanted() > 0);
            add(Step::Work, server.work.is_some());
            let runs = client.is_some_and(|it| it.agreed && !it.maps.is_empty());
            add(
                Step::Question,
                runs && !self.cut && server.questions_left > 0,
            );
        }
        if let Some(client) = client {
            add(Step::ClientLoses, self.cut);
            let bytes = !self.cut && !self.to_client.0.is_empty();
            add(Step::ToClient, bytes && client.core.wanted() > 0);
            let room = client.agreed && client.waiting.len() < self.plan.depth;
            add(Step::Ask, !self.cut && room && self.left > 0);
            add(Step::Reply, !self.cut && !client.questions.is_empty());
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Connect => self.connect(),
            Step::ServerLoses => self.server_ends(),
            Step::ClientLoses => self.client_ends(),
            Step::ToServer => {
                let Some(server) = &mut self.server else {
                    return;
                };
                let wanted = server.core.wanted();
                let (bytes, fds) = self.to_server.take(wanted, &mut self.sim.rng);
                server::told(server.core.receive(&bytes, fds));
                self.serve();
            }
            Step::Work => {
                self.work();
                self.serve();
            }
            Step::Question => {
                let Some(server) = &mut self.server else {
                    return;
                };
                server.question(&mut self.sim);
                self.serve();
            }
            Step::ToClient => self.reaches_client(),
            Step::Reply => {
                let Some(client) = &mut self.client else {
                    return;
                };
                let changed = self.plan.fault == Fault::ChangesMemory;
                if let Some(bytes) = client.reply(&mut self.sim, changed) {
                    self.to_server.put(bytes, 0);
                }
            }
            Step::Ask => {
                let Some(client) = &mut self.client else {
                    return;
                };
                if let Some((bytes, fds)) = client.ask(&self.plan, &mut self.sim) {
                    self.to_server.put(bytes, fds);
                }
                self.left -= 1;
            }
        }
    }

    fn mishap(&mut self, mishap: Mishap) -> bool {
        match mishap {
            Mishap::Cut => self.cut = true,
            Mishap::Disconnect | Mishap::ServerDies => {
                if self.server.is_none() {
                    return false;
                }
                self.server_ends();
            }
            Mishap::ClientDies => {
                if self.client.is_none() {
                    return false;
                }
                self.client_ends();
            }
            Mishap::HandOver => {
                let server = self.server.as_mut().filter(|_| !self.cut);
                return server.is_some_and(|server| server.hand_over(&self.plan));
            }
            _ => match &mut self.server {
                Some(server) => server.refuses += 1,
                None => return false,
            },
        }
        true
    }

    fn rest(&mut self) -> Rest {
        let waiting = self.client.as_ref().map(|it| it.waiting.len());
        assert!(
            self.left == 0 && waiting == Some(0),
            "nothing is left to do, with {} to ask and {waiting:?} waiting",
            self.left
        );
        let (Some(client), Some(server)) = (&self.client, &self.server) else {
            panic!("nothing is left to do, and nobody is connected");
        };
        assert_eq!(self.region, self.acknowledged, "a write is lost");
        assert_eq!(self.region, client.region, "a write is lost");
        assert_eq!(server.core.maps(), client.maps, "the maps differ");
        assert!(server.asked.is_empty(), "a question is not answered");
        Rest::Over
    }
}

impl Pci {
    fn strikes(&mut self, fault: Fault) -> bool {
        self.plan.fault == fault && self.sim.rng.percent(5)
    }

    fn connect(&mut self) {
        self.sim.count("connections");
        self.check_unknown();
        self.cut = false;
        self.to_client = Pipe::default();
        self.to_server = Pipe::default();
        let (client, first) = Client::new(&self.plan, self.region.clone());
        self.client = Some(client);
        self.server = Some(Server::new(&self.plan, &mut self.sim.rng));
        self.to_server.put(first, 0);
    }

    /// Of the writes that nobody was told of the first ones were done, in their order, and no
    /// other one.
    fn check_unknown(&mut self) {
        for (at, bytes) in self.ghosts.drain(..) {
            self.region[at..][..bytes.len()].copy_from_slice(&bytes);
        }
        let mut region = std::mem::take(&mut self.acknowledged);
        let mut found = region == self.region;
        for (at, bytes) in self.unknown.drain(..) {
            region[at..][..bytes.len()].copy_from_slice(&bytes);
            found |= region == self.region;
        }
        assert!(found, "the region is none that the writes make");
        self.acknowledged = self.region.clone();
    }

    fn server_ends(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        server.core.disconnect();
        assert!(server.core.is_over() && server.core.maps().is_empty());
        self.cut = true;
        if self.plan.fault == Fault::ActsAfterDeath {
            self.ghosts.extend(server.ghost());
        }
    }

    fn client_ends(&mut self) {
        if let Some(client) = self.client.take() {
            self.unknown = client.unknown();
            self.cut = true;
        }
    }

    /// What the server wants now.
    fn serve(&mut self) {
        let lost = self.strikes(Fault::LosesMessage);
        let Some(server) = &mut self.server else {
            return;
        };
        for (bytes, fds) in server.proceed(&mut self.sim) {
            if !lost {
                self.to_client.put(bytes, fds);
            }
        }
    }

    fn work(&mut self) {
        let (lost, twice) = (
            self.strikes(Fault::LosesWrite),
            self.strikes(Fault::RepeatsWrite),
        );
        let Some(server) = &mut self.server else {
            return;
        };
        server.work(&mut self.region, lost, twice);
    }

    fn reaches_client(&mut self) {
        let Some(client) = &mut self.client else {
            return;
        };
        let wanted = client.core.wanted();
        let (bytes, fds) = self.to_client.take(wanted, &mut self.sim.rng);
        client.receive(&bytes, fds, &mut self.acknowledged, &mut self.sim);
    }
}
