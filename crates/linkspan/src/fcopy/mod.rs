//! `linkspan fcopy`: files into a guest over VMBus, both ends.

mod command;
mod demo;
mod device;
pub(crate) mod drop_in;
mod guest;
mod host;
mod send;
mod settings;
mod source;

use std::path::Path;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Subcommand;
use linkspan_engine::vmbus::FramedError;
use linkspan_vmbus::link::{Outcome, Reason};

use crate::exit::{Failure, Status};
use crate::plane::Used;

/// Options of `linkspan fcopy`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: a folder from one program to another, on one machine\n\n  \
        linkspan fcopy demo docs --to /tmp/in\n\n\
        The same step by step:\n\n  \
        mkdir /tmp/in\n  \
        linkspan fcopy host --control /tmp/fcopy.sock &\n  \
        linkspan fcopy guest --root /tmp/in --connect /tmp/fcopy.sock &\n  \
        linkspan fcopy send --control /tmp/fcopy.sock docs --to /tmp/in"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Takes files from the host, below folders that are allowed
    Guest(guest::Args),
    /// Says whether this machine has the device of file copy
    Status(device::StatusArgs),
    /// Gives the device to the driver that passes it on, on kernels before Linux 6.10
    Bind(device::BindArgs),
    /// Offers the device to a guest, and sends it what `send` asks for
    Host(host::Args),
    /// Starts a host and a guest on this machine, and copies a file or a folder
    Demo(demo::Args),
    /// Sends files and folders through a host that runs
    Send(send::Args),
}

impl Args {
    /// What a link takes of this machine.
    pub(crate) fn uses(&self) -> Vec<Used> {
        match &self.verb {
            Verb::Guest(args) => args.uses(),
            Verb::Host(args) => args.uses(),
            _ => Vec::new(),
        }
    }
}

impl Args {
    /// Whether it is a guest, which enters a sandbox.
    pub(crate) fn is_guest(&self) -> bool {
        matches!(self.verb, Verb::Guest(_))
    }
}

/// Runs the command; its status is that of the program that it ran, if it did.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let done = match &args.verb {
        Verb::Guest(args) => guest::run(args),
        Verb::Status(args) => return Ok(device::run_status(args)),
        Verb::Bind(args) => device::run_bind(args),
        Verb::Host(args) => return host::run(args),
        Verb::Demo(args) => demo::run(args),
        Verb::Send(args) => send::run(args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// A connection to a host that failed.
pub(crate) fn unreachable(path: &Path, error: FramedError) -> Failure {
    let status = match &error {
        FramedError::Link(_) | FramedError::TooManyFds { .. } => Status::PeerBroke,
        FramedError::Cancelled => Status::Failed,
        _ => Status::PeerUnreachable,
    };
    let error = anyhow!(error).context(format!("the host at {}", path.display()));
    Failure::new(status, error)
}

/// A host that does not want us.
pub(crate) fn refused(path: &Path, reason: Reason) -> Failure {
    let status = match reason {
        Reason::Version => Status::PeerBroke,
        // Another may leave, or another host come.
        Reason::Busy | Reason::Interface => Status::PeerUnreachable,
        Reason::Role => Status::Usage,
    };
    let error = anyhow!(reason).context(format!("the host at {} refused", path.display()));
    Failure::new(status, error)
}

/// What an outcome is called in JSON.
fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done | Outcome::Verified => "done",
        Outcome::Refused { .. } => "refused",
        Outcome::Protocol => "protocol",
        Outcome::Silent => "silent",
        Outcome::Stopped => "stopped",
        Outcome::Source => "source",
        Outcome::NoGuest => "no-guest",
        Outcome::Lost => "lost",
        Outcome::Name => "name",
        Outcome::Differs { .. } => "differs",
        Outcome::Unread { .. } => "unread",
        Outcome::NoFolders => "no-folders",
    }
}
