//! SMB Direct: two connections with their users and what carries them, a pair in memory or
//! iWARP over a stream that is written and read in pieces of any size. Credits are few, posts are
//! refused, ends are saved and restored.

mod carrier;
pub mod ends;
mod luck;
mod places;
mod plan;
pub mod stream;
#[cfg(test)]
mod tests;
mod user;

use std::collections::{BTreeMap, VecDeque};

use linkspan_rdma::iwarp::WireError;
use linkspan_rdma::local::End;
use linkspan_rdma::verbs::{Failure, Key};
use linkspan_smbdirect::{Connection, Driver, Error, State};

use crate::{Link, Mishap, Rest, Rng, Sim};

use carrier::Carrier;
use luck::Luck;
use plan::{Fault, MESSAGE_MAX, Plan};
use stream::Stream;
use user::{Message, Offer, Said, User};

/// Both ends over the pair in memory.
pub(crate) type Local = Ends<End>;
/// Both ends over iWARP.
pub(crate) type Iwarp = Ends<Stream>;

/// The longest wait that is no stall: until a post that was refused is tried again.
const RETRY_MS: u64 = 100;

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The provider tells something.
    Event(usize),
    /// A driver does the next thing.
    Poll(usize),
    /// A provider says something, and hears something.
    Take(usize),
    Deliver(usize),
    /// A provider notices that the connection is gone.
    Lose(usize),
    /// A user sends, offers memory, transfers, tells that it is done, ends a registration.
    Send(usize),
    Offer(usize),
    Transfer(usize),
    Finish(usize),
    Deregister(usize),
    /// A user reads what has come.
    Read(usize),
}

/// What is between two ends.
#[derive(Debug)]
struct Wire<P> {
    /// What each end will hear.
    to: [VecDeque<P>; 2],
    /// Nothing arrives any more.
    cut: bool,
    /// Who has not noticed.
    unaware: [bool; 2],
}

impl<P> Wire<P> {
    fn new() -> Self {
        Self {
            to: [VecDeque::new(), VecDeque::new()],
            cut: false,
            unaware: [false; 2],
        }
    }

    /// Nothing of what is under way arrives.
    fn cut(&mut self) {
        self.cut = true;
        self.to.iter_mut().for_each(VecDeque::clear);
    }
}

/// Both ends, and what is between them.
pub(crate) struct Ends<C: Carrier> {
    plan: Plan<C::Way>,
    sim: Sim,
    luck: Luck,
    users: [User<C>; 2],
    wire: Wire<C::Packet>,
    /// Of this life: something went wrong, so that it may end.
    disturbed: bool,
    /// And one of them did what it must not.
    strayed: bool,
    phase: u64,
    /// In this phase everything was done, and so many signs of life are left to be waited for.
    resting: Option<u64>,
    /// All phases are over, and the connection is being ended.
    closing: bool,
    /// Messages and offers that are left to each end in this phase.
    left: [(u64, u64); 2],
    next: u64,
    /// Offers whose end was told, and writes of which nobody knows what became.
    offers: BTreeMap<u64, Offer>,
    spoilt: Vec<u64>,
}

impl<C: Carrier> Link for Ends<C> {
    type Step = Step;
    type Fault = Fault;

