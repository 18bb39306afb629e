//! The world that every link is simulated in: a seed, a clock, what happened, and a loop
//! that does one step after the other, among all that can be done.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;

use crate::Rng;

/// Steps of a run at most: many times what any seed needs.
const STEPS_MAX: u64 = 1_000_000;

/// Things that happened that a failure tells of.
const NOTES_KEPT: usize = 60;

/// How far the clock jumps at most, in milliseconds: longer than any limit of a protocol.
const JUMP_MS: u64 = 300_000;

/// What goes wrong in a world; a link says which of these it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// The connection is gone, with what is under way. Both ends will notice.
    Cut,
    /// Nothing arrives any more, and nobody is told.
    Silence,
    /// An end closes the connection in order.
    Disconnect,
    /// The end that serves dies, and is started again.
    ServerDies,
    /// The end that asks dies, and is started again.
    ClientDies,
    /// An end is saved, and goes on in another process.
    HandOver,
    /// An end does what it must not.
    Stray,
    /// The clock jumps forward.
    ClockJump,
    /// An operator or a driver changes something on a link that runs.
    Change,
    /// What is given out is given out no more for a while: credits, room in a ring.
    Starve,
    /// What one end asks of the system or of the other is refused: descriptors, room on a disk.
    Refuse,
}

impl Mishap {
    /// The name by which it is counted.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cut => "cuts",
            Self::Silence => "silences",
            Self::Disconnect => "disconnects",
            Self::ServerDies => "deaths of the server",
            Self::ClientDies => "deaths of the client",
            Self::HandOver => "hand-overs",
            Self::Stray => "strays",
            Self::ClockJump => "jumps of the clock",
            Self::Change => "changes",
            Self::Starve => "starvations",
            Self::Refuse => "refusals",
        }
    }
}

/// How often what may happen did, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    /// One more thing of this name, or several.
    pub fn add(&mut self, name: &'static str, count: u64) {
        *self.0.entry(name).or_default() += count;
    }

    /// How many there were.
    #[must_use]
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Adds those of another run.
    pub fn add_all(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            self.add(name, *count);
        }
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(name, count)| (*name, *count))
    }
}

/// What a world has whatever is in it.
#[derive(Debug)]
pub(crate) struct Sim {
    /// What decides.
    pub(crate) rng: Rng,
    /// The time in milliseconds, which passes only when nothing else can be done.
    pub(crate) now: u64,
    /// What happened.
    pub(crate) counts: Counts,
    /// Steps that were done.
    pub(crate) steps: u64,
    /// Things that may still go wrong.
    pub(crate) mishaps: u64,
    cut_at: Option<u64>,
    notes: VecDeque<(u64, &'static str, u64, u64)>,
}

impl Sim {
    /// A world of which nothing has happened.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            now: 0,
            counts: Counts::default(),
            steps: 0,
            mishaps: 0,
            cut_at: None,
            notes: VecDeque::new(),
        }
    }

    /// Takes down what happened, for the report of a failure.
    pub(crate) fn note(&mut self, what: &'static str, one: u64, two: u64) {
        if self.notes.len() == NOTES_KEPT {
            self.notes.pop_front();
        }
        self.notes.push_back((self.steps, what, one, two));
    }

    /// One more thing of this name happened.
    pub(crate) fn count(&mut self, name: &'static str) {
        self.counts.add(name, 1);
    }

    /// Has the connection cut before this step.
    #[cfg(test)]
    pub(crate) fn cut_at(&mut self, step: u64) {
        self.cut_at = Some(step);
    }

    fn story(&self) -> String {
        let line = |(step, what, one, two): &(u64, &str, u64, u64)| {
            format!("  {step:6} {what} {one} {two}\n")
        };
        self.notes.iter().map(line).collect()
    }
}

/// What a link comes to when nothing can be done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It has begun something else.
    Again,
    /// Something is due at that time, in milliseconds.
    Until(u64),
    /// All is done, and everything is where it was.
    Over,
}

