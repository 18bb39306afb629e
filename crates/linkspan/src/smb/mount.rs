//! `linkspan smb mount`: a share as a folder of this machine.

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use linkspan_backends::smb::{Happened, Mount, MountError, MountOptions, Unmounted};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use serde::Serialize;

use super::url::Url;
use super::{Common, connect, failure};
use crate::exit::{Failure, Status};
use crate::sandbox::{self, Kind};
use crate::serving::print;
use rustix::thread::CapabilitySet;

/// Options of `mount`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It stays until it is unmounted or ends by a signal, and says when it is there.\n\n\
        Example:\n\n  \
        linkspan smb mount smb://me@server/share /mnt\n  \
        linkspan smb mount --read-only --transport rdma smb://me@server/share/folder /mnt\n  \
        umount /mnt     # or fusermount3 -u /mnt"
)]
pub(super) struct Args {
    /// smb://[[domain;]user@]host[:port]/share[/folder]
    url: Url,

    /// An empty folder
    dir: PathBuf,

    /// Nothing can be changed
    #[arg(long)]
    read_only: bool,

    /// Other users of this machine see it, too; only root and you may write. As another user
    /// than root it needs user_allow_other in /etc/fuse.conf
    #[arg(long)]
    allow_other: bool,

    /// Seconds for which programs wait when the server is away, until they have errors; 0 for
    /// ever
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    time_limit: u32,

    #[command(flatten)]
    common: Common,
}

/// What happens, as a line of JSON.
#[derive(Default, Serialize)]
struct Line<'a> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transport: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protection: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// Seconds without a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<f64>,
}

/// Says what happens, to people and to programs.
fn report(happened: &Happened<'_>, json: bool) {
    let (mut line, text);
    match happened {
        Happened::Lost { why } => {
            text = why.to_string();
            tracing::warn!("{text}; connecting again");
            line = Line {
                event: "lost",
                ..Line::default()
            };
            line.reason = Some(&text);
        }
        Happened::NotConnected { why } => {
            text = why.to_string();
            tracing::warn!("not connected: {text}");
            line = Line {
                event: "not-connected",
                ..Line::default()
            };
            line.reason = Some(&text);
        }
        Happened::Connected { after, connection } => {
            text = connection.describe();
            tracing::info!("connected again after {after:.1?}");
            line = Line {
                event: "connected",
                after: Some(after.as_secs_f64()),
                transport: Some(connection.connection().transport()),
                ..Line::default()
            };
            line.protection = Some(&text);
        }
    }
    if json {
        print(&line);
    }
}

/// With the status that fits, and what to try.
fn not_mounted(error: MountError) -> Failure {
    match error {
        MountError::Share(error) => failure(error),
        MountError::Place { .. } | MountError::NotEmpty { .. } => {
            Failure::new(Status::Usage, error).hint("an empty folder: mkdir DIR")
        }
        MountError::NoFolder { .. } => Failure::new(Status::Usage, error),
        MountError::NoFuse(_) => Failure::new(Status::Missing, error)
            .hint("modprobe fuse; in a container, give it --device /dev/fuse"),
        MountError::Refused { .. } => Failure::new(Status::Missing, error).hint(
            "as root or with the package fuse3; in a container, --cap-add SYS_ADMIN; \
             for --allow-other, user_allow_other in /etc/fuse.conf",
        ),
        error => Failure::new(Status::Failed, error),
    }
}

/// Mounts, and serves until the end.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // Before there are threads, which would take them otherwise.
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let json = args.common.json;
    let options = MountOptions {
        read_only: args.read_only,
        allow_other: args.allow_other,
        time_limit: (args.time_limit > 0).then(|| Duration::from_secs(args.time_limit.into())),
    };
    let share = connect(&args.url, &args.common.reach)?;
    let (transport, protection) = (share.connection().transport(), share.describe());
    let hears = move |happened: Happened<'_>| report(&happened, json);
    let mount = Mount::start(share, &args.url.path, &args.dir, &options, hears);
    let mount = mount.map_err(not_mounted)?;
    // Others unmount by a program that has the right to, which a sandbox would take.
    let rights = rustix::thread::capabilities(None).context("cannot ask for capabilities")?;
    if rights.effective.contains(CapabilitySet::SYS_ADMIN) {
        sandbox::seal(Kind::SmbMount, &[])?;
    }
    let at = mount.place().display().to_string();
    eprintln!("linkspan: mounted at {at}");
    if json {
        print(&Line {
            event: "mounted",
            at: Some(at),
            transport: Some(transport),
            protection: Some(&protection),
            ..Line::default()
        });
    }
    wait(mount, &signals, json)?;
    if json {
        print(&Line {
            event: "unmounted",
            ..Line::default()
        });
    }
    Ok(())
}

/// Waits until it is unmounted; unmounts it if a signal says so.
fn wait(mount: Mount, signals: &Signals, json: bool) -> Result<(), Failure> {
    let mut in_use = false;
    loop {
        let (ended, cancel) = (mount.ended().as_fd(), signals.as_fd());
        let woken = wait_for(ended, Direction::Read, Some(cancel), None).context("cannot wait")?;
        if woken != Wake::Cancelled {
            break;
        }
        signals.take().context("cannot look for signals")?;
        if in_use {
            // It cannot be waited for: who uses it may never stop.
            std::mem::forget(mount);
            let error =
                anyhow!("ended while files were open; all that was written is at the server");
            return Err(Failure::new(Status::Failed, error));
        }
        if mount.unmount().context("cannot unmount")? == Unmounted::Done {
            break;
        }
        in_use = true;
        tracing::warn!("files are in use; it ends when they are closed, or with another signal");
        if json {
            print(&Line {
                event: "in-use",
                ..Line::default()
            });
        }
    }
    Ok(mount
        .join()
        .context("the connection to the kernel failed")?)
}