    const NAME: &'static str = C::NAME;
    const MISHAPS: &'static [Mishap] = &[
        Mishap::Cut,
        Mishap::Disconnect,
        Mishap::Silence,
        Mishap::Stray,
        Mishap::ClockJump,
    ];
    const CHANCE: u64 = 5;
    const HAPPENS: &'static [&'static str] = &[
        "messages",
        "segments",
        "empty messages",
        "messages kept",
        "transfers",
        "works",
        "invalidations",
        "posts refused",
        "terminates",
        "lives",
        "restores",
        "signs of life",
    ];

    fn new(seed: u64, fault: Fault) -> Self {
        let mut sim = Sim::new(seed);
        let plan = Plan::new(&mut sim.rng, fault, C::way);
        let luck = Luck {
            rng: Rng::new(sim.rng.next()),
            refusals: plan.refusals,
            refused: 0,
            fault,
        };
        sim.mishaps = plan.mishaps;
        sim.count("lives");
        Self {
            users: [0, 1].map(|at| User::new(at, &plan, 0)),
            wire: Wire::new(),
            disturbed: false,
            strayed: false,
            phase: 0,
            resting: None,
            closing: false,
            left: [(plan.messages, plan.offers); 2],
            next: 0,
            offers: BTreeMap::new(),
            spoilt: Vec::new(),
            plan,
            sim,
            luck,
        }
    }

    fn sim(&mut self) -> &mut Sim {
        &mut self.sim
    }

    fn plan(&self) -> String {
        format!("{:#?}", self.plan)
    }

    fn possible(&self, steps: &mut Vec<Step>) {
        for (at, user) in self.users.iter().enumerate() {
            let mut add = |step: fn(usize) -> Step, possible| {
                if possible {
                    steps.push(step(at));
                }
            };
            add(Step::Event, user.events);
            add(Step::Poll, user.outputs);
            add(Step::Take, user.packets);
            add(Step::Deliver, !self.wire.to[at].is_empty());
            add(Step::Lose, self.wire.unaware[at]);
            let runs = user.core().state() == State::Connected;
            let (messages, offers) = self.left[at];
            let room = runs && !user.full;
            add(Step::Send, room && messages > 0);
            add(Step::Offer, runs && offers > 0);
            add(Step::Transfer, room && !user.offers.is_empty());
            add(Step::Finish, room && !user.finishing.is_empty());
            add(Step::Deregister, runs && user.may_deregister());
            let message = user.core().message();
            let whole = self.plan.whole[at] && runs;
            let can = message.is_some_and(|it| it.is_whole() || (!whole && it.arrived > 0));
            add(Step::Read, can);
        }
    }

    fn step(&mut self, step: Step) {
        let (rng, now) = (&mut self.sim.rng, self.sim.now);
        match step {
            Step::Event(at) => self.users[at].event(now, &mut self.luck),
            Step::Poll(at) => {
                let said = self.users[at].poll(now, &mut self.luck);
                self.hear(at, said);
            }
            Step::Take(at) => self.take(at),
            Step::Deliver(at) => {
                if let Some(packet) = self.wire.to[at].pop_front() {
                    let user = &mut self.users[at];
                    let rest = user.side.end.deliver(packet, rng, &self.plan.way);
                    if let Some(rest) = rest {
                        self.wire.to[at].push_front(rest);
                    }
                    (user.events, user.packets) = (true, true);
                }
            }
            Step::Lose(at) => {
                self.wire.unaware[at] = false;
                let user = &mut self.users[at];
                user.side.end.lose();
                user.events = true;
            }
            Step::Send(at) => {
                let len = length(rng, &self.plan, at);
                let message = Message {
                    number: self.next,
                    len,
                    finishes: None,
                    invalidates: None,
                };
                let said = self.users[at].send(rng, message);
                self.next += 1;
                self.left[at].0 -= u64::from(said.is_some());
                self.hear(at, said);
            }
            Step::Offer(at) => {
                let said = self.users[at].offer(rng, &mut self.luck, self.next);
                self.next += 1;
                self.left[at].1 -= 1;
                self.hear(at, said);
            }
            Step::Transfer(at) => {
                let user = &mut self.users[at];
                if let Some(offer) = user.offers.pop_front() {
                    match user.transfer(rng, offer) {
                        Ok(()) => self.sim.count("transfers"),
                        Err(offer) => self.users[at].offers.push_back(offer),
                    }
                }
            }
            Step::Finish(at) => self.finish(at),
            Step::Deregister(at) => self.users[at].deregister(),
            Step::Read(at) => self.read(at),
        }
    }

    fn mishap(&mut self, mishap: Mishap) -> bool {
        let at = self.sim.rng.index(2);
        match mishap {
            Mishap::Cut => self.cut(),
            Mishap::Disconnect => self.users[at].core_mut().disconnect(),
            Mishap::Silence => self.wire.cut(),
            Mishap::Stray => {
                if !self.users[at].stray() {
                    return false;
                }
                self.strayed = true;
            }
            _ => {}
        }
        self.disturbed = true;
        true
    }

    fn rest(&mut self) -> Rest {
        let ended = self.users.each_ref().map(|user| user.ended.is_some());
        if self.closing {
            if ended.contains(&false) {
                return self.wait();
            }
            self.check_end();
            self.sim.counts.add("posts refused", self.luck.refused);
            return Rest::Over;
        }
        if ended == [true; 2] {
            self.check_end();
            self.reconnect();
            return Rest::Again;
        }
        if !self.is_done() || self.wire.cut {
            return self.wait();
        }
        let signs = match self.resting {
            Some(signs) => signs,
            None => self.begin_rest(),
        };
        let due = |user: &User<C>| user.core().next_timeout();
        let due = self.users.iter().filter_map(due).min();
        if let (Some(left), Some(due)) = (signs.checked_sub(1), due) {
            self.resting = Some(left);
            self.sim.count("signs of life");
            return Rest::Until(due);
        }
        self.next_phase();
        Rest::Again
    }

    fn tick(&mut self) {
        for user in &mut self.users {
            user.side.end.tick(self.sim.now);
            user.core_mut().handle_timeout(self.sim.now);
            (user.events, user.packets) = (true, true);
        }
    }
}

