//! The command line: nouns, verbs and what they share.

use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};
use linkspan_backends::image::qcow2::contains_panics;

use crate::{blk, demo, display, driver, exit, fcopy, gpu, ic, log, net, smbdirect, vdpa};

/// Data paths between virtual machines and the world.
#[derive(Debug, Parser)]
#[command(
    name = "linkspan",
    version,
    about,
    after_help = "Data goes to standard output, talk to standard error.\n\
        Exit status: 0 done, 1 failed, 2 wrong usage, 3 peer unreachable,\n\
        4 peer broke the protocol, 5 a permission or kernel feature is missing."
)]
struct Cli {
    /// Says more; twice for everything. LINKSPAN_LOG takes a filter such as
    /// `linkspan_engine=trace`
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves a disk image to a virtual machine over vhost-user
    Blk(blk::Args),
    /// Joins virtual machines and interfaces of this machine into a network
    Net(net::Args),
    /// Serves a virtual GPU to a virtual machine over vhost-user; no GPU is needed
    Gpu(gpu::Args),
    /// Looks at a guest's screen
    Display(display::Args),
    /// Drives a device from this process, without a guest
    Driver(driver::Args),
    /// Copies files into a guest over VMBus
    Fcopy(fcopy::Args),
    /// Asks a guest over VMBus whether it lives, to shut down, and tells it the time
    Ic(ic::Args),
    /// Carries messages and memory by SMB Direct, over RDMA without a card
    Smbdirect(smbdirect::Args),
    /// Shows vDPA devices of the kernel, and passes them on to virtual machines
    Vdpa(vdpa::Args),
    /// Boots a Linux guest whose disk is served by Linkspan
    Demo(demo::Args),
}

/// Runs the program.
pub fn main() -> ExitCode {
    end_on_panic();
    if fcopy::drop_in::is_called() {
        return fcopy::drop_in::main();
    }
    let cli = Cli::parse();
    log::to_stderr(cli.verbose);
    exit::code(match cli.command {
        Command::Blk(args) => blk::run(&args),
        Command::Net(args) => net::run(&args),
        Command::Gpu(args) => gpu::run(&args),
        Command::Display(args) => display::run(&args),
        Command::Driver(args) => driver::run(&args),
        Command::Fcopy(args) => match fcopy::run(&args) {
            Ok(code) => return code,
            Err(failure) => Err(failure),
        },
        Command::Ic(args) => ic::run(&args),
        Command::Smbdirect(args) => smbdirect::run(&args),
        Command::Vdpa(args) => vdpa::run(&args),
        Command::Demo(args) => return demo_code(&args),
    })
}

/// A panic is a bug of ours, and a process without one of its threads is worse than
/// none: the next one takes up what was in flight. Only where the code of others
/// reads an image of strangers is a panic an error of that image; so the program is
/// built to unwind, and ends itself everywhere else.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if !contains_panics() {
            std::process::abort();
        }
    }));
}

fn demo_code(args: &demo::Args) -> ExitCode {
    match demo::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("linkspan: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
