//! Both ends and what is between them: the seed decides who does the next step, among
//! all that can.

use std::collections::{BTreeMap, VecDeque};

use linkspan_rdma::iwarp::WireError;
use linkspan_rdma::verbs::{Failure, Key};
use linkspan_smbdirect::{Connection, Driver, Error, State};
use linkspan_testkit::seeded::{self, Rng};

use super::end::{Luck, Message, Offer, Said, User};
use super::plan::{Fault, MESSAGE_MAX, Plan};
use crate::carrier::Carrier;

/// Steps of a run at most: many times what any seed needs.
const STEPS_MAX: u64 = 1_000_000;

/// The longest wait that is no stall: until a post that was refused is tried again.
const RETRY_MS: u64 = 100;

/// Things that happened that a failure tells of.
const EVENTS_KEPT: usize = 40;

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
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

/// How often what may happen did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Happened {
    pub(crate) messages: u64,
    pub(crate) segments: u64,
    pub(crate) empty: u64,
    pub(crate) kept: u64,
    pub(crate) transfers: u64,
    pub(crate) works: u64,
    pub(crate) invalidated: u64,
    pub(crate) refusals: u64,
    pub(crate) cuts: u64,
    pub(crate) disconnects: u64,
    pub(crate) silences: u64,
    /// Writes to where nobody may, and ends that heard that of the other.
    pub(crate) strays: u64,
    pub(crate) terminates: u64,
    pub(crate) lives: u64,
    pub(crate) restores: u64,
    pub(crate) keepalives: u64,
}

impl seeded::Happened for Happened {
    fn counts(&mut self) -> Vec<&mut u64> {
        vec![
            &mut self.messages,
            &mut self.segments,
            &mut self.empty,
            &mut self.kept,
            &mut self.transfers,
            &mut self.works,
            &mut self.invalidated,
            &mut self.refusals,
            &mut self.cuts,
            &mut self.disconnects,
            &mut self.silences,
            &mut self.strays,
            &mut self.terminates,
            &mut self.lives,
            &mut self.restores,
            &mut self.keepalives,
        ]
    }
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

pub(crate) struct World<C: Carrier> {
    plan: Plan<C::Way>,
    happened: Happened,
    rng: Rng,
    luck: Luck,
    users: [User<C>; 2],
    wire: Wire<C::Packet>,
    now: u64,
    steps: u64,
    /// The step at which the connection is cut.
    cut_at: Option<u64>,
    mishaps: u64,
    /// Of this life: something went wrong, so that it may end.
    disturbed: bool,
    /// And one of them did what it must not.
    strayed: bool,
    phase: u64,
    /// Messages and offers that are left to each end in this phase.
    left: [(u64, u64); 2],
    next: u64,
    /// Offers whose end was told, and writes of which nobody knows what became.
    offers: BTreeMap<u64, Offer>,
    spoilt: Vec<u64>,
    events: VecDeque<(u64, Step)>,
}

impl<C: Carrier> seeded::World for World<C> {
    type Happened = Happened;

    fn run(&mut self) {
        self.happened.lives = 1;
        loop {
            self.settle();
            if self.users.iter().all(|user| user.ended.is_some()) {
                self.check_end();
                self.reconnect();
                continue;
            }
            if self.is_done() && !self.wire.cut {
                self.check_rest();
                self.rest();
                if self.phase + 1 >= self.plan.phases {
                    break;
                }
                self.phase += 1;
                self.left = [(self.plan.messages, self.plan.offers); 2];
                continue;
            }
            self.wait();
        }
        self.count();
        self.users[self.rng.index(2)].core_mut().disconnect();
        self.disturbed = true;
        self.settle();
        while self.users.iter().any(|user| user.ended.is_none()) {
            self.wait();
            self.settle();
        }
        self.check_end();
        self.happened.refusals += self.luck.refused;
    }

    fn happened(&self) -> Happened {
        self.happened
    }

