//! What a supervisor does with its links, without processes and clocks: what happens goes
//! in, what is to be done comes out.
//!
//! A link is a process that is wanted or not. One that ends is started again by its policy,
//! after a pause that grows while it does not stay; one that is to end gets a signal, and
//! until its deadline time to finish. There is no state from which a link that somebody
//! wants does not come back, but for one: a process that says that it was started wrongly,
//! which would say so for ever.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::time::{Duration, Instant};

use crate::exit::Status;

/// The first pause before a link is started again.
pub const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest.
pub const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A process that ran as long as this has stayed, and the pauses begin anew.
pub const STAYED: Duration = Duration::from_secs(60);

/// When a link whose process has ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// Each time.
    Always,
    /// Unless it ended with status 0.
    #[default]
    OnFailure,
    /// Only when somebody asks for it.
    Never,
}

impl Restart {
    /// As a plane has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnFailure => "on-failure",
            Self::Never => "never",
        }
    }
}

/// A link as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What it is called.
    pub name: String,
    /// What the program is started with.
    pub arguments: Vec<OsString>,
    /// When it is started again.
    pub restart: Restart,
    /// Whether it is started without being asked for.
    pub start: bool,
    /// Whether it ends before those that do not: it uses them until it has ended.
    pub first: bool,
    /// How long it may take to say that it lives; who takes longer is killed.
    pub watchdog: Option<Duration>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// It was never started: the system refused.
    NotStarted,
}

/// The end of a process that was started wrongly.
const WRONG: End = End::Status(Status::Usage as i32);

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start a process for this link; there is none.
    Start {
        /// Which link.
        name: String,
        /// With what.
        arguments: Vec<OsString>,
    },
    /// Ask the link's process to end: SIGTERM.
    Terminate(String),
    /// End the link's process: SIGKILL.
    Kill(String),
    /// Ask the link's process whether it lives; [`Core::heard`] is its answer.
    Beat(String),
}

/// Where a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has no process, and nobody wants one.
    Stopped,
    /// It has one.
    Running,
    /// It has none until its pause is over.
    Pausing,
    /// Its process is to end.
    Ending,
}

/// A link as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it is called.
    pub name: String,
    /// Where it is.
    pub state: State,
    /// How its last process ended, if one did.
    pub last: Option<End>,
    /// How often it was started.
    pub starts: u64,
}

/// No link has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no link {0}")]
pub struct Unknown(pub String);

/// All that a reload changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Links that came.
    pub added: Vec<String>,
    /// Links that are gone.
    pub removed: Vec<String>,
    /// Links that are started anew since their arguments differ, or for the first time since
    /// they are now to start without being asked for.
    pub changed: Vec<String>,
}

/// The links of a plane.
#[derive(Debug)]
pub struct Core {
    links: BTreeMap<String, Link>,
    effects: VecDeque<Effect>,
    /// How long a process has to end.
    drain: Duration,
    /// All of it is to end.
    ending: bool,
}

#[derive(Debug)]
struct Link {
    arguments: Vec<OsString>,
    restart: Restart,
    start: bool,
    first: bool,
    watchdog: Option<Duration>,
    phase: Phase,
    /// The pause before the next start.
    pause: Duration,
    last: Option<End>,
    starts: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Stopped,
    Running {
        since: Instant,
        watch: Watch,
    },
    Pausing {
        until: Instant,
    },
    Ending {
        /// When it is killed; `None` once it was, or if it has all the time that it takes.
        deadline: Option<Instant>,
        then: Then,
        killed: bool,
    },
}

/// What is known of a process's life.
#[derive(Clone, Copy, Debug)]
enum Watch {
    /// It is not asked: nobody wants to know, or it was killed.
    Off,
    /// It lives, and is asked then.
    Asks(Instant),
    /// It was asked, and may take until then.
    Waits(Instant),
    /// It has taken most of its time, and has to have answered until then. The last part
    /// begins when that is seen: a machine that was halted, or a clock that jumped, takes
    /// its time from no process that lives.
    Last(Instant),
}

