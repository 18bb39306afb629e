//! `linkspan ic`: the small integration services of Hyper-V, both ends: whether the guest
//! lives, that it shuts down, what time it is.

mod guest;
mod host;

use clap::{Subcommand, ValueEnum};
use linkspan_vmbus::ic::{HEARTBEAT, SHUTDOWN, Service, TIME_SYNC, shutdown};

use crate::exit::Failure;
use crate::plane::Used;

/// Options of `linkspan ic`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: does the program at the other end of a socket live?\n\n  \
        linkspan ic host --control /tmp/ic.sock --services heartbeat &\n  \
        sleep 1\n  \
        linkspan ic guest --connect /tmp/ic.sock --services heartbeat"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Answers the host: lives, shuts down and takes the time as far as that is allowed
    Guest(guest::Args),
    /// Asks a guest whether it lives, to shut down, and tells it the time
    Host(host::Args),
}

impl Args {
    /// What a link takes of this machine.
    pub(crate) fn uses(&self) -> Vec<Used> {
        match &self.verb {
            Verb::Guest(_) => Vec::new(),
            Verb::Host(args) => args.uses(),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.verb {
        Verb::Guest(args) => guest::run(args),
        Verb::Host(args) => host::run(args),
    }
}

/// A service, as people name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Named {
    Heartbeat,
    Shutdown,
    Timesync,
}

impl Named {
    fn service(self) -> &'static Service {
        match self {
            Self::Heartbeat => &HEARTBEAT,
            Self::Shutdown => &SHUTDOWN,
            Self::Timesync => &TIME_SYNC,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Heartbeat => "heartbeat",
            Self::Shutdown => "shutdown",
            Self::Timesync => "timesync",
        }
    }

    fn of(service: &Service) -> &'static str {
        let all = Self::value_variants().iter();
        let mut named = all.filter(|named| named.service().kind == service.kind);
        named.next().map_or(service.name, |named| named.name())
    }
}

/// Each service once, in the order given.
fn services(named: &[Named]) -> Vec<Named> {
    let mut all: Vec<Named> = Vec::new();
    for name in named {
        if !all.contains(name) {
            all.push(*name);
        }
    }
    all
}

/// What a guest is to do, as people name it.
fn action_name(action: shutdown::Action) -> &'static str {
    match action {
        shutdown::Action::PowerOff => "poweroff",
        shutdown::Action::Restart => "reboot",
        shutdown::Action::Hibernate => "hibernate",
    }
}
