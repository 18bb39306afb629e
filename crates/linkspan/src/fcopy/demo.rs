//! `linkspan fcopy demo`: a host, a guest and a copy with one command, each end a process
//! of its own.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use crate::demo::process::supervised;
use crate::exit::{Failure, Status};

/// Options of `demo`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The destination is made if it is not there; the guest may write nowhere else.\n\n\
        Example:\n\n  \
        linkspan fcopy demo docs --to /tmp/in"
)]
pub(super) struct Args {
    /// A file, or a folder with all that is in it
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The folder that it goes to
    #[arg(long, value_name = "DIR")]
    to: PathBuf,

    /// Replaces files that exist
    #[arg(long)]
    overwrite: bool,

    /// Prints what became of each file on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

/// One end: a process that ends with the value.
struct End {
    child: Child,
}

impl End {
    /// Starts it, and waits until it says this.
    fn start(arguments: &[&Path], event: &str) -> Result<Self, anyhow::Error> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = supervised(&program);
        command.args(arguments).arg("--json");
        // Ctrl-C is for the copy, which ends in order while both ends are there.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut end = Self {
            child: command.spawn().context("cannot start this program")?,
        };
        let said = end.child.stdout.take().context("it has no output")?;
        let wanted = format!("\"event\":\"{event}\"");
        let mut lines = BufReader::new(said).lines();
        let came = lines.any(|line| line.is_ok_and(|line| line.contains(&wanted)));
        // What it says later is read, so that it is never held up.
        linkspan_sys::thread::spawn("fcopy demo", move || lines.for_each(drop))
            .context("cannot start a thread")?;
        if came {
            return Ok(end);
        }
        let status = end.child.wait().context("cannot wait for it")?;
        Err(anyhow!("it ended with {status}"))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Copies, and ends both ends.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let to = &args.to;
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let root = fs::canonicalize(to).with_context(|| format!("cannot find {}", to.display()))?;
    let text = root
        .to_str()
        .ok_or_else(|| Failure::new(Status::Usage, anyhow!("{} is not UTF-8", root.display())))?;
    let folder = tempfile::tempdir().context("cannot make a folder for the socket")?;
    let socket = folder.path().join("fcopy.sock");
    let words = |words: [&'static str; 3]| words.map(Path::new);
    let [fcopy, host, control] = words(["fcopy", "host", "--control"]);
    let host = End::start(&[fcopy, host, control, &socket], "listening");
    let host = host.context("the host")?;
    let [guest, connect, below] = words(["guest", "--connect", "--root"]);
    let mut arguments = vec![fcopy, guest, connect, &socket, below, &root];
    if args.overwrite {
        arguments.push(Path::new("--overwrite"));
    }
    let guest = End::start(&arguments, "joined").context("the guest")?;
    eprintln!(
        "linkspan: host {}, guest {} with root {}",
        host.child.id(),
        guest.child.id(),
        root.display()
    );
    let sent = super::send::run(&super::send::Args::of(
        socket,
        args.file.clone(),
        format!("{text}/"),
        args.overwrite,
        args.json,
    ));
    drop((guest, host));
    sent
}
