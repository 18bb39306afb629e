//! `linkspan display vnc`: shows a screen to VNC viewers.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use anyhow::{Context, anyhow};
use linkspan_backends::display::{ServeError, VncServer};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::tcp::TcpListener;
use serde::Serialize;

use super::source::{SourceArgs, status};
use crate::exit::{Failure, Status};
use crate::serving;

/// Options of `linkspan display vnc`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  linkspan display vnc /tmp/screen.sock --listen 127.0.0.1:5900 &\n  \
        vncviewer 127.0.0.1:5900\n\n\
        Who connects only looks: keys and the pointer are not for the guest. There is no\n\
        password, so other addresses than those of this machine alone are refused; from\n\
        elsewhere: ssh -L 5900:127.0.0.1:5900 HOST. SIGINT or SIGTERM ends it."
)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,

    /// Where viewers connect; port 0 is any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5900")]
    listen: SocketAddr,

    /// Listen where others than this machine can connect: whoever can sees the screen
    #[arg(long)]
    allow_anyone: bool,

    /// Print where it listens on standard output, as a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listening {
    event: &'static str,
    address: SocketAddr,
}

/// Listens, unless strangers could connect and nobody has allowed that.
pub(super) fn listen(
    address: SocketAddr,
    allow_anyone: bool,
    what: &str,
) -> Result<TcpListener, Failure> {
    if !address.ip().is_loopback() && !allow_anyone {
        let text = anyhow!(
            "{address} is not of this machine alone, and {what} has no password: whoever can connect would see the screen"
        );
        let failure = Failure::new(Status::Usage, text);
        return Err(failure.hint("an address of 127.0.0.0/8 or [::1], and a tunnel of ssh to it"));
    }
    let listener = TcpListener::bind(address);
    Ok(listener.with_context(|| format!("cannot listen at {address}"))?)
}

/// Says where it listens.
pub(super) fn announce(address: SocketAddr, json: bool) {
    tracing::info!("listening at {address}");
    if json {
        serving::print(&Listening {
            event: "listening",
            address,
        });
    }
}

/// How a server of viewers ends.
pub(super) fn ended(result: Result<(), ServeError>) -> Result<(), Failure> {
    result.map_err(|error| match error {
        ServeError::Source(error) => Failure::new(status(&error), error),
        other => Failure::new(Status::Failed, other),
    })
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let listener = listen(args.listen, args.allow_anyone, "VNC")?;
    let screen = args.source.open()?;
    let mut server = VncServer::new(listener, screen).context("cannot serve viewers")?;
    announce(server.address()?, args.json);
    ended(server.run(signals.as_fd()))
}
