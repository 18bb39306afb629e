//! The program under the name of Linux's daemon, `hv_fcopy_uio_daemon`: with its
//! options, and with a file of settings for all that it has none for.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use super::guest::{Stay, serve};
use super::settings::Options;
use crate::sandbox::{self, Setting};
use crate::{exit, log};

/// The daemon's name.
pub(crate) const NAME: &str = "hv_fcopy_uio_daemon";

/// Takes files that a Hyper-V host copies into this machine.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about,
    after_help = "This is `linkspan fcopy guest` in the place of Linux's daemon. Where files may \
        go is said in /etc/linkspan/fcopy.toml, for example:\n\n  root = \"/srv/in\"\n\n\
        Exit status: 0 done, 1 failed, 2 wrong usage or settings, 3 the host's service is off,\n\
        5 no device, another driver has it, or a permission is missing."
)]
struct Args {
    /// Stays in the foreground
    #[arg(short, long)]
    no_daemon: bool,

    /// Settings, in TOML [default: /etc/linkspan/fcopy.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Whether the program was called by the daemon's name.
pub(crate) fn is_called() -> bool {
    let name = std::env::args_os().next();
    let name = name.as_deref().map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name == NAME)
}

/// Runs as the daemon. It leaves for the background once it has the device.
pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    let stay = if args.no_daemon {
        log::to_stderr(0);
        Stay::Foreground
    } else {
        log::to_syslog(NAME);
        Stay::Background
    };
    sandbox::choose(Setting::On);
    let settings = Options::of_file(args.config).settings();
    let done = settings.and_then(|settings| serve(&settings, false, stay));
    if let (Err(failure), Stay::Background) = (&done, stay) {
        // Nobody may look at standard error any more.
        tracing::error!("{failure}");
    }
    exit::code(done)
}
