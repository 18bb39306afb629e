//! `linkspan fcopy guest`: takes files, over one channel after the other.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use linkspan_backends::fcopy::{Guest, GuestEnd, Tree, TreeOptions};
use linkspan_engine::vmbus::{Channel, Framed, FramedError};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::signals::{Signal, Signals, ignore_file_limit};
use linkspan_sys::uio;
use linkspan_vmbus::fcopy::{Policy, Roots};
use linkspan_vmbus::ic::FILE_COPY;
use linkspan_vmbus::link::{Frame, Role};
use serde::Serialize;

use crate::exit::{Failure, Status};
use crate::serving::print;

/// The first pause before another attempt, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// How long a host may take to give its channel.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Options of `guest`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: files below two folders, as user 1000, from Hyper-V\n\n  \
        linkspan fcopy guest --root /srv/in --root /home/me/in --owner 1000:1000 --max-size 1G"
)]
pub(super) struct Args {
    /// A folder that files may go to, by its absolute path; a relative destination is
    /// below the first
    #[arg(long, required = true, value_name = "DIR")]
    root: Vec<PathBuf>,

    /// Who owns files and new folders, by name or number [default: whoever runs this]
    #[arg(long, value_name = "USER[:GROUP]", value_parser = owner)]
    owner: Option<(u32, u32)>,

    /// The mode of files, octal; a new folder has it with `x` wherever there is `r`
    #[arg(long, value_name = "MODE", default_value = "644", value_parser = mode)]
    mode: u32,

    /// The largest file: bytes, or a number with K, M, G or T
    #[arg(long, value_name = "BYTES", default_value = "1T", value_parser = crate::driver::bytes)]
    max_size: u64,

    /// Lets the host replace files that exist; without it that is refused even if the
    /// host asks for it
    #[arg(long)]
    overwrite: bool,

    /// A host of ours at this socket, instead of the kernel's device
    #[arg(long, value_name = "PATH")]
    connect: Option<PathBuf>,

    /// Prints what happens on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
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
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    ignore_file_limit().context("cannot ignore a signal")?;
    let mut guest = Guest::new(policy(args)?, tree(args)?);
    let mut source = Source {
        args,
        seen: false,
        told: false,
    };
    let mut pause = PAUSES[0];
    loop {
        let begun = Instant::now();
        match source.open(&signals)? {
            Some((channel, mut socket)) => {
                say(args, "joined", None, &guest);
                tracing::info!("the channel is open");
                let end = guest.serve(channel, socket.as_mut(), signals.as_fd());
                if matches!(end, GuestEnd::Cancelled) {
                    say(args, "stopped", None, &guest);
                    return Ok(());
                }
                let reason = end.to_string();
                say(args, "left", Some(&reason), &guest);
                if end.is_fault() {
                    tracing::warn!("the channel ended: {reason}");
                } else {
                    tracing::info!("the channel ended: {reason}");
                }
                if begun.elapsed() > PAUSES[1] {
                    pause = PAUSES[0];
                }
            }
            None => tracing::debug!("no channel yet"),
        }
        let until = Instant::now() + pause;
        let woken = wait_for(signals.as_fd(), Direction::Read, None, Some(until));
        if woken.context("cannot wait")? == Wake::Ready {
            say(args, "stopped", None, &guest);
            return Ok(());
        }
        pause = (pause * 2).min(PAUSES[1]);
    }
}

fn say(args: &Args, event: &'static str, reason: Option<&str>, guest: &Guest) {
    if args.json {
        let files = guest.files();
        print(&Line {
            event,
            reason,
            files,
        });
    }
}

fn policy(args: &Args) -> Result<Policy, Failure> {
    let usage = |error| Failure::new(Status::Usage, error);
    let roots: Result<Vec<&str>, Failure> = args
        .root
        .iter()
        .map(|root| {
            let text = root.to_str();
            text.ok_or_else(|| usage(anyhow!("{} is not UTF-8", root.display())))
        })
        .collect();
    let roots = Roots::new(&roots?).map_err(|error| usage(error.into()))?;
    Ok(Policy {
        roots,
        max_size: args.max_size,
    })
}

fn tree(args: &Args) -> Result<Tree, Failure> {
    let options = TreeOptions {
        owner: args.owner,
        mode: args.mode,
        overwrite: args.overwrite,
        folder_mode: args.mode | (args.mode & 0o444) >> 2,
        ..TreeOptions::default()
    };
    let tree = Tree::new(&args.root, options);
    tree.map_err(|error| Failure::new(Status::Missing, error))
}