impl<C: Carrier> Ends<C> {
    fn is_done(&self) -> bool {
        let users = &self.users;
        self.left == [(0, 0); 2] && users.iter().all(|user| user.connected && user.is_idle())
    }

    /// Both ends are quiet, perhaps saved and restored; for how many signs of life they rest.
    fn begin_rest(&mut self) -> u64 {
        self.check_rest();
        if self.sim.rng.percent(50) {
            for at in [0, 1] {
                self.restore(at);
            }
        }
        let signs = self.sim.rng.below(3);
        self.resting = Some(signs);
        signs
    }

    /// The next phase, or the end.
    fn next_phase(&mut self) {
        self.resting = None;
        let ended = self.users.iter().any(|user| user.ended.is_some());
        assert!(
            !ended || self.disturbed || self.luck.refused > 0,
            "it ended while it rested"
        );
        if self.phase + 1 < self.plan.phases {
            self.phase += 1;
            self.left = [(self.plan.messages, self.plan.offers); 2];
            return;
        }
        self.count();
        self.users[self.sim.rng.index(2)].core_mut().disconnect();
        (self.disturbed, self.closing) = (true, true);
    }

    fn take(&mut self, at: usize) {
        let user = &mut self.users[at];
        let packet = user.side.end.take(&mut self.sim.rng, &self.plan.way);
        user.events = true;
        let Some(packet) = packet else {
            user.packets = false;
            return;
        };
        if !self.wire.cut {
            C::carry(packet, &mut self.wire.to[1 - at], &mut self.luck);
        }
    }

    /// What an end did is known to the other's user.
    fn hear(&mut self, from: usize, said: Option<Said>) {
        let other = &mut self.users[1 - from];
        match said {
            None => {}
            Some(Said::Sent(message)) => {
                self.sim.count("messages");
                other.awaited.push_back(message);
            }
            Some(Said::Unsent(message)) => {
                other.awaited.retain(|it| it.number != message.number);
                // A write before it may be why.
                self.spoilt.extend(message.finishes);
            }
            Some(Said::Offered(offer)) => other.offers.push_back(offer),
            Some(Said::Spoilt(number)) => self.spoilt.push(number),
        }
    }

    /// Tells the owner of memory that it is not needed any more.
    fn finish(&mut self, at: usize) {
        let Some((offer, known)) = self.users[at].finishing.pop_front() else {
            return;
        };
        let token = offer.descriptors.first().map(|it| Key(it.token));
        let message = Message {
            number: self.next,
            len: 1 + self.sim.rng.small(60),
            finishes: Some(offer.number),
            invalidates: token.filter(|_| self.sim.rng.percent(60)),
        };
        self.next += 1;
        let said = self.users[at].send(&mut self.sim.rng, message);
        if said.is_none() {
            self.users[at].finishing.push_back((offer, known));
            return;
        }
        if known {
            self.offers.insert(offer.number, offer);
        }
        self.hear(at, said);
    }

    fn read(&mut self, at: usize) {
        let len = if self.sim.rng.percent(50) {
            u32::MAX
        } else {
            1 + self.sim.rng.small(3000)
        };
        let Some((message, _)) = self.users[at].read(len) else {
            return;
        };
        let invalidated = message.invalidates.is_some().into();
        self.sim.counts.add("invalidations", invalidated);
        if let Some(number) = message.finishes
            && self.users[at].core().state() == State::Connected
        {
            let offer = &self.offers[&number];
            let spoilt = self.spoilt.contains(&number);
            self.users[at].finished(number, message.invalidates, spoilt, offer);
        }
    }

    fn cut(&mut self) {
        self.wire.cut();
        self.wire.unaware = [true; 2];
    }

    /// Nothing can be done but wait: until when.
    fn wait(&self) -> Rest {
        let due = self.users.iter().filter_map(User::next_timeout).min();
        let due = due.unwrap_or_else(|| panic!("nothing is left to do: {}", self.stall()));
        let disturbed = self.disturbed || self.luck.refused > 0;
        assert!(
            due <= self.sim.now + RETRY_MS || disturbed,
            "nothing is left to do but wait: {}",
            self.stall()
        );
        // Refused or not, what the provider has done is told.
        let untold = self.users.iter().any(User::awaits_its_provider);
        assert!(
            due <= self.sim.now + RETRY_MS || self.disturbed || !untold,
            "nothing is left to do, and work is not told: {}",
            self.stall()
        );
        Rest::Until(due)
    }

    fn stall(&self) -> String {
        let status = self.users.each_ref().map(|user| user.core().status());
        format!("{:?}, {status:#?}", self.left)
    }

