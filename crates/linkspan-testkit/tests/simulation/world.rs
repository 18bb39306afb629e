//! Both ends, and who of them does the next step: the seed decides, among all
//! that can.

use linkspan_testkit::seeded;

use crate::back::Back;
use crate::front::Front;
use crate::plan::{BLOCK, Fault};
use crate::shared::{Happened, Shared};

/// Steps of a run at most: many times what any seed needs.
const STEPS_MAX: u64 = 100_000;

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
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

pub(crate) struct World {
    pub(crate) shared: Shared,
    front: Front,
    back: Option<Back>,
    mishaps: u64,
    /// When, which block, and what.
    ghosts: Vec<(u64, u64, [u8; BLOCK])>,
}

impl seeded::World for World {
    type Happened = Happened;

    fn run(&mut self) {
        self.settle();
        let (history, plan) = (&self.shared.history, &self.shared.plan);
        let (submitted, outstanding) = (history.submitted(), history.outstanding());
        assert!(
            submitted == plan.requests && outstanding == 0 && self.front.is_running(),
            "nothing is left to do, with {submitted} of {} requests submitted and {outstanding} outstanding",
            plan.requests
        );
        assert_eq!(self.front.outstanding(), 0);
        self.shared.history.check_end();
        self.shared.happened.requests += submitted;
        self.end();
    }

    fn happened(&self) -> Happened {
        self.shared.happened
    }

    fn story(&self) -> String {
        let (plan, events) = (&self.shared.plan, self.shared.events());
        format!("{plan:#?}\nthe last events:\n{events}")
    }
}

impl World {
    pub(crate) fn new(seed: u64, fault: Fault) -> Self {
        let mut shared = Shared::new(seed, fault);
        let front = Front::new(&mut shared);
        Self {
            front,
            back: None,
            mishaps: shared.plan.mishaps,
            ghosts: Vec::new(),
            shared,
        }
    }

    /// Steps until none is possible.
    fn settle(&mut self) {
        let mut steps = Vec::new();
        loop {
            self.possible(&mut steps);
            if steps.is_empty() {
                return;
            }
            self.shared.steps += 1;
            assert!(self.shared.steps < STEPS_MAX, "it does not come to an end");
            // Most of them while there is something to disturb.
            let chance = if self.front.is_running() { 3 } else { 1 };
            if self.mishaps > 0 && self.shared.rng.percent(chance) {
                self.mishaps -= 1;
                self.mishap();
                continue;
            }
            let step = steps[self.shared.rng.index(steps.len())];
            self.step(step);
        }
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
            ghost.is_some_and(|ghost| ghost.0 < shared.steps),
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

    fn back_step(&mut self, step: Step) {
        let (shared, Some(back)) = (&mut self.shared, &mut self.back) else {
            return;
        };
        let Some(session) = &mut back.session else {
            shared.note("back end accepts", shared.wire.number, 0);
            return back.accept(shared);
        };
        match step {
            Step::ToBack => session.receive(shared),
            Step::BackLoses => {
                shared.note("back end loses connection", session.wire, 0);
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
            self.kill();
        }
    }

    fn kill(&mut self) {
        let Some(back) = self.back.take() else { return };
        self.shared.note("back end dies", 0, 0);
        self.shared.happened.deaths += 1;
        let Some(session) = &back.session else { return };
        if self.shared.plan.fault == Fault::WritesAfterDeath {
            let half = session.half_written().into_iter();
            let due = self.shared.steps + self.shared.rng.below(400);
            self.ghosts
                .extend(half.map(|(block, bytes)| (due, block, bytes)));
        }
        if session.wire == self.shared.wire.number {
            self.shared.wire.closed = true;
        }
    }

    fn mishap(&mut self) {
        let shared = &mut self.shared;
        match shared.rng.below(8) {
            0 => self.kill(),
            1 => {
                shared.note("connection cut", shared.wire.number, 0);
                shared.wire.closed = true;
                shared.happened.cuts += 1;
            }
            2 => {
                let session = self.back.as_mut().and_then(|back| back.session.as_mut());
                if let Some(session) = session {
                    session.hand_over(shared);
                }
                self.bury();
            }
            _ if self.front.is_running() => self.front.disturb(shared),
            _ => {}
        }
    }

    /// The front end stops all rings, and there is nothing in flight anywhere.
    fn end(&mut self) {
        self.mishaps = 0;
        self.front.stop(&mut self.shared);
        self.settle();
        // A back end may die of it, and then all is brought up once more.
        assert!(
            self.front.is_stopped() || self.front.is_running(),
            "it does not stop"
        );
        assert_eq!(self.shared.history.outstanding(), 0);
    }
}