/// Where channels come from.
struct Source<'a> {
    args: &'a Args,
    /// Whether there ever was one.
    seen: bool,
    /// Whether it was said that there is none.
    told: bool,
}

impl Source<'_> {
    /// The next channel, if there is one now.
    fn open(&mut self, signals: &Signals) -> Result<Option<(Channel, Option<Framed>)>, Failure> {
        let opened = match &self.args.connect {
            Some(path) => {
                let joined = join(path, signals);
                match joined {
                    Ok(joined) => joined.map(|(channel, framed)| (channel, Some(framed))),
                    Err(failure) if failure.status == Status::Usage => return Err(failure),
                    // Another host may come, or this one by its right mind.
                    Err(failure) => {
                        self.tell(&failure);
                        None
                    }
                }
            }
            None => self.device()?.map(|channel| (channel, None)),
        };
        if opened.is_some() {
            (self.seen, self.told) = (true, false);
        }
        Ok(opened)
    }

    fn device(&mut self) -> Result<Option<Channel>, Failure> {
        let class = FILE_COPY.interface.to_string();
        let instance = FILE_COPY.instance.map(|instance| instance.to_string());
        let found = uio::find(&uio::Roots::default(), &class, instance.as_deref());
        match found.and_then(|found| uio::Device::open(&found)) {
            Ok(device) => Ok(Some(Channel::device(device)?)),
            // It was there, and comes back when the host's service does.
            Err(error) if self.seen && error.may_come() => {
                self.tell(&error);
                Ok(None)
            }
            Err(error) => {
                let failure = Failure::new(Status::Missing, error);
                Err(failure.hint("enable Guest Services of this machine at its host, or --connect"))
            }
        }
    }

    /// Says once that there is nobody, and why.
    fn tell(&mut self, why: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::info!("waiting: {why}");
        }
    }
}

/// A host's channel; `None` if we were asked to stop meanwhile.
fn join(path: &Path, signals: &Signals) -> Result<Option<(Channel, Framed)>, Failure> {
    let unreachable = |error| super::unreachable(path, error);
    let mut framed = Framed::connect(path, Role::Guest).map_err(unreachable)?;
    let deadline = Instant::now() + HANDSHAKE;
    let (frame, fds) = match framed.await_frame(signals.as_fd(), Some(deadline)) {
        Ok(frame) => frame,
        Err(FramedError::Cancelled) => return Ok(None),
        Err(error) => return Err(unreachable(error)),
    };
    match frame {
        Frame::Channel {
            interface, shape, ..
        } if interface == FILE_COPY.interface => {
            let channel = Channel::guest(shape, fds);
            let channel = channel.map_err(|error| Failure::new(Status::PeerBroke, error))?;
            Ok(Some((channel, framed)))
        }
        Frame::Refused(reason) => Err(super::refused(path, reason)),
        _ => {
            let error = anyhow!("the host at {} offers another device", path.display());
            Err(Failure::new(Status::PeerBroke, error))
        }
    }
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok();
    let mode = mode.filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "a mode is three octal digits, such as 640".into())
}

fn owner(text: &str) -> Result<(u32, u32), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let entry = find(&passwd, user);
    let number = |text: &str| text.parse::<u32>().ok();
    let user_id = entry.and_then(|fields| number(fields[2])).or(number(user));
    let user_id = user_id.ok_or_else(|| format!("there is no user {user}"))?;
    let group_id = match group {
        Some(group) => find(&groups, group)
            .and_then(|fields| number(fields[2]))
            .or(number(group))
            .ok_or_else(|| format!("there is no group {group}"))?,
        None => entry
            .and_then(|fields| number(fields[3]))
            .unwrap_or(user_id),
    };
    Ok((user_id, group_id))
}

/// The line of a database that begins with this name: its first fields.
fn find<'a>(database: &'a str, name: &str) -> Option<[&'a str; 4]> {
    let mut lines = database.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let mut next = || fields.next();
        Some([next()?, next()?, next()?, next().unwrap_or_default()])
    });
    lines.find(|fields| fields[0] == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_modes_are_read() {
        assert_eq!(owner("0:0"), Ok((0, 0)));
        assert_eq!(owner("root"), Ok((0, 0)));
        assert_eq!(owner("4000000"), Ok((4_000_000, 4_000_000)));
        assert!(owner("nobody-has-this-name").is_err());
        assert!(owner("0:nobody-has-this-name").is_err());
        assert_eq!(mode("640"), Ok(0o640));
        assert!(mode("4755").is_err());
        assert!(mode("9").is_err());
    }
}
