//! `linkspan display serve`: a display as a PCI device over vfio-user.

use std::os::fd::{AsFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::ArgGroup;
use linkspan_backends::display::{DisplayOptions, DisplayServer, Model, PciDisplay, Script};
use linkspan_backends::image::parse_size;
use linkspan_engine::vfio_user;
use linkspan_sys::Listener;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::socket::{Inherited, inherit};

use crate::exit::{Failure, Status};
use crate::gpu::mode;
use crate::plane::{Shows, Use, Used};
use crate::sandbox::{self, Kind};
use crate::serving;
use crate::tether;
use crate::vm::{Offer, Plug};

/// The longest script, and the longest OpRegion, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Options of `linkspan display serve`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: a stock guest's screen, and a picture of it\n\n  \
        linkspan display serve --socket-path /tmp/vga.sock --display /tmp/screen.sock &\n  \
        qemu-system-x86_64 -m 1G \\\n    \
          -object memory-backend-memfd,id=m,size=1G,share=on -machine q35,memory-backend=m \\\n    \
          -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/tmp/vga.sock\"}}' \\\n    \
          -vga none -display none …\n  \
        linkspan display shot /tmp/screen.sock -o screen.png\n\n\
        QEMU has the device from version 10.1 on. The guest's bochs-drm drives the model bochs.\n\
        SIGINT or SIGTERM ends it.",
    group = ArgGroup::new("where").args(["socket_path", "fd"]).required(true)
)]
pub(crate) struct Args {
    /// Where the virtual machine monitor connects: a Unix socket that is made here
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Use this inherited descriptor in place of a socket path: one that listens,
    /// or one that is connected already
    #[arg(long, value_name = "N")]
    fd: Option<RawFd>,

    /// What kind of display the guest has
    #[arg(long, value_name = "MODEL", value_enum, default_value = "bochs")]
    model: ModelChoice,

    /// Registers and graphics address table of the model intel: see docs/vfio-user.md
    #[arg(long, value_name = "FILE", required_if_eq("model", "intel"))]
    script: Option<PathBuf>,

    /// Where viewers (`linkspan display`) connect: a Unix socket that is made here. Who may
    /// connect sees the guest's screen
    #[arg(long, value_name = "PATH")]
    display: Option<PathBuf>,

    /// The size that the guest is told; of the model fixed, its size
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "1280x800", value_parser = mode)]
    mode: (u32, u32),

    /// Video memory: a power of two
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = parse_size)]
    memory: u64,

    /// Print what happens to the link on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

/// A kind of display.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ModelChoice {
    /// QEMU's standard VGA without its ports, for a stock guest.
    Bochs,
    /// A picture at a fixed place, as the kernel's sample mdpy.
    Fixed,
    /// Registers of an Intel display engine from a script.
    Intel,
}

impl Args {
    /// What it takes of this machine.
    pub(super) fn uses(&self) -> Vec<Used> {
        let makes = |path: &PathBuf| Use::Socket(path.clone());
        let socket = self.socket_path.as_ref().map(makes);
        let display = self.display.as_ref().map(makes);
        let script = self.script.clone().map(Use::Reads);
        socket
            .map(|used| ("socket-path", used))
            .into_iter()
            .chain(display.map(|used| ("display", used)))
            .chain(script.map(|used| ("script", used)))
            .collect()
    }

    /// What it shows to viewers.
    pub(crate) fn shows(&self) -> Option<Shows> {
        Some(Shows {
            display: self.display.clone()?,
            heads: 1,
            socket: self.socket_path.clone(),
        })
    }

    /// What it gives to virtual machines.
    pub(super) fn offers(&self) -> Vec<Offer> {
        let plug = Plug::VfioUser;
        let socket = self.socket_path.clone();
        let offer = socket.map(|socket| Offer { plug, socket });
        offer.into_iter().collect()
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let options = DisplayOptions {
        model: model(args)?,
        mode: args.mode,
        memory: args.memory,
    };
    let device = PciDisplay::new(options).map_err(|error| Failure::new(Status::Usage, error))?;
    let viewers = match &args.display {
        Some(path) => {
            let listener = Listener::bind(path);
            let listener =
                listener.with_context(|| format!("cannot listen at {}", path.display()))?;
            let viewers = DisplayServer::of_display(&device, listener);
            Some(viewers.context("cannot serve viewers")?)
        }
        None => None,
    };
    let report = serving::reporter(None, args.json);
    let socket = listen(args)?;
    sandbox::seal(Kind::DisplayServe, &[])?;
    let server = vfio_user::serve(socket, device, report);
    let server = server.context("cannot start serving")?;
    let endpoint = Arc::clone(server.endpoint());
    tether::watch("display", endpoint.messages());
    tether::show(move || Some(tether::life("display", &endpoint)));
    wait_for(server.ended(), Direction::Read, Some(signals.as_fd()), None)
        .context("cannot wait for a signal")?;
    tracing::info!("ending");
    server.stop()?;
    drop(viewers);
    Ok(())
}

fn model(args: &Args) -> Result<Model, Failure> {
    let script = match (args.model, &args.script) {
        (ModelChoice::Intel, Some(path)) => path,
        (ModelChoice::Intel, None) => {
            let error = anyhow::anyhow!("the model intel wants --script");
            return Err(Failure::new(Status::Usage, error));
        }
        (_, Some(_)) => {
            let error = anyhow::anyhow!("--script is for the model intel");
            return Err(Failure::new(Status::Usage, error));
        }
        (ModelChoice::Bochs, None) => return Ok(Model::Bochs),
        (ModelChoice::Fixed, None) => return Ok(Model::Fixed),
    };
    let usage = |error: anyhow::Error| Failure::new(Status::Usage, error);
    let bytes = read(script).map_err(usage)?;
    let text = String::from_utf8(bytes).map_err(|error| usage(error.into()))?;
    let parsed = Script::parse(&text).with_context(|| script.display().to_string());
    let mut script = parsed.map_err(usage)?;
    if let Some(path) = &script.opregion {
        script.opregion_bytes = read(path).map_err(usage)?;
    }
    Ok(Model::Intel(Box::new(script)))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read as _;
    let place = || format!("cannot read {}", path.display());
    let file = std::fs::File::open(path).with_context(place)?;
    let mut bytes = Vec::new();
    let read = file.take(FILE_MAX + 1).read_to_end(&mut bytes);
    read.with_context(place)?;
    anyhow::ensure!(
        bytes.len() as u64 <= FILE_MAX,
        "{} is longer than {FILE_MAX} bytes",
        path.display()
    );
    Ok(bytes)
}

fn listen(args: &Args) -> Result<Inherited, Failure> {
    if let Some(fd) = args.fd {
        return inherit(fd).map_err(|error| Failure::new(Status::Usage, error));
    }
    let path = args.socket_path.as_deref().unwrap_or(Path::new(""));
    let listener =
        Listener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    Ok(Inherited::Listener(listener))
}
