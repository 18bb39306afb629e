//! `linkspan fcopy send`: files and folders, one file after the other.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use linkspan_engine::vmbus::{Framed, FramedError};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_vmbus::link::{Frame, NAME_MAX, Outcome, Request, Role};
use serde::Serialize;

use crate::exit::{Failure, Status};
use crate::serving::print;

/// How long the host may take to say that it is there, and to take a file back.
const HOST_LIMIT: Duration = Duration::from_secs(10);

/// Folders in folders at most; what is deeper has a path that no message has room for.
const DEPTH_MAX: usize = 128;

/// Options of `send`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A destination that ends with a slash, or is a folder in the guest, gets the files \
        under their own names; any other is the file's own path. A folder is sent with all \
        files in it, and makes the folders that it needs.\n\n\
        Example:\n\n  \
        linkspan fcopy send --control /tmp/fcopy.sock notes.txt docs --to /srv/in/ --overwrite"
)]
pub(super) struct Args {
    /// The socket of the host
    #[arg(long, value_name = "PATH")]
    control: PathBuf,

    /// A file, or a folder with all that is in it
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Where they go in the guest
    #[arg(long, value_name = "PATH")]
    to: String,

    /// Makes folders that are missing in the guest
    #[arg(long)]
    create_path: bool,

    /// Replaces files that exist, if the guest allows it
    #[arg(long)]
    overwrite: bool,

    /// Seconds after which a guest that does not answer is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: u32,

    /// Prints what became of each file on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

/// A file to send, and where to.
struct Item {
    source: PathBuf,
    name: String,
    to: String,
    create_path: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    file: &'a Path,
    to: &'a str,
    bytes: u64,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Why a file was not sent.
enum Fault {
    Here(anyhow::Error),
    Guest(Outcome),
    Host(FramedError),
}

/// Sends all files.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let mut faults = Vec::new();
    let items = items(args, &mut faults)?;
    let mut sending = Sending {
        args,
        framed: connect(&args.control, &signals)?,
        signals,
        bar: progress(&items),
        status: None,
    };
    for (source, error) in faults {
        sending.failed(&source, "", &Fault::Here(error));
    }
    for (index, item) in items.iter().enumerate() {
        match sending.send(item) {
            Ok(bytes) => sending.sent(item, bytes),
            Err(fault) => {
                sending.failed(&item.source, &item.to, &fault);
                if sending.is_over(&fault) {
                    let left = items.len() - index - 1;
                    if left > 0 {
                        sending.say(&format!("{left} more files were not tried"));
                    }
                    break;
                }
            }
        }
    }
    sending.bar.finish_and_clear();
    match sending.status {
        None => Ok(()),
        Some(status) => Err(Failure::new(status, anyhow!("not all files were sent"))),
    }
}

fn connect(path: &Path, signals: &Signals) -> Result<Framed, Failure> {
    let unreachable = |error| super::unreachable(path, error);
    let mut framed = Framed::connect(path, Role::Sender).map_err(unreachable)?;
    let deadline = Instant::now() + HOST_LIMIT;
    let answer = framed.await_frame(signals.as_fd(), Some(deadline));
    match answer.map_err(unreachable)?.0 {
        Frame::Refused(reason) => Err(super::refused(path, reason)),
        // Nothing else is said to a sender now.
        _ => Ok(framed),
    }
}

struct Sending<'a> {
    args: &'a Args,
    framed: Framed,
    signals: Signals,
    bar: ProgressBar,
    /// What the program ends with, if anything failed.
    status: Option<Status>,
}

