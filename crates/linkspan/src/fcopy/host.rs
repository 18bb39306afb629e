//! `linkspan fcopy host`: the device, and a socket for whoever sends files.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use linkspan_backends::fcopy::{Accepts, Host, HostEvent, HostOptions, OUTSTANDING};
use linkspan_engine::vmbus::ChannelError;
use linkspan_engine::{Endpoint, Phase, Sights};
use linkspan_sys::Listener;
use linkspan_sys::signals::{Signal, Signals};
use serde::Serialize;

use crate::exit::{Failure, Status};
use crate::plane::{Use, Used};
use crate::sandbox::{self, Kind};
use crate::serving::print;
use crate::tether;

/// Bytes of a ring to a guest of ours: there is room for all messages that it gets at
/// once, and both rings stay in the processor's cache.
const RING: u64 = 256 << 10;

/// Bytes of a ring as Linux's kernel has it for this device.
const DEVICE_RING: u64 = 20480;

/// Options of `host`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: guests at a socket of their own, so that they cannot send\n\n  \
        linkspan fcopy host --control /run/fcopy.sock --device /run/fcopy-guest.sock\n\n\
        Example: Linux's own daemon, as it is, with the device as a kernel would show it\n\n  \
        linkspan fcopy host --control /run/fcopy.sock -- hv_fcopy_uio_daemon -n\n\n\
        COMMAND needs root, /dev/fuse and Linux 6.9; the host ends with it, and with its status."
)]
pub(super) struct Args {
    /// Where `send` connects, and a guest if there is no other socket for it
    #[arg(long, value_name = "PATH")]
    control: PathBuf,

    /// A socket for guests alone; they cannot use the other one then
    #[arg(long, value_name = "PATH")]
    device: Option<PathBuf>,

    /// Bytes of each of the two rings, a multiple of 4096 [default: 256K; as Linux has
    /// them, 20480, with COMMAND]
    #[arg(long, value_name = "BYTES", value_parser = crate::driver::bytes)]
    ring_size: Option<u64>,

    /// Messages that a guest gets before it has answered the first [default: 32; 1 with
    /// COMMAND, as guests of others expect it]
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u8).range(1..=32))]
    outstanding: Option<u8>,

    /// Prints what happens on standard output, one JSON object a line
    #[arg(long)]
    json: bool,

    /// A program that sees the device as /dev/uio0 and in sysfs; nobody else does
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Args {
    /// What it takes of this machine.
    pub(super) fn uses(&self) -> Vec<Used> {
        let control = ("control", Use::Socket(self.control.clone()));
        let device = self
            .device
            .clone()
            .map(|path| ("device", Use::Socket(path)));
        [control].into_iter().chain(device).collect()
    }
}

#[derive(Serialize, Default)]
struct Line<'a> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
}

/// What happened to the guest, for who looks.
fn live(endpoint: &Endpoint, event: &HostEvent) {
    match event {
        HostEvent::Joined => {
            endpoint.begin();
            endpoint.enter(Phase::Running);
        }
        HostEvent::Left { reason, fault } => {
            endpoint.enter(Phase::Reconnecting);
            if *fault {
                endpoint.fault(reason);
            }
        }
        HostEvent::File { .. } => {}
    }
}

fn show(endpoint: Arc<Endpoint>, sights: &Arc<Sights>) {
    let sights = Arc::clone(sights);
    tether::watch("guest", &sights.messages);
    tether::show(move || {
        let latency = tether::latency(&sights.latency.latency());
        let more = serde_json::json!({ "latency": latency });
        Some(tether::with(tether::life("guest", &endpoint), more))
    });
}

/// Serves until a signal ends it, or the program that it runs has ended.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let bind = |path: &PathBuf| {
        Listener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))
    };
    let mut listeners = Vec::new();
    let control = bind(&args.control)?;
    match &args.device {
        Some(device) => {
            listeners.push((control, Accepts::Senders));
            listeners.push((bind(device)?, Accepts::Guests));
        }
        None => listeners.push((control, Accepts::All)),
    }
    let ring = args.ring_size.unwrap_or(if args.command.is_empty() {
        RING
    } else {
        DEVICE_RING
    });
    let options = HostOptions {
        ring,
        // Whoever runs here may be anybody's.
        outstanding: match args.outstanding {
            Some(messages) => messages.into(),
            None if args.command.is_empty() => OUTSTANDING,
            None => 1,
        },
    };
    let json = args.json;
    let endpoint = Arc::new(Endpoint::default());
    let life = Arc::clone(&endpoint);
    let host = Host::new(listeners, options, move |event| {
        live(&life, &event);
        report(&event, json);
    });
    let mut host = host.map_err(|error| match error {
        ChannelError::Size { .. } => Failure::new(Status::Usage, error)
            .hint("--ring-size 20480, or any multiple of 4096 from 12288 on"),
        error => error.into(),
    })?;
    show(endpoint, host.sights());
    if json {
        let event = "listening";
        print(&Line {
            event,
            ..Line::default()
        });
    }
    tracing::info!("listening");
    if !args.command.is_empty() {
        let place = args.device.as_ref().unwrap_or(&args.control);
        return super::command::run(host, ring, place, &args.command, &signals);
    }
    sandbox::seal(Kind::FcopyHost, &[])?;
    host.run(signals.as_fd()).context("cannot wait")?;
    Ok(ExitCode::SUCCESS)
}

fn report(event: &HostEvent, json: bool) {
    if json {
        let line = match event {
            HostEvent::Joined => Line {
                event: "joined",
                ..Line::default()
            },
            HostEvent::Left { reason, .. } => Line {
                event: "left",
                reason: Some(reason.clone()),
                ..Line::default()
            },
            HostEvent::File {
                file,
                path,
                outcome,
            } => Line {
                event: "file",
                reason: Some(outcome.to_string()),
                file: Some(file),
                path: Some(path),
                outcome: Some(super::name(*outcome)),
            },
        };
        print(&line);
    }
    match event {
        HostEvent::Joined => tracing::info!("a guest has the channel"),
        HostEvent::Left { reason, .. } => tracing::info!("the guest left: {reason}"),
        HostEvent::File {
            file,
            path,
            outcome,
        } => tracing::debug!(file, path, "{outcome}"),
    }
}