/// Both ends of a link of one kind, and what is between them. What is wrong is a panic.
pub(crate) trait Link: Sized {
    /// Something that can happen next.
    type Step: Copy + Debug;
    /// A fault of the model, to see that the simulation finds it.
    type Fault: Copy + Debug + Default + Send + Sync + 'static;

    /// The name of the kind.
    const NAME: &'static str;
    /// What can go wrong.
    const MISHAPS: &'static [Mishap];
    /// In how many of a thousand steps it does, while that lasts.
    const CHANCE: u64;
    /// What else has to happen in some seed of a thousand, by name.
    const HAPPENS: &'static [&'static str];

    /// What this seed decides.
    fn new(seed: u64, fault: Self::Fault) -> Self;

    /// What every world has.
    fn sim(&mut self) -> &mut Sim;

    /// What the seed has decided, for the report of a failure.
    fn plan(&self) -> String;

    /// All that can be done now.
    fn possible(&self, steps: &mut Vec<Self::Step>);

    /// Does it.
    fn step(&mut self, step: Self::Step);

    /// Something goes wrong, if it can now; says whether it did.
    fn mishap(&mut self, mishap: Mishap) -> bool;

    /// Nothing can be done. Checks what has to hold then.
    fn rest(&mut self) -> Rest;

    /// The time is another one.
    fn tick(&mut self) {}
}

/// The last steps, with their numbers.
pub(crate) type Trail<S> = VecDeque<(u64, S)>;

/// One thing that can be done, or goes wrong; says whether there was any.
fn turn<L: Link>(link: &mut L, steps: &mut Vec<L::Step>, trail: &mut Trail<L::Step>) -> bool {
    steps.clear();
    link.possible(steps);
    if steps.is_empty() {
        return false;
    }
    let sim = link.sim();
    sim.steps += 1;
    assert!(sim.steps < STEPS_MAX, "it does not come to an end");
    if sim.cut_at == Some(sim.steps) {
        go_wrong(link, Mishap::Cut);
        return true;
    }
    if sim.mishaps > 0 && sim.rng.below(1000) < L::CHANCE {
        let mishap = L::MISHAPS[sim.rng.index(L::MISHAPS.len())];
        go_wrong(link, mishap);
        return true;
    }
    let step = steps[sim.rng.index(steps.len())];
    if trail.len() == NOTES_KEPT {
        trail.pop_front();
    }
    trail.push_back((sim.steps, step));
    link.step(step);
    true
}

fn go_wrong<L: Link>(link: &mut L, mishap: Mishap) {
    link.sim().note(mishap.name(), 0, 0);
    let done = match mishap {
        Mishap::ClockJump => {
            let sim = link.sim();
            sim.now += sim.rng.below(JUMP_MS);
            link.mishap(mishap);
            link.tick();
            true
        }
        _ => link.mishap(mishap),
    };
    let sim = link.sim();
    if done {
        sim.count(mishap.name());
        sim.mishaps = sim.mishaps.saturating_sub(1);
    }
}

/// To the end, where nothing is left to do.
pub(crate) fn run<L: Link>(link: &mut L, trail: &mut Trail<L::Step>) {
    let mut steps = Vec::new();
    loop {
        while turn(link, &mut steps, trail) {}
        match link.rest() {
            Rest::Again => {}
            Rest::Until(due) => {
                let sim = link.sim();
                sim.now = sim.now.max(due);
                link.tick();
            }
            Rest::Over => return,
        }
        let sim = link.sim();
        sim.steps += 1;
        assert!(sim.steps < STEPS_MAX, "it does not come to an end");
    }
}

/// What the seed has decided, the last steps, and the last things that happened.
pub(crate) fn story<L: Link>(link: &mut L, trail: &Trail<L::Step>) -> String {
    let plan = link.plan();
    let line = |(at, step): &(u64, L::Step)| format!("  {at:6} {step:?}\n");
    let steps: String = trail.iter().map(line).collect();
    format!(
        "{plan}\nthe last steps:\n{steps}the last things that happened:\n{}",
        link.sim().story()
    )
}
