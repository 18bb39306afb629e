//! `linkspan fcopy guest`: takes files, over one channel after the other.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use linkspan_backends::fcopy::{Guest, GuestEnd};
use linkspan_engine::{Endpoint, Messages, Phase};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::sandbox::{self, Access, Network, Rule, Sandbox};
use linkspan_sys::signals::{Signal, Signals, ignore_file_limit};
use linkspan_sys::{daemon, uio};
use serde::Serialize;

use super::settings::{Options, Settings};
use super::source::Source;
use crate::exit::Failure;
use crate::plane::Used;
use crate::sandbox::{Kind, is_off, seal};
use crate::serving::print;
use crate::tether;

/// The first pause before another attempt, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// Options of `guest`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: files below two folders, as user 1000, from Hyper-V\n\n  \
        linkspan fcopy guest --root /srv/in --root /home/me/in --owner 1000:1000 --max-size 1G"
)]
pub(super) struct Args {
    #[command(flatten)]
    options: Options,

    /// Prints what happens on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// What it takes of this machine.
    pub(super) fn uses(&self) -> Vec<Used> {
        self.options.uses()
    }
}

/// Where the guest goes on once it has what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    /// In this process.
    Foreground,
    /// As a daemon; this process ends.
    Background,
}

#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    files: u64,
}

/// Takes files until a signal ends it.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    serve(&args.options.settings()?, args.json, Stay::Foreground)
}

/// The same, with settings that were read.
///
/// # Errors
/// As [`run`]; what is missing at the start is told before a daemon leaves.
pub(super) fn serve(settings: &Settings, json: bool, stay: Stay) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    ignore_file_limit().context("cannot ignore a signal")?;
    let mut guest = Guest::new(settings.policy()?, settings.tree()?);
    let endpoint = Arc::new(Endpoint::default());
    show(&endpoint, guest.messages());
    let mut source = Source::new(settings.connect.as_deref());
    if !source.prepare(&signals)? {
        say(json, "stopped", None, &guest);
        return Ok(());
    }
    if stay == Stay::Background {
        daemon::detach().context("cannot go into the background")?;
        tracing::info!("started");
    }
    confine(settings)?;
    tether::hold().context("no line to the supervisor")?;
    seal(Kind::FcopyGuest, &[])?;
    let mut pause = PAUSES[0];
    loop {
        let begun = Instant::now();
        match source.open(&signals)? {
            Some((channel, mut socket)) => {
                say(json, "joined", None, &guest);
                endpoint.begin();
                endpoint.enter(Phase::Running);
                tracing::info!("the channel is open");
                let end = guest.serve(channel, socket.as_mut(), signals.as_fd());
                if matches!(end, GuestEnd::Cancelled) {
                    say(json, "stopped", None, &guest);
                    return Ok(());
                }
                let reason = end.to_string();
                endpoint.enter(Phase::Reconnecting);
                say(json, "left", Some(&reason), &guest);
                if end.is_fault() {
                    endpoint.fault(&reason);
                    tracing::warn!("the channel ended: {reason}");
                } else {
                    tracing::info!("the channel ended: {reason}");
                }
                // Whoever took it back may offer it again at once.
                if !end.is_fault() || begun.elapsed() > PAUSES[1] {
                    pause = PAUSES[0];
                }
            }
            None => tracing::debug!("no channel yet"),
        }
        let until = Instant::now() + pause;
        let woken = wait_for(signals.as_fd(), Direction::Read, None, Some(until));
        if woken.context("cannot wait")? == Wake::Ready {
            say(json, "stopped", None, &guest);
            return Ok(());
        }
        pause = (pause * 2).min(PAUSES[1]);
    }
}

/// What there is to see of it in a plane.
fn show(endpoint: &Arc<Endpoint>, messages: &Arc<Messages>) {
    tether::watch("host", messages);
    let endpoint = Arc::clone(endpoint);
    tether::show(move || Some(tether::life("host", &endpoint)));
}

fn say(json: bool, event: &'static str, reason: Option<&str>, guest: &Guest) {
    if json {
        let files = guest.files();
        print(&Line {
            event,
            reason,
            files,
        });
    }
}

/// Leaves this process its folders, and what it needs to find the device again. It has
/// talked to nobody yet.
fn confine(settings: &Settings) -> Result<(), Failure> {
    if is_off() {
        return Ok(());
    }
    let mut rules: Vec<Rule> = settings
        .roots
        .iter()
        .map(|root| Rule::new(root, Access::Fill))
        .collect();
    if settings.connect.is_some() {
        // A host of ours may ask what has become of a file.
        let roots = settings.roots.iter();
        rules.extend(roots.map(|root| Rule::new(root, Access::Read)));
    } else {
        let uio::Roots { sysfs, dev, .. } = uio::Roots::default();
        // The device may come back as another file, of which only the folder is known.
        rules.push(Rule::new(dev, Access::ReadWrite));
        let folders = ["bus/vmbus", "devices"].map(|folder| sysfs.join(folder));
        let there = folders.iter().filter(|folder| Path::exists(folder));
        rules.extend(there.map(|folder| Rule::new(folder, Access::Read)));
    }
    match sandbox::enter(&rules, Network::Without).context("cannot enter the sandbox")? {
        Sandbox::Landlock(version) => tracing::debug!("sandboxed, with Landlock {version}"),
        Sandbox::PrivilegesOnly => tracing::info!("this kernel has no Landlock to be held by"),
    }
    Ok(())
}
