//! `linkspan doctor`: what this machine can do, and how to get the rest.

mod checks;
#[cfg(test)]
mod fixture;
mod machine;

use std::io::Write as _;

use anyhow::anyhow;
use clap::ValueEnum;
use serde::Serialize;

use crate::exit::{Failure, Status};
use checks::{CHECKS, Check};
use machine::Machine;

/// Options of `linkspan doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    linkspan doctor                # everything\n  \
    linkspan doctor vdpa vduse     # what these want; status 5 if they do not work here\n\n\
    Nothing is changed. Most is read from /proc, /sys and /dev; memory files, io_uring, Landlock\n\
    and rdma-core are tried. Without LINK all is shown, and the exit status is about the links\n\
    that need no special kernel: all but vdpa, vduse and vm.")]
pub struct Args {
    /// Kinds of links that have to work [default: all that need no special kernel]
    #[arg(value_name = "LINK", value_enum)]
    links: Vec<Link>,

    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// A kind of link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Link {
    /// Disks over vhost-user
    Blk,
    /// Networks
    Net,
    /// Virtual GPUs
    Gpu,
    /// Screens
    Display,
    /// vDPA devices of the kernel
    Vdpa,
    /// Disks and interfaces of this machine's own kernel
    Vduse,
    /// Files into guests of Hyper-V
    Fcopy,
    /// The small services of Hyper-V
    Ic,
    /// Files on SMB shares
    Smb,
    /// SMB Direct
    Smbdirect,
    /// Virtual machines that are started here
    Vm,
}

impl Link {
    const ALL: &'static [Self] = &[
        Self::Blk,
        Self::Net,
        Self::Gpu,
        Self::Display,
        Self::Vdpa,
        Self::Vduse,
        Self::Fcopy,
        Self::Ic,
        Self::Smb,
        Self::Smbdirect,
        Self::Vm,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Blk => "blk",
            Self::Net => "net",
            Self::Gpu => "gpu",
            Self::Display => "display",
            Self::Vdpa => "vdpa",
            Self::Vduse => "vduse",
            Self::Fcopy => "fcopy",
            Self::Ic => "ic",
            Self::Smb => "smb",
            Self::Smbdirect => "smbdirect",
            Self::Vm => "vm",
        }
    }

    /// Whether it wants what a stock machine does not have.
    fn is_special(self) -> bool {
        matches!(self, Self::Vdpa | Self::Vduse | Self::Vm)
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    /// It is there.
    Works(String),
    /// It is not, or not enough of it.
    Lacks {
        /// What there is instead.
        found: String,
        /// The command or the change that mends it.
        mend: String,
    },
}

impl Finding {
    fn works(found: impl Into<String>) -> Self {
        Self::Works(found.into())
    }

    fn lacks(found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Lacks {
            found: found.into(),
            mend: mend.into(),
        }
    }

    fn is_good(&self) -> bool {
        matches!(self, Self::Works(_))
    }
}

/// How far something works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Works,
    /// Something is lost.
    Less,
    /// It does not work.
    Missing,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Less => "less",
            Self::Missing => "missing",
        }
    }
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether the links that count work.
    works: bool,
    links: Vec<LinkState>,
    checks: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct LinkState {
    link: Link,
    state: State,
    /// Whether the exit status is about it.
    counts: bool,
}

/// A check that was made.
#[derive(Debug, Serialize)]
struct Row {
    check: &'static str,
    links: &'static [Link],
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Row {
    fn new(check: &Check, machine: &Machine) -> Self {
        let (state, found, lost, mend) = match ((check.look)(machine), check.without) {
            (Finding::Works(found), _) => (State::Works, found, None, None),
            (Finding::Lacks { found, mend }, None) => (State::Missing, found, None, Some(mend)),
            (Finding::Lacks { found, mend }, lost) => (State::Less, found, lost, Some(mend)),
        };
        Self {
            check: check.name,
            links: check.links,
            state,
            found,
            lost,
            mend,
        }
    }

    fn wanted_by(&self) -> String {
        if self.links == Link::ALL {
            return "all".to_owned();
        }
        let names: Vec<_> = self.links.iter().map(|link| link.name()).collect();
        names.join(",")
    }
}

impl Report {
    /// Looks at a machine; `named` are the links that count, if any are.
    fn of(machine: &Machine, named: &[Link]) -> Self {
        let shown = |link: &Link| named.is_empty() || named.contains(link);
        let wanted = |check: &&Check| check.links.iter().any(shown);
        let checks = CHECKS.iter().filter(wanted);
        let checks: Vec<Row> = checks.map(|check| Row::new(check, machine)).collect();
        let links = Link::ALL.iter().copied().filter(shown).map(|link| {
            let its = checks.iter().filter(|row| row.links.contains(&link));
            LinkState {
                link,
                state: its.map(|row| row.state).max().unwrap_or(State::Works),
                counts: !named.is_empty() || !link.is_special(),
            }
        });
        let links: Vec<LinkState> = links.collect();
        let fails = |link: &LinkState| link.counts && link.state == State::Missing;
        Self {
            works: !links.iter().any(fails),
            links,
            checks,
        }
    }

    /// As people read it.
    fn table(&self) -> String {
        let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
        let names = width(&mut self.checks.iter().map(|row| row.check.len()));
        let mut text = String::new();
        for row in &self.checks {
            let (check, state) = (row.check, row.state.name());
            text += &format!("{state:<8} {check:<names$}  {}\n", row.found);
            if let Some(mend) = &row.mend {
                let lost = row.lost.unwrap_or("does not work");
                text += &format!("{:<8} {:<names$}  {}: {lost}\n", "", "", row.wanted_by());
                text += &format!("{:<8} {:<names$}  try: {mend}\n", "", "");
            }
        }
        text.push('\n');
        for state in [State::Works, State::Less, State::Missing] {
            let links = self.links.iter().filter(|link| link.state == state);
            let links: Vec<_> = links.map(|link| link.link.name()).collect();
            if !links.is_empty() {
                text += &format!("{:<8} {}\n", state.name(), links.join(", "));
            }
        }
        text
    }

    /// How the command ends.
    fn verdict(&self) -> Result<(), Failure> {
        if self.works {
            return Ok(());
        }
        let fails = |link: &&LinkState| link.counts && link.state == State::Missing;
        let links: Vec<_> = self
            .links
            .iter()
            .filter(fails)
            .map(|link| link.link.name())
            .collect();
        let error = anyhow!("not everything is here for {}", links.join(", "));
        Err(Failure::new(Status::Missing, error))
    }
}

/// Says what this machine can do.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    let report = Report::of(&Machine::this(), &args.links);
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&report)?)
    } else {
        report.table()
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    report.verdict()
}

#[cfg(test)]
mod tests;
