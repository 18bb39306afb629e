//! `linkspan display`: looks at a guest's screen, or gives it one.

use clap::Subcommand;

use crate::exit::Failure;
use crate::plane::{Shows, Used};
use crate::vm::Offer;

mod list;
mod serve;
mod shot;
mod show;
mod source;
mod vnc;
mod watch;

pub(crate) use vnc::listen;
pub(crate) use watch::{NOT_ENCRYPTED, reachable};

/// Options of `linkspan display`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "SOURCE is the socket of `linkspan gpu --display PATH`, a VFIO device, or pid:N \
        for a process that has one.\n\n\
        Example: what a guest shows, as a picture\n\n  \
        linkspan gpu --socket-path /tmp/gpu.sock --display /tmp/screen.sock &\n  \
        qemu-system-x86_64 … -chardev socket,id=g,path=/tmp/gpu.sock \\\n    \
          -device vhost-user-gpu-pci,chardev=g &\n  \
        linkspan display shot /tmp/screen.sock -o screen.png"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists what can be looked at: VFIO devices, who has them, GPUs of ours
    List(list::Args),
    /// Shows the planes of a source, and how they are read
    Show(show::Args),
    /// Writes what a screen shows now into a PNG file
    Shot(shot::Args),
    /// Shows a screen to VNC viewers
    Vnc(vnc::Args),
    /// Gives a guest a display over vfio-user
    Serve(serve::Args),
    /// Shows a screen on a web page
    Watch(watch::Args),
}

impl Args {
    /// What a link takes of this machine.
    pub(crate) fn uses(&self) -> Vec<Used> {
        match &self.command {
            Command::Serve(args) => args.uses(),
            _ => Vec::new(),
        }
    }

    /// What a link shows to viewers.
    pub(crate) fn shows(&self) -> Option<Shows> {
        match &self.command {
            Command::Serve(args) => args.shows(),
            _ => None,
        }
    }

    /// What a link gives to virtual machines.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        match &self.command {
            Command::Serve(args) => args.offers(),
            _ => Vec::new(),
        }
    }
}

/// Carries out a command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::List(args) => list::run(args),
        Command::Show(args) => show::run(args),
        Command::Shot(args) => shot::run(args),
        Command::Vnc(args) => vnc::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Watch(args) => watch::run(args),
    }
}
