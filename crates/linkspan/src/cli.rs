//! The command line: nouns, verbs and what they share.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{ArgAction, ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use linkspan_backends::image::qcow2::contains_panics;

use crate::exit::{Failure, Status};
use crate::plane::{Shows, Use, Used};
use crate::sandbox::Needs;
use crate::vm::{Machine, Offer};
use crate::{
    blk, conform, demo, display, doctor, driver, exit, fcopy, gpu, ic, inspect, k8s, log, net,
    page, pages, plane, sandbox, smb, smbdirect, supervisor, tether, upgrade, vdpa, vm,
};

/// How commands end.
const STATUS: &str = "Data goes to standard output, talk to standard error.\n\
    Exit status: 0 done, 1 failed, 2 wrong usage, 3 peer unreachable,\n\
    4 peer broke the protocol, 5 a permission or kernel feature is missing.";

/// The help of the program itself, which fits a screen.
const OVERVIEW: &str = "\
Data paths between virtual machines and the world.

Usage: linkspan [-v] COMMAND …; COMMAND --help has its options and examples

  blk                  serve a disk image to a virtual machine or this kernel
  net                  join virtual machines and interfaces into a network
  gpu, display         a screen for a virtual machine without a GPU; see it
  vdpa                 show vDPA devices of the kernel, and pass them on
  fcopy, ic            files into a guest of Hyper-V; its life and its clock
  smb, smbdirect       files on SMB shares; SMB Direct, without an RDMA card
  driver, conform      use a device without a guest; try others' back ends
  up, link, plane      run links from one file; start, end, check them
  upgrade              links of running guests go on in a new linkspan
  vm, k8s              run virtual machines on links; give links to pods
  inspect, top, trace  what links agreed upon, do, and say
  doctor               what this machine can do, and how to get the rest
  demo                 boot a Linux guest whose disk is served here
  man, completions     pages of the manual, and command lines for shells

-v says more, -vv all; LINKSPAN_LOG takes a filter, linkspan_engine=trace say.
--version says which one it is. Exit status: 0 done, 1 failed, 2 wrong usage,
3 peer unreachable, 4 peer broke the protocol, 5 permission or feature missing.
";

/// Data paths between virtual machines and the world.
#[derive(Debug, Parser)]
#[command(
    name = "linkspan",
    version,
    about,
    override_help = OVERVIEW,
    after_help = STATUS
)]
struct Cli {
    /// Says more; twice for everything. LINKSPAN_LOG takes a filter such as
    /// `linkspan_engine=trace`
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    /// The process that this one is a link of
    #[arg(long, hide = true, value_name = "PID")]
    supervisor: Option<i32>,

    /// What the plane calls this link
    #[arg(long, hide = true, value_name = "NAME", requires = "supervisor")]
    link_name: Option<String>,