    fn story(&self) -> String {
        let lines = self.events.iter();
        let lines: String = lines
            .map(|(at, step)| format!("{at}: {step:?}\n"))
            .collect();
        format!("{:#?}\nthe last steps:\n{lines}", self.plan)
    }
}

impl<C: Carrier> World<C> {
    pub(crate) fn new(seed: u64, fault: Fault) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(&mut rng, fault, C::way);
        let luck = Luck {
            rng: Rng::new(rng.next()),
            refusals: plan.refusals,
            refused: 0,
            fault,
        };
        Self {
            happened: Happened::default(),
            luck,
            users: [0, 1].map(|at| User::new(at, &plan, 0)),
            wire: Wire::new(),
            now: 0,
            steps: 0,
            cut_at: None,
            mishaps: plan.mishaps,
            disturbed: false,
            strayed: false,
            phase: 0,
            left: [(plan.messages, plan.offers); 2],
            next: 0,
            offers: BTreeMap::new(),
            spoilt: Vec::new(),
            events: VecDeque::new(),
            rng,
            plan,
        }
    }

    /// The same with a connection that is cut at this step.
    pub(crate) fn cut_at(mut self, step: u64) -> Self {
        self.cut_at = Some(step);
        self
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    fn is_done(&self) -> bool {
        let users = &self.users;
        self.left == [(0, 0); 2] && users.iter().all(|user| user.connected && user.is_idle())
    }

    /// Steps until none is possible.
    fn settle(&mut self) {
        let mut steps = Vec::new();
        loop {
            self.possible(&mut steps);
            if steps.is_empty() {
                return;
            }
            self.steps += 1;
            assert!(self.steps < STEPS_MAX, "it does not come to an end");
            if self.cut_at == Some(self.steps) {
                self.cut();
            }
            if self.mishaps > 0 && self.rng.below(200) == 0 {
                self.mishaps -= 1;
                self.mishap();
                continue;
            }
            let step = steps[self.rng.index(steps.len())];
            if self.events.len() == EVENTS_KEPT {
                self.events.pop_front();
            }
            self.events.push_back((self.steps, step));
            self.step(step);
        }
    }

    fn possible(&self, steps: &mut Vec<Step>) {
        steps.clear();
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
        let (rng, now) = (&mut self.rng, self.now);
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
                        Ok(()) => self.happened.transfers += 1,
                        Err(offer) => self.users[at].offers.push_back(offer),
                    }
                }
            }
            Step::Finish(at) => self.finish(at),
            Step::Deregister(at) => self.users[at].deregister(),
            Step::Read(at) => self.read(at),
        }
    }

    fn take(&mut self, at: usize) {
        let user = &mut self.users[at];
        let packet = user.side.end.take(&mut self.rng, &self.plan.way);
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
                self.happened.messages += 1;
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
            len: 1 + self.rng.small(60),
            finishes: Some(offer.number),
            invalidates: token.filter(|_| self.rng.percent(60)),
        };
        self.next += 1;
        let said = self.users[at].send(&mut self.rng, message);
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
        let len = if self.rng.percent(50) {
            u32::MAX
        } else {
            1 + self.rng.small(3000)
        };
        let Some((message, _)) = self.users[at].read(len) else {
            return;
        };
        self.happened.invalidated += u64::from(message.invalidates.is_some());
        if let Some(number) = message.finishes
            && self.users[at].core().state() == State::Connected
        {
            let offer = &self.offers[&number];
            let spoilt = self.spoilt.contains(&number);
            self.users[at].finished(number, message.invalidates, spoilt, offer);
        }
    }

    fn mishap(&mut self) {
        let at = self.rng.index(2);
        match self.rng.below(4) {
            0 => self.cut(),
            1 => {
                self.happened.disconnects += 1;
                self.users[at].core_mut().disconnect();
            }
            2 => {
                // Nothing arrives, and nobody says so.
                self.happened.silences += 1;
                self.wire.cut();
            }
            _ => {
                if !self.users[at].stray() {
                    return;
                }
                self.happened.strays += 1;
                self.strayed = true;
            }
        }
        self.disturbed = true;
    }

    fn cut(&mut self) {
        self.happened.cuts += 1;
        self.disturbed = true;
        self.wire.cut();
        self.wire.unaware = [true; 2];
    }

    /// Nothing can be done but wait.
    fn wait(&mut self) {
        let due = self.users.iter().filter_map(User::next_timeout).min();
        let due = due.unwrap_or_else(|| panic!("nothing is left to do: {}", self.stall()));
        let disturbed = self.disturbed || self.luck.refused > 0;
        assert!(
            due <= self.now + RETRY_MS || disturbed,
            "nothing is left to do but wait: {}",
            self.stall()
        );
        // Refused or not, what the provider has done is told.
        let untold = self.users.iter().any(User::awaits_its_provider);
        assert!(
            due <= self.now + RETRY_MS || self.disturbed || !untold,
            "nothing is left to do, and work is not told: {}",
            self.stall()
        );
        self.pass_time(due);
    }

    fn stall(&self) -> String {
        let status = self.users.each_ref().map(|user| user.core().status());
        format!("{:?}, {status:#?}", self.left)
    }

    fn pass_time(&mut self, due: u64) {
        self.now = self.now.max(due);
        for user in &mut self.users {
            user.side.end.tick(self.now);
            user.core_mut().handle_timeout(self.now);
            (user.events, user.packets) = (true, true);
        }
    }

    /// Everything of a life came back, and there was a reason that it ended.
    fn check_end(&mut self) {
        for at in [0, 1] {
            self.users[at].check_end(self.now, &mut self.luck);
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
                    self.happened.terminates += 1;
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
        self.happened.lives += 1;
        self.users = [0, 1].map(|at| User::new(at, &self.plan, self.now));
        self.wire = Wire::new();
        (self.disturbed, self.strayed) = (false, false);
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

    /// Both ends are quiet: they are saved and restored, or asked for a sign of life.
    fn rest(&mut self) {
        if self.rng.percent(50) {
            for at in [0, 1] {
                self.restore(at);
            }
        }
        for _ in 0..self.rng.below(3) {
            let due = |user: &User<C>| user.core().next_timeout();
            if let Some(due) = self.users.iter().filter_map(due).min() {
                self.happened.keepalives += 1;
                self.pass_time(due);
                self.settle();
            }
        }
        let ended = self.users.iter().any(|user| user.ended.is_some());
        assert!(
            !ended || self.disturbed || self.luck.refused > 0,
            "it ended while it rested"
        );
    }

    fn restore(&mut self, at: usize) {
        let options = &self.plan.options[at];
        let user = &mut self.users[at];
        let bytes = match user.core().snapshot(self.now) {
            Ok(bytes) => bytes,
            // Only while what was refused is to be tried again, or after the end.
            Err(busy) => {
                let known = self.luck.refused > 0 || self.disturbed;
                assert!(known, "{busy}, with nothing to do");
                return;
            }
        };
        self.happened.restores += 1;
        let core = Connection::restore(options, &self.plan.limits, self.now, &bytes);
        let core = core.expect("it was saved a moment ago");
        let again = core.snapshot(self.now).expect("it is as quiet");
        assert_eq!(again, bytes);
        let headers = user.side.driver.headers();
        let old = std::mem::replace(&mut user.side.driver, Driver::new(core, headers));
        let traffic = old.core().status().traffic;
        self.happened.segments += traffic.sends;
        self.happened.empty += traffic.empty_sends;
        self.happened.kept += traffic.kept;
        self.happened.works += traffic.writes + traffic.reads;
        user.side.end.restore(self.now);
        user.outputs = true;
    }

    fn count(&mut self) {
        for user in &self.users {
            let traffic = user.core().status().traffic;
            self.happened.segments += traffic.sends;
            self.happened.empty += traffic.empty_sends;
            self.happened.kept += traffic.kept;
            self.happened.works += traffic.writes + traffic.reads;
        }
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
        4 => fragment * (1 + rng.small(20)) + rng.small(2),
        5 if rng.percent(20) => MESSAGE_MAX,
        6 if rng.percent(30) => 1 + rng.small(MESSAGE_MAX),
        _ => 1 + rng.small(2000),
    };
    len.clamp(1, MESSAGE_MAX)
}