    /// Everything of a life came back, and there was a reason that it ended.
    fn check_end(&mut self) {
        for at in [0, 1] {
            self.users[at].check_end(self.sim.now, &mut self.luck);
        }
        let errors = self.users.each_ref().map(|user| user.ended);
        let refused = self.luck.refused > 0;
        assert!(
            self.disturbed || refused,
            "it ended without a reason: {errors:?}, {:?}",
            self.users.each_ref().map(|user| user.side.driver.failure())
        );
        let blames_peer = |error: &Option<Error>| {
            error.is_some_and(|error| error.blame() == linkspan_smbdirect::Blame::Peer)
        };
        assert!(!errors.iter().any(blames_peer), "{errors:?}");
        let failures = self.users.each_ref().map(|user| user.side.driver.failure());
        for failure in failures.into_iter().flatten() {
            let broke = match failure {
                Failure::Wire(WireError::Terminated(_)) => {
                    self.sim.count("terminates");
                    true
                }
                // A message of which the rest was not sent any more.
                Failure::Wire(error) => error != WireError::Truncated,
                Failure::Refused { .. } => true,
                _ => false,
            };
            assert!(
                !broke || self.strayed,
                "they do not understand each other: {failures:?}"
            );
        }
    }

    /// A new connection, that knows nothing of the old one.
    fn reconnect(&mut self) {
        self.count();
        self.sim.count("lives");
        self.users = [0, 1].map(|at| User::new(at, &self.plan, self.sim.now));
        self.wire = Wire::new();
        (self.disturbed, self.strayed) = (false, false);
        self.resting = None;
        self.offers.clear();
    }

    /// Everything was done: all credits, buffers and registrations are where they were.
    fn check_rest(&self) {
        for (at, user) in self.users.iter().enumerate() {
            let status = user.core().status();
            let other = self.users[1 - at].core().status();
            assert_eq!(
                status.send_credits, other.receives_granted,
                "credits are lost"
            );
            let posted = u32::from(status.receives_available + status.receives_granted);
            assert_eq!(user.side.end.receives(), posted, "receives are lost");
            assert_eq!(user.side.end.lent(), 0, "buffers are lost");
            assert_eq!(status.registrations[1..], [0; 4], "registrations are left");
            let under_way = status.works + status.waiting + status.transfers;
            assert_eq!(under_way + status.held_buffers + status.messages, 0);
        }
    }

    fn restore(&mut self, at: usize) {
        let options = &self.plan.options[at];
        let user = &mut self.users[at];
        let bytes = match user.core().snapshot(self.sim.now) {
            Ok(bytes) => bytes,
            // Only while what was refused is to be tried again, or after the end.
            Err(busy) => {
                let known = self.luck.refused > 0 || self.disturbed;
                assert!(known, "{busy}, with nothing to do");
                return;
            }
        };
        self.sim.count("restores");
        let core = Connection::restore(options, &self.plan.limits, self.sim.now, &bytes);
        let core = core.expect("it was saved a moment ago");
        let again = core.snapshot(self.sim.now).expect("it is as quiet");
        assert_eq!(again, bytes);
        let headers = user.side.driver.headers();
        let old = std::mem::replace(&mut user.side.driver, Driver::new(core, headers));
        count(&mut self.sim, old.core());
        user.side.end.restore(self.sim.now);
        user.outputs = true;
    }

    fn count(&mut self) {
        for user in &self.users {
            count(&mut self.sim, user.core());
        }
    }
}

/// Counts what a connection has sent.
fn count(sim: &mut Sim, core: &Connection) {
    let traffic = core.status().traffic;
    for (name, count) in [
        ("segments", traffic.sends),
        ("empty messages", traffic.empty_sends),
        ("messages kept", traffic.kept),
        ("works", traffic.writes + traffic.reads),
    ] {
        sim.counts.add(name, count);
    }
}

/// The length of a message: of each class of how it is cut into fragments.
fn length<W>(rng: &mut Rng, plan: &Plan<W>, at: usize) -> u32 {
    let [own, other] = [&plan.options[at], &plan.options[1 - at]];
    let fragment = own.max_send_size.min(other.max_receive_size) - 24;
    let len = match rng.below(16) {
        0 => 1,
        1 => fragment,
        2 => fragment + 1,
        3 => fragment.saturating_mul(2),
        4 => fragment * (1 + rng.small(8)) + rng.small(2),
        5 if rng.percent(3) => MESSAGE_MAX,
        6 if rng.percent(10) => 1 + rng.small(MESSAGE_MAX / 2),
        _ => 1 + rng.small(2000),
    };
    len.clamp(1, MESSAGE_MAX)
}