impl Watch {
    /// Of a process that lived at `now`.
    fn after(now: Instant, limit: Option<Duration>) -> Self {
        // So that who answers at once is seen to live twice within the limit.
        limit.map_or(Self::Off, |limit| Self::Asks(now + limit / 2))
    }

    fn due(self) -> Option<Instant> {
        match self {
            Self::Off => None,
            Self::Asks(due) | Self::Waits(due) | Self::Last(due) => Some(due),
        }
    }
}

/// What comes after an end that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Stop,
    Start,
    Forget,
}

impl Core {
    /// Without a link; a process has this long to end when it is asked to.
    pub fn new(drain: Duration) -> Self {
        Self {
            links: BTreeMap::new(),
            effects: VecDeque::new(),
            drain,
            ending: false,
        }
    }

    /// Makes the links those that are wanted: a link that is as it was keeps its process.
    pub fn reload(&mut self, drain: Duration, wanted: Vec<Wanted>, now: Instant) -> Changes {
        let mut changes = Changes::default();
        if self.ending {
            return changes;
        }
        self.drain = drain;
        let gone: Vec<String> = self
            .links
            .keys()
            .filter(|name| wanted.iter().all(|it| it.name != **name))
            .cloned()
            .collect();
        for name in gone {
            // One that is on its way out was gone before.
            if self.leave(&name, Then::Forget, now) {
                changes.removed.push(name);
            }
        }
        for it in wanted {
            match self.links.get_mut(&it.name) {
                None => {
                    changes.added.push(it.name.clone());
                    self.add(it, now);
                }
                Some(link) => {
                    link.restart = it.restart;
                    link.first = it.first;
                    link.watch(it.watchdog, now);
                    let begins = link.begins(it.start);
                    let forgotten = link.phase.is_forgotten();
                    let same = link.arguments == it.arguments;
                    link.arguments = it.arguments;
                    if forgotten {
                        changes.added.push(it.name.clone());
                        let then = if it.start { Then::Start } else { Then::Stop };
                        self.leave(&it.name, then, now);
                    } else if !same || begins {
                        changes.changed.push(it.name.clone());
                        if begins || link.takes_change(it.start) {
                            link.pause = PAUSE_MIN;
                            self.leave(&it.name, Then::Start, now);
                        }
                    }
                }
            }
        }
        changes
    }

    fn add(&mut self, wanted: Wanted, now: Instant) {
        let link = Link {
            arguments: wanted.arguments,
            restart: wanted.restart,
            start: wanted.start,
            first: wanted.first,
            watchdog: wanted.watchdog,
            phase: Phase::Stopped,
            pause: PAUSE_MIN,
            last: None,
            starts: 0,
        };
        self.links.insert(wanted.name.clone(), link);
        if wanted.start {
            self.begin(&wanted.name, now);
        }
    }

