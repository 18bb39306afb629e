//! `linkspan display vnc`: shows a screen to VNC viewers.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use linkspan_backends::display::{Input, QmpError, ServeError, VncServer};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::tcp::TcpListener;
use serde::Serialize;

use super::source::{ScreenArgs, status};
use crate::exit::{Failure, Status};
use crate::sandbox::{self, Kind};
use crate::serving;

/// Options of `linkspan display vnc`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  linkspan display vnc /tmp/screen.sock --listen 127.0.0.1:5900 &\n  \
        vncviewer 127.0.0.1:5900\n\n\
        Who connects only looks, unless --qmp is given. There is no password, so other\n\
        addresses than those of this machine alone are refused; from elsewhere:\n\
        ssh -L 5900:127.0.0.1:5900 HOST. SIGINT or SIGTERM ends it.\n\n\
        For --qmp QEMU needs a monitor of its own, and a tablet for the pointer:\n  \
        -chardev socket,id=q,path=/tmp/qmp.sock,server=on,wait=off \\\n    \
        -mon chardev=q,mode=control -device virtio-tablet-pci"
)]
pub(crate) struct Args {
    #[command(flatten)]
    source: ScreenArgs,

    /// Where viewers connect; port 0 is any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5900")]
    listen: SocketAddr,

    /// Listen where others than this machine can connect: whoever can sees the screen
    #[arg(long)]
    allow_anyone: bool,

    /// Pass keys and the pointer of viewers to the guest, through this monitor (QMP) of QEMU:
    /// whoever can connect then types there
    #[arg(long, value_name = "PATH")]
    qmp: Option<PathBuf>,

    /// Print where it listens on standard output, as a JSON object
    #[arg(long)]
    json: bool,
}

const NO_PASSWORD: &str = "VNC has no password: whoever can connect would see the screen";

#[derive(Serialize)]
struct Listening {
    event: &'static str,
    address: SocketAddr,
}

/// Listens, unless strangers could connect and nobody has allowed that; `why` says what
/// is wrong with it.
pub(crate) fn listen(
    address: SocketAddr,
    allow_anyone: bool,
    why: &str,
) -> Result<TcpListener, Failure> {
    if !address.ip().is_loopback() && !allow_anyone {
        let text = anyhow!("{address} is not of this machine alone, and {why}");
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

/// Where keys and the pointer go. QEMU may come after its viewers.
pub(super) fn input(path: &Path) -> Result<Input, Failure> {
    let absent = |error: &std::io::Error| {
        let kinds = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
        kinds.contains(&error.kind())
    };
    let connected = match Input::connect(path) {
        Err(QmpError::Connect(error)) if absent(&error) => {
            let place = path.display();
            tracing::warn!("no QEMU listens at {place} yet ({error}); keys go there when it does");
            Input::later(path)
        }
        connected => connected,
    };
    connected.map_err(|error| {
        let status = match &error {
            QmpError::System(_) => Status::Failed,
            error if error.is_broken() => Status::PeerBroke,
            _ => Status::PeerUnreachable,
        };
        let error = anyhow::Error::new(error);
        let context = format!("no monitor of QEMU at {}", path.display());
        Failure::new(status, error.context(context))
    })
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let listener = listen(args.listen, args.allow_anyone, NO_PASSWORD)?;
    let screen = args.source.open()?;
    let mut server = VncServer::new(listener, screen).context("cannot serve viewers")?;
    if let Some(path) = &args.qmp {
        server.set_input(input(path)?);
    }
    sandbox::seal(Kind::DisplayView, args.source.groups())?;
    announce(server.address()?, args.json);
    ended(server.run(signals.as_fd()))
}
