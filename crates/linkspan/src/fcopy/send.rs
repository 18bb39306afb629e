//! `linkspan fcopy send`: files and folders, one file after the other.

mod items;

use std::borrow::Cow;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use linkspan_engine::vmbus::{Framed, FramedError};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_vmbus::link::{ASKS, Frame, Outcome, Request, Role};
use serde::Serialize;

use crate::exit::{Failure, Status};
use crate::serving::print;
use items::{Item, items};

/// How long the host may take to say that it is there, and to take a file back.
const HOST_LIMIT: Duration = Duration::from_secs(10);

/// Options of `send`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A destination that ends with a slash, or is a folder in the guest, gets the files \
        under their own names; any other is the file's own path. A folder is sent with all \
        files and folders in it, and makes the folders that it needs. A guest of ours reads \
        back what it has, and both ends compare.\n\n\
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

    /// Does not have files read back by a guest of ours
    #[arg(long)]
    no_verify: bool,

    /// Prints what became of each file on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// One file or folder, as the demonstration sends it.
    pub(super) fn of(
        control: PathBuf,
        file: PathBuf,
        to: String,
        overwrite: bool,
        json: bool,
    ) -> Self {
        Self {
            control,
            files: vec![file],
            to,
            create_path: false,
            overwrite,
            timeout: 30,
            no_verify: false,
            json,
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    /// As far as it is text.
    file: Cow<'a, str>,
    to: &'a str,
    bytes: u64,
    /// Whether it was read back and is the same.
    verified: bool,
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
    let mut faults = Vec::new();
    // Until here a signal ends the program, as it is to.
    let items = items(args, &mut faults);
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let mut sending = Sending {
        args,
        framed: connect(&args.control, &signals)?,
        signals,
        stopping: false,
        bar: progress(&items),
        arrived: 0,
        bytes: 0,
        unverified: 0,
        status: None,
    };
    for (source, error) in faults {
        sending.failed(&source, "", &Fault::Here(error));
    }
    let mut left = items.len();
    for item in &items {
        if sending.is_stopped() {
            break;
        }
        left -= 1;
        match sending.send(item) {
            Ok(sent) => sending.sent(item, sent),
            Err(fault) => {
                sending.failed(&item.source, &item.to, &fault);
                if sending.is_over(&fault) {
                    break;
                }
            }
        }
    }
    if left > 0 {
        sending.say(&format!("{left} more files were not tried"));
        sending.fail(Status::Failed);
    }
    sending.bar.finish_and_clear();
    sending.sum_up();
    if sending.unverified > 0 {
        let files = sending.unverified;
        sending.say(&format!(
            "{files} files are there but not verified: the guest, or the host, cannot read back"
        ));
    }
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
    /// A signal has come.
    stopping: bool,
    bar: ProgressBar,
    /// Files that the guest has, and their bytes.
    arrived: usize,
    bytes: u64,
    /// Files that were to be read back and were not.
    unverified: usize,
    /// What the program ends with, if anything failed.
    status: Option<Status>,
}

/// A file that the guest has.
struct Sent {
    bytes: u64,
    verified: bool,
}

impl Sending<'_> {
    /// Whether a signal has come, before a file or while one was under way.
    fn is_stopped(&mut self) -> bool {
        let came = self.signals.take();
        self.stopping |= came.is_ok_and(|signals| !signals.is_empty());
        self.stopping
    }

    /// Sends a file, or has a folder made.
    fn send(&mut self, item: &Item) -> Result<Sent, Fault> {
        let here = |error: std::io::Error| Fault::Here(error.into());
        let file = File::open(&item.source).map_err(here)?;
        let meta = file.metadata().map_err(here)?;
        let knows = self.framed.version() >= ASKS;
        let size = match item.folder {
            true if !meta.is_dir() => return Err(Fault::Here(anyhow!("it is no folder"))),
            true if !knows => return Err(Fault::Guest(Outcome::NoFolders)),
            true => 0,
            false if !meta.is_file() => return Err(Fault::Here(anyhow!("it is no file"))),
            false => meta.len(),
        };
        let request = Request {
            file: item.name.clone(),
            path: item.to.clone(),
            overwrite: self.args.overwrite,
            create_path: item.create_path,
            size,
            patience: self.args.timeout.saturating_mul(1000),
            verify: knows && !item.folder && !self.args.no_verify,
            folder: item.folder,
        };
        let begun = self.bar.position();
        let frame = Frame::Send(request);
        let said = self.framed.say(&frame, &[file.as_fd()]);
        said.map_err(Fault::Host)?;
        let outcome = self.outcome(begun)?;
        self.bar.set_position(begun + size);
        let verified = outcome == Outcome::Verified;
        match outcome {
            Outcome::Done | Outcome::Verified => Ok(Sent {
                bytes: size,
                verified,
            }),
            other => Err(Fault::Guest(other)),
        }
    }

    /// What becomes of the file that was begun. A signal takes it back; a second one
    /// does not wait until that is done.
    fn outcome(&mut self, begun: u64) -> Result<Outcome, Fault> {
        let mut deadline = None;
        loop {
            // The host sees to the guest's time; other senders may come first.
            let frame = self.framed.await_frame(self.signals.as_fd(), deadline);
            match frame {
                Ok((Frame::Progress { sent, checked }, _)) => {
                    self.bar.set_position(begun + sent);
                    if let Some(percent) = (checked * 100).checked_div(sent) {
                        self.bar.set_message(format!(", {percent} % read back"));
                    }
                }
                Ok((Frame::Done(outcome), _)) => {
                    self.bar.set_message("");
                    return Ok(outcome);
                }
                Ok(_) => {}
                Err(FramedError::Cancelled) if deadline.is_none() => {
                    let _ = self.signals.take();
                    self.stopping = true;
                    self.framed.say(&Frame::Cancel, &[]).map_err(Fault::Host)?;
                    let guest = Duration::from_secs(self.args.timeout.into());
                    deadline = Some(Instant::now() + guest + HOST_LIMIT);
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

    fn sent(&mut self, item: &Item, sent: Sent) {
        self.arrived += usize::from(!item.folder);
        self.bytes += sent.bytes;
        let wanted = !item.folder && !self.args.no_verify;
        self.unverified += usize::from(wanted && !sent.verified);
        if self.args.json {
            self.line(&item.source, &item.to, Some(sent), "done", None);
        }
    }

    /// Says what there is now, to people.
    fn sum_up(&self) {
        let files = self.arrived;
        if self.args.json || files == 0 {
            return;
        }
        let bytes = BinaryBytes(self.bytes);
        let verified = match self.args.no_verify || self.unverified > 0 {
            true => "",
            false => ", read back and compared",
        };
        let noun = if files == 1 { "file" } else { "files" };
        self.say(&format!("{files} {noun} arrived, {bytes}{verified}"));
    }

    /// The worst counts: a number says more the larger it is.
    fn fail(&mut self, status: Status) {
        let before = self.status;
        if before.is_none_or(|before| (before as u8) < status as u8) {
            self.status = Some(status);
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
        self.fail(status);
        if self.args.json {
            self.line(source, to, None, outcome, Some(reason.clone()));
        }
        self.say(&format!("{}: {reason}", source.display()));
    }

    fn line(
        &self,
        file: &Path,
        to: &str,
        sent: Option<Sent>,
        outcome: &'static str,
        why: Option<String>,
    ) {
        print(&Line {
            file: file.to_string_lossy(),
            to,
            bytes: sent.as_ref().map_or(0, |sent| sent.bytes),
            verified: sent.is_some_and(|sent| sent.verified),
            outcome,
            reason: why,
        });
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("linkspan: {text}"));
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress(items: &[Item]) -> ProgressBar {
    let files = items.iter().filter(|item| !item.folder);
    let sizes = files.map(|item| fs::metadata(&item.source));
    let total = sizes.flatten().map(|meta| meta.len()).sum();
    let style = ProgressStyle::with_template(
        "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left{msg}",
    );
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