    /// Starts a link that somebody asks for, at once whatever its pause.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn start(&mut self, name: &str, now: Instant) -> Result<(), Unknown> {
        let link = self.known(name)?;
        link.pause = PAUSE_MIN;
        match link.phase {
            Phase::Stopped | Phase::Pausing { .. } => self.begin(name, now),
            Phase::Running { .. } => {}
            Phase::Ending { .. } => {
                self.leave(name, Then::Start, now);
            }
        }
        Ok(())
    }

    /// Ends a link's process as [`Core::stop`] does, and starts the next one at once; where there
    /// is none it is started.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn restart(&mut self, name: &str, now: Instant) -> Result<(), Unknown> {
        let link = self.known(name)?;
        if let Phase::Running { .. } = link.phase {
            link.pause = PAUSE_MIN;
            self.leave(name, Then::Start, now);
            return Ok(());
        }
        self.start(name, now)
    }

    /// Has a link's process finish, however long that takes, and starts none until somebody
    /// asks for it.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn drain(&mut self, name: &str, now: Instant) -> Result<(), Unknown> {
        self.stop(name, now)?;
        if let Some(Link {
            phase: Phase::Ending { deadline, .. },
            ..
        }) = self.links.get_mut(name)
        {
            *deadline = None;
        }
        Ok(())
    }

    /// Ends a link's process, and starts none until somebody asks for it.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn stop(&mut self, name: &str, now: Instant) -> Result<(), Unknown> {
        self.known(name)?;
        self.leave(name, Then::Stop, now);
        Ok(())
    }

    /// Ends all of it: those that use others before these.
    pub fn end(&mut self, now: Instant) {
        self.ending = true;
        let first = |link: &Link| link.first && link.phase.has_process();
        let waits = self.links.values().any(first);
        let links = self.links.iter();
        // What is used comes back until nobody uses it any more.
        let names = links.filter(|(_, link)| link.first || !waits);
        let names: Vec<String> = names.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.leave(&name, Then::Forget, now);
        }
    }

    /// A link's process has ended, or could not be started.
    pub fn ended(&mut self, name: &str, end: End, now: Instant) {
        let Some(link) = self.links.get_mut(name) else {
            return;
        };
        link.last = Some(end);
        match link.phase {
            Phase::Running { since, .. } => {
                if now.saturating_duration_since(since) >= STAYED {
                    link.pause = PAUSE_MIN;
                }
                if link.comes_back(end) {
                    let until = now + link.pause;
                    link.pause = (link.pause * 2).min(PAUSE_MAX);
                    link.phase = Phase::Pausing { until };
                } else {
                    link.phase = Phase::Stopped;
                }
            }
            Phase::Ending { then, .. } => {
                link.phase = Phase::Stopped;
                match then {
                    Then::Stop => {}
                    Then::Start => self.begin(name, now),
                    Then::Forget => {
                        self.links.remove(name);
                    }
                }
            }
            // It had none.
            Phase::Stopped | Phase::Pausing { .. } => {}
        }
        if self.ending {
            self.end(now);
        }
    }

    /// A link's process has said that it lives.
    pub fn heard(&mut self, name: &str, now: Instant) {
        if let Some(Link {
            phase: Phase::Running { watch, .. },
            watchdog,
            ..
        }) = self.links.get_mut(name)
            && let Watch::Waits(_) | Watch::Last(_) = watch
        {
            *watch = Watch::after(now, *watchdog);
        }
    }

    /// Time has passed: starts whose pause is over, and kills who had long enough.
    pub fn tick(&mut self, now: Instant) {
        let due: Vec<String> = self
            .links
            .iter()
            .filter(|(_, link)| link.phase.due().is_some_and(|due| due <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(link) = self.links.get_mut(&name) else {
                continue;
            };
            match &mut link.phase {
                Phase::Pausing { .. } => self.begin(&name, now),
                Phase::Ending {
                    deadline, killed, ..
                } => {
                    *deadline = None;
                    *killed = true;
                    self.effects.push_back(Effect::Kill(name));
                }
                Phase::Running { watch, .. } => {
                    let limit = link.watchdog.unwrap_or(PAUSE_MAX);
                    let last = limit / 4;
                    match *watch {
                        Watch::Asks(_) => {
                            *watch = Watch::Waits(now + (limit - last));
                            self.effects.push_back(Effect::Beat(name));
                        }
                        Watch::Waits(_) => *watch = Watch::Last(now + last),
                        Watch::Last(_) => {
                            *watch = Watch::Off;
                            self.effects.push_back(Effect::Kill(name));
                        }
                        Watch::Off => {}
                    }
                }
                Phase::Stopped => {}
            }
        }
    }

    /// When [`Core::tick`] has something to do next.
    pub fn due(&self) -> Option<Instant> {
        let links = self.links.values();
        links.filter_map(|link| link.phase.due()).min()
    }

    /// What is to be done, one by one.
    pub fn effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether all has ended that was to end.
    pub fn is_over(&self) -> bool {
        self.ending && self.links.is_empty()
    }

    /// What a link's process is started with, if it has one that is not to end.
    pub fn running(&self, name: &str) -> Option<&[OsString]> {
        let link = self.links.get(name)?;
        matches!(link.phase, Phase::Running { .. }).then_some(&link.arguments)
    }

    /// All links, by name.
    pub fn links(&self) -> impl Iterator<Item = Seen> + '_ {
        self.links.iter().map(|(name, link)| Seen {
            name: name.clone(),
            state: match link.phase {
                Phase::Stopped => State::Stopped,
                Phase::Running { .. } => State::Running,
                Phase::Pausing { .. } => State::Pausing,
                Phase::Ending { .. } => State::Ending,
            },
            last: link.last,
            starts: link.starts,
        })
    }

    fn known(&mut self, name: &str) -> Result<&mut Link, Unknown> {
        let unknown = || Unknown(name.to_owned());
        let link = self.links.get_mut(name).ok_or_else(unknown)?;
        if link.phase.is_forgotten() {
            return Err(unknown());
        }
        Ok(link)
    }

    /// Starts a link that has no process.
    fn begin(&mut self, name: &str, now: Instant) {
        let Some(link) = self.links.get_mut(name) else {
            return;
        };
        let watch = Watch::after(now, link.watchdog);
        link.phase = Phase::Running { since: now, watch };
        link.starts += 1;
        self.effects.push_back(Effect::Start {
            name: name.to_owned(),
            arguments: link.arguments.clone(),
        });
    }

    /// Ends a link's process if there is one; tells whether that changes anything.
    fn leave(&mut self, name: &str, next: Then, now: Instant) -> bool {
        let Some(link) = self.links.get_mut(name) else {
            return false;
        };
        match &mut link.phase {
            Phase::Running { .. } => {
                let deadline = Some(now + self.drain);
                link.phase = Phase::Ending {
                    deadline,
                    then: next,
                    killed: false,
                };
                self.effects.push_back(Effect::Terminate(name.to_owned()));
                true
            }
            // A deadline stays: who is asked twice does not get more time.
            Phase::Ending {
                deadline,
                then,
                killed,
            } => {
                if !*killed {
                    deadline.get_or_insert(now + self.drain);
                }
                std::mem::replace(then, next) != next
            }
            Phase::Stopped | Phase::Pausing { .. } => {
                link.phase = Phase::Stopped;
                match next {
                    Then::Stop => {}
                    Then::Start => self.begin(name, now),
                    Then::Forget => {
                        self.links.remove(name);
                    }
                }
                true
            }
        }
    }
}

