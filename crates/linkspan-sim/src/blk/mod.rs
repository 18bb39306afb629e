//! A disk over vhost-user: front-end core and driver queues on one side, back-end core, device
//! queues and a model of a disk on the other, in one address space. Rings are split or packed, and
//! their requests in flight are written down where a back end that dies cannot take them along.

mod back;
mod front;
mod plan;
mod shared;
#[cfg(test)]
mod tests;

use crate::{Link, Mishap, Rest, Sim};

use crate::history::BLOCK;
use back::Back;
use front::Front;
pub(crate) use plan::Fault;
use shared::Shared;

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Bytes arrive.
    ToBack,
    ToFront,
    /// An end notices that its connection is gone.
    BackLoses,
    FrontLoses,
    /// The next connection is taken.
    Accept,
    /// There is a back end again.
    Spawn,
    /// A worker looks at its ring.
    Pass(u16),
    /// The disk does a piece of a request.
    Disk(u16),
    /// A user takes answers, or asks for something.
    Answers(u16),
    Submit(u16),
    /// A ring takes requests again.
    Enable,
    /// What a dead back end had begun is written, as a fault of the model.
    Ghost,
}

/// Both ends, and what they share.
pub(crate) struct Disk {
    shared: Shared,
    front: Front,
    back: Option<Back>,
    /// Whether everything was asked and answered, and the rings are being stopped.
    ending: bool,
    /// When, which block, and what.
    ghosts: Vec<(u64, u64, [u8; BLOCK])>,
}

impl Link for Disk {
    type Step = Step;
    type Fault = Fault;

    const NAME: &'static str = "blk";
    const MISHAPS: &'static [Mishap] = &[
        Mishap::ServerDies,
        Mishap::Cut,
        Mishap::HandOver,
        Mishap::Change,
        Mishap::Change,
        Mishap::Change,
    ];
    const CHANCE: u64 = 30;
    const HAPPENS: &'static [&'static str] = &[
        "requests",
        "deaths in a store",
        "reconnects",
        "rings begun anew",
        "resubmits",
        "restarts of a ring",
        "resets",
        "driver queues saved",
    ];

    fn new(seed: u64, fault: Fault) -> Self {
        let mut shared = Shared::new(seed, fault);
        let front = Front::new(&mut shared);
        Self {
            front,
            back: None,
            ending: false,
            ghosts: Vec::new(),
            shared,
        }
    }

    fn sim(&mut self) -> &mut Sim {
        &mut self.shared.sim
    }

    fn plan(&self) -> String {
        format!("{:#?}", self.shared.plan)
    }

    fn possible(&self, steps: &mut Vec<Step>) {
        steps.clear();
        let (wire, shared) = (&self.shared.wire, &self.shared);
        let mut add = |step, possible| {
            if possible {
                steps.push(step);
            }
        };
        add(
            Step::ToFront,
            !wire.to_front.is_empty() && self.front.wanted() > 0,
        );
        add(Step::FrontLoses, wire.closed);
        add(Step::Enable, self.front.has_disabled());
        let ghost = self.ghosts.first();
        add(
            Step::Ghost,
            ghost.is_some_and(|ghost| ghost.0 < shared.sim.steps),
        );
        add(Step::Spawn, self.back.is_none());
        for queue in 0..shared.plan.queues {
            add(Step::Answers(queue), self.front.has_answers(queue, shared));
            add(Step::Submit(queue), self.front.may_submit(queue, shared));
        }
        let Some(back) = &self.back else { return };
        let Some(session) = &back.session else {
            add(Step::Accept, !wire.closed);
            return;
        };
        let ours = session.wire == wire.number;
        add(Step::BackLoses, (!ours || wire.closed) && !session.lost);
        let bytes = ours && !session.lost && !wire.to_back.is_empty();
        add(Step::ToBack, bytes && session.wanted() > 0);
        for queue in 0..shared.plan.queues {
            add(Step::Pass(queue), session.has_pass(queue, shared));
            add(Step::Disk(queue), session.has_work(queue));
        }
    }

    fn step(&mut self, step: Step) {
        let shared = &mut self.shared;
        match step {
            Step::ToFront => self.front.receive(shared),
            Step::FrontLoses => self.front.lose(shared),
            Step::Enable => self.front.enable(shared),
            Step::Answers(queue) => self.front.take_answers(queue, shared),
            Step::Submit(queue) => self.front.submit(queue, shared),
            Step::Spawn => self.back = Some(Back::new(shared)),
            Step::Ghost => {
                let (_, block, bytes) = self.ghosts.remove(0);
                shared.history.write_block(block, &bytes);
            }
            step => {
                self.back_step(step);
                self.bury();
            }
        }
    }

    fn mishap(&mut self, mishap: Mishap) -> bool {
        let shared = &mut self.shared;
        match mishap {
            Mishap::ServerDies => return self.kill(),
            Mishap::Cut => shared.wire.closed = true,
            Mishap::HandOver => {
                let session = self.back.as_mut().and_then(|back| back.session.as_mut());
                let done = session.is_some_and(|session| session.hand_over(shared));
                self.bury();
                return done;
            }
            _ => {
                let runs = self.front.is_running();
                if runs {
                    self.front.disturb(shared);
                }
                return runs;
            }
        }
        true
    }

    fn rest(&mut self) -> Rest {
        if !self.ending {
            self.check_done();
            self.ending = true;
            self.shared.sim.mishaps = 0;
            self.front.stop(&mut self.shared);
            return Rest::Again;
        }
        // A back end may die of it, and then all is brought up once more.
        assert!(
            self.front.is_stopped() || self.front.is_running(),
            "it does not stop"
        );
        assert_eq!(self.shared.history.outstanding(), 0);
        Rest::Over
    }
}

