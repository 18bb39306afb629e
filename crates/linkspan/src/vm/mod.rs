//! `linkspan vm`: virtual machines on sockets of links: started, and the arguments told to
//! those who start them by themselves.
//!
//! A machine is described once, by the options of `run`; a plane's `[vm.NAME]` has the same
//! ones as keys. Who starts it only differs in how that is written down.

mod arguments;
mod libvirt;
mod machine;
mod others;
mod qemu;
mod run;

use clap::Subcommand;

use crate::exit::Failure;
use crate::plane::Used;
pub(crate) use machine::{Machine, Offer, Plug};

/// Options of `linkspan vm`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: a guest on a disk of this program\n\n  \
    linkspan blk --socket-path /tmp/disk.sock --image disk.img &\n  \
    linkspan vm run --disk /tmp/disk.sock --kernel vmlinuz --append root=/dev/vda \\\n    \
      --console guest.log")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs a virtual machine in QEMU until it powers off
    Run(Box<Machine>),
    /// Prints what a machine of a plane is started with, for who starts it
    Args(arguments::Args),
}

impl Args {
    /// What a machine takes of this machine.
    pub(crate) fn uses(&self) -> Vec<Used> {
        match &self.verb {
            Verb::Run(machine) => machine.uses(),
            Verb::Args(_) => Vec::new(),
        }
    }

    /// The machine that is to run.
    pub(crate) fn machine(self) -> Option<Machine> {
        match self.verb {
            Verb::Run(machine) => Some(*machine),
            Verb::Args(_) => None,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.verb {
        Verb::Run(machine) => run::run(machine),
        Verb::Args(args) => arguments::run(args),
    }
}
