//! Tries rules, one after the other, and after each whether the target still serves.

use std::io;

use crate::{Rule, Starter, Stop, Target};

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
    /// It does not serve a front end that keeps to the rules.
    #[error("the target does not serve an honest front end: {0}")]
    Unfit(String),
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
    let mut process = Some(first(target)?);
    let mut findings = Vec::new();
    for &rule in rules {
        let verdict = if ends() {
            Verdict::NotRun("ended early".into())
        } else if let Some(before) = process {
            let verdict = tried(target, rule, before, starter.as_deref_mut())?;
            if matches!(verdict, Verdict::Died(_)) {
                process = match &mut starter {
                    Some(starter) => {
                        starter.start()?;
                        Some(first(target)?)
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

/// Whether the target serves at all; which process it is, if that can be seen.
fn first(target: &Target) -> Result<Option<u32>, RunError> {
    match target.serving() {
        Ok(device) => Ok(device.front.pid()),
        Err(Stop::Unreachable(text)) => Err(RunError::Unreachable(text)),
        Err(Stop::Ours(error)) => Err(error.into()),
        Err(stop) => Err(RunError::Unfit(stop.to_string())),
    }
}

/// Tries one rule, and then whether the target serves the next front end.
fn tried(
    target: &Target,
    rule: &Rule,
    before: Option<u32>,
    starter: Option<&mut Starter>,
) -> Result<Verdict, io::Error> {
    let seen = match (rule.check)(target) {
        Err(Stop::Ours(error)) => return Err(error),
        seen => seen,
    };
    let said = match &seen {
        Ok(seen) => seen.clone(),
        Err(stop) => stop.to_string(),
    };
    let died = match target.serving() {
        Err(Stop::Ours(error)) => return Err(error),
        Err(stop) => {
            let ended = starter.and_then(Starter::ended);
            Some(ended.unwrap_or_else(|| format!("the next front end: {stop}")))
        }
        Ok(device) if device.front.pid() != before => {
            Some("another process serves now".to_owned())
        }
        Ok(_) => None,
    };
    Ok(match (died, seen) {
        (Some(died), _) => Verdict::Died(format!("{said}; {died}")),
        (None, Ok(seen)) => Verdict::Held(seen),
        (None, Err(Stop::NotApplicable(why))) => Verdict::NotApplicable(why),
        (None, Err(stop)) => Verdict::Broken(stop.to_string()),
    })
}