impl Disk {
    /// Nothing is left to do, and that is so because everything was done.
    fn check_done(&mut self) {
        let (history, plan) = (&self.shared.history, &self.shared.plan);
        let (submitted, outstanding) = (history.submitted(), history.outstanding());
        assert!(
            submitted == plan.requests && outstanding == 0 && self.front.is_running(),
            "nothing is left to do, with {submitted} of {} requests submitted and {outstanding} outstanding",
            plan.requests
        );
        assert_eq!(self.front.outstanding(), 0);
        self.shared.history.check_end();
        self.shared.sim.counts.add("requests", submitted);
    }

    fn back_step(&mut self, step: Step) {
        let (shared, Some(back)) = (&mut self.shared, &mut self.back) else {
            return;
        };
        let Some(session) = &mut back.session else {
            shared.sim.note("back end accepts", shared.wire.number, 0);
            return back.accept(shared);
        };
        match step {
            Step::ToBack => session.receive(shared),
            Step::BackLoses => {
                shared
                    .sim
                    .note("back end loses connection", session.wire, 0);
                session.lose(shared);
            }
            Step::Pass(queue) => session.pass(queue, shared),
            Step::Disk(queue) => session.work(queue, shared),
            _ => {}
        }
        if session.is_over() {
            back.session = None;
        }
    }

    /// Whoever has lived out its stores is dead.
    fn bury(&mut self) {
        if self.back.as_ref().is_some_and(Back::is_dead) {
            self.shared.sim.count("deaths in a store");
            self.kill();
        }
    }

    /// The back end dies, if there is one; says whether there was.
    fn kill(&mut self) -> bool {
        let Some(back) = self.back.take() else {
            return false;
        };
        self.shared.sim.note("back end dies", 0, 0);
        let Some(session) = &back.session else {
            return true;
        };
        if self.shared.plan.fault == Fault::WritesAfterDeath {
            let half = session.half_written().into_iter();
            let due = self.shared.sim.steps + self.shared.sim.rng.below(400);
            self.ghosts
                .extend(half.map(|(block, bytes)| (due, block, bytes)));
        }
        if session.wire == self.shared.wire.number {
            self.shared.wire.closed = true;
        }
        true
    }
}
