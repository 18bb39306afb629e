//! A conformance kit: rules that a back end of vhost-user has to hold, hostile messages and
//! rings that find out, and a verdict for each rule.
//!
//! What is sent is made here, byte by byte, so that it can be wrong in any way; the
//! types of the product stay as strict as they are. A rule is something that a
//! specification says, or something that safety demands: after whatever a front end did, the
//! back end serves the next one.
#![forbid(unsafe_code)]

use std::io;

mod device;
mod front_end;
mod memory;
mod ring;
mod rules;
mod run;
mod start;

pub use device::Target;
pub use run::{Finding, RunError, Verdict, run};
pub use start::Starter;

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk.
    Blk,
    /// A network device.
    Net,
}

impl Kind {
    /// Rings of the smallest device that works: requests are made on the last of them.
    const fn rings(self) -> u16 {
        match self {
            Self::Blk => 1,
            Self::Net => 2,
        }
    }
}

/// Why a rule came to its end before it held.
#[derive(Debug, thiserror::Error)]
enum Stop {
    /// It does not concern this target.
    #[error("{0}")]
    NotApplicable(String),
    /// The target does not hold it.
    #[error("{0}")]
    Broken(String),
    /// The target refuses what was said, or closed the connection: that is its right if it was
    /// wrong, and a broken rule if it was not.
    #[error("{0}")]
    Refused(String),
    /// There is no connection.
    #[error("{0}")]
    Unreachable(String),
    /// This machine has no more of something.
    #[error("this machine: {0}")]
    Ours(#[from] io::Error),
}

/// A rule.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Its name, which stays.
    pub name: &'static str,
    /// What it says, in one sentence.
    pub says: &'static str,
    /// Where that stands.
    pub clause: &'static str,
    /// Whom it concerns.
    kinds: &'static [Kind],
    /// Tries it; what was seen if it holds.
    check: fn(&Target) -> Result<String, Stop>,
}

impl Rule {
    /// Whether it concerns targets of this kind.
    #[must_use]
    pub fn concerns(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// All rules about targets of this kind, in the order in which they are tried.
pub fn rules(kind: Kind) -> impl Iterator<Item = &'static Rule> {
    rules::all().filter(move |rule| rule.concerns(kind))
}
