//! `linkspan display watch`: shows a screen on a web page.

use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::Context;
use linkspan_backends::display::WatchServer;
use linkspan_sys::signals::{Signal, Signals};
use serde::Serialize;

use super::source::ScreenArgs;
use super::vnc::{ended, input, listen};
use crate::exit::Failure;
use crate::sandbox::{self, Kind};
use crate::serving;

/// Options of `linkspan display watch`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  linkspan display watch /tmp/screen.sock --listen 127.0.0.1:8080\n\n\
        It prints the address to open in a browser. Behind its # is a token, which is another\n\
        one each time, and without which nothing is shown; browsers do not send it in requests.\n\
        Who looks only looks, unless --qmp is given. The page is not encrypted, so other addresses\n\
        than those of this machine alone are refused; from elsewhere:\n\
        ssh -L 8080:127.0.0.1:8080 HOST. SIGINT or SIGTERM ends it.\n\n\
        For --qmp QEMU needs a monitor of its own, and a tablet for the pointer:\n  \
        -chardev socket,id=q,path=/tmp/qmp.sock,server=on,wait=off \\\n    \
        -mon chardev=q,mode=control -device virtio-tablet-pci"
)]
pub(crate) struct Args {
    #[command(flatten)]
    source: ScreenArgs,

    /// Where the page is; port 0 is any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Listen where others than this machine can connect: whoever can listen on the way
    /// sees the token and the screen
    #[arg(long)]
    allow_anyone: bool,

    /// Pass keys and the pointer of the page to the guest, through this monitor (QMP) of QEMU:
    /// whoever has the address then types there
    #[arg(long, value_name = "PATH")]
    qmp: Option<PathBuf>,

    /// Print where it is on standard output, as a JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) const NOT_ENCRYPTED: &str =
    "the page is not encrypted: whoever can listen on the way would see the token and the screen";

#[derive(Serialize)]
struct Listening {
    event: &'static str,
    address: SocketAddr,
    url: String,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let listener = listen(args.listen, args.allow_anyone, NOT_ENCRYPTED)?;
    let screen = args.source.open()?;
    let mut server = WatchServer::new(listener, screen).context("cannot serve the page")?;
    if let Some(path) = &args.qmp {
        server.set_input(input(path)?);
    }
    sandbox::seal(Kind::DisplayView, args.source.groups())?;
    announce(server.address()?, server.token(), args.json);
    ended(server.run(signals.as_fd()))
}

/// Says where it is.
fn announce(address: SocketAddr, token: &str, json: bool) {
    let url = format!("http://{}/#{token}", reachable(address));
    if address.ip().is_unspecified() {
        tracing::info!("from elsewhere: the same with an address of this machine");
    }
    if json {
        serving::print(&Listening {
            event: "listening",
            address,
            url,
        });
    } else {
        // Whoever read it may have left, and who serves goes on.
        let _ = writeln!(std::io::stdout().lock(), "{url}");
    }
}

/// An address that a browser here can open.
pub(crate) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
