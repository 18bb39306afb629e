//! `linkspan display`: looks at a guest's screen.

use clap::Subcommand;

use crate::exit::Failure;

mod list;
mod shot;
mod show;
mod source;
mod vnc;

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
    }
}