    /// Take the link over from the process at the other end of this inherited socket
    #[arg(long, hide = true, value_name = "FD", requires = "supervisor")]
    take_over: Option<i32>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves a disk image to a virtual machine over vhost-user
    Blk(Box<blk::Args>),
    /// Joins virtual machines and interfaces of this machine into a network
    Net(net::Args),
    /// Serves a virtual GPU to a virtual machine over vhost-user; no GPU is needed
    Gpu(gpu::Args),
    /// Looks at a guest's screen
    Display(display::Args),
    /// Drives a device from this process, without a guest
    Driver(driver::Args),
    /// Tries back ends of others with what no front end may send
    Conform(conform::Args),
    /// Copies files into a guest over VMBus
    Fcopy(fcopy::Args),
    /// Asks a guest over VMBus whether it lives, to shut down, and tells it the time
    Ic(ic::Args),
    /// Reads and writes files on an SMB share
    Smb(smb::Args),
    /// Carries messages and memory by SMB Direct, over RDMA without a card
    Smbdirect(smbdirect::Args),
    /// Shows vDPA devices of the kernel, and passes them on to virtual machines
    Vdpa(vdpa::Args),
    /// Runs the links of a plane, each in a process of its own
    Up(supervisor::up::Args),
    /// Shows, starts and ends links of a plane that runs
    Link(supervisor::link::Args),
    /// Has links of a plane go on in new processes, which their guests hardly notice
    Upgrade(upgrade::Args),
    /// Runs virtual machines on links, and says what to start them with
    Vm(vm::Args),
    /// Shows all that there is to see of the links of a plane that runs
    Inspect(inspect::Args),
    /// Shows what the links of a plane do, again and again
    Top(inspect::top::Args),
    /// Shows the protocol messages of a link as they go by
    Trace(inspect::trace::Args),
    /// Checks files that declare links
    Plane(plane::Args),
    /// Serves the page of a plane: what `linkspan up --page` starts
    #[command(hide = true)]
    Page(page::Args),
    /// Offers links of a plane to pods
    K8s(k8s::Args),
    /// Says what this machine can do, and how to get the rest
    Doctor(doctor::Args),
    /// Boots a Linux guest whose disk is served by Linkspan
    Demo(demo::Args),
    /// Prints a page of the manual, or writes all of them
    Man(pages::ManArgs),
    /// Prints what a shell completes command lines with
    Completions(pages::CompletionsArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    end_on_panic();
    let code = run();
    log::finish();
    code
}

fn run() -> ExitCode {
    if fcopy::drop_in::is_called() {
        return fcopy::drop_in::main();
    }
    let matches = command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if let Some(name) = &cli.link_name {
        log::speak_as(name.clone());
    }
    log::to_stderr(cli.verbose);
    sandbox::set(&matches);
    let taken = cli.take_over.map_or(Ok(()), |fd| {
        upgrade::take_from(fd)?;
        match cli.command {
            Command::Blk(_) | Command::Net(_) => Ok(()),
            // Before it does anything that only one process may do.
            _ => Err(not_taken()),
        }
    });
    let is_up = cli.supervisor.is_none() && matches!(cli.command, Command::Up(_));
    if is_up && let Err(error) = log::wait_for_nobody() {
        return exit::code(Err(error.into()));
    }
    if let Some(pid) = cli.supervisor
        && let Err(error) = supervisor::follow(pid)
    {
        return exit::code(Err(error.into()));
    }
    if cli.supervisor.is_some() {
        tether::give();
        if let Err(failure) = confine(&cli.command) {
            return exit::code(Err(failure));
        }
    }
    // What enters a sandbox holds the line from within, as a thread of before would stay outside;
    // with the line comes the thread of the log. Who takes nothing over ends, and says why before.
    if (taken.is_err() || !confines_itself(&cli.command))
        && let Err(error) = tether::hold()
    {
        return exit::code(Err(error.into()));
    }
    let done = match taken {
        Ok(()) => carry_out(cli.command),
        Err(failure) => Err(failure),
    };
    if let Err(failure) = &done {
        upgrade::not_taken(failure);
    }
    match done {
        Ok(code) => code,
        Err(failure) => exit::code(Err(failure)),
    }
}

/// What a link says that is asked to take another one over and cannot.
fn not_taken() -> Failure {
    let error = anyhow!("a link of this kind cannot be taken over");
    Failure::new(Status::Failed, error).hint("`linkspan link restart`")
}

fn carry_out(command: Command) -> Result<ExitCode, Failure> {
    let done = match command {
        Command::Blk(args) => blk::run(&args),
        Command::Net(args) => net::run(&args),
        Command::Gpu(args) => gpu::run(&args),
        Command::Display(args) => display::run(&args),
        Command::Driver(args) => driver::run(&args),
        Command::Conform(args) => conform::run(&args),
        Command::Fcopy(args) => return fcopy::run(&args),
        Command::Ic(args) => ic::run(&args),
        Command::Smb(args) => smb::run(&args),
        Command::Smbdirect(args) => smbdirect::run(&args),
        Command::Vdpa(args) => vdpa::run(&args),
        Command::Up(args) => supervisor::up::run(&args),
        Command::Link(args) => supervisor::link::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Top(args) => inspect::top::run(&args),
        Command::Trace(args) => inspect::trace::run(&args),
        Command::Plane(args) => plane::run(&args),
        Command::Page(args) => page::run(&args),
        Command::K8s(args) => k8s::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Demo(args) => return Ok(demo_code(&args)),
        Command::Man(args) => pages::man(&args),
        Command::Completions(args) => pages::completions(&args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// The definition of the command line.
#[must_use]
pub fn command() -> clap::Command {
    sandbox::with_option(Cli::command())
}

/// What the link of a command line takes of this machine.
///
/// # Errors
/// The arguments are no command line.
pub(crate) fn uses(matches: &ArgMatches) -> Result<Vec<Used>, clap::Error> {
    Ok(used(&Cli::from_arg_matches(matches)?.command))
}

fn used(command: &Command) -> Vec<Used> {
    match command {
        Command::Blk(args) => args.uses(),
        Command::Net(args) => args.uses(),
        Command::Gpu(args) => args.uses(),
        Command::Display(args) => args.uses(),
        Command::Vdpa(args) => args.uses(),
        Command::Fcopy(args) => args.uses(),
        Command::Ic(args) => args.uses(),
        Command::Smb(args) => args.uses(),
        Command::Smbdirect(args) => args.uses(),
        Command::Vm(args) => args.uses(),
        Command::Driver(_)
        | Command::Conform(_)
        | Command::Up(_)
        | Command::Link(_)
        | Command::Upgrade(_)
        | Command::Inspect(_)
        | Command::Top(_)
        | Command::Trace(_)
        | Command::Plane(_)
        | Command::Page(_)
        | Command::K8s(_)
        | Command::Doctor(_)
        | Command::Demo(_)
        | Command::Man(_)
        | Command::Completions(_) => Vec::new(),
    }
}

/// What the link of a command line gives to virtual machines.
///
/// # Errors
/// The arguments are no command line.
pub(crate) fn offers(matches: &ArgMatches) -> Result<Vec<Offer>, clap::Error> {
    Ok(match Cli::from_arg_matches(matches)?.command {
        Command::Blk(args) => args.offers(),
        Command::Net(args) => args.offers(),
        Command::Gpu(args) => args.offers(),
        Command::Display(args) => args.offers(),
        Command::Vdpa(args) => args.offers(),
        _ => Vec::new(),
    })
}

/// The virtual machine that these arguments run.
pub(crate) fn machine(arguments: &[OsString]) -> Option<Machine> {
    match parsed(arguments)? {
        Command::Vm(args) => args.machine(),
        _ => None,
    }
}

/// Has the process of a link enter the sandbox of its kind.
fn confine(command: &Command) -> Result<(), Failure> {
    let used = used(command);
    match needs(command, &used) {
        Some(needs) => sandbox::enter(needs, &used),
        None => Ok(()),
    }
}

/// The sandbox of a command, unless it has one of its own.
fn needs(command: &Command, used: &[Used]) -> Option<Needs> {
    Some(match command {
        // Where the kernel's half of the device leaves its state.
        _ if used.iter().any(|(_, it)| matches!(it, Use::Vduse(_))) => Needs::Files,
        Command::Blk(args) if args.is_local() => Needs::Devices(&[]),
        Command::Net(_) => Needs::Devices(&[sandbox::TUN]),
        Command::Gpu(_) => Needs::Devices(&["/dev/udmabuf"]),
        // It serves browsers, and reaches screens by their sockets.
        Command::Page(_) => Needs::Network,
        it if confines_itself(it) => return None,
        // QEMU has a sandbox of its own, and is told of files by the user's options.
        Command::Vm(_) => return None,
        _ => Needs::Machine,
    })
}

/// Whether a command enters a sandbox later, which is to have all threads of the process.
fn confines_itself(command: &Command) -> bool {
    matches!(command, Command::Fcopy(args) if args.is_guest())
}

/// What these arguments have shown to viewers.
pub(crate) fn shows(arguments: &[OsString]) -> Option<Shows> {
    match parsed(arguments)? {
        Command::Gpu(args) => args.shows(),
        Command::Display(args) => args.shows(),
        _ => None,
    }
}

fn parsed(arguments: &[OsString]) -> Option<Command> {
    let name = OsString::from("linkspan");
    let line = [name].into_iter().chain(arguments.iter().cloned());
    let matches = command().try_get_matches_from(line).ok()?;
    Some(Cli::from_arg_matches(&matches).ok()?.command)
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
            log::finish();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// On a terminal of 24 lines with 80 columns, a line of which is the next prompt's.
    #[test]
    fn help_fits_a_screen_and_names_every_command() {
        let lines: Vec<&str> = OVERVIEW.lines().collect();
        let columns = lines.iter().map(|line| line.chars().count()).max();
        assert!(lines.len() < 24 && columns <= Some(80), "{lines:#?}");
        let named: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.strip_prefix("  "))
            .filter_map(|line| line.split("  ").next())
            .flat_map(|names| names.split(", "))
            .collect();
        let mut commands: Vec<String> = Cli::command()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(|command| command.get_name().to_owned())
            .collect();
        let mut sorted = named;
        sorted.sort_unstable();
        commands.sort_unstable();
        assert_eq!(sorted, commands);
    }

    /// As the security model has it. Who talks to browsers opens no file of this machine.
    #[test]
    fn each_command_has_its_sandbox() {
        for (line, expected) in [
            ("page", Some(Needs::Network)),
            (
                "blk --socket-path s --image mem:1M",
                Some(Needs::Devices(&[])),
            ),
            (
                "blk --socket-path s --image smb://a@h/s/d",
                Some(Needs::Machine),
            ),
            (
                "net --port responder",
                Some(Needs::Devices(&["/dev/net/tun"])),
            ),
            ("blk --vduse d --image mem:1M", Some(Needs::Files)),
            ("fcopy guest --root /in --connect s", None),
        ] {
            let arguments: Vec<OsString> = line.split(' ').map(Into::into).collect();
            let command = parsed(&arguments).expect(line);
            assert_eq!(needs(&command, &used(&command)), expected, "{line}");
        }
    }
}