impl Sending<'_> {
    /// Sends a file; gives its size.
    fn send(&mut self, item: &Item) -> Result<u64, Fault> {
        let here = |error: std::io::Error| Fault::Here(error.into());
        let file = File::open(&item.source).map_err(here)?;
        let meta = file.metadata().map_err(here)?;
        if !meta.is_file() {
            return Err(Fault::Here(anyhow!("it is no file")));
        }
        let size = meta.len();
        let request = Request {
            file: item.name.clone(),
            path: item.to.clone(),
            overwrite: self.args.overwrite,
            create_path: item.create_path,
            size,
            patience: self.args.timeout.saturating_mul(1000),
        };
        let begun = self.bar.position();
        let frame = Frame::Send(request);
        let said = self.framed.say(&frame, &[file.as_fd()]);
        said.map_err(Fault::Host)?;
        let outcome = self.outcome(begun)?;
        self.bar.set_position(begun + size);
        match outcome {
            Outcome::Done => Ok(size),
            other => Err(Fault::Guest(other)),
        }
    }

    /// What becomes of the file that was begun. A signal takes it back.
    fn outcome(&mut self, begun: u64) -> Result<Outcome, Fault> {
        let mut deadline = None;
        loop {
            // The host sees to the guest's time; other senders may come first.
            let frame = self.framed.await_frame(self.signals.as_fd(), deadline);
            match frame {
                Ok((Frame::Progress { sent }, _)) => self.bar.set_position(begun + sent),
                Ok((Frame::Done(outcome), _)) => return Ok(outcome),
                Ok(_) => {}
                Err(FramedError::Cancelled) => {
                    let _ = self.signals.take();
                    if deadline.is_none() {
                        self.framed.say(&Frame::Cancel, &[]).map_err(Fault::Host)?;
                        let guest = Duration::from_secs(self.args.timeout.into());
                        deadline = Some(Instant::now() + guest + HOST_LIMIT);
                    }
                }
                Err(error) => return Err(Fault::Host(error)),
            }
        }
    }

    /// Whether nothing more is worth a try.
    fn is_over(&self, fault: &Fault) -> bool {
        match fault {
            Fault::Here(_) => false,
            Fault::Host(_) => true,
            Fault::Guest(outcome) => matches!(
                outcome,
                Outcome::Stopped | Outcome::NoGuest | Outcome::Silent | Outcome::Protocol
            ),
        }
    }

    fn sent(&self, item: &Item, bytes: u64) {
        if self.args.json {
            self.line(&item.source, &item.to, bytes, "done", None);
        }
    }

    fn failed(&mut self, source: &Path, to: &str, fault: &Fault) {
        let (status, outcome, reason) = match fault {
            Fault::Here(error) => (Status::Failed, "source", format!("{error:#}")),
            Fault::Guest(outcome) => {
                let status = match outcome {
                    Outcome::Protocol => Status::PeerBroke,
                    Outcome::NoGuest | Outcome::Silent | Outcome::Lost => Status::PeerUnreachable,
                    _ => Status::Failed,
                };
                (status, super::name(*outcome), outcome.to_string())
            }
            Fault::Host(FramedError::Link(error)) => (Status::PeerBroke, "host", error.to_string()),
            Fault::Host(error) => (Status::PeerUnreachable, "host", error.to_string()),
        };
        // The worst counts: a number says more the larger it is.
        let worse = self
            .status
            .is_none_or(|before| (before as u8) < status as u8);
        if worse {
            self.status = Some(status);
        }
        if self.args.json {
            self.line(source, to, 0, outcome, Some(reason.clone()));
        }
        self.say(&format!("{}: {reason}", source.display()));
    }

    fn line(&self, file: &Path, to: &str, bytes: u64, outcome: &'static str, why: Option<String>) {
        print(&Line {
            file,
            to,
            bytes,
            outcome,
            reason: why,
        });
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("linkspan: {text}"));
    }
}

/// All files, in the order of their names; what cannot be one is put aside.
fn items(args: &Args, faults: &mut Vec<(PathBuf, anyhow::Error)>) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    let many = args.files.len() > 1;
    for source in &args.files {
        let meta = match fs::metadata(source) {
            Ok(meta) => meta,
            Err(error) => {
                faults.push((source.clone(), error.into()));
                continue;
            }
        };
        let mut to = args.to.clone();
        if (many || meta.is_dir()) && !to.ends_with(['/', '\\']) {
            to.push('/');
        }
        let walk = Walk {
            overall: args.create_path || meta.is_dir(),
        };
        // `..` and `.` have names of their own.
        let whole = fs::canonicalize(source).unwrap_or_else(|_| source.clone());
        let named = if source.file_name().is_some() {
            source
        } else {
            &whole
        };
        walk.add(source, named, &to, 0, &mut items, faults);
    }
    if items.is_empty() && faults.is_empty() {
        let error = anyhow!("there is no file in what is to be sent");
        return Err(Failure::new(Status::Usage, error));
    }
    Ok(items)
}

struct Walk {
    /// Whether folders that are missing are made.
    overall: bool,
}

impl Walk {
    /// Adds a file, or a folder with all that is in it.
    fn add(
        &self,
        source: &Path,
        named: &Path,
        to: &str,
        depth: usize,
        items: &mut Vec<Item>,
        faults: &mut Vec<(PathBuf, anyhow::Error)>,
    ) {
        match self.entries(source, named, to, depth) {
            Ok(Found::File(item)) => items.push(item),
            Ok(Found::Folder(inner, entries)) => {
                for entry in entries {
                    self.add(&entry, &entry, &inner, depth + 1, items, faults);
                }
            }
            Err(error) => faults.push((source.to_owned(), error)),
        }
    }

    fn entries(
        &self,
        source: &Path,
        named: &Path,
        to: &str,
        depth: usize,
    ) -> Result<Found, anyhow::Error> {
        let name = named.file_name().context("it has no name")?;
        let name = name.to_str().context("its name is not UTF-8")?.to_owned();
        // What was named may be a link; what is in a folder may lead anywhere.
        let meta = if depth == 0 {
            fs::metadata(source)?
        } else {
            fs::symlink_metadata(source)?
        };
        if name.len() > NAME_MAX || to.len() > NAME_MAX || depth > DEPTH_MAX {
            return Err(anyhow!("{}", Outcome::Name));
        }
        if meta.is_dir() {
            let mut entries = Vec::new();
            for entry in fs::read_dir(source)? {
                entries.push(entry?.path());
            }
            entries.sort();
            return Ok(Found::Folder(format!("{to}{name}/"), entries));
        }
        if !meta.is_file() {
            return Err(anyhow!("it is neither a file nor a folder"));
        }
        Ok(Found::File(Item {
            source: source.to_owned(),
            name,
            to: to.to_owned(),
            create_path: self.overall,
        }))
    }
}

enum Found {
    File(Item),
    Folder(String, Vec<PathBuf>),
}

/// A bar on a terminal, nothing elsewhere.
fn progress(items: &[Item]) -> ProgressBar {
    let sizes = items.iter().map(|item| fs::metadata(&item.source));
    let total = sizes.flatten().map(|meta| meta.len()).sum();
    let style = ProgressStyle::with_template(
        "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
    );
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