impl Link {
    /// Has another watchdog from now on; one that is the same goes on.
    fn watch(&mut self, limit: Option<Duration>, now: Instant) {
        if self.watchdog != limit
            && let Phase::Running { watch, .. } = &mut self.phase
        {
            *watch = Watch::after(now, limit);
        }
        self.watchdog = limit;
    }

    /// Takes it that a link starts without being asked for, or not; whether it is to start
    /// now since it did not before. One that somebody ended who did was ended for good.
    fn begins(&mut self, start: bool) -> bool {
        let did = std::mem::replace(&mut self.start, start);
        let rests = matches!(self.phase, Phase::Stopped | Phase::Ending { .. });
        start && !did && rests
    }

    /// Whether it is started with other arguments at once; `start`: it is one that starts
    /// without being asked for.
    fn takes_change(&self, start: bool) -> bool {
        match self.phase {
            Phase::Running { .. } | Phase::Pausing { .. } => true,
            // Somebody ended it, or it is to start after its end anyway.
            Phase::Ending { .. } => false,
            // What made no sense may do so now.
            Phase::Stopped => start && self.last == Some(WRONG),
        }
    }

    /// Whether it is started again after this end.
    fn comes_back(&self, end: End) -> bool {
        // What makes no sense does not get better.
        let wrong = end == WRONG;
        match self.restart {
            Restart::Never => false,
            Restart::Always => !wrong,
            Restart::OnFailure => !wrong && end != End::Status(0),
        }
    }
}

impl Phase {
    fn has_process(self) -> bool {
        matches!(self, Self::Running { .. } | Self::Ending { .. })
    }

    fn due(self) -> Option<Instant> {
        match self {
            Self::Pausing { until } => Some(until),
            Self::Ending { deadline, .. } => deadline,
            Self::Running { watch, .. } => watch.due(),
            Self::Stopped => None,
        }
    }

    /// Whether its link is gone but for its process.
    fn is_forgotten(self) -> bool {
        let Self::Ending { then, .. } = self else {
            return false;
        };
        then == Then::Forget
    }
}

#[cfg(test)]
mod tests;
