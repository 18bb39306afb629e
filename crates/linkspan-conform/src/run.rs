//! Tries rules, one after the other, and after each whether the target still serves.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use linkspan_vhost::message::Request;
use linkspan_vhost::wire;

use crate::front_end::Answer;
use crate::{Rule, Starter, Stop, Target};

/// How long an honest front end waits before it is looked whether the process has ended.
const GLANCE: Duration = Duration::from_secs(1);

/// What became of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The target holds it; what was seen.
    Held(String),
    /// The target broke it; what was seen.
    Broken(String),
    /// The target does not serve an honest front end any more.
    Died(String),
    /// It does not concern this target; why.
    NotApplicable(String),
    /// It was not tried; why.
    NotRun(String),
}

impl Verdict {
    /// One word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Held(_) => "held",
            Self::Broken(_) => "broken",
            Self::Died(_) => "died",
            Self::NotApplicable(_) => "n/a",
            Self::NotRun(_) => "not run",
        }
    }

    /// What was seen, or why nothing was.
    #[must_use]
    pub fn seen(&self) -> &str {
        match self {
            Self::Held(seen)
            | Self::Broken(seen)
            | Self::Died(seen)
            | Self::NotApplicable(seen)
            | Self::NotRun(seen) => seen,
        }
    }

    /// Whether the target did what it must not.
    #[must_use]
    pub fn is_against(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Died(_))
    }
}

/// A rule and what became of it.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The rule.
    pub rule: &'static Rule,
    /// What became of it.
    pub verdict: Verdict,
}

/// Why nothing can be said of a target.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// It cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// This machine has no more of something.
    #[error("{0}")]
    Ours(#[from] io::Error),
}

/// Tries these rules on the target and says each verdict as it is there. With a starter the
/// target is started with it, and anew when it has died; without, nothing is tried on a dead one.
/// `ends` is asked before each rule whether to end early.
///
/// # Errors
/// When the target cannot be tried at all.
pub fn run(
    target: &Target,
    rules: &[&'static Rule],
    mut starter: Option<&mut Starter>,
    ends: &mut dyn FnMut() -> bool,
    each: &mut dyn FnMut(&Finding),
) -> Result<Vec<Finding>, RunError> {
    if let Some(starter) = &mut starter {
        starter.start()?;
    }
    let mut state = Some(first(target)?);
    let mut findings = Vec::new();
    for &rule in rules {
        let verdict = if ends() {
            Verdict::NotRun("ended early".into())
        } else if let Some(before) = state {
            let verdict = tried(target, rule, before, starter.as_deref())?;
            if matches!(verdict, Verdict::Died(_)) {
                state = match &mut starter {
                    Some(starter) => {
                        starter.start()?;
                        match first(target) {
                            // What was found out is told all the same.
                            Err(RunError::Unreachable(_)) => None,
                            alive => Some(alive?),
                        }
                    }
                    None => None,
                };
            }
            verdict
        } else {
            Verdict::NotRun("the target died before".into())
        };
        let finding = Finding { rule, verdict };
        each(&finding);
        findings.push(finding);
    }
    Ok(findings)
}

/// What a target is like while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alive {
    /// The process that listens, if it can be seen.
    process: Option<u32>,
    /// Whether it serves an honest front end. One that never did is looked at all the same:
    /// its rules say what is wrong.
    serves: bool,
}

/// Whether the target is there at all, and what it is like.
fn first(target: &Target) -> Result<Alive, RunError> {
    let ours = |stop| match stop {
        Stop::Ours(error) => RunError::Ours(error),
        stop => RunError::Unreachable(stop.to_string()),
    };
    match alive(target, true) {
        Err(Stop::Unreachable(text)) => Err(RunError::Unreachable(text)),
        Err(_) => alive(target, false).map_err(ours),
        Ok(alive) => Ok(alive),
    }
}

/// What the target is like, if it is alive: it serves, or it says anything at all.
fn alive(target: &Target, serves: bool) -> Result<Alive, Stop> {
    let front = if serves {
        target.serving()?.front
    } else {
        let front = target.connect()?;
        front.send(&wire::encode(Request::GetFeatures.code(), 0, &[]), &[]);
        if !matches!(front.receive(target.patience)?, Answer::Message(..)) {
            return Err(Stop::Broken("no answer".into()));
        }
        front
    };
    Ok(Alive {
        process: front.pid(),
        serves,
    })
}

/// What the target is like, if it serves an honest front end in the time that it has: it may
/// still be busy with the one before, which closes a connection or two. One that was started
/// here and has ended is not waited for.
fn lives(target: &Target, serves: bool, starter: Option<&Starter>) -> Result<Alive, Stop> {
    let deadline = Instant::now() + target.patience;
    let mut probe = target.clone();
    if starter.is_some() {
        probe.patience = target.patience.min(GLANCE);
    }
    loop {
        if let Some(how) = starter.and_then(Starter::ended) {
            return Err(Stop::Unreachable(how));
        }
        let last = Instant::now() >= deadline;
        match alive(if last { target } else { &probe }, serves) {
            Err(stop) if last || matches!(stop, Stop::Ours(_)) => return Err(stop),
            Err(_) => thread::sleep(Duration::from_millis(20)),
            alive => return alive,
        }
    }
}

/// Tries one rule, and then whether the target serves the next front end.
fn tried(
    target: &Target,
    rule: &Rule,
    before: Alive,
    starter: Option<&Starter>,
) -> Result<Verdict, io::Error> {
    let seen = match (rule.check)(target) {
        Err(Stop::Ours(error)) => return Err(error),
        seen => seen,
    };
    let said = match &seen {
        Ok(seen) => seen.clone(),
        Err(stop) => stop.to_string(),
    };
    let died = match lives(target, before.serves, starter) {
        Err(Stop::Ours(error)) => return Err(error),
        Err(stop) => Some(format!("the next front end: {stop}")),
        Ok(after) if after != before => Some("another process serves now".to_owned()),
        Ok(_) => None,
    };
    Ok(match (died, seen) {
        (Some(died), _) => Verdict::Died(format!("{said}; {died}")),
        (None, Ok(seen)) => Verdict::Held(seen),
        (None, Err(Stop::NotApplicable(why))) => Verdict::NotApplicable(why),
        (None, Err(stop)) => Verdict::Broken(stop.to_string()),
    })
}
